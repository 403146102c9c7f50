//! The Backend API, as `clerk/openapi-specs` `bapi/2026-05-12.yml` has it: what a mirror reads, and Clerk's way to say no.

use super::faults::Fault;
use super::query::{self, Key, ListQuery, Order, Params, Test};
use super::table::{Row, Table, Time};
use super::{Clerk, Membership, Organization, json};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde::Serialize;

/// The versions of the API that there are.
const VERSIONS: [&str; 5] = ["2021-02-05", "2024-10-01", "2025-04-10", "2025-11-10", "2026-05-12"];

const WINDOW: &[&str] = &["limit", "offset"];
const ORDER: &[&str] = &["order_by"];
const USERS: &[&str] = &query::USER_FILTERS;
const INCLUDE: &[&str] = &["include_members_count", "include_missing_member_with_elevated_permissions"];

/// An error in Clerk's words.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    code: &'static str,
    message: String,
    long_message: String,
    parameter: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: &str, long_message: &str) -> ApiError {
        let (message, long_message) = (message.to_owned(), long_message.to_owned());
        ApiError { status, code, message, long_message, parameter: None }
    }

    pub(super) fn bad_request() -> ApiError {
        let message = "The request parameters are malformed";
        ApiError::new(StatusCode::BAD_REQUEST, "malformed_request_parameters", message, message)
    }

    fn version(why: &str) -> ApiError {
        let why = format!("Invalid Clerk API version: {why}.");
        ApiError::new(StatusCode::BAD_REQUEST, "api_version_invalid", "invalid API version", &why)
    }

    pub(super) fn key() -> ApiError {
        let message = "The provided Clerk Secret Key is invalid. Make sure that your Clerk Secret Key is correct.";
        ApiError::new(StatusCode::UNAUTHORIZED, "clerk_key_invalid", message, message)
    }

    pub(super) fn organizations_off() -> ApiError {
        let message = "The organizations feature is not enabled for this instance. You can enable it at https://dashboard.clerk.com.";
        ApiError::new(StatusCode::FORBIDDEN, "organization_not_enabled_in_instance", message, message)
    }

    fn not_found(what: &str) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "resource_not_found", "not found", what)
    }

    fn no_user(id: &str) -> ApiError {
        ApiError::not_found(&format!("No user was found with id {id}."))
    }

    fn no_organization() -> ApiError {
        ApiError::not_found("Given organization not found.")
    }

    fn parameter(name: &str, code: &'static str, message: &str, long_message: &str) -> ApiError {
        let refusal = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, code, message, long_message);
        ApiError { parameter: Some(name.to_owned()), ..refusal }
    }

    pub(super) fn invalid(name: &str) -> ApiError {
        ApiError::parameter(name, "form_param_value_invalid", "is invalid", &format!("{name} is invalid"))
    }

    pub(super) fn unknown(name: &str) -> ApiError {
        let why = format!("{name} is not a valid parameter for this request.");
        ApiError::parameter(name, "form_param_unknown", "is unknown", &why)
    }

    pub(super) fn too_many() -> ApiError {
        let (message, long_message) = ("Too many requests", "Too many requests, retry later");
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", message, long_message)
    }

    /// The same as it is seen too, with no error named: clients must live by its status and head alone.
    pub(super) fn too_many_in_no_words() -> ApiError {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "", "", "")
    }

    pub(super) fn server(status: StatusCode) -> ApiError {
        let (code, message) = match status.as_u16() {
            503 => ("service_unavailable", "The service is currently unavailable"),
            504 => ("gateway_timeout", "The request could not be completed in time"),
            _ => ("internal_clerk_error", "There was an internal error on our servers"),
        };
        ApiError::new(status, code, message, message)
    }

    pub(super) fn body(&self, trace_id: &str) -> Vec<u8> {
        let meta = self.parameter.as_ref().map(|name| serde_json::json!({ "param_name": name }));
        let mut error =
            serde_json::json!({ "message": self.message, "long_message": self.long_message, "code": self.code });
        if let Some(meta) = meta {
            error["meta"] = meta;
        }
        let errors = if self.code.is_empty() { Vec::new() } else { vec![error] };
        serde_json::json!({ "errors": errors, "clerk_trace_id": trace_id }).to_string().into_bytes()
    }
}

type Reply = Result<Vec<u8>, ApiError>;

/// The path as an endpoint, without the ids in it: what a rate limit counts.
pub(super) fn endpoint(path: &str) -> String {
    match segments(path).as_slice() {
        [kind @ ("users" | "organizations"), id, rest @ ..] if *id != "count" => {
            [&[*kind, "*"], rest].concat().join("/")
        }
        others => others.join("/"),
    }
}

fn segments(path: &str) -> Vec<&str> {
    path.strip_prefix("/v1/").map(|rest| rest.split('/').collect()).unwrap_or_default()
}

/// Answers one request. A fault that is about rows takes effect here.
pub(super) fn answer(clerk: &Clerk, request: &Parts, fault: Option<&Fault>) -> Reply {
    check_version(request)?;
    let key = request.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if key.and_then(|key| key.strip_prefix("Bearer ")) != Some(&clerk.secret_key) {
        return Err(ApiError::key());
    }
    let segments = segments(request.uri.path());
    if !clerk.organizations_enabled && segments.iter().any(|segment| segment.starts_with("organization")) {
        return Err(ApiError::organizations_off());
    }
    if request.method != axum::http::Method::GET {
        return Err(ApiError::not_found("The resource was not found."));
    }
    let api = Api { clerk, fault };
    let params = |known: &[&[&str]]| Params::parse(&request.uri, known);
    match segments.as_slice() {
        ["instance"] => api.instance(),
        ["users"] => api.users(&params(&[WINDOW, ORDER, USERS, &["starting_after"]])?),
        ["users", "count"] => api.count(&params(&[USERS])?),
        ["users", id] => params(&[]).and_then(|_| api.user(id)),
        ["users", id, "organization_memberships"] => api.memberships_of_user(id, &params(&[WINDOW])?),
        ["organizations"] => {
            let own = &["query", "user_id", "organization_id"];
            api.organizations(&params(&[WINDOW, ORDER, INCLUDE, own])?)
        }
        ["organizations", id] => api.organization(id, &params(&[INCLUDE])?),
        ["organizations", id, "memberships"] => {
            api.memberships_of_organization(id, &params(&[WINDOW, ORDER, USERS, &["role"]])?)
        }
        ["organization_memberships"] => api.memberships(&params(&[WINDOW, ORDER])?),
        _ => Err(ApiError::not_found("The resource was not found.")),
    }
}

fn check_version(request: &Parts) -> Result<(), ApiError> {
    let header = request.headers.get("clerk-api-version").map(|value| value.to_str().unwrap_or_default());
    let query = request.uri.query().unwrap_or_default();
    let parameter = query.split('&').find_map(|pair| pair.strip_prefix("__clerk_api_version="));
    match (header, parameter) {
        (Some(_), Some(_)) => Err(ApiError::version("it is given twice")),
        (Some(version), None) | (None, Some(version)) if !VERSIONS.contains(&version) => {
            Err(ApiError::version("unknown version"))
        }
        _ => Ok(()),
    }
}

/// A list with its total.
#[derive(Serialize)]
struct Page<T> {
    data: Vec<T>,
    total_count: usize,
}

fn page<T: Serialize>(data: Vec<T>, total_count: usize) -> Reply {
    let rows = data.len();
    write(&Page { data, total_count }, rows)
}

fn write(body: &impl Serialize, rows: usize) -> Reply {
    let mut bytes = Vec::with_capacity(256 + 2_048 * rows);
    serde_json::to_writer(&mut bytes, body).map_err(|_| ApiError::server(StatusCode::INTERNAL_SERVER_ERROR))?;
    Ok(bytes)
}

struct Api<'a> {
    clerk: &'a Clerk,
    fault: Option<&'a Fault>,
}

impl<'a> Api<'a> {
    fn instance(&self) -> Reply {
        let id = if self.fault == Some(&Fault::WrongInstance) { "ins_another" } else { &self.clerk.instance_id };
        let body = serde_json::json!({
            "object": "instance",
            "id": id,
            "environment_type": self.clerk.environment_type,
            "allowed_origins": null,
            "workspace_id": null,
        });
        write(&body, 0)
    }

    /// The rows of a page, as the fault leaves them.
    fn rows<T: Row>(&self, question: &ListQuery<'a, T>, table: &'a Table<T>) -> Vec<&'a T> {
        if self.fault == Some(&Fault::Shuffled) {
            return question.shuffled_page(table);
        }
        let mut rows = question.page(table);
        match self.fault {
            Some(Fault::EmptyPage | Fault::Empty) => rows.clear(),
            Some(Fault::ShortPage) => rows.truncate(rows.len() / 2),
            Some(Fault::ExtraRow) => {
                let asked: Vec<&str> = rows.iter().map(|row| row.id()).collect();
                let extra = table.values().find(|row| !asked.contains(&row.id()));
                rows.extend(extra);
            }
            _ => {}
        }
        rows
    }

    fn total<T: Row>(&self, question: &ListQuery<'a, T>, table: &'a Table<T>) -> usize {
        match self.fault {
            Some(Fault::Empty) => 0,
            Some(Fault::Miscounted(by)) => {
                question.count(table).saturating_add_signed(isize::try_from(*by).unwrap_or_default())
            }
            _ => question.count(table),
        }
    }

    // Users

    fn users(&self, params: &'a Params) -> Reply {
        let (by, descending) = params.order(&[
            "created_at",
            "updated_at",
            "email_address",
            "web3wallet",
            "first_name",
            "last_name",
            "phone_number",
            "username",
            "last_active_at",
            "last_sign_in_at",
        ])?;
        let (limit, offset) = params.window()?;
        let after = match params.get("starting_after") {
            None => None,
            // The other orders are over values that are neither unique nor lasting.
            Some(_) if by != "created_at" || offset > 0 => return Err(ApiError::invalid("starting_after")),
            Some(id) => Some(self.clerk.users.get(id).ok_or_else(|| ApiError::invalid("starting_after"))?),
        };
        let order = match by {
            "created_at" => Order::Time(Time::Created),
            "updated_at" => Order::Time(Time::Updated),
            by => Order::By(Box::new(move |user| query::user_key(by, user))),
        };
        let among = params.among("user_id", &self.clerk.users)?;
        let tests = query::users(self.clerk, params)?;
        let question = ListQuery { among, tests, order, descending, after, limit, offset };
        let rows = self.rows(&question, &self.clerk.users);
        write(&rows, rows.len())
    }

    fn count(&self, params: &'a Params) -> Reply {
        let among = params.among("user_id", &self.clerk.users)?;
        let question = ListQuery { among, ..ListQuery::about(query::users(self.clerk, params)?) };
        let total_count = self.total(&question, &self.clerk.users);
        write(&serde_json::json!({ "object": "total_count", "total_count": total_count }), 0)
    }

    fn user(&self, id: &str) -> Reply {
        write(self.clerk.users.get(id).ok_or_else(|| ApiError::no_user(id))?, 1)
    }

    // Organizations

    fn organizations(&self, params: &'a Params) -> Reply {
        let clerk = self.clerk;
        let (by, descending) = params.order(&["created_at", "name", "members_count"])?;
        let order: Order<'a, Organization> = match by {
            "created_at" => Order::Time(Time::Created),
            "name" => Order::By(Box::new(|organization| Key::Text(Some(&organization.name)))),
            _ => Order::By(Box::new(|organization| {
                Key::Number(i64::try_from(clerk.memberships_of(&organization.id).count()).ok())
            })),
        };
        let (limit, offset) = params.window()?;
        let among = params.among("organization_id", &clerk.organizations)?;
        let tests = query::organizations(clerk, params)?;
        let question = ListQuery { among, tests, order, descending, after: None, limit, offset };
        let counted = params.flag("include_members_count")?.unwrap_or(false);
        let rows = self.rows(&question, &clerk.organizations);
        let data = rows.into_iter().map(|row| self.organization_body(row, counted)).collect();
        page(data, self.total(&question, &clerk.organizations))
    }

    /// By its id or its slug.
    fn organization(&self, id: &str, params: &Params) -> Reply {
        let counted = params.flag("include_members_count")?.unwrap_or(false);
        let organizations = &self.clerk.organizations;
        let found = organizations.get(id).or_else(|| organizations.values().find(|row| row.slug == id));
        write(&self.organization_body(found.ok_or_else(ApiError::no_organization)?, counted), 1)
    }

    fn organization_body(&self, organization: &'a Organization, counted: bool) -> json::OrganizationBody<'a> {
        let members_count = counted.then(|| self.clerk.memberships_of(&organization.id).count());
        json::OrganizationBody { organization, embedded: false, members_count }
    }

    // Memberships

    fn memberships(&self, params: &'a Params) -> Reply {
        self.list_memberships(None, Vec::new(), params)
    }

    fn memberships_of_organization(&self, id: &'a str, params: &'a Params) -> Reply {
        let clerk = self.clerk;
        if !clerk.organizations.contains_key(id) {
            return Err(ApiError::no_organization());
        }
        let (users, _) = params.values("user_id")?;
        let among = if users.is_empty() {
            clerk.memberships_of(id).collect()
        } else {
            let between = |user_id: &str| clerk.memberships.get(clerk.links.between(id, user_id)?);
            users.into_iter().filter_map(between).collect()
        };
        // All filters but the role's are about the member.
        let member_tests = query::users(clerk, params)?;
        let mut tests: Vec<Test<'a, Membership>> = vec![Box::new(move |membership| {
            let user = clerk.users.get(&membership.user_id);
            user.is_some_and(|user| member_tests.iter().all(|test| test(user)))
        })];
        tests.extend(query::filter(params, "role", |membership: &Membership, roles| {
            roles.contains(membership.role.as_str())
        })?);
        self.list_memberships(Some(among), tests, params)
    }

    fn list_memberships(
        &self,
        among: Option<Vec<&'a Membership>>,
        tests: Vec<Test<'a, Membership>>,
        params: &'a Params,
    ) -> Reply {
        let clerk = self.clerk;
        let (by, descending) =
            params.order(&["created_at", "phone_number", "email_address", "first_name", "last_name", "username"])?;
        let order: Order<'a, Membership> = match by {
            "created_at" => Order::Time(Time::Created),
            by => Order::By(Box::new(move |membership| {
                let user = clerk.users.get(&membership.user_id);
                user.map_or(Key::Text(None), |user| query::user_key(by, user))
            })),
        };
        let (limit, offset) = params.window()?;
        let question = ListQuery { among, tests, order, descending, after: None, limit, offset };
        let rows = self.rows(&question, &clerk.memberships);
        let data = rows.into_iter().filter_map(|row| clerk.membership_body(row)).collect();
        page(data, self.total(&question, &clerk.memberships))
    }

    fn memberships_of_user(&self, id: &'a str, params: &'a Params) -> Reply {
        let clerk = self.clerk;
        if !clerk.users.contains_key(id) {
            return Err(ApiError::no_user(id));
        }
        let (limit, offset) = params.window()?;
        let among = Some(clerk.memberships_of(id).collect());
        let question = ListQuery { among, limit, offset, ..ListQuery::about(Vec::new()) };
        let rows = self.rows(&question, &clerk.memberships);
        let is_nameless = self.fault == Some(&Fault::Nameless);
        let body = |row| {
            let body = clerk.membership_body(row)?;
            Some(if is_nameless { json::MembershipBody { user: None, ..body } } else { body })
        };
        let data = rows.into_iter().filter_map(body).collect();
        page(data, self.total(&question, &clerk.memberships))
    }
}

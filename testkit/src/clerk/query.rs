//! What a list is asked for: which rows, in which order, which window of them; and what is no such question.

use super::api::ApiError;
use super::table::{Row, Table, Time, tie};
use super::{Clerk, Organization, User};
use axum::extract::Query;
use axum::http::Uri;
use std::collections::HashSet;

/// How many values a filter takes.
const VALUES: usize = 100;
/// The filters that exclude what has a `-`.
const SIGNED: [&str; 3] = ["user_id", "organization_id", "external_id"];

/// The parameters of a request, decoded, in their order.
pub(super) struct Params(Vec<(String, String)>);

/// Whether a row is asked for.
pub(super) type Test<'a, T> = Box<dyn Fn(&T) -> bool + 'a>;

/// What a row is ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key<'a> {
    Number(Option<i64>),
    Text(Option<&'a str>),
}

/// How to order: by a time that has an index, or by anything else.
pub(super) enum Order<'a, T> {
    Time(Time),
    By(Box<dyn Fn(&'a T) -> Key<'a> + 'a>),
}

/// One question to a table.
pub(super) struct ListQuery<'a, T> {
    /// Where these are all that can be meant.
    pub(super) among: Option<Vec<&'a T>>,
    pub(super) tests: Vec<Test<'a, T>>,
    pub(super) order: Order<'a, T>,
    pub(super) descending: bool,
    pub(super) after: Option<&'a T>,
    pub(super) limit: usize,
    pub(super) offset: usize,
}

impl<'a, T: Row> ListQuery<'a, T> {
    /// The newest first, as lists are where nothing else is said.
    pub(super) fn about(tests: Vec<Test<'a, T>>) -> ListQuery<'a, T> {
        let order = Order::Time(Time::Created);
        ListQuery { among: None, tests, order, descending: true, after: None, limit: 10, offset: 0 }
    }

    /// The rows of the window, in order.
    pub(super) fn page(&self, table: &'a Table<T>) -> Vec<&'a T> {
        if let (None, Order::Time(time)) = (&self.among, &self.order) {
            let walk = |skipped| table.walk(*time, self.descending, self.after, skipped);
            return if self.tests.is_empty() {
                walk(self.offset).take(self.limit).collect()
            } else {
                walk(0).filter(|row| self.wants(row)).skip(self.offset).take(self.limit).collect()
            };
        }
        let key = |row: &'a T| match &self.order {
            Order::Time(Time::Created) => Key::Number(Some(row.created_at())),
            Order::Time(Time::Updated) => Key::Number(Some(row.updated_at())),
            Order::By(key) => key(row),
        };
        let place = |row: &'a T| (key(row), tie(row.id()), row.id());
        let mut rows: Vec<&'a T> = self.candidates(table).collect();
        rows.sort_by_cached_key(|row| place(row));
        if self.descending {
            rows.reverse();
        }
        if let Some(after) = self.after {
            rows.retain(|row| if self.descending { place(row) < place(after) } else { place(row) > place(after) });
        }
        rows.into_iter().skip(self.offset).take(self.limit).collect()
    }

    /// The same, by the time of making, where the order of rows that are equal in it is another one each time.
    pub(super) fn shuffled_page(&self, table: &'a Table<T>) -> Vec<&'a T> {
        let mut rows: Vec<&'a T> = self.candidates(table).collect();
        fastrand::shuffle(&mut rows);
        rows.sort_by_key(|row| row.created_at());
        if self.descending {
            rows.reverse();
        }
        let after = self.after.and_then(|after| rows.iter().position(|row| row.id() == after.id()));
        let behind = after.map_or(0, |position| position + 1);
        rows.into_iter().skip(behind + self.offset).take(self.limit).collect()
    }

    /// How many rows are asked for, whatever the window.
    pub(super) fn count(&self, table: &'a Table<T>) -> usize {
        if self.among.is_none() && self.tests.is_empty() { table.len() } else { self.candidates(table).count() }
    }

    /// All rows that are asked for, in no order.
    fn candidates(&self, table: &'a Table<T>) -> impl Iterator<Item = &'a T> {
        let everything = self.among.is_none().then(|| table.values());
        let rows = self.among.iter().flatten().copied().chain(everything.into_iter().flatten());
        rows.filter(|row| self.wants(row))
    }

    fn wants(&self, row: &T) -> bool {
        self.tests.iter().all(|test| test(row))
    }
}

impl Params {
    /// # Errors
    /// 422: one is not known here.
    pub(super) fn parse(uri: &Uri, known: &[&[&str]]) -> Result<Params, ApiError> {
        let Ok(Query(mut pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else {
            return Err(ApiError::bad_request());
        };
        for (name, _) in &mut pairs {
            if name.ends_with("[]") {
                name.truncate(name.len() - 2);
            }
        }
        match pairs.iter().find(|(name, _)| !known.iter().any(|names| names.contains(&name.as_str()))) {
            Some((name, _)) if name != "__clerk_api_version" => Err(ApiError::unknown(name)),
            _ => Ok(Params(pairs)),
        }
    }

    /// The first value of that name, as Clerk takes it.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    fn all<'p>(&'p self, name: &str) -> impl Iterator<Item = &'p str> {
        self.0.iter().filter(move |(of, _)| of == name).map(|(_, value)| value.as_str())
    }

    fn parsed<V: std::str::FromStr>(&self, name: &str) -> Result<Option<V>, ApiError> {
        self.get(name).map(|value| value.parse().map_err(|_| ApiError::invalid(name))).transpose()
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.parsed(name)
    }

    /// `limit` (10 where none is named) and `offset`.
    pub(super) fn window(&self) -> Result<(usize, usize), ApiError> {
        let limit = self.parsed("limit")?.unwrap_or(10);
        if !(1..=500).contains(&limit) {
            return Err(ApiError::invalid("limit"));
        }
        Ok((limit, self.parsed("offset")?.unwrap_or(0)))
    }

    /// What `order_by` says, and whether descending. A bare `+` in a query is a blank, which is no direction.
    pub(super) fn order(&self, allowed: &[&str]) -> Result<(&str, bool), ApiError> {
        let order = self.get("order_by").unwrap_or("-created_at");
        let (by, descending) = match order.strip_prefix('-') {
            Some(by) => (by, true),
            None => (order.strip_prefix('+').unwrap_or(order), false),
        };
        if allowed.contains(&by) { Ok((by, descending)) } else { Err(ApiError::invalid("order_by")) }
    }

    /// The values of a filter: to be included (none: everything), to be excluded. Only ids carry such a sign: a phone
    /// number's `+` is its own.
    pub(super) fn values(&self, name: &str) -> Result<(HashSet<&str>, HashSet<&str>), ApiError> {
        let all: Vec<&str> = self.all(name).filter(|value| !value.is_empty()).collect();
        if all.len() > VALUES {
            return Err(ApiError::invalid(name));
        }
        if !SIGNED.contains(&name) {
            return Ok((all.into_iter().collect(), HashSet::new()));
        }
        let (excluded, included) = all.into_iter().partition::<Vec<&str>, _>(|value| value.starts_with('-'));
        Ok((
            included.into_iter().map(|value| value.strip_prefix('+').unwrap_or(value)).collect(),
            excluded.into_iter().map(|value| &value[1..]).collect(),
        ))
    }

    /// The rows among which all must be that name their ids.
    pub(super) fn among<'a, T>(&self, name: &str, table: &'a Table<T>) -> Result<Option<Vec<&'a T>>, ApiError> {
        let (included, _) = self.values(name)?;
        Ok((!included.is_empty()).then(|| included.into_iter().filter_map(|id| table.get(id)).collect()))
    }
}

/// The test of one filter, if the request has it: `any` tells whether one of some values fits a row.
pub(super) fn filter<'a, T>(
    params: &'a Params,
    name: &'static str,
    any: impl Fn(&T, &HashSet<&str>) -> bool + 'a,
) -> Result<Option<Test<'a, T>>, ApiError> {
    let (included, excluded) = params.values(name)?;
    if included.is_empty() && excluded.is_empty() {
        return Ok(None);
    }
    Ok(Some(Box::new(move |row| (included.is_empty() || any(row, &included)) && !any(row, &excluded))))
}

type Text = fn(&User) -> Option<&str>;

const EXACT: [(&str, Text); 7] = [
    ("user_id", |user| Some(&user.id)),
    ("email_address", |user| Some(&user.email_address)),
    ("phone_number", |user| user.phone_number.as_deref()),
    ("username", |user| user.username.as_deref()),
    ("external_id", |user| user.external_id.as_deref()),
    // Nobody here has any.
    ("web3_wallet", |_| None),
    ("provider_user_id", |_| None),
];

const PARTIAL: [(&str, &[Text]); 5] = [
    ("email_address_query", &[|user| Some(&user.email_address)]),
    ("phone_number_query", &[|user| user.phone_number.as_deref()]),
    ("username_query", &[|user| user.username.as_deref()]),
    ("name_query", &[|user| Some(&user.first_name), |user| Some(&user.last_name)]),
    (
        "query",
        &[
            |user| Some(&user.id),
            |user| Some(&user.email_address),
            |user| user.phone_number.as_deref(),
            |user| user.username.as_deref(),
            |user| Some(&user.first_name),
            |user| Some(&user.last_name),
        ],
    ),
];

type Moment = fn(&User) -> Option<i64>;
/// Whether a moment fits the bound that is asked for.
type Bound = fn(i64, i64) -> bool;

const TIMES: [(&str, Moment, Bound); 7] = [
    ("created_at_before", |user| Some(user.created_at), |at, bound| at < bound),
    ("created_at_after", |user| Some(user.created_at), |at, bound| at > bound),
    ("last_active_at_before", |user| Some(user.updated_at), |at, bound| at < bound),
    ("last_active_at_after", |user| Some(user.updated_at), |at, bound| at > bound),
    ("last_active_at_since", |user| Some(user.updated_at), |at, bound| at >= bound),
    ("last_sign_in_at_before", |_| None, |_, _| false),
    ("last_sign_in_at_after", |_| None, |_, _| false),
];

/// The filters of users, which lists of an organization's members have too.
pub(super) const USER_FILTERS: [&str; 22] = [
    "user_id",
    "email_address",
    "phone_number",
    "username",
    "external_id",
    "web3_wallet",
    "provider",
    "provider_user_id",
    "email_address_query",
    "phone_number_query",
    "username_query",
    "name_query",
    "query",
    "banned",
    "organization_id",
    "created_at_before",
    "created_at_after",
    "last_active_at_before",
    "last_active_at_after",
    "last_active_at_since",
    "last_sign_in_at_before",
    "last_sign_in_at_after",
];

/// What the filters of users ask for.
pub(super) fn users<'a>(clerk: &'a Clerk, params: &'a Params) -> Result<Vec<Test<'a, User>>, ApiError> {
    let mut tests: Vec<Test<'a, User>> = Vec::new();
    for (name, text) in EXACT {
        tests.extend(filter(params, name, move |user: &User, values: &HashSet<&str>| {
            text(user).is_some_and(|text| values.contains(text))
        })?);
    }
    tests.extend(filter(params, "organization_id", |user: &User, values: &HashSet<&str>| {
        clerk.memberships_of(&user.id).any(|membership| values.contains(membership.organization_id.as_str()))
    })?);
    for (name, texts) in PARTIAL {
        if let Some(part) = params.get(name) {
            let part = part.to_lowercase();
            tests.push(Box::new(move |user| {
                texts.iter().filter_map(|text| text(user)).any(|text| text.to_lowercase().contains(&part))
            }));
        }
    }
    for (name, moment, holds) in TIMES {
        if let Some(bound) = params.parsed::<i64>(name)? {
            tests.push(Box::new(move |user| moment(user).is_some_and(|at| holds(at, bound))));
        }
    }
    if let Some(banned) = params.flag("banned")? {
        tests.push(Box::new(move |user| user.banned == banned));
    }
    Ok(tests)
}

/// What the filters of organizations ask for.
pub(super) fn organizations<'a>(clerk: &'a Clerk, params: &'a Params) -> Result<Vec<Test<'a, Organization>>, ApiError> {
    let mut tests: Vec<Test<'a, Organization>> = Vec::new();
    tests.extend(filter(params, "organization_id", |organization: &Organization, values: &HashSet<&str>| {
        values.contains(organization.id.as_str())
    })?);
    tests.extend(filter(params, "user_id", |organization: &Organization, values: &HashSet<&str>| {
        values.iter().any(|user_id| clerk.links.between(&organization.id, user_id).is_some())
    })?);
    if let Some(query) = params.get("query") {
        let part = query.to_lowercase();
        tests.push(Box::new(move |organization| {
            organization.id == query
                || organization.name.to_lowercase().contains(&part)
                || organization.slug.to_lowercase().contains(&part)
        }));
    }
    Ok(tests)
}

/// What users are ordered by under a name of `order_by`.
pub(super) fn user_key<'a>(by: &str, user: &'a User) -> Key<'a> {
    match by {
        "created_at" => Key::Number(Some(user.created_at)),
        "updated_at" | "last_active_at" => Key::Number(Some(user.updated_at)),
        "email_address" => Key::Text(Some(&user.email_address)),
        "first_name" => Key::Text(Some(&user.first_name)),
        "last_name" => Key::Text(Some(&user.last_name)),
        "phone_number" => Key::Text(user.phone_number.as_deref()),
        "username" => Key::Text(user.username.as_deref()),
        _ => Key::Number(None),
    }
}

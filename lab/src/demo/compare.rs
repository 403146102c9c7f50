//! Both mirrors against the source, row by row: ours in every column that it has, the plain handler's in those that it keeps.

use super::wrapped;
use anyhow::Context as _;
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;
use testkit::clerk::{Clerk, Event};

/// How many wrong rows of one side are shown.
const SHOWN: usize = 6;

/// Columns of a row that are named.
const COLUMNS_SHOWN: usize = 2;

const KINDS: [&str; 3] = ["users", "organizations", "memberships"];
const LISTS: [&str; 3] = ["users", "organizations", "organization_memberships"];
/// Rows as JSON, with times in ms.
const OURS: [&str; 3] = [
    "select u.id, (to_jsonb(u) || to_jsonb(d) || jsonb_build_object('created_at', (extract(epoch from d.created_at) * 1000)::bigint))::text \
       from clerk.users u join clerk.user_details d using (id) where u.deleted_at is null",
    "select id, (to_jsonb(o) || jsonb_build_object('created_at', (extract(epoch from created_at) * 1000)::bigint))::text \
       from clerk.organizations o where deleted_at is null",
    "select id, (to_jsonb(m) || jsonb_build_object('created_at', (extract(epoch from created_at) * 1000)::bigint))::text \
       from clerk.organization_memberships m",
];
const NAIVE: [&str; 3] = [
    "select id, to_jsonb(n)::text from naive.users n",
    "select id, to_jsonb(n)::text from naive.organizations n",
    "select id, to_jsonb(n)::text from naive.memberships n",
];
/// Of the worker's alone, or the row's id.
const NOT_COMPARED: [&str; 3] = ["id", "updated_at", "deleted_at"];

/// Where the simulated Clerk is, and its key.
pub(super) struct Source<'a> {
    pub(super) url: &'a str,
    pub(super) secret_key: &'a str,
}

/// A row as its columns, by id.
type Rows = BTreeMap<String, Map<String, Value>>;

/// What is wrong with one row.
struct Fault {
    kind: &'static str,
    what: String,
    /// The lost webhook that explains it.
    lost: Option<String>,
}

/// All that is wrong.
pub(super) struct Report {
    source: [usize; 3],
    ours: Vec<Fault>,
    naive: Vec<Fault>,
}

/// What people call the objects of the story, also those that are gone by now.
pub(super) struct Names(BTreeMap<String, String>);

impl Names {
    pub(super) fn of(clerk: &Clerk) -> Names {
        let mut names = Names(BTreeMap::new());
        names.add_all(clerk);
        names
    }

    /// The names of all that is there.
    pub(super) fn add_all(&mut self, clerk: &Clerk) {
        for user in clerk.users.values() {
            self.insert(&user.id, format!("{} {}", user.first_name, user.last_name));
        }
        for organization in clerk.organizations.values() {
            self.insert(&organization.id, organization.name.clone());
        }
        for membership in clerk.memberships.values() {
            self.insert_membership(&membership.id, &membership.user_id, &membership.organization_id);
        }
    }

    /// The names that events tell.
    pub(super) fn add(&mut self, events: &[Event]) {
        for event in events {
            let Ok(body) = serde_json::from_str::<Value>(&event.body) else { continue };
            let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str);
            if let (Some(first), Some(last)) = (text("/data/first_name"), text("/data/last_name")) {
                self.insert(&event.entity_id, format!("{first} {last}"));
            } else if let (Some(user), Some(organization)) =
                (text("/data/public_user_data/user_id"), text("/data/organization/id"))
            {
                self.insert_membership(&event.entity_id, user, organization);
            } else if let Some(name) = text("/data/name") {
                self.insert(&event.entity_id, name.to_owned());
            }
        }
    }

    /// Of two with one name the second gets a number.
    fn insert(&mut self, id: &str, name: String) {
        let is_taken = |name: &str| self.0.iter().any(|(other, taken)| other != id && taken == name);
        let numbered = (2..).map(|n| format!("{name} {n}"));
        let free = std::iter::once(name.clone()).chain(numbered).find(|name| !is_taken(name));
        self.0.insert(id.to_owned(), free.unwrap_or(name));
    }

    fn insert_membership(&mut self, id: &str, user: &str, organization: &str) {
        let name = format!("{} in {}", self.name(user), self.name(organization));
        self.0.insert(id.to_owned(), name);
    }

    pub(super) fn name(&self, id: &str) -> String {
        self.0.get(id).cloned().unwrap_or_else(|| "somebody unknown".to_owned())
    }

    /// What an event is about, with the role that it gives.
    pub(super) fn of_event(&self, event: &Event) -> String {
        let body: Value = serde_json::from_str(&event.body).unwrap_or_default();
        let role = body.pointer("/data/role").and_then(Value::as_str);
        let role = role.map(|role| format!(" as {role}")).unwrap_or_default();
        format!("{}{role}", self.name(&event.entity_id))
    }
}

/// Reads the source over its API and both mirrors from the database.
pub(super) async fn compare(
    source: &Source<'_>,
    database_url: &str,
    lost: &[Event],
    names: &Names,
) -> anyhow::Result<Report> {
    let mut connection = PgConnection::connect(database_url).await?;
    let mut report = Report { source: [0, 0, 0], ours: Vec::new(), naive: Vec::new() };
    for (index, kind) in KINDS.into_iter().enumerate() {
        let there = list(source, LISTS[index]).await?;
        report.source[index] = there.len();
        let ours = read_mirror(&mut connection, OURS[index]).await?;
        let naive = read_mirror(&mut connection, NAIVE[index]).await?;
        report.ours.extend(faults(kind, &there, &ours, names, lost)?);
        report.naive.extend(faults(kind, &there, &naive, names, lost)?);
    }
    Ok(report)
}

fn faults(
    kind: &'static str,
    source: &Rows,
    mirror: &Rows,
    names: &Names,
    lost: &[Event],
) -> anyhow::Result<Vec<Fault>> {
    let ids: BTreeSet<&String> = source.keys().chain(mirror.keys()).collect();
    let mut faults = Vec::new();
    for id in ids {
        let (there, here) = (source.get(id), mirror.get(id));
        let what = match (there, here) {
            (Some(there), Some(here)) => {
                let differing = differing(there, here)?;
                if differing.is_empty() {
                    continue;
                }
                let shown = differing.iter().take(COLUMNS_SHOWN).cloned().collect::<Vec<_>>().join(", ");
                let more = differing.len().saturating_sub(COLUMNS_SHOWN);
                let more = if more > 0 { format!(", and {more} more") } else { String::new() };
                format!("{}: {shown}{more}", names.name(id))
            }
            (Some(_), None) => format!("{} is missing here", names.name(id)),
            (None, _) => format!("{} is still here, and gone at Clerk", names.name(id)),
        };
        let is_parent = |parent: &str| {
            here.and_then(|row| row.get(parent)?.as_str()).is_some_and(|parent| {
                lost.iter().any(|event| event.event_type.ends_with(".deleted") && event.entity_id == parent)
            })
        };
        let own = lost.iter().rev().find(|event| event.entity_id == *id).map(|event| event.event_type.to_owned());
        let of_parent = || {
            let is_gone = there.is_none() && (is_parent("organization_id") || is_parent("user_id"));
            is_gone.then(|| "the deletion of its user or organization".to_owned())
        };
        faults.push(Fault { kind, what, lost: own.or_else(of_parent) });
    }
    Ok(faults)
}

/// The columns of a mirror's row that do not say what Clerk says.
fn differing(there: &Map<String, Value>, here: &Map<String, Value>) -> anyhow::Result<Vec<String>> {
    let mut differing = Vec::new();
    for (column, value) in here.iter().filter(|(column, _)| !NOT_COMPARED.contains(&column.as_str())) {
        let expected = expected(column, there).with_context(|| format!("nobody says what {column} must be"))?;
        if plain(&expected) != plain(value) {
            // A time is another one in each run.
            differing.push(match column.as_str() {
                "created_at" => "created_at differs".to_owned(),
                _ => format!("{column} is {value} and must be {expected}"),
            });
        }
    }
    Ok(differing)
}

/// What a column must say, by Clerk's answer.
fn expected(column: &str, data: &Map<String, Value>) -> Option<Value> {
    let of_primary = |list: &str, id: &str, field: &str| {
        let primary = data.get(list)?.as_array()?.iter().find(|entry| entry.get("id") == data.get(id))?;
        primary.pointer(field).cloned()
    };
    let is_verified =
        |list, id| of_primary(list, id, "/verification/status").map(|status| Value::Bool(status == "verified"));
    const EMAIL: (&str, &str) = ("email_addresses", "primary_email_address_id");
    const PHONE: (&str, &str) = ("phone_numbers", "primary_phone_number_id");
    match column {
        "email_address" | "email" => Some(of_primary(EMAIL.0, EMAIL.1, "/email_address").unwrap_or_default()),
        "email_address_verified" => Some(is_verified(EMAIL.0, EMAIL.1).unwrap_or_default()),
        "phone_number" => Some(of_primary(PHONE.0, PHONE.1, "/phone_number").unwrap_or_default()),
        "phone_number_verified" => Some(is_verified(PHONE.0, PHONE.1).unwrap_or_default()),
        "organization_id" => data.get("organization")?.get("id").cloned(),
        "user_id" => data.get("public_user_data")?.get("user_id").cloned(),
        // The plain handler puts both names into one column.
        "name" if data.contains_key("first_name") => {
            let name = |field: &str| data.get(field).and_then(Value::as_str).unwrap_or_default();
            Some(format!("{} {}", name("first_name"), name("last_name")).into())
        }
        column => data.get(column).cloned(),
    }
}

/// The order of permissions says nothing, and no metadata are empty metadata.
fn plain(value: &Value) -> Value {
    match value {
        Value::Array(values) => {
            let mut texts: Vec<String> = values.iter().map(ToString::to_string).collect();
            texts.sort();
            texts.into()
        }
        Value::Object(fields) if fields.is_empty() => Value::Null,
        other => other.clone(),
    }
}

async fn read_mirror(connection: &mut PgConnection, sql: &'static str) -> anyhow::Result<Rows> {
    let rows: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(connection).await?;
    rows.into_iter().map(|(id, row)| Ok((id, serde_json::from_str(&row)?))).collect()
}

/// All pages of a list.
async fn list(source: &Source<'_>, name: &str) -> anyhow::Result<Rows> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?;
    let mut rows = Rows::new();
    loop {
        let url = format!("{}/v1/{name}?limit=500&offset={}", source.url, rows.len());
        let answer = client.get(url).bearer_auth(source.secret_key).send().await?.error_for_status()?;
        let page: Value = serde_json::from_str(&answer.text().await?)?;
        let page = page.as_array().or_else(|| page["data"].as_array()).context("no list")?;
        if page.is_empty() {
            return Ok(rows);
        }
        for data in page {
            let data = data.as_object().context("no object")?;
            let id = data.get("id").and_then(Value::as_str).context("no id")?;
            rows.insert(id.to_owned(), data.clone());
        }
    }
}

impl Report {
    /// How many rows of ours are wrong.
    pub(super) fn wrong(&self) -> usize {
        self.ours.len()
    }

    /// Whether each wrong row of ours is one that a lost webhook made wrong.
    pub(super) fn is_explained(&self) -> bool {
        self.ours.iter().all(|fault| fault.lost.is_some())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<16} {:>9} {:>24} {:>28}", "", "at Clerk", "wrong in clerk-sync", "wrong in a plain handler")?;
        for (kind, source) in KINDS.into_iter().zip(self.source) {
            let count = |faults: &[Fault]| faults.iter().filter(|fault| fault.kind == kind).count();
            writeln!(f, "{kind:<16} {source:>9} {:>24} {:>28}", count(&self.ours), count(&self.naive))?;
        }
        let wrong_access: Vec<&Fault> =
            self.naive.iter().filter(|fault| fault.kind == "memberships" && fault.lost.is_none()).collect();
        writeln!(
            f,
            "\nThe plain handler has {} memberships wrong although each of their webhooks arrived, such as",
            wrong_access.len()
        )?;
        for fault in wrong_access.iter().take(SHOWN) {
            writeln!(f, "{}", wrapped(&format!("  {}", fault.what), 4))?;
        }
        if self.ours.is_empty() {
            return write!(f, "\nclerk-sync: every column of every row equals Clerk's.");
        }
        let unexplained = self.ours.iter().filter(|fault| fault.lost.is_none()).count();
        let explained = self.ours.len() - unexplained;
        write!(
            f,
            "\nclerk-sync: {explained} rows differ because their webhook was lost, {unexplained} for another reason."
        )?;
        for fault in &self.ours {
            let lost = fault.lost.as_ref().map_or("UNEXPLAINED".to_owned(), |lost| format!("lost: {lost}"));
            write!(f, "\n{}", wrapped(&format!("  {} ({lost})", fault.what), 4))?;
        }
        Ok(())
    }
}

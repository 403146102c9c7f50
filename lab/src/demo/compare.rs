//! Both mirrors against the source, row by row.

use anyhow::Context as _;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;
use testkit::clerk::Event;

/// How many wrong rows of one side are shown.
const SHOWN: usize = 6;

const OURS: [&str; 3] = [
    "select u.id, concat_ws(' ', u.first_name, u.last_name) || ' <' || coalesce(d.email_address, 'address not known') || '>', null::text, null::text \
       from clerk.users u join clerk.user_details d using (id) where u.deleted_at is null",
    "select id, name, null::text, null::text from clerk.organizations where deleted_at is null",
    "select id, role, organization_id, user_id from clerk.organization_memberships",
];
const NAIVE: [&str; 3] = [
    "select id, name || ' <' || email || '>', null::text, null::text from naive.users",
    "select id, name, null::text, null::text from naive.organizations",
    "select id, role, organization_id, user_id from naive.memberships",
];
const KINDS: [&str; 3] = ["users", "organizations", "memberships"];

/// A row, as far as it is compared: the text people would read, and, of a membership, whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    text: Option<String>,
    organization_id: Option<String>,
    user_id: Option<String>,
}

type Rows = BTreeMap<String, Row>;

/// What is wrong with one row.
struct Fault {
    kind: &'static str,
    id: String,
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
    pub(super) fn of(events: &[Event]) -> Names {
        let parents = events.iter().filter(|event| !event.event_type.starts_with("organizationMembership"));
        Names(parents.map(|event| (event.entity_id.clone(), event.subject.clone())).collect())
    }

    pub(super) fn name(&self, id: &str) -> String {
        self.0.get(id).cloned().unwrap_or_else(|| id.to_owned())
    }

    fn of_row(&self, row: &Row, id: &str) -> String {
        match (&row.organization_id, &row.user_id) {
            (Some(organization), Some(user)) => {
                format!("{} as {} of {}", self.name(user), row.text.as_deref().unwrap_or("?"), self.name(organization))
            }
            _ => row.text.clone().unwrap_or_else(|| self.name(id)),
        }
    }
}

/// Reads the source over its API and both mirrors from the database.
pub(super) async fn compare(
    clerk_url: &str,
    secret_key: &str,
    database_url: &str,
    lost: &[Event],
    names: &Names,
) -> anyhow::Result<Report> {
    let source = read_source(clerk_url, secret_key).await?;
    let mut connection = PgConnection::connect(database_url).await?;
    let mut report = Report { source: [0, 0, 0], ours: Vec::new(), naive: Vec::new() };
    for (index, kind) in KINDS.into_iter().enumerate() {
        report.source[index] = source[index].len();
        let faults = |mirror: &Rows| faults(kind, &source[index], mirror, names, lost);
        report.ours.extend(faults(&read_mirror(&mut connection, OURS[index]).await?));
        report.naive.extend(faults(&read_mirror(&mut connection, NAIVE[index]).await?));
    }
    Ok(report)
}

fn faults(kind: &'static str, source: &Rows, mirror: &Rows, names: &Names, lost: &[Event]) -> Vec<Fault> {
    let ids: BTreeSet<&String> = source.keys().chain(mirror.keys()).collect();
    let fault = |id: &String| {
        let (there, here) = (source.get(id), mirror.get(id));
        let what = match (there, here) {
            (Some(there), Some(here)) if there == here => return None,
            (Some(there), Some(here)) => {
                format!("{}, still shown as {}", names.of_row(there, id), here.text.as_deref().unwrap_or("?"))
            }
            (Some(there), None) => format!("{}, missing here", names.of_row(there, id)),
            (None, Some(here)) => format!("{}, although Clerk has that no more", names.of_row(here, id)),
            (None, None) => return None,
        };
        let explains = |event: &&Event| {
            let ends_it = |parent: &Option<String>| {
                there.is_none() && event.event_type.ends_with(".deleted") && *parent == Some(event.entity_id.clone())
            };
            event.entity_id == *id || here.is_some_and(|row| ends_it(&row.organization_id) || ends_it(&row.user_id))
        };
        let lost = lost.iter().rev().find(explains).map(|event| format!("{} ({})", event.event_type, event.subject));
        Some(Fault { kind, id: id.clone(), what, lost })
    };
    ids.into_iter().filter_map(fault).collect()
}

async fn read_mirror(connection: &mut PgConnection, sql: &'static str) -> anyhow::Result<Rows> {
    type Columns = (String, Option<String>, Option<String>, Option<String>);
    let rows: Vec<Columns> = sqlx::query_as(sql).fetch_all(connection).await?;
    Ok(rows
        .into_iter()
        .map(|(id, text, organization_id, user_id)| (id, Row { text, organization_id, user_id }))
        .collect())
}

async fn read_source(clerk_url: &str, secret_key: &str) -> anyhow::Result<[Rows; 3]> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let user = |data: &Value| {
        let primary = data["email_addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|address| address["id"] == data["primary_email_address_id"]);
        let address = primary.and_then(|address| address["email_address"].as_str()).unwrap_or_default();
        let name = format!("{} {} <{address}>", data["first_name"].as_str()?, data["last_name"].as_str()?);
        Some(Row { text: Some(name), organization_id: None, user_id: None })
    };
    let organization = |data: &Value| Some(Row { text: text(&data["name"]), organization_id: None, user_id: None });
    let membership = |data: &Value| {
        let (organization_id, user_id) =
            (text(&data["organization"]["id"]), text(&data["public_user_data"]["user_id"]));
        Some(Row { text: text(&data["role"]), organization_id, user_id })
    };
    Ok([
        list(clerk_url, secret_key, "users", user).await?,
        list(clerk_url, secret_key, "organizations", organization).await?,
        list(clerk_url, secret_key, "organization_memberships", membership).await?,
    ])
}

/// All pages of a list.
async fn list(
    clerk_url: &str,
    secret_key: &str,
    name: &str,
    row: impl Fn(&Value) -> Option<Row>,
) -> anyhow::Result<Rows> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?;
    let mut rows = Rows::new();
    loop {
        let url = format!("{clerk_url}/v1/{name}?limit=500&offset={}", rows.len());
        let answer = client.get(url).bearer_auth(secret_key).send().await?.error_for_status()?;
        let page: Value = serde_json::from_str(&answer.text().await?)?;
        let page = page.as_array().or_else(|| page["data"].as_array()).context("no list")?;
        if page.is_empty() {
            return Ok(rows);
        }
        for data in page {
            rows.insert(data["id"].as_str().context("no id")?.to_owned(), row(data).context("no row")?);
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
        writeln!(f, "{:<16} {:>8} {:>18} {:>24}", "rows", "at Clerk", "wrong: clerk-sync", "wrong: the usual handler")?;
        for (kind, source) in KINDS.into_iter().zip(self.source) {
            let count = |faults: &[Fault]| faults.iter().filter(|fault| fault.kind == kind).count();
            writeln!(f, "{kind:<16} {source:>8} {:>18} {:>24}", count(&self.ours), count(&self.naive))?;
        }
        let wrong_access: Vec<&Fault> =
            self.naive.iter().filter(|fault| fault.kind == "memberships" && fault.lost.is_none()).collect();
        writeln!(
            f,
            "\nThe usual handler has {} memberships wrong although each of their webhooks arrived, such as",
            wrong_access.len()
        )?;
        for fault in wrong_access.iter().take(SHOWN) {
            writeln!(f, "  {}", fault.what)?;
        }
        if self.ours.is_empty() {
            return write!(f, "\nclerk-sync: every row equals the source.");
        }
        let unexplained = self.ours.iter().filter(|fault| fault.lost.is_none()).count();
        let explained = self.ours.len() - unexplained;
        writeln!(
            f,
            "\nclerk-sync: {explained} rows lack a webhook that was lost for good, {unexplained} are wrong for any other reason."
        )?;
        for fault in &self.ours {
            match &fault.lost {
                Some(lost) => writeln!(f, "  {}: lost {lost}", fault.what)?,
                None => writeln!(f, "  {} {}: UNEXPLAINED", fault.id, fault.what)?,
            }
        }
        Ok(())
    }
}

//! A database that looks like a Supabase project, with the mirror in it, asked as any role.
//!
//! What asks it panics where the database refuses: a test has nothing better to do.

use crate::clerk::Clerk;
use crate::supabase::{Supabase, set_clock};
use clerk_sync::store::{self, Database};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::OnceCell;

static SHARED: Mutex<Option<&'static Supabase>> = Mutex::new(None);
static TEMPLATE: OnceCell<()> = OnceCell::const_new();
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The one Postgres that all of a process share. It ends with the process, by its leash.
pub fn shared() -> &'static Supabase {
    let mut server = SHARED.lock().unwrap();
    server.get_or_insert_with(|| Box::leak(Box::new(Supabase::start().expect("a private Postgres"))))
}

/// A name that nothing else in this process has.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// One database and its owner's URL.
#[derive(Clone, Debug)]
pub struct Project {
    pub name: String,
    url: String,
}

impl Project {
    /// A migrated one on the shared server, cloned from a template.
    ///
    /// # Errors
    /// Postgres is missing, or refused.
    pub async fn cloned() -> anyhow::Result<Project> {
        let server = tokio::task::spawn_blocking(shared).await?;
        let template = async || Project::migrated(server, "template").await.map(drop);
        TEMPLATE.get_or_try_init(template).await?;
        let name = unique("test");
        server.clone_database("template", &name).await?;
        Ok(Project::named(name))
    }

    /// A new one on any server, without a mirror.
    ///
    /// # Errors
    /// The server refused.
    pub async fn empty(server: &Supabase, name: &str) -> anyhow::Result<Project> {
        server.create(name).await?;
        Ok(Project { url: server.url(name), name: name.to_owned() })
    }

    /// The same, migrated.
    ///
    /// # Errors
    /// The server refused.
    pub async fn migrated(server: &Supabase, name: &str) -> anyhow::Result<Project> {
        let project = Project::empty(server, name).await?;
        store::migrate(&project.database(), store::Migrating::default()).await?;
        Ok(project)
    }

    /// One of the shared server that is there, or not, by this name.
    pub fn named(name: String) -> Project {
        Project { url: shared().url(&name), name }
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    pub fn database(&self) -> Database {
        Database::parse(&self.url).expect("a URL of ours")
    }

    /// A connection as the owner.
    pub async fn owner(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("a connection")
    }

    /// A connection that does what `serve` does before its first statement.
    pub async fn worker(&self) -> PgConnection {
        let mut connection = self.owner().await;
        connection.execute("set role clerk_sync_worker").await.expect("the role");
        connection
    }

    /// The rows of a query as JSON.
    pub async fn rows(&self, sql: &str) -> Vec<Value> {
        rows(&mut self.owner().await, sql).await
    }

    pub async fn count(&self, table: &str) -> i64 {
        let sql = format!("select count(*) from {table}");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.owner().await).await.expect("a count")
    }

    /// From here on the database's clock, as passes see it, runs from there.
    pub async fn set_clock(&self, now: i64) {
        set_clock(&mut self.owner().await, now).await.expect("the clock is set");
    }

    pub async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.owner().await).await.expect("the statement");
    }

    /// What the mirror shows, a line for each row, as [`source`] writes it.
    pub async fn held(&self) -> BTreeSet<String> {
        let sql = "select format('%s %s %s <%s> %s %s', u.id, first_name, last_name, email_address, \
                          case when banned then 'true' else 'false' end, case when deprovisioned then 'true' else 'false' end) as row \
                     from clerk.users u join clerk.user_details d using (id) \
                    union all select format('%s %s %s', id, name, slug) from clerk.organizations where deleted_at is null \
                    union all select format('%s %s %s %s %s', id, organization_id, user_id, role, cardinality(permissions)) \
                                from clerk.organization_memberships";
        self.rows(sql).await.iter().map(|row| row["row"].as_str().unwrap().to_owned()).collect()
    }

    /// The mirror must show what Clerk holds.
    pub async fn equals(&self, source: &BTreeSet<String>) {
        let held = self.held().await;
        let lacking: Vec<_> = source.difference(&held).take(3).collect();
        let extra: Vec<_> = held.difference(source).take(3).collect();
        assert!(lacking.is_empty() && extra.is_empty(), "lacking {lacking:#?}, extra {extra:#?}");
    }

    /// The ids of the organization's members with their roles, by the mirror.
    pub async fn members(&self, organization_id: &str) -> Vec<(String, String)> {
        let sql =
            "select user_id, role from clerk.organization_memberships where organization_id = $1 order by user_id";
        sqlx::query_as(sql).bind(organization_id).fetch_all(&mut self.owner().await).await.expect("members")
    }

    /// Everything that must not depend on the order of events, as text.
    pub async fn mirror(&self) -> String {
        // When an object was first observed is, of several observations that come at once, when the one was that won.
        dump(&mut self.owner().await, "(to_jsonb(t) - 'first_observed_at')::text").await
    }

    /// The row versions of Postgres: equal before and after only if nothing was written.
    pub async fn written(&self) -> String {
        written(&mut self.owner().await).await
    }
}

/// What Clerk holds, a line for each row.
pub fn source(clerk: &Clerk) -> BTreeSet<String> {
    let users = clerk.users.values().map(|u| {
        format!("{} {} {} <{}> {} {}", u.id, u.first_name, u.last_name, u.email_address, u.banned, u.deprovisioned)
    });
    let organizations = clerk.organizations.values().map(|o| format!("{} {} {}", o.id, o.name, o.slug));
    let memberships = clerk.memberships.values().map(|m| {
        let permissions = clerk.permissions(m).len();
        format!("{} {} {} {} {permissions}", m.id, m.organization_id, m.user_id, m.role)
    });
    users.chain(organizations).chain(memberships).collect()
}

/// See [`Project::written`].
pub async fn written(owner: &mut PgConnection) -> String {
    dump(owner, "t.xmin::text || ' ' || t.ctid::text").await
}

async fn dump(owner: &mut PgConnection, row: &str) -> String {
    let mut tables = Vec::new();
    // One by one: the parts of a `union all` may come in any order, from parallel workers.
    for table in MIRROR {
        let sql = format!("select coalesce(string_agg({row}, E'\\n' order by to_jsonb(t)::text), '') from {table} t");
        let rows: String = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *owner).await.expect("a dump");
        tables.push(format!("-- {table}\n{rows}"));
    }
    tables.join("\n")
}

const MIRROR: &[&str] = &[
    "clerk.users",
    "clerk.user_details",
    "clerk.organizations",
    "clerk.organization_memberships",
    "clerk_sync.versions",
    "clerk_sync.generations",
];

/// The rows of a query as JSON.
pub async fn rows(connection: &mut PgConnection, sql: &str) -> Vec<Value> {
    let sql = format!("select coalesce(json_agg(t), '[]')::text from ({sql}) t");
    let text: String = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await.expect("rows");
    serde_json::from_str(&text).expect("JSON")
}

//! A world for a test: its own database, a running server, a simulated Clerk, and deliveries over real HTTP.

pub mod history;
pub mod oracle;
pub mod pgbouncer;
pub mod tables;

use clerk_sync::app;
use clerk_sync::config::{Config, Reconcile};
use clerk_sync::model::InstanceId;
use clerk_sync::sender::{Attempt, Sender};
use clerk_sync::store::{self, Database};
use clerk_sync::upkeep::retention::Retention;
use clerk_sync::webhook::lane::InstanceCheck;
use clerk_sync::webhook::verify::Verifier;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use testkit::clerk::{Clerk, Event};
use testkit::supabase::{Supabase, set_clock};
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, oneshot};

/// The signing secret of every test's endpoint.
pub const SECRET: &str = "whsec_dGVzdHMgc2lnbiB3aXRoIHRoaXMgb25l";

/// October 2025, in ms: no test's event lies ahead of the clock.
pub const START: i64 = 1_760_000_000_000;

static SERVER: Mutex<Option<&'static Supabase>> = Mutex::new(None);
static TEMPLATE: OnceCell<()> = OnceCell::const_new();
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The one Postgres of this test run. It ends with the process, by its leash.
pub fn supabase() -> &'static Supabase {
    let mut server = SERVER.lock().unwrap();
    server.get_or_insert_with(|| Box::leak(Box::new(Supabase::start().expect("a private Postgres"))))
}

/// A name that no other test of this run uses.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A migrated database of the test's own, cloned from a template.
pub async fn database() -> TestDatabase {
    let supabase = supabase();
    TEMPLATE
        .get_or_init(async || {
            supabase.create("template").await.expect("a database");
            store::migrate(&Database::parse(&supabase.url("template")).unwrap()).await.expect("migrations");
        })
        .await;
    let name = unique("test");
    supabase.clone_database("template", &name).await.expect("a clone");
    TestDatabase::named(name)
}

/// A database that can be asked as any role.
pub struct TestDatabase {
    pub name: String,
    url: String,
}

impl TestDatabase {
    /// One that is there, or not, by this name.
    pub fn named(name: String) -> TestDatabase {
        TestDatabase { url: supabase().url(&name), name }
    }

    /// One on a server that the test has for itself.
    pub async fn on(supabase: &Supabase) -> TestDatabase {
        let name = unique("test");
        supabase.create(&name).await.expect("a database");
        let database = TestDatabase { url: supabase.url(&name), name };
        store::migrate(&database.database()).await.expect("migrations");
        database
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    pub fn database(&self) -> Database {
        Database::parse(&self.url()).unwrap()
    }

    /// A connection as the owner.
    pub async fn owner(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.expect("a connection")
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

/// See [`TestDatabase::written`].
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

/// A `serve` of its own port, stopped when dropped.
pub struct Server {
    pub url: String,
    stop: Option<oneshot::Sender<()>>,
    running: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub async fn start(database: Database, instance: InstanceCheck) -> Server {
        Server::with(database, instance, None).await
    }

    /// One that runs passes as well.
    pub async fn reconciling(database: Database, reconcile: Reconcile) -> Server {
        Server::with(database, InstanceCheck::Pinned(None), Some(reconcile)).await
    }

    async fn with(database: Database, instance: InstanceCheck, reconcile: Option<Reconcile>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let listen_addr = listener.local_addr().expect("an address");
        let config = Config {
            database,
            verifier: Verifier::new([SECRET]).unwrap(),
            instance,
            listen_addr,
            ops_addr: None,
            ops_token: None,
            ops_open_metrics: false,
            reconcile,
            retention: Retention::default(),
        };
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(app::serve(config, listener, async move {
            let _ = stopped.await;
        }));
        Server { url: format!("http://{listen_addr}"), stop: Some(stop), running }
    }

    pub fn webhook_url(&self) -> String {
        format!("{}/webhooks/clerk", self.url)
    }

    /// Stops as SIGTERM would, and waits for the end.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.running.await.expect("serve ends without a panic").expect("it had what it needs");
    }

    /// The status and body of a GET.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        let response = reqwest::get(format!("{}{path}", self.url)).await.expect("an answer");
        let status = response.status().as_u16();
        let body = response.text().await.expect("a body");
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }
}

/// A database, a server in front of it, and a Clerk that sends it webhooks.
pub struct World {
    pub database: TestDatabase,
    pub server: Server,
    pub sender: Sender,
    pub clerk: Clerk,
}

impl World {
    /// The usual one: the mirror takes whichever instance comes first.
    pub async fn new() -> World {
        World::with(InstanceCheck::Pinned(None)).await
    }

    pub async fn with(instance: InstanceCheck) -> World {
        let database = database().await;
        let server = Server::start(database.database(), instance).await;
        let sender = Sender::new(server.webhook_url(), SECRET).unwrap();
        World { database, server, sender, clerk: Clerk::new(1, START) }
    }

    /// Delivers all webhooks that are due, in order.
    pub async fn deliver(&mut self) {
        for event in std::mem::take(&mut self.clerk.outbox) {
            self.send(&event).await;
        }
    }

    /// One delivery that must be accepted: its outcome.
    pub async fn send(&self, event: &Event) -> String {
        let attempt = self.attempt(&event.message_id, event.body.as_bytes()).await;
        assert!(matches!(attempt.status, 200 | 204), "{} was answered {attempt:?}", event.event_type);
        attempt.outcome.expect("an outcome")
    }

    pub async fn attempt(&self, message_id: &str, body: &[u8]) -> Attempt {
        answer(&self.sender, message_id, body).await
    }

    /// A body made by hand, as a message of its own: its outcome.
    pub async fn send_body(&self, body: &Value) -> String {
        let attempt = self.attempt(&unique("msg"), body.to_string().as_bytes()).await;
        assert!(matches!(attempt.status, 200 | 204), "answered {attempt:?}");
        attempt.outcome.expect("an outcome")
    }

    /// The ids of the organization's members with their roles, by the mirror.
    pub async fn members(&self, organization_id: &str) -> Vec<(String, String)> {
        let sql =
            "select user_id, role from clerk.organization_memberships where organization_id = $1 order by user_id";
        sqlx::query_as(sql).bind(organization_id).fetch_all(&mut self.database.owner().await).await.expect("members")
    }
}

/// Sends until there is an answer, as Svix does: on a slow machine the sender's patience may end before.
pub async fn answer(sender: &Sender, message_id: &str, body: &[u8]) -> Attempt {
    for _ in 0..10 {
        match sender.send(message_id, body).await {
            Ok(attempt) => return attempt,
            Err(error) if is_timeout(&error) => {}
            Err(error) => panic!("an answer: {error:#}"),
        }
    }
    panic!("no answer in time, ten times");
}

fn is_timeout(error: &anyhow::Error) -> bool {
    error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout)
}

/// Whoever keeps the machine busy holds it, so that none of them observes another.
pub static BUSY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The instance check of an environment that names one.
pub fn instance(id: &str) -> InstanceCheck {
    InstanceCheck::Pinned(Some(InstanceId::from(id)))
}

/// The folder that `CLERK_SYNC_EXTRA_FIXTURES` names, if it is set: `svix/vectors.json` and `clerk/webhooks/*.json` in it are
/// replayed beside our own.
pub fn extra_fixtures() -> Option<PathBuf> {
    std::env::var_os("CLERK_SYNC_EXTRA_FIXTURES").map(PathBuf::from)
}

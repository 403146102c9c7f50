//! What `doctor` looks at: the server, the roles, the schema's version, and what one caller would see.
//!
//! An [`Inspector`] writes nothing. What it learns is plain data; what that means is decided by [`crate::doctor`].

use super::status::DenialRow;
use super::{CALL, Database, Error, SchemaVersion, Session, kinds};
use crate::model::{InstanceId, Kind, PassState, Word};
use serde::Deserialize;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgDatabaseError};
use std::collections::BTreeMap;
use tokio::time::timeout;

/// Why there is no connection, or no answer on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionProblem {
    Unreachable,
    /// The host answers, and nothing listens at the port.
    NothingListens,
    /// The name of the host has no address.
    NoSuchHost,
    Silent,
    /// The login went through, and nothing after it.
    Crowded,
    /// The socket that the connection string names.
    NoSuchFile,
    /// The file that it names in sslrootcert.
    RootCertificate,
    Certificate,
    /// The server takes encrypted connections only.
    TlsRequired,
    Password,
    NoSuchDatabase,
    /// The pooler does not know the project or the role.
    NoSuchTenant,
    /// The pooler takes no login from this address for a while, after too many that failed.
    Blocked,
    /// The project admits other addresses alone.
    AddressNotAllowed,
    TooManyConnections,
    TransactionPooler,
    /// The pooler refuses a parameter that the connection string sets.
    StartupParameter,
    /// The pooler cannot reach the server behind it.
    BehindPooler,
    Other,
}

/// What poolers say, under a code that says little or nothing: Supavisor's words of today and of before, and PgBouncer's.
const SAID_BY_POOLERS: &[(&str, ConnectionProblem)] = &[
    ("(ENOTFOUND)", ConnectionProblem::NoSuchTenant),
    ("(ENOIDENTIFIER)", ConnectionProblem::NoSuchTenant),
    ("(EINVALIDUSERINFO)", ConnectionProblem::NoSuchTenant),
    ("enant or user not found", ConnectionProblem::NoSuchTenant),
    ("(ECIRCUITBREAKER)", ConnectionProblem::Blocked),
    ("(EBANNED)", ConnectionProblem::Blocked),
    ("(EADDRNOTALLOWED)", ConnectionProblem::AddressNotAllowed),
    ("(EMAXCONN", ConnectionProblem::TooManyConnections),
    ("(EMAXPOOLSREACHED)", ConnectionProblem::TooManyConnections),
    ("(ECHECKOUT", ConnectionProblem::TooManyConnections),
    ("(EPOOLCHECKOUT)", ConnectionProblem::TooManyConnections),
    ("MaxClientsInSessionMode", ConnectionProblem::TooManyConnections),
    ("ax client connections reached", ConnectionProblem::TooManyConnections),
    ("no more connections allowed", ConnectionProblem::TooManyConnections),
    ("query_wait_timeout", ConnectionProblem::TooManyConnections),
    ("(ESSLREQUIRED)", ConnectionProblem::TlsRequired),
    ("SSL connection is required", ConnectionProblem::TlsRequired),
    ("SSL required", ConnectionProblem::TlsRequired),
    ("(EAUTHQUERY) user not found", ConnectionProblem::Password),
    ("no such user", ConnectionProblem::Password),
    ("no such database", ConnectionProblem::NoSuchDatabase),
    ("unsupported startup parameter", ConnectionProblem::StartupParameter),
    ("(EAUTHQUERY)", ConnectionProblem::BehindPooler),
    ("(EAUTHSECRETS)", ConnectionProblem::BehindPooler),
    ("(EDBHANDLEREXITED)", ConnectionProblem::BehindPooler),
    ("cannot connect to server", ConnectionProblem::BehindPooler),
    ("server login", ConnectionProblem::BehindPooler),
];

/// What the server or a pooler refused for.
fn of_cause(cause: &sqlx::Error) -> ConnectionProblem {
    let Some(error) = cause.as_database_error() else { return ConnectionProblem::Other };
    if let Some((_, trouble)) = SAID_BY_POOLERS.iter().find(|(words, _)| error.message().contains(words)) {
        return *trouble;
    }
    match error.code().as_deref() {
        // "no pg_hba.conf entry for host …, no encryption"
        Some("28000") if error.message().contains("no encryption") => ConnectionProblem::TlsRequired,
        Some("28P01" | "28000") => ConnectionProblem::Password,
        Some("3D000") => ConnectionProblem::NoSuchDatabase,
        Some("53300") => ConnectionProblem::TooManyConnections,
        Some("26000" | "42P05") => ConnectionProblem::TransactionPooler,
        _ => ConnectionProblem::Other,
    }
}

/// The routine of the server's that refused: unlike its text, it is the same in every language.
pub(super) fn routine(error: &dyn sqlx::error::DatabaseError) -> Option<&str> {
    error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::routine)
}

impl Error {
    /// Sorts an error by what a person can do about it.
    pub fn connection_problem(&self) -> ConnectionProblem {
        match self {
            Error::Silent(_) => ConnectionProblem::Silent,
            Error::Crowded(_) => ConnectionProblem::Crowded,
            Error::RootCertificate(_) => ConnectionProblem::RootCertificate,
            Error::SharedConnections => ConnectionProblem::TransactionPooler,
            Error::Connect(sqlx::Error::Tls(_)) => ConnectionProblem::Certificate,
            Error::Connect(sqlx::Error::Io(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                ConnectionProblem::Certificate
            }
            Error::Connect(sqlx::Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                ConnectionProblem::NoSuchFile
            }
            Error::Connect(sqlx::Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                ConnectionProblem::NothingListens
            }
            // The kind of this error has no name of its own yet.
            Error::Connect(sqlx::Error::Io(error)) if error.to_string().contains("lookup address") => {
                ConnectionProblem::NoSuchHost
            }
            Error::Connect(sqlx::Error::Io(_)) => ConnectionProblem::Unreachable,
            Error::Connect(cause) | Error::Refused(cause) => of_cause(cause),
            Error::LoginRefused(cause) => of_cause(cause),
            _ => ConnectionProblem::Other,
        }
    }

    /// The server's code for why it did not let us in.
    pub fn code(&self) -> Option<String> {
        match self {
            Error::LoginRefused(cause) => cause.as_database_error()?.code().map(std::borrow::Cow::into_owned),
            Error::Connect(sqlx::Error::Database(error))
            | Error::NotMigrated(Some(sqlx::Error::Database(error)))
            | Error::NotWorker(sqlx::Error::Database(error))
            | Error::MissingRight(sqlx::Error::Database(error)) => error.code().map(std::borrow::Cow::into_owned),
            _ => self.sqlstate(),
        }
    }
}

/// The server, and who we are there.
#[derive(Clone, Debug, Deserialize)]
pub struct Server {
    /// As `server_version_num` has it: 170005.
    pub version: i64,
    /// As SQL writes it.
    pub login: String,
    pub is_superuser: bool,
    pub bypasses_rls: bool,
    /// A replica, or a disk that is full.
    pub read_only: bool,
}

/// What is there of our schema.
#[derive(Clone, Debug, Deserialize)]
pub struct Schema {
    pub has_clerk: bool,
    /// Our migrator's table.
    pub has_migrations: bool,
    /// A table of our bookkeeping.
    pub has_versions: bool,
    pub worker: Option<Worker>,
    /// Roles with default privileges in schema public that let the API's roles read every table they create.
    pub exposed_by: Vec<String>,
}

/// The worker's role.
#[derive(Clone, Debug, Deserialize)]
pub struct Worker {
    pub is_superuser: bool,
    pub bypasses_rls: bool,
    pub may_login: bool,
}

/// The last pass of one kind.
#[derive(Clone, Debug, Deserialize)]
pub struct LastPass {
    pub kind: Word<Kind>,
    pub id: i64,
    pub state: Word<PassState>,
    pub problem: Option<String>,
    /// Rows that it could not judge, by reason, and when those observed too recently can be judged, in ms.
    pub undecided: Option<BTreeMap<String, u64>>,
    pub judge_after: Option<i64>,
    /// Seconds since the last complete one ended.
    pub complete_s: Option<i64>,
}

/// The state of webhooks, passes and refused rows.
#[derive(Clone, Debug)]
pub struct SyncStatus {
    pub instance: Option<InstanceId>,
    /// Seconds since the last webhook.
    pub webhook_s: Option<i64>,
    /// Rows that passes begun since then found wrong.
    pub drift_since_webhook: i64,
    /// Whose access has ended although their row does not say so, ten at most; and how many rows were refused.
    pub denials: Vec<DenialRow>,
    pub refused: i64,
    /// For how many seconds no reconcile could start, and why.
    pub failed_start: Option<(i64, String)>,
    pub passes: Vec<LastPass>,
    /// Whether a membership has a permission of the application's own, and whether an event of billing has come.
    pub custom_permissions: bool,
    pub billing_events: bool,
}

/// What the holder of a token sees, and what the mirror knows about them.
#[derive(Clone, Debug, Deserialize)]
pub struct Caller {
    pub user_id: Option<String>,
    pub organization_ids: Vec<String>,
    pub active_organization_id: Option<String>,
    /// `live`, `stub`, `deleted`; `None`: never heard of.
    pub state: Option<String>,
    pub has_details: bool,
    pub banned: Option<bool>,
    pub deprovisioned: Option<bool>,
    /// Access ended although the row does not say so.
    pub denied: bool,
    /// Rows by table; `None`: `authenticated` lacks the right to read one of them.
    pub rows: Option<BTreeMap<String, i64>>,
}

const SERVER: &str = "select json_build_object(
    'version', current_setting('server_version_num')::integer, 'login', quote_ident(session_user),
    'is_superuser', r.rolsuper, 'bypasses_rls', r.rolbypassrls,
    'read_only', current_setting('transaction_read_only')::boolean)::text
  from pg_roles r where r.rolname = session_user";

const SCHEMA: &str = "select json_build_object(
    'has_clerk', to_regnamespace('clerk') is not null,
    'has_migrations', exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                               where n.nspname = 'clerk_sync' and c.relname = '_sqlx_migrations'),
    'has_versions', exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                             where n.nspname = 'clerk_sync' and c.relname = 'versions'),
    'worker', (select json_build_object('is_superuser', r.rolsuper, 'bypasses_rls', r.rolbypassrls, 'may_login', r.rolcanlogin)
                 from pg_roles r where r.rolname = 'clerk_sync_worker'),
    'exposed_by', array(select r.rolname from pg_default_acl d join pg_roles r on r.oid = d.defaclrole
                         where d.defaclobjtype = 'r' and d.defaclnamespace = to_regnamespace('public')
                           and exists (select from aclexplode(d.defaclacl) a
                                        where a.grantee in (to_regrole('anon'), to_regrole('authenticated')) and a.privilege_type = 'SELECT')
                         order by 1))::text";

/// Runs as the owner, who bypasses policies, before `set role authenticated`: callers may not call `clerk_rls` directly.
async fn who(connection: &mut PgConnection, user_id: &str) -> Result<String, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select json_build_object(
             'user_id', clerk_rls.user_id(),
             'organization_ids', array(select clerk_rls.organization_ids() order by 1),
             'active_organization_id', clerk_rls.active_organization_id(),
             'state', (select v.state from clerk_sync.versions v where v.kind = 'user' and v.id = $1::text),
             'has_details', d.id is not null, 'banned', d.banned, 'deprovisioned', d.deprovisioned,
             'denied', exists (select from clerk_sync.denials n where n.kind = 'user' and n.id = $1::text))::text as "who!"
           from (values ($1::text)) w(id) left join clerk.user_details d on d.id = w.id"#,
        user_id
    )
    .fetch_one(connection)
    .await
}

/// How many rows of each table this role sees.
async fn seen(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select json_build_object(
             'users', (select count(*) from clerk.users), 'user_details', (select count(*) from clerk.user_details),
             'organizations', (select count(*) from clerk.organizations),
             'organization_memberships', (select count(*) from clerk.organization_memberships))::text as "seen!""#
    )
    .fetch_one(connection)
    .await
}

/// For every connection of an inspector. Server-side, so that nothing goes on when we have given up.
const SETTINGS: &str =
    "set search_path = ''; set statement_timeout = '3s'; set lock_timeout = '2s'; set row_security = on";

impl Database {
    /// A connection as the role of the connection string, to look around.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub async fn inspect(&self) -> Result<Inspector, Error> {
        let mut inspector = Inspector { connection: self.open().await? };
        inspector.run(SETTINGS).await?;
        Ok(inspector)
    }

    /// Which Clerk instance the tables belong to, before `migrate`: they may be another release's. `None`: there are none, they belong to
    /// no instance yet, or this login may not read it.
    ///
    /// # Errors
    /// The database could not be asked.
    pub(crate) async fn instance_before_migrating(&self) -> Result<Option<InstanceId>, Error> {
        let mut inspector = self.inspect().await?;
        // The owner may read it without.
        let _ = inspector.become_worker().await;
        let sql = "select json_build_array((select instance_id from clerk_sync.instance))::text";
        match inspector.read::<[Option<String>; 1]>(sql).await {
            Ok([instance]) => Ok(instance.map(InstanceId)),
            Err(error) if error.sqlstate().is_some_and(|code| code.starts_with("42") || code == "3F000") => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// One connection that looks and writes nothing.
pub struct Inspector {
    connection: PgConnection,
}

impl Inspector {
    /// By the simple protocol: these come before it is known whether prepared statements work.
    async fn run(&mut self, sql: &'static str) -> Result<(), Error> {
        let running = sqlx::raw_sql(sql).execute(&mut self.connection);
        timeout(CALL, running).await.map_err(|_| Error::Silent(CALL))?.map_err(Error::Refused).map(drop)
    }

    async fn read<T: for<'a> Deserialize<'a>>(&mut self, sql: &'static str) -> Result<T, Error> {
        let reading = async { sqlx::raw_sql(sql).fetch_one(&mut self.connection).await?.try_get::<String, _>(0) };
        let json = timeout(CALL, reading).await.map_err(|_| Error::Silent(CALL))?.map_err(Error::Refused)?;
        serde_json::from_str(&json).map_err(|error| Error::Answer(error.to_string()))
    }

    /// # Errors
    /// The database could not be asked.
    pub async fn server(&mut self) -> Result<Server, Error> {
        self.read(SERVER).await
    }

    /// # Errors
    /// The database could not be asked.
    pub async fn schema(&mut self) -> Result<Schema, Error> {
        self.read(SCHEMA).await
    }

    /// Becomes the worker's role, as every session of the service does.
    ///
    /// # Errors
    /// It may not, or there is no such role.
    pub(crate) async fn become_worker(&mut self) -> Result<(), Error> {
        self.run("set role clerk_sync_worker").await
    }

    /// How far the schema is.
    ///
    /// # Errors
    /// The database could not be asked.
    pub(crate) async fn schema_version(&mut self) -> Result<SchemaVersion, Error> {
        self.read(
            "select pg_catalog.json_build_object(
                 'migration', (select coalesce(max(version), 0) from clerk_sync._sqlx_migrations where success),
                 'generation', (select coalesce(max(generation), 0) from clerk_sync.replayed))::text",
        )
        .await
    }

    /// What the holder of a token with these claims sees, asked as Supabase's API asks, in a transaction that reads only and
    /// is rolled back. The role is always `authenticated`, whatever the claims say.
    ///
    /// # Errors
    /// Among others: this connection may not become `authenticated`, or not read the mirror (42501).
    pub async fn caller(&mut self, claims: &str, user_id: &str) -> Result<Caller, Error> {
        self.run("begin read only").await?;
        let asking = async {
            let connection = &mut self.connection;
            sqlx::query_scalar!("select set_config('request.jwt.claims', $1, true)", claims)
                .fetch_one(&mut *connection)
                .await?;
            let who = who(connection, user_id).await?;
            sqlx::raw_sql("set local role authenticated").execute(&mut *connection).await?;
            let rows = match seen(connection).await {
                Ok(rows) => Some(rows),
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42501") => None,
                Err(error) => return Err(error),
            };
            Ok((who, rows))
        };
        let answer =
            timeout(CALL, asking).await.map_err(|_| Error::Silent(CALL)).and_then(|r| r.map_err(Error::Refused));
        let ended = self.run("rollback").await;
        let (who, rows) = answer?;
        ended?;
        let mut caller: Caller = serde_json::from_str(&who).map_err(|error| Error::Answer(error.to_string()))?;
        let rows = rows.map(|rows| serde_json::from_str(&rows)).transpose();
        caller.rows = rows.map_err(|error| Error::Answer(error.to_string()))?;
        Ok(caller)
    }
}

impl Session {
    /// What the worker has been told lately.
    ///
    /// # Errors
    /// The database could not be asked.
    pub(crate) async fn sync_status(&mut self) -> Result<SyncStatus, Error> {
        let found = self
            .call(async |connection| {
                sqlx::query!(
                    r#"select (select instance_id from clerk_sync.instance) as instance,
                              (select extract(epoch from now() - max(received_at))::bigint from clerk_sync.receipts) as webhook_s,
                              (select coalesce(sum(missing + differing + extra), 0)::bigint from clerk_sync.passes
                                where not backfill and started_at > coalesce((select max(received_at) from clerk_sync.receipts), '-infinity'))
                                as "drift_since_webhook!",
                              (select extract(epoch from now() - since)::bigint from clerk_sync.failed_start) as failed_s,
                              (select problem from clerk_sync.failed_start) as problem,
                              (select coalesce(json_agg(json_build_object('kind', s.scope, 'id', p.id, 'state', p.state, 'problem', p.problem,
                                        'undecided', p.undecided, 'judge_after', (extract(epoch from p.judge_after) * 1000)::bigint, 'complete_s',
                                        (select extract(epoch from now() - c.ended_at)::bigint from clerk_sync.passes c
                                          where c.scope = s.scope and c.state = 'complete' order by c.id desc limit 1))), '[]')::text
                                 from unnest($1::text[]) s(scope)
                                cross join lateral (select * from clerk_sync.passes where scope = s.scope order by id desc limit 1) p) as "passes!",
                              exists (select from clerk.organization_memberships m, unnest(m.permissions) permission
                                       where permission like 'org:%' and permission not like 'org:sys\_%') as "custom_permissions!",
                              exists (select from clerk_sync.receipts where event_type like 'subscription%') as "billing_events!""#,
                    &kinds::names() as &[&str]
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        let refused = self
            .call(async |connection| {
                sqlx::query!(
                    r#"select (select coalesce(json_agg(d), '[]')::text
                                 from (select kind, id, (extract(epoch from since) * 1000)::bigint as since, sqlstate, object
                                         from clerk_sync.denials order by since desc limit 10) d) as "denials!",
                              (select count(*) from clerk_sync.pending_reads where reason = 'refused') as "rows!""#
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        let plain = |error: serde_json::Error| Error::Answer(error.to_string());
        Ok(SyncStatus {
            instance: found.instance.map(InstanceId),
            webhook_s: found.webhook_s,
            drift_since_webhook: found.drift_since_webhook,
            denials: serde_json::from_str(&refused.denials).map_err(plain)?,
            refused: refused.rows,
            failed_start: found.failed_s.zip(found.problem),
            passes: serde_json::from_str(&found.passes).map_err(plain)?,
            custom_permissions: found.custom_permissions,
            billing_events: found.billing_events,
        })
    }
}

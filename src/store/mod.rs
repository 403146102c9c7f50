//! Postgres: the only SQL of the service outside `migrations/`.
//!
//! A [`Session`] is one connection as the worker's role. The program holds few of them and never borrows one from a pool:
//! sqlx 0.9.0 can hand out a pooled connection that a cancelled `begin()` left inside a transaction
//! (`transact-rs/sqlx` issues 4385 and 4393), and an acknowledged row is lost with it. We begin no transaction to write:
//! every write is one statement. [`diagnostics`] begins some to look, on connections of its own.
//!
//! Fixed queries are `sqlx::query!` and its like: the compiler checks their parameters and columns against `.sqlx`, which `./x queries`
//! writes, and no build connects to a database (`build.rs`). A `!` after a column's name says that it is never null where Postgres cannot
//! know: a function of ours, `coalesce`, `exists`, or an expression over columns that are not null. `as &[&str]` is how a list of borrowed
//! text is passed; of such a parameter the server alone checks the type. Three groups cannot be checked so:
//! - [`encode`] sends our composite types, for which the macros have no Rust type (`apply`, `record_page`, `retry_dead_letter`);
//! - the tables of [`kinds`] choose the text at run time (most of [`mirror`], and what is purged);
//! - [`connect`] and [`diagnostics`] use the simple protocol as long as it is not known whether prepared statements work.

mod address;
mod apply;
mod connect;
mod deleted;
pub mod diagnostics;
mod encode;
pub mod foreign;
mod kinds;
mod last_seen;
pub mod manifest;
mod migrate;
mod mirror;
mod passes;
pub mod policies;
mod printed;
mod repair;
mod replay;
pub mod status;
mod upkeep;

pub use address::Tls;
pub use connect::Database;
pub use deleted::Removed;
pub use kinds::emptied;
pub use last_seen::LastSeen;
pub use migrate::{Migrated, Migrating, SchemaVersion, grant_again, migrate, repin};
pub use mirror::{LiveRow, MirrorRow, Receipt, Version};
pub use passes::{Ending, PageRecord, Pass};
pub use printed::printed;
pub use upkeep::{DeadLetterBody, DeadLetterSummary, Prunable, Purged, Reference};

use crate::model::{InstanceId, Millis, Refusal};
use diagnostics::ConnectionProblem;
use encode::TypeOids;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnection, PgDatabaseError};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long connecting may take, and how long one call may take on our side. The server gives up before us (3 s), so that
/// running into this means that nobody answers: the connection is dropped and the outcome unknown.
const CONNECT: Duration = Duration::from_secs(2);
const CALL: Duration = Duration::from_secs(4);

/// The same for what a pass or a person asks on the side: counting a million rows on a small disk, or reading a large catalog, takes time.
const PASS_CALL: Duration = Duration::from_secs(35);
const PASS_SESSION: &str = "set statement_timeout = '30s'";

/// For every session: limits on the server's side, and the worker's role. Where the database's default lets a commit return
/// before it is durable, ours does not: what is acknowledged must outlive a crash of Postgres.
const SESSION: &str = "select set_config('synchronous_commit', 'on', false) where current_setting('synchronous_commit') = 'off'; \
     set role clerk_sync_worker; set search_path = ''; \
     set default_transaction_isolation = 'read committed'; set statement_timeout = '3s'; \
     set lock_timeout = '1s'; set idle_in_transaction_session_timeout = '5s'; set row_security = on";

/// What went wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot connect to the database")]
    Connect(#[source] sqlx::Error),
    /// Now, or some time ago and it is not tried again yet.
    #[error("the database refuses the login role or its password")]
    LoginRefused(#[source] Arc<sqlx::Error>),
    #[error("the certificate file that the connection string names in sslrootcert {0}")]
    RootCertificate(&'static str),
    #[error(
        "the connection string leads to a transaction-mode pooler, which lends one connection to many clients: use the direct \
         connection or the session pooler (port 5432)"
    )]
    SharedConnections,
    /// Right after the login.
    #[error(
        "the database accepted the login and then did not answer within {} s: its pooler has no free connection, or it is \
         overloaded", .0.as_secs()
    )]
    Crowded(Duration),
    #[error("the database did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the database's schema is not ready: run `clerk-sync migrate`")]
    NotMigrated(#[source] Option<sqlx::Error>),
    /// What this program calls is no longer there.
    #[error("the database is two releases newer than this program: deploy the newer program")]
    TooNew,
    #[error(
        "the login role may not become clerk_sync_worker: run `clerk-sync migrate` as the owner of the schemas, or \
         `grant clerk_sync_worker to` the role"
    )]
    NotWorker(#[source] sqlx::Error),
    #[error(
        "clerk_sync_worker lacks a privilege on our schemas: run `clerk-sync migrate`, which grants what is missing"
    )]
    MissingRight(#[source] sqlx::Error),
    #[error("the database refused the call")]
    Refused(#[source] sqlx::Error),
    #[error("unexpected answer from the database: {0}")]
    Answer(String),
}

/// The innermost PL/pgSQL function of the error's context, if it belongs to the application.
fn foreign_function(context: &str) -> Option<String> {
    let mut functions = context.lines().filter(|line| line.contains("PL/pgSQL")).filter_map(|line| {
        let (before, _) = line.split_once('(')?;
        Some(before.rsplit_once("function ").map_or(before, |(_, name)| name).to_owned())
    });
    functions.next().filter(|name| !name.starts_with("clerk_sync.") && !name.starts_with("clerk_rls."))
}

impl Error {
    /// Why one of the rows was not taken, where that is about a row and not about the database: a value that Postgres cannot hold, or
    /// something of the application's, such as a foreign key, a trigger or a lock. The others may go without it, and what takes
    /// access away takes effect without the row.
    pub fn refusal(&self) -> Option<Refusal> {
        let Error::Refused(sqlx::Error::Database(error)) = self else { return None };
        let error = error.try_downcast_ref::<PgDatabaseError>()?;
        let function = error.r#where().and_then(foreign_function);
        let is_about_a_row = match error.code() {
            // A lock on a row of ours (that of the writers has its own code); the time limit; a trigger that kept or altered a row.
            "55P03" | "57014" | "CS004" => true,
            code => match &code[..2] {
                "22" | "23" | "54" | "P0" | "09" | "27" | "39" | "44" => true,
                // Whatever a trigger names may be missing. Where our own statement says so, our schema is another one.
                "42" | "3F" | "2F" | "38" => function.is_some(),
                _ => false,
            },
        };
        let object =
            error.constraint().map(str::to_owned).or(function).or(error.table().map(|table| format!("table {table}")));
        is_about_a_row.then(|| Refusal { sqlstate: error.code().to_owned(), object })
    }

    /// Whether the statement ran out of time, by itself or waiting for somebody else's lock on a row of ours: the fewer rows it has,
    /// the likelier is the next one to end.
    pub(crate) fn is_out_of_time(&self) -> bool {
        self.sqlstate().is_some_and(|code| code == "57014" || code == "55P03")
    }

    /// Whether any successful write shows that the problem is over: the whole server was away, busy or read-only, or another writer held
    /// the lock for too long. Anything else may have to do with what was to be written.
    pub(crate) fn is_over_with_any_write(&self) -> bool {
        match self {
            Error::Refused(_) if self.is_connection_lost() => true,
            Error::Refused(_) => {
                self.sqlstate().is_some_and(|code| code.starts_with("57P") || code == "25006" || code == "CS002")
            }
            Error::Answer(_) => false,
            // There was no session to write on.
            _ => true,
        }
    }

    /// What is wrong, for operators: no name of a role or host, no text of the server's.
    pub fn summary(&self) -> String {
        match self.sqlstate() {
            Some(code) => format!("{self} (SQLSTATE {code})"),
            None => self.to_string(),
        }
    }

    /// The server's code for what it refused.
    pub fn sqlstate(&self) -> Option<String> {
        match self {
            Error::Refused(sqlx::Error::Database(error)) => error.code().map(std::borrow::Cow::into_owned),
            _ => None,
        }
    }

    /// Whether the connection itself is gone, so that a call on a fresh one may succeed. Every call is idempotent: trying
    /// it again settles an outcome that is unknown.
    pub(crate) fn is_connection_lost(&self) -> bool {
        match self {
            Error::Refused(sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_)) => true,
            // 57P01 to 57P03: terminated, crashed, starting up. 25P03: idle in a transaction. 08: connection.
            Error::Refused(sqlx::Error::Database(error)) => error.code().is_some_and(|code| {
                matches!(code.as_ref(), "57P01" | "57P02" | "57P03" | "25P03") || code.starts_with("08")
            }),
            _ => false,
        }
    }

    /// Whether the session is as good as before: the statement alone was refused. Where the schema is another one than when it
    /// connected (42, XX000: it was made anew), what it knows of types is wrong.
    pub(crate) fn leaves_session(&self) -> bool {
        !self.is_connection_lost()
            && self.sqlstate().is_some_and(|code| !["26", "42", "XX", "0A"].iter().any(|class| code.starts_with(class)))
    }

    /// Why a login failed.
    fn of_login(error: sqlx::Error) -> Error {
        let error = Error::Connect(error);
        match (error.connection_problem(), error) {
            (ConnectionProblem::Password | ConnectionProblem::Blocked, Error::Connect(cause)) => {
                Error::LoginRefused(Arc::new(cause))
            }
            (_, error) => error,
        }
    }

    /// Why a session could not be set up: a missing role, schema or table means that the migrations have not been run.
    fn of_set_up(error: sqlx::Error) -> Error {
        let sqlx::Error::Database(cause) = &error else { return Error::Refused(error) };
        match cause.code().as_deref() {
            Some("22023" | "3F000" | "42P01" | "42704") => Error::NotMigrated(Some(error)),
            // Of `set role` alone the code says nothing, and the text may be in any language.
            Some("42501") if diagnostics::routine(cause.as_ref()) == Some("aclcheck_error") => {
                Error::MissingRight(error)
            }
            Some("42501") => Error::NotWorker(error),
            _ => Error::Refused(error),
        }
    }

    /// Whether the lease of the pass that wrote is lost: somebody else runs passes now.
    pub fn is_lease_lost(&self) -> bool {
        self.sqlstate().as_deref() == Some("CS001")
    }
}

impl Database {
    /// A connection as the worker.
    ///
    /// # Errors
    /// As [`Database::open`]; [`Error::NotMigrated`], [`Error::TooNew`], [`Error::NotWorker`] or [`Error::MissingRight`] where our
    /// schema, the login role or its rights are not as `migrate` leaves them.
    pub async fn connect(&self) -> Result<Session, Error> {
        let mut connection = self.open().await?;
        let connected = async {
            sqlx::raw_sql(SESSION).execute(&mut connection).await?;
            // How far the schema is, and the numbers of its types.
            let schema = sqlx::query!(
                r#"with type as (
                     select t.oid, t.typarray, w.n from unnest($1::text[]) with ordinality w(name, n)
                       join pg_catalog.pg_type t on t.typname = w.name and t.typnamespace = 'clerk_sync'::regnamespace)
                   select (select coalesce(max(version), 0) from clerk_sync._sqlx_migrations where success) as "migration!",
                          (select coalesce(max(generation), 0) from clerk_sync.replayed) as "generation!",
                          array(select oid from type order by n) as "rows!", array(select typarray from type order by n) as "arrays!""#,
                &TypeOids::names() as &[&str]
            )
            .fetch_one(&mut connection)
            .await?;
            let version = SchemaVersion { migration: schema.migration, generation: schema.generation };
            Ok((version, schema.rows.into_iter().zip(schema.arrays).collect()))
        };
        let connected = timeout(CALL, connected).await.map_err(|_| Error::Crowded(CALL))?;
        let (schema, types) = connected.map_err(Error::of_set_up)?;
        if schema.is_too_old() {
            return Err(Error::NotMigrated(None));
        }
        // A release keeps what the one before it calls; the next one may drop it.
        let types =
            TypeOids::new(types).ok_or(if schema.is_newer() { Error::TooNew } else { Error::NotMigrated(None) })?;
        Ok(Session { connection, types, limit: CALL, state: Arc::clone(&self.state) })
    }
}

impl Database {
    /// A connection as the worker that may take 30 s for a statement.
    ///
    /// # Errors
    /// As [`Database::connect`].
    pub async fn connect_for_passes(&self) -> Result<Session, Error> {
        let mut session = self.connect().await?;
        session.call(async |connection| sqlx::raw_sql(PASS_SESSION).execute(connection).await.map(drop)).await?;
        session.limit = PASS_CALL;
        Ok(session)
    }
}

impl Database {
    /// Reads the catalog on a connection of its own, with an empty search path, so that the server writes every schema. Compiling such a
    /// query takes longer than running it.
    async fn read_catalog<T>(
        &self,
        limit: Duration,
        query: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let mut connection = self.open().await?;
        let asking = async {
            sqlx::raw_sql("select set_config('search_path', '', false), set_config('jit', 'off', false)")
                .execute(&mut connection)
                .await?;
            query(&mut connection).await
        };
        timeout(limit, asking).await.map_err(|_| Error::Silent(limit))?.map_err(Error::Refused)
    }
}

/// A number of rows, as SQL's `limit` takes it.
fn at_most(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// An error with its causes in one line, without repeats. A server error has its message, SQLSTATE and hint.
pub fn error_chain<'a>(chain: impl IntoIterator<Item = &'a (dyn std::error::Error + 'static)>) -> String {
    let mut told = String::new();
    for error in chain {
        let shared = error.downcast_ref::<Arc<sqlx::Error>>().map(Arc::as_ref);
        let (text, is_last) = match error.downcast_ref::<sqlx::Error>().or(shared) {
            Some(sqlx::Error::Database(error)) => (of_server(error.as_ref(), &told), true),
            _ => (error.to_string(), false),
        };
        if told.is_empty() {
            told = text;
        } else if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        if is_last {
            break;
        }
    }
    told
}

/// An error and what caused it.
pub(crate) fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

fn of_server(error: &dyn sqlx::error::DatabaseError, told: &str) -> String {
    let code =
        error.code().map(|code| format!(" (SQLSTATE {code})")).filter(|code| !told.contains(code)).unwrap_or_default();
    let hint = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().and_then(|error| error.hint());
    let hint = hint.map(|hint| format!(". {hint}")).unwrap_or_default();
    format!("{}{code}{hint}", error.message())
}

/// One connection as the worker's role. After an error, drop it: its state is unknown.
pub struct Session {
    connection: PgConnection,
    types: TypeOids,
    limit: Duration,
    state: Arc<connect::ConnectionState>,
}

impl Session {
    async fn call<T>(
        &mut self,
        query: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        self.call_with_types(async |connection, _| query(connection).await).await
    }

    async fn call_with_types<T>(
        &mut self,
        query: impl AsyncFnOnce(&mut PgConnection, &TypeOids) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let Session { connection, types, limit, state } = self;
        let result = timeout(*limit, query(connection, types)).await.map_err(|_| Error::Silent(*limit));
        let result = result.and_then(|result| result.map_err(Error::Refused));
        // Where a session is lost, the pooler may be another one than it was.
        if result.as_ref().is_err_and(|error| !error.leaves_session()) {
            state.doubt();
        }
        result
    }

    /// Asks whether a delivery could be written, and what the database's clock says, in ms of Unix time. `proving` writes a row,
    /// else nothing is written.
    ///
    /// # Errors
    /// It could not: nobody answers, the database is read-only, or the writer's turn did not come in time.
    pub async fn check_writes(&mut self, proving: bool) -> Result<i64, Error> {
        self.call(async |connection| {
            sqlx::query_scalar!(r#"select clerk_sync.check_writes($1) as "now!""#, proving).fetch_one(connection).await
        })
        .await
    }

    /// The database's clock.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn clock(&mut self) -> Result<Millis, Error> {
        let now = self
            .call(async |connection| {
                sqlx::query_scalar!(r#"select clerk_sync.clock() as "now!""#).fetch_one(connection).await
            })
            .await?;
        Ok(Millis::clamped(now))
    }

    /// Pins the mirror to `wanted`, which `source` (`environment` or `api`) names, if it is empty, and tells which Clerk instance
    /// it is pinned to, if any.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn pin_instance(
        &mut self,
        wanted: Option<&InstanceId>,
        source: &str,
    ) -> Result<Option<InstanceId>, Error> {
        let wanted = wanted.map(InstanceId::as_str);
        self.call(async |connection| {
            sqlx::query_scalar!("select clerk_sync.pin_instance($1, $2)", wanted, source).fetch_one(connection).await
        })
        .await
        .map(|pinned| pinned.map(InstanceId))
    }

    /// Tells the writer what kind of instance the mirror is pinned to; nothing changes if it is pinned to another one.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn record_environment(&mut self, instance: &InstanceId, environment: &str) -> Result<(), Error> {
        self.call(async |connection| {
            sqlx::query!("select clerk_sync.record_environment($1, $2)", instance.as_str(), environment)
                .execute(connection)
                .await
        })
        .await
        .map(drop)
    }

    /// Ends the connection in good order.
    pub async fn close(self) {
        let _ = timeout(CONNECT, self.connection.close()).await;
    }
}

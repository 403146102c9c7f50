//! How a connection is made, and what must be known of the way to the server before anything is set on one.
//!
//! A transaction-mode pooler hands the same server connection to one client after the other: a role or a search path that
//! we set there would be the next client's. Its port proves nothing, so every connection of ours is asked for by
//! [`Database::open`], which first looks whether two connections keep their server processes apart. That leaves nothing behind.

use super::address::{self, Address, Tls};
use super::{CALL, CONNECT, Error};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Supavisor blocks an IP address, with everyone behind it, for two minutes after ten refused passwords within 150 s.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How to reach the database. Clones share what was learned of the way there. Prints no password.
#[derive(Clone)]
pub struct Database {
    address: Address,
    pub(super) state: Arc<ConnectionState>,
}

/// What was learned of the way to the server.
#[derive(Debug, Default)]
pub(super) struct ConnectionState {
    /// Whether connections were seen to stay with whoever opened them.
    is_proven: AtomicBool,
    /// One at a time finds out: before that, a refused password would be tried by every task at once.
    proving: tokio::sync::Mutex<()>,
    refused: Mutex<Option<Refused>>,
    is_tls_warned: AtomicBool,
}

/// The last login was refused.
#[derive(Debug)]
struct Refused {
    until: Instant,
    pause: Duration,
    cause: Arc<sqlx::Error>,
}

impl ConnectionState {
    /// Proves it anew for the next connection: the pooler may have been restarted as another one.
    pub(super) fn doubt(&self) {
        self.is_proven.store(false, Ordering::Relaxed);
    }

    /// Whether the role and its password may be tried now; else why they were refused. If so after a refusal, nobody else may for
    /// a while.
    fn may_login(&self) -> Result<(), Arc<sqlx::Error>> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *refused {
            Some(refused) if Instant::now() < refused.until => Err(Arc::clone(&refused.cause)),
            Some(refused) => {
                refused.until = Instant::now() + refused.pause;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn note_login(&self, cause: Option<Arc<sqlx::Error>>) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = refused.as_ref().map_or(FIRST_PAUSE, |last| (last.pause * 2).min(LONGEST_PAUSE));
        *refused = cause.map(|cause| Refused { until: Instant::now() + pause, pause, cause });
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let options = &self.address.options;
        f.debug_tuple("Database").field(&options.get_host()).field(&options.get_port()).finish()
    }
}

impl Database {
    /// Reads a connection string.
    ///
    /// # Errors
    /// The end of a sentence that names the mistake and repeats nothing of the string: it holds a password.
    pub fn parse(url: &str) -> Result<Database, String> {
        Ok(Database { address: address::parse(url)?, state: Arc::default() })
    }

    /// The server's host name, as the connection string has it.
    pub(crate) fn host(&self) -> &str {
        self.address.options.get_host()
    }

    /// How well the way to the server is protected by what the connection string asks for.
    pub fn tls(&self) -> Tls {
        self.address.tls()
    }

    /// The role that logs in, as the connection string has it: behind Supabase's pooler, `ROLE.PROJECT`.
    pub fn user(&self) -> &str {
        self.address.options.get_username()
    }

    /// The same, without a warning if it is not well protected: for whoever tells it otherwise.
    #[must_use]
    pub(crate) fn without_warning(self) -> Database {
        self.state.is_tls_warned.store(true, Ordering::Relaxed);
        self
    }

    /// Warns once if the way to the server is not well protected.
    fn warn_if_tls_is_weak(&self) {
        if let Some(weakness) = self.tls().weakness()
            && !self.state.is_tls_warned.swap(true, Ordering::Relaxed)
        {
            let host = self.address.options.get_host();
            tracing::warn!(host, "{weakness}, so the password and all rows can be read on the network: {}", Tls::FIX);
        }
    }

    /// A connection as the role of the connection string, proven to be nobody else's: to migrate, and for tests.
    ///
    /// # Errors
    /// [`Error::Connect`] and its more telling siblings, or [`Error::Silent`] after some seconds.
    pub async fn open(&self) -> Result<PgConnection, Error> {
        self.warn_if_tls_is_weak();
        if self.state.is_proven.load(Ordering::Relaxed) {
            return self.login().await;
        }
        let _turn = timeout(CONNECT, self.state.proving.lock()).await.map_err(|_| Error::Silent(CONNECT))?;
        let mut connection = self.login().await?;
        if self.state.is_proven.load(Ordering::Relaxed) {
            return Ok(connection);
        }
        let mut other = self.login().await?;
        let proving = is_shared(&mut connection, &mut other);
        let is_shared = timeout(CALL, proving).await.map_err(|_| Error::Crowded(CALL))?;
        let _ = timeout(CONNECT, other.close()).await;
        if is_shared.map_err(Error::Refused)? {
            return Err(Error::SharedConnections);
        }
        self.state.is_proven.store(true, Ordering::Relaxed);
        Ok(connection)
    }

    /// Looks whether a connection can be made, and stays with whoever opened it.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub async fn prove(&self) -> Result<(), Error> {
        let connection = self.open().await?;
        let _ = timeout(CONNECT, connection.close()).await;
        Ok(())
    }

    async fn login(&self) -> Result<PgConnection, Error> {
        self.state.may_login().map_err(Error::LoginRefused)?;
        self.address.check_root_certificate().await.map_err(Error::RootCertificate)?;
        let result = timeout(CONNECT, self.address.options.connect()).await.map_err(|_| Error::Silent(CONNECT))?;
        let result = result.map_err(Error::of_login);
        self.state.note_login(match &result {
            Err(Error::LoginRefused(cause)) => Some(Arc::clone(cause)),
            _ => None,
        });
        result
    }
}

/// Whether a pooler between us and the server assigns server connections per transaction. Without one, each of our two connections
/// keeps its own server process, and no other client's transaction runs in it. With a busy one we may get the same process again by
/// chance, but then its transaction counter shows the other clients' transactions.
async fn is_shared(one: &mut PgConnection, two: &mut PgConnection) -> Result<bool, sqlx::Error> {
    /// Rounds in a row without a foreign transaction, and rounds in all: a pooler may look after a connection of ours now and
    /// then, and the server itself counts one where it catches up with changes of the catalog.
    const CLEAN: usize = 2;
    const ROUNDS: usize = 8;
    let looking = async {
        let (mut asks, mut holds) = (BackendProbe::new(one).await?, BackendProbe::new(two).await?);
        let mut clean = 0;
        for _ in 0..ROUNDS {
            if asks.process == holds.process {
                return Ok(true);
            }
            let begun = holds.look("begin read only; ").await?;
            // Where the others are taken, asking beside an open transaction would wait for its end.
            let beside = if begun == ProbeResult::AnotherProcess { begun } else { asks.look("").await? };
            sqlx::raw_sql("rollback").execute(&mut *holds.connection).await?;
            let seen = [begun, beside, holds.look("").await?];
            if seen.contains(&ProbeResult::AnotherProcess) {
                return Ok(true);
            }
            clean = if seen.contains(&ProbeResult::AnotherTransaction) { 0 } else { clean + 1 };
            if clean == CLEAN {
                return Ok(false);
            }
            std::mem::swap(&mut asks, &mut holds);
        }
        Ok(true)
    };
    match looking.await {
        // PgBouncer, where it lends its connections for a statement each.
        Err(sqlx::Error::Database(error)) if error.message().contains("statement pooling mode") => Ok(true),
        result => result,
    }
}

/// A connection of which it is known where it led to.
struct BackendProbe<'a> {
    connection: &'a mut PgConnection,
    /// Number and start of the server process: behind a load balancer numbers may repeat.
    process: String,
    /// How many transactions that process had begun by our last one, which counts.
    transactions: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ProbeResult {
    Nothing,
    /// The process has run somebody else's transaction since our last one.
    AnotherTransaction,
    /// This connection leads to another process than before.
    AnotherProcess,
}

impl<'a> BackendProbe<'a> {
    async fn new(connection: &'a mut PgConnection) -> Result<BackendProbe<'a>, sqlx::Error> {
        let mut probe = BackendProbe { connection, process: String::new(), transactions: 0 };
        (probe.process, probe.transactions) = probe.ask("").await?;
        Ok(probe)
    }

    /// Begins a transaction, and compares.
    async fn look(&mut self, before: &str) -> Result<ProbeResult, sqlx::Error> {
        let (process, transactions) = self.ask(before).await?;
        let ours = self.transactions.wrapping_add(1);
        self.transactions = transactions;
        Ok(if process != self.process {
            ProbeResult::AnotherProcess
        } else if transactions != ours {
            ProbeResult::AnotherTransaction
        } else {
            ProbeResult::Nothing
        })
    }

    /// Our process, and how many transactions it has begun: the second half of its virtual transaction's id. By the simple
    /// protocol: whether prepared statements work is not known yet.
    async fn ask(&mut self, before: &str) -> Result<(String, u32), sqlx::Error> {
        let sql = format!(
            "{before}select pg_catalog.concat(a.pid, ' ', a.backend_start), pg_catalog.split_part(l.virtualtransaction, '/', 2) \
               from pg_catalog.pg_stat_activity a, pg_catalog.pg_locks l \
              where a.pid = pg_catalog.pg_backend_pid() and l.pid = a.pid and l.locktype = 'virtualxid'"
        );
        let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(&mut *self.connection).await?;
        let transactions: String = row.try_get(1)?;
        Ok((row.try_get(0)?, transactions.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_login_is_tried_ever_more_seldom_by_one_task_at_a_time() {
        let state = ConnectionState::default();
        let waited = || state.refused.lock().unwrap().as_mut().unwrap().until = Instant::now();
        let may_login = || state.may_login().is_ok();
        assert!(may_login() && may_login(), "nothing was refused yet");
        let mut pauses = Vec::new();
        for _ in 0..6 {
            state.note_login(Some(Arc::new(sqlx::Error::WorkerCrashed)));
            assert!(!may_login());
            pauses.push(state.refused.lock().unwrap().as_ref().unwrap().pause.as_secs());
            waited();
            assert!(may_login() && !may_login(), "one tries, the others wait for what it finds");
        }
        assert_eq!(pauses, [30, 60, 120, 240, 300, 300]);
        state.note_login(None);
        assert!(may_login() && may_login());
    }
}

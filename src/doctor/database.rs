//! The database: whether it can be reached, through which pooler, the program's rights there, and its schema.

use super::mirror::Counts;
use super::schema::checks as object_checks;
use super::{Check, Status, no_database};
use crate::model::Kind;
use crate::store::diagnostics::{ConnectionProblem, Schema, Server, SyncStatus, Worker};
use crate::store::{Database, Error, SchemaVersion, Tls};

/// The first release of Postgres on which the writer is tested.
const OLDEST: i64 = 15;

/// What was found, and what other checks go on with.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) checks: Vec<Check>,
    /// `None`: the tables cannot be read.
    pub(super) sync_status: Option<SyncStatus>,
    pub(super) counts: Option<Counts>,
}

/// Checks that need a connection.
const NEED_CONNECTION: &[&str] = &["postgres-version", "login-role"];
/// The fix if nothing more specific is known.
const LOG: &str = "look into the server's log (Supabase dashboard → Logs → Postgres)";
const NEED_SCHEMA: &[&str] = &["worker-role", "missing-rights", "excess-rights", "row-level-security", "objects"];

pub(super) async fn examine(database: Option<&Database>) -> Findings {
    let mut found = Findings::default();
    let because = no_database(database);
    let inspector = match database {
        Some(database) => Some((database, database.inspect().await)),
        None => None,
    };
    let way = way(database, inspector.as_ref().map(|(_, inspector)| inspector.as_ref().map(drop)));
    let Some((database, Ok(mut inspector))) = inspector else {
        found.checks.extend(way);
        let skipped = NEED_CONNECTION.iter().chain(&["schema", "default-privileges"]).chain(NEED_SCHEMA);
        found.checks.extend(skipped.map(|name| Check::skip(name, because)));
        return found;
    };
    let login = match inspector.server().await {
        Ok(server) => {
            found.checks.push(answers(&server));
            found.checks.push(version(server.version));
            found.checks.extend(way);
            found.checks.push(login_role(&server));
            server.login
        }
        Err(error) => {
            found.checks.push(unreachable(&error));
            found.checks.extend(way);
            found.checks.extend(NEED_CONNECTION.iter().map(|name| Check::skip(name, "the server does not say")));
            "YOUR_ROLE".to_owned()
        }
    };
    let (mut schema_checks, is_ours, is_current) = match inspector.schema().await {
        Ok(seen) => {
            let mut checks = Vec::new();
            let is_ours = seen.has_migrations && seen.worker.is_some();
            let became = if is_ours { inspector.become_worker().await } else { Ok(()) };
            let applied = if is_ours { Some(inspector.schema_version().await) } else { None };
            let is_current = !matches!(applied, Some(Ok(applied)) if applied.is_too_old() || applied.is_newer());
            checks.push(match became {
                Ok(()) => schema(&seen, applied),
                Err(_) => Check::skip("schema", "only clerk_sync_worker may see its version"),
            });
            checks.push(default_privileges(&seen.exposed_by));
            if let Some(worker) = seen.worker.as_ref().filter(|_| is_ours) {
                checks.push(worker_role(worker, became.as_ref().err(), &login));
            }
            (checks, is_ours, is_current)
        }
        Err(error) => (vec![Check::fail("schema", error.summary(), LOG)], false, false),
    };
    found.checks.append(&mut schema_checks);
    if !is_ours {
        found.checks.extend(NEED_SCHEMA.iter().map(|name| Check::skip(name, "it needs our schema")));
        return found;
    }
    match database.differences().await {
        _ if !is_current => {
            let names = NEED_SCHEMA.iter().filter(|name| **name != "worker-role");
            found.checks.extend(names.map(|name| Check::skip(name, "the schema is another release's")));
        }
        Ok(differences) => found.checks.extend(object_checks(&differences)),
        Err(error) => found.checks.push(Check::fail("objects", error.summary(), LOG)),
    }
    let looked = read_sync_status(database, &mut found).await;
    // What fails already says why.
    if let Err(error) = looked
        && found.checks.iter().all(|check| check.status != Status::Fail || check.name == "tls")
    {
        found.checks.push(Check::fail("mirror", error.summary(), LOG));
    }
    found
}

/// As `serve` does, over a session of the worker's.
async fn read_sync_status(database: &Database, found: &mut Findings) -> Result<(), Error> {
    let mut session = database.connect().await?;
    found.sync_status = Some(session.sync_status().await?);
    let mut counts = Counts::new();
    for kind in Kind::ALL {
        counts.push((kind, session.count(kind).await.ok()));
        // After an error the state of a session is unknown.
        if counts.last().is_some_and(|(_, rows)| rows.is_none()) {
            session = database.connect().await?;
        }
    }
    session.close().await;
    found.counts = Some(counts);
    Ok(())
}

/// What is between us and the server: that it can be reached, through which pooler, and who else can read along. `opened`: how
/// a connection was made; `None`: it was not tried.
fn way(database: Option<&Database>, opened: Option<Result<(), &Error>>) -> Vec<Check> {
    const POOLER_FIX: &str = "use the direct connection or the session pooler (port 5432)";
    let mut checks = Vec::new();
    match opened {
        Some(Ok(())) => checks.push(Check::ok("pooler", "connections are not shared: direct, or a session pooler")),
        Some(Err(error)) if error.connection_problem() == ConnectionProblem::TransactionPooler => {
            checks.push(Check::skip("database", "nothing else is checked through this pooler"));
            let says = "a transaction-mode pooler, which lends one connection to many clients: prepared statements and settings would get mixed up";
            checks.push(Check::fail("pooler", says, POOLER_FIX));
        }
        Some(Err(error)) => {
            checks.push(unreachable(error));
            checks.push(Check::skip("pooler", no_database(database)));
        }
        None => {
            checks.extend(["database", "pooler"].map(|name| Check::skip(name, no_database(database))));
        }
    }
    checks.push(database.map_or_else(|| Check::skip("tls", no_database(database)), |database| tls(database.tls())));
    checks
}

pub(super) fn unreachable(error: &Error) -> Check {
    const POOL_SIZE: &str = "stop idle clients, or raise the pool size (Supabase dashboard → Database settings → Connection pooling) \
                             or the role's connection limit: serve needs two, two more for moments, and four more during a reconcile";
    let code = error.code().map(|code| format!(" (SQLSTATE {code})")).unwrap_or_default();
    let (says, fix) = match error.connection_problem() {
        ConnectionProblem::Unreachable => (
            "no server answers at the host and port of DATABASE_URL",
            "is the project paused, or the name misspelt? The direct connection has IPv6 only: use the session pooler (port 5432) if this machine has no IPv6",
        ),
        ConnectionProblem::NothingListens => (
            "no server answers at the host and port of DATABASE_URL: the connection is refused",
            "is the server running, and are host and port right? Supabase's are on its page Connect, and the port is 5432",
        ),
        ConnectionProblem::NoSuchHost => (
            "the host that DATABASE_URL names is not found",
            "copy the connection string again (Supabase dashboard → Connect → Session pooler), and look at this machine's network. The \
             direct connection has IPv6 only: use the session pooler (port 5432) if this machine has no IPv6",
        ),
        ConnectionProblem::Silent => (
            "the database did not answer in time",
            "is it overloaded, paused, or behind a firewall? Try again, and look at the project's health",
        ),
        ConnectionProblem::Crowded => (
            "accepted the login and then did not answer: its pooler has no free connection, or it is overloaded",
            POOL_SIZE,
        ),
        ConnectionProblem::NoSuchFile => (
            "the socket that DATABASE_URL names is not there",
            "is the server running? Give the path of the socket's folder",
        ),
        ConnectionProblem::RootCertificate => (
            "",
            "download the CA certificate (Supabase dashboard → Database settings → SSL configuration) and give its path as it \
             is on this machine or in this image: ?sslmode=verify-full&sslrootcert=FILE",
        ),
        ConnectionProblem::Certificate => (
            "there is no encrypted connection that can be trusted",
            "download the CA certificate (Supabase dashboard → Database settings → SSL configuration) and name it: \
             ?sslmode=verify-full&sslrootcert=FILE",
        ),
        ConnectionProblem::TlsRequired => ("the server accepts encrypted connections only", Tls::FIX),
        ConnectionProblem::Password => (
            "the server refuses the role or its password",
            "copy the connection string again; percent-encode the password; for the pooler the role is postgres.REF; \
             a new password is set under Database settings",
        ),
        ConnectionProblem::NoSuchDatabase => ("the server has no such database", "on Supabase its name is postgres"),
        ConnectionProblem::NoSuchTenant => (
            "the pooler does not know the project or the role",
            "is the project paused or deleted? If not, copy the string from Connect again: the role is postgres.REF, and the \
             host's number (aws-0, aws-1, …) and region are the project's",
        ),
        ConnectionProblem::Blocked => (
            "the pooler refuses every login from this address for a while: too many failed",
            "stop everything that still uses an old password (an old deployment, a preview), wait two minutes, and try again",
        ),
        ConnectionProblem::AddressNotAllowed => (
            "the project's network restrictions do not admit this machine's address",
            "add the address: Supabase dashboard → Database settings → Network restrictions",
        ),
        ConnectionProblem::TooManyConnections => ("the server or its pooler has no connection left", POOL_SIZE),
        ConnectionProblem::TransactionPooler => (
            "prepared statements are lost: this is a transaction-mode pooler",
            "use the direct connection or the session pooler (port 5432)",
        ),
        ConnectionProblem::StartupParameter => (
            "the pooler refuses a parameter that the connection string sets",
            "remove options= from DATABASE_URL (and PGOPTIONS), or add it to PgBouncer's ignore_startup_parameters",
        ),
        ConnectionProblem::BehindPooler => (
            "the pooler answers, but cannot log in to the database behind it",
            "is the project paused or being restored? Look at its health; where PgBouncer is your own, at its log",
        ),
        ConnectionProblem::Other => ("the database refuses us", LOG),
    };
    // These say it themselves.
    let says = if says.is_empty() { error.to_string() } else { says.to_owned() };
    Check::fail("database", format!("{says}{code}"), fix)
}

fn answers(server: &Server) -> Check {
    if server.read_only {
        return Check::fail(
            "database",
            "answers, and is read-only",
            "a full disk makes a Supabase project read-only: free space or enlarge it; if it is a replica, use the primary",
        );
    }
    Check::ok("database", "answers")
}

fn version(number: i64) -> Check {
    let version = number / 10_000;
    if version < OLDEST {
        let fix = "Supabase dashboard → Settings → Infrastructure → Upgrade";
        return Check::fail("postgres-version", format!("Postgres {version}; {OLDEST} or newer is needed"), fix);
    }
    Check::ok("postgres-version", format!("Postgres {version}"))
}

fn tls(asked: Tls) -> Check {
    match (asked, asked.weakness()) {
        (Tls::Local, _) => Check::ok("tls", "the server is on this machine"),
        (_, None) => Check::ok("tls", "encrypted, and the server's certificate is checked"),
        (_, Some(weakness)) => {
            Check::fail("tls", format!("{weakness}: the password and all rows can be read on the network"), Tls::FIX)
        }
    }
}

fn login_role(server: &Server) -> Check {
    let login = &server.login;
    let own = "give serve a role that can do nothing else: create role clerk_sync_login login password '…'; grant \
               clerk_sync_worker to clerk_sync_login; and keep the owner's URL in MIGRATE_DATABASE_URL";
    if login == "service_role" {
        return Check::fail(
            "login-role",
            "DATABASE_URL logs in as service_role, which belongs to Supabase's API",
            format!("revoke clerk_sync_worker from service_role; {own}"),
        );
    }
    if server.is_superuser || server.bypasses_rls {
        let may = if server.is_superuser { "is a superuser" } else { "may bypass Row-Level Security" };
        return Check::warn("login-role", format!("{login} {may}, which is more than serve needs"), own);
    }
    Check::ok("login-role", format!("{login} is not a superuser and cannot bypass Row-Level Security"))
}

fn schema(seen: &Schema, applied: Option<Result<SchemaVersion, Error>>) -> Check {
    const NAME: &str = "schema";
    const MIGRATE: &str = "clerk-sync migrate";
    let program = SchemaVersion::of_program();
    let lacks_records = !seen.has_migrations || applied.is_some();
    match applied {
        None | Some(Ok(SchemaVersion { migration: 0, .. })) if seen.has_versions && lacks_records => Check::fail(
            NAME,
            "our tables are there, and the record of their migrations is not, as after a schema-only dump",
            "clerk-sync migrate --repair adds the record; and leave clerk, clerk_rls and clerk_sync out of supabase db pull (--schema)",
        ),
        _ if seen.has_clerk && !seen.has_migrations => Check::fail(
            NAME,
            "there is a schema named clerk that clerk-sync did not create: the guide of the Clerk wrapper creates one",
            format!("alter schema clerk rename to clerk_fdw; then {MIGRATE}"),
        ),
        None if seen.has_migrations => Check::fail(
            NAME,
            "the role clerk_sync_worker does not exist",
            "clerk-sync migrate, as the owner of the schemas: it makes the role and grants what it needs",
        ),
        None => Check::fail(NAME, "is not there", MIGRATE),
        Some(Ok(applied)) if applied.is_too_old() => {
            Check::fail(NAME, format!("has {applied}, and this program needs {program}: serve does not start"), MIGRATE)
        }
        Some(Ok(applied)) if applied.is_newer() => Check::warn(
            NAME,
            format!("has {applied}, newer than this program's {program}; it still serves"),
            "deploy the release that migrated it",
        ),
        Some(Ok(applied)) => Check::ok(NAME, format!("has {applied}: this program's")),
        Some(Err(error)) => Check::fail(
            NAME,
            format!("its version cannot be read: {}", error.summary()),
            "clerk-sync migrate, as the owner of the schemas: it grants what is missing",
        ),
    }
}

fn default_privileges(exposed_by: &[String]) -> Check {
    let says = if exposed_by.is_empty() {
        "a new table in public is closed to anon and authenticated until you grant".to_owned()
    } else {
        let makers = exposed_by.join(" and ");
        format!("a new table of {makers} in public is open to Supabase's API at once: enable RLS with it")
    };
    Check::ok("default-privileges", says)
}

fn worker_role(worker: &Worker, refused: Option<&Error>, login: &str) -> Check {
    const NAME: &str = "worker-role";
    if let Some(error) = refused {
        return Check::fail(
            NAME,
            format!("{login} cannot become clerk_sync_worker: {}", error.summary()),
            format!("clerk-sync migrate, as the owner of the schemas; or grant clerk_sync_worker to {login};"),
        );
    }
    if worker.is_superuser || worker.bypasses_rls || worker.may_login {
        return Check::fail(
            NAME,
            "clerk_sync_worker is a superuser, may bypass Row-Level Security, or may log in",
            "alter role clerk_sync_worker nologin nosuperuser nobypassrls;",
        );
    }
    Check::ok(NAME, format!("{login} becomes clerk_sync_worker, which has the rights it needs and no others"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_others_can_read_fails_whether_the_database_answers_or_not() {
        let checks = |url: &str, opened| way(Some(&Database::parse(url).unwrap()), opened);
        let status =
            |url: &str, opened| checks(url, opened).into_iter().find(|check| check.name == "tls").unwrap().status;
        let url = "postgres://u:p@db.example.com/postgres";
        for opened in [None, Some(Ok(())), Some(Err(&Error::Silent(std::time::Duration::ZERO)))] {
            assert_eq!(status(url, opened), Status::Fail);
            assert_eq!(status(&format!("{url}?sslmode=disable"), opened), Status::Fail);
            assert_eq!(status(&format!("{url}?sslmode=require"), opened), Status::Fail);
            assert_eq!(status(&format!("{url}?sslmode=verify-full"), opened), Status::Ok);
            assert_eq!(status("postgres://u@localhost/postgres", opened), Status::Ok);
        }
    }

    #[test]
    fn an_old_server_fails() {
        assert_eq!(version(140_011).status, Status::Fail);
        assert_eq!(version(150_000).status, Status::Ok);
    }

    #[test]
    fn a_login_with_more_rights_than_needed_is_told() {
        let server = |login: &str, is_superuser, bypasses_rls| Server {
            version: 170_000,
            login: login.to_owned(),
            is_superuser,
            bypasses_rls,
            read_only: false,
        };
        assert_eq!(login_role(&server("clerk_sync_login", false, false)).status, Status::Ok);
        assert_eq!(login_role(&server("postgres", false, true)).status, Status::Warn);
        assert_eq!(login_role(&server("supabase_admin", true, true)).status, Status::Warn);
        assert_eq!(login_role(&server("service_role", false, true)).status, Status::Fail);
    }
}

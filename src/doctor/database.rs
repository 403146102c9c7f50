//! The database: whether it answers, what stands between us, whose rights the program has there, and its schema.

use super::mirror::Counts;
use super::{Check, Status, no_database, rights};
use crate::model::Kind;
use crate::store::inspect::{Schema, Server, Standing, Tls, Trouble, Worker};
use crate::store::{Database, Error, latest_version};

/// The first release of Postgres on which the writer is tested.
const OLDEST: i64 = 15;

/// What was found, and what other checks go on with.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) checks: Vec<Check>,
    /// `None`: the mirror cannot be asked.
    pub(super) standing: Option<Standing>,
    pub(super) counts: Option<Counts>,
}

/// Everything that hangs on a connection.
const BEHIND_CONNECTION: &[&str] = &["postgres-version", "pooler", "tls", "login-role"];
/// Where we know no better.
const LOG: &str = "look into the server's log (Supabase dashboard → Logs → Postgres)";
const BEHIND_SCHEMA: &[&str] = &["worker-role", "missing-rights", "excess-rights", "row-level-security"];

pub(super) async fn examine(database: Option<&Database>) -> Findings {
    let mut found = Findings::default();
    let because = no_database(database);
    let inspector = match database {
        Some(database) => match database.inspect().await {
            Ok(inspector) => Some((database, inspector)),
            Err(error) => {
                found.checks.push(unreachable(&error));
                None
            }
        },
        None => {
            found.checks.push(Check::skip("database", because));
            None
        }
    };
    let Some((database, mut inspector)) = inspector else {
        let skipped = BEHIND_CONNECTION.iter().chain(&["schema", "default-privileges"]).chain(BEHIND_SCHEMA);
        found.checks.extend(skipped.map(|name| Check::skip(name, because)));
        return found;
    };
    let pooler = match database.inspect().await {
        Ok(mut other) => inspector.shares_connections(&mut other).await,
        Err(error) => Err(error),
    };
    // What a shared connection answers next may be another client's: a fresh one is as good as any.
    if pooler.is_err()
        && let Ok(fresh) = database.inspect().await
    {
        inspector = fresh;
    }
    let login = match inspector.server().await {
        Ok(server) => {
            found.checks.push(answers(&server));
            found.checks.push(version(server.version));
            found.checks.push(self::pooler(pooler.as_ref()));
            found.checks.push(tls(database.tls(), server.encrypted));
            found.checks.push(login_role(&server));
            server.login
        }
        Err(error) => {
            found.checks.push(unreachable(&error));
            found.checks.extend(BEHIND_CONNECTION.iter().map(|name| Check::skip(name, "the server does not say")));
            "YOUR_ROLE".to_owned()
        }
    };
    let (mut schema_checks, is_ours) = match inspector.schema().await {
        Ok(seen) => {
            let mut checks = Vec::new();
            let is_ours = seen.has_migrations && seen.worker.is_some();
            let became = if is_ours { inspector.become_worker().await } else { Ok(()) };
            let applied = if is_ours { Some(inspector.schema_version().await) } else { None };
            checks.push(schema(&seen, applied));
            checks.push(default_privileges(&seen.exposed_by));
            if let Some(worker) = seen.worker.as_ref().filter(|_| is_ours) {
                checks.push(worker_role(worker, became.as_ref().err(), &login));
            }
            (checks, is_ours)
        }
        Err(error) => (vec![Check::fail("schema", error.summary(), LOG)], false),
    };
    found.checks.append(&mut schema_checks);
    if !is_ours {
        found.checks.extend(BEHIND_SCHEMA.iter().map(|name| Check::skip(name, "it needs our schema")));
        return found;
    }
    match inspector.rights().await {
        Ok(rights) => found.checks.extend(rights::checks(&rights)),
        Err(error) => found.checks.push(Check::fail("missing-rights", error.summary(), LOG)),
    }
    let looked = look_into_the_mirror(database, &mut found).await;
    // What fails already says why.
    if let Err(error) = looked
        && found.checks.iter().all(|check| check.status != Status::Fail)
    {
        found.checks.push(Check::fail("mirror", error.summary(), LOG));
    }
    found
}

/// As `serve` does, over a session of the worker's.
async fn look_into_the_mirror(database: &Database, found: &mut Findings) -> Result<(), Error> {
    let mut session = database.connect().await?;
    found.standing = Some(session.last_told().await?);
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

fn unreachable(error: &Error) -> Check {
    let code = error.code().map(|code| format!(" (SQLSTATE {code})")).unwrap_or_default();
    let (says, fix) = match error.trouble() {
        Trouble::Unreachable => (
            "nobody answers at the host and port of DATABASE_URL",
            "is the project paused, or the name misspelt? The direct connection has IPv6 only: take the session pooler \
             (port 5432) where this machine has none",
        ),
        Trouble::Silent => (
            "the database did not answer in time",
            "is it overloaded, paused, or behind a firewall? Try again, and look at the project's health",
        ),
        Trouble::NoSuchFile => (
            "the file that DATABASE_URL names in sslrootcert, or the socket, is not there",
            "give the file's whole path, as it is on this machine or in this image",
        ),
        Trouble::Certificate => (
            "there is no encrypted connection that can be trusted",
            "download the CA certificate (Supabase dashboard → Database settings → SSL) and name it: \
             ?sslmode=verify-full&sslrootcert=FILE",
        ),
        Trouble::Password => (
            "the server refuses the role or its password",
            "copy the connection string again; percent-encode the password; by the pooler the role is postgres.REF; \
             a new password is set under Database settings",
        ),
        Trouble::NoSuchDatabase => ("the server has no such database", "on Supabase its name is postgres"),
        Trouble::NoSuchTenant => (
            "the pooler does not know the project",
            "the role is postgres.REF, and the host's region is the project's: copy the string from the Connect page",
        ),
        Trouble::TooManyConnections => (
            "the server has no connection left",
            "close idle clients, or raise the pool size; serve needs two, two more for moments, and four while passes run",
        ),
        Trouble::TransactionPooler => (
            "prepared statements are lost: this is a transaction-mode pooler",
            "use the direct connection or the session pooler (port 5432)",
        ),
        Trouble::Other => ("the database refuses us", LOG),
    };
    Check::fail("database", format!("{says}{code}"), fix)
}

fn answers(server: &Server) -> Check {
    if server.read_only {
        return Check::fail(
            "database",
            "answers, and takes no writes",
            "a full disk makes a Supabase project read-only: free space or enlarge it; of a replica, take the primary",
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

fn pooler(shares: Result<&bool, &Error>) -> Check {
    const FIX: &str = "use the direct connection or the session pooler (port 5432)";
    match shares {
        Ok(false) => Check::ok("pooler", "a connection stays with us: direct, or a session pooler"),
        Ok(true) => Check::fail(
            "pooler",
            "a transaction-mode pooler lends its connections: prepared statements answer each other's queries",
            FIX,
        ),
        Err(error) if error.trouble() == Trouble::TransactionPooler => {
            Check::fail("pooler", "prepared statements are lost: this is a transaction-mode pooler", FIX)
        }
        Err(_) => Check::skip("pooler", "a second connection was refused"),
    }
}

fn tls(asked: Tls, encrypted: bool) -> Check {
    const FIX: &str = "add ?sslmode=verify-full&sslrootcert=FILE to DATABASE_URL, with the CA certificate from Supabase \
                       dashboard → Database settings → SSL";
    match asked {
        Tls::Local => Check::ok("tls", "the server is on this machine"),
        Tls::Verified => Check::ok("tls", "encrypted, and the server's certificate is checked"),
        Tls::Unverified => {
            Check::warn("tls", "encrypted, and nobody checks to whom: sslmode=require takes any certificate", FIX)
        }
        Tls::Optional if encrypted => {
            Check::warn("tls", "encrypted only as long as the server likes, and its certificate is not checked", FIX)
        }
        Tls::Optional | Tls::Off => {
            Check::warn("tls", "not encrypted: the password and all rows can be read on the way", FIX)
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
        return Check::warn("login-role", format!("{login} {may}: more than serve needs"), own);
    }
    Check::ok("login-role", format!("{login}: no superuser, bound by Row-Level Security"))
}

fn schema(seen: &Schema, applied: Option<Result<i64, Error>>) -> Check {
    const NAME: &str = "schema";
    const MIGRATE: &str = "clerk-sync migrate";
    let newest = latest_version();
    match applied {
        _ if seen.has_clerk && !seen.has_migrations => Check::fail(
            NAME,
            "a schema named clerk is there, and it is not ours: the guide of the Clerk wrapper makes one",
            format!("alter schema clerk rename to clerk_fdw; then {MIGRATE}"),
        ),
        None if seen.has_migrations => Check::fail(
            NAME,
            "the role clerk_sync_worker is gone",
            "create role clerk_sync_worker nologin; and grant back what missing-rights lists",
        ),
        None => Check::fail(NAME, "is not there", MIGRATE),
        Some(Ok(applied)) if applied < newest => Check::fail(
            NAME,
            format!("has version {applied}, this program needs {newest}: serve does not start"),
            MIGRATE,
        ),
        Some(Ok(applied)) if applied > newest => Check::warn(
            NAME,
            format!("has version {applied}, newer than this program's {newest}; it still serves"),
            "deploy the release that migrated it",
        ),
        Some(Ok(applied)) => Check::ok(NAME, format!("has version {applied}, this program's")),
        Some(Err(error)) => Check::fail(
            NAME,
            format!("its version cannot be read: {}", error.summary()),
            "grant usage on schema clerk_sync to clerk_sync_worker; grant select on clerk_sync._sqlx_migrations to clerk_sync_worker;",
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
            format!("grant clerk_sync_worker to {login};"),
        );
    }
    if worker.is_superuser || worker.bypasses_rls || worker.may_login {
        return Check::fail(
            NAME,
            "clerk_sync_worker is a superuser, may bypass Row-Level Security, or may log in",
            "alter role clerk_sync_worker nologin nosuperuser nobypassrls;",
        );
    }
    Check::ok(NAME, format!("{login} becomes clerk_sync_worker, which may do its work and no more than reads beside"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_checked_certificate_or_this_machine_is_a_safe_way() {
        let status = |url: &str, encrypted| tls(Database::parse(url).unwrap().tls(), encrypted).status;
        let url = "postgres://u:p@db.example.com/postgres";
        assert_eq!(status(url, true), Status::Warn);
        assert_eq!(status(&format!("{url}?sslmode=disable"), false), Status::Warn);
        assert_eq!(status(&format!("{url}?sslmode=require"), true), Status::Warn);
        assert_eq!(status(&format!("{url}?sslmode=verify-full"), true), Status::Ok);
        assert_eq!(status("postgres://u@localhost/postgres", false), Status::Ok);
        assert_eq!(status("postgres://u@%2Ftmp/postgres", false), Status::Ok);
    }

    #[test]
    fn an_old_server_and_a_shared_connection_fail() {
        assert_eq!(version(140_011).status, Status::Fail);
        assert_eq!(version(150_000).status, Status::Ok);
        assert_eq!(pooler(Ok(&true)).status, Status::Fail);
        assert_eq!(pooler(Err(&Error::Answer(String::new()))).status, Status::Skip);
    }

    #[test]
    fn a_login_with_more_rights_than_needed_is_told() {
        let server = |login: &str, is_superuser, bypasses_rls| Server {
            version: 170_000,
            login: login.to_owned(),
            is_superuser,
            bypasses_rls,
            encrypted: true,
            read_only: false,
        };
        assert_eq!(login_role(&server("clerk_sync_login", false, false)).status, Status::Ok);
        assert_eq!(login_role(&server("postgres", false, true)).status, Status::Warn);
        assert_eq!(login_role(&server("supabase_admin", true, true)).status, Status::Warn);
        assert_eq!(login_role(&server("service_role", false, true)).status, Status::Fail);
    }
}

//! Bringing the database's schema up to this program's: migrations first, then what [`super::replay`] creates again.

use super::manifest::{How, ObjectKind};
use super::repair::Standing;
use super::{Database, Error, repair, replay};
use crate::model::InstanceId;
use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
use sqlx::migrate::{Migrate as _, MigrateError, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};
use std::fmt::Display;
use std::sync::LazyLock;
use std::time::Duration;
use tokio::time::sleep;

pub(super) static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!("./migrations");
    migrator.create_schema("clerk_sync");
    // Not in public, where Supabase's Data API would serve it.
    migrator.dangerous_set_table_name("clerk_sync._sqlx_migrations");
    // A newer release may have migrated already; its schema still serves this one.
    migrator.set_ignore_missing(true);
    migrator
});

/// How far a schema is: of what a release brings, tables and types come by migrations, and views, functions and policies by generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct SchemaVersion {
    /// The number of the newest migration; 0 where there is none.
    pub migration: i64,
    /// The generation of views, functions and policies; 0 where there are none.
    pub generation: i32,
}

impl SchemaVersion {
    /// What this program needs.
    pub fn of_program() -> SchemaVersion {
        let migration = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0);
        SchemaVersion { migration, generation: *replay::GENERATION }
    }

    /// Whether it lacks anything that this program needs.
    pub fn is_too_old(self) -> bool {
        let program = SchemaVersion::of_program();
        self.migration < program.migration || self.generation < program.generation
    }

    /// Whether a newer release than this program has migrated it.
    pub fn is_newer(self) -> bool {
        let program = SchemaVersion::of_program();
        self.migration > program.migration || self.generation > program.generation
    }
}

impl Display for SchemaVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "migration {}, generation {}", self.migration, self.generation)
    }
}

/// What `migrate` did. Displayed, it is a sentence or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migrated {
    /// There was no schema of ours.
    Created(SchemaVersion),
    Upgraded {
        from: SchemaVersion,
        to: SchemaVersion,
    },
    /// All views, functions and policies, though their generation was this program's already.
    Recreated(SchemaVersion),
    /// The database has what this program needs; a newer release may have brought more, which was left alone.
    Nothing(SchemaVersion),
}

impl Migrated {
    /// Whether a newer release has brought more, so that this one cannot judge what is there.
    pub fn is_by_newer(self) -> bool {
        matches!(self, Migrated::Nothing(at) if at.is_newer())
    }
}

impl Display for Migrated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Migrated::Created(to) => write!(f, "Created the schemas clerk, clerk_rls and clerk_sync ({to})."),
            Migrated::Upgraded { from, to } => {
                let numbers = [
                    ("migration", from.migration, to.migration),
                    ("generation", i64::from(from.generation), i64::from(to.generation)),
                ];
                let changed = numbers.iter().filter(|(_, from, to)| from != to);
                let changed: Vec<String> = changed.map(|(name, from, to)| format!("{name} {from} → {to}")).collect();
                write!(f, "Upgraded the schemas clerk, clerk_rls and clerk_sync: {}.", changed.join(", "))
            }
            Migrated::Recreated(at) => {
                write!(f, "Created all views, functions and policies of clerk, clerk_rls and clerk_sync again ({at}).")
            }
            Migrated::Nothing(at) if at.is_newer() => write!(
                f,
                "Nothing to do: a newer release of clerk-sync has migrated the database ({at}; this one brings {}). Its \
                 functions and policies stay, and this release can serve with them.",
                SchemaVersion::of_program()
            ),
            Migrated::Nothing(at) => write!(f, "Nothing to do: the database is up to date ({at})."),
        }
    }
}

/// How to migrate.
#[derive(Clone, Copy, Debug)]
pub struct Migrating {
    /// Creates all views, functions and policies again, whatever the database says that it has; and indexes and rights that are missing.
    pub repairs: bool,
    /// How often to try where other sessions hold a lock that it needs. Each try waits for 2 s, with a pause of a second before the next.
    pub tries: u32,
    /// What to do with a sentence that says what it waits for.
    pub say: fn(&str),
}

impl Default for Migrating {
    fn default() -> Migrating {
        Migrating { repairs: false, tries: 30, say: |_| {} }
    }
}

/// For the session: none of our statements makes others wait behind it for long, and "exists, skipping" is not reported.
const SESSION: &str = "set lock_timeout = '2s'; set client_min_messages = warning";
const PAUSE: Duration = Duration::from_secs(1);
const GIVEN_UP: &str = "run `clerk-sync migrate` again when that is over, or end the other session with `select \
                        pg_terminate_backend(PROCESS)`";

/// Applies what is missing. Run it as the role that will own the schemas: on Supabase, `postgres`.
///
/// Each time it makes sure that the worker's role is there and that the owner may become it: a dump that was restored elsewhere
/// may lack both. Several at once take turns.
///
/// # Errors
/// The role lacks a right, named with the statement that grants it; or a migration failed and was rolled back, and those before
/// it stay applied; or the views, functions and policies did, all of them together; or another session did not release a lock.
pub async fn migrate(database: &Database, how: Migrating) -> anyhow::Result<Migrated> {
    let mut from = None;
    exclusively(database, how, async |connection| {
        let owner = Owner::ask(connection).await?;
        let lacks = owner.lacks();
        if !lacks.is_empty() {
            bail!("{} cannot migrate: {}", owner.name, lacks.join("; "));
        }
        for statement in owner.takes_the_worker() {
            run(connection, &statement).await?;
        }
        let before = owner.version(connection).await?;
        // Of several tries, the first.
        let from = *from.get_or_insert(before);
        if how.repairs {
            repair::prepare(database, connection).await?;
        } else if Standing::ask(connection).await? == Standing::Unrecorded {
            bail!(
                "the tables of clerk-sync are there, and the record of their migrations is not, as after a schema-only dump: run \
                 clerk-sync migrate --repair"
            );
        }
        MIGRATOR.run_direct(None, connection, false).await.map_err(of_migration)?;
        replay::replay(connection, how.repairs).await?;
        if how.repairs {
            repair::finish(database, connection).await?;
        }
        let to = Owner::ask(connection).await?.version(connection).await?;
        Ok(match from {
            SchemaVersion { migration: 0, .. } => Migrated::Created(to),
            from if from != to => Migrated::Upgraded { from, to },
            _ if how.repairs => Migrated::Recreated(to),
            _ => Migrated::Nothing(to),
        })
    })
    .await
}

/// Does something that no other `migrate` does at the same time, on a connection of its own. Where another session's lock is in its
/// way, it is done again from the beginning.
async fn exclusively<T>(
    database: &Database,
    how: Migrating,
    mut work: impl AsyncFnMut(&mut PgConnection) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut connection = database.open().await.map_err(anyhow::Error::from)?;
    sqlx::raw_sql(SESSION).execute(&mut connection).await.map_err(Error::Refused)?;
    let mut tries = 1;
    loop {
        let locked = connection.lock().await.map_err(of_migration);
        let others_migrate = locked.is_err();
        let done = match locked {
            Ok(()) => work(&mut connection).await,
            Err(error) => Err(error),
        };
        let error = match done {
            Err(error) if is_blocked(&error) => error,
            done => {
                let _ = connection.close().await;
                return done;
            }
        };
        let in_the_way = if others_migrate {
            "another `clerk-sync migrate` is running".to_owned()
        } else {
            holders(&mut connection).await
        };
        if tries >= how.tries {
            return Err(error.context(format!("gave up after {tries} tries, because {in_the_way}; {GIVEN_UP}")));
        }
        (how.say)(&format!("Waiting, because {in_the_way} (try {tries} of {}).", how.tries));
        let unlocking = sqlx::raw_sql("select pg_catalog.pg_advisory_unlock_all()").execute(&mut connection).await;
        unlocking.map_err(Error::Refused)?;
        sleep(PAUSE).await;
        tries += 1;
    }
}

/// Whether it failed because another session holds a lock for too long, or waits for one that we held.
fn is_blocked(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<sqlx::Error>()).any(|cause| {
        let code = cause.as_database_error().and_then(sqlx::error::DatabaseError::code);
        code.is_some_and(|code| code == "55P03" || code == "40P01")
    })
}

/// What failed, and what of it was kept.
fn of_migration(error: MigrateError) -> anyhow::Error {
    match error {
        MigrateError::ExecuteMigration(source, version) => {
            anyhow::Error::new(source).context(format!("migration {version} failed and was rolled back"))
        }
        MigrateError::Execute(source) => anyhow::Error::new(source).context("cannot migrate"),
        MigrateError::VersionMismatch(version) => anyhow!(
            "migration {version} in the database is not the one of this program: a build of clerk-sync that was never released \
             migrated it"
        ),
        other => anyhow::Error::new(other),
    }
}

/// What may be in the way of our locks, as a sentence without its end.
async fn holders(connection: &mut PgConnection) -> String {
    // Other sessions with locks on our tables and views, the one that has been at it for longest first.
    let holders = sqlx::query_scalar!(
        r#"
select pg_catalog.format('process %s holds a lock on %s%s', a.pid, pg_catalog.string_agg(distinct l.relation::regclass::text, ', '),
                         ', in a transaction that began ' || pg_catalog.round(extract(epoch from pg_catalog.now() - a.xact_start)) || ' s ago') as "holder!"
  from pg_catalog.pg_locks l
  join pg_catalog.pg_stat_activity a on a.pid = l.pid
  join pg_catalog.pg_class c on c.oid = l.relation
 where l.granted and l.pid <> pg_catalog.pg_backend_pid()
   and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
   and c.relnamespace in (select oid from pg_catalog.pg_namespace where nspname in ('clerk', 'clerk_rls', 'clerk_sync')) and c.relkind in ('r', 'v')
 group by a.pid, a.xact_start order by a.xact_start limit 3"#
    );
    let holders = holders.fetch_all(connection).await.unwrap_or_default();
    if holders.is_empty() { "another session held a lock on our tables".to_owned() } else { holders.join("; ") }
}

/// The role that migrates, and what it may.
#[derive(Deserialize)]
struct Owner {
    /// As SQL writes it.
    name: String,
    database: String,
    is_superuser: bool,
    may_create_roles: bool,
    may_create_schemas: bool,
    /// Our migrator's table is there.
    has_migrations: bool,
    /// So is the table that says which views, functions and policies the database has.
    has_generation: bool,
    /// Whose `clerk_sync` is, if it belongs to a role that this one cannot act as.
    other: Option<String>,
    /// Whether the worker's role is there.
    has_worker: bool,
    may_become_worker: bool,
    may_grant_worker: bool,
    /// Before Postgres 16, where a member lacks it: without it, nobody could grant the role after an upgrade.
    wants_admin_option: bool,
}

impl Owner {
    async fn ask(connection: &mut PgConnection) -> anyhow::Result<Owner> {
        let json = sqlx::query_scalar!(
            r#"
select pg_catalog.json_build_object(
    'name', pg_catalog.quote_ident(r.rolname), 'database', pg_catalog.quote_ident(pg_catalog.current_database()),
    'is_superuser', r.rolsuper, 'may_create_roles', r.rolcreaterole,
    'may_create_schemas', pg_catalog.has_database_privilege(pg_catalog.current_database(), 'create'),
    'has_migrations', pg_catalog.to_regclass('clerk_sync._sqlx_migrations') is not null,
    'has_generation', pg_catalog.to_regclass('clerk_sync.replayed') is not null,
    'other', (select n.nspowner::regrole::text from pg_catalog.pg_namespace n
               where n.nspname = 'clerk_sync' and not pg_catalog.pg_has_role(n.nspowner, 'usage')),
    'has_worker', w.oid is not null,
    'may_become_worker', coalesce(m.may_set, false),
    'may_grant_worker', coalesce(m.admin_option, false) or (v.number < 160000 and r.rolcreaterole),
    'wants_admin_option', v.number < 160000 and w.oid is not null and not coalesce(m.admin_option, false))::text as "owner!"
  from pg_catalog.pg_roles r
 cross join (select pg_catalog.current_setting('server_version_num')::integer) v(number)
  left join pg_catalog.pg_roles w on w.rolname = 'clerk_sync_worker'
  left join lateral (select pg_catalog.bool_or(coalesce((pg_catalog.to_jsonb(m) ->> 'set_option')::boolean, true)) as may_set,
                            pg_catalog.bool_or(m.admin_option) as admin_option
                       from pg_catalog.pg_auth_members m where m.roleid = w.oid and m.member = r.oid) m on true
 where r.rolname = current_user"#
        );
        let json = json.fetch_one(connection).await.map_err(Error::Refused)?;
        Ok(serde_json::from_str(&json)?)
    }

    /// How far the schema is.
    async fn version(&self, connection: &mut PgConnection) -> anyhow::Result<SchemaVersion> {
        let mut version = SchemaVersion { migration: 0, generation: 0 };
        if self.has_migrations {
            let newest = sqlx::query_scalar!(
                r#"select coalesce(max(version), 0) as "migration!" from clerk_sync._sqlx_migrations where success"#
            );
            version.migration = newest.fetch_one(&mut *connection).await.map_err(Error::Refused)?;
        }
        if self.has_generation {
            let newest =
                sqlx::query_scalar!(r#"select coalesce(max(generation), 0) as "generation!" from clerk_sync.replayed"#);
            version.generation = newest.fetch_one(&mut *connection).await.map_err(Error::Refused)?;
        }
        Ok(version)
    }

    /// What an administrator must grant first.
    fn lacks(&self) -> Vec<String> {
        let Owner { name, database, .. } = self;
        let mut lacks = Vec::new();
        if self.is_superuser {
            return lacks;
        }
        if let Some(other) = &self.other {
            lacks.push(format!(
                "the schema clerk_sync belongs to {other}: set MIGRATE_DATABASE_URL to a connection string of that role"
            ));
            return lacks;
        }
        if !self.may_create_schemas {
            lacks.push(format!("it may not create schemas; run: grant create on database {database} to {name};"));
        }
        if !self.has_worker && !self.may_create_roles {
            lacks.push(format!(
                "it may not create roles; run: alter role {name} createrole; or create role clerk_sync_worker nologin; grant \
                 clerk_sync_worker to {name} with admin option;"
            ));
        }
        if self.has_worker && !self.may_become_worker && !self.may_grant_worker {
            lacks.push(format!(
                "it may not become clerk_sync_worker; run: grant clerk_sync_worker to {name} with admin option; (as a role that may)"
            ));
        }
        lacks
    }

    /// The first migration makes the role where nothing of ours is there yet.
    fn takes_the_worker(&self) -> Vec<String> {
        let mut statements = Vec::new();
        if self.has_migrations && !self.has_worker {
            statements.push("create role clerk_sync_worker nologin".to_owned());
        }
        let is_new = !self.has_migrations && !self.has_worker;
        let lacks_admin = self.wants_admin_option && self.may_create_roles;
        if !self.is_superuser && !is_new && (!self.may_become_worker || lacks_admin) {
            let with = if lacks_admin { " with admin option" } else { "" };
            statements.push(format!("grant clerk_sync_worker to {}{with}", self.name));
        }
        statements
    }
}

/// Grants again what a restored dump or a stray statement took away, and returns the statements that were run.
///
/// Those are the rights on our schemas, and that `serving`, the role that `serve` logs in as, may become the worker. What a restored
/// function allows everybody by default is revoked.
///
/// # Errors
/// The role may not, or the database could not be asked.
pub async fn grant_again(database: &Database, how: Migrating, serving: Option<&str>) -> anyhow::Result<Vec<String>> {
    exclusively(database, how, async |connection| {
        let mut statements = of_everybody(connection).await.map_err(Error::Refused)?;
        for statement in &statements {
            run(connection, statement).await?;
        }
        // What roles had as everybody they lack now.
        let is_current = Owner::ask(connection).await?.version(connection).await? == SchemaVersion::of_program();
        let differences = if is_current { database.differences().await? } else { Vec::new() };
        // With its role a policy of the worker's is lost, too.
        let is_ours =
            |kind, name: &str| kind == ObjectKind::Grant || (kind == ObjectKind::Policy && name == "worker_reads");
        let missing = differences.iter().filter(|difference| {
            difference.how == How::Missing && is_ours(difference.object.kind, &difference.object.name)
        });
        let mut grants: Vec<String> =
            missing.map(|difference| difference.fix.trim_end_matches(';').to_owned()).collect();
        if let Some(serving) = serving {
            grants.extend(to_serving(connection, serving).await.map_err(Error::Refused)?);
        }
        for statement in &grants {
            run(connection, statement).await?;
        }
        statements.append(&mut grants);
        Ok(statements)
    })
    .await
}

/// What everybody may do with our functions, tables and schemas is nothing.
async fn of_everybody(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
with ours as (select oid, nspname, nspowner, nspacl from pg_catalog.pg_namespace where nspname in ('clerk', 'clerk_rls', 'clerk_sync'))
select pg_catalog.format('revoke all on %s from public', what) as "statement!"
  from (select pg_catalog.format('schema %I', n.nspname) as what, coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner)) as acl from ours n
        union all select 'function ' || f.oid::regprocedure, coalesce(f.proacl, pg_catalog.acldefault('f', f.proowner))
                    from pg_catalog.pg_proc f join ours n on n.oid = f.pronamespace
        union all select 'type ' || t.oid::regtype, coalesce(t.typacl, pg_catalog.acldefault('T', t.typowner))
                    from pg_catalog.pg_type t join ours n on n.oid = t.typnamespace join pg_catalog.pg_class c on c.oid = t.typrelid
                   where c.relkind = 'c'
        union all select pg_catalog.format('table %I.%I', n.nspname, c.relname), coalesce(c.relacl, pg_catalog.acldefault('r', c.relowner))
                    from pg_catalog.pg_class c join ours n on n.oid = c.relnamespace where c.relkind in ('r', 'p', 'v')) o
 where exists (select from pg_catalog.aclexplode(o.acl) a where a.grantee = 0)
 order by 1"#
    )
    .fetch_all(connection)
    .await
}

/// Behind Supabase's pooler the login is ROLE.PROJECT. The API's own roles get nothing.
async fn to_serving(connection: &mut PgConnection, login: &str) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
select pg_catalog.format('grant clerk_sync_worker to %I', r.rolname) as "statement!" from pg_catalog.pg_roles r
 where r.rolname = (select p.rolname from pg_catalog.pg_roles p where p.rolname in ($1::text, pg_catalog.regexp_replace($1::text, '[.][^.]*$', ''))
                     order by p.rolname = $1::text desc limit 1)
   and not r.rolsuper and r.rolname not in ('anon', 'authenticated', 'service_role', 'authenticator')
   and not exists (select from pg_catalog.pg_auth_members m
                    where m.roleid = 'clerk_sync_worker'::regrole and m.member = r.oid
                      and coalesce((pg_catalog.to_jsonb(m) ->> 'set_option')::boolean, true))"#,
        login
    )
    .fetch_optional(connection)
    .await
}

pub(super) async fn run(connection: &mut PgConnection, statement: &str) -> anyhow::Result<()> {
    let running = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(connection).await;
    // After an upgrade from 15 the owner may lack it, and nobody can give it to themselves.
    let who = if statement.starts_with("grant clerk_sync_worker") {
        " (a superuser may, or a role that has clerk_sync_worker with admin option)"
    } else {
        ""
    };
    running.map(drop).with_context(|| format!("cannot {statement}{who}"))
}

/// Pins the mirror to another Clerk instance, or, given none, lets the next webhook pin it. The rows stay: whoever repins
/// says that they are right, or is about to reconcile.
///
/// # Errors
/// The database could not be asked, or is not migrated.
pub async fn repin(database: &Database, instance: Option<&InstanceId>) -> anyhow::Result<()> {
    let mut connection = database.open().await.map_err(anyhow::Error::from)?;
    let query = match instance {
        Some(instance) => sqlx::query!(
            "insert into clerk_sync.instance (instance_id, pinned_by) values ($1, 'repin') on conflict (only_row) do update
               set instance_id = excluded.instance_id, pinned_by = excluded.pinned_by, pinned_at = now(), environment = null",
            instance.as_str()
        ),
        None => sqlx::query!("delete from clerk_sync.instance where only_row"),
    };
    query.execute(&mut connection).await.map_err(Error::Refused).context("could not change the pinned instance")?;
    Ok(())
}

//! Bringing the database's schema up to this program's.

use super::inspect::Rights;
use super::{Database, Error};
use crate::model::{InstanceId, hex};
use anyhow::{Context as _, bail};
use serde::Deserialize;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};
use std::fmt::Write as _;
use std::sync::LazyLock;

static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!("./migrations");
    migrator.create_schema("clerk_sync");
    // Not in public, where Supabase's Data API would serve it.
    migrator.dangerous_set_table_name("clerk_sync._sqlx_migrations");
    // A newer release may have migrated already; its schema still serves this one.
    migrator.set_ignore_missing(true);
    migrator
});

/// The version of the newest migration in this program.
pub(crate) fn latest_version() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Applies what is missing. Run it as the role that will own the schemas: on Supabase, `postgres`.
///
/// Each time it makes sure that the worker's role is there and that the owner may become it: a dump that was restored elsewhere
/// may lack both.
///
/// # Errors
/// The role lacks a right, named with the statement that grants it; or a migration failed and was rolled back, and those before
/// it stay applied.
pub async fn migrate(database: &Database) -> anyhow::Result<()> {
    let mut connection = database.open().await.map_err(anyhow::Error::from)?;
    let owner = Owner::ask(&mut connection).await?;
    let lacks = owner.lacks();
    if !lacks.is_empty() {
        bail!("{} cannot migrate: {}", owner.name, lacks.join("; "));
    }
    for statement in owner.takes_the_worker() {
        run(&mut connection, &statement).await?;
    }
    MIGRATOR.run(&mut connection).await.map_err(|error| match error {
        MigrateError::ExecuteMigration(source, version) => {
            anyhow::Error::new(source).context(format!("migration {version} failed and was rolled back"))
        }
        MigrateError::Execute(source) => anyhow::Error::new(source).context("cannot migrate"),
        other => anyhow::Error::new(other),
    })?;
    let mut transaction = connection.begin().await?;
    for file in REPLAYED.iter() {
        let running = sqlx::raw_sql(file.sql.clone()).execute(&mut *transaction).await;
        running.with_context(|| format!("migrations/replayed/{} {} failed", file.version, file.description))?;
    }
    Ok(transaction.commit().await?)
}

/// Views, functions and policies, in the order in which they are created.
static REPLAYED: LazyLock<Migrator> = LazyLock::new(|| sqlx::migrate!("./migrations/replayed"));

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
    /// Whose `clerk_sync` is, if it belongs to a role that this one cannot act as.
    other: Option<String>,
    /// Whether the worker's role is there.
    has_worker: bool,
    may_become_worker: bool,
    may_grant_worker: bool,
    /// Before Postgres 16, where a member lacks it: without it, nobody could grant the role after an upgrade.
    wants_admin_option: bool,
}

const OWNER: &str = "
select pg_catalog.json_build_object(
    'name', pg_catalog.quote_ident(r.rolname), 'database', pg_catalog.quote_ident(pg_catalog.current_database()),
    'is_superuser', r.rolsuper, 'may_create_roles', r.rolcreaterole,
    'may_create_schemas', pg_catalog.has_database_privilege(pg_catalog.current_database(), 'create'),
    'has_migrations', pg_catalog.to_regclass('clerk_sync._sqlx_migrations') is not null,
    'other', (select n.nspowner::regrole::text from pg_catalog.pg_namespace n
               where n.nspname = 'clerk_sync' and not pg_catalog.pg_has_role(n.nspowner, 'usage')),
    'has_worker', w.oid is not null,
    'may_become_worker', coalesce(m.may_set, false),
    'may_grant_worker', coalesce(m.admin_option, false) or (v.number < 160000 and r.rolcreaterole),
    'wants_admin_option', v.number < 160000 and w.oid is not null and not coalesce(m.admin_option, false))::text
  from pg_catalog.pg_roles r
 cross join (select pg_catalog.current_setting('server_version_num')::integer) v(number)
  left join pg_catalog.pg_roles w on w.rolname = 'clerk_sync_worker'
  left join lateral (select pg_catalog.bool_or(coalesce((pg_catalog.to_jsonb(m) ->> 'set_option')::boolean, true)) as may_set,
                            pg_catalog.bool_or(m.admin_option) as admin_option
                       from pg_catalog.pg_auth_members m where m.roleid = w.oid and m.member = r.oid) m on true
 where r.rolname = current_user";

impl Owner {
    async fn ask(connection: &mut PgConnection) -> anyhow::Result<Owner> {
        let json: String = sqlx::query_scalar(OWNER).fetch_one(connection).await.map_err(Error::Refused)?;
        Ok(serde_json::from_str(&json)?)
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
            lacks.push(format!("it may not create schemas: grant create on database {database} to {name};"));
        }
        if !self.has_worker && !self.may_create_roles {
            lacks.push(format!(
                "it may not create roles: alter role {name} createrole; or create role clerk_sync_worker nologin; grant \
                 clerk_sync_worker to {name} with admin option;"
            ));
        }
        if self.has_worker && !self.may_become_worker && !self.may_grant_worker {
            lacks.push(format!(
                "it may not become clerk_sync_worker: grant clerk_sync_worker to {name} with admin option; (as a role that may)"
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
/// Those are the rights on our schemas that `missing` finds lacking, and that `serving`, the role that `serve` logs in as, may
/// become the worker. What a restored function allows everybody by default is revoked.
///
/// # Errors
/// The role may not, or the database could not be asked.
pub async fn grant_again(
    database: &Database,
    serving: Option<&str>,
    missing: impl FnOnce(&Rights) -> Vec<String>,
) -> anyhow::Result<Vec<String>> {
    let mut connection = database.open().await.map_err(anyhow::Error::from)?;
    let of_everybody = sqlx::query_scalar(OF_EVERYBODY).fetch_all(&mut connection).await;
    let mut statements: Vec<String> = of_everybody.map_err(Error::Refused)?;
    for statement in &statements {
        run(&mut connection, statement).await?;
    }
    // What roles had as everybody they lack now.
    let mut grants = missing(&database.inspect().await?.rights().await?);
    if let Some(serving) = serving {
        let to_serving = sqlx::query_scalar(TO_SERVING).bind(serving).fetch_optional(&mut connection).await;
        grants.extend(to_serving.map_err(Error::Refused)?);
    }
    for statement in &grants {
        run(&mut connection, statement).await?;
    }
    statements.append(&mut grants);
    Ok(statements)
}

/// What everybody may do with our functions, tables and schemas is nothing.
const OF_EVERYBODY: &str = "
with ours as (select oid, nspname, nspowner, nspacl from pg_catalog.pg_namespace where nspname in ('clerk', 'clerk_rls', 'clerk_sync'))
select pg_catalog.format('revoke all on %s from public', what)
  from (select pg_catalog.format('schema %I', n.nspname) as what, coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner)) as acl from ours n
        union all select 'function ' || f.oid::regprocedure, coalesce(f.proacl, pg_catalog.acldefault('f', f.proowner))
                    from pg_catalog.pg_proc f join ours n on n.oid = f.pronamespace
        union all select pg_catalog.format('table %I.%I', n.nspname, c.relname), coalesce(c.relacl, pg_catalog.acldefault('r', c.relowner))
                    from pg_catalog.pg_class c join ours n on n.oid = c.relnamespace where c.relkind in ('r', 'p', 'v')) o
 where exists (select from pg_catalog.aclexplode(o.acl) a where a.grantee = 0)
 order by 1";

/// Behind Supabase's pooler the login is ROLE.PROJECT. The API's own roles get nothing.
const TO_SERVING: &str = "
select pg_catalog.format('grant clerk_sync_worker to %I', r.rolname) from pg_catalog.pg_roles r
 where r.rolname = (select p.rolname from pg_catalog.pg_roles p where p.rolname in ($1, pg_catalog.regexp_replace($1, '[.][^.]*$', ''))
                     order by p.rolname = $1 desc limit 1)
   and not r.rolsuper and r.rolname not in ('anon', 'authenticated', 'service_role', 'authenticator')
   and not exists (select from pg_catalog.pg_auth_members m
                    where m.roleid = 'clerk_sync_worker'::regrole and m.member = r.oid
                      and coalesce((pg_catalog.to_jsonb(m) ->> 'set_option')::boolean, true))";

async fn run(connection: &mut PgConnection, statement: &str) -> anyhow::Result<()> {
    let running = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(connection).await;
    // After an upgrade from 15 the owner may lack it, and nobody can give it to themselves.
    let who = if statement.starts_with("grant clerk_sync_worker") {
        " (a superuser may, or a role that has clerk_sync_worker with admin option)"
    } else {
        ""
    };
    running.map(drop).with_context(|| format!("cannot {statement}{who}"))
}

/// All migrations as one plain SQL file, for `supabase/migrations`. It records them as applied, so that `migrate` can take
/// over from there.
pub fn printed_migrations() -> String {
    let mut sql = String::from(
        "-- clerk-sync: the whole schema, printed by `clerk-sync migrate --print`.\n\
         -- Put it into supabase/migrations, or run it as the role postgres.\n\n\
         create schema if not exists clerk_sync;\n\
         create table clerk_sync._sqlx_migrations (\n  version bigint primary key,\n  description text not null,\n  \
         installed_on timestamptz not null default now(),\n  success boolean not null,\n  checksum bytea not null,\n  \
         execution_time bigint not null\n);\n",
    );
    for migration in MIGRATOR.iter() {
        let checksum = hex(&migration.checksum);
        write!(
            sql,
            "\n-- {version}: {description}\n\n{body}\ninsert into clerk_sync._sqlx_migrations \
             (version, description, success, checksum, execution_time)\n  \
             values ({version}, '{description}', true, '\\x{checksum}', 0);\n",
            version = migration.version,
            description = migration.description,
            body = migration.sql.as_str().trim_end(),
        )
        .expect("writing to a string cannot fail");
    }
    for file in REPLAYED.iter() {
        write!(sql, "\n{}\n", file.sql.as_str().trim_end()).expect("writing to a string cannot fail");
    }
    sql
}

/// Pins the mirror to another Clerk instance, or, given none, lets the next webhook pin it. The rows stay: whoever repins
/// says that they are right, or is about to reconcile.
///
/// # Errors
/// The database could not be asked, or is not migrated.
pub async fn repin(database: &Database, instance: Option<&InstanceId>) -> anyhow::Result<()> {
    let mut connection = database.open().await.map_err(anyhow::Error::from)?;
    let query = match instance {
        Some(instance) => sqlx::query(
            "insert into clerk_sync.instance (instance_id, pinned_by) values ($1, 'repin') on conflict (only_row) do update \
             set instance_id = excluded.instance_id, pinned_by = excluded.pinned_by, pinned_at = now()",
        )
        .bind(instance.as_str()),
        None => sqlx::query("delete from clerk_sync.instance where only_row"),
    };
    query.execute(&mut connection).await.map_err(Error::Refused).context("could not change the pinned instance")?;
    Ok(())
}

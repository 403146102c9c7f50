//! Bringing the database's schema up to this program's.

use super::{Database, Error};
use crate::model::{InstanceId, hex};
use anyhow::Context as _;
use sqlx::migrate::Migrator;
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
pub fn latest_version() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Applies what is missing. Run it as the role that shall own the schemas: on Supabase, `postgres`.
///
/// # Errors
/// The migration that failed was rolled back; those before it stay applied.
pub async fn migrate(database: &Database) -> anyhow::Result<()> {
    let mut connection = database.open().await.map_err(anyhow::Error::from)?;
    MIGRATOR.run(&mut connection).await.map_err(|error| match error {
        sqlx::migrate::MigrateError::ExecuteMigration(source, version) => {
            let hint = hint(&source);
            anyhow::Error::new(source).context(format!("migration {version} failed and was rolled back{hint}"))
        }
        other => anyhow::Error::new(other),
    })
}

/// What the server advises, as part of a sentence.
fn hint(error: &sqlx::Error) -> String {
    let hint = error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>())
        .and_then(|error| error.hint());
    hint.map(|hint| format!(" ({hint})")).unwrap_or_default()
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

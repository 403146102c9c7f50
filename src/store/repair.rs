//! `clerk-sync migrate --repair`: whatever holds no data is made again. Views, functions and policies are replayed; here is the rest.

use super::manifest::{Difference, How, ObjectKind};
use super::migrate::run;
use super::printed::records;
use super::{Database, Error};
use anyhow::{Context as _, bail};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

/// Whether our tables are there without the record of the migrations that made them.
pub(super) async fn lacks_records(connection: &mut PgConnection) -> anyhow::Result<bool> {
    let sql = "select pg_catalog.to_regclass('clerk_sync.versions') is not null, \
                      pg_catalog.to_regclass('clerk_sync._sqlx_migrations') is not null";
    let (has_tables, has_records): (bool, bool) =
        sqlx::query_as(sql).fetch_one(&mut *connection).await.map_err(Error::Refused)?;
    if !has_tables || !has_records {
        return Ok(has_tables);
    }
    let sql = "select not exists (select from clerk_sync._sqlx_migrations)";
    Ok(sqlx::query_scalar(sql).fetch_one(connection).await.map_err(Error::Refused)?)
}

/// Makes it possible to replay: adds the record of migrations where a dump left it out, and the schema of the policy functions.
///
/// # Errors
/// A table, a column or a type is missing, each named with the statements that make it.
pub(super) async fn prepare(database: &Database, connection: &mut PgConnection) -> anyhow::Result<()> {
    let lacks_records = lacks_records(connection).await?;
    if !lacks_records && !has_records(connection).await? {
        // Nothing of ours is there: migrations make it.
        return Ok(());
    }
    let differences = database.differences().await?;
    let below = differences.iter().filter(|difference| stands_below(difference));
    let missing: Vec<String> = below
        .filter(|difference| lacks_records || difference.how == How::Missing)
        .map(|difference| format!("{}: {}", difference.says(), difference.fix))
        .collect();
    if !missing.is_empty() {
        bail!("what holds data, or what functions are made of, must be made first: {}", missing.join(" | "));
    }
    if lacks_records {
        let running = sqlx::raw_sql(AssertSqlSafe(records())).execute(&mut *connection).await;
        running.context("cannot record the migrations")?;
    }
    let lost = differences.iter().find(|difference| difference.object.kind == ObjectKind::Schema);
    if let Some(schema) = lost {
        run(connection, schema.fix.trim_end_matches(';')).await?;
    }
    Ok(())
}

async fn has_records(connection: &mut PgConnection) -> anyhow::Result<bool> {
    let sql = "select pg_catalog.to_regclass('clerk_sync._sqlx_migrations') is not null";
    Ok(sqlx::query_scalar(sql).fetch_one(connection).await.map_err(Error::Refused)?)
}

/// Makes again what replaying does not: indexes, policies that migrations made, rights.
///
/// # Errors
/// The database refused one of them.
pub(super) async fn finish(database: &Database, connection: &mut PgConnection) -> anyhow::Result<()> {
    let left = database.differences().await?;
    let is_statement = |difference: &&Difference| difference.is_repairable && !difference.fix.starts_with("clerk-sync");
    for difference in left.iter().filter(is_statement) {
        for statement in difference.fix.split_inclusive(';') {
            run(connection, statement.trim().trim_end_matches(';')).await?;
        }
    }
    Ok(())
}

/// What views and functions stand on.
fn stands_below(difference: &Difference) -> bool {
    matches!(difference.object.kind, ObjectKind::Table | ObjectKind::Column | ObjectKind::Constraint | ObjectKind::Type)
        || (difference.object.kind == ObjectKind::Schema && difference.object.name != "clerk_rls")
}

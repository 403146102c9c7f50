//! `clerk-sync migrate --repair`: whatever holds no data is made again. Views, functions and policies are replayed; here is the rest.

use super::manifest::{Difference, How, ObjectKind};
use super::migrate::run;
use super::printed::records;
use super::{Database, Error};
use anyhow::{Context as _, bail};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

/// What of ours a database has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Nothing,
    /// Tables without the record of the migrations that made them: a dump of the schema leaves it out.
    Unrecorded,
    Recorded,
}

impl Standing {
    pub(super) async fn ask(connection: &mut PgConnection) -> anyhow::Result<Standing> {
        let found = sqlx::query!(
            r#"select (pg_catalog.to_regclass('clerk_sync.versions') is not null) as "tables!",
                      (pg_catalog.to_regclass('clerk_sync._sqlx_migrations') is not null) as "records!""#
        );
        let found = found.fetch_one(&mut *connection).await.map_err(Error::Refused)?;
        let is_recorded = match (found.tables, found.records) {
            (false, false) => return Ok(Standing::Nothing),
            (true, true) => {
                let any = sqlx::query_scalar!(r#"select exists (select from clerk_sync._sqlx_migrations) as "any!""#);
                any.fetch_one(connection).await.map_err(Error::Refused)?
            }
            (_, has_records) => has_records,
        };
        Ok(if is_recorded { Standing::Recorded } else { Standing::Unrecorded })
    }
}

/// Makes it possible to replay: adds the record of migrations where a dump left it out, and the schema of the policy functions.
///
/// # Errors
/// A table, a column or a type is missing, each named with the statements that make it.
pub(super) async fn prepare(database: &Database, connection: &mut PgConnection) -> anyhow::Result<()> {
    let standing = Standing::ask(connection).await?;
    if standing == Standing::Nothing {
        // Migrations make it.
        return Ok(());
    }
    let lacks_records = standing == Standing::Unrecorded;
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

/// Makes again what replaying does not: indexes, policies that migrations made, rights.
///
/// # Errors
/// The database refused one of them.
pub(super) async fn finish(database: &Database, connection: &mut PgConnection) -> anyhow::Result<()> {
    let left = database.differences().await?;
    for difference in left.iter().filter(|difference| difference.is_repairable && !is_replayed(difference)) {
        run(connection, difference.fix.trim_end_matches(';')).await?;
    }
    Ok(())
}

/// Whether replaying has made it: its fix is a command, not a statement.
fn is_replayed(difference: &Difference) -> bool {
    matches!(difference.object.kind, ObjectKind::Function | ObjectKind::View)
}

/// What views and functions stand on.
fn stands_below(difference: &Difference) -> bool {
    matches!(difference.object.kind, ObjectKind::Table | ObjectKind::Column | ObjectKind::Constraint | ObjectKind::Type)
        || (difference.object.kind == ObjectKind::Schema && difference.object.name != "clerk_rls")
}

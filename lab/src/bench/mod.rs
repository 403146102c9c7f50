//! `lab bench`: how fast it is, beside a limit that is measured in the same run.
//!
//! Times of a shared machine say little by themselves, so every figure stands beside another of the same minutes.

mod apply;
mod backfill;
mod history;
mod ingest;
mod load;

use clerk_sync::store::Database;
use sqlx::PgConnection;
use std::process::ExitCode;
use testkit::Project;
use testkit::supabase::Supabase;

/// What is measured.
#[derive(clap::Subcommand)]
pub(crate) enum Bench {
    Ingest(ingest::Ingest),
    Apply(apply::Apply),
    Backfill(backfill::Backfill),
}

impl Bench {
    /// Measures, and prints a table.
    ///
    /// # Errors
    /// Something that it stands on is missing: most likely Postgres.
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Bench::Ingest(ingest) => ingest.run().await,
            Bench::Apply(apply) => apply.run().await,
            Bench::Backfill(backfill) => backfill.run().await,
        }
    }
}

/// An empty mirror.
async fn project(supabase: &Supabase, name: &str) -> anyhow::Result<Database> {
    Ok(Project::migrated(supabase, name).await?.database())
}

/// How many bytes the server has written ahead, in all.
async fn wal(superuser: &mut PgConnection) -> anyhow::Result<i64> {
    let sql = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";
    Ok(sqlx::query_scalar(sql).fetch_one(superuser).await?)
}

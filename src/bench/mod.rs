//! `clerk-sync bench`: how fast it is, beside a limit that is measured in the same run.
//!
//! Times of a shared machine say little by themselves, so every figure stands beside another of the same minutes.

mod backfill;

use std::process::ExitCode;

/// What is measured.
#[derive(clap::Subcommand)]
pub enum Bench {
    Backfill(backfill::Backfill),
}

impl Bench {
    /// Measures, and prints a table.
    ///
    /// # Errors
    /// Something that it stands on is missing: most likely Postgres.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Bench::Backfill(backfill) => backfill.run().await,
        }
    }
}

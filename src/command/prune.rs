//! `clerk-sync prune`: removing old bookkeeping, as `serve` does every hour.

use super::arguments::DatabaseArguments;
use crate::config::{self, RetentionEnvironment};
use crate::terminal;
use crate::upkeep::retention;
use std::process::ExitCode;

/// Delete old bookkeeping: the ids of processed webhooks, the differences found by a reconcile, and dead letters. The RETENTION_ variables say
/// how long each is kept. serve does the same every hour
#[derive(clap::Args)]
pub struct Prune {
    #[command(flatten)]
    retention: RetentionEnvironment,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArguments,
}

impl Prune {
    /// Runs the command.
    ///
    /// # Errors
    /// A value is wrong, or the database does not answer.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut mistakes = Vec::new();
        let Some(retention) = self.retention.check(&mut mistakes) else {
            return Err(config::Mistakes(mistakes).into());
        };
        let database = self.database.database()?;
        let pruned = retention::prune(&database, &retention).await?;
        if self.json {
            terminal::text(serde_json::to_string_pretty(&pruned)?);
        } else {
            terminal::line(format_args!(
                "Removed: {} receipts, {} findings, {} passes, {} dead letters.",
                pruned.receipts, pruned.findings, pruned.passes, pruned.dead_letters
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

//! `clerk-sync refresh`: one object, read again.

use super::arguments::Access;
use crate::model::Kind;
use crate::terminal;
use std::process::ExitCode;

/// Read one object again, with its memberships
#[derive(clap::Args)]
pub struct Refresh {
    #[command(flatten)]
    access: Access,

    /// user_…, org_… or orgmem_…
    #[arg(value_parser = clerk_id)]
    id: String,

    /// Restore it although a webhook has reported that it was deleted
    #[arg(long)]
    undelete: bool,
}

/// An id whose kind shows. Of anything else Clerk would say that it has no such user, which leaves a tombstone.
fn clerk_id(text: &str) -> Result<String, String> {
    match Kind::of_id(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("an id begins with one of {}", Kind::ALL.map(Kind::id_prefix).join(", "))),
    }
}

impl Refresh {
    /// Runs it, and prints what became of each object.
    ///
    /// # Errors
    /// Clerk or the database does not answer.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        for (id, verdict) in self.access.reconciler()?.refresh(&self.id, self.undelete).await? {
            terminal::line(format_args!(
                "{id}  {}{}",
                verdict.outcome,
                verdict.reason.map(|reason| format!(" ({reason})")).unwrap_or_default()
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

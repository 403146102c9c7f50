//! `clerk-sync refresh`: one object, read again.

use super::arguments::Access;
use crate::model::{Kind, Outcome};
use crate::reconcile::Refreshed;
use crate::terminal;
use std::process::ExitCode;

/// Read one user, organization or membership again from Clerk, and write what differs. The memberships of a user or an organization
/// are read too. Exit code 1: neither Clerk nor the tables have it
#[derive(clap::Args)]
pub struct Refresh {
    #[command(flatten)]
    access: Access,

    /// user_…, org_… or orgmem_…
    #[arg(value_parser = clerk_id)]
    id: String,

    /// If Clerk's API still has it, write it, although a webhook reported its deletion
    #[arg(long)]
    undelete: bool,

    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// An id whose kind shows. Of anything else Clerk would say that it has no such user, which leaves a tombstone.
fn clerk_id(text: &str) -> Result<String, String> {
    match Kind::of_id(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("an id must begin with one of {}", Kind::ALL.map(Kind::id_prefix).join(", "))),
    }
}

impl Refresh {
    /// Runs it, and prints what became of each object.
    ///
    /// # Errors
    /// Clerk or the database does not answer.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let refreshed = self.access.reconciler()?.refresh(&self.id, self.undelete).await?;
        if self.json {
            terminal::text(serde_json::to_string_pretty(&refreshed)?);
        } else {
            refreshed.iter().for_each(print);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(refreshed: &Refreshed) {
    let Refreshed { id, outcome, reason, differed, .. } = refreshed;
    let is_settled = matches!(outcome, Outcome::Applied | Outcome::Unchanged);
    if is_settled && !differed {
        return terminal::line(format_args!("{id}  in sync"));
    }
    let reason = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    terminal::line(format_args!("{id}  {outcome}{reason}"));
}

//! What a person types: each command is a file, with its arguments.

mod arguments;
mod dead_letters;
mod doctor;
mod migrate;
mod policy;
mod prune;
mod purge;
mod reconcile;
mod refresh;
mod replay;
mod serve;

pub use replay::Replay;

use crate::config::Environment;
use std::process::ExitCode;

/// The commands.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Receive Clerk's webhooks and keep the mirror
    Serve(Box<Environment>),
    Migrate(migrate::Migrate),
    Reconcile(Box<reconcile::Reconcile>),
    Refresh(Box<refresh::Refresh>),
    Doctor(Box<doctor::Doctor>),
    DeadLetters(dead_letters::DeadLetters),
    Prune(prune::Prune),
    Purge(purge::Purge),
    Replay(replay::Replay),
    #[command(subcommand)]
    Policy(policy::Policy),
}

impl Command {
    /// Whether it is the service itself, which tells of every delivery: the other commands speak for themselves.
    pub const fn is_service(&self) -> bool {
        matches!(self, Command::Serve(_))
    }

    /// Runs it.
    ///
    /// # Errors
    /// It failed; why, is for a person.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Serve(environment) => serve::serve(*environment).await,
            Command::Migrate(migrate) => migrate.run().await,
            Command::Reconcile(reconcile) => reconcile.run().await,
            Command::Refresh(refresh) => refresh.run().await,
            Command::Doctor(doctor) => doctor.run().await,
            Command::DeadLetters(dead_letters) => dead_letters.run().await,
            Command::Prune(prune) => prune.run().await,
            Command::Purge(purge) => purge.run().await,
            Command::Replay(replay) => replay.run().await,
            Command::Policy(policy) => policy.run().await,
        }
    }
}

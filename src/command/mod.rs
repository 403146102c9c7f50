//! What a person types: each command is a file, with its arguments.

mod arguments;
mod completions;
mod dead_letters;
mod dev;
mod doctor;
mod init;
mod migrate;
mod policy;
mod prune;
mod purge;
mod reconcile;
mod refresh;
mod replay;
mod serve;

pub use replay::Replay;

use crate::config::{self, Environment};
use crate::store;
use crate::terminal;
use std::process::ExitCode;

/// The commands.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Receive Clerk's webhooks, keep the tables in sync, and reconcile on schedule
    Serve(Box<Environment>),
    Init(Box<init::Init>),
    Dev(Box<dev::Dev>),
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
    Completions(completions::Completions),
}

/// Prints what went wrong, a line for each thing, and what to do where there is no connection to the database.
pub fn print_error(error: &anyhow::Error) {
    if let Some(config::Mistakes(mistakes)) = error.downcast_ref::<config::Mistakes>() {
        mistakes.iter().for_each(|mistake| terminal::note(format_args!("clerk-sync: {mistake}")));
        return;
    }
    terminal::note(format_args!("clerk-sync: {}", store::error_chain(error.chain())));
    let of_database = error.chain().find_map(|error| error.downcast_ref::<store::Error>());
    if let Some((_, fix)) = of_database.and_then(crate::doctor::connection_problem) {
        terminal::note(format_args!("  fix: {fix}"));
    }
}

/// The commands by when they are needed, as `--help` lists them.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Set up", &["init", "dev", "migrate", "doctor", "policy"]),
    ("Run", &["serve"]),
    ("Operate", &["reconcile", "refresh", "dead-letters", "prune", "purge"]),
    ("Try and develop", &["replay", "completions"]),
];

impl Command {
    /// The commands in groups, each with its first sentence, for the help of the whole program.
    pub fn groups(program: &clap::Command) -> String {
        let mut text = String::new();
        let named: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        let others: Vec<&str> = program.get_subcommands().map(clap::Command::get_name).collect();
        let others: Vec<&str> = others.into_iter().filter(|name| !named.contains(name) && *name != "help").collect();
        for (heading, names) in GROUPS.iter().copied().chain([("Other", others.as_slice())]) {
            let commands: Vec<&clap::Command> = names
                .iter()
                .filter_map(|name| program.find_subcommand(name))
                .filter(|command| !command.is_hide_set())
                .collect();
            if commands.is_empty() {
                continue;
            }
            text.push_str(&format!("\n{heading}:\n"));
            for command in commands {
                let about = command.get_about().map(ToString::to_string).unwrap_or_default();
                let sentence = about.split_once(". ").map_or(about.as_str(), |(first, _)| first).trim_end_matches('.');
                text.push_str(&format!("  {:<13} {}\n", command.get_name(), sentence.replace('\n', " ")));
            }
        }
        text
    }

    /// What is logged unless `RUST_LOG` says otherwise: everything of the service, little of the other commands, which print their results.
    pub const fn logs(&self) -> &'static str {
        match self {
            Command::Serve(_) => "info,sqlx=warn,tokio_cron_scheduler=warn",
            Command::Dev(_) => "warn,clerk_sync::dotenv=info,clerk_sync::webhook=info",
            _ => "warn,clerk_sync::dotenv=info",
        }
    }

    /// Runs it.
    ///
    /// # Errors
    /// It failed; why, is for a person.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Serve(environment) => serve::serve(*environment).await,
            Command::Init(init) => init.run().await,
            Command::Dev(dev) => dev.run().await,
            Command::Migrate(migrate) => migrate.run().await,
            Command::Reconcile(reconcile) => reconcile.run().await,
            Command::Refresh(refresh) => refresh.run().await,
            Command::Doctor(doctor) => doctor.run().await,
            Command::DeadLetters(dead_letters) => dead_letters.run().await,
            Command::Prune(prune) => prune.run().await,
            Command::Purge(purge) => purge.run().await,
            Command::Replay(replay) => replay.run().await,
            Command::Policy(policy) => policy.run().await,
            Command::Completions(completions) => completions.run(),
        }
    }
}

//! `clerk-sync completions`: what a shell needs to complete commands and options.

use crate::terminal;
use clap::CommandFactory as _;
use clap_complete::Shell;
use std::process::ExitCode;

/// Print a completion script for a shell.
///
/// For bash: clerk-sync completions bash > ~/.local/share/bash-completion/completions/clerk-sync
#[derive(clap::Args)]
pub struct Completions {
    shell: Shell,
}

/// The commands, without the program's own texts.
#[derive(clap::Parser)]
#[command(name = "clerk-sync")]
struct Program {
    #[command(subcommand)]
    _command: super::Command,
}

impl Completions {
    /// Prints the script.
    ///
    /// # Errors
    /// None.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Program::command(), "clerk-sync", &mut script);
        terminal::text(String::from_utf8_lossy(&script).trim_end());
        Ok(ExitCode::SUCCESS)
    }
}

//! The command line. Exit codes: 0 done, 1 failed, 2 wrong usage; by `policy check` 2 findings; by `reconcile` 2 drift, 3 held back by the
//! deletion limit, 4 not all judged.

use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use clerk_sync::command::{self, Command};
use clerk_sync::dotenv::Dotenv;
use clerk_sync::{os, telemetry, terminal};
use std::process::ExitCode;

/// Keeps Clerk's users, organizations and memberships in a Supabase Postgres, correctly enough that Row-Level-Security
/// policies can be built on them.
#[derive(Parser)]
#[command(
    version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("CLERK_SYNC_BUILD"), ")"),
    about,
    help_template = "{about-with-newline}\n{usage-heading} {usage}\n{before-help}Options:\n{options}{after-help}",
    after_help = "A .env file in the working directory is read, unless other accounts on this machine have write permission for it. More logs: RUST_LOG=debug. Logs as JSON: LOG_FORMAT=json.\n\
                  clerk-sync COMMAND --help describes a command with its exit codes."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    os::forbid_core_dumps();
    // Before any thread exists: it changes the environment.
    let mut dotenv = std::env::current_dir().ok().and_then(|folder| Dotenv::find(&folder));
    if let Some(dotenv) = &mut dotenv {
        dotenv.load();
    }
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    telemetry::init(cli.command.logs());
    if let Some(dotenv) = &dotenv {
        dotenv.tell();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("cannot start")),
    };
    let result = runtime.block_on(cli.command.run());
    // A blocking DNS lookup cannot be cancelled; do not wait for it.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    result.unwrap_or_else(|error| fail(&error))
}

/// The command line, without the values of variables in its help: a secret may stand in the wrong one.
fn parse() -> Result<Cli, clap::Error> {
    fn without_values(command: clap::Command) -> clap::Command {
        command.mut_args(|argument| argument.hide_env_values(true)).mut_subcommands(without_values)
    }
    // Beside a mistake, clap shows the usage with all that is set, variables too, as if it had to be given.
    fn with_usage(mut command: clap::Command) -> clap::Command {
        let usage = command.render_usage().to_string();
        let command = command.mut_subcommands(with_usage);
        command.override_usage(usage.trim_start_matches("Usage: ").to_owned())
    }
    let mut command = without_values(Cli::command());
    let groups = Command::groups(&command);
    // It gives the subcommands their whole names.
    command.build();
    let mut command = with_usage(command).before_help(groups);
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Prints help, or what is wrong with the command line.
fn explain(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    if error.use_stderr() {
        // An argument is quoted here, and may have lines of its own: none of them passes for one of ours.
        terminal::note_text(text.trim_end().replace('\n', "\n  "));
    } else {
        terminal::text(text.trim_end());
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn fail(error: &anyhow::Error) -> ExitCode {
    command::print_error(error);
    ExitCode::FAILURE
}

//! The product shown, measured and broken, for those who build it. `./x` is the door to all of it.

mod bench;
mod chaos;
mod demo;
mod simulate;
mod testbed;

use clap::{Parser, Subcommand};
use clerk_sync::{store, telemetry, terminal};
use std::process::ExitCode;

/// clerk-sync shown, measured and broken on a private Postgres and a simulated Clerk. Exit codes: 0 as promised, 1 not, 2 wrong usage.
#[derive(Parser)]
#[command(name = "lab")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the whole job without any account: a private Postgres, a simulated Clerk, webhooks lost, late and doubled
    Demo(demo::Demo),
    /// Serve the Backend API of a simulated Clerk, for tests in other languages and for measuring
    Simulate(simulate::Simulate),
    /// Measure, beside a limit that is measured in the same run
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Break things under load, and see whether what was promised holds
    #[command(subcommand)]
    Chaos(chaos::Chaos),
    /// A private Postgres with the roles of a Supabase project, for as long as standard input is open
    Testbed,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The demo says itself what happens.
    telemetry::init(if matches!(cli.command, Command::Demo(_)) { "error" } else { "warn" });
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("cannot start")),
    };
    let result = runtime.block_on(run(cli.command));
    // A blocking DNS lookup cannot be cancelled; do not wait for it.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    result.unwrap_or_else(|error| fail(&error))
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Demo(demo) => demo.run().await,
        Command::Simulate(simulate) => simulate.run().await,
        Command::Bench(bench) => bench.run().await,
        Command::Chaos(chaos) => chaos.run().await,
        Command::Testbed => testbed::open().await,
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    terminal::note(format_args!("lab: {}", store::error_chain(error.chain())));
    ExitCode::FAILURE
}

/// # Errors
/// The product was built without what `what` needs.
fn need_failpoints(what: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        testkit::program::has_failpoints()?,
        "{what} needs a clerk-sync that was built with --features failpoints"
    );
    Ok(())
}

/// A line on standard output.
fn say(line: &str) {
    terminal::text(line);
}

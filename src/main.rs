//! The command line. Exit codes: 0 done, 1 failed, 2 wrong usage; by `policy check` 2 findings; by `reconcile` 2 drift, 3 braked, 4 not all judged.

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clerk_sync::config::{self, Environment};
use clerk_sync::doctor::{self, Doctor};
use clerk_sync::dotenv::Dotenv;
use clerk_sync::model::InstanceId;
use clerk_sync::policy::Policy;
use clerk_sync::replay::Replay;
use clerk_sync::store::foreign::Weight;
use clerk_sync::webhook::writer::Writer;
use clerk_sync::{app, command, door, failpoint, ops, os, store, telemetry, terminal};
use std::process::ExitCode;

/// Keeps Clerk's users, organizations and memberships in a Supabase Postgres, correctly enough that Row-Level-Security
/// policies can be built on them.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "A .env file in the working directory is read, unless other users may write it. Logs: RUST_LOG=debug, LOG_FORMAT=json."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Receive Clerk's webhooks and keep the mirror
    Serve(Box<Environment>),
    /// Create or upgrade the schemas in the database
    Migrate(Migrate),
    Reconcile(Box<command::Reconcile>),
    Refresh(Box<command::Refresh>),
    Doctor(Box<Doctor>),
    DeadLetters(command::DeadLetters),
    Prune(command::Prune),
    Purge(command::Purge),
    /// Sign JSON bodies as Clerk's webhooks are signed, and post them to a running server
    Replay(Replay),
    /// Policies for your own tables: write them, check them
    #[command(subcommand)]
    Policy(Policy),
}

#[derive(clap::Args)]
struct Migrate {
    /// As `DATABASE_URL`, for those who migrate as another role than they serve as
    #[arg(long, env = "MIGRATE_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    migrate_database_url: Option<String>,

    /// The database, as the role that shall own the schemas (on Supabase: postgres)
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,

    /// Write all migrations as one plain SQL file to standard output, and touch no database
    #[arg(long)]
    print: bool,

    /// Pin the mirror to the Clerk instance of `CLERK_INSTANCE_ID`, or, where that is unset, to the next webhook's
    #[arg(long, conflicts_with = "print")]
    repin: bool,

    #[arg(long, env = "CLERK_INSTANCE_ID", value_name = "ID", hide = true)]
    instance_id: Option<String>,
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
    // The service tells of every delivery; the commands speak for themselves.
    let is_service = matches!(cli.command, Command::Serve(_));
    telemetry::init(if is_service { "info,sqlx=warn" } else { "warn,clerk_sync::dotenv=info" });
    if let Some(dotenv) = &dotenv {
        dotenv.tell();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("cannot start")),
    };
    let result = runtime.block_on(run(cli.command));
    // A name that is being looked up cannot be cancelled, and must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    result.unwrap_or_else(|error| fail(&error))
}

/// The command line, without the values of variables in its help: a secret may stand in the wrong one.
fn parse() -> Result<Cli, clap::Error> {
    fn without_values(command: clap::Command) -> clap::Command {
        command.mut_args(|argument| argument.hide_env_values(true)).mut_subcommands(without_values)
    }
    let mut command = without_values(Cli::command());
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
    match error.downcast_ref::<config::Mistakes>() {
        Some(config::Mistakes(mistakes)) => {
            mistakes.iter().for_each(|mistake| terminal::note(format_args!("clerk-sync: {mistake}")));
        }
        None => terminal::note(format_args!("clerk-sync: {}", store::told(error.chain()))),
    }
    ExitCode::FAILURE
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(environment) => serve(*environment).await,
        Command::Migrate(migrate) => migrate.run().await.map(|()| ExitCode::SUCCESS),
        Command::Reconcile(reconcile) => reconcile.run().await,
        Command::Refresh(refresh) => refresh.run().await,
        Command::Doctor(doctor) => doctor.run().await,
        Command::DeadLetters(dead_letters) => dead_letters.run().await,
        Command::Prune(prune) => prune.run().await,
        Command::Purge(purge) => purge.run().await,
        Command::Replay(replay) => {
            let summary = replay.run().await?;
            terminal::text(summary.to_string().trim_end());
            Ok(if summary.all_accepted() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Policy(policy) => policy.run().await,
    }
}

async fn serve(environment: Environment) -> anyhow::Result<ExitCode> {
    failpoint::check()?;
    let config = environment.check().map_err(config::Mistakes)?;
    os::raise_file_limit();
    let listener =
        door::bind(config.listen_addr).with_context(|| format!("cannot listen on {}", config.listen_addr))?;
    tracing::info!(address = %listener.local_addr()?, version = env!("CARGO_PKG_VERSION"), "listening");
    let counts = ops::start_counting()?;
    let writer = Writer::start(config.database.clone(), config.instance.clone(), config.reconcile.is_some());
    let writer = writer.context("cannot start the writer")?;
    let health = Some(writer.0.watch());
    let (database, token) = (config.database.clone(), config.ops_token.clone());
    let ops = ops::Ops { counts, database, token, open_metrics: config.ops_open_metrics, health };
    if let Err(error) = ops::listen(config.ops_addr.unwrap_or(config::DEFAULT_OPS_ADDR), ops) {
        if config.ops_addr.is_some() {
            return Err(error.context("OPS_ADDR"));
        }
        tracing::warn!("no metrics and no status page are served: {error:#}; set OPS_ADDR to another address");
    }
    let (database, stop) = (config.database.clone(), os::stop_signal()?);
    let mut refused = false;
    let shutdown = async {
        tokio::select! {
            () = stop => {}
            () = Box::pin(is_refused(database)) => refused = true,
        }
    };
    app::serve_with(writer, config, listener, shutdown).await;
    if refused {
        return Err(store::Error::SharedConnections.into());
    }
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Completes when the database turns out to be behind a pooler that we must not use. One that is away is asked again.
async fn is_refused(database: store::Database) {
    loop {
        match database.prove().await {
            Err(store::Error::SharedConnections) => return,
            Ok(()) => std::future::pending().await,
            Err(_) => tokio::time::sleep(std::time::Duration::from_secs(5)).await,
        }
    }
}

impl Migrate {
    async fn run(self) -> anyhow::Result<()> {
        if self.print {
            terminal::text(store::printed_migrations().trim_end());
            return Ok(());
        }
        // The role of another login is what serve logs in as.
        let serving =
            self.migrate_database_url.as_ref().and_then(|_| config::database(self.database_url.as_deref()).ok());
        let (variable, url) = match self.migrate_database_url {
            Some(url) => ("MIGRATE_DATABASE_URL", Some(url)),
            None => ("DATABASE_URL", self.database_url),
        };
        let database = config::database(url.as_deref()).map_err(|problem| anyhow::anyhow!("{variable} {problem}"))?;
        store::migrate(&database).await?;
        for statement in
            store::grant_again(&database, serving.as_ref().map(store::Database::user), doctor::grants).await?
        {
            terminal::line(format_args!("Was missing: {statement}"));
        }
        terminal::line(format_args!("The schemas clerk, clerk_rls and clerk_sync are up to date."));
        for object in database.foreign_objects().await? {
            let grave = if object.weight == Weight::Fail { "error" } else { "warning" };
            terminal::note(format_args!("{grave}: {}: {}", object.describe(), object.advice()));
        }
        if self.repin {
            let check = config::instance(self.instance_id.as_deref());
            let check = check.map_err(|problem| anyhow::anyhow!("CLERK_INSTANCE_ID {problem}"))?;
            let instance = check.wanted();
            store::repin(&database, instance).await?;
            terminal::line(format_args!(
                "Pinned to {}.",
                instance.map_or("whichever instance the next webhook names", InstanceId::as_str)
            ));
        }
        Ok(())
    }
}

//! `lab simulate`: the simulated Clerk as a process of its own, for clients in other languages and for measuring.

use std::net::SocketAddr;
use std::process::ExitCode;
use testkit::clerk::{Clerk, Server, Shared};
use tokio::signal::unix::{SignalKind, signal};

/// What is simulated.
#[derive(clap::Args, Clone)]
pub(crate) struct Simulate {
    /// Where the Backend API listens
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// How many users there are
    #[arg(long, default_value_t = 0, value_name = "N")]
    users: usize,

    /// How many organizations
    #[arg(long, default_value_t = 0, value_name = "N")]
    organizations: usize,

    /// How many memberships: no more than users times organizations
    #[arg(long, default_value_t = 0, value_name = "N")]
    memberships: usize,

    /// How many objects share one creation time, as after an import
    #[arg(long, default_value_t = 1, value_name = "N")]
    tie: usize,

    /// Make another population
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,

    /// Which environment the instance says that it belongs to. `clerk-sync dev` follows only a development instance
    #[arg(long, value_enum, default_value_t = Environment::Production)]
    environment: Environment,

    /// Calls in ten seconds before Clerk says 429, or off; unset: 1000 in production, 100 in development
    #[arg(long, value_name = "N|off", value_parser = parse_rate_limit)]
    rate_limit: Option<RateLimit>,

    /// What callers must show
    #[arg(long, default_value = "sk_test_of_the_simulated_clerk", value_name = "KEY")]
    secret_key: String,

    /// End when standard input ends, so that whoever started this takes it along
    #[arg(long)]
    with_stdin: bool,
}

#[derive(clap::ValueEnum, Clone, Copy)]
enum Environment {
    Development,
    Production,
}

impl Environment {
    /// As Clerk's API names it.
    const fn name(self) -> &'static str {
        match self {
            Environment::Development => "development",
            Environment::Production => "production",
        }
    }

    /// What Clerk allows there.
    const fn rate_limit(self) -> RateLimit {
        match self {
            Environment::Development => RateLimit(Some(100)),
            Environment::Production => RateLimit(Some(1000)),
        }
    }
}

/// So many calls in ten seconds, or any number.
#[derive(Clone, Copy)]
struct RateLimit(Option<u32>);

fn parse_rate_limit(text: &str) -> Result<RateLimit, String> {
    match text {
        "off" => Ok(RateLimit(None)),
        number => number.parse().map(|calls| RateLimit(Some(calls))).map_err(|_| "neither a number nor off".to_owned()),
    }
}

impl Simulate {
    /// Serves until the process is asked to stop. The first line on standard output is `{"url":…,"secret_key":…}`.
    ///
    /// # Errors
    /// The address is taken.
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut clerk = Clerk::new(self.seed, clerk_sync::clock::now().get());
        clerk.environment_type = self.environment.name();
        clerk.secret_key.clone_from(&self.secret_key);
        clerk.populate(self.users, self.organizations, self.memberships, self.tie);
        clerk.run_clock();
        let shared = Shared::new(clerk);
        shared.limit_rate(self.rate_limit.unwrap_or(self.environment.rate_limit()).0);
        let server = Server::start(shared, self.listen).await?;
        crate::say(&serde_json::json!({ "url": server.url, "secret_key": self.secret_key }).to_string());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = end_of_input(), if self.with_stdin => {}
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Waits for the end of standard input, in a thread: nothing else could leave off reading it.
async fn end_of_input() {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ended.send(())
    });
    let _ = end.await;
}

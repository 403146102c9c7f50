//! `lab demo`: the whole job with one command and no account.
//!
//! A simulated Clerk lives through an afternoon of a small company and signs a webhook for every change. On the way some
//! are lost, doubled, late or overtaken, as in the real world. Each delivery goes to two receivers: ours, and the handler
//! that most people write. In the end both are held against the source, row by row.

mod compare;
mod delivery;
mod naive;
mod personas;
mod story;

use crate::say;
use anyhow::Context as _;
use clerk_sync::app;
use clerk_sync::clerk::client::{Client, Options};
use clerk_sync::config::Config;
use clerk_sync::model::Kind;
use clerk_sync::ops::{self, Ops};
use clerk_sync::reconcile::{Reconciler, Silent, Times, Wanted};
use clerk_sync::store::{self, Database};
use clerk_sync::upkeep::retention::Retention;
use clerk_sync::webhook::lane::InstanceCheck;
use clerk_sync::webhook::verify::Verifier;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use testkit::clerk::{self, Clerk, Shared};
use testkit::supabase::Supabase;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Who is there before the story begins.
const FOUNDERS: usize = 8;
/// Findings of a pass that are shown.
const FINDINGS: usize = 8;
/// The database's name.
const DATABASE: &str = "demo";
/// Signs the demo's webhooks: no secret, since both ends are this process.
const SECRET: &str = "whsec_dGhlIGRlbW8gc2lnbnMgd2l0aCB0aGlz";

/// How the demo runs.
#[derive(clap::Args, Clone)]
pub(crate) struct Demo {
    /// End when done, instead of staying up to be looked at: 0 if every row is right or its fault is explained
    #[arg(long)]
    exit: bool,

    /// Tell another story
    #[arg(long, default_value_t = 42, value_name = "N")]
    seed: u64,

    /// How many changes happen
    #[arg(long, default_value_t = 400, value_name = "N")]
    changes: u32,

    /// Percentage of webhooks lost for good
    #[arg(long, default_value_t = 3, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    lose: u8,
}

impl Demo {
    /// Runs the demo.
    ///
    /// # Errors
    /// Something that it stands on is missing: most likely Postgres.
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        say("Starting a private Postgres with the roles of a Supabase project …");
        let supabase = tokio::task::spawn_blocking(Supabase::start).await??;
        supabase.create(DATABASE).await?;
        let database = Database::parse(&supabase.url(DATABASE)).map_err(anyhow::Error::msg)?;
        store::migrate(&database).await?;

        let counts = ops::start_counting()?;
        let ops = Ops { counts, database: database.clone(), token: None, open_metrics: false, health: None };
        let status = ops::listen(LOOPBACK, ops)?;

        let clerk = Shared::new(Clerk::new(self.seed, clerk_sync::clock::now().get() - story::LASTS - story::EVENING));
        let source = clerk::Server::start(clerk.clone(), LOOPBACK).await?;
        let (naive_url, _naive) = listen(naive::router(&supabase.url(DATABASE)).await?).await?;
        let ours = Ours::start(database.clone()).await?;
        say(&format!("A simulated Clerk answers on {}, and sends each webhook to two receivers:", source.url));
        say(&format!("  clerk-sync         {}", ours.url));
        say(&format!("  the usual handler  {naive_url} (upsert by id, delete by id)\n"));

        let secret_key = clerk.lock().secret_key.clone();
        clerk.lock().populate(FOUNDERS, 1, FOUNDERS, 1);
        say("Clerk has a company from before the first webhook; the first pass brings it here:");
        reconcile(&database, &source.url, &secret_key).await?;
        say("");
        let told = story::tell(&clerk, self.changes, self.seed);
        let names = compare::Names::of(&told);
        let receivers = delivery::Receivers::new(&ours.url, &naive_url, SECRET)?;
        let lost = delivery::deliver_all(told, &receivers, self.lose, self.seed).await?;
        let report = compare::compare(&source.url, &secret_key, &supabase.url(DATABASE), &lost, &names).await?;
        say(&report.to_string());

        say("\nNow what runs every night, a pass over all that Clerk has:");
        clerk.lock().now += story::EVENING;
        reconcile(&database, &source.url, &secret_key).await?;
        let mended = compare::compare(&source.url, &secret_key, &supabase.url(DATABASE), &lost, &names).await?;
        let wrong = mended.wrong();
        say(&match wrong {
            0 => "\nclerk-sync: every row equals the source.".to_owned(),
            wrong => format!("\nclerk-sync: {wrong} rows are STILL WRONG."),
        });

        let matrix = personas::matrix(&clerk, &supabase.url(DATABASE), &names).await?;
        say("\nWho sees what, by a policy with the kit's function and the tokens that they hold:\n");
        say(&matrix.text);

        let is_good = report.is_explained() && wrong == 0 && matrix.is_right;
        let code = if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        if !self.exit {
            say(&format!("\nStatus page: http://{status}"));
            say("Look around, in the schemas clerk, clerk_sync and naive:");
            say(&format!("  psql -h {} -U postgres {DATABASE}", supabase.cluster().dir().display()));
            say("Ctrl-C ends the demo and removes everything.");
            tokio::signal::ctrl_c().await?;
        }
        ours.stop().await?;
        Ok(code)
    }
}

/// Finds and repairs what the lost webhooks left wrong, and tells why it was.
async fn reconcile(database: &Database, clerk_url: &str, secret_key: &str) -> anyhow::Result<()> {
    let options = Options {
        base_url: clerk_url.to_owned(),
        secret_key: secret_key.to_owned().into(),
        rate: None,
        clock_tolerance: None,
        patience: Options::PATIENCE,
    };
    let clerk = Arc::new(Client::new(options)?);
    let reconciler = Reconciler { clerk, database: database.clone(), instance: None, times: Times::default() };
    let passes = reconciler.run(&Wanted::Kinds(Kind::ALL.to_vec()), "demo", false, &mut Silent).await?;
    for pass in passes {
        say(&format!(
            "  {:<13} {} listed, {} missing, {} differing, {} extra: {:?}",
            pass.scope, pass.listed, pass.missing, pass.differing, pass.extra, pass.state
        ));
        for finding in pass.findings.iter().take(FINDINGS) {
            let fields = finding.fields.join(", ");
            say(&format!("    {:<9} {} {fields}: {}", finding.drift, finding.entity_id, finding.cause));
        }
    }
    Ok(())
}

/// Our own receiver, as `serve` runs it.
struct Ours {
    url: String,
    stop: oneshot::Sender<()>,
    running: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Ours {
    async fn start(database: Database) -> anyhow::Result<Ours> {
        let listener = TcpListener::bind(LOOPBACK).await?;
        let listen_addr = listener.local_addr()?;
        let verifier = Verifier::new([SECRET]).context("the demo's secret")?;
        let config = Config {
            database,
            verifier,
            instance: InstanceCheck::Pinned(None),
            listen_addr,
            ops_addr: None,
            ops_token: None,
            ops_open_metrics: false,
            reconcile: None,
            retention: Retention::default(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(app::serve(config, listener, async move {
            let _ = stopped.await;
        }));
        Ok(Ours { url: format!("http://{listen_addr}/webhooks/clerk"), stop, running })
    }

    async fn stop(self) -> anyhow::Result<()> {
        drop(self.stop);
        self.running.await?.context("clerk-sync did not end well")
    }
}

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Serves a stand-in on a free port of this machine.
async fn listen(router: axum::Router) -> anyhow::Result<(String, tokio::task::JoinHandle<()>)> {
    let listener = TcpListener::bind(LOOPBACK).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let serving = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "a stand-in ended");
        }
    });
    Ok((url, serving))
}

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
use clerk_sync::clerk::client::Options;
use clerk_sync::model::Kind;
use clerk_sync::ops::{self, Ops};
use clerk_sync::reconcile::{Reconciler, Silent, Times, Wanted};
use std::process::ExitCode;
use testkit::clerk::Clerk;
use testkit::postgres::Durability;
use testkit::serve::Server;
use testkit::world::LOOPBACK;
use testkit::{SECRET, World};
use tokio::net::TcpListener;

/// Who is there before the story begins.
const FOUNDERS: usize = 8;
/// Findings of a pass that are shown.
const FINDINGS: usize = 8;
/// The database's name.
const DATABASE: &str = "demo";

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
        let clerk = Clerk::new(self.seed, clerk_sync::clock::now().get() - story::LASTS - story::EVENING);
        let counts = ops::start_counting()?;
        let mut world = World::builder().named(DATABASE).own_server(Durability::Fast).clerk(clerk).serving().await?;
        world.patience = Options::PATIENCE;
        let (clerk, database_url) = (world.clerk.clone(), world.database.url());

        let database = world.database.database();
        let ops = Ops { counts, database, token: None, open_metrics: false, health: None };
        let status = ops::listen(LOOPBACK, ops)?;

        let (naive_url, _naive) = listen(naive::router(&database_url).await?).await?;
        let ours_url = world.server.webhook_url();
        say(&format!("A simulated Clerk answers on {}, and sends each webhook to two receivers:", world.api.url));
        say(&format!("  clerk-sync         {ours_url}"));
        say(&format!("  the usual handler  {naive_url} (upsert by id, delete by id)\n"));

        let secret_key = clerk.lock().secret_key.clone();
        clerk.lock().populate(FOUNDERS, 1, FOUNDERS, 1);
        say("Clerk has a company from before the first webhook; the first pass brings it here:");
        reconcile(&world).await?;
        say("");
        let told = story::tell(&clerk, self.changes, self.seed);
        let names = compare::Names::of(&told);
        let receivers = delivery::Receivers::new(&ours_url, &naive_url, SECRET)?;
        let lost = delivery::deliver_all(told, &receivers, self.lose, self.seed).await?;
        let report = compare::compare(&world.api.url, &secret_key, &database_url, &lost, &names).await?;
        say(&report.to_string());

        say("\nNow what runs every night, a pass over all that Clerk has:");
        clerk.lock().now += story::EVENING;
        reconcile(&world).await?;
        let mended = compare::compare(&world.api.url, &secret_key, &database_url, &lost, &names).await?;
        let wrong = mended.wrong();
        say(&match wrong {
            0 => "\nclerk-sync: every row equals the source.".to_owned(),
            wrong => format!("\nclerk-sync: {wrong} rows are STILL WRONG."),
        });

        let matrix = personas::matrix(&clerk, &database_url, &names).await?;
        say("\nWho sees what, by a policy with the kit's function and the tokens that they hold:\n");
        say(&matrix.text);

        let is_good = report.is_explained() && wrong == 0 && matrix.is_right;
        let code = if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        if !self.exit {
            say(&format!("\nStatus page: http://{status}"));
            say("Look around, in the schemas clerk, clerk_sync and naive:");
            say(&format!("  psql -h {} -U postgres {DATABASE}", world.supabase().cluster().dir().display()));
            say("Ctrl-C ends the demo and removes everything.");
            tokio::signal::ctrl_c().await?;
        }
        world.without_server().1.stop().await;
        Ok(code)
    }
}

/// Finds and repairs what the lost webhooks left wrong, and tells why it was.
async fn reconcile(world: &World<Server>) -> anyhow::Result<()> {
    let reconciler = Reconciler { times: Times::default(), ..world.reconciler() };
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

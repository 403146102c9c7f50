//! What every trial stands on: a private Postgres, a fault proxy before it, a simulated Clerk with its API behind another
//! one, and workers as processes of their own.

use anyhow::{Context as _, ensure};
use clerk_sync::sender::Sender;
use serde_json::Value;
use sqlx::PgConnection;
use std::process::Stdio;
use testkit::World;
use testkit::clerk::Clerk;
use testkit::postgres::{Durability, SUPERUSER};
use testkit::supabase::{OWNER, set_clock};
use testkit::traffic;
use testkit::worker::{SECRET, Worker};
use tokio::process::Command;

/// Clerk's clock begins so long ago, in ms, and runs faster than ours: no event may lie ahead of the time.
const AGO: i64 = 30 * 24 * 3_600_000;

/// What `reconcile` ends with where something was left undecided, and how often it is run before that counts.
const UNDECIDED: i32 = 4;
const RUNS: u32 = 5;

/// A world whose workers come and go.
pub(super) struct Stage {
    pub(super) world: World,
}

impl Stage {
    /// # Errors
    /// Postgres is not there.
    pub(super) async fn new(seed: u64) -> anyhow::Result<Stage> {
        let mut clerk = Clerk::new(seed, clerk_sync::clock::now().get() - AGO);
        let mut rng = fastrand::Rng::with_seed(seed);
        for company in ["Acme Widgets", "Blue Harbor", "Copper Kettle", "Delta Press"] {
            clerk.now += 60_000;
            let founder = traffic::sign_up(&mut clerk, &mut rng);
            clerk.create_organization(company, &founder);
        }
        let world = World::builder().clerk(clerk).own_server(Durability::Fast).database_proxy(seed).api_proxy(seed + 1);
        Ok(Stage { world: world.start().await? })
    }

    /// # Errors
    /// The database is not there.
    pub(super) async fn owner(&self) -> anyhow::Result<PgConnection> {
        self.world.supabase().connect(OWNER, &self.world.database.name).await
    }

    /// # Errors
    /// The database is not there.
    pub(super) async fn superuser(&self) -> anyhow::Result<PgConnection> {
        self.world.supabase().connect(SUPERUSER, &self.world.database.name).await
    }

    /// A worker behind the proxy, with `environment` besides.
    ///
    /// # Errors
    /// It does not start.
    pub(super) async fn worker(&self, environment: &[(&'static str, String)]) -> anyhow::Result<Worker> {
        Worker::start(self.world.worker_options(environment.iter().cloned())?).await
    }

    /// The database's clock, as passes hold Clerk's against it, says from here on what Clerk's says.
    ///
    /// # Errors
    /// The database is not there.
    pub(super) async fn set_clock(&self) -> anyhow::Result<()> {
        let now = self.world.clerk.lock().now;
        set_clock(&mut self.owner().await?, now).await
    }

    /// Runs passes over everything, as a person would, hours later by Clerk's clock, when what is absent is gone for sure (R4): one that
    /// the brake stops is approved, and those behind it follow. What is left undecided, such as reads of members of what is gone, which
    /// end with the pass that meets them, is decided by the next run.
    ///
    /// # Errors
    /// One is not complete.
    pub(super) async fn reconcile(&self) -> anyhow::Result<()> {
        self.world.clerk.lock().now += 2 * 3_600_000;
        self.set_clock().await?;
        let mut runs = 0;
        loop {
            runs += 1;
            let (code, passes) = self.run_passes(&[]).await?;
            let braked = passes.iter().find(|pass| pass["state"] == "braked").and_then(|pass| pass["pass"].as_i64());
            let Some(id) = braked else {
                if code == Some(UNDECIDED) && runs < RUNS {
                    continue;
                }
                ensure!(code == Some(0), "the pass failed: {passes:?}");
                return Ok(());
            };
            let (code, passes) = self.run_passes(&["--approve", &id.to_string()]).await?;
            let approved = passes.first().is_some_and(|pass| pass["state"] == "complete");
            ensure!(approved, "the pass failed that was approved, with exit code {code:?}: {passes:?}");
        }
    }

    async fn run_passes(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, Vec<Value>)> {
        let output = Command::new(testkit::program::path()?)
            .args(["reconcile", "--json"])
            .args(arguments)
            .env("DATABASE_URL", self.world.database.url())
            .env("CLERK_RATE_SHARE", "off")
            .envs(self.world.api_environment())
            .stdin(Stdio::null())
            .output()
            .await?;
        let said: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("no pass ran: {}", String::from_utf8_lossy(&output.stderr)))?;
        let mut passes = said["passes"].as_array().cloned().unwrap_or_default();
        // What is wrong with the rows is not what is wrong with the pass.
        passes.iter_mut().filter_map(Value::as_object_mut).for_each(|pass| drop(pass.remove("findings")));
        Ok((output.status.code(), passes))
    }
}

/// A sender to one worker's endpoint.
///
/// # Errors
/// TLS cannot be set up.
pub(super) fn sender(worker: &Worker) -> anyhow::Result<Sender> {
    Sender::new(worker.webhook_url(), SECRET)
}

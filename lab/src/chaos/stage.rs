//! What every trial stands on: a private Postgres, a fault proxy before it, a simulated Clerk with its API behind another
//! one, and workers as processes of their own.

use anyhow::{Context as _, ensure};
use clerk_sync::clock;
use clerk_sync::sender::Sender;
use clerk_sync::store::{self, Database};
use serde_json::Value;
use sqlx::PgConnection;
use std::process::Stdio;
use std::sync::Arc;
use testkit::clerk::{Clerk, Server, Shared};
use testkit::postgres::SUPERUSER;
use testkit::proxy::{Proxy, Upstream};
use testkit::supabase::{Supabase, set_clock};
use testkit::traffic;
use testkit::worker::{Options, SECRET, Worker};
use tokio::process::Command;

const PROJECT: &str = "trial";
/// Clerk's clock begins so long ago, in ms, and runs faster than ours: no event may lie ahead of the time.
const AGO: i64 = 30 * 24 * 3_600_000;

/// What `reconcile` ends with where something was left undecided, and how often it is run before that counts.
const UNDECIDED: i32 = 4;
const RUNS: u32 = 5;

/// Everything but the workers.
pub(super) struct Stage {
    pub(super) supabase: Arc<Supabase>,
    /// Between the workers and Postgres.
    pub(super) proxy: Proxy,
    pub(super) clerk: Shared,
    /// Between the workers and the Backend API.
    pub(super) api: Proxy,
    _server: Server,
}

impl Stage {
    /// # Errors
    /// Postgres is not there.
    pub(super) async fn new(seed: u64) -> anyhow::Result<Stage> {
        let supabase = Arc::new(tokio::task::spawn_blocking(Supabase::start).await??);
        supabase.create(PROJECT).await?;
        let database = Database::parse(&supabase.url(PROJECT)).map_err(anyhow::Error::msg)?;
        store::migrate(&database).await?;
        let proxy = Proxy::start(Upstream::Unix(supabase.cluster().dir().join(".s.PGSQL.5432")), seed)?;
        let mut clerk = Clerk::new(seed, clock::now().get() - AGO);
        let mut rng = fastrand::Rng::with_seed(seed);
        for company in ["Acme Widgets", "Blue Harbor", "Copper Kettle", "Delta Press"] {
            clerk.now += 60_000;
            let founder = traffic::sign_up(&mut clerk, &mut rng);
            clerk.create_organization(company, &founder);
        }
        let clerk = Shared::new(clerk);
        let server = Server::start(clerk.clone(), ([127, 0, 0, 1], 0).into()).await?;
        let address = server.url.trim_start_matches("http://").parse().context("the simulated Clerk has no address")?;
        let api = Proxy::start(Upstream::Tcp(address), seed + 1)?;
        Ok(Stage { supabase, proxy, clerk, api, _server: server })
    }

    /// The owner's URL, by the socket: the proxy's faults are for workers.
    pub(super) fn owner_url(&self) -> String {
        self.supabase.url(PROJECT)
    }

    /// # Errors
    /// The database is not there.
    pub(super) async fn owner(&self) -> anyhow::Result<PgConnection> {
        self.supabase.connect("postgres", PROJECT).await
    }

    /// # Errors
    /// The database is not there.
    pub(super) async fn superuser(&self) -> anyhow::Result<PgConnection> {
        self.supabase.connect(SUPERUSER, PROJECT).await
    }

    /// A worker behind the proxy, with `environment` besides.
    ///
    /// # Errors
    /// It does not start.
    pub(super) async fn worker(&self, environment: &[(&'static str, String)]) -> anyhow::Result<Worker> {
        let url = format!("postgres://postgres@{}/{PROJECT}?sslmode=disable", self.proxy.address);
        let options = Options { environment: environment.to_vec(), ..Options::new(url)? };
        Worker::start(options).await
    }

    /// What a worker must be told to reach the Backend API.
    pub(super) fn api_environment(&self) -> Vec<(&'static str, String)> {
        let secret_key = self.clerk.lock().secret_key.clone();
        vec![("CLERK_SECRET_KEY", secret_key), ("CLERK_API_URL", format!("http://{}", self.api.address))]
    }

    /// The database's clock, as passes hold Clerk's against it, says from here on what Clerk's says.
    ///
    /// # Errors
    /// The database is not there.
    pub(super) async fn set_clock(&self) -> anyhow::Result<()> {
        let now = self.clerk.lock().now;
        set_clock(&mut self.owner().await?, now).await
    }

    /// Runs passes over everything, as a person would, hours later by Clerk's clock, when what is absent is gone for sure (R4): one that
    /// the brake stops is approved, and those behind it follow. What is left undecided, such as reads of members of what is gone, which
    /// end with the pass that meets them, is decided by the next run.
    ///
    /// # Errors
    /// One is not complete.
    pub(super) async fn reconcile(&self) -> anyhow::Result<()> {
        self.clerk.lock().now += 2 * 3_600_000;
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
            .env("DATABASE_URL", self.owner_url())
            .env("CLERK_RATE_SHARE", "off")
            .envs(self.api_environment())
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

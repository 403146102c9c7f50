//! A Postgres, a project in it, a Clerk with its API, and the product before them: built part by part, and ended together.

use crate::clerk::{self, Clerk, Event, Shared};
use crate::postgres::Durability;
use crate::project::{self, Project};
use crate::proxy::{Proxy, Upstream};
use crate::serve::Server;
use crate::supabase::{OWNER, Supabase};
use crate::wait::{SHORTEST_LIMIT, unless_slow};
use crate::worker::{Options, SECRET, Worker};
use anyhow::Context as _;
use clerk_sync::clerk::client;
use clerk_sync::config::Reconcile;
use clerk_sync::model::InstanceCheck;
use clerk_sync::reconcile::schedule::Timetable;
use clerk_sync::reconcile::{PassLimits, Reconciler};
use clerk_sync::sender::{Attempt, Sender};
use clerk_sync::store::Database;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// October 2025, in ms: no event of a Clerk that begins there lies ahead of the clock.
pub const START: i64 = 1_760_000_000_000;

/// A free port of this machine.
pub const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A test environment, as its builder made it. `S`: the product, in this process ([`Server`]), as a process ([`Worker`]), or not at all.
#[derive(Debug)]
pub struct World<S = ()> {
    pub database: Project,
    pub clerk: Shared,
    pub api: clerk::Server,
    pub server: S,
    /// How long a call to the API is tried again, by passes in this process.
    pub patience: Duration,
    sender: OnceLock<Arc<Sender>>,
    database_proxy: Option<Proxy>,
    api_proxy: Option<Proxy>,
    supabase: Option<Supabase>,
}

/// What a world consists of, beside what every one has.
#[derive(Debug)]
pub struct Builder {
    clerk: Clerk,
    own_server: Option<Durability>,
    name: Option<&'static str>,
    mirror: bool,
    database_proxy: Option<u64>,
    api_proxy: Option<u64>,
    instance: InstanceCheck,
    timetable: Option<Timetable>,
    environment: Vec<(&'static str, String)>,
}

impl Builder {
    /// This instance instead of one that is empty and begins at [`START`].
    pub fn clerk(mut self, clerk: Clerk) -> Builder {
        self.clerk = clerk;
        self
    }

    /// A Postgres of its own, which ends with this world, instead of the one that the process shares.
    pub fn own_server(mut self, durability: Durability) -> Builder {
        self.own_server = Some(durability);
        self
    }

    /// A database of this name on a Postgres of its own.
    pub fn named(mut self, name: &'static str) -> Builder {
        self.name = Some(name);
        self
    }

    /// A project that nobody has migrated.
    pub fn without_mirror(mut self) -> Builder {
        self.mirror = false;
        self
    }

    /// The product reaches its database through a proxy with faults, which are drawn from this seed.
    pub fn database_proxy(mut self, seed: u64) -> Builder {
        self.database_proxy = Some(seed);
        self
    }

    /// The product reaches the Backend API through such a proxy.
    pub fn api_proxy(mut self, seed: u64) -> Builder {
        self.api_proxy = Some(seed);
        self
    }

    /// Which instance the mirror belongs to, instead of whichever comes first.
    pub fn instance(mut self, check: InstanceCheck) -> Builder {
        self.instance = check;
        self
    }

    /// The product in this process makes passes: at these times, and when they are asked for.
    pub fn reconciling(mut self, timetable: Timetable) -> Builder {
        self.timetable = Some(timetable);
        self
    }

    /// The product as a process has this environment besides.
    pub fn environment(mut self, environment: impl IntoIterator<Item = (&'static str, String)>) -> Builder {
        self.environment.extend(environment);
        self
    }

    /// Without the product.
    ///
    /// # Errors
    /// Postgres is missing, most likely.
    pub async fn start(self) -> anyhow::Result<World> {
        let supabase = match self.own_server {
            Some(durability) => Some(tokio::task::spawn_blocking(move || Supabase::with(durability)).await??),
            None => None,
        };
        let name = self.name.unwrap_or("project");
        let database = match (&supabase, self.mirror) {
            (None, true) => Project::cloned().await?,
            (None, false) => Project::empty(project::shared(), &project::unique("project")).await?,
            (Some(own), true) => Project::migrated(own, name).await?,
            (Some(own), false) => Project::empty(own, name).await?,
        };
        let server = supabase.as_ref().unwrap_or_else(|| project::shared());
        let socket = Upstream::Unix(server.cluster().dir().join(".s.PGSQL.5432"));
        let database_proxy = self.database_proxy.map(|seed| Proxy::start(socket, seed)).transpose()?;
        let clerk = Shared::new(self.clerk);
        let api = clerk::Server::start(clerk.clone(), LOOPBACK).await?;
        let address = api.url.trim_start_matches("http://").parse().context("the simulated Clerk has no address")?;
        let api_proxy = self.api_proxy.map(|seed| Proxy::start(Upstream::Tcp(address), seed)).transpose()?;
        let (sender, patience) = (OnceLock::new(), Duration::from_secs(2));
        Ok(World { database, clerk, api, server: (), patience, sender, database_proxy, api_proxy, supabase })
    }

    /// With the product in this process.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn serving(mut self) -> anyhow::Result<World<Server>> {
        let (instance, timetable) = (self.instance.clone(), self.timetable.take());
        let world = self.start().await?;
        let reconcile = timetable.map(|timetable| Reconcile { clerk: world.api_options(), timetable });
        let database = Database::parse(&world.worker_url()).map_err(anyhow::Error::msg)?;
        let server = Server::with(database, instance, reconcile).await;
        Ok(world.with(server))
    }

    /// With the product as a process.
    ///
    /// # Errors
    /// As [`Builder::start`], and as [`Worker::start`].
    pub async fn working(mut self) -> anyhow::Result<World<Worker>> {
        let environment = std::mem::take(&mut self.environment);
        let world = self.start().await?;
        let worker = Worker::start(world.worker_options(environment)?).await?;
        Ok(world.with(worker))
    }
}

impl World {
    pub fn builder() -> Builder {
        Builder {
            clerk: Clerk::new(1, START),
            own_server: None,
            name: None,
            mirror: true,
            database_proxy: None,
            api_proxy: None,
            instance: InstanceCheck::Pinned(None),
            timetable: None,
            environment: Vec::new(),
        }
    }

    /// The same with the product before it.
    pub fn with<S>(self, server: S) -> World<S> {
        let World { database, clerk, api, server: (), patience, sender, database_proxy, api_proxy, supabase } = self;
        World { database, clerk, api, server, patience, sender, database_proxy, api_proxy, supabase }
    }
}

impl<S> World<S> {
    /// Takes the product away, to stop it.
    pub fn without_server(self) -> (World, S) {
        let World { database, clerk, api, server, patience, sender: _, database_proxy, api_proxy, supabase } = self;
        let sender = OnceLock::new();
        (World { database, clerk, api, server: (), patience, sender, database_proxy, api_proxy, supabase }, server)
    }

    /// The Postgres that this world's database is in.
    pub fn supabase(&self) -> &Supabase {
        self.supabase.as_ref().unwrap_or_else(|| project::shared())
    }

    /// Between the product and Postgres.
    ///
    /// # Panics
    /// [`Builder::database_proxy`] was not asked for.
    pub fn database_proxy(&self) -> &Proxy {
        self.database_proxy.as_ref().expect("a world with a line")
    }

    /// Between the product and the Backend API.
    ///
    /// # Panics
    /// [`Builder::api_proxy`] was not asked for.
    pub fn api_proxy(&self) -> &Proxy {
        self.api_proxy.as_ref().expect("a world with a line to the API")
    }

    /// The database as the product reaches it.
    pub fn worker_url(&self) -> String {
        match &self.database_proxy {
            Some(line) => format!("postgres://{OWNER}@{}/{}?sslmode=disable", line.address, self.database.name),
            None => self.database.url(),
        }
    }

    /// How a worker of this world is started.
    ///
    /// # Errors
    /// The program was not built.
    pub fn worker_options(
        &self,
        environment: impl IntoIterator<Item = (&'static str, String)>,
    ) -> anyhow::Result<Options> {
        let environment = environment.into_iter().collect();
        Ok(Options { environment, ..Options::new(self.worker_url())? })
    }

    /// What a worker must be told to reach the Backend API.
    pub fn api_environment(&self) -> [(&'static str, String); 2] {
        let client::Options { base_url, .. } = self.api_options();
        [("CLERK_SECRET_KEY", self.clerk.lock().secret_key.clone()), ("CLERK_API_URL", base_url)]
    }

    /// The same for a client in this process: without a budget, at any time, and without much patience.
    pub fn api_options(&self) -> client::Options {
        client::Options {
            base_url: self.api_proxy.as_ref().map_or(self.api.url.clone(), |line| format!("http://{}", line.address)),
            secret_key: self.clerk.lock().secret_key.clone().into(),
            rate: None,
            clock_tolerance: None,
            on_trouble: None,
            patience: self.patience,
            give_up_after: self.patience,
        }
    }

    /// Passes in this process.
    ///
    /// # Panics
    /// TLS cannot be set up.
    pub fn reconciler(&self) -> Reconciler {
        let times = PassLimits {
            lease: Duration::from_secs(15),
            lease_wait: Duration::from_secs(120),
            ..PassLimits::default()
        };
        let clerk = Arc::new(client::Client::new(self.api_options()).expect("a client"));
        Reconciler { clerk, database: self.database.database(), instance: None, times }
    }

    /// The database's clock, as passes hold Clerk's against it, says from here on what Clerk's says.
    pub async fn set_clock(&self) {
        let now = self.clerk.lock().now;
        self.database.set_clock(now).await;
    }

    /// Lets time pass on Clerk's clock, in ms.
    pub fn pass_time(&self, ms: i64) {
        self.clerk.lock().now += ms;
    }

    /// The webhooks that are due.
    pub fn due(&self) -> Vec<Event> {
        std::mem::take(&mut self.clerk.lock().outbox)
    }

    /// What Clerk holds, a line for each row.
    pub fn source(&self) -> BTreeSet<String> {
        project::source(&self.clerk.lock())
    }

    /// The mirror must show what Clerk holds.
    pub async fn equals_source(&self) {
        let source = self.source();
        self.database.equals(&source).await;
    }
}

/// One message, sent again as Svix does while it is told to come again: the answer that ends that.
///
/// # Panics
/// It is told so for ever, or although the machine is not slow.
pub async fn acknowledged(mut send: impl AsyncFnMut() -> Attempt) -> Attempt {
    unless_slow(SHORTEST_LIMIT, async || {
        let attempt = send().await;
        if attempt.status == 503 { Err(attempt) } else { Ok(attempt) }
    })
    .await
}

/// Sends until there is an answer, as Svix does: on a slow machine the sender's patience may end before.
///
/// # Panics
/// There is none.
pub async fn answer(sender: &Sender, message_id: &str, body: &[u8]) -> Attempt {
    for _ in 0..10 {
        match sender.send(message_id, body).await {
            Ok(attempt) => return attempt,
            Err(error) if is_timeout(&error) => {}
            Err(error) => panic!("an answer: {error:#}"),
        }
    }
    panic!("no answer in time, ten times");
}

fn is_timeout(error: &anyhow::Error) -> bool {
    error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout)
}

/// A receiver of webhooks.
pub trait Endpoint {
    fn webhook_url(&self) -> String;
}

impl Endpoint for Server {
    fn webhook_url(&self) -> String {
        self.webhook_url()
    }
}

impl Endpoint for Worker {
    fn webhook_url(&self) -> String {
        self.webhook_url()
    }
}

impl<S: Endpoint> World<S> {
    /// To the product, as Svix sends.
    pub fn sender(&self) -> &Arc<Sender> {
        self.sender.get_or_init(|| Arc::new(Sender::new(self.server.webhook_url(), SECRET).expect("a sender")))
    }

    /// Delivers all webhooks that are due, in order: their outcomes.
    ///
    /// # Panics
    /// One is not accepted.
    pub async fn deliver(&self) -> Vec<String> {
        let mut outcomes = Vec::new();
        for event in self.due() {
            outcomes.push(self.send(&event).await);
        }
        outcomes
    }

    /// One delivery: its outcome.
    ///
    /// # Panics
    /// It is not accepted.
    pub async fn send(&self, event: &Event) -> String {
        let attempt = acknowledged(async || self.attempt(&event.message_id, event.body.as_bytes()).await).await;
        assert!(matches!(attempt.status, 200 | 204), "{} was answered {attempt:?}", event.event_type);
        attempt.outcome.expect("an outcome")
    }

    /// One delivery, whatever comes of it.
    ///
    /// # Panics
    /// Nobody answers.
    pub async fn attempt(&self, message_id: &str, body: &[u8]) -> Attempt {
        answer(self.sender(), message_id, body).await
    }

    /// A body made by hand, as a message of its own: its outcome.
    ///
    /// # Panics
    /// It is not accepted.
    pub async fn send_body(&self, body: &Value) -> String {
        let (message_id, body) = (project::unique("msg"), body.to_string());
        let attempt = acknowledged(async || self.attempt(&message_id, body.as_bytes()).await).await;
        assert!(matches!(attempt.status, 200 | 204), "answered {attempt:?}");
        attempt.outcome.expect("an outcome")
    }
}

impl World<Server> {
    /// The usual one: the mirror takes whichever instance comes first.
    ///
    /// # Panics
    /// Postgres is missing.
    pub async fn new() -> World<Server> {
        World::of(InstanceCheck::Pinned(None)).await
    }

    /// One whose environment says which instance it takes.
    ///
    /// # Panics
    /// Postgres is missing.
    pub async fn of(instance: InstanceCheck) -> World<Server> {
        World::builder().instance(instance).serving().await.expect("a world")
    }
}

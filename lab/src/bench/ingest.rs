//! `lab bench ingest`: what a webhook costs, from the first byte sent to the answer after its commit.
//!
//! The worker is a process of its own, on a mirror that holds a population already. Beside it `pgbench` upserts into a table of
//! the same shape as `clerk.users`, one row per transaction: what the same Postgres does at most for whoever writes the
//! obvious handler, with as many clients, and with no HTTP, no signatures, no JSON and no order.

use super::history::{History, Size};
use super::load::{Load, requests};
use super::{project, wal};
use crate::say;
use anyhow::{Context as _, ensure};
use sqlx::{Connection as _, Executor as _, PgConnection};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};
use testkit::postgres::{Durability, SUPERUSER};
use testkit::proxy::{Fault, Proxy, Upstream};
use testkit::supabase::{OWNER, Supabase};
use testkit::usage::{Usage, family_cpu};
use testkit::worker::{Options, Worker};

/// Send signed webhooks from up to 400 connections, to a database here and one 10 ms away, beside pgbench's upserts
#[derive(clap::Args)]
pub(crate) struct Ingest {
    /// How long each row is measured
    #[arg(long, default_value_t = 8, value_name = "N")]
    seconds: u16,

    /// Users in the mirror before it begins, and as many memberships
    #[arg(long, default_value_t = 50_000, value_name = "N")]
    users: usize,

    /// Only these connections, beside pgbench
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 400], value_name = "N,…")]
    connections: Vec<usize>,

    /// Only the database on this machine
    #[arg(long)]
    local: bool,

    /// A database in memory that writes nothing through: commits cost it nothing
    #[arg(long)]
    fast: bool,

    /// What the worker logs of deliveries
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log: String,
}

const PROJECT: &str = "ingest";
/// One row of these is measured beside `pgbench`, which has as many clients.
const CLIENTS: usize = 64;
/// Half of the way to the database and back: with what the timers add, 10 ms in all; what it really is, is told.
const ONE_WAY: Duration = Duration::from_millis(4);
/// Requests that are sent before the clock runs, and those that are made ready for each second of it.
const WARM_UP: usize = 500;
const READY: usize = 16_000;

/// A table of the same shape as `clerk.users`, with as many rows; the scripts take four in ten of them, as our events do, and ids
/// that sort by time for the rest, as Clerk's do.
const PGBENCH_TABLE: &str = "
create schema pgbench;
create table pgbench.users (like clerk.users including all);
insert into pgbench.users select 'user_2' || 10000000000000000000000000 + i, 'Ada', 'Abara', null,
  'https://img.clerk.com/eyJ0eXBlIjoiZGVmYXVsdCJ9', false from generate_series(1, (select count(*) from clerk.users)) i;
grant usage on schema pgbench to postgres;
grant all on pgbench.users to postgres;
";
const UPSERT: &str = r"
\set is_known random(1, 10)
\set known_id random(1, :known)
\set name random(1, 2000000000)
insert into pgbench.users (id, first_name, last_name, username, image_url, has_image)
  values ('user_2' || case when :is_known <= 4 then 10000000000000000000000000 + :known_id::bigint
                           else 30000000000000000000000000 + (extract(epoch from clock_timestamp()) * 1000000) * 1000000000 + :name::bigint end::numeric(26),
          'Ada', 'Abara', :name::bigint, 'https://img.clerk.com/eyJ0eXBlIjoiZGVmYXVsdCJ9', false)
  on conflict (id) do update set first_name = excluded.first_name, last_name = excluded.last_name,
    username = excluded.username, image_url = excluded.image_url, has_image = excluded.has_image;
";
const UPSERT_64: &str = r"
\set known_id random(1, :known - 64)
\set name random(1, 2000000000)
insert into pgbench.users (id, first_name, last_name, username, image_url, has_image)
  select 'user_2' || case when i % 10 < 4 then 10000000000000000000000000 + :known_id::bigint + i
                          else 30000000000000000000000000 + (extract(epoch from clock_timestamp()) * 1000000) * 1000000000 + :name::bigint + i end::numeric(26),
         'Ada', 'Abara', :name::bigint, 'https://img.clerk.com/eyJ0eXBlIjoiZGVmYXVsdCJ9', false
    from generate_series(1, 64) i
  on conflict (id) do update set first_name = excluded.first_name, last_name = excluded.last_name,
    username = excluded.username, image_url = excluded.image_url, has_image = excluded.has_image;
";

impl Ingest {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        crate::need_failpoints("what it is worth to write nothing")?;
        let durability = if self.fast { Durability::Fast } else { Durability::Full };
        let supabase = tokio::task::spawn_blocking(move || Supabase::with(durability)).await??;
        drop(project(&supabase, PROJECT).await?);
        let size = Size::of(self.users);
        let mut history = History::new(size);
        history.fill(&supabase, PROJECT).await?;
        supabase.connect(SUPERUSER, PROJECT).await?.execute(sqlx::raw_sql(PGBENCH_TABLE)).await?;
        let sample = history.next(1_000);
        let bytes: usize = sample.iter().map(|event| event.body.len()).sum();
        say(&format!(
            "{} users, {} organizations and {} memberships in the mirror; bodies of {} bytes on average; commits are {}",
            size.users,
            size.organizations,
            size.memberships,
            bytes / sample.len(),
            if self.fast { "not written through" } else { "written through, as in production" }
        ));
        say(HEAD);

        let mut bench = Bench { supabase, history, settings: self, limit: None };
        let before = bench.pgbench("pgbench, an upsert each", UPSERT, CLIENTS, 1).await?;
        bench.pgbench("pgbench, 64 rows each", UPSERT_64, 1, 64).await?;
        bench.limit = Some(before);
        for connections in bench.settings.connections.clone() {
            bench.row("clerk-sync", connections, Way::Whole, false).await?;
        }
        bench.pgbench("pgbench again", UPSERT, CLIENTS, 1).await?;
        bench.row("no database", CLIENTS, Way::NoDatabase, false).await?;
        bench.row("a transaction each", CLIENTS, Way::OneEach, false).await?;
        if !bench.settings.local {
            for connections in bench.settings.connections.clone() {
                bench.row("10 ms away", connections, Way::Whole, true).await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What the worker does with a delivery.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Whole,
    /// Everything but the call to the database.
    NoDatabase,
    /// One statement, and so one transaction, for each delivery.
    OneEach,
}

impl Way {
    /// What takes the rest away, in a worker with failpoints.
    const fn failpoint(self) -> Option<&'static str> {
        match self {
            Way::Whole => None,
            Way::NoDatabase => Some("no_write"),
            Way::OneEach => Some("batch:1"),
        }
    }
}

const HEAD: &str = "                                       per second   × pgbench   p50 ms   p99 ms   max ms   CPU s per 10,000: worker  database   MiB   connections   WAL bytes";

/// One row of the table.
struct Row {
    what: String,
    per_second: f64,
    /// p50, p99 and the longest; of pgbench the mean.
    latency: [Option<f64>; 3],
    worker_cpu: Option<f64>,
    database_cpu: f64,
    /// KiB.
    peak: Option<u64>,
    connections: Option<i64>,
    wal: f64,
}

struct Bench {
    supabase: Supabase,
    history: History,
    settings: Ingest,
    /// Upserts per second of pgbench.
    limit: Option<f64>,
}

impl Bench {
    fn say(&self, row: &Row) {
        let optional = |value: Option<f64>, width: usize, digits: usize| match value {
            Some(value) => format!("{value:>width$.digits$}"),
            None => " ".repeat(width),
        };
        let [p50, p99, max] = row.latency.map(|latency| optional(latency, 9, 1));
        say(&format!(
            "{:<38} {:>10.0} {} {p50}{p99}{max} {} {:>9.2} {} {} {:>11.0}",
            row.what,
            row.per_second,
            optional(self.limit.map(|limit| row.per_second / limit), 11, 2),
            optional(row.worker_cpu, 26, 2),
            row.database_cpu,
            optional(row.peak.map(|peak| f64::from(u32::try_from(peak).unwrap_or_default()) / 1024.0), 6, 1),
            optional(row.connections.map(|count| f64::from(i32::try_from(count).unwrap_or_default())), 12, 0),
            row.wal,
        ));
    }

    fn database_cpu(&self) -> f64 {
        self.supabase.cluster().pid().map(family_cpu).unwrap_or_default()
    }

    /// Rows per second of a script that writes `rows` at a time.
    async fn pgbench(&self, what: &str, script: &str, clients: usize, rows: u32) -> anyhow::Result<f64> {
        let cluster = self.supabase.cluster();
        let file = cluster.dir().join("script.sql");
        std::fs::write(&file, script)?;
        let mut command = cluster.program("pgbench");
        command.args(["--no-vacuum", "--protocol", "prepared", "--jobs", "2", "--username", OWNER, "--host"]);
        command.arg(cluster.dir()).args([
            "--client",
            &clients.to_string(),
            "--time",
            &self.settings.seconds.to_string(),
        ]);
        command.arg("--define").arg(format!("known={}", self.settings.users)).arg("--file").arg(&file).arg(PROJECT);
        let mut superuser = self.supabase.connect(SUPERUSER, PROJECT).await?;
        let (cpu, written) = (self.database_cpu(), wal(&mut superuser).await?);
        let output = tokio::task::spawn_blocking(move || command.output()).await?;
        let output = output.context("pgbench is not beside postgres; Debian has both in one package")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "pgbench failed: {}",
            complaint.lines().take(3).collect::<Vec<_>>().join(" / ")
        );
        let said = String::from_utf8(output.stdout)?;
        let number = |name: &str| -> Option<f64> {
            let rest = said.lines().find_map(|line| line.strip_prefix(name))?;
            rest.trim_start_matches([' ', '=', ':']).split_whitespace().next()?.split('/').next()?.parse().ok()
        };
        let per_second = number("tps").context("pgbench tells no rate")? * f64::from(rows);
        let all =
            number("number of transactions actually processed").context("pgbench tells no number")? * f64::from(rows);
        // Postgres counts a session's processor time when it has reaped it.
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.say(&Row {
            what: format!("{what}, {clients} clients"),
            per_second,
            latency: [number("latency average"), None, None],
            worker_cpu: None,
            database_cpu: (self.database_cpu() - cpu) / all * 10_000.0,
            peak: None,
            connections: None,
            wal: as_f64(wal(&mut superuser).await? - written) / all,
        });
        Ok(per_second)
    }

    async fn row(&mut self, what: &str, connections: usize, way: Way, away: bool) -> anyhow::Result<()> {
        let socket = self.supabase.cluster().dir().join(".s.PGSQL.5432");
        let proxy = Proxy::start(Upstream::Unix(socket), 0)?;
        let url = match away {
            true => format!("postgres://{OWNER}@{}/{PROJECT}?sslmode=disable", proxy.address),
            false => self.supabase.url(PROJECT),
        };
        if away {
            proxy.set(Fault::Delay(ONE_WAY));
        }
        let trip = if away { format!(" ({:.1} ms)", trip(&url).await?) } else { String::new() };
        let mut options = Options::new(url)?;
        options
            .environment
            .push(("RUST_LOG", format!("warn,clerk_sync=info,clerk_sync::webhook={}", self.settings.log)));
        options.environment.extend(way.failpoint().map(|value| ("CLERK_SYNC_FAILPOINT", value.to_owned())));
        let worker = Worker::start(options).await?;

        let mut superuser = self.supabase.connect(SUPERUSER, PROJECT).await?;
        let seconds = u64::from(self.settings.seconds);
        let events = self.history.next(WARM_UP.max(connections) + READY * usize::from(self.settings.seconds));
        let requests = requests(&events)?;
        let (address, limit) = (worker.address, Duration::from_secs(seconds));
        let mut load = tokio::task::spawn_blocking(move || Load::connect(address, connections)).await??;
        let sampling = self.sample().await?;

        let (mut load, requests) =
            tokio::task::spawn_blocking(move || load.send(&requests[..WARM_UP], limit).map(|_| (load, requests)))
                .await??;
        let (cpu, worker_cpu, written) = (self.database_cpu(), worker.usage().cpu, wal(&mut superuser).await?);
        let (answers, requests) = tokio::task::spawn_blocking(move || {
            load.send(&requests[WARM_UP..], limit).map(|answers| (answers, requests))
        })
        .await??;
        let Usage { cpu: worker_cpu_now, peak, .. } = worker.usage();
        let count = f64::from(u32::try_from(answers.latencies.len())?);
        let row = Row {
            what: format!("{what}{trip}, {connections} connections"),
            per_second: answers.per_second(),
            latency: [500, 990, 1_000].map(|per_mille| Some(answers.percentile(per_mille))),
            worker_cpu: Some((worker_cpu_now - worker_cpu) / count * 10_000.0),
            database_cpu: (self.database_cpu() - cpu) / count * 10_000.0,
            peak: Some(peak),
            connections: Some(sampling.0.load(Ordering::Relaxed)),
            wal: as_f64(wal(&mut superuser).await? - written) / count,
        };
        self.say(&row);
        if answers.applied * 100 < answers.latencies.len() * 95 {
            say(&format!("  only {} of {} were applied", answers.applied, answers.latencies.len()));
        }
        if answers.latencies.len() + WARM_UP == requests.len() {
            say("  the requests that were made ready ran out");
        }
        Ok(())
    }

    /// Counts the worker's connections until it is dropped: the most there were.
    async fn sample(&self) -> anyhow::Result<Sampling> {
        let mut superuser = self.supabase.connect(SUPERUSER, PROJECT).await?;
        let most = Arc::new(AtomicI64::new(0));
        let shared = Arc::clone(&most);
        let task = tokio::spawn(async move {
            let sql = "select count(*) from pg_stat_activity where application_name = 'clerk-sync'";
            while let Ok(count) = sqlx::query_scalar(sql).fetch_one(&mut superuser).await {
                shared.fetch_max(count, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Ok(Sampling(most, task))
    }
}

/// The way to the database and back, in ms: the median of some.
async fn trip(url: &str) -> anyhow::Result<f64> {
    let mut connection = PgConnection::connect(url).await?;
    let mut trips = Vec::new();
    for _ in 0..21 {
        let began = Instant::now();
        connection.ping().await?;
        trips.push(began.elapsed().as_secs_f64() * 1e3);
    }
    trips.sort_by(f64::total_cmp);
    Ok(trips[trips.len() / 2])
}

struct Sampling(Arc<AtomicI64>, tokio::task::JoinHandle<()>);

impl Drop for Sampling {
    fn drop(&mut self) {
        self.1.abort();
    }
}

fn as_f64(bytes: i64) -> f64 {
    f64::from(u32::try_from(bytes).unwrap_or(u32::MAX))
}

//! `lab bench backfill`: an empty mirror is filled, then a pass finds nothing to do.
//!
//! The simulated Clerk and the worker are processes of their own, so that each one's memory is told apart. Beside them
//! Postgres copies the same rows into the same tables, which is the fastest that it can take them.

use super::history::Size;
use super::project;
use crate::say;
use anyhow::{Context as _, ensure};
use clerk_sync::clerk::client::{Client, Options, PageRequest};
use clerk_sync::model::{Change, Kind};
use clerk_sync::reconcile::compare::compare;
use clerk_sync::store::Database;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Row as _};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};
use testkit::postgres::SUPERUSER;
use testkit::supabase::Supabase;
use testkit::usage::{Usage, measure};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Fill an empty mirror from a simulated Clerk, then run a pass that finds nothing, beside a COPY of the same rows
#[derive(clap::Args)]
pub(crate) struct Backfill {
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    users: usize,

    #[arg(long, default_value_t = 20_000, value_name = "N")]
    organizations: usize,

    #[arg(long, default_value_t = 300_000, value_name = "N")]
    memberships: usize,
}

/// A hundredth of the whole, to see what grows with it.
const SMALL: usize = 100;
const PROJECT: &str = "backfill";
const COPIED: &str = "copied";
/// In the order of their foreign keys.
const TABLES: [&str; 5] = [
    "clerk.users",
    "clerk.user_details",
    "clerk.organizations",
    "clerk.organization_memberships",
    "clerk_sync.versions",
];

impl Backfill {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let whole = Size { users: self.users, organizations: self.organizations, memberships: self.memberships };
        for size in [whole.part(SMALL), whole] {
            say(&format!(
                "{} users, {} organizations, {} memberships",
                size.users, size.organizations, size.memberships
            ));
            let supabase = tokio::task::spawn_blocking(Supabase::start).await??;
            let project = project(&supabase, PROJECT).await?;
            // The key of a production instance: its limit is 1,000 calls in 10 s.
            let clerk = Simulated::start(size, "sk_live_of_the_benchmark").await?;

            let backfill = pass(&supabase, &clerk, "off").await?;
            say(&format!("  backfill                {backfill}"));
            let before = written(&supabase).await?;
            let clean = pass(&supabase, &clerk, "off").await?;
            say(&format!("  clean pass              {clean}, {} rows written", written(&supabase).await? - before));
            let (rows, seconds) = copy(&supabase).await?;
            say(&format!("  COPY of the same        {:>9.0} rows/s", per_second(rows, seconds)));
            say(&format!("  compare alone           {:>9.0} rows/s", compare_alone(&clerk, &project).await?));
            let budgeted = pass(&supabase, &clerk, "20").await?;
            let allowed = f64::from(u32::try_from(budgeted.calls)?) / 20.0;
            say(&format!(
                "  the same at 20 % budget {budgeted}: {:.1} % of what {} calls at 20/s allow",
                100.0 * allowed / budgeted.seconds,
                budgeted.calls
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// `lab simulate`, until it is dropped.
struct Simulated {
    process: Child,
    url: String,
    secret_key: &'static str,
}

impl Simulated {
    async fn start(size: Size, secret_key: &'static str) -> anyhow::Result<Simulated> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("simulate")
            .args(["--users", &size.users.to_string(), "--organizations", &size.organizations.to_string()])
            .args(["--memberships", &size.memberships.to_string(), "--rate-limit", "off"])
            .args(["--secret-key", secret_key, "--with-stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let said = BufReader::new(process.stdout.take().context("no standard output")?).lines().next_line().await?;
        let said: Value = serde_json::from_str(&said.context("the simulated Clerk did not start")?)?;
        let url = said["url"].as_str().context("the simulated Clerk names no URL")?.to_owned();
        Ok(Simulated { process, url, secret_key })
    }

    fn cpu(&self) -> f64 {
        self.process.id().and_then(Usage::of).unwrap_or_default().cpu
    }
}

/// Passes over all kinds, run by the command.
struct Passes {
    rows: u64,
    calls: u64,
    seconds: f64,
    /// Of each kind's pass: rows and seconds.
    kinds: Vec<(String, u64, f64)>,
    worker: Usage,
    /// Processor seconds of the others.
    clerk: f64,
    postgres: f64,
}

async fn pass(supabase: &Supabase, clerk: &Simulated, share: &str) -> anyhow::Result<Passes> {
    let (clerk_before, postgres_before) = (clerk.cpu(), postgres_cpu(supabase));
    let (output, worker) = measure(
        Command::new(testkit::program::path()?)
            .args(["reconcile", "--json"])
            .env("DATABASE_URL", supabase.url(PROJECT))
            .env("CLERK_API_URL", &clerk.url)
            .env("CLERK_SECRET_KEY", clerk.secret_key)
            .env("CLERK_RATE_SHARE", share)
            .env("CLERK_INSTANCE_ID", ""),
    )
    .await?;
    // Postgres counts a session's processor time when it has reaped it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(output.status.success(), "the pass failed: {}", String::from_utf8_lossy(&output.stdout));
    let said: Value = serde_json::from_slice(&output.stdout)?;
    let passes = said["passes"].as_array().context("no passes")?;
    let kinds: Vec<(String, u64, f64)> = passes
        .iter()
        .map(|pass| {
            let listed = pass["listed"].as_u64().unwrap_or_default();
            (
                pass["scope"].as_str().unwrap_or_default().to_owned(),
                listed,
                pass["seconds"].as_f64().unwrap_or_default(),
            )
        })
        .collect();
    Ok(Passes {
        rows: kinds.iter().map(|(_, rows, _)| rows).sum(),
        calls: passes.iter().filter_map(|pass| pass["calls"].as_u64()).sum(),
        seconds: kinds.iter().map(|(_, _, seconds)| seconds).sum(),
        kinds,
        worker,
        clerk: clerk.cpu() - clerk_before,
        postgres: postgres_cpu(supabase) - postgres_before,
    })
}

impl std::fmt::Display for Passes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>9.0} rows/s (", per_second(self.rows, self.seconds))?;
        for (index, (kind, rows, seconds)) in self.kinds.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{kind} {:.0}", per_second(*rows, *seconds))?;
        }
        let Usage { cpu, peak, .. } = self.worker;
        write!(
            f,
            "), worker {cpu:.1} CPU s and {:.1} MiB at most, Clerk {:.1}, Postgres {:.1}",
            f64::from(u32::try_from(peak).unwrap_or(u32::MAX)) / 1024.0,
            self.clerk,
            self.postgres
        )
    }
}

fn per_second(rows: u64, seconds: f64) -> f64 {
    f64::from(u32::try_from(rows).unwrap_or(u32::MAX)) / seconds
}

fn postgres_cpu(supabase: &Supabase) -> f64 {
    supabase.cluster().pid().and_then(Usage::of).unwrap_or_default().cpu
}

/// Rows of the mirror that were ever inserted, updated or deleted.
async fn written(supabase: &Supabase) -> anyhow::Result<i64> {
    let mut superuser = supabase.connect(SUPERUSER, PROJECT).await?;
    let sql = "select coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint from pg_stat_user_tables \
                where schemaname = 'clerk' or relname = 'versions'";
    Ok(sqlx::query(sql).fetch_one(&mut superuser).await?.try_get(0)?)
}

/// Copies the mirror's tables into another project, and tells how many objects in how many seconds.
async fn copy(supabase: &Supabase) -> anyhow::Result<(u64, f64)> {
    project(supabase, COPIED).await?;
    let file = |table: &str| format!("{}/data/{table}.copy", supabase.cluster().dir().display());
    let mut from = supabase.connect(SUPERUSER, PROJECT).await?;
    for table in TABLES {
        sqlx::raw_sql(AssertSqlSafe(format!("copy {table} to '{}'", file(table)))).execute(&mut from).await?;
    }
    let objects: i64 =
        sqlx::query("select count(*) from clerk_sync.versions").fetch_one(&mut from).await?.try_get(0)?;
    let mut to = supabase.connect(SUPERUSER, COPIED).await?;
    let began = Instant::now();
    for table in TABLES {
        sqlx::raw_sql(AssertSqlSafe(format!("copy {table} from '{}'", file(table)))).execute(&mut to).await?;
    }
    Ok((objects.cast_unsigned(), began.elapsed().as_secs_f64()))
}

/// A page of users, held against their rows again and again.
async fn compare_alone(clerk: &Simulated, project: &Database) -> anyhow::Result<f64> {
    let options = Options {
        base_url: clerk.url.clone(),
        secret_key: clerk.secret_key.to_owned().into(),
        rate: None,
        clock_tolerance: None,
        give_up_after: Options::PATIENCE,
        on_trouble: None,
        patience: Options::PATIENCE,
    };
    let page = Client::new(options)?.page(Kind::User, &PageRequest::AfterUser(None)).await?.changes;
    let ids: Vec<&str> = page.iter().filter_map(Change::id).collect();
    let mirrored = project.connect_for_passes().await?.mirrored(Kind::User, &ids).await?;
    let (began, mut rows) = (Instant::now(), 0_u64);
    while began.elapsed() < Duration::from_secs(1) {
        let differences = std::hint::black_box(compare(std::hint::black_box(&page), &mirrored));
        ensure!(differences.is_empty(), "the mirror differs after a pass");
        rows += page.len() as u64;
    }
    Ok(per_second(rows, began.elapsed().as_secs_f64()))
}

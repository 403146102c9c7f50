//! `lab chaos`: the promises of `docs/reliability.md`, put to the test by breaking things under load.
//!
//! Every trial prints its seed, and ends with exit code 0 if the promise was kept.

mod checker;
mod crash;
mod hang;
mod overload;
mod revocation;
mod sender;
mod soak;
mod stage;
mod watch;

use crate::say;
use anyhow::ensure;
use crash::Crash;
use hang::Hang;
use overload::Overload;
use revocation::Revocation;
use soak::Soak;
use sqlx::AssertSqlSafe;
use stage::Stage;
use std::process::ExitCode;
use std::time::Duration;

/// The trials.
#[derive(clap::Subcommand)]
pub(crate) enum Chaos {
    Crash(Crash),
    Hang(Hang),
    Overload(Overload),
    Soak(Soak),
    Revocation(Revocation),
    /// Plant three mistakes, one after the other, and see that each is found
    BadBuilds,
    /// Retry all of them but the soak, one after the other: some 20 minutes
    All,
    /// Small versions of all, within minutes
    Small,
}

impl Chaos {
    /// # Errors
    /// A trial could not be run: most likely Postgres is missing.
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let ended = match self {
            Chaos::Crash(crash) => crash.run().await?,
            Chaos::Hang(hang) => hang.run().await?,
            Chaos::Overload(overload) => overload.run().await?,
            Chaos::Soak(soak) => soak.run().await?,
            Chaos::Revocation(revocation) => revocation.run().await?,
            Chaos::BadBuilds => bad_builds().await?,
            Chaos::All => all().await?,
            Chaos::Small => small().await?,
        };
        Ok(ExitCode::from(ended))
    }
}

/// Whether a promise was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Kept,
    Broken,
}

impl Ended {
    fn of(is_kept: bool) -> Ended {
        say(if is_kept { "  kept" } else { "  BROKEN" });
        if is_kept { Ended::Kept } else { Ended::Broken }
    }

    fn of_all<const N: usize>(trials: [Ended; N]) -> Ended {
        if trials.contains(&Ended::Broken) { Ended::Broken } else { Ended::Kept }
    }
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> ExitCode {
        if ended == Ended::Kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

async fn all() -> anyhow::Result<Ended> {
    Ok(Ended::of_all([
        Crash::default().run().await?,
        bad_builds().await?,
        Hang::default().run().await?,
        Overload::default().run().await?,
        Revocation::default().run().await?,
    ]))
}

async fn small() -> anyhow::Result<Ended> {
    Ok(Ended::of_all([
        Crash::small().run().await?,
        bad_builds().await?,
        Hang::small().run().await?,
        Overload::small().run().await?,
        Soak::small().run().await?,
        Revocation::small().run().await?,
    ]))
}

/// A mistake, such as a handler in the wild makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum BadBuild {
    /// Acknowledges a delivery before it is written
    EarlyAnswer,
    /// Writes whatever comes, newer or not
    NoGuard,
    /// Writes whatever comes, each message once
    DedupeOnly,
}

/// Where `clerk_sync.judge_events` tells the newer from the older, after all that makes the question moot.
const GUARD: &str = "when (updated_at, observed_at, denial, content) > (known_updated_at, known_at, known_denial, known_content) then 'newer'";

impl BadBuild {
    async fn plant(self, stage: &Stage, environment: &mut Vec<(&'static str, String)>) -> anyhow::Result<()> {
        let guard = match self {
            BadBuild::EarlyAnswer => {
                crate::need_failpoints("this mistake")?;
                environment.push(("CLERK_SYNC_FAILPOINT", "early_answer".to_owned()));
                return Ok(());
            }
            BadBuild::NoGuard => "when true then 'newer'",
            // The processed message of that object and that time is this one.
            BadBuild::DedupeOnly => {
                "when not exists (select from clerk_sync.receipts r where r.entity_id = compared.id \
                  and r.event_at = pg_catalog.to_timestamp(compared.observed_at::double precision / 1000)) then 'newer'"
            }
        };
        let mut owner = stage.owner().await?;
        let sql = "select pg_get_functiondef('clerk_sync.judge_events'::regproc)";
        let writer: String = sqlx::query_scalar(sql).fetch_one(&mut owner).await?;
        ensure!(writer.matches(GUARD).count() == 1, "the writer's guard is not where it was");
        sqlx::raw_sql(AssertSqlSafe(writer.replace(GUARD, guard))).execute(&mut owner).await?;
        Ok(())
    }
}

/// How often a mistake may be played: in a short trial what it spoils may be written once more, by chance, before anybody looks.
const TRIES: usize = 3;

async fn bad_builds() -> anyhow::Result<Ended> {
    for build in [BadBuild::EarlyAnswer, BadBuild::NoGuard, BadBuild::DedupeOnly] {
        let mut tries = 0;
        while Crash::small().planted(build).run().await? == Ended::Kept {
            tries += 1;
            if tries == TRIES {
                say("A PLANTED MISTAKE WAS NOT FOUND");
                return Ok(Ended::Broken);
            }
        }
    }
    say("each of the three planted mistakes was found");
    Ok(Ended::Kept)
}

/// The time below which so many of a hundred are. `sorted`: from the shortest to the longest.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

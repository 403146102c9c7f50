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
    /// Run all of them but the soak, one after the other: some 20 minutes
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

/// Before events are judged, what is known of their objects is forgotten: then each of them is the newest. `{which}`: of which events.
const FORGETFUL: &str = "
alter function clerk_sync.judge_events rename to judge_events_as_released;
create function clerk_sync.judge_events(
    changes clerk_sync.change_v1[], user_rows clerk_sync.user_row_v1[], organization_rows clerk_sync.organization_row_v1[],
    membership_rows clerk_sync.membership_row_v1[], of_deleted integer[], of_doubtful integer[], of_missing integer[],
    superseded text[], unproven text[], context clerk_sync.context)
  returns clerk_sync.judged
  language plpgsql volatile set search_path = '' as $$
begin
  update clerk_sync.versions v
     set updated_at = 0, observed_at = 0, floor = 0, event_updated_at = null, event_observed_at = null, event_content = null
    from unnest(changes) c
   where v.kind = c.kind and v.id = c.id and v.state = 'live' and {which};
  return clerk_sync.judge_events_as_released(changes, user_rows, organization_rows, membership_rows, of_deleted, of_doubtful, of_missing,
                                             superseded, unproven, context);
end
$$;";

/// Events whose message has not come before: its receipt has the same object and the same time.
const FIRST_TIME: &str = "not exists (select from clerk_sync.receipts r
   where r.entity_id = c.id and r.event_at = pg_catalog.to_timestamp(c.observed_at::double precision / 1000))";

impl BadBuild {
    async fn plant(self, stage: &Stage, environment: &mut Vec<(&'static str, String)>) -> anyhow::Result<()> {
        let which = match self {
            BadBuild::EarlyAnswer => {
                crate::need_failpoints("this mistake")?;
                environment.push(("CLERK_SYNC_FAILPOINT", "early_answer".to_owned()));
                return Ok(());
            }
            BadBuild::NoGuard => "true",
            BadBuild::DedupeOnly => FIRST_TIME,
        };
        let mut owner = stage.owner().await?;
        sqlx::raw_sql(AssertSqlSafe(FORGETFUL.replace("{which}", which))).execute(&mut owner).await?;
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

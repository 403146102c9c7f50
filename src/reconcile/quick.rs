//! The quick pass, between full ones: recently changed users, all organizations with their member counts, and the counts of all kinds.
//!
//! If a count differs by the same number in two quick passes, a full pass or a list of that organization's members is requested; once,
//! it may be a webhook in flight. The same difference is not requested again, because it was not repaired the first time.
//! `docs/reliability.md` says what a quick pass cannot see.

use super::pass::{PageEffects, Run, dry};
use super::{Error, Progress, Reconciler, Report, Sink};
use crate::clerk::client::{self, PAGE_SIZE, PageRequest};
use crate::model::{Change, Kind, Millis, Observation, PassState, Scope, Source};
use crate::store::Session;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;

/// How far before the last quick pass this one looks, in ms: its rows may have come late to the list.
const LOOK_BACK_MS: i64 = 600_000;

/// Pages of organizations in one pass.
const ORGANIZATION_PAGES: usize = 10;
/// Organizations whose counts are remembered because they disagree.
const MISMATCHES_KEPT_MAX: usize = 1_000;

/// Runs a quick pass. Without a lease it is a dry run.
pub(super) async fn run(
    reconciler: &Reconciler,
    session: &mut Session,
    sink: Sink,
    reason: &str,
    began_at: Millis,
    progress: &mut dyn Progress,
) -> Result<Report, Error> {
    let last = session.last_quick().await?;
    let since = match &last {
        Some(last) => Some(last.observed_from),
        None => session.pass_watermark(Kind::User).await?,
    };
    let row = match sink {
        // Too little to go on with.
        Sink::Record(fence) => {
            session.open_pass(fence, Scope::Quick, reason, began_at, std::time::Duration::ZERO).await?
        }
        Sink::DryRun => dry(Scope::Quick, false, began_at),
    };
    let mut run = Run::new(reconciler, session, sink, row, began_at);
    let (counts_before, organizations_before) = last.map(|last| (last.counts, last.position)).unwrap_or_default();
    let organizations_before = serde_json::from_value(organizations_before).unwrap_or_default();
    let result =
        steps(reconciler, &mut run, since.map(|at| at.plus(-LOOK_BACK_MS)), organizations_before, progress).await;
    let mut counts = match result {
        Ok(counts) => counts,
        Err(error) => return run.end(Err(error), None).await,
    };
    if sink.fence().is_some() {
        let before: Tallies = serde_json::from_value(counts_before).unwrap_or_default();
        for kind in Kind::ALL {
            let Some(tally) = counts.get_mut(kind.as_str()) else { continue };
            if tally.calls(before.get(kind.as_str())) {
                run.session.request_pass(kind, "the counts differ").await?;
            }
        }
    }
    run.end(Ok(PassState::Complete), Some(json!(counts))).await
}

async fn steps(
    reconciler: &Reconciler,
    run: &mut Run<'_>,
    since: Option<Millis>,
    before: Organizations,
    progress: &mut dyn Progress,
) -> Result<Tallies, Error> {
    let clerk = &reconciler.clerk;
    // Before the first full pass there is no time to look back to.
    if let Some(since) = since {
        let (mut offset, mut first) = (0, None);
        loop {
            let page = clerk.page(Kind::User, &PageRequest::RecentlyUpdated(offset)).await?;
            let begins = page.changes.first().and_then(Change::id).map(str::to_owned);
            if begins.is_some() && begins == first {
                return Err(Error::Contradiction("Clerk lists the same users repeatedly".to_owned()));
            }
            first = begins;
            let changed_since = |change: &&Change| match &change.observation {
                Observation::Live { updated_at, .. } => *updated_at >= since,
                _ => true,
            };
            let lately: Vec<Change> = page.changes.iter().take_while(changed_since).cloned().collect();
            let is_last = lately.len() < PAGE_SIZE;
            run.compare_and_record(
                Source::List,
                &lately,
                PageEffects { listed: lately.len(), ..PageEffects::default() },
            )
            .await?;
            progress.listed(Kind::User, run.row.listed.cast_unsigned(), None);
            offset += page.changes.len();
            if is_last {
                break;
            }
        }
        match organizations(reconciler, run, before).await {
            Ok(()) | Err(Error::Clerk(client::Error::OrganizationsOff)) => {}
            Err(error) => return Err(error),
        }
    }
    let mut counts = Tallies::new();
    for kind in Kind::ALL {
        let there = match clerk.count(kind).await {
            Ok(count) => count,
            Err(client::Error::OrganizationsOff) => continue,
            Err(error) => return Err(error.into()),
        };
        counts.insert(kind.to_string(), Tally::new(run.session.count(kind).await?, there));
    }
    Ok(counts)
}

/// Compares organizations with what they are here, and counts their members. Where there are too many for one pass, the next goes on.
async fn organizations(reconciler: &Reconciler, run: &mut Run<'_>, before: Organizations) -> Result<(), Error> {
    let Organizations { organizations_from: mut offset, mut members } = before;
    let mut unlike: Vec<String> = Vec::new();
    for _ in 0..ORGANIZATION_PAGES {
        let (page, there) = reconciler.clerk.organizations_with_members(offset).await?;
        let observed =
            PageEffects { kind: Some(Kind::Organization), listed: page.changes.len(), ..PageEffects::default() };
        run.compare_and_record(Source::List, &page.changes, observed).await?;
        let ids: Vec<&str> = page.changes.iter().filter_map(Change::id).collect();
        let here = run.session.members_counts(&ids).await?;
        for ((id, here), there) in here.into_iter().zip(there) {
            // A missing member count is not compared.
            let mut now = Tally::new(here, there.unwrap_or(here));
            if now.calls(members.get(&id)) {
                unlike.push(id.clone());
            }
            if now.here != now.there && members.len() < MISMATCHES_KEPT_MAX {
                members.insert(id, now);
            } else {
                members.remove(&id);
            }
        }
        offset += page.changes.len();
        if page.changes.len() < PAGE_SIZE {
            offset = 0;
            break;
        }
    }
    if run.sink.fence().is_some() && !unlike.is_empty() {
        run.session.request_listings(&unlike, "the counts of its members differ").await?;
    }
    run.position = Some(json!(Organizations { organizations_from: offset, members }));
    run.compare_and_record(Source::List, &[], PageEffects::default()).await
}

/// What the next quick pass goes on with.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Organizations {
    /// At this offset.
    organizations_from: usize,
    /// How many members those have of which the counts differ.
    members: Tallies,
}

/// By kind, or by an organization's id.
type Tallies = BTreeMap<String, Tally>;

/// How many there are, here and at Clerk.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Tally {
    here: u64,
    there: u64,
    /// The difference that something was asked for last, while there is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asked: Option<i64>,
}

impl Tally {
    const fn new(here: u64, there: u64) -> Tally {
        Tally { here, there, asked: None }
    }

    const fn difference(&self) -> i64 {
        self.here.cast_signed() - self.there.cast_signed()
    }

    /// Whether it calls for a list, and remembers that it has; `before` is the same of the last quick pass.
    fn calls(&mut self, before: Option<&Tally>) -> bool {
        let now = self.difference();
        if now == 0 {
            return false;
        }
        let asked = before.and_then(|before| before.asked);
        let is_called_for = before.is_some_and(|before| before.difference() == now) && asked != Some(now);
        self.asked = if is_called_for { Some(now) } else { asked };
        is_called_for
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_difference_twice_calls_once() {
        let mut asked = Vec::new();
        let mut before = None;
        for there in [10, 11, 11, 11, 11, 12, 13, 13, 13, 10, 11, 11] {
            let mut now = Tally::new(10, there);
            if now.calls(before.as_ref()) {
                asked.push(now.difference());
            }
            before = Some(now);
        }
        // Once for one too few, once for three, and once more when it had agreed in between.
        assert_eq!(asked, [-1, -3, -1]);
    }
}

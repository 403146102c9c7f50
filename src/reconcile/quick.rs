//! Between full passes: the users that changed lately, the organizations, how many members each has, and the counts of all kinds.
//!
//! A count that disagrees twice by the same calls for a full pass, or for a list of that organization's members; once it may be a
//! webhook that is under way. If that did not change it, nothing will: it is called for again when it disagrees by another number.
//! What a quick pass cannot see is told in `docs/reliability.md`.

use super::pass::{Observed, Run, dry};
use super::{Error, Progress, Reconciler, Report};
use crate::clerk::client::{self, At, PAGE};
use crate::model::{Change, Claim, Fence, Kind, Millis, PassState, Scope, Source};
use crate::store::Session;
use serde_json::{Value, json};

/// How far before the last quick pass this one looks, in ms: its rows may have come late to the list.
const BEFORE: i64 = 600_000;

/// Pages of organizations in one pass.
const ORGANIZATION_PAGES: usize = 10;
/// Organizations whose counts are remembered because they disagree.
const UNLIKE: usize = 1_000;

/// Runs a quick pass. Without a lease it is a dry run.
pub(super) async fn run(
    reconciler: &Reconciler,
    session: &mut Session,
    fence: Option<Fence>,
    reason: &str,
    began_at: Millis,
    progress: &mut dyn Progress,
) -> Result<Report, Error> {
    let last = session.last_quick().await?;
    let since = match &last {
        Some(last) => Some(last.observed_from),
        None => session.mark(Kind::User).await?,
    };
    let row = match fence {
        // Too little to go on with.
        Some(fence) => session.open_pass(fence, Scope::Quick, reason, began_at, std::time::Duration::ZERO).await?,
        None => dry(Scope::Quick, false, began_at),
    };
    let mut run = Run::new(reconciler, session, fence, row, began_at);
    let before = last.as_ref().map(|last| last.position.clone()).unwrap_or_default();
    let result = steps(reconciler, &mut run, since.map(|at| at.plus(-BEFORE)), &before, progress).await;
    let (state, counts) = match result {
        Ok(counts) => (Ok(PassState::Complete), Some(counts)),
        Err(error) => (Err(error), None),
    };
    let mut counts = counts;
    if let (Some(_), Some(counts)) = (fence, &mut counts) {
        let before = last.map(|last| last.counts).unwrap_or_default();
        for kind in Kind::ALL {
            let (counts, before) = (&mut counts[kind.as_str()], &before[kind.as_str()]);
            match calls(counts, before) {
                Call::No => {}
                Call::Again(asked) => counts["asked"] = asked.into(),
                Call::Now(difference) => {
                    run.session.ask_for_pass(kind, "the counts disagree").await?;
                    counts["asked"] = difference.into();
                }
            }
        }
    }
    run.end(state, counts).await
}

async fn steps(
    reconciler: &Reconciler,
    run: &mut Run<'_>,
    since: Option<Millis>,
    before: &Value,
    progress: &mut dyn Progress,
) -> Result<Value, Error> {
    let clerk = &reconciler.clerk;
    // Before the first full pass there is no lately.
    if let Some(since) = since {
        let (mut offset, mut first) = (0, None);
        loop {
            let page = clerk.page(Kind::User, &At::Recent(offset)).await?;
            let begins = page.changes.first().and_then(Change::id).map(str::to_owned);
            if begins.is_some() && begins == first {
                return Err(Error::Contradiction("Clerk lists the same users again and again".to_owned()));
            }
            first = begins;
            let changed_since = |change: &&Change| match &change.claim {
                Claim::Live { updated_at, .. } => *updated_at >= since,
                _ => true,
            };
            let lately: Vec<Change> = page.changes.iter().take_while(changed_since).cloned().collect();
            let is_last = lately.len() < PAGE;
            run.observe(Source::List, &lately, Observed { listed: lately.len(), ..Observed::default() }).await?;
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
    let mut counts = serde_json::Map::new();
    for kind in Kind::ALL {
        let there = match clerk.count(kind).await {
            Ok(count) => count,
            Err(client::Error::OrganizationsOff) => continue,
            Err(error) => return Err(error.into()),
        };
        counts.insert(kind.to_string(), json!({ "here": run.session.count(kind).await?, "there": there }));
    }
    Ok(Value::Object(counts))
}

/// Compares organizations with what they are here, and counts their members. Where there are too many for one pass, the next goes on.
async fn organizations(reconciler: &Reconciler, run: &mut Run<'_>, before: &Value) -> Result<(), Error> {
    let mut offset = before["organizations_from"].as_u64().and_then(|from| usize::try_from(from).ok()).unwrap_or(0);
    let mut members = before["members"].as_object().cloned().unwrap_or_default();
    let mut unlike: Vec<String> = Vec::new();
    for _ in 0..ORGANIZATION_PAGES {
        let (page, there) = reconciler.clerk.organizations_with_members(offset).await?;
        let observed = Observed { kind: Some(Kind::Organization), listed: page.changes.len(), ..Observed::default() };
        run.observe(Source::List, &page.changes, observed).await?;
        let ids: Vec<&str> = page.changes.iter().filter_map(Change::id).collect();
        let here = run.session.members_counts(&ids).await?;
        for ((id, here), there) in here.into_iter().zip(there) {
            let mut now = json!({ "here": here, "there": there });
            let call = calls(&now, members.get(&id).unwrap_or(&Value::Null));
            match call {
                Call::No => {}
                Call::Again(asked) => now["asked"] = asked.into(),
                Call::Now(difference) => {
                    unlike.push(id.clone());
                    now["asked"] = difference.into();
                }
            }
            if there.is_some_and(|there| i64::try_from(there) != Ok(here)) && members.len() < UNLIKE {
                members.insert(id, now);
            } else {
                members.remove(&id);
            }
        }
        offset += page.changes.len();
        if page.changes.len() < PAGE {
            offset = 0;
            break;
        }
    }
    if run.is_recorded() && !unlike.is_empty() {
        run.session.ask_for_listings(&unlike, "the counts of its members disagree").await?;
    }
    run.position = Some(json!({ "organizations_from": offset, "members": members }));
    run.observe(Source::List, &[], Observed::default()).await
}

/// Whether a full pass is called for.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    No,
    /// It was, for as much as that, and has changed nothing.
    Again(i64),
    Now(i64),
}

/// Of one kind: the counts now, and those of the last quick pass.
fn calls(now: &Value, before: &Value) -> Call {
    let difference = |counts: &Value| Some(counts["here"].as_i64()? - counts["there"].as_i64()?);
    let asked = before["asked"].as_i64();
    match (difference(now), difference(before)) {
        (None | Some(0), _) => Call::No,
        (Some(now), before) if Some(now) == before && Some(now) != asked => Call::Now(now),
        _ => asked.map_or(Call::No, Call::Again),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_difference_twice_calls_once() {
        let mut asked = Vec::new();
        let mut before = Value::Null;
        for there in [10, 11, 11, 11, 11, 12, 13, 13, 13, 10, 11, 11] {
            let mut now = json!({ "here": 10, "there": there });
            let call = calls(&now, &before);
            match call {
                Call::No => {}
                Call::Again(difference) => now["asked"] = difference.into(),
                Call::Now(difference) => {
                    asked.push(difference);
                    now["asked"] = difference.into();
                }
            }
            before = now;
        }
        // Once for one too few, once for three, and once more when it had agreed in between.
        assert_eq!(asked, [-1, -3, -1]);
    }
}

//! Between full passes: the users that changed lately, and the counts of all kinds. A count that disagrees twice calls for
//! a full pass; once it may be a webhook that is under way.

use super::pass::{Observed, Run, dry};
use super::{Error, Progress, Reconciler, Report, State};
use crate::clerk::client::{self, At, PAGE};
use crate::model::{Change, Claim, Kind, Millis, Source};
use crate::store::Session;
use serde_json::{Value, json};

/// How far before the last quick pass this one looks, in ms: its rows may have come late to the list.
const BEFORE: i64 = 600_000;

/// Runs a quick pass. Without a lease it is a dry run.
pub(super) async fn run(
    reconciler: &Reconciler,
    session: &mut Session,
    fence: Option<i64>,
    reason: &str,
    began_at: Millis,
    progress: &mut dyn Progress,
) -> Result<Report, Error> {
    let last = session.last_complete(None).await?;
    let since = match &last {
        Some((at, _)) => Some(*at),
        None => session.mark(Kind::User).await?,
    };
    let row = match fence {
        // Too little to go on with.
        Some(fence) => session.open_pass(fence, None, reason, began_at, std::time::Duration::ZERO).await?,
        None => dry(None, false, began_at),
    };
    let mut run = Run::new(reconciler, session, fence, row, began_at);
    let result = steps(reconciler, &mut run, since.map(|at| at.plus(-BEFORE)), progress).await;
    let (state, counts) = match result {
        Ok(counts) => (Ok(State::Complete), Some(counts)),
        Err(error) => (Err(error), None),
    };
    if let (Some(_), Some(counts)) = (fence, &counts) {
        for kind in Kind::ALL {
            let before = last.as_ref().and_then(|(_, counts)| counts.as_ref());
            if disagrees(counts, kind) && before.is_some_and(|before| disagrees(before, kind)) {
                run.session.ask_for_pass(kind, "the counts disagree").await?;
            }
        }
    }
    run.end(state, counts).await
}

async fn steps(
    reconciler: &Reconciler,
    run: &mut Run<'_>,
    since: Option<Millis>,
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

fn disagrees(counts: &Value, kind: Kind) -> bool {
    let counts = &counts[kind.as_str()];
    !counts.is_null() && counts["here"] != counts["there"]
}

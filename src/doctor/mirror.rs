//! The mirror beside Clerk: the last webhook, the last passes, and the rows on both sides.

use super::clerk::ClerkAnswers;
use super::{Check, some_of};
use crate::clerk::kinds;
use crate::model::{Kind, Millis, PassState, Undecided, span};
use crate::store::diagnostics::{LastPass, SyncStatus};
use crate::store::status::DenialRow;

/// Seconds since a complete pass that are too many: it runs every night.
const OLD_PASS: i64 = 26 * 3_600;

/// Seconds for which no webhook may come while Clerk changes.
const SILENT: i64 = 3_600;

/// By how many rows the two sides may differ while webhooks are in flight.
const IN_FLIGHT: u64 = 24;

/// Rows here, by kind.
pub(super) type Counts = Vec<(Kind, Option<u64>)>;

pub(super) fn checks(sync_status: Option<&SyncStatus>, counts: Option<&Counts>, clerk: &ClerkAnswers) -> Vec<Check> {
    let Some(sync_status) = sync_status else {
        return ["webhooks", "denials", "passes", "rows"]
            .map(|name| Check::skip(name, "the tables cannot be read"))
            .into();
    };
    let mut checks = vec![webhooks(sync_status.webhook_s, sync_status.drift_since_webhook)];
    checks.push(denials(sync_status));
    if sync_status.custom_permissions && !sync_status.billing_events {
        // Whether Clerk Billing is on, nothing here can know.
        let says = "you use custom permissions. With Clerk Billing they depend on the plan: then the endpoint needs the events subscription.* and subscriptionItem.*, and none has arrived";
        checks.push(Check::ok("webhooks", says));
    }
    if let Some((seconds, problem)) = &sync_status.failed_start {
        let says = format!("no reconcile could start for {}: {problem}", span(*seconds));
        checks.push(Check::fail("passes", says, "fix what is named; for a refused key: Clerk dashboard → API keys"));
    }
    checks.extend(Kind::ALL.map(|kind| {
        let last = sync_status.passes.iter().find(|pass| pass.kind == kind);
        pass(kind, last, clerk.has_organizations())
    }));
    checks.extend(Kind::ALL.map(|kind| {
        let here = counts.and_then(|counts| counts.iter().find(|(of, _)| *of == kind)).and_then(|(_, rows)| *rows);
        let last = sync_status.passes.iter().find(|pass| pass.kind == kind);
        let was_filled = last.is_some_and(|pass| pass.complete_s.is_some());
        rows(kind, here, clerk.count(kind), was_filled)
    }));
    checks
}

fn denials(sync_status: &SyncStatus) -> Check {
    const NAME: &str = "denials";
    const FIX: &str = "fix what is named (see foreign-objects); the row is written within an hour, or at once with clerk-sync refresh ID";
    if !sync_status.denials.is_empty() {
        let denied: Vec<String> = sync_status.denials.iter().map(DenialRow::describe).collect();
        let says = format!(
            "our policies deny access, but whatever bypasses them (service_role, views and functions of the tables' owner) still sees the row of {}",
            some_of(&denied, 5, "; ")
        );
        return Check::fail(NAME, says, FIX);
    }
    if sync_status.refused > 0 {
        return Check::warn(
            NAME,
            format!("{} rows are not written yet: something refuses them", sync_status.refused),
            FIX,
        );
    }
    Check::ok(NAME, "every row is up to date")
}

fn webhooks(seconds: Option<i64>, drift_since: i64) -> Check {
    match seconds {
        Some(seconds) if seconds > SILENT && drift_since > 0 => Check::warn(
            "webhooks",
            format!(
                "the last one arrived {} ago, although reconciles found {drift_since} rows changed since then",
                span(seconds)
            ),
            "Clerk dashboard → Webhooks: is the endpoint there, enabled, and at this host? Message Attempts shows the responses",
        ),
        Some(seconds) => Check::ok("webhooks", format!("the last one arrived {} ago", span(seconds))),
        None => Check::warn(
            "webhooks",
            "none has ever arrived",
            "Clerk dashboard → Webhooks → Add endpoint: https://YOUR-HOST/webhooks/clerk; put its signing secret into \
             CLERK_WEBHOOK_SIGNING_SECRET, then send an example from the endpoint's Testing tab. If its attempts show 400, the secret is that of another endpoint",
        ),
    }
}

fn pass(kind: Kind, last: Option<&LastPass>, has_organizations: Option<bool>) -> Check {
    const NAME: &str = "passes";
    let kinds = kind.plural();
    if kinds::of(kind).needs_organizations && has_organizations == Some(false) {
        return Check::ok(NAME, format!("{kinds}: not needed, organizations are off"));
    }
    let run = "clerk-sync reconcile, and see that serve has CLERK_SECRET_KEY and RECONCILE_CRON is not off";
    match last {
        Some(LastPass { id, state, .. }) if *state == PassState::Braked => Check::fail(
            NAME,
            format!("{kinds}: the deletions of reconcile {id} wait for your approval: there are too many"),
            format!(
                "see them with clerk-sync reconcile --dry-run; if they are right: clerk-sync reconcile --approve {id}"
            ),
        ),
        Some(LastPass { id, state, problem, .. }) if *state == PassState::Void => Check::warn(
            NAME,
            format!(
                "{kinds}: Clerk's list contradicts itself in reconcile {id}: {}",
                problem.as_deref().unwrap_or("without details")
            ),
            "clerk-sync reconcile; if it happens again, ask Clerk's support why list and count differ",
        ),
        Some(LastPass { id, undecided: Some(undecided), judge_after, .. }) => {
            let words = Undecided::from(undecided).in_words(judge_after.map(Millis::clamped)).unwrap_or_default();
            let fix = "docs/runbook.md, \"Some rows were left as they are\"";
            Check::warn(NAME, format!("{kinds}: reconcile {id}: {words}"), fix)
        }
        Some(LastPass { complete_s: Some(seconds), .. }) if *seconds > OLD_PASS => {
            Check::warn(NAME, format!("{kinds}: the last complete one ended {} ago", span(*seconds)), run)
        }
        Some(LastPass { complete_s: Some(seconds), .. }) => {
            Check::ok(NAME, format!("{kinds}: the last complete one ended {} ago", span(*seconds)))
        }
        Some(LastPass { id, state, .. }) => {
            Check::warn(NAME, format!("{kinds}: no full reconcile has completed; reconcile {id} is {state}"), run)
        }
        None => Check::warn(NAME, format!("{kinds}: none has ever run"), run),
    }
}

fn rows(kind: Kind, here: Option<u64>, at_clerk: Option<u64>, was_filled: bool) -> Check {
    const NAME: &str = "rows";
    let kinds = kind.plural();
    let (here, there) = match (here, at_clerk) {
        (Some(here), Some(there)) => (here, there),
        (Some(here), None) => {
            return Check::ok(NAME, format!("{kinds}: {here} here; Clerk did not say"));
        }
        (None, _) => return Check::skip(NAME, format!("{kinds}: they could not be counted here in time")),
    };
    let apart = here.abs_diff(there);
    if apart == 0 {
        Check::ok(NAME, format!("{kinds}: {here} here and at Clerk"))
    } else if !was_filled && here < there && (here == 0 || apart > IN_FLIGHT) {
        Check::fail(
            NAME,
            format!("{kinds}: {here} here, {there} at Clerk: they were never copied from Clerk"),
            "clerk-sync reconcile copies them now; serve does that automatically while CLERK_SECRET_KEY is set",
        )
    } else if apart <= IN_FLIGHT {
        Check::warn(
            NAME,
            format!("{kinds}: {here} here, {there} at Clerk; a few webhooks may be in flight"),
            "run doctor again; if they still differ: clerk-sync reconcile",
        )
    } else {
        Check::warn(
            NAME,
            format!("{kinds}: {here} here, {there} at Clerk: too many for webhooks in flight"),
            "clerk-sync reconcile --dry-run shows which ones, clerk-sync reconcile repairs them",
        )
    }
}

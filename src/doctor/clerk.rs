//! Clerk's API: the key, the instance behind it, the clocks, and how many rows are there.

use super::Check;
use crate::clerk::client::{Client, Error};
use crate::clerk::kinds;
use crate::clock;
use crate::model::{InstanceId, Kind, Millis, span};

/// Seconds that the clocks may differ without a word.
const QUIET_SKEW: i64 = 5;
/// Seconds from which on signatures are about to be refused: their window is 300.
const FATAL_SKEW: i64 = 240;

/// What the API said; `None`: there is no key to ask with.
pub(super) struct ClerkAnswers {
    instance: Option<Result<(InstanceId, Skew), Error>>,
    counts: Vec<(Kind, Result<u64, Error>)>,
}

/// This machine's clock against Clerk's, in ms, as exactly as one call can tell: between the two, ahead where positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Skew {
    least: i64,
    most: i64,
}

impl Skew {
    /// Clerk answered somewhen between our `began` and `ended`, and its date has whole seconds.
    fn between(began: Millis, ended: Millis, date: Millis) -> Skew {
        Skew { least: began.get() - date.get() - 999, most: ended.get() - date.get() }
    }

    /// Seconds that are certain: 0 where the clocks may well agree.
    fn certain(self) -> i64 {
        if self.least > 0 { self.least / 1000 } else { self.most.min(0) / 1000 }
    }
}

impl ClerkAnswers {
    /// The key's instance.
    pub(super) fn instance(&self) -> Option<&str> {
        self.instance.as_ref()?.as_ref().ok().map(|(instance, _)| instance.as_str())
    }

    /// How many rows of a kind Clerk has, if it said.
    pub(super) fn count(&self, kind: Kind) -> Option<u64> {
        self.counts.iter().find(|(of, _)| *of == kind).and_then(|(_, count)| count.as_ref().ok().copied())
    }

    /// Whether the instance has organizations; `None`: it did not say.
    pub(super) fn has_organizations(&self) -> Option<bool> {
        match self.counts.iter().find(|(kind, _)| kinds::of(*kind).needs_organizations)?.1 {
            Ok(_) => Some(true),
            Err(Error::OrganizationsOff) => Some(false),
            Err(_) => None,
        }
    }
}

/// Asks the API. Nothing more is asked with a key that is refused.
pub(super) async fn ask(client: Option<&Client>) -> ClerkAnswers {
    let Some(client) = client else { return ClerkAnswers { instance: None, counts: Vec::new() } };
    let began = clock::now();
    let instance = client.instance_and_date().await;
    let ended = clock::now();
    let instance = instance.map(|(instance, date)| (instance, Skew::between(began, ended, date)));
    let mut counts = Vec::new();
    if instance.is_ok() {
        for kind in Kind::ALL {
            counts.push((kind, client.count(kind).await));
        }
    }
    ClerkAnswers { instance: Some(instance), counts }
}

/// The key, the clock and the feature.
pub(super) fn checks(asked: &ClerkAnswers) -> Vec<Check> {
    let skipped = |because: &str| vec![Check::skip("clock", because), Check::skip("organizations", because)];
    let mut checks = Vec::new();
    match &asked.instance {
        None => {
            let because = "CLERK_SECRET_KEY is missing or wrong";
            checks.push(Check::skip("clerk-key", because));
            checks.extend(skipped(because));
        }
        Some(Err(error)) => {
            let fix = match error {
                Error::Key(_) => "Clerk dashboard → API keys: copy a secret key of this instance into CLERK_SECRET_KEY",
                Error::Unavailable(_) => {
                    "look at the network, a proxy, CLERK_API_URL and status.clerk.com, then run doctor again"
                }
                _ => "check CLERK_API_URL: is it the address of Clerk's Backend API?",
            };
            checks.push(Check::fail("clerk-key", error.to_string(), fix));
            checks.extend(skipped("Clerk's API cannot be reached"));
        }
        Some(Ok((instance, skew))) => {
            checks.push(Check::ok("clerk-key", format!("Clerk accepts it; it belongs to {instance}")));
            checks.push(clock(*skew));
            checks.push(organizations(asked));
        }
    }
    checks
}

fn clock(skew: Skew) -> Check {
    let seconds = skew.certain();
    let says = format!(
        "this machine's clock is {} {} Clerk's",
        span(seconds.abs()),
        if seconds > 0 { "ahead of" } else { "behind" }
    );
    let fix = "synchronize the clock (timedatectl set-ntp true; in a container or VM: the host's)";
    match seconds.abs() {
        0..=QUIET_SKEW => Check::ok("clock", "agrees with Clerk's"),
        FATAL_SKEW.. => {
            Check::fail("clock", format!("{says}: signatures are refused from 5 minutes on, or are already"), fix)
        }
        _ => Check::warn("clock", format!("{says}; from 5 minutes on, signatures are refused"), fix),
    }
}

fn organizations(asked: &ClerkAnswers) -> Check {
    match asked.has_organizations() {
        Some(true) => Check::ok("organizations", "are switched on in this Clerk instance"),
        Some(false) => Check::warn(
            "organizations",
            "are switched off in this Clerk instance: there are no memberships that policies could use",
            "Clerk dashboard → Organizations → Settings → enable; nothing to do if only clerk_rls.user_id() is used",
        ),
        None => Check::skip("organizations", "Clerk did not say"),
    }
}

/// Whether key, mirror and environment mean one Clerk instance. `pinned`: `None` where the tables cannot be read.
pub(super) fn instance(key: Option<&str>, pinned: Option<Option<&str>>, named: Option<&str>) -> Check {
    const NAME: &str = "instance";
    const REPIN: &str = "To change the instance of the tables: CLERK_INSTANCE_ID=ins_… clerk-sync migrate --repin";
    match (key, pinned, named) {
        (Some(key), _, Some(named)) if key != named => Check::fail(
            NAME,
            format!("CLERK_SECRET_KEY belongs to {key}, and CLERK_INSTANCE_ID says {named}"),
            "Use the key of that instance (production and development have one each), or correct CLERK_INSTANCE_ID",
        ),
        (Some(key), Some(Some(pinned)), _) if key != pinned => Check::fail(
            NAME,
            format!("CLERK_SECRET_KEY belongs to {key}, and the tables are a copy of {pinned}: reconcile is disabled"),
            format!("Use the key of {pinned}. {REPIN}"),
        ),
        (_, Some(Some(pinned)), Some(named)) if named != pinned => Check::fail(
            NAME,
            format!(
                "CLERK_INSTANCE_ID says {named}, and the tables are a copy of {pinned}: webhooks are refused with 403"
            ),
            format!("Correct CLERK_INSTANCE_ID. {REPIN}"),
        ),
        (_, Some(Some(pinned)), _) => Check::ok(NAME, format!("the tables are a copy of {pinned}")),
        (_, Some(None), _) => {
            Check::ok(NAME, "the tables belong to no Clerk instance yet: the first webhook or reconcile decides")
        }
        (_, None, _) => Check::skip(NAME, "the tables cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skew(began: i64, ended: i64, date: i64) -> i64 {
        let at = |ms| Millis::new(1_000_000 + ms).unwrap();
        Skew::between(at(began), at(ended), at(date)).certain()
    }

    #[test]
    fn only_what_a_slow_answer_cannot_explain_is_skew() {
        assert_eq!(skew(500, 700, 0), 0);
        assert_eq!(skew(0, 20_000, 10_000), 0, "it may have been written at any moment of the call");
        assert_eq!(skew(61_000, 61_500, 0), 60);
        assert_eq!(skew(0, 1_000, 301_000), -300);
    }

    #[test]
    fn an_instance_is_judged_by_all_who_name_it() {
        let is = |key, pinned, named| instance(key, pinned, named).status;
        use super::super::Status::{Fail, Ok, Skip};
        assert_eq!(is(Some("ins_a"), Some(Some("ins_a")), Some("ins_a")), Ok);
        assert_eq!(is(Some("ins_b"), Some(Some("ins_a")), None), Fail);
        assert_eq!(is(None, Some(Some("ins_a")), Some("ins_b")), Fail);
        assert_eq!(is(Some("ins_a"), None, Some("ins_b")), Fail);
        assert_eq!(is(Some("ins_a"), Some(None), None), Ok);
        assert_eq!(is(Some("ins_a"), None, None), Skip);
    }
}

//! Is the mirror in sync with Clerk? One answer, in words. Pure.

use super::page::{moment, span};
use crate::clerk::event::SUBSCRIBED;
use crate::model::{Kind, Millis, PassState, Scope, Undecided, capitalized, grouped};
use crate::store::Error;
use crate::store::status::{Counts, DenialRow, PassRow, Status};
use crate::webhook::health::Fault;
use serde::Serialize;

/// Two nights: a nightly pass that failed once is not yet a reason to wake somebody.
const TOO_OLD: i64 = 2 * 24 * 3_600_000;

/// How long no webhook may come while Clerk changes.
const SILENT: i64 = 3_600_000;

/// So long nothing may happen, in ms: a quick pass comes every few minutes.
const IDLE: i64 = 3 * 3_600_000;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Good,
    /// Something waits for a person, or cannot be told.
    Attention,
    Bad,
}

/// What this process was told, as far as somebody who sets it up must know. The default: nothing is missing.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Variables that are not set and should be.
    pub missing: Vec<&'static str>,
    /// The public URL of the webhook endpoint, if the platform says what it is.
    pub webhook_url: Option<String>,
}

const SECRET: &str = "CLERK_WEBHOOK_SIGNING_SECRET";
const KEY: &str = "CLERK_SECRET_KEY";

impl Setup {
    fn lacks(&self, variable: &str) -> bool {
        self.missing.contains(&variable)
    }
}

/// The events that the endpoint at Clerk must send, in words.
fn events() -> String {
    let [always, billing] = [true, false].map(|always| {
        let events = SUBSCRIBED.iter().filter(|(_, when)| when.is_empty() == always);
        events.map(|(name, _)| *name).collect::<Vec<_>>()
    });
    format!("{} (with Clerk Billing also {})", always.join(", "), billing.join(" and "))
}

/// The answer, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub level: Level,
    pub headline: String,
    pub reasons: Vec<String>,
    /// What to type, where a command helps.
    pub commands: Vec<Remedy>,
}

/// A command, and what somebody runs it for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// As the beginning of a sentence.
    pub purpose: String,
    pub command: String,
}

impl Remedy {
    fn new(purpose: impl Into<String>, command: impl Into<String>) -> Remedy {
        Remedy { purpose: purpose.into(), command: command.into() }
    }

    fn migrate() -> Remedy {
        Remedy::new("To create or upgrade the schema, and grant its privileges", "clerk-sync migrate")
    }

    fn reconcile() -> Remedy {
        Remedy::new("To compare all rows with Clerk now, and repair them", "clerk-sync reconcile")
    }

    /// The doctor's purpose.
    fn doctor(purpose: &str) -> Remedy {
        Remedy::new(purpose, "clerk-sync doctor")
    }
}

/// What a webhook gets while nothing can be written.
const RETRIED: &str =
    "Webhooks get a 503 response, and Svix (the sender of Clerk's webhooks) retries them for about a day.";

impl Verdict {
    fn new(level: Level, headline: &str, reasons: Vec<String>) -> Verdict {
        Verdict { level, headline: headline.to_owned(), reasons, commands: Vec::new() }
    }

    /// The database could not be asked.
    pub fn unknown(error: &Error) -> Verdict {
        let examine = || Some(Remedy::doctor("To see why, and what to do"));
        let (headline, remedy) = match error {
            Error::NotMigrated(_) => ("The schema is missing or of an older version", Some(Remedy::migrate())),
            Error::TooNew => ("The schema is of a newer version than this program", None),
            Error::NotWorker(_) | Error::MissingRight(_) => {
                ("The database role lacks privileges", Some(Remedy::migrate()))
            }
            Error::LoginRefused(_) => ("The database refuses the login", examine()),
            Error::SharedConnections => ("The connection string leads to a transaction pooler", examine()),
            Error::Connect(_) | Error::RootCertificate(_) => ("The database cannot be reached", examine()),
            Error::Crowded(_) | Error::Silent(_) => ("The database responds too slowly", examine()),
            Error::Refused(_) | Error::Answer(_) => ("The database cannot be queried", examine()),
        };
        let reasons = vec![format!("{}.", capitalized(&error.to_string())), RETRIED.to_owned()];
        let commands = remedy.into_iter().collect();
        Verdict { commands, ..Verdict::new(Level::Bad, headline, reasons) }
    }

    /// The same with the time since when.
    #[must_use]
    pub(crate) fn since(mut self, fault: Option<&Fault>) -> Verdict {
        if let Some(fault) = fault {
            self.reasons.push(format!("No webhook could be written since {}.", moment(fault.since.get())));
        }
        self
    }

    /// The same where this process cannot write deliveries: nothing else matters as much.
    #[must_use]
    pub(crate) fn with_fault(mut self, fault: Option<&Fault>) -> Verdict {
        let Some(fault) = fault else { return self };
        let code = fault.sqlstate.as_ref().map(|code| format!(" (SQLSTATE {code})")).unwrap_or_default();
        let reason = format!("Since {}: {}{code}. {RETRIED}", moment(fault.since.get()), fault.summary);
        self.reasons.insert(0, reason);
        Verdict { level: Level::Bad, headline: "Webhooks cannot be written to the database".to_owned(), ..self }
    }

    /// From what the tables and the environment say.
    pub fn of(status: &Status, setup: &Setup) -> Verdict {
        let mut reasons = Reasons::default();
        reasons.of_setup(status, setup);
        reasons.of_passes(status, setup);
        reasons.of_rows(status);
        reasons.of_silence(status);
        reasons.of_what_is_left(status);
        let Reasons { gravest, reasons, mut commands } = reasons;
        commands.dedup();
        let (level, headline) = gravest.map_or((Level::Good, "In sync with Clerk"), Headline::words);
        Verdict { commands, ..Verdict::new(level, headline, reasons) }
    }
}

/// What the page says first, in order: the gravest reason gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Headline {
    DeletionsWait,
    Denied,
    NoSecret,
    CannotStart,
    NoWebhook,
    NoKey,
    Drifting,
    NotCompared,
    Undecided,
    SomethingWaits,
}

impl Headline {
    const fn words(self) -> (Level, &'static str) {
        match self {
            Headline::DeletionsWait => (Level::Bad, "Deletions wait for your approval"),
            Headline::Denied => (Level::Bad, "Some rows cannot be deleted or updated"),
            Headline::NoSecret => (Level::Attention, "CLERK_WEBHOOK_SIGNING_SECRET is not set"),
            Headline::CannotStart => (Level::Attention, "Reconcile cannot start"),
            Headline::NoWebhook => (Level::Attention, "Waiting for the first webhook"),
            Headline::NoKey => (Level::Attention, "CLERK_SECRET_KEY is not set"),
            Headline::Drifting => (Level::Attention, "Out of sync: the counts differ from Clerk's"),
            Headline::NotCompared => (Level::Attention, "Not compared with Clerk recently"),
            Headline::Undecided => (Level::Attention, "Some rows were left as they are"),
            Headline::SomethingWaits => (Level::Attention, "In sync, and something waits for you"),
        }
    }
}

/// Why the mirror may not be in sync, as far as it has been looked at.
#[derive(Default)]
struct Reasons {
    gravest: Option<Headline>,
    reasons: Vec<String>,
    commands: Vec<Remedy>,
}

impl Reasons {
    fn add(&mut self, headline: Headline, reason: String) {
        self.gravest = self.gravest.into_iter().chain([headline]).min();
        self.reasons.push(reason);
    }

    fn remedy(&mut self, remedy: Remedy) {
        self.commands.push(remedy);
    }

    fn of_setup(&mut self, status: &Status, setup: &Setup) {
        for pass in braked(status) {
            let kind = pass.scope.known().and_then(Scope::kind).map_or("rows", Kind::plural);
            let problem = pass.problem.as_deref().unwrap_or("too many rows no longer exist at Clerk");
            let reason = format!(
                "Reconcile no. {} deleted no {kind}, because it would have deleted more than the deletion limit allows: {problem}. Some of \
                 these {kind} are listed below.",
                pass.id
            );
            self.add(Headline::DeletionsWait, reason);
            let purpose = format!("If these {kind} should be deleted");
            self.remedy(Remedy::new(purpose, format!("clerk-sync reconcile --approve {}", pass.id)));
        }
        if status.last_webhook_at.is_none() {
            let url = setup.webhook_url.as_deref().unwrap_or("https://YOUR-HOST/webhooks/clerk");
            self.add(
                Headline::NoWebhook,
                format!(
                    "No webhook has ever arrived. In the Clerk dashboard, open Webhooks → Add Endpoint, enter `{url}`, and select the events {}.",
                    events()
                ),
            );
        }
        if setup.lacks(SECRET) {
            self.add(
                Headline::NoSecret,
                format!(
                    "{SECRET} is not set: every webhook gets a 503 response. Copy the signing secret (whsec_…) from the endpoint's page in \
                     the Clerk dashboard, under Webhooks."
                ),
            );
        }
        if setup.lacks(KEY) {
            self.add(
                Headline::NoKey,
                format!(
                    "{KEY} is not set: reconcile is disabled, and missed webhooks are never repaired. Clerk dashboard → API keys; it begins \
                     with sk_."
                ),
            );
        }
    }

    fn of_passes(&mut self, status: &Status, setup: &Setup) {
        let of_kinds = |is_meant: &dyn Fn(Kind) -> bool| -> Vec<&'static str> {
            Kind::ALL.into_iter().filter(|kind| is_meant(*kind)).map(Kind::plural).collect()
        };
        let missing = of_kinds(&|kind| !is_off(status, kind) && complete_at(status, kind).is_none());
        if missing.len() == Kind::ALL.len() {
            let nothing = "Nothing has been compared with Clerk yet: no reconcile is complete.";
            self.add(Headline::NotCompared, nothing.to_owned());
        } else if !missing.is_empty() {
            self.add(Headline::NotCompared, format!("No reconcile of {} is complete yet.", missing.join(" and ")));
        }
        let old = of_kinds(&|kind| complete_at(status, kind).is_some_and(|ended| status.now - ended > TOO_OLD));
        if !old.is_empty() {
            let old = format!("The last complete reconcile of {} is more than two days old.", old.join(" and "));
            self.add(Headline::NotCompared, old);
        }
        if (!missing.is_empty() || !old.is_empty()) && !setup.lacks(KEY) {
            self.remedy(Remedy::reconcile());
        }
    }

    fn of_rows(&mut self, status: &Status) {
        let apart = |kind| match comparison(status, kind) {
            Some(Comparison::Counted(Counts { here, there }, _)) if here != there => {
                Some(format!("{}: {} here, {} at Clerk", kind.plural(), grouped(here), grouped(there)))
            }
            _ => None,
        };
        let apart: Vec<String> = Kind::ALL.into_iter().filter_map(apart).collect();
        if !apart.is_empty() {
            self.add(
                Headline::Drifting,
                format!(
                    "The counts differ ({}), as counted {} ago. A webhook may be on its way. If the counts still differ at the next \
                     incremental reconcile, a full reconcile starts by itself.",
                    apart.join("; "),
                    counted_at(status).map_or_else(|| "a while".to_owned(), |at| span(status.now - at))
                ),
            );
            self.remedy(Remedy::reconcile());
        }
        if status.denied > 0 {
            let denied: Vec<String> = status.denials.iter().take(5).map(DenialRow::describe).collect();
            self.add(
                Headline::Denied,
                format!(
                    "{} rows cannot be deleted or updated, because your own foreign key, trigger, index or check prevents it: {}. Policies \
                     treat them as deleted; service_role, and views and functions of the tables' owner, still see them.",
                    status.denied,
                    denied.join("; ")
                ),
            );
        }
        if status.refused > 0 {
            let refused = status.refused;
            self.add(
                Headline::SomethingWaits,
                format!(
                    "{refused} rows are not written yet: your own foreign key, trigger, index or check refuses them."
                ),
            );
        }
        if status.denied > 0 || status.refused > 0 {
            self.remedy(Remedy::doctor("To see what is in the way, and what to do"));
        }
    }

    fn of_silence(&mut self, status: &Status) {
        if let Some(failed) = &status.failed_start {
            let (since, tries) = (moment(failed.since), failed.tries);
            self.add(
                Headline::CannotStart,
                format!("No reconcile could start since {since} ({tries} tries): {}.", failed.problem),
            );
        }
        // A webhook that is lost once in a while is no silence.
        let silence = status.last_webhook_at.map(|at| status.now - at).filter(|silence| *silence > SILENT);
        if let Some(silence) = silence.filter(|_| status.drift_since_webhook > 0) {
            self.add(
                Headline::NotCompared,
                format!(
                    "No webhook has arrived for {}, although reconcile found {} rows changed since: is the endpoint at Clerk still enabled?",
                    span(silence),
                    status.drift_since_webhook
                ),
            );
        }
        if let Some(at) = status.went_back_at {
            self.add(
                Headline::SomethingWaits,
                format!(
                    "The database lost data that it had confirmed (a restore, or a failover). A full reconcile began at {} to repair it.",
                    moment(at)
                ),
            );
        }
        if let Some(idle) = idle(status) {
            self.add(
                Headline::NotCompared,
                format!(
                    "Nothing was written and no reconcile completed for {}: policies keep allowing what the tables said then.",
                    span(idle)
                ),
            );
        }
    }

    fn of_what_is_left(&mut self, status: &Status) {
        for kind in Kind::ALL {
            if let Some(pass) = ended(status, kind).filter(|pass| pass.state == PassState::Void) {
                self.add(
                    Headline::NotCompared,
                    format!(
                        "In the last reconcile of {}, Clerk's list contradicts itself: {}.",
                        kind.plural(),
                        pass.problem.as_deref().unwrap_or("?")
                    ),
                );
            }
        }
        for doubt in Kind::ALL.into_iter().filter_map(|kind| doubt(status, kind)) {
            self.add(Headline::Undecided, doubt);
        }
        if status.dead_letters > 0 {
            let webhooks = match status.dead_letters {
                1 => "1 webhook was acknowledged and".to_owned(),
                number => format!("{number} webhooks were acknowledged and"),
            };
            self.add(
                Headline::SomethingWaits,
                format!("{webhooks} could not be applied (dead letters, listed below)."),
            );
        }
    }
}

/// Whether Clerk has the kind switched off.
pub(super) fn is_off(status: &Status, kind: Kind) -> bool {
    let newest = status.passes.iter().find(|pass| pass.scope == Scope::Kind(kind));
    newest.is_some_and(|pass| pass.state == PassState::Skipped)
}

/// The last pass of a kind that ended.
fn ended(status: &Status, kind: Kind) -> Option<&PassRow> {
    status.passes.iter().find(|pass| pass.scope == Scope::Kind(kind) && pass.ended_at.is_some())
}

fn complete_at(status: &Status, kind: Kind) -> Option<i64> {
    status.last_complete.get(kind.as_str()).copied()
}

/// What the last pass of a kind could not judge, in words.
fn doubt(status: &Status, kind: Kind) -> Option<String> {
    let pass = ended(status, kind)?;
    let undecided = undecided_otherwise(pass)?;
    let judge_after = pass.judge_after.map(Millis::clamped);
    Some(format!("In the last reconcile of {}, {}.", kind.plural(), undecided.in_words(judge_after)?))
}

/// What a pass could not judge.
pub fn undecided(pass: &PassRow) -> Option<Undecided> {
    pass.undecided.as_ref().map(Undecided::from)
}

/// The same without what it held back, where that is why it stopped: its problem says so.
pub(super) fn undecided_otherwise(pass: &PassRow) -> Option<Undecided> {
    let all = undecided(pass)?;
    Some(if pass.state == PassState::Braked { Undecided { held_back: 0, ..all } } else { all })
}

/// For how many ms nothing has happened, if quick passes, which come every few minutes, have ever run and that is too long.
fn idle(status: &Status) -> Option<i64> {
    status.last_complete.get(Scope::Quick.as_str())?;
    let last = status.last_complete.values().copied().chain(status.last_webhook_at).max()?;
    Some(status.now - last).filter(|idle| *idle > IDLE)
}

/// Passes that wait for an approval: whatever came behind one of them did not end, or is another scope's.
pub fn braked(status: &Status) -> impl Iterator<Item = &PassRow> {
    let decided = Kind::ALL.into_iter().filter_map(|kind| decided(status, kind));
    decided.filter(|pass| pass.state == PassState::Braked)
}

/// The last pass of a kind that compared every row, or found the kind switched off.
fn decided(status: &Status, kind: Kind) -> Option<&PassRow> {
    let is_decided = |state: PassState| matches!(state, PassState::Complete | PassState::Braked | PassState::Skipped);
    let mut passes = status.passes.iter().filter(|pass| pass.scope == Scope::Kind(kind));
    passes.find(|pass| pass.state.known().is_some_and(is_decided))
}

/// How the rows of a kind compare with Clerk's, and when they were compared.
#[derive(Clone, Copy, Debug)]
pub(super) enum Comparison<'a> {
    /// An incremental reconcile counted both.
    Counted(Counts, i64),
    /// A full one compared every row.
    Listed(&'a PassRow, i64),
}

/// The latest comparison of a kind.
pub(super) fn comparison(status: &Status, kind: Kind) -> Option<Comparison<'_>> {
    let listed = decided(status, kind).filter(|pass| pass.state != PassState::Skipped);
    let listed = listed.and_then(|pass| Some((pass, pass.ended_at?)));
    let counted =
        counting(status).and_then(|pass| pass.counts.as_ref()?.get(kind.as_str()).copied()).zip(counted_at(status));
    match (counted, listed) {
        (Some((counts, at)), Some((_, ended_at))) if at >= ended_at => Some(Comparison::Counted(counts, at)),
        (_, Some((pass, ended_at))) => Some(Comparison::Listed(pass, ended_at)),
        (Some((counts, at)), None) => Some(Comparison::Counted(counts, at)),
        (None, None) => None,
    }
}

/// Rows here and at Clerk, both as the last quick pass that counted saw them: numbers of two moments say nothing beside each other.
pub fn counts(status: &Status) -> Vec<(String, Counts)> {
    let counted = counting(status).and_then(|pass| pass.counts.as_ref());
    counted.map(|counts| counts.iter().map(|(kind, counts)| (kind.clone(), *counts)).collect()).unwrap_or_default()
}

/// When that was.
fn counted_at(status: &Status) -> Option<i64> {
    counting(status).map(|pass| pass.ended_at.unwrap_or(pass.started_at))
}

fn counting(status: &Status) -> Option<&PassRow> {
    status.passes.iter().find(|pass| pass.state == PassState::Complete && pass.counts.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Word;
    use crate::store::status::FailedStart;

    fn pass(id: i64, scope: &str, state: &str) -> PassRow {
        PassRow {
            id,
            scope: Word::of(scope),
            state: Word::of(state),
            problem: None,
            backfill: false,
            started_at: 0,
            ended_at: Some(1),
            listed: 0,
            missing: 0,
            differing: 0,
            extra: 0,
            refreshed: 0,
            undecided: None,
            judge_after: None,
            counts: None,
        }
    }

    fn in_sync() -> Status {
        let last_complete = Kind::ALL.map(|kind| (kind.to_string(), 1_000)).into();
        Status { now: 2_000, last_complete, last_webhook_at: Some(1_900), ..Status::default() }
    }

    fn judge(status: &Status) -> Verdict {
        Verdict::of(status, &Setup::default())
    }

    #[test]
    fn the_worst_gives_the_headline() {
        assert_eq!(judge(&in_sync()).headline, "In sync with Clerk");
        assert_eq!(judge(&Status::default()).headline, "Waiting for the first webhook");
        let old = Status { now: 1_001 + TOO_OLD, ..in_sync() };
        assert_eq!(judge(&old).headline, "Not compared with Clerk recently");
        let letters = Status { dead_letters: 1, ..in_sync() };
        assert_eq!(judge(&letters).headline, "In sync, and something waits for you");
        let counts = [("user".to_owned(), Counts { here: 2, there: 3 })].into();
        let quick = PassRow { counts: Some(counts), ..pass(9, "quick", "complete") };
        let drifting = Status { dead_letters: 1, passes: vec![quick], ..in_sync() };
        assert_eq!(judge(&drifting).headline, "Out of sync: the counts differ from Clerk's");
        let braked = Status { passes: vec![pass(3, "user", "braked"), pass(2, "user", "complete")], ..drifting };
        assert_eq!(judge(&braked).level, Level::Bad);
    }

    #[test]
    fn counts_from_before_a_full_reconcile_say_nothing_any_more() {
        let counts = [("user".to_owned(), Counts { here: 2, there: 3 })].into();
        let quick = PassRow { counts: Some(counts), ..pass(9, "quick", "complete") };
        let full = |ended_at| PassRow { ended_at: Some(ended_at), ..pass(10, "user", "complete") };
        let after = |ended_at| Status { passes: vec![full(ended_at), quick.clone()], ..in_sync() };
        assert_eq!(judge(&after(1)).level, Level::Attention, "counted at the same moment");
        assert_eq!(judge(&after(2)).level, Level::Good, "the full one repaired it");
    }

    #[test]
    fn a_reconcile_that_cannot_begin_and_an_endpoint_that_is_silent_while_clerk_changes_are_reported() {
        let failed =
            FailedStart { since: 0, last_at: 1_000, tries: 9, problem: "Clerk refuses the key (401)".to_owned() };
        let verdict = judge(&Status { failed_start: Some(failed), ..in_sync() });
        assert_eq!((verdict.level, verdict.headline.as_str()), (Level::Attention, "Reconcile cannot start"));
        assert!(verdict.reasons[0].contains("refuses the key (401)"), "{verdict:?}");
        let silent = |silence: i64, drift: u64| {
            let status = in_sync();
            judge(&Status { last_webhook_at: Some(status.now - silence), drift_since_webhook: drift, ..status })
        };
        assert!(silent(16 * 86_400_000, 60).reasons[0].contains("No webhook has arrived for 16 days"));
        assert_eq!(silent(16 * 86_400_000, 0).level, Level::Good, "nothing changed at Clerk");
        assert_eq!(silent(60_000, 1).level, Level::Good, "one was lost a minute ago");
        let never = judge(&Status { last_webhook_at: None, ..in_sync() });
        assert_eq!(never.headline, "Waiting for the first webhook");
        let told = &never.reasons[0];
        assert!(told.contains("/webhooks/clerk") && told.contains("organizationMembership.*"), "{never:?}");
    }

    #[test]
    fn silence_and_passes_that_contradict_themselves_are_told() {
        let mut status = in_sync();
        status.last_complete.insert("quick".to_owned(), 1_500);
        assert_eq!(judge(&status).level, Level::Good);
        status.now = 1_500 + IDLE + 60_000;
        let verdict = judge(&status);
        assert_eq!((verdict.level, verdict.headline.as_str()), (Level::Attention, "Not compared with Clerk recently"));
        assert!(
            verdict.reasons[0].starts_with("Nothing was written and no reconcile completed for 3 h"),
            "{verdict:?}"
        );
        status.last_webhook_at = Some(status.now - 1_000);
        assert_eq!(judge(&status).level, Level::Good);
        let void = PassRow { problem: Some("Clerk counts 9".to_owned()), ..pass(7, "user", "void") };
        let verdict = judge(&Status { passes: vec![void, pass(6, "user", "complete")], ..in_sync() });
        assert_eq!(
            verdict.reasons,
            ["In the last reconcile of users, Clerk's list contradicts itself: Clerk counts 9."]
        );
        let cut = [pass(9, "user", "incomplete"), pass(8, "user", "braked"), pass(7, "user", "complete")];
        assert_eq!(braked(&Status { passes: cut.into(), ..in_sync() }).map(|pass| pass.id).collect::<Vec<_>>(), [8]);
    }

    #[test]
    fn rows_that_were_not_judged_are_not_in_sync() {
        let doubtful =
            PassRow { undecided: Some([("too_fresh".to_owned(), 7)].into()), ..pass(4, "membership", "complete") };
        let verdict = judge(&Status { passes: vec![doubtful], ..in_sync() });
        assert_eq!((verdict.level, verdict.headline.as_str()), (Level::Attention, "Some rows were left as they are"));
        assert!(
            verdict.reasons[0].starts_with("In the last reconcile of memberships, 7 rows were left as they are."),
            "{verdict:?}"
        );
    }

    #[test]
    fn a_variable_that_is_missing_is_named_with_what_is_lost() {
        let without = |name: &'static str| Verdict::of(&in_sync(), &Setup { missing: vec![name], ..Setup::default() });
        for name in ["CLERK_WEBHOOK_SIGNING_SECRET", "CLERK_SECRET_KEY"] {
            let verdict = without(name);
            assert_eq!(
                (verdict.level, verdict.headline.as_str()),
                (Level::Attention, format!("{name} is not set").as_str())
            );
        }
        assert!(without("CLERK_SECRET_KEY").reasons[0].contains("reconcile is disabled"));
    }

    #[test]
    fn only_the_approval_that_works_is_offered() {
        let braked = [pass(9, "user", "braked"), pass(8, "user", "braked"), pass(7, "membership", "complete")];
        let verdict = judge(&Status { passes: braked.into(), ..in_sync() });
        assert_eq!(
            verdict.commands.iter().map(|remedy| &remedy.command).collect::<Vec<_>>(),
            ["clerk-sync reconcile --approve 9"]
        );
    }

    #[test]
    fn why_the_database_cannot_be_asked_gives_the_headline_and_what_to_type() {
        let verdict = Verdict::unknown(&Error::NotMigrated(None));
        assert_eq!(verdict.headline, "The schema is missing or of an older version");
        assert_eq!(verdict.commands, [Remedy::migrate()]);
        let away = Verdict::unknown(&Error::Silent(std::time::Duration::from_secs(15)));
        assert_eq!((away.level, away.headline.as_str()), (Level::Bad, "The database responds too slowly"));
    }

    #[test]
    fn a_feature_that_is_off_is_not_missed() {
        let mut status = in_sync();
        status.last_complete.remove("organization");
        status.passes = vec![pass(1, "organization", "skipped")];
        assert_eq!(judge(&status).level, Level::Good);
    }
}

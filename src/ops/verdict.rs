//! Is the mirror in step with Clerk? One answer, in words. Pure.

use super::page::{moment, span};
use crate::model::{Kind, Millis, PassState, Scope, Undecided};
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

/// The answer, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub level: Level,
    pub headline: &'static str,
    pub because: Vec<String>,
}

impl Verdict {
    /// The database could not be asked.
    pub fn unknown(error: &str) -> Verdict {
        let because =
            vec![format!("It says: {error}. Webhooks are answered with 503, and Svix tries again for about a day.")];
        Verdict { level: Level::Bad, headline: "The database does not answer", because }
    }

    /// The same where this process cannot write deliveries: nothing else matters as much.
    #[must_use]
    pub(crate) fn with_fault(mut self, fault: Option<&Fault>) -> Verdict {
        let Some(fault) = fault else { return self };
        let code = fault.sqlstate.as_ref().map(|code| format!(" (SQLSTATE {code})")).unwrap_or_default();
        let reason = format!(
            "Since {}: {}{code}. Webhooks are answered with 503, and Svix tries again for about a day.",
            moment(fault.since.get()),
            fault.summary
        );
        self.because.insert(0, reason);
        Verdict { level: Level::Bad, headline: "Deliveries cannot be written", because: self.because }
    }

    /// From what the tables tell.
    pub fn of(status: &Status) -> Verdict {
        let mut because = Vec::new();
        for pass in braked(status) {
            because.push(format!("Pass {} was stopped before it deleted too much; see below.", pass.id));
        }
        let is_braked = !because.is_empty();
        let missing: Vec<&str> = Kind::ALL
            .into_iter()
            .filter(|kind| !is_off(status, *kind) && complete_at(status, *kind).is_none())
            .map(Kind::plural)
            .collect();
        if missing.len() == Kind::ALL.len() {
            because.push("No pass has completed yet: nobody knows what webhooks missed.".to_owned());
        } else if !missing.is_empty() {
            because.push(format!("No pass of {} has completed yet.", missing.join(" and ")));
        }
        let is_unproven = !missing.is_empty();
        let old: Vec<&str> = Kind::ALL
            .into_iter()
            .filter(|kind| complete_at(status, *kind).is_some_and(|ended| status.now - ended > TOO_OLD))
            .map(Kind::plural)
            .collect();
        if !old.is_empty() {
            because.push(format!("The last complete pass of {} is more than two days old.", old.join(" and ")));
        }
        let apart: Vec<String> = counts(status)
            .into_iter()
            .filter(|(_, counts)| counts.here != counts.there)
            .map(|(kind, counts)| format!("{kind}s: {} here, {} at Clerk", counts.here, counts.there))
            .collect();
        if !apart.is_empty() {
            because.push(format!(
                "The counts disagree ({}). A pass is asked for if they still do next time.",
                apart.join("; ")
            ));
        }
        if status.denied > 0 {
            let denied: Vec<String> = status.denials.iter().take(5).map(DenialRow::describe).collect();
            because.push(format!(
                "{} of the mirror's rows give access that has ended, because something of the application's keeps them: {}. Policies \
                 of clerk-sync deny it; service_role and views and functions of the tables' owner do not.",
                status.denied,
                denied.join("; ")
            ));
        }
        if status.refused > 0 {
            because.push(format!(
                "{} rows are not written yet: something of the application's refuses them.",
                status.refused
            ));
        }
        if let Some(failed) = &status.failed_start {
            let since = moment(failed.since);
            because.push(format!("No pass could begin since {since} ({} tries): {}.", failed.tries, failed.problem));
        }
        // A webhook that is lost once in a while is no silence.
        let silence = status.last_webhook_at.map(|at| status.now - at);
        let is_silent = status.drift_since_webhook > 0 && silence.is_none_or(|silence| silence > SILENT);
        if is_silent {
            let silence =
                silence.map_or("has ever come".to_owned(), |silence| format!("has come for {}", span(silence)));
            because.push(format!(
                "No webhook {silence}, although passes found {} rows changed since: does the endpoint at Clerk still send here?",
                status.drift_since_webhook
            ));
        }
        if let Some(at) = status.went_back_at {
            because.push(format!(
                "The database lost what it had acknowledged (a restore, or a failover). Passes over everything began at {}.",
                moment(at)
            ));
        }
        let is_idle = idle(status);
        if let Some(idle) = is_idle {
            because.push(format!(
                "Nothing was written and no pass was complete for {}: policies go on granting what the mirror said then.",
                span(idle)
            ));
        }
        let void: Vec<String> = Kind::ALL
            .into_iter()
            .filter_map(|kind| Some((kind, ended(status, kind)?)))
            .filter(|(_, pass)| pass.state == PassState::Void)
            .map(|(kind, pass)| {
                format!(
                    "The last pass of {} contradicts itself: {}.",
                    kind.plural(),
                    pass.problem.as_deref().unwrap_or("?")
                )
            })
            .collect();
        let is_void = !void.is_empty();
        because.extend(void);
        let doubts: Vec<String> = Kind::ALL.into_iter().filter_map(|kind| doubt(status, kind)).collect();
        let is_in_doubt = !doubts.is_empty();
        because.extend(doubts);
        if status.dead_letters > 0 {
            let webhooks = if status.dead_letters == 1 {
                "1 webhook".to_owned()
            } else {
                format!("{} webhooks", status.dead_letters)
            };
            because.push(format!("{webhooks} could not be used; see the dead letters below."));
        }
        let (level, headline) = if is_braked {
            (Level::Bad, "A pass waits for approval")
        } else if status.denied > 0 {
            (Level::Bad, "Rows give access that has ended")
        } else if !apart.is_empty() {
            (Level::Attention, "Drifting")
        } else if is_unproven
            || is_silent
            || is_idle.is_some()
            || is_void
            || status.failed_start.is_some()
            || !old.is_empty()
        {
            (Level::Attention, "Not proven lately")
        } else if is_in_doubt {
            (Level::Attention, "Not all rows were judged")
        } else if !because.is_empty() {
            (Level::Attention, "In step, but something waits for you")
        } else {
            (Level::Good, "In step with Clerk")
        };
        Verdict { level, headline, because }
    }
}

fn is_off(status: &Status, kind: Kind) -> bool {
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
    let undecided = undecided(pass)?;
    let judge_after = pass.judge_after.map(Millis::clamped);
    Some(format!("The last pass of {}: {}.", kind.plural(), undecided.in_words(judge_after)?))
}

/// What a pass could not judge.
pub fn undecided(pass: &PassRow) -> Option<Undecided> {
    pass.undecided.as_ref().map(Undecided::from)
}

/// For how many ms nothing has happened, if quick passes, which come every few minutes, have ever run and that is too long.
fn idle(status: &Status) -> Option<i64> {
    status.last_complete.get(Scope::Quick.as_str())?;
    let last = status.last_complete.values().copied().chain(status.last_webhook_at).max()?;
    Some(status.now - last).filter(|idle| *idle > IDLE)
}

/// Passes that wait for an approval: whatever came behind one of them did not end, or is another scope's.
pub fn braked(status: &Status) -> impl Iterator<Item = &PassRow> {
    let is_decided = |state: PassState| matches!(state, PassState::Complete | PassState::Braked | PassState::Skipped);
    let decided = move |kind: Kind| {
        let mut passes = status.passes.iter().filter(move |pass| pass.scope == Scope::Kind(kind));
        passes.find(|pass| pass.state.known().is_some_and(is_decided))
    };
    Kind::ALL.into_iter().filter_map(decided).filter(|pass| pass.state == PassState::Braked)
}

/// Rows here and at Clerk, as the last quick pass that counted saw them.
pub fn counts(status: &Status) -> Vec<(String, Counts)> {
    let counted =
        status.passes.iter().filter(|pass| pass.state == PassState::Complete).find_map(|pass| pass.counts.as_ref());
    counted.map(|counts| counts.iter().map(|(kind, counts)| (kind.clone(), *counts)).collect()).unwrap_or_default()
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

    fn in_step() -> Status {
        let last_complete = Kind::ALL.map(|kind| (kind.to_string(), 1_000)).into();
        Status { now: 2_000, last_complete, ..Status::default() }
    }

    #[test]
    fn the_worst_gives_the_headline() {
        assert_eq!(Verdict::of(&in_step()).headline, "In step with Clerk");
        assert_eq!(Verdict::of(&Status::default()).headline, "Not proven lately");
        let old = Status { now: 1_001 + TOO_OLD, ..in_step() };
        assert_eq!(Verdict::of(&old).headline, "Not proven lately");
        let letters = Status { dead_letters: 1, ..in_step() };
        assert_eq!(Verdict::of(&letters).headline, "In step, but something waits for you");
        let counts = [("user".to_owned(), Counts { here: 2, there: 3 })].into();
        let quick = PassRow { counts: Some(counts), ..pass(9, "quick", "complete") };
        let drifting = Status { dead_letters: 1, passes: vec![quick], ..in_step() };
        assert_eq!(Verdict::of(&drifting).headline, "Drifting");
        let braked = Status { passes: vec![pass(3, "user", "braked"), pass(2, "user", "complete")], ..drifting };
        assert_eq!(Verdict::of(&braked).level, Level::Bad);
    }

    #[test]
    fn a_pass_that_cannot_begin_and_an_endpoint_that_is_silent_while_clerk_changes_are_told() {
        let failed =
            FailedStart { since: 0, last_at: 1_000, tries: 9, problem: "Clerk refuses the key (401)".to_owned() };
        let verdict = Verdict::of(&Status { failed_start: Some(failed), ..in_step() });
        assert_eq!((verdict.level, verdict.headline), (Level::Attention, "Not proven lately"));
        assert!(verdict.because[0].contains("refuses the key (401)"), "{verdict:?}");
        let silent = |silence: i64, drift: u64| {
            let status = in_step();
            Verdict::of(&Status { last_webhook_at: Some(status.now - silence), drift_since_webhook: drift, ..status })
        };
        assert!(silent(16 * 86_400_000, 60).because[0].contains("No webhook has come for 16 days"));
        assert_eq!(silent(16 * 86_400_000, 0).level, Level::Good, "nothing changed at Clerk");
        assert_eq!(silent(60_000, 1).level, Level::Good, "one was lost a minute ago");
        let never = Verdict::of(&Status { drift_since_webhook: 1, ..in_step() });
        assert!(never.because[0].contains("No webhook has ever come"), "{never:?}");
    }

    #[test]
    fn silence_and_passes_that_contradict_themselves_are_told() {
        let mut status = in_step();
        status.last_complete.insert("quick".to_owned(), 1_500);
        assert_eq!(Verdict::of(&status).level, Level::Good);
        status.now = 1_500 + IDLE + 60_000;
        let verdict = Verdict::of(&status);
        assert_eq!((verdict.level, verdict.headline), (Level::Attention, "Not proven lately"));
        assert!(verdict.because[0].starts_with("Nothing was written and no pass was complete for 3 h"), "{verdict:?}");
        status.last_webhook_at = Some(status.now - 1_000);
        assert_eq!(Verdict::of(&status).level, Level::Good);
        let void = PassRow { problem: Some("Clerk counts 9".to_owned()), ..pass(7, "user", "void") };
        let verdict = Verdict::of(&Status { passes: vec![void, pass(6, "user", "complete")], ..in_step() });
        assert_eq!(verdict.because, ["The last pass of users contradicts itself: Clerk counts 9."]);
        let cut = [pass(9, "user", "incomplete"), pass(8, "user", "braked"), pass(7, "user", "complete")];
        assert_eq!(braked(&Status { passes: cut.into(), ..in_step() }).map(|pass| pass.id).collect::<Vec<_>>(), [8]);
    }

    #[test]
    fn rows_that_were_not_judged_are_not_in_step() {
        let doubtful =
            PassRow { undecided: Some([("too_fresh".to_owned(), 7)].into()), ..pass(4, "membership", "complete") };
        let verdict = Verdict::of(&Status { passes: vec![doubtful], ..in_step() });
        assert_eq!((verdict.level, verdict.headline), (Level::Attention, "Not all rows were judged"));
        assert!(verdict.because[0].starts_with("The last pass of memberships: 7 rows were not judged"), "{verdict:?}");
    }

    #[test]
    fn a_feature_that_is_off_is_not_missed() {
        let mut status = in_step();
        status.last_complete.remove("organization");
        status.passes = vec![pass(1, "organization", "skipped")];
        assert_eq!(Verdict::of(&status).level, Level::Good);
    }
}

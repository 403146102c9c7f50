//! The steps of a full pass: list and compare, confirm what was absent, settle what waits for a read, end.

mod absent;

use super::compare::{Difference, Found, compare};
use super::finding::{Finding, is_gone};
use super::list::{List, Page};
use super::window::{Window, Windows};
use super::{Error, Progress, REPORTED, Reconciler, Report, ladder};
use crate::clerk::client::{self, ASKED, Client, Read};
use crate::clerk::kinds;
use crate::clerk::listing::tolerance;
use crate::model::{
    Batch, Change, Claim, Drift, Fence, Kind, Millis, Outcome, PassState, Reason, Refusal, Scope, Source, Step,
    Undecided, Verdict,
};
use crate::store::{Database, Ending, Mirrored, PageRecord, Pass, Session};
use crate::telemetry::{DRIFT, PASSES};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Instant;

/// How many ids a report names of what contradicts webhooks.
const NAMED: usize = 100;
/// R2, R4, R7, in ms: what was observed so long before a pass began may have been overtaken on its way to us.
const MARGIN: i64 = 300_000;
/// How much later than it was observed something counts, in ms: so much an answer is made older by (R1), and a little.
const BEHIND: i64 = 10_000;
/// Between the moment from which what was seen too lately can be judged and the pass that judges it, in ms.
const AGAIN: i64 = 5_000;
/// Ids asked of the mirror at once.
const IDS: usize = 1_000;
/// Absentees that a dry run remembers: more than any brake lets go.
const REMEMBERED: usize = 1_000;

/// Rows that were refused and are named in a report.
const REFUSED_NAMED: usize = 5;

/// A pass that is asked for.
pub(super) struct Request<'a> {
    pub(super) kind: Kind,
    pub(super) reason: &'a str,
    /// By Clerk's clock, as an answer of now has it.
    pub(super) began_at: Millis,
}

/// Runs a pass of a kind, or goes on with the last one if that has listed something and did not come to its end. Without a lease it
/// is a dry run. `held`: users and organizations whose deletion a dry run has found to be held back; it leaves no trace for the next
/// kind to find.
pub(super) async fn run(
    reconciler: &Reconciler,
    session: &mut Session,
    fence: Option<Fence>,
    request: Request<'_>,
    held: &mut HashSet<String>,
    progress: &mut dyn Progress,
) -> Result<Report, Error> {
    let Request { kind, reason, began_at } = request;
    let row = match fence {
        Some(fence) => {
            session.open_pass(fence, Scope::Kind(kind), reason, began_at, reconciler.times.resume_within).await?
        }
        None => dry(Scope::Kind(kind), session.mark(kind).await?.is_none(), began_at),
    };
    let mut run = Run::new(reconciler, session, fence, row, began_at);
    run.parents_away.clone_from(held);
    let result = run.steps(kind, progress).await;
    if matches!(result, Ok(PassState::Braked)) {
        held.extend(std::mem::take(&mut run.absent));
    }
    run.end(result, None).await
}

/// Goes on with a pass that somebody approved.
pub(super) async fn go_on(
    reconciler: &Reconciler,
    session: &mut Session,
    fence: Fence,
    row: Pass,
    began_at: Millis,
    progress: &mut dyn Progress,
) -> Result<Report, Error> {
    let kind = row.scope.kind().ok_or(Error::NotBraked(row.id))?;
    let mut run = Run::new(reconciler, session, Some(fence), row, began_at);
    let result = run.steps(kind, progress).await;
    run.end(result, None).await
}

/// The row that a dry run does not write.
pub(super) fn dry(scope: Scope, backfill: bool, began_at: Millis) -> Pass {
    Pass {
        id: 0,
        scope,
        problem: None,
        step: Step::List,
        position: None,
        approved: false,
        backfill,
        observed_from: began_at,
        resumed: false,
        listed: 0,
        refreshed: 0,
        missing: 0,
        differing: 0,
        extra: 0,
    }
}

/// A pass that is under way.
pub(super) struct Run<'a> {
    clerk: &'a Client,
    database: &'a Database,
    pub(super) session: &'a mut Session,
    /// `None`: a dry run.
    fence: Option<Fence>,
    pub(super) row: Pass,
    pub(super) position: Option<Value>,
    began: Instant,
    /// The same moment by Clerk's clock, as an answer of then has it.
    began_at: Millis,
    calls_before: u64,
    findings: Vec<Finding>,
    /// Of a dry run, which has no table to keep them in.
    absent: BTreeSet<String>,
    /// Of memberships: users and organizations that are not at Clerk any more, and not deleted here yet.
    parents_away: HashSet<String>,
    /// Of memberships that nobody could read in this pass: they are not asked for once more.
    unread: HashSet<String>,
    /// Rows that the database refused, and why.
    refused: BTreeMap<String, Refusal>,
    undecided: Undecided,
    /// Objects of which Clerk's API says something older than what its events said. (Of a million, the first ones.)
    contradictions: BTreeSet<String>,
    judge_after: Option<Millis>,
    held: Option<String>,
}

/// What one page, or one answer about absentees, brings.
#[derive(Default)]
pub(super) struct Observed<'a> {
    /// Of a quick pass: which kind; else the pass's own.
    pub(super) kind: Option<Kind>,
    pub(super) listed: usize,
    /// The listing has gone past all that was created before this.
    pub(super) listed_to: Option<Millis>,
    pub(super) absent: &'a [String],
    pub(super) settled: &'a [String],
}

impl<'a> Run<'a> {
    pub(super) fn new(
        reconciler: &'a Reconciler,
        session: &'a mut Session,
        fence: Option<Fence>,
        row: Pass,
        began_at: Millis,
    ) -> Run<'a> {
        let (clerk, database) = (&*reconciler.clerk, &reconciler.database);
        let position = row.position.as_deref().and_then(|position| serde_json::from_str(position).ok());
        let (findings, absent) = (Vec::new(), BTreeSet::new());
        let (began, calls_before) = (Instant::now(), clerk.calls());
        let (parents_away, unread, undecided) = (HashSet::new(), HashSet::new(), Undecided::default());
        Run {
            clerk,
            database,
            session,
            fence,
            row,
            position,
            began,
            began_at,
            calls_before,
            findings,
            absent,
            parents_away,
            unread,
            refused: BTreeMap::new(),
            undecided,
            contradictions: BTreeSet::new(),
            judge_after: None,
            held: None,
        }
    }

    async fn steps(&mut self, kind: Kind, progress: &mut dyn Progress) -> Result<PassState, Error> {
        if self.row.step == Step::List {
            self.list(kind, progress).await?;
            self.step(Step::Confirm).await?;
        }
        let mut state = PassState::Complete;
        if self.row.step == Step::Confirm {
            // What the brake stops are deletions of this kind, and nothing else.
            if self.is_too_much(kind).await? && !self.row.approved {
                self.reads(kind).await?;
                return Ok(PassState::Braked);
            }
            state = self.confirm(kind).await?;
            self.step(Step::Reads).await?;
        }
        self.reads(kind).await?;
        if state == PassState::Incomplete {
            self.step(Step::End).await?;
        }
        Ok(state)
    }

    /// Whether it is no dry run.
    pub(super) const fn is_recorded(&self) -> bool {
        self.fence.is_some()
    }

    async fn step(&mut self, step: Step) -> Result<(), Error> {
        self.row.step = step;
        self.observe(Source::List, &[], Observed::default()).await
    }

    /// Lists everything and compares it, page by page. While one page is written, the next is fetched, with its rows here.
    async fn list(&mut self, kind: Kind, progress: &mut dyn Progress) -> Result<(), Error> {
        let position = self.position.clone();
        let from = position.as_ref().and_then(|position| position["from"].as_i64()).unwrap_or(0);
        let mut windows = Windows::from(Millis::clamped(from));
        let mut list = List::new(self.clerk, kind, position.as_ref());
        let mut reader = self.database.connect_for_passes().await?;
        let mut fetch = async || -> Result<(Page, Vec<Mirrored>), Error> {
            let page = list.page().await?;
            let mirrored = mirrored_rows(&mut reader, kind, &page.changes).await?;
            Ok((page, mirrored))
        };
        let (mut page, mut mirrored) = fetch().await?;
        let total = self.total(kind, &page).await?;
        loop {
            let is_last = page.is_last;
            let next = async { if is_last { None } else { Some(fetch().await) } };
            let (next, compared) = tokio::join!(next, self.compare_page(kind, &page, &mirrored, &mut windows));
            compared?;
            progress.listed(kind, self.row.listed.cast_unsigned(), Some(total));
            match next {
                Some(next) => (page, mirrored) = next?,
                None => break,
            }
        }
        self.without_time(kind).await?;
        let mut counted = self.total(kind, &page).await?;
        if list.can_go_on() && counted > self.row.listed.cast_unsigned() {
            // Some may have been made since the last page.
            let page = list.page().await?;
            let mirrored = mirrored_rows(self.session, kind, &page.changes).await?;
            let observed = Observed { listed: page.changes.len(), ..Observed::default() };
            self.compared(Source::List, &page.changes, &mirrored, observed).await?;
            counted = self.clerk.count(kind).await?;
        }
        let listed = self.row.listed.cast_unsigned();
        contradiction(kind, counted, listed)?;
        self.undecided.not_listed = counted.saturating_sub(listed).max(page.unlisted);
        Ok(())
    }

    /// How many Clerk has: some of its lists do not say.
    async fn total(&self, kind: Kind, page: &Page) -> Result<u64, Error> {
        match page.total {
            Some(total) => Ok(total),
            None => Ok(self.clerk.count(kind).await?),
        }
    }

    async fn compare_page(
        &mut self,
        kind: Kind,
        page: &Page,
        mirrored: &[Mirrored],
        windows: &mut Windows,
    ) -> Result<(), Error> {
        let rows: Vec<(Option<Millis>, &str)> =
            page.changes.iter().filter_map(|change| Some((change.created_at(), change.id()?))).collect();
        let passed = windows.pass(&rows, page.is_last)?;
        let absent = match passed.window {
            Some(window) => self.unseen(kind, &window).await?,
            None => Vec::new(),
        };
        if let Some(position) = page.resume_at(kind, windows.open_from()) {
            self.position = Some(position);
        }
        let listed_to = Some(if page.is_last { Millis::MAX } else { windows.open_from() });
        let observed = Observed { listed: passed.new, listed_to, absent: &absent, ..Observed::default() };
        self.compared(Source::List, &page.changes, mirrored, observed).await
    }

    /// Ids that the mirror has in a window, and the listing had not. Many of them are written on the way.
    async fn unseen(&mut self, kind: Kind, window: &Window) -> Result<Vec<String>, Error> {
        let mut absent: Vec<String> = Vec::new();
        let mut after = None;
        loop {
            let made = self.session.ids_made_between(kind, window.from, window.to, after.as_ref(), IDS).await?;
            absent.extend(made.iter().map(|(_, id)| id).filter(|id| !window.saw(id)).cloned());
            if made.len() < IDS {
                return Ok(absent);
            }
            after = made.last().cloned();
            if absent.len() > REMEMBERED {
                let observed = Observed { absent: &absent, ..Observed::default() };
                self.observe(Source::List, &[], observed).await?;
                absent.clear();
            }
        }
    }

    /// Rows that do not say when they were made are in no window: they are asked for by id.
    async fn without_time(&mut self, kind: Kind) -> Result<(), Error> {
        let mut after = String::new();
        loop {
            let ids = self.session.ids_without_time(kind, &after, IDS).await?;
            let Some(last) = ids.last() else { return Ok(()) };
            last.clone_into(&mut after);
            self.observe(Source::List, &[], Observed { absent: &ids, ..Observed::default() }).await?;
        }
    }

    /// Reads what only a read can settle.
    async fn reads(&mut self, kind: Kind) -> Result<(), Error> {
        if self.fence.is_none() {
            return Ok(());
        }
        let mut after = String::new();
        loop {
            let mut wanted = self.session.pending_reads(kind, &after, ASKED, false).await?;
            let Some(last) = wanted.last() else { return Ok(()) };
            last.id.clone_into(&mut after);
            wanted.retain(|read| !self.unread.contains(&read.id));
            let Read { changes, undecided } = self.clerk.read(kind, &wanted).await?;
            let is_unusable = |change: &&Change| matches!(change.claim, Claim::Unusable(_));
            self.undecided.unreadable += (undecided.len() + changes.iter().filter(is_unusable).count()) as u64;
            self.observe(Source::Read, &changes, Observed::default()).await?;
            let ids: Vec<&str> = wanted.iter().map(|read| read.id.as_str()).collect();
            // Those that were asked for just now are left to whoever makes reads between passes.
            self.session.note_tried(kind, &ids, &ids).await?;
        }
    }

    /// Holds what was seen against the mirror.
    pub(super) async fn observe(
        &mut self,
        source: Source,
        changes: &[Change],
        observed: Observed<'_>,
    ) -> Result<(), Error> {
        let kind = observed.kind.or(self.row.scope.kind()).unwrap_or(Kind::User);
        let mirrored = mirrored_rows(self.session, kind, changes).await?;
        self.compared(source, changes, &mirrored, observed).await
    }

    /// Writes what differs, and remembers how far the pass has come.
    async fn compared(
        &mut self,
        source: Source,
        changes: &[Change],
        mirrored: &[Mirrored],
        observed: Observed<'_>,
    ) -> Result<(), Error> {
        let kind = observed.kind.or(self.row.scope.kind()).unwrap_or(Kind::User);
        let differences = compare(changes, mirrored);
        let refreshed = differences.iter().filter(|difference| matches!(difference.found, Found::Refreshed)).count();
        let mut findings = self.findings(kind, changes, &differences).await?;
        // A read has something to settle even where it finds nothing new.
        let written: Vec<&Change> = match source {
            Source::Read | Source::Undelete => changes.iter().collect(),
            Source::List | Source::Webhook => differences.iter().map(|difference| difference.change).collect(),
        };
        let place: HashMap<&str, usize> =
            written.iter().enumerate().filter_map(|(n, change)| Some((change.id()?, n))).collect();
        for finding in &mut findings {
            finding.n = place.get(finding.entity_id.as_str()).copied();
        }
        self.row.listed += i64::try_from(observed.listed).unwrap_or(0);
        match self.fence {
            Some(fence) => self.record(fence, source, &written, findings, refreshed, observed).await,
            None => {
                self.row.refreshed += i64::try_from(refreshed).unwrap_or(0);
                let room = REMEMBERED.saturating_sub(self.absent.len());
                self.absent.extend(observed.absent.iter().take(room).cloned());
                self.count(&findings);
                self.keep(findings);
                Ok(())
            }
        }
    }

    async fn record(
        &mut self,
        fence: Fence,
        source: Source,
        written: &[&Change],
        mut findings: Vec<Finding>,
        refreshed: usize,
        observed: Observed<'_>,
    ) -> Result<(), Error> {
        let batch = Batch::of_changes(source, written.iter().copied()).fenced(fence);
        let mut record = PageRecord {
            id: self.row.id,
            fence,
            step: self.row.step,
            position: self.position.clone(),
            listed_to: if self.row.step == Step::List { observed.listed_to } else { Some(Millis::MAX) },
            listed: observed.listed,
            refreshed,
            findings: &findings,
            absent: observed.absent,
            settled: observed.settled,
            outcomes: None,
        };
        let verdicts = match self.session.record_page(&record, &batch, written.len()).await {
            Err(error) if error.refusal().is_some() && !written.is_empty() => {
                let ladder::Written { verdicts, refused } =
                    ladder::write(self.session, source, Some(fence), written).await?;
                self.refused.extend(refused);
                let outcomes = verdicts.iter().enumerate();
                let outcomes = outcomes.filter_map(|(n, verdict)| Some((n, verdict.as_ref()?.outcome.as_str())));
                record.outcomes = Some(outcomes.collect());
                self.session.record_page(&record, &batch, written.len()).await?;
                verdicts
            }
            verdicts => verdicts?,
        };
        for (change, verdict) in written.iter().zip(&verdicts) {
            if let (Some(id), Some(verdict)) = (change.id(), verdict) {
                self.note_contradiction(id, verdict);
            }
        }
        findings.retain(|finding| {
            let verdict = finding.n.and_then(|n| verdicts.get(n)?.as_ref());
            verdict.is_some_and(|verdict| matches!(verdict.outcome, Outcome::Applied | Outcome::Unchanged))
        });
        self.count(&findings);
        self.keep(findings);
        Ok(())
    }

    /// Remembers what contradicts what webhooks said, until a later read of the pass does not.
    fn note_contradiction(&mut self, id: &str, verdict: &Verdict) {
        let contradicts = verdict.outcome == Outcome::Stale
            && verdict.known_reason().is_some_and(|reason| reason.contradicts() || reason == Reason::Deleted);
        if !contradicts {
            self.contradictions.remove(id);
        } else if self.contradictions.len() < REPORTED {
            self.contradictions.insert(id.to_owned());
        }
        self.undecided.contradicting = self.contradictions.len() as u64;
    }

    async fn findings(
        &mut self,
        kind: Kind,
        changes: &[Change],
        differences: &[Difference<'_>],
    ) -> Result<Vec<Finding>, Error> {
        let gone: Vec<&str> = changes.iter().filter(|change| is_gone(change)).filter_map(Change::id).collect();
        let standing = if gone.is_empty() { Vec::new() } else { self.session.standing(kind, &gone).await? };
        let told = |difference: &&Difference<'_>| match difference.found {
            // What a first pass adds was never here.
            Found::Missing => !self.row.backfill,
            Found::Differing { .. } => true,
            Found::Refreshed | Found::Unusable => false,
        };
        let differences: Vec<&Difference<'_>> = differences.iter().filter(told).collect();
        let mut ids: Vec<&str> = differences.iter().filter_map(|difference| difference.change.id()).collect();
        ids.extend(standing.iter().map(|row| row.read.id.as_str()));
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let receipts = self.session.last_receipts(&ids).await?;
        let differing = differences.iter().filter_map(|difference| Finding::of(kind, difference, &receipts));
        let extra = standing.iter().map(|row| Finding::extra(kind, row, &receipts));
        Ok(differing.chain(extra).collect())
    }

    fn count(&mut self, findings: &[Finding]) {
        for finding in findings {
            metrics::counter!(DRIFT, "kind" => finding.kind.as_str(), "drift" => finding.drift.as_str(), "cause" => finding.cause).increment(1);
            match finding.drift {
                Drift::Missing => self.row.missing += 1,
                Drift::Differing => self.row.differing += 1,
                Drift::Extra => self.row.extra += 1,
            }
        }
    }

    fn keep(&mut self, findings: Vec<Finding>) {
        let room = REPORTED.saturating_sub(self.findings.len());
        self.findings.extend(findings.into_iter().take(room).map(|finding| Finding { n: None, ..finding }));
    }

    /// The time by Clerk's clock.
    fn clerk_now(&self) -> Millis {
        let elapsed = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.began_at.plus(BEHIND).plus(elapsed)
    }

    /// Writes down how the pass ended, and reports it. An error of ours or Clerk's makes it incomplete, not fail.
    pub(super) async fn end(
        mut self,
        result: Result<PassState, Error>,
        counts: Option<Value>,
    ) -> Result<Report, Error> {
        let is_listing = self.row.step == Step::List;
        let state = match result {
            Ok(state) => state,
            Err(Error::Clerk(client::Error::OrganizationsOff))
                if self.row.scope.kind().is_none_or(|kind| kinds::of(kind).needs_organizations) =>
            {
                self.row.problem = Some("organizations are switched off in this Clerk instance".to_owned());
                PassState::Skipped
            }
            Err(Error::Database(error)) if error.is_lease_lost() => return Err(error.into()),
            Err(error) => {
                self.row.problem = Some(error.to_string());
                match error {
                    Error::Contradiction(_) | Error::OutOfOrder(_) if is_listing => PassState::Void,
                    _ => PassState::Incomplete,
                }
            }
        };
        self.undecided.refused = self.refused.len() as u64;
        if !self.refused.is_empty() {
            let named: Vec<String> =
                self.refused.iter().take(REFUSED_NAMED).map(|(id, refusal)| format!("{id} ({refusal})")).collect();
            let more = if self.refused.len() > REFUSED_NAMED { ", and others" } else { "" };
            let refused = format!("the database refuses the row of {}{more}", named.join(", "));
            self.row.problem = Some(match self.row.problem.take() {
                Some(problem) => format!("{problem}; {refused}"),
                None => refused,
            });
        }
        let judge_in = self.judge_after.map(|at| at.get() - self.clerk_now().get());
        if let Some(fence) = self.fence {
            let problem = self.row.problem.as_deref();
            let ending = Ending {
                undecided: Some(self.undecided).filter(|undecided| undecided.total() > 0),
                judge_after: self.judge_after,
                again_in: judge_in.map(|ms| ms.max(0) + AGAIN),
                held: self.held.take().filter(|_| state == PassState::Braked),
            };
            match self.session.end_pass(fence, self.row.id, state, problem, counts.as_ref(), &ending).await {
                Ok(row) => self.row = row,
                // The row says that it runs: the next pass takes it for one that was cut.
                Err(error) if state.is_failure() => tracing::debug!(%error, "the end of a pass is not noted"),
                Err(error) => return Err(error.into()),
            }
        }
        let unsigned = |count: i64| count.max(0).cast_unsigned();
        let report = Report {
            pass: self.fence.map(|_| self.row.id),
            scope: self.row.scope,
            state,
            problem: self.row.problem,
            dry_run: self.fence.is_none(),
            backfill: self.row.backfill,
            resumed: self.row.resumed,
            listed: unsigned(self.row.listed),
            refreshed: unsigned(self.row.refreshed),
            missing: unsigned(self.row.missing),
            differing: unsigned(self.row.differing),
            extra: unsigned(self.row.extra),
            undecided: self.undecided,
            judge_after: self.judge_after,
            contradictions: self.contradictions.into_iter().take(NAMED).collect(),
            is_at_end: self.row.step == Step::End,
            calls: self.clerk.calls() - self.calls_before,
            seconds: self.began.elapsed().as_secs_f64(),
            findings: self.findings,
        };
        tracing::info!(
            pass = report.pass,
            scope = report.scope.as_str(),
            state = state.as_str(),
            problem = report.problem,
            resumed = report.resumed,
            listed = report.listed,
            missing = report.missing,
            differing = report.differing,
            extra = report.extra,
            refreshed = report.refreshed,
            undecided = report.undecided.total(),
            contradictions = report.contradictions.join(" "),
            calls = report.calls,
            ms = self.began.elapsed().as_millis(),
            "pass"
        );
        metrics::counter!(PASSES, "scope" => report.scope.as_str(), "state" => state.as_str()).increment(1);
        Ok(report)
    }
}

/// The rows here of what is there.
async fn mirrored_rows(session: &mut Session, kind: Kind, changes: &[Change]) -> Result<Vec<Mirrored>, Error> {
    let ids: Vec<&str> = changes.iter().filter(|change| !is_gone(change)).filter_map(Change::id).collect();
    if ids.is_empty() { Ok(Vec::new()) } else { Ok(session.mirrored(kind, &ids).await?) }
}

/// A list that is much shorter than its count is no list. A little shorter it may be: rows come and go meanwhile.
fn contradiction(kind: Kind, counted: u64, listed: u64) -> Result<(), Error> {
    let allowed = if listed == 0 { 0 } else { tolerance(counted) };
    if counted > listed.saturating_add(allowed) {
        return Err(Error::Contradiction(format!(
            "Clerk counts {counted} {} and lists {listed}: nothing was deleted",
            kind.plural()
        )));
    }
    Ok(())
}

//! The steps of a full pass, each in a file of its own: `list`, `confirm`, `reads` and `end`. What they find is written by `record`.

mod confirm;
mod end;
mod list;
mod reads;
mod record;

pub(super) use record::PageEffects;

use super::finding::Finding;
use super::{Error, Progress, Reconciler, Report, Sink};
use crate::clerk::client::Client;
use crate::model::{Fence, Kind, Millis, PassState, Refusal, Scope, Source, Step, Undecided};
use crate::store::{Database, Pass, Session};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Instant;

/// R4, in ms: a row that was observed less than this before the pass began, or since, is not judged by its absence.
const MARGIN: i64 = 300_000;
/// How far back reads are dated (R1), in ms: added to get from an observation time to Clerk's clock.
const READ_BACKDATE_MS: i64 = 10_000;

/// A pass that is asked for.
pub(super) struct Request<'a> {
    pub(super) kind: Kind,
    pub(super) reason: &'a str,
    /// By Clerk's clock, as an answer of now has it.
    pub(super) began_at: Millis,
    /// Whether what Clerk lists is believed at once.
    pub(super) is_development: bool,
}

/// Runs a pass of a kind, or resumes the last one if it has listed something and did not end. `held`: in a dry run, users and
/// organizations that the deletion limit keeps; a dry run stores nothing, so the next kind gets them from here.
pub(super) async fn run(
    reconciler: &Reconciler,
    session: &mut Session,
    sink: Sink,
    request: Request<'_>,
    held: &mut HashSet<String>,
    progress: &mut dyn Progress,
) -> Result<Report, Error> {
    let Request { kind, reason, began_at, is_development } = request;
    let row = match sink {
        Sink::Record(fence) => {
            session.open_pass(fence, Scope::Kind(kind), reason, began_at, reconciler.times.resume_within).await?
        }
        Sink::DryRun => dry(Scope::Kind(kind), session.pass_watermark(kind).await?.is_none(), began_at),
    };
    let mut run = Run::new(reconciler, session, sink, row, began_at);
    run.parents_away.clone_from(held);
    run.is_development = is_development;
    let result = run.steps(kind, progress).await;
    if matches!(result, Ok(PassState::Braked)) {
        held.extend(std::mem::take(&mut run.absent));
    }
    run.end(result, None).await
}

/// Goes on with a pass that somebody approved.
pub(super) async fn resume(
    reconciler: &Reconciler,
    session: &mut Session,
    fence: Fence,
    row: Pass,
    began_at: Millis,
    progress: &mut dyn Progress,
) -> Result<Report, Error> {
    let kind = row.scope.kind().ok_or(Error::NotBraked(row.id))?;
    let mut run = Run::new(reconciler, session, Sink::Record(fence), row, began_at);
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

/// A running pass.
pub(super) struct Run<'a> {
    clerk: &'a Client,
    database: &'a Database,
    pub(super) session: &'a mut Session,
    pub(super) sink: Sink,
    pub(super) row: Pass,
    pub(super) position: Option<Value>,
    /// Of a development instance: what Clerk says is believed at once, and nothing waits for an approval.
    is_development: bool,
    began: Instant,
    /// The same moment by Clerk's clock, as an answer of then has it.
    began_at: Millis,
    calls_before: u64,
    findings: Vec<Finding>,
    /// Of a dry run, which has no table to keep them in.
    absent: BTreeSet<String>,
    /// Of memberships: users and organizations that no longer exist at Clerk, and not deleted here yet.
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
    /// Rows that a first pass has added.
    added: u64,
    /// Of one that the deletion limit stopped: the rows that it would delete, and the pass that an approval must name.
    candidates: Vec<Finding>,
    approve: Option<i64>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        reconciler: &'a Reconciler,
        session: &'a mut Session,
        sink: Sink,
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
            sink,
            row,
            position,
            is_development: false,
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
            added: 0,
            candidates: Vec::new(),
            approve: None,
        }
    }

    /// The source that a batch is written as.
    const fn source(&self, source: Source) -> Source {
        if self.is_development { Source::Development } else { source }
    }

    async fn steps(&mut self, kind: Kind, progress: &mut dyn Progress) -> Result<PassState, Error> {
        if self.row.step == Step::List {
            self.list(kind, progress).await?;
            self.enter_step(Step::Confirm).await?;
        }
        let mut state = PassState::Complete;
        if self.row.step == Step::Confirm {
            // What the brake stops are deletions of this kind, and nothing else.
            if self.brake_engages(kind).await? && !self.row.approved && !self.is_development {
                self.reads(kind).await?;
                return Ok(PassState::Braked);
            }
            state = self.confirm(kind).await?;
            self.enter_step(Step::Reads).await?;
        }
        self.reads(kind).await?;
        if state == PassState::Incomplete {
            self.enter_step(Step::End).await?;
        }
        Ok(state)
    }

    async fn enter_step(&mut self, step: Step) -> Result<(), Error> {
        self.row.step = step;
        self.compare_and_record(Source::List, &[], PageEffects::default()).await
    }
}

//! Compares what a pass has read with the mirror; writes differences, findings and the pass's position in one statement.

use super::super::compare::{Difference, Found, compare};
use super::super::finding::{Finding, is_gone};
use super::super::{Error, FINDINGS_REPORTED_MAX, Sink, refused_rows};
use super::Run;
use crate::model::{Batch, Change, Drift, Fence, Kind, Millis, Outcome, Reason, Source, Step, Verdict};
use crate::store::{MirrorRow, PageRecord, Session};
use crate::telemetry::DRIFT;
use std::collections::{HashMap, HashSet};

/// Absentees that a dry run remembers: more than any brake lets go.
pub(super) const DRY_RUN_ABSENTEES_MAX: usize = 1_000;

/// What one page, or one answer about absentees, brings.
#[derive(Default)]
pub(in crate::reconcile) struct PageEffects<'a> {
    /// Of a quick pass: which kind; else the pass's own.
    pub(in crate::reconcile) kind: Option<Kind>,
    pub(in crate::reconcile) listed: usize,
    /// The listing has gone past all that was created before this.
    pub(in crate::reconcile) listed_to: Option<Millis>,
    pub(in crate::reconcile) absent: &'a [String],
    pub(in crate::reconcile) settled: &'a [String],
}

impl Run<'_> {
    /// Compares changes with the mirror, and writes what differs.
    pub(in crate::reconcile) async fn compare_and_record(
        &mut self,
        source: Source,
        changes: &[Change],
        observed: PageEffects<'_>,
    ) -> Result<(), Error> {
        let kind = observed.kind.or(self.row.scope.kind()).unwrap_or(Kind::User);
        let mirrored = mirrored_rows(self.session, kind, changes).await?;
        self.record_differences(source, changes, &mirrored, observed).await
    }

    /// Writes what differs, and remembers how far the pass has come.
    pub(super) async fn record_differences(
        &mut self,
        source: Source,
        changes: &[Change],
        mirrored: &[MirrorRow],
        observed: PageEffects<'_>,
    ) -> Result<(), Error> {
        let kind = observed.kind.or(self.row.scope.kind()).unwrap_or(Kind::User);
        let differences = compare(changes, mirrored);
        let refreshed = differences.iter().filter(|difference| matches!(difference.found, Found::VersionOnly)).count();
        let mut findings = self.findings(kind, changes, &differences).await?;
        let is_new = |difference: &&Difference<'_>| self.row.backfill && matches!(difference.found, Found::Missing);
        let new: HashSet<&str> =
            differences.iter().filter(is_new).filter_map(|difference| difference.change.id()).collect();
        // A read has something to settle even where it finds nothing new.
        let written: Vec<&Change> = match source {
            Source::Read | Source::Undelete | Source::Development => changes.iter().collect(),
            Source::List | Source::Webhook => differences.iter().map(|difference| difference.change).collect(),
        };
        let place: HashMap<&str, usize> =
            written.iter().enumerate().filter_map(|(n, change)| Some((change.id()?, n))).collect();
        for finding in &mut findings {
            finding.n = place.get(finding.entity_id.as_str()).copied();
        }
        self.row.listed += i64::try_from(observed.listed).unwrap_or(0);
        match self.sink {
            Sink::Record(fence) => {
                let verdicts = self.record(fence, source, &written, findings, refreshed, observed).await?;
                let is_added = |(change, verdict): &(&&Change, &Option<Verdict>)| {
                    change.id().is_some_and(|id| new.contains(id))
                        && verdict.as_ref().is_some_and(|verdict| verdict.outcome == Outcome::Applied)
                };
                self.added += written.iter().zip(&verdicts).filter(is_added).count() as u64;
                Ok(())
            }
            Sink::DryRun => {
                self.added += new.len() as u64;
                self.row.refreshed += i64::try_from(refreshed).unwrap_or(0);
                let room = DRY_RUN_ABSENTEES_MAX.saturating_sub(self.absent.len());
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
        observed: PageEffects<'_>,
    ) -> Result<Vec<Option<Verdict>>, Error> {
        let source = self.source(source);
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
                let refused_rows::Written { verdicts, refused } =
                    refused_rows::write(self.session, source, Some(fence), written).await?;
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
        Ok(verdicts)
    }

    /// Remembers what contradicts what webhooks said, until a later read of the pass does not.
    fn note_contradiction(&mut self, id: &str, verdict: &Verdict) {
        let contradicts = verdict.outcome == Outcome::Stale
            && verdict.known_reason().is_some_and(|reason| reason.contradicts() || reason == Reason::Deleted);
        if !contradicts {
            self.contradictions.remove(id);
        } else if self.contradictions.len() < FINDINGS_REPORTED_MAX {
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
        let live_rows = if gone.is_empty() { Vec::new() } else { self.session.live_rows(kind, &gone).await? };
        let told = |difference: &&Difference<'_>| match difference.found {
            // What a first pass adds was never here.
            Found::Missing => !self.row.backfill,
            Found::Differing { .. } => true,
            Found::VersionOnly | Found::Unusable => false,
        };
        let differences: Vec<&Difference<'_>> = differences.iter().filter(told).collect();
        let mut ids: Vec<&str> = differences.iter().filter_map(|difference| difference.change.id()).collect();
        ids.extend(live_rows.iter().map(|row| row.read.id.as_str()));
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let receipts = self.session.last_receipts(&ids).await?;
        let recorded = self.session.recorded_as_live(kind, &ids).await?;
        let differing = differences.iter().filter_map(|difference| Finding::of(kind, difference, &receipts, &recorded));
        let extra = live_rows.iter().map(|row| Finding::extra(kind, row, &receipts));
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
        let room = FINDINGS_REPORTED_MAX.saturating_sub(self.findings.len());
        self.findings.extend(findings.into_iter().take(room).map(|finding| Finding { n: None, ..finding }));
    }
}

/// The mirror's rows for the objects that exist at Clerk.
pub(super) async fn mirrored_rows(
    session: &mut Session,
    kind: Kind,
    changes: &[Change],
) -> Result<Vec<MirrorRow>, Error> {
    let ids: Vec<&str> = changes.iter().filter(|change| !is_gone(change)).filter_map(Change::id).collect();
    if ids.is_empty() { Ok(Vec::new()) } else { Ok(session.mirrored(kind, &ids).await?) }
}

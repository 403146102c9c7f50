//! How a pass ended: written down, reported, logged.

use super::super::{Error, Report};
use super::{READ_BACKDATE_MS, Run};
use crate::clerk::client;
use crate::clerk::kinds;
use crate::model::{Millis, PassState, Step};
use crate::reconcile::Sink;
use crate::store::Ending;
use crate::telemetry::PASSES;
use serde_json::Value;
use std::time::Duration;

/// How many ids a report names of what contradicts webhooks.
const CONTRADICTIONS_REPORTED_MAX: usize = 100;
/// How long after `judge_after` the next pass is requested, in ms.
const RETRY_DELAY_MS: i64 = 5_000;
/// Rows that were refused and are named in a report.
const REFUSED_NAMED: usize = 5;

impl Run<'_> {
    /// The time by Clerk's clock.
    fn clerk_now(&self) -> Millis {
        let elapsed = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.began_at.plus(READ_BACKDATE_MS).plus(elapsed)
    }

    /// Writes down how the pass ended, and reports it. An error of ours or Clerk's makes it incomplete, not fail.
    pub(in crate::reconcile) async fn end(
        mut self,
        result: Result<PassState, Error>,
        counts: Option<Value>,
    ) -> Result<Report, Error> {
        let state = self.state(result)?;
        self.name_refused();
        let judge_in = self.judge_after.map(|at| at.get() - self.clerk_now().get());
        if let Sink::Record(fence) = self.sink {
            let problem = self.row.problem.as_deref();
            let ending = Ending {
                undecided: Some(self.undecided).filter(|undecided| undecided.total() > 0),
                judge_after: self.judge_after,
                again_in: judge_in.map(|ms| ms.max(0) + RETRY_DELAY_MS),
                held: self.held.take().filter(|_| state == PassState::Braked),
            };
            match self.session.end_pass(fence, self.row.id, state, problem, counts.as_ref(), &ending).await {
                Ok(row) => self.row = row,
                // The row says that it runs: the next pass takes it for one that was cut.
                Err(error) if state.is_failure() => {
                    tracing::debug!(%error, "the end of a reconcile cannot be recorded");
                }
                Err(error) => return Err(error.into()),
            }
        }
        let report = self.report(state);
        log(&report);
        Ok(report)
    }

    /// What a result comes to; `Err`: somebody else runs passes now.
    fn state(&mut self, result: Result<PassState, Error>) -> Result<PassState, Error> {
        let (problem, state) = match result {
            Ok(state) => return Ok(state),
            Err(Error::Clerk(client::Error::OrganizationsOff))
                if self.row.scope.kind().is_none_or(|kind| kinds::of(kind).needs_organizations) =>
            {
                ("organizations are switched off in this Clerk instance".to_owned(), PassState::Skipped)
            }
            Err(Error::Database(error)) if error.is_lease_lost() => return Err(error.into()),
            Err(error @ (Error::Contradiction(_) | Error::OutOfOrder(_))) if self.row.step == Step::List => {
                (error.to_string(), PassState::Void)
            }
            Err(error) => (error.to_string(), PassState::Incomplete),
        };
        self.row.problem = Some(problem);
        Ok(state)
    }

    /// Counts the rows that the database refused, and names some of them.
    fn name_refused(&mut self) {
        self.undecided.refused = self.refused.len() as u64;
        if self.refused.is_empty() {
            return;
        }
        let named: Vec<String> =
            self.refused.iter().take(REFUSED_NAMED).map(|(id, refusal)| format!("{id} ({refusal})")).collect();
        let more = if self.refused.len() > REFUSED_NAMED { ", and others" } else { "" };
        let refused = format!("the database refuses the row of {}{more}", named.join(", "));
        self.row.problem = Some(match self.row.problem.take() {
            Some(problem) => format!("{problem}; {refused}"),
            None => refused,
        });
    }

    fn report(self, state: PassState) -> Report {
        let unsigned = |count: i64| count.max(0).cast_unsigned();
        Report {
            pass: self.sink.fence().map(|_| self.row.id),
            scope: self.row.scope,
            state,
            problem: self.row.problem,
            dry_run: self.sink == Sink::DryRun,
            backfill: self.row.backfill,
            resumed: self.row.resumed,
            listed: unsigned(self.row.listed),
            added: self.added,
            refreshed: unsigned(self.row.refreshed),
            missing: unsigned(self.row.missing),
            differing: unsigned(self.row.differing),
            extra: unsigned(self.row.extra),
            undecided: self.undecided,
            judge_after: self.judge_after,
            contradictions: self.contradictions.into_iter().take(CONTRADICTIONS_REPORTED_MAX).collect(),
            is_at_end: self.row.step == Step::End,
            calls: self.clerk.calls() - self.calls_before,
            seconds: self.began.elapsed().as_secs_f64(),
            findings: self.findings,
            approve: self
                .approve
                .filter(|_| state == PassState::Braked)
                .map(|pass| format!("clerk-sync reconcile --approve {pass}")),
            candidates: self.candidates,
        }
    }
}

fn log(report: &Report) {
    tracing::info!(
        pass = report.pass,
        scope = report.scope.as_str(),
        state = report.state.as_str(),
        problem = report.problem,
        resumed = report.resumed,
        listed = report.listed,
        added = report.added,
        missing = report.missing,
        differing = report.differing,
        extra = report.extra,
        refreshed = report.refreshed,
        undecided = report.undecided.total(),
        contradictions = report.contradictions.join(" "),
        calls = report.calls,
        ms = Duration::from_secs_f64(report.seconds).as_millis(),
        "pass"
    );
    metrics::counter!(PASSES, "scope" => report.scope.as_str(), "state" => report.state.as_str()).increment(1);
}

//! `clerk-sync reconcile`: passes, for a person or for a schedule of their own.

use super::arguments::Access;
use crate::model::{Kind, PassState};
use crate::reconcile::{Error, Finding, PassRequest, Progress, Reconciler, Report};
use crate::terminal;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Findings that are printed for people.
const FINDINGS_PRINTED: usize = 20;

/// Compare the tables with Clerk, and repair what webhooks missed.
///
/// Exit codes: 0: in sync, filled or repaired. 1: not finished. 2: only with --dry-run: rows differ, are missing, or would be deleted.
/// 3: deletions wait for --approve. 4: some rows were left as they are (the report says why, and when they are compared again)
#[derive(clap::Args)]
pub struct Reconcile {
    #[command(flatten)]
    access: Access,

    /// Compare only this kind
    #[arg(long, value_parser = kind(), value_name = "KIND")]
    kind: Option<Kind>,

    /// Print the differences and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Delete what the reconcile with this ID held back because of the deletion limit; the ID is in that reconcile's report
    #[arg(long, value_name = "ID", conflicts_with_all = ["kind", "dry_run", "quick"])]
    approve: Option<i64>,

    /// Run an incremental reconcile: compare only recently changed users, all organizations, and how many users and memberships there
    /// are
    #[arg(long, conflicts_with = "kind")]
    quick: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A kind as JSON, logs and the database spell it; the plural is taken, too.
fn kind() -> impl TypedValueParser<Value = Kind> {
    let values = Kind::ALL.map(|kind| PossibleValue::new(kind.as_str()).alias(kind.plural()));
    let of_name = |name: String| Kind::ALL.into_iter().find(|kind| [kind.as_str(), kind.plural()].contains(&&*name));
    PossibleValuesParser::new(values).try_map(move |name| of_name(name).ok_or("unknown kind"))
}

impl Reconcile {
    /// Runs it, and prints what was found.
    ///
    /// # Errors
    /// No pass could begin.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let wanted = match (self.approve, self.quick, self.kind) {
            (Some(pass), _, _) => PassRequest::Approved(pass),
            (_, true, _) => PassRequest::Quick,
            (_, _, Some(kind)) => PassRequest::Kinds(vec![kind]),
            (_, _, None) => PassRequest::Kinds(Kind::ALL.to_vec()),
        };
        let reports = watched(&self.access.reconciler()?, &wanted, self.dry_run).await?;
        if self.json {
            let json = serde_json::json!({ "dry_run": self.dry_run, "passes": reports });
            terminal::text(serde_json::to_string_pretty(&json)?);
        } else {
            reports.iter().for_each(print);
        }
        let any = |is: fn(PassState) -> bool| reports.iter().any(|report| is(report.state));
        Ok(if any(PassState::is_failure) {
            ExitCode::FAILURE
        } else if any(|state| state == PassState::Braked) {
            ExitCode::from(3)
        } else if self.dry_run && reports.iter().any(|report| report.drift() + report.added > 0) {
            ExitCode::from(2)
        } else if reports.iter().any(|report| report.undecided.total() > 0) {
            ExitCode::from(4)
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// Runs passes, and shows how far they are.
async fn watched(reconciler: &Reconciler, wanted: &PassRequest, dry_run: bool) -> Result<Vec<Report>, Error> {
    let mut bar = Bar::new();
    let reports = reconciler.run(wanted, "command", dry_run, &mut bar).await;
    bar.clear();
    reports
}

/// Runs passes for a command that does more than that, and prints how each ended.
///
/// # Errors
/// No pass could begin.
pub(super) async fn run_and_print(reconciler: &Reconciler, wanted: &PassRequest) -> anyhow::Result<()> {
    watched(reconciler, wanted, false).await?.iter().for_each(print);
    Ok(())
}

fn print(report: &Report) {
    let undecided = report.undecided.in_words(report.judge_after);
    let state = match report.state {
        PassState::Complete if report.dry_run && report.drift() > 0 => "drift",
        PassState::Complete if report.drift() > 0 => "repaired",
        PassState::Complete if undecided.is_some() => "SOME ROWS LEFT AS THEY ARE",
        PassState::Complete if report.dry_run && report.added > 0 => "would be filled",
        PassState::Complete if report.added > 0 => "filled",
        PassState::Complete => "in sync",
        PassState::Incomplete => "INCOMPLETE",
        PassState::Void => "INCONSISTENT LIST",
        PassState::Braked => "DELETIONS HELD BACK",
        PassState::Skipped => "skipped",
        PassState::Running => "running",
    };
    let mut counts = vec![format!("{} at Clerk", report.listed)];
    if report.added > 0 {
        counts.push(format!("{} {}", report.added, if report.dry_run { "would be added" } else { "added" }));
    }
    // A first pass finds nothing missing: nothing was here.
    if !report.backfill || report.drift() > 0 {
        counts.push(format!("{} missing", report.missing));
        counts.push(format!("{} differing", report.differing));
        counts.push(format!("{} extra", report.extra + report.undecided.held_back));
    }
    if report.refreshed > 0 {
        counts.push(format!("{} with newer times only", report.refreshed));
    }
    terminal::line(format_args!(
        "{:<13} {state}: {}, {:.1} s{}",
        report.scope,
        counts.join(", "),
        report.seconds,
        if report.resumed { " (resumed from an earlier run)" } else { "" },
    ));
    if let Some(problem) = &report.problem {
        terminal::line(format_args!("  {problem}"));
    }
    if let Some(undecided) = undecided {
        terminal::line(format_args!("  {undecided}"));
    }
    list(&report.candidates, |finding| format!("held back {}: {}", finding.entity_id, finding.cause));
    if let Some(approve) = &report.approve {
        terminal::line(format_args!("  to delete all of them: {approve}"));
    } else if report.state == PassState::Braked {
        terminal::line("  clerk-sync reconcile without --dry-run gives the command that approves it");
    }
    for id in report.contradictions.iter().take(FINDINGS_PRINTED) {
        terminal::line(format_args!("  contradicts {id}: Clerk's API is older than its webhooks"));
    }
    list(&report.findings, |Finding { entity_id, drift, fields, cause, .. }| {
        let fields = if fields.is_empty() { String::new() } else { format!(" ({})", fields.join(", ")) };
        format!("{drift:<9} {entity_id}{fields}: {cause}")
    });
}

/// The first of them, a line each.
fn list(findings: &[Finding], line: impl Fn(&Finding) -> String) {
    findings.iter().take(FINDINGS_PRINTED).for_each(|finding| terminal::line(format_args!("  {}", line(finding))));
    if findings.len() > FINDINGS_PRINTED {
        terminal::line(format_args!("  … and {} more; --json lists them", findings.len() - FINDINGS_PRINTED));
    }
}

/// Rows, rate and time left: a bar on a terminal, a line every ten seconds elsewhere.
struct Bar {
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Bar {
    fn new() -> Bar {
        let style = ProgressStyle::with_template("{msg:<13} {bar:30} {human_pos}/{human_len} rows, {eta} left");
        let bar = std::io::stderr()
            .is_terminal()
            .then(|| style.map_or_else(|_| ProgressBar::new(0), |style| ProgressBar::new(0).with_style(style)));
        Bar { bar, said: Instant::now() }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bar {
    fn listed(&mut self, kind: Kind, rows: u64, of: Option<u64>) {
        if let Some(bar) = &self.bar {
            if bar.message() != kind.as_str() {
                bar.reset();
                bar.set_message(kind.as_str());
            }
            bar.set_length(of.unwrap_or(rows).max(rows));
            bar.set_position(rows);
        } else if self.said.elapsed() > Duration::from_secs(10) {
            self.said = Instant::now();
            terminal::note(format_args!(
                "{}: {rows} rows{}",
                kind.plural(),
                of.map(|of| format!(" of about {of}")).unwrap_or_default()
            ));
        }
    }
}

//! `clerk-sync reconcile`: passes, for a person or for a schedule of their own.

use super::arguments::Access;
use crate::model::{Kind, PassState};
use crate::reconcile::{Finding, Progress, Report, Wanted};
use crate::terminal;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Findings that are printed for people.
const SHOWN: usize = 20;

/// Compare the mirror with Clerk and repair what webhooks missed.
///
/// Exit codes: 0 in sync or repaired, 1 not finished, 2 drift found (--dry-run), 3 deletions held back because there are too many,
/// 4 some rows could not be judged (run it again when it says)
#[derive(clap::Args)]
pub struct Reconcile {
    #[command(flatten)]
    access: Access,

    /// This kind alone
    #[arg(long, value_parser = kind(), value_name = "KIND")]
    kind: Option<Kind>,

    /// Find and print, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Let a pass that was stopped for deleting too much go on; its number stands in its report
    #[arg(long, value_name = "PASS", conflicts_with_all = ["kind", "dry_run", "quick"])]
    approve: Option<i64>,

    /// Only the users that changed lately, and the counts of all kinds
    #[arg(long, conflicts_with = "kind")]
    quick: bool,

    /// One JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// A kind, by its plural.
fn kind() -> impl TypedValueParser<Value = Kind> {
    let of_plural = |plural: String| Kind::ALL.into_iter().find(|kind| kind.plural() == plural);
    PossibleValuesParser::new(Kind::ALL.map(Kind::plural))
        .try_map(move |plural| of_plural(plural).ok_or("no such kind"))
}

impl Reconcile {
    /// Runs it, and prints what was found.
    ///
    /// # Errors
    /// No pass could begin.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let wanted = match (self.approve, self.quick, self.kind) {
            (Some(pass), _, _) => Wanted::Approved(pass),
            (_, true, _) => Wanted::Quick,
            (_, _, Some(kind)) => Wanted::Kinds(vec![kind]),
            (_, _, None) => Wanted::Kinds(Kind::ALL.to_vec()),
        };
        let reconciler = self.access.reconciler()?;
        let mut bar = Bar::new();
        let reports = reconciler.run(&wanted, "command", self.dry_run, &mut bar).await;
        bar.clear();
        let reports = reports?;
        if self.json {
            terminal::line(serde_json::json!({ "dry_run": self.dry_run, "passes": reports }));
        } else {
            reports.iter().for_each(print);
        }
        let any = |is: fn(PassState) -> bool| reports.iter().any(|report| is(report.state));
        Ok(if any(PassState::is_failure) {
            ExitCode::FAILURE
        } else if any(|state| state == PassState::Braked) {
            ExitCode::from(3)
        } else if self.dry_run && reports.iter().any(|report| report.drift() > 0) {
            ExitCode::from(2)
        } else if reports.iter().any(|report| report.undecided.total() > 0) {
            ExitCode::from(4)
        } else {
            ExitCode::SUCCESS
        })
    }
}

fn print(report: &Report) {
    let undecided = report.undecided.in_words(report.judge_after);
    let state = match report.state {
        PassState::Complete if report.dry_run && report.drift() > 0 => "drift",
        PassState::Complete if report.drift() > 0 => "repaired",
        PassState::Complete if undecided.is_some() => "NOT ALL JUDGED",
        PassState::Complete => "in sync",
        PassState::Incomplete | PassState::Void => "INCOMPLETE",
        PassState::Braked => "DELETIONS HELD BACK",
        PassState::Skipped => "skipped",
        PassState::Running => "running",
    };
    terminal::line(format_args!(
        "{:<13} {state}: {} listed, {} missing, {} differing, {} extra, {} refreshed, {:.1} s{}{}",
        report.scope,
        report.listed,
        report.missing,
        report.differing,
        report.extra,
        report.refreshed,
        report.seconds,
        if report.backfill { " (the first pass: what it adds is not drift)" } else { "" },
        if report.resumed { " (begun by an earlier run)" } else { "" },
    ));
    if let Some(problem) = &report.problem {
        terminal::line(format_args!("  {problem}"));
    }
    if let Some(undecided) = undecided {
        terminal::line(format_args!("  {undecided}"));
    }
    for id in report.contradictions.iter().take(SHOWN) {
        terminal::line(format_args!("  contradicts {id}: Clerk's API says something older than its webhooks did"));
    }
    for Finding { entity_id, drift, fields, cause, .. } in report.findings.iter().take(SHOWN) {
        let fields = if fields.is_empty() { String::new() } else { format!(" ({})", fields.join(", ")) };
        terminal::line(format_args!("  {drift:<9} {entity_id}{fields}: {cause}"));
    }
    if report.findings.len() > SHOWN {
        terminal::line(format_args!("  … and {} more; --json lists them", report.findings.len() - SHOWN));
    }
}

/// Rows, rate and time left: a bar on a terminal, a line every ten seconds elsewhere.
struct Bar {
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Bar {
    fn new() -> Bar {
        let style =
            ProgressStyle::with_template("{msg:<13} {bar:30} {human_pos}/{human_len} rows, {per_sec}, {eta} left");
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

//! The status page: one HTML document, made here, that loads nothing else. Pure.
//!
//! Its script asks for the page again and replaces what has changed, so that what somebody reads or selects stays where it is, and adds
//! the browser's own time to each moment. Without scripts the page reloads by itself.

use super::chart;
use super::verdict::{self, Level, Verdict};
use crate::model::{self, Kind, PassState, Scope, Word};
use crate::store::status::{Candidate, DeadLetterRow, FindingRow, PassRow, Status};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Light and dark, wide and narrow.
const STYLE: &str = include_str!("page.css");
/// See above. The listener's policy lets this one run, by its hash, and no other.
pub(super) const SCRIPT: &str = include_str!("page.js");

/// Rows of a table.
const SHOWN: usize = 20;
const RECONCILES: usize = 12;

/// What the page shows.
pub(super) struct View<'a> {
    pub(super) verdict: &'a Verdict,
    /// What the tables say; or what they said when they last could be asked.
    pub(super) status: Option<&'a Status>,
    /// Whether they said so earlier.
    pub(super) is_earlier: bool,
    /// How this process has responded since it started, most frequent first.
    pub(super) answers: &'a [(String, u64)],
    pub(super) version: &'a str,
}

/// The page.
pub(super) fn page(view: &View<'_>) -> String {
    let View { verdict, status, is_earlier, answers, version } = view;
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                noscript { meta http-equiv="refresh" content="30"; }
                title { (verdict.headline) " · clerk-sync" }
                link rel="icon" href=(icon(verdict.level));
                style { (PreEscaped(STYLE)) }
            }
            body {
                header #verdict class=(name(verdict.level)) {
                    p.state { span.mark aria-hidden="true" { (mark(verdict.level)) } " " (state(verdict.level)) }
                    h1 { (verdict.headline) }
                    @for reason in &verdict.reasons { p { (reason) } }
                    @if !verdict.commands.is_empty() {
                        p.soft { @if verdict.commands.len() == 1 { "Run:" } @else { "Run, from the first on:" } }
                        @for command in &verdict.commands { pre { code { (command) } } }
                    }
                }
                p #stale role="status" hidden {}
                main #content {
                    @if let Some(status) = status {
                        @if *is_earlier {
                            p.earlier { "Last known, as of " (moment_at(status.now)) "; \"ago\" counts from then." }
                        }
                        (body(status, answers))
                    }
                }
                footer #foot {
                    p.soft {
                        "clerk-sync " (version)
                        @if let Some(status) = status { " · " (moment_at(status.now)) " by the database's clock" }
                        " · refreshes itself · the same as JSON: " a href="/status.json" { "/status.json" }
                    }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    document.into_string()
}

fn body(status: &Status, answers: &[(String, u64)]) -> Markup {
    html! {
        (candidates(status))
        (rows(status))
        (facts(status))
        section {
            h2 { "Webhooks of the last 24 hours" }
            (chart::deliveries(status))
            @if !answers.is_empty() {
                p.soft {
                    "Responses of this process since it started: "
                    @for (n, (what, count)) in answers.iter().enumerate() {
                        @if n > 0 { ", " }
                        b { (grouped(*count)) } " " (what)
                    }
                    "."
                }
            }
        }
        (reconciles(status))
        (findings(&status.findings))
        (dead_letters(&status.letters))
        p.soft { "Clerk instance: " code { (status.instance.as_deref().unwrap_or("none yet")) } }
    }
}

/// Rows here and at Clerk. Both numbers are of one moment, or one of them is not shown.
fn rows(status: &Status) -> Markup {
    let counted = verdict::counts(status);
    html! {
        section.rows aria-label="Rows" {
            @for kind in Kind::ALL {
                @let here = status.rows.get(kind.as_str()).copied();
                @let counts = counted.iter().find(|(of, _)| of == kind.as_str()).map(|(_, counts)| *counts);
                @let stopped = verdict::braked_since_counted(status, kind);
                div.card {
                    h3 { (title(kind)) }
                    @if let Some(pass) = stopped {
                        p.number { (grouped(pass.listed)) " " small { "at Clerk" } }
                        p.differs { b { "≠ more here" } ": deletions wait for approval" }
                    } @else {
                        @match (counts, here) {
                            (Some(counts), _) => {
                                p.number { (grouped(counts.here)) " " small { "here" } }
                                p class=[(counts.here != counts.there).then_some("differs")] {
                                    (grouped(counts.there)) " at Clerk "
                                    @if counts.here == counts.there { span.same { "✓ equal" } }
                                    @else { b { "≠ " (apart(counts.here, counts.there)) } }
                                }
                            }
                            (None, Some(here)) => {
                                p.number { (grouped(here)) " " small { "here" } }
                                p.soft { "Clerk's are not counted yet" }
                            }
                            (None, None) => p.soft { "not counted yet" },
                        }
                    }
                }
            }
        }
        @if let Some(at) = verdict::counted_at(status) {
            p.soft.below { "Here and at Clerk, both counted " (span(status.now - at)) " ago." }
        }
    }
}

fn apart(here: u64, there: u64) -> String {
    let (rows, word) = (here.abs_diff(there), if here < there { "fewer here" } else { "more here" });
    format!("{} {word}", grouped(rows))
}

/// What else is asked first: is it alive, is it quick, does something wait?
fn facts(status: &Status) -> Markup {
    let ago = |at: Option<i64>| at.map_or_else(|| "never".to_owned(), |at| format!("{} ago", span(status.now - at)));
    let full = status.last_complete.iter().filter(|(scope, _)| *scope != Scope::Quick.as_str());
    let (last_full, incremental) =
        (full.map(|(_, at)| *at).max(), status.last_complete.get(Scope::Quick.as_str()).copied());
    let fresh = status.freshness.map_or_else(
        || ("–".to_owned(), "no event in the last hour".to_owned()),
        |fresh| {
            let note = format!("99 % within {}; {} events, last hour", span(fresh.p99_ms), grouped(fresh.events));
            (span(fresh.p50_ms), note)
        },
    );
    let (dead, reads) = (status.dead_letters.unsigned_abs(), status.pending_reads.unsigned_abs());
    let lease = status.lease.as_deref().map_or("no reconcile is running", |_| "a reconcile is running");
    html! {
        section.facts aria-label="State" {
            (fact("Last webhook", &ago(status.last_webhook_at), "accepted by any replica"))
            (fact("From Clerk to the row", &fresh.0, &fresh.1))
            (fact("Last full reconcile", &ago(last_full), &format!("incremental: {}", ago(incremental))))
            (fact("Dead letters", &grouped(dead), "webhooks that could not be applied"))
            (fact("Pending reads", &grouped(reads), "objects to read from Clerk's API"))
            (fact("Database connections", &status.connections.to_string(), lease))
        }
    }
}

fn fact(name: &str, value: &str, note: &str) -> Markup {
    html! { div.card { h3 { (name) } p.value { (value) } p.soft { (note) } } }
}

/// What a stopped reconcile would delete.
fn candidates(status: &Status) -> Markup {
    let parents = |row: &Candidate| match (&row.user_id, &row.organization_id) {
        (Some(user), Some(organization)) => format!("{user} in {organization}"),
        _ => String::new(),
    };
    html! {
        @for pass in verdict::braked(status) {
            @let rows: Vec<&Candidate> = status.candidates.iter().filter(|row| row.pass_id == pass.id).collect();
            @if !rows.is_empty() {
                section {
                    h2 { "What reconcile " (pass.id) " would delete" }
                    table.stack {
                        caption { "The first " (rows.len()) ": rows that Clerk did not list. clerk-sync reconcile --dry-run --json lists all." }
                        thead { tr { th scope="col" { "Kind" } th scope="col" { "Id" } th scope="col" { "Of" } } }
                        tbody {
                            @for row in rows {
                                tr {
                                    td data-label="Kind" { (row.kind) }
                                    td data-label="Id" { code { (row.entity_id) } }
                                    td data-label="Of" { code { (parents(row)) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn reconciles(status: &Status) -> Markup {
    // Incremental ones come every few minutes: those without a finding say nothing.
    let says = |pass: &&PassRow| pass.scope != Scope::Quick || pass.state != PassState::Complete || drift(pass) > 0;
    let shown: Vec<&PassRow> = status.passes.iter().filter(says).take(RECONCILES).collect();
    html! {
        section {
            h2 { "Reconciles" }
            @if shown.is_empty() {
                p.soft { "None yet." }
            } @else {
                table.stack {
                    caption { "The latest first. Incremental ones that found nothing are left out." }
                    thead {
                        tr {
                            th scope="col" { "No." } th scope="col" { "Of" } th scope="col" { "Began" } th scope="col" { "Result" }
                            th.n scope="col" { "Took" } th.n scope="col" { "At Clerk" } th.n scope="col" { "Missing" }
                            th.n scope="col" { "Differing" } th.n scope="col" { "Extra" }
                        }
                    }
                    @for pass in shown { (reconcile(pass)) }
                }
            }
        }
    }
}

fn reconcile(pass: &PassRow) -> Markup {
    let took = pass.ended_at.map_or_else(|| "…".to_owned(), |ended| span(ended - pass.started_at));
    let judge_after = pass.judge_after.map(model::Millis::clamped);
    let undecided = verdict::undecided(pass).and_then(|undecided| undecided.in_words(judge_after));
    let (class, result) = result(pass);
    html! {
        tbody {
            tr {
                td data-label="No." { (pass.id) }
                td data-label="Of" { (scope(&pass.scope)) }
                td data-label="Began" { (moment_at(pass.started_at)) }
                td data-label="Result" { span class=(class) { (result) } }
                td.n data-label="Took" { (took) }
                td.n data-label="At Clerk" { (grouped(pass.listed)) }
                td class=(count_class(pass.missing)) data-label="Missing" { (grouped(pass.missing)) }
                td class=(count_class(pass.differing)) data-label="Differing" { (grouped(pass.differing)) }
                td class=(count_class(pass.extra)) data-label="Extra" { (grouped(pass.extra)) }
            }
            @for note in pass.problem.iter().chain(&undecided) {
                tr.note { td colspan="9" { (note) } }
            }
        }
    }
}

/// The class of a number. A narrow screen leaves out zeros.
const fn count_class(count: u64) -> &'static str {
    if count == 0 { "n zero" } else { "n" }
}

/// How it ended: a class, and words.
fn result(pass: &PassRow) -> (&'static str, String) {
    match pass.state.known() {
        Some(PassState::Complete) if pass.backfill => ("good", "✓ filled (the first)".to_owned()),
        Some(PassState::Complete) if drift(pass) > 0 => ("good", format!("✓ repaired {}", grouped(drift(pass)))),
        Some(PassState::Complete) => ("good", "✓ in sync".to_owned()),
        Some(PassState::Running) => ("soft", "running".to_owned()),
        Some(PassState::Skipped) => ("soft", "skipped: off at Clerk".to_owned()),
        Some(PassState::Braked) => ("bad", "✕ deletions held back".to_owned()),
        Some(PassState::Incomplete) => ("attention", "▲ incomplete".to_owned()),
        Some(PassState::Void) => ("attention", "▲ inconsistent list".to_owned()),
        None => ("attention", pass.state.to_string()),
    }
}

fn findings(findings: &[FindingRow]) -> Markup {
    html! {
        @if !findings.is_empty() {
            section {
                h2 { "What reconcile repaired" }
                table.stack {
                    caption { "The latest first; all are in clerk_sync.findings." }
                    thead {
                        tr {
                            th scope="col" { "When" } th scope="col" { "What" } th scope="col" { "Id" } th scope="col" { "Columns" }
                            th scope="col" { "Probable cause" }
                        }
                    }
                    tbody {
                        @for finding in findings.iter().take(SHOWN) {
                            tr {
                                td data-label="When" { (moment_at(finding.repaired_at)) }
                                td data-label="What" { (finding.kind) " " (finding.drift) }
                                td data-label="Id" { code { (finding.entity_id) } }
                                td data-label="Columns" { (finding.fields.join(", ")) }
                                td data-label="Probable cause" { (finding.cause) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn dead_letters(letters: &[DeadLetterRow]) -> Markup {
    html! {
        @if !letters.is_empty() {
            section {
                h2 { "Dead letters" }
                table.stack {
                    caption { "Webhooks that were accepted and could not be applied. Once the reason is gone, retry them." }
                    thead {
                        tr { th scope="col" { "Came" } th scope="col" { "Event" } th scope="col" { "Why" } th scope="col" { "Retry" } }
                    }
                    tbody {
                        @for letter in letters.iter().take(SHOWN) {
                            tr {
                                td data-label="Came" { (moment_at(letter.received_at)) }
                                td data-label="Event" { (letter.event_type.as_deref().unwrap_or("not named")) }
                                td data-label="Why" { (letter.reason) }
                                td data-label="Retry" { code.command { "clerk-sync dead-letters retry " (letter.message_id) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn title(kind: Kind) -> String {
    let plural = kind.plural();
    plural[..1].to_uppercase() + &plural[1..]
}

fn scope(scope: &Word<Scope>) -> String {
    match scope.known() {
        Some(Scope::Quick) => "incremental".to_owned(),
        Some(Scope::Kind(kind)) => kind.plural().to_owned(),
        None => scope.to_string(),
    }
}

const fn name(level: Level) -> &'static str {
    match level {
        Level::Good => "good",
        Level::Attention => "attention",
        Level::Bad => "bad",
    }
}

/// A shape beside each colour.
const fn mark(level: Level) -> &'static str {
    match level {
        Level::Good => "✓",
        Level::Attention => "▲",
        Level::Bad => "✕",
    }
}

const fn state(level: Level) -> &'static str {
    match level {
        Level::Good => "All good",
        Level::Attention => "Needs a look",
        Level::Bad => "Act now",
    }
}

/// A dot in the tab, as part of the document: nothing is fetched.
fn icon(level: Level) -> String {
    let colour = match level {
        Level::Good => "#0a7d57",
        Level::Attention => "#b86e00",
        Level::Bad => "#c2293d",
    };
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 16 16\"><circle cx=\"8\" cy=\"8\" r=\"7\" fill=\"{colour}\"/></svg>"
    );
    format!("data:image/svg+xml;base64,{}", BASE64.encode(svg))
}

pub(super) fn drift(pass: &PassRow) -> u64 {
    pass.missing + pass.differing + pass.extra
}

/// A number with its thousands apart.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time, as people in any country read it.
pub(super) fn moment(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms)
        .map_or_else(String::new, |at| at.format("%Y-%m-%d %H:%M UTC").to_string())
}

/// The same, so that the browser can add its own time.
fn moment_at(ms: i64) -> Markup {
    let machine = chrono::DateTime::from_timestamp_millis(ms)
        .map_or_else(String::new, |at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string());
    html! { time datetime=(machine) { (moment(ms)) } }
}

/// Milliseconds in words.
pub(super) fn span(ms: i64) -> String {
    if ms < 1_000 { format!("{} ms", ms.max(0)) } else { model::span(ms / 1_000) }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::Setup;
    use super::*;

    fn shown(status: &Status) -> String {
        let verdict = Verdict::of(status, &Setup::default());
        page(&View { verdict: &verdict, status: Some(status), is_earlier: false, answers: &[], version: "1" })
    }

    #[test]
    fn nothing_in_the_tables_becomes_markup() {
        let hostile = "<script>alert(\"x\")</script>";
        let status = Status {
            instance: Some(hostile.to_owned()),
            candidates: vec![],
            letters: vec![DeadLetterRow {
                message_id: hostile.to_owned(),
                event_type: Some(hostile.to_owned()),
                reason: hostile.to_owned(),
                received_at: 0,
            }],
            ..Status::default()
        };
        let html = shown(&status);
        assert!(!html.contains("<script>alert") && html.matches("&lt;script&gt;").count() == 4, "{html}");
    }

    #[test]
    fn numbers_that_stand_beside_each_other_are_of_one_moment() {
        let counts = [("user".to_owned(), crate::store::status::Counts { here: 2_500, there: 2_503 })].into();
        let quick: PassRow = serde_json::from_value(serde_json::json!({
            "id": 1, "scope": "quick", "state": "complete", "problem": null, "backfill": false, "started_at": 0, "ended_at": 60_000,
            "listed": 0, "missing": 0, "differing": 0, "extra": 0, "refreshed": 0, "counts": null,
        }))
        .unwrap();
        let status = Status {
            now: 180_000,
            rows: [("user".to_owned(), 2_777)].into(),
            passes: vec![PassRow { counts: Some(counts), ..quick }],
            ..Status::default()
        };
        let html = shown(&status);
        assert!(html.contains("2,500") && html.contains("2,503 at Clerk") && html.contains("3 fewer here"), "{html}");
        assert!(html.contains("both counted 2 min ago") && !html.contains("2,777"), "{html}");
    }

    #[test]
    fn a_count_from_before_a_stopped_reconcile_does_not_say_equal() {
        let pass = |id, scope, state, ended_at| -> PassRow {
            serde_json::from_value(serde_json::json!({
                "id": id, "scope": scope, "state": state, "problem": null, "backfill": false, "started_at": 0, "ended_at": ended_at,
                "listed": 66, "missing": 0, "differing": 0, "extra": 0, "refreshed": 0, "counts": null,
            }))
            .unwrap()
        };
        let counts = [("user".to_owned(), crate::store::status::Counts { here: 66, there: 66 })].into();
        let quick = PassRow { counts: Some(counts), ..pass(1, "quick", "complete", 60_000) };
        let mut status = Status { now: 180_000, passes: vec![quick.clone()], ..Status::default() };
        assert!(shown(&status).contains("✓ equal"));
        status.passes = vec![pass(2, "user", "braked", 90_000), quick.clone()];
        let html = shown(&status);
        assert!(!html.contains("✓ equal") && html.contains("deletions wait for approval"), "{html}");
        // What is counted afterwards counts again.
        status.passes = vec![PassRow { id: 3, ended_at: Some(120_000), ..quick }, pass(2, "user", "braked", 90_000)];
        assert!(shown(&status).contains("✓ equal"));
    }

    #[test]
    fn spans_are_round() {
        let spans = [5, 1_500, 119_999, 120_000, 7_200_000, 172_800_000].map(span);
        assert_eq!(spans, ["5 ms", "1 s", "119 s", "2 min", "2 h", "2 days"]);
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}

//! The status page: one HTML document, made here, that loads nothing else. Pure.
//!
//! Its script asks for the page again and replaces what has changed, so that what somebody reads or selects stays where it is, and adds
//! the browser's own time to each moment. Without scripts the page reloads by itself.

use super::chart;
use super::verdict::{self, Comparison, Level, Verdict};
use crate::model::{self, Drift, Kind, PassState, Scope, Word, capitalized, grouped};
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
                    h1 { (breakable(&verdict.headline)) }
                    @for reason in &verdict.reasons { p { (prose(reason)) } }
                    @for remedy in &verdict.commands {
                        p.soft { (remedy.purpose) ":" }
                        pre { code { (remedy.command) } }
                    }
                }
                p #stale role="status" hidden {}
                main #content {
                    @if let Some(status) = status {
                        @if *is_earlier {
                            p.earlier { "These are the last known numbers, of " (moment_at(status.now)) "; \"ago\" counts from that time." }
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
            h2 { "Webhooks of the last 24 hours, all servers (hours in UTC)" }
            (chart::deliveries(status))
            @if !answers.is_empty() {
                p.soft {
                    "Responses of this server alone, since it started: "
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
        p.soft.instance { "Clerk instance: " code { (status.instance.as_deref().unwrap_or("none yet")) } }
    }
}

/// Rows here and at Clerk. Both numbers are of one moment, or one of them is not shown.
fn rows(status: &Status) -> Markup {
    html! {
        section.rows aria-label="Rows" {
            @for kind in Kind::ALL {
                div.card {
                    h3 { (title(kind)) }
                    @match verdict::comparison(status, kind) {
                        Some(Comparison::Counted(counts, at)) => {
                            p.number { (grouped(counts.here)) " " small { "here" } }
                            p class=[(counts.here != counts.there).then_some("differs")] {
                                (grouped(counts.there)) " at Clerk "
                                @if counts.here == counts.there { span.same { "✓ equal" } }
                                @else { b { "▲ " (apart(counts.here, counts.there)) } }
                            }
                            p.soft { "both counted " (ago(status, at)) }
                        }
                        Some(Comparison::Listed(pass, at)) => {
                            (listed(pass))
                            p.soft { "compared " (ago(status, at)) " by reconcile no. " (pass.id) }
                        }
                        None => {
                            @if let Some(here) = status.rows.get(kind.as_str()) {
                                p.number { (grouped(*here)) " " small { "here" } }
                            }
                            p.soft { "not compared with Clerk yet" }
                        }
                    }
                }
            }
        }
    }
}

/// What a reconcile that has compared every row says about those here.
fn listed(pass: &PassRow) -> Markup {
    let undecided = verdict::undecided(pass).unwrap_or_default();
    let waits = pass.state == PassState::Braked;
    // After a reconcile here is what Clerk lists, and what was not deleted. Rows that were left as they are may be on either side.
    let here = match undecided.total() {
        0 if !waits => Some(pass.listed),
        rows if waits && rows == undecided.held_back && rows > 0 => Some(pass.listed + rows),
        _ => None,
    };
    html! {
        @if let Some(here) = here { p.number { (grouped(here)) " " small { "here" } } }
        p class=[(waits || undecided.total() > 0).then_some("differs")] {
            (grouped(pass.listed)) " at Clerk "
            @if waits {
                b { "▲ " @if undecided.held_back > 0 { (grouped(undecided.held_back)) " " } "more here" } ": deletions wait for approval"
            } @else if undecided.total() > 0 {
                b { "▲ " (grouped(undecided.total())) " left as they are" }
            } @else {
                span.same { "✓ equal" }
            }
        }
    }
}

fn ago(status: &Status, at: i64) -> String {
    format!("{} ago", span(status.now - at))
}

fn apart(here: u64, there: u64) -> String {
    let (rows, word) = (here.abs_diff(there), if here < there { "fewer here" } else { "more here" });
    format!("{} {word}", grouped(rows))
}

/// What else is asked first: is it alive, is it quick, does something wait?
fn facts(status: &Status) -> Markup {
    let ago = |at: Option<i64>| at.map_or_else(|| "never".to_owned(), |at| ago(status, at));
    let complete = |scope: Scope| status.last_complete.get(scope.as_str()).copied();
    // All kinds were compared since the oldest of them was.
    let kinds = Kind::ALL.into_iter().filter(|kind| !verdict::is_off(status, *kind));
    let full = kinds.map(|kind| complete(Scope::Kind(kind))).min().flatten();
    let others = format!(
        "completed for memberships {}; incremental {}",
        ago(complete(Scope::Kind(Kind::Membership))),
        ago(complete(Scope::Quick))
    );
    let fresh = status.freshness.map_or_else(
        || ("–".to_owned(), "no webhook in the last hour".to_owned()),
        |fresh| {
            let note = format!(
                "median from the change at Clerk to the row; 99 % within {}; {} webhooks in the last hour",
                span(fresh.p99_ms),
                grouped(fresh.events)
            );
            (span(fresh.p50_ms), note)
        },
    );
    let (dead, reads) = (status.dead_letters.unsigned_abs(), status.pending_reads.unsigned_abs());
    let lease = status.lease.as_deref().map_or("no reconcile is running", |_| "a reconcile is running");
    html! {
        section.facts aria-label="State" {
            (fact("Last webhook", &ago(status.last_webhook_at), "received by any of your clerk-sync servers"))
            (fact("Webhook delay", &fresh.0, &fresh.1))
            (fact("Last completed full reconcile", &ago(full), &others))
            (fact("Dead letters", &grouped(dead), "webhooks that could not be applied"))
            (fact("Pending reads", &grouped(reads), "rows to read again from Clerk's API"))
            (fact("Database connections", &status.connections.to_string(), lease))
        }
    }
}

fn fact(name: &str, value: &str, note: &str) -> Markup {
    html! { div.card { h3 { (name) } p.value { (value) } p.soft { (note) } } }
}

/// What a stopped reconcile would delete.
fn candidates(status: &Status) -> Markup {
    let parents = |row: &Candidate| row.user_id.clone().zip(row.organization_id.clone());
    html! {
        @for pass in verdict::braked(status) {
            @let rows: Vec<&Candidate> = status.candidates.iter().filter(|row| row.pass_id == pass.id).collect();
            @let has_parents = rows.iter().any(|row| parents(row).is_some());
            @if !rows.is_empty() {
                section {
                    h2 { "What reconcile no. " (pass.id) " would delete" }
                    table.stack {
                        caption {
                            "The first " (rows.len()) " rows that Clerk no longer lists. To see all of them, run "
                            code.command { "clerk-sync reconcile --dry-run --json" }
                        }
                        thead {
                            tr {
                                th scope="col" { "Kind" } th scope="col" { "Id" }
                                @if has_parents { th scope="col" { "Belongs to" } }
                            }
                        }
                        tbody {
                            @for row in rows {
                                tr {
                                    td data-label="Kind" { (row.kind) }
                                    td data-label="Id" { code { (row.entity_id) } }
                                    @if let Some((user, organization)) = parents(row) {
                                        td data-label="Belongs to" { span { code { (user) } " in " code { (organization) } } }
                                    }
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
                table.stack.runs {
                    caption {
                        "The latest first. A full reconcile has a row for each kind; incremental ones that found nothing are left out. Columns: At Clerk = rows that Clerk listed; Missing = only at Clerk; Differing = other values here; Extra = only here."
                        @if shown.iter().any(|pass| verdict::undecided_otherwise(pass).is_some_and(|left| left.total() > 0)) {
                            " The last three do not count rows that a reconcile left as they are."
                        }
                    }
                    thead {
                        tr {
                            th scope="col" { "No." } th scope="col" { "Kind" } th scope="col" { "Began" } th scope="col" { "Result" }
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
    let undecided = verdict::undecided_otherwise(pass).and_then(|undecided| undecided.in_words(judge_after));
    let extra = pass.extra + verdict::undecided(pass).unwrap_or_default().held_back;
    let (class, result) = result(pass);
    html! {
        tbody {
            tr {
                td data-label="No." { (pass.id) }
                td data-label="Kind" { (scope(&pass.scope)) }
                td data-label="Began" { (moment_at(pass.started_at)) }
                td data-label="Result" { span class=(class) { (result) } }
                td.n data-label="Took" { (took) }
                td.n data-label="At Clerk" { (grouped(pass.listed)) }
                @for (label, rows) in [("Missing", pass.missing), ("Differing", pass.differing), ("Extra", extra)] {
                    td class=(count_class(rows)) data-label=(label) { @if pass.backfill { "–" } @else { (grouped(rows)) } }
                }
            }
            @for note in pass.problem.iter().chain(&undecided) {
                tr.note { td colspan="9" { (prose(&capitalized(note))) } }
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
        Some(PassState::Complete) if pass.backfill => ("good", "✓ filled (first reconcile)".to_owned()),
        Some(PassState::Complete) if drift(pass) > 0 => ("good", format!("✓ repaired {}", grouped(drift(pass)))),
        Some(PassState::Complete) => match verdict::undecided(pass).unwrap_or_default().total() {
            0 => ("good", "✓ in sync".to_owned()),
            rows => ("attention", format!("▲ {} left as they are", grouped(rows))),
        },
        Some(PassState::Running) => ("soft", "running".to_owned()),
        Some(PassState::Skipped) => ("soft", "skipped: switched off at Clerk".to_owned()),
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
                    caption { "The latest first." }
                    thead {
                        tr {
                            th scope="col" { "When" } th scope="col" { "Problem" } th scope="col" { "Id" } th scope="col" { "Columns" }
                            th scope="col" { "Probable cause" }
                        }
                    }
                    tbody {
                        @for finding in findings.iter().take(SHOWN) {
                            tr {
                                td data-label="When" { (moment_at(finding.repaired_at)) }
                                td data-label="Problem" { (finding.kind) " " (was(&finding.drift)) }
                                td data-label="Id" { code { (finding.entity_id) } }
                                td data-label="Columns" { (finding.fields.join(", ")) }
                                td data-label="Probable cause" { (prose(&finding.cause)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What was wrong with a row, after its kind.
fn was(drift: &Word<Drift>) -> String {
    match drift.known() {
        Some(Drift::Missing) => "was missing".to_owned(),
        Some(Drift::Differing) => "had other values".to_owned(),
        Some(Drift::Extra) => "was no longer at Clerk".to_owned(),
        None => drift.to_string(),
    }
}

fn dead_letters(letters: &[DeadLetterRow]) -> Markup {
    html! {
        @if !letters.is_empty() {
            section {
                h2 { "Dead letters" }
                table.stack {
                    caption { "Webhooks that were acknowledged but could not be applied. clerk-sync retries them automatically, except those with a reused message id. To retry one now, run its command." }
                    thead {
                        tr { th scope="col" { "Arrived" } th scope="col" { "Event" } th scope="col" { "Reason" } th scope="col" { "Command" } }
                    }
                    tbody {
                        @for letter in letters.iter().take(SHOWN) {
                            tr {
                                td data-label="Arrived" { (moment_at(letter.received_at)) }
                                td data-label="Event" { (letter.event_type.as_deref().unwrap_or("not named")) }
                                td data-label="Reason" { (prose(&letter.reason)) }
                                td data-label="Command" { code.command { "clerk-sync dead-letters retry " (letter.message_id) } }
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

/// A name of a variable may break after each of its words.
fn breakable(text: &str) -> Markup {
    html! {
        @for (n, part) in text.split('_').enumerate() {
            @if n > 0 { "_" wbr; }
            (part)
        }
    }
}

/// A message of ours: what is between backticks is code.
fn prose(text: &str) -> Markup {
    html! {
        @for (n, part) in text.split('`').enumerate() {
            @if n.is_multiple_of(2) { (part) } @else { code { (part) } }
        }
    }
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
        let quick = pass(serde_json::json!({ "scope": "quick" }));
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
        let pass = |id: i64, scope: &str, state: &str, ended_at: i64| {
            pass(serde_json::json!({ "id": id, "scope": scope, "state": state, "ended_at": ended_at }))
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

    fn pass(fields: serde_json::Value) -> PassRow {
        let mut all = serde_json::json!({
            "id": 2, "scope": "user", "state": "complete", "problem": null, "backfill": false, "started_at": 0, "ended_at": 60_000,
            "listed": 66, "missing": 0, "differing": 0, "extra": 0, "refreshed": 0, "counts": null,
        });
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn a_full_reconcile_says_how_many_rows_there_are_at_clerk() {
        let full = |fields| Status { now: 180_000, passes: vec![pass(fields)], ..Status::default() };
        let html = shown(&full(serde_json::json!({ "backfill": true })));
        assert!(
            html.contains("66 <small>here</small>") && html.contains("66 at Clerk <span class=\"same\">✓ equal"),
            "{html}"
        );
        assert!(html.contains("compared 2 min ago by reconcile no. 2"), "{html}");
        let html = shown(&full(serde_json::json!({ "undecided": { "too_fresh": 7 } })));
        assert!(html.contains("▲ 7 left as they are") && !html.contains("✓ equal"), "{html}");
        // One that did not end says nothing.
        let html = shown(&full(serde_json::json!({ "state": "incomplete" })));
        assert!(html.contains("not compared with Clerk yet") && !html.contains("✓ equal"), "{html}");
    }

    #[test]
    fn rows_that_a_reconcile_held_back_are_counted_as_extra_and_what_a_membership_belongs_to_is_shown_only_for_memberships()
     {
        let stopped = pass(serde_json::json!({ "state": "braked", "undecided": { "held_back": 20 } }));
        let candidate = |id: &str, organization: Option<&str>| Candidate {
            pass_id: 2,
            kind: "user".to_owned(),
            entity_id: id.to_owned(),
            organization_id: organization.map(str::to_owned),
            user_id: organization.map(|_| "user_1".to_owned()),
        };
        let status =
            |candidate| Status { passes: vec![stopped.clone()], candidates: vec![candidate], ..Status::default() };
        let html = shown(&status(candidate("user_9", None)));
        assert!(html.contains("data-label=\"Extra\">20<") && html.contains("▲ 20 more here"), "{html}");
        assert!(!html.contains("Belongs to"), "{html}");
        let html = shown(&status(candidate("orgmem_9", Some("org_1"))));
        assert!(
            html.contains("<th scope=\"col\">Belongs to</th>")
                && html.contains("<code>user_1</code> in <code>org_1</code>"),
            "{html}"
        );
    }

    #[test]
    fn what_a_message_has_between_backticks_is_shown_as_code() {
        let html = prose("run `clerk-sync migrate`, <b>").into_string();
        assert_eq!(html, "run <code>clerk-sync migrate</code>, &lt;b&gt;");
    }

    #[test]
    fn spans_are_round() {
        let spans = [5, 1_500, 119_999, 120_000, 7_200_000, 172_800_000].map(span);
        assert_eq!(spans, ["5 ms", "1 s", "119 s", "2 min", "2 h", "2 days"]);
    }
}

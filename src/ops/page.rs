//! The status page: one HTML document, made here, that loads nothing and refreshes itself. Pure.

use super::chart;
use super::verdict::{self, Level, Verdict};
use crate::model::{self, Kind, PassState, Scope};
use crate::store::status::{PassRow, Status};
use crate::webhook::health::Fault;
use std::fmt::Write as _;

/// Light and dark, wide and narrow.
const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1c2024;--soft:#60646c;--line:#d9d9e0;--paper:#fcfcfd;--card:#fff;
 --good:#18794e;--attention:#ab6400;--bad:#c62a2f;--blue:#0b68cb;--grey:#8b8d98}
@media(prefers-color-scheme:dark){:root{--ink:#edeef0;--soft:#b0b4ba;--line:#363a3f;--paper:#111113;--card:#18191b;
 --good:#3dd68c;--attention:#ffca16;--bad:#ff9592;--blue:#70b8ff;--grey:#7e808a}}
*{box-sizing:border-box}body{margin:0 auto;max-width:64rem;padding:1rem;background:var(--paper);color:var(--ink);
 font:16px/1.5 system-ui,sans-serif}
header{border-left:.5rem solid var(--grey);padding:.25rem 1rem;margin-bottom:1.5rem}
header.good{border-color:var(--good)}header.attention{border-color:var(--attention)}header.bad{border-color:var(--bad)}
h1{margin:0;font-size:1.75rem;line-height:1.2}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{margin:.35rem 0}
.soft{color:var(--soft)}.cards{display:grid;gap:.75rem;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.75rem 1rem}
.card b{display:block;font-size:1.4rem;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.3rem .75rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.n,td.at{white-space:nowrap}code{font-size:.85em;overflow-wrap:anywhere}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font:11px system-ui,sans-serif}
@media(max-width:36rem){svg text{font-size:26px}}
.key span{display:inline-block;margin-right:1rem}.key i{display:inline-block;width:.7rem;height:.7rem;border-radius:2px;margin-right:.35rem}
";

/// The page. `Err`: why there is no status. `fault`: why this process cannot write deliveries.
pub(super) fn page(status: Result<&Status, &str>, fault: Option<&Fault>, version: &str) -> String {
    let verdict = match status {
        Ok(status) => Verdict::of(status).with_fault(fault),
        Err(problem) => Verdict::unknown(problem),
    };
    let level = match verdict.level {
        Level::Good => "good",
        Level::Attention => "attention",
        Level::Bad => "bad",
    };
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><meta http-equiv=\"refresh\" content=\"15\">\
         <title>{headline} · clerk-sync</title><style>{STYLE}</style></head><body>\
         <header class=\"{level}\"><h1>{headline}</h1>",
        headline = verdict.headline,
    );
    for reason in &verdict.because {
        put(&mut html, format_args!("<p>{}</p>", escape(reason)));
    }
    html.push_str("</header><main>");
    if let Ok(status) = status {
        body(&mut html, status);
    }
    put(&mut html, format_args!("</main><footer><p class=\"soft\">clerk-sync {}", escape(version)));
    if let Ok(status) = status {
        put(&mut html, format_args!(" · {} by the database's clock", moment(status.now)));
    }
    html.push_str("; refreshes itself every 15 seconds. The same as JSON: <a href=\"/status.json\">/status.json</a></p></footer></body></html>");
    html
}

fn body(html: &mut String, status: &Status) {
    cards(html, status);
    html.push_str("<h2>Deliveries of the last 24 hours</h2>");
    html.push_str(&chart::deliveries(status));
    html.push_str("<h2>The last passes</h2>");
    html.push_str(&chart::passes(status));
    passes(html, status);
    findings(html, status);
    letters(html, status);
}

fn cards(html: &mut String, status: &Status) {
    html.push_str("<div class=\"cards\">");
    let counted = verdict::counts(status);
    for kind in Kind::ALL {
        let Some(here) = status.rows.get(kind.as_str()) else { continue };
        let there = counted.iter().find(|(of, _)| of == kind.as_str()).map_or_else(
            || "Clerk's count is not known yet".to_owned(),
            |(_, counts)| format!("{} at Clerk when last counted", counts.there),
        );
        card(html, &format!("{} here", kind.plural()), &here.to_string(), &there);
    }
    let ago = |at: Option<i64>| at.map_or_else(|| "never".to_owned(), |at| format!("{} ago", span(status.now - at)));
    let last_pass =
        status.last_complete.iter().filter(|(scope, _)| *scope != Scope::Quick.as_str()).map(|(_, at)| *at).max();
    card(html, "last webhook", &ago(status.last_webhook_at), "that was accepted");
    let quick = status.last_complete.get(Scope::Quick.as_str()).copied();
    card(html, "last complete pass", &ago(last_pass), &format!("quick pass: {}", ago(quick)));
    card(
        html,
        "dead letters",
        &status.dead_letters.to_string(),
        &format!("{} reads by id to be made", status.pending_reads),
    );
    let holder =
        status.lease.as_deref().map_or("no pass runs now".to_owned(), |holder| format!("a pass runs: {holder}"));
    card(html, "connections", &status.connections.to_string(), &holder);
    let instance = status.instance.as_deref().unwrap_or("none yet");
    put(html, format_args!("</div><p class=\"soft\">Clerk instance: <code>{}</code></p>", escape(instance)));
}

fn card(html: &mut String, name: &str, value: &str, note: &str) {
    let (name, value, note) = (escape(name), escape(value), escape(note));
    put(html, format_args!("<div class=\"card\">{name}<b>{value}</b><span class=\"soft\">{note}</span></div>"));
}

fn passes(html: &mut String, status: &Status) {
    // Quick passes come every few minutes: those without a finding tell nothing.
    let told = |pass: &&PassRow| pass.scope != Scope::Quick || pass.state != PassState::Complete || drift(pass) > 0;
    let shown: Vec<&PassRow> = status.passes.iter().filter(told).collect();
    if shown.is_empty() {
        html.push_str("<p class=\"soft\">None yet.</p>");
        return;
    }
    html.push_str("<div class=\"wide\"><table><tr><th>pass</th><th>of</th><th>began</th><th class=\"n\">took</th><th>ended</th>\
        <th class=\"n\">listed</th><th class=\"n\">missing</th><th class=\"n\">differing</th><th class=\"n\">extra</th></tr>");
    for pass in shown {
        let took = pass.ended_at.map_or_else(|| "…".to_owned(), |ended| span(ended - pass.started_at));
        let state = if pass.backfill { format!("{} (first)", pass.state) } else { pass.state.to_string() };
        put(
            html,
            format_args!(
                "<tr><td>{}</td><td>{}</td><td class=\"at\">{}</td><td class=\"n\">{took}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
                 <td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                pass.id,
                escape(pass.scope.as_str()),
                moment(pass.started_at),
                escape(&state),
                pass.listed,
                pass.missing,
                pass.differing,
                pass.extra
            ),
        );
        let judge_after = pass.judge_after.map(model::Millis::clamped);
        let undecided = verdict::undecided(pass).and_then(|undecided| undecided.in_words(judge_after));
        for note in pass.problem.iter().chain(&undecided) {
            put(html, format_args!("<tr><td></td><td colspan=\"8\">{}</td></tr>", escape(note)));
        }
    }
    html.push_str("</table></div>");
}

fn findings(html: &mut String, status: &Status) {
    if status.findings.is_empty() {
        return;
    }
    html.push_str("<h2>What the passes repaired</h2><div class=\"wide\"><table><tr><th>when</th><th>what</th><th>id</th><th>columns</th><th>probable cause</th></tr>");
    for finding in status.findings.iter().take(20) {
        put(
            html,
            format_args!(
                "<tr><td class=\"at\">{}</td><td>{} {}</td><td><code>{}</code></td><td>{}</td><td>{}</td></tr>",
                moment(finding.repaired_at),
                escape(finding.drift.as_str()),
                escape(&finding.kind),
                escape(&finding.entity_id),
                escape(&finding.fields.join(", ")),
                escape(&finding.cause)
            ),
        );
    }
    html.push_str("</table></div>");
}

fn letters(html: &mut String, status: &Status) {
    if status.letters.is_empty() {
        return;
    }
    html.push_str("<h2>Dead letters</h2><div class=\"wide\"><table><tr><th>came</th><th>event</th><th>why</th><th>try again</th></tr>");
    for letter in status.letters.iter().take(20) {
        put(
            html,
            format_args!(
                "<tr><td class=\"at\">{}</td><td>{}</td><td>{}</td><td><code>clerk-sync dead-letters retry {}</code></td></tr>",
                moment(letter.received_at),
                escape(letter.event_type.as_deref().unwrap_or("not named")),
                escape(&letter.reason),
                escape(&letter.message_id)
            ),
        );
    }
    html.push_str("</table></div>");
}

pub(super) fn drift(pass: &PassRow) -> u64 {
    pass.missing + pass.differing + pass.extra
}

pub(super) fn put(html: &mut String, text: std::fmt::Arguments<'_>) {
    html.write_fmt(text).expect("writing to a string cannot fail");
}

/// Text, whatever is in it, as HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A time, as people in any country read it.
pub(super) fn moment(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms)
        .map_or_else(String::new, |at| at.format("%Y-%m-%d %H:%M UTC").to_string())
}

/// Milliseconds in words.
pub(super) fn span(ms: i64) -> String {
    if ms < 1_000 { format!("{} ms", ms.max(0)) } else { model::span(ms / 1_000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_the_tables_becomes_markup() {
        let status = Status { instance: Some("<script>alert(\"x\")</script>".to_owned()), ..Status::default() };
        let html = page(Ok(&status), None, "1");
        assert!(!html.contains("<script>") && html.contains("&lt;script&gt;"));
    }

    #[test]
    fn spans_are_round() {
        let spans = [5, 1_500, 119_999, 120_000, 7_200_000, 172_800_000].map(span);
        assert_eq!(spans, ["5 ms", "1 s", "119 s", "2 min", "2 h", "2 days"]);
    }
}

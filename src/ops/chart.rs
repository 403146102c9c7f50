//! Two charts, as SVG in the page: deliveries by hour and outcome, and the last passes with what they took and found. Pure.

use super::page::{drift, escape, moment, put, span};
use crate::model::PassState;
use crate::store::status::{PassRow, Status};

const WIDTH: u32 = 960;
const HEIGHT: u32 = 160;
const HOUR: i64 = 3_600_000;
const HOURS: i64 = 24;

/// Outcomes in the order of the stack, with their colours.
const OUTCOMES: [(&str, &str); 6] = [
    ("applied", "var(--good)"),
    ("unchanged", "var(--blue)"),
    ("duplicate", "var(--grey)"),
    ("stale", "var(--line)"),
    ("pending", "var(--attention)"),
    ("dead_letter", "var(--bad)"),
];

/// A bar for each of the last 24 hours.
pub(super) fn deliveries(status: &Status) -> String {
    let first = (status.now / HOUR - HOURS + 1) * HOUR;
    let of = |hour: i64, outcome: &str| -> u64 {
        let rows = status.deliveries.iter().filter(|row| row.hour == hour && row.outcome == outcome);
        rows.map(|row| row.count).sum()
    };
    let hours: Vec<i64> = (0..HOURS).map(|n| first + n * HOUR).collect();
    let total = |hour: i64| OUTCOMES.iter().map(|(outcome, _)| of(hour, outcome)).sum::<u64>();
    let most = hours.iter().map(|hour| total(*hour)).max().unwrap_or_default();
    if most == 0 {
        return "<p class=\"soft\">None came.</p>".to_owned();
    }
    let mut svg = open(&format!("Deliveries by hour; {most} in the busiest"));
    let step = f64::from(WIDTH) / 24.0;
    for (index, hour) in (0_u32..).zip(&hours) {
        let (x, mut top) = (f64::from(index) * step, f64::from(HEIGHT));
        let told: Vec<String> = OUTCOMES
            .iter()
            .map(|(outcome, _)| (outcome, of(*hour, outcome)))
            .filter(|(_, n)| *n > 0)
            .map(|(outcome, n)| format!("{n} {outcome}"))
            .collect();
        put(&mut svg, format_args!("<g><title>{}: {}</title>", moment(*hour), told.join(", ")));
        for (outcome, colour) in OUTCOMES {
            let height = f64::from(HEIGHT - 20) * share(of(*hour, outcome), most);
            if height > 0.0 {
                top -= height.max(1.0);
                put(
                    &mut svg,
                    format_args!(
                        "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
                        x + 1.0,
                        step - 2.0,
                        height.max(1.0)
                    ),
                );
            }
        }
        svg.push_str("</g>");
    }
    put(&mut svg, format_args!("<text x=\"2\" y=\"12\">{most} an hour</text></svg><p class=\"key\">"));
    for (outcome, colour) in OUTCOMES {
        put(&mut svg, format_args!("<span><i style=\"background:{colour}\"></i>{}</span>", outcome.replace('_', " ")));
    }
    svg.push_str("</p>");
    svg
}

/// A bar for each of the last passes, the newest at the right: its height is how long it took, its colour how it ended.
pub(super) fn passes(status: &Status) -> String {
    let took =
        |pass: &PassRow| u64::try_from(pass.ended_at.unwrap_or(status.now) - pass.started_at).unwrap_or_default();
    let shown: Vec<&PassRow> = status.passes.iter().take(50).collect();
    let longest = shown.iter().map(|pass| took(pass)).max().unwrap_or_default().max(1);
    if shown.is_empty() {
        return String::new();
    }
    let mut svg = open(&format!("The last {} passes; the longest took {}", shown.len(), span(longest.cast_signed())));
    let step = f64::from(WIDTH) / 50.0;
    for (index, pass) in (0_u32..).zip(shown.into_iter().rev()) {
        let height = (f64::from(HEIGHT - 30) * share(took(pass), longest)).max(3.0);
        let x = f64::from(index) * step;
        let colour = match pass.state.known() {
            Some(PassState::Complete) if drift(pass) == 0 => "var(--good)",
            Some(PassState::Complete | PassState::Running) => "var(--blue)",
            Some(PassState::Skipped) => "var(--grey)",
            Some(PassState::Braked) => "var(--bad)",
            Some(PassState::Incomplete | PassState::Void) | None => "var(--attention)",
        };
        let y = f64::from(HEIGHT) - height;
        put(
            &mut svg,
            format_args!(
                "<g><title>pass {} of {}: {}, {}, {} rows wrong</title><rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>",
                pass.id,
                escape(pass.scope.as_str()),
                escape(pass.state.as_str()),
                span(took(pass).cast_signed()),
                drift(pass),
                x + 1.0,
                step - 2.0
            ),
        );
        if drift(pass) > 0 {
            put(
                &mut svg,
                format_args!(
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                    x + step / 2.0,
                    y - 4.0,
                    drift(pass)
                ),
            );
        }
        svg.push_str("</g>");
    }
    put(&mut svg, format_args!("<text x=\"2\" y=\"12\">{}</text></svg>", span(longest.cast_signed())));
    svg.push_str("<p class=\"key\"><span><i style=\"background:var(--good)\"></i>nothing wrong</span><span><i style=\"background:var(--blue)\"></i>\
        repaired (rows), or running</span><span><i style=\"background:var(--attention)\"></i>not finished</span><span>\
        <i style=\"background:var(--bad)\"></i>waits for approval</span></p>");
    svg
}

fn open(title: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escape(title))
}

fn share(part: u64, whole: u64) -> f64 {
    f64::from(u32::try_from(part).unwrap_or(u32::MAX)) / f64::from(u32::try_from(whole.max(1)).unwrap_or(u32::MAX))
}

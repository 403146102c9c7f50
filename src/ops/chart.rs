//! The chart of the status page, as SVG: webhooks by hour and outcome. Pure.

use crate::model::grouped;
use crate::store::status::Status;
use maud::{Markup, html};

const HOUR: i64 = 3_600_000;
const HOURS: i64 = 24;

/// Outcomes in the order of the stack: by name, in words, and with their colour. The last one is hatched, too.
const OUTCOMES: [(&str, &str, &str); 5] = [
    ("applied", "applied", "var(--c-applied)"),
    ("unchanged", "no change needed", "var(--c-unchanged)"),
    ("stale", "older than the row", "var(--c-stale)"),
    ("pending", "needed a read from Clerk's API", "var(--c-pending)"),
    ("dead_letter", "dead letters", "var(--c-dead)"),
];

/// An outcome in words, if the chart has it.
pub(super) fn words(outcome: &str) -> Option<&'static str> {
    OUTCOMES.iter().find(|(name, ..)| *name == outcome).map(|(_, words, _)| *words)
}

/// How it is drawn.
struct Shape {
    class: &'static str,
    width: f64,
    height: f64,
    hours: usize,
    /// An hour is written below each bar of so many.
    label_each: usize,
}

/// For a wide screen a day, for a narrow one the last half of it, so that numbers and hours can be read.
const WIDE: Shape = Shape { class: "wide", width: 960.0, height: 200.0, hours: 24, label_each: 3 };
const NARROW: Shape = Shape { class: "narrow", width: 360.0, height: 190.0, hours: 12, label_each: 3 };

/// Room above for numbers, below for hours.
const TOP: f64 = 24.0;
const BOTTOM: f64 = 22.0;
/// Half of what an hour's label takes.
const HALF_HOUR_LABEL: f64 = 18.0;

/// One hour's webhooks by outcome.
struct Bar {
    hour: i64,
    counts: [u64; OUTCOMES.len()],
}

impl Bar {
    fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// A bar for each hour, and how many there were of each outcome.
pub(super) fn deliveries(status: &Status) -> Markup {
    let bars = bars(status);
    let totals: Vec<u64> = (0..OUTCOMES.len()).map(|n| bars.iter().map(|bar| bar.counts[n]).sum()).collect();
    if totals.iter().sum::<u64>() == 0 {
        return html! { p.soft { "None arrived." } };
    }
    html! {
        figure style="margin:0" {
            (drawn(&bars, &WIDE))
            (drawn(&bars, &NARROW))
            p.soft.narrow { "Bars: the last " (NARROW.hours) " hours. Numbers below: the last 24 hours." }
            ul.key aria-label="Webhooks of the last 24 hours by outcome" {
                @for ((_, words, colour), total) in OUTCOMES.iter().zip(&totals) {
                    @if *total > 0 {
                        li {
                            svg viewBox="0 0 10 10" aria-hidden="true" {
                                rect width="10" height="10" rx="2" style={ "fill:" (colour) } {}
                                @if is_hatched(words) { path d="M0 10L10 0" stroke="var(--card)" stroke-width="2" {} }
                            }
                            (words) " " b { (grouped(*total)) }
                        }
                    }
                }
            }
        }
    }
}

fn is_hatched(words: &str) -> bool {
    words == OUTCOMES[OUTCOMES.len() - 1].1
}

/// The last 24 hours, the latest last.
fn bars(status: &Status) -> Vec<Bar> {
    let first = (status.now / HOUR - HOURS + 1) * HOUR;
    let bar = |n: i64| {
        let hour = first + n * HOUR;
        let counts = OUTCOMES.map(|(outcome, ..)| {
            let rows = status.deliveries.iter().filter(|row| row.hour == hour && row.outcome == outcome);
            rows.map(|row| row.count).sum()
        });
        Bar { hour, counts }
    };
    (0..HOURS).map(bar).collect()
}

/// Up to which number bars are drawn whole. One burst must not flatten a day: a bar far above the others is cut, and its number
/// says how high it is.
fn limit(bars: &[Bar]) -> u64 {
    let mut totals: Vec<u64> = bars.iter().map(Bar::total).filter(|total| *total > 0).collect();
    totals.sort_unstable();
    let Some((most, usual)) = totals.last().zip(totals.get(totals.len() * 3 / 4).or(totals.last())) else { return 1 };
    let usual = if totals.len() > 3 { *usual.min(&totals[totals.len() - 2]) } else { *usual };
    if *most > usual.saturating_mul(4) { usual.saturating_mul(2).max(1) } else { *most }
}

fn drawn(bars: &[Bar], shape: &Shape) -> Markup {
    let bars = &bars[bars.len().saturating_sub(shape.hours)..];
    let limit = limit(bars);
    let most = bars.iter().map(Bar::total).max().unwrap_or_default();
    let step = shape.width / number(bars.len() as u64);
    let base = shape.height - BOTTOM;
    let room = base - TOP;
    let height = |count: u64| room * number(count) / number(limit.max(1));
    html! {
        svg class=(shape.class) viewBox=(format!("0 0 {} {}", shape.width, shape.height)) role="img"
            aria-label=(format!("Webhooks by hour in UTC, the last {} hours; {} in the busiest", bars.len(), grouped(most))) {
            @for part in [1.0, 0.5, 0.0] {
                line x1="0" x2=(shape.width) y1=(at(base - room * part)) y2=(at(base - room * part)) {}
            }
            @for (n, bar) in bars.iter().enumerate() {
                @let x = number(n as u64) * step;
                @let total = bar.total();
                @let is_cut = total > limit;
                @let top = base - height(total.min(limit));
                g {
                    title { (hour(bar.hour)) " UTC: " (in_words(bar)) }
                    @for (n, (y, height)) in segments(bar, base, base - top).into_iter().enumerate() {
                        @if height > 0.0 {
                            rect x=(at(x + 2.0)) y=(at(y)) width=(at(step - 4.0)) height=(at(height)) style={ "fill:" (OUTCOMES[n].2) } {}
                            @if is_hatched(OUTCOMES[n].1) {
                                path d=(hatch(x + 2.0, y, step - 4.0, height)) stroke="var(--card)" stroke-width="1.5" fill="none" {}
                            }
                        }
                    }
                    @if is_cut {
                        path d=(format!("M{} {}l{} -6v5l-{} 6z", at(x), at(top + 12.0), at(step), at(step))) fill="var(--paper)" {}
                    }
                    @if total > 0 {
                        text.n x=(at(x + step / 2.0)) y=(at(top - 5.0)) text-anchor="middle" { (short(total)) }
                    }
                    @if (bars.len() - 1 - n).is_multiple_of(shape.label_each) {
                        text x=(at((x + step / 2.0).min(shape.width - HALF_HOUR_LABEL))) y=(at(shape.height - 5.0)) text-anchor="middle" {
                            (hour(bar.hour))
                        }
                    }
                }
            }
        }
    }
}

/// Where each outcome's part of a bar begins, from above, and how high it is. What is there can be seen, however little it is.
fn segments(bar: &Bar, base: f64, whole: f64) -> [(f64, f64); OUTCOMES.len()] {
    let total = bar.total().max(1);
    let mut y = base;
    bar.counts.map(|count| {
        let height = if count == 0 { 0.0 } else { (whole * number(count) / number(total)).max(1.5) };
        y -= height;
        (y, height)
    })
}

fn hatch(x: f64, y: f64, width: f64, height: f64) -> String {
    let mut path = String::new();
    let mut down = 3.0;
    while down < height {
        path.push_str(&format!("M{} {}h{}", at(x), at(y + down), at(width)));
        down += 4.0;
    }
    path
}

fn in_words(bar: &Bar) -> String {
    let parts = OUTCOMES.iter().zip(bar.counts).filter(|(_, count)| *count > 0);
    let parts: Vec<String> = parts.map(|((_, words, _), count)| format!("{} {words}", grouped(count))).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

fn hour(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms).map_or_else(String::new, |at| at.format("%H:00").to_string())
}

/// A number that fits above a bar.
fn short(number: u64) -> String {
    match number {
        0..1_000 => number.to_string(),
        1_000..10_000 => format!("{}.{}k", number / 1_000, number % 1_000 / 100),
        10_000..1_000_000 => format!("{}k", number / 1_000),
        _ => format!("{}M", number / 1_000_000),
    }
}

/// A coordinate.
fn at(place: f64) -> String {
    format!("{place:.1}")
}

fn number(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::status::Deliveries;

    fn day(counts: &[u64]) -> Status {
        let now = 30 * HOUR;
        let row = |(n, count): (usize, &u64)| Deliveries {
            hour: now - HOUR * i64::try_from(n).unwrap(),
            outcome: "applied".to_owned(),
            count: *count,
        };
        Status { now, deliveries: counts.iter().enumerate().map(row).collect(), ..Status::default() }
    }

    #[test]
    fn one_burst_does_not_flatten_the_day_and_its_number_is_shown() {
        assert_eq!(limit(&bars(&day(&[10, 12, 8, 11, 9, 5_000]))), 24);
        assert_eq!(limit(&bars(&day(&[10, 12, 8]))), 12);
        assert_eq!(limit(&bars(&day(&[7]))), 7);
        let html = deliveries(&day(&[10, 12, 8, 11, 9, 5_000])).into_string();
        assert!(html.contains(">5.0k</text>") && html.contains("applied <b>5,050</b>"), "{html}");
    }

    #[test]
    fn hours_are_written_below_the_bars() {
        let html = deliveries(&day(&[1])).into_string();
        assert!(html.contains(">06:00</text>") && html.contains(">03:00</text>"), "{html}");
    }

    #[test]
    fn a_day_without_webhooks_has_no_chart() {
        assert!(!deliveries(&day(&[])).into_string().contains("<svg"));
    }
}

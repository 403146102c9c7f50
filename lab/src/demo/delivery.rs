//! The way of the webhooks: each signed and posted to both receivers, with the losses and detours of the real world.

use super::compare::Names;
use super::wrapped;
use crate::say;
use anyhow::bail;
use clerk_sync::sender::{Attempt, Sender};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use testkit::clerk::Event;

/// Percentage of webhooks that come twice, and that are held up for long.
const DOUBLED: u8 = 10;
const LATE: u8 = 15;
/// Lines of the live output, so that it can be read.
const SHOWN: usize = 12;

/// Who gets the webhooks.
pub(super) struct Receivers {
    ours: Sender,
    naive: Sender,
}

impl Receivers {
    pub(super) fn new(ours: &str, naive: &str, secret: &str) -> anyhow::Result<Receivers> {
        Ok(Receivers { ours: Sender::new(ours, secret)?, naive: Sender::new(naive, secret)? })
    }

    /// Delivers one message to both, with retries as Svix would make them, only sooner.
    pub(super) async fn deliver(&self, event: &Event) -> anyhow::Result<Attempt> {
        let (ours, naive) = tokio::join!(deliver(&self.ours, event), deliver(&self.naive, event));
        naive?;
        ours
    }
}

async fn deliver(sender: &Sender, event: &Event) -> anyhow::Result<Attempt> {
    for _ in 0..8 {
        let attempt = sender.send(&event.message_id, event.body.as_bytes()).await?;
        if attempt.status / 100 == 2 {
            return Ok(attempt);
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    bail!("{} was refused eight times", event.event_type)
}

/// Sends everything on its way and returns what was lost. One after the other: what becomes of each is the same each time.
pub(super) async fn deliver_all(
    events: Vec<Event>,
    receivers: &Receivers,
    lose: u8,
    seed: u64,
    names: &Names,
) -> anyhow::Result<Vec<Event>> {
    let (deliveries, lost) = mangle(events, lose, seed);
    say(&format!(
        "{} deliveries arrive: {DOUBLED} % of the webhooks come twice, {LATE} % late and out of order. {} more webhooks are lost and never arrive.",
        deliveries.len(),
        lost.len()
    ));
    say(&format!("What clerk-sync does not apply, and why (the first {SHOWN}):"));
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} deliveries, {per_sec}")?;
    let progress = ProgressBar::new(deliveries.len() as u64).with_style(style);
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let mut shown = 0;
    for event in &deliveries {
        let outcome = receivers.deliver(event).await?.outcome.unwrap_or_default();
        let why = match outcome.as_str() {
            "stale" => Some("older than the row"),
            "duplicate" => Some("a duplicate: it came before"),
            _ => None,
        };
        if let Some(why) = why.filter(|_| shown < SHOWN) {
            shown += 1;
            let line = format!("  {} of {}: {why}", event.event_type, names.of_event(event));
            progress.suspend(|| say(&wrapped(&line, 4)));
        }
        *outcomes.entry(outcome).or_default() += 1;
        progress.inc(1);
    }
    progress.finish_and_clear();
    let counts: Vec<String> =
        outcomes.iter().map(|(outcome, count)| format!("{count} {}", in_words(outcome))).collect();
    say(&wrapped(&format!("clerk-sync acknowledged all {}: {}.", deliveries.len(), counts.join(", ")), 2));
    Ok(lost)
}

fn in_words(outcome: &str) -> &str {
    match outcome {
        "stale" => "older than the row",
        "duplicate" => "duplicates",
        other => other,
    }
}

/// The events in the order of their arrival, some twice; and those that never arrive.
fn mangle(events: Vec<Event>, lose: u8, seed: u64) -> (Vec<Event>, Vec<Event>) {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed);
    let mut lost = Vec::new();
    let mut arriving: Vec<(usize, Event)> = Vec::new();
    let chance = |rng: &mut fastrand::Rng, percent: u8| rng.u8(0..100) < percent;
    for (position, event) in events.into_iter().enumerate() {
        if chance(&mut rng, lose) {
            lost.push(event);
            continue;
        }
        let copies = if chance(&mut rng, DOUBLED) { 2 } else { 1 };
        for _ in 0..copies {
            let detour = if chance(&mut rng, LATE) { rng.usize(20..150) } else { rng.usize(0..3) };
            arriving.push((position + detour, event.clone()));
        }
    }
    arriving.sort_by_key(|(position, _)| *position);
    (arriving.into_iter().map(|(_, event)| event).collect(), lost)
}

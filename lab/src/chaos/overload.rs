//! `lab chaos overload`: ten times what the database can take is offered. As much as before must get through, and
//! the rest must be told to come again, at once.

use super::stage::{self, Stage};
use super::{Ended, percentile, say};
use clerk_sync::sender::Sender;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use testkit::clerk::Event;
use testkit::traffic;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Offer ten times what the database can take
#[derive(clap::Args, Clone)]
pub(crate) struct Overload {
    /// How long the peak is measured, and how long the overload lasts
    #[arg(long, default_value_t = Overload::default().seconds, value_name = "N")]
    seconds: u64,
}

impl Default for Overload {
    fn default() -> Overload {
        Overload { seconds: 30 }
    }
}

/// Connections that keep the database as busy as it can be, and those that are far too many.
const ENOUGH: usize = 400;
const TOO_MANY: usize = 2_000;
/// How soon somebody who was refused comes again: much sooner than asked.
const IMPATIENCE: Duration = Duration::from_millis(400);
/// A disk that takes its time, whatever it is asked to write.
const SLOW: &str = "
create function public.slow() returns trigger language plpgsql as $$ begin perform pg_sleep(1.5); return null; end $$;
create trigger slow before insert on clerk_sync.receipts for each statement execute function public.slow()";
/// What thousands of connections may take to be opened, which on a slow machine is as long as two batches: counted is what comes
/// after it.
const SETTLING: Duration = Duration::from_secs(5);
const GOODPUT: f64 = 0.8;
const RECOVERY: Duration = Duration::from_secs(5);

impl Overload {
    /// Within seconds.
    pub(super) fn small() -> Overload {
        Overload { seconds: 12 }
    }

    /// Runs the trial.
    ///
    /// # Errors
    /// It could not be run.
    pub(super) async fn run(self) -> anyhow::Result<Ended> {
        say("a database that takes 1.5 s for each batch, and ten times too many webhooks");
        let stage = Stage::new(1).await?;
        sqlx::raw_sql(SLOW).execute(&mut stage.owner().await?).await?;
        let worker = stage.worker(&[]).await?;
        let load = Load { sender: Arc::new(stage::sender(&worker)?), events: events(&stage), next: Arc::default() };
        let seconds = Duration::from_secs(self.seconds);
        let peak = load.run(ENOUGH, SETTLING, seconds).await?;
        say(&format!("  peak      {peak}"));
        let over = load.run(TOO_MANY, SETTLING, seconds).await?;
        say(&format!("  overload  {over}"));
        let memory = worker.usage().peak;
        sqlx::raw_sql("drop trigger slow on clerk_sync.receipts").execute(&mut stage.owner().await?).await?;
        let ended = Instant::now();
        let normal = loop {
            let calm = load.run(1, Duration::ZERO, Duration::from_millis(100)).await?;
            if calm.acknowledged > 5 || ended.elapsed() > RECOVERY * 2 {
                break ended.elapsed();
            }
        };
        let goodput = over.per_second(over.acknowledged) / peak.per_second(peak.acknowledged);
        let offered = over.per_second(over.sent()) / peak.per_second(peak.acknowledged);
        say(&format!(
            "  offered {offered:.1} times the peak, got through {:.0} % of it; normal {normal:.1?} after; memory {:.1} MiB at most",
            goodput * 100.0,
            memory as f64 / 1024.0
        ));
        Ok(Ended::of(goodput >= GOODPUT && offered >= 10.0 && over.other == 0 && peak.other == 0 && normal <= RECOVERY))
    }
}

fn events(stage: &Stage) -> Arc<[Event]> {
    let mut clerk = stage.world.clerk.lock();
    clerk.outbox.clear();
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..20_000 {
        clerk.now += 50;
        traffic::sign_up(&mut clerk, &mut rng);
    }
    std::mem::take(&mut clerk.outbox).into()
}

struct Load {
    sender: Arc<Sender>,
    events: Arc<[Event]>,
    next: Arc<AtomicUsize>,
}

/// What was heard in a while.
#[derive(Default)]
struct Heard {
    acknowledged: usize,
    refused: usize,
    /// Any other answer, or none.
    other: usize,
    acknowledged_after: Vec<Duration>,
    refused_after: Vec<Duration>,
    lasted: Duration,
}

impl Load {
    /// So many connections, each with one message after the other, for a while. What is heard before they have settled does not
    /// count.
    async fn run(&self, connections: usize, settling: Duration, lasts: Duration) -> anyhow::Result<Heard> {
        let from = Instant::now() + settling;
        let until = from + lasts;
        let mut clients = JoinSet::new();
        for _ in 0..connections {
            let (sender, events, next) = (Arc::clone(&self.sender), Arc::clone(&self.events), Arc::clone(&self.next));
            clients.spawn(async move {
                let mut heard = Heard::default();
                while Instant::now() < until {
                    let event = &events[next.fetch_add(1, Ordering::Relaxed) % events.len()];
                    heard.attempt(&sender, event, from..=until).await;
                }
                heard
            });
        }
        let mut all = Heard { lasted: lasts, ..Heard::default() };
        while let Some(heard) = clients.join_next().await {
            all.take(heard?);
        }
        all.acknowledged_after.sort();
        all.refused_after.sort();
        Ok(all)
    }
}

impl Heard {
    /// One message, until it is acknowledged or the time is up. Only answers within the time count.
    async fn attempt(&mut self, sender: &Sender, event: &Event, time: RangeInclusive<Instant>) {
        loop {
            let began = Instant::now();
            let status =
                sender.send(&event.message_id, event.body.as_bytes()).await.map_or(0, |attempt| attempt.status);
            let now = Instant::now();
            let is_acknowledged = (200..300).contains(&status);
            if time.contains(&now) {
                match status {
                    200..=299 => {
                        self.acknowledged += 1;
                        self.acknowledged_after.push(began.elapsed());
                    }
                    503 => {
                        self.refused += 1;
                        self.refused_after.push(began.elapsed());
                    }
                    _ => self.other += 1,
                }
            }
            if is_acknowledged || now > *time.end() {
                return;
            }
            sleep(IMPATIENCE).await;
        }
    }

    fn take(&mut self, other: Heard) {
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.other += other.other;
        self.acknowledged_after.extend(other.acknowledged_after);
        self.refused_after.extend(other.refused_after);
    }

    const fn sent(&self) -> usize {
        self.acknowledged + self.refused + self.other
    }

    fn per_second(&self, count: usize) -> f64 {
        count as f64 / self.lasted.as_secs_f64()
    }
}

impl std::fmt::Display for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:>6.0} acknowledged a second (p50 {:.1?}, p99 {:.1?}), {:>6.0} × 503 (p50 {:.1?}, p99 {:.1?}), {} others",
            self.per_second(self.acknowledged),
            percentile(&self.acknowledged_after, 50),
            percentile(&self.acknowledged_after, 99),
            self.per_second(self.refused),
            percentile(&self.refused_after, 50),
            percentile(&self.refused_after, 99),
            self.other
        )
    }
}

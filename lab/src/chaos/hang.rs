//! `lab chaos hang`: the database takes connections and says nothing, for minutes, while everything that Svix may
//! have under way waits for it.

use super::stage::{self, Stage};
use super::{Ended, percentile, say};
use anyhow::ensure;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use testkit::clerk::Event;
use testkit::proxy::Fault;
use testkit::traffic;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Let the database fall silent while deliveries are under way
#[derive(clap::Args, Clone)]
pub(crate) struct Hang {
    /// How long
    #[arg(long, default_value_t = Hang::default().seconds, value_name = "N")]
    seconds: u64,

    /// Deliveries under way
    #[arg(long, default_value_t = Hang::default().in_flight, value_name = "N")]
    in_flight: usize,

    /// Of each body
    #[arg(long, default_value_t = Hang::default().kilobytes, value_name = "N")]
    kilobytes: usize,
}

impl Default for Hang {
    fn default() -> Hang {
        Hang { seconds: 600, in_flight: 500, kilobytes: 50 }
    }
}

/// What was promised: of an answer, of memory in KiB, until the first is acknowledged again.
const ANSWER: Duration = Duration::from_secs(10);
const MEMORY: u64 = 128 * 1024;
const RECOVERY: Duration = Duration::from_secs(5);

impl Hang {
    /// Within seconds.
    pub(super) fn small() -> Hang {
        Hang { seconds: 10, ..Hang::default() }
    }

    /// Runs the trial.
    ///
    /// # Errors
    /// It could not be run.
    pub(super) async fn run(self) -> anyhow::Result<Ended> {
        say(&format!(
            "the database is silent for {} s, {} deliveries of {} kB under way",
            self.seconds, self.in_flight, self.kilobytes
        ));
        let stage = Stage::new(1).await?;
        let worker = stage.worker(&[]).await?;
        let sender = Arc::new(stage::sender(&worker)?);
        let mut events = self.events(&stage);
        let first = events.pop().unwrap_or_else(|| unreachable!("one more than are under way"));
        ensure!(sender.send(&first.message_id, first.body.as_bytes()).await?.status == 204, "the worker is not ready");

        let lines = worker.log_lines();
        let over = Arc::new(AtomicBool::new(false));
        stage.world.database_proxy().set(Fault::BlackHole);
        let began = Instant::now();
        let mut under_way = JoinSet::new();
        for event in events {
            let (sender, over) = (Arc::clone(&sender), Arc::clone(&over));
            under_way.spawn(async move {
                let mut answers = Answers::default();
                while !answers.attempt(&sender, &event, &over).await {
                    sleep(Duration::from_millis(100)).await;
                }
                answers
            });
        }
        sleep(Duration::from_secs(self.seconds)).await;
        let lines = worker.log_lines() - lines;
        let peak = worker.usage().peak;
        over.store(true, Ordering::Relaxed);
        let healed = Instant::now();
        stage.world.database_proxy().set(Fault::None);
        let mut all = Answers::default();
        while let Some(answers) = under_way.join_next().await {
            all.take(answers?);
        }
        let recovered = all.acknowledged_at.map(|at| at.saturating_duration_since(healed)).unwrap_or_default();
        let stored: i64 =
            sqlx::query_scalar("select count(*) from clerk.users").fetch_one(&mut stage.owner().await?).await?;

        all.times.sort();
        let slowest = all.times.last().copied().unwrap_or_default();
        let held_up = (healed - began).as_secs_f64();
        say(&format!(
            "  {} answers while it was silent (503: {}, others: {:?}): p50 {:.1?}, max {slowest:.1?}; {:.2} lines of log a second",
            all.times.len(),
            all.statuses.get(&503).copied().unwrap_or_default(),
            all.others(),
            percentile(&all.times, 50),
            lines as f64 / held_up
        ));
        say(&format!(
            "  the worker's memory: {:.1} MiB at most; first acknowledged {recovered:.1?} after, all after {:.1?}; {stored} users stored",
            peak as f64 / 1024.0,
            healed.elapsed()
        ));
        let all_are_stored = usize::try_from(stored)? >= self.in_flight;
        let is_kept =
            slowest <= ANSWER && peak <= MEMORY && recovered <= RECOVERY && all.others().is_empty() && all_are_stored;
        Ok(Ended::of(is_kept))
    }

    /// Sign-ups, each with a body of the size that is asked for, and one more.
    fn events(&self, stage: &Stage) -> Vec<Event> {
        let mut clerk = stage.world.clerk.lock();
        clerk.outbox.clear();
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..=self.in_flight {
            clerk.now += 100;
            traffic::sign_up(&mut clerk, &mut rng);
        }
        let padding = format!("{{\"padding\":\"{}\",", "x".repeat(self.kilobytes * 1_000));
        let mut events = std::mem::take(&mut clerk.outbox);
        events.iter_mut().for_each(|event| event.body = event.body.replacen('{', &padding, 1));
        events
    }
}

/// What was heard.
#[derive(Default)]
pub(super) struct Answers {
    /// While the fault lasted.
    pub(super) times: Vec<Duration>,
    pub(super) statuses: BTreeMap<u16, usize>,
    acknowledged_at: Option<Instant>,
}

impl Answers {
    /// One attempt: whether it was acknowledged.
    async fn attempt(&mut self, sender: &clerk_sync::sender::Sender, event: &Event, over: &AtomicBool) -> bool {
        let began = Instant::now();
        let mut answer = sender.send(&event.message_id, event.body.as_bytes()).await;
        // As Svix does: a connection that was closed as the request set out is replaced at once.
        if answer.is_err() && began.elapsed() < Duration::from_secs(1) {
            answer = sender.send(&event.message_id, event.body.as_bytes()).await;
        }
        let status = answer.map_or(0, |attempt| attempt.status);
        *self.statuses.entry(status).or_default() += 1;
        if !over.load(Ordering::Relaxed) {
            self.times.push(began.elapsed());
        }
        let is_acknowledged = status / 100 == 2;
        if is_acknowledged {
            self.acknowledged_at = Some(Instant::now());
        }
        is_acknowledged
    }

    fn take(&mut self, other: Answers) {
        self.times.extend(other.times);
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.acknowledged_at = match (self.acknowledged_at, other.acknowledged_at) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }

    /// How often what was neither acknowledged nor 503; 0 is no answer at all.
    pub(super) fn others(&self) -> BTreeMap<u16, usize> {
        self.statuses.iter().filter(|(status, _)| !matches!(status, 200..=299 | 503)).map(|(s, n)| (*s, *n)).collect()
    }
}

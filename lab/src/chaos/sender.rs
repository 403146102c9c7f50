//! Webhooks sent as Svix was measured to send them: up to 500 under way, in no order, some twice, some never; tried again
//! after times that vary by a fifth, and at once, byte for byte, where a connection failed within a second.
//!
//! One thing differs: the waits between attempts are seconds here, so that a trial ends the same day.

use super::checker::Message;
use clerk_sync::sender::{Attempt, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use testkit::clerk::Event;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Messages under way at once: as many as one Svix process has.
const IN_FLIGHT: usize = 500;
/// In a thousand: messages that are sent a second time beside the first, and that are never sent at all.
const DOUBLED: u16 = 50;
const LOST: u16 = 5;
/// Waits between attempts, in ms; the last one for all further. Svix: 5 s, 5 min, 30 min, 2 h, …
const WAITS: [u64; 4] = [250, 500, 1_000, 2_000];
/// A connection that fails sooner is tried again at once.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What became of every message so far. Cheap to clone; all clones share it.
#[derive(Clone, Default)]
pub(super) struct History(Arc<Mutex<BatchMessage>>);

#[derive(Default)]
struct BatchMessage {
    messages: Vec<Message>,
    last_acknowledged: Option<Instant>,
    /// How long each answer took.
    times: Vec<Duration>,
    /// Answers that are neither 2xx nor 503.
    odd: Vec<u16>,
}

impl History {
    fn lock(&self) -> MutexGuard<'_, BatchMessage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, event: Event) -> usize {
        let mut told = self.lock();
        told.messages.push(Message::new(event));
        told.messages.len() - 1
    }

    fn attempted(&self, message: usize) {
        self.lock().messages[message].attempts += 1;
    }

    /// Returns whether the message is acknowledged now.
    fn answered(&self, message: usize, answer: Option<&Attempt>, took: Duration) -> bool {
        let mut told = self.lock();
        let Some(answer) = answer else {
            told.messages[message].unknown += 1;
            return told.messages[message].is_acknowledged;
        };
        told.times.push(took);
        match answer.status {
            200..=299 => {
                told.last_acknowledged = Some(Instant::now());
                let message = &mut told.messages[message];
                let found = matches!(answer.outcome.as_deref(), Some("duplicate" | "unchanged"));
                message.is_recovered |= !message.is_acknowledged && message.unknown > 0 && found;
                message.is_acknowledged = true;
            }
            status => {
                told.messages[message].refused += 1;
                if status != 503 {
                    told.odd.push(status);
                }
            }
        }
        told.messages[message].is_acknowledged
    }

    pub(super) fn messages(&self) -> Vec<Message> {
        self.lock().messages.clone()
    }

    /// Whether anything was acknowledged since.
    pub(super) fn acknowledged_since(&self, moment: Instant) -> bool {
        self.lock().last_acknowledged.is_some_and(|last| last > moment)
    }

    /// Statuses that no worker should ever answer an honest sender.
    pub(super) fn odd(&self) -> Vec<u16> {
        self.lock().odd.clone()
    }

    /// How long answers took, sorted.
    pub(super) fn times(&self) -> Vec<Duration> {
        let mut times = self.lock().times.clone();
        times.sort();
        times
    }
}

/// The sender of one run.
pub(super) struct Svix {
    pub(super) history: History,
    /// Replicas take turns.
    endpoints: Arc<[Sender]>,
    places: Arc<Semaphore>,
    rng: fastrand::Rng,
    under_way: JoinSet<()>,
}

impl Svix {
    pub(super) fn new(endpoints: Vec<Sender>, seed: u64) -> Svix {
        Svix {
            history: History::default(),
            endpoints: endpoints.into(),
            places: Arc::new(Semaphore::new(IN_FLIGHT)),
            rng: fastrand::Rng::with_seed(seed),
            under_way: JoinSet::new(),
        }
    }

    /// Takes a message on its way, and returns before it has arrived. Whatever is not lost is tried until acknowledged.
    pub(super) fn send(&mut self, event: Event) {
        while self.under_way.try_join_next().is_some() {}
        let message = self.history.begin(event.clone());
        if self.rng.u16(0..1_000) < LOST {
            return;
        }
        let copies = if self.rng.u16(0..1_000) < DOUBLED { 2 } else { 1 };
        for _ in 0..copies {
            let delivery = Delivery {
                message,
                event: event.clone(),
                history: self.history.clone(),
                endpoints: Arc::clone(&self.endpoints),
                places: Arc::clone(&self.places),
                rng: self.rng.fork(),
            };
            self.under_way.spawn(delivery.until_acknowledged());
        }
    }

    /// Waits until everything is acknowledged, and returns how many are not when the time is up.
    pub(super) async fn settle(&mut self, limit: Duration) -> usize {
        let all = async { while self.under_way.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(limit, all).await;
        self.under_way.len()
    }
}

/// One message on its way.
struct Delivery {
    message: usize,
    event: Event,
    history: History,
    endpoints: Arc<[Sender]>,
    places: Arc<Semaphore>,
    rng: fastrand::Rng,
}

impl Delivery {
    async fn until_acknowledged(mut self) {
        for tried in 0.. {
            // Some are overtaken on their way.
            tokio::time::sleep(Duration::from_millis(self.rng.u64(0..20))).await;
            if self.attempt().await {
                return;
            }
            let wait = WAITS[WAITS.len().min(tried + 1) - 1];
            tokio::time::sleep(Duration::from_millis(self.rng.u64(wait * 8 / 10..=wait * 12 / 10))).await;
        }
    }

    /// One attempt, and another one at once where the connection failed. Returns whether the message is acknowledged.
    async fn attempt(&mut self) -> bool {
        let Ok(_place) = Arc::clone(&self.places).acquire_owned().await else { return true };
        let endpoint = self.rng.usize(..self.endpoints.len());
        let signed_at = clerk_sync::clock::now().get() / 1000;
        for _ in 0..2 {
            self.history.attempted(self.message);
            let began = Instant::now();
            let answer =
                self.endpoints[endpoint].send_at(&self.event.message_id, signed_at, self.event.body.as_bytes()).await;
            let took = began.elapsed();
            let acknowledged = self.history.answered(self.message, answer.as_ref().ok(), took);
            if answer.is_ok() || took > AT_ONCE {
                return acknowledged;
            }
        }
        false
    }
}

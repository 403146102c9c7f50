//! The write queue: many requests, few statements.
//!
//! Each request enqueues its delivery and waits. While a batch is in flight the next one is gathered, so batches grow with the load, and
//! a single delivery is written at once. Two batches may be in flight, each on its own session: the database runs the writers of all
//! replicas one after the other, so the second batch travels while the first is written ([`departs`] decides when it is sent). The queue
//! runs on its own thread, apart from the requests: a client that hangs up cannot cancel database work that has begun, and thousands of
//! clients cannot delay it.

use super::caution::BATCH;
use super::health::Health;
use super::lane::{Away, Lane};
use super::request::{Raw, Request, Unavailable};
use crate::failpoint;
use crate::model::{Delivery, InstanceCheck, Verdict};
use crate::store::{Database, Error, LastSeen};
use crate::telemetry::QUEUE as QUEUE_LENGTH;
use crate::thread::{self, Ended};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// Deliveries that may wait: about five times what a Svix worker has in flight at most (500).
const QUEUE: usize = 2_500;
/// Batches in flight at once.
const LANES: usize = 2;
/// Batches overlap only when one takes `QUICK..=SLOW`. If it is faster, splitting costs Postgres more than the latency it hides; if it is
/// slower, the second batch runs out of time while it waits for the lock.
const QUICK: Duration = Duration::from_millis(5);
const SLOW: Duration = Duration::from_millis(500);
/// How long a delivery may wait for its commit. Svix hangs up after 15 s and then waits at least a minute, so respond before.
const DEADLINE: Duration = Duration::from_secs(8);
/// How often an idle connection is checked, so that `/readyz` is right without traffic.
const PING: Duration = Duration::from_secs(5);

/// Enqueues deliveries. Cheap to clone; when the last clone is dropped, the task drains its queue and ends.
#[derive(Clone, Debug)]
pub struct Writer {
    queue: mpsc::Sender<Request>,
    pace: Arc<Pace>,
    health: watch::Receiver<Health>,
    pending: Arc<Notify>,
    last_seen: LastSeen,
}

/// How long the last batch took, in µs.
#[derive(Debug, Default)]
struct Pace(AtomicU64);

impl Pace {
    fn set(&self, took: Duration) {
        self.0.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }

    /// Whether a delivery that is enqueued now commits before [`DEADLINE`], after the batches in flight, the one being gathered, and the
    /// `waiting` deliveries. The next batch is always admitted: otherwise nothing would measure that the database is fast again.
    fn allows(&self, waiting: usize) -> bool {
        let batches = waiting / BATCH;
        batches == 0 || self.get().saturating_mul(u32::try_from(batches + 3).unwrap_or(u32::MAX)) <= DEADLINE
    }
}

impl Writer {
    /// Starts the task on its own thread: on the requests' runtime it would wait behind all of them, about ten times for each batch,
    /// while the machine is busy. It connects when needed and keeps running without a database. `makes_reads`: whether this process
    /// also makes the reads by id that deliveries request.
    ///
    /// # Errors
    /// The system has no more threads or files.
    pub fn start(database: Database, check: InstanceCheck, makes_reads: bool) -> io::Result<(Writer, Ended)> {
        let (queue, requests) = mpsc::channel(QUEUE);
        let pace = Arc::new(Pace::default());
        let lane = Lane::new(database, check, makes_reads);
        let (health, pending, last_seen) = (lane.health.watch(), Arc::clone(&lane.pending), lane.last_seen.clone());
        let writer = Writer { queue, pace: Arc::clone(&pace), health, pending, last_seen };
        let ended = thread::spawn("writer", || async { Task::new(lane, pace).run(requests).await })?;
        Ok((writer, ended))
    }

    /// Enqueues one delivery and waits until it is durable, for 8 s at most. `raw` is kept if it becomes a dead letter.
    ///
    /// # Errors
    /// It is not durable, or that is unknown: the sender must retry. If too many wait already, it fails at once.
    pub async fn write(&self, delivery: Delivery, raw: Raw) -> Result<Verdict, Unavailable> {
        if !self.pace.allows(self.queue.max_capacity() - self.queue.capacity()) {
            return Err(Unavailable::QueueFull);
        }
        let (answer, answered) = oneshot::channel();
        let _waiting = Waiting::begin();
        self.queue.try_send(Request { delivery, raw, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unavailable::QueueFull,
            mpsc::error::TrySendError::Closed(_) => Unavailable::Stopping,
        })?;
        let answer = timeout(DEADLINE, answered).await.map_err(|_| Unavailable::Deadline)?;
        answer.unwrap_or(Err(Unavailable::Stopping))
    }

    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// The same, for holders that may outlive the queue: it does not keep the task running.
    pub fn watch(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// The last message id that was seen in the database.
    pub fn last_seen(&self) -> LastSeen {
        self.last_seen.clone()
    }

    /// Notified when a delivery waits for a read by id.
    pub fn pending(&self) -> Arc<Notify> {
        Arc::clone(&self.pending)
    }
}

/// Counts one delivery as waiting until it is dropped.
struct Waiting;

impl Waiting {
    fn begin() -> Waiting {
        metrics::gauge!(QUEUE_LENGTH).increment(1.0);
        Waiting
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        metrics::gauge!(QUEUE_LENGTH).decrement(1.0);
    }
}

/// Gathers waiting deliveries into batches and starts writing them.
struct Task {
    /// The last one is used next: it finished last, so it is likely to be connected.
    idle: Vec<Lane>,
    jobs: JoinSet<Landed>,
    in_flight: Vec<Flight>,
    pace: Arc<Pace>,
    ping: Interval,
    /// Batches that have ended so far.
    landed: u64,
    /// How many deliveries one batch may have.
    at_most: usize,
}

/// A batch in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flight {
    since: Instant,
    deliveries: usize,
}

/// The end of a job, with its batch writer.
struct Landed {
    lane: Lane,
    trip: Trip,
}

/// What the batch writer did, and the result.
enum Trip {
    Flight(Flight, Result<(), Away>),
    /// A check whether a delivery could be written, and how many batches had ended when it began.
    Ping(u64, Result<(), Error>),
    Connect,
}

/// Whether the gathered deliveries are sent now: at once if nothing is in flight. Otherwise they would wait in the database for the batch
/// in flight, so they gather until there are as many of them: the network times overlap, and batches stay large.
fn departs(waiting: usize, in_flight: Option<&Flight>) -> bool {
    waiting >= in_flight.map_or(1, |flight| flight.deliveries.min(BATCH))
}

impl Task {
    fn new(lane: Lane, pace: Arc<Pace>) -> Task {
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Task {
            at_most: failpoint::batch().map_or(BATCH, |number| number.min(BATCH)),
            idle: vec![lane; LANES],
            jobs: JoinSet::new(),
            in_flight: Vec::with_capacity(LANES),
            pace,
            ping,
            landed: 0,
        }
    }

    /// Runs until nothing more can be enqueued and everything is written.
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let (mut gathered, mut is_open) = (Vec::new(), true);
        while is_open || !gathered.is_empty() || !self.jobs.is_empty() {
            let has_lane = self.has_lane();
            if has_lane && departs(gathered.len(), self.in_flight.last()) {
                self.depart(std::mem::take(&mut gathered));
                continue;
            }
            let room = self.at_most - gathered.len();
            tokio::select! {
                biased;
                Some(landed) = self.jobs.join_next() => self.land(landed, &mut gathered, &mut requests),
                count = requests.recv_many(&mut gathered, room), if is_open && has_lane && room > 0 => is_open = count > 0,
                // In turn, and never the one that the next batch will use: so both are connected before they are needed.
                _ = self.ping.tick(), if self.idle.first().is_some_and(|lane| self.jobs.is_empty() || !lane.is_connected()) => self.ping(),
            }
        }
        for lane in self.idle {
            lane.close().await;
        }
    }

    /// Whether a batch writer is free for the next batch. While another batch is in flight, only if overlapping pays
    /// and one is connected: when batches are slow, connecting is slower.
    fn has_lane(&self) -> bool {
        let overlaps = |lane: &Lane| lane.is_connected() && (QUICK..=SLOW).contains(&self.pace.get());
        self.idle.last().is_some_and(|lane| self.in_flight.is_empty() || overlaps(lane))
    }

    fn depart(&mut self, mut requests: Vec<Request>) {
        // Their senders have hung up and will retry. A batch of them alone would end at once, and that latency would admit deliveries that
        // could not be written in time either.
        requests.retain(|request| !request.answer.is_closed());
        if requests.is_empty() {
            return;
        }
        let Some(mut lane) = self.idle.pop() else { return requests.into_iter().for_each(Request::refuse) };
        let flight = Flight { since: Instant::now(), deliveries: requests.len() };
        self.in_flight.push(flight);
        self.jobs.spawn(async move {
            let result = lane.write_all(requests).await;
            Landed { lane, trip: Trip::Flight(flight, result) }
        });
    }

    /// Lets the least used batch writer check whether a delivery could be written.
    fn ping(&mut self) {
        let (mut lane, landed) = (self.idle.remove(0), self.landed);
        self.jobs.spawn(async move {
            let result = lane.ping().await;
            Landed { lane, trip: Trip::Ping(landed, result) }
        });
    }

    /// Connects the least used batch writer, if it is not connected.
    fn connect(&mut self) {
        if self.idle.first().is_some_and(|lane| !lane.is_connected()) {
            let mut lane = self.idle.remove(0);
            self.jobs.spawn(async move {
                lane.connect().await;
                Landed { lane, trip: Trip::Connect }
            });
        }
    }

    /// Takes a batch writer back. If the database was away, everything that is waiting is answered now instead of late. If a ping succeeded,
    /// the other batch writer is connected as well.
    fn land(
        &mut self,
        landed: Result<Landed, JoinError>,
        gathered: &mut Vec<Request>,
        requests: &mut mpsc::Receiver<Request>,
    ) {
        let Landed { lane, trip } = match landed {
            Ok(landed) => landed,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        match trip {
            Trip::Flight(flight, result) => {
                self.in_flight.retain(|other| *other != flight);
                self.landed += 1;
                match result {
                    Ok(()) => self.pace.set(flight.since.elapsed()),
                    Err(Away { error, mut refused }) => {
                        lane.health.set_fault(&error, true);
                        self.ping.reset();
                        refused.append(gathered);
                        while let Ok(request) = requests.try_recv() {
                            refused.push(request);
                        }
                        // At the end, so that a sender that retries at once is not among them.
                        refused.into_iter().for_each(Request::refuse);
                    }
                }
            }
            // What a delivery has found since then is newer.
            Trip::Ping(landed, Err(error)) if landed == self.landed => lane.health.set_fault(&error, false),
            Trip::Ping(_, Err(_)) => {}
            Trip::Ping(landed, Ok(())) => {
                if landed == self.landed {
                    lane.health.clear_fault_of_server();
                }
                self.connect();
            }
            Trip::Connect => {}
        }
        self.idle.push(lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Item;
    use crate::webhook::budget::Reserved;
    use axum::body::Bytes;
    use axum::http::HeaderMap;

    #[test]
    fn a_second_batch_sets_out_when_it_is_as_large() {
        let flight = Flight { since: Instant::now(), deliveries: 20 };
        assert!(!departs(0, None));
        assert!(departs(1, None), "nobody waits while nothing is in flight");
        assert!(!departs(19, Some(&flight)));
        assert!(departs(20, Some(&flight)));
        assert!(departs(BATCH, Some(&Flight { deliveries: 2 * BATCH, ..flight })), "no more fit");
    }

    #[tokio::test]
    async fn those_whom_nobody_waits_for_do_not_set_out_and_say_nothing_of_the_pace() {
        let database = Database::parse("postgres://postgres@127.0.0.1:1/none?sslmode=disable").unwrap();
        let pace = Arc::new(Pace::default());
        pace.set(SLOW);
        let mut task = Task::new(Lane::new(database, InstanceCheck::Off, true), Arc::clone(&pace));
        let request = || {
            let raw = Raw { headers: HeaderMap::new(), body: Bytes::new(), reserved: Reserved::default() };
            let (answer, answered) = oneshot::channel();
            let item = Item::DeadLetter(raw.dead_letter("a test".to_owned()));
            (Request { delivery: Delivery { message: None, item }, raw, answer }, answered)
        };
        let abandoned = || {
            let (request, answered) = request();
            drop(answered);
            request
        };
        task.depart(vec![abandoned()]);
        assert!(task.in_flight.is_empty() && task.jobs.is_empty());
        assert_eq!((task.idle.len(), pace.get()), (LANES, SLOW));
        let (waiting, _answered) = request();
        task.depart(vec![waiting, abandoned()]);
        assert_eq!(task.in_flight.iter().map(|flight| flight.deliveries).collect::<Vec<_>>(), [1]);
    }
}

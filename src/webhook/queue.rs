//! The write queue: many requests, few statements.
//!
//! Each request enqueues its delivery and waits. While a batch is in flight the next one is gathered, so batches grow with the load, and
//! a single delivery is written at once. Two batches may be in flight, each on its own session: the database runs the writers of all
//! replicas one after the other, so the second batch travels while the first is written ([`should_dispatch`] decides when it is sent). The queue
//! runs on its own thread, apart from the requests: a client that hangs up cannot cancel database work that has begun, and thousands of
//! clients cannot delay it.

use super::batch_size::BATCH;
use super::batch_writer::{BatchWriter, WriteFailure};
use super::health::Health;
use super::request::{RawMessage, Request, Unavailable};
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
const MAX_BATCHES_IN_FLIGHT: usize = 2;
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
pub struct WriteQueue {
    queue: mpsc::Sender<Request>,
    latency: Arc<BatchLatency>,
    health: watch::Receiver<Health>,
    pending: Arc<Notify>,
    last_seen: LastSeen,
}

/// How long the last batch took, in µs.
#[derive(Debug, Default)]
struct BatchLatency(AtomicU64);

impl BatchLatency {
    fn set(&self, took: Duration) {
        self.0.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }

    /// Whether a delivery that is enqueued now commits before [`DEADLINE`], after the batches in flight, the one being gathered, and the
    /// `waiting` deliveries. The next batch is always admitted: otherwise nothing would measure that the database is fast again.
    fn admits(&self, waiting: usize) -> bool {
        let batches = waiting / BATCH;
        batches == 0 || self.get().saturating_mul(u32::try_from(batches + 3).unwrap_or(u32::MAX)) <= DEADLINE
    }
}

impl WriteQueue {
    /// Starts the task on its own thread: on the requests' runtime it would wait behind all of them, about ten times for each batch,
    /// while the machine is busy. It connects when needed and keeps running without a database. `makes_reads`: whether this process
    /// also makes the reads by id that deliveries request.
    ///
    /// # Errors
    /// The system has no more threads or files.
    pub fn start(database: Database, check: InstanceCheck, makes_reads: bool) -> io::Result<(WriteQueue, Ended)> {
        let (queue, requests) = mpsc::channel(QUEUE);
        let latency = Arc::new(BatchLatency::default());
        let batch_writer = BatchWriter::new(database, check, makes_reads);
        let (health, pending, last_seen) =
            (batch_writer.health.watch(), Arc::clone(&batch_writer.pending), batch_writer.last_seen.clone());
        let handle = WriteQueue { queue, latency: Arc::clone(&latency), health, pending, last_seen };
        let ended = thread::spawn("writer", || async { Dispatcher::new(batch_writer, latency).run(requests).await })?;
        Ok((handle, ended))
    }

    /// Enqueues one delivery and waits until it is durable, for 8 s at most. `raw` is kept if it becomes a dead letter.
    ///
    /// # Errors
    /// It is not durable, or that is unknown: the sender must retry. If too many wait already, it fails at once.
    pub async fn write(&self, delivery: Delivery, raw: RawMessage) -> Result<Verdict, Unavailable> {
        if !self.latency.admits(self.queue.max_capacity() - self.queue.capacity()) {
            return Err(Unavailable::QueueFull);
        }
        let (answer, answered) = oneshot::channel();
        let _waiting = QueueGauge::begin();
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
struct QueueGauge;

impl QueueGauge {
    fn begin() -> QueueGauge {
        metrics::gauge!(QUEUE_LENGTH).increment(1.0);
        QueueGauge
    }
}

impl Drop for QueueGauge {
    fn drop(&mut self) {
        metrics::gauge!(QUEUE_LENGTH).decrement(1.0);
    }
}

/// Gathers waiting deliveries into batches and starts writing them.
struct Dispatcher {
    /// The last one is used next: it finished last, so it is likely to be connected.
    idle: Vec<BatchWriter>,
    jobs: JoinSet<JobDone>,
    in_flight: Vec<InFlight>,
    latency: Arc<BatchLatency>,
    ping: Interval,
    /// Batches that have ended so far.
    jobs_done: u64,
    /// How many deliveries one batch may have.
    max_batch: usize,
}

/// A batch in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct InFlight {
    since: Instant,
    deliveries: usize,
}

/// The end of a job, with its batch writer.
struct JobDone {
    batch_writer: BatchWriter,
    job: Job,
}

/// What the batch writer did, and the result.
enum Job {
    Write(InFlight, Result<(), WriteFailure>),
    /// A check whether a delivery could be written, and how many batches had ended when it began.
    Ping(u64, Result<(), Error>),
    Connect,
}

/// Whether the gathered deliveries are sent now: at once if nothing is in flight. Otherwise they would wait in the database for the batch
/// in flight, so they gather until there are as many of them: the network times overlap, and batches stay large.
fn should_dispatch(waiting: usize, in_flight: Option<&InFlight>) -> bool {
    waiting >= in_flight.map_or(1, |flight| flight.deliveries.min(BATCH))
}

impl Dispatcher {
    fn new(batch_writer: BatchWriter, latency: Arc<BatchLatency>) -> Dispatcher {
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Dispatcher {
            max_batch: failpoint::batch().map_or(BATCH, |number| number.min(BATCH)),
            idle: vec![batch_writer; MAX_BATCHES_IN_FLIGHT],
            jobs: JoinSet::new(),
            in_flight: Vec::with_capacity(MAX_BATCHES_IN_FLIGHT),
            latency,
            ping,
            jobs_done: 0,
        }
    }

    /// Runs until nothing more can be enqueued and everything is written.
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let (mut gathered, mut is_open) = (Vec::new(), true);
        while is_open || !gathered.is_empty() || !self.jobs.is_empty() {
            let has_idle_writer = self.has_idle_writer();
            if has_idle_writer && should_dispatch(gathered.len(), self.in_flight.last()) {
                self.dispatch(std::mem::take(&mut gathered));
                continue;
            }
            let room = self.max_batch - gathered.len();
            tokio::select! {
                biased;
                Some(done) = self.jobs.join_next() => self.on_job_done(done, &mut gathered, &mut requests),
                count = requests.recv_many(&mut gathered, room), if is_open && has_idle_writer && room > 0 => is_open = count > 0,
                // In turn, and never the one that the next batch will use: so both are connected before they are needed.
                _ = self.ping.tick(), if self.idle.first().is_some_and(|batch_writer| self.jobs.is_empty() || !batch_writer.is_connected()) => self.ping(),
            }
        }
        for batch_writer in self.idle {
            batch_writer.close().await;
        }
    }

    /// Whether a batch writer is free for the next batch. While another batch is in flight, only if overlapping pays
    /// and one is connected: when batches are slow, connecting is slower.
    fn has_idle_writer(&self) -> bool {
        let overlaps =
            |batch_writer: &BatchWriter| batch_writer.is_connected() && (QUICK..=SLOW).contains(&self.latency.get());
        self.idle.last().is_some_and(|batch_writer| self.in_flight.is_empty() || overlaps(batch_writer))
    }

    fn dispatch(&mut self, mut requests: Vec<Request>) {
        // Their senders have hung up and will retry. A batch of them alone would end at once, and that latency would admit deliveries that
        // could not be written in time either.
        requests.retain(|request| !request.answer.is_closed());
        if requests.is_empty() {
            return;
        }
        let Some(mut batch_writer) = self.idle.pop() else {
            return requests.into_iter().for_each(Request::answer_unavailable);
        };
        let flight = InFlight { since: Instant::now(), deliveries: requests.len() };
        self.in_flight.push(flight);
        self.jobs.spawn(async move {
            let result = batch_writer.write_all(requests).await;
            JobDone { batch_writer, job: Job::Write(flight, result) }
        });
    }

    /// Lets the least used batch writer check whether a delivery could be written.
    fn ping(&mut self) {
        let (mut batch_writer, done) = (self.idle.remove(0), self.jobs_done);
        self.jobs.spawn(async move {
            let result = batch_writer.ping().await;
            JobDone { batch_writer, job: Job::Ping(done, result) }
        });
    }

    /// Connects the least used batch writer, if it is not connected.
    fn connect(&mut self) {
        if self.idle.first().is_some_and(|batch_writer| !batch_writer.is_connected()) {
            let mut batch_writer = self.idle.remove(0);
            self.jobs.spawn(async move {
                batch_writer.connect().await;
                JobDone { batch_writer, job: Job::Connect }
            });
        }
    }

    /// Takes a batch writer back. If the database was away, everything that is waiting is answered now instead of late. If a ping succeeded,
    /// the other batch writer is connected as well.
    fn on_job_done(
        &mut self,
        done: Result<JobDone, JoinError>,
        gathered: &mut Vec<Request>,
        requests: &mut mpsc::Receiver<Request>,
    ) {
        let JobDone { batch_writer, job } = match done {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        match job {
            Job::Write(flight, result) => {
                self.in_flight.retain(|other| *other != flight);
                self.jobs_done += 1;
                match result {
                    Ok(()) => self.latency.set(flight.since.elapsed()),
                    Err(WriteFailure { error, mut unanswered }) => {
                        batch_writer.health.set_fault(&error, true);
                        self.ping.reset();
                        unanswered.append(gathered);
                        while let Ok(request) = requests.try_recv() {
                            unanswered.push(request);
                        }
                        // At the end, so that a sender that retries at once is not among them.
                        unanswered.into_iter().for_each(Request::answer_unavailable);
                    }
                }
            }
            // What a delivery has found since then is newer.
            Job::Ping(done, Err(error)) if done == self.jobs_done => batch_writer.health.set_fault(&error, false),
            Job::Ping(_, Err(_)) => {}
            Job::Ping(done, Ok(())) => {
                if done == self.jobs_done {
                    batch_writer.health.clear_fault_of_server();
                }
                self.connect();
            }
            Job::Connect => {}
        }
        self.idle.push(batch_writer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Item;
    use crate::webhook::body_memory::Reserved;
    use axum::body::Bytes;
    use axum::http::HeaderMap;

    #[test]
    fn a_second_batch_sets_out_when_it_is_as_large() {
        let flight = InFlight { since: Instant::now(), deliveries: 20 };
        assert!(!should_dispatch(0, None));
        assert!(should_dispatch(1, None), "nobody waits while nothing is in flight");
        assert!(!should_dispatch(19, Some(&flight)));
        assert!(should_dispatch(20, Some(&flight)));
        assert!(should_dispatch(BATCH, Some(&InFlight { deliveries: 2 * BATCH, ..flight })), "no more fit");
    }

    #[tokio::test]
    async fn those_whom_nobody_waits_for_do_not_set_out_and_say_nothing_of_the_pace() {
        let database = Database::parse("postgres://postgres@127.0.0.1:1/none?sslmode=disable").unwrap();
        let latency = Arc::new(BatchLatency::default());
        latency.set(SLOW);
        let mut task = Dispatcher::new(BatchWriter::new(database, InstanceCheck::Off, true), Arc::clone(&latency));
        let request = || {
            let raw = RawMessage { headers: HeaderMap::new(), body: Bytes::new(), reserved: Reserved::default() };
            let (answer, answered) = oneshot::channel();
            let item = Item::DeadLetter(raw.dead_letter("a test".to_owned()));
            (Request { delivery: Delivery { message: None, item }, raw, answer }, answered)
        };
        let abandoned = || {
            let (request, answered) = request();
            drop(answered);
            request
        };
        task.dispatch(vec![abandoned()]);
        assert!(task.in_flight.is_empty() && task.jobs.is_empty());
        assert_eq!((task.idle.len(), latency.get()), (MAX_BATCHES_IN_FLIGHT, SLOW));
        let (waiting, _answered) = request();
        task.dispatch(vec![waiting, abandoned()]);
        assert_eq!(task.in_flight.iter().map(|flight| flight.deliveries).collect::<Vec<_>>(), [1]);
    }
}

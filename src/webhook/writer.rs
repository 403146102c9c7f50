//! The writer task: many requests, few statements.
//!
//! Requests hand over what they have and wait. While a batch is in flight the next one gathers, so that batches grow with the
//! load and a lone event waits for nobody. Two batches may be in flight, each on a session of its own: the writers of all
//! replicas take turns in the database, so the second one is on its way while the first is written, and waits there for its
//! turn ([`departs`] tells when it sets out). All of it is detached from the requests, on a thread of its own: a client that hangs up
//! cannot cancel database work that has begun, and thousands of clients cannot delay it.
//!
//! A batch fails as a whole. If the database refuses it for what is *in* it, halves are tried until the culprit is alone and
//! kept as a dead letter; the rest commits. For any other failure everybody is told to come again.

use super::budget::Reserved;
use crate::clock;
use crate::failpoint::{self, Point};
use crate::model::{Batch, DeadLetter, Delivery, InstanceId, Item, Outcome, Source, Verdict};
use crate::store::{Database, Error, Session};
use crate::telemetry::{BATCH as BATCH_SIZE, POISON, QUEUE as QUEUE_LENGTH, Throttle, WRITE};
use axum::body::Bytes;
use axum::http::HeaderMap;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// Deliveries that may wait: some five times what one Svix worker has in flight at most (500).
const QUEUE: usize = 2_500;
/// Deliveries in one statement, and bytes of their bodies, so that it stays far under its time limit; while it is on its way, all of
/// it is in memory once more.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// Batches in flight at once.
const LANES: usize = 2;
/// Where a batch takes less or more time than this, the next one does not set out before it is back: half as large it would cost
/// the database more than the trip takes, or it would spend its time limit waiting for its turn.
const QUICK: Duration = Duration::from_millis(5);
const SLOW: Duration = Duration::from_millis(500);
/// How long a delivery may wait for its commit. Svix hangs up after 15 s and then waits a minute at least: answer before.
const DEADLINE: Duration = Duration::from_secs(8);
/// How often an idle connection is tried, so that `/readyz` tells the truth without traffic. It asks for the time.
const PING: Duration = Duration::from_secs(5);
/// How long an object that poisoned a batch is written alone: what was sent once will come again.
const QUARANTINE: Duration = Duration::from_secs(600);

/// Hands deliveries to the task. Cheap to clone; when the last one is dropped, the task drains its queue and ends.
#[derive(Clone, Debug)]
pub struct Writer {
    queue: mpsc::Sender<Request>,
    pace: Arc<Pace>,
    health: watch::Receiver<Health>,
    pending: Arc<Notify>,
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

    /// Whether whoever comes now is written in time: after those that are under way or gathered and those that `waiting` make. Whoever
    /// would be in the very next batch is always let in, or nobody would find out that it goes faster again.
    fn allows(&self, waiting: usize) -> bool {
        let batches = waiting / BATCH;
        batches == 0 || self.get().saturating_mul(u32::try_from(batches + 3).unwrap_or(u32::MAX)) <= DEADLINE
    }
}

/// Nothing was written, or nobody knows: the sender shall try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error("too many deliveries are waiting")]
    QueueFull,
    #[error("the database cannot be written to")]
    Database,
    #[error("the database took too long")]
    Deadline,
    #[error("the service is stopping")]
    Stopping,
}

impl Unavailable {
    /// One word for answers, logs and counters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Unavailable::QueueFull => "queue_full",
            Unavailable::Database => "database_unavailable",
            Unavailable::Deadline => "deadline",
            Unavailable::Stopping => "stopping",
        }
    }
}

/// What the task knows of the database.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Why it cannot be written to; `None` while it can. Before the first try, "not tried yet".
    pub fault: Option<String>,
    /// The Clerk instance that the mirror is pinned to.
    pub pinned: Option<InstanceId>,
    /// The last message's instance, if it was another one.
    pub foreign: Option<InstanceId>,
    /// By how many seconds our clock was ahead of the database's when it was last asked; less than 0: behind.
    pub clock_ahead: i64,
}

/// A message as it came, should it have to be kept whole.
#[derive(Debug)]
pub struct Raw {
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Freed with the rest once the delivery is answered.
    pub reserved: Reserved,
}

impl Raw {
    /// The message, kept whole, with the headers that say something of it: an endpoint's owner may have it sent others,
    /// and they may be secrets. Bytes that are no ASCII are escaped.
    pub fn dead_letter(&self, reason: String) -> DeadLetter {
        let text = |value: &axum::http::HeaderValue| value.as_bytes().escape_ascii().to_string();
        let telling = |name: &str| {
            name.starts_with("svix-") || name.starts_with("webhook-") || matches!(name, "content-type" | "user-agent")
        };
        let headers = self.headers.iter().filter(|(name, _)| telling(name.as_str()));
        let headers = headers.map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        DeadLetter { reason, headers, body: self.body.to_vec() }
    }
}

struct Request {
    delivery: Delivery,
    raw: Raw,
    answer: oneshot::Sender<Result<Verdict, Unavailable>>,
}

impl Request {
    /// Whom it is about: the object where one is named, else the message itself.
    fn subject(&self) -> &str {
        self.delivery.message.as_ref().map_or("", |message| message.entity_id.as_deref().unwrap_or(message.id.as_str()))
    }

    fn condemn(&mut self, reason: String) {
        self.delivery.item = Item::DeadLetter(self.raw.dead_letter(reason));
    }

    /// Has it sent again.
    fn refuse(self) {
        let _ = self.answer.send(Err(Unavailable::Database));
    }

    fn is_dead_letter(&self) -> bool {
        matches!(self.delivery.item, Item::DeadLetter(_))
    }
}

/// Which Clerk instance the messages must belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceCheck {
    /// To the one that the mirror is pinned to; an empty mirror is pinned to this one, or to the first message's.
    Pinned(Option<InstanceId>),
    /// To any: for replays of fixtures.
    Off,
}

impl InstanceCheck {
    /// The one that is named.
    pub const fn wanted(&self) -> Option<&InstanceId> {
        match self {
            InstanceCheck::Pinned(wanted) => wanted.as_ref(),
            InstanceCheck::Off => None,
        }
    }
}

impl Writer {
    /// Starts the task, on a thread of its own: on a machine that is busy with requests, those who are to be refused included, it
    /// would else wait for its turn behind all of them, some ten times for each batch. It connects when it must and stays up without
    /// a database.
    ///
    /// # Errors
    /// The system gives no more threads or files.
    pub fn start(database: Database, check: InstanceCheck) -> io::Result<(Writer, JoinHandle<()>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (queue, requests) = mpsc::channel(QUEUE);
        let pace = Arc::new(Pace::default());
        let lane = Lane::new(database, check);
        let (health, pending) = (lane.health.subscribe(), Arc::clone(&lane.pending));
        let writer = Writer { queue, pace: Arc::clone(&pace), health, pending };
        let running = tokio::task::spawn_blocking(move || {
            runtime.block_on(async { Task::new(lane, pace).run(requests).await });
            // A name that is being looked up cannot be cancelled.
            runtime.shutdown_background();
        });
        Ok((writer, running))
    }

    /// Hands one delivery over and waits until it is durable, for 8 s at most. `raw` is kept if the message turns out to be
    /// unusable.
    ///
    /// # Errors
    /// It is not durable, or nobody knows: have it sent again. If too many wait already for it to be in time, this is known
    /// at once.
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

/// What `clerk-sync bench` takes away, to see what it is worth: a number of deliveries in one statement, or `none` for no
/// statement at all. In the release image there is no such variable.
#[cfg(feature = "demo")]
pub const BENCH_VARIABLE: &str = "CLERK_SYNC_BENCH_BATCH";

/// How many deliveries go into one statement; `None`: nothing is written, and each is answered as applied.
fn deliveries_in_one() -> Option<usize> {
    #[cfg(feature = "demo")]
    if let Ok(number) = std::env::var(BENCH_VARIABLE) {
        return number.parse().ok();
    }
    Some(BATCH)
}

/// The database could not be written to: why, and those who must be told so.
struct Away {
    error: Error,
    refused: Vec<Request>,
}

/// Gathers what waits, and sends it on its way.
struct Task {
    /// The one that was back last, and is likeliest to be connected, sets out next.
    idle: Vec<Lane>,
    jobs: JoinSet<Landed>,
    in_flight: Vec<Flight>,
    pace: Arc<Pace>,
    ping: Interval,
    /// Flights that found the database away, so far.
    failures: u64,
    /// How many deliveries set out together at most.
    at_most: usize,
}

/// A batch that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flight {
    since: Instant,
    deliveries: usize,
}

/// A lane that is back.
struct Landed {
    lane: Lane,
    trip: Trip,
}

/// What it was away for, and how that ended.
enum Trip {
    Flight(Flight, Result<(), Away>),
    /// It asked for the time, when so many flights had failed. `Err`: in vain.
    Ping(u64, Result<(), Error>),
    Connect,
}

/// Whether those who wait set out now: at once if nothing is in flight. Else they would wait in the database for the batch that
/// is, so they gather until there are as many of them: the trips overlap, and batches stay large.
fn departs(waiting: usize, in_flight: Option<&Flight>) -> bool {
    waiting >= in_flight.map_or(1, |flight| flight.deliveries.min(BATCH))
}

impl Task {
    fn new(lane: Lane, pace: Arc<Pace>) -> Task {
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Task {
            at_most: lane.deliveries_in_one.unwrap_or(BATCH),
            idle: vec![lane; LANES],
            jobs: JoinSet::new(),
            in_flight: Vec::with_capacity(LANES),
            pace,
            ping,
            failures: 0,
        }
    }

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
                // Turn by turn, and never the one that deliveries would take: so both are connected before they are needed.
                _ = self.ping.tick(), if self.idle.first().is_some_and(|lane| self.jobs.is_empty() || lane.session.is_none()) => {
                    self.jobs.spawn(self.idle.remove(0).ping(self.failures));
                }
            }
        }
        for session in self.idle.into_iter().filter_map(|lane| lane.session) {
            session.close().await;
        }
    }

    /// Whether there is one that deliveries may gather for. While a batch is in flight, that is only so where the trip is worth it,
    /// and one is connected: where batches take long, to connect takes longer.
    fn has_lane(&self) -> bool {
        let overlaps = |lane: &Lane| lane.session.is_some() && (QUICK..=SLOW).contains(&self.pace.get());
        self.idle.last().is_some_and(|lane| self.in_flight.is_empty() || overlaps(lane))
    }

    fn depart(&mut self, mut requests: Vec<Request>) {
        // Nobody waits for these any more: their senders will come again. Were they sent on a flight of their own, it would land at
        // once, and its pace let in many who could not be written in time either.
        requests.retain(|request| !request.answer.is_closed());
        if requests.is_empty() {
            return;
        }
        let Some(lane) = self.idle.pop() else { return requests.into_iter().for_each(Request::refuse) };
        let flight = Flight { since: Instant::now(), deliveries: requests.len() };
        self.in_flight.push(flight);
        self.jobs.spawn(lane.fly(flight, requests));
    }

    /// Takes a lane back. If it found the database away, whoever came meanwhile would wait in vain as well: now is better than
    /// late. If a ping found it well, the other lane is connected, too, should it not be.
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
                match result {
                    Ok(()) => self.pace.set(flight.since.elapsed()),
                    Err(Away { error, mut refused }) => {
                        lane.report(Some(&error));
                        self.failures += 1;
                        self.ping.reset();
                        refused.append(gathered);
                        while let Ok(request) = requests.try_recv() {
                            refused.push(request);
                        }
                        // All at the end: who comes again because of it shall not be taken for one who came meanwhile.
                        refused.into_iter().for_each(Request::refuse);
                    }
                }
            }
            Trip::Ping(_, Err(error)) => lane.report(Some(&error)),
            Trip::Ping(failures, Ok(())) => {
                // It only read: what a write has found since then stands.
                if failures == self.failures {
                    lane.report(None);
                }
                if self.idle.first().is_some_and(|other| other.session.is_none()) {
                    self.jobs.spawn(self.idle.remove(0).connect());
                }
            }
            Trip::Connect => {}
        }
        self.idle.push(lane);
    }
}

/// One session, and what it takes to write on it. A clone has no session yet.
struct Lane {
    database: Database,
    check: InstanceCheck,
    session: Option<Session>,
    deliveries_in_one: Option<usize>,
    health: watch::Sender<Health>,
    pending: Arc<Notify>,
    /// Whose change was poison, and when.
    suspects: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Clone for Lane {
    fn clone(&self) -> Lane {
        Lane {
            database: self.database.clone(),
            check: self.check.clone(),
            session: None,
            deliveries_in_one: self.deliveries_in_one,
            health: self.health.clone(),
            pending: Arc::clone(&self.pending),
            suspects: Arc::clone(&self.suspects),
        }
    }
}

impl Lane {
    fn new(database: Database, check: InstanceCheck) -> Lane {
        let starting = Health { fault: Some("not tried yet".to_owned()), ..Health::default() };
        Lane {
            database,
            check,
            session: None,
            deliveries_in_one: deliveries_in_one(),
            health: watch::Sender::new(starting),
            pending: Arc::default(),
            suspects: Arc::default(),
        }
    }

    async fn fly(mut self, flight: Flight, requests: Vec<Request>) -> Landed {
        let result = self.write_all(requests).await;
        Landed { lane: self, trip: Trip::Flight(flight, result) }
    }

    fn suspects(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes everything that gathered, in batches of bounded size, suspects alone. `Err`: the database is away, and those who are
    /// not answered yet shall be told so.
    async fn write_all(&mut self, requests: Vec<Request>) -> Result<(), Away> {
        self.suspects().retain(|_, since| since.elapsed() < QUARANTINE);
        let mut batches: Vec<Vec<Request>> = Vec::new();
        let mut room = 0;
        for request in requests {
            let alone = self.suspects().contains_key(request.subject());
            let size = request.raw.body.len();
            match batches.last_mut() {
                Some(batch) if !alone && size <= room => {
                    room -= size;
                    batch.push(request);
                }
                _ => {
                    room = if alone { 0 } else { BATCH_BYTES.saturating_sub(size) };
                    batches.push(vec![request]);
                }
            }
        }
        batches.reverse(); // the oldest is the last, and goes first
        self.write(batches).await
    }

    /// Writes batches, the last one first, and answers all of their requests. What must not be applied is taken out first,
    /// and the rest of its batch sent again: it might have beaten an honest one when the batch was folded.
    async fn write(&mut self, mut batches: Vec<Vec<Request>>) -> Result<(), Away> {
        while let Some(mut requests) = batches.pop() {
            if requests.is_empty() {
                continue;
            }
            match self.apply(&requests).await {
                Ok(verdicts) => {
                    self.report(None);
                    let refused = verdicts.iter().flatten().any(|verdict| is_refusal(verdict.outcome));
                    let answered = requests.into_iter().zip(verdicts);
                    batches.push(
                        answered.filter_map(|(request, verdict)| self.settle(request, verdict, refused)).collect(),
                    );
                }
                Err(error) if error.is_poison() && requests.len() > 1 => {
                    batches.push(requests.split_off(requests.len() / 2));
                    batches.push(requests);
                }
                Err(error) if error.is_poison() && !requests[0].is_dead_letter() => {
                    let code = error.sqlstate().unwrap_or_default();
                    tracing::error!(
                        subject = requests[0].subject(),
                        code,
                        "the database refuses a message for what is in it"
                    );
                    metrics::counter!(POISON).increment(1);
                    self.suspects().insert(requests[0].subject().to_owned(), Instant::now());
                    requests[0].condemn(format!("the database refuses it: SQLSTATE {code}"));
                    batches.push(requests);
                }
                Err(error) => {
                    return Err(Away { error, refused: batches.into_iter().flatten().chain(requests).collect() });
                }
            }
        }
        Ok(())
    }

    /// Answers one request, or gives it back to be sent again.
    fn settle(&self, mut request: Request, verdict: Option<Verdict>, batch_was_refused: bool) -> Option<Request> {
        match verdict {
            Some(verdict) if verdict.outcome == Outcome::Foreign => {
                self.note_foreign(&request, &verdict);
                let _ = request.answer.send(Ok(verdict));
                None
            }
            Some(verdict) if verdict.outcome == Outcome::Reused => {
                request.condemn("its message id came before with another body".to_owned());
                Some(request)
            }
            Some(verdict) => {
                if verdict.outcome == Outcome::Pending {
                    self.pending.notify_one();
                }
                if request.delivery.message.as_ref().is_some_and(|message| message.instance_id.is_some()) {
                    self.health.send_if_modified(|health| health.foreign.take().is_some());
                }
                let _ = request.answer.send(Ok(verdict));
                None
            }
            None if batch_was_refused => Some(request),
            None => {
                tracing::error!("the writer gave no verdict for a delivery");
                let _ = request.answer.send(Err(Unavailable::Database));
                None
            }
        }
    }

    /// One call, and one more on a fresh connection if the old one turned out to be dead: applying twice is harmless.
    async fn apply(&mut self, requests: &[Request]) -> Result<Vec<Option<Verdict>>, Error> {
        let check = matches!(self.check, InstanceCheck::Pinned(_));
        if self.deliveries_in_one.is_none() {
            return Ok(requests.iter().map(|_| Some(Verdict { outcome: Outcome::Applied, reason: None })).collect());
        }
        let batch = Batch::fold(Source::Webhook, check, requests.iter().map(|request| &request.delivery));
        let fresh = self.session.is_none();
        let result = self.apply_once(&batch, requests.len()).await;
        match result {
            Err(error) if !fresh && error.is_connection_lost() => self.apply_once(&batch, requests.len()).await,
            result => result,
        }
    }

    async fn apply_once(&mut self, batch: &Batch<'_>, items: usize) -> Result<Vec<Option<Verdict>>, Error> {
        let mut session = self.session().await?;
        let began = Instant::now();
        failpoint::reached(Point::Writing);
        let result = session.apply(batch, items).await;
        failpoint::reached(Point::Committed);
        metrics::histogram!(WRITE).record(began.elapsed());
        metrics::histogram!(BATCH_SIZE).record(u32::try_from(items).unwrap_or(u32::MAX));
        // A statement that was refused leaves a connection as good as before; anything else leaves it in doubt.
        if result.as_ref().err().is_none_or(Error::leaves_session) {
            self.session = Some(session);
        }
        result
    }

    /// The session, taken out: whoever gets an error from it does not put it back.
    async fn session(&mut self) -> Result<Session, Error> {
        if let Some(session) = self.session.take() {
            return Ok(session);
        }
        let mut session = self.database.connect().await?;
        let pinned = session.pin_instance(self.check.wanted(), "environment").await?;
        self.health.send_modify(|health| health.pinned = pinned);
        Ok(session)
    }

    async fn connect(mut self) -> Landed {
        self.session = self.session().await.ok();
        Landed { lane: self, trip: Trip::Connect }
    }

    async fn ping(mut self, failures: u64) -> Landed {
        let result = async {
            let mut session = self.session().await?;
            let database_now = session.clock().await?;
            self.session = Some(session);
            let clock_ahead = (clock::now().get() - database_now) / 1000;
            self.health.send_modify(|health| health.clock_ahead = clock_ahead);
            Ok(())
        }
        .await;
        Landed { lane: self, trip: Trip::Ping(failures, result) }
    }

    /// Publishes whether the database can be written to, and logs when that changes: there with all causes.
    fn report(&self, error: Option<&Error>) {
        static LOGGED: Throttle = Throttle::new();
        let fault = error.map(Error::summary);
        self.health.send_if_modified(|health| {
            if health.fault == fault {
                return false;
            }
            match (error, &health.fault) {
                (Some(error), _) => {
                    if let Some(held_back) = LOGGED.pass() {
                        tracing::error!(error = chain(error), held_back, "the database cannot be written to");
                    }
                }
                (None, Some(_)) => tracing::info!("the database can be written to"),
                (None, None) => {}
            }
            health.fault = fault;
            true
        });
    }

    fn note_foreign(&self, request: &Request, verdict: &Verdict) {
        let instance = request.delivery.message.as_ref().and_then(|message| message.instance_id.clone());
        self.health.send_modify(|health| {
            health.pinned = verdict.reason.as_deref().map(InstanceId::from);
            health.foreign = instance;
        });
    }
}

const fn is_refusal(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Foreign | Outcome::Reused)
}

/// An error with its causes, in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut task = Task::new(Lane::new(database, InstanceCheck::Off), Arc::clone(&pace));
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

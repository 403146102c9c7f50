//! One session with the database, and what becomes of the deliveries that are written on it.
//!
//! A batch fails as a whole. If the database refuses a row of it (for what is in it, or something of the application's refuses or
//! holds it), parts are tried until the culprit is alone, and the rest commits. Of the culprit less is written, as little as a denial:
//! what takes access away takes effect all the same, and the row is written later. For any other failure everybody is told to
//! come again.

use super::budget::Reserved;
use crate::clock;
use crate::failpoint::{self, Point};
use crate::model::{
    Batch, Claim, DeadLetter, Delivery, InstanceId, Item, Millis, Mode, Outcome, Refusal, Source, Verdict,
};
use crate::store::{Database, Error, LastSeen, Session, causes, told};
use crate::telemetry::{BATCH as BATCH_SIZE, POISON, Throttle, WRITE};
use axum::body::Bytes;
use axum::http::HeaderMap;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot, watch};

/// Deliveries in one statement, and bytes of their bodies, so that it stays far under its time limit; while it is on its way, all of
/// it is in memory once more.
pub(super) const BATCH: usize = 256;
const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// How long an object whose row was refused is written alone: what was sent once will come again.
const QUARANTINE: Duration = Duration::from_secs(600);
/// Deliveries in one statement after one ran out of time; and after that, one alone.
const FEW: usize = 16;
/// A batch that takes no longer lets the next one be larger again.
const QUICK: Duration = Duration::from_millis(500);
/// How long a row of ours that somebody else has locked is waited for, so long after the last one: it holds up everybody behind it.
const LOCK_WAIT: Duration = Duration::from_millis(100);
const LOCKED: Duration = Duration::from_secs(60);

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

/// What a writer that has just started says.
const UNTRIED: &str = "not tried yet";

/// Why deliveries cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// For anybody to read.
    pub summary: String,
    /// The server's code, for operators.
    pub sqlstate: Option<String>,
    /// Since when, by our clock.
    pub since: Millis,
    /// Whether only a delivery that is written tells that it is over: one failed, and not because the server was away.
    until_delivery: bool,
}

/// What the task knows of the database.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Why it cannot be written to; `None` while it can. It lasts until a write succeeds.
    pub fault: Option<Fault>,
    /// The Clerk instance that the mirror is pinned to.
    pub pinned: Option<InstanceId>,
    /// The last message's instance, if it was another one.
    pub foreign: Option<InstanceId>,
    /// By how many seconds our clock was ahead of the database's when it was last asked; less than 0: behind.
    pub clock_ahead: i64,
    /// When a webhook last came whose own time was more than five minutes ahead of the database's clock.
    pub event_ahead: Option<Instant>,
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

/// One delivery, and who waits for it.
pub(super) struct Request {
    pub(super) delivery: Delivery,
    pub(super) raw: Raw,
    pub(super) answer: oneshot::Sender<Result<Verdict, Unavailable>>,
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
    pub(super) fn refuse(self) {
        let _ = self.answer.send(Err(Unavailable::Database));
    }

    fn is_dead_letter(&self) -> bool {
        matches!(self.delivery.item, Item::DeadLetter(_))
    }
}

/// The database could not be written to: why, and those who must be told so.
pub(super) struct Away {
    pub(super) error: Error,
    pub(super) refused: Vec<Request>,
}

/// One session, and what it takes to write on it. A clone has no session yet.
pub(super) struct Lane {
    database: Database,
    check: InstanceCheck,
    session: Option<Session>,
    pub(super) health: watch::Sender<Health>,
    pub(super) pending: Arc<Notify>,
    pub(super) last_seen: LastSeen,
    /// Whether somebody makes the reads that are left to be made; else a change that is refused is kept as a dead letter, too.
    makes_reads: bool,
    caution: Arc<Mutex<Caution>>,
}

/// What was learned from batches that failed.
struct Caution {
    /// Whose row was refused, and when.
    suspects: HashMap<String, Instant>,
    /// Deliveries that go into one statement.
    most: usize,
    /// When somebody else's lock was last waited for in vain.
    locked: Option<Instant>,
}

impl Caution {
    fn lock_wait(&self) -> Option<Duration> {
        self.locked.filter(|at| at.elapsed() < LOCKED).map(|_| LOCK_WAIT)
    }

    /// A batch of so many has run out of time: how many to try.
    fn shrink(&mut self, from: usize) -> usize {
        self.most = if from > FEW { FEW } else { 1 };
        self.most
    }

    fn grow(&mut self, from: usize, took: Duration) {
        if from >= self.most && took < QUICK {
            self.most = (self.most * 2).min(BATCH);
        }
    }
}

impl Clone for Lane {
    fn clone(&self) -> Lane {
        Lane {
            database: self.database.clone(),
            check: self.check.clone(),
            session: None,
            health: self.health.clone(),
            pending: Arc::clone(&self.pending),
            last_seen: self.last_seen.clone(),
            makes_reads: self.makes_reads,
            caution: Arc::clone(&self.caution),
        }
    }
}

impl Lane {
    pub(super) fn new(database: Database, check: InstanceCheck, makes_reads: bool) -> Lane {
        let untried = Fault { summary: UNTRIED.to_owned(), sqlstate: None, since: clock::now(), until_delivery: false };
        let starting = Health { fault: Some(untried), ..Health::default() };
        Lane {
            database,
            check,
            session: None,
            health: watch::Sender::new(starting),
            pending: Arc::default(),
            last_seen: LastSeen::default(),
            makes_reads,
            caution: Arc::new(Mutex::new(Caution { suspects: HashMap::new(), most: BATCH, locked: None })),
        }
    }

    /// Whether it has a session: it is lost with the connection, and made when it is needed.
    pub(super) const fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    fn caution(&self) -> MutexGuard<'_, Caution> {
        self.caution.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes everything that gathered, in batches of bounded size, suspects alone and last. `Err`: the database is away, and those
    /// who are not answered yet shall be told so.
    pub(super) async fn write_all(&mut self, requests: Vec<Request>) -> Result<(), Away> {
        let (suspects, others): (Vec<Request>, Vec<Request>) = {
            let mut caution = self.caution();
            caution.suspects.retain(|_, since| since.elapsed() < QUARANTINE);
            requests.into_iter().partition(|request| caution.suspects.contains_key(request.subject()))
        };
        let most = self.caution().most;
        let mut batches: Vec<Vec<Request>> = Vec::new();
        let mut room = 0;
        for request in others {
            let size = request.raw.body.len();
            match batches.last_mut() {
                Some(batch) if batch.len() < most && size <= room => {
                    room -= size;
                    batch.push(request);
                }
                _ => {
                    room = BATCH_BYTES.saturating_sub(size);
                    batches.push(vec![request]);
                }
            }
        }
        batches.extend(suspects.into_iter().map(|request| vec![request]));
        batches.reverse(); // the oldest is the last, and goes first
        self.write(batches).await
    }

    /// Writes batches, the last one first, and answers all of their requests. What must not be applied is taken out first,
    /// and the rest of its batch sent again: it might have beaten an honest one when the batch was folded.
    async fn write(&mut self, mut batches: Vec<Vec<Request>>) -> Result<(), Away> {
        while let Some(mut requests) = batches.pop() {
            requests.retain(|request| !request.answer.is_closed());
            if requests.is_empty() {
                continue;
            }
            let began = Instant::now();
            match self.apply(&requests, Mode::Full).await {
                Ok(verdicts) => {
                    self.clear_fault();
                    self.caution().grow(requests.len(), began.elapsed());
                    if let Err(error) = self.deny_unsettled(&requests, &verdicts).await {
                        return Err(Away { error, refused: batches.into_iter().flatten().chain(requests).collect() });
                    }
                    let refused = verdicts.iter().flatten().any(|verdict| is_refusal(verdict.outcome));
                    let answered = requests.into_iter().zip(verdicts);
                    batches.push(
                        answered.filter_map(|(request, verdict)| self.settle(request, verdict, refused)).collect(),
                    );
                }
                Err(error) => match error.refusal() {
                    Some(refusal) if requests.len() > 1 => self.split(requests, &refusal, &error, &mut batches),
                    Some(refusal) if !requests[0].is_dead_letter() => {
                        match self.write_less(&mut requests[0], refusal).await {
                            Ok(verdict) => {
                                let left = requests.into_iter().filter_map(|request| match &verdict {
                                    Some(verdict) => self.settle(request, Some(verdict.clone()), false),
                                    None => Some(request),
                                });
                                batches.push(left.collect());
                            }
                            Err(error) => {
                                return Err(Away {
                                    error,
                                    refused: batches.into_iter().flatten().chain(requests).collect(),
                                });
                            }
                        }
                    }
                    _ => return Err(Away { error, refused: batches.into_iter().flatten().chain(requests).collect() }),
                },
            }
        }
        Ok(())
    }

    /// Where nobody makes reads, what waits for one can never be settled.
    ///
    /// A delete that does not say when, and a membership that does not say which role, may take access away: it is taken, until an
    /// event tells more.
    async fn deny_unsettled(&mut self, requests: &[Request], verdicts: &[Option<Verdict>]) -> Result<(), Error> {
        if self.makes_reads {
            return Ok(());
        }
        for (request, verdict) in requests.iter().zip(verdicts) {
            let Item::Change(change) = &request.delivery.item else { continue };
            let Claim::Unusable(read) = &change.claim else { continue };
            let is_delete =
                request.delivery.message.as_ref().is_some_and(|message| message.event_type.ends_with(".deleted"));
            let is_pending = verdict.as_ref().is_some_and(|verdict| verdict.outcome == Outcome::Pending);
            if is_pending && (is_delete || read.kind.gives_access()) {
                let mut session = self.session().await?;
                session.deny_unsettled(read, change.observed_at).await?;
                self.session = Some(session);
            }
        }
        Ok(())
    }

    /// Halves a batch that was refused, or cuts it smaller where time ran out: each trial costs as much again.
    fn split(&self, mut requests: Vec<Request>, refusal: &Refusal, error: &Error, batches: &mut Vec<Vec<Request>>) {
        let size = if error.is_out_of_time() {
            let mut caution = self.caution();
            if refusal.sqlstate == "55P03" {
                caution.locked = Some(Instant::now());
            }
            caution.shrink(requests.len())
        } else {
            requests.len().div_ceil(2)
        };
        while requests.len() > size {
            batches.push(requests.split_off(requests.len() - size));
        }
        batches.push(requests);
    }

    /// Writes of one change what its row does not hinder: what decides access, or a denial. `None`: it is to be kept as a dead letter,
    /// because nobody will read its object, or because no part of it can be stored.
    async fn write_less(&mut self, request: &mut Request, refusal: Refusal) -> Result<Option<Verdict>, Error> {
        let (sqlstate, object) = (refusal.sqlstate.as_str(), refusal.object.as_deref());
        tracing::error!(subject = request.subject(), sqlstate, object, "the database refuses a row");
        metrics::counter!(POISON).increment(1);
        {
            let mut caution = self.caution();
            caution.suspects.insert(request.subject().to_owned(), Instant::now());
            if sqlstate == "55P03" {
                caution.locked = Some(Instant::now());
            }
        }
        let reason = format!("the database refuses it: {refusal}");
        for mode in [Mode::Access, Mode::Deny(refusal)] {
            match self.apply(std::slice::from_ref(request), mode).await {
                Ok(verdicts) => {
                    self.clear_fault();
                    match verdicts.into_iter().next().flatten() {
                        Some(verdict) if self.makes_reads || verdict.outcome != Outcome::Pending => {
                            return Ok(Some(verdict));
                        }
                        _ => break,
                    }
                }
                Err(error) if error.refusal().is_some() => {}
                Err(error) => return Err(error),
            }
        }
        request.condemn(reason);
        Ok(None)
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
            Some(verdict) if verdict.outcome == Outcome::Ahead => {
                self.health.send_modify(|health| health.event_ahead = Some(Instant::now()));
                if let Item::Change(change) = &mut request.delivery.item {
                    change.set_aside("its time is ahead of the database's clock");
                }
                Some(request)
            }
            Some(verdict) => {
                if verdict.outcome == Outcome::Pending {
                    self.pending.notify_one();
                }
                if let Some(message) = request.delivery.message.as_ref().filter(|_| failpoint::writes()) {
                    self.last_seen.note_receipt(&message.id);
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
    async fn apply(&mut self, requests: &[Request], mode: Mode) -> Result<Vec<Option<Verdict>>, Error> {
        let check = matches!(self.check, InstanceCheck::Pinned(_));
        if !failpoint::writes() {
            return Ok(requests.iter().map(|_| Some(Verdict { outcome: Outcome::Applied, reason: None })).collect());
        }
        let lock_wait = if mode == Mode::Full { self.caution().lock_wait() } else { Some(LOCK_WAIT) };
        let batch = Batch::fold(Source::Webhook, check, requests.iter().map(|request| &request.delivery));
        let batch = batch.at(mode).waiting(lock_wait);
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

    /// Makes a session where there is none. That it cannot be made shows when it is needed.
    pub(super) async fn connect(&mut self) {
        self.session = self.session().await.ok();
    }

    /// Asks the database whether a delivery could be written: once more on a fresh connection if the old one turned out to be dead.
    pub(super) async fn ping(&mut self) -> Result<(), Error> {
        let fresh = self.session.is_none();
        match self.ping_once().await {
            Err(error) if !fresh && error.is_connection_lost() => self.ping_once().await,
            result => result,
        }
    }

    /// While there is a fault, only a write is believed.
    async fn ping_once(&mut self) -> Result<(), Error> {
        let mut session = self.session().await?;
        let proving = self.health.borrow().fault.is_some();
        let database_now = session.check_writes(proving).await;
        if database_now.as_ref().err().is_none_or(Error::leaves_session) {
            self.session = Some(session);
        }
        let clock_ahead = (clock::now().get() - database_now?) / 1000;
        self.health.send_modify(|health| health.clock_ahead = clock_ahead);
        Ok(())
    }

    pub(super) async fn close(self) {
        if let Some(session) = self.session {
            session.close().await;
        }
    }

    /// Publishes that the database cannot be written to, and logs it with all causes. `of_delivery`: a delivery found out.
    pub(super) fn set_fault(&self, error: &Error, of_delivery: bool) {
        static LOGGED: Throttle = Throttle::new();
        let (summary, sqlstate) = (error.to_string(), error.sqlstate());
        self.health.send_if_modified(|health| {
            let known = health.fault.take();
            let is_new = known.as_ref().is_none_or(|known| (&known.summary, &known.sqlstate) != (&summary, &sqlstate));
            if is_new && let Some(held_back) = LOGGED.pass() {
                tracing::error!(error = told(causes(error)), held_back, "the database cannot be written to");
            }
            let until_delivery = (of_delivery && !error.is_over_with_any_write())
                || known.as_ref().is_some_and(|known| known.until_delivery);
            let since =
                known.as_ref().filter(|known| known.summary != UNTRIED).map_or_else(clock::now, |known| known.since);
            health.fault = Some(Fault { summary, sqlstate, since, until_delivery });
            is_new
        });
    }

    /// A delivery was written.
    fn clear_fault(&self) {
        self.clear_fault_if(|_| true);
    }

    /// A write that was no delivery succeeded.
    pub(super) fn clear_fault_of_server(&self) {
        self.clear_fault_if(|fault| !fault.until_delivery);
    }

    fn clear_fault_if(&self, is_over: impl Fn(&Fault) -> bool) {
        self.health.send_if_modified(|health| {
            let is_over = health.fault.as_ref().is_some_and(is_over);
            if is_over {
                tracing::info!("the database can be written to");
                health.fault = None;
            }
            is_over
        });
    }

    fn note_foreign(&self, request: &Request, verdict: &Verdict) {
        let instance = request.delivery.message.as_ref().and_then(|message| message.instance_id.clone());
        self.health.send_modify(|health| {
            health.pinned = verdict.pinned();
            health.foreign = instance;
        });
    }
}

const fn is_refusal(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Foreign | Outcome::Reused | Outcome::Ahead)
}

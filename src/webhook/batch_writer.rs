//! Writes batches on one session with the database, and answers their requests.
//!
//! A batch fails as a whole. If the database refuses one of its rows (because of its content, or because an object of the application
//! refuses or locks it), the batch is split until that row is alone, and the rest commits. Of that row less is written, in the end only a
//! denial: what takes access away still takes effect, and the row is written later. After any other failure all senders must retry.

use super::batch_size::{BatchSize, LOCK_WAIT};
use super::health::Reporter;
use super::request::{Request, Unavailable};
use crate::clock;
use crate::failpoint::{self, Point};
use crate::model::{Batch, InstanceCheck, Item, Mode, Observation, Outcome, Refusal, Source, Verdict};
use crate::store::{Database, Error, LastSeen, Session};
use crate::telemetry::{BATCH as BATCH_SIZE, POISON, WRITE};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// The database could not be written to: why, and the requests that still need a response.
pub(super) struct WriteFailure {
    pub(super) error: Error,
    pub(super) unanswered: Vec<Request>,
}

/// One session, and what is needed to write on it. A clone has no session yet.
pub(super) struct BatchWriter {
    database: Database,
    check: InstanceCheck,
    session: Option<Session>,
    pub(super) health: Reporter,
    pub(super) pending: Arc<Notify>,
    pub(super) last_seen: LastSeen,
    /// Whether this process makes pending reads by id; if not, a refused change is kept as a dead letter as well.
    makes_reads: bool,
    batch_size: Arc<Mutex<BatchSize>>,
}

impl Clone for BatchWriter {
    fn clone(&self) -> BatchWriter {
        BatchWriter {
            database: self.database.clone(),
            check: self.check.clone(),
            session: None,
            health: self.health.clone(),
            pending: Arc::clone(&self.pending),
            last_seen: self.last_seen.clone(),
            makes_reads: self.makes_reads,
            batch_size: Arc::clone(&self.batch_size),
        }
    }
}

impl BatchWriter {
    pub(super) fn new(database: Database, check: InstanceCheck, makes_reads: bool) -> BatchWriter {
        BatchWriter {
            database,
            check,
            session: None,
            health: Reporter::new(),
            pending: Arc::default(),
            last_seen: LastSeen::default(),
            makes_reads,
            batch_size: Arc::new(Mutex::new(BatchSize::new())),
        }
    }

    /// Whether it has a session: it is lost with the connection, and opened when needed.
    pub(super) const fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    fn batch_size(&self) -> MutexGuard<'_, BatchSize> {
        self.batch_size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes all gathered requests in batches of bounded size; objects that were refused before go alone and last. `Err`: the database is
    /// away; the requests in it still need a response.
    pub(super) async fn write_all(&mut self, requests: Vec<Request>) -> Result<(), WriteFailure> {
        let mut batches = self.batch_size().batches(requests);
        batches.reverse(); // the oldest is the last, and goes first
        self.write(batches).await
    }

    /// Writes batches, the last one first, and answers all of their requests.
    async fn write(&mut self, mut batches: Vec<Vec<Request>>) -> Result<(), WriteFailure> {
        while let Some(mut requests) = batches.pop() {
            requests.retain(|request| !request.answer.is_closed());
            if requests.is_empty() {
                continue;
            }
            if let Err(error) = self.write_batch(&mut requests, &mut batches).await {
                return Err(WriteFailure {
                    error,
                    unanswered: batches.into_iter().flatten().chain(requests).collect(),
                });
            }
        }
        Ok(())
    }

    /// Writes one batch, and answers its requests or puts them back into `batches`. If some must not be applied, the rest is written again
    /// without them: they may have replaced a valid change when the batch was folded. `Err`: no request has been answered.
    async fn write_batch(&mut self, requests: &mut Vec<Request>, batches: &mut Vec<Vec<Request>>) -> Result<(), Error> {
        let began = Instant::now();
        let error = match self.apply(requests, Mode::Full).await {
            Ok(verdicts) => {
                self.health.clear_fault();
                self.batch_size().grow(requests.len(), began.elapsed());
                self.deny_unsettled(requests, &verdicts).await?;
                let refused = verdicts.iter().flatten().any(|verdict| is_refusal(verdict.outcome));
                let answered = std::mem::take(requests).into_iter().zip(verdicts);
                let left = answered.filter_map(|(request, verdict)| self.settle(request, verdict, refused));
                batches.push(left.collect());
                return Ok(());
            }
            Err(error) => error,
        };
        match error.refusal() {
            Some(refusal) if requests.len() > 1 => {
                self.split(std::mem::take(requests), &refusal, &error, batches);
            }
            Some(refusal) if !requests[0].is_dead_letter() => {
                let verdict = self.write_less(&mut requests[0], refusal).await?;
                let left = std::mem::take(requests).into_iter().filter_map(|request| match &verdict {
                    Some(verdict) => self.settle(request, Some(verdict.clone()), false),
                    None => Some(request),
                });
                batches.push(left.collect());
            }
            _ => return Err(error),
        }
        Ok(())
    }

    /// Without a secret key no reads are made, so what waits for a read would wait forever.
    ///
    /// A delete without a time, and a membership without a role, may take access away: access is denied until an event says more.
    async fn deny_unsettled(&mut self, requests: &[Request], verdicts: &[Option<Verdict>]) -> Result<(), Error> {
        if self.makes_reads {
            return Ok(());
        }
        for (request, verdict) in requests.iter().zip(verdicts) {
            let Item::Change(change) = &request.delivery.item else { continue };
            let Observation::NeedsRead(read) = &change.observation else { continue };
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

    /// Halves a batch that was refused, or cuts it smaller after a time-out, where each attempt costs the full time.
    fn split(&self, mut requests: Vec<Request>, refusal: &Refusal, error: &Error, batches: &mut Vec<Vec<Request>>) {
        let size = if error.is_out_of_time() {
            let mut batch_size = self.batch_size();
            if refusal.sqlstate == "55P03" {
                batch_size.note_lock();
            }
            batch_size.shrink(requests.len())
        } else {
            requests.len().div_ceil(2)
        };
        while requests.len() > size {
            batches.push(requests.split_off(requests.len() - size));
        }
        batches.push(requests);
    }

    /// Writes the part of a refused change that can be written: what decides access, or else a denial. `None`: it must be kept as a dead
    /// letter, because its object will not be read by id, or because no part of it can be stored.
    async fn write_less(&mut self, request: &mut Request, refusal: Refusal) -> Result<Option<Verdict>, Error> {
        let (sqlstate, object) = (refusal.sqlstate.as_str(), refusal.object.as_deref());
        tracing::error!(
            subject = request.subject(),
            sqlstate,
            object,
            "a row is rejected by a constraint or trigger on the synced tables"
        );
        metrics::counter!(POISON).increment(1);
        {
            let mut batch_size = self.batch_size();
            batch_size.isolate(request.subject());
            if sqlstate == "55P03" {
                batch_size.note_lock();
            }
        }
        let reason = format!("the database refuses it: {refusal}");
        for mode in [Mode::Access, Mode::Deny(refusal)] {
            match self.apply(std::slice::from_ref(request), mode).await {
                Ok(verdicts) => {
                    self.health.clear_fault();
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
        request.make_dead_letter(reason);
        Ok(None)
    }

    /// Answers one request, or returns it to be written again.
    fn settle(&self, mut request: Request, verdict: Option<Verdict>, batch_was_refused: bool) -> Option<Request> {
        match verdict {
            Some(verdict) if verdict.outcome == Outcome::Foreign => {
                let instance = request.delivery.message.as_ref().and_then(|message| message.instance_id.clone());
                self.health.note_foreign(verdict.pinned(), instance);
                let _ = request.answer.send(Ok(verdict));
                None
            }
            Some(verdict) if verdict.outcome == Outcome::Reused => {
                request.make_dead_letter(
                    "its message id was already used by an earlier webhook with a different body".to_owned(),
                );
                Some(request)
            }
            Some(verdict) if verdict.outcome == Outcome::Ahead => {
                self.health.note_event_ahead();
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
                    self.health.note_own();
                }
                let _ = request.answer.send(Ok(verdict));
                None
            }
            None if batch_was_refused => Some(request),
            None => {
                tracing::error!("the writer returned no outcome for a delivery");
                let _ = request.answer.send(Err(Unavailable::Database));
                None
            }
        }
    }

    /// One call, and a second one on a new connection if the old one is dead: applying twice is harmless.
    async fn apply(&mut self, requests: &[Request], mode: Mode) -> Result<Vec<Option<Verdict>>, Error> {
        let check = matches!(self.check, InstanceCheck::Pinned(_));
        if !failpoint::writes() {
            return Ok(requests.iter().map(|_| Some(Verdict { outcome: Outcome::Applied, reason: None })).collect());
        }
        let lock_wait = if mode == Mode::Full { self.batch_size().lock_wait() } else { Some(LOCK_WAIT) };
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

    /// Takes the session out, or connects. Put it back after a call, unless an error has made it unusable.
    async fn session(&mut self) -> Result<Session, Error> {
        if let Some(session) = self.session.take() {
            return Ok(session);
        }
        let mut session = self.database.connect().await?;
        let pinned = session.pin_instance(self.check.expected(), "environment").await?;
        self.health.set_pinned(pinned);
        Ok(session)
    }

    /// Connects if there is no session. An error is dropped: the next write reports it.
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
        let proving = self.health.has_fault();
        let database_now = session.check_writes(proving).await;
        if database_now.as_ref().err().is_none_or(Error::leaves_session) {
            self.session = Some(session);
        }
        self.health.set_clock_ahead((clock::now().get() - database_now?) / 1000);
        Ok(())
    }

    pub(super) async fn close(self) {
        if let Some(session) = self.session {
            session.close().await;
        }
    }
}

const fn is_refusal(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Foreign | Outcome::Reused | Outcome::Ahead)
}

//! The writer task: many requests, one statement at a time.
//!
//! Requests hand over what they have and wait. While one batch is in flight the next one gathers, so that the batch grows
//! with the load and a lone event waits for nobody. The task is detached from the requests: a client that hangs up cannot
//! cancel database work that has begun.

use crate::model::{Batch, DeadLetter, Delivery, InstanceId, Item, Outcome, Source, Verdict};
use crate::store::{Database, Error, Session};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

/// Deliveries that may wait: some five times what one Svix worker has in flight at most (500).
const QUEUE: usize = 2_500;
/// Deliveries in one statement, so that it stays far under its time limit.
const BATCH: usize = 256;
/// How often an idle connection is tried, so that `/readyz` tells the truth without traffic.
const PING: Duration = Duration::from_secs(5);

/// Hands deliveries to the task. Cheap to clone; when the last one is dropped, the task drains its queue and ends.
#[derive(Clone, Debug)]
pub struct Writer {
    queue: mpsc::Sender<Request>,
    health: watch::Receiver<Health>,
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
}

struct Request {
    delivery: Delivery,
    /// The message as it came, should it have to be kept whole.
    raw: DeadLetter,
    answer: oneshot::Sender<Result<Verdict, Unavailable>>,
}

/// Which Clerk instance the messages must belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceCheck {
    /// To the one that the mirror is pinned to; an empty mirror is pinned to this one, or to the first message's.
    Pinned(Option<InstanceId>),
    /// To any: for replays of fixtures.
    Off,
}

impl Writer {
    /// Starts the task. It connects when it must and stays up without a database.
    pub fn start(database: Database, check: InstanceCheck) -> (Writer, JoinHandle<()>) {
        let (queue, requests) = mpsc::channel(QUEUE);
        let starting = Health { fault: Some("not tried yet".to_owned()), ..Health::default() };
        let (publish, health) = watch::channel(starting);
        let task = Task { database, check, session: None, health: publish };
        (Writer { queue, health }, tokio::spawn(task.run(requests)))
    }

    /// Hands one delivery over and waits until it is durable. `raw` is kept if the message turns out to be unusable.
    ///
    /// # Errors
    /// It is not durable, or nobody knows: have it sent again.
    pub async fn write(&self, delivery: Delivery, raw: DeadLetter) -> Result<Verdict, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Request { delivery, raw, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unavailable::QueueFull,
            mpsc::error::TrySendError::Closed(_) => Unavailable::Stopping,
        })?;
        answered.await.unwrap_or(Err(Unavailable::Stopping))
    }

    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }
}

struct Task {
    database: Database,
    check: InstanceCheck,
    session: Option<Session>,
    health: watch::Sender<Health>,
}

impl Task {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut gathered = Vec::new();
        loop {
            tokio::select! {
                biased;
                count = requests.recv_many(&mut gathered, BATCH) => match count {
                    0 => break,
                    _ => self.write(std::mem::take(&mut gathered)).await,
                },
                _ = ping.tick() => self.ping().await,
            }
        }
        if let Some(session) = self.session.take() {
            session.close().await;
        }
    }

    /// Writes one batch and answers all of its requests. What must not be applied is taken out first, and the rest sent
    /// again: such an item might have beaten an honest one when the batch was folded.
    async fn write(&mut self, mut requests: Vec<Request>) {
        while !requests.is_empty() {
            let verdicts = match self.apply(&requests).await {
                Ok(verdicts) => verdicts,
                Err(error) => {
                    self.report(Some(&error));
                    for request in requests {
                        let _ = request.answer.send(Err(Unavailable::Database));
                    }
                    return;
                }
            };
            self.report(None);
            let refused = verdicts.iter().flatten().any(|verdict| is_refusal(verdict.outcome));
            let answered = requests.into_iter().zip(verdicts);
            requests = answered.filter_map(|(request, verdict)| self.settle(request, verdict, refused)).collect();
        }
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
                request.raw.reason = "its message id came before with another body".to_owned();
                request.delivery.item = Item::DeadLetter(request.raw.clone());
                Some(request)
            }
            Some(verdict) => {
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
        let verdicts = session.apply(batch, items).await?;
        self.session = Some(session);
        Ok(verdicts)
    }

    /// The session, taken out: whoever gets an error from it does not put it back.
    async fn session(&mut self) -> Result<Session, Error> {
        if let Some(session) = self.session.take() {
            return Ok(session);
        }
        let mut session = self.database.connect().await?;
        let wanted = match &self.check {
            InstanceCheck::Pinned(wanted) => wanted.as_ref(),
            InstanceCheck::Off => None,
        };
        let pinned = session.pin_instance(wanted).await?;
        self.health.send_modify(|health| health.pinned = pinned);
        Ok(session)
    }

    async fn ping(&mut self) {
        let result = async {
            let mut session = self.session().await?;
            session.ping().await?;
            self.session = Some(session);
            Ok(())
        }
        .await;
        self.report(result.as_ref().err());
    }

    /// Publishes whether the database can be written to, and logs when that changes.
    fn report(&self, error: Option<&Error>) {
        let fault = error.map(chain);
        self.health.send_if_modified(|health| {
            if health.fault == fault {
                return false;
            }
            match (&fault, &health.fault) {
                (Some(fault), _) => tracing::error!(error = fault, "the database cannot be written to"),
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

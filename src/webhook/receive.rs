//! What becomes of a verified delivery. The only place where statuses are chosen for one.

use super::budget::Budget;
use super::lane::{Raw, Unavailable};
use super::verify::{Verified, Verifier};
use super::writer::Writer;
use crate::clerk::event::{self, Event, Unusable};
use crate::clock;
use crate::door::Welcome;
use crate::failpoint::{self, Point};
use crate::model::{Delivery, EntityRef, Item, Kind, Message, MessageId, Outcome, Verdict, Word, hex};
use crate::telemetry::{DELIVERIES, FLAWS, IGNORED, LAG, Throttle, UNAVAILABLE};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// The header that tells what became of a delivery, on every 2xx.
pub(crate) const OUTCOME_HEADER: &str = "clerk-sync-outcome";

/// By how many seconds our clock may differ from the database's before it counts as wrong.
const CLOCKS_AGREE: i64 = 60;

/// When a sender is asked to come back. Svix keeps to its own schedule, at 5 s for the first retry.
const RETRY_AFTER_S: u64 = 5;

/// What a request needs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Receiver {
    verifier: Verifier,
    writer: Writer,
    budget: Budget,
    /// By how many seconds our clock is ahead of whoever signed last; 0 while within the tolerance.
    signer: Arc<AtomicI64>,
}

impl Receiver {
    pub fn new(verifier: Verifier, writer: Writer) -> Receiver {
        Receiver { verifier, writer, budget: Budget::default(), signer: Arc::default() }
    }

    pub(super) fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Notes what the last good signature says of our clock: how many seconds it is ahead, or that the two agree.
    pub(super) fn note_signer(&self, ahead: Option<i64>) {
        static LOGGED: Throttle = Throttle::new();
        let before = self.signer.swap(ahead.unwrap_or(0), Ordering::Relaxed);
        match ahead {
            Some(ahead) if before == 0 => {
                if let Some(held_back) = LOGGED.pass() {
                    let (seconds, side) = (ahead.abs(), if ahead > 0 { "ahead" } else { "behind" });
                    tracing::error!(
                        held_back,
                        "the clock differs by {seconds} s: a request was signed well, and this machine is {side}; \
                         while all come so, none can be accepted"
                    );
                }
            }
            None if before != 0 => tracing::info!("signatures are in time"),
            _ => {}
        }
    }

    /// By how many seconds this machine's clock is ahead (less than 0: behind), if it is so wrong that good signatures are
    /// refused. It takes two witnesses: an old request can be sent again by anybody who has seen it, and the database's
    /// clock may be the wrong one.
    pub(crate) fn wrong_clock(&self) -> Option<i64> {
        let (by_signer, by_database) = (self.signer.load(Ordering::Relaxed), self.writer.health().clock_ahead);
        let is_wrong = by_signer.signum() == by_database.signum() && by_database.abs() > CLOCKS_AGREE;
        is_wrong.then_some(by_signer)
    }
}

/// `POST /webhooks/clerk`
pub async fn receive(State(receiver): State<Receiver>, verified: Verified) -> Response {
    let started = Instant::now();
    let line = Line::of(&verified);
    let (line, result) = match event::parse(&verified.body, verified.attempted_at) {
        Ok(Event { change: None, event_type, .. }) => {
            metrics::counter!(IGNORED, "event_type" => known(&event_type)).increment(1);
            (line.about(Some(event_type), None, &[]), Ok(Verdict { outcome: Outcome::Ignored, reason: None }))
        }
        read => {
            let line = match &read {
                Ok(event) => line.about(Some(event.event_type.clone()), event.entity.clone(), &event.flaws),
                Err(unusable) => line.about(unusable.event_type.clone(), None, &[]),
            };
            let event_at = read.as_ref().ok().and_then(|event| event.event_at);
            let result = write(&receiver.writer, verified, read).await;
            if let (Some(event_at), Ok(_)) = (event_at, &result) {
                let lag = clock::now().get() - event_at.get();
                metrics::histogram!(LAG).record(Duration::from_millis(lag.max(0).cast_unsigned()));
            }
            (line, result)
        }
    };
    line.log(&result, started.elapsed());
    let mut response = respond(result);
    response.extensions_mut().insert(Welcome);
    response
}

/// Hands the delivery to the writer and waits for the commit.
async fn write(writer: &Writer, verified: Verified, read: Result<Event, Unusable>) -> Result<Verdict, Unavailable> {
    failpoint::reached(Point::Verified);
    let body_hash = hex(&Sha256::digest(&verified.body));
    let raw = Raw { headers: verified.headers, body: verified.body, reserved: verified.reserved };
    let delivery = match read {
        Ok(event) => match event.into_delivery(verified.message_id, body_hash) {
            Some(delivery) => delivery,
            None => return Ok(Verdict { outcome: Outcome::Ignored, reason: None }),
        },
        Err(unusable) => {
            let message = Message {
                id: verified.message_id,
                body_hash,
                event_type: unusable.event_type.unwrap_or_default(),
                entity_id: None,
                instance_id: unusable.instance_id,
                event_at: None,
                flaws: Vec::new(),
            };
            Delivery { message: Some(message), item: Item::DeadLetter(raw.dead_letter(unusable.reason)) }
        }
    };
    if failpoint::answers_early() {
        let writer = writer.clone();
        tokio::spawn(async move { writer.write(delivery, raw).await });
        return Ok(Verdict { outcome: Outcome::Applied, reason: None });
    }
    writer.write(delivery, raw).await
}

fn respond(result: Result<Verdict, Unavailable>) -> Response {
    match result {
        Ok(Verdict { outcome: Outcome::Foreign, reason }) => {
            let body = json!({ "error": "foreign_instance", "pinned_instance": reason });
            (StatusCode::FORBIDDEN, Json(body)).into_response()
        }
        // A body, so that the reason can be read beside the attempt in the sender's own log.
        Ok(Verdict { outcome: outcome @ Outcome::DeadLetter, reason }) => {
            let headers = [(OUTCOME_HEADER, outcome.as_str())];
            (StatusCode::OK, headers, Json(json!({ "outcome": outcome.as_str(), "reason": reason }))).into_response()
        }
        Ok(Verdict { outcome, .. }) => (StatusCode::NO_CONTENT, [(OUTCOME_HEADER, outcome.as_str())]).into_response(),
        Err(unavailable) => try_again(unavailable.as_str()),
    }
}

/// An answer that makes the sender come again.
pub(super) fn try_again(error: &str) -> Response {
    let mut response = refusal(StatusCode::SERVICE_UNAVAILABLE, error);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
    response
}

/// An answer that says no, with one word why.
pub(super) fn refusal(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

/// The event types of Clerk's that we know of, for a label; all others are one.
fn known(event_type: &str) -> &'static str {
    const OTHERS: [&str; 10] = [
        "session",
        "email",
        "sms",
        "organizationInvitation",
        "organizationDomain",
        "invitation",
        "waitlistEntry",
        "subscription",
        "subscriptionItem",
        "paymentAttempt",
    ];
    let subject = event_type.split('.').next().unwrap_or_default();
    let known = OTHERS.into_iter().chain(Kind::ALL.map(Kind::event_subject));
    known.into_iter().find(|known| *known == subject).unwrap_or("other")
}

/// The log line of one delivery: ids, no personal data.
struct Line {
    message_id: MessageId,
    event_type: Option<String>,
    entity: Option<EntityRef>,
}

impl Line {
    fn of(verified: &Verified) -> Line {
        Line { message_id: verified.message_id.clone(), event_type: None, entity: None }
    }

    fn about(self, event_type: Option<String>, entity: Option<EntityRef>, flaws: &[String]) -> Line {
        static WARNED: Throttle = Throttle::new();
        if !flaws.is_empty() {
            metrics::counter!(FLAWS).increment(flaws.len() as u64);
            if let Some(held_back) = WARNED.pass() {
                let message_id = &self.message_id;
                tracing::warn!(%message_id, event_type, ?flaws, held_back, "fields could not be taken as they came");
            }
        }
        Line { message_id: self.message_id, event_type, entity }
    }

    fn log(&self, result: &Result<Verdict, Unavailable>, duration: Duration) {
        static WARNED: Throttle = Throttle::new();
        static FOREIGN: Throttle = Throttle::new();
        let Line { message_id, event_type, entity } = self;
        let (event_type, entity_id) = (event_type.as_deref(), entity.as_ref().map(|entity| entity.id.as_str()));
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        match result {
            Ok(Verdict { outcome, reason }) => {
                metrics::counter!(DELIVERIES, "outcome" => outcome.as_str()).increment(1);
                let (outcome, reason) = (*outcome, reason.as_ref().map(Word::as_str));
                match outcome {
                    Outcome::Foreign => {
                        if let Some(held_back) = FOREIGN.pass() {
                            tracing::error!(%message_id, event_type, entity_id, %outcome, reason, duration_ms, held_back, "delivery");
                        }
                    }
                    Outcome::DeadLetter => {
                        tracing::error!(%message_id, event_type, entity_id, %outcome, reason, duration_ms, "delivery");
                    }
                    Outcome::Applied | Outcome::Pending => {
                        tracing::info!(%message_id, event_type, entity_id, %outcome, reason, duration_ms, "delivery");
                    }
                    _ => tracing::debug!(%message_id, event_type, entity_id, %outcome, reason, duration_ms, "delivery"),
                }
            }
            Err(unavailable) => {
                let reason = unavailable.as_str();
                metrics::counter!(UNAVAILABLE, "reason" => reason).increment(1);
                if let Some(held_back) = WARNED.pass() {
                    let outcome = "unavailable";
                    tracing::warn!(%message_id, event_type, entity_id, outcome, reason, duration_ms, held_back, "delivery");
                }
            }
        }
    }
}

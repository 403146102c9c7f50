//! What becomes of a verified delivery. The only place where statuses are chosen for one.

use super::verify::{Verified, Verifier};
use super::writer::{Unavailable, Writer};
use crate::clerk::event::{self, Event, Unusable};
use crate::model::{DeadLetter, Delivery, EntityRef, Item, Message, MessageId, Outcome, Verdict, hex};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header::RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

/// The header that tells what became of a delivery, on every 2xx.
pub const OUTCOME_HEADER: &str = "clerk-sync-outcome";

/// How long a delivery may wait for its commit. Svix hangs up after 15 s and then waits a minute at least: answer before.
const DEADLINE: Duration = Duration::from_secs(8);

/// When a sender is asked to come back. Svix keeps to its own schedule, at 5 s for the first retry.
const RETRY_AFTER_S: u64 = 5;

/// What a request needs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Receiver {
    verifier: Verifier,
    writer: Writer,
}

impl Receiver {
    pub fn new(verifier: Verifier, writer: Writer) -> Receiver {
        Receiver { verifier, writer }
    }

    pub(super) fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    pub fn writer(&self) -> &Writer {
        &self.writer
    }
}

/// `POST /webhooks/clerk`
pub async fn receive(State(receiver): State<Receiver>, verified: Verified) -> Response {
    let started = Instant::now();
    let read = event::parse(&verified.body, verified.attempted_at);
    let (event_type, entity) = match &read {
        Ok(event) => (Some(event.event_type.clone()), event.entity.clone()),
        Err(unusable) => (unusable.event_type.clone(), None),
    };
    let message_id = verified.message_id.clone();
    let result = match read {
        Ok(Event { change: None, .. }) => Ok(Verdict { outcome: Outcome::Ignored, reason: None }),
        read => write(&receiver.writer, verified, read).await,
    };
    log(&message_id, event_type.as_deref(), entity.as_ref(), &result, started.elapsed());
    respond(result)
}

/// Hands the delivery to the writer and waits for the commit.
async fn write(writer: &Writer, verified: Verified, read: Result<Event, Unusable>) -> Result<Verdict, Unavailable> {
    let mut raw =
        DeadLetter { reason: String::new(), headers: printable(&verified.headers), body: verified.body.to_vec() };
    let mut message = Message {
        id: verified.message_id,
        body_hash: hex(&Sha256::digest(&verified.body)),
        event_type: String::new(),
        entity_id: None,
        instance_id: None,
        event_at: None,
    };
    let item = match read {
        Ok(event) => {
            message.event_type = event.event_type;
            message.entity_id = event.entity.map(|entity| entity.id);
            message.instance_id = event.instance_id;
            message.event_at = event.event_at;
            let Some(change) = event.change else {
                return Ok(Verdict { outcome: Outcome::Ignored, reason: None });
            };
            Item::Change(Box::new(change))
        }
        Err(unusable) => {
            message.event_type = unusable.event_type.unwrap_or_default();
            raw.reason = unusable.reason;
            Item::DeadLetter(raw.clone())
        }
    };
    let written = writer.write(Delivery { message: Some(message), item }, raw);
    tokio::time::timeout(DEADLINE, written).await.unwrap_or(Err(Unavailable::Deadline))
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
        Err(unavailable) => {
            let mut response = refusal(StatusCode::SERVICE_UNAVAILABLE, unavailable.as_str());
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
            response
        }
    }
}

/// An answer that says no, with one word why.
pub(super) fn refusal(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

/// One line for a delivery: ids, no personal data.
fn log(
    message_id: &MessageId,
    event_type: Option<&str>,
    entity: Option<&EntityRef>,
    result: &Result<Verdict, Unavailable>,
    duration: Duration,
) {
    let entity_id = entity.map(|entity| entity.id.as_str());
    let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    match result {
        Ok(Verdict { outcome, reason }) => {
            let (outcome, reason) = (outcome.as_str(), reason.as_deref());
            match outcome {
                "dead_letter" | "foreign" => {
                    tracing::error!(%message_id, event_type, entity_id, outcome, reason, duration_ms, "delivery");
                }
                _ => tracing::info!(%message_id, event_type, entity_id, outcome, reason, duration_ms, "delivery"),
            }
        }
        Err(unavailable) => {
            let reason = unavailable.as_str();
            tracing::warn!(%message_id, event_type, entity_id, outcome = "unavailable", reason, duration_ms, "delivery");
        }
    }
}

/// Headers as text, for a dead letter. Bytes that are no ASCII are escaped.
fn printable(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| value.as_bytes().escape_ascii().to_string();
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

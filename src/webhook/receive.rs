//! Handles one verified delivery: parse, write, respond.

use super::answer;
use super::body_memory::BodyMemory;
use super::extract::Verified;
use super::log::DeliveryLog;
use super::queue::WriteQueue;
use super::request::{RawMessage, Unavailable};
use super::signature::Verifier;
use crate::clerk::event;
use crate::clock;
use crate::door::VerifiedSender;
use crate::failpoint::{self, Point};
use crate::model::{Delivery, Millis, Outcome, Verdict, hex};
use crate::telemetry::{IGNORED, LAG, Throttle};
use axum::extract::State;
use axum::response::Response;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// By how many seconds our clock may differ from the database's before it counts as wrong.
const CLOCKS_AGREE: i64 = 60;

/// What a request needs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Receiver {
    verifier: Verifier,
    writer: WriteQueue,
    budget: BodyMemory,
    /// By how many seconds our clock is ahead of whoever signed last; 0 while within the tolerance.
    signer_skew_s: Arc<AtomicI64>,
}

impl Receiver {
    pub fn new(verifier: Verifier, writer: WriteQueue) -> Receiver {
        Receiver { verifier, writer, budget: BodyMemory::default(), signer_skew_s: Arc::default() }
    }

    pub(super) fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Whether there is a secret to verify webhooks with.
    pub(crate) fn has_secret(&self) -> bool {
        self.verifier.has_secret()
    }

    pub fn budget(&self) -> &BodyMemory {
        &self.budget
    }

    pub fn writer(&self) -> &WriteQueue {
        &self.writer
    }

    /// Notes what the last good signature says of our clock: how many seconds it is ahead, or that the two agree.
    pub(super) fn record_clock_skew(&self, ahead: Option<i64>) {
        static LOGGED: Throttle = Throttle::new();
        let before = self.signer_skew_s.swap(ahead.unwrap_or(0), Ordering::Relaxed);
        match ahead {
            Some(ahead) if before == 0 => {
                if let Some(suppressed) = LOGGED.should_log() {
                    let (seconds, side) = (ahead.abs(), if ahead > 0 { "ahead" } else { "behind" });
                    tracing::error!(
                        suppressed,
                        "the clock differs by {seconds} s: a request has a valid signature, and this machine is {side}; while that lasts, webhooks are refused"
                    );
                }
            }
            None if before != 0 => tracing::info!("signatures are in time again"),
            _ => {}
        }
    }

    /// By how many seconds this machine's clock is ahead (negative: behind), if valid signatures are refused because of it. Both the
    /// signer's and the database's clock must show it: an old request can be replayed, and the database's clock may be wrong.
    pub(crate) fn confirmed_clock_skew(&self) -> Option<i64> {
        let (by_signer, by_database) = (self.signer_skew_s.load(Ordering::Relaxed), self.writer.health().clock_ahead);
        let is_wrong = by_signer.signum() == by_database.signum() && by_database.abs() > CLOCKS_AGREE;
        is_wrong.then_some(by_signer)
    }
}

/// `POST /webhooks/clerk`
pub async fn receive(State(receiver): State<Receiver>, verified: Verified) -> Response {
    let started = Instant::now();
    let line = DeliveryLog::of(&verified);
    let body_hash = hex(&Sha256::digest(&verified.body));
    let Verified { message_id, attempted_at, headers, body, reserved } = verified;
    let raw = RawMessage { headers, body, reserved };
    // None: it says nothing about what we mirror.
    let (line, event_at, delivery) = match event::parse(&raw.body, attempted_at) {
        Ok(event) => {
            let line = line.with_event(Some(event.event_type.clone()), event.entity.clone(), &event.field_errors);
            (line, event.event_at, event.into_delivery(message_id, body_hash))
        }
        Err(unusable) => {
            let line = line.with_event(unusable.event_type.clone(), None, &[]);
            let delivery = unusable.into_delivery(message_id, body_hash, |reason| raw.dead_letter(reason));
            (line, None, Some(delivery))
        }
    };
    let result = match delivery {
        Some(delivery) => write(&receiver.writer, delivery, raw, event_at).await,
        None => {
            metrics::counter!(IGNORED, "event_type" => line.known_type()).increment(1);
            Ok(Verdict { outcome: Outcome::Ignored, reason: None })
        }
    };
    line.log(&result, started.elapsed());
    let mut response = answer::respond(result);
    response.extensions_mut().insert(VerifiedSender);
    response
}

/// Hands the delivery to the writer and waits for the commit.
async fn write(
    writer: &WriteQueue,
    delivery: Delivery,
    raw: RawMessage,
    event_at: Option<Millis>,
) -> Result<Verdict, Unavailable> {
    failpoint::reached(Point::Verified);
    if failpoint::answers_early() {
        let writer = writer.clone();
        tokio::spawn(async move { writer.write(delivery, raw).await });
        return Ok(Verdict { outcome: Outcome::Applied, reason: None });
    }
    let verdict = writer.write(delivery, raw).await?;
    if let Some(event_at) = event_at {
        let lag = clock::now().get() - event_at.get();
        metrics::histogram!(LAG).record(Duration::from_millis(lag.max(0).cast_unsigned()));
    }
    Ok(verdict)
}

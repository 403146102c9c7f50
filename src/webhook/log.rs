//! What is logged and counted for one delivery: ids, no personal data.

use super::extract::Verified;
use super::request::Unavailable;
use crate::model::{EntityRef, Kind, MessageId, Outcome, Verdict, Word};
use crate::telemetry::{DELIVERIES, FIELD_ERRORS, Throttle, UNAVAILABLE};
use std::time::Duration;

/// The event type for a metric label: the part before the dot if it is a known one, else "other".
fn event_label(event_type: &str) -> &'static str {
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

/// The log line of one delivery.
pub(super) struct DeliveryLog {
    message_id: MessageId,
    event_type: Option<String>,
    entity: Option<EntityRef>,
}

impl DeliveryLog {
    pub(super) fn of(verified: &Verified) -> DeliveryLog {
        DeliveryLog { message_id: verified.message_id.clone(), event_type: None, entity: None }
    }

    pub(super) fn with_event(
        self,
        event_type: Option<String>,
        entity: Option<EntityRef>,
        field_errors: &[String],
    ) -> DeliveryLog {
        static WARNED: Throttle = Throttle::new();
        if !field_errors.is_empty() {
            metrics::counter!(FIELD_ERRORS).increment(field_errors.len() as u64);
            if let Some(suppressed) = WARNED.should_log() {
                let message_id = &self.message_id;
                tracing::warn!(%message_id, event_type, ?field_errors, suppressed, "some fields could not be stored as they arrived");
            }
        }
        DeliveryLog { message_id: self.message_id, event_type, entity }
    }

    /// Its event type, for a label.
    pub(super) fn known_type(&self) -> &'static str {
        self.event_type.as_deref().map_or("other", event_label)
    }

    pub(super) fn log(&self, result: &Result<Verdict, Unavailable>, duration: Duration) {
        static WARNED: Throttle = Throttle::new();
        static FOREIGN: Throttle = Throttle::new();
        let DeliveryLog { message_id, event_type, entity } = self;
        let (event_type, entity_id) = (event_type.as_deref(), entity.as_ref().map(|entity| entity.id.as_str()));
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        match result {
            Ok(Verdict { outcome, reason }) => {
                metrics::counter!(DELIVERIES, "outcome" => outcome.as_str()).increment(1);
                let (outcome, reason) = (*outcome, reason.as_ref().map(Word::as_str));
                match outcome {
                    Outcome::Foreign => {
                        if let Some(suppressed) = FOREIGN.should_log() {
                            tracing::error!(%message_id, event_type, entity_id, %outcome, reason, duration_ms, suppressed, "delivery");
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
                if let Some(suppressed) = WARNED.should_log() {
                    let outcome = "unavailable";
                    tracing::warn!(%message_id, event_type, entity_id, outcome, reason, duration_ms, suppressed, "delivery");
                }
            }
        }
    }
}

//! One delivery on its way to the database, with the channel for its response.

use super::body_memory::Reserved;
use crate::model::{DeadLetter, Delivery, Item, Verdict, without_private_metadata};
use axum::body::Bytes;
use axum::http::HeaderMap;
use tokio::sync::oneshot;

/// Nothing was written, or that is unknown: the sender must retry.
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
    /// One word for responses, logs and counters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Unavailable::QueueFull => "queue_full",
            Unavailable::Database => "database_unavailable",
            Unavailable::Deadline => "deadline",
            Unavailable::Stopping => "stopping",
        }
    }
}

/// A message as it arrived, in case it becomes a dead letter.
#[derive(Debug)]
pub struct RawMessage {
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Freed with the rest after the response.
    pub reserved: Reserved,
}

impl RawMessage {
    /// The message as a dead letter, without `private_metadata`, and with the headers that are worth keeping: an endpoint's owner may
    /// configure further ones, and they may be secrets. Bytes that are not ASCII are escaped. (Its hash stays the one of what came.)
    pub fn dead_letter(&self, reason: String) -> DeadLetter {
        let text = |value: &axum::http::HeaderValue| value.as_bytes().escape_ascii().to_string();
        let telling = |name: &str| {
            name.starts_with("svix-") || name.starts_with("webhook-") || matches!(name, "content-type" | "user-agent")
        };
        let headers = self.headers.iter().filter(|(name, _)| telling(name.as_str()));
        let headers = headers.map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        let body = without_private_metadata(&self.body).unwrap_or_else(|| self.body.to_vec());
        DeadLetter { reason, headers, body }
    }
}

/// One delivery, and the request that waits for it.
pub(super) struct Request {
    pub(super) delivery: Delivery,
    pub(super) raw: RawMessage,
    pub(super) answer: oneshot::Sender<Result<Verdict, Unavailable>>,
}

impl Request {
    /// What it is about: the object where one is named, else the message itself.
    pub(super) fn subject(&self) -> &str {
        self.delivery.message.as_ref().map_or("", |message| message.entity_id.as_deref().unwrap_or(message.id.as_str()))
    }

    pub(super) fn make_dead_letter(&mut self, reason: String) {
        self.delivery.item = Item::DeadLetter(self.raw.dead_letter(reason));
    }

    /// Answers 503, so that the sender retries.
    pub(super) fn answer_unavailable(self) {
        let _ = self.answer.send(Err(Unavailable::Database));
    }

    pub(super) fn is_dead_letter(&self) -> bool {
        matches!(self.delivery.item, Item::DeadLetter(_))
    }
}

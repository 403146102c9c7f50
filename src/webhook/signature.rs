//! Who sent this? Checks the signature of one request, which must not be older than five minutes. Pure: headers, bytes and a time in.
//!
//! The signature covers `id.timestamp.body`, over the raw bytes (`standard-webhooks/standard-webhooks`,
//! `spec/standard-webhooks.md`). The `svix` crate checks it. This module adds a clock that tests
//! can set, several secrets (during a rotation both sign), and the rejection of ids that make the signed text ambiguous.
//!
//! The time is checked last: a request that fails only this check has a valid signature, so a clock is wrong or an old request is
//! being replayed.

use super::rejection::Rejection;
use crate::model::{MessageId, Millis};
use axum::http::HeaderMap;
use std::sync::Arc;
use svix::webhooks::{Webhook, WebhookError};
use tokio::sync::Notify;

/// Seconds that an attempt's time may differ from ours, either way, inclusive; Svix's own figure.
pub(crate) const TOLERANCE: u64 = 300;

/// The configured signing secrets. Cheap to clone; `Debug` shows none of them. Without any, no request can be verified.
#[derive(Clone, Debug, Default)]
pub struct Verifier {
    secrets: Arc<[Webhook]>,
    /// Woken by each request that was signed well.
    signed: Arc<Notify>,
}

/// Why a secret cannot be used. Never the secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSecret {
    #[error("is empty")]
    Empty,
    #[error(
        "must be a signing secret: copy the value that begins with whsec_ from the endpoint's page in the Clerk dashboard"
    )]
    NotASecret,
    #[error("is too short for a signing secret and could be guessed; copy the endpoint's own from the Clerk dashboard")]
    TooShort,
}

/// Fewer bytes than a key of 128 bits has; those of Svix have 24 and more.
fn is_short(secret: &str) -> bool {
    const BASE64_OF_16_BYTES: usize = 22;
    secret.strip_prefix("whsec_").unwrap_or(secret).trim_end_matches('=').len() < BASE64_OF_16_BYTES
}

impl Verifier {
    /// Takes secrets as they stand in the dashboard (`whsec_…`), one or several.
    ///
    /// # Errors
    /// The first value that is not a signing secret.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Result<Verifier, BadSecret> {
        let webhooks = secrets
            .into_iter()
            .map(|secret| match Webhook::new(secret.trim()) {
                Ok(_) if is_short(secret.trim()) => Err(BadSecret::TooShort),
                Ok(webhook) => Ok(webhook),
                Err(WebhookError::EmptySecret) => Err(BadSecret::Empty),
                Err(_) => Err(BadSecret::NotASecret),
            })
            .collect::<Result<Vec<_>, _>>()?;
        if webhooks.is_empty() {
            return Err(BadSecret::Empty);
        }
        Ok(Verifier { secrets: webhooks.into(), signed: Arc::default() })
    }

    /// Whether there is a secret to verify with.
    pub fn has_secret(&self) -> bool {
        !self.secrets.is_empty()
    }

    /// Checks one request at the time `now`: the message's id, and the time of the attempt.
    ///
    /// # Errors
    /// It cannot be proven to be Clerk's: answer 400 and store nothing; or there is no secret to prove it with: answer 503.
    pub fn verify(&self, headers: &HeaderMap, body: &[u8], now: Millis) -> Result<(MessageId, Millis), Rejection> {
        if !self.has_secret() {
            return Err(Rejection::NoSecret);
        }
        let head = Head::of(headers)?;
        self.check_signature(headers, body)?;
        head.check_time(now)?;
        self.signed.notify_one();
        let attempt = Millis::new(head.timestamp.saturating_mul(1000)).ok_or(Rejection::InvalidTimestamp)?;
        Ok((MessageId(head.id.to_owned()), attempt))
    }

    /// Completes when a request has come that was signed with one of these secrets, in time.
    pub async fn verified_one(&self) {
        self.signed.notified().await;
    }

    fn check_signature(&self, headers: &HeaderMap, body: &[u8]) -> Result<(), Rejection> {
        let mut rejection = Rejection::InvalidSignature;
        for webhook in self.secrets.iter() {
            match webhook.verify_ignoring_timestamp(body, headers) {
                Ok(()) => return Ok(()),
                Err(WebhookError::InvalidPayload) => rejection = Rejection::InvalidPayload,
                Err(_) => {}
            }
        }
        Err(rejection)
    }
}

/// What the headers say, before the body has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head<'a> {
    id: &'a str,
    /// Seconds; not less than 0.
    timestamp: i64,
}

impl<'a> Head<'a> {
    pub(super) fn of(headers: &'a HeaderMap) -> Result<Head<'a>, Rejection> {
        let id = header(headers, "id")?;
        let timestamp = header(headers, "timestamp")?;
        header(headers, "signature")?;
        // A dot in the id would let one signature stand for two requests: `a.1` + `2` + `x` and `a` + `1` + `2.x`.
        if id.len() > 256 || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-') {
            return Err(Rejection::MalformedHeader("id"));
        }
        match timestamp.parse() {
            Ok(timestamp @ 0..) => Ok(Head { id, timestamp }),
            _ => Err(Rejection::InvalidTimestamp),
        }
    }

    pub(super) fn check_time(self, now: Millis) -> Result<(), Rejection> {
        let (attempt, now) = (self.timestamp.unsigned_abs(), now.get().unsigned_abs() / 1000);
        match attempt.abs_diff(now) {
            ..=TOLERANCE => Ok(()),
            seconds if attempt < now => Err(Rejection::TimestampTooOld(seconds)),
            seconds => Err(Rejection::TimestampTooNew(seconds)),
        }
    }
}

/// The value of `svix-NAME`, else of `webhook-NAME`.
fn header<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, Rejection> {
    let value = headers.get(format!("svix-{name}")).or_else(|| headers.get(format!("webhook-{name}")));
    let value = value.ok_or(Rejection::MissingHeader(name))?.to_str().map_err(|_| Rejection::InvalidHeader(name))?;
    if value.is_empty() { Err(Rejection::MissingHeader(name)) } else { Ok(value) }
}

//! Who sent this? A [`Verified`] exists only for a body with a good signature, not older than five minutes.
//!
//! The signature covers `id.timestamp.body`, over the raw bytes (`standard-webhooks/standard-webhooks`,
//! `spec/standard-webhooks.md`). The `svix` crate checks it; around it stand three things that it leaves open: a clock that
//! can be stopped, several secrets (during a rotation both sign), and ids that could be read two ways.
//!
//! The time is judged last: who is refused for it has signed well, so one of the two clocks is wrong, or an old request is
//! sent again by somebody who has seen it.

use super::budget::{Budget, MakeWay, Origin, Reserved};
use super::receive::Receiver;
use crate::model::{MessageId, Millis};
use crate::telemetry::{REJECTED, Throttle};
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_ENCODING;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use std::sync::Arc;
use std::time::Duration;
use svix::webhooks::{Webhook, WebhookError};

/// Seconds that an attempt's time may differ from ours, either way, inclusive; Svix's own figure.
pub(crate) const TOLERANCE: u64 = 300;

/// The largest body that is read. Clerk's payloads reach some 350 kB; Svix itself takes no more than 2 MiB.
pub(crate) const BODY_LIMIT: usize = 2 * 1024 * 1024;

/// How long a sender may take for its body.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// The configured signing secrets. Cheap to clone; `Debug` shows none of them.
#[derive(Clone, Debug)]
pub struct Verifier(Arc<[Webhook]>);

/// Why a secret cannot be used. Never the secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSecret {
    #[error("is empty")]
    Empty,
    #[error(
        "is no signing secret: copy the value that begins with whsec_ from the endpoint's page in the Clerk dashboard"
    )]
    NotASecret,
    #[error(
        "is too short for a signing secret: anybody could guess it; copy the endpoint's own from the Clerk dashboard"
    )]
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
    /// The first of them that is none.
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
        if webhooks.is_empty() { Err(BadSecret::Empty) } else { Ok(Verifier(webhooks.into())) }
    }

    /// Checks one request at the time `now`: the message's id, and the time of the attempt.
    ///
    /// # Errors
    /// It cannot be proven to be Clerk's: answer 400 and store nothing.
    pub fn verify(&self, headers: &HeaderMap, body: &[u8], now: Millis) -> Result<(MessageId, Millis), Rejection> {
        let head = Head::of(headers)?;
        self.check_signature(headers, body)?;
        head.check_time(now)?;
        let attempt = Millis::new(head.timestamp.saturating_mul(1000)).ok_or(Rejection::InvalidTimestamp)?;
        Ok((MessageId(head.id.to_owned()), attempt))
    }

    fn check_signature(&self, headers: &HeaderMap, body: &[u8]) -> Result<(), Rejection> {
        let mut rejection = Rejection::InvalidSignature;
        for webhook in self.0.iter() {
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
struct Head<'a> {
    id: &'a str,
    /// Seconds; not less than 0.
    timestamp: i64,
}

impl<'a> Head<'a> {
    fn of(headers: &'a HeaderMap) -> Result<Head<'a>, Rejection> {
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

    fn check_time(self, now: Millis) -> Result<(), Rejection> {
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

/// Why a request was not taken for Clerk's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("the header svix-{0} is missing")]
    MissingHeader(&'static str),
    #[error("the header svix-{0} is not ASCII")]
    InvalidHeader(&'static str),
    #[error("the header svix-{0} has characters or a length that no message has")]
    MalformedHeader(&'static str),
    #[error("the timestamp is no number of seconds")]
    InvalidTimestamp,
    #[error("the signature is good, and {0} s old by this machine's clock")]
    TimestampTooOld(u64),
    #[error("the signature is good, and {0} s ahead of this machine's clock")]
    TimestampTooNew(u64),
    #[error("no signature fits any configured secret")]
    InvalidSignature,
    #[error("the body is not UTF-8")]
    InvalidPayload,
    #[error("the body is larger than 2 MiB")]
    TooLarge,
    #[error("the body did not come within 10 s")]
    TooSlow,
    #[error("the body broke off")]
    Incomplete,
    #[error("the body is compressed, and is not unpacked before its signature is checked")]
    Encoded,
    #[error("too many bodies are held in memory, or too many connections are open")]
    Busy,
}

impl Rejection {
    /// One word for answers, logs and counters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Rejection::MissingHeader(_) => "missing_header",
            Rejection::InvalidHeader(_) => "invalid_header",
            Rejection::MalformedHeader(_) => "malformed_header",
            Rejection::InvalidTimestamp => "invalid_timestamp",
            Rejection::TimestampTooOld(_) => "timestamp_too_old",
            Rejection::TimestampTooNew(_) => "timestamp_too_new",
            Rejection::InvalidSignature => "invalid_signature",
            Rejection::InvalidPayload => "invalid_payload",
            Rejection::TooLarge => "too_large",
            Rejection::TooSlow => "too_slow",
            Rejection::Incomplete => "incomplete",
            Rejection::Encoded => "content_encoding",
            Rejection::Busy => "busy",
        }
    }

    /// By how many seconds this machine's clock is ahead of whoever signed; less than 0: behind. `None`: refused for
    /// another reason.
    fn clock_ahead(self) -> Option<i64> {
        match self {
            Rejection::TimestampTooOld(seconds) => i64::try_from(seconds).ok(),
            Rejection::TimestampTooNew(seconds) => i64::try_from(seconds).ok().map(|seconds| -seconds),
            _ => None,
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Rejection::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Rejection::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Rejection::Encoded => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Rejection::Busy => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        match self {
            Rejection::Busy => super::receive::try_again(self.as_str()),
            _ => super::receive::refusal(self.status(), self.as_str()),
        }
    }
}

/// A request that Clerk's Svix signed.
#[derive(Debug)]
pub struct Verified {
    pub message_id: MessageId,
    /// When this attempt was made. It orders nothing: a retry of an old event carries a new one.
    pub attempted_at: Millis,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The body's share of the memory for all of them.
    pub reserved: Reserved,
}

impl FromRequest<Receiver> for Verified {
    type Rejection = Rejection;

    async fn from_request(request: Request, receiver: &Receiver) -> Result<Verified, Rejection> {
        static WARNED: Throttle = Throttle::new();
        let (parts, body) = request.into_parts();
        let read = read(&parts.headers, body, receiver.budget(), crate::clock::now()).await;
        let verified = read.and_then(|(body, reserved)| {
            let (message_id, attempted_at) = receiver.verifier().verify(&parts.headers, &body, crate::clock::now())?;
            Ok(Verified { message_id, attempted_at, headers: parts.headers, body, reserved })
        });
        match &verified {
            Ok(_) => receiver.note_signer(None),
            Err(rejection) => {
                if let Some(ahead) = rejection.clock_ahead() {
                    receiver.note_signer(Some(ahead));
                }
            }
        }
        verified.inspect_err(|rejection| {
            let reason = rejection.as_str();
            metrics::counter!(REJECTED, "reason" => reason).increment(1);
            if let Some(held_back) = WARNED.pass() {
                tracing::warn!(reason, held_back, "refused a request: {rejection}");
            }
        })
    }
}

/// The whole body, within the limits of size, time and memory. It is held as it comes: a length that is announced and never
/// sent takes no room. It is read to the end even where it is refused, as an answer in the middle of a body may be lost with its
/// connection; but nothing of it is held where the headers alone say no.
async fn read(
    headers: &HeaderMap,
    mut body: Body,
    budget: &Budget,
    now: Millis,
) -> Result<(Bytes, Reserved), Rejection> {
    if headers.get_all(CONTENT_ENCODING).iter().any(is_encoded) {
        return Err(Rejection::Encoded);
    }
    if body.size_hint().lower() > BODY_LIMIT as u64 {
        return Err(Rejection::TooLarge);
    }
    let head = Head::of(headers);
    // One that is out of time is read all the same: a good signature says that a clock is wrong.
    let is_timely = head.is_ok_and(|head| head.check_time(now).is_ok());
    let origin = if is_timely { Origin::Plausible } else { Origin::Stranger };
    let mut share = budget.share(body.size_hint().upper(), origin);
    let reading = async {
        let (mut length, mut kept) = (0, head.map(|_| BytesMut::new()));
        loop {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                told = share.makes_way() => {
                    kept = kept.and(Err(Rejection::Busy));
                    match told {
                        MakeWay::Forget => continue,
                        MakeWay::End => break,
                    }
                }
            };
            let Some(frame) = frame else { break };
            let Ok(data) = frame.map_err(|_| Rejection::Incomplete)?.into_data() else { continue };
            length += data.len();
            if length > BODY_LIMIT {
                return Err(Rejection::TooLarge);
            }
            kept = kept.and_then(|mut bytes| {
                share.take(data.len()).map_err(|_| Rejection::Busy)?;
                bytes.extend_from_slice(&data);
                Ok(bytes)
            });
        }
        kept
    };
    let bytes = tokio::time::timeout(BODY_DEADLINE, reading).await.unwrap_or(Err(Rejection::TooSlow))?;
    let reserved = share.arrived().map_err(|_| Rejection::Busy)?;
    Ok((bytes.freeze(), reserved))
}

/// Whether a body comes in another form than its own. `identity`, in any case, and nothing at all say that it does not.
fn is_encoded(encoding: &HeaderValue) -> bool {
    let codings = encoding.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    codings.into_iter().any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

//! A [`Verified`] exists only for a whole body with a good signature, read within the limits of size, time and memory.

use super::body_memory::{BodyMemory, Eviction, Origin, Reserved};
use super::receive::Receiver;
use super::rejection::Rejection;
use super::signature::Head;
use crate::model::{MessageId, Millis};
use crate::telemetry::{REJECTED, Throttle};
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_ENCODING;
use axum::http::{HeaderMap, HeaderValue};
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use std::time::Duration;

/// The largest body that is read. Clerk's payloads reach some 350 kB; Svix itself takes no more than 2 MiB.
pub(crate) const BODY_LIMIT: usize = 2 * 1024 * 1024;

/// How long a sender may take for its body.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

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
            Ok(_) => receiver.record_clock_skew(None),
            Err(rejection) => {
                if let Some(ahead) = rejection.clock_ahead() {
                    receiver.record_clock_skew(Some(ahead));
                }
            }
        }
        verified.inspect_err(|rejection| {
            let reason = rejection.as_str();
            metrics::counter!(REJECTED, "reason" => reason).increment(1);
            if let Some(suppressed) = WARNED.should_log() {
                tracing::warn!(reason, suppressed, "refused a request: {rejection}");
            }
        })
    }
}

/// Reads the whole body, within the limits of size, time and memory. Memory is reserved as bytes arrive, not for the announced length. A
/// rejected body is still read to its end, because a response sent in the middle of a body may be lost with the connection; but it is
/// not kept if the headers already rule it out.
async fn read(
    headers: &HeaderMap,
    mut body: Body,
    budget: &BodyMemory,
    now: Millis,
) -> Result<(Bytes, Reserved), Rejection> {
    if headers.get_all(CONTENT_ENCODING).iter().any(is_encoded) {
        return Err(Rejection::Encoded);
    }
    if body.size_hint().lower() > BODY_LIMIT as u64 {
        return Err(Rejection::TooLarge);
    }
    let head = Head::of(headers);
    // A body with a wrong timestamp is read too: if its signature is valid, a clock is wrong.
    let is_timely = head.is_ok_and(|head| head.check_time(now).is_ok());
    let origin = if is_timely { Origin::Plausible } else { Origin::Stranger };
    let mut share = budget.share(body.size_hint().upper(), origin);
    let reading = async {
        let (mut length, mut kept) = (0, head.map(|_| BytesMut::new()));
        loop {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                eviction = share.evicted() => {
                    kept = kept.and(Err(Rejection::Busy));
                    match eviction {
                        Eviction::Memory => continue,
                        Eviction::Connection => break,
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

/// Whether the header names a content encoding. `identity` (in any case) and an empty value do not.
fn is_encoded(encoding: &HeaderValue) -> bool {
    let codings = encoding.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    codings.into_iter().any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

//! The response to a delivery. No other module chooses its status, and 2xx means that it is durable.

use super::rejection::Rejection;
use super::request::Unavailable;
use crate::model::{Outcome, Verdict};
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// The header with the outcome of a delivery, on every 2xx.
pub(crate) const OUTCOME_HEADER: &str = "clerk-sync-outcome";

/// The value of Retry-After. Svix uses its own schedule, with 5 s before the first retry.
const RETRY_AFTER_S: u64 = 5;

/// The answer to a verified delivery.
pub(super) fn respond(result: Result<Verdict, Unavailable>) -> Response {
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
        Err(reason) => unavailable(reason.as_str()),
    }
}

/// A response that makes the sender retry.
fn unavailable(error: &str) -> Response {
    let mut response = rejected(StatusCode::SERVICE_UNAVAILABLE, error);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
    response
}

/// A rejection, with one word for the reason.
fn rejected(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let status = match self {
            Rejection::Busy | Rejection::NoSecret => return unavailable(self.as_str()),
            Rejection::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Rejection::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Rejection::Encoded => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Rejection::MissingHeader(_)
            | Rejection::InvalidHeader(_)
            | Rejection::MalformedHeader(_)
            | Rejection::InvalidTimestamp
            | Rejection::TimestampTooOld(_)
            | Rejection::TimestampTooNew(_)
            | Rejection::InvalidSignature
            | Rejection::InvalidPayload
            | Rejection::Incomplete => StatusCode::BAD_REQUEST,
        };
        rejected(status, self.as_str())
    }
}

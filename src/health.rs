//! What a platform asks: is the process alive, and can it do its work?
//!
//! Fly routes on `/livez` alone. Were it to route on `/readyz`, it would answer Svix itself while the database is away, and
//! an event could be lost to an answer that is not ours.

use crate::model::InstanceCheck;
use crate::reconcile::schedule::Foreign;
use crate::webhook::receive::Receiver;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// How long a webhook that was dated ahead of the database's clock is a reason not to be ready.
const EVENT_AHEAD: std::time::Duration = std::time::Duration::from_secs(600);

/// `GET /livez`: the process answers.
pub async fn live() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: 200 if deliveries can be verified and written, else 503 with every reason. Whatever kept one from being written is a reason until
/// a write succeeds.
#[expect(clippy::unused_async, reason = "a handler is async")]
pub async fn ready(State(receiver): State<Receiver>, check: InstanceCheck, foreign: Foreign) -> Response {
    let health = receiver.writer().health();
    let mut reasons = Vec::new();
    if let Some(fault) = health.fault {
        // Without the server's code: anybody may ask here. The status page and the log have it.
        reasons.push(json!({ "error": "database_unavailable", "detail": fault.summary }));
    }
    if !receiver.has_secret() {
        let detail = "CLERK_WEBHOOK_SIGNING_SECRET is not set: every webhook gets a 503 response";
        reasons.push(json!({ "error": "no_signing_secret", "detail": detail }));
    }
    if let (InstanceCheck::Pinned(Some(configured)), Some(pinned)) = (&check, &health.pinned)
        && configured != pinned
    {
        reasons.push(
            json!({ "error": "instance_mismatch", "pinned_instance": pinned, "configured_instance": configured }),
        );
    }
    if let Some(foreign) = health.foreign {
        reasons.push(
            json!({ "error": "foreign_instance", "pinned_instance": health.pinned, "webhook_instance": foreign }),
        );
    }
    if let Some((pinned, of_key)) = foreign {
        reasons.push(
            json!({ "error": "secret_key_of_other_instance", "pinned_instance": pinned, "key_instance": of_key }),
        );
    }
    if health.event_ahead.is_some_and(|at| at.elapsed() < EVENT_AHEAD) {
        reasons.push(json!({ "error": "clock_differs", "detail": "webhooks are dated ahead of the database's clock" }));
    }
    if let Some(seconds) = receiver.confirmed_clock_skew() {
        reasons.push(json!({ "error": "clock_differs", "seconds_ahead": seconds }));
    }
    if reasons.is_empty() {
        (StatusCode::OK, Json(json!({ "ready": true }))).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "reasons": reasons }))).into_response()
    }
}

//! The parts of `serve`, put together: listener, routes, writer, and stopping in order.

use crate::clerk::client::Client;
use crate::config::{Config, Reconcile};
use crate::door::{self, Limits};
use crate::health;
use crate::model::InstanceCheck;
use crate::os;
use crate::reconcile::schedule::{Foreign, Schedule};
use crate::reconcile::{PassLimits, Reconciler};
use crate::store::Database;
use crate::telemetry::Throttle;
use crate::thread::Ended;
use crate::upkeep::Upkeep;
use crate::webhook::queue::WriteQueue;
use crate::webhook::receive::{self, Receiver};
use anyhow::Context as _;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// How long a sender may take for a request's head, and how long a connection may lie idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// How old a connection becomes. Clients that balance their load see new replicas no later than this.
const LIFE: Duration = Duration::from_secs(600);
/// Number of connections. Svix opens some 500 at most.
const CONNECTIONS: u64 = 2_048;
/// Open files that are kept for others than the senders of webhooks: the database and Clerk's API (some 30), the private
/// listener (64), connections that are about to end, the runtime.
const RESERVED_FILES: u64 = 192;
/// How long stopping may take in all: requests under way are answered first, then the writer drains its queue. A platform
/// that is asked for 10 s gets an end before it makes one.
const SHUTDOWN: Duration = Duration::from_millis(9_500);

/// The one path that webhooks are taken on.
pub(crate) const WEBHOOKS: &str = "/webhooks/clerk";

/// Listens where the configuration says.
///
/// # Errors
/// The address is not one of this machine, or is in use.
pub fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    door::bind(config.listen_addr).with_context(|| format!("cannot listen on {}", config.listen_addr))
}

/// Serves on `listener` until `shutdown` completes, then answers what is under way and ends.
///
/// # Errors
/// The system gives no thread to the writer.
pub async fn serve(config: Config, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let writer = WriteQueue::start(config.database.clone(), config.instance.clone(), config.reconcile.is_some())?;
    serve_with(writer, config, listener, shutdown).await;
    Ok(())
}

/// The same with a writer that was started before, for somebody who watches its health.
pub async fn serve_with(
    (writer, writing): (WriteQueue, Ended),
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) {
    if config.instance == InstanceCheck::Off {
        tracing::warn!("CLERK_INSTANCE_ID is *: webhooks of any Clerk instance are applied");
    }
    let check_instance = config.instance != InstanceCheck::Off;
    let upkeep = Upkeep::start(config.database.clone(), check_instance, config.retention, writer.last_seen());
    let schedule = match config.reconcile {
        Some(reconcile) => start(reconcile, config.database, &config.instance, &writer),
        None => {
            tracing::warn!("CLERK_SECRET_KEY is not set: reconcile is disabled, so missed webhooks are never repaired");
            None
        }
    };
    let foreign = schedule.as_ref().map(Schedule::foreign);
    let receiver = Receiver::new(config.verifier, writer);
    let budget = receiver.budget().clone();
    let router = router(receiver, config.instance, foreign);
    let open = door::serve(listener, router, limits(os::file_limit()), move || budget.evict_stalled(), shutdown).await;
    drop(schedule);
    drop(upkeep);
    let end = Instant::now() + SHUTDOWN;
    tracing::info!("stopping: finishing requests in flight");
    if timeout_at(end, open.shutdown()).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
    // With the last connection goes the last handle to the writer: the task drains its queue and ends.
    if timeout_at(end, writing).await.is_err() {
        tracing::error!("the writer did not stop in time");
    }
}

/// Passes by the clock, and as events ask for them.
fn start(reconcile: Reconcile, database: Database, check: &InstanceCheck, writer: &WriteQueue) -> Option<Schedule> {
    let clerk = match Client::new(reconcile.clerk) {
        Ok(clerk) => Arc::new(clerk),
        Err(error) => {
            tracing::error!(%error, "reconcile is disabled: TLS cannot be set up");
            return None;
        }
    };
    let reconciler = Reconciler { clerk, database, instance: check.expected().cloned(), times: PassLimits::default() };
    Some(Schedule::start(reconciler, reconcile.timetable, writer.pending(), writer.last_seen()))
}

/// As many connections as the limit of open files leaves room for.
fn limits(files: Option<u64>) -> Limits {
    let places = files.map_or(CONNECTIONS, |files| (files - RESERVED_FILES.min(files / 2)).min(CONNECTIONS));
    if places < CONNECTIONS {
        tracing::warn!(places, ?files, "fewer connections than {CONNECTIONS} at once: raise the limit of open files");
    }
    Limits { connections: usize::try_from(places).unwrap_or(usize::MAX).max(1), head: HEAD_DEADLINE, life: LIFE }
}

fn router(receiver: Receiver, check: InstanceCheck, foreign: Option<watch::Receiver<Foreign>>) -> Router {
    let ready = move |state| {
        let foreign = foreign.as_ref().and_then(|foreign| foreign.borrow().clone());
        health::ready(state, check.clone(), foreign)
    };
    Router::new()
        .route(WEBHOOKS, post(receive::receive))
        .route("/readyz", get(ready))
        .route("/livez", get(health::live))
        .fallback(not_found)
        .with_state(receiver)
}

/// A webhook's endpoint with a wrong path is a common mistake, and would otherwise be seen at the sender's alone.
async fn not_found(request: Request) -> Response {
    static LOGGED: Throttle = Throttle::new();
    if is_lost_webhook(&request)
        && let Some(suppressed) = LOGGED.should_log()
    {
        let path: String = request.uri().path().chars().take(80).collect();
        tracing::warn!(
            ?path,
            suppressed,
            "a webhook arrived at a wrong path: the endpoint's URL must end with {WEBHOOKS}"
        );
    }
    (StatusCode::NOT_FOUND, Json(json!({ "error": "not_found", "webhooks": WEBHOOKS }))).into_response()
}

/// Whether somebody wanted to deliver a webhook: by its headers, or by a path that people try.
fn is_lost_webhook(request: &Request) -> bool {
    let is_signed = request.headers().contains_key("svix-id") || request.headers().contains_key("webhook-id");
    let path = request.uri().path();
    request.method() == Method::POST && (is_signed || path == "/" || path.contains("webhook"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_left_for_the_database_and_the_private_listener() {
        let places = |files| limits(files).connections;
        assert_eq!((places(None), places(Some(4_096)), places(Some(2_240))), (2_048, 2_048, 2_048));
        assert_eq!((places(Some(1_024)), places(Some(256)), places(Some(0))), (832, 128, 1));
    }
}

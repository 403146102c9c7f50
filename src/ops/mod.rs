//! What operators ask, on a listener of its own that the internet does not reach: `GET /metrics`, the status page on `/`, and
//! the same as `/status.json`.
//!
//! | file | what |
//! | --- | --- |
//! | [`verdict`] | is the mirror in step? One answer (pure) |
//! | `page`, `chart` | the page (pure) |
//! | `measure` | what this process uses, and what the tables say, as metrics |

mod chart;
mod measure;
mod page;
pub mod verdict;

use crate::store::Database;
use crate::store::status::Status;
use crate::telemetry;
use crate::webhook::lane::{Fault, Health};
use anyhow::Context as _;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use secrecy::{ExposeSecret as _, SecretString};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use verdict::Verdict;

/// How long an answer of the database is shown, however many ask.
const FRESH: Duration = Duration::from_secs(10);

/// Makes the process count, from now on.
///
/// # Errors
/// It counts already.
pub fn start_counting() -> anyhow::Result<PrometheusHandle> {
    let mut builder = PrometheusBuilder::new();
    for (name, buckets) in telemetry::HISTOGRAMS {
        builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)?;
    }
    let handle = builder.install_recorder().context("cannot count")?;
    telemetry::describe();
    Ok(handle)
}

/// What the listener needs.
pub struct Ops {
    pub counts: PrometheusHandle,
    pub database: Database,
    /// Who asks must show it, if there is one.
    pub token: Option<SecretString>,
    /// Whether this process can write deliveries, if it receives any.
    pub health: Option<watch::Receiver<Health>>,
}

/// What is shown, and when it was asked for.
type Shown = Option<(Instant, Result<Arc<Status>, String>)>;

struct Shared {
    ops: Ops,
    /// Held while the database is asked, so that many who ask make one question.
    shown: Mutex<Shown>,
}

/// Serves until the process ends, and tells where.
///
/// # Errors
/// The address cannot be listened on.
pub async fn listen(address: SocketAddr, ops: Ops) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    if !address.ip().is_loopback() && ops.token.is_none() {
        tracing::warn!(
            %address,
            "metrics and status page are served beyond this machine: set OPS_TOKEN, or let no route from the internet lead there"
        );
    }
    let address = listener.local_addr()?;
    tracing::info!(%address, "metrics and status page");
    let upkeep = ops.counts.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            upkeep.run_upkeep();
        }
    });
    let router = router(ops);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the private listener ended");
        }
    });
    Ok(address)
}

/// The routes of the private listener.
pub fn router(ops: Ops) -> Router {
    let shared = Arc::new(Shared { ops, shown: Mutex::new(None) });
    Router::new()
        .route("/", get(status_page))
        .route("/status", get(status_page))
        .route("/status.json", get(status_json))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), authorize))
        .with_state(shared)
}

impl Shared {
    async fn status(&self) -> Result<Arc<Status>, String> {
        let mut shown = self.shown.lock().await;
        if let Some((at, status)) = &*shown
            && at.elapsed() < FRESH
        {
            return status.clone();
        }
        let status = self.ops.database.status().await.map(Arc::new).map_err(|error| error.to_string());
        *shown = Some((Instant::now(), status.clone()));
        status
    }

    /// Why this process cannot write deliveries, if it cannot.
    fn fault(&self) -> Option<Fault> {
        self.ops.health.as_ref().and_then(|health| health.borrow().fault.clone())
    }
}

/// A program shows the token as a bearer's, a browser as a password.
async fn authorize(State(shared): State<Arc<Shared>>, headers: HeaderMap, request: Request, next: Next) -> Response {
    let Some(token) = &shared.ops.token else { return next.run(request).await };
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let token = token.expose_secret();
    // A browser's user name may be anything; ours is asked for without one.
    let as_password = format!("Basic {}", BASE64.encode(format!(":{token}")));
    if is_same(shown, &format!("Bearer {token}")) | is_same(shown, &as_password) {
        return next.run(request).await;
    }
    let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"clerk-sync: no user name, OPS_TOKEN as password\"")];
    (StatusCode::UNAUTHORIZED, challenge, "OPS_TOKEN is needed\n").into_response()
}

/// In a time that does not tell where they differ.
fn is_same(a: &str, b: &str) -> bool {
    use sha2::{Digest as _, Sha256};
    let (a, b) = (Sha256::digest(a), Sha256::digest(b));
    a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

async fn status_page(State(shared): State<Arc<Shared>>) -> Response {
    let (status, fault) = (shared.status().await, shared.fault());
    let shown = status.as_deref().map_err(String::as_str);
    let headers = [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
    ];
    (headers, Html(page::page(shown, fault.as_ref(), env!("CARGO_PKG_VERSION")))).into_response()
}

async fn status_json(State(shared): State<Arc<Shared>>) -> Response {
    match shared.status().await {
        Ok(status) => {
            let verdict = Verdict::of(&status).with_fault(shared.fault().as_ref());
            Json(serde_json::json!({ "verdict": verdict, "status": *status })).into_response()
        }
        Err(error) => {
            let body = serde_json::json!({ "verdict": Verdict::unknown(&error), "status": null });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

/// What was counted, what the process uses, and what the tables tell.
async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    measure::process();
    measure::tables(shared.status().await.ok().as_deref(), shared.fault().is_none());
    let text = shared.ops.counts.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_equal_tokens_are_the_same() {
        assert!(is_same("a", "a") && !is_same("a", "b") && !is_same("", "a"));
    }
}

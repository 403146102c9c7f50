//! What operators ask, on a listener of its own that the internet does not reach: `GET /metrics`, the status page on `/`, and
//! the same as `/status.json`.
//!
//! | file | what |
//! | --- | --- |
//! | [`verdict`] | is the mirror in sync? One answer (pure) |
//! | `page`, `chart` | the page (pure) |
//! | `measure` | what this process uses, and what the tables say, as metrics |
//! | `guard` | who may ask: the token, or a host name that no website can have; headers that every answer has |

mod chart;
mod gauges;
mod guard;
mod page;
pub mod verdict;

use crate::door::{self, Limits};
use crate::store::status::Status;
use crate::store::{Database, Error};
use crate::telemetry;
use crate::webhook::health::{Fault, Health};
use anyhow::Context as _;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use secrecy::SecretString;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use verdict::{Setup, Verdict};

/// How long an answer of the database is shown, however many ask.
const FRESH: Duration = Duration::from_secs(10);
/// How long the database may take for it.
const ANSWER: Duration = Duration::from_secs(15);
/// Operators are few; whoever opens more connections than this keeps no file from the database and the webhooks.
const LIMITS: Limits = Limits { connections: 64, head: Duration::from_secs(10), life: Duration::from_secs(600) };

/// Makes the process count, from now on.
///
/// # Errors
/// It counts already.
pub fn install_metrics() -> anyhow::Result<PrometheusHandle> {
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
    /// Required of those who ask, if there is one.
    pub token: Option<SecretString>,
    /// Whether this process can write deliveries, if it receives any.
    pub health: Option<watch::Receiver<Health>>,
    /// `/metrics` is served without the token, for a Prometheus that cannot show one, such as Fly's.
    pub open_metrics: bool,
    /// What the environment lacks, for the page.
    pub setup: Setup,
}

/// What is shown, and when it was asked for.
type Shown = Option<(Instant, Result<Arc<Status>, Arc<Error>>)>;

struct Shared {
    ops: Ops,
    /// Held while the database is asked, so that many who ask make one question.
    shown: Mutex<Shown>,
    /// What the tables said when they could last be asked.
    last: Mutex<Option<Arc<Status>>>,
}

/// Serves until the process ends, and tells where.
///
/// # Errors
/// The address cannot be listened on.
pub fn listen(address: SocketAddr, ops: Ops) -> anyhow::Result<SocketAddr> {
    let listener = door::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    if !address.ip().is_loopback() && ops.token.is_none() {
        tracing::warn!(
            %address,
            "metrics and status page can be reached from other machines: set OPS_TOKEN, or make sure that they cannot be reached from the internet"
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
    tokio::spawn(door::serve(listener, router(ops), LIMITS, || (), std::future::pending()));
    Ok(address)
}

/// The routes of the private listener.
pub fn router(ops: Ops) -> Router {
    let shared = Arc::new(Shared { ops, shown: Mutex::new(None), last: Mutex::new(None) });
    Router::new()
        .route("/", get(status_page))
        .route("/status", get(status_page))
        .route("/status.json", get(status_json))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), guard::authorize))
        .layer(middleware::map_response(guard::protect))
        .with_state(shared)
}

impl Shared {
    async fn status(&self) -> Result<Arc<Status>, Arc<Error>> {
        let mut shown = self.shown.lock().await;
        if let Some((at, status)) = &*shown
            && at.elapsed() < FRESH
        {
            return status.clone();
        }
        let status = match timeout(ANSWER, self.ops.database.status()).await {
            Ok(status) => status.map(Arc::new).map_err(Arc::new),
            Err(_) => Err(Arc::new(Error::Silent(ANSWER))),
        };
        if let Ok(status) = &status {
            *self.last.lock().await = Some(Arc::clone(status));
        }
        *shown = Some((Instant::now(), status.clone()));
        status
    }

    fn verdict(&self, status: &Result<Arc<Status>, Arc<Error>>) -> Verdict {
        match status {
            Ok(status) => Verdict::of(status, &self.ops.setup).with_fault(self.fault().as_ref()),
            Err(error) => Verdict::unknown(error).since(self.fault().as_ref()),
        }
    }

    /// Why this process cannot write deliveries, if it cannot.
    fn fault(&self) -> Option<Fault> {
        self.ops.health.as_ref().and_then(|health| health.borrow().fault.clone())
    }
}

async fn status_page(State(shared): State<Arc<Shared>>) -> Response {
    let status = shared.status().await;
    let verdict = shared.verdict(&status);
    let is_earlier = status.is_err();
    let shown = match status {
        Ok(status) => Some(status),
        Err(_) => shared.last.lock().await.clone(),
    };
    let answers = gauges::answers(&shared.ops.counts.render());
    let version = env!("CARGO_PKG_VERSION");
    let view = page::View { verdict: &verdict, status: shown.as_deref(), is_earlier, answers: &answers, version };
    Html(page::page(&view)).into_response()
}

async fn status_json(State(shared): State<Arc<Shared>>) -> Response {
    let status = shared.status().await;
    let verdict = shared.verdict(&status);
    let code = if status.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(serde_json::json!({ "verdict": verdict, "status": status.ok().as_deref() }))).into_response()
}

/// What was counted, what the process uses, and what the tables tell.
async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    gauges::process();
    gauges::tables(shared.status().await.ok().as_deref(), shared.fault().is_none());
    let text = shared.ops.counts.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

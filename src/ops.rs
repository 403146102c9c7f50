//! What operators ask, on a listener of its own that the internet does not reach: `GET /metrics`.

use anyhow::Context as _;
use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;

/// Makes the process count, from now on.
///
/// # Errors
/// It counts already.
pub fn start_counting() -> anyhow::Result<PrometheusHandle> {
    PrometheusBuilder::new().install_recorder().context("cannot count")
}

/// Serves the counts until the process ends.
///
/// # Errors
/// The address cannot be listened on.
pub async fn listen(address: SocketAddr, counts: PrometheusHandle) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "the metrics are served beyond this machine: let no route from the internet lead there");
    }
    let upkeep = counts.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            upkeep.run_upkeep();
        }
    });
    let router = Router::new().route("/metrics", get(move || async move { counts.render() }));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the private listener ended");
        }
    });
    Ok(())
}

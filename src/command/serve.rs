//! `clerk-sync serve`: the service, until it is asked to stop.

use crate::app;
use crate::config::{self, Environment};
use crate::door;
use crate::failpoint;
use crate::ops;
use crate::os;
use crate::store;
use crate::webhook::writer::Writer;
use anyhow::Context as _;
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// The configuration is wrong, an address cannot be listened on, or the database is behind a pooler that we must not use.
pub(super) async fn serve(environment: Environment) -> anyhow::Result<ExitCode> {
    failpoint::check()?;
    let config = environment.check().map_err(config::Mistakes)?;
    os::raise_file_limit();
    let listener =
        door::bind(config.listen_addr).with_context(|| format!("cannot listen on {}", config.listen_addr))?;
    tracing::info!(address = %listener.local_addr()?, version = env!("CARGO_PKG_VERSION"), "listening");
    let counts = ops::start_counting()?;
    let writer = Writer::start(config.database.clone(), config.instance.clone(), config.reconcile.is_some());
    let writer = writer.context("cannot start the writer")?;
    let health = Some(writer.0.watch());
    let (database, token) = (config.database.clone(), config.ops_token.clone());
    let ops = ops::Ops { counts, database, token, open_metrics: config.ops_open_metrics, health };
    if let Err(error) = ops::listen(config.ops_addr.unwrap_or(config::DEFAULT_OPS_ADDR), ops) {
        if config.ops_addr.is_some() {
            return Err(error.context("OPS_ADDR"));
        }
        tracing::warn!("no metrics and no status page are served: {error:#}; set OPS_ADDR to another address");
    }
    let (database, stop) = (config.database.clone(), os::stop_signal()?);
    let mut refused = false;
    let shutdown = async {
        tokio::select! {
            () = stop => {}
            () = Box::pin(is_refused(database)) => refused = true,
        }
    };
    app::serve_with(writer, config, listener, shutdown).await;
    if refused {
        return Err(store::Error::SharedConnections.into());
    }
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Completes when the database turns out to be behind a pooler that we must not use. One that is away is asked again.
async fn is_refused(database: store::Database) {
    loop {
        match database.prove().await {
            Err(store::Error::SharedConnections) => return,
            Ok(()) => std::future::pending().await,
            Err(_) => tokio::time::sleep(std::time::Duration::from_secs(5)).await,
        }
    }
}

//! `clerk-sync serve`: the service, until it is asked to stop.

use crate::app;
use crate::config::{self, Config, Environment};
use crate::failpoint;
use crate::ops;
use crate::ops::verdict::Setup;
use crate::os;
use crate::store;
use crate::webhook::queue::WriteQueue;
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
    let listener = app::listen(&config)?;
    // Before the line that says we are here: from then on a signal ends us in order.
    let stop = os::stop_signal()?;
    tracing::info!(address = %listener.local_addr()?, version = env!("CARGO_PKG_VERSION"), "listening");
    if !config.verifier.has_secret() {
        tracing::warn!(
            "CLERK_WEBHOOK_SIGNING_SECRET is not set: every webhook gets a 503 response until it is (Clerk dashboard → Webhooks → the endpoint)"
        );
    }
    let counts = ops::install_metrics()?;
    let writer = WriteQueue::start(config.database.clone(), config.instance.clone(), config.reconcile.is_some());
    let writer = writer.context("cannot start the writer")?;
    let health = Some(writer.0.watch());
    let (database, token) = (config.database.clone(), config.ops_token.clone());
    let setup = setup(&config);
    let ops = ops::Ops { counts, database, token, open_metrics: config.ops_open_metrics, health, setup };
    if let Err(error) = ops::listen(config.ops_addr.unwrap_or(config::DEFAULT_OPS_ADDR), ops) {
        if config.ops_addr.is_some() {
            return Err(error.context("OPS_ADDR"));
        }
        tracing::warn!("no metrics and no status page are served: {error:#}; set OPS_ADDR to another address");
    }
    let database = config.database.clone();
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

/// What somebody who sets it up must know, for the status page.
fn setup(config: &Config) -> Setup {
    let lacks = [
        (!config.verifier.has_secret(), "CLERK_WEBHOOK_SIGNING_SECRET"),
        (config.reconcile.is_none(), "CLERK_SECRET_KEY"),
    ];
    let missing = lacks.into_iter().filter(|(is_missing, _)| *is_missing).map(|(_, name)| name).collect();
    // Fly.io sets it, and gives each application this name.
    let webhook_url = std::env::var("FLY_APP_NAME").ok().map(|app| format!("https://{app}.fly.dev{}", app::WEBHOOKS));
    Setup { missing, webhook_url }
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

//! The product's receiver in this process, as `serve` runs it, on a port of its own.

use crate::worker::SECRET;
use clerk_sync::app;
use clerk_sync::config::{Config, Reconcile};
use clerk_sync::model::InstanceCheck;
use clerk_sync::store::Database;
use clerk_sync::upkeep::retention::Retention;
use clerk_sync::webhook::signature::Verifier;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// A running receiver, asked to stop when it is dropped.
#[derive(Debug)]
pub struct Server {
    pub url: String,
    stop: Option<oneshot::Sender<()>>,
    running: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    /// One that makes no passes.
    ///
    /// # Panics
    /// No port is free.
    pub async fn start(database: Database, instance: InstanceCheck) -> Server {
        Server::with(database, instance, None).await
    }

    /// One that makes passes as well, for whichever instance comes first.
    ///
    /// # Panics
    /// No port is free.
    pub async fn reconciling(database: Database, reconcile: Reconcile) -> Server {
        Server::with(database, InstanceCheck::Pinned(None), Some(reconcile)).await
    }

    pub(crate) async fn with(database: Database, instance: InstanceCheck, reconcile: Option<Reconcile>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let listen_addr = listener.local_addr().expect("an address");
        let config = Config {
            database,
            verifier: Verifier::new([SECRET]).expect("a secret of ours"),
            instance,
            listen_addr,
            ops_addr: None,
            ops_token: None,
            ops_open_metrics: false,
            reconcile,
            retention: Retention::default(),
        };
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(app::serve(config, listener, async move {
            let _ = stopped.await;
        }));
        Server { url: format!("http://{listen_addr}"), stop: Some(stop), running }
    }

    pub fn webhook_url(&self) -> String {
        format!("{}/webhooks/clerk", self.url)
    }

    /// Stops as SIGTERM would, and waits for the end.
    ///
    /// # Panics
    /// It did not end well.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.running.await.expect("serve ends without a panic").expect("it had what it needs");
    }

    /// The status and body of a GET.
    ///
    /// # Panics
    /// Nobody answers.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        get(&format!("{}{path}", self.url)).await
    }
}

/// The status and body of a GET.
pub(crate) async fn get(url: &str) -> (u16, Value) {
    let response = reqwest::get(url).await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.text().await.expect("a body");
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

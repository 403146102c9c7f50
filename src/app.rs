//! The parts of `serve`, put together: listener, routes, writer, and stopping in order.

use crate::clerk::client::Client;
use crate::config::{Config, Reconcile};
use crate::health;
use crate::reconcile::schedule::{Foreign, Schedule};
use crate::reconcile::{Reconciler, Times};
use crate::store::Database;
use crate::thread::Ended;
use crate::upkeep::Upkeep;
use crate::webhook::lane::InstanceCheck;
use crate::webhook::receive::{self, Receiver};
use crate::webhook::writer::Writer;
use axum::Router;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use axum::middleware::map_response_with_state;
use axum::response::Response;
use axum::routing::{get, post};
use futures_util::FutureExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout_at};

/// How long a sender may take for a request's head, and how long a connection may lie idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// How long what a client does not take may wait to be sent. (Elsewhere than on Linux the system decides.)
#[cfg(target_os = "linux")]
const UNREAD: Duration = Duration::from_secs(10);
/// Of one connection, for its request's head and what of a body has arrived. A head that fits gets an answer of ours.
const BUFFER: usize = 80 * 1024;
/// Connections at once. Svix opens some 500 at most; the rest wait to be accepted.
const CONNECTIONS: usize = 2_048;
/// How long stopping may take in all: requests under way are answered first, then the writer drains its queue. A platform
/// that is asked for 10 s gets an end before it makes one.
const SHUTDOWN: Duration = Duration::from_millis(9_500);

/// How long, once stopping is asked for, new requests are still answered, each with word that its connection ends: so a client
/// does not send the next one down a connection that is being closed.
const FAREWELL: Duration = Duration::from_millis(150);
/// What a request may take to follow the connection that was opened for it.
const FOLLOW: Duration = Duration::from_millis(50);

/// Serves on `listener` until `shutdown` completes, then answers what is under way and ends.
///
/// # Errors
/// The system gives no thread to the writer.
pub async fn serve(config: Config, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let writer = Writer::start(config.database.clone(), config.instance.clone())?;
    serve_with(writer, config, listener, shutdown).await;
    Ok(())
}

/// The same with a writer that was started before, for somebody who watches its health.
pub async fn serve_with(
    (writer, writing): (Writer, Ended),
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) {
    if config.instance == InstanceCheck::Off {
        tracing::warn!("CLERK_INSTANCE_ID is *: events of any Clerk instance are applied");
    }
    let check_instance = config.instance != InstanceCheck::Off;
    let upkeep = Upkeep::start(config.database.clone(), check_instance, config.retention);
    let schedule = match config.reconcile {
        Some(reconcile) => start(reconcile, config.database, &config.instance, &writer),
        None => {
            tracing::warn!("CLERK_SECRET_KEY is not set: what webhooks miss is not repaired");
            None
        }
    };
    let foreign = schedule.as_ref().map(Schedule::foreign);
    let open = accept(listener, router(config.verifier, writer, config.instance, foreign), shutdown).await;
    drop(schedule);
    drop(upkeep);
    let end = Instant::now() + SHUTDOWN;
    tracing::info!("stopping: answering what is under way");
    if timeout_at(end, open.shutdown()).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
    // With the last connection goes the last handle to the writer: the task drains its queue and ends.
    if timeout_at(end, writing).await.is_err() {
        tracing::error!("the writer did not stop in time");
    }
}

/// Passes by the clock, and as events ask for them.
fn start(reconcile: Reconcile, database: Database, check: &InstanceCheck, writer: &Writer) -> Option<Schedule> {
    let clerk = match Client::new(reconcile.clerk) {
        Ok(clerk) => Arc::new(clerk),
        Err(error) => {
            tracing::error!(%error, "no pass will run: TLS cannot be set up");
            return None;
        }
    };
    let reconciler = Reconciler { clerk, database, instance: check.wanted().cloned(), times: Times::default() };
    Some(Schedule::start(reconciler, reconcile.timetable, writer.pending()))
}

fn router(
    verifier: crate::webhook::verify::Verifier,
    writer: Writer,
    check: InstanceCheck,
    foreign: Option<watch::Receiver<Foreign>>,
) -> Router {
    let ready = move |state| {
        let foreign = foreign.as_ref().and_then(|foreign| foreign.borrow().clone());
        health::ready(state, check.clone(), foreign)
    };
    Router::new()
        .route("/webhooks/clerk", post(receive::receive))
        .route("/readyz", get(ready))
        .route("/livez", get(health::live))
        .with_state(Receiver::new(verifier, writer))
}

/// Accepts connections until a little after `shutdown`, and returns those that are open. axum's own server has no limit on time
/// for heads and idle connections (`tokio-rs/axum` pull request 3478), hence hyper's.
async fn accept(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) -> GracefulShutdown {
    let ends = Arc::new(AtomicBool::new(false));
    let mut door = Door::new(router.layer(map_response_with_state(Arc::clone(&ends), farewell)));
    let mut shutdown = std::pin::pin!(async {
        shutdown.await;
        ends.store(true, Ordering::Relaxed);
        sleep(FAREWELL).await;
    });
    loop {
        let place = Arc::clone(&door.places).acquire_owned();
        let next = async { (place.await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, _)) => door.let_in(stream, place.ok()),
            Err(error) => {
                // Out of file handles, most likely: those under way will free some.
                tracing::error!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // Those in line would be cut off with the listener.
    while let Some(Ok((stream, _))) = listener.accept().now_or_never() {
        door.let_in(stream, None);
    }
    drop(listener);
    sleep(FOLLOW).await;
    door.open
}

/// Says that the connection ends with this answer, when it does.
async fn farewell(State(ends): State<Arc<AtomicBool>>, mut response: Response) -> Response {
    if ends.load(Ordering::Relaxed) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Where connections become served ones.
struct Door {
    server: auto::Builder<TokioExecutor>,
    router: Router,
    places: Arc<Semaphore>,
    open: GracefulShutdown,
}

impl Door {
    fn new(router: Router) -> Door {
        let mut server = auto::Builder::new(TokioExecutor::new()).http1_only();
        server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(BUFFER);
        Door { server, router, places: Arc::new(Semaphore::new(CONNECTIONS)), open: GracefulShutdown::new() }
    }

    fn let_in(&mut self, stream: TcpStream, place: Option<OwnedSemaphorePermit>) {
        let _ = stream.set_nodelay(true);
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD));
        let service = TowerToHyperService::new(self.router.clone());
        let connection = self.server.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = self.open.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error, "a connection ended early");
            }
            drop(place);
        });
    }
}

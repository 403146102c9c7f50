//! A listener that idle clients cannot block: connections with limits on number, time and age.
//!
//! When all slots are taken, a new connection replaces the one that has been idle longest, and for at least [`GRACE`]: first those
//! without a [`VerifiedSender`] response, then the others. Until then it waits in the listener's backlog. A request that is being handled is never
//! cut off. axum's own server has none of these limits (`tokio-rs/axum` pull request 3478), so this uses hyper.

use crate::os;
use crate::telemetry::{EVICTED, Throttle};
use axum::Router;
use axum::body::Body;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, Response};
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

/// How long sent data may stay unacknowledged by the client.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes for one connection: the request's head, and the part of a body that has arrived. A larger head gets no response of ours.
const BUFFER: usize = 80 * 1024;
/// Connections beyond the limit for a moment: those that are ending, and those in the backlog when the listener closes.
pub(crate) const SLACK: usize = 32;
/// Connections that may wait to be accepted; the system has its own limit, often the same.
const BACKLOG: u32 = 4_096;
/// How long an idle connection always keeps its slot: the first request follows a new connection within a round trip, also while
/// thousands a second open and close.
pub const GRACE: Duration = Duration::from_millis(250);
/// The same for a verified one: its client will use it again, and stalled requests lose their slots first.
const VERIFIED_GRACE: Duration = Duration::from_secs(2);
/// How long a new connection waits before it looks for a slot again, if none became free.
const NEXT_LOOK: Duration = Duration::from_millis(100);
/// How long new requests are still answered after stopping was requested, each with `connection: close`: so a client does not send the next
/// one on a connection that is being closed.
const DRAIN_GRACE: Duration = Duration::from_millis(150);
/// How long a request may take to follow the connection that was opened for it.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(50);

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Number of connections, but for [`SLACK`].
    pub connections: usize,
    /// Time for a request's head, and for which a connection may be idle.
    pub head: Duration,
    /// The age after which a connection ends with its next response.
    pub life: Duration,
}

/// An extension of a response: the request has proven that its sender is verified. Such a connection is replaced only after all
/// others.
#[derive(Clone, Copy, Debug)]
pub struct VerifiedSender;

/// Listens with a large backlog.
///
/// # Errors
/// The address is not one of this machine, or is in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A port may be taken again at once by the next process.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections until a little after `shutdown`, and returns those that are open.
///
/// `exhausted` is called while all slots are taken by requests that are being handled and by verified clients: it may end some of these
/// requests.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    exhausted: impl Fn(),
    shutdown: impl Future<Output = ()>,
) -> GracefulShutdown {
    let acceptor = Acceptor::new(router, limits);
    let mut shutdown = std::pin::pin!(async {
        shutdown.await;
        acceptor.closing.store(true, Ordering::Relaxed);
        sleep(DRAIN_GRACE).await;
    });
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    log_refused(&error);
                    sleep(NEXT_LOOK).await;
                    continue;
                }
            },
            () = &mut shutdown => break,
        };
        let is_stopping = tokio::select! {
            () = acceptor.slots.room(&exhausted) => false,
            () = &mut shutdown => true,
        };
        acceptor.serve_connection(stream);
        if is_stopping {
            break;
        }
    }
    // Connections in the backlog would be cut off with the listener.
    for _ in 0..SLACK {
        let Some(Ok((stream, _))) = listener.accept().now_or_never() else { break };
        acceptor.serve_connection(stream);
    }
    drop(listener);
    sleep(FIRST_REQUEST_GRACE).await;
    acceptor.open
}

/// Most likely out of file descriptors: those in use will become free.
fn log_refused(error: &io::Error) {
    static LOGGED: Throttle = Throttle::new();
    if let Some(suppressed) = LOGGED.should_log() {
        tracing::error!(%error, suppressed, "cannot accept a connection");
    }
}

/// Serves accepted connections.
struct Acceptor {
    server: http1::Builder,
    router: TowerToHyperService<Router>,
    slots: Arc<Slots>,
    life: Duration,
    /// From now on every response closes its connection.
    closing: Arc<AtomicBool>,
    open: GracefulShutdown,
}

impl Acceptor {
    fn new(router: Router, limits: Limits) -> Acceptor {
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(BUFFER);
        Acceptor {
            server,
            router: TowerToHyperService::new(router),
            slots: Arc::new(Slots { limit: limits.connections, table: Mutex::default(), changed: Notify::new() }),
            life: limits.life,
            closing: Arc::default(),
            open: GracefulShutdown::new(),
        }
    }

    fn serve_connection(&self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        os::limit_untaken(&stream, TCP_USER_TIMEOUT);
        let slot = Arc::new(Slots::take(&self.slots));
        let (router, closing) = (self.router.clone(), Arc::clone(&self.closing));
        let (seat, old) = (Arc::clone(&slot), Instant::now() + self.life);
        let service = service_fn(move |request: Request<Incoming>| {
            let busy = Busy::begin(&seat);
            let is_last = busy.is_last || Instant::now() > old;
            let (answer, closing) = (router.call(request), Arc::clone(&closing));
            async move {
                let response = answer.await;
                response.map(|response| leave(response, busy, is_last || closing.load(Ordering::Relaxed)))
            }
        });
        let connection = self.open.watch(self.server.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // In this order: data that has arrived is read before the slot is given up.
            tokio::select! {
                biased;
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended early");
                },
                () = slot.given_up() => {}
            }
        });
    }
}

/// The response: its connection is busy until the body is sent.
fn leave(mut response: Response<Body>, busy: Busy, is_last: bool) -> Response<Body> {
    if response.extensions().get::<VerifiedSender>().is_some() {
        busy.verified();
    }
    if is_last {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _until_the_end = &busy;
            frame
        }))
    })
}

/// All connections of a listener.
struct Slots {
    limit: usize,
    table: Mutex<Table>,
    /// One became idle, or ended.
    changed: Notify,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Entry>,
    /// The ids of those that wait for a request, the one to be closed first at the front.
    idle: BTreeMap<Rank, u64>,
    leaving: usize,
}

/// Whether it was verified, and when it became idle.
type Rank = (bool, u64);

struct Entry {
    state: State,
    /// Since when.
    since: Instant,
    verified: bool,
    evicted_signal: Arc<Notify>,
}

#[derive(Clone, Copy)]
enum State {
    Idle(Rank),
    Busy,
    /// It was asked to give up its slot.
    Leaving,
}

/// Whether one more connection fits.
enum Room {
    Free,
    FreeIn(Duration),
    /// Every connection handles a request, or did a moment ago.
    AllBusy,
}

impl Slots {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(slots: &Arc<Slots>) -> Slot {
        let mut table = slots.table();
        let (id, evicted_signal) = (table.number(), Arc::new(Notify::new()));
        table.open.insert(
            id,
            Entry {
                state: State::Busy,
                since: Instant::now(),
                verified: false,
                evicted_signal: Arc::clone(&evicted_signal),
            },
        );
        table.set_idle(id);
        drop(table);
        Slot { slots: Arc::clone(slots), id, evicted_signal }
    }

    /// Waits until there is room for one more.
    async fn room(&self, exhausted: &impl Fn()) {
        loop {
            let room = self.table().make_room(self.limit);
            let next_look = match room {
                Room::Free => return,
                Room::FreeIn(grace) => grace.min(NEXT_LOOK),
                Room::AllBusy => {
                    exhausted();
                    NEXT_LOOK
                }
            };
            let _ = timeout(next_look, self.changed.notified()).await;
        }
    }
}

impl Table {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whether one more connection fits; if needed, the one that was idle longest is asked to end.
    fn make_room(&mut self, limit: usize) -> Room {
        while self.open.len() - self.leaving >= limit {
            let Some(first) = self.idle.first_entry() else { return Room::AllBusy };
            let Some(entry) = self.open.get_mut(first.get()) else { return Room::AllBusy };
            let idle = entry.since.elapsed();
            if entry.verified && idle < VERIFIED_GRACE {
                return Room::AllBusy;
            }
            if idle < GRACE {
                return Room::FreeIn(GRACE - idle);
            }
            first.remove();
            entry.state = State::Leaving;
            entry.evicted_signal.notify_one();
            self.leaving += 1;
            log_eviction();
        }
        if self.open.len() < limit + SLACK { Room::Free } else { Room::FreeIn(GRACE) }
    }

    fn set_idle(&mut self, id: u64) {
        let number = self.number();
        if let Some(entry) = self.open.get_mut(&id) {
            let rank = (entry.verified, number);
            (entry.state, entry.since) = (State::Idle(rank), Instant::now());
            self.idle.insert(rank, id);
        }
    }

    /// Removes it from the idle ones; returns its state before.
    fn set_busy(&mut self, id: u64) -> Option<State> {
        let entry = self.open.get_mut(&id)?;
        let before = std::mem::replace(&mut entry.state, State::Busy);
        self.forget(before);
        Some(before)
    }

    fn remove(&mut self, id: u64) {
        if let Some(entry) = self.open.remove(&id) {
            self.forget(entry.state);
        }
    }

    fn forget(&mut self, state: State) {
        match state {
            State::Idle(rank) => drop(self.idle.remove(&rank)),
            State::Leaving => self.leaving -= 1,
            State::Busy => {}
        }
    }
}

fn log_eviction() {
    static LOGGED: Throttle = Throttle::new();
    metrics::counter!(EVICTED).increment(1);
    if let Some(suppressed) = LOGGED.should_log() {
        tracing::warn!(suppressed, "too many connections: the one that was idle longest is closed");
    }
}

/// One connection's slot, until dropped.
struct Slot {
    slots: Arc<Slots>,
    id: u64,
    evicted_signal: Arc<Notify>,
}

impl Slot {
    /// Waits until the slot was given to another connection.
    async fn given_up(&self) {
        loop {
            self.evicted_signal.notified().await;
            // A request that came just before is still answered.
            if matches!(self.slots.table().open.get(&self.id), Some(Entry { state: State::Leaving, .. })) {
                return;
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.table().remove(self.id);
        self.slots.changed.notify_one();
    }
}

/// A request is being handled, until dropped.
struct Busy {
    slot: Arc<Slot>,
    /// The slot was given to another connection: this one ends with this response.
    is_last: bool,
}

impl Busy {
    fn begin(slot: &Arc<Slot>) -> Busy {
        let before = slot.slots.table().set_busy(slot.id);
        Busy { slot: Arc::clone(slot), is_last: matches!(before, Some(State::Leaving)) }
    }

    fn verified(&self) {
        if let Some(entry) = self.slot.slots.table().open.get_mut(&self.slot.id) {
            entry.verified = true;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.slot.slots.table().set_idle(self.slot.id);
        self.slot.slots.changed.notify_one();
    }
}

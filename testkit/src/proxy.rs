//! A TCP proxy with faults: between the worker and Postgres, or between the worker and Clerk.
//!
//! Faults can be changed while connections are open, and are drawn from a seed where they are random.

use clerk_sync::thread;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// What is wrong with the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// Everything arrives this much later, in both directions.
    Delay(Duration),
    /// Connections stay open and carry nothing, until the fault ends.
    BlackHole,
    /// New connections are closed at once; open ones are cut.
    Refuse,
    /// What we ask arrives, and the answers are lost: each connection is cut when the next one comes. A commit in
    /// flight succeeds, but the client does not learn of it.
    CutReplies,
    /// Each connection is cut after so many more bytes of answers.
    CutAfter(u64),
    /// Each chunk of an answer is lost with its connection, with this chance in a thousand.
    CutSometimes(u16),
}

/// Where the proxy leads to.
#[derive(Clone, Debug)]
pub enum Upstream {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// A running proxy on a port of this machine. Dropping it cuts everything.
#[derive(Debug)]
pub struct Proxy {
    pub address: SocketAddr,
    fault: watch::Sender<Fault>,
    open: Arc<AtomicUsize>,
}

impl Proxy {
    /// Starts it on its own thread, so that a busy runtime does not slow it down.
    ///
    /// # Errors
    /// No port or no thread is free.
    pub fn start(upstream: Upstream, seed: u64) -> io::Result<Proxy> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (fault, faults) = watch::channel(Fault::None);
        let line = ProxyThread { upstream, faults, open: Arc::default(), rng: fastrand::Rng::with_seed(seed) };
        let open = Arc::clone(&line.open);
        thread::spawn("proxy", || line.carry_all(listener))?;
        Ok(Proxy { address, fault, open })
    }

    /// From now on, for open connections too.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// What the proxy's thread knows.
struct ProxyThread {
    upstream: Upstream,
    faults: watch::Receiver<Fault>,
    open: Arc<AtomicUsize>,
    rng: fastrand::Rng,
}

impl ProxyThread {
    /// Carries every connection, until the proxy is dropped.
    async fn carry_all(mut self, listener: std::net::TcpListener) {
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        let mut dropped = self.faults.clone();
        let accepting = async {
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    // Out of file handles, most likely.
                    sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let (upstream, faults, seed) = (self.upstream.clone(), self.faults.clone(), self.rng.u64(..));
                let open = Arc::clone(&self.open);
                tokio::spawn(async move {
                    open.fetch_add(1, Ordering::Relaxed);
                    carry(client, upstream, faults, seed).await;
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        };
        tokio::select! {
            () = accepting => {}
            _ = dropped.wait_for(|_| false) => {}
        }
    }
}

async fn carry(client: TcpStream, upstream: Upstream, faults: watch::Receiver<Fault>, seed: u64) {
    let _ = client.set_nodelay(true);
    match upstream {
        Upstream::Unix(path) => {
            if let Ok(server) = UnixStream::connect(path).await {
                both_ways(client, server, faults, seed).await;
            }
        }
        Upstream::Tcp(address) => {
            if let Ok(server) = TcpStream::connect(address).await {
                both_ways(client, server, faults, seed).await;
            }
        }
    }
}

async fn both_ways(client: TcpStream, server: impl AsyncRead + AsyncWrite, faults: watch::Receiver<Fault>, seed: u64) {
    let (from_client, to_client) = tokio::io::split(client);
    let (from_server, to_server) = tokio::io::split(server);
    let mut refused = faults.clone();
    tokio::select! {
        () = pump(from_client, to_server, faults.clone(), None) => {}
        () = pump(from_server, to_client, faults, Some(fastrand::Rng::with_seed(seed))) => {}
        _ = refused.wait_for(|fault| *fault == Fault::Refuse) => {}
    }
}

/// Carries one direction until it ends or a fault cuts it. `replies`: this is the direction of the answers.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut faults: watch::Receiver<Fault>,
    mut replies: Option<fastrand::Rng>,
) {
    // What is under way: a chunk that is late holds up none behind it.
    let (under_way, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(256);
    let reading = async move {
        let mut buffer = vec![0; 64 * 1024];
        let mut carried = 0;
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let mut due = Instant::now();
            let fault = *faults.borrow_and_update();
            let cut = match (fault, &mut replies) {
                (Fault::Delay(delay), _) => {
                    due += delay;
                    false
                }
                (Fault::BlackHole, _) => faults.wait_for(|fault| *fault != Fault::BlackHole).await.is_err(),
                (Fault::CutReplies, Some(_)) => true,
                (Fault::CutAfter(bytes), Some(_)) => {
                    carried += length as u64;
                    carried > bytes
                }
                (Fault::CutSometimes(chance), Some(rng)) => rng.u16(0..1_000) < chance,
                _ => false,
            };
            if cut || under_way.send((due, buffer[..length].to_vec())).await.is_err() {
                break;
            }
        }
        drop(under_way);
        std::future::pending::<()>().await;
    };
    let writing = async move {
        while let Some((due, chunk)) = arriving.recv().await {
            sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}

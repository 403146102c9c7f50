//! Deliveries as Svix sends them, over connections that stay open, as cheaply as can be: the sender shares the processors
//! with what it measures.

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use std::cell::Cell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use svix::webhooks::Webhook;
use testkit::clerk::Event;
use testkit::worker::SECRET;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

/// The events as whole requests. Signed now, so they are good for five minutes.
pub(super) fn requests(events: &[Event]) -> anyhow::Result<Vec<Vec<u8>>> {
    let webhook = Webhook::new(SECRET)?;
    let seconds = clerk_sync::clock::now().get() / 1000;
    let request = |Event { message_id, body, .. }: &Event| {
        let signature = webhook.sign(message_id, seconds, body.as_bytes())?;
        let length = body.len();
        Ok(format!(
            "POST /webhooks/clerk HTTP/1.1\r\nhost: clerk-sync\r\ncontent-type: application/json\r\n\
             user-agent: Svix-Webhooks/1.100.0\r\nsvix-id: {message_id}\r\nsvix-timestamp: {seconds}\r\n\
             svix-signature: {signature}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .into_bytes())
    };
    events.iter().map(request).collect()
}

/// Open connections to one endpoint, all driven by one thread.
pub(super) struct Load {
    runtime: Runtime,
    connections: Vec<TcpStream>,
}

/// What came of it.
pub(super) struct Answers {
    pub(super) seconds: f64,
    /// From the first byte sent to the last one received, in µs, in order.
    pub(super) latencies: Vec<u32>,
    /// Deliveries that were applied; the rest were overtaken by newer ones.
    pub(super) applied: usize,
}

impl Answers {
    pub(super) fn per_second(&self) -> f64 {
        f64::from(u32::try_from(self.latencies.len()).unwrap_or(u32::MAX)) / self.seconds
    }

    /// In ms: what so many of a thousand did not take longer than.
    pub(super) fn percentile(&self, per_mille: usize) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        f64::from(self.latencies.get(last * per_mille / 1_000).copied().unwrap_or_default()) / 1_000.0
    }
}

impl Load {
    pub(super) fn connect(address: SocketAddr, connections: usize) -> anyhow::Result<Load> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let connect = async || {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            anyhow::Ok(stream)
        };
        let connections = runtime.block_on(try_join_all((0..connections).map(|_| connect())))?;
        Ok(Load { runtime, connections })
    }

    /// Sends these, each connection one after the other, until none is left or the time is over.
    ///
    /// # Errors
    /// Something was answered with another status than 204.
    pub(super) fn send(&mut self, requests: &[Vec<u8>], limit: Duration) -> anyhow::Result<Answers> {
        let next = Cell::new(0);
        let began = Instant::now();
        let sending = self.connections.iter_mut().map(|stream| send(stream, requests, &next, began + limit));
        let all = self.runtime.block_on(try_join_all(sending))?;
        let seconds = began.elapsed().as_secs_f64();
        let applied = all.iter().map(|(_, applied)| applied).sum();
        let mut latencies: Vec<u32> = all.into_iter().flat_map(|(latencies, _)| latencies).collect();
        latencies.sort_unstable();
        Ok(Answers { seconds, latencies, applied })
    }
}

/// One connection's share: its latencies, and how many were applied.
async fn send(
    stream: &mut TcpStream,
    requests: &[Vec<u8>],
    next: &Cell<usize>,
    end: Instant,
) -> anyhow::Result<(Vec<u32>, usize)> {
    let (mut latencies, mut applied) = (Vec::new(), 0);
    let mut buffer = Vec::with_capacity(4 * 1024);
    loop {
        let began = Instant::now();
        let Some(request) = requests.get(next.get()).filter(|_| began < end) else { break };
        next.set(next.get() + 1);
        stream.write_all(request).await?;
        buffer.clear();
        while !buffer.ends_with(b"\r\n\r\n") {
            ensure!(stream.read_buf(&mut buffer).await? > 0, "the connection was closed");
        }
        let head = std::str::from_utf8(&buffer).context("an answer that is no text")?;
        ensure!(head.starts_with("HTTP/1.1 204"), "answered with {}", head.lines().next().unwrap_or_default());
        applied += usize::from(head.contains("applied"));
        latencies.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    Ok((latencies, applied))
}

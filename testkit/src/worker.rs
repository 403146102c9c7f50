//! `clerk-sync serve` as a process of its own: it can be killed, started again, and watched.

use crate::usage::Usage;
use crate::{program, serve};
use anyhow::Context as _;
use serde_json::Value;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

/// The signing secret of every worker's endpoint.
pub const SECRET: &str = "whsec_dGVzdHMgc2lnbiB3aXRoIHRoaXMgb25l";

/// Lines of the log that are kept for whoever asks why it did not start.
const KEPT: usize = 20;

/// How a worker is started, each time.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program: the product, or another build of it.
    pub program: PathBuf,
    pub database_url: String,
    /// Further environment, such as `CLERK_SECRET_KEY`.
    pub environment: Vec<(&'static str, String)>,
}

/// A running worker, or one that was killed and waits to be started again on the same port. Dropping it kills it.
#[derive(Debug)]
pub struct Worker {
    pub address: SocketAddr,
    /// For its next start.
    pub options: Options,
    child: Child,
    log: Arc<Log>,
}

/// What the worker says of itself.
#[derive(Debug, Default)]
struct Log {
    lines: AtomicUsize,
    last: Mutex<VecDeque<String>>,
}

impl Options {
    /// The product's program ([`program::path`]).
    ///
    /// # Errors
    /// It was not built.
    pub fn new(database_url: String) -> anyhow::Result<Options> {
        Ok(Options { program: program::path()?, database_url, environment: Vec::new() })
    }
}

impl Worker {
    /// Starts it on a free port and waits until it listens.
    ///
    /// # Errors
    /// It ended instead; the sentence has the end of its log.
    pub async fn start(options: Options) -> anyhow::Result<Worker> {
        let log = Arc::default();
        let (child, address) = spawn(&options, "127.0.0.1:0", &log).await?;
        Ok(Worker { address, options, child, log })
    }

    pub fn webhook_url(&self) -> String {
        format!("http://{}/webhooks/clerk", self.address)
    }

    /// Ends it without any notice, as the kernel or a machine's end would.
    ///
    /// # Errors
    /// It has ended already.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Starts it again where it was.
    ///
    /// # Errors
    /// As [`Worker::start`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let (child, _) = spawn(&self.options, &self.address.to_string(), &self.log).await?;
        self.child = child;
        Ok(())
    }

    /// Sends a signal, such as `TERM`.
    ///
    /// # Errors
    /// It has ended already.
    pub fn signal(&self, signal: rustix::process::Signal) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
        Ok(rustix::process::kill_process(pid.context("the worker has ended")?, signal)?)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// The system does not tell.
    pub async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }

    /// What it costs, since it was last started.
    pub fn usage(&self) -> Usage {
        self.child.id().and_then(Usage::of).unwrap_or_default()
    }

    /// The status and body of a GET.
    ///
    /// # Panics
    /// Nobody answers.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        serve::get(&format!("http://{}{path}", self.address)).await
    }

    /// Lines that it has logged, over all its lives.
    pub fn log_lines(&self) -> usize {
        self.log.lines.load(Ordering::Relaxed)
    }

    /// The last of them.
    pub fn log_end(&self) -> Vec<String> {
        self.log.end()
    }
}

async fn spawn(options: &Options, address: &str, log: &Arc<Log>) -> anyhow::Result<(Child, SocketAddr)> {
    let mut child = Command::new(&options.program)
        .arg("serve")
        .env_clear()
        .env("DATABASE_URL", &options.database_url)
        .env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET)
        .env("LISTEN_ADDR", address)
        .env("OPS_ADDR", "127.0.0.1:0")
        .env("LOG_FORMAT", "json")
        .env("RUST_LOG", "warn,clerk_sync=info")
        .envs(options.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start a worker")?;
    let lines = File::from(child.stderr.take().context("no log")?.into_owned_fd()?);
    let (listens, listening) = oneshot::channel();
    let kept = Arc::clone(log);
    std::thread::spawn(move || read(lines, listens, &kept));
    let listening = listening.await;
    Ok((child, listening.with_context(|| format!("the worker did not start: {}", log.end().join(" / ")))?))
}

/// Reads the log to its end, on a thread of its own: a worker blocks once the pipe of its log is full.
fn read(log: File, listens: oneshot::Sender<SocketAddr>, kept: &Log) {
    let mut listens = Some(listens);
    for line in BufReader::new(log).lines().map_while(Result::ok) {
        let address = address_in(&line);
        kept.take(line);
        if let Some(address) = address
            && let Some(listens) = listens.take()
        {
            let _ = listens.send(address);
        }
    }
}

/// The address that a line of the log says it listens on.
fn address_in(line: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    if line["message"] == "listening" { line["address"].as_str()?.parse().ok() } else { None }
}

impl Log {
    fn take(&self, line: String) {
        self.lines.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut last) = self.last.lock() {
            if last.len() == KEPT {
                last.pop_front();
            }
            last.push_back(line);
        }
    }

    fn end(&self) -> Vec<String> {
        self.last.lock().map(|last| last.iter().cloned().collect()).unwrap_or_default()
    }
}

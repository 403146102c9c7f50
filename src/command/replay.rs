//! `clerk-sync replay`: signs JSON bodies as Svix would and posts them, to try a running server.

use crate::app;
use crate::config;
use crate::model::Outcome;
use crate::sender::{Attempt, Sender};
use crate::terminal;
use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Sign JSON bodies as Clerk signs webhooks, and post them to a running server. Exit code 1: one of them was not acknowledged, or
/// could not be applied
#[derive(clap::Args, Clone)]
pub struct Replay {
    /// A JSON file, or a folder of them
    pub path: PathBuf,

    /// The webhook endpoint; unset: `http://127.0.0.1:8080/webhooks/clerk`, or the address in `LISTEN_ADDR` or `PORT`
    #[arg(long)]
    pub url: Option<String>,

    #[arg(long, env = "LISTEN_ADDR", hide = true)]
    pub listen_addr: Option<String>,

    #[arg(long, env = "PORT", hide = true)]
    pub port: Option<String>,

    /// The signing secret (whsec_…); if there are several, separated by commas, the first is used
    #[arg(long, env = "CLERK_WEBHOOK_SIGNING_SECRET", hide_env_values = true)]
    pub secret: Option<String>,

    /// Send in a random order from this seed, instead of by name
    #[arg(long, value_name = "SEED")]
    pub shuffle: Option<u64>,

    /// Send each file this many times, with the same message id
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub times: u32,

    /// Number of connections
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub concurrency: u16,

    /// Maximum number of requests per second
    #[arg(long, value_name = "N")]
    pub rate: Option<f64>,
}

/// How many requests ended in which way.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// By status and outcome.
    requests: BTreeMap<(String, String), usize>,
    /// Why a request got no answer, the first time that one did not.
    pub unanswered: Option<String>,
}

impl Summary {
    /// Whether every answer was a 2xx, and nothing was kept as a dead letter.
    pub fn all_accepted(&self) -> bool {
        let is_accepted =
            |status: &str, outcome: &str| status.starts_with('2') && outcome != Outcome::DeadLetter.as_str();
        self.requests.keys().all(|(status, outcome)| is_accepted(status, outcome))
    }

    /// What to do about refusals that have one cause.
    fn advice(&self) -> impl Iterator<Item = &'static str> {
        const ADVICE: [(&str, &str); 3] = [
            (
                "foreign_instance",
                "the webhooks name another Clerk instance than the tables: change instance_id in the files, or, in a database for trying \
                 out, start clerk-sync serve with CLERK_INSTANCE_ID='*'",
            ),
            (
                "invalid_signature",
                "clerk-sync serve there has another signing secret: give the right one with --secret",
            ),
            (
                "no_signing_secret",
                "clerk-sync serve there has no signing secret: set CLERK_WEBHOOK_SIGNING_SECRET for it, too",
            ),
        ];
        let outcomes = || self.requests.keys().map(|(_, outcome)| outcome.as_str());
        ADVICE.into_iter().filter(move |(word, _)| outcomes().any(|outcome| outcome == *word)).map(|(_, advice)| advice)
    }

    /// How many were kept because they could not be applied.
    fn dead_letters(&self) -> usize {
        let dead = self.requests.iter().filter(|((_, outcome), _)| outcome == Outcome::DeadLetter.as_str());
        dead.map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<8} {:<24} {:>8}", "status", "outcome", "requests")?;
        for ((status, outcome), count) in &self.requests {
            writeln!(f, "{status:<8} {outcome:<24} {count:>8}")?;
        }
        Ok(())
    }
}

impl Replay {
    /// Runs the command, and prints how many requests ended in which way.
    ///
    /// Exit code 1: one was not acknowledged, or was kept as a dead letter.
    ///
    /// # Errors
    /// As [`Replay::send`].
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let summary = self.send().await?;
        terminal::text(summary.to_string().trim_end());
        if let Some(problem) = &summary.unanswered {
            terminal::note(format_args!(
                "clerk-sync: no answer from {}: {problem}. Is clerk-sync serve running there?",
                self.endpoint()?
            ));
        }
        summary.advice().for_each(|advice| terminal::note(format_args!("clerk-sync: {advice}")));
        let dead_letters = summary.dead_letters();
        if dead_letters > 0 {
            terminal::note(format_args!(
                "clerk-sync: {dead_letters} could not be applied and were kept as dead letters: clerk-sync dead-letters list"
            ));
        }
        Ok(if summary.all_accepted() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Where to send.
    fn endpoint(&self) -> anyhow::Result<String> {
        if let Some(url) = config::given(self.url.as_deref()) {
            return Ok(url.to_owned());
        }
        let listens = config::listen_addr(self.listen_addr.as_deref(), self.port.as_deref());
        let mut address = listens.map_err(|mistake| config::Mistakes(vec![mistake]))?;
        if address.port() == 0 {
            bail!("serve chooses its port itself where LISTEN_ADDR or PORT says 0: give its address with --url");
        }
        // Who listens on every address is reached on this machine's own.
        if address.ip().is_unspecified() {
            let ip = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            address.set_ip(ip);
        }
        Ok(format!("http://{address}{}", app::WEBHOOKS))
    }

    /// Sends everything and counts the answers.
    ///
    /// # Errors
    /// Nothing was sent: the address, the files, the secret or the rate are unusable.
    pub async fn send(&self) -> anyhow::Result<Summary> {
        let secret = config::given(self.secret.as_deref()).context(
            "CLERK_WEBHOOK_SIGNING_SECRET is not set: set it as for clerk-sync serve, or give it with --secret",
        )?;
        let secret = secret.split(',').next().unwrap_or_default();
        let sender =
            Arc::new(Sender::new(self.endpoint()?, secret).context("CLERK_WEBHOOK_SIGNING_SECRET or --secret")?);
        let pause = match self.rate {
            Some(rate) if rate > 0.0 && rate.is_finite() => Duration::from_secs_f64(1.0 / rate),
            Some(_) => bail!("--rate must be more than 0"),
            None => Duration::ZERO,
        };

        let bodies = read_bodies(&self.path)?;
        let mut order: Vec<usize> = (0..self.times).flat_map(|_| 0..bodies.len()).collect();
        if let Some(seed) = self.shuffle {
            fastrand::Rng::with_seed(seed).shuffle(&mut order);
        }
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} requests, {per_sec}, {eta} left")?;
        let progress = ProgressBar::new(order.len() as u64).with_style(style);

        let places = Arc::new(Semaphore::new(usize::from(self.concurrency.max(1))));
        let mut sending = JoinSet::new();
        let started = Instant::now();
        for (sent, index) in order.into_iter().enumerate() {
            let due = pause.saturating_mul(u32::try_from(sent).unwrap_or(u32::MAX));
            tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
            let place = Arc::clone(&places).acquire_owned().await?;
            let (sender, body, progress) = (Arc::clone(&sender), Arc::clone(&bodies[index]), progress.clone());
            sending.spawn(async move {
                let answer = send(&sender, &body).await;
                progress.inc(1);
                drop(place);
                answer
            });
        }
        let mut summary = Summary::default();
        while let Some(answer) = sending.join_next().await {
            let (status, outcome) = match answer? {
                Ok(attempt) => (attempt.status.to_string(), attempt.outcome.unwrap_or_else(|| "-".to_owned())),
                Err(error) => {
                    summary.unanswered.get_or_insert_with(|| cause(&error));
                    ("none".to_owned(), "no answer".to_owned())
                }
            };
            *summary.requests.entry((status, outcome)).or_default() += 1;
        }
        progress.finish_and_clear();
        Ok(summary)
    }
}

/// Posts one body.
async fn send(sender: &Sender, body: &[u8]) -> anyhow::Result<Attempt> {
    // One body has one id, however often it is sent, so that a repetition is seen as one.
    let message_id = format!("msg_{}", &crate::model::hex(&Sha256::digest(body))[..27]);
    sender.send(&message_id, body).await
}

/// What is at the bottom of an error, such as `Connection refused`: what is above it names the URL again.
fn cause(error: &anyhow::Error) -> String {
    error.chain().last().map_or_else(|| error.to_string(), ToString::to_string)
}

/// The bodies of all `.json` files at or below `path`, by name.
fn read_bodies(path: &Path) -> anyhow::Result<Vec<Arc<[u8]>>> {
    let mut files = Vec::new();
    find_json(path, &mut files)?;
    files.sort();
    if files.is_empty() {
        bail!("no .json file in {}", path.display());
    }
    let read =
        |file: &PathBuf| std::fs::read(file).map(Arc::from).with_context(|| format!("cannot read {}", file.display()));
    files.iter().map(read).collect()
}

fn find_json(path: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let metadata = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if metadata.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        let path = entry?.path();
        if path.is_dir() || path.extension().is_some_and(|extension| extension == "json") {
            find_json(&path, files)?;
        }
    }
    Ok(())
}

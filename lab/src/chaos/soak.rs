//! `lab chaos soak`: a long time of ordinary trouble, to see what grows.

use super::checker;
use super::crash::live_on;
use super::sender::Svix;
use super::stage::{self, Stage};
use super::watch::{self, Watch};
use super::{Ended, percentile, say};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};
use testkit::proxy::Fault;
use testkit::usage::Usage;
use tokio::time::{MissedTickBehavior, interval};

/// Webhooks for a long time, with faults now and then and passes beside them: what grows?
#[derive(clap::Args, Clone)]
pub(crate) struct Soak {
    #[arg(long, default_value_t = Soak::default().minutes, value_name = "N")]
    minutes: f64,

    /// Webhooks a second
    #[arg(long, default_value_t = Soak::default().rate, value_name = "N")]
    rate: u32,

    /// Of a thousand answers of Postgres, and of Clerk's API, so many are lost with their connection
    #[arg(long, default_value_t = Soak::default().faults, value_name = "N")]
    faults: u16,

    /// Play the same trial again; unset: another one each time
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl Default for Soak {
    fn default() -> Soak {
        Soak { minutes: 30.0, rate: 200, faults: 10, seed: None }
    }
}

/// What was promised, in KiB in ten minutes.
const SLOPE: f64 = 1024.0;
const EVERY: Duration = Duration::from_secs(5);
/// By how much Clerk's clock goes on with each change, in ms. It must not outrun a pass; and reads settle what is so close.
const STEP: i64 = 60;
const SETTLE: Duration = Duration::from_secs(90);

impl Soak {
    /// Within seconds.
    pub(super) fn small() -> Soak {
        Soak { minutes: 0.5, ..Soak::default() }
    }

    /// Runs the trial.
    ///
    /// # Errors
    /// It could not be run.
    pub(super) async fn run(self) -> anyhow::Result<Ended> {
        let seed = self.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
        say(&format!(
            "{} minutes, {} webhooks a second, {} of 1,000 answers lost, a quick pass each minute; play again with --seed {seed}",
            self.minutes, self.rate, self.faults
        ));
        let stage = Stage::new(seed).await?;
        let watch = Watch::start(&stage).await?;
        let mut environment = stage.world.api_environment().to_vec();
        environment.push(("RECONCILE_QUICK_CRON", "* * * * *".to_owned()));
        let worker = stage.worker(&environment).await?;
        stage.world.database_proxy().set(Fault::CutSometimes(self.faults));
        stage.world.api_proxy().set(Fault::CutSometimes(self.faults));
        let mut svix = Svix::new(vec![stage::sender(&worker)?], seed);
        let history = svix.history.clone();

        let samples = self.send(&stage, &mut svix, seed, || worker.usage()).await?;
        stage.world.database_proxy().set(Fault::None);
        stage.world.api_proxy().set(Fault::None);
        let unfinished = svix.settle(SETTLE).await;
        let seen = watch.end().await?;
        let decreases = watch::decreases(&stage).await?;
        let (messages, times) = (history.messages(), history.times());
        say(&format!(
            "  {} messages acknowledged in {} attempts, {unfinished} unfinished; answers: p50 {:.1?}, p99 {:.1?}, max {:.1?}; others than 2xx and 503: {:?}",
            messages.iter().filter(|message| message.is_acknowledged).count(),
            messages.iter().map(|message| message.attempts).sum::<u32>(),
            percentile(&times, 50),
            percentile(&times, 99),
            times.last().copied().unwrap_or_default(),
            history.odd()
        ));
        let grown = Growth::of(&samples);
        say(&format!("  {grown}"));

        // A pass of the worker's own may be under way, and the last webhooks are too fresh to be repaired by it.
        drop(worker);
        release_lease(&stage).await?;
        stage.reconcile().await?;
        let source = checker::source(&stage.world.clerk.lock());
        let held = checker::held(&mut stage.owner().await?).await?;
        let left = checker::differences(&source, &held);

        say(&format!(
            "  versions that went back {decreases}, sessions stuck in a transaction {}; after a last pass {} of Clerk's {} rows differ",
            seen.stuck,
            left.len(),
            source.len()
        ));
        left.iter().take(5).for_each(|(kind, id)| say(&format!("  {kind} {id} is not as at Clerk")));
        let is_flat = grown.is_flat() || self.minutes < 10.0;
        Ok(Ended::of(
            is_flat
                && unfinished == 0
                && left.is_empty()
                && decreases == 0
                && seen.stuck == 0
                && history.odd().is_empty(),
        ))
    }

    /// Sends steadily, and looks at the worker now and then.
    async fn send(
        &self,
        stage: &Stage,
        svix: &mut Svix,
        seed: u64,
        usage: impl Fn() -> Usage,
    ) -> anyhow::Result<Vec<(Duration, Usage)>> {
        let lasts = Duration::from_secs_f64(self.minutes * 60.0);
        let progress = ProgressBar::new(lasts.as_secs());
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} s, {msg}") {
            progress.set_style(style);
        }
        let mut rng = fastrand::Rng::with_seed(seed + 2);
        let mut tick = interval(Duration::from_secs(1) / self.rate);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (began, mut samples, mut due) = (Instant::now(), Vec::new(), std::collections::VecDeque::new());
        let mut clock_set = 0;
        while began.elapsed() < lasts {
            tick.tick().await;
            while due.is_empty() {
                let mut clerk = stage.world.clerk.lock();
                live_on(&mut clerk, &mut rng, STEP);
                due.extend(std::mem::take(&mut clerk.outbox));
            }
            due.pop_front().into_iter().for_each(|event| svix.send(event));
            // Clerk's clock runs faster than ours: within a second, not by as much as a pass minds.
            if began.elapsed().as_secs() >= clock_set {
                stage.set_clock().await?;
                clock_set = began.elapsed().as_secs() + 1;
            }
            if began.elapsed() >= EVERY.mul_f64(samples.len() as f64) {
                let usage = usage();
                progress.set_position(began.elapsed().as_secs());
                progress.set_message(format!("{} KiB, {} handles", usage.resident, usage.handles));
                samples.push((began.elapsed(), usage));
            }
        }
        due.into_iter().for_each(|event| svix.send(event));
        progress.finish_and_clear();
        Ok(samples)
    }
}

async fn release_lease(stage: &Stage) -> anyhow::Result<()> {
    sqlx::raw_sql("update clerk_sync.lease set expires_at = '-infinity'").execute(&mut stage.owner().await?).await?;
    Ok(())
}

/// What grew once the worker was warm: the first third of the samples does not count.
struct Growth {
    first: Usage,
    last: Usage,
    most: Usage,
    /// Of resident memory, in KiB in ten minutes: the line of least squares.
    slope: f64,
    /// The middle number of open files in the first half of what counts, and in the second.
    handles: (usize, usize),
}

impl Growth {
    fn of(samples: &[(Duration, Usage)]) -> Growth {
        let warm = &samples[samples.len() / 3..];
        let points: Vec<(f64, f64)> =
            warm.iter().map(|(at, usage)| (at.as_secs_f64() / 600.0, usage.resident as f64)).collect();
        let mean = |of: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
        let (x, y) = (mean(&|point| point.0), mean(&|point| point.1));
        let slope = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>()
            / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>();
        let middle = |part: &[(Duration, Usage)]| {
            let mut handles: Vec<usize> = part.iter().map(|(_, usage)| usage.handles).collect();
            handles.sort_unstable();
            handles.get(handles.len() / 2).copied().unwrap_or_default()
        };
        let (before, after) = warm.split_at(warm.len() / 2);
        let usage = |sample: Option<&(Duration, Usage)>| sample.map(|(_, usage)| *usage).unwrap_or_default();
        Growth {
            first: usage(warm.first()),
            last: usage(warm.last()),
            most: usage(warm.iter().max_by_key(|(_, usage)| usage.peak)),
            slope,
            handles: (middle(before), middle(after)),
        }
    }

    /// Handles of connections come and go with the load.
    fn is_flat(&self) -> bool {
        self.slope < SLOPE && self.handles.1 <= self.handles.0 + self.handles.0 / 5 + 5
    }
}

impl std::fmt::Display for Growth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mebibytes = |kibibytes: u64| kibibytes as f64 / 1024.0;
        write!(
            f,
            "memory {:.1} MiB when warm, {:.1} at the end, {:.1} at most: {:+.0} KiB in ten minutes; open files {} and then {}",
            mebibytes(self.first.resident),
            mebibytes(self.last.resident),
            mebibytes(self.most.peak),
            self.slope,
            self.handles.0,
            self.handles.1
        )
    }
}

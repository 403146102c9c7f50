//! `lab chaos crash`: webhooks at a steady rate, while workers are killed, Postgres crashes and the line between
//! them fails. Nothing that was acknowledged may be missing afterwards.

use super::checker::{self, Verdict};
use super::sender::{History, Svix};
use super::stage::{self, Stage};
use super::watch::{self, Seen, Watch};
use super::{BadBuild, Ended, percentile, say};
use anyhow::ensure;
use clerk_sync::failpoint::Point;
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use testkit::clerk::Clerk;
use testkit::proxy::Fault;
use testkit::traffic;
use testkit::worker::Worker;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Kill workers, crash Postgres and cut the line between them under load, and look for what was lost
#[derive(clap::Args, Clone)]
pub(crate) struct Crash {
    /// Webhooks to send
    #[arg(long, default_value_t = Crash::default().events, value_name = "N")]
    events: usize,

    /// Webhooks a second
    #[arg(long, default_value_t = Crash::default().rate, value_name = "N")]
    rate: u32,

    /// How often a worker is killed without notice
    #[arg(long, default_value_t = Crash::default().kills, value_name = "N")]
    kills: usize,

    /// How often Postgres stops at once and recovers
    #[arg(long, default_value_t = Crash::default().restarts, value_name = "N")]
    restarts: usize,

    /// Workers on the same database
    #[arg(long, default_value_t = Crash::default().replicas, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    replicas: u8,

    /// Play the same trial again; unset: another one each time
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Plant a mistake that must be found
    #[arg(long, value_enum)]
    bad_build: Option<BadBuild>,
}

impl Default for Crash {
    fn default() -> Crash {
        Crash { events: 25_000, rate: 200, kills: 24, restarts: 6, replicas: 1, seed: None, bad_build: None }
    }
}

/// How long everything may take to arrive once the faults are over.
const SETTLE: Duration = Duration::from_secs(90);
/// By how much Clerk's clock goes on with each change, in ms: more than what happens within one, and so much that the order of any two
/// changes of one object is known without a read (R9). These workers make none.
pub(super) const STEP: i64 = 2_500;

/// What strikes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Blow {
    /// A worker, at a random moment.
    Kill,
    /// A worker, at a place in its own code.
    KillAt(Point),
    /// Postgres, which then recovers from its log.
    Crash,
    /// Every session of the workers'.
    Terminate,
    /// The line to Postgres.
    Line(Fault),
    /// Somebody holds the mirror's tables.
    Lock,
}

impl Crash {
    /// Within seconds.
    pub(super) fn small() -> Crash {
        Crash { events: 1_600, kills: 4, restarts: 2, ..Crash::default() }
    }

    /// The same, with a mistake planted.
    pub(super) fn planted(self, build: BadBuild) -> Crash {
        Crash { bad_build: Some(build), ..self }
    }

    /// Runs the trial.
    ///
    /// # Errors
    /// It could not be run.
    pub(super) async fn run(self) -> anyhow::Result<Ended> {
        let seed = self.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
        say(&format!(
            "{} webhooks at {}/s to {} worker(s); {} kills, {} crashes of Postgres{}; play again with --seed {seed}",
            self.events,
            self.rate,
            self.replicas,
            self.kills,
            self.restarts,
            self.bad_build.map(|build| format!("; planted: {build:?}")).unwrap_or_default()
        ));
        let stage = Stage::new(seed).await?;
        let watch = Watch::start(&stage).await?;
        let mut environment = Vec::new();
        if let Some(build) = self.bad_build {
            build.plant(&stage, &mut environment).await?;
        }
        let mut workers = Vec::new();
        for _ in 0..self.replicas {
            workers.push(stage.worker(&environment).await?);
        }
        let endpoints = workers.iter().map(stage::sender).collect::<anyhow::Result<_>>()?;
        let mut svix = Svix::new(endpoints, seed);
        let history = svix.history.clone();

        // A worker heeds one word of the variable.
        let has_points = environment.is_empty() && testkit::program::has_failpoints()?;
        let plan = self.plan(&mut fastrand::Rng::with_seed(seed), has_points);
        let pause = Duration::from_secs_f64(self.events as f64 / f64::from(self.rate) / (plan.len() + 1) as f64);
        let mut trial = Trial {
            stage: &stage,
            workers,
            history: history.clone(),
            rng: fastrand::Rng::with_seed(seed),
            recoveries: Vec::new(),
        };
        let over = AtomicBool::new(false);
        let striking = async {
            let struck = trial.strike_all(&plan, pause).await;
            over.store(true, Ordering::Relaxed);
            struck
        };
        let (struck, ()) = tokio::join!(striking, self.send(&stage, &mut svix, seed, &over));
        struck?;
        let unfinished = svix.settle(SETTLE).await;
        trial.report();

        let seen = watch.end().await?;
        let verdict = checker::judge(&history.messages(), &checker::held(&mut stage.owner().await?).await?)?;
        let found = Found { unfinished, seen, decreases: watch::decreases(&stage).await?, odd: history.odd(), verdict };
        found.say(&history);
        // A mistake must show in the rows, and not by an accident of the trial.
        let mut is_kept = if self.bad_build.is_some() { found.verdict.is_good() } else { found.is_good() };
        if self.bad_build.is_none() {
            stage.reconcile().await?;
            let source = checker::source(&stage.world.clerk.lock());
            let held = checker::held(&mut stage.owner().await?).await?;
            let left = checker::differences(&source, &held).len();
            say(&format!("  after a pass: {left} of Clerk's {} rows differ", source.len()));
            is_kept &= left == 0;
        }
        Ok(Ended::of(is_kept))
    }

    /// The blows in the order in which they fall.
    fn plan(&self, rng: &mut fastrand::Rng, has_points: bool) -> Vec<Blow> {
        let points = [Point::Verified, Point::Writing, Point::Committed];
        let mut plan: Vec<Blow> = (0..self.kills)
            .map(|n| match points.get(n % 4) {
                Some(point) if has_points => Blow::KillAt(*point),
                _ => Blow::Kill,
            })
            .collect();
        plan.extend(std::iter::repeat_n(Blow::Crash, self.restarts));
        let lines = [
            Blow::Line(Fault::CutReplies),
            Blow::Line(Fault::BlackHole),
            Blow::Line(Fault::Delay(Duration::from_millis(100))),
            Blow::Line(Fault::CutSometimes(100)),
            Blow::Line(Fault::Refuse),
            Blow::Terminate,
            Blow::Lock,
        ];
        plan.extend(lines.into_iter().cycle().take(self.kills / 2));
        rng.shuffle(&mut plan);
        plan
    }

    /// Lets Clerk live and sends what comes of it, steadily, at least until the blows are over.
    async fn send(&self, stage: &Stage, svix: &mut Svix, seed: u64, over: &AtomicBool) {
        let progress = ProgressBar::new(self.events as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} webhooks, {eta} left") {
            progress.set_style(style);
        }
        let mut rng = fastrand::Rng::with_seed(seed + 2);
        let mut tick = interval(Duration::from_secs(1) / self.rate);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut due = std::collections::VecDeque::new();
        let mut sent = 0;
        while sent < self.events || !over.load(Ordering::Relaxed) {
            sent += 1;
            tick.tick().await;
            while due.is_empty() {
                let mut clerk = stage.world.clerk.lock();
                live_on(&mut clerk, &mut rng, STEP);
                due.extend(std::mem::take(&mut clerk.outbox));
            }
            due.pop_front().into_iter().for_each(|event| svix.send(event));
            progress.inc(1);
        }
        // What happened is told to the end.
        due.into_iter().for_each(|event| svix.send(event));
        progress.finish_and_clear();
    }
}

/// One change, and now and then a company more.
pub(super) fn live_on(clerk: &mut Clerk, rng: &mut fastrand::Rng, step: i64) {
    clerk.now += step;
    if rng.u8(0..100) < 2 {
        let founder = traffic::sign_up(clerk, rng);
        clerk.create_organization("Elm Street Labs", &founder);
    } else {
        traffic::change(clerk, rng);
    }
}

struct Trial<'a> {
    stage: &'a Stage,
    workers: Vec<Worker>,
    history: History,
    rng: fastrand::Rng,
    /// From the end of each blow to the next acknowledgement.
    recoveries: Vec<(Blow, Duration)>,
}

impl Trial<'_> {
    async fn strike_all(&mut self, plan: &[Blow], pause: Duration) -> anyhow::Result<()> {
        for blow in plan {
            sleep(pause.mul_f64(0.5 + self.rng.f64() / 2.0)).await;
            self.strike(*blow).await?;
            let over = Instant::now();
            while !self.history.acknowledged_since(over) {
                ensure!(over.elapsed() < SETTLE, "nothing was acknowledged for {} s after {blow:?}", SETTLE.as_secs());
                sleep(Duration::from_millis(2)).await;
            }
            self.recoveries.push((*blow, over.elapsed()));
        }
        Ok(())
    }

    /// Returns when the cause is gone.
    async fn strike(&mut self, blow: Blow) -> anyhow::Result<()> {
        let worker = self.rng.usize(..self.workers.len());
        let worker = &mut self.workers[worker];
        match blow {
            Blow::Kill => {
                worker.kill().await?;
                worker.restart().await?;
            }
            Blow::KillAt(point) => {
                worker.kill().await?;
                let times = self.rng.u32(1..50);
                worker.options.environment.push(("CLERK_SYNC_FAILPOINT", format!("{}:{times}", point.as_str())));
                worker.restart().await?;
                worker.options.environment.pop();
                // It ends by itself when it gets there, or is killed where nothing leads it there.
                if tokio::time::timeout(Duration::from_secs(10), worker.ended()).await.is_err() {
                    worker.kill().await?;
                }
                worker.restart().await?;
            }
            Blow::Crash => {
                let cluster = self.stage.world.supabase().cluster();
                tokio::task::block_in_place(|| cluster.stop_server().and_then(|()| cluster.start_server()))?;
            }
            Blow::Terminate => {
                let mut superuser = self.stage.superuser().await?;
                for _ in 0..3 {
                    sqlx::query(
                        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'clerk-sync'",
                    )
                    .execute(&mut superuser)
                    .await?;
                    sleep(Duration::from_millis(500)).await;
                }
            }
            Blow::Line(fault) => {
                self.stage.world.database_proxy().set(fault);
                sleep(Duration::from_secs(2)).await;
                self.stage.world.database_proxy().set(Fault::None);
            }
            Blow::Lock => {
                let mut owner = self.stage.owner().await?;
                sqlx::raw_sql("begin; lock table clerk.users, clerk.organization_memberships")
                    .execute(&mut owner)
                    .await?;
                sleep(Duration::from_secs(3)).await;
                sqlx::raw_sql("rollback").execute(&mut owner).await?;
            }
        }
        Ok(())
    }

    fn report(&self) {
        let slowest = |of: &dyn Fn(Blow) -> bool| {
            let times = self.recoveries.iter().filter(|(blow, _)| of(*blow)).map(|(_, time)| time.as_secs_f64());
            times.fold(0.0, f64::max)
        };
        let count = |of: &dyn Fn(Blow) -> bool| self.recoveries.iter().filter(|(blow, _)| of(*blow)).count();
        let kills = |blow| matches!(blow, Blow::Kill | Blow::KillAt(_));
        let at_points = |blow| matches!(blow, Blow::KillAt(_));
        let others = |blow| !kills(blow) && blow != Blow::Crash;
        say(&format!(
            "  {} kills ({} at named points), next acknowledgement after {:.2} s at most; {} crashes of Postgres, {:.2} s; {} other faults, {:.2} s",
            count(&kills),
            count(&at_points),
            slowest(&kills),
            count(&|blow| blow == Blow::Crash),
            slowest(&|blow| blow == Blow::Crash),
            count(&others),
            slowest(&others)
        ));
    }
}

/// What a trial found.
struct Found {
    unfinished: usize,
    seen: Seen,
    decreases: i64,
    odd: Vec<u16>,
    verdict: Verdict,
}

impl Found {
    const fn is_good(&self) -> bool {
        self.verdict.is_good()
            && self.unfinished == 0
            && self.decreases == 0
            && self.seen.stuck == 0
            && self.odd.is_empty()
    }

    fn say(&self, history: &History) {
        let times = history.times();
        say(&format!("  {}", self.verdict));
        say(&format!(
            "  versions that went back {}, sessions stuck in a transaction {}, connections at most {}, unfinished {}, answers \
             other than 2xx and 503: {:?}\n  answers: p50 {:.1?}, p99 {:.1?}, max {:.1?}",
            self.decreases,
            self.seen.stuck,
            self.seen.connections,
            self.unfinished,
            self.odd,
            percentile(&times, 50),
            percentile(&times, 99),
            times.last().copied().unwrap_or_default()
        ));
    }
}

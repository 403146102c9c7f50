//! When passes run, inside `serve`. The one file that knows the crate `tokio-cron-scheduler`.
//!
//! Its jobs may overlap, and one may start after it was shut down: so a job only nudges a channel, and one task of ours
//! runs passes one at a time, with jitter, until it is stopped. Another task makes the reads that webhooks leave to be made.

use super::{Error, PassRequest, Reconciler, Report, Silent};
use crate::clerk::client::PAGE_SIZE;
use crate::model::{InstanceId, Kind, PassState, Scope};
use crate::store::{self, LastSeen, Session};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_cron_scheduler::{Job, JobScheduler};

/// Every night, and users that changed lately every five minutes.
pub(crate) const DEFAULT_FULL: &str = "17 3 * * *";
pub(crate) const DEFAULT_QUICK: &str = "*/5 * * * *";
/// Memberships decide access, and no quick pass sees a change of role that moved no count.
const MEMBERSHIPS: &str = "43 * * * *";
/// A pass of memberships every hour may take a tenth of it.
const HOURLY: Duration = Duration::from_secs(360);

/// How often to check for requested passes, and for pending reads that send no notification (stubs).
const POLL_INTERVAL: Duration = Duration::from_secs(15);
/// How long to wait for a stub's own webhook, which makes the read unnecessary.
const DEBOUNCE: Duration = Duration::from_secs(2);
/// How long to wait before a failed pass is requested again; doubles each time. A wrong key or an outage is not fixed within seconds, and
/// a pass may list everything.
const PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(900);
const JITTER: Duration = Duration::from_secs(20);

/// A time table in UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    /// Six fields.
    fields: String,
    /// Whether the seconds were named: then it keeps to them.
    has_seconds: bool,
}

impl Cron {
    /// Five fields, or six with seconds first. `None` for `off`.
    ///
    /// # Errors
    /// What is wrong, as the end of a sentence that begins with the variable's name.
    pub fn parse(text: &str) -> Result<Option<Cron>, String> {
        if text.eq_ignore_ascii_case("off") {
            return Ok(None);
        }
        let cron = match text.split_whitespace().count() {
            5 => Cron { fields: format!("0 {text}"), has_seconds: false },
            6 => Cron { fields: text.to_owned(), has_seconds: true },
            _ => return Err("must have five fields such as 17 3 * * *, or be off".to_owned()),
        };
        match Job::new(cron.fields.as_str(), |_, _| {}) {
            Ok(_) => Ok(Some(cron)),
            Err(_) => Err("must be minute, hour, day of month, month and day of week (UTC), with seconds before them if there are \
                           six fields"
                .to_owned()),
        }
    }

    /// At most so long after its time a pass begins: replicas fire at the same moment, and the first one to come runs the pass.
    const fn jitter(&self) -> Duration {
        if self.has_seconds { Duration::ZERO } else { JITTER }
    }
}

/// When passes run; `None`: never.
#[derive(Clone, Debug)]
pub struct Timetable {
    pub full: Option<Cron>,
    pub quick: Option<Cron>,
    /// Calls to Clerk in 10 s, which say whether memberships can be listed every hour.
    pub rate: Option<u32>,
}

/// The mirror's instance and the key's, if they differ: no pass can run until the configuration is fixed.
pub(crate) type Foreign = Option<(InstanceId, InstanceId)>;

/// The tasks. Dropping it stops them; a pass that is under way is gone on with by the next one.
pub(crate) struct Schedule {
    tasks: Vec<JoinHandle<()>>,
    foreign: watch::Receiver<Foreign>,
}

impl Schedule {
    /// Starts the tasks. `pending` is told when a webhook leaves a read to be made; `last_seen`: what this process has seen the database
    /// hold.
    pub(crate) fn start(
        reconciler: Reconciler,
        timetable: Timetable,
        pending: Arc<Notify>,
        last_seen: LastSeen,
    ) -> Schedule {
        let (publish, foreign) = watch::channel(None);
        let settling = tokio::spawn(run_pending_reads(reconciler.clone(), pending));
        let passing = tokio::spawn(async move {
            let (off, not_before) = (HashSet::new(), Instant::now());
            let mut passes =
                PassRunner { reconciler, timetable, off, foreign: publish, pause: PAUSE, not_before, last_seen };
            passes.run().await;
        });
        Schedule { tasks: vec![settling, passing], foreign }
    }

    /// Another instance's key, and the instance that the mirror is pinned to.
    pub(crate) fn foreign(&self) -> watch::Receiver<Foreign> {
        self.foreign.clone()
    }
}

impl Drop for Schedule {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Makes reads and listings of single organizations as they are asked for.
async fn run_pending_reads(reconciler: Reconciler, pending: Arc<Notify>) {
    let mut wait = POLL_INTERVAL;
    loop {
        let _ = tokio::time::timeout(wait, pending.notified()).await;
        sleep(DEBOUNCE).await;
        match reconciler.run_pending_reads().await {
            Ok(0) => {}
            Ok(reads) => tracing::info!(reads, "objects were read again from Clerk"),
            // The passes tell of a key or a database that will not do.
            Err(error) => tracing::debug!(%error, "reads are left for the next reconcile"),
        }
        wait = match reconciler.list_members().await {
            Ok((listed, next)) => {
                if listed > 0 {
                    tracing::info!(organizations = listed, "the members of organizations were listed again");
                }
                next.map_or(POLL_INTERVAL, |next| next.saturating_sub(DEBOUNCE).min(POLL_INTERVAL))
            }
            Err(error) => {
                tracing::debug!(%error, "listings of members are left for later");
                POLL_INTERVAL
            }
        };
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Full,
    Memberships,
    Quick,
}

struct PassRunner {
    reconciler: Reconciler,
    timetable: Timetable,
    /// Kinds that Clerk has switched off.
    off: HashSet<Kind>,
    foreign: watch::Sender<Foreign>,
    /// What was asked for waits until then after a failure; and how long it will wait after the next one.
    not_before: Instant,
    pause: Duration,
    last_seen: LastSeen,
}

impl PassRunner {
    async fn run(&mut self) {
        let (nudge, mut due) = mpsc::channel(8);
        let scheduler = match start_cron(&self.timetable, &nudge).await {
            Ok(scheduler) => Some(scheduler),
            Err(error) => {
                tracing::error!(%error, "scheduled reconciles are disabled");
                None
            }
        };
        let mut asked = interval(POLL_INTERVAL);
        asked.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                due = due.recv() => match due {
                    Some(due) => self.run_scheduled(due).await,
                    None => break,
                },
                _ = asked.tick() => self.run_requested().await,
            }
        }
        drop(scheduler);
    }

    async fn run_scheduled(&mut self, due: Due) {
        let cron = match due {
            Due::Full => self.timetable.full.as_ref(),
            Due::Quick => self.timetable.quick.as_ref(),
            Due::Memberships => None,
        };
        let jitter = cron.map_or(JITTER, Cron::jitter);
        sleep(jitter.mul_f64(fastrand::f64())).await;
        let wanted = match due {
            // Those that were off, too: they may have been switched on.
            Due::Full => PassRequest::Kinds(Kind::ALL.to_vec()),
            Due::Quick => PassRequest::Quick,
            Due::Memberships if self.memberships_fit().await => PassRequest::Kinds(vec![Kind::Membership]),
            Due::Memberships => return,
        };
        self.pass(&wanted, "schedule").await;
    }

    /// Whether memberships can be listed every hour.
    async fn memberships_fit(&self) -> bool {
        if self.off.contains(&Kind::Membership) {
            return false;
        }
        let Ok(mut session) = self.reconciler.database.connect_for_passes().await else { return false };
        let Ok(rows) = session.count(Kind::Membership).await else { return false };
        let calls = rows / (PAGE_SIZE as u64 - 50) + 1;
        self.timetable.rate.is_none_or(|rate| calls * 10 <= u64::from(rate) * HOURLY.as_secs())
    }

    async fn run_requested(&mut self) {
        let Ok(mut session) = self.reconciler.database.connect_for_passes().await else { return };
        match session.request_passes_if_restored(&self.last_seen).await {
            // The database was restored: pauses from before that no longer apply.
            Ok(true) => (self.pause, self.not_before) = (PAUSE, Instant::now()),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "cannot check whether the database went back in time"),
        }
        if Instant::now() < self.not_before {
            return;
        }
        let asked = self.next_request(&mut session).await;
        match session.remove_memberships_of_deleted().await {
            Ok(removed) => {
                removed.log();
                session.close().await;
            }
            Err(error) => tracing::debug!(%error, "memberships of deleted parents are left for the next time"),
        }
        if let Ok(Some((kinds, reason))) = asked {
            self.pass(&PassRequest::Kinds(kinds), &reason).await;
        }
    }

    /// The kinds to reconcile now, and why: those never listed; else those that an event or a count requested; else those with rows that
    /// can be judged only now. A kind that the deletion limit stopped is included: the rest of its pass still runs.
    async fn next_request(&self, session: &mut Session) -> Result<Option<(Vec<Kind>, String)>, store::Error> {
        let mut never = Vec::new();
        for kind in Kind::ALL {
            if !self.off.contains(&kind) && session.pass_watermark(kind).await?.is_none() {
                never.push(kind);
            }
        }
        if !never.is_empty() {
            return Ok(Some((never, "never listed before".to_owned())));
        }
        let asked = session.pending_passes().await?;
        if let Some((_, reason)) = asked.first() {
            let reason = reason.clone();
            return Ok(Some((asked.into_iter().map(|(kind, _)| kind).collect(), reason)));
        }
        let again = session.due_again().await?;
        Ok((!again.is_empty()).then(|| (again, "rows that were seen too recently can be decided now".to_owned())))
    }

    async fn pass(&mut self, wanted: &PassRequest, reason: &str) {
        match self.reconciler.run(wanted, reason, false, &mut Silent).await {
            Ok(reports) => {
                self.foreign.send_replace(None);
                for report in &reports {
                    self.note(report);
                }
                if let PassRequest::Kinds(kinds) = wanted {
                    // Single undecided rows are left to reads by id.
                    let failed = |kind: &Kind| {
                        let last = reports.iter().rfind(|report| report.scope == Scope::Kind(*kind));
                        last.is_some_and(|report| report.state.is_failure() && !report.is_at_end)
                    };
                    let failed: Vec<Kind> = kinds.iter().copied().filter(failed).collect();
                    if failed.is_empty() {
                        self.pause = PAUSE;
                    } else {
                        self.ask_again(&failed).await;
                    }
                }
            }
            Err(Error::Busy) => tracing::debug!("another process is reconciling"),
            Err(error) => {
                tracing::error!(%error, "no reconcile could start");
                match (error, wanted) {
                    (Error::ForeignKey { pinned, of_key }, _) => {
                        self.foreign.send_replace(Some((pinned, of_key)));
                        self.wait();
                    }
                    (_, PassRequest::Kinds(kinds)) => self.ask_again(kinds).await,
                    _ => {}
                }
            }
        }
    }

    /// Asks for what did not end: it is not to wait until it is due once more.
    async fn ask_again(&mut self, kinds: &[Kind]) {
        if let Ok(mut session) = self.reconciler.database.connect_for_passes().await {
            for kind in kinds {
                if session.request_pass(*kind, "the last one did not end").await.is_err() {
                    break;
                }
            }
            session.close().await;
        }
        self.wait();
    }

    fn wait(&mut self) {
        self.not_before = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    fn note(&mut self, report: &Report) {
        match (report.state, report.scope) {
            (PassState::Skipped, Scope::Kind(kind)) => {
                self.off.insert(kind);
            }
            (PassState::Complete, Scope::Kind(kind)) => {
                self.off.remove(&kind);
            }
            (PassState::Running | PassState::Complete | PassState::Skipped, _) => {}
            (PassState::Braked, _) => {
                tracing::error!(
                    pass = report.pass,
                    problem = report.problem,
                    "the deletions of a reconcile wait for approval: there are too many"
                );
            }
            (PassState::Incomplete | PassState::Void, _) => {
                tracing::warn!(pass = report.pass, problem = report.problem, "a reconcile did not complete");
            }
        }
    }
}

/// Nudges at the times of the table.
async fn start_cron(
    timetable: &Timetable,
    nudge: &mpsc::Sender<Due>,
) -> Result<JobScheduler, tokio_cron_scheduler::JobSchedulerError> {
    let scheduler = JobScheduler::new().await?;
    let hourly = timetable.full.as_ref().map(|_| Cron { fields: format!("0 {MEMBERSHIPS}"), has_seconds: false });
    let times = [(&timetable.full, Due::Full), (&hourly, Due::Memberships), (&timetable.quick, Due::Quick)];
    for (cron, due) in times {
        let Some(Cron { fields, .. }) = cron else { continue };
        let nudge = nudge.clone();
        let job = Job::new(fields.as_str(), move |_, _| {
            // The channel is full: earlier passes are still waiting. Drop this one.
            let _ = nudge.try_send(due);
        })?;
        scheduler.add(job).await?;
    }
    scheduler.start().await?;
    Ok(scheduler)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_table_of_seconds_keeps_to_them() {
        let jitter = |text| Cron::parse(text).unwrap().unwrap().jitter();
        assert_eq!((jitter("*/5 * * * * *"), jitter("*/5 * * * *")), (Duration::ZERO, JITTER));
    }

    #[test]
    fn a_time_table_has_five_fields_or_six_or_is_off() {
        let fields = |text| Cron::parse(text).unwrap().map(|cron| cron.fields);
        assert_eq!(fields("17 3 * * *").as_deref(), Some("0 17 3 * * *"));
        assert_eq!(fields("*/30 17 3 * * *").as_deref(), Some("*/30 17 3 * * *"));
        assert_eq!(Cron::parse("off").unwrap(), None);
        for bad in ["", "nightly", "17 3 * *", "61 3 * * *", "17 25 * * *", "1 2 3 4 5 6 7 8"] {
            assert!(Cron::parse(bad).is_err(), "{bad}");
        }
    }
}

//! Reconcile: finds what webhooks missed and repairs it, and never destroys anything by mistake.
//!
//! A pass lists everything of one kind at Clerk, compares page by page with the mirror ([`compare`]), asks
//! by id for what the listing did not show before believing that it is gone, and settles what waits for a read. It writes
//! through `clerk_sync.apply` like the webhooks do, so a race between the two is decided by version.
//!
//! | file | step |
//! | --- | --- |
//! | `lease` | one process runs passes at a time |
//! | `refused_rows` | rows that the database refuses, found among others |
//! | `pass` | the steps of a pass: `list`, `confirm`, `reads` and `end`, and what it writes (`record`) |
//! | `pages` | page after page, in order, without a gap |
//! | [`compare`], [`window`], [`brake`] | pure: what differs, what is absent, how much may be deleted |
//! | [`finding`] | pure: the report of a repaired row |
//! | `quick` | the quick pass: recent changes, and row counts |
//! | `refresh` | one object and its memberships |
//! | [`schedule`] | when, inside `serve` |

pub mod brake;
pub mod compare;
pub mod finding;
mod lease;
mod pages;
mod pass;
mod quick;
mod refresh;
mod refused_rows;
pub mod schedule;
pub mod window;

pub use finding::Finding;
pub use refresh::Refreshed;

use crate::clerk::client::{self, Client};
use crate::model::{Fence, InstanceId, Kind, Millis, PassState, Scope, Undecided};
use crate::store::{self, Database, Session};
use lease::Lease;
use serde::Serialize;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many findings a report lists; all are counted, and kept in `clerk_sync.findings`.
pub(crate) const FINDINGS_REPORTED_MAX: usize = 10_000;

/// Why a pass could not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Clerk(#[from] client::Error),
    #[error("{}", .0.summary())]
    Database(#[from] store::Error),
    #[error("the tables belong to the Clerk instance {pinned}, the secret key to {of_key}: nothing was compared")]
    ForeignKey { pinned: InstanceId, of_key: InstanceId },
    #[error(
        "the secret key belongs to a {0} instance of Clerk, and this is for development instances alone: use the key of one here, and clerk-sync serve in production"
    )]
    NotDevelopment(String),
    #[error("another process is reconciling")]
    Busy,
    #[error(
        "reconcile {0} is not waiting for approval: the deletion limit did not stop it, a later one completed, or the rows to delete have changed. clerk-sync doctor prints the current command"
    )]
    NotBraked(i64),
    #[error("{0}")]
    Contradiction(String),
    #[error(transparent)]
    OutOfOrder(#[from] window::OutOfOrder),
    #[error("{0} is not in the tables: refresh its user or its organization")]
    UnknownMembership(String),
    #[error("neither Clerk nor the tables have {0}: nothing was written")]
    Unknown(String),
}

/// What passes need.
#[derive(Clone)]
pub struct Reconciler {
    pub clerk: Arc<Client>,
    pub database: Database,
    /// The instance that the environment names, if it does.
    pub instance: Option<InstanceId>,
    pub times: PassLimits,
}

/// Limits that tests shorten.
#[derive(Clone, Copy, Debug)]
pub struct PassLimits {
    /// How long a lease outlives its holder.
    pub lease: Duration,
    /// How long to wait while another process holds the lease.
    pub lease_wait: Duration,
    /// How old an unfinished pass may be to be resumed.
    pub resume_within: Duration,
}

impl Default for PassLimits {
    fn default() -> PassLimits {
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        PassLimits { lease: Duration::from_secs(20), lease_wait: Duration::from_secs(60), resume_within: hours(12) }
    }
}

/// What to reconcile.
#[derive(Clone, Debug)]
pub enum PassRequest {
    /// Passes of these kinds, in the order of [`Kind::ALL`].
    Kinds(Vec<Kind>),
    /// What changed lately.
    Quick,
    /// A pass that the deletion limit stopped, and a person approved.
    Approved(i64),
    /// Passes of all kinds of a development instance ([`Reconciler::begin_development`]), whose lists are believed at once, whatever they
    /// take away.
    Development,
}

/// Where a pass puts what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sink {
    /// Into the database, while it holds the lease.
    Record(Fence),
    /// Nowhere but into its report.
    DryRun,
}

impl Sink {
    const fn fence(self) -> Option<Fence> {
        match self {
            Sink::Record(fence) => Some(fence),
            Sink::DryRun => None,
        }
    }
}

/// What a pass found and did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `None`: a dry run, which leaves no trace.
    pub pass: Option<i64>,
    pub scope: Scope,
    pub state: PassState,
    pub problem: Option<String>,
    pub dry_run: bool,
    pub backfill: bool,
    /// Whether an earlier run had begun it, which then had seen a part of what Clerk has.
    pub resumed: bool,
    /// Rows that Clerk listed.
    pub listed: u64,
    /// Rows that a first pass has added, or, in a dry run, would add: they are no drift.
    pub added: u64,
    /// Rows whose times alone had moved.
    pub refreshed: u64,
    pub missing: u64,
    pub differing: u64,
    pub extra: u64,
    /// Rows that were not judged: the mirror may be wrong about them.
    pub undecided: Undecided,
    /// When rows that were observed too recently can be judged, by Clerk's clock, in ms.
    pub judge_after: Option<Millis>,
    /// Ids of some of those that contradict what webhooks said.
    pub contradictions: Vec<String>,
    /// Of an incomplete one: whether it has done what could be done, and the next one begins anew.
    #[serde(skip)]
    pub is_at_end: bool,
    /// Calls to Clerk's API meanwhile, all tries counted.
    pub calls: u64,
    pub seconds: f64,
    pub findings: Vec<Finding>,
    /// Of one that the deletion limit stopped: the rows that it would delete.
    pub candidates: Vec<Finding>,
    /// The command that lets it delete them; `None` in a dry run while no pass waits that would delete just those.
    pub approve: Option<String>,
}

impl Report {
    /// Rows that were wrong.
    pub const fn drift(&self) -> u64 {
        self.missing + self.differing + self.extra
    }
}

/// What is reported while a pass runs.
pub trait Progress: Send {
    /// So many rows of a kind have been compared, of about so many.
    fn listed(&mut self, kind: Kind, rows: u64, of: Option<u64>);
}

/// Tells nobody.
pub struct Silent;

impl Progress for Silent {
    fn listed(&mut self, _: Kind, _: u64, _: Option<u64>) {}
}

impl Reconciler {
    /// Runs the requested passes, and returns a report of each. Kinds are independent: an error or the deletion limit stops only its own kind.
    ///
    /// An unfinished pass of an earlier run is resumed, and followed by a full one of its kind. An approved pass is followed by full passes of
    /// its kind and of the later kinds. If all are complete and nothing is undecided, the mirror has what Clerk had when this run began,
    /// except for deletions of objects that were observed in the five minutes before: the next run finds those. `docs/reliability.md`, "What
    /// is not promised", says what else a run cannot see.
    ///
    /// # Errors
    /// No pass could begin.
    pub async fn run(
        &self,
        wanted: &PassRequest,
        reason: &str,
        dry_run: bool,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Report>, Error> {
        let mut session = self.database.connect_for_passes().await?;
        let began_at = match self.check_instance(&mut session).await {
            Ok(began_at) => began_at,
            Err(error) => {
                if !dry_run && let Err(error) = session.record_failed_start(&error.to_string()).await {
                    tracing::debug!(%error, "cannot record that no reconcile could start");
                }
                return Err(error);
            }
        };
        if dry_run {
            return self.passes(&mut session, Sink::DryRun, wanted, reason, began_at, progress).await;
        }
        let lease = Lease::take(&self.database, &mut session, self.times.lease, self.times.lease_wait).await?;
        let reports = self.passes(&mut session, Sink::Record(lease.fence), wanted, reason, began_at, progress).await;
        match session.remove_memberships_of_deleted().await {
            Ok(removed) => removed.log(),
            Err(error) => tracing::debug!(%error, "memberships of deleted parents are left for the next run"),
        }
        lease.end(&mut session).await;
        reports
    }

    /// The key's instance must be the mirror's: a key of another one would empty it. Answers Clerk's time.
    pub(crate) async fn check_instance(&self, session: &mut Session) -> Result<Millis, Error> {
        self.clerk.trust_clock(session.clock().await?);
        let (of_key, at) = self.clerk.instance().await?;
        let (wanted, source) = match &self.instance {
            Some(instance) => (instance, "environment"),
            None => (&of_key, "api"),
        };
        match session.pin_instance(Some(wanted), source).await? {
            Some(pinned) if pinned != of_key => Err(Error::ForeignKey { pinned, of_key }),
            _ => Ok(at),
        }
    }

    /// Looks whether key and tables belong to the same instance, and writes nothing. The tables may be another release's, or not there yet.
    ///
    /// # Errors
    /// They belong to different ones; or Clerk or the database does not answer.
    pub async fn check_before_migrating(&self) -> Result<(), Error> {
        let (of_key, _) = self.clerk.instance().await?;
        self.check_key(of_key).await
    }

    /// The same, and that it is a development instance.
    ///
    /// # Errors
    /// As [`Reconciler::check_before_migrating`], and it is another kind of instance.
    pub async fn check_development_before_migrating(&self) -> Result<(), Error> {
        let (of_key, environment) = self.clerk.environment().await?;
        if environment != "development" {
            return Err(Error::NotDevelopment(environment));
        }
        self.check_key(of_key).await
    }

    async fn check_key(&self, of_key: InstanceId) -> Result<(), Error> {
        match self.database.instance_before_migrating().await?.or_else(|| self.instance.clone()) {
            Some(pinned) if pinned != of_key => Err(Error::ForeignKey { pinned, of_key }),
            _ => Ok(()),
        }
    }

    /// Makes sure that key and mirror belong to the same development instance, and tells the writer so. Answers which it is.
    ///
    /// # Errors
    /// It is another instance, or none for development; or Clerk or the database does not answer.
    pub async fn begin_development(&self) -> Result<InstanceId, Error> {
        let mut session = self.database.connect_for_passes().await?;
        self.check_instance(&mut session).await?;
        let (instance, environment) = self.clerk.environment().await?;
        session.record_environment(&instance, &environment).await?;
        session.close().await;
        if environment == "development" { Ok(instance) } else { Err(Error::NotDevelopment(environment)) }
    }

    async fn passes(
        &self,
        session: &mut Session,
        sink: Sink,
        wanted: &PassRequest,
        reason: &str,
        began_at: Millis,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Report>, Error> {
        let began = Instant::now();
        let now = || began_at.plus(i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX));
        let mut reports = Vec::new();
        let kinds: Vec<Kind> = match wanted {
            PassRequest::Kinds(kinds) => Kind::ALL.into_iter().filter(|kind| kinds.contains(kind)).collect(),
            PassRequest::Quick => {
                reports.push(quick::run(self, session, sink, reason, began_at, progress).await?);
                Vec::new()
            }
            PassRequest::Development => Kind::ALL.to_vec(),
            PassRequest::Approved(id) => {
                let fence = sink.fence().ok_or(Error::NotBraked(*id))?;
                let row = session.approve_pass(fence, *id).await?.ok_or(Error::NotBraked(*id))?;
                let approved = row.scope.kind();
                let report = pass::resume(self, session, fence, row, now(), progress).await?;
                let is_complete = report.state == PassState::Complete;
                reports.push(report);
                // The approved pass is old by now: run its kind and the later kinds in full.
                Kind::ALL.into_iter().filter(|kind| is_complete && Some(*kind) >= approved).collect()
            }
        };
        let mut held = HashSet::new();
        for kind in kinds {
            let is_development = matches!(wanted, PassRequest::Development);
            let request = || pass::Request { kind, reason, began_at: now(), is_development };
            let mut report = pass::run(self, session, sink, request(), &mut held, progress).await?;
            // What it had listed before we began may have changed since.
            if report.resumed && report.state == PassState::Complete {
                reports.push(report);
                report = pass::run(self, session, sink, request(), &mut held, progress).await?;
            }
            reports.push(report);
        }
        Ok(reports)
    }
}

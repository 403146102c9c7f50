//! Whether deliveries can be written, and what else the writer has learned of the database: for `/readyz`, the status page and logs.

use crate::clock;
use crate::model::{InstanceId, Millis};
use crate::store::{Error, causes, error_chain};
use crate::telemetry::Throttle;
use std::time::Instant;
use tokio::sync::watch;

/// Why deliveries cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// For anybody to read.
    pub summary: String,
    /// The server's code, for operators.
    pub sqlstate: Option<String>,
    /// Since when, by our clock.
    pub since: Millis,
    /// Whether only a written delivery clears the fault: one failed for a reason that a ping cannot rule out.
    until_delivery: bool,
    /// Nothing has failed: the writer has just started.
    is_untried: bool,
}

/// What the task knows of the database.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Why it cannot be written to; `None` while it can. It lasts until a write succeeds.
    pub fault: Option<Fault>,
    /// The Clerk instance that the mirror is pinned to.
    pub pinned: Option<InstanceId>,
    /// The last message's instance, if it was another one.
    pub foreign: Option<InstanceId>,
    /// By how many seconds our clock was ahead of the database's when it was last asked; less than 0: behind.
    pub clock_ahead: i64,
    /// When a webhook last came whose own time was more than five minutes ahead of the database's clock.
    pub event_ahead: Option<Instant>,
}

/// Publishes it. A clone publishes the same.
#[derive(Clone, Debug)]
pub(super) struct Reporter(watch::Sender<Health>);

impl Reporter {
    /// Starts with the fault "not tried yet", until a first write succeeds.
    pub(super) fn new() -> Reporter {
        let summary = "not tried yet".to_owned();
        let untried = Fault { summary, sqlstate: None, since: clock::now(), until_delivery: false, is_untried: true };
        Reporter(watch::Sender::new(Health { fault: Some(untried), ..Health::default() }))
    }

    pub(super) fn watch(&self) -> watch::Receiver<Health> {
        self.0.subscribe()
    }

    pub(super) fn has_fault(&self) -> bool {
        self.0.borrow().fault.is_some()
    }

    /// Records that the database cannot be written to, and logs all causes. `of_delivery`: a delivery failed, not a ping.
    pub(super) fn set_fault(&self, error: &Error, of_delivery: bool) {
        static LOGGED: Throttle = Throttle::new();
        let (summary, sqlstate) = (error.to_string(), error.sqlstate());
        self.0.send_if_modified(|health| {
            let known = health.fault.take();
            let is_new = known.as_ref().is_none_or(|known| (&known.summary, &known.sqlstate) != (&summary, &sqlstate));
            if is_new && let Some(suppressed) = LOGGED.should_log() {
                tracing::error!(error = error_chain(causes(error)), suppressed, "the database cannot be written to");
            }
            let until_delivery = (of_delivery && !error.is_over_with_any_write())
                || known.as_ref().is_some_and(|known| known.until_delivery);
            let since = known.as_ref().filter(|known| !known.is_untried).map_or_else(clock::now, |known| known.since);
            health.fault = Some(Fault { summary, sqlstate, since, until_delivery, is_untried: false });
            is_new
        });
    }

    /// A delivery was written.
    pub(super) fn clear_fault(&self) {
        self.clear_fault_if(|_| true);
    }

    /// A write that was no delivery succeeded.
    pub(super) fn clear_fault_of_server(&self) {
        self.clear_fault_if(|fault| !fault.until_delivery);
    }

    fn clear_fault_if(&self, is_over: impl Fn(&Fault) -> bool) {
        self.0.send_if_modified(|health| {
            let is_over = health.fault.as_ref().is_some_and(is_over);
            if is_over {
                tracing::info!("the database can be written to");
                health.fault = None;
            }
            is_over
        });
    }

    /// The instance that the mirror is pinned to.
    pub(super) fn set_pinned(&self, pinned: Option<InstanceId>) {
        self.0.send_modify(|health| health.pinned = pinned);
    }

    /// A message of `instance` came, and the mirror is pinned to another one.
    pub(super) fn note_foreign(&self, pinned: Option<InstanceId>, instance: Option<InstanceId>) {
        self.0.send_modify(|health| (health.pinned, health.foreign) = (pinned, instance));
    }

    /// A message of the mirror's own instance came.
    pub(super) fn note_own(&self) {
        self.0.send_if_modified(|health| health.foreign.take().is_some());
    }

    /// A webhook came whose own time is ahead of the database's clock.
    pub(super) fn note_event_ahead(&self) {
        self.0.send_modify(|health| health.event_ahead = Some(Instant::now()));
    }

    /// By how many seconds our clock is ahead of the database's.
    pub(super) fn set_clock_ahead(&self, seconds: i64) {
        self.0.send_modify(|health| health.clock_ahead = seconds);
    }
}

//! What is done with the bookkeeping itself: what is left of deleted parents' memberships removed, refused rows and dead letters
//! tried again, old rows pruned, emptied rows purged.
//!
//! A task of `serve` does all but the last by itself, a round each minute. It keeps no state: what is due stands in the
//! database, so that any number of replicas may do it, and one that was down goes on. Every write is one statement that may
//! be cut off. Whatever it removes, the mirror does not notice: versions, tombstones, generations and watermarks stay for ever.

pub mod dead_letters;
pub mod purge;
pub mod retention;

use crate::model::Word;
use crate::store::{Database, Error, LastSeen, Removed};
use dead_letters::RetryOutcome;
use retention::Retention;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often somebody looks which letters are due.
const ROUND: Duration = Duration::from_secs(60);
/// How often old rows are pruned.
const PRUNE: Duration = Duration::from_secs(3600);
/// Letters in one round: each may be 2 MiB.
const LETTERS: usize = 50;

/// The task. Dropping it stops it.
#[derive(Debug)]
pub struct Upkeep(JoinHandle<()>);

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Upkeep {
    /// Starts it. `check_instance`: whether letters of another Clerk instance than the mirror's are refused. `last_seen`: what this
    /// process has seen the database hold.
    pub fn start(database: Database, check_instance: bool, retention: Retention, last_seen: LastSeen) -> Upkeep {
        Upkeep(tokio::spawn(async move {
            let mut rounds = interval(ROUND);
            rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut pruned: Option<Instant> = None;
            loop {
                rounds.tick().await;
                if let Err(error) = look_back(&database, &last_seen).await {
                    tracing::debug!(error = error.summary(), "cannot check whether the database went back in time");
                }
                if let Err(error) = remove_memberships_of_deleted(&database).await {
                    tracing::debug!(
                        error = error.summary(),
                        "memberships of deleted parents are left for the next round"
                    );
                }
                if let Err(error) = retry_refused(&database).await {
                    tracing::debug!(error = error.summary(), "refused rows are left for the next round");
                }
                if let Err(error) = retry_due(&database, check_instance).await {
                    tracing::debug!(error = error.summary(), "dead letters are left for the next round");
                    continue;
                }
                if pruned.is_none_or(|at| at.elapsed() >= PRUNE) {
                    match retention::prune(&database, &retention).await {
                        Ok(pruned) if pruned.is_empty() => {}
                        Ok(pruned) => tracing::info!(
                            receipts = pruned.receipts,
                            findings = pruned.findings,
                            passes = pruned.passes,
                            dead_letters = pruned.dead_letters,
                            "pruned"
                        ),
                        Err(error) => tracing::warn!(error = error.summary(), "pruning is left for the next hour"),
                    }
                    pruned = Some(Instant::now());
                }
            }
        }))
    }
}

/// Asks for passes of everything if the database went back in time: whether it did.
///
/// # Errors
/// The database does not answer.
pub(crate) async fn look_back(database: &Database, last_seen: &LastSeen) -> Result<bool, Error> {
    let mut session = database.connect().await?;
    let went_back = session.request_passes_if_restored(last_seen).await?;
    session.close().await;
    Ok(went_back)
}

/// Removes what is left of the memberships of deleted users and organizations.
///
/// # Errors
/// The database does not answer.
pub async fn remove_memberships_of_deleted(database: &Database) -> Result<Removed, Error> {
    let mut session = database.connect().await?;
    let removed = session.remove_memberships_of_deleted().await?;
    session.close().await;
    removed.log();
    Ok(removed)
}

/// Tries rows again that something of the application's refused, and ends the denials of those that are right.
///
/// # Errors
/// The database does not answer.
pub async fn retry_refused(database: &Database) -> Result<u64, Error> {
    let mut session = database.connect().await?;
    let settled = session.retry_refused().await?;
    session.close().await;
    if settled > 0 {
        tracing::info!(settled, "refused rows are written now");
    }
    Ok(settled)
}

/// Tries the letters that are due: how many were settled.
///
/// # Errors
/// The database does not answer.
pub async fn retry_due(database: &Database, check_instance: bool) -> Result<usize, Error> {
    let mut session = database.connect().await?;
    let due = session.due_dead_letters(&dead_letters::DELAYS, LETTERS).await?;
    let mut settled = 0;
    for letter in due {
        let (message_id, event_type, tries) = (&letter.message_id, letter.event_type.as_deref(), letter.tries + 1);
        match dead_letters::retry(&mut session, &letter, check_instance, false).await? {
            RetryOutcome::Settled(verdict) => {
                settled += 1;
                let (outcome, reason) = (verdict.outcome, verdict.reason.as_ref().map(Word::as_str));
                tracing::info!(%message_id, event_type, %outcome, reason, tries, "a dead letter was applied");
            }
            RetryOutcome::Stays(reason) => {
                tracing::debug!(%message_id, event_type, reason, tries, "a dead letter still cannot be applied");
            }
            RetryOutcome::Gone => {}
        }
    }
    session.close().await;
    Ok(settled)
}

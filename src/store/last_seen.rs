//! What a process has seen the database hold, to notice when it went back in time.
//!
//! A database that is restored from a backup, or fails over to a replica that was behind, loses commits that were acknowledged, and
//! says nothing of it. Each process remembers the last message of its own that was durable, the highest number of a pass and the
//! server's timeline. If one of them is gone or another, nobody knows what else is.

use super::{Error, Session};
use crate::model::{Kind, MessageId};
use sqlx::postgres::PgConnection;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How the reason of such a pass begins.
pub(super) const WENT_BACK: &str = "the database went back in time: ";
/// Receipts may be pruned when they are older than an hour.
const KEPT: Duration = Duration::from_secs(3_000);

/// Shared by whoever writes and whoever looks. A clone is the same one.
#[derive(Clone, Debug, Default)]
pub struct LastSeen(Arc<Mutex<LastSeenState>>);

#[derive(Clone, Debug, Default)]
struct LastSeenState {
    receipt: Option<(MessageId, Instant)>,
    pass: i64,
    /// `None`: this role may not ask for it, or nobody has yet.
    timeline: Option<String>,
}

impl LastSeen {
    fn seen(&self) -> MutexGuard<'_, LastSeenState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That the receipt of this message was committed.
    pub fn note_receipt(&self, message: &MessageId) {
        self.seen().receipt = Some((message.clone(), Instant::now()));
    }
}

impl Session {
    /// Holds the database against what this process has seen of it, and asks for passes of all kinds if something is gone: whether it
    /// is.
    ///
    /// # Errors
    /// The database could not be asked; then the next look finds the same.
    pub async fn request_passes_if_restored(&mut self, last_seen: &LastSeen) -> Result<bool, Error> {
        let before = last_seen.seen().clone();
        let receipt = before.receipt.as_ref().filter(|(_, at)| at.elapsed() < KEPT).map(|(id, _)| id.0.as_str());
        let found = self
            .call(async |connection| {
                sqlx::query!(
                    r#"select coalesce((select max(id) from clerk_sync.passes), 0) as "pass!",
                              ($1::text is null or exists (select from clerk_sync.receipts where message_id = $1)) as "has_receipt!""#,
                    receipt
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        let timeline = self.timeline().await?;
        let missing = if !found.has_receipt {
            Some("an acknowledged message is missing")
        } else if found.pass < before.pass {
            Some("a reconcile that had run is missing")
        } else if timeline.is_some() && before.timeline.is_some() && timeline != before.timeline {
            Some("the server has begun another timeline")
        } else {
            None
        };
        if let Some(missing) = missing {
            for kind in Kind::ALL {
                self.request_pass(kind, &format!("{WENT_BACK}{missing}")).await?;
            }
            tracing::error!(missing, "the database went back in time: a full reconcile repairs what was written since");
        }
        let mut seen = last_seen.seen();
        // Another message may have been written meanwhile.
        if missing.is_some() && seen.receipt.as_ref().map(|(id, _)| id) == before.receipt.as_ref().map(|(id, _)| id) {
            seen.receipt = None;
        }
        (seen.pass, seen.timeline) = (found.pass, timeline.or(before.timeline));
        Ok(missing.is_some())
    }

    /// Which of its histories the server writes, where this role may ask.
    async fn timeline(&mut self) -> Result<Option<String>, Error> {
        let asking = async |connection: &mut PgConnection| {
            sqlx::query_scalar!(
                r#"select left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) as "timeline!"
                    where not pg_catalog.pg_is_in_recovery()"#
            )
            .fetch_optional(connection)
            .await
        };
        match self.call(asking).await {
            Err(error) if error.sqlstate().as_deref() == Some("42501") => Ok(None),
            timeline => timeline,
        }
    }
}

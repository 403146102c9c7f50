//! The memberships of a large user or organization that was deleted, removed a few at a time.
//!
//! Its delete is written at once, and policies, counts and passes take its memberships for gone from then on. Were their rows
//! removed in the same statement, nobody could write meanwhile, and a delete that takes longer than a statement may could
//! never be acknowledged at all.

use super::{Error, Session};
use std::collections::HashSet;
use std::time::Duration;

/// Rows that are looked up at once, without holding up anybody.
const FOUND: i64 = 5_000;
/// Rows to delete in the first statement, and the maximum for any. Each statement blocks other writers.
const FIRST: usize = 50;
const MOST: usize = 250;
/// The smallest chunk: if it is slow, the number of rows is not the cause.
const FEWEST: usize = 25;
/// One that holds them up for longer makes the next one smaller, and one that takes half as long makes it larger.
const HELD: Duration = Duration::from_millis(10);

/// What became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub rows: u64,
    /// Rows that the database refuses to let go: a trigger or a foreign key of the application's. They are tried again.
    pub refused: u64,
    /// For how long one statement has held up others at most.
    pub longest: Duration,
}

impl Removed {
    /// Says what was done, if anything was.
    pub fn log(&self) {
        if self.rows > 0 || self.refused > 0 {
            let longest_ms = u64::try_from(self.longest.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(
                rows = self.rows,
                refused = self.refused,
                longest_ms,
                "memberships of deleted parents are removed"
            );
        }
    }
}

impl Session {
    /// Removes what is left of the memberships of deleted users and organizations. Any number of processes may do so at once.
    ///
    /// # Errors
    /// The database could not be asked. What was removed stays removed, and the next call goes on.
    pub async fn remove_memberships_of_deleted(&mut self) -> Result<Removed, Error> {
        let mut removed = Removed::default();
        let mut at_once = FIRST;
        let parents = self
            .call(async |connection| {
                sqlx::query_scalar!("select id from clerk_sync.deleted_parents order by id").fetch_all(connection).await
            })
            .await?;
        for parent in parents {
            let mut refused: HashSet<String> = HashSet::new();
            loop {
                let skipped: Vec<&str> = refused.iter().map(String::as_str).collect();
                let ids = self
                    .call(async |connection| {
                        sqlx::query_scalar!(
                            "select id from clerk.organization_memberships
                              where (organization_id = $1 or user_id = $1) and id <> all ($2) limit $3",
                            parent,
                            &skipped as &[&str],
                            FOUND
                        )
                        .fetch_all(connection)
                        .await
                    })
                    .await?;
                if ids.is_empty() {
                    break;
                }
                let mut rest = ids.as_slice();
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(at_once.min(rest.len()));
                    rest = later;
                    let mut waiting = vec![now];
                    while let Some(now) = waiting.pop() {
                        let mut held = Duration::ZERO;
                        match self.remove_chunk_of_deleted(now).await {
                            Ok((rows, took)) => {
                                removed.rows += rows;
                                held = took;
                            }
                            // It is about one of them: found by halving, and left for the next time.
                            Err(error) if error.refusal().is_some() && now.len() > 1 => {
                                let (one, other) = now.split_at(now.len() / 2);
                                waiting.extend([one, other]);
                            }
                            Err(error) if error.refusal().is_some() => refused.extend(now.iter().cloned()),
                            Err(error) => return Err(error),
                        }
                        removed.longest = removed.longest.max(held);
                        if held > HELD {
                            at_once = (at_once / 2).max(FEWEST);
                        } else if held * 2 < HELD {
                            at_once = (at_once * 2).min(MOST);
                        }
                        // Whoever waits for a turn gets as much of the time as we do.
                        tokio::time::sleep(held.min(HELD)).await;
                    }
                }
            }
            removed.refused += refused.len() as u64;
            if refused.is_empty() {
                self.call(async |connection| {
                    let query = sqlx::query!("select clerk_sync.forget_deleted_parent($1)", parent);
                    query.execute(connection).await.map(drop)
                })
                .await?;
            }
        }
        Ok(removed)
    }

    /// Those of these that belong to a deleted parent, in one statement: how many, and for how long others could not write.
    async fn remove_chunk_of_deleted(&mut self, ids: &[String]) -> Result<(u64, Duration), Error> {
        let removed = self
            .call(async |connection| {
                sqlx::query!(
                    r#"select ended as "ended!", held_ms as "held_ms!" from clerk_sync.remove_memberships_of_deleted($1)"#,
                    ids
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok((u64::from(removed.ended.unsigned_abs()), Duration::from_secs_f64(removed.held_ms.max(0.0) / 1_000.0)))
    }
}

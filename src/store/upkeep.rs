//! Dead letters, and what is removed once it is old.

use super::apply::verdicts;
use super::encode::{EncodedBatch, with_batch};
use super::{Error, Session, at_most, kinds};
use crate::model::{Batch, Kind, MessageId, Millis, Verdict};
use serde::Serialize;
use sqlx::AssertSqlSafe;
use std::time::Duration;

/// A message that could not be used, without its body.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetterSummary {
    pub message_id: MessageId,
    /// With the message's id, what tells it from all others: one id may come with several bodies.
    pub body_hash: String,
    /// As far as it could be read.
    pub event_type: Option<String>,
    /// Why it could not be used when it was last tried.
    pub reason: String,
    /// In UTC, as ISO 8601 writes it.
    pub received_at: String,
    /// How often it was tried again.
    pub tries: i32,
    pub tried_at: Option<String>,
    pub body_bytes: i32,
}

/// What else is kept of it.
#[derive(Clone, Debug)]
pub struct DeadLetterBody {
    /// A JSON object.
    pub headers: String,
    pub body: Vec<u8>,
    /// By the database's clock.
    pub received_at: Millis,
}

/// What is pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prunable {
    Receipts,
    Findings,
    /// Ended ones, once their findings are gone; never the last one of its kind.
    Passes,
    DeadLetters,
}

impl Prunable {
    const fn as_str(self) -> &'static str {
        match self {
            Prunable::Receipts => "receipts",
            Prunable::Findings => "findings",
            Prunable::Passes => "passes",
            Prunable::DeadLetters => "dead_letters",
        }
    }
}

/// A foreign key of the application's on rows that would be purged.
#[derive(Clone, Debug, Serialize)]
pub struct Reference {
    /// `clerk.users` or `clerk.organizations`.
    pub parent: String,
    pub constraint: String,
    pub table: String,
    pub column: String,
    /// `cascade`, `set null`, `set default`, `restrict` or `no action`.
    pub on_delete: String,
    /// Rows that refer to one of them; `None`: they cannot be counted.
    pub rows: Option<i64>,
}

/// What became of a row that was to be purged.
#[derive(Clone, Debug)]
pub struct Purged {
    pub id: String,
    /// Of the application's: a foreign key, or the code of what failed. `None`: the row is gone.
    pub held_by: Option<String>,
}

/// Dead letters, without their bodies.
macro_rules! dead_letters {
    ($which:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            DeadLetterSummary,
            r#"select message_id, body_hash, nullif(event_type, '') as event_type, reason,
                      to_char(received_at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as "received_at!", tries,
                      to_char(tried_at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as tried_at, octet_length(body) as "body_bytes!"
                 from clerk_sync.dead_letters "# + $which,
            $($argument),*
        )
    };
}

/// Emptied rows of one kind that were deleted longer ago than `$1` seconds and have a tombstone. (`$2` is the kind.)
fn purgeable(kind: Kind) -> Option<String> {
    let table = kinds::of(kind).emptied?;
    Some(format!(
        "from {table} t where t.deleted_at < now() - $1 * interval '1 s' \
            and exists (select from clerk_sync.versions v where v.kind = $2 and v.id = t.id and v.state = 'deleted')"
    ))
}

fn seconds(age: Duration) -> i64 {
    i64::try_from(age.as_secs()).unwrap_or(i64::MAX)
}

impl Session {
    /// Dead letters whose message id or body hash begins so, the latest first.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn dead_letters(&mut self, beginning: &str) -> Result<Vec<DeadLetterSummary>, Error> {
        self.call(async |connection| {
            dead_letters!(
                "where starts_with(message_id, $1) or starts_with(body_hash, $1)
                 order by dead_letters.received_at desc, message_id, body_hash",
                beginning
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    /// Those whose next try is due, the longest due first. `delays`: what passes before each try.
    ///
    /// # Errors
    /// The database could not be asked.
    pub(crate) async fn due_dead_letters(
        &mut self,
        delays: &[Duration],
        limit: usize,
    ) -> Result<Vec<DeadLetterSummary>, Error> {
        let delays: Vec<i64> = delays.iter().copied().map(seconds).collect();
        // Beyond the last delay there is none, and null is not due.
        self.call(async |connection| {
            dead_letters!(
                "cross join lateral (select coalesce(tried_at, received_at) + ($1::bigint[])[tries + 1] * interval '1 s') d (due_at)
                 where due_at <= now() order by due_at limit $2",
                &delays,
                at_most(limit)
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    /// The rest of it; `None` if it is gone.
    ///
    /// # Errors
    /// The database could not be asked.
    pub(crate) async fn dead_letter_content(
        &mut self,
        letter: &DeadLetterSummary,
    ) -> Result<Option<DeadLetterBody>, Error> {
        self.call(async |connection| {
            sqlx::query!(
                r#"select headers::text as "headers!", body, (extract(epoch from received_at) * 1000)::bigint as "received_ms!"
                     from clerk_sync.dead_letters where message_id = $1 and body_hash = $2"#,
                letter.message_id.as_str(),
                letter.body_hash
            )
            .map(|row| DeadLetterBody {
                headers: row.headers,
                body: row.body,
                received_at: Millis::clamped(row.received_ms),
            })
            .fetch_optional(connection)
            .await
        })
        .await
    }

    /// Applies what a dead letter says now, without a batch nothing, and removes it unless it is refused again, in one
    /// statement. `by_operator`: although its message id was already used with another body. `None`: it is gone, or somebody
    /// else tried it meanwhile.
    ///
    /// # Errors
    /// Nothing was written, or, where the connection was lost, it is unknown: try again.
    pub async fn retry_dead_letter(
        &mut self,
        letter: &DeadLetterSummary,
        batch: Option<&Batch<'_>>,
        by_operator: bool,
    ) -> Result<Option<Verdict>, Error> {
        let rows = self
            .call_with_types(async |connection, types| {
                let query = match batch {
                    Some(batch) => {
                        let sql =
                            "select n, outcome, reason from clerk_sync.retry_dead_letter({1}, {2}, {3}, {4}, {batch})";
                        EncodedBatch::of(batch, types).bind(sqlx::query(AssertSqlSafe(with_batch(sql))))
                    }
                    None => {
                        sqlx::query("select n, outcome, reason from clerk_sync.retry_dead_letter($1, $2, $3, $4, null)")
                    }
                };
                let query = query.bind(letter.message_id.as_str()).bind(&letter.body_hash).bind(letter.tries);
                query.bind(by_operator).fetch_all(connection).await
            })
            .await?;
        Ok(verdicts(&rows, 1)?.pop().flatten())
    }

    /// Notes a try that failed before the mirror was asked. False: somebody else tried it meanwhile, or it is gone.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn record_dead_letter_attempt(
        &mut self,
        letter: &DeadLetterSummary,
        reason: &str,
    ) -> Result<bool, Error> {
        self.call(async |connection| {
            sqlx::query_scalar!(
                r#"select clerk_sync.record_dead_letter_attempt($1, $2, $3, $4) as "is_recorded!""#,
                letter.message_id.as_str(),
                letter.body_hash,
                letter.tries,
                reason
            )
            .fetch_one(connection)
            .await
        })
        .await
    }

    /// Removes a dead letter. False: it is gone already.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn drop_dead_letter(&mut self, letter: &DeadLetterSummary) -> Result<bool, Error> {
        self.call(async |connection| {
            sqlx::query_scalar!(
                r#"select clerk_sync.drop_dead_letter($1, $2) as "is_dropped!""#,
                letter.message_id.as_str(),
                letter.body_hash
            )
            .fetch_one(connection)
            .await
        })
        .await
    }

    /// Tries rows again that were refused: those of what has ended here, the others by having them read again. How many say now what
    /// they should.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn retry_refused(&mut self) -> Result<u64, Error> {
        let settled = self
            .call(async |connection| {
                sqlx::query_scalar!(r#"select clerk_sync.retry_refused() as "settled!""#).fetch_one(connection).await
            })
            .await?;
        Ok(u64::from(settled.unsigned_abs()))
    }

    /// Removes the oldest of these beyond an age, `limit` rows at most: how many.
    ///
    /// # Errors
    /// The database could not be asked, or the age is less than an hour.
    pub async fn prune(&mut self, what: Prunable, older_than: Duration, limit: u32) -> Result<u32, Error> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let removed = self
            .call(async |connection| {
                sqlx::query_scalar!(
                    r#"select clerk_sync.prune($1, $2, $3) as "removed!""#,
                    what.as_str(),
                    seconds(older_than),
                    limit
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        u32::try_from(removed).map_err(|_| Error::Answer("unexpected number of removed rows".to_owned()))
    }

    /// How many emptied rows of a kind were deleted longer ago than this.
    ///
    /// # Errors
    /// The database could not be asked.
    pub(crate) async fn count_purgeable(&mut self, kind: Kind, older_than: Duration) -> Result<u64, Error> {
        let Some(purgeable) = purgeable(kind) else { return Ok(0) };
        let sql = format!("select count(*) {purgeable}");
        let rows: i64 = self
            .call(async |connection| {
                let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(seconds(older_than)).bind(kind.as_str());
                query.fetch_one(connection).await
            })
            .await?;
        Ok(rows.max(0).cast_unsigned())
    }

    /// The ids of such rows behind `after`, in order.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn purgeable(
        &mut self,
        kind: Kind,
        older_than: Duration,
        after: &str,
        limit: usize,
    ) -> Result<Vec<String>, Error> {
        let Some(purgeable) = purgeable(kind) else { return Ok(Vec::new()) };
        let sql = format!("select t.id {purgeable} and t.id > $3 order by t.id limit $4");
        self.call(async |connection| {
            let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(seconds(older_than)).bind(kind.as_str());
            query.bind(after).bind(at_most(limit)).fetch_all(connection).await
        })
        .await
    }

    /// Removes those rows that nothing holds: what became of each. One that is no longer to be purged is left out.
    ///
    /// # Errors
    /// The database could not be asked, or the age is less than a day; then all of them stay.
    pub async fn purge(&mut self, kind: Kind, ids: &[String], older_than: Duration) -> Result<Vec<Purged>, Error> {
        self.call(async |connection| {
            sqlx::query_as!(
                Purged,
                r#"select purged_id as "id!", held_by from clerk_sync.purge($1, $2, $3)"#,
                kind.as_str(),
                ids,
                seconds(older_than)
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    /// The application's foreign keys on rows that a purge would remove.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn purge_references(&mut self, older_than: Duration) -> Result<Vec<Reference>, Error> {
        self.call(async |connection| {
            sqlx::query_as!(
                Reference,
                r#"select parent as "parent!", constraint_name as "constraint!", table_name as "table!", column_name as "column!",
                          on_delete as "on_delete!", referencing as rows
                     from clerk_sync.purge_references($1)"#,
                seconds(older_than)
            )
            .fetch_all(connection)
            .await
        })
        .await
    }
}

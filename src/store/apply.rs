//! The call that applies a batch: `clerk_sync.apply`.

use super::encode::{EncodedBatch, with_batch};
use super::{Error, Session};
use crate::model::{Batch, Millis, Outcome, PendingRead, Verdict, Word};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};
use std::sync::LazyLock;

impl Session {
    /// Applies a folded batch in one statement, which is one transaction, and answers what became of each item, in the
    /// order of the batch. If any item is [`Outcome::Foreign`] or [`Outcome::Reused`], only those are answered (the others
    /// are `None`) and nothing was written.
    ///
    /// # Errors
    /// Nothing was written, or, where the connection was lost, it is unknown: apply the same batch again.
    pub async fn apply(&mut self, batch: &Batch<'_>, items: usize) -> Result<Vec<Option<Verdict>>, Error> {
        let rows = self
            .call_with_types(async |connection, types| {
                static SQL: LazyLock<String> =
                    LazyLock::new(|| with_batch("select n, outcome, reason from clerk_sync.apply({batch})"));
                EncodedBatch::of(batch, types)
                    .bind(sqlx::query(AssertSqlSafe(SQL.as_str())))
                    .fetch_all(connection)
                    .await
            })
            .await?;
        verdicts(&rows, items)
    }
}

impl Session {
    /// Denies what the read would have to tell of, and nobody will make it: if its row gives access, and nothing newer is known.
    ///
    /// # Errors
    /// It is not denied, or nobody knows: do it again.
    pub async fn deny_unsettled(&mut self, read: &PendingRead, observed_at: Millis) -> Result<(), Error> {
        let at = Some(observed_at.get()).filter(|_| observed_at > Millis::MIN);
        self.call(async |connection| {
            let query = sqlx::query("select clerk_sync.deny_unsettled($1, $2, $3, $4)");
            let query = query.bind(read.kind.as_str()).bind(&read.id).bind(at).bind(read.reason);
            query.execute(connection).await.map(drop)
        })
        .await
    }
}

/// The answer of `clerk_sync.apply`, in the order of the batch.
pub(super) fn verdicts(rows: &[PgRow], items: usize) -> Result<Vec<Option<Verdict>>, Error> {
    let mut verdicts = vec![None; items];
    for row in rows {
        let n: i32 = row.try_get("n").map_err(Error::Refused)?;
        let outcome: &str = row.try_get("outcome").map_err(Error::Refused)?;
        let outcome = Outcome::parse(outcome).ok_or_else(|| Error::Answer(format!("unknown outcome {outcome}")))?;
        let reason: Option<&str> = row.try_get("reason").map_err(Error::Refused)?;
        let reason = reason.map(Word::of);
        let verdict = usize::try_from(n).ok().and_then(|n| verdicts.get_mut(n));
        *verdict.ok_or_else(|| Error::Answer(format!("unknown item {n}")))? = Some(Verdict { outcome, reason });
    }
    Ok(verdicts)
}

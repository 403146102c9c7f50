//! The one call that writes the mirror.

use super::wire::{Wire, batch};
use super::{Error, Session};
use crate::model::{Batch, Outcome, Verdict};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

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
                let sql = concat!("select n, outcome, reason from clerk_sync.apply(", batch!(), ")");
                Wire::of(batch, types).bind(sqlx::query(sql)).fetch_all(connection).await
            })
            .await?;
        verdicts(&rows, items)
    }
}

/// The answer of `clerk_sync.apply`, in the order of the batch.
pub(super) fn verdicts(rows: &[PgRow], items: usize) -> Result<Vec<Option<Verdict>>, Error> {
    let mut verdicts = vec![None; items];
    for row in rows {
        let n: i32 = row.try_get("n").map_err(Error::Refused)?;
        let outcome: &str = row.try_get("outcome").map_err(Error::Refused)?;
        let outcome =
            Outcome::parse(outcome).ok_or_else(|| Error::Answer(format!("no outcome is called {outcome}")))?;
        let reason = row.try_get("reason").map_err(Error::Refused)?;
        let verdict = usize::try_from(n).ok().and_then(|n| verdicts.get_mut(n));
        *verdict.ok_or_else(|| Error::Answer(format!("no item has the number {n}")))? =
            Some(Verdict { outcome, reason });
    }
    Ok(verdicts)
}

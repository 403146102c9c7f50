//! Removing the emptied rows of users and organizations that were deleted long ago.
//!
//! They were kept for the application's foreign keys, so only a person decides that they go, and sees first what each of
//! those keys would do. A row that something holds stays, and the others go. Tombstones are not touched: a late webhook is
//! stale for ever.

use crate::model::Kind;
use crate::store::{Database, Error, Reference, emptied};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::time::Duration;

/// Rows in one statement. While it runs webhooks wait, and a foreign key without an index makes each row slow.
const STEP: usize = 20;

/// What a purge would do.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    #[serde(flatten, serialize_with = "by_plural")]
    pub rows: BTreeMap<Kind, u64>,
    pub foreign_keys: Vec<Reference>,
}

/// What it did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Purged {
    #[serde(flatten, serialize_with = "by_plural")]
    pub rows: BTreeMap<Kind, u64>,
    /// Rows that stay, by what holds them.
    pub held: BTreeMap<String, u64>,
}

fn by_plural<S: Serializer>(rows: &BTreeMap<Kind, u64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(rows.iter().map(|(kind, rows)| (kind.plural(), rows)))
}

/// What [`purge`] would remove, and which foreign keys would act.
///
/// # Errors
/// The database does not answer.
pub async fn plan(database: &Database, older_than: Duration) -> Result<Plan, Error> {
    let mut session = database.connect_for_passes().await?;
    let mut rows = BTreeMap::new();
    for kind in emptied() {
        rows.insert(kind, session.count_purgeable(kind, older_than).await?);
    }
    let plan = Plan { rows, foreign_keys: session.purge_references(older_than).await? };
    session.close().await;
    Ok(plan)
}

/// Removes the rows of users and organizations that were deleted longer ago than this, a day at least, and that nothing of
/// the application's holds.
///
/// # Errors
/// The database does not answer. What was removed stays removed.
pub async fn purge(database: &Database, older_than: Duration) -> Result<Purged, Error> {
    let mut session = database.connect_for_passes().await?;
    let mut result = Purged::default();
    for kind in emptied() {
        let removed = result.rows.entry(kind).or_default();
        let mut after = String::new();
        loop {
            let ids = session.purgeable(kind, older_than, &after, STEP).await?;
            let Some(last) = ids.last() else { break };
            for row in session.purge(kind, &ids, older_than).await? {
                match row.held_by {
                    Some(by) => *result.held.entry(by).or_default() += 1,
                    None => *removed += 1,
                }
            }
            after.clone_from(last);
        }
    }
    session.close().await;
    Ok(result)
}

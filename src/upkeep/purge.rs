//! Removing the emptied rows of users and organizations that were deleted long ago.
//!
//! They were kept for the application's foreign keys, so only a person decides that they go, and sees first what each of
//! those keys would do. A row that something holds stays, and the others go. Tombstones are not touched: a late webhook is
//! stale for ever.

use crate::model::Kind;
use crate::store::{Database, Error, Reference};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Rows in one statement. While it runs webhooks wait, and a foreign key without an index makes each row slow.
const STEP: usize = 20;

/// What a purge would do.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub users: i64,
    pub organizations: i64,
    pub foreign_keys: Vec<Reference>,
}

/// What it did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Purged {
    pub users: u64,
    pub organizations: u64,
    /// Rows that stay, by what holds them.
    pub held: BTreeMap<String, u64>,
}

/// What [`purge`] would remove, and which foreign keys would act.
///
/// # Errors
/// The database does not answer.
pub async fn plan(database: &Database, older_than: Duration) -> Result<Plan, Error> {
    let mut session = database.connect_for_passes().await?;
    let plan = Plan {
        users: session.count_purgeable(Kind::User, older_than).await?,
        organizations: session.count_purgeable(Kind::Organization, older_than).await?,
        foreign_keys: session.purge_references(older_than).await?,
    };
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
    for kind in [Kind::User, Kind::Organization] {
        let mut after = String::new();
        loop {
            let ids = session.purgeable(kind, older_than, &after, STEP).await?;
            let Some(last) = ids.last() else { break };
            for row in session.purge(kind, &ids, older_than).await? {
                match (row.held_by, kind) {
                    (Some(by), _) => *result.held.entry(by).or_default() += 1,
                    (None, Kind::User) => result.users += 1,
                    (None, _) => result.organizations += 1,
                }
            }
            after.clone_from(last);
        }
    }
    session.close().await;
    Ok(result)
}

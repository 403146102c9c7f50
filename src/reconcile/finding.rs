//! A difference as it is reported: what, since when, whether its webhook arrived, and the most likely cause. Pure.

use super::compare::{Difference, Found};
use crate::model::{Change, Drift, Kind, Millis, Observation, Outcome, Word};
use crate::store::{LiveRow, Receipt};
use serde::Serialize;
use std::collections::HashSet;

/// How long a webhook may be in flight before it counts as lost, in ms.
const DELIVERY_WINDOW_MS: i64 = 300_000;

/// A repair, or, in a dry run, what would be repaired. Names columns, never values.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The change's position in its batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    pub kind: Kind,
    pub entity_id: String,
    pub drift: Drift,
    pub fields: Vec<&'static str>,
    /// No earlier than this: when Clerk last changed it, or when we last saw it.
    pub since: Option<Millis>,
    /// When the last webhook about it came, as far as receipts reach.
    pub webhook_at: Option<String>,
    pub webhook_outcome: Option<Word<Outcome>>,
    pub cause: &'static str,
}

impl Finding {
    /// Of a row that differs; `None` where only its times moved, or where it cannot be used. `recorded`: ids of which the worker's
    /// own bookkeeping says that their row is there.
    pub fn of(
        kind: Kind,
        difference: &Difference<'_>,
        receipts: &[Receipt],
        recorded: &HashSet<String>,
    ) -> Option<Finding> {
        let Observation::Live { entity, updated_at, .. } = &difference.change.observation else { return None };
        let receipt = receipts.iter().find(|receipt| receipt.entity_id == entity.id());
        let is_recent = difference.change.observed_at.plus(-DELIVERY_WINDOW_MS) < *updated_at;
        let (drift, fields, since, cause) = match &difference.found {
            Found::Missing => {
                let cause = match receipt.map(|receipt| receipt.outcome.known()) {
                    _ if recorded.contains(entity.id()) => "the row was deleted in the database by hand",
                    None if is_recent => "its webhook may still be in flight",
                    None => "no webhook about it arrived",
                    Some(Some(Outcome::DeadLetter)) => "its webhook could not be applied",
                    Some(_) => "its last webhook did not contain it",
                };
                (Drift::Missing, Vec::new(), entity.created_at(), cause)
            }
            Found::Differing { fields, mirrored, by_hand } => {
                let moved = mirrored.version.is_some_and(|version| *updated_at > version.updated_at);
                let cause = match receipt.map(|receipt| receipt.outcome.known()) {
                    _ if *by_hand => "the row was changed in the database by hand",
                    Some(Some(Outcome::DeadLetter)) => "its last webhook could not be applied",
                    _ if !moved => "Clerk changed it without a newer updated_at",
                    _ if is_recent => "its webhook may still be in flight",
                    _ => "the webhook of its last change did not arrive",
                };
                let since = if *by_hand { None } else { Some(*updated_at) };
                (Drift::Differing, fields.clone(), since, cause)
            }
            Found::VersionOnly | Found::Unusable => return None,
        };
        Some(Finding::new(kind, entity.id(), drift, fields, since, cause, receipt))
    }

    /// Of a row that Clerk has no more.
    pub fn extra(kind: Kind, row: &LiveRow, receipts: &[Receipt]) -> Finding {
        let receipt = receipts.iter().find(|receipt| receipt.entity_id == row.read.id);
        let cause = match (row.observed_at, receipt.map(|receipt| receipt.outcome.known())) {
            (None, _) => "the row was inserted in the database by hand",
            (_, Some(Some(Outcome::DeadLetter))) => "its last webhook could not be applied",
            _ => "the webhook of its deletion did not arrive",
        };
        Finding::new(kind, &row.read.id, Drift::Extra, Vec::new(), row.observed_at, cause, receipt)
    }

    fn new(
        kind: Kind,
        id: &str,
        drift: Drift,
        fields: Vec<&'static str>,
        since: Option<Millis>,
        cause: &'static str,
        receipt: Option<&Receipt>,
    ) -> Finding {
        Finding {
            n: None,
            kind,
            entity_id: id.to_owned(),
            drift,
            fields,
            since,
            webhook_at: receipt.map(|receipt| receipt.received_at.clone()),
            webhook_outcome: receipt.map(|receipt| receipt.outcome.clone()),
            cause,
        }
    }
}

/// Whether a change says that its object is gone.
pub(super) fn is_gone(change: &Change) -> bool {
    matches!(change.observation, Observation::Deleted(_))
}

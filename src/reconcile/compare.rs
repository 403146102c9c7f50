//! Compares a page of Clerk's list with the same rows of the mirror. Pure.

use crate::model::{Change, Observation};
use crate::store::{MirrorRow, Version};
use std::collections::HashMap;

/// A row that is to be written.
#[derive(Debug)]
pub struct Difference<'a> {
    pub change: &'a Change,
    pub found: Found<'a>,
}

/// In which way the mirror differs.
#[derive(Debug)]
pub enum Found<'a> {
    /// It has no such row, or a stub.
    Missing,
    /// These columns differ. By hand: we wrote what Clerk says, and somebody changed the row since.
    Differing { fields: Vec<&'static str>, mirrored: &'a MirrorRow, by_hand: bool },
    /// The content is equal; only the version differs (Clerk moves `updated_at` at every sign-in), or a recent read contradicted the row.
    VersionOnly,
    /// The row cannot be used as it is listed: it is to be read by its id.
    Unusable,
}

/// What differs, in the order of the page.
pub fn compare<'a>(listed: &'a [Change], mirrored: &'a [MirrorRow]) -> Vec<Difference<'a>> {
    let by_id: HashMap<&str, &MirrorRow> = mirrored.iter().map(|row| (row.entity.id(), row)).collect();
    listed.iter().filter_map(|change| Some(Difference { change, found: found(change, &by_id)? })).collect()
}

fn found<'a>(change: &Change, mirrored: &HashMap<&str, &'a MirrorRow>) -> Option<Found<'a>> {
    let Observation::Live { entity, updated_at, ahead } = &change.observation else {
        return matches!(change.observation, Observation::NeedsRead(_)).then_some(Found::Unusable);
    };
    let Some(row) = mirrored.get(entity.id()) else { return Some(Found::Missing) };
    let fields = entity.differing_fields(&row.entity);
    if !fields.is_empty() {
        let by_hand = row.version.is_none_or(|version| version.content == entity.content());
        return Some(Found::Differing { fields, mirrored: row, by_hand });
    }
    let is_version =
        |version: Version| version.updated_at == *updated_at || version.ahead == Some(ahead.unwrap_or(*updated_at));
    (row.is_contradicted || !row.version.is_some_and(is_version)).then_some(Found::VersionOnly)
}

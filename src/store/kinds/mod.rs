//! Where each kind is kept, and how its rows are read and written: one file a kind.

mod membership;
mod organization;
mod user;

use super::encode::RowEncoder;
use crate::model::{Entity, Json, Kind, Millis};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

/// What must be known of a kind to ask the database about it.
pub(super) struct Table {
    /// The composite type of `migrations/0004_calls.sql` that the writer takes a row in.
    pub(super) row_type: &'static str,
    /// The whole rows among the ids `$1`, with their versions; stubs and deleted ones are none. Read by `decode`.
    pub(super) whole: &'static str,
    pub(super) decode: fn(&PgRow) -> Result<Entity, sqlx::Error>,
    /// The table that says when a row was made, and which of its rows are live.
    pub(super) timed: &'static str,
    pub(super) live: &'static str,
    /// Whether a row need not say when it was made.
    pub(super) may_lack_time: bool,
    /// The live rows among the ids `$1`, stubs too: how to ask for each, when it was seen and made, and how many memberships it has.
    pub(super) live_rows: &'static str,
    /// The column of memberships that names it, if it has any.
    pub(super) memberships_by: Option<&'static str>,
    /// The table that keeps a row with nothing but its id when it is deleted, until it is purged.
    pub(super) emptied: Option<&'static str>,
}

/// The entry of a kind.
pub(super) const fn of(kind: Kind) -> &'static Table {
    match kind {
        Kind::User => &user::TABLE,
        Kind::Organization => &organization::TABLE,
        Kind::Membership => &membership::TABLE,
    }
}

/// Kinds of which a deleted object keeps an emptied row, until it is purged.
pub fn emptied() -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| of(*kind).emptied.is_some())
}

/// The names of all kinds, as a parameter.
pub(super) fn names() -> Vec<&'static str> {
    Kind::ALL.map(Kind::as_str).into()
}

/// Writes an object, with Clerk's `updated_at`, field by field as [`Table::row_type`] has it.
pub(super) fn encode(record: &mut RowEncoder<'_>, entity: &Entity, updated_at: Option<Millis>) {
    match entity {
        Entity::User(user) => user::encode(record, user),
        Entity::Organization(organization) => organization::encode(record, organization),
        Entity::Membership(membership) => membership::encode(record, membership),
    }
    record.time(updated_at);
}

fn created_at(row: &PgRow) -> Result<Option<Millis>, sqlx::Error> {
    Ok(row.try_get::<Option<i64>, _>("created_ms")?.map(Millis::clamped))
}

fn metadata(row: &PgRow, column: &str) -> Result<Option<Json>, sqlx::Error> {
    let text: Option<&str> = row.try_get(column)?;
    Ok(text.and_then(|text| Json::canonical(text).ok()).map(|(json, _)| json))
}

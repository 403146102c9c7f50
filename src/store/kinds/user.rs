//! Users: `clerk.users` and `clerk.user_details`.

use super::{Table, created_at, metadata};
use crate::model::{Entity, Json, User, UserId};
use crate::store::encode::RowEncoder;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

pub(super) const TABLE: Table = Table {
    row_type: "user_row_v1",
    whole: "select u.id, first_name, last_name, username, image_url, has_image, email_address, email_address_verified, \
     phone_number, phone_number_verified, external_id, banned, locked, deprovisioned, public_metadata::text, \
     unsafe_metadata::text, (extract(epoch from created_at) * 1000)::bigint as created_ms, \
     v.updated_at, v.ahead, v.observed_at, v.content, \
     exists (select from clerk_sync.pending_reads p where p.kind = 'user' and p.id = w.id and p.said is not null) as contradicted \
     from unnest($1::text[]) w(id) \
     cross join lateral (select * from clerk.users where id = w.id and deleted_at is null offset 0) u \
     cross join lateral (select * from clerk.user_details where id = w.id offset 0) d \
     left join lateral (select * from clerk_sync.versions where kind = 'user' and id = w.id offset 0) v on true \
     where v.state is distinct from 'stub'",
    decode,
    timed: "clerk.user_details",
    live: "id <> all (array(select e.id from clerk_sync.ended_rows e where e.kind = 'user'))",
    may_lack_time: true,
    live_rows: "select u.id, null::text as organization_id, null::text as user_id, v.observed_at, \
         (select (extract(epoch from d.created_at) * 1000)::bigint from clerk.user_details d where d.id = u.id) as created_ms, \
         (select count(*) from clerk_sync.live_memberships m where m.user_id = u.id) as memberships \
     from clerk.users u left join clerk_sync.versions v on v.kind = 'user' and v.id = u.id \
     where u.id = any ($1) and u.deleted_at is null \
       and u.id <> all (array(select e.id from clerk_sync.ended_rows e where e.kind = 'user'))",
    memberships_by: Some("user_id"),
    emptied: Some("clerk.users"),
};

fn decode(row: &PgRow) -> Result<Entity, sqlx::Error> {
    Ok(Entity::User(User {
        id: UserId(row.try_get("id")?),
        first_name: row.try_get("first_name")?,
        last_name: row.try_get("last_name")?,
        username: row.try_get("username")?,
        image_url: row.try_get("image_url")?,
        has_image: row.try_get("has_image")?,
        email_address: row.try_get("email_address")?,
        email_address_verified: row.try_get("email_address_verified")?,
        phone_number: row.try_get("phone_number")?,
        phone_number_verified: row.try_get("phone_number_verified")?,
        external_id: row.try_get("external_id")?,
        banned: row.try_get("banned")?,
        locked: row.try_get("locked")?,
        deprovisioned: row.try_get("deprovisioned")?,
        public_metadata: metadata(row, "public_metadata")?,
        unsafe_metadata: metadata(row, "unsafe_metadata")?,
        created_at: created_at(row)?,
    }))
}

/// All fields but `updated_at`, in the order of the type.
pub(super) fn encode(record: &mut RowEncoder<'_>, user: &User) {
    #[rustfmt::skip]
    let User {
        id, first_name, last_name, username, image_url, has_image, email_address, email_address_verified, phone_number, phone_number_verified, external_id, banned, locked, deprovisioned, public_metadata, unsafe_metadata, created_at,
    } = user;
    record
        .text(Some(id.as_str()))
        .text(first_name.as_deref())
        .text(last_name.as_deref())
        .text(username.as_deref())
        .text(image_url.as_deref())
        .bool(*has_image)
        .text(email_address.as_deref())
        .bool(*email_address_verified)
        .text(phone_number.as_deref())
        .bool(*phone_number_verified)
        .text(external_id.as_deref())
        .bool(*banned)
        .bool(*locked)
        .bool(*deprovisioned)
        .json(public_metadata.as_ref().map(Json::as_str))
        .json(unsafe_metadata.as_ref().map(Json::as_str))
        .time(*created_at);
}

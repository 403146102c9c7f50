//! Memberships: `clerk.organization_memberships`.

use super::{Table, created_at, metadata};
use crate::model::{Entity, Json, Membership, MembershipId, Millis, OrganizationId, UserId};
use crate::store::encode::RowEncoder;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

pub(super) const TABLE: Table = Table {
    row_type: "membership_row_v1",
    whole: "select m.id, organization_id, user_id, role, permissions, public_metadata::text, \
     (extract(epoch from created_at) * 1000)::bigint as created_ms, v.updated_at, v.ahead, v.observed_at, v.content, \
     exists (select from clerk_sync.pending_reads p where p.kind = 'membership' and p.id = w.id and p.said is not null) \
       or exists (select from clerk_sync.generations g where g.organization_id = m.organization_id and g.user_id = m.user_id \
                   and g.rival_id is not null) as contradicted \
     from unnest($1::text[]) w(id) \
     cross join lateral (select * from clerk_sync.live_memberships where id = w.id offset 0) m \
     left join lateral (select * from clerk_sync.versions where kind = 'membership' and id = w.id offset 0) v on true",
    decode,
    timed: "clerk_sync.live_memberships",
    live: "true",
    may_lack_time: false,
    live_rows: "select m.id, m.organization_id, m.user_id, v.observed_at, 0::bigint as memberships, \
         (extract(epoch from m.created_at) * 1000)::bigint as created_ms \
     from clerk_sync.live_memberships m left join clerk_sync.versions v on v.kind = 'membership' and v.id = m.id \
     where m.id = any ($1)",
    memberships_by: None,
    emptied: None,
};

fn decode(row: &PgRow) -> Result<Entity, sqlx::Error> {
    Ok(Entity::Membership(Membership {
        id: MembershipId(row.try_get("id")?),
        organization_id: OrganizationId(row.try_get("organization_id")?),
        user_id: UserId(row.try_get("user_id")?),
        role: row.try_get("role")?,
        permissions: row.try_get("permissions")?,
        public_metadata: metadata(row, "public_metadata")?,
        created_at: created_at(row)?.unwrap_or(Millis::MIN),
    }))
}

/// All fields but `updated_at`, in the order of the type.
pub(super) fn encode(record: &mut RowEncoder<'_>, membership: &Membership) {
    #[rustfmt::skip]
    let Membership {
        id, organization_id, user_id, role, permissions, public_metadata, created_at,
    } = membership;
    record
        .text(Some(id.as_str()))
        .text(Some(organization_id.as_str()))
        .text(Some(user_id.as_str()))
        .text(Some(role))
        .texts(Some(permissions))
        .json(public_metadata.as_ref().map(Json::as_str))
        .time(Some(*created_at));
}

//! Organizations: `clerk.organizations`.

use super::{Table, created_at, metadata};
use crate::model::{Entity, Json, Organization, OrganizationId};
use crate::store::encode::RowEncoder;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

pub(super) const TABLE: Table = Table {
    row_type: "organization_row_v1",
    whole: "select o.id, name, slug, image_url, has_image, max_allowed_memberships, public_metadata::text, \
     (extract(epoch from created_at) * 1000)::bigint as created_ms, v.updated_at, v.ahead, v.observed_at, v.content, \
     exists (select from clerk_sync.pending_reads p where p.kind = 'organization' and p.id = w.id and p.said is not null) as contradicted \
     from unnest($1::text[]) w(id) \
     cross join lateral (select * from clerk.organizations where id = w.id and deleted_at is null offset 0) o \
     left join lateral (select * from clerk_sync.versions where kind = 'organization' and id = w.id offset 0) v on true \
     where v.state is distinct from 'stub'",
    decode,
    timed: "clerk.organizations",
    live: "deleted_at is null and id <> all (array(select e.id from clerk_sync.ended_rows e where e.kind = 'organization'))",
    may_lack_time: true,
    live_rows: "select o.id, null::text as organization_id, null::text as user_id, v.observed_at, \
         (extract(epoch from o.created_at) * 1000)::bigint as created_ms, \
         (select count(*) from clerk_sync.live_memberships m where m.organization_id = o.id) as memberships \
     from clerk.organizations o left join clerk_sync.versions v on v.kind = 'organization' and v.id = o.id \
     where o.id = any ($1) and o.deleted_at is null \
       and o.id <> all (array(select e.id from clerk_sync.ended_rows e where e.kind = 'organization'))",
    memberships_by: Some("organization_id"),
    emptied: Some("clerk.organizations"),
};

fn decode(row: &PgRow) -> Result<Entity, sqlx::Error> {
    Ok(Entity::Organization(Organization {
        id: OrganizationId(row.try_get("id")?),
        name: row.try_get("name")?,
        slug: row.try_get("slug")?,
        image_url: row.try_get("image_url")?,
        has_image: row.try_get("has_image")?,
        max_allowed_memberships: row.try_get("max_allowed_memberships")?,
        public_metadata: metadata(row, "public_metadata")?,
        created_at: created_at(row)?,
    }))
}

/// All fields but `updated_at`, in the order of the type.
pub(super) fn encode(record: &mut RowEncoder<'_>, organization: &Organization) {
    #[rustfmt::skip]
    let Organization {
        id, name, slug, image_url, has_image, max_allowed_memberships, public_metadata, created_at,
    } = organization;
    record
        .text(Some(id.as_str()))
        .text(name.as_deref())
        .text(slug.as_deref())
        .text(image_url.as_deref())
        .bool(*has_image)
        .number(*max_allowed_memberships)
        .json(public_metadata.as_ref().map(Json::as_str))
        .time(*created_at);
}

//! What a pass reads of the mirror: rows by id, ids in the order in which Clerk lists, and counts.

use super::{Error, Session, at_most};
use crate::model::{
    Entity, Json, Kind, Membership, MembershipId, Millis, Organization, OrganizationId, User, UserId, WantedRead,
};
use futures_util::TryStreamExt as _;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};

/// A row as the mirror has it, and the version that it was written with.
#[derive(Clone, Debug)]
pub struct Mirrored {
    pub entity: Entity,
    /// `None`: somebody wrote the row who is not us.
    pub version: Option<Version>,
    /// A read has said something else lately, and was not believed yet (R2): one that agrees must be told, too.
    pub is_contradicted: bool,
}

/// See R1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub updated_at: Millis,
    /// What Clerk sent, where that was ahead of time.
    pub ahead: Option<Millis>,
    pub observed_at: Millis,
    pub content: i64,
}

/// A row that stands, whole or a stub.
#[derive(Clone, Debug)]
pub struct Standing {
    /// How to ask the API for it.
    pub read: WantedRead,
    /// When it was last observed, on Clerk's clock; `None`: never, somebody wrote it who is not us.
    pub observed_at: Option<Millis>,
    /// When it was made, by Clerk's clock, as far as the row says.
    pub created_at: Option<Millis>,
    /// Memberships that would end with it.
    pub memberships: i64,
}

/// The last receipt of a webhook about an object.
#[derive(Clone, Debug)]
pub struct Receipt {
    pub entity_id: String,
    pub outcome: String,
    pub received_at: String,
}

const USERS: &str = "select u.id, first_name, last_name, username, image_url, has_image, email_address, email_address_verified, \
     phone_number, phone_number_verified, external_id, banned, locked, deprovisioned, public_metadata::text, \
     unsafe_metadata::text, (extract(epoch from created_at) * 1000)::bigint as created_ms, \
     v.updated_at, v.ahead, v.observed_at, v.content, \
     exists (select from clerk_sync.pending_reads p where p.kind = 'user' and p.id = w.id and p.said is not null) as contradicted \
     from unnest($1::text[]) w(id) \
     cross join lateral (select * from clerk.users where id = w.id and deleted_at is null offset 0) u \
     cross join lateral (select * from clerk.user_details where id = w.id offset 0) d \
     left join lateral (select * from clerk_sync.versions where kind = 'user' and id = w.id offset 0) v on true \
     where v.state is distinct from 'stub'";
const ORGANIZATIONS: &str = "select o.id, name, slug, image_url, has_image, max_allowed_memberships, public_metadata::text, \
     (extract(epoch from created_at) * 1000)::bigint as created_ms, v.updated_at, v.ahead, v.observed_at, v.content, \
     exists (select from clerk_sync.pending_reads p where p.kind = 'organization' and p.id = w.id and p.said is not null) as contradicted \
     from unnest($1::text[]) w(id) \
     cross join lateral (select * from clerk.organizations where id = w.id and deleted_at is null offset 0) o \
     left join lateral (select * from clerk_sync.versions where kind = 'organization' and id = w.id offset 0) v on true \
     where v.state is distinct from 'stub'";
const MEMBERSHIPS: &str = "select m.id, organization_id, user_id, role, permissions, public_metadata::text, \
     (extract(epoch from created_at) * 1000)::bigint as created_ms, v.updated_at, v.ahead, v.observed_at, v.content, \
     exists (select from clerk_sync.pending_reads p where p.kind = 'membership' and p.id = w.id and p.said is not null) \
       or exists (select from clerk_sync.generations g where g.organization_id = m.organization_id and g.user_id = m.user_id \
                   and g.rival_id is not null) as contradicted \
     from unnest($1::text[]) w(id) \
     cross join lateral (select * from clerk_sync.live_memberships where id = w.id offset 0) m \
     left join lateral (select * from clerk_sync.versions where kind = 'membership' and id = w.id offset 0) v on true";

type ReadRow = fn(&PgRow) -> Result<Entity, sqlx::Error>;

/// The table that holds a kind's rows with the time of their making, and which of them are live.
const fn timed_table(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::User => {
            ("clerk.user_details", "id <> all (array(select e.id from clerk_sync.ended_rows e where e.kind = 'user'))")
        }
        Kind::Organization => (
            "clerk.organizations",
            "deleted_at is null and id <> all (array(select e.id from clerk_sync.ended_rows e where e.kind = 'organization'))",
        ),
        Kind::Membership => ("clerk_sync.live_memberships", "true"),
    }
}

impl Session {
    /// The whole rows among these; stubs and deleted ones are none.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn mirrored(&mut self, kind: Kind, ids: &[&str]) -> Result<Vec<Mirrored>, Error> {
        let (sql, read): (_, ReadRow) = match kind {
            Kind::User => (USERS, user),
            Kind::Organization => (ORGANIZATIONS, organization),
            Kind::Membership => (MEMBERSHIPS, membership),
        };
        let mirrored = |row: PgRow| {
            let version = match (row.try_get("updated_at")?, row.try_get("observed_at")?, row.try_get("content")?) {
                (Some(updated_at), Some(observed_at), Some(content)) => Some(Version {
                    updated_at: Millis::clamped(updated_at),
                    ahead: row.try_get::<Option<i64>, _>("ahead")?.map(Millis::clamped),
                    observed_at: Millis::clamped(observed_at),
                    content,
                }),
                _ => None,
            };
            Ok(Mirrored { entity: read(&row)?, version, is_contradicted: row.try_get("contradicted")? })
        };
        // Row by row: what Postgres writes out of one user's metadata may be long.
        self.call(async |connection| sqlx::query(sql).bind(ids).try_map(mirrored).fetch(connection).try_collect().await)
            .await
    }

    /// Ids of whole rows that were made in `from..to` (in ms; `None`: without end) behind `after`, in that order.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn ids_made_between(
        &mut self,
        kind: Kind,
        from: Millis,
        to: Option<Millis>,
        after: Option<&(i64, String)>,
        limit: usize,
    ) -> Result<Vec<(i64, String)>, Error> {
        let (table, is_live) = timed_table(kind);
        // Microseconds, as the column has them: a row of somebody else's need not lie on a millisecond.
        let sql = format!(
            "select (extract(epoch from created_at) * 1000000)::bigint, id from {table} \
              where {is_live} and created_at >= to_timestamp($1::bigint / 1000.0) \
                and ($2::bigint is null or created_at < to_timestamp($2 / 1000.0)) \
                and ($3::bigint is null or (created_at, id) > (to_timestamp($3 / 1000000.0), $4)) \
              order by created_at, id limit $5"
        );
        let (after_at, after_id) = after.map_or((None, ""), |(at, id)| (Some(*at), id.as_str()));
        self.call(async |connection| {
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(from.get())
                .bind(to.map(Millis::get))
                .bind(after_at)
                .bind(after_id)
                .bind(at_most(limit))
                .fetch_all(connection)
                .await
        })
        .await
    }

    /// Ids of whole rows that do not say when they were made: no listing can be held against them.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn ids_without_time(&mut self, kind: Kind, after: &str, limit: usize) -> Result<Vec<String>, Error> {
        let (table, is_live) = timed_table(kind);
        let sql = format!(
            "select t.id from {table} t where {is_live} and t.created_at is null and t.id > $2 \
                and not exists (select from clerk_sync.versions v where v.kind = $1 and v.id = t.id and v.state = 'stub') \
              order by t.id limit $3"
        );
        self.call(async |connection| {
            let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(kind.as_str()).bind(after).bind(at_most(limit));
            query.fetch_all(connection).await
        })
        .await
    }

    /// Those of these ids whose row stands.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn standing(&mut self, kind: Kind, ids: &[&str]) -> Result<Vec<Standing>, Error> {
        let sql = match kind {
            Kind::User => {
                "select u.id, null::text as organization_id, null::text as user_id, v.observed_at, \
                        (select (extract(epoch from d.created_at) * 1000)::bigint from clerk.user_details d where d.id = u.id) as created_ms, \
                        (select count(*) from clerk_sync.live_memberships m where m.user_id = u.id) as memberships \
                   from clerk.users u left join clerk_sync.versions v on v.kind = 'user' and v.id = u.id \
                  where u.id = any ($1) and u.deleted_at is null \
                    and u.id <> all (array(select e.id from clerk_sync.ended_rows e where e.kind = 'user'))"
            }
            Kind::Organization => {
                "select o.id, null::text as organization_id, null::text as user_id, v.observed_at, \
                        (extract(epoch from o.created_at) * 1000)::bigint as created_ms, \
                        (select count(*) from clerk_sync.live_memberships m where m.organization_id = o.id) as memberships \
                   from clerk.organizations o left join clerk_sync.versions v on v.kind = 'organization' and v.id = o.id \
                  where o.id = any ($1) and o.deleted_at is null \
                    and o.id <> all (array(select e.id from clerk_sync.ended_rows e where e.kind = 'organization'))"
            }
            Kind::Membership => {
                "select m.id, m.organization_id, m.user_id, v.observed_at, 0::bigint as memberships, \
                        (extract(epoch from m.created_at) * 1000)::bigint as created_ms \
                   from clerk_sync.live_memberships m left join clerk_sync.versions v on v.kind = 'membership' and v.id = m.id \
                  where m.id = any ($1)"
            }
        };
        let rows = self.call(async |connection| sqlx::query(sql).bind(ids).fetch_all(connection).await).await?;
        let standing = |row: &PgRow| {
            Ok(Standing {
                read: wanted(kind, row, "not in the listing")?,
                observed_at: row.try_get::<Option<i64>, _>("observed_at")?.map(Millis::clamped),
                created_at: created_at(row)?,
                memberships: row.try_get("memberships")?,
            })
        };
        rows.iter().map(standing).collect::<Result<_, _>>().map_err(Error::Refused)
    }

    /// The memberships of a user or an organization, as reads.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn memberships_of(&mut self, parent: Kind, id: &str) -> Result<Vec<WantedRead>, Error> {
        let sql = if parent == Kind::User {
            "select id, organization_id, user_id from clerk_sync.live_memberships where user_id = $1"
        } else {
            "select id, organization_id, user_id from clerk_sync.live_memberships where organization_id = $1"
        };
        let rows = self.call(async |connection| sqlx::query(sql).bind(id).fetch_all(connection).await).await?;
        let wanted = |row: &PgRow| wanted(Kind::Membership, row, "not in the listing");
        rows.iter().map(wanted).collect::<Result<_, _>>().map_err(Error::Refused)
    }

    /// How many members each of these organizations has here.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn members_counts(&mut self, organizations: &[&str]) -> Result<Vec<(String, i64)>, Error> {
        let sql = "select w.id, (select count(*) from clerk_sync.live_memberships m where m.organization_id = w.id) \
                     from unnest($1::text[]) w(id)";
        self.call(async |connection| sqlx::query_as(sql).bind(organizations).fetch_all(connection).await).await
    }

    /// How many rows of a kind stand, stubs left out.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn count(&mut self, kind: Kind) -> Result<u64, Error> {
        let (table, is_live) = timed_table(kind);
        let sql = format!(
            "select (select count(*) from {table} where {is_live}) \
                  - (select count(*) from clerk_sync.versions where kind = $1 and state = 'stub')"
        );
        let count: i64 = self
            .call(async |connection| {
                sqlx::query_scalar(AssertSqlSafe(sql)).bind(kind.as_str()).fetch_one(connection).await
            })
            .await?;
        Ok(count.max(0).cast_unsigned())
    }

    /// Objects that a read by id shall settle, behind `after`; `due`: those alone whose time has come.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn pending_reads(
        &mut self,
        kind: Kind,
        after: &str,
        limit: usize,
        due: bool,
    ) -> Result<Vec<WantedRead>, Error> {
        let sql = "select id, organization_id, user_id from clerk_sync.pending_reads \
                    where kind = $1 and id > $2 and (next_at <= now() or not $4) \
                      and (kind <> 'membership' or (organization_id is not null and user_id is not null)) \
                    order by id limit $3";
        let rows = self
            .call(async |connection| {
                sqlx::query(sql)
                    .bind(kind.as_str())
                    .bind(after)
                    .bind(at_most(limit))
                    .bind(due)
                    .fetch_all(connection)
                    .await
            })
            .await?;
        let wanted = |row: &PgRow| wanted(kind, row, "pending");
        rows.iter().map(wanted).collect::<Result<_, _>>().map_err(Error::Refused)
    }

    /// Kinds that an event or a count asked to be reconciled as a whole, and why: those whose last pass did not come too early, or
    /// whose next one will not.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn pending_passes(&mut self) -> Result<Vec<(Kind, String)>, Error> {
        let sql = "select kind, reason from clerk_sync.pending_passes where tried_at is null or ripe_at <= now()";
        let rows: Vec<(String, String)> =
            self.call(async |connection| sqlx::query_as(sql).fetch_all(connection).await).await?;
        Ok(Kind::ALL
            .into_iter()
            .filter_map(|kind| {
                rows.iter().find(|(name, _)| name == kind.as_str()).map(|(_, reason)| (kind, reason.clone()))
            })
            .collect())
    }

    /// The last receipt about each of these objects that has one.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn last_receipts(&mut self, ids: &[&str]) -> Result<Vec<Receipt>, Error> {
        let sql = "select r.entity_id, r.outcome, to_char(r.received_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') \
                     from unnest($1::text[]) w(id) \
                    cross join lateral (select entity_id, outcome, received_at from clerk_sync.receipts \
                                         where entity_id = w.id order by received_at desc limit 1) r";
        let rows: Vec<(String, String, String)> =
            self.call(async |connection| sqlx::query_as(sql).bind(ids).fetch_all(connection).await).await?;
        Ok(rows
            .into_iter()
            .map(|(entity_id, outcome, received_at)| Receipt { entity_id, outcome, received_at })
            .collect())
    }
}

fn wanted(kind: Kind, row: &PgRow, reason: &'static str) -> Result<WantedRead, sqlx::Error> {
    Ok(WantedRead {
        kind,
        id: row.try_get("id")?,
        organization_id: row.try_get::<Option<String>, _>("organization_id")?.map(OrganizationId),
        user_id: row.try_get::<Option<String>, _>("user_id")?.map(UserId),
        reason,
        told_deleted: false,
    })
}

fn created_at(row: &PgRow) -> Result<Option<Millis>, sqlx::Error> {
    Ok(row.try_get::<Option<i64>, _>("created_ms")?.map(Millis::clamped))
}

fn metadata(row: &PgRow, column: &str) -> Result<Option<Json>, sqlx::Error> {
    let text: Option<&str> = row.try_get(column)?;
    Ok(text.and_then(|text| Json::canonical(text).ok()).map(|(json, _)| json))
}

fn user(row: &PgRow) -> Result<Entity, sqlx::Error> {
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

fn organization(row: &PgRow) -> Result<Entity, sqlx::Error> {
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

fn membership(row: &PgRow) -> Result<Entity, sqlx::Error> {
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

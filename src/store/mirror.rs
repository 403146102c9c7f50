//! What a pass reads of the mirror: rows by id, ids in the order in which Clerk lists, and counts.

use super::kinds::{self, Table};
use super::{Error, Session, at_most};
use crate::model::{Entity, Kind, Millis, OrganizationId, Outcome, PendingRead, UserId, Word};
use futures_util::TryStreamExt as _;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};
use std::collections::HashSet;

/// A row as the mirror has it, and the version that it was written with.
#[derive(Clone, Debug)]
pub struct MirrorRow {
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
pub struct LiveRow {
    /// How to ask the API for it.
    pub read: PendingRead,
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
    pub outcome: Word<Outcome>,
    pub received_at: String,
}

impl Session {
    /// The whole rows among these; stubs and deleted ones are none.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn mirrored(&mut self, kind: Kind, ids: &[&str]) -> Result<Vec<MirrorRow>, Error> {
        let &Table { whole, decode, .. } = kinds::of(kind);
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
            Ok(MirrorRow { entity: decode(&row)?, version, is_contradicted: row.try_get("contradicted")? })
        };
        // Row by row: what Postgres writes out of one user's metadata may be long.
        self.call(async |connection| {
            sqlx::query(whole).bind(ids).try_map(mirrored).fetch(connection).try_collect().await
        })
        .await
    }

    /// Ids of whole rows that were made in `from..to` (in ms; `None`: without end) behind `after`, in that order.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn ids_created_between(
        &mut self,
        kind: Kind,
        from: Millis,
        to: Option<Millis>,
        after: Option<&(i64, String)>,
        limit: usize,
    ) -> Result<Vec<(i64, String)>, Error> {
        let Table { timed, live, .. } = kinds::of(kind);
        // Microseconds, as the column has them: a row of somebody else's need not lie on a millisecond.
        let sql = format!(
            "select (extract(epoch from created_at) * 1000000)::bigint, id from {timed} \
              where {live} and created_at >= to_timestamp($1::bigint / 1000.0) \
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
    pub(crate) async fn ids_without_created_at(
        &mut self,
        kind: Kind,
        after: &str,
        limit: usize,
    ) -> Result<Vec<String>, Error> {
        let Table { timed, live, may_lack_time, .. } = kinds::of(kind);
        if !may_lack_time {
            return Ok(Vec::new());
        }
        let sql = format!(
            "select t.id from {timed} t where {live} and t.created_at is null and t.id > $2 \
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
    pub async fn live_rows(&mut self, kind: Kind, ids: &[&str]) -> Result<Vec<LiveRow>, Error> {
        let sql = kinds::of(kind).live_rows;
        let rows = self.call(async |connection| sqlx::query(sql).bind(ids).fetch_all(connection).await).await?;
        let live_rows = |row: &PgRow| {
            Ok(LiveRow {
                read: wanted(kind, row, "not in the listing")?,
                observed_at: row.try_get::<Option<i64>, _>("observed_at")?.map(Millis::clamped),
                created_at: row.try_get::<Option<i64>, _>("created_ms")?.map(Millis::clamped),
                memberships: row.try_get("memberships")?,
            })
        };
        rows.iter().map(live_rows).collect::<Result<_, _>>().map_err(Error::Refused)
    }

    /// The memberships of a user or an organization, as reads. (Nothing else has any.)
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn memberships_of(&mut self, parent: Kind, id: &str) -> Result<Vec<PendingRead>, Error> {
        let Some(column) = kinds::of(parent).memberships_by else { return Ok(Vec::new()) };
        let sql = format!("select id, organization_id, user_id from clerk_sync.live_memberships where {column} = $1");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(id);
        let rows = self.call(async |connection| query.fetch_all(connection).await).await?;
        let wanted = |row: &PgRow| wanted(Kind::Membership, row, "not in the listing");
        rows.iter().map(wanted).collect::<Result<_, _>>().map_err(Error::Refused)
    }

    /// How many members each of these organizations has here.
    ///
    /// # Errors
    /// The database could not be asked.
    pub(crate) async fn members_counts(&mut self, organizations: &[&str]) -> Result<Vec<(String, u64)>, Error> {
        let counts = self
            .call(async |connection| {
                sqlx::query!(
                    r#"select w.id as "id!",
                              (select count(*) from clerk_sync.live_memberships m where m.organization_id = w.id) as "count!"
                         from unnest($1::text[]) w(id)"#,
                    organizations as &[&str]
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(counts.into_iter().map(|row| (row.id, row.count.unsigned_abs())).collect())
    }

    /// How many rows of a kind stand, stubs left out.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn count(&mut self, kind: Kind) -> Result<u64, Error> {
        let Table { timed, live, .. } = kinds::of(kind);
        let sql = format!(
            "select (select count(*) from {timed} where {live}) \
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
    ) -> Result<Vec<PendingRead>, Error> {
        self.call(async |connection| {
            sqlx::query!(
                "select id, organization_id, user_id from clerk_sync.pending_reads
                  where kind = $1 and id > $2 and (next_at <= now() or not $4)
                    and (kind <> 'membership' or (organization_id is not null and user_id is not null))
                  order by id limit $3",
                kind.as_str(),
                after,
                at_most(limit),
                due
            )
            .map(|row| pending_read(kind, row.id, row.organization_id, row.user_id, "pending"))
            .fetch_all(connection)
            .await
        })
        .await
    }

    /// Kinds for which an event or a count requested a full pass, and why: those not tried since, and those tried too early for Clerk's API
    /// to show the change that it would show now.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn pending_passes(&mut self) -> Result<Vec<(Kind, String)>, Error> {
        let rows = self
            .call(async |connection| {
                sqlx::query!(
                    "select kind, reason from clerk_sync.pending_passes where tried_at is null or ripe_at <= now()"
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        let reason = |kind: Kind| Some((kind, rows.iter().find(|row| row.kind == kind.as_str())?.reason.clone()));
        Ok(Kind::ALL.into_iter().filter_map(reason).collect())
    }

    /// Those of these objects that the worker has written and not deleted since, whether or not their row is still there.
    ///
    /// # Errors
    /// The database could not be asked.
    pub(crate) async fn recorded_as_live(&mut self, kind: Kind, ids: &[&str]) -> Result<HashSet<String>, Error> {
        let ids = self
            .call(async |connection| {
                sqlx::query_scalar!(
                    "select id from clerk_sync.versions where kind = $1 and id = any ($2) and state = 'live'",
                    kind.as_str(),
                    ids as &[&str]
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(ids.into_iter().collect())
    }

    /// Whether anything here names this object: its row, a tombstone, or a read that waits.
    ///
    /// # Errors
    /// The database could not be asked.
    pub(crate) async fn knows(&mut self, kind: Kind, id: &str) -> Result<bool, Error> {
        let is_recorded = self
            .call(async |connection| {
                sqlx::query_scalar!(
                    r#"select (exists (select from clerk_sync.versions where kind = $1 and id = $2)
                           or exists (select from clerk_sync.pending_reads where kind = $1 and id = $2)) as "is_recorded!""#,
                    kind.as_str(),
                    id
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok(is_recorded || !self.live_rows(kind, &[id]).await?.is_empty())
    }

    /// The last receipt about each of these objects that has one.
    ///
    /// # Errors
    /// The database could not be asked.
    pub(crate) async fn last_receipts(&mut self, ids: &[&str]) -> Result<Vec<Receipt>, Error> {
        self.call(async |connection| {
            // The one looked for has an id.
            sqlx::query!(
                r#"select r.entity_id as "entity_id!", r.outcome,
                          to_char(r.received_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as "received_at!"
                     from unnest($1::text[]) w(id)
                    cross join lateral (select entity_id, outcome, received_at from clerk_sync.receipts
                                         where entity_id = w.id order by received_at desc limit 1) r"#,
                ids as &[&str]
            )
            .map(|row| Receipt {
                entity_id: row.entity_id,
                outcome: Word::of(&row.outcome),
                received_at: row.received_at,
            })
            .fetch_all(connection)
            .await
        })
        .await
    }
}

fn wanted(kind: Kind, row: &PgRow, reason: &'static str) -> Result<PendingRead, sqlx::Error> {
    Ok(pending_read(kind, row.try_get("id")?, row.try_get("organization_id")?, row.try_get("user_id")?, reason))
}

fn pending_read(
    kind: Kind,
    id: String,
    organization_id: Option<String>,
    user_id: Option<String>,
    reason: &'static str,
) -> PendingRead {
    PendingRead {
        kind,
        id,
        organization_id: organization_id.map(OrganizationId),
        user_id: user_id.map(UserId),
        reason,
        reported_deleted: false,
    }
}

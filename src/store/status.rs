//! What the tables tell of the last day: deliveries, passes, what is left to do.

use super::last_seen::WENT_BACK;
use super::{Database, Error, LiveRow, Session};
use crate::model::{Drift, Kind, PassState, Scope, Word, Words as _};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;
use std::collections::BTreeMap;

/// Passes, findings and dead letters that are shown.
const SHOWN: i64 = 50;

/// The database's answer to "is the mirror in sync?". Times are Unix times in milliseconds. Ids, never names or addresses.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// When this was true, by the database's clock.
    pub now: i64,
    /// The Clerk instance that the mirror is pinned to.
    pub instance: Option<String>,
    /// Rows here, by kind.
    #[serde(default)]
    pub rows: BTreeMap<String, u64>,
    /// When the last webhook came.
    pub last_webhook_at: Option<i64>,
    /// When the last complete reconcile of each scope ended.
    pub last_complete: BTreeMap<String, i64>,
    /// Of the last 24 hours.
    pub deliveries: Vec<Deliveries>,
    /// The last ones, and the last one of each scope, newest first.
    pub passes: Vec<PassRow>,
    /// Of the oldest of those passes and of all since, newest first.
    pub findings: Vec<FindingRow>,
    pub dead_letters: i64,
    /// The last ones, newest first.
    pub letters: Vec<DeadLetterRow>,
    pub pending_reads: i64,
    /// When passes began, within a day, because the database had lost what it had acknowledged.
    #[serde(default)]
    pub went_back_at: Option<i64>,
    /// Who runs passes now.
    pub lease: Option<String>,
    /// Why no reconcile could start, while that is so.
    pub failed_start: Option<FailedStart>,
    /// Whose access has ended although their row does not say so, the last ones first; and how many there are.
    #[serde(default)]
    pub denials: Vec<DenialRow>,
    #[serde(default)]
    pub denied: i64,
    /// Rows that something refused and that wait for another try.
    #[serde(default)]
    pub refused: i64,
    /// Rows that passes begun since the last webhook found wrong, first passes left out.
    #[serde(default)]
    pub drift_since_webhook: u64,
    /// Connections of clerk-sync to the database, this answer's left out.
    pub connections: i64,
    /// How long events took from Clerk to the row, within the last hour; `None`: none was applied.
    #[serde(default)]
    pub freshness: Option<Freshness>,
    /// Of each reconcile that the deletion limit stopped and that waits: the first rows that it would delete.
    #[serde(default)]
    pub candidates: Vec<Candidate>,
}

/// From an event's own timestamp at Clerk until its row was written.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Freshness {
    /// Of so many events, the latest ones.
    pub events: u64,
    pub p50_ms: i64,
    pub p99_ms: i64,
}

/// A row that a stopped reconcile would delete.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Candidate {
    pub pass_id: i64,
    pub kind: String,
    pub entity_id: String,
    pub organization_id: Option<String>,
    pub user_id: Option<String>,
}

/// How many deliveries of an hour had an outcome.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deliveries {
    /// When the hour began.
    pub hour: i64,
    pub outcome: String,
    pub count: u64,
}

/// A pass.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PassRow {
    pub id: i64,
    pub scope: Word<Scope>,
    pub state: Word<PassState>,
    pub problem: Option<String>,
    pub backfill: bool,
    pub started_at: i64,
    pub ended_at: Option<i64>,
    pub listed: u64,
    pub missing: u64,
    pub differing: u64,
    pub extra: u64,
    pub refreshed: u64,
    /// Rows that were not judged, by reason.
    #[serde(default)]
    pub undecided: Option<BTreeMap<String, u64>>,
    /// When rows that were observed too recently can be judged.
    #[serde(default)]
    pub judge_after: Option<i64>,
    /// Of a quick pass: rows here and at Clerk, by kind.
    pub counts: Option<BTreeMap<String, Counts>>,
}

/// Rows of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub here: u64,
    pub there: u64,
}

/// A row that was wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FindingRow {
    pub pass_id: i64,
    pub kind: String,
    pub entity_id: String,
    pub drift: Word<Drift>,
    pub fields: Vec<String>,
    pub cause: String,
    pub repaired_at: i64,
}

/// A denial: what keeps the row as it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DenialRow {
    pub kind: String,
    pub id: String,
    pub since: i64,
    pub sqlstate: String,
    pub object: Option<String>,
}

impl DenialRow {
    /// As part of a sentence.
    pub fn describe(&self) -> String {
        if self.sqlstate == "unsettled" {
            let why = self.object.as_deref().unwrap_or_default();
            return format!(
                "{} {} (denied until its state is known: {why}; set CLERK_SECRET_KEY so that it can be read from Clerk)",
                self.kind, self.id
            );
        }
        let object = self.object.as_ref().map(|object| format!(", {object}")).unwrap_or_default();
        format!("{} {} (SQLSTATE {}{object})", self.kind, self.id, self.sqlstate)
    }
}

/// That no pass can begin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FailedStart {
    pub since: i64,
    pub last_at: i64,
    pub tries: i64,
    pub problem: String,
}

/// A message that could not be used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeadLetterRow {
    pub message_id: String,
    pub event_type: Option<String>,
    pub reason: String,
    pub received_at: i64,
}

/// Rows that are shown of what a stopped reconcile would delete.
const CANDIDATES: usize = 20;

/// All of it as one JSON object.
async fn status_json(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    let scopes: Vec<&str> = Scope::ALL.iter().map(|scope| scope.as_str()).collect();
    sqlx::query_scalar!(
        r#"
with hours as (
  select (extract(epoch from date_trunc('hour', received_at)) * 1000)::bigint as hour, outcome, count(*) as count
    from clerk_sync.receipts where received_at > now() - interval '24 hours' group by 1, 2 order by 1, 2
), passes as (
  select id, scope, state, problem, backfill, (extract(epoch from started_at) * 1000)::bigint as started_at,
         (extract(epoch from ended_at) * 1000)::bigint as ended_at, listed, missing, differing, extra, refreshed, undecided,
         (extract(epoch from judge_after) * 1000)::bigint as judge_after, counts
    from clerk_sync.passes
   where id in (select id from clerk_sync.passes order by id desc limit $1)
      or id in (select max(id) from clerk_sync.passes group by scope)   -- what waits for an approval does not scroll away
   order by id desc
), findings as (
  select pass_id, kind, entity_id, drift, fields, cause, (extract(epoch from repaired_at) * 1000)::bigint as repaired_at
    from clerk_sync.findings where pass_id >= (select coalesce(min(id), 0) from passes) order by id desc limit $1
), letters as (
  select message_id, event_type, reason, (extract(epoch from received_at) * 1000)::bigint as received_at
    from clerk_sync.dead_letters d order by d.received_at desc limit $1
), denials as (
  select kind, id, (extract(epoch from since) * 1000)::bigint as since, sqlstate, object
    from clerk_sync.denials d order by d.since desc limit $1
), lags as (
  select greatest(extract(epoch from received_at - event_at) * 1000, 0) as ms from clerk_sync.receipts
   where received_at > now() - interval '1 hour' and outcome = 'applied' and event_at is not null order by received_at desc limit 10000
), complete as (
  select scope, (extract(epoch from (select ended_at from clerk_sync.passes p where p.scope = s.scope and state = 'complete'
                                      order by id desc limit 1)) * 1000)::bigint as ended_at
    from unnest($2::text[]) s(scope)
)
select jsonb_build_object(
  'now', (extract(epoch from now()) * 1000)::bigint,
  'instance', (select instance_id from clerk_sync.instance),
  'last_webhook_at', (select (extract(epoch from max(received_at)) * 1000)::bigint from clerk_sync.receipts),
  'last_complete', (select coalesce(jsonb_object_agg(scope, ended_at) filter (where ended_at is not null), '{}') from complete),
  'deliveries', (select coalesce(jsonb_agg(to_jsonb(hours)), '[]') from hours),
  'passes', (select coalesce(jsonb_agg(to_jsonb(passes)), '[]') from passes),
  'findings', (select coalesce(jsonb_agg(to_jsonb(findings)), '[]') from findings),
  'dead_letters', (select count(*) from clerk_sync.dead_letters),
  'letters', (select coalesce(jsonb_agg(to_jsonb(letters)), '[]') from letters),
  'pending_reads', (select count(*) from clerk_sync.pending_reads),
  'went_back_at', (select (extract(epoch from max(started_at)) * 1000)::bigint from clerk_sync.passes
                    where starts_with(reason, $3) and started_at > now() - interval '1 day'),
  'lease', (select holder from clerk_sync.lease where expires_at > clock_timestamp()),
  'denials', (select coalesce(jsonb_agg(to_jsonb(denials)), '[]') from denials),
  'denied', (select count(*) from clerk_sync.denials),
  'refused', (select count(*) from clerk_sync.pending_reads where reason = 'refused'),
  'failed_start', (select jsonb_build_object('since', (extract(epoch from since) * 1000)::bigint,
                            'last_at', (extract(epoch from last_at) * 1000)::bigint, 'tries', tries, 'problem', problem)
                     from clerk_sync.failed_start),
  'drift_since_webhook', (select coalesce(sum(missing + differing + extra), 0)::bigint from clerk_sync.passes
                           where not backfill and started_at > coalesce((select max(received_at) from clerk_sync.receipts), '-infinity')),
  'freshness', (select jsonb_build_object('events', count(*), 'p50_ms', percentile_disc(0.5) within group (order by ms)::bigint,
                                          'p99_ms', percentile_disc(0.99) within group (order by ms)::bigint)
                  from lags having count(*) > 0),
  'connections', (select count(*) from pg_stat_activity
                   where application_name = 'clerk-sync' and datname = current_database() and pid <> pg_backend_pid())
)::text as "status!""#,
        SHOWN,
        &scopes as &[&str],
        WENT_BACK
    )
    .fetch_one(connection)
    .await
}

impl Database {
    /// When the last webhook was accepted by any replica, in ms: one look into an index, for whoever asks again and again. `None`: no
    /// receipt is kept.
    ///
    /// # Errors
    /// The database cannot be queried.
    pub async fn last_webhook_at(&self) -> Result<Option<i64>, Error> {
        let mut session = self.connect_for_passes().await?;
        session
            .call(async |connection| {
                sqlx::query_scalar!(
                    "select (extract(epoch from max(received_at)) * 1000)::bigint from clerk_sync.receipts"
                )
                .fetch_one(connection)
                .await
            })
            .await
    }

    /// Asks for all of it, on a connection of its own.
    ///
    /// # Errors
    /// The database cannot be queried.
    pub async fn status(&self) -> Result<Status, Error> {
        let mut session = self.connect_for_passes().await?;
        let text = session.call(status_json).await?;
        let mut status: Status = serde_json::from_str(&text).map_err(|error| Error::Answer(error.to_string()))?;
        for kind in Kind::ALL {
            status.rows.insert(kind.to_string(), session.count(kind).await?);
            status.candidates.extend(candidates(&mut session, kind).await?);
        }
        session.close().await;
        Ok(status)
    }
}

/// The first rows of a kind that a stopped reconcile would delete, if one waits.
async fn candidates(session: &mut Session, kind: Kind) -> Result<Vec<Candidate>, Error> {
    let Some(pass_id) = session.waiting_pass(Scope::Kind(kind), None).await? else { return Ok(Vec::new()) };
    let ids = session.absentees(pass_id, "", CANDIDATES).await?;
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let candidate = |row: LiveRow| Candidate {
        pass_id,
        kind: kind.to_string(),
        entity_id: row.read.id,
        organization_id: row.read.organization_id.map(|id| id.0),
        user_id: row.read.user_id.map(|id| id.0),
    };
    Ok(session.live_rows(kind, &ids).await?.into_iter().map(candidate).collect())
}

//! The lease, and what a pass writes.

use super::apply::verdicts;
use super::encode::{EncodedBatch, with_batch};
use super::{Error, Session, at_most, kinds};
use crate::model::{Batch, Fence, Kind, Millis, PassState, Scope, Step, Verdict, Words as _};
use serde::Serialize;
use std::sync::LazyLock;
use std::time::Duration;

/// A pass, as its row says.
#[derive(Clone, Debug)]
pub struct Pass {
    pub id: i64,
    pub scope: Scope,
    pub problem: Option<String>,
    pub step: Step,
    /// Where the listing goes on, as its lister wrote it.
    pub position: Option<String>,
    pub approved: bool,
    /// The first of its kind.
    pub backfill: bool,
    /// Clerk's clock when it began.
    pub observed_from: Millis,
    /// Whether it is gone on with where it was cut short or braked, and so had listed something before.
    pub resumed: bool,
    pub listed: i64,
    pub refreshed: i64,
    pub missing: i64,
    pub differing: i64,
    pub extra: i64,
}

/// What a quick pass leaves to the next one.
#[derive(Clone, Debug)]
pub(crate) struct LastQuick {
    /// Clerk's clock when it began.
    pub observed_from: Millis,
    pub counts: serde_json::Value,
    pub position: serde_json::Value,
}

/// What a pass learned from one page, to be written in one statement with the changes. `n` of a finding is the change's
/// position in the batch.
#[derive(Debug, Serialize)]
pub struct PageRecord<'a, F: Serialize> {
    pub id: i64,
    pub fence: Fence,
    pub step: Step,
    pub position: Option<serde_json::Value>,
    /// The listing has gone past all that was created before this (R7). `None`: as far as the page before.
    pub listed_to: Option<Millis>,
    pub listed: usize,
    pub refreshed: usize,
    pub findings: &'a [F],
    pub absent: &'a [String],
    pub settled: &'a [String],
    /// Of changes that are written already, one by one, because something refused one of them: what became of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcomes: Option<Vec<(usize, &'static str)>>,
}

/// What a pass leaves to be known beside how it ended.
#[derive(Debug, Default, Serialize)]
pub struct Ending<U: Serialize> {
    /// Rows that were not judged, by reason; `None`: there are none.
    pub undecided: Option<U>,
    /// When rows that were observed too recently can be judged.
    pub judge_after: Option<Millis>,
    /// In how many ms `serve` shall ask for the same again.
    pub again_in: Option<i64>,
    /// Of a braked pass: a hash of the ids whose deletion waits for your approval.
    pub held: Option<String>,
}

fn ms(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// The pass that a function of ours returns, which is a whole row of `clerk_sync.passes`.
macro_rules! pass {
    ($function:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            PassRow,
            r#"select id as "id!", scope as "scope!", problem, step as "step!", position::text as position, approved as "approved!",
                      backfill as "backfill!", observed_from as "observed_from!", resumed as "resumed!", listed as "listed!",
                      refreshed as "refreshed!", missing as "missing!", differing as "differing!", extra as "extra!"
                 from clerk_sync."# + $function,
            $($argument),*
        )
    };
}

impl Session {
    /// Takes the lease, or `None` while somebody else holds it.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn take_lease(&mut self, holder: &str, ttl: Duration) -> Result<Option<Fence>, Error> {
        let number = self
            .call(async |connection| {
                sqlx::query_scalar!("select clerk_sync.take_lease($1, $2)", holder, ms(ttl)).fetch_one(connection).await
            })
            .await?;
        Ok(number.map(Fence))
    }

    /// Whether it is still ours.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn keep_lease(&mut self, fence: Fence, ttl: Duration) -> Result<bool, Error> {
        self.call(async |connection| {
            sqlx::query_scalar!(r#"select clerk_sync.keep_lease($1, $2) as "is_kept!""#, fence.0, ms(ttl))
                .fetch_one(connection)
                .await
        })
        .await
    }

    /// Gives it back before its time.
    ///
    /// # Errors
    /// The database could not be asked; then it ends by itself.
    pub async fn end_lease(&mut self, fence: Fence) -> Result<(), Error> {
        self.call(async |connection| {
            sqlx::query!("select clerk_sync.end_lease($1)", fence.0).execute(connection).await.map(drop)
        })
        .await
    }

    /// The pass to go on with, or a new one.
    ///
    /// # Errors
    /// The database could not be asked, or the lease is lost.
    pub async fn open_pass(
        &mut self,
        fence: Fence,
        scope: Scope,
        reason: &str,
        observed_from: Millis,
        resume_within: Duration,
    ) -> Result<Pass, Error> {
        let resume_within = i32::try_from(resume_within.as_secs()).unwrap_or(i32::MAX);
        self.call(async |connection| {
            pass!("open_pass($1, $2, $3, $4, $5)", fence.0, scope.as_str(), reason, observed_from.get(), resume_within)
                .try_map(Pass::try_from)
                .fetch_one(connection)
                .await
        })
        .await
    }

    /// The braked pass of that number, let go; `None` if it is none, or a later one has run.
    ///
    /// # Errors
    /// The database could not be asked, or the lease is lost.
    pub async fn approve_pass(&mut self, fence: Fence, id: i64) -> Result<Option<Pass>, Error> {
        self.call(async |connection| {
            pass!("approve_pass($1, $2) where id is not null", fence.0, id)
                .try_map(Pass::try_from)
                .fetch_optional(connection)
                .await
        })
        .await
    }

    /// Writes a page of a pass with its changes, in one transaction.
    ///
    /// # Errors
    /// Nothing was written, or it is unknown: the pass goes on from its last page.
    pub async fn record_page<F: Serialize>(
        &mut self,
        page: &PageRecord<'_, F>,
        batch: &Batch<'_>,
        items: usize,
    ) -> Result<Vec<Option<Verdict>>, Error> {
        let is_to_be_written = page.outcomes.is_none();
        let page = serde_json::to_string(page).expect("a page is plain data and always serializes");
        let rows = self
            .call_with_types(async |connection, types| {
                static SQL: LazyLock<String> = LazyLock::new(|| {
                    with_batch(
                        "select n, outcome, reason from clerk_sync.record_page({1}::jsonb, case when {2} then {batch} end)",
                    )
                });
                let query = EncodedBatch::of(batch, types).bind(sqlx::query(sqlx::AssertSqlSafe(SQL.as_str())));
                let query = query.bind(page).bind(items > 0 && is_to_be_written);
                query.fetch_all(connection).await
            })
            .await?;
        verdicts(&rows, items)
    }

    /// Ends a pass and returns it as it is then.
    ///
    /// # Errors
    /// The database could not be asked, or the lease is lost.
    pub async fn end_pass<U: Serialize>(
        &mut self,
        fence: Fence,
        id: i64,
        state: PassState,
        problem: Option<&str>,
        counts: Option<&serde_json::Value>,
        ending: &Ending<U>,
    ) -> Result<Pass, Error> {
        let ending = serde_json::to_string(ending).expect("it is plain data and always serializes");
        self.call(async |connection| {
            pass!(
                "end_pass($1, $2, $3, $4, $5::text::jsonb, $6::text::jsonb)",
                fence.0,
                id,
                state.as_str(),
                problem,
                counts.map(ToString::to_string),
                ending
            )
            .try_map(Pass::try_from)
            .fetch_one(connection)
            .await
        })
        .await
    }

    /// Absentees of a pass behind `after`, in the order of their ids.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn absentees(&mut self, pass: i64, after: &str, limit: usize) -> Result<Vec<String>, Error> {
        self.call(async |connection| {
            sqlx::query_scalar!(
                "select id from clerk_sync.absentees where pass_id = $1 and id > $2 order by id limit $3",
                pass,
                after,
                at_most(limit)
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    /// The last complete quick pass.
    ///
    /// # Errors
    /// The database could not be asked.
    pub(crate) async fn last_quick(&mut self) -> Result<Option<LastQuick>, Error> {
        let value = |text: Option<String>| text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        self.call(async |connection| {
            sqlx::query!(
                "select observed_from, counts::text, position::text from clerk_sync.passes
                  where scope = 'quick' and state = 'complete' order by id desc limit 1"
            )
            .map(|row| LastQuick {
                observed_from: Millis::clamped(row.observed_from),
                counts: value(row.counts),
                position: value(row.position),
            })
            .fetch_optional(connection)
            .await
        })
        .await
    }

    /// The start of the last complete reconcile of a kind (R7).
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn pass_watermark(&mut self, kind: Kind) -> Result<Option<Millis>, Error> {
        let at = self
            .call(async |connection| {
                sqlx::query_scalar!("select started_at from clerk_sync.pass_watermarks where kind = $1", kind.as_str())
                    .fetch_optional(connection)
                    .await
            })
            .await?;
        Ok(at.map(Millis::clamped))
    }

    /// Kinds whose deletions the brake holds back until somebody approves them.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn braked(&mut self) -> Result<Vec<Kind>, Error> {
        let scopes = self
            .call(async |connection| {
                sqlx::query_scalar!(
                    r#"select s.scope as "scope!" from unnest($1::text[]) s(scope)
                        cross join lateral clerk_sync.braked_pass(s.scope) p where p.id is not null"#,
                    &kinds::names() as &[&str]
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(kinds_of(&scopes))
    }

    /// The pass of a scope that waits for an approval; with `held`: if it is to delete just those rows of which that is the hash.
    ///
    /// # Errors
    /// The database could not be asked.
    pub(crate) async fn waiting_pass(&mut self, scope: Scope, held: Option<&str>) -> Result<Option<i64>, Error> {
        self.call(async |connection| {
            sqlx::query_scalar!(
                "select p.id from clerk_sync.braked_pass($1) b join clerk_sync.passes p on p.id = b.id
                  where $2::text is null or p.held = $2",
                scope.as_str(),
                held
            )
            .fetch_optional(connection)
            .await
        })
        .await
    }

    /// Kinds of which a pass left rows that can be judged by now, and no pass has run since.
    ///
    /// # Errors
    /// The database could not be asked.
    pub(crate) async fn due_again(&mut self) -> Result<Vec<Kind>, Error> {
        let scopes = self
            .call(async |connection| {
                sqlx::query_scalar!(
                    "select scope from clerk_sync.passes p where again_at <= now() and scope = any ($1)
                        and not exists (select from clerk_sync.passes l where l.scope = p.scope and l.id > p.id)",
                    &kinds::names() as &[&str]
                )
                .fetch_all(connection)
                .await
            })
            .await?;
        Ok(kinds_of(&scopes))
    }

    /// Notes why no reconcile could start, until one does.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn record_failed_start(&mut self, problem: &str) -> Result<(), Error> {
        self.call(async |connection| {
            sqlx::query!("select clerk_sync.record_failed_start($1)", problem).execute(connection).await.map(drop)
        })
        .await
    }

    /// Those of these objects, which are of these kinds, whose deletion waits for your approval.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn held_back(&mut self, kinds: &[Kind], ids: &[&str]) -> Result<Vec<String>, Error> {
        let kinds: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
        self.call(async |connection| {
            sqlx::query_scalar!(
                "select a.id from unnest($2::text[]) s(scope)
                  cross join lateral clerk_sync.braked_pass(s.scope) p
                   join clerk_sync.absentees a on a.pass_id = p.id where a.id = any ($1)",
                ids as &[&str],
                &kinds as &[&str]
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    /// Asks for a pass of a kind.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn request_pass(&mut self, kind: Kind, reason: &str) -> Result<(), Error> {
        self.call(async |connection| {
            let query = sqlx::query!("select clerk_sync.request_pass($1, $2)", kind.as_str(), reason);
            query.execute(connection).await.map(drop)
        })
        .await
    }

    /// Organizations whose memberships are to be listed now. Nobody else is told of them for a while.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn claim_listings(&mut self, limit: usize) -> Result<Vec<String>, Error> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        self.call(async |connection| {
            sqlx::query_scalar!(r#"select clerk_sync.claim_listings($1) as "organization_id!""#, limit)
                .fetch_all(connection)
                .await
        })
        .await
    }

    /// Notes that the memberships of an organization were listed. Where they were asked for just now, they are claimed once more.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn mark_listed(&mut self, organization: &str) -> Result<(), Error> {
        self.call(async |connection| {
            sqlx::query!("select clerk_sync.mark_listed($1)", organization).execute(connection).await.map(drop)
        })
        .await
    }

    /// Asks for the memberships of organizations to be listed.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn request_listings(&mut self, organizations: &[String], reason: &str) -> Result<(), Error> {
        self.call(async |connection| {
            let query = sqlx::query!("select clerk_sync.request_listings($1, $2)", organizations, reason);
            query.execute(connection).await.map(drop)
        })
        .await
    }

    /// In how long the next listing of an organization's memberships is due; `None`: none is.
    ///
    /// # Errors
    /// The database could not be asked.
    pub(crate) async fn next_listing(&mut self) -> Result<Option<Duration>, Error> {
        let ms = self
            .call(async |connection| {
                sqlx::query_scalar!(
                    "select (extract(epoch from min(next_at) - now()) * 1000)::bigint from clerk_sync.pending_listings"
                )
                .fetch_one(connection)
                .await
            })
            .await?;
        Ok(ms.map(|ms| Duration::from_millis(ms.max(0).cast_unsigned())))
    }

    /// Notes that reads of these were tried, but for those of them that came too `early` and were asked for just now.
    ///
    /// # Errors
    /// The database could not be asked.
    pub async fn mark_reads_attempted(&mut self, kind: Kind, ids: &[&str], early: &[&str]) -> Result<(), Error> {
        self.call(async |connection| {
            let query = sqlx::query!(
                "select clerk_sync.mark_reads_attempted($1, $2, $3)",
                kind.as_str(),
                ids as &[&str],
                early as &[&str]
            );
            query.execute(connection).await.map(drop)
        })
        .await
    }
}

/// The kinds among these scopes.
fn kinds_of(scopes: &[String]) -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|kind| scopes.iter().any(|scope| scope == kind.as_str())).collect()
}

/// A pass as Postgres returns it.
struct PassRow {
    id: i64,
    scope: String,
    problem: Option<String>,
    step: String,
    position: Option<String>,
    approved: bool,
    backfill: bool,
    observed_from: i64,
    resumed: i32,
    listed: i64,
    refreshed: i64,
    missing: i64,
    differing: i64,
    extra: i64,
}

impl TryFrom<PassRow> for Pass {
    type Error = sqlx::Error;

    fn try_from(row: PassRow) -> Result<Pass, sqlx::Error> {
        let unknown = |what, word: &str| sqlx::Error::Decode(format!("unknown {what} {word}").into());
        Ok(Pass {
            id: row.id,
            scope: Scope::parse(&row.scope).ok_or_else(|| unknown("scope", &row.scope))?,
            problem: row.problem,
            step: Step::parse(&row.step).ok_or_else(|| unknown("step", &row.step))?,
            position: row.position,
            approved: row.approved,
            backfill: row.backfill,
            observed_from: Millis::clamped(row.observed_from),
            resumed: row.resumed > 0,
            listed: row.listed,
            refreshed: row.refreshed,
            missing: row.missing,
            differing: row.differing,
            extra: row.extra,
        })
    }
}

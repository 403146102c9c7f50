//! What is watched in the database while a trial runs: versions that go back, and sessions that stay inside a transaction.

use super::stage::Stage;
use sqlx::Row as _;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Writes down each version that is replaced by an older one, and each announced delete that is undone. Within 2.1 s nobody knows which
/// one is the older (R9).
const WATCH_VERSIONS: &str = "
create schema trial;
create table trial.decreases (kind text, id text, was text, is_now text);
create function trial.note() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  if old.state = 'live' and new.state = 'live'
       and (new.updated_at < old.updated_at - 2100 or (new.updated_at <= old.updated_at and new.observed_at < old.observed_at - 2100))
     or old.state = 'deleted' and not old.inferred and new.state <> 'deleted'
     or old.state = 'live' and new.state = 'stub' then
    insert into trial.decreases values (old.kind, old.id, old::text, new::text);
  end if;
  return null;
end $$;
create trigger note after update on clerk_sync.versions for each row execute function trial.note();";

/// Asked again and again by somebody else than the worker.
const SESSIONS: &str = "
select count(*) filter (where application_name = 'clerk-sync' and state like 'idle in transaction%' and now() - state_change > interval '1 second') as stuck,
       count(*) filter (where application_name = 'clerk-sync') as connections
  from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
const EVERY: Duration = Duration::from_millis(100);

/// What was seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// The most sessions that were inside a transaction for a second, doing nothing.
    pub(super) stuck: i64,
    /// The most connections that workers had.
    pub(super) connections: i64,
    samples: u32,
}

/// Looks on until it is asked what it saw.
pub(super) struct Watch {
    end: oneshot::Sender<()>,
    looking: JoinHandle<Seen>,
}

impl Watch {
    /// # Errors
    /// The database is not there.
    pub(super) async fn start(stage: &Stage) -> anyhow::Result<Watch> {
        sqlx::raw_sql(WATCH_VERSIONS).execute(&mut stage.owner().await?).await?;
        let (end, ended) = oneshot::channel();
        Ok(Watch { end, looking: tokio::spawn(look(stage.world.database.url(), ended)) })
    }

    /// # Errors
    /// Nothing could be seen.
    pub(super) async fn end(self) -> anyhow::Result<Seen> {
        drop(self.end);
        let seen = self.looking.await?;
        anyhow::ensure!(seen.samples > 0, "sessions could never be looked at");
        Ok(seen)
    }
}

/// How many versions went back since [`Watch::start`].
///
/// # Errors
/// The database is not there.
pub(super) async fn decreases(stage: &Stage) -> anyhow::Result<i64> {
    let mut owner = stage.owner().await?;
    Ok(sqlx::query_scalar("select count(*) from trial.decreases").fetch_one(&mut owner).await?)
}

async fn look(url: String, mut ended: oneshot::Receiver<()>) -> Seen {
    use sqlx::Connection as _;
    let (mut seen, mut connection) = (Seen::default(), None);
    while matches!(ended.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
        tokio::time::sleep(EVERY).await;
        if connection.is_none() {
            connection = sqlx::PgConnection::connect(&url).await.ok();
        }
        let Some(open) = &mut connection else { continue };
        let Ok(row) = sqlx::query(SESSIONS).fetch_one(open).await else {
            connection = None;
            continue;
        };
        seen.stuck = seen.stuck.max(row.try_get("stuck").unwrap_or_default());
        seen.connections = seen.connections.max(row.try_get("connections").unwrap_or_default());
        seen.samples += 1;
    }
    seen
}

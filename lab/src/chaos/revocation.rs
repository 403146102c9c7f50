//! `lab chaos revocation`: once a webhook that ends somebody's access is acknowledged, each read through Row-Level
//! Security is denied; and how long that takes.

use super::crash::{STEP, live_on};
use super::stage::{self, Stage};
use super::{Ended, percentile, say};
use clerk_sync::sender::Sender;
use sqlx::{Connection as _, PgConnection};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use testkit::clerk::Event;
use tokio::process::Command;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// End accesses by webhooks: no read is allowed after the acknowledgement, and how soon each is denied
#[derive(clap::Args, Clone)]
pub(crate) struct Revocation {
    /// Accesses that are ended in each situation
    #[arg(long, default_value_t = Revocation::default().times, value_name = "N")]
    times: usize,

    /// Other webhooks a second, in the second situation
    #[arg(long, default_value_t = Revocation::default().rate, value_name = "N")]
    rate: u32,

    /// What is being filled in, in the third
    #[arg(long, default_value_t = Revocation::default().users, value_name = "N")]
    users: usize,
}

impl Default for Revocation {
    fn default() -> Revocation {
        Revocation { times: 300, rate: 500, users: 200_000 }
    }
}

/// What was promised of the 99th of a hundred, idle and under load, on a machine that does nothing else.
const PROMISED: Duration = Duration::from_millis(50);
/// Of fewer accesses there is no 99th of a hundred: the slowest of a few says more of the machine than of the worker.
const ENOUGH: usize = 100;
/// What the application keeps for an organization, by the policy that the kit prints.
const NOTES: &str = "
create table public.notes (organization_id text primary key references clerk.organizations);
alter table public.notes enable row level security;
grant select on public.notes to authenticated;
create policy \"members read\" on public.notes for select to authenticated
  using (organization_id = any (array(select clerk_rls.organization_ids())))";

impl Revocation {
    /// Within seconds.
    pub(super) fn small() -> Revocation {
        Revocation { times: 40, rate: 100, users: 5_000 }
    }

    /// Runs the trial.
    ///
    /// # Errors
    /// It could not be run.
    pub(super) async fn run(self) -> anyhow::Result<Ended> {
        say(&format!("{} accesses ended by a webhook, in each of three situations", self.times));
        let stage = Stage::new(1).await?;
        let worker = stage.worker(&[]).await?;
        let sender = Arc::new(stage::sender(&worker)?);
        let mut trial = Trial::new(&stage, Arc::clone(&sender)).await?;

        let idle = trial.end_accesses(self.times).await?;
        let p99 = report("idle", &idle);
        let over = Arc::new(AtomicBool::new(false));
        let load = tokio::spawn(load(Arc::clone(&sender), trial.events(20_000).await, self.rate, Arc::clone(&over)));
        sleep(Duration::from_secs(1)).await;
        let busy = trial.end_accesses(self.times).await?;
        over.store(true, Ordering::Relaxed);
        let rate = load.await?;
        let p99_busy = report(&format!("at {rate:.0} other webhooks a second"), &busy);

        let users = self.users;
        let clerk = stage.world.clerk.clone();
        tokio::task::spawn_blocking(move || clerk.lock().populate(users, users / 100, users / 2, 1)).await?;
        stage.world.clerk.lock().now += 600_000;
        stage.set_clock().await?;
        let mut backfill = Command::new(testkit::program::path()?)
            .args(["reconcile", "--json"])
            .env("DATABASE_URL", stage.world.database.url())
            .env("CLERK_RATE_SHARE", "off")
            .envs(stage.world.api_environment())
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        sleep(Duration::from_millis(500)).await;
        let filling = trial.end_accesses(self.times).await?;
        let was_under_way = backfill.try_wait()?.is_none();
        report(if was_under_way { "while a backfill runs" } else { "while a backfill ran, to its end" }, &filling);
        backfill.kill().await.ok();
        let late: usize = [&idle, &busy, &filling].iter().map(|situation| situation.seen_after_acknowledgement).sum();
        say(&format!("  reads that began after the acknowledgement and still saw the note: {late}"));
        let is_soon = self.times < ENOUGH || (p99 <= PROMISED && p99_busy <= PROMISED);
        Ok(Ended::of(late == 0 && is_soon))
    }
}

/// What became of accesses that were ended.
#[derive(Default)]
struct EndedAccesses {
    /// How long each was seen to stand, from the shortest to the longest.
    waits: Vec<Duration>,
    /// Reads that began once the webhook was acknowledged, and were allowed.
    seen_after_acknowledgement: usize,
}

/// Returns the 99th of a hundred.
fn report(situation: &str, ended: &EndedAccesses) -> Duration {
    let p99 = percentile(&ended.waits, 99);
    let (p50, max) = (percentile(&ended.waits, 50), ended.waits.last().copied().unwrap_or_default());
    say(&format!("  {situation:<36} p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}"));
    p99
}

struct Trial<'a> {
    stage: &'a Stage,
    sender: Arc<Sender>,
    /// As the application's browser has it.
    reader: PgConnection,
    organization: String,
}

impl<'a> Trial<'a> {
    async fn new(stage: &'a Stage, sender: Arc<Sender>) -> anyhow::Result<Trial<'a>> {
        let organization =
            stage.world.clerk.lock().organizations.keys().next().map(ToString::to_string).unwrap_or_default();
        let mut owner = stage.owner().await?;
        sqlx::raw_sql(NOTES).execute(&mut owner).await?;
        let trial =
            Trial { stage, sender, reader: PgConnection::connect(&stage.world.database.url()).await?, organization };
        trial.deliver().await?;
        sqlx::query("insert into public.notes values ($1)").bind(&trial.organization).execute(&mut owner).await?;
        Ok(trial)
    }

    /// Delivers what is due, in order.
    async fn deliver(&self) -> anyhow::Result<()> {
        let due = std::mem::take(&mut self.stage.world.clerk.lock().outbox);
        for event in due {
            self.send(&event).await?;
        }
        Ok(())
    }

    async fn send(&self, event: &Event) -> anyhow::Result<()> {
        let attempt = self.sender.send(&event.message_id, event.body.as_bytes()).await?;
        anyhow::ensure!(attempt.status == 204, "{} was answered {}", event.event_type, attempt.status);
        Ok(())
    }

    /// Lets people in and throws them out again, some by a ban: how long each went on to see the organization's note.
    async fn end_accesses(&mut self, times: usize) -> anyhow::Result<EndedAccesses> {
        let mut ended = EndedAccesses::default();
        for number in 0..times {
            let (user, membership) = {
                let mut clerk = self.stage.world.clerk.lock();
                clerk.now += 1_000;
                let user = clerk.create_user("Vic", "Tim");
                let membership = clerk.add_member(&self.organization, &user, "org:member");
                (user, membership)
            };
            self.deliver().await?;
            anyhow::ensure!(self.sees(&user).await?, "a member does not see the note");
            let event = {
                let mut clerk = self.stage.world.clerk.lock();
                clerk.now += 1_000;
                match number % 3 {
                    0 => clerk.remove_member(&membership),
                    1 => clerk.ban_user(&user),
                    _ => clerk.delete_user(&user),
                }
                clerk.outbox.pop()
            };
            let event = event.ok_or_else(|| anyhow::anyhow!("no webhook tells of it"))?;
            let began = Instant::now();
            let sender = Arc::clone(&self.sender);
            let sending = tokio::spawn(async move { sender.send(&event.message_id, event.body.as_bytes()).await });
            loop {
                let is_acknowledged = sending.is_finished();
                if !self.sees(&user).await? {
                    break;
                }
                ended.seen_after_acknowledgement += usize::from(is_acknowledged);
                sleep(Duration::from_millis(1)).await;
                anyhow::ensure!(began.elapsed() < Duration::from_secs(10), "still seen after 10 s");
            }
            ended.waits.push(began.elapsed());
            anyhow::ensure!(sending.await??.status == 204, "the webhook was refused");
        }
        ended.waits.sort();
        Ok(ended)
    }

    /// Asks as the user's browser would.
    async fn sees(&mut self, user: &str) -> anyhow::Result<bool> {
        let mut transaction = self.reader.begin().await?;
        sqlx::query("select set_config('role', 'authenticated', true), set_config('request.jwt.claims', $1, true)")
            .bind(serde_json::json!({ "sub": user, "role": "authenticated" }).to_string())
            .execute(&mut *transaction)
            .await?;
        let sees: bool = sqlx::query_scalar("select exists (select from public.notes where organization_id = $1)")
            .bind(&self.organization)
            .fetch_one(&mut *transaction)
            .await?;
        transaction.rollback().await?;
        Ok(sees)
    }

    /// So many webhooks of an instance of their own.
    async fn events(&self, count: usize) -> Vec<Event> {
        let (seed, instance) = (2, self.stage.world.clerk.lock().instance_id.clone());
        tokio::task::spawn_blocking(move || {
            let mut clerk = testkit::clerk::Clerk::new(seed, clerk_sync::clock::now().get() - 24 * 3_600_000);
            clerk.instance_id = instance;
            let mut rng = fastrand::Rng::with_seed(seed);
            let founder = testkit::traffic::sign_up(&mut clerk, &mut rng);
            clerk.create_organization("Fjord Foods", &founder);
            while clerk.outbox.len() < count {
                live_on(&mut clerk, &mut rng, STEP);
            }
            std::mem::take(&mut clerk.outbox)
        })
        .await
        .unwrap_or_default()
    }
}

/// Sends steadily until it is over, and returns how many a second arrived.
async fn load(sender: Arc<Sender>, events: Vec<Event>, rate: u32, over: Arc<AtomicBool>) -> f64 {
    let mut tick = interval(Duration::from_secs(1) / rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (began, arrived) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    for event in events {
        if over.load(Ordering::Relaxed) {
            break;
        }
        tick.tick().await;
        let (sender, arrived) = (Arc::clone(&sender), Arc::clone(&arrived));
        tokio::spawn(async move {
            if sender.send(&event.message_id, event.body.as_bytes()).await.is_ok_and(|attempt| attempt.status == 204) {
                arrived.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    arrived.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}

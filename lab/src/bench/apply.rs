//! `lab bench apply`: what the one call that writes the mirror costs, by the size of the mirror.
//!
//! Batches of mixed events, over one session, as the writer task makes them. The same batch again, with the same message
//! ids and with new ones, must write nothing to the mirror; what it may write are receipts.

use super::history::{History, Size};
use super::{project, wal};
use crate::say;
use anyhow::{Context as _, ensure};
use clerk_sync::clerk::event;
use clerk_sync::model::{Batch, Delivery, MessageId, Outcome, Source, hex};
use clerk_sync::store::Session;
use sha2::{Digest as _, Sha256};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use testkit::postgres::SUPERUSER;
use testkit::supabase::Supabase;
use testkit::usage::Usage;

/// Apply batches of events to a small mirror and to a large one, then the same again
#[derive(clap::Args)]
pub(crate) struct Apply {
    /// Rows of the large mirror: half of them users, half memberships
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    rows: usize,

    /// Rows of the small one
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    few: usize,

    /// Events in a batch
    #[arg(long, default_value_t = 64, value_name = "N")]
    events: usize,

    /// Batches of each
    #[arg(long, default_value_t = 500, value_name = "N")]
    batches: usize,

    /// Also print how long each step of it takes in the large mirror; measuring that costs time by itself
    #[arg(long)]
    steps: bool,
}

impl Apply {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let supabase = tokio::task::spawn_blocking(Supabase::start).await??;
        let mut mirrors = Vec::new();
        for (name, rows) in [("few", self.few), ("many", self.rows)] {
            mirrors.push(Mirror::new(&supabase, name, rows, self.steps).await?);
        }
        // Turn by turn, so that whatever else the machine does meets both alike.
        for batch in 0..self.batches + self.batches / 10 {
            for mirror in &mut mirrors {
                if batch == self.batches / 10 {
                    // Until here it was warming up.
                    (mirror.took, mirror.wal, mirror.cpu) = (Vec::new(), 0, -mirror.cpu_now());
                    sqlx::query("select pg_stat_reset()").execute(&mut mirror.superuser).await?;
                }
                mirror.apply_next(self.events).await?;
            }
        }
        say("                       rows   p50 ms   CPU µs per event   WAL bytes per event");
        for mirror in &mut mirrors {
            mirror.cpu += mirror.cpu_now();
            mirror.took.sort_by(f64::total_cmp);
            let events = mirror.took.len() * self.events;
            let cpu = mirror.cpu * 1e6 / f64::from(u32::try_from(events)?);
            let (rows, median, wal) = (mirror.rows, mirror.median() * 1e3, mirror.wal / i64::try_from(events)?);
            say(&format!("{rows:>26} {median:>8.2} {cpu:>18.1} {wal:>21}"));
        }
        if let [few, many] = &mirrors[..] {
            say(&format!(
                "many beside few: {:.2}× the time, {:.2}× the processor time",
                many.median() / few.median(),
                many.cpu / few.cpu
            ));
        }
        if self.steps
            && let Some(many) = mirrors.last_mut()
        {
            many.print_steps(self.batches).await?;
        }
        for mirror in &mut mirrors {
            mirror.replay(self.events).await?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

struct Mirror {
    rows: usize,
    history: History,
    session: Session,
    superuser: PgConnection,
    /// The session's process.
    backend: u32,
    took: Vec<f64>,
    wal: i64,
    /// Processor seconds.
    cpu: f64,
}

impl Mirror {
    async fn new(supabase: &Supabase, name: &str, rows: usize, with_steps: bool) -> anyhow::Result<Mirror> {
        let database = project(supabase, name).await?;
        let history = History::new(Size::of(rows / 2));
        history.fill(supabase, name).await?;
        let mut superuser = supabase.connect(SUPERUSER, name).await?;
        if with_steps {
            let sql = format!("alter database {name} set track_functions = 'all'");
            sqlx::query(AssertSqlSafe(sql)).execute(&mut superuser).await?;
        }
        let session = database.connect().await?;
        let sql = "select pid from pg_stat_activity where application_name = 'clerk-sync' and datname = $1";
        let backend: i32 = sqlx::query_scalar(sql).bind(name).fetch_one(&mut superuser).await?;
        let backend = u32::try_from(backend)?;
        Ok(Mirror { rows, history, session, superuser, backend, took: Vec::new(), wal: 0, cpu: 0.0 })
    }

    /// Of the batches' times in seconds, which are in order.
    fn median(&self) -> f64 {
        self.took.get(self.took.len() / 2).copied().unwrap_or_default()
    }

    fn cpu_now(&self) -> f64 {
        Usage::of(self.backend).unwrap_or_default().cpu
    }

    /// The functions that a batch calls, the dearest first: how often, and how long, without those that they call.
    async fn print_steps(&mut self, batches: usize) -> anyhow::Result<()> {
        // A session reports what it has counted when it is idle, once a second at most.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let sql = "select funcname::text, calls, self_time from pg_stat_user_functions order by self_time desc";
        let steps: Vec<(String, i64, f64)> = sqlx::query_as(sql).fetch_all(&mut self.superuser).await?;
        let batches = f64::from(u32::try_from(batches)?);
        say("                          step   calls   µs per batch");
        for (name, calls, ms) in steps {
            say(&format!("{name:>30} {calls:>7} {:>14.1}", ms * 1e3 / batches));
        }
        Ok(())
    }

    /// The next batch.
    async fn apply_next(&mut self, events: usize) -> anyhow::Result<()> {
        let deliveries = deliveries(&mut self.history, events)?;
        let before = wal(&mut self.superuser).await?;
        let began = Instant::now();
        apply(&mut self.session, &deliveries).await?;
        self.took.push(began.elapsed().as_secs_f64());
        self.wal += wal(&mut self.superuser).await? - before;
        Ok(())
    }

    /// The same batch again: with the same message ids, then with new ones, beside receipts that are simply inserted.
    async fn replay(&mut self, events: usize) -> anyhow::Result<()> {
        let mut deliveries = deliveries(&mut self.history, events)?;
        // Twice: whoever looks at a page first after a change may tidy it up, and that is written ahead, too.
        apply(&mut self.session, &deliveries).await?;
        apply(&mut self.session, &deliveries).await?;
        self.superuser.execute(sqlx::raw_sql("checkpoint")).await?;
        let start = wal(&mut self.superuser).await?;
        let same = apply(&mut self.session, &deliveries).await?;
        let after_same = wal(&mut self.superuser).await?;
        for (n, delivery) in deliveries.iter_mut().enumerate() {
            delivery.message.as_mut().context("a delivery without a message")?.id =
                MessageId(format!("msg_again_{n:023}"));
        }
        let again = apply(&mut self.session, &deliveries).await?;
        let after_new = wal(&mut self.superuser).await?;
        self.superuser.execute(sqlx::raw_sql(RECEIPTS)).await?;
        let after_receipts = wal(&mut self.superuser).await?;
        say(&format!(
            "the same batch again, {} rows: {} bytes of WAL ({same} of {events} unchanged); under new ids {} ({again} unchanged), of which \
             receipts alone {}",
            self.rows,
            after_same - start,
            after_new - after_same,
            after_receipts - after_new,
        ));
        Ok(())
    }
}

/// The receipts of the last batch once more, inserted by themselves.
const RECEIPTS: &str = "
insert into clerk_sync.receipts (message_id, body_hash, event_type, entity_id, outcome, reason, field_errors, event_at)
  select replace(message_id, 'again', 'thrice'), body_hash, event_type, entity_id, outcome, reason, field_errors, event_at
    from clerk_sync.receipts where message_id like 'msg\\_again\\_%' order by message_id
";

/// The next events, as the writer gets them.
fn deliveries(history: &mut History, count: usize) -> anyhow::Result<Vec<Delivery>> {
    let events = history.next(count);
    let delivery = |event: testkit::clerk::Event| {
        let read = event::parse(event.body.as_bytes(), clerk_sync::clock::now())?;
        let body_hash = hex(&Sha256::digest(&event.body));
        read.into_delivery(MessageId(event.message_id), body_hash).context("an event that says nothing")
    };
    events.into_iter().map(delivery).collect()
}

/// How many changed nothing.
async fn apply(session: &mut Session, deliveries: &[Delivery]) -> anyhow::Result<usize> {
    let batch = Batch::fold(Source::Webhook, true, deliveries.iter());
    let verdicts = session.apply(&batch, deliveries.len()).await?;
    ensure!(verdicts.iter().all(Option::is_some), "a delivery has no verdict");
    let idle = |outcome| matches!(outcome, Outcome::Unchanged | Outcome::Stale | Outcome::Duplicate);
    Ok(verdicts.into_iter().flatten().filter(|verdict| idle(verdict.outcome)).count())
}

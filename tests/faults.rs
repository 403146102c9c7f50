//! Thirty faults, each brought about for real, with what was observed: each prints its row of the table in docs/reliability.md.
//!
//! In all of them: no acknowledged event is lost, no row goes backwards, and all is right after the fault ends. A fault that
//! belongs to one behaviour is in that behaviour's file; here are those of whole processes. `lab chaos` has them for
//! longer.

use crate::support::{BUSY, SECRET, START, Server, World, answer, database, source, unique};
use crate::{operating, outages, receiving, reconciling, storms};
use clerk_sync::model::InstanceCheck;
use clerk_sync::sender::Sender;
use futures_util::{StreamExt as _, stream};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sqlx::Executor as _;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use testkit::clerk::{Clerk, Event};
use testkit::postgres::{Durability, SUPERUSER};
use testkit::proxy::Fault;
use testkit::traffic;
use testkit::wait;
use testkit::worker::{Options, Worker};
use tokio::time::sleep;

/// Makes a test of each fault, and a list of their numbers.
macro_rules! faults {
    ($($load:ident $name:ident: $number:literal, $fault:literal => $scenario:expr;)*) => {
        const NUMBERS: &[u8] = &[$($number),*];
        $(
            #[test]
            fn $name() {
                $load(|| run($number, $fault, $scenario));
            }
        )*
    };
}

faults! {
    busy f01_worker_killed_under_load: 1, "worker killed under load" => worker_is_killed();
    idle f02_worker_killed_at_a_point_of_its_work: 2, "worker killed at a point of its work" => worker_is_killed_at_a_point();
    busy f03_worker_stopped_under_load: 3, "worker stopped under load" => operating::stopped_under_load();
    busy f04_all_sessions_terminated_every_second: 4, "all sessions terminated, every second" => sessions_are_terminated();
    idle f05_connection_cut_while_a_commit_is_under_way: 5, "connection cut while a commit is under way" => outages::answers_are_lost();
    idle f06_postgres_crashes_and_recovers: 6, "Postgres crashes and recovers" => postgres_crashes();
    idle f07_postgres_down_then_hung: 7, "Postgres down, then hung" => postgres_is_away();
    idle f08_database_slow: 8, "database slow" => outages::database_is_slow();
    idle f09_databases_answers_do_not_come: 9, "database's answers do not come" => outages::database_is_silent();
    idle f10_table_locked: 10, "table locked" => outages::table_is_locked();
    idle f11_no_connection_left_pooler_refuses: 11, "no connection left, pooler refuses" => outages::connections_run_out();
    idle f12_database_read_only_disk_full: 12, "database read-only, disk full" => outages::database_cannot_be_written();
    idle f13_pooler_in_transaction_mode: 13, "pooler in transaction mode" => transaction_pooler();
    busy f14_two_replicas_on_the_same_rows_in_opposite_order: 14, "two replicas on the same rows, in opposite order" => replicas_cross();
    busy f15_senders_hang_up: 15, "senders hang up" => storms::senders_hang_up();
    busy f16_every_event_three_times_shuffled_a_tenth_late: 16, "every event three times, shuffled, a tenth late" => thrice_and_shuffled();
    idle f17_one_message_on_50_connections_to_2_replicas: 17, "one message on 50 connections to 2 replicas" => receiving::one_message_fifty_times();
    busy f18_two_and_four_replicas_as_f16: 18, "two and four replicas, as F16" => many_replicas();
    busy f19_overload_from_500_connections: 19, "overload from 500 connections" => overload();
    idle f20_workers_clock_off_by_4_minutes: 20, "worker's clock off by 4 minutes" => clock_is_a_little_off();
    idle f21_workers_clock_off_by_10_minutes_then_set: 21, "worker's clock off by 10 minutes, then set" => clock_is_wrong();
    idle f22_clerks_api_answers_429: 22, "Clerk's API answers 429" => reconciling::told_to_wait();
    idle f23_clerks_api_fails: 23, "Clerk's API fails" => reconciling::api_fails();
    idle f24_clerks_api_hangs_or_drips: 24, "Clerk's API hangs or drips" => reconciling::api_hangs();
    idle f25_pages_cut_or_no_json_of_a_list: 25, "pages cut, or no JSON of a list" => reconciling::pages_are_broken();
    busy f26_lists_change_while_they_are_read: 26, "lists change while they are read" => reconciling::lists_shift_between_pages();
    idle f27_empty_lists: 27, "empty lists" => reconciling::lists_are_empty();
    idle f28_key_refused: 28, "key refused" => reconciling::key_is_refused();
    idle f29_pass_killed_twice_at_once_beside_webhooks: 29, "pass killed, twice at once, beside webhooks" => reconciling::passes_are_disturbed();
    idle f30_sender_loses_messages: 30, "sender loses messages" => reconciling::messages_are_lost();
}

#[test]
fn every_number_has_its_fault() {
    assert_eq!(NUMBERS, (1..=30).collect::<Vec<u8>>());
}

/// Those that keep the machine busy run one after the other.
fn busy(fault: impl FnOnce()) {
    let _turn = BUSY.blocking_lock();
    fault();
}

/// The others wait most of the time.
fn idle(fault: impl FnOnce()) {
    fault();
}

/// What none of them may take, on a machine that is busy with other things, too: whatever takes so long hangs.
const PATIENCE: Duration = Duration::from_secs(600);

/// Brings it about, and prints its row.
fn run(number: u8, fault: &str, scenario: impl Future<Output = String>) {
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // The time limit belongs to the runtime.
    let limited = async { tokio::time::timeout(PATIENCE, scenario).await.expect("it ends in time") };
    let observed = runtime.block_on(limited);
    println!("F{number:<3} {fault:<52} {:>5.1} s  {observed}", began.elapsed().as_secs_f64());
}

/// `serve` as a process, before a database.
type WorkerWorld = testkit::World<Worker>;

async fn worker_world() -> WorkerWorld {
    testkit::World::builder().working().await.unwrap()
}

/// Ends the flow: every message is accepted in the end, each accepted is on record, and the mirror equals Clerk.
async fn settle(world: &WorkerWorld, clerk: &Clerk, flow: WebhookFlow) -> SenderLog {
    let log = flow.end().await;
    assert!(log.refused.keys().all(|status| *status == 503), "{:?}", log.refused);
    let sql = "select message_id from clerk_sync.receipts";
    let rows = world.database.rows(sql).await;
    let receipts: BTreeSet<&str> = rows.iter().filter_map(|row| row["message_id"].as_str()).collect();
    let lost: Vec<_> = log.accepted.iter().filter(|(id, _)| !receipts.contains(id.as_str())).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    world.database.equals(&source(clerk)).await;
    log
}

/// A Clerk after a busy time, and its webhooks: no two of one object so close that only a read could tell which came last (R9), for
/// these workers make none.
fn history(seed: u64, events: usize) -> (Clerk, Vec<Event>) {
    let (mut clerk, mut rng) = (Clerk::new(seed, START), fastrand::Rng::with_seed(seed));
    for name in ["Acme", "Globex", "Initech"] {
        let founder = traffic::sign_up(&mut clerk, &mut rng);
        clerk.create_organization(name, &founder);
    }
    while clerk.outbox.len() < events {
        clerk.now += 2_500;
        traffic::change(&mut clerk, &mut rng);
    }
    let events = std::mem::take(&mut clerk.outbox);
    (clerk, events)
}

/// Webhooks at a steady pace, each sent again until it is accepted: as Svix does, only sooner.
struct WebhookFlow {
    log: Arc<Mutex<SenderLog>>,
    sender: Arc<Sender>,
    kept_back: Vec<Event>,
    sending: tokio::task::JoinHandle<()>,
}

/// What the sender heard.
#[derive(Clone, Default)]
struct SenderLog {
    /// Message ids, and when.
    accepted: Vec<(String, Instant)>,
    /// How many answers of each other status.
    refused: BTreeMap<u16, usize>,
    unanswered: usize,
    slowest: Duration,
}

impl std::fmt::Display for SenderLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let refused: usize = self.refused.values().sum();
        write!(f, "{} accepted and 0 lost, {refused} × 503, {} unanswered", self.accepted.len(), self.unanswered)
    }
}

/// Between two attempts; Svix leaves 5 s and more.
const AGAIN: Duration = Duration::from_millis(300);

/// Messages that are kept back, one for each time that somebody waits for an answer: a slow machine may be so late with the fault that all
/// others are accepted.
const KEPT_BACK: usize = 8;

impl WebhookFlow {
    fn start(url: String, mut events: Vec<Event>, a_second: u32) -> WebhookFlow {
        let kept_back = events.split_off(events.len() - KEPT_BACK);
        let log = Arc::<Mutex<SenderLog>>::default();
        let sender = Arc::new(Sender::new(url, SECRET).unwrap());
        let (to, heard) = (Arc::clone(&sender), Arc::clone(&log));
        let sending = tokio::spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_secs(1) / a_second);
            let mut messages = tokio::task::JoinSet::new();
            for event in events {
                pace.tick().await;
                messages.spawn(until_accepted(Arc::clone(&to), event, Arc::clone(&heard)));
            }
            while let Some(ended) = messages.join_next().await {
                ended.unwrap();
            }
        });
        WebhookFlow { log, sender, kept_back, sending }
    }

    fn log(&self) -> SenderLog {
        self.log.lock().unwrap().clone()
    }

    /// How long after this moment the first message was accepted.
    async fn accepts_after(&mut self, moment: Instant) -> Duration {
        let event = self.kept_back.pop().expect("one for each time");
        let last = tokio::spawn(until_accepted(Arc::clone(&self.sender), event, Arc::clone(&self.log)));
        loop {
            let at = self.log().accepted.iter().map(|(_, at)| *at).filter(|at| *at > moment).min();
            match at {
                Some(at) => {
                    last.await.unwrap();
                    return at - moment;
                }
                None => sleep(Duration::from_millis(10)).await,
            }
            assert!(moment.elapsed() < Duration::from_secs(60), "nothing was accepted for a minute");
        }
    }

    async fn end(mut self) -> SenderLog {
        for event in std::mem::take(&mut self.kept_back) {
            until_accepted(Arc::clone(&self.sender), event, Arc::clone(&self.log)).await;
        }
        tokio::time::timeout(Duration::from_secs(180), self.sending)
            .await
            .expect("all are accepted in the end")
            .unwrap();
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

async fn until_accepted(sender: Arc<Sender>, event: Event, log: Arc<Mutex<SenderLog>>) {
    for tries in 0.. {
        let started = Instant::now();
        let result = sender.send(&event.message_id, event.body.as_bytes()).await;
        let is_connected = {
            let mut log = log.lock().unwrap();
            log.slowest = log.slowest.max(started.elapsed());
            match &result {
                Ok(attempt) if attempt.status / 100 == 2 => {
                    log.accepted.push((event.message_id, Instant::now()));
                    return;
                }
                Ok(attempt) => *log.refused.entry(attempt.status).or_default() += 1,
                Err(_) => log.unanswered += 1,
            }
            result.is_ok()
        };
        // A connection that fails is tried again at once, one time.
        if is_connected || tries > 0 {
            sleep(AGAIN).await;
        }
    }
}

/// F1.
async fn worker_is_killed() -> String {
    let mut world = worker_world().await;
    let (clerk, events) = history(1, 1_000);
    let mut flow = WebhookFlow::start(world.server.webhook_url(), events, 200);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        sleep(Duration::from_millis(rng.u64(200..900))).await;
        world.server.kill().await.unwrap();
        let restarted = Instant::now();
        world.server.restart().await.unwrap();
        longest = longest.max(flow.accepts_after(restarted).await);
    }
    let log = settle(&world, &clerk, flow).await;
    format!("5 kills: {log}; first 2xx at most {longest:.1?} after a restart")
}

/// F2. After the signature is verified; while the statement is under way; after the commit.
async fn worker_is_killed_at_a_point() -> String {
    let mut world = testkit::World::builder().database_proxy(1).working().await.unwrap();
    let sender = Arc::clone(world.sender());
    let (_, events) = history(2, 8);
    let send = |event: &Event| {
        let (sender, event) = (Arc::clone(&sender), event.clone());
        tokio::spawn(async move { sender.send(&event.message_id, event.body.as_bytes()).await })
    };
    let outcome = async |event: &Event| send(event).await.unwrap().unwrap().outcome.unwrap();
    assert_eq!(outcome(&events[0]).await, "applied");

    // Verified: it waits for a session, which is not there yet.
    world.server.kill().await.unwrap();
    world.database_proxy().set(Fault::BlackHole);
    world.server.restart().await.unwrap();
    let sent = send(&events[1]);
    sleep(Duration::from_millis(500)).await;
    world.server.kill().await.unwrap();
    assert!(sent.await.unwrap().is_err(), "killed before it answered");
    world.database_proxy().set(Fault::None);
    assert_eq!(world.database.count("clerk_sync.receipts").await, 1);

    // Under way: the statement waits for a lock until it gives up.
    world.server.restart().await.unwrap();
    assert_eq!(outcome(&events[1]).await, "applied");
    let mut blocker = world.database.owner().await;
    blocker
        .execute("begin; lock table clerk.users, clerk.organizations, clerk.organization_memberships")
        .await
        .unwrap();
    let sent = send(&events[2]);
    let waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    wait::until("the writer waits", async || !world.database.rows(waiting).await.is_empty()).await;
    world.server.kill().await.unwrap();
    assert!(sent.await.unwrap().is_err());
    wait::until("the writer waits no more", async || world.database.rows(waiting).await.is_empty()).await;
    blocker.execute("rollback").await.unwrap();
    assert_eq!(world.database.count("clerk_sync.receipts").await, 2);

    // Committed: the reply is on its way for longer than the worker lives.
    world.server.restart().await.unwrap();
    assert_eq!(outcome(&events[2]).await, "applied");
    world.database_proxy().set(Fault::Delay(Duration::from_millis(800)));
    let sent = send(&events[3]);
    wait::until("the fourth is written", async || world.database.count("clerk_sync.receipts").await == 4).await;
    world.server.kill().await.unwrap();
    assert!(sent.await.unwrap().is_err());
    world.database_proxy().set(Fault::None);
    let written = world.database.written().await;
    world.server.restart().await.unwrap();
    assert_eq!(outcome(&events[3]).await, "duplicate");
    assert!(world.database.written().await == written, "a row was written again");
    "verified: nothing stored, retry applied; under way: rolled back, retry applied; committed: retry a duplicate, 0 rows written"
        .to_owned()
}

/// F4.
async fn sessions_are_terminated() -> String {
    let world = worker_world().await;
    let (clerk, events) = history(4, 600);
    let mut flow = WebhookFlow::start(world.server.webhook_url(), events, 120);
    let mut superuser = crate::support::supabase().connect(SUPERUSER, &world.database.name).await.unwrap();
    let terminate = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    let mut last = Instant::now();
    for _ in 0..4 {
        sleep(Duration::from_secs(1)).await;
        superuser.execute(terminate).await.unwrap();
        last = Instant::now();
    }
    let recovered = flow.accepts_after(last).await;
    let log = settle(&world, &clerk, flow).await;
    format!("4 times: {log}; first 2xx {recovered:.1?} after the last")
}

/// F6.
async fn postgres_crashes() -> String {
    let world = testkit::World::builder().own_server(Durability::Fast).working().await.unwrap();
    let supabase = world.supabase();
    let (clerk, events) = history(6, 500);
    let mut flow = WebhookFlow::start(world.server.webhook_url(), events, 100);
    let mut longest = Duration::ZERO;
    for _ in 0..2 {
        sleep(Duration::from_secs(1)).await;
        supabase.cluster().stop_server().unwrap();
        sleep(Duration::from_millis(500)).await;
        supabase.cluster().start_server().unwrap();
        longest = longest.max(flow.accepts_after(Instant::now()).await);
    }
    let log = settle(&world, &clerk, flow).await;
    assert_eq!(log.unanswered, 0, "each has its answer before Svix would give up");
    format!("2 crashes: {log}, slowest answer {:.1?}; first 2xx {longest:.1?} after it accepts again", log.slowest)
}

/// Lets processes go on, however we end.
struct PausedProcesses(Vec<Pid>);

impl Drop for PausedProcesses {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill_process(*pid, Signal::CONT);
        }
    }
}

/// F7.
async fn postgres_is_away() -> String {
    // What is well is not what may flood the log.
    let quiet = [("RUST_LOG", "warn,clerk_sync=info,clerk_sync::webhook=warn".to_owned())];
    let world = testkit::World::builder().own_server(Durability::Fast).environment(quiet).working().await.unwrap();
    let supabase = world.supabase();
    let (clerk, events) = history(7, 700);
    let mut flow = WebhookFlow::start(world.server.webhook_url(), events, 50);
    sleep(Duration::from_secs(1)).await;
    let (lines, began, resident) = (world.server.log_lines(), Instant::now(), world.server.usage().resident);
    supabase.cluster().stop_server().unwrap();
    sleep(Duration::from_secs(5)).await;
    let lines_down = world.server.log_lines() - lines;
    let down = usize::try_from(began.elapsed().as_secs()).unwrap();
    supabase.cluster().start_server().unwrap();
    flow.accepts_after(Instant::now()).await;

    let sql = "select pid from pg_stat_activity where application_name = 'clerk-sync'";
    let rows = world.database.rows(sql).await;
    let backends = rows.iter().filter_map(|row| i32::try_from(row["pid"].as_i64()?).ok());
    let pids = backends.chain(supabase.cluster().pid().map(u32::cast_signed));
    let stopped = PausedProcesses(pids.filter_map(Pid::from_raw).collect());
    let (lines, began) = (world.server.log_lines(), Instant::now());
    for pid in &stopped.0 {
        kill_process(*pid, Signal::STOP).unwrap();
    }
    sleep(Duration::from_secs(7)).await;
    assert_eq!(world.server.get("/livez").await.0, 200);
    assert_eq!(world.server.get("/readyz").await.0, 503);
    let lines_hung = world.server.log_lines() - lines;
    let hung = usize::try_from(began.elapsed().as_secs()).unwrap();
    drop(stopped);
    let recovered = flow.accepts_after(Instant::now()).await;
    let log = settle(&world, &clerk, flow).await;
    let usage = world.server.usage();
    assert_eq!(log.unanswered, 0, "each has its answer before Svix would give up");
    // A line in each second that was touched, and one for each thing that it says of the database.
    let is_quiet = lines_down <= down + 4 && lines_hung <= hung + 4;
    assert!(is_quiet, "{lines_down} lines in {down} s, {lines_hung} in {hung} s: {:#?}", world.server.log_end());
    assert!(usage.peak < 128 * 1024, "{usage:?}");
    format!(
        "{down} s down, {hung} s hung: {log}, slowest {:.1?}; {lines_down} and {lines_hung} log lines; {} to {} MiB; first 2xx after {recovered:.1?}",
        log.slowest,
        resident / 1024,
        usage.peak / 1024
    )
}

/// F13. Refused by design: prepared statements of one client answer another's there.
async fn transaction_pooler() -> String {
    let mut log = String::new();
    for url in [
        "postgres://postgres.abcdefghij@pooler.example.com:6543/postgres",
        "postgres://postgres@db.example.com:5432/postgres?pgbouncer=true",
    ] {
        let error =
            Worker::start(Options::new(url.to_owned()).unwrap()).await.expect_err("it must not start").to_string();
        assert!(error.contains("DATABASE_URL points at a transaction-mode pooler"), "{error}");
        log = error;
    }
    let reason = log.rsplit("clerk-sync: ").next().unwrap_or_default();
    format!("serve does not start: {reason}")
}

/// F14.
async fn replicas_cross() -> String {
    const USERS: usize = 150;
    let world = World::new().await;
    let replica = Server::start(world.database.database(), InstanceCheck::Pinned(None)).await;
    let other = Sender::new(replica.webhook_url(), SECRET).unwrap();
    let users: Vec<String> = (0..USERS).map(|_| world.clerk.lock().create_user("Ada", "Bell")).collect();
    world.deliver().await;
    let change = |name: &str| {
        for id in &users {
            world.clerk.lock().now += 40;
            world.clerk.lock().update_user(id, |user| name.clone_into(&mut user.last_name));
        }
        world.due()
    };
    let rounds: Vec<_> =
        (0..3).map(|round| (change(&format!("First {round}")), change(&format!("Then {round}")))).collect();
    let mut statuses = BTreeMap::<u16, usize>::new();
    for (first, then) in rounds {
        let forth = first.iter().map(|event| answer(world.sender(), &event.message_id, event.body.as_bytes()));
        let back = then.iter().rev().map(|event| answer(&other, &event.message_id, event.body.as_bytes()));
        let (forth, back) = tokio::join!(futures_util::future::join_all(forth), futures_util::future::join_all(back));
        for attempt in forth.into_iter().chain(back) {
            *statuses.entry(attempt.status).or_default() += 1;
        }
    }
    let sent = USERS * 6;
    assert_eq!(statuses, BTreeMap::from([(204, sent)]));
    world.equals_source().await;
    let sql = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(world.database.rows(sql).await, [serde_json::json!({ "deadlocks": 0 })]);
    format!("{sent} × 204, 0 × 503, 0 deadlocks: writers take turns")
}

/// All of it three times, in any order, round robin to so many replicas; a tenth when all else is there. Then once more. What is
/// held in the end.
async fn replayed(replicas: usize, events: usize) -> String {
    let database = database().await;
    let mut servers = Vec::new();
    for _ in 0..replicas {
        servers.push(Server::start(database.database(), InstanceCheck::Pinned(None)).await);
    }
    let senders: Vec<Sender> =
        servers.iter().map(|server| Sender::new(server.webhook_url(), SECRET).unwrap()).collect();
    let (clerk, events) = history(16, events);
    let mut rng = fastrand::Rng::with_seed(16);
    let (mut soon, mut late) = (Vec::new(), Vec::new());
    for event in &events {
        if rng.u8(0..10) == 0 { late.extend([event; 3]) } else { soon.extend([event; 3]) }
    }
    rng.shuffle(&mut soon);
    rng.shuffle(&mut late);
    let deliver = async |events: &[&Event]| {
        let attempts = stream::iter(events.iter().enumerate()).map(async |(n, event)| {
            let attempt = answer(&senders[n % senders.len()], &event.message_id, event.body.as_bytes()).await;
            assert_eq!(attempt.status, 204, "{attempt:?}");
        });
        attempts.buffer_unordered(40).collect::<()>().await;
    };
    deliver(&soon).await;
    deliver(&late).await;
    database.equals(&source(&clerk)).await;
    let written = database.written().await;
    soon.extend(late);
    rng.shuffle(&mut soon);
    deliver(&soon).await;
    assert!(database.written().await == written, "a second replay wrote a row");
    database.mirror().await
}

/// F16.
async fn thrice_and_shuffled() -> String {
    let rows = replayed(1, 500).await.lines().count();
    format!("500 events: 3,000 × 204, {rows} rows as the model has them; a second replay wrote 0 rows")
}

/// F18.
async fn many_replicas() -> String {
    let (one, two, four) = tokio::join!(replayed(1, 250), replayed(2, 250), replayed(4, 250));
    for other in [&two, &four] {
        let differing: Vec<&str> = other.lines().filter(|line| !one.contains(line)).collect();
        assert!(other == &one, "replicas made a difference: {differing:#?}");
    }
    format!("250 events, 1,500 × 204 each: {} rows, byte for byte those of one replica", one.lines().count())
}

/// F19. More bytes are under way than may be held, so that some senders must come again.
async fn overload() -> String {
    let world = worker_world().await;
    let (_, events) = history(19, 400);
    let padding = format!("{{\"padding\":\"{}\",", "x".repeat(100_000));
    let events: Vec<Event> =
        events.into_iter().map(|event| Event { body: event.body.replacen('{', &padding, 1), ..event }).collect();
    let (events, sender) = (Arc::new(events), Arc::clone(world.sender()));
    let press = async |connections: usize, seconds: u64| {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..connections {
            let (events, sender) = (Arc::clone(&events), Arc::clone(&sender));
            clients.spawn(async move {
                let mut statuses = BTreeMap::<u16, usize>::new();
                for event in events.iter().cycle().skip(client) {
                    if Instant::now() > end {
                        break;
                    }
                    let status = sender.send(&event.message_id, event.body.as_bytes()).await.unwrap().status;
                    *statuses.entry(status).or_default() += 1;
                    if status == 503 {
                        sleep(Duration::from_secs(1)).await;
                    }
                }
                statuses
            });
        }
        let mut statuses = BTreeMap::<u16, usize>::new();
        for (status, count) in clients.join_all().await.into_iter().flatten() {
            *statuses.entry(status).or_default() += count;
        }
        let unexpected: Vec<_> = statuses.keys().filter(|status| !matches!(status, 204 | 503)).collect();
        assert!(unexpected.is_empty(), "{statuses:?}");
        let good = statuses.get(&204).copied().unwrap_or_default();
        (good / usize::try_from(seconds).unwrap(), statuses.get(&503).copied().unwrap_or_default())
    };
    let (peak, _) = press(16, 3).await;
    let (good, refused) = press(500, 4).await;
    let began = Instant::now();
    assert_eq!(press(1, 1).await.1, 0, "normal again");
    let peak_memory = world.server.usage().peak / 1024;
    assert!(refused > 0, "nobody was turned away");
    assert!(peak_memory < 192, "{peak_memory} MiB");
    format!(
        "{good} × 204 a second of {peak} at best, {refused} × 503, 0 × 500; {peak_memory} MiB at most; normal after {:.1?}",
        began.elapsed()
    )
}

/// The library that shows a process another time, where it is installed: `./x faults` sees to that.
fn libfaketime() -> Option<PathBuf> {
    let mut folders = vec![PathBuf::from("/usr/lib"), PathBuf::from("/usr/lib64")];
    folders.extend(std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path()));
    let found = folders.into_iter().map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|file| file.exists());
    assert!(found.is_some() || std::env::var("CI").as_deref() != Ok("true"), "no libfaketime");
    found
}

const SKIPPED: &str = "SKIPPED: libfaketime is not installed";

/// A worker whose clock is what a file says, such as `+240`.
struct SkewedWorker {
    world: WorkerWorld,
    file: PathBuf,
}

impl SkewedWorker {
    async fn new(library: &std::path::Path, seconds: i64) -> SkewedWorker {
        let file = std::env::temp_dir().join(format!("clerk-sync-clock-{}-{}", std::process::id(), unique("skewed")));
        std::fs::write(&file, format!("{seconds:+}")).unwrap();
        let environment = [
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            // How long something takes is not what is wrong with a clock.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
        ];
        let environment = environment.map(|(name, value)| (name, value.to_owned()));
        let world = testkit::World::builder().environment(environment).working().await.unwrap();
        SkewedWorker { world, file }
    }

    /// Sends all: how many are accepted, and how many refused for this reason.
    async fn deliver(&self, events: &[Event], reason: &str) -> (usize, usize) {
        let sender = self.world.sender();
        let (mut accepted, mut refused) = (0, 0);
        for event in events {
            let attempt = sender.send(&event.message_id, event.body.as_bytes()).await.unwrap();
            accepted += usize::from(attempt.status == 204);
            refused += usize::from(attempt.status == 400 && attempt.outcome.as_deref() == Some(reason));
        }
        (accepted, refused)
    }

    /// In order: killed, the library would leave its shared memory behind.
    async fn end(mut self) {
        self.world.server.signal(Signal::TERM).unwrap();
        self.world.server.ended().await.unwrap();
    }

    async fn clock_reason(&self) -> Option<i64> {
        let (_, ready) = self.world.server.get("/readyz").await;
        let reasons = ready["reasons"].as_array()?;
        reasons.iter().find(|reason| reason["error"] == "clock_differs")?["seconds_ahead"].as_i64()
    }
}

impl Drop for SkewedWorker {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// F20.
async fn clock_is_a_little_off() -> String {
    let Some(library) = libfaketime() else { return SKIPPED.to_owned() };
    let (clerk, events) = history(20, 60);
    let mut mirrors = BTreeSet::new();
    for seconds in [-240, 0, 240] {
        let skewed = SkewedWorker::new(&library, seconds).await;
        assert_eq!(skewed.deliver(&events, "").await, (events.len(), 0), "{seconds} s");
        assert_eq!(skewed.world.server.get("/readyz").await.0, 200);
        skewed.world.database.equals(&source(&clerk)).await;
        mirrors.insert(skewed.world.database.mirror().await);
        skewed.end().await;
    }
    assert_eq!(mirrors.len(), 1, "a stored time came from the worker's clock");
    format!("-240 s, +240 s: {} × 204 each, the same tables as at 0 s, ready", events.len())
}

/// F21.
async fn clock_is_wrong() -> String {
    let Some(library) = libfaketime() else { return SKIPPED.to_owned() };
    let (clerk, events) = history(21, 30);
    let mut mirrors = BTreeSet::new();
    let mut told = Vec::new();
    for (seconds, reason) in [(600, "timestamp_too_old"), (-600, "timestamp_too_new")] {
        let skewed = SkewedWorker::new(&library, seconds).await;
        assert_eq!(skewed.deliver(&events, reason).await, (0, events.len()));
        assert_eq!(skewed.world.database.count("clerk_sync.receipts").await, 0);
        // The database is asked for the time every five seconds.
        wait::until("the clock is found wrong", async || skewed.clock_reason().await.is_some()).await;
        let ahead = skewed.clock_reason().await.expect("the clock is named by /readyz");
        assert!((ahead - seconds).abs() < 10, "{ahead}");
        let lines = skewed.world.server.log_end();
        let errors: Vec<&String> = lines.iter().filter(|line| line.contains("the clock differs by ")).collect();
        assert_eq!(errors.len(), 1, "one clear error: {lines:#?}");
        // Set right while it runs.
        std::fs::write(&skewed.file, "+0").unwrap();
        let stepped = Instant::now();
        assert_eq!(skewed.deliver(&events, reason).await, (events.len(), 0));
        assert_eq!(skewed.world.server.get("/readyz").await.0, 200);
        skewed.world.database.equals(&source(&clerk)).await;
        mirrors.insert(skewed.world.database.mirror().await);
        let error: Value = serde_json::from_str(errors[0]).unwrap();
        let message = error["message"].as_str().unwrap_or_default().split(':').next().unwrap_or_default().to_owned();
        told.push(format!(
            "{seconds:+} s: {} × 400, 1 error “{message}”, /readyz 503; set: {:.1?} for 30 × 204",
            events.len(),
            stepped.elapsed()
        ));
        skewed.end().await;
    }
    assert_eq!(mirrors.len(), 1, "a stored time came from the worker's clock");
    told.join("; ")
}

/// An old request that is sent again, by whoever has seen it, is refused, and says nothing of the clock.
#[tokio::test]
async fn an_old_request_sent_again_does_not_degrade_health() {
    let world = World::new().await;
    let (_, events) = history(22, 5);
    let long_ago = clerk_sync::clock::now().get() / 1000 - 5_000;
    for event in &events {
        let attempt = world.sender().send_at(&event.message_id, long_ago, event.body.as_bytes()).await.unwrap();
        assert_eq!((attempt.status, attempt.outcome.as_deref()), (400, Some("timestamp_too_old")));
    }
    wait::until("ready again", async || world.server.get("/readyz").await.0 == 200).await;
    assert_eq!(world.attempt("msg_again", events[0].body.as_bytes()).await.status, 204);
}

//! The database away, silent, slow, locked, full or read-only, and poison among good: what senders hear, and what is left.

use crate::support::{SECRET, Server, TestDatabase, World, database, supabase, unique};
use clerk_sync::sender::{Attempt, Sender};
use clerk_sync::store::Database;
use clerk_sync::testbed::clerk::{Clerk, Event};
use clerk_sync::testbed::proxy::{Fault, Proxy, Upstream};
use clerk_sync::webhook::writer::InstanceCheck;
use futures_util::future::join_all;
use std::time::{Duration, Instant};

/// A server that reaches its database through a proxy.
struct Detour {
    database: TestDatabase,
    proxy: Proxy,
    server: Server,
    sender: Sender,
}

impl Detour {
    async fn new() -> Detour {
        let database = database().await;
        let socket = supabase().cluster().dir().join(".s.PGSQL.5432");
        let proxy = Proxy::start(Upstream::Unix(socket), 1).await.unwrap();
        let url = format!("postgres://postgres@{}/{}?sslmode=disable", proxy.address, database.name);
        let server = Server::start(Database::parse(&url).unwrap(), InstanceCheck::Pinned(None)).await;
        let sender = Sender::new(server.webhook_url(), SECRET).unwrap();
        Detour { database, proxy, server, sender }
    }

    /// All at once: each answer with the time it took.
    async fn send_all(&self, events: &[Event]) -> Vec<(Attempt, Duration)> {
        join_all(events.iter().map(async |event| {
            let started = Instant::now();
            let attempt = self.sender.send(&event.message_id, event.body.as_bytes()).await.expect("an answer");
            (attempt, started.elapsed())
        }))
        .await
    }

    async fn is_accepted(&self, event: &Event) -> bool {
        self.sender.send(&event.message_id, event.body.as_bytes()).await.expect("an answer").status == 204
    }
}

fn sign_ups(count: usize) -> Vec<Event> {
    let mut clerk = Clerk::new(3, crate::support::START);
    for _ in 0..count {
        clerk.now += 1_000;
        clerk.create_user("Ada", "Lovelace");
    }
    std::mem::take(&mut clerk.outbox)
}

fn slowest(answers: &[(Attempt, Duration)]) -> Duration {
    answers.iter().map(|(_, took)| *took).max().unwrap_or_default()
}

#[tokio::test]
async fn a_silent_database_gets_everybody_a_503_in_time_and_recovers_at_once() {
    let detour = Detour::new().await;
    let events = sign_ups(501);
    assert!(detour.is_accepted(&events[500]).await);
    detour.proxy.set(Fault::BlackHole);
    let answers = detour.send_all(&events[..500]).await;
    assert!(answers.iter().all(|(attempt, _)| attempt.status == 503), "{:?}", answers[0]);
    assert!(slowest(&answers) < Duration::from_secs(10), "{:?}", slowest(&answers));
    assert_eq!(detour.server.get("/livez").await.0, 200);
    assert_eq!(detour.server.get("/readyz").await.0, 503);
    detour.proxy.set(Fault::None);
    let answers = detour.send_all(&events[..500]).await;
    assert!(answers.iter().all(|(attempt, _)| attempt.status == 204));
    assert_eq!(detour.database.count("clerk.users").await, 501);
    assert!(detour.proxy.open() <= 2, "{} connections", detour.proxy.open());
}

#[tokio::test]
async fn an_answer_that_is_lost_is_settled_by_asking_again() {
    let detour = Detour::new().await;
    let events = sign_ups(4);
    assert!(detour.is_accepted(&events[0]).await);
    // Lost after the commit; lost on the way; nobody there at all.
    for (fault, event) in [Fault::CutReplies, Fault::CutAfter(10), Fault::Refuse].into_iter().zip(&events[1..]) {
        detour.proxy.set(fault);
        assert!(!detour.is_accepted(event).await, "{fault:?}: nobody knows, so 503");
        detour.proxy.set(Fault::None);
        assert!(detour.is_accepted(event).await, "{fault:?}: sent again, applied once");
    }
    assert_eq!(detour.database.count("clerk.users").await, 4);
    assert_eq!(detour.database.count("clerk_sync.receipts").await, 4);
}

#[tokio::test]
async fn connections_cut_at_random_lose_nothing() {
    let detour = Detour::new().await;
    detour.proxy.set(Fault::CutSometimes(150));
    for event in sign_ups(150) {
        let mut tries = 0;
        while !detour.is_accepted(&event).await {
            tries += 1;
            assert!(tries < 50, "never accepted");
        }
    }
    assert_eq!(detour.database.count("clerk.users").await, 150);
}

#[tokio::test]
async fn a_slow_database_answers_late_or_is_given_up_in_time() {
    let detour = Detour::new().await;
    let events = sign_ups(41);
    detour.is_accepted(&events[40]).await;
    detour.proxy.set(Fault::Delay(Duration::from_millis(400)));
    let answers = detour.send_all(&events[..40]).await;
    assert!(answers.iter().all(|(attempt, _)| attempt.status == 204));
    detour.proxy.set(Fault::Delay(Duration::from_secs(3)));
    let answers = detour.send_all(&events[..40]).await;
    assert!(answers.iter().all(|(attempt, _)| matches!(attempt.status, 204 | 503)));
    assert!(slowest(&answers) < Duration::from_secs(10), "{:?}", slowest(&answers));
}

#[tokio::test]
async fn a_locked_table_is_503_and_then_drains() {
    let mut world = World::new().await;
    world.clerk.create_user("Ada", "Lovelace");
    world.deliver().await;
    let mut blocker = world.database.owner().await;
    sqlx::raw_sql("begin; lock table clerk.users").execute(&mut blocker).await.unwrap();
    world.clerk.create_user("Ben", "Bitdiddle");
    let event = world.clerk.outbox.pop().unwrap();
    let started = Instant::now();
    let attempt = world.attempt(&event.message_id, event.body.as_bytes()).await;
    assert_eq!(attempt.status, 503);
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    let (_, ready) = world.server.get("/readyz").await;
    assert!(ready.to_string().contains("SQLSTATE 55P03"), "{ready}");
    sqlx::raw_sql("rollback").execute(&mut blocker).await.unwrap();
    assert_eq!(world.send(&event).await, "applied");
}

#[tokio::test]
async fn a_database_that_is_read_only_or_out_of_connections_is_503_until_it_is_not() {
    let cases = [
        (
            "alter database \"{}\" set default_transaction_read_only = on",
            "alter database \"{}\" reset default_transaction_read_only",
        ),
        ("alter database \"{}\" connection limit 0", "alter database \"{}\" connection limit -1"),
    ];
    for (ailment, cure) in cases {
        let mut world = World::new().await;
        world.clerk.create_user("Ada", "Lovelace");
        let event = world.clerk.outbox.pop().unwrap();
        let mut superuser = supabase().connect("supabase_admin", "postgres").await.unwrap();
        let ailment = ailment.replace("{}", &world.database.name);
        sqlx::raw_sql(sqlx::AssertSqlSafe(ailment.clone())).execute(&mut superuser).await.unwrap();
        disconnect_workers(&world.database).await;
        let attempt = world.attempt(&event.message_id, event.body.as_bytes()).await;
        assert_eq!(attempt.status, 503, "{ailment}");
        let cure = cure.replace("{}", &world.database.name);
        sqlx::raw_sql(sqlx::AssertSqlSafe(cure)).execute(&mut superuser).await.unwrap();
        disconnect_workers(&world.database).await;
        assert_eq!(world.send(&event).await, "applied", "{ailment}");
    }
}

async fn disconnect_workers(database: &TestDatabase) {
    let mut superuser = supabase().connect("supabase_admin", "postgres").await.unwrap();
    sqlx::query(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and application_name = 'clerk-sync'",
    )
    .bind(&database.name)
    .execute(&mut superuser)
    .await
    .unwrap();
}

/// What Postgres refuses is mended before it gets there; so poison is made by a trigger.
const POISON: &str = "create function public.refuse() returns trigger language plpgsql as $$ begin
       if new.first_name = 'Poison' then raise exception 'refused' using errcode = '22003'; end if; return new; end $$;
     create trigger refuse before insert or update on clerk.users for each row execute function public.refuse()";

#[tokio::test]
async fn poison_among_five_hundred_becomes_one_dead_letter_and_delays_nobody() {
    let mut world = World::new().await;
    world.database.execute(POISON).await;
    for number in 0..500 {
        world.clerk.now += 1_000;
        world.clerk.create_user(if number == 251 { "Poison" } else { "Ada" }, "Lovelace");
    }
    let events = std::mem::take(&mut world.clerk.outbox);
    let started = Instant::now();
    let answers = join_all(events.iter().map(async |event| {
        let attempt = world.attempt(&event.message_id, event.body.as_bytes()).await;
        (attempt, started.elapsed())
    }))
    .await;
    let count = |status: u16| answers.iter().filter(|(attempt, _)| attempt.status == status).count();
    assert_eq!((count(204), count(200)), (499, 1));
    println!("poison among 500: the last of all was answered after {:?}", slowest(&answers));
    assert_eq!(world.database.count("clerk.users").await, 499);
    let kept = world.database.rows("select reason from clerk_sync.dead_letters").await;
    assert_eq!(kept, [serde_json::json!({ "reason": "the database refuses it: SQLSTATE 22003" })]);

    // The culprit's next change goes alone, and so cannot take others with it.
    let culprit = world.clerk.users.values().find(|user| user.first_name == "Poison").unwrap().id.clone();
    world.clerk.now += 1_000;
    world.clerk.update_user(&culprit, |user| user.last_name = "Again".to_owned());
    let again = world.clerk.outbox.pop().unwrap();
    assert_eq!(world.send(&again).await, "dead_letter");
    world.clerk.now += 1_000;
    world.clerk.update_user(&culprit, |user| user.first_name = "Cured".to_owned());
    world.deliver().await;
    assert_eq!(world.database.count("clerk.users").await, 500);
}

#[tokio::test]
async fn bodies_beyond_the_memory_for_them_are_503_and_nothing_is_lost() {
    let detour = Detour::new().await;
    let mut clerk = Clerk::new(5, crate::support::START);
    clerk.create_user("Ada", "Lovelace");
    let small = clerk.outbox.pop().unwrap();
    assert!(detour.is_accepted(&small).await);
    detour.proxy.set(Fault::BlackHole);
    // A megabyte each: more than may wait.
    let padded = small.body.replacen('{', &format!("{{\"padding\":\"{}\",", "x".repeat(1 << 20)), 1);
    let big: Vec<Event> =
        (0..60).map(|_| Event { message_id: unique("msg"), body: padded.clone(), ..small.clone() }).collect();
    let answers = detour.send_all(&big).await;
    assert!(answers.iter().all(|(attempt, _)| attempt.status == 503));
    let busy = answers.iter().filter(|(attempt, _)| attempt.outcome.as_deref() == Some("busy")).count();
    assert!(busy > 0, "some were turned away at once");
    detour.proxy.set(Fault::None);
    for event in &big[..3] {
        assert!(detour.is_accepted(event).await, "the memory is free again");
    }
}

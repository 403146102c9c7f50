//! The database away, silent, slow, locked, full or read-only, and poison among good: what senders hear, and what is left.

use crate::support::{World, supabase, unique};
use clerk_sync::sender::Attempt;
use futures_util::future::join_all;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::clerk::{Clerk, Event};
use testkit::postgres::{Durability, SUPERUSER};
use testkit::proxy::Fault;
use testkit::supabase::OWNER;

/// A server that reaches its database through a proxy.
async fn detour() -> World {
    testkit::World::builder().database_proxy(1).serving().await.unwrap()
}

/// All at once: each answer with the time it took.
async fn send_all(detour: &World, events: &[Event]) -> Vec<(Attempt, Duration)> {
    join_all(events.iter().map(async |event| {
        let started = Instant::now();
        let attempt = detour.attempt(&event.message_id, event.body.as_bytes()).await;
        (attempt, started.elapsed())
    }))
    .await
}

async fn is_accepted(detour: &World, event: &Event) -> bool {
    detour.attempt(&event.message_id, event.body.as_bytes()).await.status == 204
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

/// F9. The network takes everything and brings nothing.
pub async fn database_is_silent() -> String {
    let detour = detour().await;
    let events = sign_ups(501);
    assert!(is_accepted(&detour, &events[500]).await);
    detour.database_proxy().set(Fault::BlackHole);
    let answers = send_all(&detour, &events[..500]).await;
    assert!(answers.iter().all(|(attempt, _)| attempt.status == 503), "{:?}", answers[0]);
    let slowest = slowest(&answers);
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    assert_eq!(detour.server.get("/livez").await.0, 200);
    assert_eq!(detour.server.get("/readyz").await.0, 503);
    detour.database_proxy().set(Fault::None);
    let answers = send_all(&detour, &events[..500]).await;
    assert!(answers.iter().all(|(attempt, _)| attempt.status == 204));
    assert_eq!(detour.database.count("clerk.users").await, 501);
    assert!(detour.database_proxy().open() <= 2, "{} connections", detour.database_proxy().open());
    format!("500 under way: 500 × 503, the last after {slowest:.1?}; then 500 × 204 without a restart")
}

/// F5. The connection is cut while a statement is under way; its answer is lost.
pub async fn answers_are_lost() -> String {
    let detour = detour().await;
    let events = sign_ups(4);
    assert!(is_accepted(&detour, &events[0]).await);
    // Lost after the commit; lost on the way; nobody there at all.
    for (fault, event) in [Fault::CutReplies, Fault::CutAfter(10), Fault::Refuse].into_iter().zip(&events[1..]) {
        detour.database_proxy().set(fault);
        assert!(!is_accepted(&detour, event).await, "{fault:?}: nobody knows, so 503");
        detour.database_proxy().set(Fault::None);
        assert!(is_accepted(&detour, event).await, "{fault:?}: sent again, applied once");
    }
    assert_eq!(detour.database.count("clerk.users").await, 4);
    assert_eq!(detour.database.count("clerk_sync.receipts").await, 4);
    "cut after the commit, on the way, and before: 503 each; sent again, applied once each".to_owned()
}

#[tokio::test]
async fn connections_cut_at_random_lose_nothing() {
    let detour = detour().await;
    detour.database_proxy().set(Fault::CutSometimes(150));
    for event in sign_ups(150) {
        let mut tries = 0;
        while !is_accepted(&detour, &event).await {
            tries += 1;
            assert!(tries < 50, "never accepted");
        }
    }
    assert_eq!(detour.database.count("clerk.users").await, 150);
}

/// F8.
pub async fn database_is_slow() -> String {
    let detour = detour().await;
    let events = sign_ups(41);
    is_accepted(&detour, &events[40]).await;
    detour.database_proxy().set(Fault::Delay(Duration::from_millis(400)));
    let answers = send_all(&detour, &events[..40]).await;
    assert!(answers.iter().all(|(attempt, _)| attempt.status == 204));
    let mut told = Vec::new();
    for seconds in [1, 3] {
        detour.database_proxy().set(Fault::Delay(Duration::from_secs(seconds)));
        let answers = send_all(&detour, &events[..40]).await;
        assert!(answers.iter().all(|(attempt, _)| matches!(attempt.status, 204 | 503)));
        assert!(slowest(&answers) < Duration::from_secs(10), "{:?}", slowest(&answers));
        let accepted = answers.iter().filter(|(attempt, _)| attempt.status == 204).count();
        told.push(format!(
            "{} s: {accepted} of 40 accepted, the last answer after {:.1?}",
            seconds * 2,
            slowest(&answers)
        ));
    }
    detour.database_proxy().set(Fault::None);
    let started = Instant::now();
    assert!(is_accepted(&detour, &sign_ups(42)[41]).await);
    format!("a statement takes {}; then 204 after {:.1?}", told.join("; "), started.elapsed())
}

/// F10. Nobody makes reads here, so what could not be written is kept whole; with a key it would be read.
pub async fn table_is_locked() -> String {
    let world = World::new().await;
    world.clerk.lock().create_user("Ada", "Lovelace");
    world.deliver().await;
    let mut blocker = world.database.owner().await;
    sqlx::raw_sql("begin; lock table clerk.users").execute(&mut blocker).await.unwrap();
    world.clerk.lock().create_user("Ben", "Bitdiddle");
    let event = world.clerk.lock().outbox.pop().unwrap();
    let started = Instant::now();
    let attempt = world.attempt(&event.message_id, event.body.as_bytes()).await;
    assert_eq!((attempt.status, attempt.outcome.as_deref()), (200, Some("dead_letter")));
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(world.server.get("/livez").await.0, 200);
    sqlx::raw_sql("rollback").execute(&mut blocker).await.unwrap();
    assert_eq!(world.send(&event).await, "applied", "sent again");
    assert_eq!(world.database.count("clerk.users").await, 2);
    format!("200, kept as a dead letter after {took:.1?}, /livez 200; then applied")
}

/// A world on a server of its own, for what happens to a whole server.
async fn apart() -> World {
    testkit::World::builder().own_server(Durability::Fast).serving().await.unwrap()
}

/// F11. All connections are taken; a pooler refuses.
pub async fn connections_run_out() -> String {
    let world = apart().await;
    let supabase = world.supabase();
    world.clerk.lock().create_user("Ada", "Lovelace");
    world.clerk.lock().create_user("Ben", "Bitdiddle");
    let mut superuser = supabase.connect(SUPERUSER, &world.database.name).await.unwrap();
    superuser.execute("alter system set max_connections = 24").await.unwrap();
    drop(superuser);
    supabase.cluster().stop_server().unwrap();
    supabase.cluster().start_server().unwrap();
    let mut superuser = supabase.connect(SUPERUSER, &world.database.name).await.unwrap();
    let mut taken = Vec::new();
    while let Ok(connection) = supabase.connect(OWNER, &world.database.name).await {
        taken.push(connection);
    }
    disconnect_workers(&mut superuser).await;
    // What the worker leaves is taken as well, unless it is quicker.
    while let Ok(connection) = supabase.connect(OWNER, &world.database.name).await {
        taken.push(connection);
    }
    disconnect_workers(&mut superuser).await;
    while let Ok(connection) = supabase.connect(OWNER, &world.database.name).await {
        taken.push(connection);
    }
    let event = world.clerk.lock().outbox.remove(0);
    let attempt = world.attempt(&event.message_id, event.body.as_bytes()).await;
    assert_eq!(attempt.status, 503, "{attempt:?}");
    assert_eq!(world.server.get("/readyz").await.0, 503);
    let connections = taken.len();
    drop(taken);
    let mut tries = 1;
    while world.attempt(&event.message_id, event.body.as_bytes()).await.status != 204 {
        tries += 1;
        assert!(tries < 20, "never accepted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    refuse(&world, "XX000").await;
    let event = world.clerk.lock().outbox.remove(0);
    assert_eq!(world.attempt(&event.message_id, event.body.as_bytes()).await.status, 503);
    world.database.execute("drop trigger refuse on clerk.users").await;
    assert_eq!(world.send(&event).await, "applied");
    format!("max_connections = 24, {connections} taken by others: 503, then applied; XX000: 503, then applied")
}

/// F12. The database is read-only; its disk is full.
pub async fn database_cannot_be_written() -> String {
    let world = apart().await;
    let supabase = world.supabase();
    let mut superuser = supabase.connect(SUPERUSER, &world.database.name).await.unwrap();
    world.clerk.lock().create_user("Ada", "Lovelace");
    let event = world.clerk.lock().outbox.remove(0);
    let read_only = format!("alter database \"{}\" set default_transaction_read_only", world.database.name);
    let mut told = Vec::new();
    for ailment in ["25006", "53100"] {
        let mut cure: Box<dyn FnOnce()> = Box::new(|| {});
        if ailment == "25006" {
            superuser.execute(AssertSqlSafe(format!("{read_only} = on"))).await.unwrap();
        } else {
            // The kernel says "no space left" to whoever writes to this device.
            if !Path::new("/dev/full").exists() {
                continue;
            }
            let sql = "select pg_relation_filepath('clerk_sync.dead_letters')";
            let path: String = sqlx::query_scalar(sql).fetch_one(&mut superuser).await.unwrap();
            let path = supabase.cluster().dir().join("data").join(path);
            let aside = path.with_extension("aside");
            std::fs::rename(&path, &aside).unwrap();
            std::os::unix::fs::symlink("/dev/full", &path).unwrap();
            cure = Box::new(move || std::fs::rename(&aside, &path).unwrap());
        }
        disconnect_workers(&mut superuser).await;
        // The empty table of dead letters is the one that cannot grow.
        let send = async || match ailment {
            "25006" => world.attempt(&event.message_id, event.body.as_bytes()).await,
            _ => world.attempt("msg_unusable", b"{}").await,
        };
        assert_eq!(send().await.status, 503, "{ailment}");
        let (status, ready) = world.server.get("/readyz").await;
        assert!(status == 503 && !ready.to_string().contains(ailment), "{ready}");
        assert_eq!(world.server.get("/livez").await.0, 200);
        superuser.execute(AssertSqlSafe(format!("{read_only} = off"))).await.unwrap();
        cure();
        disconnect_workers(&mut superuser).await;
        assert_eq!(send().await.status / 100, 2, "{ailment}");
        assert_eq!(world.server.get("/readyz").await.0, 200);
        told.push(ailment);
    }
    format!("{}: 503 each, /readyz too, then accepted", told.join(" and "))
}

/// A login that has nothing but CONNECT, with every lock that it can get: the writers' needs a right.
#[tokio::test]
async fn a_login_with_connect_alone_holds_up_no_webhook() {
    let world = World::new().await;
    world.clerk.lock().create_user("Ada", "Lovelace");
    world.deliver().await;
    let login = unique("extra_login");
    world.database.execute(&format!("create role {login} login")).await;
    let mut extra = supabase().connect(&login, &world.database.name).await.unwrap();
    // The key that the writers once locked by, and those around zero, in both forms.
    let advisory = "select pg_advisory_lock(k), pg_advisory_lock(k::int, k::int)
                      from generate_series(-50, 50) k;
                    select pg_advisory_lock(7250325107101)";
    sqlx::raw_sql(advisory).execute(&mut extra).await.unwrap();
    // In one transaction that stays open, the strongest lock on each relation that Postgres lets it have.
    let relations = "set lock_timeout = '50ms'; begin; create temporary table got (what text);
        do $$ declare r record; m text; begin
          for r in select format('%I.%I', n.nspname, c.relname) as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
                    where c.relkind in ('r', 'p', 'v') and n.nspname !~ '^pg_(temp|toast)' loop
            foreach m in array array['access exclusive', 'exclusive', 'share row exclusive', 'share', 'share update exclusive',
                                     'row exclusive', 'row share', 'access share'] loop
              begin
                execute format('lock table %s in %s mode', r.name, m);
                insert into got values (r.name || ' in ' || m);
                exit;
              exception when others then null;
              end;
            end loop;
          end loop;
        end $$";
    sqlx::raw_sql(relations).execute(&mut extra).await.unwrap();
    let (all, ours): (i64, i64) =
        sqlx::query_as("select count(*), count(*) filter (where what like 'clerk%') from got")
            .fetch_one(&mut extra)
            .await
            .unwrap();
    assert!(all > 50 && ours == 0, "{all} locks are held, {ours} of them on tables of ours");
    world.clerk.lock().create_user("Ben", "Bitdiddle");
    let started = Instant::now();
    world.deliver().await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(world.database.count("clerk.users").await, 2);
}

/// Whoever has the right, such as a second writer that hangs, is waited for; and that is nobody's change's fault.
#[tokio::test]
async fn a_turn_that_does_not_come_is_503_under_its_own_code_and_upkeep_of_tables_is_no_turn() {
    let world = World::new().await;
    world.clerk.lock().create_user("Ada", "Lovelace");
    world.deliver().await;
    world.clerk.lock().create_user("Ben", "Bitdiddle");
    let event = world.clerk.lock().outbox.pop().unwrap();
    let mut owner = world.database.owner().await;
    sqlx::raw_sql("begin; lock table clerk_sync.writer in exclusive mode").execute(&mut owner).await.unwrap();
    assert_eq!(world.attempt(&event.message_id, event.body.as_bytes()).await.status, 503);
    assert_eq!(world.server.get("/readyz").await.0, 503);
    sqlx::raw_sql("rollback").execute(&mut owner).await.unwrap();
    assert_eq!(world.send(&event).await, "applied");
    // While they run, and after: the table is still there, still empty, still the lock.
    let upkeep = async {
        for _ in 0..10 {
            for statement in ["vacuum", "vacuum full clerk_sync.writer", "analyze"] {
                owner.execute(statement).await.unwrap();
            }
        }
    };
    let deliveries = async {
        for _ in 0..20 {
            world.clerk.lock().now += 1_000;
            world.clerk.lock().create_user("Cleo", "Night");
            let event = world.clerk.lock().outbox.pop().unwrap();
            assert_eq!(world.attempt(&event.message_id, event.body.as_bytes()).await.status, 204);
        }
    };
    tokio::join!(upkeep, deliveries);
}

async fn disconnect_workers(superuser: &mut PgConnection) {
    let sql = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name = 'clerk-sync'";
    superuser.execute(sql).await.unwrap();
}

/// Has the database refuse whoever is called Poison, or Ben, with this code.
async fn refuse(world: &World, code: &str) {
    let sql = format!(
        "create or replace function public.refuse() returns trigger language plpgsql as $$ begin
           if new.first_name in ('Poison', 'Ben') then raise exception 'refused' using errcode = '{code}'; end if; return new; end $$;
         create trigger refuse before insert or update on clerk.users for each row execute function public.refuse()"
    );
    world.database.execute(&sql).await;
}

#[tokio::test]
async fn poison_among_five_hundred_becomes_one_dead_letter_and_delays_nobody() {
    let world = World::new().await;
    // What Postgres refuses is mended before it gets there; so poison is made by a trigger.
    refuse(&world, "22003").await;
    for number in 0..500 {
        world.clerk.lock().now += 1_000;
        world.clerk.lock().create_user(if number == 251 { "Poison" } else { "Ada" }, "Lovelace");
    }
    let events = world.due();
    let started = Instant::now();
    // Who is told to come again comes again, as Svix does: a slow machine may not write all of them within their eight seconds.
    let answers = join_all(events.iter().map(async |event| {
        loop {
            let attempt = world.sender().send(&event.message_id, event.body.as_bytes()).await;
            match attempt {
                Ok(attempt) if attempt.status != 503 => return (attempt, started.elapsed()),
                attempt => assert!(started.elapsed() < Duration::from_secs(120), "{attempt:?}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }))
    .await;
    let count = |status: u16| answers.iter().filter(|(attempt, _)| attempt.status == status).count();
    assert_eq!((count(204), count(200)), (499, 1));
    println!("poison among 500: the last of all was answered after {:?}", slowest(&answers));
    assert_eq!(world.database.count("clerk.users").await, 499);
    let kept = world.database.rows("select reason from clerk_sync.dead_letters").await;
    assert_eq!(kept, [serde_json::json!({ "reason": "the database refuses it: SQLSTATE 22003, public.refuse" })]);

    // The culprit's next change goes alone, and so cannot take others with it.
    let culprit = world.clerk.lock().users.values().find(|user| user.first_name == "Poison").unwrap().id.clone();
    world.clerk.lock().now += 1_000;
    world.clerk.lock().update_user(&culprit, |user| user.last_name = "Again".to_owned());
    let again = world.clerk.lock().outbox.pop().unwrap();
    assert_eq!(world.send(&again).await, "dead_letter");
    world.clerk.lock().now += 1_000;
    world.clerk.lock().update_user(&culprit, |user| user.first_name = "Cured".to_owned());
    world.deliver().await;
    assert_eq!(world.database.count("clerk.users").await, 500);
}

#[tokio::test]
async fn bodies_beyond_the_memory_for_them_are_503_and_nothing_is_lost() {
    let detour = detour().await;
    let mut clerk = Clerk::new(5, crate::support::START);
    clerk.create_user("Ada", "Lovelace");
    let small = clerk.outbox.pop().unwrap();
    assert!(is_accepted(&detour, &small).await);
    detour.database_proxy().set(Fault::BlackHole);
    // A megabyte each: more than may wait.
    let padded = small.body.replacen('{', &format!("{{\"padding\":\"{}\",", "x".repeat(1 << 20)), 1);
    let big: Vec<Event> =
        (0..24).map(|_| Event { message_id: unique("msg"), body: padded.clone(), ..small.clone() }).collect();
    // (On a slow machine the sender itself may lose patience with one: then it has no answer.)
    let answers =
        join_all(big.iter().map(|event| detour.sender().send(&event.message_id, event.body.as_bytes()))).await;
    let answers: Vec<Attempt> = answers.into_iter().filter_map(Result::ok).collect();
    assert!(answers.iter().all(|attempt| attempt.status == 503));
    let busy = answers.iter().filter(|attempt| attempt.outcome.as_deref() == Some("busy")).count();
    assert!(busy > 0, "some were turned away at once");
    detour.database_proxy().set(Fault::None);
    for event in &big[..3] {
        let began = Instant::now();
        loop {
            let attempt = detour.sender().send(&event.message_id, event.body.as_bytes()).await;
            if attempt.as_ref().is_ok_and(|attempt| attempt.status == 204) {
                break;
            }
            // The connection to the database may not be back yet; the memory is.
            let is_busy = attempt.as_ref().is_ok_and(|attempt| attempt.outcome.as_deref() == Some("busy"));
            assert!(!is_busy && began.elapsed() < Duration::from_secs(120), "{attempt:?}");
        }
    }
}

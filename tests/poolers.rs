//! Poolers between us and Postgres: in session mode everything works as without one; in transaction mode every command refuses,
//! and leaves nothing behind that another client of the pooler could notice.

use crate::support::pgbouncer::PgBouncer;
use crate::support::{People, SECRET, database, supabase};
use clerk_sync::sender::Sender;
use clerk_sync::store::{Database, Error};
use sqlx::{Connection as _, PgConnection};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use testkit::wait::PATIENCE;
use testkit::worker::{Options, Worker};
use tokio::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_clerk-sync");

/// Everything that asks the database.
const COMMANDS: &[&[&str]] = &[
    &["migrate"],
    &["migrate", "--repin"],
    &["serve"],
    &["reconcile"],
    &["reconcile", "--quick"],
    &["refresh", "user_1"],
    &["doctor"],
    &["policy", "check"],
    &["policy", "print", "documents", "--organization-column", "organization_id"],
    &["dead-letters", "list"],
    &["dead-letters", "retry", "--all"],
    &["prune"],
    &["purge", "--older-than", "90d", "--yes"],
];

/// The exit code, and all that was said.
async fn run(arguments: &[&str], url: &str, world: &testkit::World) -> (Option<i32>, String) {
    let output = Command::new(PROGRAM)
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .env("DATABASE_URL", url)
        .env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET)
        .env("CLERK_RATE_SHARE", "off")
        .env("LISTEN_ADDR", "127.0.0.1:0")
        .env("OPS_ADDR", "127.0.0.1:0")
        .envs(world.api_environment())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn through_pgbouncer_in_session_mode_everything_works_as_without_it() {
    let Some(pooler) = PgBouncer::start(supabase().cluster(), "pool_mode = session") else { return };
    let People { clerk, events, .. } = People::now();
    let world = testkit::World::builder().clerk(clerk).without_mirror().start().await.unwrap();
    let project = &world.database;
    project.execute("create table public.documents (id integer, organization_id text); alter table public.documents enable row level security").await;
    let url = pooler.url(&project.name);
    let (code, said) = run(&["migrate"], &url, &world).await;
    assert_eq!(code, Some(0), "{said}");

    let options = Options {
        program: PathBuf::from(PROGRAM),
        database_url: url.clone(),
        environment: world.api_environment().into(),
    };
    let mut worker = Worker::start(options).await.unwrap();
    let sender = Sender::new(worker.webhook_url(), SECRET).unwrap();
    for event in &events {
        assert_eq!(sender.send(&event.message_id, event.body.as_bytes()).await.unwrap().status, 204);
    }
    let user = world.clerk.lock().users.keys().next().unwrap().to_string();
    for command in COMMANDS.iter().filter(|command| command[0] != "serve") {
        let command: Vec<&str> = command.iter().map(|word| if *word == "user_1" { &user[..] } else { *word }).collect();
        let (code, said) = run(&command, &url, &world).await;
        assert_eq!(code, Some(0), "{command:?}: {said}");
    }
    let (_, said) = run(&["doctor"], &url, &world).await;
    assert!(said.contains("ok    pooler") && said.contains("Failed: 0."), "{said}");
    world.equals_source().await;
    worker.signal(rustix::process::Signal::TERM).unwrap();
    assert!(worker.ended().await.unwrap().success());
    assert_eq!(settings(&mut another_client(&url).await).await, settings(&mut project.owner().await).await);
}

/// What our settings would change of a session.
const SESSION: &str = "select concat_ws(' ', current_user, current_setting('search_path'), current_setting('statement_timeout'), \
     current_setting('lock_timeout'), current_setting('synchronous_commit'), current_setting('idle_in_transaction_session_timeout'), \
     current_setting('default_transaction_read_only'))";

async fn settings(connection: &mut PgConnection) -> String {
    sqlx::raw_sql(SESSION).fetch_one(connection).await.map(|row| sqlx::Row::get(&row, 0)).unwrap()
}

/// Another client of the pooler, who counts on the search path and on being the owner. Good queries, and all.
async fn neighbour(url: String, until: Arc<AtomicBool>, at_least: usize) -> (usize, usize) {
    let mut connection = another_client(&url).await;
    let (mut good, mut all) = (0, 0);
    while all < at_least || !until.load(Ordering::Relaxed) {
        let answer = sqlx::raw_sql("select count(*) from documents").fetch_one(&mut connection).await;
        good += usize::from(answer.is_ok_and(|row| sqlx::Row::get::<i64, _>(&row, 0) == 3));
        all += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (good, all)
}

/// PgBouncer does not take what sqlx sends by itself.
async fn another_client(url: &str) -> PgConnection {
    let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
    PgConnection::connect_with(&options.extra_float_digits(None)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_refuses_a_transaction_pooler_on_any_port_and_its_neighbours_notice_nothing() {
    for settings in [
        "pool_mode = transaction\ndefault_pool_size = 1",
        "pool_mode = transaction\ndefault_pool_size = 6",
        "pool_mode = transaction\ndefault_pool_size = 2\nserver_round_robin = 1",
        "pool_mode = transaction\ndefault_pool_size = 20\nignore_startup_parameters = extra_float_digits",
        "pool_mode = statement\ndefault_pool_size = 3",
    ] {
        let Some(pooler) = PgBouncer::start(supabase().cluster(), settings) else { return };
        let world = testkit::World::builder().clerk(People::now().clerk).start().await.unwrap();
        let database = &world.database;
        let documents = "create table public.documents (id integer, organization_id text); insert into documents select generate_series(1, 3)";
        database.execute(documents).await;
        let url = pooler.url(&database.name);
        let ended = Arc::new(AtomicBool::new(false));
        let during = tokio::spawn(neighbour(url.clone(), Arc::clone(&ended), 40));
        for command in COMMANDS {
            let (code, said) = run(command, &url, &world).await;
            assert_eq!(code, Some(1), "{settings}, {command:?}: {said}");
            assert!(said.contains("transaction-mode pooler"), "{settings}, {command:?}: {said}");
        }
        ended.store(true, Ordering::Relaxed);
        let (good, all) = during.await.unwrap();
        assert!(all >= 40 && good == all, "{settings}: during, {good} of {all}");
        let (good, all) = neighbour(url.clone(), ended, 40).await;
        assert_eq!((good, all), (40, 40), "{settings}: after");
        // Each of the pooled connections, whichever comes next.
        let untouched = self::settings(&mut database.owner().await).await;
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(another_client(&url).await);
        }
        for client in &mut clients {
            assert_eq!(self::settings(client).await, untouched, "{settings}");
        }
    }
}

/// How many of so many tries took the way to the server for their own, for each number of clients beside them and the pause that
/// these make between their queries: some of those come by turns with ours.
async fn proven(url: &str, tries: usize) -> Vec<usize> {
    let mut proven = Vec::new();
    for (busy, pause) in [(0, 0), (2, 0), (8, 0), (1, 1), (1, 5), (3, 5)] {
        let ended = Arc::new(AtomicBool::new(false));
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..busy {
            let (ended, mut client) = (Arc::clone(&ended), another_client(url).await);
            clients.spawn(async move {
                while !ended.load(Ordering::Relaxed) {
                    sqlx::raw_sql("select 1").execute(&mut client).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            });
        }
        proven.push(0);
        for _ in 0..tries {
            let way = Database::parse(url).unwrap().prove().await;
            assert!(matches!(way, Ok(()) | Err(Error::SharedConnections)), "{way:?}");
            *proven.last_mut().unwrap() += usize::from(way.is_ok());
        }
        ended.store(true, Ordering::Relaxed);
        clients.join_all().await;
    }
    proven
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_pooler_is_found_however_busy_it_is_and_a_session_pooler_is_never_taken_for_one() {
    for pool in [1, 2, 3, 6, 20] {
        for round_robin in [0, 1] {
            let settings =
                format!("pool_mode = transaction\ndefault_pool_size = {pool}\nserver_round_robin = {round_robin}");
            let Some(pooler) = PgBouncer::start(supabase().cluster(), &settings) else { return };
            let url = pooler.url(&database().await.name);
            assert_eq!(proven(&url, 20).await, [0; 6], "pool of {pool}, round robin {round_robin}");
        }
    }
    let database = database().await;
    let Some(pooler) = PgBouncer::start(supabase().cluster(), "pool_mode = session") else { return };
    assert_eq!(proven(&pooler.url(&database.name), 100).await, [100; 6]);
    assert_eq!(proven(&database.url(), 100).await, [100; 6]);
}

//! Two releases write into one database: a deployment migrates first and replaces machines after, and a rollback must write again.
//!
//! The later one is this release with the worked example of `migrations/README.md`, `tests/next_release.patch`: one more column of
//! users. `./x test --all` builds it and names it in `CLERK_SYNC_NEXT_BIN`.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use testkit::clerk::{Clerk, Event};
use testkit::worker::{Options, SECRET, Worker};
use testkit::{World, program, traffic, world};

/// When Clerk's events begin, in ms before now: a list, which may be ten seconds old, knows of all of them, and none is so late that
/// a pass must doubt it (R7: five minutes).
const BEHIND: i64 = 250_000;

/// Between two changes, in ms: whatever order they come in, their times tell which is later (R9).
const APART: i64 = 6_000;

struct Release {
    program: PathBuf,
    worker: Worker,
    sender: clerk_sync::sender::Sender,
}

impl Release {
    async fn start(world: &World, program: &Path) -> Release {
        let mut environment = world.api_environment().to_vec();
        environment.extend([("RECONCILE_CRON", "off".to_owned()), ("RECONCILE_QUICK_CRON", "off".to_owned())]);
        let options = Options { program: program.to_owned(), database_url: world.database.url(), environment };
        let worker = Worker::start(options).await.expect("a worker");
        let sender = clerk_sync::sender::Sender::new(worker.webhook_url(), SECRET).expect("a sender");
        Release { program: program.to_owned(), worker, sender }
    }

    /// A whole reconcile: how many rows it found wrong.
    async fn reconcile(&self, world: &World) -> u64 {
        world.clerk.lock().now = clerk_sync::clock::now().get();
        let (code, output) = run(world, &self.program, &["reconcile", "--json"]).await;
        assert!(code == Some(0) || code == Some(2), "{code:?}: {output}");
        let report: Value = serde_json::from_str(&output).expect("a report");
        let passes = report["passes"].as_array().expect("passes");
        for finding in passes.iter().filter_map(|pass| pass["findings"].as_array()).flatten() {
            println!("{}: {finding}", self.program.display());
        }
        let found = |pass: &Value| {
            ["missing", "differing", "extra"].map(|drift| pass[drift].as_u64().unwrap()).iter().sum::<u64>()
        };
        passes.iter().map(found).sum()
    }

    async fn take(&self, event: &Event) {
        let attempt = world::answer(&self.sender, &event.message_id, event.body.as_bytes()).await;
        assert!(matches!(attempt.status, 200 | 204), "{} was answered {attempt:?}", event.event_type);
    }
}

async fn run(world: &World, program: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env_clear().env("DATABASE_URL", world.database.url()).envs(world.api_environment());
    let output = command.current_dir("/").output().await.expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), if text.is_empty() { String::from_utf8_lossy(&output.stderr).into_owned() } else { text })
}

/// Things happen at Clerk from a time on, and users choose a language.
fn live(clerk: &mut Clerk, rng: &mut fastrand::Rng, at: &mut i64) -> Vec<Event> {
    for _ in 0..8 {
        *at += APART;
        clerk.now = *at;
        traffic::change(clerk, rng);
        clerk.now += 100;
        if let Some(user) = rng.choice(clerk.users.keys()).cloned() {
            let locale = rng.choice(["en-US", "de-DE", "fr-FR"]).map(str::to_owned);
            clerk.update_user(&user, |user| user.locale = locale);
        }
    }
    std::mem::take(&mut clerk.outbox)
}

async fn locales(world: &World) -> BTreeMap<String, Option<String>> {
    let rows = world.database.rows("select id, locale from clerk.user_details").await;
    let locale = |row: &Value| row["locale"].as_str().map(str::to_owned);
    rows.iter().map(|row| (row["id"].as_str().unwrap().to_owned(), locale(row))).collect()
}

fn clerks_locales(world: &World) -> BTreeMap<String, Option<String>> {
    world.clerk.lock().users.values().map(|user| (user.id.clone(), user.locale.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_releases_write_and_reconcile_together_and_the_older_goes_on_alone() {
    let Some(next) = std::env::var_os("CLERK_SYNC_NEXT_BIN").map(PathBuf::from) else {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "no CLERK_SYNC_NEXT_BIN");
        println!("without CLERK_SYNC_NEXT_BIN the next release is not tested: ./x test --all builds it");
        return;
    };
    let mut rng = fastrand::Rng::with_seed(6);
    let mut at = clerk_sync::clock::now().get() - BEHIND;
    let clerk = Clerk::new(6, at - 600_000);
    let world = World::builder().clerk(clerk).without_mirror().start().await.expect("a world");
    let older = clerk_sync::store::Migrating::default();
    clerk_sync::store::migrate(&world.database.database(), older).await.expect("the schema of the older release");
    let older = Release::start(&world, &program::path().unwrap()).await;
    let first = {
        let mut clerk = world.clerk.lock();
        let people: Vec<String> = (0..12).map(|_| traffic::sign_up(&mut clerk, &mut rng)).collect();
        for creator in &people[..4] {
            clerk.create_organization("Acme Widgets", creator);
        }
        std::mem::take(&mut clerk.outbox)
    };
    for event in &first {
        older.take(event).await;
    }
    assert_eq!(older.reconcile(&world).await, 0);

    // A deployment: the later release migrates, and its machines come beside the older ones.
    // (The example brings no list of what an installation has, so it does not say that this is what it should be.)
    let (_, output) = run(&world, &next, &["migrate"]).await;
    let generation = world.database.rows("select generation from clerk_sync.replayed").await;
    assert_eq!(generation[0]["generation"], 2, "{output}");
    let later = Release::start(&world, &next).await;
    for round in 0..4 {
        let events = live(&mut world.clerk.lock(), &mut rng, &mut at);
        let (mut to_older, mut to_later) = (Vec::new(), Vec::new());
        for event in &events {
            match rng.u8(0..3) {
                0 => to_older.push(event),
                1 => to_later.push(event),
                _ => {
                    to_older.push(event);
                    to_later.push(event);
                }
            }
        }
        let send = async |release: &Release, events: &[&Event]| {
            for event in events {
                release.take(event).await;
            }
        };
        tokio::join!(send(&older, &to_older), send(&later, &to_later));
        world.equals_source().await;
        let drift = if round % 2 == 0 {
            [older.reconcile(&world).await, later.reconcile(&world).await]
        } else {
            [later.reconcile(&world).await, older.reconcile(&world).await]
        };
        assert_eq!(drift, [0, 0], "nothing was lost, and neither calls the other's rows wrong");
        world.equals_source().await;
        assert_eq!(locales(&world).await, clerks_locales(&world), "what the older one could not write was added");
    }

    // No flip-flop: by turns they write nothing any more.
    let written = world.database.written().await;
    for release in [&older, &later, &older, &later] {
        assert_eq!(release.reconcile(&world).await, 0);
        assert_eq!(world.database.written().await, written);
    }

    // A rollback: the older one writes alone, and loses nothing of what it does not know.
    drop(later);
    let before = clerks_locales(&world);
    let (code, output) = run(&world, &older.program, &["migrate"]).await;
    assert_eq!(code, Some(0), "{output}");
    let events = live(&mut world.clerk.lock(), &mut rng, &mut at);
    for event in &events {
        older.take(event).await;
    }
    assert_eq!(older.reconcile(&world).await, 0);
    world.equals_source().await;
    let kept = locales(&world).await;
    for (id, locale) in kept.iter().filter(|(id, _)| before.contains_key(*id)) {
        assert_eq!(locale, &before[id], "{id}");
    }
    assert_eq!(older.worker.get("/readyz").await.0, 200);

    // And forward again.
    let later = Release::start(&world, &next).await;
    assert_eq!(later.reconcile(&world).await, 0, "what the older one wrote meanwhile is no drift");
    assert_eq!(locales(&world).await, clerks_locales(&world));
}

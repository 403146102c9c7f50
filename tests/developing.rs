//! `clerk-sync dev`: a local database follows a development instance within seconds, with one key and without webhooks.

use crate::reconciling::ReconcileWorld;
use crate::support::npm::temporary;
use crate::support::{SECRET, Server};
use clerk_sync::model::{Batch, Change, EntityRef, InstanceCheck, Kind, Millis, Observation, PassState, Source};
use clerk_sync::reconcile::{Error, PassRequest, Report, Silent};
use clerk_sync::sender::Sender;
use rustix::process::{Pid, Signal, kill_process};
use std::process::Stdio;
use std::time::Instant;
use testkit::clerk::Clerk;
use testkit::wait::PATIENCE;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// The program, and the lines that it prints.
struct Dev {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    said: Vec<String>,
}

impl Dev {
    fn start(mut command: Command) -> Dev {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (line, lines) = mpsc::unbounded_channel();
        let (stdout, stderr, other) = (child.stdout.take().unwrap(), child.stderr.take().unwrap(), line.clone());
        tokio::spawn(async move {
            let mut read = BufReader::new(stdout).lines();
            while let Ok(Some(text)) = read.next_line().await {
                let _ = line.send(text);
            }
        });
        tokio::spawn(async move {
            let mut read = BufReader::new(stderr).lines();
            while let Ok(Some(text)) = read.next_line().await {
                let _ = other.send(text);
            }
        });
        Dev { child, lines, said: Vec::new() }
    }

    /// The first line that contains all of these, of those that it has said or will say.
    async fn says(&mut self, parts: &[&str]) -> String {
        let has = |line: &&String| parts.iter().all(|part| line.contains(part));
        loop {
            if let Some(line) = self.said.iter().find(has) {
                return line.clone();
            }
            let next = tokio::time::timeout(PATIENCE, self.lines.recv()).await.ok().flatten();
            self.said.push(next.unwrap_or_else(|| panic!("no line has {parts:?}: {:#?}", self.said)));
        }
    }

    /// Its exit code after Ctrl-C.
    async fn end(mut self) -> Option<i32> {
        let pid = Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        self.child.wait().await.unwrap().code()
    }
}

/// A development instance on the machine's clock, and an empty database.
async fn world() -> testkit::World {
    let mut clerk = Clerk::new(9, clerk_sync::clock::now().get());
    clerk.environment_type = "development";
    clerk.secret_key = "sk_test_of_a_developer".to_owned();
    clerk.run_clock();
    testkit::World::builder().clerk(clerk).without_mirror().start().await.unwrap()
}

/// `clerk-sync dev` with a database and where Clerk is, and nothing else of an environment.
fn dev(world: &testkit::World, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clerk-sync"));
    command.arg("dev").args(arguments).env_clear().current_dir(std::env::temp_dir());
    command.env("DATABASE_URL", world.database.url()).env("CLERK_API_URL", &world.api.url);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_in_the_database_within_seconds_without_a_webhook() {
    let world = world().await;
    let mut command = dev(&world, &[]);
    command.env("CLERK_SECRET_KEY", "sk_test_of_a_developer");
    let began = Instant::now();
    let mut dev = Dev::start(command);
    dev.says(&["Following the development instance"]).await;
    dev.says(&["In sync."]).await;
    let mut waited = Vec::new();
    let change = |change: &mut dyn FnMut(&mut Clerk) -> String| {
        let id = world.clerk.lock().silently(|clerk| change(clerk));
        (id, Instant::now())
    };
    let (ada, at) = change(&mut |clerk| clerk.create_user("Ada", "Lovelace"));
    dev.says(&["user", &ada, "added"]).await;
    waited.push(("user created", at.elapsed()));
    let (ben, _) = change(&mut |clerk| clerk.create_user("Ben", "Bitdiddle"));
    let (acme, at) = change(&mut |clerk| clerk.create_organization("Acme Widgets", &ada));
    dev.says(&["organization", &acme, "added"]).await;
    waited.push(("organization created", at.elapsed()));
    let (member, at) = change(&mut |clerk| clerk.add_member(&acme, &ben, "org:member"));
    dev.says(&["membership", &member, "added"]).await;
    waited.push(("member added", at.elapsed()));
    world.equals_source().await;
    let (_, at) = change(&mut |clerk| {
        clerk.set_role(&member, "org:admin");
        String::new()
    });
    dev.says(&["membership", &member, "changed", "role"]).await;
    waited.push(("role changed", at.elapsed()));
    let (_, at) = change(&mut |clerk| {
        clerk.ban_user(&ada);
        String::new()
    });
    dev.says(&["user", &ada, "changed", "banned"]).await;
    waited.push(("user banned", at.elapsed()));
    let (_, at) = change(&mut |clerk| {
        clerk.remove_member(&member);
        String::new()
    });
    dev.says(&["membership", &member, "deleted"]).await;
    waited.push(("member removed", at.elapsed()));
    // Both of the users: in production a deletion of so many would wait for an approval.
    let (_, at) = change(&mut |clerk| {
        clerk.delete_organization(&acme);
        clerk.delete_user(&ada);
        clerk.delete_user(&ben);
        String::new()
    });
    for gone in [&ada, &ben] {
        dev.says(&["user", gone, "deleted"]).await;
    }
    dev.says(&["organization", &acme, "deleted"]).await;
    waited.push(("users and organization deleted", at.elapsed()));
    world.equals_source().await;
    assert_eq!(world.database.rows("select id from clerk.users where deleted_at is null").await.len(), 0);
    let calls = world.clerk.requests().len();
    println!("dev: {waited:?}; {:.0} calls a minute", calls as f64 * 60.0 / began.elapsed().as_secs_f64());
    assert_eq!(dev.end().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_found_where_clerks_sdk_and_next_leave_it() {
    let world = world().await;
    world.clerk.lock().create_user("Ada", "Lovelace");
    let folder = temporary("keys");
    let keyless = folder.join(".clerk/.tmp");
    std::fs::create_dir_all(&keyless).unwrap();
    let json = serde_json::json!({ "publishableKey": "pk_test_x", "secretKey": "sk_test_of_a_developer" });
    std::fs::write(keyless.join("keyless.json"), json.to_string()).unwrap();
    let started = async |from: &str| {
        let mut command = dev(&world, &["--every", "1"]);
        command.current_dir(&folder);
        let mut dev = Dev::start(command);
        dev.says(&["The secret key is taken from", from]).await;
        dev.says(&["Following"]).await;
        assert!(!dev.said.iter().any(|line| line.contains("sk_test")), "{:?}", dev.said);
        assert_eq!(dev.end().await, Some(0));
    };
    started("keyless.json").await;
    std::fs::write(folder.join(".env.local"), "NEXT_PUBLIC_X=1\nCLERK_SECRET_KEY=sk_test_of_a_developer\n").unwrap();
    started(".env.local").await;
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_signing_secret_webhooks_are_received_as_well() {
    let world = world().await;
    let mut command = dev(&world, &["--every", "60"]);
    command.env("CLERK_SECRET_KEY", "sk_test_of_a_developer").env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET);
    command.env("LISTEN_ADDR", "127.0.0.1:0").env("CLERK_RATE_SHARE", "off");
    let mut dev = Dev::start(command);
    let line = dev.says(&["Receiving webhooks on http://"]).await;
    let url = line.trim_start_matches("Receiving webhooks on ").trim_end_matches('.').to_owned();
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    let sender = Sender::new(url, SECRET).unwrap();
    for event in world.due() {
        assert_eq!(sender.send(&event.message_id, event.body.as_bytes()).await.unwrap().status, 204);
    }
    let rows = world.database.rows(&format!("select id from clerk.users where id = '{ada}'")).await;
    assert_eq!(rows.len(), 1, "it is there once Clerk has its answer");
    assert_eq!(dev.end().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_production_instance_is_followed() {
    let world = world().await;
    let refused = async |key: &str| {
        let output = dev(&world, &[]).env("CLERK_SECRET_KEY", key).output().await.unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    world.clerk.lock().secret_key = "sk_live_of_everybody".to_owned();
    let said = refused("sk_live_of_everybody").await;
    assert!(said.contains("production instance (sk_live_") && !said.contains("everybody"), "{said}");
    assert!(world.clerk.requests().is_empty(), "nobody was asked");
    // A key that says test, of an instance that says production.
    {
        let mut clerk = world.clerk.lock();
        (clerk.environment_type, clerk.secret_key) = ("production", "sk_test_of_everybody".to_owned());
    }
    let said = refused("sk_test_of_everybody").await;
    assert!(said.contains("belongs to a production instance") && said.contains("use the key of one here"), "{said}");
    assert!(world.database.rows("select from pg_namespace where nspname like 'clerk%'").await.is_empty(), "written");
    assert!(refused("").await.contains("CLERK_SECRET_KEY is not set"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_of_supabase_start_is_named_where_it_does_not_run() {
    if tokio::net::TcpStream::connect("127.0.0.1:54322").await.is_ok() {
        println!("SKIPPED: something listens where supabase start puts Postgres");
        return;
    }
    let world = world().await;
    let mut command = dev(&world, &[]);
    command.env_remove("DATABASE_URL").env("CLERK_SECRET_KEY", "sk_test_of_a_developer");
    let output = command.output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("supabase start") && said.contains("set DATABASE_URL") && said.contains("  fix: "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_another_instance_are_not_even_migrated() {
    let world = world().await;
    let mut migrate = dev(&world, &[]);
    migrate.env("CLERK_SECRET_KEY", "sk_test_of_a_developer");
    let mut first = Dev::start(migrate);
    first.says(&["In sync."]).await;
    assert_eq!(first.end().await, Some(0));
    world.database.execute("update clerk_sync.instance set instance_id = 'ins_of_production'").await;
    world.database.execute("update clerk_sync.replayed set generation = generation - 1").await;
    let generation = "select generation from clerk_sync.replayed";
    let before = world.database.rows(generation).await;
    let output = dev(&world, &[]).env("CLERK_SECRET_KEY", "sk_test_of_a_developer").output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("the tables belong to the Clerk instance ins_of_production"), "{said}");
    assert_eq!(world.database.rows(generation).await, before, "it migrated another instance's tables");
}

/// A mirror of a development instance, filled by webhooks, and passes that believe what they read.
struct Followed {
    world: ReconcileWorld,
    server: Server,
}

impl Followed {
    async fn new() -> Followed {
        let world = ReconcileWorld::new().await;
        world.clerk.lock().environment_type = "development";
        let server = Server::start(world.database.database(), InstanceCheck::Pinned(None)).await;
        Followed { world, server }
    }

    async fn deliver(&self) {
        let sender = Sender::new(self.server.webhook_url(), SECRET).unwrap();
        for event in self.world.due() {
            assert_eq!(sender.send(&event.message_id, event.body.as_bytes()).await.unwrap().status, 204);
        }
    }

    /// Twenty seconds later.
    async fn follow(&self) -> Vec<Report> {
        self.world.pass_time(20_000);
        let reports = self.world.reconciler().run(&PassRequest::Development, "test", false, &mut Silent).await.unwrap();
        assert!(reports.iter().all(|report| report.state == PassState::Complete), "{reports:?}");
        reports
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_development_instance_lists_is_believed_at_once_also_against_events() {
    let followed = Followed::new().await;
    let world = &followed.world;
    let (ada, ben, acme) = {
        let mut clerk = world.clerk.lock();
        let (ada, ben) = (clerk.create_user("Ada", "Lovelace"), clerk.create_user("Ben", "Bitdiddle"));
        let acme = clerk.create_organization("Acme Widgets", &ada);
        (ada, ben, acme)
    };
    let member = world.clerk.lock().add_member(&acme, &ben, "org:admin");
    followed.deliver().await;
    world.reconciler().begin_development().await.unwrap();
    followed.follow().await;
    world.equals_source().await;
    // A step back of the time of its last change, as when another of Clerk's servers makes it; the webhook is lost.
    world.silently(|clerk| {
        clerk.set_role(&member, "org:member");
        clerk.remove_member(&member);
    });
    let again = world.clerk.lock().silently(|clerk| clerk.add_member(&acme, &ben, "org:admin"));
    followed.follow().await;
    world.equals_source().await;
    // Absent though a webhook reported it less than an hour ago, and most of its kind.
    world.silently(|clerk| {
        clerk.remove_member(&again);
        clerk.delete_user(&ben);
    });
    followed.follow().await;
    world.equals_source().await;
    // A replica that is behind shows less for a moment: what it took away comes back.
    let cleo = world.clerk.lock().silently(|clerk| clerk.create_user("Cleo", "Smith"));
    followed.follow().await;
    let now = world.clerk.lock().moment();
    world.silently(|clerk| clerk.delete_user(&cleo));
    followed.follow().await;
    world.equals_source().await;
    let time = world.clerk.lock().now;
    world.clerk.lock().show(now);
    world.clerk.lock().now = time;
    followed.follow().await;
    world.equals_source().await;
    assert!(
        world.source().iter().any(|row| row.contains(&cleo)) && world.source().iter().any(|row| row.contains(&ada))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_event_reported_as_deleted_stays_deleted_whatever_is_listed() {
    let followed = Followed::new().await;
    let world = &followed.world;
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    followed.deliver().await;
    world.reconciler().begin_development().await.unwrap();
    followed.follow().await;
    let before = world.clerk.lock().moment();
    world.clerk.lock().delete_user(&ada);
    followed.deliver().await;
    let time = world.clerk.lock().now;
    world.clerk.lock().show(before);
    world.clerk.lock().now = time;
    followed.follow().await;
    let rows =
        world.database.rows(&format!("select id from clerk.users where id = '{ada}' and deleted_at is null")).await;
    assert!(rows.is_empty(), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writer_itself_believes_no_list_of_a_production_instance() {
    let world = ReconcileWorld::filled(5, 1, 5, 1).await;
    assert!(matches!(world.reconciler().begin_development().await, Err(Error::NotDevelopment(_))));
    let user = world.any(Kind::User, 0);
    let gone = Change {
        observed_at: Millis::new(world.clerk.lock().now).unwrap(),
        observation: Observation::Deleted(EntityRef { kind: Kind::User, id: user.clone() }),
        mention: None,
    };
    let before = world.database.written().await;
    let mut session = world.database.database().connect().await.unwrap();
    let error = session.apply(&Batch::of_changes(Source::Development, [&gone].into_iter()), 1).await.unwrap_err();
    assert_eq!(error.sqlstate().as_deref(), Some("CS005"), "{}", error.summary());
    world.silently(|clerk| clerk.delete_user(&user));
    let reports = world.reconciler().run(&PassRequest::Development, "test", false, &mut Silent).await.expect("passes");
    assert!(reports.iter().all(|report| report.drift() == 0), "{reports:?}");
    assert!(reports.iter().any(|report| report.problem.as_deref().is_some_and(|problem| problem.contains("CS005"))));
    assert!(before == world.database.written().await);
}

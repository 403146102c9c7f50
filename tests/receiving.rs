//! Who gets which answer, and what is kept.

use crate::support::{SECRET, START, Server, World, database, instance, supabase, unique};
use clerk_sync::model::InstanceCheck;
use clerk_sync::sender::Sender;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::supabase::Supabase;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const TABLES: [&str; 4] = ["clerk.users", "clerk_sync.versions", "clerk_sync.receipts", "clerk_sync.dead_letters"];

async fn nothing_is_stored(world: &World) {
    for table in TABLES {
        assert_eq!(world.database.count(table).await, 0, "{table}");
    }
}

fn user_created() -> Value {
    let mut clerk = testkit::clerk::Clerk::new(7, START);
    clerk.create_user("Ada", "Lovelace");
    serde_json::from_str(&clerk.outbox[0].body).unwrap()
}

#[tokio::test]
async fn what_cannot_be_proven_to_be_clerks_is_answered_400_and_not_stored() {
    let world = World::new().await;
    let body = user_created().to_string();
    let now = clerk_sync::clock::now().get() / 1000;

    let stranger = Sender::new(world.server.webhook_url(), "whsec_YW5vdGhlciBzZWNyZXQgYWx0b2dldGhlcg==").unwrap();
    let attempt = stranger.send("msg_1", body.as_bytes()).await.unwrap();
    assert_eq!((attempt.status, attempt.outcome.as_deref()), (400, Some("invalid_signature")));

    for (seconds, error) in [(now - 400, "timestamp_too_old"), (now + 400, "timestamp_too_new")] {
        let attempt = world.sender().send_at("msg_1", seconds, body.as_bytes()).await.unwrap();
        assert_eq!((attempt.status, attempt.outcome.as_deref()), (400, Some(error)));
    }

    let client = reqwest::Client::builder().build().unwrap();
    let answer = client.post(world.server.webhook_url()).body(body).send().await.unwrap();
    assert_eq!(answer.status(), 400);
    assert_eq!(answer.text().await.unwrap(), r#"{"error":"missing_header"}"#);

    let answer = client.post(world.server.webhook_url()).body(vec![b'x'; 2 * 1024 * 1024 + 1]).send().await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 413), "too large");
    assert_eq!(client.get(world.server.webhook_url()).send().await.unwrap().status(), 405);
    assert_eq!(client.post(format!("{}/other", world.server.url)).send().await.unwrap().status(), 404);
    nothing_is_stored(&world).await;
}

#[tokio::test]
async fn a_signed_body_that_cannot_be_used_is_kept_whole() {
    let world = World::new().await;
    let bodies = [
        ("", "not JSON: line 1, column 0"),
        ("hello", "not JSON: line 1, column 1"),
        ("[\"event\",\"user.created\"]", "not a JSON object"),
        ("{\"type\":\"user.created\",\"type\":\"user.deleted\",\"data\":{\"id\":\"user_1\"}}", "type appears twice"),
        ("{\"data\":{}}", "type is missing, or is not a valid event type"),
        ("{\"type\":7}", "type is missing, or is not a valid event type"),
        ("{\"type\":\"user.created\",\"object\":\"evt\",\"data\":{}}", "object is not event"),
        ("{\"type\":\"user.created\"}", "data is missing, or is not an object"),
        ("{\"type\":\"user.created\",\"data\":[\"user_1\"]}", "data is missing, or is not an object"),
        ("{\"type\":\"user.created\",\"data\":{\"id\":\"\"}}", "data.id is missing, or is not an id of this kind"),
        ("{\"type\":\"user.created\",\"data\":{\"id\":\"org_1\"}}", "data.id is missing, or is not an id of this kind"),
        (
            "{\"type\":\"user.created\",\"data\":{\"id\":\"user\\u0000\"}}",
            "data.id is missing, or is not an id of this kind",
        ),
    ];
    for (body, reason) in bodies {
        let message_id = unique("msg");
        let attempt = world.attempt(&message_id, body.as_bytes()).await;
        assert_eq!((attempt.status, attempt.outcome.as_deref()), (200, Some("dead_letter")), "{body}");
        let kept = format!(
            "select reason, convert_from(body, 'UTF8') as body, headers ->> 'svix-id' as id from clerk_sync.dead_letters \
             where message_id = '{message_id}'"
        );
        assert_eq!(world.database.rows(&kept).await, [json!({ "reason": reason, "body": body, "id": message_id })]);
        let again = world.attempt(&message_id, body.as_bytes()).await;
        assert_eq!(again.status, 200, "sent again");
    }
    assert_eq!(world.database.count("clerk_sync.dead_letters").await, i64::try_from(bodies.len()).unwrap());
    assert_eq!(world.database.count("clerk.users").await, 0);
}

#[tokio::test]
async fn the_same_message_again_is_a_duplicate_and_a_reused_id_a_dead_letter() {
    let world = World::new().await;
    let (first, mut second) = (user_created(), user_created());
    second["data"]["first_name"] = json!("Eve");
    second["timestamp"] = json!(START + 60_000);
    let outcome = async |body: &Value| world.attempt("msg_same", body.to_string().as_bytes()).await.outcome.unwrap();
    assert_eq!(outcome(&first).await, "applied");
    assert_eq!(outcome(&first).await, "duplicate");
    assert_eq!(outcome(&second).await, "dead_letter");
    let names = world.database.rows("select first_name from clerk.users").await;
    assert_eq!(names, [json!({ "first_name": "Ada" })], "the first one wins");
    let kept = world.database.rows("select reason from clerk_sync.dead_letters").await;
    assert_eq!(
        kept,
        [json!({ "reason": "its message id was already used by an earlier webhook with a different body" })]
    );
}

/// F17. One message at once on fifty connections, to two replicas.
pub async fn one_message_fifty_times() -> String {
    let world = World::new().await;
    let replica = Server::start(world.database.database(), InstanceCheck::Pinned(None)).await;
    let other = Sender::new(replica.webhook_url(), SECRET).unwrap();
    let body = user_created().to_string();
    let sent = (0..50).map(|n| {
        let sender = if n % 2 == 0 { &**world.sender() } else { &other };
        sender.send("msg_same", body.as_bytes())
    });
    let attempts = futures_util::future::try_join_all(sent).await.unwrap();
    let count = |outcome: &str| attempts.iter().filter(|attempt| attempt.outcome.as_deref() == Some(outcome)).count();
    assert_eq!((count("applied"), count("duplicate")), (1, 49));
    assert_eq!(world.database.count("clerk_sync.receipts").await, 1);
    "50 × 204: 1 applied, 49 duplicate, 1 receipt".to_owned()
}

#[tokio::test]
async fn an_event_of_another_instance_is_answered_403_and_named_by_readyz() {
    let world = World::of(instance("ins_production")).await;
    let mut body = user_created();
    body["instance_id"] = json!("ins_development");
    let attempt = world.attempt("msg_1", body.to_string().as_bytes()).await;
    assert_eq!((attempt.status, attempt.outcome.as_deref()), (403, Some("foreign_instance")));
    assert!(attempt.body.contains("ins_production"), "{}", attempt.body);
    body["data"] = json!(null);
    assert_eq!(world.attempt("msg_2", body.to_string().as_bytes()).await.status, 403, "usable or not");
    nothing_is_stored(&world).await;
    body = user_created();
    body["instance_id"] = json!("ins_development");
    let (status, ready) = world.server.get("/readyz").await;
    assert_eq!(status, 503);
    assert_eq!(ready["reasons"][0]["webhook_instance"], "ins_development");

    world.clerk.lock().instance_id = "ins_production".to_owned();
    world.clerk.lock().create_user("Ada", "Lovelace");
    world.deliver().await;
    assert_eq!(world.server.get("/readyz").await.0, 200, "an event of ours settles it");
    body.as_object_mut().unwrap().remove("instance_id");
    assert_eq!(world.send_body(&body).await, "applied", "one without an instance passes");
}

#[tokio::test]
async fn the_first_message_pins_an_empty_mirror_and_a_row_keeps_the_pin() {
    let world = World::new().await;
    let mut body = user_created();
    body["instance_id"] = json!("ins_first");
    assert_eq!(world.send_body(&body).await, "applied");
    body["instance_id"] = json!("ins_second");
    assert_eq!(world.attempt("msg_2", body.to_string().as_bytes()).await.status, 403);
    let other = Server::start(world.database.database(), instance("ins_second")).await;
    let sender = Sender::new(other.webhook_url(), SECRET).unwrap();
    assert_eq!(
        sender.send("msg_3", body.to_string().as_bytes()).await.unwrap().status,
        403,
        "whatever the environment says"
    );
    let (status, ready) = other.get("/readyz").await;
    assert_eq!(status, 503);
    let reasons = ready["reasons"].to_string();
    assert!(reasons.contains("ins_first") && reasons.contains("ins_second"), "{reasons}");
}

#[tokio::test]
async fn a_foreign_event_in_a_batch_takes_no_honest_one_with_it() {
    let world = World::of(instance("ins_production")).await;
    let mut honest = user_created();
    honest["instance_id"] = json!("ins_production");
    let mut foreign = user_created();
    foreign["instance_id"] = json!("ins_development");
    foreign["timestamp"] = json!(START + 60_000);
    let sent = (0..40).map(|n| {
        let body = if n % 2 == 0 { &honest } else { &foreign };
        let (message_id, body) = (unique("msg"), body.to_string());
        let world = &world;
        async move { (n, world.attempt(&message_id, body.as_bytes()).await.status) }
    });
    for (n, status) in futures_util::future::join_all(sent).await {
        assert_eq!(status, if n % 2 == 0 { 204 } else { 403 });
    }
    let rows = world.database.rows("select observed_at from clerk_sync.versions").await;
    assert_eq!(rows, [json!({ "observed_at": honest["timestamp"] })]);
}

#[tokio::test]
async fn an_event_ahead_of_the_senders_own_clock_is_not_believed() {
    let world = World::new().await;
    let mut body = user_created();
    let now = clerk_sync::clock::now().get();
    body["timestamp"] = json!(now + 400_000);
    assert_eq!(world.send_body(&body).await, "pending");
    let asked = world.database.rows("select kind, reason from clerk_sync.pending_reads").await;
    assert_eq!(asked, [json!({ "kind": "user", "reason": "the event's time is ahead of Clerk's clock" })]);
    body["timestamp"] = json!(now + 200_000);
    assert_eq!(world.send_body(&body).await, "applied");
}

#[tokio::test]
async fn without_a_database_deliveries_get_503_and_with_it_they_get_2xx() {
    // A server of its own: it is stopped.
    let postgres = tokio::task::spawn_blocking(|| Supabase::start().unwrap()).await.unwrap();
    postgres.create("test").await.unwrap();
    let database = clerk_sync::store::Database::parse(&postgres.url("test")).unwrap();
    let server = Server::start(database.clone(), InstanceCheck::Pinned(None)).await;
    let sender = Sender::new(server.webhook_url(), SECRET).unwrap();
    let body = user_created().to_string();

    let attempt = sender.send("msg_1", body.as_bytes()).await.unwrap();
    assert_eq!((attempt.status, attempt.outcome.as_deref()), (503, Some("database_unavailable")), "not migrated yet");
    let (_, ready) = server.get("/readyz").await;
    assert!(ready["reasons"][0]["detail"].as_str().unwrap().contains("clerk-sync migrate"), "{ready}");

    clerk_sync::store::migrate(&database, clerk_sync::store::Migrating::default()).await.unwrap();
    assert_eq!(sender.send("msg_1", body.as_bytes()).await.unwrap().status, 204);
    assert_eq!(server.get("/readyz").await.0, 200);

    postgres.cluster().stop_server().unwrap();
    for round in 0..3 {
        let started = Instant::now();
        let attempt = sender.send("msg_2", body.as_bytes()).await.unwrap();
        assert_eq!((attempt.status, attempt.outcome.as_deref()), (503, Some("database_unavailable")), "stopped");
        assert!(started.elapsed() < Duration::from_secs(3), "round {round}: {:?}", started.elapsed());
    }
    assert_eq!(server.get("/livez").await.0, 200, "alive");
    assert_eq!(server.get("/readyz").await.0, 503);

    postgres.cluster().start_server().unwrap();
    let attempt = sender.send("msg_2", body.as_bytes()).await.unwrap();
    assert_eq!(attempt.status, 204, "the next delivery; {:?}", server.get("/readyz").await);
    assert_eq!(server.get("/readyz").await.0, 200);
}

#[tokio::test]
async fn a_terminated_connection_costs_no_delivery() {
    let world = World::new().await;
    for round in 0..3 {
        world.clerk.lock().create_user("Ada", &format!("The {round}th"));
        world.deliver().await;
        let mut superuser = supabase().connect("supabase_admin", &world.database.name).await.unwrap();
        let kill = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() \
             and application_name = 'clerk-sync' and pid <> pg_backend_pid()";
        sqlx::query(kill).execute(&mut superuser).await.unwrap();
    }
    world.clerk.lock().create_user("Ada", "The last");
    world.deliver().await;
    assert_eq!(world.database.count("clerk.users").await, 4);
}

#[tokio::test]
async fn stopping_answers_what_is_under_way() {
    let database = database().await;
    let server = Server::start(database.database(), InstanceCheck::Pinned(None)).await;
    let sender = std::sync::Arc::new(Sender::new(server.webhook_url(), SECRET).unwrap());
    let mut blocker = database.owner().await;
    sqlx::raw_sql("begin; lock table clerk.users").execute(&mut blocker).await.unwrap();
    let waiting = tokio::spawn({
        let sender = std::sync::Arc::clone(&sender);
        async move { sender.send("msg_1", user_created().to_string().as_bytes()).await.unwrap().status }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stopping = tokio::spawn(server.stop());
    tokio::time::sleep(Duration::from_millis(300)).await;
    sqlx::raw_sql("rollback").execute(&mut blocker).await.unwrap();
    assert_eq!(waiting.await.unwrap(), 204);
    stopping.await.unwrap();
    assert_eq!(database.count("clerk.users").await, 1);
    assert!(sender.send("msg_2", b"{}").await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_commit_is_durable_whatever_the_databases_default_is() {
    let world = World::new().await;
    let name = &world.database.name;
    world.database.execute(&format!("alter database {name} set synchronous_commit = off")).await;
    world
        .database
        .execute(
            "create table public.seen as select ''::text as setting where false;
             create function public.see() returns trigger language plpgsql as $$ begin
               insert into public.seen values (current_setting('synchronous_commit')); return new; end $$;
             create trigger see before insert on clerk_sync.receipts for each row execute function public.see()",
        )
        .await;
    let server = Server::start(world.database.database(), InstanceCheck::Off).await;
    let sender = Sender::new(server.webhook_url(), SECRET).unwrap();
    world.clerk.lock().create_user("Ada", "Lovelace");
    let event = world.clerk.lock().outbox.pop().unwrap();
    assert_eq!(sender.send(&event.message_id, event.body.as_bytes()).await.unwrap().status, 204);
    assert_eq!(world.database.rows("select setting from public.seen").await, [json!({ "setting": "on" })]);
}

/// Nobody has signed these, and they are never finished. With headers as Svix sends them they share the room for large bodies.
#[tokio::test]
async fn a_flood_of_large_bodies_keeps_out_neither_usual_nor_large_ones() {
    let world = World::new().await;
    let address = world.server.url.trim_start_matches("http://").to_owned();
    let mut flood = Vec::new();
    for _ in 0..30 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let seconds = clerk_sync::clock::now().get() / 1000;
        let head = format!(
            "POST /webhooks/clerk HTTP/1.1\r\nhost: test\r\nsvix-id: msg_flood\r\nsvix-timestamp: {seconds}\r\n\
             svix-signature: v1,AAAA\r\ncontent-length: 1048576\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let _ = tokio::time::timeout(Duration::from_secs(2), stream.write_all(&vec![b' '; 1_000_000])).await;
        flood.push(stream);
    }
    world.clerk.lock().create_user("Ada", "Lovelace");
    world.clerk.lock().create_user("Grace", "Hopper");
    let mut due = world.due();
    let (event, large) = (due.pop().unwrap(), due.pop().unwrap());
    let large = large.body.replacen('{', &format!("{{\"padding\":\"{}\",", "x".repeat(500_000)), 1);
    assert_eq!(world.attempt("msg_large", large.as_bytes()).await.status, 204, "those that are not complete make way");
    assert_eq!(world.send(&event).await, "applied");
}

#[tokio::test]
async fn what_the_headers_alone_refuse_takes_no_memory_and_is_answered_all_the_same() {
    let world = World::new().await;
    let address = world.server.url.trim_start_matches("http://").to_owned();
    // 40 MB that are never finished: twice what all bodies together may take.
    let mut strangers = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let head = "POST /webhooks/clerk HTTP/1.1\r\nhost: test\r\ncontent-length: 1048576\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; 1_048_575]).await.unwrap();
        strangers.push(stream);
    }
    for stream in &mut strangers {
        stream.write_all(b" ").await.unwrap();
        let mut answer = [0; 512];
        let length = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("missing_header"), "{answer}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_encoded_may_say_so() {
    let world = World::new().await;
    let body = user_created().to_string();
    let webhook = svix::webhooks::Webhook::new(SECRET).unwrap();
    let client = reqwest::Client::builder().timeout(Duration::from_secs(15)).build().unwrap();
    let status = async |encodings: &[&str]| {
        let (id, seconds) = (unique("msg"), clerk_sync::clock::now().get() / 1000);
        let mut request = client
            .post(world.server.webhook_url())
            .header("svix-signature", webhook.sign(&id, seconds, body.as_bytes()).unwrap())
            .header("svix-timestamp", seconds)
            .header("svix-id", id)
            .body(body.clone());
        for encoding in encodings {
            request = request.header("content-encoding", *encoding);
        }
        request.send().await.unwrap().status().as_u16()
    };
    for encodings in [&["identity"], &["Identity"], &[""], &["identity, IDENTITY"]] {
        assert_eq!(status(encodings).await, 204, "{encodings:?}");
    }
    for encodings in [&["gzip"][..], &["identity, gzip"], &["identity", "br"]] {
        assert_eq!(status(encodings).await, 415, "{encodings:?}");
    }
}

#[tokio::test]
async fn a_webhook_on_a_wrong_path_is_answered_with_the_right_one() {
    let world = World::new().await;
    for path in ["/", "/webhooks/clerk/", "/api/webhooks/clerk", "/other"] {
        let sender = Sender::new(format!("{}{path}", world.server.url), SECRET).unwrap();
        let attempt = sender.send("msg_1", user_created().to_string().as_bytes()).await.unwrap();
        assert_eq!((attempt.status, attempt.outcome.as_deref()), (404, Some("not_found")), "{path}");
        assert!(attempt.body.contains("\"/webhooks/clerk\""), "{}", attempt.body);
    }
    nothing_is_stored(&world).await;
}

//! Upkeep: dead letters tried again, old bookkeeping pruned, emptied rows purged; and that the mirror never notices.

use crate::support::{Project, START, Server, World, database, unique};
use clerk_sync::model::InstanceCheck;
use clerk_sync::model::Kind;
use clerk_sync::upkeep::retention::{self, Pruned, Retention};
use clerk_sync::upkeep::{self, purge};
use serde_json::{Value, json};
use std::process::Output;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

/// The program as a person runs it.
fn clerk_sync(database: &Project, arguments: &[&str]) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_clerk-sync"))
        .args(arguments)
        .env("DATABASE_URL", database.url())
        .env_remove("CLERK_INSTANCE_ID")
        .output()
        .expect("the program runs")
}

/// Its exit code, standard output and standard error.
fn run(database: &Project, arguments: &[&str]) -> (i32, String, String) {
    let output = clerk_sync(database, arguments);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn user(id: &str, first_name: &str, at: i64) -> Value {
    json!({
        "object": "event", "type": "user.updated", "timestamp": at, "instance_id": "ins_test",
        "data": { "id": id, "object": "user", "first_name": first_name, "last_name": "Example", "banned": false,
                  "email_addresses": [{ "id": "idn_1", "email_address": "ada@example.com" }], "primary_email_address_id": "idn_1",
                  "public_metadata": {}, "unsafe_metadata": {}, "created_at": START, "updated_at": at },
    })
}

/// A database that refuses certain names, as a trigger of somebody's might.
const REFUSING: &str = "create function public.refuse() returns trigger language plpgsql set search_path = '' as $$ \
     begin if new.first_name = 'Refused' then raise exception using errcode = '22003'; end if; return new; end $$; \
     create trigger refuse before insert or update on clerk.users for each row execute function public.refuse()";

async fn send(world: &World, message_id: &str, body: &str) -> String {
    world.attempt(message_id, body.as_bytes()).await.outcome.expect("an outcome")
}

async fn letters(database: &Project) -> Vec<Value> {
    database.rows("select message_id, reason, tries from clerk_sync.dead_letters order by message_id").await
}

async fn receipt(database: &Project, message_id: &str) -> Vec<Value> {
    let sql = format!("select outcome, entity_id from clerk_sync.receipts where message_id = '{message_id}'");
    database.rows(&sql).await
}

#[tokio::test]
async fn a_letter_is_listed_without_its_body_shown_with_it_and_dropped() {
    let world = World::new().await;
    let database = &world.database;
    let body = "{\"type\":\"user.created\",\"data\":{\"id\":\"\",\"secret\":\"ada@example.com\u{1b}[2J\"}}";
    assert_eq!(send(&world, "msg_first", body).await, "dead_letter");
    assert_eq!(send(&world, "msg_second", "\u{7f}{\"type\":7}").await, "dead_letter");
    let (code, listed, _) = run(database, &["dead-letters", "list"]);
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!((code, lines.len()), (0, 2), "{listed}");
    assert!(lines[1].starts_with("msg_first  ") && lines[0].starts_with("msg_second  "), "the latest first: {listed}");
    assert!(lines.iter().all(|line| line.contains("  0 tries  ")), "{listed}");
    assert!(!listed.contains("example.com"), "{listed}");
    let (_, json, _) = run(database, &["dead-letters", "list", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[1]["message_id"], "msg_first");
    assert!(json[1].get("body").is_none(), "{json}");

    let hash = json[1]["body_hash"].as_str().unwrap().to_owned();
    for id in ["msg_first", "msg_f", &hash, &hash[..12]] {
        let (code, shown, warning) = run(database, &["dead-letters", "show", id]);
        assert_eq!(code, 0, "{warning}");
        assert!(warning.contains("personal data"), "{warning}");
        assert!(shown.contains("ada@example.com\\u001b[2J") && !shown.contains('\u{1b}'), "{shown}");
        assert!(shown.contains("svix-id: msg_first") && !shown.contains("authorization"), "{shown}");
    }
    let (_, json, _) = run(database, &["dead-letters", "show", "msg_first", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["body"].as_str(), json["headers"]["svix-id"].as_str()), (Some(body), Some("msg_first")));

    let (code, _, error) = run(database, &["dead-letters", "drop", "msg_"]);
    assert!(code == 1 && error.contains("2 dead letters match"), "{error}");
    let (code, _, error) = run(database, &["dead-letters", "drop", "msg_third"]);
    assert!(code == 1 && error.contains("no dead letter"), "{error}");
    assert_eq!(run(database, &["dead-letters", "drop", "msg_first"]).0, 0);
    assert_eq!(letters(database).await.len(), 1);
    assert_eq!(run(database, &["dead-letters", "retry"]).0, 2, "wrong usage: which one?");
}

#[tokio::test]
async fn a_letter_that_can_be_used_now_is_applied_and_removed_and_another_stays_with_its_tries() {
    let world = World::new().await;
    let database = &world.database;
    database.execute(REFUSING).await;
    let body = user("user_1", "Refused", START).to_string();
    assert_eq!(send(&world, "msg_refused", &body).await, "dead_letter");
    assert_eq!(send(&world, "msg_unreadable", "{\"type\":7}").await, "dead_letter");

    let (code, told, _) = run(database, &["dead-letters", "retry", "--all"]);
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("dead_letter (the database refuses it: SQLSTATE 22003)"), "{told}");
    let refused = "the database refuses it: SQLSTATE 22003";
    let unreadable = "type is missing, or is not a valid event type";
    assert_eq!(
        letters(database).await,
        [
            json!({ "message_id": "msg_refused", "reason": refused, "tries": 1 }),
            json!({ "message_id": "msg_unreadable", "reason": unreadable, "tries": 1 })
        ]
    );

    database.execute("drop trigger refuse on clerk.users").await;
    let (code, told, _) = run(database, &["dead-letters", "retry", "--all", "--json"]);
    assert_eq!(code, 1, "{told}");
    let told: Value = serde_json::from_str(&told).unwrap();
    let of = |id: &str| told.as_array().unwrap().iter().find(|of| of["message_id"] == id).unwrap()["outcome"].clone();
    assert_eq!((of("msg_refused"), of("msg_unreadable")), (json!("applied"), json!("dead_letter")));
    assert_eq!(letters(database).await, [json!({ "message_id": "msg_unreadable", "reason": unreadable, "tries": 2 })]);
    assert_eq!(database.rows("select first_name from clerk.users").await, [json!({ "first_name": "Refused" })]);
    assert_eq!(
        receipt(database, "msg_refused").await,
        [json!({ "outcome": "applied", "entity_id": "user_1" })],
        "the receipt tells what became of it"
    );
    assert_eq!(send(&world, "msg_refused", &body).await, "duplicate");
}

/// As an older release might have kept them.
#[tokio::test]
async fn what_a_newer_release_can_read_is_applied_or_found_to_be_of_no_concern() {
    let database = database().await;
    let readable = user("user_1", "Ada", START).to_string();
    for (message_id, body) in [
        ("msg_readable", readable.as_str()),
        ("msg_ignored", "{\"type\":\"session.created\",\"object\":\"event\",\"data\":{}}"),
    ] {
        let sql = format!(
            "insert into clerk_sync.dead_letters (message_id, body_hash, reason, headers, body) \
               values ('{message_id}', 'hash', 'too new', '{{}}', convert_to('{body}', 'UTF8')); \
             insert into clerk_sync.receipts (message_id, body_hash, event_type, outcome, reason, field_errors) \
               values ('{message_id}', 'hash', '', 'dead_letter', 'too new', '{{}}')"
        );
        database.execute(&sql).await;
    }
    database.execute("insert into clerk_sync.instance (instance_id, pinned_by) values ('ins_test', 'webhook')").await;
    let (code, told, error) = run(&database, &["dead-letters", "retry", "--all"]);
    assert_eq!(code, 0, "{told}{error}");
    assert!(letters(&database).await.is_empty());
    assert_eq!(receipt(&database, "msg_readable").await, [json!({ "outcome": "applied", "entity_id": "user_1" })]);
    assert_eq!(receipt(&database, "msg_ignored").await, [json!({ "outcome": "ignored", "entity_id": null })]);
    assert_eq!(database.rows("select first_name from clerk.users").await, [json!({ "first_name": "Ada" })]);
}

#[tokio::test]
async fn a_letter_is_as_old_as_it_is_and_never_overtakes_what_came_since() {
    let world = World::new().await;
    let database = &world.database;
    database.execute(REFUSING).await;
    for (message_id, id) in [("msg_one", "user_1"), ("msg_two", "user_2")] {
        assert_eq!(send(&world, message_id, &user(id, "Refused", START).to_string()).await, "dead_letter");
    }
    assert_eq!(world.send_body(&user("user_1", "Grace", START + 1_000)).await, "applied");
    let gone = json!({ "object": "event", "type": "user.deleted", "timestamp": START + 1_000, "instance_id": "ins_test",
                       "data": { "id": "user_2", "object": "user", "deleted": true } });
    assert_eq!(world.send_body(&gone).await, "applied");
    database.execute("drop trigger refuse on clerk.users").await;
    let before = database.mirror().await;
    let (code, told, _) = run(database, &["dead-letters", "retry", "--all"]);
    assert_eq!(code, 0, "{told}");
    assert_eq!(database.mirror().await, before);
    assert!(letters(database).await.is_empty(), "settled: something newer is known");
    assert_eq!(receipt(database, "msg_one").await, [json!({ "outcome": "stale", "entity_id": "user_1" })]);
}

#[tokio::test]
async fn a_reused_id_stays_refused_until_a_person_names_the_letter() {
    let world = World::new().await;
    let database = &world.database;
    assert_eq!(send(&world, "msg_same", &user("user_1", "Ada", START).to_string()).await, "applied");
    assert_eq!(send(&world, "msg_same", &user("user_1", "Grace", START + 1_000).to_string()).await, "dead_letter");
    let name = "select first_name from clerk.users";
    assert_eq!(run(database, &["dead-letters", "retry", "--all"]).0, 1);
    let reason = "its message id was already used by an earlier webhook with a different body";
    assert_eq!(letters(database).await, [json!({ "message_id": "msg_same", "reason": reason, "tries": 1 })]);
    assert_eq!(database.rows(name).await, [json!({ "first_name": "Ada" })]);
    assert_eq!(run(database, &["dead-letters", "retry", "msg_same"]).0, 0);
    assert!(letters(database).await.is_empty());
    assert_eq!(database.rows(name).await, [json!({ "first_name": "Grace" })]);
    assert_eq!(
        receipt(database, "msg_same").await,
        [json!({ "outcome": "applied", "entity_id": "user_1" })],
        "of the first body"
    );
}

#[tokio::test]
async fn a_letter_of_another_instance_stays_one_whoever_asks() {
    let world = World::of(InstanceCheck::Off).await;
    let database = &world.database;
    database.execute(REFUSING).await;
    let mut foreign = user("user_1", "Refused", START);
    foreign["instance_id"] = json!("ins_other");
    assert_eq!(send(&world, "msg_one", &foreign.to_string()).await, "dead_letter");
    assert_eq!(send(&world, "msg_two", &user("user_2", "Ada", START).to_string()).await, "applied");
    foreign["data"]["first_name"] = json!("Grace");
    assert_eq!(send(&world, "msg_two", &foreign.to_string()).await, "dead_letter", "reused, and foreign besides");
    database.execute("drop trigger refuse on clerk.users").await;
    database.execute("insert into clerk_sync.instance (instance_id, pinned_by) values ('ins_test', 'repin')").await;
    for id in ["msg_one", "msg_two"] {
        let (code, told, _) = run(database, &["dead-letters", "retry", id]);
        assert!(code == 1 && told.contains("belongs to another Clerk instance"), "{told}");
    }
    assert_eq!(database.count("clerk.users").await, 1);
    // Between `migrate --repin` and the first webhook: what is old does not decide.
    database.execute("delete from clerk_sync.instance").await;
    for id in ["msg_one", "msg_two"] {
        assert_eq!(run(database, &["dead-letters", "retry", id]).0, 1);
    }
    assert_eq!(database.count("clerk_sync.instance").await, 0);
    assert_eq!(run(database, &["dead-letters", "retry", "msg_one", "--instance-id", "*"]).0, 0);
    assert_eq!(database.count("clerk.users").await, 2);
}

#[tokio::test]
async fn serve_tries_letters_again_by_itself_ever_more_seldom_and_at_last_no_more() {
    let world = World::new().await;
    let database = &world.database;
    database.execute(REFUSING).await;
    assert_eq!(send(&world, "msg_one", &user("user_1", "Refused", START).to_string()).await, "dead_letter");
    let due = async || {
        let before = letters(database).await[0]["tries"].clone();
        assert_eq!(upkeep::retry_due(&database.database(), true).await.unwrap(), 0);
        letters(database).await[0]["tries"] != before
    };
    assert!(!due().await, "it came this moment");
    for (tries, delay_s) in [60, 300, 1_800, 7_200].into_iter().chain([86_400; 6]).enumerate() {
        let ago = async |s: i32| {
            let at = format!("now() - interval '{s} s'");
            let sql = format!(
                "update clerk_sync.dead_letters set received_at = {at}, tried_at = case when tries > 0 then {at} end"
            );
            database.execute(&sql).await;
        };
        ago(delay_s - 20).await;
        assert!(!due().await, "too early for try {tries}");
        ago(delay_s + 1).await;
        assert!(due().await, "try {tries}");
    }
    database.execute("update clerk_sync.dead_letters set tried_at = now() - interval '300 days'").await;
    assert!(!due().await, "from now on only a person tries");

    // The refusal is mended, and the next server settles what is due within its first moments.
    assert_eq!(send(&world, "msg_two", &user("user_2", "Refused", START).to_string()).await, "dead_letter");
    database.execute("drop trigger refuse on clerk.users; update clerk_sync.dead_letters set received_at = now() - interval '2 minutes'").await;
    let server = Server::start(database.database(), InstanceCheck::Pinned(None)).await;
    for _ in 0..100 {
        if letters(database).await.len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.stop().await;
    assert_eq!(letters(database).await.len(), 1, "msg_two is settled, msg_one has used up its tries");
    assert_eq!(database.rows("select id from clerk.users").await, [json!({ "id": "user_2" })]);
}

#[tokio::test]
async fn two_who_try_one_letter_at_once_settle_it_once() {
    let world = World::new().await;
    let database = &world.database;
    database.execute(REFUSING).await;
    for number in 0..10 {
        send(&world, &unique("msg"), &user(&format!("user_{number}"), "Refused", START).to_string()).await;
    }
    database.execute("drop trigger refuse on clerk.users; update clerk_sync.dead_letters set received_at = now() - interval '1 hour'").await;
    let (one, two) = (database.database(), database.database());
    let (one, two) = tokio::join!(upkeep::retry_due(&one, true), upkeep::retry_due(&two, true));
    assert_eq!(one.unwrap() + two.unwrap(), 10);
    assert!(letters(database).await.is_empty());
    assert_eq!(database.count("clerk.users").await, 10);
}

/// Days before now, as SQL.
fn ago(days: u32) -> String {
    format!("now() - interval '{days} days'")
}

#[tokio::test]
async fn retention_removes_what_is_old_and_nothing_else() {
    let database = database().await;
    let (old, new) = (ago(100), ago(20));
    let pass = |id: u32, scope: &str, state: &str, at: &str| {
        let ended_at = if state == "running" { "null" } else { at };
        format!(
            "insert into clerk_sync.passes (id, scope, reason, state, backfill, observed_from, started_at, ended_at) overriding system value \
             values ({id}, '{scope}', 'test', '{state}', false, 0, {at}, {ended_at});"
        )
    };
    let passes = [
        pass(1, "user", "complete", &old),
        pass(2, "user", "incomplete", &old),
        pass(3, "user", "complete", &old), // the last complete one
        pass(4, "user", "incomplete", &old),
        pass(5, "user", "braked", &old),
        pass(6, "user", "void", &old), // the last one
        pass(7, "quick", "complete", &old),
        pass(8, "quick", "complete", &new),
        pass(9, "organization", "running", &old),
        pass(10, "organization", "skipped", &new),
        pass(11, "membership", "skipped", &old),
        pass(12, "membership", "complete", &new),
        pass(13, "membership", "complete", &new),
        pass(14, "organization", "braked", &old), // waits for an approval
    ];
    database.execute(&passes.concat()).await;
    database
        .execute(&format!(
            "insert into clerk_sync.receipts (message_id, body_hash, event_type, outcome, field_errors, received_at) \
               select 'old_' || i, 'x', 'user.updated', 'applied', '{{}}', {old} from generate_series(1, 2500) i; \
             insert into clerk_sync.receipts (message_id, body_hash, event_type, outcome, field_errors, received_at) \
               select 'new_' || i, 'x', 'user.updated', 'applied', '{{}}', {new} from generate_series(1, 10) i; \
             insert into clerk_sync.findings (pass_id, kind, entity_id, drift, fields, cause, repaired_at) \
               select 1, 'user', 'user_' || i, 'missing', '{{}}', 'x', {old} from generate_series(1, 1500) i; \
             insert into clerk_sync.findings (pass_id, kind, entity_id, drift, fields, cause, repaired_at) \
               values (7, 'user', 'user_1', 'missing', '{{}}', 'x', {new}), (8, 'user', 'user_1', 'missing', '{{}}', 'x', {new}); \
             insert into clerk_sync.dead_letters (message_id, body_hash, reason, headers, body, received_at) \
               values ('old', 'x', 'x', '{{}}', '', {old}), ('new', 'x', 'x', '{{}}', '', {new}); \
             insert into clerk_sync.versions (kind, id, state, observed_at) values ('user', 'user_1', 'deleted', 0); \
             insert into clerk_sync.generations values ('org_1', 'user_1', 0, 'orgmem_1'); \
             insert into clerk_sync.pass_watermarks values ('user', 0); \
             insert into clerk_sync.pending_reads (kind, id, reason, requested_at) values ('user', 'user_1', 'stub', {old}); \
             insert into clerk_sync.absentees values (14, 'user_1')"
        ))
        .await;
    let pruned = retention::prune(&database.database(), &Retention::default()).await.unwrap();
    assert_eq!(pruned, Pruned { receipts: 2_500, findings: 1_500, passes: 5, dead_letters: 1 });
    let kept: Vec<Value> = database.rows("select id from clerk_sync.passes order by id").await;
    let kept: Vec<i64> = kept.iter().map(|row| row["id"].as_i64().unwrap()).collect();
    assert_eq!(kept, [3, 6, 7, 8, 9, 10, 12, 13, 14], "7 keeps a finding that is new");
    for (table, rows) in [
        ("receipts", 10),
        ("findings", 2),
        ("dead_letters", 1),
        ("versions", 1),
        ("generations", 1),
        ("pass_watermarks", 1),
        ("pending_reads", 1),
        ("absentees", 1),
    ] {
        assert_eq!(database.count(&format!("clerk_sync.{table}")).await, rows, "{table}");
    }
    let again = retention::prune(&database.database(), &Retention::default()).await.unwrap();
    assert!(again.is_empty(), "{again:?}");

    // By hand, with ages of one's own; forever is forever.
    let ages = ["--retention-receipts", "10d", "--retention-findings", "forever", "--retention-dead-letters", "480h"];
    let (code, told, error) = run(&database, &[&["prune"][..], &ages].concat());
    assert_eq!((code, told.as_str()), (0, "Removed: 10 receipts, 0 findings, 0 passes, 1 dead letters.\n"), "{error}");
    let (code, _, error) = run(&database, &["prune", "--retention-receipts", "soon", "--retention-findings", "0d"]);
    assert!(code == 1 && error.contains("RETENTION_RECEIPTS must be a time"), "{error}");
    assert!(error.contains("RETENTION_FINDINGS is less than an hour"), "all mistakes at once: {error}");
}

#[tokio::test]
async fn a_message_that_comes_again_after_its_receipt_is_gone_changes_nothing() {
    let world = World::new().await;
    let database = &world.database;
    let (first, second) =
        (user("user_1", "Ada", START).to_string(), user("user_1", "Grace", START + 1_000).to_string());
    assert_eq!(send(&world, "msg_one", &first).await, "applied");
    assert_eq!(send(&world, "msg_two", &second).await, "applied");
    let gone = json!({ "object": "event", "type": "user.deleted", "timestamp": START + 1_000, "instance_id": "ins_test",
                       "data": { "id": "user_2", "object": "user", "deleted": true } });
    assert_eq!(send(&world, "msg_three", &user("user_2", "Eve", START).to_string()).await, "applied");
    assert_eq!(send(&world, "msg_four", &gone.to_string()).await, "applied");
    database.execute(&format!("update clerk_sync.receipts set received_at = {}", ago(31))).await;
    // The server's own first round may come in between.
    retention::prune(&database.database(), &Retention::default()).await.unwrap();
    assert_eq!(database.count("clerk_sync.receipts").await, 0);
    let before = database.mirror().await;
    assert_eq!(send(&world, "msg_one", &first).await, "stale", "the version decides, not the receipt");
    assert_eq!(send(&world, "msg_two", &second).await, "unchanged");
    assert_eq!(send(&world, "msg_three", &user("user_2", "Eve", START).to_string()).await, "stale");
    assert_eq!(send(&world, "msg_four", &gone.to_string()).await, "unchanged");
    assert_eq!(database.mirror().await, before);
}

/// A mirror with deleted users and an organization, 100 days ago by its rows, and an application that refers to some.
async fn deleted_long_ago() -> (World, Vec<String>, String) {
    let world = World::new().await;
    let users: Vec<String> = (0..30).map(|_| world.clerk.lock().create_user("Ada", "Example")).collect();
    let living = world.clerk.lock().create_user("Grace", "Example");
    let organization = world.clerk.lock().create_organization("Example Press", &living);
    world.clerk.lock().add_member(&organization, &users[0], "org:member");
    world.clerk.lock().now += 1_000;
    users.iter().for_each(|id| world.clerk.lock().delete_user(id));
    world.clerk.lock().delete_organization(&organization);
    world.deliver().await;
    let database = &world.database;
    let (long_ago, lately) = (ago(100), ago(10));
    database
        .execute(&format!(
            "update clerk.users set deleted_at = {long_ago} where deleted_at is not null; \
             update clerk.organizations set deleted_at = {long_ago} where deleted_at is not null; \
             update clerk.users set deleted_at = {lately} where id = '{recent}'; \
             create table public.documents (id int primary key, owner text references clerk.users); \
             create table public.drafts (id int primary key, author text references clerk.users on delete cascade); \
             create table public.notes (id int primary key, writer text constraint by_writer references clerk.users on delete set null); \
             create table public.invoices (id int primary key, org text references clerk.organizations on delete restrict); \
             create table public.later (id int primary key, owner text references clerk.users deferrable initially deferred); \
             create table public.parts (id int, owner text references clerk.users on delete cascade) partition by range (id); \
             create table public.part_1 partition of public.parts for values from (0) to (10); \
             insert into public.documents values (1, '{held}'), (2, '{living}'); \
             insert into public.drafts values (1, '{cascades}'), (2, '{cascades}'); \
             insert into public.notes values (1, '{nulled}'); \
             insert into public.later values (1, '{deferred}')",
            recent = users[1],
            held = users[2],
            cascades = users[3],
            nulled = users[4],
            deferred = users[5],
        ))
        .await;
    (world, users, organization)
}

#[tokio::test]
async fn a_purge_tells_first_what_would_go_and_which_foreign_keys_would_act() {
    let (world, _, _) = deleted_long_ago().await;
    let database = &world.database;
    let before = (database.mirror().await, database.written().await);
    let (code, told, error) = run(database, &["purge", "--older-than", "90d"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(
        told,
        "Would be removed: 29 users, 1 organizations; add --yes to remove them.\n\
        \x20 public.invoices (org): 0 rows refer to them (invoices_org_fkey, on delete restrict, of clerk.organizations)\n\
        \x20 public.documents (owner): 1 rows refer to them (documents_owner_fkey, on delete no action, of clerk.users)\n\
        \x20 public.drafts (author): 2 rows would be DELETED with them (drafts_author_fkey, on delete cascade, of clerk.users)\n\
        \x20 public.later (owner): 1 rows refer to them (later_owner_fkey, on delete no action, of clerk.users)\n\
        \x20 public.notes (writer): 1 rows would lose the reference (set null) (by_writer, on delete set null, of clerk.users)\n\
        \x20 public.parts (owner): 0 rows would be DELETED with them (parts_owner_fkey, on delete cascade, of clerk.users)\n"
    );
    let (_, json, _) = run(database, &["purge", "--older-than", "90d", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["dry_run"], &json["plan"]["users"], &json["purged"]), (&json!(true), &json!(29), &Value::Null));
    assert_eq!(json["plan"]["foreign_keys"][2]["rows"], 2);
    assert_eq!((database.mirror().await, database.written().await), before, "nothing was written");
    for bad in ["23h", "0d", "forever", "soon"] {
        assert_eq!(run(database, &["purge", "--older-than", bad]).0, 2, "{bad}");
    }
}

#[tokio::test]
async fn a_purge_removes_what_nothing_holds_and_a_late_webhook_stays_stale() {
    let (world, users, organization) = deleted_long_ago().await;
    let database = &world.database;
    let tombstones = "clerk_sync.versions where state = 'deleted'";
    let before = (database.count(tombstones).await, database.count("clerk_sync.generations").await);
    // A row without a tombstone: a late webhook would bring it back.
    database.execute(&format!("insert into clerk.users (id, deleted_at) values ('user_bare', {})", ago(100))).await;
    let (code, told, error) = run(database, &["purge", "--older-than", "90d", "--yes"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(
        told,
        "Removed: 27 users, 1 organizations.\n\
        \x20 1 stay because of documents_owner_fkey of public.documents\n\
        \x20 1 stay because of later_owner_fkey of public.later\n"
    );
    let left = database.rows("select id from clerk.users where deleted_at is not null order by id").await;
    let mut expected = [&users[1], &users[2], &users[5], "user_bare"].map(|id| json!({ "id": id }));
    expected.sort_by_key(|row| row["id"].as_str().unwrap().to_owned());
    assert_eq!(left, expected);
    assert_eq!(database.count("clerk.users where deleted_at is null").await, 1);
    assert_eq!(database.count("clerk.organizations").await, 0);
    assert_eq!(database.count("public.drafts").await, 0);
    assert_eq!(database.rows("select writer from public.notes").await, [json!({ "writer": null })]);
    assert_eq!(database.count("public.documents").await, 2);
    assert_eq!((database.count(tombstones).await, database.count("clerk_sync.generations").await), before);

    // Whatever comes late about them.
    let mirror = database.mirror().await;
    let mut late = user(&users[10], "Back", START + 500);
    late["instance_id"] = json!(world.clerk.lock().instance_id);
    assert_eq!(world.send_body(&late).await, "stale");
    late["timestamp"] = json!(START + 86_400_000);
    assert_eq!(world.send_body(&late).await, "stale");
    let parent = json!({ "object": "event", "type": "organization.updated", "timestamp": START + 500, "instance_id": world.clerk.lock().instance_id,
                         "data": { "id": organization, "object": "organization", "name": "Back", "created_at": START, "updated_at": START } });
    assert_eq!(world.send_body(&parent).await, "stale");
    assert_eq!(database.mirror().await, mirror);
    assert_eq!(
        run(database, &["purge", "--older-than", "90d", "--yes"]).1.lines().next(),
        Some("Removed: 0 users, 0 organizations.")
    );
}

#[tokio::test]
async fn a_row_that_came_back_or_is_held_by_a_trigger_is_not_purged() {
    let (world, users, organization) = deleted_long_ago().await;
    let database = &world.database;
    database.execute(&format!("insert into public.invoices values (1, '{organization}')")).await;
    database
        .execute(
            "create function public.audit() returns trigger language plpgsql as $$ begin insert into audit_log values (old.id); return old; end $$; \
             create table public.audit_log (id int); \
             create trigger audit before delete on public.drafts for each row execute function public.audit()",
        )
        .await;
    let mut session = database.database().connect().await.unwrap();
    let ids = session.purgeable(Kind::User, 90 * DAY, "", 1_000).await.unwrap();
    assert_eq!(ids.len(), 29);
    database.execute(&format!("update clerk.users set deleted_at = null where id = '{}'", users[7])).await;
    let purged = session.purge(Kind::User, &ids, 90 * DAY).await.unwrap();
    assert!(purged.iter().all(|row| row.id != users[7]), "it is not deleted any more");
    let held = purged.iter().find(|row| row.id == users[3]).unwrap();
    assert_eq!(held.held_by.as_deref(), Some("SQLSTATE 42P01"), "a trigger that does not name its schemas");
    assert_eq!(database.count("public.drafts").await, 2);
    let result = purge::purge(&database.database(), DAY).await.unwrap();
    let removed = [(Kind::User, 1), (Kind::Organization, 0)].into();
    assert_eq!(result.rows, removed, "the one that was deleted lately");
    assert_eq!(result.held["invoices_org_fkey of public.invoices"], 1, "restrict");
}

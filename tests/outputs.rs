//! What a person or a script reads of each command, whole: help, reports and JSON, each as a snapshot in `tests/snapshots`.
//!
//! Where a new text is meant: `INSTA_UPDATE=always cargo test --test main outputs::`, and the diff says to a reviewer what changed.

use crate::doctoring::SetUp;
use crate::reconciling::ReconcileWorld;
use crate::support::{Project, World, database};
use clerk_sync::model::Kind;
use serde_json::{Value, json};
use tokio::process::Command;

/// What differs from run to run, and what is shown instead.
const VARYING: &[(&str, &str)] = &[
    (r"\b(user|org|orgmem|ins)_[0-9A-Za-z]{20,}", "${1}_ID"),
    (r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}(:?\d{2})?)?", "TIME"),
    (r"\b1[6-9]\d{11}\b", "MILLISECONDS"),
    (r#"(svix-timestamp"?: "?)\d+"#, "${1}TIME"),
    (r#""seconds": [\de.-]+"#, "\"seconds\": DURATION"),
    (r"\b\d+\.\d s\b", "DURATION"),
    (r"\b\d+ (s|min) ago\b", "DURATION ago"),
    (r"\banother \d+ s\b", "another DURATION"),
    (r"\bv1,[0-9A-Za-z+/]{43}=", "SIGNATURE"),
    (r"\btrace [0-9a-f]{32}\b", "trace TRACE"),
    (r"\bPostgres \d+\b", "Postgres VERSION"),
    (r"\b(migration|generation) \d+ → \d+", "${1} N → M"),
    (r"\b(migration|generation) \d+", "${1} N"),
];

#[track_caller]
fn snapshot(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    VARYING.iter().for_each(|(pattern, shown)| settings.add_filter(pattern, *shown));
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// The program with a database.
fn clerk_sync(database: &Project, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clerk-sync"));
    command.args(arguments).env("DATABASE_URL", database.url()).kill_on_drop(true);
    command
}

/// Runs it: the command line, the exit code, and both outputs.
async fn run(mut command: Command) -> String {
    let arguments: Vec<_> = command.as_std().get_args().map(|argument| argument.to_string_lossy()).collect();
    let line = format!("$ clerk-sync {}", arguments.join(" "));
    let output = command.output().await.unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    let code = output.status.code().unwrap();
    let stderr = if stderr.is_empty() { stderr } else { format!("--- standard error\n{stderr}") };
    format!("{line}\n--- exit code {code}\n{}{stderr}", readable(&stdout))
}

/// JSON with a line for each field, so that a diff is short.
fn readable(text: &str) -> String {
    match serde_json::from_str::<Value>(text) {
        Ok(value @ (Value::Object(_) | Value::Array(_))) => format!("{value:#}\n"),
        _ => text.to_owned(),
    }
}

/// The names in a list of commands: below `Commands:`, or below each group of the program's own help.
fn commands_in(help: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut in_list = false;
    for line in help.lines() {
        if !line.starts_with(' ') && line.ends_with(':') {
            in_list = !matches!(line, "Options:" | "Arguments:");
        } else if in_list && line.starts_with("  ") && !line.starts_with("   ") {
            names.extend(line.split_whitespace().next().map(str::to_owned));
        }
    }
    names.retain(|name| name != "help");
    names
}

#[tokio::test]
async fn help_of_the_program_and_of_every_command() {
    let mut paths = vec![Vec::<String>::new()];
    let mut read = 0;
    while let Some(path) = paths.pop() {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clerk-sync"));
        command.args(&path).arg("--help");
        let text = run(command).await;
        paths.extend(commands_in(&text).into_iter().map(|name| [path.as_slice(), &[name]].concat()));
        snapshot(&[&["help".to_owned()], path.as_slice()].concat().join("-"), &text);
        read += 1;
    }
    assert!(read >= 18, "{read} commands were found");
}

#[tokio::test(flavor = "multi_thread")]
async fn reconcile_of_a_mirror_that_is_empty_then_in_sync() {
    let world = ReconcileWorld::new().await;
    world.clerk.lock().populate(30, 3, 20, 1);
    world.later();
    snapshot("reconcile-first", &run(world.command(&["reconcile"]).await).await);
    world.later();
    snapshot("reconcile-in-sync", &run(world.command(&["reconcile"]).await).await);
    snapshot("reconcile-in-sync-json", &run(world.command(&["reconcile", "--json"]).await).await);
    snapshot("reconcile-quick", &run(world.command(&["reconcile", "--quick"]).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn reconcile_that_finds_drift_and_repairs_it() {
    let world = ReconcileWorld::filled(30, 3, 20, 1).await;
    let (banned, gone, left) = (world.any(Kind::User, 3), world.any(Kind::User, 7), world.any(Kind::Membership, 5));
    world.silently(|clerk| {
        clerk.ban_user(&banned);
        clerk.delete_user(&gone);
        clerk.remove_member(&left);
        clerk.create_user("Ada", "Lovelace");
    });
    world.later();
    snapshot("reconcile-dry-run", &run(world.command(&["reconcile", "--dry-run"]).await).await);
    snapshot("reconcile-dry-run-json", &run(world.command(&["reconcile", "--dry-run", "--json"]).await).await);
    snapshot("reconcile-repaired", &run(world.command(&["reconcile"]).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn reconcile_that_the_deletion_limit_stops() {
    let world = ReconcileWorld::filled(30, 3, 20, 1).await;
    let gone: Vec<String> = world.clerk.lock().users.keys().take(20).map(ToString::to_string).collect();
    world.silently(|clerk| gone.iter().for_each(|id| clerk.delete_user(id)));
    world.later();
    snapshot("reconcile-stopped", &run(world.command(&["reconcile"]).await).await);
    world.later();
    snapshot("reconcile-stopped-json", &run(world.command(&["reconcile", "--json"]).await).await);
}

/// Clerk says nothing of a membership whose organization is gone: memberships alone cannot be compared to the end.
#[tokio::test(flavor = "multi_thread")]
async fn reconcile_that_cannot_end() {
    let world = ReconcileWorld::filled(20, 4, 12, 1).await;
    let gone = world.any(Kind::Organization, 1);
    world.silently(|clerk| clerk.delete_organization(&gone));
    world.later();
    let arguments = ["reconcile", "--kind", "memberships", "--json"];
    snapshot("reconcile-incomplete", &run(world.command(&arguments[..3]).await).await);
    snapshot("reconcile-incomplete-json", &run(world.command(&arguments).await).await);
}

/// A membership that was seen and then ended within five minutes.
#[tokio::test(flavor = "multi_thread")]
async fn reconcile_that_leaves_rows_undecided() {
    let world = ReconcileWorld::filled(30, 3, 30, 1).await;
    world.seen_and_removed().await;
    snapshot("reconcile-undecided", &run(world.command(&["reconcile"]).await).await);
    snapshot("reconcile-undecided-json", &run(world.command(&["reconcile", "--json"]).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_of_what_is_there_and_of_what_is_gone() {
    let world = ReconcileWorld::filled(10, 2, 10, 1).await;
    let user = world.any(Kind::User, 0);
    world.silently(|clerk| clerk.ban_user(&user));
    world.later();
    snapshot("refresh", &run(world.command(&["refresh", &user]).await).await);
    world.silently(|clerk| clerk.delete_user(&user));
    world.later();
    snapshot("refresh-gone", &run(world.command(&["refresh", &user]).await).await);
    snapshot("refresh-no-id", &run(world.command(&["refresh", "ada@example.com"]).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_of_a_good_set_up_and_of_a_bad_one() {
    let set_up = SetUp::good().await;
    let doctor = async |arguments: &[&str], variables: &[(&str, &str)]| {
        let (code, text) = set_up.run(arguments, variables).await;
        format!("--- exit code {code}\n{}", readable(&text))
    };
    snapshot("doctor-good", &doctor(&["--token", &set_up.token(json!({}))], &[]).await);
    snapshot("doctor-good-json", &doctor(&["--json"], &[]).await);
    set_up
        .world
        .database
        .execute(
            "alter table clerk.organization_memberships disable row level security;
             grant select on clerk.users to public;
             create table public.notes (id uuid primary key);
             alter table public.notes enable row level security;
             create policy own on public.notes for select to authenticated using (id = (select auth.uid()))",
        )
        .await;
    let bad = [("CLERK_WEBHOOK_SIGNING_SECRET", "whpk_bm90IGE"), ("CLERK_SECRET_KEY", "pk_live_Y2xlcms")];
    snapshot("doctor-bad", &doctor(&[], &bad).await);
    snapshot("doctor-bad-json", &doctor(&["--json"], &bad).await);
}

#[tokio::test]
async fn policies_printed_and_checked() {
    let database = database().await;
    let policy = async |arguments: &[&str]| run(clerk_sync(&database, &[&["policy"], arguments].concat())).await;
    let table = "create table public.documents (id int primary key, org_id text, author text, kind text);
                 alter table public.documents enable row level security";
    database.execute(table).await;
    let by_organization = ["print", "documents", "--organization-column", "org_id"];
    snapshot("policy-print-organization", &policy(&by_organization).await);
    snapshot("policy-print-user", &policy(&["print", "documents", "--user-column", "author"]).await);
    let narrowing = [&by_organization[..], &["--role", "org:admin", "--for", "delete", "--restrictive"]].concat();
    snapshot("policy-print-restrictive", &policy(&narrowing).await);
    snapshot("policy-print-no-table", &policy(&["print", "nowhere", "--user-column", "author"]).await);
    snapshot("policy-check-good", &policy(&["check"]).await);
    database
        .execute(
            "create policy wide on public.documents for select to authenticated using (kind = 'public');
             create policy slow on public.documents for select to authenticated
                 using (org_id in (select clerk_rls.organization_ids()));
             create policy foreign_id on public.documents for update to authenticated
                 using (author = (select auth.uid())::text);
             create table public.open (author text references clerk.users);
             create unique index one on clerk.user_details (email_address)",
        )
        .await;
    snapshot("policy-check", &policy(&["check"]).await);
    snapshot("policy-check-json", &policy(&["check", "--json"]).await);
}

#[tokio::test]
async fn dead_letters_listed_shown_retried_and_dropped() {
    let world = World::new().await;
    let unusable = "{\"type\":\"user.created\",\"data\":{\"id\":\"\",\"first_name\":\"Ada\"}}";
    for (message_id, body) in [("msg_first", unusable), ("msg_second", "{\"type\":7}"), ("msg_third", "[")] {
        assert_eq!(world.attempt(message_id, body.as_bytes()).await.outcome.as_deref(), Some("dead_letter"));
    }
    let letters =
        async |arguments: &[&str]| run(clerk_sync(&world.database, &[&["dead-letters"], arguments].concat())).await;
    snapshot("dead-letters-list", &letters(&["list"]).await);
    snapshot("dead-letters-list-json", &letters(&["list", "--json"]).await);
    snapshot("dead-letters-show", &letters(&["show", "msg_first"]).await);
    snapshot("dead-letters-show-json", &letters(&["show", "msg_first", "--json"]).await);
    snapshot("dead-letters-show-several", &letters(&["show", "msg_"]).await);
    snapshot("dead-letters-retry", &letters(&["retry", "--all"]).await);
    snapshot("dead-letters-retry-json", &letters(&["retry", "msg_second", "--json"]).await);
    snapshot("dead-letters-drop", &letters(&["drop", "msg_third"]).await);
}

#[tokio::test]
async fn serve_without_what_it_needs() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clerk-sync"));
    command.arg("serve").env_clear().current_dir(std::env::temp_dir());
    snapshot("serve-nothing-set", &run(command).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_prune_and_purge() {
    let world = ReconcileWorld::filled(10, 2, 10, 1).await;
    let (user, other, organization) =
        (world.any(Kind::User, 1), world.any(Kind::User, 2), world.any(Kind::Organization, 1));
    world.silently(|clerk| {
        clerk.delete_user(&user);
        clerk.delete_user(&other);
        clerk.delete_organization(&organization);
    });
    world.run_approved().await;
    let sql = format!(
        "update clerk.users set deleted_at = now() - interval '90 days' where deleted_at is not null;
         update clerk.organizations set deleted_at = now() - interval '90 days' where deleted_at is not null;
         create table public.notes (author text references clerk.users);
         insert into public.notes values ('{user}');
         insert into clerk_sync.dead_letters (message_id, body_hash, reason, headers, body, received_at)
         values ('msg_old', 'hash', 'not a JSON object', '{{}}', '[', now() - interval '1 year')"
    );
    world.database.execute(&sql).await;
    let run = async |arguments: &[&str]| run(clerk_sync(&world.database, arguments)).await;
    snapshot("migrate", &run(&["migrate"]).await);
    world.database.execute("update clerk_sync.replayed set generation = generation - 1").await;
    snapshot("migrate-upgraded", &run(&["migrate"]).await);
    world.database.execute("update clerk_sync.replayed set generation = generation + 1").await;
    snapshot("migrate-by-an-older-release", &run(&["migrate"]).await);
    snapshot("prune", &run(&["prune"]).await);
    snapshot("prune-json", &run(&["prune", "--json"]).await);
    snapshot("purge", &run(&["purge", "--older-than", "30d"]).await);
    snapshot("purge-json", &run(&["purge", "--older-than", "30d", "--json"]).await);
    snapshot("purge-done", &run(&["purge", "--older-than", "30d", "--yes"]).await);
}

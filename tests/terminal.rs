//! What other people have written, in every place that a command prints: a terminal gets nothing of it that it would obey.

use crate::support::{SECRET, START, database};
use std::process::Output;
use testkit::World;
use testkit::clerk::Clerk;

/// Clears the screen, ends a line, goes back to its beginning, sets a colour the short way, and turns the direction round.
const HOSTILE: &str = "x\u{1b}[2J\u{7}\r\nok    forged: all is well\u{9b}31m\u{7f}\u{202e}y";

/// Runs a command and checks both of its outputs.
async fn run(world: &World, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_clerk-sync"));
    command
        .args(arguments)
        .env("DATABASE_URL", world.database.url())
        .envs(world.api_environment())
        .env("CLERK_RATE_SHARE", "off")
        .env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET)
        .env("RUST_LOG", "debug")
        .envs(variables.iter().copied())
        .kill_on_drop(true);
    let Output { stdout, stderr, .. } = command.output().await.unwrap();
    let text = [stdout, stderr].map(|output| String::from_utf8(output).expect("UTF-8")).concat();
    let obeyed =
        text.chars().find(|c| (c.is_control() && !matches!(c, '\n' | '\t')) || ('\u{202a}'..='\u{202e}').contains(c));
    assert_eq!(obeyed, None, "{arguments:?} printed {text:?}");
    // JSON and SQL are read by programs; a person reads lines, and no line may be made up.
    assert!(!text.lines().any(|line| line.starts_with("ok    forged")), "{arguments:?} printed {text:?}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_prints_what_a_terminal_would_obey_whoever_wrote_it() {
    let mut clerk = Clerk::new(5, START);
    clerk.populate(3, 1, 2, 1);
    let world = World::builder().clerk(clerk).start().await.unwrap();
    world.set_clock().await;
    let run = async |arguments: &[&str], variables: &[(&str, &str)]| run(&world, arguments, variables).await;
    // A passage of the hostile text must be there, or the command did not print it at all.
    let told = |text: &str| assert!(text.contains("forged: all is well"), "{text}");

    run(&["reconcile"], &[]).await;
    let sql = format!(
        "create table public.\"{HOSTILE}\" (id int, user_id text references clerk.users, org_id text);
         alter table public.\"{HOSTILE}\" enable row level security;
         create policy \"{HOSTILE}\" on public.\"{HOSTILE}\" for select using (org_id = (auth.jwt() ->> 'org_id'));
         insert into clerk_sync.dead_letters (message_id, body_hash, event_type, reason, headers, body)
         values ('msg_hostile', 'hash1', 'type{HOSTILE}', 'reason{HOSTILE}', jsonb_build_object('svix-id', '{HOSTILE}'),
                 convert_to('{HOSTILE}', 'UTF8')),
                ('msg_hostile', 'hash2', 'type{HOSTILE}', 'reason{HOSTILE}', '{{}}', '')"
    );
    world.database.execute(&sql).await;
    told(&run(&["policy", "check"], &[]).await);
    told(&run(&["policy", "check", "--json"], &[]).await);
    told(&run(&["policy", "check", HOSTILE], &[]).await);
    told(&run(&["policy", "print", HOSTILE, "--user-column", "user_id"], &[]).await);
    told(&run(&["doctor"], &[]).await);
    told(&run(&["doctor", "--json"], &[]).await);
    told(&run(&["dead-letters", "list"], &[]).await);
    told(&run(&["dead-letters", "list", "--json"], &[]).await);
    told(&run(&["dead-letters", "show", "hash1", "--json"], &[]).await);
    told(&run(&["dead-letters", "show", "msg_hostile"], &[]).await);
    told(&run(&["dead-letters", "show", HOSTILE], &[]).await);
    told(&run(&["purge", "--older-than", "2d"], &[]).await);
    told(&run(&["refresh", &format!("user_{HOSTILE}")], &[]).await);
    told(&run(&["refresh", HOSTILE], &[("CLERK_INSTANCE_ID", HOSTILE)]).await);
    let help = run(&["serve", "--help"], &[("LISTEN_ADDR", HOSTILE), ("CLERK_INSTANCE_ID", "sk_live_misplaced")]).await;
    assert!(help.contains("LISTEN_ADDR") && !help.contains("forged") && !help.contains("misplaced"), "{help}");
    told(&run(&[HOSTILE], &[]).await);
    world.clerk.lock().instance_id = format!("ins_{HOSTILE}");
    told(&run(&["reconcile"], &[]).await);
    told(&run(&["reconcile", "--json"], &[]).await);
    told(&run(&["doctor"], &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_the_beginning_alone_breaks_nothing() {
    let database = database().await;
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_clerk-sync"))
        .args(["migrate", "--print"])
        .env("DATABASE_URL", database.url())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

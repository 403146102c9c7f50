//! What somebody meets in the first hour, in the order in which it comes: starting without a secret, filling, looking, mistyping, and
//! finding out what is wrong. Each test is a thing that once misled a newcomer.

use crate::operating::ServeProcess;
use crate::reconciling::ReconcileWorld;
use crate::support::{SECRET, database};
use clerk_sync::clerk::client::{Client, Options};
use clerk_sync::model::{Kind, PassState};
use clerk_sync::sender::Sender;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use testkit::clerk::{Clerk, Fault, Rule};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// The exit code, standard output and standard error.
async fn run(mut command: Command) -> (i32, String, String) {
    let output = command.output().await.unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.code().unwrap(), stdout, stderr)
}

fn clerk_sync(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clerk-sync"));
    command.args(arguments).kill_on_drop(true);
    command
}

/// The secret is made with the endpoint, which needs a URL, which needs the running service.
#[tokio::test(flavor = "multi_thread")]
async fn serve_without_a_signing_secret_runs_and_answers_each_webhook_with_the_reason() {
    let mut clerk = Clerk::new(5, clerk_sync::clock::now().get() - 600_000);
    clerk.populate(5, 1, 4, 1);
    let key = clerk.secret_key.clone();
    let world = testkit::World::builder().clerk(clerk).start().await.unwrap();
    world.set_clock().await;
    let environment = [
        ("CLERK_WEBHOOK_SIGNING_SECRET", ""),
        ("CLERK_SECRET_KEY", key.as_str()),
        ("CLERK_API_URL", world.api.url.as_str()),
    ];
    let program = ServeProcess::start(&world.database, &environment).await;
    let attempt = program.sender().send("msg_1", b"{}").await.unwrap();
    assert_eq!((attempt.status, attempt.outcome.as_deref()), (503, Some("no_signing_secret")), "{attempt:?}");
    let ready = reqwest::get(format!("{}/readyz", program.url)).await.unwrap();
    assert_eq!(ready.status(), 503);
    let ready = ready.text().await.unwrap();
    assert!(
        ready.contains("no_signing_secret") && ready.contains("CLERK_WEBHOOK_SIGNING_SECRET is not set"),
        "{ready}"
    );
    // Everything else runs.
    let filled = async || world.database.count("clerk_sync.pass_watermarks").await == 3;
    while !filled().await {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.equals_source().await;
    assert_eq!(world.database.count("clerk_sync.receipts").await, 0);
    let (_, page) = program.get("/").await;
    assert!(page.replace("<wbr>", "").contains("<h1>CLERK_WEBHOOK_SIGNING_SECRET is not set</h1>"), "{page}");
    let said = program.stop().await;
    assert!(said.contains("CLERK_WEBHOOK_SIGNING_SECRET is not set"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_before_the_first_webhook_names_the_url_and_the_events_and_a_missing_key() {
    let database = database().await;
    let program = ServeProcess::start(&database, &[("FLY_APP_NAME", "acme-sync")]).await;
    let (_, page) = program.get("/").await;
    for part in [
        "<h1>Waiting for the first webhook</h1>",
        "https://acme-sync.fly.dev/webhooks/clerk",
        "organizationMembership.*",
        "CLERK_SECRET_KEY is not set: reconcile is disabled",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_start_has_no_lines_of_libraries() {
    let database = database().await;
    let mut child = clerk_sync(&["serve"])
        .env("DATABASE_URL", database.url())
        .env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET)
        .env("CLERK_SECRET_KEY", "sk_test_x")
        .env("CLERK_API_URL", "http://127.0.0.1:9")
        .env("LISTEN_ADDR", "127.0.0.1:0")
        .env("OPS_ADDR", "127.0.0.1:0")
        .env("LOG_FORMAT", "json")
        .env_remove("RUST_LOG")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    // The schedule has started by the time that something is asked of the database.
    while !said.iter().any(|line: &String| line.contains("can be written to")) {
        said.push(lines.next_line().await.unwrap().expect("it runs"));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    child.kill().await.unwrap();
    while let Some(line) = lines.next_line().await.unwrap() {
        said.push(line);
    }
    let noise = ["Uninited", "Job creator", "Simple"];
    assert!(!said.iter().any(|line| noise.iter().any(|word| line.contains(word))), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_fill_says_what_it_adds_before_and_after() {
    let world = ReconcileWorld::new().await;
    world.clerk.lock().populate(30, 3, 20, 1);
    world.later();
    let (code, text, _) = run(world.command(&["reconcile", "--dry-run"]).await).await;
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("would be filled: 30 at Clerk, 30 would be added") && !text.contains("in sync"), "{text}");
    assert_eq!(world.database.count("clerk.users").await, 0);
    let (code, text, _) = run(world.command(&["reconcile", "--json"]).await).await;
    assert_eq!(code, 0, "{text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    let passes: Vec<_> = json["passes"].as_array().unwrap().iter().map(|pass| pass["added"].clone()).collect();
    assert_eq!(passes, [json!(30), json!(3), json!(20)]);
    world.later();
    let (code, text, _) = run(world.command(&["reconcile", "--dry-run"]).await).await;
    assert_eq!((code, text.matches(" in sync: ").count()), (0, 3), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deletion_limit_shows_what_it_holds_back_and_which_approval_works() {
    let world = ReconcileWorld::filled(12, 3, 12, 1).await;
    let gone: Vec<String> = (0..9).map(|n| world.any(Kind::Membership, n)).collect();
    world.silently(|clerk| gone.iter().for_each(|id| clerk.remove_member(id)));
    world.later();
    let arguments = ["reconcile", "--kind", "membership"];
    let dry_run = [&arguments[..], &["--dry-run"]].concat();
    let (code, text, _) = run(world.command(&dry_run).await).await;
    assert_eq!(code, 3, "{text}");
    assert!(gone.iter().all(|id| text.contains(&format!("held back {id}"))) && !text.contains("--approve"), "{text}");
    let (code, text, _) = run(world.command(&arguments).await).await;
    assert_eq!(code, 3, "{text}");
    let approval = text.lines().find_map(|line| Some(line.split_once("clerk-sync ")?.1.to_owned())).expect("a command");
    assert!(gone.iter().all(|id| text.contains(id)) && approval.contains("--approve"), "{text}");
    // The dry run offers the pass that waits; JSON and page name the rows, too.
    let (_, text, _) = run(world.command(&[&dry_run[..], &["--json"]].concat()).await).await;
    let json: Value = serde_json::from_str(&text).unwrap();
    let stopped = &json["passes"][0];
    assert_eq!(stopped["approve"], format!("clerk-sync {approval}"));
    assert_eq!(stopped["candidates"].as_array().unwrap().len(), 9);
    let status = world.database.database().status().await.unwrap();
    let mut shown: Vec<&str> = status.candidates.iter().map(|row| row.entity_id.as_str()).collect();
    let mut expected: Vec<&str> = gone.iter().map(String::as_str).collect();
    shown.sort_unstable();
    expected.sort_unstable();
    assert_eq!(shown, expected);
    let program = ServeProcess::start(&world.database, &[]).await;
    let (_, page) = program.get("/").await;
    assert!(
        page.contains("<h1>Deletions wait for your approval</h1>") && gone.iter().all(|id| page.contains(id)),
        "{page}"
    );
    assert_eq!(page.matches("--approve").count(), 1, "{page}");
    program.stop().await;
    let approval: Vec<&str> = approval.split(' ').collect();
    assert_eq!(run(world.command(&approval).await).await.0, 0);
    world.equals_source().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_of_an_id_that_neither_side_knows_writes_nothing_and_fails() {
    let world = ReconcileWorld::filled(5, 1, 4, 1).await;
    let before = world.database.written().await;
    for id in ["user_zzz", "org_zzz", "orgmem_zzz"] {
        let (code, text, error) = run(world.command(&["refresh", id]).await).await;
        assert!(code == 1 && text.is_empty() && error.contains(id), "{text}{error}");
    }
    assert!(before == world.database.written().await);
    let user = world.any(Kind::User, 1);
    let (code, text, _) = run(world.command(&["refresh", &user]).await).await;
    assert!(code == 0 && text.starts_with(&format!("{user}  in sync\n")), "{text}");
    world.silently(|clerk| clerk.ban_user(&user));
    world.later();
    let (code, text, _) = run(world.command(&["refresh", &user, "--json"]).await).await;
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &json[0]["id"], &json[0]["kind"]), (0, &json!(user), &json!("user")));
    assert_eq!((&json[0]["outcome"], &json[0]["differed"]), (&json!("applied"), &json!(true)));
    // What was here and is gone at Clerk is known: it ends.
    world.silently(|clerk| clerk.delete_user(&user));
    world.later();
    let (code, text, _) = run(world.command(&["refresh", &user]).await).await;
    assert!(code == 0 && text.starts_with(&format!("{user}  applied")), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_is_spelled_alike_in_options_text_and_json() {
    let world = ReconcileWorld::filled(3, 1, 2, 1).await;
    for spelled in ["membership", "memberships"] {
        let (code, text, _) = run(world.command(&["reconcile", "--kind", spelled]).await).await;
        assert!(code == 0 && text.starts_with("membership "), "{text}");
        let (_, text, _) = run(world.command(&["reconcile", "--kind", spelled, "--json"]).await).await;
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["passes"][0]["scope"], "membership");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_somebody_deleted_by_hand_is_not_blamed_on_a_webhook() {
    let world = ReconcileWorld::filled(5, 1, 4, 1).await;
    let (deleted, changed) = (world.any(Kind::Membership, 2), world.any(Kind::User, 4));
    let sql = format!(
        "delete from clerk.organization_memberships where id = '{deleted}';
         update clerk.users set first_name = 'Somebody' where id = '{changed}'"
    );
    world.database.execute(&sql).await;
    world.later();
    let reports = world.complete().await;
    let causes: Vec<(&str, &str)> = reports
        .iter()
        .flat_map(|report| &report.findings)
        .map(|finding| (finding.entity_id.as_str(), finding.cause))
        .collect();
    let by_hand = [
        (changed.as_str(), "the row was changed in the database by hand"),
        (deleted.as_str(), "the row was deleted in the database by hand"),
    ];
    assert_eq!(causes, by_hand);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_fails_on_tables_that_were_never_filled_and_puts_failures_first() {
    let world = ReconcileWorld::new().await;
    world.clerk.lock().populate(30, 3, 20, 1);
    let doctor = async |variables: &[(&str, &str)]| {
        let mut command = world.command(&["doctor"]).await;
        command.env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET).envs(variables.iter().copied());
        run(command).await
    };
    let (code, text, _) = doctor(&[]).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.starts_with("FAIL  ") && text.contains("FAIL  rows: users: 0 here, 30 at Clerk"), "{text}");
    assert!(text.contains("warn  webhooks: none has ever arrived"), "{text}");
    world.later();
    world.complete().await;
    let (_, text, _) = doctor(&[]).await;
    assert!(!text.contains("FAIL  rows") && text.contains("ok    rows: users: 30 here and at Clerk"), "{text}");
    // Without a database most checks are skipped: in a line for each reason, behind everything else.
    let (code, text, _) = doctor(&[("DATABASE_URL", "")]).await;
    let words: Vec<&str> =
        text.lines().filter(|line| !line.starts_with(' ')).filter_map(|line| line.get(..4)).collect();
    let order: Vec<usize> =
        words.iter().filter_map(|word| ["FAIL", "warn", "ok  ", "skip"].iter().position(|of| of == word)).collect();
    assert!(code == 1 && order.is_sorted() && order.first() == Some(&0), "{text}");
    let skips: Vec<&str> = text.lines().filter(|line| line.starts_with("skip")).collect();
    assert!(skips.len() <= 3 && skips.iter().any(|line| line.matches(", ").count() > 5), "{text}");
}

#[tokio::test]
async fn doctor_is_coloured_where_that_is_wanted_and_nowhere_else() {
    let doctor = async |variables: &[(&str, &str)]| {
        let mut command = clerk_sync(&["doctor"]);
        command.env_clear().envs(variables.iter().copied());
        run(command).await.1
    };
    assert!(!doctor(&[]).await.contains('\u{1b}'), "it is piped");
    assert!(doctor(&[("CLICOLOR_FORCE", "1")]).await.starts_with("\u{1b}[1;31mFAIL\u{1b}[0m  DATABASE_URL: "));
    assert!(!doctor(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]).await.contains('\u{1b}'));
}

/// The first line of standard error, long before the command gives up.
async fn first_complaint(mut command: Command) -> String {
    let mut child = command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().expect("a line");
    assert!(child.try_wait().unwrap().is_none(), "it ended instead: {line}");
    child.kill().await.unwrap();
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_cannot_be_reached_hangs_or_answers_nonsense_is_reported_while_it_is_tried_again() {
    let world = ReconcileWorld::new().await;
    let command = async |arguments: &[&str], url: &str| {
        let mut command = world.command(arguments).await;
        command.env("CLERK_API_URL", url);
        command
    };
    let line = first_complaint(command(&["reconcile"], "http://127.0.0.1:9").await).await;
    assert!(line.contains("no connection") && line.contains("retrying for"), "{line}");
    for (fault, says) in [(Fault::Hang, "has not answered yet"), (Fault::WrongJson, "unexpected response from Clerk")] {
        world.clerk.add_fault(Rule::on("*", fault));
        let line = first_complaint(command(&["refresh", "user_1"], &world.api.url).await).await;
        assert!(line.contains(says) && line.contains("retrying for"), "{line}");
        world.clerk.clear_faults();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_given_up_when_the_patience_of_a_person_ends_and_reported_once() {
    static REPORTED: AtomicUsize = AtomicUsize::new(0);
    let world = ReconcileWorld::new().await;
    let options = Options {
        give_up_after: Duration::from_secs(1),
        patience: Duration::from_secs(3_600),
        on_trouble: Some(|_, _| {
            REPORTED.fetch_add(1, Ordering::Relaxed);
        }),
        ..world.api_options()
    };
    let client = Client::new(options).unwrap();
    world.clerk.add_fault(Rule::on("*", Fault::Status(500)));
    let error = client.instance().await.unwrap_err().to_string();
    assert!(error.contains("500"), "{error}");
    assert_eq!(REPORTED.load(Ordering::Relaxed), 1);
}

/// A wrong clock does not mend itself within minutes.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_is_reported_after_a_few_tries() {
    let world = ReconcileWorld::filled(3, 1, 2, 1).await;
    let command = world.command(&["reconcile"]).await;
    let calls = world.clerk.requests().len();
    world.clerk.lock().now += 3_600_000;
    let (code, _, error) = run(command).await;
    assert!(code == 1 && error.contains("ahead of the database's clock"), "{error}");
    assert_eq!(world.clerk.requests().len() - calls, 3, "{error}");
}

#[tokio::test]
async fn private_metadata_is_cut_out_of_dead_letters_and_their_hash_stays() {
    let world = crate::support::World::new().await;
    let body =
        r#"{"type":"user.created","data":{"id":"","private_metadata":{"note":"PRIVATE-CANARY"},"first_name":"Ada"}}"#;
    assert_eq!(world.attempt("msg_1", body.as_bytes()).await.outcome.as_deref(), Some("dead_letter"));
    let rows =
        world.database.rows("select convert_from(body, 'UTF8') as body, body_hash from clerk_sync.dead_letters").await;
    let kept = rows[0]["body"].as_str().unwrap();
    assert_eq!(kept, body.replace(r#"{"note":"PRIVATE-CANARY"}"#, "null"));
    use sha2::{Digest as _, Sha256};
    assert_eq!(rows[0]["body_hash"], clerk_sync::model::hex(&Sha256::digest(body)));
    // So a repetition is known for one.
    assert_eq!(world.attempt("msg_1", body.as_bytes()).await.outcome.as_deref(), Some("dead_letter"));
    assert_eq!(world.database.count("clerk_sync.dead_letters").await, 1);
    // What is no JSON cannot be cut, and is kept as it came.
    assert_eq!(world.attempt("msg_2", b"{\"private_metadata\": 1").await.outcome.as_deref(), Some("dead_letter"));
}

#[tokio::test]
async fn the_version_says_what_was_built() {
    let (code, text, _) = run(clerk_sync(&["--version"])).await;
    let expected = concat!("clerk-sync ", env!("CARGO_PKG_VERSION"), " (");
    assert!(code == 0 && text.starts_with(expected) && text.trim_end().ends_with(')'), "{text}");
}

#[tokio::test]
async fn completions_are_written_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, text, _) = run(clerk_sync(&["completions", shell])).await;
        assert!(code == 0 && text.contains("dead-letters") && text.contains("dry-run"), "{shell}: {text:.300}");
    }
    assert_eq!(run(clerk_sync(&["completions", "tcsh"])).await.0, 2);
}

/// Each command is in a group, or nobody finds it.
#[tokio::test]
async fn help_lists_each_command_once_in_a_group_of_those_who_need_it() {
    let (_, text, _) = run(clerk_sync(&["--help"])).await;
    for heading in ["Set up:", "Run:", "Operate:", "Try and develop:"] {
        assert!(text.lines().any(|line| line == heading), "{heading}: {text}");
    }
    assert!(!text.contains("Other:"), "a command is in no group: {text}");
    for command in
        ["serve", "migrate", "reconcile", "refresh", "doctor", "dead-letters", "policy", "replay", "completions"]
    {
        let lines = text.lines().filter(|line| line.split_whitespace().next() == Some(command)).count();
        assert_eq!(lines, 1, "{command}: {text}");
    }
}

#[tokio::test]
async fn replay_says_why_nothing_answered_and_does_not_call_dead_letters_a_success() {
    let folder = std::env::temp_dir().join(testkit::project::unique("replay"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("unusable.json"), r#"{"type":"user.created","data":{"id":""}}"#).unwrap();
    let path = folder.to_str().unwrap();
    let replay = async |url: &str| {
        let mut command = clerk_sync(&["replay", path, "--url", url]);
        command.env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET);
        run(command).await
    };
    let nobody = "http://127.0.0.1:9/webhooks/clerk";
    let (code, text, error) = replay(nobody).await;
    assert!(code == 1 && text.contains("no answer"), "{text}");
    assert!(error.contains(nobody) && error.contains("refused"), "{error}");
    let world = crate::support::World::new().await;
    let (code, text, error) = replay(&world.server.webhook_url()).await;
    assert!(
        code == 1 && text.contains("dead_letter") && error.contains("clerk-sync dead-letters list"),
        "{text}{error}"
    );
    std::fs::remove_dir_all(folder).unwrap();
}

/// In the folder of `serve`, with its `.env`, nobody has to say where it listens.
#[tokio::test]
async fn replay_sends_to_where_serve_listens() {
    let world = crate::support::World::new().await;
    let folder = std::env::temp_dir().join(testkit::project::unique("replay_here"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("ignored.json"), r#"{"type":"session.created","data":{"id":"sess_1"}}"#).unwrap();
    let replay = async |variables: &[(&str, &str)]| {
        let mut command = clerk_sync(&["replay", "ignored.json"]);
        command.env_clear().current_dir(&folder).env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET);
        command.envs(variables.iter().copied());
        run(command).await
    };
    let url = world.server.webhook_url();
    let address = url.trim_start_matches("http://").trim_end_matches("/webhooks/clerk");
    let port = address.rsplit(':').next().unwrap();
    let everywhere = format!("0.0.0.0:{port}");
    for variables in [[("LISTEN_ADDR", address)], [("LISTEN_ADDR", everywhere.as_str())], [("PORT", port)]] {
        let (code, text, error) = replay(&variables).await;
        assert!(code == 0 && text.contains("204"), "{variables:?}: {text}{error}");
    }
    let (code, _, error) = replay(&[("PORT", port), ("LISTEN_ADDR", "127.0.0.1:1")]).await;
    assert!(code == 1 && error.contains("no answer from http://127.0.0.1:1/webhooks/clerk"), "{error}");
    let (code, _, error) = replay(&[("LISTEN_ADDR", "somewhere")]).await;
    assert!(code == 1 && error.contains("LISTEN_ADDR must be an address"), "{error}");
    let (code, _, error) = replay(&[("LISTEN_ADDR", "127.0.0.1:0")]).await;
    assert!(code == 1 && error.contains("--url"), "{error}");
    // What is refused for one reason is explained.
    let (code, _, error) = replay(&[("PORT", port), ("CLERK_WEBHOOK_SIGNING_SECRET", "")]).await;
    assert!(code == 1 && error.contains("CLERK_WEBHOOK_SIGNING_SECRET is not set"), "{error}");
    let other = "whsec_b3RoZXIgc2VjcmV0IG9mIHRoaXMgdGVzdA==";
    let (code, _, error) = replay(&[("PORT", port), ("CLERK_WEBHOOK_SIGNING_SECRET", other)]).await;
    assert!(code == 1 && error.contains("another signing secret"), "{error}");
    // The first webhook decides whose the tables are.
    let of = |instance: &str| {
        let text = json!({"type": "user.deleted", "data": {"id": "user_1"}, "instance_id": instance, "timestamp": 1_700_000_000_000_i64});
        std::fs::write(folder.join("ignored.json"), text.to_string()).unwrap();
    };
    of("ins_of_the_tables");
    assert_eq!(replay(&[("PORT", port)]).await.0, 0);
    of("ins_of_the_file");
    let (code, text, error) = replay(&[("PORT", port)]).await;
    assert!(code == 1 && text.contains("foreign_instance") && error.contains("change instance_id"), "{text}{error}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn without_dead_letters_a_sentence_says_so_and_json_is_an_empty_array() {
    let database = database().await;
    let dead_letters = async |arguments: &[&str]| {
        let mut command = clerk_sync(&[&["dead-letters"], arguments].concat());
        command.env("DATABASE_URL", database.url());
        run(command).await
    };
    for command in [["list"].as_slice(), &["retry", "--all"]] {
        let (code, text, error) = dead_letters(command).await;
        assert_eq!((code, text.as_str(), error.as_str()), (0, "", "There are no dead letters.\n"), "{command:?}");
        let (code, text, error) = dead_letters(&[command, &["--json"]].concat()).await;
        assert_eq!((code, text.trim(), error.as_str()), (0, "[]", ""), "{command:?}");
    }
}

/// What a variable sets need not be typed, so the usage beside a mistake does not list it.
#[tokio::test]
async fn the_usage_beside_a_mistake_lists_no_option_that_a_variable_sets() {
    let mut command = clerk_sync(&["purge"]);
    command.env("DATABASE_URL", "postgres://postgres@127.0.0.1:1/none");
    let (code, _, error) = run(command).await;
    assert!(code == 2 && error.contains("Usage: clerk-sync purge [OPTIONS] --older-than <AGE>\n"), "{error}");
}

#[tokio::test]
async fn dead_letters_retry_without_an_id_names_all() {
    let (code, _, error) = run(clerk_sync(&["dead-letters", "retry"])).await;
    assert!(code == 2 && error.contains("--all"), "{error}");
}

/// Who reads the report alone, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_of_a_stopped_reconcile_names_rows_and_approval() {
    let world = ReconcileWorld::filled(20, 2, 10, 1).await;
    let gone: Vec<String> = (0..12).map(|n| world.any(Kind::User, n)).collect();
    world.silently(|clerk| gone.iter().for_each(|id| clerk.delete_user(id)));
    world.later();
    let reports = world.run().await.unwrap();
    let users = &reports[0];
    assert_eq!((users.state, users.candidates.len(), users.extra), (PassState::Braked, 12, 0));
    assert!(users.candidates.iter().all(|finding| gone.contains(&finding.entity_id)));
    assert!(users.approve.as_ref().unwrap().contains(&users.pass.unwrap().to_string()));
}

/// A webhook of a person who is not there yet, sent by hand.
#[tokio::test]
async fn an_endpoint_with_a_secret_still_refuses_what_it_did_not_sign() {
    let world = crate::support::World::new().await;
    let other = Sender::new(world.server.webhook_url(), "whsec_b3RoZXIgc2VjcmV0IG9mIHRoaXMgdGVzdA==").unwrap();
    assert_eq!(other.send("msg_1", b"{}").await.unwrap().status, 400);
}

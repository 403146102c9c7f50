//! `clerk-sync init`: from an empty folder to rows that a policy of the application decides about.

use crate::refusals::refusing;
use crate::support::npm::{self, Packed, temporary};
use crate::support::{People, SECRET};
use clerk_sync::sender::Sender;
use sqlx::Connection as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use testkit::World;
use testkit::clerk::Event;
use testkit::worker::{Options, Worker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A Clerk of today with people in it, the webhooks that it sent, and a database that nobody has touched.
async fn world() -> (World, Vec<Event>, People) {
    let people = People::now();
    let events = people.events.clone();
    let again = People::now();
    let world = World::builder().clerk(people.clerk).without_mirror().start().await.unwrap();
    (world, events, again)
}

/// All that `init` asks for, as variables.
fn variables(world: &World) -> Vec<(&'static str, String)> {
    let mut variables: Vec<_> = world.api_environment().into();
    variables.push(("DATABASE_URL", world.database.url()));
    variables.push(("CLERK_WEBHOOK_SIGNING_SECRET", SECRET.to_owned()));
    variables.push(("CLERK_RATE_SHARE", "off".to_owned()));
    variables.push(("LISTEN_ADDR", "127.0.0.1:0".to_owned()));
    variables
}

fn init(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clerk-sync"));
    command.arg("init").env_clear().current_dir(folder);
    command
}

/// Reads what it says until it waits for a webhook: all of it, and the endpoint's URL.
fn until_it_waits(output: &mut impl std::io::BufRead) -> (String, String) {
    let mut said = String::new();
    loop {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "it ended: {said}");
        said += &line;
        if let Some((_, rest)) = line.split_once("Waiting for the first webhook on ") {
            let address = rest.split(". ").next().unwrap();
            return (said, format!("http://{address}/webhooks/clerk"));
        }
    }
}

/// The rest of what it says, and its exit code.
fn finish(mut child: Child, mut output: impl std::io::Read) -> (Option<i32>, String) {
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    (child.wait().unwrap().code(), rest)
}

/// The folder's `.env`, which nobody else may read.
fn dotenv(folder: &Path) -> String {
    let file = folder.join(".env");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::read_to_string(file).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_an_empty_folder_to_rows_that_a_printed_policy_decides_about() {
    let Some(packed) = Packed::get() else { return };
    let folder = packed.installed();
    let (world, events, people) = world().await;
    let began = Instant::now();
    let mut command = folder.npx(&["init", "--yes", "--url", "https://sync.example.com/"]);
    let mut child = command.envs(variables(&world)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let (mut said, url) = until_it_waits(&mut output);
    let sent = Sender::new(url, SECRET).unwrap().send(&events[0].message_id, events[0].body.as_bytes()).await.unwrap();
    assert_eq!(sent.status, 204);
    let waited = began.elapsed();
    let (code, rest) = tokio::task::spawn_blocking(move || finish(child, output)).await.unwrap();
    said += &rest;
    assert_eq!(code, Some(0), "{said}");
    for part in [
        "https://dashboard.clerk.com/~/webhooks",
        "Endpoint URL: https://sync.example.com/webhooks/clerk",
        "organizationMembership.*",
        "subscriptionItem.* (with Clerk Billing)",
        "Wrote .env",
        "A webhook came, and its signature is right.",
        "Failed: 0.",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for secret in [SECRET, world.clerk.lock().secret_key.as_str()] {
        assert!(!said.contains(secret), "{said}");
    }
    world.equals_source().await;
    let written = dotenv(&folder.path);
    assert!(written.contains(&format!("CLERK_WEBHOOK_SIGNING_SECRET={SECRET}\n")), "four variables");
    assert_eq!(written.lines().count(), 4);

    // What it says to do next, with nothing but the file that it wrote.
    let policies =
        npm::succeeds(&mut folder.npx(&["policy", "print", "documents", "--organization-column", "organization_id"]));
    world
        .database
        .execute("create table documents (id int primary key, organization_id text not null, title text)")
        .await;
    world.database.execute("grant select, insert, update, delete on documents to authenticated").await;
    world.database.execute(&String::from_utf8(policies.stdout).unwrap()).await;
    world
        .database
        .execute(&format!("insert into documents values (1, '{}', 'ours'), (2, 'org_other', 'theirs')", people.acme))
        .await;
    npm::succeeds(&mut folder.npx(&["doctor"]));
    let mut visible = Vec::new();
    for sub in [people.ada.as_str(), "user_nobody"] {
        let mut owner = world.database.owner().await;
        let mut request = owner.begin().await.unwrap();
        let claims = serde_json::json!({ "role": "authenticated", "sub": sub, "sts": "active" }).to_string();
        sqlx::query("select set_config('request.jwt.claims', $1, true)")
            .bind(claims)
            .execute(&mut *request)
            .await
            .unwrap();
        sqlx::query("set local role authenticated").execute(&mut *request).await.unwrap();
        let ids: Vec<i32> =
            sqlx::query_scalar("select id from documents order by id").fetch_all(&mut *request).await.unwrap();
        visible.push(ids);
    }
    assert_eq!(visible, [vec![1], vec![]]);
    println!("init: first webhook after {waited:?}, rows by a printed policy after {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_env_file_that_exists_is_left_as_it_is() {
    let (world, ..) = world().await;
    let folder = temporary("kept");
    std::fs::write(folder.join(".env"), "# mine\nDATABASE_URL=postgres://nobody@127.0.0.1:1/none\n").unwrap();
    let before = std::fs::read(folder.join(".env")).unwrap();
    let output = init(&folder).args(["--yes", "--wait", "0"]).envs(variables(&world)).output().unwrap();
    let said = npm::text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains(".env exists, and is left as it is."), "{said}");
    assert!(said.contains("does not set CLERK_SECRET_KEY, CLERK_WEBHOOK_SIGNING_SECRET"), "{said}");
    assert_eq!(std::fs::read(folder.join(".env")).unwrap(), before);
    world.equals_source().await;
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_everything_that_is_missing_is_named_at_once_and_nothing_is_written() {
    let (world, ..) = world().await;
    let folder = temporary("missing");
    let output = init(&folder).stdin(Stdio::null()).output().unwrap();
    let said = npm::text(&output);
    assert_eq!(output.status.code(), Some(1));
    for missing in ["DATABASE_URL is not set", "CLERK_SECRET_KEY is not set", "CLERK_WEBHOOK_SIGNING_SECRET is not set"]
    {
        assert!(said.contains(missing), "{missing}: {said}");
    }
    // Where the secret comes from is said before it is missed; a wrong one counts as well.
    for secret in ["", "whsec_c2hvcnQ="] {
        let output = init(&folder).arg("--yes").env("CLERK_WEBHOOK_SIGNING_SECRET", secret).output().unwrap();
        let said = npm::text(&output);
        assert_eq!(output.status.code(), Some(1));
        assert!(said.contains("choose Add Endpoint") && said.contains("CLERK_WEBHOOK_SIGNING_SECRET "), "{said}");
        assert!(said.contains("DATABASE_URL is not set") && !said.contains("c2hv"), "{said}");
    }
    // A key that Clerk refuses, and one of another instance than the tables'.
    let mut wrong = init(&folder);
    wrong.arg("--yes").envs(variables(&world)).env("CLERK_SECRET_KEY", "sk_test_of_nobody");
    let said = npm::text(&wrong.output().unwrap());
    assert!(said.contains("Clerk does not accept CLERK_SECRET_KEY") && !said.contains("of_nobody"), "{said}");
    wrong.envs(variables(&world)).env("CLERK_INSTANCE_ID", "ins_of_another_application");
    let said = npm::text(&wrong.output().unwrap());
    assert!(said.contains("belong to the Clerk instance ins_of_another_application"), "{said}");
    assert!(!folder.join(".env").exists());
    assert!(world.database.rows("select 1 from pg_namespace where nspname = 'clerk_sync'").await.is_empty());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_reached_is_explained_as_doctor_explains_it() {
    let (world, ..) = world().await;
    let folder = temporary("unreachable");
    let (refuses, _) = refusing("28P01", "password authentication failed for user \"postgres\"").await;
    // A server without TLS answers the first message of a client that wants it with one letter.
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = plain.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = plain.accept().await {
            let _ = client.read_exact(&mut [0; 8]).await;
            let _ = client.write_all(b"N").await;
        }
    });
    let no_database = world.database.url().replace(&world.database.name, "postgre");
    for (url, cause, fix) in [
        ("postgres://postgres@127.0.0.1:1/postgres".to_owned(), "the connection is refused", "is the server running"),
        (
            "postgres://postgres:s3cret@db.invalid/postgres?sslmode=require".to_owned(),
            "the host that DATABASE_URL names is not found",
            "copy the connection string again",
        ),
        (
            format!("postgres://postgres:s3cret@{refuses}/postgres?sslmode=disable"),
            "refuses the role or its password",
            "percent-encode",
        ),
        (
            format!("postgres://postgres:s3cret@127.0.0.1:{port}/postgres?sslmode=require"),
            "no encrypted connection that can be trusted",
            "sslrootcert",
        ),
        (no_database, "no such database", "on Supabase its name is postgres"),
    ] {
        let mut command = init(&folder);
        command.args(["--yes", "--wait", "0"]).envs(variables(&world)).env("DATABASE_URL", &url);
        let output = command.output().unwrap();
        let said = npm::text(&output);
        assert_eq!(output.status.code(), Some(1), "{url}: {said}");
        assert!(said.contains("the database cannot be reached: ") && said.contains(cause), "{url}: {said}");
        assert!(said.contains("\n  fix: ") && said.contains(fix) && !said.contains("s3cret"), "{url}: {said}");
        // The other commands say what to do, too.
        let mut command = Command::new(env!("CARGO_BIN_EXE_clerk-sync"));
        command.arg("migrate").env_clear().current_dir(&folder).env("DATABASE_URL", &url);
        let output = command.output().unwrap();
        let said = npm::text(&output);
        assert!(output.status.code() == Some(1) && said.contains(fix), "{url}: {said}");
    }
    assert!(!folder.join(".env").exists());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_webhook_in_time_is_a_failure_that_says_what_to_do() {
    let (world, ..) = world().await;
    let folder = temporary("silent");
    let output = init(&folder).args(["--yes", "--wait", "1"]).envs(variables(&world)).output().unwrap();
    let said = npm::text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No webhook came.") && said.contains("Failed: 0."), "{said}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_another_server_of_the_database_receives_counts_too() {
    let (world, events, _) = world().await;
    let folder = temporary("elsewhere");
    let mut child = init(&folder)
        .args(["--yes", "--wait", "60"])
        .envs(variables(&world))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let (mut said, _) = until_it_waits(&mut output);
    let worker = Worker::start(Options::new(world.database.url()).unwrap()).await.unwrap();
    let sender = Sender::new(worker.webhook_url(), SECRET).unwrap();
    assert_eq!(sender.send(&events[0].message_id, events[0].body.as_bytes()).await.unwrap().status, 204);
    let (code, rest) = tokio::task::spawn_blocking(move || finish(child, output)).await.unwrap();
    said += &rest;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("A webhook came to another server of this database."), "{said}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// `clerk-sync serve` runs there already, in another window.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_in_use_does_not_keep_init_from_waiting() {
    let (world, events, _) = world().await;
    let folder = temporary("in-use");
    let serve = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = serve.local_addr().unwrap().to_string();
    let mut child = init(&folder)
        .args(["--yes", "--wait", "60"])
        .envs(variables(&world))
        .env("LISTEN_ADDR", &address)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains("Waiting for the first webhook at another server") {
        assert!(output.read_line(&mut said).unwrap() > 0, "it ended: {said}");
    }
    let worker = Worker::start(Options::new(world.database.url()).unwrap()).await.unwrap();
    let sender = Sender::new(worker.webhook_url(), SECRET).unwrap();
    assert_eq!(sender.send(&events[0].message_id, events[0].body.as_bytes()).await.unwrap().status, 204);
    let mut error = child.stderr.take().unwrap();
    let (code, rest) = tokio::task::spawn_blocking(move || finish(child, output)).await.unwrap();
    said += &rest;
    error.read_to_string(&mut said).unwrap();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("A webhook came to another server of this database."), "{said}");
    assert!(said.contains(&format!("cannot listen on {address}")) && said.contains("set LISTEN_ADDR"), "{said}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The program on a terminal of its own.
struct Terminal {
    child: Child,
    input: std::process::ChildStdin,
    output: BufReader<std::process::ChildStdout>,
    said: String,
}

impl Terminal {
    /// `None` where there is no `script` of util-linux, which is a failure in CI.
    fn start(command: &Command) -> Option<Terminal> {
        let script =
            [PathBuf::from("/usr/bin/script"), PathBuf::from("/bin/script")].into_iter().find(|file| file.is_file());
        let Some(script) = script.filter(|_| cfg!(target_os = "linux")) else {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "no script(1)");
            println!("SKIPPED: prompts are not tested without script(1) of util-linux");
            return None;
        };
        let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_string_lossy());
        let line: Vec<String> = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect();
        // Whatever it waits for, it does not wait for ever.
        let mut on_terminal = Command::new("timeout");
        on_terminal.arg("300").arg(script);
        on_terminal.args(["-q", "-e", "-c", &line.join(" "), "/dev/null"]).env_clear();
        on_terminal.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        on_terminal.env("SHELL", "/bin/sh").current_dir(command.get_current_dir().unwrap());
        let mut child = on_terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Some(Terminal { child, input, output, said: String::new() })
    }

    /// Types a line once it is asked for.
    fn answer(&mut self, question: &str, answer: &str) {
        let from = self.said.len();
        let mut byte = [0];
        let asks = |said: &str| said.ends_with("not shown): ") || said.ends_with("URL: ");
        while !self.said[from..].contains(question) || !asks(&self.said) {
            assert_eq!(self.output.read(&mut byte).unwrap(), 1, "{question} was not asked: {}", self.said);
            self.said.push(char::from(byte[0]));
        }
        self.input.write_all(format!("{answer}\r").as_bytes()).unwrap();
        self.input.flush().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_it_asks_shows_no_secret_and_asks_again_for_what_is_wrong() {
    let (world, events, _) = world().await;
    let folder = temporary("terminal");
    let mut command = init(&folder);
    let given = variables(&world)
        .into_iter()
        .filter(|(name, _)| !matches!(*name, "DATABASE_URL" | "CLERK_SECRET_KEY" | "CLERK_WEBHOOK_SIGNING_SECRET"));
    command.envs(given).env("TERM", "dumb");
    let Some(mut terminal) = Terminal::start(&command) else { return };
    let (database, key) = (world.database.url(), world.clerk.lock().secret_key.clone());
    let (terminal, url) = tokio::task::spawn_blocking(move || {
        terminal.answer("Database connection string", "postgres://somebody:s3cret@127.0.0.1:1/none");
        terminal.answer("cannot be reached", &database);
        terminal.answer("Clerk secret key", "sk_test_of_nobody");
        terminal.answer("does not accept", &key);
        terminal.answer("URL", "https://sync.example.com");
        terminal.answer("Signing secret", "whsec_c2hvxx\u{7f}\u{7f}cnQ=");
        terminal.answer("is too short", SECRET);
        let (said, url) = until_it_waits(&mut terminal.output);
        terminal.said += &said;
        (terminal, url)
    })
    .await
    .unwrap();
    let sent = Sender::new(url, SECRET).unwrap().send(&events[0].message_id, events[0].body.as_bytes()).await.unwrap();
    assert_eq!(sent.status, 204);
    let (code, said) = tokio::task::spawn_blocking(move || {
        drop(terminal.input);
        let (code, rest) = finish(terminal.child, terminal.output);
        (code, terminal.said + &rest)
    })
    .await
    .unwrap();
    assert_eq!(code, Some(0), "{said}");
    for secret in ["s3cret", "sk_test_of", "c2hv", SECRET, world.clerk.lock().secret_key.as_str()] {
        assert!(!said.contains(secret), "{secret} is shown: {said}");
    }
    assert!(said.contains("https://sync.example.com/webhooks/clerk"), "{said}");
    assert!(dotenv(&folder).contains(SECRET));
    world.equals_source().await;
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_at_a_question_ends_it_and_leaves_the_terminal_as_it_was() {
    let folder = temporary("given-up");
    let mut command = Command::new("/bin/sh");
    let program = env!("CARGO_BIN_EXE_clerk-sync");
    command.args([
        "-c",
        &format!(
            "stty -a | grep -o -- \" -*echo \"; \"{program}\" init; echo code $?; stty -a | grep -o -- \" -*echo \""
        ),
    ]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("TERM", "dumb").current_dir(&folder);
    let Some(mut terminal) = Terminal::start(&command) else { return };
    let said = tokio::task::spawn_blocking(move || {
        terminal.answer("Database connection string", "half an answer\u{3}");
        drop(terminal.input);
        let (_, rest) = finish(terminal.child, terminal.output);
        terminal.said + &rest
    })
    .await
    .unwrap();
    assert!(said.contains("nothing more was set up") && said.contains("code 1"), "{said}");
    let echo: Vec<&str> = said.lines().map(str::trim).filter(|line| line.ends_with("echo")).collect();
    assert_eq!(echo, ["echo", "echo"], "{said}");
    assert!(!folder.join(".env").exists());
    std::fs::remove_dir_all(&folder).unwrap();
}

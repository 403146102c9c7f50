//! What agents are told (`llms.txt`, `skills/`): each command in it is run, and each file that it names is there.

use crate::doctoring::SetUp;
use crate::support::{SECRET, npm};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Command;

const FILES: &[&str] = &["llms.txt", "skills/clerk-sync/SKILL.md"];
const NPX: &str = "npx clerk-sync";

fn root(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// The command lines of a file: those that begin with `$`, and those in backquotes that have a command.
fn commands(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("$ "));
    let quoted = text.lines().filter(|line| line.starts_with("- ")).flat_map(|line| line.split('`').skip(1).step_by(2));
    let all = lines.chain(quoted).filter_map(|command| command.strip_prefix(NPX)?.strip_prefix(' '));
    all.filter(|command| !command.starts_with(char::is_uppercase)).map(str::to_owned).collect()
}

/// Waits until it says so.
async fn says(output: impl AsyncRead + Unpin, part: &str) -> bool {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.contains(part) {
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_that_agents_are_told_works() {
    let set_up = SetUp::good().await;
    let owned = "create table documents (id int primary key, organization_id text not null); create index on documents (organization_id);
                 create table notes (id int primary key, user_id text not null); create index on notes (user_id);
                 alter table documents enable row level security; alter table notes enable row level security";
    set_up.world.database.execute(owned).await;
    set_up.world.clerk.lock().environment_type = "development";
    let folder = npm::temporary("agents");
    let mut run = 0;
    for file in FILES {
        for line in commands(&std::fs::read_to_string(root(file)).unwrap()) {
            let mut command = Command::new(env!("CARGO_BIN_EXE_clerk-sync"));
            command.args(line.split(' ')).env_clear().current_dir(&folder).stdin(Stdio::null()).kill_on_drop(true);
            command.env("DATABASE_URL", set_up.world.database.url()).envs(set_up.world.api_environment());
            command.env("CLERK_RATE_SHARE", "off").env("LISTEN_ADDR", "127.0.0.1:0").env("OPS_ADDR", "127.0.0.1:0");
            if line != "dev" {
                command.env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET);
            }
            run += 1;
            let (from_stderr, part) = match line.as_str() {
                "serve" => (true, "listening"),
                "dev" => (false, "Following the development instance"),
                // It asks, and nobody is there to answer: all is given, and it waits for Clerk.
                "init" => (false, "Waiting for the first webhook"),
                _ => {
                    let output = command.output().await.unwrap();
                    assert_eq!(output.status.code(), Some(0), "{line}: {}", npm::text(&output));
                    continue;
                }
            };
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
            let is_said = if from_stderr { says(stderr, part).await } else { says(stdout, part).await };
            assert!(is_said, "{line} never says {part}");
            child.kill().await.unwrap();
        }
    }
    assert!(run >= 15, "{run} commands were found");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn every_file_that_agents_are_sent_to_is_there() {
    let text = std::fs::read_to_string(root("llms.txt")).unwrap();
    let links: Vec<&str> = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    assert!(links.len() > 5);
    for link in links {
        assert!(root(link).is_file(), "{link}");
    }
}

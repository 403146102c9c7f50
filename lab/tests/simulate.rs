//! The simulated Clerk as a process of its own.

use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// `lab simulate`, and what it printed of itself.
struct Simulated {
    process: Child,
    url: String,
    secret_key: String,
    client: reqwest::Client,
}

impl Simulated {
    fn start(arguments: &[&str]) -> Simulated {
        let mut process = Command::new(env!("CARGO_BIN_EXE_lab"))
            .args(["simulate", "--with-stdin"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        let text = |field: &str| said[field].as_str().unwrap().to_owned();
        let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        Simulated { url: text("url"), secret_key: text("secret_key"), process, client }
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.url)).bearer_auth(&self.secret_key).send().await.unwrap()
    }

    /// It ends, well, when its input does.
    async fn end(mut self) {
        drop(self.process.stdin.take());
        let end = tokio::task::spawn_blocking(move || self.process.wait()).await.unwrap().unwrap();
        assert!(end.success());
    }
}

async fn json(answer: reqwest::Response) -> Value {
    serde_json::from_str(&answer.text().await.unwrap()).unwrap()
}

#[tokio::test]
async fn simulate_serves_a_population_and_ends_with_its_input() {
    let clerk = Simulated::start(&["--users", "12", "--organizations", "2", "--memberships", "5", "--tie", "4"]);
    let users = json(clerk.get("/v1/users?limit=500").await).await;
    assert_eq!(users.as_array().unwrap().len(), 12);
    let times: BTreeSet<i64> =
        users.as_array().unwrap().iter().map(|user| user["created_at"].as_i64().unwrap()).collect();
    assert_eq!(times.len(), 3, "four of a time");
    clerk.end().await;
}

/// `clerk-sync dev` follows a development instance only, so it can be tried against this one.
#[tokio::test]
async fn simulate_says_which_environment_it_plays_and_limits_calls_as_there() {
    for (environment, calls) in [("development", 100), ("production", 101)] {
        let clerk = Simulated::start(&["--environment", environment]);
        // 100 calls in ten seconds are allowed in both; one more only in production.
        let mut answered = 0;
        while answered <= 100 {
            let answer = clerk.get("/v1/instance").await;
            if answer.status() == 429 {
                break;
            }
            assert_eq!(json(answer).await["environment_type"], environment);
            answered += 1;
        }
        assert_eq!(answered, calls);
        clerk.end().await;
    }
}

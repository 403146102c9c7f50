//! The simulated Clerk as a process of its own.

use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

#[tokio::test]
async fn simulate_serves_a_population_and_ends_with_its_input() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["simulate", "--users", "12", "--organizations", "2", "--memberships", "5", "--tie", "4", "--with-stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let said: Value = serde_json::from_str(&line).unwrap();
    let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
    let url = format!("{}/v1/users?limit=500", said["url"].as_str().unwrap());
    let answer = client.get(url).bearer_auth(said["secret_key"].as_str().unwrap()).send().await.unwrap();
    let users: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(users.as_array().unwrap().len(), 12);
    let times: BTreeSet<i64> =
        users.as_array().unwrap().iter().map(|user| user["created_at"].as_i64().unwrap()).collect();
    assert_eq!(times.len(), 3, "four of a time");
    drop(process.stdin.take());
    let end = tokio::task::spawn_blocking(move || process.wait()).await.unwrap().unwrap();
    assert!(end.success());
}

/// `clerk-sync dev` follows a development instance only, so it can be tried against this one.
#[tokio::test]
async fn simulate_says_which_environment_it_plays_and_limits_calls_as_there() {
    for (environment, calls) in [("development", 100), ("production", 101)] {
        let mut process = Command::new(env!("CARGO_BIN_EXE_lab"))
            .args(["simulate", "--environment", environment, "--with-stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        let url = format!("{}/v1/instance", said["url"].as_str().unwrap());
        let ask = || client.get(&url).bearer_auth(said["secret_key"].as_str().unwrap()).send();
        // 100 calls in ten seconds are allowed in both; one more only in production.
        let mut answered = 0;
        while answered <= 100 {
            let answer = ask().await.unwrap();
            if answer.status() == 429 {
                break;
            }
            let instance: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
            assert_eq!(instance["environment_type"], environment);
            answered += 1;
        }
        assert_eq!(answered, calls);
        drop(process.stdin.take());
        let end = tokio::task::spawn_blocking(move || process.wait()).await.unwrap().unwrap();
        assert!(end.success());
    }
}

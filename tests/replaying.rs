//! Whole sets of payloads, by `replay`, in any order and any number: the same tables, and nothing written again.

use crate::support::{SECRET, World, extra_fixtures};
use clerk_sync::command::Replay;
use clerk_sync::model::InstanceCheck;
use std::path::{Path, PathBuf};
use testkit::wait::{SHORTEST_LIMIT, unless_slow};

fn replay(world: &World, path: &Path, shuffle: Option<u64>) -> Replay {
    Replay {
        path: path.to_owned(),
        url: Some(world.server.webhook_url()),
        listen_addr: None,
        port: None,
        secret: Some(SECRET.to_owned()),
        shuffle,
        times: 3,
        concurrency: 8,
        rate: None,
    }
}

/// Replays, if need be again, until everything is accepted.
async fn all_accepted(replay: Replay) {
    unless_slow(SHORTEST_LIMIT, async || {
        let summary = replay.send().await.unwrap();
        if summary.all_accepted() { Ok(()) } else { Err(summary.to_string()) }
    })
    .await;
}

async fn ends_alike_in_any_order(path: PathBuf) {
    let mut mirrors = Vec::new();
    for seed in 1..=5 {
        let world = World::of(InstanceCheck::Off).await;
        all_accepted(replay(&world, &path, Some(seed))).await;
        mirrors.push(world.database.mirror().await);
        let written = world.database.written().await;
        all_accepted(replay(&world, &path, None)).await;
        assert_eq!(world.database.written().await, written, "replaying everything wrote a row");
        assert_eq!(world.database.count("clerk_sync.dead_letters").await, 0);
    }
    for (seed, mirror) in (1..).zip(&mirrors) {
        assert_eq!(*mirror, mirrors[0], "seed {seed}");
    }
}

#[tokio::test]
async fn our_fixtures_shuffled_and_tripled_end_alike() {
    ends_alike_in_any_order(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clerk")).await;
}

#[tokio::test]
async fn further_fixtures_shuffled_and_tripled_end_alike() {
    if let Some(folder) = extra_fixtures() {
        ends_alike_in_any_order(folder.join("clerk/webhooks")).await;
    }
}

#[tokio::test]
async fn a_server_that_refuses_makes_replay_fail() {
    let world = World::new().await;
    let mut replay =
        replay(&world, &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clerk/user.created.json"), None);
    replay.secret = Some("whsec_YW5vdGhlciBzZWNyZXQgYWx0b2dldGhlcg==".to_owned());
    let summary = replay.send().await.unwrap();
    assert!(!summary.all_accepted());
    assert!(summary.to_string().contains("invalid_signature"), "{summary}");
    replay.path = PathBuf::from("no/such/folder");
    assert!(replay.send().await.unwrap_err().to_string().contains("no/such/folder"));
}

//! Waiting for what must come about.

use std::fmt::Debug;
use std::time::Duration;
use tokio::time::Instant;

/// For how long. How fast it comes about is the machine's affair, and is measured elsewhere: so long takes only what never comes.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How often to look.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until it is so.
///
/// # Panics
/// It never is.
pub async fn until(what: &str, is_so: impl AsyncFnMut() -> bool) {
    until_within(PATIENCE, what, is_so).await;
}

/// Waits until it is so, for as long as is promised.
///
/// # Panics
/// It is not so in time.
pub async fn until_within(limit: Duration, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < limit, "not within {} s: {what}", limit.as_secs());
        tokio::time::sleep(LOOK).await;
    }
}

/// The shortest of the product's limits for what it waits for: to connect to the database, as `clerk_sync::store` has it.
pub const SHORTEST_LIMIT: Duration = Duration::from_secs(2);

/// Between two attempts; Svix leaves 5 s and more.
const AGAIN: Duration = Duration::from_millis(300);

/// Tries again what ran into a limit of time, as a sender or a person would: a slow machine may have caused it. What fails before
/// `limit` has another cause.
///
/// # Panics
/// It fails before `limit`, or for ever.
pub async fn unless_slow<T, E: Debug>(limit: Duration, mut attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    let all_began = Instant::now();
    loop {
        let began = Instant::now();
        match attempt().await {
            Ok(done) => return done,
            Err(error) => {
                let took = began.elapsed();
                assert!(took >= limit && all_began.elapsed() < PATIENCE, "after {took:.1?}: {error:?}");
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

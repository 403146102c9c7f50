//! Waiting for what must come about.

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
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < PATIENCE, "not within {} s: {what}", PATIENCE.as_secs());
        tokio::time::sleep(LOOK).await;
    }
}

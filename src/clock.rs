//! The one place that reads the wall clock.
//!
//! It bounds the age of signatures and the life of log lines. Nothing is ever ordered by it: order comes from Clerk's clock.

use crate::model::Millis;
use std::time::{SystemTime, UNIX_EPOCH};

/// Now, by this machine's clock.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Millis {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).ok().and_then(Millis::new).unwrap_or(Millis::MAX)
}

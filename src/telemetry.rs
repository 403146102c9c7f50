//! What the program says of itself: log lines, and counters.
//!
//! Ids are logged; names, addresses, bodies and secrets never. A fault that repeats is logged once a second at most.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tracing_subscriber::EnvFilter;

/// Deliveries answered, by `outcome`.
pub const DELIVERIES: &str = "clerk_sync_deliveries_total";
/// Requests refused before any of it was believed, by `reason`.
pub const REJECTED: &str = "clerk_sync_rejected_total";
/// Deliveries answered with 503, by `reason`.
pub const UNAVAILABLE: &str = "clerk_sync_unavailable_total";
/// Events of types that are not mirrored, by `event_type`.
pub const IGNORED: &str = "clerk_sync_ignored_total";
/// Fields of payloads that could not be taken as they came.
pub const FLAWS: &str = "clerk_sync_flaws_total";
/// Messages that made the database refuse a whole batch. None is expected: what Postgres refuses is mended before.
pub const POISON: &str = "clerk_sync_poison_total";
/// Calls to Clerk's API, all tries counted.
pub const CLERK_CALLS: &str = "clerk_sync_clerk_api_calls_total";
/// Those that failed.
pub const CLERK_FAILURES: &str = "clerk_sync_clerk_api_failures_total";
/// Passes, by `scope` and `state`.
pub const PASSES: &str = "clerk_sync_passes_total";
/// Rows that passes found wrong, by `kind` and `drift`.
pub const DRIFT: &str = "clerk_sync_drift_total";

/// Starts logging as `RUST_LOG` says, else as `default` does; as text, or as JSON with `LOG_FORMAT=json`.
pub fn init(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr);
    if std::env::var("LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
}

/// Lets one line a second through, for a fault that repeats. One for each place that logs.
#[derive(Debug, Default)]
pub struct Throttle {
    /// The second of the last line that went through, counted from the first, plus one; 0: none did.
    last: AtomicU64,
    held_back: AtomicU64,
}

impl Throttle {
    pub const fn new() -> Throttle {
        Throttle { last: AtomicU64::new(0), held_back: AtomicU64::new(0) }
    }

    /// Whether to log now: if so, how many lines were held back since the last one.
    pub fn pass(&self) -> Option<u64> {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        let second = START.elapsed().as_secs() + 1;
        if self.last.swap(second, Ordering::Relaxed) == second {
            self.held_back.fetch_add(1, Ordering::Relaxed);
            None
        } else {
            Some(self.held_back.swap(0, Ordering::Relaxed))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_repeats_is_logged_once_a_second() {
        let throttle = Throttle::new();
        let passed = (0..1_000).filter(|_| throttle.pass().is_some()).count();
        assert!((1..=2).contains(&passed), "{passed} lines within a moment");
    }
}

//! When to try a call again. The one file that knows the crate `backoff`, which nobody maintains any more
//! (RUSTSEC-2025-0012).
//!
//! Its own loop takes a server's `Retry-After` past every limit on time, so we use its policy alone: the loop is ours.

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;
use std::time::{Duration, Instant};

/// The pauses between the tries of one call.
pub(super) struct Retries {
    policy: ExponentialBackoff,
    deadline: Instant,
    /// Beyond this no pause is made but one that the server asks for.
    backoff_until: Instant,
}

impl Retries {
    /// Tries go on for `patience` in all. The pauses double, each half as long to half as long again as planned.
    pub(super) fn within(patience: Duration) -> Retries {
        let policy = ExponentialBackoff {
            initial_interval: Duration::from_millis(250).min(patience / 20),
            max_interval: Duration::from_secs(10),
            multiplier: 2.0,
            randomization_factor: 0.5,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        let deadline = Instant::now() + patience;
        Retries { policy, deadline, backoff_until: deadline }
    }

    /// The same, but where the server asks for no pause it is tried for `at_most` alone.
    pub(super) fn limited(patience: Duration, at_most: Duration) -> Retries {
        let all = Retries::within(patience);
        Retries { backoff_until: all.deadline.min(Instant::now() + at_most), ..all }
    }

    /// For how long tries go on.
    pub(super) fn left(&self) -> Duration {
        self.backoff_until.saturating_duration_since(Instant::now())
    }

    /// How long to pause before the next try; `None`: it would come too late. `retry_after` is what the server asks for.
    pub(super) fn pause(&mut self, retry_after: Option<Duration>) -> Option<Duration> {
        let deadline = if retry_after.is_some() { self.deadline } else { self.backoff_until };
        let pause = retry_after.or_else(|| self.policy.next_backoff())?;
        (Instant::now() + pause < deadline).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_cannot_make_us_wait_beyond_the_deadline() {
        let mut retries = Retries::within(Duration::from_secs(2));
        assert_eq!(retries.pause(Some(Duration::from_secs(1))), Some(Duration::from_secs(1)));
        assert_eq!(retries.pause(Some(Duration::from_secs(3))), None);
    }

    #[test]
    fn who_is_hasty_waits_as_long_as_he_is_asked_to() {
        let mut retries = Retries::limited(Duration::from_secs(60), Duration::ZERO);
        assert_eq!(retries.pause(None), None);
        assert_eq!(retries.pause(Some(Duration::from_secs(30))), Some(Duration::from_secs(30)));
    }

    #[test]
    fn pauses_grow_and_end() {
        let mut retries = Retries::within(Duration::from_secs(60));
        let pauses: Vec<Duration> = (0..6).filter_map(|_| retries.pause(None)).collect();
        assert_eq!(pauses.len(), 6);
        assert!(pauses[5] > pauses[0] * 4, "{pauses:?}");
        let mut none = Retries::within(Duration::ZERO);
        assert_eq!(none.pause(None), None);
    }
}

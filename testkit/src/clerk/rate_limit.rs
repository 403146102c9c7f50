//! Clerk's rate limit: a number of calls in ten seconds for the whole instance; a call beyond it gets 429 with `Retry-After`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(10);

/// The calls of the running window, and the endpoints that are blocked.
#[derive(Debug)]
pub(super) struct RateLimit {
    per_window: Option<u32>,
    began: Instant,
    calls: u32,
    blocked: HashMap<String, Instant>,
    /// Calls to an endpoint made before the time was up that a 429 had named.
    pub(super) too_early: u32,
}

impl RateLimit {
    pub(super) fn new(per_window: Option<u32>) -> RateLimit {
        RateLimit { per_window, began: Instant::now(), calls: 0, blocked: HashMap::new(), too_early: 0 }
    }

    pub(super) fn set(&mut self, per_window: Option<u32>) {
        self.per_window = per_window;
    }

    /// Counts a call. `Err`: it is refused, and this is the time to wait.
    pub(super) fn admit(&mut self, endpoint: &str) -> Result<(), Duration> {
        let now = Instant::now();
        if let Some(until) = self.blocked.get(endpoint)
            && *until > now
        {
            self.too_early += 1;
            return Err(*until - now);
        }
        if now - self.began >= WINDOW {
            (self.began, self.calls) = (now, 0);
        }
        self.calls += 1;
        if self.per_window.is_some_and(|most| self.calls > most) {
            return Err(self.block(endpoint, WINDOW - (now - self.began)));
        }
        Ok(())
    }

    /// Refuses all calls to an endpoint until the time is up, which is named in whole seconds. Returns it.
    pub(super) fn block(&mut self, endpoint: &str, time: Duration) -> Duration {
        let time = Duration::from_secs(whole_seconds(time));
        self.blocked.insert(endpoint.to_owned(), Instant::now() + time);
        time
    }
}

/// As `Retry-After` has it, rounded up.
pub(super) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

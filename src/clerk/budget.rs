//! Our share of Clerk's rate limit. The same key serves the application, and its users must not wait for us.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Calls that may go out at once after a pause.
const BURST: u32 = 10;

/// Spaces calls evenly, and holds all of them back while Clerk asks for it.
#[derive(Debug)]
pub struct Budget {
    /// Between two calls; zero: no limit.
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the next call is due, were calls spaced evenly from the first.
    due: Instant,
    blocked_until: Instant,
}

impl Budget {
    /// At most `calls` in 10 s; `None`: any number.
    pub fn new(calls: Option<u32>) -> Budget {
        let interval = calls.map_or(Duration::ZERO, |calls| Duration::from_secs(10) / calls.max(1));
        let now = Instant::now();
        Budget { interval, state: Mutex::new(State { due: now, blocked_until: now }) }
    }

    /// Waits for a call's turn.
    pub async fn take(&self) {
        loop {
            let (turn, blocked_until) = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                if state.blocked_until > now {
                    (None, state.blocked_until)
                } else {
                    let earliest = now.checked_sub(self.interval * BURST).unwrap_or(now);
                    let turn = state.due.max(earliest);
                    state.due = turn + self.interval;
                    (Some(turn), now)
                }
            };
            match turn {
                Some(turn) => {
                    sleep_until(turn).await;
                    // Somebody may have been told to wait meanwhile.
                    if !self.is_blocked() {
                        return;
                    }
                }
                None => sleep_until(blocked_until).await,
            }
        }
    }

    /// Lets no call out for this long.
    pub fn block(&self, wait: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.blocked_until = state.blocked_until.max(Instant::now() + wait);
    }

    fn is_blocked(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).blocked_until > Instant::now()
    }
}

//! How large a batch may be, and which objects are written alone, as learned from batches that failed. Pure except for the clock.

use super::request::Request;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Deliveries in one statement, and bytes of their bodies, so that it stays far below its time limit. While it runs, all of it is in
/// memory once more.
pub(super) const BATCH: usize = 256;
const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// How long an object is written alone after its row was refused: its webhook will be retried.
const ISOLATION_TIME: Duration = Duration::from_secs(600);
/// Deliveries in one statement after one ran out of time; and after that, one alone.
const SMALL_BATCH: usize = 16;
/// After a batch that takes no longer, the next one may be larger again.
const FAST_BATCH: Duration = Duration::from_millis(500);
/// How long to wait for a row that another session has locked, and how long after the last one this shorter wait applies: all later batches
/// wait behind it.
pub(super) const LOCK_WAIT: Duration = Duration::from_millis(100);
const LOCKED: Duration = Duration::from_secs(60);

/// What was learned from batches that failed.
pub(super) struct BatchSize {
    /// Objects with a refused row, and when it was refused.
    isolated: HashMap<String, Instant>,
    /// Deliveries that go into one statement.
    max_deliveries: usize,
    /// When the last wait for a lock of another session timed out.
    locked: Option<Instant>,
}

impl BatchSize {
    pub(super) fn new() -> BatchSize {
        BatchSize { isolated: HashMap::new(), max_deliveries: BATCH, locked: None }
    }

    /// Batches of bounded size; objects that were refused before go alone and last.
    pub(super) fn batches(&mut self, requests: Vec<Request>) -> Vec<Vec<Request>> {
        self.isolated.retain(|_, since| since.elapsed() < ISOLATION_TIME);
        let (isolated, others): (Vec<Request>, Vec<Request>) =
            requests.into_iter().partition(|request| self.isolated.contains_key(request.subject()));
        let mut batches: Vec<Vec<Request>> = Vec::new();
        let mut room = 0;
        for request in others {
            let size = request.raw.body.len();
            match batches.last_mut() {
                Some(batch) if batch.len() < self.max_deliveries && size <= room => {
                    room -= size;
                    batch.push(request);
                }
                _ => {
                    room = BATCH_BYTES.saturating_sub(size);
                    batches.push(vec![request]);
                }
            }
        }
        batches.extend(isolated.into_iter().map(|request| vec![request]));
        batches
    }

    /// The row of this object was refused.
    pub(super) fn isolate(&mut self, subject: &str) {
        self.isolated.insert(subject.to_owned(), Instant::now());
    }

    /// A wait for another session's lock timed out.
    pub(super) fn note_lock(&mut self) {
        self.locked = Some(Instant::now());
    }

    pub(super) fn lock_wait(&self) -> Option<Duration> {
        self.locked.filter(|at| at.elapsed() < LOCKED).map(|_| LOCK_WAIT)
    }

    /// A batch of so many has run out of time: how many to try.
    pub(super) fn shrink(&mut self, from: usize) -> usize {
        self.max_deliveries = if from > SMALL_BATCH { SMALL_BATCH } else { 1 };
        self.max_deliveries
    }

    /// A batch of so many was written in that time.
    pub(super) fn grow(&mut self, from: usize, took: Duration) {
        if from >= self.max_deliveries && took < FAST_BATCH {
            self.max_deliveries = (self.max_deliveries * 2).min(BATCH);
        }
    }
}

//! A limit on the memory for request bodies: all that are being read, waiting or being written, together.
//!
//! Svix may have 500 deliveries in flight, and a payload may have 350 kB; while the database hangs they all wait here.
//! Large bodies have their own pool, so that many of them, signed or not, do not affect the usual ones. Bodies of requests that
//! cannot be Clerk's (by their headers) have a third pool.
//!
//! Svix sends a body at once. So when a pool is full, the body that has been arriving longest loses its memory to the new one: clients
//! that send all but the last byte keep no other client out. Complete bodies keep their memory; if they fill the pool, the new request
//! gets 503, and the sender retries.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Bytes of the pools: for bodies up to [`SMALL_BODY_MAX`], and for larger ones. A body's fields are in memory a second time once it is
/// parsed, and a third time while it is written, and each connection has its own buffer: with 500 in flight and a database that does not
/// answer, the process peaks at about 110 MB.
const SMALL_POOL_BYTES: usize = 10 * 1024 * 1024;
const LARGE_POOL_BYTES: usize = 10 * 1024 * 1024;
/// Enough for one body of the largest size.
const STRANGER_POOL_BYTES: usize = 2 * 1024 * 1024;
/// A user with full metadata has about 20 kB.
const SMALL_BODY_MAX: u64 = 64 * 1024;
/// How long a body may take to arrive while other connections wait.
const STALLED: Duration = Duration::from_secs(1);

/// The free bytes of all pools. Cheap to clone; all clones share them.
#[derive(Clone, Debug)]
pub struct BodyMemory {
    usual: Arc<Pool>,
    large: Arc<Pool>,
    strangers: Arc<Pool>,
}

#[derive(Debug)]
struct Pool(Mutex<Table>);

#[derive(Debug)]
struct Table {
    left: usize,
    next: u64,
    /// Bodies that are arriving, the oldest first.
    arriving: BTreeMap<u64, Arriving>,
}

#[derive(Debug)]
struct Arriving {
    since: Instant,
    bytes: usize,
    has_lost: bool,
    evicted_signal: Arc<Notify>,
}

/// What the headers say about a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It may be Clerk's.
    Plausible,
    /// It cannot be accepted, even if its signature is good.
    Stranger,
}

/// Memory for a body that is arriving.
#[derive(Debug)]
pub struct PoolHandle {
    pool: Arc<Pool>,
    id: u64,
    evicted_signal: Arc<Notify>,
}

/// What a body must give up for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// Its memory was given away: drop what has arrived.
    Memory,
    /// Its connection is needed: close it.
    Connection,
}

/// Bytes that are reserved until dropped.
#[derive(Debug, Default)]
pub struct Reserved(Option<(Arc<Pool>, usize)>);

/// The pool is full, or this body has lost its memory to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Default for BodyMemory {
    fn default() -> Self {
        let pool = |bytes| Arc::new(Pool(Mutex::new(Table { left: bytes, next: 0, arriving: BTreeMap::new() })));
        BodyMemory {
            usual: pool(SMALL_POOL_BYTES),
            large: pool(LARGE_POOL_BYTES),
            strangers: pool(STRANGER_POOL_BYTES),
        }
    }
}

impl BodyMemory {
    /// For a body of this length; `None`: the sender did not announce it.
    pub fn share(&self, length: Option<u64>, origin: Origin) -> PoolHandle {
        let pool = match (origin, length) {
            (Origin::Stranger, _) => &self.strangers,
            (Origin::Plausible, Some(..=SMALL_BODY_MAX)) => &self.usual,
            (Origin::Plausible, _) => &self.large,
        };
        let evicted_signal = Arc::new(Notify::new());
        let mut table = pool.table();
        table.next += 1;
        let id = table.next;
        let arriving =
            Arriving { since: Instant::now(), bytes: 0, has_lost: false, evicted_signal: Arc::clone(&evicted_signal) };
        table.arriving.insert(id, arriving);
        drop(table);
        PoolHandle { pool: Arc::clone(pool), id, evicted_signal }
    }

    /// Ends all bodies that have been arriving for longer than a second, because their connections are needed.
    pub(crate) fn evict_stalled(&self) {
        for pool in [&self.usual, &self.large, &self.strangers] {
            let mut table = pool.table();
            while let Some(oldest) =
                table.arriving.first_entry().filter(|oldest| oldest.get().since.elapsed() >= STALLED)
            {
                let ended = oldest.remove();
                ended.evicted_signal.notify_one();
                table.left += ended.bytes;
            }
        }
    }
}

impl Pool {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn take(&mut self, id: u64, bytes: usize) -> Result<(), Exhausted> {
        if self.arriving.get(&id).is_none_or(|own| own.has_lost) {
            return Err(Exhausted);
        }
        if self.left < bytes {
            self.free(id, bytes)?;
        }
        self.left -= bytes;
        self.arriving.entry(id).and_modify(|own| own.bytes += bytes);
        Ok(())
    }

    /// Takes memory from the bodies that have been arriving longest, until so many bytes are free.
    fn free(&mut self, id: u64, bytes: usize) -> Result<(), Exhausted> {
        let others = self.arriving.iter_mut().filter(|(other, body)| **other != id && body.bytes > 0);
        let mut others: Vec<&mut Arriving> = others.map(|(_, body)| body).collect();
        if self.left + others.iter().map(|body| body.bytes).sum::<usize>() < bytes {
            return Err(Exhausted);
        }
        for body in &mut others {
            if self.left >= bytes {
                break;
            }
            self.left += std::mem::take(&mut body.bytes);
            body.has_lost = true;
            body.evicted_signal.notify_one();
        }
        Ok(())
    }
}

impl PoolHandle {
    /// Reserves `bytes` more, from bodies that have been arriving longer if nothing else is free.
    ///
    /// # Errors
    /// The pool is full, or this body has lost its memory.
    pub fn take(&mut self, bytes: usize) -> Result<(), Exhausted> {
        self.pool.table().take(self.id, bytes)
    }

    /// Waits until this body must give up its memory or its connection.
    pub(crate) async fn evicted(&self) -> Eviction {
        self.evicted_signal.notified().await;
        if self.pool.table().arriving.contains_key(&self.id) { Eviction::Memory } else { Eviction::Connection }
    }

    /// The body is complete, and keeps its memory.
    ///
    /// # Errors
    /// It has lost its memory.
    pub fn arrived(self) -> Result<Reserved, Exhausted> {
        match self.pool.table().arriving.remove(&self.id) {
            Some(Arriving { bytes, has_lost: false, .. }) => Ok(Reserved(Some((Arc::clone(&self.pool), bytes)))),
            _ => Err(Exhausted),
        }
    }
}

impl Drop for PoolHandle {
    fn drop(&mut self) {
        let mut table = self.pool.table();
        if let Some(ended) = table.arriving.remove(&self.id) {
            table.left += ended.bytes;
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some((pool, bytes)) = self.0.take() {
            pool.table().left += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn usual(budget: &BodyMemory) -> PoolHandle {
        budget.share(Some(1_000), Origin::Plausible)
    }

    #[test]
    fn what_has_arrived_keeps_its_room_until_it_is_dropped() {
        let budget = BodyMemory::default();
        let mut first = usual(&budget);
        first.take(SMALL_POOL_BYTES - 10).unwrap();
        first.take(10).unwrap();
        let arrived = first.arrived().unwrap();
        let mut second = usual(&budget);
        assert_eq!(second.take(1), Err(Exhausted));
        drop(arrived);
        second.take(SMALL_POOL_BYTES).unwrap();
        drop(second);
        usual(&budget).take(SMALL_POOL_BYTES).unwrap();
    }

    #[test]
    fn the_body_that_has_been_arriving_longest_loses_its_room() {
        let budget = BodyMemory::default();
        let (mut oldest, mut middle, mut newest) = (usual(&budget), usual(&budget), usual(&budget));
        middle.take(SMALL_POOL_BYTES / 2).unwrap();
        oldest.take(SMALL_POOL_BYTES / 2).unwrap();
        newest.take(1).unwrap();
        assert_eq!((oldest.evicted().now_or_never(), middle.evicted().now_or_never()), (Some(Eviction::Memory), None));
        assert_eq!((oldest.take(1), oldest.arrived().err()), (Err(Exhausted), Some(Exhausted)));
        middle.take(SMALL_POOL_BYTES / 2 - 1).unwrap();
        assert!(newest.arrived().is_ok());
    }

    #[test]
    fn a_body_whose_connection_is_needed_ends_once_it_is_a_second_old() {
        let budget = BodyMemory::default();
        let mut body = usual(&budget);
        body.take(1).unwrap();
        budget.evict_stalled();
        assert_eq!(body.evicted().now_or_never(), None);
        std::thread::sleep(STALLED);
        budget.evict_stalled();
        assert_eq!((body.evicted().now_or_never(), body.take(1)), (Some(Eviction::Connection), Err(Exhausted)));
        drop(body);
        usual(&budget).take(SMALL_POOL_BYTES).unwrap();
    }

    #[test]
    fn who_asks_for_too_much_ends_nobody() {
        let budget = BodyMemory::default();
        let (mut small, mut large) = (usual(&budget), usual(&budget));
        small.take(1_000).unwrap();
        assert_eq!(large.take(SMALL_POOL_BYTES + 1), Err(Exhausted));
        assert!(small.evicted().now_or_never().is_none());
    }

    #[test]
    fn large_bodies_strangers_and_those_of_unknown_length_leave_the_usual_ones_their_room() {
        let budget = BodyMemory::default();
        let arrived = |length, origin, bytes| {
            let mut share = budget.share(length, origin);
            share.take(bytes).and_then(|()| share.arrived())
        };
        let _large = arrived(None, Origin::Plausible, LARGE_POOL_BYTES).unwrap();
        assert!(arrived(Some(SMALL_BODY_MAX + 1), Origin::Plausible, 1).is_err());
        let _strange = arrived(Some(1), Origin::Stranger, STRANGER_POOL_BYTES).unwrap();
        assert!(arrived(Some(1), Origin::Stranger, 1).is_err());
        arrived(Some(SMALL_BODY_MAX), Origin::Plausible, SMALL_POOL_BYTES).unwrap();
    }
}

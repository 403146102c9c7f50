//! How much memory requests may take: all bodies that are being read, waiting or being written, together.
//!
//! Svix may have 500 deliveries under way, and a payload may have 350 kB; while the database hangs they would all wait here.
//! Beyond the budget a request is answered 503 at once, and comes again. Large bodies have a budget of their own, so that a
//! flood of them, signed or not, leaves the usual ones alone. And whoever stalls in the middle of a body makes way once somebody
//! else finds no room.

use std::sync::Arc;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Bytes of bodies at once: of those up to [`USUAL`], and of all others. A body's fields are held a second time once it is
/// read, and a third time while it is written, and each connection has a buffer of its own: with 500 under way and the
/// database silent the process peaks at some 110 MB.
const FOR_USUAL: usize = 10 * 1024 * 1024;
const FOR_LARGE: usize = 10 * 1024 * 1024;
/// A user with full metadata has some 20 kB.
const USUAL: u64 = 64 * 1024;

/// The bytes that are left. Cheap to clone; all clones share them.
#[derive(Clone, Debug)]
pub struct Budget {
    usual: Pool,
    large: Pool,
}

#[derive(Clone, Debug)]
struct Pool {
    left: Arc<Semaphore>,
    scarce: Arc<Notify>,
}

impl Pool {
    fn of(bytes: usize) -> Pool {
        Pool { left: Arc::new(Semaphore::new(bytes)), scarce: Arc::default() }
    }
}

/// Where the bytes of one body come from.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a>(&'a Pool);

/// Bytes that are taken, until dropped.
#[derive(Debug, Default)]
pub struct Reserved(Option<OwnedSemaphorePermit>);

/// Nothing is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Default for Budget {
    fn default() -> Self {
        Budget { usual: Pool::of(FOR_USUAL), large: Pool::of(FOR_LARGE) }
    }
}

impl Budget {
    /// For a body of so many bytes; `None`: the sender does not say how many.
    pub fn share(&self, length: Option<u64>) -> Share<'_> {
        Share(if length.is_some_and(|length| length <= USUAL) { &self.usual } else { &self.large })
    }
}

impl Share<'_> {
    /// Takes `bytes` more.
    ///
    /// # Errors
    /// They are not left; what was taken stays taken.
    pub fn take(self, reserved: &mut Reserved, bytes: usize) -> Result<(), Exhausted> {
        let bytes = u32::try_from(bytes).map_err(|_| Exhausted)?;
        let more = Arc::clone(&self.0.left).try_acquire_many_owned(bytes).map_err(|_| {
            self.0.scarce.notify_waiters();
            Exhausted
        })?;
        match &mut reserved.0 {
            Some(permit) => permit.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }

    /// Waits until somebody finds nothing left.
    pub async fn scarce(self) {
        self.0.scarce.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let budget = Budget::default();
        let share = budget.share(Some(1_000));
        let mut first = Reserved::default();
        share.take(&mut first, FOR_USUAL - 10).unwrap();
        share.take(&mut first, 10).unwrap();
        let mut second = Reserved::default();
        assert_eq!(share.take(&mut second, 1), Err(Exhausted));
        drop(first);
        share.take(&mut second, FOR_USUAL).unwrap();
    }

    #[test]
    fn large_bodies_and_those_of_unknown_length_leave_the_usual_ones_their_room() {
        let budget = Budget::default();
        let (mut large, mut usual) = (Reserved::default(), Reserved::default());
        budget.share(None).take(&mut large, FOR_LARGE).unwrap();
        assert_eq!(budget.share(Some(USUAL + 1)).take(&mut large, 1), Err(Exhausted));
        budget.share(Some(USUAL)).take(&mut usual, FOR_USUAL).unwrap();
    }
}

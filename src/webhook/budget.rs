//! How much memory requests may take: all bodies that are being read, waiting or being written, together.
//!
//! Svix may have 500 deliveries under way, and a payload may have 350 kB; while the database hangs they would all wait here.
//! Beyond the budget a request is answered 503 at once, and comes again.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of bodies at once. A body's fields are held a second time once it is read, and a third time while it is written,
/// and each connection has a buffer of its own: with 500 under way and the database silent the process peaks at some 110 MB.
const TOTAL: usize = 20 * 1024 * 1024;

/// The bytes that are left. Cheap to clone; all clones share them.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Semaphore>);

/// Bytes that are taken, until dropped.
#[derive(Debug, Default)]
pub struct Reserved(Option<OwnedSemaphorePermit>);

/// Nothing is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Default for Budget {
    fn default() -> Self {
        Budget(Arc::new(Semaphore::new(TOTAL)))
    }
}

impl Budget {
    /// Takes `bytes` more.
    ///
    /// # Errors
    /// They are not left; what was taken stays taken.
    pub fn take(&self, reserved: &mut Reserved, bytes: usize) -> Result<(), Exhausted> {
        let bytes = u32::try_from(bytes).map_err(|_| Exhausted)?;
        let more = Arc::clone(&self.0).try_acquire_many_owned(bytes).map_err(|_| Exhausted)?;
        match &mut reserved.0 {
            Some(permit) => permit.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let budget = Budget::default();
        let mut first = Reserved::default();
        budget.take(&mut first, TOTAL - 10).unwrap();
        budget.take(&mut first, 10).unwrap();
        let mut second = Reserved::default();
        assert_eq!(budget.take(&mut second, 1), Err(Exhausted));
        drop(first);
        budget.take(&mut second, TOTAL).unwrap();
    }
}

//! Which rows of the mirror a listing should have shown by now. Pure.
//!
//! Clerk lists by `created_at`, and so do we: a row of ours whose `created_at` the listing has passed without showing it is absent.
//! Imported rows share one `created_at`, and their order is undefined, so the ids seen at a page's last `created_at` are carried over
//! until the listing has passed that time.

use crate::model::Millis;
use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

/// How far the listing has come.
#[derive(Debug)]
pub(crate) struct Windows {
    hasher: RandomState,
    from: Millis,
    /// Hashes of the ids seen at `from`. (One in 10^7 imports of a million rows has two equal ones; then an absentee is
    /// found one pass later.)
    carried: HashSet<u64>,
}

/// Moments that the listing has gone past, with all ids that it showed there.
#[derive(Debug)]
pub(crate) struct Window {
    pub from: Millis,
    /// `None`: to the end of time.
    pub to: Option<Millis>,
    seen: HashSet<u64>,
    hasher: RandomState,
}

/// See [`Windows::pass`].
#[derive(Debug)]
pub(crate) struct Passed {
    /// `None`: the whole page lies at one moment, which may go on.
    pub window: Option<Window>,
    pub new: usize,
}

impl Windows {
    /// Nothing made before `from` is looked at.
    pub(crate) fn from(from: Millis) -> Windows {
        Windows { hasher: RandomState::new(), from, carried: HashSet::new() }
    }

    /// Where the window begins that is still open: it is safe to go on from there.
    pub(crate) fn open_from(&self) -> Millis {
        self.from
    }

    /// Goes past a page: what it closes, and how many of its rows no page before has shown. (Where one moment has many rows, in an
    /// order that need not be the same twice, pages may repeat each other.)
    ///
    /// # Errors
    /// The page is not in order, so nothing can be said of what it leaves out.
    pub(crate) fn pass(&mut self, rows: &[(Option<Millis>, &str)], is_last: bool) -> Result<Passed, OutOfOrder> {
        let mut last = None;
        let mut page = Vec::with_capacity(rows.len());
        for (created_at, id) in rows {
            // A row without a time stands where its neighbour stands.
            let created_at = created_at.or(last).unwrap_or(self.from);
            if last.is_some_and(|last| created_at < last) {
                return Err(OutOfOrder);
            }
            last = Some(created_at);
            page.push((created_at, self.hasher.hash_one(id)));
        }
        let edge = last.map_or(self.from, |last| last.max(self.from));
        let new = page.iter().filter(|(_, id)| !self.carried.contains(id)).count();
        if !is_last && edge == self.from {
            self.carried.extend(page.iter().map(|(_, id)| id));
            return Ok(Passed { window: None, new });
        }
        let to = (!is_last).then_some(edge);
        let mut seen = std::mem::take(&mut self.carried);
        for (created_at, id) in page {
            if !is_last && created_at == edge {
                self.carried.insert(id);
            } else {
                seen.insert(id);
            }
        }
        let window = Window { from: self.from, to, seen, hasher: self.hasher.clone() };
        self.from = edge;
        Ok(Passed { window: Some(window), new })
    }
}

impl Window {
    pub(crate) fn saw(&self, id: &str) -> bool {
        self.seen.contains(&self.hasher.hash_one(id))
    }
}

/// See [`Windows::pass`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Clerk's list is not in the requested order")]
pub struct OutOfOrder;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Option<Millis> {
        Millis::new(ms)
    }

    #[test]
    fn ids_at_a_page_s_edge_are_carried_over() {
        let mut windows = Windows::from(Millis::MIN);
        let first = windows.pass(&[(at(1), "a"), (at(5), "b"), (at(5), "c")], false).unwrap().window.unwrap();
        assert_eq!((first.from, first.to), (Millis::MIN, at(5)));
        assert!(first.saw("a") && !first.saw("b"));
        let tie = windows.pass(&[(at(5), "d"), (at(5), "b"), (at(5), "e")], false).unwrap();
        assert!(tie.window.is_none());
        assert_eq!(tie.new, 2, "b was there before");
        let last = windows.pass(&[(at(5), "f"), (at(9), "g")], true).unwrap().window.unwrap();
        assert_eq!((last.from, last.to), (at(5).unwrap(), None));
        assert!(["b", "c", "d", "e", "f", "g"].iter().all(|id| last.saw(id)));
        assert!(!last.saw("a"));
    }

    #[test]
    fn a_list_out_of_order_says_nothing() {
        let mut windows = Windows::from(Millis::MIN);
        assert_eq!(windows.pass(&[(at(5), "a"), (at(1), "b")], false).unwrap_err(), OutOfOrder);
    }
}

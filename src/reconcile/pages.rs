//! Reads a list page by page, in order of creation, without gaps.
//!
//! Some kinds are listed by cursor ([`Listing`]), the others by offset. There a deletion moves all later rows forward, so pages overlap,
//! and a page that does not overlap the previous one is requested again from further back. If Clerk's order changed with each request,
//! a list would never end, so the number of pages is limited.

use super::Error;
use crate::clerk::client::{self, Client, PAGE_SIZE, PageRequest};
use crate::clerk::kinds::{self, Listing};
use crate::clerk::listing;
use crate::model::{Change, Kind, Millis};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashSet;

/// Rows of a page that the next one shows again.
const OVERLAP: usize = 50;
/// How much further back a page begins that left a gap.
const STEP_BACK: usize = 250;
/// Pages that any list may need beyond those that its rows fill, and beyond as many again.
const SPARE: u64 = 20;

/// Where a listing goes on, as the row of its pass has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// What was made before it has been listed.
    from: Millis,
    #[serde(flatten)]
    place: Place,
}

/// Behind an object, or behind so many rows; see [`Listing`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    After(String),
    Offset(usize),
}

impl Cursor {
    /// `None`: it is none of ours, and the listing begins anew.
    pub(super) fn parse(position: Value) -> Option<Cursor> {
        serde_json::from_value(position).ok()
    }

    pub(super) fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("it is plain data and always serializes")
    }

    /// What was made before it has been listed.
    pub(super) const fn from(&self) -> Millis {
        self.from
    }
}

/// A list that is being read.
pub(super) struct Pages<'a> {
    clerk: &'a Client,
    kind: Kind,
    next: PageRequest,
    /// Ids behind which the next page may begin, the best last, should some be gone by then.
    cursors: Vec<String>,
    /// Ids of the previous page, and its last `created_at`; after a resume, the cursor's `from`.
    before: HashSet<String>,
    last_created_at: Option<Millis>,
    /// Pages that may still be asked for, once it is known how many rows there are.
    left: Option<u64>,
}

/// One page, without the rows that the page before showed.
pub(super) struct Page {
    pub(super) changes: Vec<Change>,
    pub(super) total: Option<u64>,
    pub(super) is_last: bool,
    /// Rows behind a last page that Clerk counts and does not list.
    pub(super) unlisted: u64,
    /// Where its first row stands in the list; `None`: behind a cursor.
    offset: Option<usize>,
    shown_before: usize,
}

impl<'a> Pages<'a> {
    /// From where [`Page::resume_at`] said, or from the beginning.
    pub(super) fn new(clerk: &'a Client, kind: Kind, cursor: Option<&Cursor>) -> Pages<'a> {
        let next = match (kinds::of(kind).listing, cursor.map(|cursor| &cursor.place)) {
            (Listing::Cursor { .. }, Some(Place::After(id))) => PageRequest::AfterUser(Some(id.clone())),
            (Listing::Cursor { .. }, _) => PageRequest::AfterUser(None),
            (Listing::Offset, Some(Place::Offset(offset))) => PageRequest::Offset(offset.saturating_sub(OVERLAP)),
            (Listing::Offset, _) => PageRequest::Offset(0),
        };
        let cursors =
            if let PageRequest::AfterUser(after) = &next { after.iter().cloned().collect() } else { Vec::new() };
        // What stands before a position was made earlier than it says, so such a row joins it, as after a page.
        let last_created_at = cursor.map(Cursor::from);
        Pages { clerk, kind, next, cursors, before: HashSet::new(), last_created_at, left: None }
    }

    /// Limits the number of requests to twice what this many rows need, and a few more.
    fn expect(&mut self, rows: u64) {
        self.left.get_or_insert(rows / (PAGE_SIZE - OVERLAP) as u64 * 2 + SPARE);
    }

    /// The next page.
    ///
    /// # Errors
    /// Clerk does not answer, or not with a page; or the list does not come to an end.
    pub(super) async fn page(&mut self) -> Result<Page, Error> {
        match self.next {
            PageRequest::AfterUser(_) => self.page_behind_cursor().await,
            PageRequest::Offset(offset) | PageRequest::RecentlyUpdated(offset) => self.page_at_offset(offset).await,
        }
    }

    /// Whether there is a page behind the last one, should more have been made since.
    pub(super) const fn has_cursor(&self) -> bool {
        matches!(self.next, PageRequest::AfterUser(_))
    }

    async fn page_behind_cursor(&mut self) -> Result<Page, Error> {
        let page = loop {
            self.count_request()?;
            match self.clerk.page(self.kind, &self.next).await {
                // The user was deleted meanwhile: begin behind an earlier one, at last from the beginning.
                Err(client::Error::CursorGone) if self.next != PageRequest::AfterUser(None) => {
                    if let PageRequest::AfterUser(Some(gone)) = &self.next {
                        self.cursors.retain(|cursor| cursor != gone);
                    }
                    self.next = PageRequest::AfterUser(self.cursors.last().cloned());
                }
                page => break page?,
            }
        };
        // Such a list does not say how many there are.
        let mut page = page;
        if self.left.is_none() {
            let total = self.clerk.count(self.kind).await?;
            self.expect(total);
            page.total = Some(total);
        }
        let is_last = is_short(&page);
        let ids: Vec<&str> = page.changes.iter().filter_map(Change::id).collect();
        if let Some(last) = ids.last() {
            // A few from all over the page: several may go at once.
            self.cursors.drain(..self.cursors.len().saturating_sub(4));
            self.cursors.extend(ids.iter().step_by(100).map(|id| (*id).to_owned()));
            self.cursors.push((*last).to_owned());
            self.next = PageRequest::AfterUser(Some((*last).to_owned()));
        }
        self.without_repeats(page, is_last, None)
    }

    async fn page_at_offset(&mut self, mut offset: usize) -> Result<Page, Error> {
        loop {
            self.count_request()?;
            let page = self.clerk.page(self.kind, &PageRequest::Offset(offset)).await?;
            let total = page.total.unwrap_or_default();
            self.expect(total);
            if offset > 0 && !self.overlaps_previous(&page.changes) {
                let end = usize::try_from(total).unwrap_or(usize::MAX);
                offset = offset.min(end).saturating_sub(STEP_BACK);
                continue;
            }
            let page = if is_short(&page) && missing_rows(&page, offset) > 0 {
                self.refetch_last_page(page, offset).await?
            } else {
                page
            };
            let is_last = is_short(&page);
            self.next = PageRequest::Offset((offset + page.changes.len()).saturating_sub(OVERLAP));
            let unlisted = if is_last { missing_rows(&page, offset) } else { 0 };
            return Ok(Page { unlisted, ..self.without_repeats(page, is_last, Some(offset))? });
        }
    }

    /// Asks again for a last page that lacks a few of the rows that it counts: it may have come while one was made.
    async fn refetch_last_page(&mut self, first: listing::Page, offset: usize) -> Result<listing::Page, Error> {
        let ids = |page: &listing::Page| -> Vec<String> {
            page.changes.iter().filter_map(|change| change.id().map(str::to_owned)).collect()
        };
        let mut page = first;
        loop {
            self.count_request()?;
            let again = self.clerk.page(self.kind, &PageRequest::Offset(offset)).await?;
            if !is_short(&again)
                || missing_rows(&again, offset) == 0
                || (again.total == page.total && ids(&again) == ids(&page))
            {
                return Ok(again);
            }
            page = again;
        }
    }

    /// One page less.
    fn count_request(&mut self) -> Result<(), Error> {
        match &mut self.left {
            Some(0) => Err(Error::Contradiction(format!(
                "Clerk's list of {} does not end: its order changes each time",
                self.kind.plural()
            ))),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether no row can lie between the page before and this one.
    fn overlaps_previous(&self, changes: &[Change]) -> bool {
        changes.first().is_some_and(|first| {
            first.id().is_some_and(|id| self.before.contains(id))
                || first.created_at().zip(self.last_created_at).is_some_and(|(created_at, last)| created_at < last)
        })
    }

    fn without_repeats(&mut self, page: listing::Page, is_last: bool, offset: Option<usize>) -> Result<Page, Error> {
        let listing::Page { mut changes, total, .. } = page;
        let ids: HashSet<String> = changes.iter().filter_map(|change| change.id().map(str::to_owned)).collect();
        let rows = changes.len();
        if let Some(created_at) = changes.last().and_then(Change::created_at) {
            self.last_created_at = Some(created_at);
        }
        changes.retain(|change| change.id().is_none_or(|id| !self.before.contains(id)));
        self.before = ids;
        if changes.is_empty() && !is_last {
            // Clerk ignores the cursor or offset: the same page would come back without end.
            return Err(Error::Contradiction(format!("Clerk lists the same {} repeatedly", self.kind.plural())));
        }
        let shown_before = rows - changes.len();
        Ok(Page { changes, total, is_last, unlisted: 0, offset, shown_before })
    }
}

/// Whether this is the last page: it is not full.
fn is_short(page: &listing::Page) -> bool {
    page.changes.len() < PAGE_SIZE
}

/// Rows that a page counts behind its last one.
fn missing_rows(page: &listing::Page, offset: usize) -> u64 {
    page.total.map_or(0, |total| total.saturating_sub((offset + page.changes.len()) as u64))
}

impl Page {
    /// Where to go on if it ends here: before the first row that was made at `open_from`, whose moment is not over yet.
    /// `None`: no further than before.
    pub(super) fn resume_at(&self, open_from: Millis) -> Option<Cursor> {
        let is_created_earlier =
            |change: &&Change| change.created_at().is_some_and(|created_at| created_at < open_from);
        let count = self.changes.iter().take_while(is_created_earlier).count();
        let last = self.changes[..count].last()?.id()?;
        let place = match self.offset {
            None => Place::After(last.to_owned()),
            Some(offset) => Place::Offset(offset + self.shown_before + count),
        };
        Some(Cursor { from: open_from, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn where_a_listing_goes_on_is_read_as_it_was_written() {
        let from = Millis::clamped(1_760_000_000_000);
        let after = Cursor { from, place: Place::After("user_1".to_owned()) };
        assert_eq!(after.to_json(), json!({ "after": "user_1", "from": 1_760_000_000_000_i64 }));
        let offset = Cursor { from, place: Place::Offset(450) };
        assert_eq!(offset.to_json(), json!({ "offset": 450, "from": 1_760_000_000_000_i64 }));
        for cursor in [after, offset] {
            assert_eq!(Cursor::parse(cursor.to_json()), Some(cursor));
        }
        for other in [json!(null), json!({}), json!({ "after": 1, "from": 2 }), json!({ "offset": 5 })] {
            assert_eq!(Cursor::parse(other), None);
        }
    }
}

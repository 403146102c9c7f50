//! Page after page of a list, in the order of making, without a gap.
//!
//! Users are listed behind a cursor. The other kinds have offsets alone, and what is deleted meanwhile moves every row
//! behind it forward: so pages overlap, and one that does not is asked for again from further back.

use super::Error;
use crate::clerk::client::{self, At, Client, PAGE};
use crate::model::{Change, Kind, Millis};
use serde_json::{Value, json};
use std::collections::HashSet;

/// Rows of a page that the next one shows again.
const OVERLAP: usize = 50;
/// How much further back a page begins that left a gap.
const STEP_BACK: usize = 250;

/// A list that is being read.
pub(super) struct List<'a> {
    clerk: &'a Client,
    kind: Kind,
    next: At,
    /// Ids behind which the next page may begin, the best last, should some be gone by then.
    cursors: Vec<String>,
    /// Ids of the page before, and when its last row was made, or the first one that a pass gone on with has not seen.
    before: HashSet<String>,
    last_made: Option<Millis>,
}

/// One page, without the rows that the page before showed.
pub(super) struct Page {
    pub(super) changes: Vec<Change>,
    pub(super) total: Option<u64>,
    pub(super) is_last: bool,
    /// Where the list's first row stands, for [`Page::resume_at`].
    offset: usize,
    shown_before: usize,
}

impl<'a> List<'a> {
    /// From `position`, which [`Page::resume_at`] made, or from the beginning.
    pub(super) fn new(clerk: &'a Client, kind: Kind, position: Option<&Value>) -> List<'a> {
        let cursor = position.and_then(|position| position["after"].as_str()).map(str::to_owned);
        let offset = position.and_then(|position| position["offset"].as_u64()).and_then(|n| usize::try_from(n).ok());
        let next = match kind {
            Kind::User => At::After(cursor.clone()),
            Kind::Organization | Kind::Membership => At::Offset(offset.unwrap_or(0).saturating_sub(OVERLAP)),
        };
        let cursors = cursor.into_iter().collect();
        // What stands before a position was made earlier than it says, so such a row joins it, as after a page.
        let last_made = position.and_then(|position| position["from"].as_i64()).map(Millis::clamped);
        List { clerk, kind, next, cursors, before: HashSet::new(), last_made }
    }

    /// The next page.
    ///
    /// # Errors
    /// Clerk does not answer, or not with a page.
    pub(super) async fn page(&mut self) -> Result<Page, Error> {
        match self.kind {
            Kind::User => self.page_behind_cursor().await,
            Kind::Organization | Kind::Membership => self.page_at_offset().await,
        }
    }

    async fn page_behind_cursor(&mut self) -> Result<Page, Error> {
        let page = loop {
            match self.clerk.page(self.kind, &self.next).await {
                // The user was deleted meanwhile: begin behind an earlier one, at last from the beginning.
                Err(client::Error::CursorGone) if self.next != At::After(None) => {
                    if let At::After(Some(gone)) = &self.next {
                        self.cursors.retain(|cursor| cursor != gone);
                    }
                    self.next = At::After(self.cursors.last().cloned());
                }
                page => break page?,
            }
        };
        let is_last = page.changes.len() < PAGE;
        let ids: Vec<&str> = page.changes.iter().filter_map(Change::id).collect();
        if let Some(last) = ids.last() {
            // A few from all over the page: several may go at once.
            self.cursors.drain(..self.cursors.len().saturating_sub(4));
            self.cursors.extend(ids.iter().step_by(100).map(|id| (*id).to_owned()));
            self.cursors.push((*last).to_owned());
            self.next = At::After(Some((*last).to_owned()));
        }
        self.without_repeats(page.changes, None, is_last, 0)
    }

    async fn page_at_offset(&mut self) -> Result<Page, Error> {
        let At::Offset(mut offset) = self.next else { unreachable!("only users have cursors") };
        loop {
            let page = self.clerk.page(self.kind, &At::Offset(offset)).await?;
            let total = page.total.unwrap_or_default();
            if offset > 0 && !self.joins(&page.changes) {
                let end = usize::try_from(total).unwrap_or(usize::MAX);
                offset = offset.min(end).saturating_sub(STEP_BACK);
                continue;
            }
            let is_last = (offset + page.changes.len()) as u64 >= total;
            self.next = At::Offset((offset + page.changes.len()).saturating_sub(OVERLAP));
            return self.without_repeats(page.changes, Some(total), is_last, offset);
        }
    }

    /// Whether no row can lie between the page before and this one.
    fn joins(&self, changes: &[Change]) -> bool {
        changes.first().is_some_and(|first| {
            first.id().is_some_and(|id| self.before.contains(id))
                || first.created_at().zip(self.last_made).is_some_and(|(made, last)| made < last)
        })
    }

    fn without_repeats(
        &mut self,
        mut changes: Vec<Change>,
        total: Option<u64>,
        is_last: bool,
        offset: usize,
    ) -> Result<Page, Error> {
        let ids: HashSet<String> = changes.iter().filter_map(|change| change.id().map(str::to_owned)).collect();
        let rows = changes.len();
        if let Some(made) = changes.last().and_then(Change::created_at) {
            self.last_made = Some(made);
        }
        changes.retain(|change| change.id().is_none_or(|id| !self.before.contains(id)));
        self.before = ids;
        if changes.is_empty() && !is_last {
            // A place in the list that Clerk does not go by: without end it would show the same.
            return Err(Error::Contradiction(format!("Clerk lists the same {}s again and again", self.kind)));
        }
        let shown_before = rows - changes.len();
        Ok(Page { changes, total, is_last, offset, shown_before })
    }
}

impl Page {
    /// Where to go on if it ends here: before the first row that was made at `open_from`, whose moment is not over yet.
    /// `None`: no further than before.
    pub(super) fn resume_at(&self, kind: Kind, open_from: Millis) -> Option<Value> {
        let made_earlier = |change: &&Change| change.created_at().is_some_and(|made| made < open_from);
        let count = self.changes.iter().take_while(made_earlier).count();
        let last = self.changes[..count].last()?.id()?;
        Some(match kind {
            Kind::User => json!({ "after": last, "from": open_from }),
            Kind::Organization | Kind::Membership => {
                json!({ "offset": self.offset + self.shown_before + count, "from": open_from })
            }
        })
    }
}

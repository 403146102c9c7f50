//! The first step: everything of a kind, listed and compared page by page, and what no page showed.

use super::super::Error;
use super::super::pages::{Cursor, Page, Pages};
use super::super::window::{Window, Windows};
use super::record::{DRY_RUN_ABSENTEES_MAX, mirrored_rows};
use super::{PageEffects, Run};
use crate::clerk::listing::tolerance;
use crate::model::{Kind, Millis, Source};
use crate::reconcile::Progress;
use crate::store::MirrorRow;

/// Ids asked of the mirror at once.
const ID_CHUNK: usize = 1_000;

impl Run<'_> {
    /// Lists everything and compares it, page by page. While one page is written, the next is fetched, with its rows here.
    pub(super) async fn list(&mut self, kind: Kind, progress: &mut dyn Progress) -> Result<(), Error> {
        let cursor = self.position.clone().and_then(Cursor::parse);
        let mut windows = Windows::from(cursor.as_ref().map_or(Millis::MIN, Cursor::from));
        let mut pages = Pages::new(self.clerk, kind, cursor.as_ref());
        let mut reader = self.database.connect_for_passes().await?;
        let mut fetch = async || -> Result<(Page, Vec<MirrorRow>), Error> {
            let page = pages.page().await?;
            let mirrored = mirrored_rows(&mut reader, kind, &page.changes).await?;
            Ok((page, mirrored))
        };
        let (mut page, mut mirrored) = fetch().await?;
        let total = self.total(kind, &page).await?;
        loop {
            let is_last = page.is_last;
            let next = async { if is_last { None } else { Some(fetch().await) } };
            let (next, compared) = tokio::join!(next, self.compare_page(kind, &page, &mirrored, &mut windows));
            compared?;
            progress.listed(kind, self.row.listed.cast_unsigned(), Some(total));
            match next {
                Some(next) => (page, mirrored) = next?,
                None => break,
            }
        }
        self.without_time(kind).await?;
        let mut counted = self.total(kind, &page).await?;
        if pages.has_cursor() && counted > self.row.listed.cast_unsigned() {
            // Some may have been made since the last page.
            let page = pages.page().await?;
            let mirrored = mirrored_rows(self.session, kind, &page.changes).await?;
            let observed = PageEffects { listed: page.changes.len(), ..PageEffects::default() };
            self.record_differences(Source::List, &page.changes, &mirrored, observed).await?;
            counted = self.clerk.count(kind).await?;
        }
        let listed = self.row.listed.cast_unsigned();
        contradiction(kind, counted, listed)?;
        self.undecided.not_listed = counted.saturating_sub(listed).max(page.unlisted);
        Ok(())
    }

    /// How many Clerk has: some of its lists do not say.
    async fn total(&self, kind: Kind, page: &Page) -> Result<u64, Error> {
        match page.total {
            Some(total) => Ok(total),
            None => Ok(self.clerk.count(kind).await?),
        }
    }

    async fn compare_page(
        &mut self,
        kind: Kind,
        page: &Page,
        mirrored: &[MirrorRow],
        windows: &mut Windows,
    ) -> Result<(), Error> {
        let rows: Vec<(Option<Millis>, &str)> =
            page.changes.iter().filter_map(|change| Some((change.created_at(), change.id()?))).collect();
        let passed = windows.pass(&rows, page.is_last)?;
        let absent = match passed.window {
            Some(window) => self.unseen(kind, &window).await?,
            None => Vec::new(),
        };
        if let Some(cursor) = page.resume_at(windows.open_from()) {
            self.position = Some(cursor.to_json());
        }
        let listed_to = Some(if page.is_last { Millis::MAX } else { windows.open_from() });
        let observed = PageEffects { listed: passed.new, listed_to, absent: &absent, ..PageEffects::default() };
        self.record_differences(Source::List, &page.changes, mirrored, observed).await
    }

    /// Ids that the mirror has in a window, and the listing had not. Many of them are written on the way.
    async fn unseen(&mut self, kind: Kind, window: &Window) -> Result<Vec<String>, Error> {
        let mut absent: Vec<String> = Vec::new();
        let mut after = None;
        loop {
            let created =
                self.session.ids_created_between(kind, window.from, window.to, after.as_ref(), ID_CHUNK).await?;
            absent.extend(created.iter().map(|(_, id)| id).filter(|id| !window.saw(id)).cloned());
            if created.len() < ID_CHUNK {
                return Ok(absent);
            }
            after = created.last().cloned();
            if absent.len() > DRY_RUN_ABSENTEES_MAX {
                let observed = PageEffects { absent: &absent, ..PageEffects::default() };
                self.compare_and_record(Source::List, &[], observed).await?;
                absent.clear();
            }
        }
    }

    /// Rows that do not say when they were made are in no window: they are asked for by id.
    async fn without_time(&mut self, kind: Kind) -> Result<(), Error> {
        let mut after = String::new();
        loop {
            let ids = self.session.ids_without_created_at(kind, &after, ID_CHUNK).await?;
            let Some(last) = ids.last() else { return Ok(()) };
            last.clone_into(&mut after);
            self.compare_and_record(Source::List, &[], PageEffects { absent: &ids, ..PageEffects::default() }).await?;
        }
    }
}

/// Fails if a list is much shorter than Clerk's count. A small difference is allowed: rows change while they are listed.
fn contradiction(kind: Kind, counted: u64, listed: u64) -> Result<(), Error> {
    let allowed = if listed == 0 { 0 } else { tolerance(counted) };
    if counted > listed.saturating_add(allowed) {
        return Err(Error::Contradiction(format!(
            "Clerk counts {counted} {} and lists {listed}: nothing was deleted",
            kind.plural()
        )));
    }
    Ok(())
}

//! The third step: the pending reads by id.

use super::super::{Error, Sink};
use super::{PageEffects, Run};
use crate::clerk::client::{MAX_IDS_PER_REQUEST, Read};
use crate::model::{Change, Kind, Observation, Source};

impl Run<'_> {
    /// Makes the pending reads of a kind.
    pub(super) async fn reads(&mut self, kind: Kind) -> Result<(), Error> {
        if self.sink == Sink::DryRun {
            return Ok(());
        }
        let mut after = String::new();
        loop {
            let mut wanted = self.session.pending_reads(kind, &after, MAX_IDS_PER_REQUEST, false).await?;
            let Some(last) = wanted.last() else { return Ok(()) };
            last.id.clone_into(&mut after);
            wanted.retain(|read| !self.unread.contains(&read.id));
            let Read { changes, undecided } = self.clerk.read(kind, &wanted).await?;
            let is_unusable = |change: &&Change| matches!(change.observation, Observation::NeedsRead(_));
            self.undecided.unreadable += (undecided.len() + changes.iter().filter(is_unusable).count()) as u64;
            self.compare_and_record(Source::Read, &changes, PageEffects::default()).await?;
            let ids: Vec<&str> = wanted.iter().map(|read| read.id.as_str()).collect();
            // Reads that were requested just now stay pending: `settle` retries them between passes.
            self.session.mark_reads_attempted(kind, &ids, &ids).await?;
        }
    }
}

//! The second step, what the listing did not show: how much of it may go, and whether Clerk denies it by its id.

use super::super::brake::Removal;
use super::super::finding::{Finding, is_gone};
use super::super::{Error, FINDINGS_REPORTED_MAX, Sink};
use super::{MARGIN, PageEffects, READ_BACKDATE_MS, Run};
use crate::clerk::client::{MAX_IDS_PER_REQUEST, Read};
use crate::model::{Change, Kind, Millis, Observation, PassState, PendingRead, Source, Undecided, grouped, hex};
use crate::store::LiveRow;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeSet, HashSet};

/// Answers about single organizations that a report repeats.
const PROBLEMS: usize = 5;

/// Absentees that a pass leaves as they are.
#[derive(Default)]
struct Unjudged {
    too_fresh: u64,
    held_back: u64,
    judge_after: Option<Millis>,
}

impl Run<'_> {
    /// The next absentees whose rows still stand, and the last id looked at.
    async fn absentees(
        &mut self,
        kind: Kind,
        after: &str,
        limit: usize,
    ) -> Result<Option<(String, Vec<LiveRow>)>, Error> {
        let ids: Vec<String> = if self.sink.fence().is_some() {
            self.session.absentees(self.row.id, after, limit).await?
        } else {
            self.absent
                .range::<str, _>((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded))
                .take(limit)
                .cloned()
                .collect()
        };
        let Some(last) = ids.last().cloned() else { return Ok(None) };
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        Ok(Some((last, self.session.live_rows(kind, &ids).await?)))
    }

    /// Those of these absentees that can be judged now, and why not the others.
    async fn judgeable(&mut self, kind: Kind, mut live_rows: Vec<LiveRow>) -> Result<(Vec<LiveRow>, Unjudged), Error> {
        let margin = if self.is_development { 0 } else { MARGIN };
        let (from, before) = (self.row.observed_from, self.row.observed_from.plus(-margin));
        let mut left = Unjudged::default();
        live_rows.retain(|row| {
            let Some(at) = row.observed_at.filter(|at| *at >= before) else { return true };
            // A row created after the pass began need not be in its listing.
            if row.created_at.is_none_or(|created_at| created_at < from) {
                left.too_fresh += 1;
                left.judge_after = left.judge_after.max(Some(at.plus(margin + READ_BACKDATE_MS)));
            }
            false
        });
        if !kind.parents().is_empty() && !live_rows.is_empty() {
            let ids: Vec<&str> = live_rows.iter().flat_map(parents).collect();
            let held: HashSet<String> = self.session.held_back(kind.parents(), &ids).await?.into_iter().collect();
            let is_away = |id: &str| held.contains(id) || self.parents_away.contains(id);
            let all = live_rows.len();
            live_rows.retain(|row| !parents(row).any(is_away));
            left.held_back = (all - live_rows.len()) as u64;
        }
        Ok((live_rows, left))
    }

    /// Counts absent and existing rows: of this kind, and of the memberships that would end with them. Records how many absent rows
    /// cannot be judged.
    async fn count_absent(&mut self, kind: Kind) -> Result<(Removal, Removal), Error> {
        let mut own = Removal { rows: self.session.count(kind).await?, absent: 0 };
        let mut memberships = Removal::default();
        let mut ids = Sha256::new();
        self.undecided = Undecided { too_fresh: 0, held_back: 0, ..self.undecided };
        let mut after = String::new();
        while let Some((last, live_rows)) = self.absentees(kind, &after, MAX_IDS_PER_REQUEST * 5).await? {
            let (live_rows, left) = self.judgeable(kind, live_rows).await?;
            own.absent += live_rows.len() as u64;
            memberships.absent += live_rows.iter().map(|row| row.memberships.max(0).cast_unsigned()).sum::<u64>();
            live_rows.iter().for_each(|row| ids.update(format!("{}\n", row.read.id)));
            self.undecided.too_fresh += left.too_fresh;
            self.undecided.held_back += left.held_back;
            self.judge_after = self.judge_after.max(left.judge_after);
            after = last;
        }
        if memberships.absent > 0 {
            memberships.rows = self.session.count(Kind::Membership).await?;
        }
        self.held = Some(hex(&ids.finalize()));
        Ok((own, memberships))
    }

    /// The brake.
    pub(super) async fn brake_engages(&mut self, kind: Kind) -> Result<bool, Error> {
        let (mut own, mut memberships) = self.count_absent(kind).await?;
        // Memberships that ended with their parent count towards the parent's limit.
        if own.exceeds_limit() && self.find_parents_away(kind).await? {
            (own, memberships) = self.count_absent(kind).await?;
        }
        if !own.exceeds_limit() && !memberships.exceeds_limit() {
            self.held = None;
            return Ok(false);
        }
        if self.row.approved || self.is_development {
            return Ok(true);
        }
        self.approve = match self.sink {
            Sink::Record(_) => Some(self.row.id),
            Sink::DryRun => {
                self.session.waiting_pass(self.row.scope, Some(self.held.as_deref().unwrap_or_default())).await?
            }
        };
        // Of memberships: those that end with a user or an organization whose deletion waits.
        let waiting = self.undecided.held_back;
        self.undecided.held_back += own.absent;
        self.row.problem = Some(format!(
            "{} of the {} {} here no longer {} at Clerk{}{}",
            grouped(own.absent),
            grouped(own.rows),
            kind.plural(),
            if own.absent == 1 { "exists" } else { "exist" },
            if memberships.absent > 0 {
                format!(", and {} of their memberships would be deleted with them", grouped(memberships.absent))
            } else {
                String::new()
            },
            if waiting > 0 {
                format!(
                    ", and {} others are deleted only when the deletion of their users or organizations is approved",
                    grouped(waiting)
                )
            } else {
                String::new()
            },
        ));
        self.name_candidates(kind).await?;
        Ok(true)
    }

    /// Names the rows that an approval would delete, so that somebody can look at them before.
    async fn name_candidates(&mut self, kind: Kind) -> Result<(), Error> {
        let mut after = String::new();
        while let Some((last, live_rows)) = self.absentees(kind, &after, MAX_IDS_PER_REQUEST * 5).await? {
            let (live_rows, _) = self.judgeable(kind, live_rows).await?;
            let ids: Vec<&str> = live_rows.iter().map(|row| row.read.id.as_str()).collect();
            let receipts = self.session.last_receipts(&ids).await?;
            let room = FINDINGS_REPORTED_MAX.saturating_sub(self.candidates.len());
            self.candidates.extend(live_rows.iter().take(room).map(|row| Finding::extra(kind, row, &receipts)));
            after = last;
        }
        Ok(())
    }

    /// Finds parents of absent memberships that no longer exist at Clerk, and requests passes of their kinds. Stops early if too many
    /// other memberships are absent. Returns whether it found any.
    async fn find_parents_away(&mut self, kind: Kind) -> Result<bool, Error> {
        if kind.parents().is_empty() {
            return Ok(false);
        }
        let (mut seen, mut away) = (HashSet::new(), BTreeSet::new());
        let mut others = Removal { rows: self.session.count(kind).await?, absent: 0 };
        let mut after = String::new();
        while let Some((last, live_rows)) = self.absentees(kind, &after, MAX_IDS_PER_REQUEST * 5).await? {
            let (mut live_rows, _) = self.judgeable(kind, live_rows).await?;
            for &parent in kind.parents() {
                let id = |row: &LiveRow| row.read.parent(parent).unwrap_or_default().to_owned();
                let ids: BTreeSet<String> = live_rows.iter().map(id).filter(|id| !seen.contains(id)).collect();
                let read = |id: &String| PendingRead {
                    kind: parent,
                    id: id.clone(),
                    organization_id: None,
                    user_id: None,
                    reason: "its memberships are absent",
                    reported_deleted: false,
                };
                let reads: Vec<PendingRead> = ids.iter().map(read).collect();
                for change in self.clerk.read(parent, &reads).await?.changes.iter().filter(|change| is_gone(change)) {
                    away.insert(parent);
                    self.parents_away.extend(change.id().map(str::to_owned));
                }
                seen.extend(ids);
                live_rows.retain(|row| !self.parents_away.contains(&id(row)));
            }
            others.absent += live_rows.len() as u64;
            if others.exceeds_limit() {
                break;
            }
            after = last;
        }
        for parent in away.iter().filter(|_| self.sink.fence().is_some()) {
            self.session.request_pass(*parent, "memberships are absent with it").await?;
        }
        Ok(!away.is_empty())
    }

    /// Asks Clerk for each absentee by its id. What is not decided about one of them decides nothing about the others.
    pub(super) async fn confirm(&mut self, kind: Kind) -> Result<PassState, Error> {
        let (mut after, mut unclear, mut problems) = (String::new(), 0, BTreeSet::new());
        let mut is_unknown = false;
        while let Some((last, live_rows)) = self.absentees(kind, &after, MAX_IDS_PER_REQUEST).await? {
            let (live_rows, _) = self.judgeable(kind, live_rows).await?;
            let wanted: Vec<_> = live_rows.iter().map(|row| row.read.clone()).collect();
            let Read { mut changes, undecided } = self.clerk.read(kind, &wanted).await?;
            let settled: Vec<String> = changes.iter().filter_map(|change| change.id().map(str::to_owned)).collect();
            unclear += undecided.len();
            for one in undecided {
                is_unknown |= one.is_unknown;
                self.unread.insert(one.read.id.clone());
                if problems.len() < PROBLEMS {
                    problems.insert(one.problem);
                }
                // It becomes a pending read, which is retried between passes.
                let observation = Observation::NeedsRead(one.read);
                changes.push(Change { observed_at: self.row.observed_from, observation, mention: None });
            }
            self.compare_and_record(
                Source::Read,
                &changes,
                PageEffects { settled: &settled, ..PageEffects::default() },
            )
            .await?;
            after = last;
        }
        if unclear == 0 {
            return Ok(PassState::Complete);
        }
        self.undecided.unreadable += unclear as u64;
        if is_unknown && self.sink.fence().is_some() {
            self.session.request_pass(Kind::Organization, "a membership's organization is not known").await?;
        }
        self.row.problem = Some(format!(
            "{unclear} {} are not listed, and Clerk does not say that they are deleted: they stay as they are. Clerk says of {}",
            kind.plural(),
            problems.into_iter().collect::<Vec<_>>().join("; ")
        ));
        Ok(PassState::Incomplete)
    }
}

/// The ids of its parents: of a membership, its organization and its user.
fn parents(row: &LiveRow) -> impl Iterator<Item = &str> {
    row.read.kind.parents().iter().filter_map(|parent| row.read.parent(*parent))
}

//! One object, read by its id, with its memberships; and the reads that webhooks left to be made.

use super::brake::Removal;
use super::compare::{Difference, Found, compare};
use super::finding::is_gone;
use super::{Error, Reconciler, refused_rows};
use crate::clerk::client::{self, MAX_IDS_PER_REQUEST, Read};
use crate::clerk::kinds::{self, ReadBy};
use crate::model::{Change, Kind, Observation, Outcome, PendingRead, Reason, Source, Verdict, Word};
use crate::store::Session;
use serde::Serialize;
use std::collections::HashSet;
use std::time::Duration;

impl Reconciler {
    /// Reads an object and, of a user or organization, its memberships. Answers what became of each. `undelete`: also where a webhook
    /// has reported that it was deleted, which nothing else undoes (R4).
    ///
    /// # Errors
    /// Clerk or the database does not answer; neither of them knows the object, and nothing was written; or it is a membership that
    /// nobody has named here.
    pub async fn refresh(&self, id: &str, undelete: bool) -> Result<Vec<Refreshed>, Error> {
        let source = if undelete { Source::Undelete } else { Source::Read };
        let mut session = self.database.connect_for_passes().await?;
        self.check_instance(&mut session).await?;
        let kind = Kind::of_id(id).unwrap_or(Kind::User);
        if kinds::of(kind).read_by == ReadBy::Pair {
            let live_rows = session.live_rows(kind, &[id]).await?;
            let read = live_rows.into_iter().next().ok_or_else(|| Error::UnknownMembership(id.to_owned()))?.read;
            let answer = self.clerk.read(kind, std::slice::from_ref(&read)).await?;
            return refreshed(&mut session, source, kind, answer).await;
        }
        let wanted = PendingRead {
            kind,
            id: id.to_owned(),
            organization_id: None,
            user_id: None,
            reason: "refresh",
            reported_deleted: false,
        };
        let answer = self.clerk.read(kind, std::slice::from_ref(&wanted)).await?;
        // A tombstone for a mistyped id would stay for ever.
        let is_absent = !answer.changes.is_empty() && answer.changes.iter().all(is_gone);
        if is_absent && !session.knows(kind, id).await? {
            return Err(Error::Unknown(id.to_owned()));
        }
        let mut all = refreshed(&mut session, source, kind, answer).await?;
        let listed = match self.clerk.memberships_of(kind, id).await {
            Ok(listed) => listed,
            // The parent is gone, and its memberships with it.
            Err(client::Error::NotFound(_) | client::Error::OrganizationsOff) => return Ok(all),
            Err(error) => return Err(error.into()),
        };
        let (listed, reads) = members(&mut session, kind, id, listed).await?;
        let of_list = if undelete { source } else { Source::List };
        let listed = Read { changes: listed, undecided: Vec::new() };
        all.extend(refreshed(&mut session, of_list, Kind::Membership, listed).await?);
        let answer = self.clerk.read(Kind::Membership, &reads).await?;
        all.extend(refreshed(&mut session, source, Kind::Membership, answer).await?);
        Ok(all)
    }

    /// Lists the memberships of the organizations for which that was asked, and writes what differs. Answers how many were listed,
    /// and when the next is due.
    ///
    /// # Errors
    /// Clerk or the database does not answer: they are listed later.
    pub async fn list_members(&self) -> Result<(usize, Option<Duration>), Error> {
        let mut session = self.database.connect().await?;
        let (mut listed, mut is_checked) = (0, false);
        loop {
            let organizations = session.claim_listings(1).await?;
            let Some(organization) = organizations.first() else { break };
            if !is_checked {
                self.check_instance(&mut session).await?;
                is_checked = true;
            }
            match self.members_of(&mut session, organization).await {
                Ok(()) => {
                    session.mark_listed(organization).await?;
                    listed += 1;
                }
                Err(error @ Error::Database(_)) => return Err(error),
                // It is about this one: the others are listed.
                Err(error) => tracing::warn!(organization, %error, "the members of an organization cannot be listed"),
            }
        }
        let next = session.next_listing().await?;
        session.close().await;
        Ok((listed, next))
    }

    async fn members_of(&self, session: &mut Session, organization: &str) -> Result<(), Error> {
        let listed = match self.clerk.memberships_of(Kind::Organization, organization).await {
            Ok(listed) => listed,
            Err(client::Error::NotFound(_)) => {
                session.request_pass(Kind::Organization, "an organization with a plan is not known").await?;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let (listed, reads) = members(session, Kind::Organization, organization, listed).await?;
        let ids: Vec<&str> = listed.iter().filter_map(Change::id).collect();
        let mirrored = session.mirrored(Kind::Membership, &ids).await?;
        let differing: Vec<Change> =
            compare(&listed, &mirrored).into_iter().map(|difference| difference.change.clone()).collect();
        apply(session, Source::List, differing).await?;
        // As in a pass: so many at once somebody must approve.
        let rows = session.memberships_of(Kind::Organization, organization).await?.len() as u64;
        if (Removal { rows, absent: reads.len() as u64 }).exceeds_limit() {
            session.request_pass(Kind::Membership, "many memberships of an organization are absent").await?;
            return Ok(());
        }
        self.read(session, Source::Read, Kind::Membership, &reads).await.map(drop)
    }

    /// Makes the reads by id that are due: those that webhooks requested, those of stubs, and those that repeat a contradicting read (R2).
    /// Returns how many were settled.
    ///
    /// # Errors
    /// Clerk or the database does not answer: they are to be made again. A malformed response is left to the next pass.
    pub async fn run_pending_reads(&self) -> Result<usize, Error> {
        let mut session = self.database.connect().await?;
        let (mut settled, mut is_checked) = (0, false);
        for kind in Kind::ALL {
            let mut after = String::new();
            loop {
                let wanted = session.pending_reads(kind, &after, MAX_IDS_PER_REQUEST, true).await?;
                let Some(last) = wanted.last() else { break };
                last.id.clone_into(&mut after);
                if !is_checked {
                    self.check_instance(&mut session).await?;
                    is_checked = true;
                }
                let (result, silent) = match self.clerk.read(kind, &wanted).await {
                    // They are not tried yet.
                    Err(error @ client::Error::Unavailable(_)) => return Err(error.into()),
                    Err(error) => (Err(error.into()), Vec::new()),
                    Ok(Read { changes, undecided }) => (apply(&mut session, Source::Read, changes).await, undecided),
                };
                let ids: Vec<&str> = wanted.iter().map(|read| read.id.as_str()).collect();
                // Count the attempt in any case. The next pass retries, and so do we if the read was too early or got no response.
                let is_early = |verdict: &Verdict| verdict.known_reason().is_some_and(Reason::is_early);
                let silent = silent.iter().filter(|one| one.is_silence).map(|one| one.read.id.as_str());
                let early: Vec<&str> = match &result {
                    Ok(read) => read
                        .iter()
                        .filter(|(_, verdict)| is_early(verdict))
                        .map(|(id, _)| id.as_str())
                        .chain(silent)
                        .collect(),
                    Err(_) => ids.clone(),
                };
                session.mark_reads_attempted(kind, &ids, &early).await?;
                let contradicts = |verdict: &Verdict| verdict.known_reason().is_some_and(Reason::contradicts);
                let is_settled = |verdict: &Verdict| {
                    verdict.outcome != Outcome::Pending && !is_early(verdict) && !contradicts(verdict)
                };
                settled += result?.iter().filter(|(_, verdict)| is_settled(verdict)).count();
            }
        }
        session.close().await;
        Ok(settled)
    }

    /// Reads these, all of them.
    async fn read(
        &self,
        session: &mut Session,
        source: Source,
        kind: Kind,
        wanted: &[PendingRead],
    ) -> Result<Vec<(String, Verdict)>, Error> {
        let answer = self.clerk.read(kind, wanted).await?;
        apply_read(session, source, answer).await
    }
}

/// What became of one object that was read again.
#[derive(Clone, Debug, Serialize)]
pub struct Refreshed {
    pub kind: Kind,
    pub id: String,
    pub outcome: Outcome,
    pub reason: Option<Word<Reason>>,
    /// Whether the row said something else before. Its version may have moved all the same.
    pub differed: bool,
}

/// Writes what was read, and says what became of each.
async fn refreshed(session: &mut Session, source: Source, kind: Kind, answer: Read) -> Result<Vec<Refreshed>, Error> {
    let ids: Vec<&str> = answer.changes.iter().filter_map(Change::id).collect();
    let mirrored = session.mirrored(kind, &ids).await?;
    let same = |difference: &Difference<'_>| matches!(difference.found, Found::VersionOnly);
    let differing: HashSet<String> = compare(&answer.changes, &mirrored)
        .iter()
        .filter(|difference| !same(difference))
        .map(|difference| difference.change)
        .chain(answer.changes.iter().filter(|change| is_gone(change)))
        .filter_map(|change| change.id().map(str::to_owned))
        .collect();
    let verdicts = apply_read(session, source, answer).await?;
    let differed = |id: &str, verdict: &Verdict| differing.contains(id) && verdict.outcome == Outcome::Applied;
    Ok(verdicts
        .into_iter()
        .map(|(id, verdict)| Refreshed {
            kind,
            differed: differed(&id, &verdict),
            id,
            outcome: verdict.outcome,
            reason: verdict.reason,
        })
        .collect())
}

async fn apply_read(session: &mut Session, source: Source, answer: Read) -> Result<Vec<(String, Verdict)>, Error> {
    let verdicts = apply(session, source, answer.changes).await?;
    // (Of a membership whose organization Clerk does not know nothing can be told.)
    match answer.undecided.into_iter().find(|one| !one.is_unknown) {
        Some(one) => Err(Error::Contradiction(format!("Clerk says of {}", one.problem))),
        None => Ok(verdicts),
    }
}

/// Splits a list of a parent's memberships into usable rows and reads by pair. Memberships that the list omits, or lists without their
/// user, are read by organization and user: Clerk's list for a user need not name the user.
async fn members(
    session: &mut Session,
    kind: Kind,
    id: &str,
    listed: Vec<Change>,
) -> Result<(Vec<Change>, Vec<PendingRead>), Error> {
    let (mut listed, unusable): (Vec<Change>, Vec<Change>) =
        listed.into_iter().partition(|change| matches!(change.observation, Observation::Live { .. }));
    let shown: HashSet<&str> = listed.iter().filter_map(Change::id).collect();
    let mut reads = session.memberships_of(kind, id).await?;
    reads.retain(|read| !shown.contains(read.id.as_str()));
    for change in unusable {
        match by_pair(&change, kind, id) {
            Some(read) if reads.iter().any(|known| known.id == read.id) => {}
            Some(read) => reads.push(read),
            None => listed.push(change),
        }
    }
    Ok((listed, reads))
}

/// The read of a membership that a list of its parent's could not tell whole, if its pair is known.
fn by_pair(change: &Change, parent: Kind, id: &str) -> Option<PendingRead> {
    let Observation::NeedsRead(read) = &change.observation else { return None };
    let read = read.clone().listed_for(parent, id);
    (read.organization_id.is_some() && read.user_id.is_some()).then_some(read)
}

async fn apply(session: &mut Session, source: Source, changes: Vec<Change>) -> Result<Vec<(String, Verdict)>, Error> {
    let mut answers = Vec::with_capacity(changes.len());
    for changes in changes.chunks(client::PAGE_SIZE) {
        let written = refused_rows::write(session, source, None, &changes.iter().collect::<Vec<_>>()).await?;
        let answered = changes.iter().zip(written.verdicts);
        answers.extend(answered.filter_map(|(change, verdict)| Some((change.id()?.to_owned(), verdict?))));
    }
    Ok(answers)
}

//! What somebody saw of Clerk, and what became of it.

use super::{
    Entity, EntityRef, InstanceId, Kind, MembershipId, Millis, Organization, OrganizationId, Reason, User, UserId,
    Word, words,
};

words! {
    /// Who observed. It decides how much an observation is worth against tombstones and future versions.
    Source {
        /// An event, possibly old, possibly overtaken.
        Webhook = "webhook",
        /// A page of a listing of the Backend API. Its silence about an object proves nothing.
        List = "list",
        /// A read of one object by its id.
        Read = "read",
        /// The same, for a person who says that an object that an event reported as deleted is there after all (R4).
        Undelete = "undelete",
        /// An answer about a development instance, believed at once. The writer takes it only where the mirror's instance is one.
        Development = "development",
    }
}

/// One observation of Clerk.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// On Clerk's clock: the event's own timestamp, or the time of an API answer. Never ours.
    pub observed_at: Millis,
    pub observation: Observation,
    /// Of every observation of a membership, whatever else it says.
    pub mention: Option<MembershipMention>,
}

impl Change {
    /// The object that it is about, where it names one.
    pub fn id(&self) -> Option<&str> {
        match &self.observation {
            Observation::Live { entity, .. } => Some(entity.id()),
            Observation::Deleted(entity) => Some(&entity.id),
            Observation::NeedsRead(read) => Some(&read.id),
            Observation::NeedsPass { .. } => None,
        }
    }

    /// Leaves to a read by id what it says of its object: the read decides, and this only asks for it.
    pub(crate) fn set_aside(&mut self, reason: &'static str) {
        let (EntityRef { kind, id }, reported_deleted) = match &self.observation {
            Observation::Live { entity, .. } => (EntityRef::new(entity.kind(), entity.id()), false),
            Observation::Deleted(entity) => (entity.clone(), true),
            Observation::NeedsRead(_) | Observation::NeedsPass { .. } => return,
        };
        let pair = self.mention.as_ref().map(|mention| (mention.organization.id.clone(), mention.user.id.clone()));
        let (organization_id, user_id) = pair.unzip();
        self.observed_at = Millis::MIN;
        self.observation =
            Observation::NeedsRead(PendingRead { kind, id, organization_id, user_id, reason, reported_deleted });
    }

    /// When Clerk made the object, as far as the observation tells.
    pub fn created_at(&self) -> Option<Millis> {
        match &self.observation {
            Observation::Live { entity, .. } => entity.created_at(),
            Observation::Deleted(_) | Observation::NeedsRead(_) | Observation::NeedsPass { .. } => {
                self.mention.as_ref().map(|mention| mention.created_at)
            }
        }
    }
}

/// What the observation says.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// It existed and looked like this. `updated_at` is Clerk's, at most a second later than the latest time that Clerk reported (R1);
    /// `ahead` is what Clerk sent, where that was later.
    Live { entity: Entity, updated_at: Millis, ahead: Option<Millis> },
    /// It was deleted.
    Deleted(EntityRef),
    /// It names an object but cannot be used: the object must be read by its id.
    NeedsRead(PendingRead),
    /// It says that something of a kind changed, and not what: only a pass can tell, or, where it is about the memberships of one
    /// organization, a list of those. One that begins `ripe_after` seconds later surely can.
    NeedsPass { kind: Kind, organization_id: Option<OrganizationId>, reason: &'static str, ripe_after: u16 },
}

impl Observation {
    /// The object as Clerk sent it, with an `updated_at` that is no later than `bound`: a time far ahead must not keep every later
    /// change out (R1).
    pub fn live(entity: Entity, updated_at: Millis, bound: Millis) -> Observation {
        let ahead = (updated_at > bound).then_some(updated_at);
        Observation::Live { entity, updated_at: updated_at.min(bound), ahead }
    }
}

/// An object to be read by its id, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingRead {
    pub kind: Kind,
    pub id: String,
    /// Of a membership, as far as known: the API finds one only by its organization and user.
    pub organization_id: Option<OrganizationId>,
    pub user_id: Option<UserId>,
    pub reason: &'static str,
    /// An event says that it was deleted, and not when. Then Clerk's API proves it by not having it.
    pub reported_deleted: bool,
}

impl PendingRead {
    /// The id of its parent of that kind, as far as known.
    pub fn parent(&self, kind: Kind) -> Option<&str> {
        match kind {
            Kind::User => self.user_id.as_ref().map(UserId::as_str),
            Kind::Organization => self.organization_id.as_ref().map(OrganizationId::as_str),
            Kind::Membership => None,
        }
    }

    /// The same, of an object that was listed for this parent: a list for a user need not name the user.
    pub(crate) fn listed_for(mut self, parent: Kind, id: &str) -> PendingRead {
        match parent {
            Kind::User => {
                self.user_id.get_or_insert_with(|| UserId(id.to_owned()));
            }
            Kind::Organization | Kind::Membership => {}
        }
        self
    }
}

/// Evidence that a membership exists or existed, with what it embeds of its user and its organization.
///
/// Even an observation that is stale, dead or beaten within its batch counts for this (R5, R6, R8).
#[derive(Clone, Debug, PartialEq)]
pub struct MembershipMention {
    pub membership_id: MembershipId,
    /// Clerk's, at most a second later than any clock of Clerk's told (R5).
    pub created_at: Millis,
    pub organization: Organization,
    pub user: User,
}

/// What the writer did with a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub outcome: Outcome,
    /// For logs, receipts and the answer. The writer's own words are known; what is kept for later has the reason that it came
    /// with, and [`Outcome::Foreign`] the id of the pinned instance.
    pub reason: Option<Word<Reason>>,
}

impl Verdict {
    /// Of [`Outcome::Foreign`]: the instance that the mirror is pinned to.
    pub fn pinned(&self) -> Option<InstanceId> {
        let reason = self.reason.as_ref().filter(|_| self.outcome == Outcome::Foreign)?;
        Some(InstanceId::from(reason.as_str()))
    }

    /// The writer's own word, if it is one.
    pub(crate) fn known_reason(&self) -> Option<Reason> {
        self.reason.as_ref().and_then(Word::known)
    }
}

words! {
    /// See [`Verdict`].
    Outcome {
        /// It won and the mirror says so.
        Applied = "applied",
        /// The mirror said so already.
        Unchanged = "unchanged",
        /// Something newer is known.
        Stale = "stale",
        /// The same message came before, and changed nothing this time.
        Duplicate = "duplicate",
        /// An event that says nothing about what we mirror.
        Ignored = "ignored",
        /// Kept until a read by id or a pass decides.
        Pending = "pending",
        /// Kept whole for a person: it cannot be used.
        DeadLetter = "dead_letter",
        /// Of another Clerk instance than the mirror; nothing was written.
        Foreign = "foreign",
        /// Its message id was already used with another body; nothing was written yet.
        Reused = "reused",
        /// Its own time is more than five minutes ahead of the database's clock; nothing was written yet.
        Ahead = "ahead",
    }
}

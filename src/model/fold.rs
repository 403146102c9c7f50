//! Many changes, brought down to one per object (R8).
//!
//! Folding is a join: applying the folded batch gives what applying the changes one by one would, in any order. The losers
//! therefore leave behind what they *name*: the pair, creation time and parents of every membership among them, of which the
//! greatest of each pair counts.

use super::entity::content;
use super::{
    Change, Entity, EntityRef, Fence, InstanceId, Kind, MembershipMention, MessageId, Millis, Observation,
    Organization, OrganizationId, PendingRead, Source, User, UserId,
};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

/// One signed message, told to the writer beside what it says.
#[derive(Clone, Debug)]
pub struct Message {
    pub id: MessageId,
    /// SHA-256 of the raw body, in hexadecimal: the same message has the same body in every attempt.
    pub body_hash: String,
    /// Empty where the body names none.
    pub event_type: String,
    pub entity_id: Option<String>,
    pub instance_id: Option<InstanceId>,
    pub event_at: Option<Millis>,
    /// Fields that could not be taken as they came, and why; values never.
    pub field_errors: Vec<String>,
}

/// A message that cannot be used, kept whole.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    pub reason: String,
    /// Names and values of those that tell something of the message.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// What the writer is asked to write for one message, or for one finding of a pass.
#[derive(Clone, Debug)]
pub enum Item {
    Change(Box<Change>),
    DeadLetter(DeadLetter),
}

/// An item with the message that brought it, if one did.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub message: Option<Message>,
    pub item: Item,
}

/// Why the database did not take a row: something of the application's, or what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The server's code.
    pub sqlstate: String,
    /// The constraint, index or trigger function that refused, as far as the server names it. No values.
    pub object: Option<String>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SQLSTATE {}", self.sqlstate)?;
        self.object.iter().try_for_each(|object| write!(f, ", {object}"))
    }
}

/// How much of a batch is to be written. Where a change is refused, the next one is tried: what takes access away takes effect
/// whatever something of the application's thinks of our row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// All of it.
    #[default]
    Full,
    /// Of rows that are there, what decides access.
    Access,
    /// No row at all: bookkeeping, and a denial where the row gives access that it should not give.
    Deny(Refusal),
}

/// A folded batch: what `clerk_sync.apply` takes. An item comes with its position among what was folded.
#[derive(Debug)]
pub struct Batch<'a> {
    pub source: Source,
    /// Of a pass.
    pub fence: Option<Fence>,
    pub check_instance: bool,
    pub messages: Vec<BatchMessage<'a>>,
    /// Objects that are no more.
    pub deletions: Vec<FoldedChange<'a>>,
    /// Objects that are live.
    pub changes: Vec<FoldedChange<'a>>,
    pub stubs: Vec<FoldedChange<'a>>,
    /// The greatest of each pair, and when it was observed.
    pub mentions: Vec<(Millis, &'a MembershipMention)>,
    /// Memberships that came with a greater one of the same pair.
    pub superseded: Vec<&'a str>,
    /// With the time of what asks for it, if it has one.
    pub pending_reads: Vec<(usize, Option<Millis>, &'a PendingRead)>,
    pub requested_passes: Vec<RequestedPass<'a>>,
    pub dead_letters: Vec<(usize, &'a DeadLetter)>,
    pub doubts: Vec<Doubt>,
    /// How much of it is to be written; of one change alone, unless it is [`Mode::Full`].
    pub mode: Mode,
    /// How long to wait for a lock that somebody else has on a row of ours; `None`: as long as the session says.
    pub lock_wait: Option<Duration>,
}

/// Of a change in whose place several events came: what they leave open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    pub n: usize,
    /// Two of them are so close together that nobody knows which state came last, and their access differs (R9): a read must tell.
    pub asks: bool,
    /// And their times even disagree.
    pub in_doubt: bool,
    /// The greatest of them.
    pub event: EventVersion,
}

/// What an event told: `updated_at`, when it was observed, and the content.
pub(crate) type EventVersion = (Millis, Millis, i64);

/// A message among what was folded.
#[derive(Clone, Copy, Debug)]
pub struct BatchMessage<'a> {
    pub n: usize,
    pub message: &'a Message,
    /// The body's hash of the first message with this id, if this is a later one.
    pub first_hash: Option<&'a str>,
}

/// A kind to be listed, or the memberships of one organization.
#[derive(Clone, Copy, Debug)]
pub struct RequestedPass<'a> {
    pub n: usize,
    pub kind: Kind,
    pub organization_id: Option<&'a OrganizationId>,
    pub reason: &'static str,
    /// In s; see [`Observation::NeedsPass`].
    pub ripe_after: u16,
}

/// The change that counts for an object, or the stub that counts for a parent.
#[derive(Clone, Debug)]
pub struct FoldedChange<'a> {
    pub n: usize,
    pub observed_at: Millis,
    pub updated_at: Option<Millis>,
    pub content: Option<i64>,
    /// See [`Entity::denial`].
    pub denial: i32,
    /// See [`Observation::Live`].
    pub ahead: Option<Millis>,
    pub row: Row<'a>,
    /// Set where another event was folded into this one.
    pub doubt: Option<Doubt>,
}

/// What is to be written of an object.
#[derive(Clone, Copy, Debug)]
pub enum Row<'a> {
    Live(&'a Entity),
    Stub(Stub<'a>),
    Gone(&'a EntityRef),
}

/// What a membership embeds of a parent.
#[derive(Clone, Copy, Debug)]
pub enum Stub<'a> {
    User(&'a User),
    Organization(&'a Organization),
}

impl<'a> Batch<'a> {
    /// Folds deliveries that were all observed by `source`. `check_instance`: whether messages of another Clerk instance
    /// than the mirror's are refused.
    pub fn fold(source: Source, check_instance: bool, deliveries: impl Iterator<Item = &'a Delivery>) -> Batch<'a> {
        let mut folding = Folding::new(source, check_instance);
        for (n, delivery) in deliveries.enumerate() {
            folding.tell(n, delivery.message.as_ref());
            match &delivery.item {
                Item::DeadLetter(letter) => folding.batch.dead_letters.push((n, letter)),
                Item::Change(change) => folding.add(n, change),
            }
        }
        folding.end()
    }

    /// Folds changes that no message brought.
    pub fn of_changes(source: Source, changes: impl Iterator<Item = &'a Change>) -> Batch<'a> {
        let mut folding = Folding::new(source, false);
        changes.enumerate().for_each(|(n, change)| folding.add(n, change));
        folding.end()
    }
}

/// A batch that is being folded: the best so far of each object.
struct Folding<'a> {
    batch: Batch<'a>,
    winners: Best<'a>,
    stubs: Best<'a>,
    mentions: HashMap<(&'a OrganizationId, &'a UserId), (Millis, &'a MembershipMention)>,
    /// By a message's id, the body's hash of the first one.
    first_hashes: HashMap<&'a MessageId, &'a str>,
}

/// By kind and id.
type Best<'a> = HashMap<(Kind, &'a str), FoldedChange<'a>>;

impl<'a> Folding<'a> {
    fn new(source: Source, check_instance: bool) -> Folding<'a> {
        let batch = Batch {
            source,
            fence: None,
            check_instance,
            messages: Vec::new(),
            deletions: Vec::new(),
            changes: Vec::new(),
            stubs: Vec::new(),
            mentions: Vec::new(),
            superseded: Vec::new(),
            pending_reads: Vec::new(),
            requested_passes: Vec::new(),
            dead_letters: Vec::new(),
            doubts: Vec::new(),
            mode: Mode::Full,
            lock_wait: None,
        };
        Folding {
            batch,
            winners: HashMap::new(),
            stubs: HashMap::new(),
            mentions: HashMap::new(),
            first_hashes: HashMap::new(),
        }
    }

    fn tell(&mut self, n: usize, message: Option<&'a Message>) {
        let Some(message) = message else { return };
        let first_hash = match self.first_hashes.entry(&message.id) {
            Entry::Occupied(first) => Some(*first.get()),
            Entry::Vacant(none) => {
                none.insert(&message.body_hash);
                None
            }
        };
        self.batch.messages.push(BatchMessage { n, message, first_hash });
    }

    fn add(&mut self, n: usize, change: &'a Change) {
        if let Some(mention) = &change.mention {
            self.name(change.observed_at, mention);
            for stub in FoldedChange::stubs(n, change.observed_at, mention) {
                keep_greater(&mut self.stubs, stub);
            }
        }
        match &change.observation {
            Observation::Live { entity, updated_at, ahead } => {
                let winner = FoldedChange::live(n, change.observed_at, (*updated_at, *ahead), entity);
                keep_greater(&mut self.winners, winner);
            }
            Observation::Deleted(entity) => {
                keep_greater(&mut self.winners, FoldedChange::gone(n, change.observed_at, entity));
            }
            Observation::NeedsRead(read) => {
                let observed_at = Some(change.observed_at).filter(|at| *at > Millis::MIN);
                self.batch.pending_reads.push((n, observed_at, read));
            }
            Observation::NeedsPass { kind, organization_id, reason, ripe_after } => {
                self.batch.requested_passes.push(RequestedPass {
                    n,
                    kind: *kind,
                    organization_id: organization_id.as_ref(),
                    reason,
                    ripe_after: *ripe_after,
                });
            }
        }
    }

    /// Of each pair the greatest membership counts (R5).
    fn name(&mut self, observed_at: Millis, mention: &'a MembershipMention) {
        match self.mentions.entry((&mention.organization.id, &mention.user.id)) {
            Entry::Vacant(entry) => {
                entry.insert((observed_at, mention));
            }
            Entry::Occupied(mut entry) => {
                let (known, mention) = (*entry.get(), (observed_at, mention));
                let (less, greater) = if place(mention) > place(known) { (known, mention) } else { (mention, known) };
                if less.1.membership_id != greater.1.membership_id {
                    self.batch.superseded.push(less.1.membership_id.as_str());
                }
                entry.insert(greater);
            }
        }
    }

    fn end(self) -> Batch<'a> {
        let in_order = |best: Best<'a>| {
            let mut best: Vec<FoldedChange<'a>> = best.into_values().collect();
            best.sort_by_key(|winner| winner.n);
            best
        };
        let (deletions, changes): (Vec<_>, Vec<FoldedChange<'a>>) =
            in_order(self.winners).into_iter().partition(|winner| matches!(winner.row, Row::Gone(_)));
        let mentions = self.mentions.into_values().collect();
        let doubts = changes.iter().filter_map(|winner| winner.doubt).collect();
        Batch { deletions, changes, stubs: in_order(self.stubs), mentions, doubts, ..self.batch }
    }
}

impl Batch<'_> {
    /// The same, of which so much is to be written.
    #[must_use]
    pub fn at(self, mode: Mode) -> Self {
        Batch { mode, ..self }
    }

    /// The same, that waits so long for locks on rows.
    #[must_use]
    pub fn waiting(self, lock_wait: Option<Duration>) -> Self {
        Batch { lock_wait, ..self }
    }

    /// Written only while the lease of this number is held.
    #[must_use]
    pub fn fenced(self, fence: Fence) -> Self {
        Batch { fence: Some(fence), ..self }
    }
}

/// A membership's place among all of its pair; of two observations of one, the later.
fn place((observed_at, mention): (Millis, &MembershipMention)) -> (Millis, &str, Millis) {
    (mention.created_at, mention.membership_id.as_str(), observed_at)
}

fn keep_greater<'a>(best: &mut Best<'a>, winner: FoldedChange<'a>) {
    match best.entry((winner.row.kind(), winner.row.id())) {
        Entry::Vacant(entry) => {
            entry.insert(winner);
        }
        Entry::Occupied(mut entry) => {
            let both = entry.get().or(&winner);
            entry.insert(both);
        }
    }
}

/// R9, in ms: how far the clocks of Clerk's servers are apart, and how close together events may be in the wrong order.
const SKEW: i64 = 2_100;
const SOON: i64 = 5_000;

impl<'a> FoldedChange<'a> {
    fn live(
        n: usize,
        observed_at: Millis,
        (updated_at, ahead): (Millis, Option<Millis>),
        entity: &'a Entity,
    ) -> FoldedChange<'a> {
        let row = Row::Live(entity);
        let (updated_at, content, denial) = (Some(updated_at), Some(entity.content()), entity.denial());
        FoldedChange { n, observed_at, updated_at, content, denial, ahead, row, doubt: None }
    }

    fn gone(n: usize, observed_at: Millis, entity: &'a EntityRef) -> FoldedChange<'a> {
        let row = Row::Gone(entity);
        FoldedChange { n, observed_at, updated_at: None, content: None, denial: 0, ahead: None, row, doubt: None }
    }

    /// A stub's version is the observation that embeds it: what is embedded has no time of its own (R6).
    fn stubs(n: usize, observed_at: Millis, mention: &'a MembershipMention) -> [FoldedChange<'a>; 2] {
        let stub = |content, stub| {
            let (content, row) = (Some(content), Row::Stub(stub));
            FoldedChange { n, observed_at, updated_at: None, content, denial: 0, ahead: None, row, doubt: None }
        };
        [
            stub(content(&mention.user), Stub::User(&mention.user)),
            stub(content(&mention.organization), Stub::Organization(&mention.organization)),
        ]
    }

    /// What two observations of one object come to, whichever came first.
    fn or(&self, other: &FoldedChange<'a>) -> FoldedChange<'a> {
        let (less, greater) = if other.version() > self.version() { (self, other) } else { (other, self) };
        let (Some(earlier), Some(later)) = (less.event(), greater.event()) else { return greater.clone() };
        let asks = [less, greater].into_iter().any(|winner| winner.doubt.is_some_and(|doubt| doubt.asks));
        let with = |winner: &FoldedChange<'a>, asks: bool, in_doubt: bool| {
            let in_doubt = in_doubt || winner.doubt.is_some_and(|doubt| doubt.in_doubt);
            FoldedChange {
                doubt: Some(Doubt { n: winner.n, asks, in_doubt, event: earlier.max(later) }),
                ..winner.clone()
            }
        };
        let (updated, observed) =
            (apart(less.updated_at, greater.updated_at), greater.observed_at.get() - less.observed_at.get());
        // R9: where nobody knows their order, the one with less access stands.
        let is_unordered =
            (updated == 0 && observed.abs() <= SKEW) || (updated <= SOON && updated.saturating_mul(observed) < 0);
        let is_close = updated <= SKEW && observed.abs() <= SKEW;
        if (is_unordered || is_close) && !less.row.has_access_of(greater.row) {
            let stands = if less.denial > greater.denial { less } else { greater };
            return with(stands, true, is_unordered);
        }
        with(greater, asks, false)
    }

    /// The greatest event of those that were folded into this one, if it is a state at all.
    fn event(&self) -> Option<EventVersion> {
        let own = (self.updated_at?, self.observed_at, self.content?);
        Some(self.doubt.map_or(own, |doubt| doubt.event))
    }

    /// A delete beats everything (R4); else the greater version wins (R1).
    fn version(&self) -> (bool, Option<Millis>, Millis, i32, Option<i64>) {
        (matches!(self.row, Row::Gone(_)), self.updated_at, self.observed_at, self.denial, self.content)
    }
}

fn apart(a: Option<Millis>, b: Option<Millis>) -> i64 {
    a.zip(b).map_or(0, |(a, b)| b.get() - a.get())
}

impl<'a> Row<'a> {
    /// Whether both give the same access. Stubs and deleted objects are not compared.
    fn has_access_of(self, other: Row<'_>) -> bool {
        match (self, other) {
            (Row::Live(a), Row::Live(b)) => a.has_access_of(b),
            (Row::Live(_) | Row::Stub(_) | Row::Gone(_), _) => true,
        }
    }

    pub fn kind(self) -> Kind {
        match self {
            Row::Live(entity) => entity.kind(),
            Row::Stub(Stub::User(_)) => Kind::User,
            Row::Stub(Stub::Organization(_)) => Kind::Organization,
            Row::Gone(entity) => entity.kind,
        }
    }

    pub fn id(self) -> &'a str {
        match self {
            Row::Live(entity) => entity.id(),
            Row::Stub(Stub::User(user)) => user.id.as_str(),
            Row::Stub(Stub::Organization(organization)) => organization.id.as_str(),
            Row::Gone(entity) => &entity.id,
        }
    }
}

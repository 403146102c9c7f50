//! Many changes, brought down to one per object (R8).
//!
//! Folding is a join: applying the folded batch gives what applying the changes one by one would, in any order. The losers
//! therefore leave behind what they *name*: the pair, creation time and parents of every membership among them, of which the
//! greatest of each pair counts.

use super::entity::content;
use super::{
    Change, Claim, Entity, EntityRef, InstanceId, Kind, Membership, MessageId, Millis, Naming, Organization,
    OrganizationId, Source, User, UserId, WantedRead,
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
    pub flaws: Vec<String>,
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
    /// Of a pass: its lease's token.
    pub fence: Option<i64>,
    pub check_instance: bool,
    pub messages: Vec<Told<'a>>,
    /// Objects that are no more.
    pub gone: Vec<Winner<'a>>,
    /// Objects that are live.
    pub changes: Vec<Winner<'a>>,
    pub stubs: Vec<Winner<'a>>,
    /// The greatest of each pair.
    pub namings: Vec<&'a Naming>,
    /// Memberships that came with a greater one of the same pair.
    pub outdated: Vec<&'a str>,
    pub reads: Vec<(usize, &'a WantedRead)>,
    pub passes: Vec<WantedPass<'a>>,
    pub dead_letters: Vec<(usize, &'a DeadLetter)>,
    /// How much of it is to be written; of one change alone, unless it is [`Mode::Full`].
    pub mode: Mode,
    /// How long to wait for a lock that somebody else has on a row of ours; `None`: as long as the session says.
    pub lock_wait: Option<Duration>,
}

/// A message among what was folded.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    pub n: usize,
    pub message: &'a Message,
    /// The body's hash of the first message with this id, if this is a later one.
    pub first_hash: Option<&'a str>,
}

/// A kind to be listed, or the memberships of one organization.
#[derive(Clone, Copy, Debug)]
pub struct WantedPass<'a> {
    pub n: usize,
    pub kind: Kind,
    pub organization_id: Option<&'a OrganizationId>,
    pub reason: &'static str,
}

/// The change that counts for an object, or the stub that counts for a parent.
#[derive(Clone, Debug)]
pub struct Winner<'a> {
    pub n: usize,
    pub observed_at: Millis,
    pub updated_at: Option<Millis>,
    pub content: Option<i64>,
    pub row: Row<'a>,
}

/// What is to be written of an object.
#[derive(Clone, Copy, Debug)]
pub enum Row<'a> {
    User(&'a User),
    Organization(&'a Organization),
    Membership(&'a Membership),
    Gone(&'a EntityRef),
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
    namings: HashMap<(&'a OrganizationId, &'a UserId), &'a Naming>,
    /// By a message's id, the body's hash of the first one.
    first_hashes: HashMap<&'a MessageId, &'a str>,
}

/// By kind and id.
type Best<'a> = HashMap<(Kind, &'a str), Winner<'a>>;

impl<'a> Folding<'a> {
    fn new(source: Source, check_instance: bool) -> Folding<'a> {
        let batch = Batch {
            source,
            fence: None,
            check_instance,
            messages: Vec::new(),
            gone: Vec::new(),
            changes: Vec::new(),
            stubs: Vec::new(),
            namings: Vec::new(),
            outdated: Vec::new(),
            reads: Vec::new(),
            passes: Vec::new(),
            dead_letters: Vec::new(),
            mode: Mode::Full,
            lock_wait: None,
        };
        Folding {
            batch,
            winners: HashMap::new(),
            stubs: HashMap::new(),
            namings: HashMap::new(),
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
        self.batch.messages.push(Told { n, message, first_hash });
    }

    fn add(&mut self, n: usize, change: &'a Change) {
        if let Some(naming) = &change.naming {
            self.name(naming);
            for stub in Winner::stubs(n, change.observed_at, naming) {
                keep_greater(&mut self.stubs, stub);
            }
        }
        match &change.claim {
            Claim::Live { entity, updated_at } => {
                keep_greater(&mut self.winners, Winner::live(n, change.observed_at, *updated_at, entity));
            }
            Claim::Gone(entity) => keep_greater(&mut self.winners, Winner::gone(n, change.observed_at, entity)),
            Claim::Unusable(read) => self.batch.reads.push((n, read)),
            Claim::Unclear { kind, organization_id, reason } => {
                self.batch.passes.push(WantedPass {
                    n,
                    kind: *kind,
                    organization_id: organization_id.as_ref(),
                    reason,
                });
            }
        }
    }

    /// Of each pair the greatest membership counts (R5).
    fn name(&mut self, naming: &'a Naming) {
        match self.namings.entry((&naming.organization.id, &naming.user.id)) {
            Entry::Vacant(entry) => {
                entry.insert(naming);
            }
            Entry::Occupied(mut entry) => {
                let known = *entry.get();
                let (less, greater) = if place(naming) > place(known) { (known, naming) } else { (naming, known) };
                if less.membership_id != greater.membership_id {
                    self.batch.outdated.push(less.membership_id.as_str());
                }
                entry.insert(greater);
            }
        }
    }

    fn end(self) -> Batch<'a> {
        let in_order = |best: Best<'a>| {
            let mut best: Vec<Winner<'a>> = best.into_values().collect();
            best.sort_by_key(|winner| winner.n);
            best
        };
        let (gone, changes) = in_order(self.winners).into_iter().partition(|winner| matches!(winner.row, Row::Gone(_)));
        let namings = self.namings.into_values().collect();
        Batch { gone, changes, stubs: in_order(self.stubs), namings, ..self.batch }
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

    /// Written only while the lease of this token is held.
    #[must_use]
    pub fn fenced(self, token: i64) -> Self {
        Batch { fence: Some(token), ..self }
    }
}

/// A membership's place among all of its pair.
fn place(naming: &Naming) -> (Millis, &str) {
    (naming.created_at, naming.membership_id.as_str())
}

fn keep_greater<'a>(best: &mut Best<'a>, winner: Winner<'a>) {
    match best.entry((winner.row.kind(), winner.row.id())) {
        Entry::Vacant(entry) => {
            entry.insert(winner);
        }
        Entry::Occupied(mut entry) => {
            if winner.version() > entry.get().version() {
                entry.insert(winner);
            }
        }
    }
}

impl<'a> Winner<'a> {
    fn live(n: usize, observed_at: Millis, updated_at: Millis, entity: &'a Entity) -> Winner<'a> {
        let row = match entity {
            Entity::User(user) => Row::User(user),
            Entity::Organization(organization) => Row::Organization(organization),
            Entity::Membership(membership) => Row::Membership(membership),
        };
        Winner { n, observed_at, updated_at: Some(updated_at), content: Some(content(entity)), row }
    }

    fn gone(n: usize, observed_at: Millis, entity: &'a EntityRef) -> Winner<'a> {
        Winner { n, observed_at, updated_at: None, content: None, row: Row::Gone(entity) }
    }

    /// A stub's version is the observation that embeds it: what is embedded has no time of its own (R6).
    fn stubs(n: usize, observed_at: Millis, naming: &'a Naming) -> [Winner<'a>; 2] {
        let stub = |content, row| Winner { n, observed_at, updated_at: None, content: Some(content), row };
        [
            stub(content(&naming.user), Row::User(&naming.user)),
            stub(content(&naming.organization), Row::Organization(&naming.organization)),
        ]
    }

    /// A delete beats everything (R4); else the greater version wins (R1).
    fn version(&self) -> (bool, Option<Millis>, Millis, Option<i64>) {
        (matches!(self.row, Row::Gone(_)), self.updated_at, self.observed_at, self.content)
    }
}

impl<'a> Row<'a> {
    pub fn kind(self) -> Kind {
        match self {
            Row::User(_) => Kind::User,
            Row::Organization(_) => Kind::Organization,
            Row::Membership(_) => Kind::Membership,
            Row::Gone(entity) => entity.kind,
        }
    }

    pub fn id(self) -> &'a str {
        match self {
            Row::User(user) => user.id.as_str(),
            Row::Organization(organization) => organization.id.as_str(),
            Row::Membership(membership) => membership.id.as_str(),
            Row::Gone(entity) => &entity.id,
        }
    }
}

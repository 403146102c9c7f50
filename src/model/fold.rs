//! Many changes, brought down to one per object (R8).
//!
//! Folding is a join: applying the folded batch gives what applying the changes one by one would, in any order. The losers
//! therefore leave behind what they *name*: the pair, creation time and parents of every membership among them.

use super::entity::content;
use super::hex;
use super::{
    Change, Claim, Entity, EntityRef, InstanceId, Kind, MessageId, Millis, Naming, Organization, Source, User,
    WantedRead,
};
use serde::{Serialize, Serializer};
use std::collections::HashMap;

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

/// A folded batch: the argument of `clerk_sync.apply`, whose migration describes the JSON. `n` is an item's position among
/// the deliveries that were folded.
#[derive(Debug, Serialize)]
pub struct Batch<'a> {
    source: Source,
    fence: Option<i64>,
    check_instance: bool,
    messages: Vec<MessageRow<'a>>,
    changes: Vec<Winner<'a>>,
    stubs: Vec<Winner<'a>>,
    namings: Vec<NamingRow<'a>>,
    reads: Vec<ReadRow<'a>>,
    passes: Vec<PassRow>,
    dead_letters: Vec<DeadLetterRow<'a>>,
}

#[derive(Debug, Serialize)]
struct MessageRow<'a> {
    n: usize,
    message_id: &'a MessageId,
    body_hash: &'a str,
    event_type: &'a str,
    entity_id: Option<&'a str>,
    instance_id: Option<&'a InstanceId>,
    event_at: Option<Millis>,
    flaws: &'a [String],
}

/// The change that counts for an object, or the stub that counts for a parent.
#[derive(Debug, Serialize)]
struct Winner<'a> {
    n: usize,
    kind: Kind,
    gone: bool,
    observed_at: Millis,
    updated_at: Option<Millis>,
    content: Option<i64>,
    #[serde(flatten)]
    row: Row<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Row<'a> {
    Live(&'a Entity),
    User(&'a User),
    Organization(&'a Organization),
    Gone { id: &'a str },
}

#[derive(Debug, Serialize)]
struct NamingRow<'a> {
    organization_id: &'a str,
    user_id: &'a str,
    membership_id: &'a str,
    created_at: Millis,
}

#[derive(Debug, Serialize)]
struct ReadRow<'a> {
    n: usize,
    #[serde(flatten)]
    read: &'a WantedRead,
}

#[derive(Debug, Serialize)]
struct PassRow {
    n: usize,
    kind: Kind,
    reason: &'static str,
}

#[derive(Debug, Serialize)]
struct DeadLetterRow<'a> {
    n: usize,
    reason: &'a str,
    #[serde(serialize_with = "as_map")]
    headers: &'a [(String, String)],
    body_hex: String,
}

impl<'a> Batch<'a> {
    /// Folds deliveries that were all observed by `source`. `check_instance`: whether messages of another Clerk instance
    /// than the mirror's are refused.
    pub fn fold(source: Source, check_instance: bool, deliveries: impl Iterator<Item = &'a Delivery>) -> Batch<'a> {
        let mut folding = Folding::new(source, check_instance);
        for (n, delivery) in deliveries.enumerate() {
            folding.batch.messages.extend(delivery.message.as_ref().map(|message| MessageRow::new(n, message)));
            match &delivery.item {
                Item::DeadLetter(letter) => folding.batch.dead_letters.push(DeadLetterRow::new(n, letter)),
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
    winners: HashMap<EntityRef, Winner<'a>>,
    stubs: HashMap<EntityRef, Winner<'a>>,
}

impl<'a> Folding<'a> {
    fn new(source: Source, check_instance: bool) -> Folding<'a> {
        let batch = Batch {
            source,
            fence: None,
            check_instance,
            messages: Vec::new(),
            changes: Vec::new(),
            stubs: Vec::new(),
            namings: Vec::new(),
            reads: Vec::new(),
            passes: Vec::new(),
            dead_letters: Vec::new(),
        };
        Folding { batch, winners: HashMap::new(), stubs: HashMap::new() }
    }

    fn add(&mut self, n: usize, change: &'a Change) {
        if let Some(naming) = &change.naming {
            self.batch.namings.push(NamingRow::new(naming));
            for stub in Winner::stubs(n, change.observed_at, naming) {
                keep_greater(&mut self.stubs, stub);
            }
        }
        match &change.claim {
            Claim::Live { entity, updated_at } => {
                keep_greater(&mut self.winners, Winner::live(n, change.observed_at, *updated_at, entity));
            }
            Claim::Gone(entity) => keep_greater(&mut self.winners, Winner::gone(n, change.observed_at, entity)),
            Claim::Unusable(read) => self.batch.reads.push(ReadRow { n, read }),
            Claim::Unclear { kind, reason } => self.batch.passes.push(PassRow { n, kind: *kind, reason }),
        }
    }

    fn end(self) -> Batch<'a> {
        let in_order = |best: HashMap<EntityRef, Winner<'a>>| {
            let mut best: Vec<Winner<'a>> = best.into_values().collect();
            best.sort_by_key(|winner| winner.n);
            best
        };
        Batch { changes: in_order(self.winners), stubs: in_order(self.stubs), ..self.batch }
    }
}

impl Batch<'_> {
    /// Written only while the lease of this token is held.
    #[must_use]
    pub fn fenced(self, token: i64) -> Self {
        Batch { fence: Some(token), ..self }
    }
}

fn keep_greater<'a>(best: &mut HashMap<EntityRef, Winner<'a>>, winner: Winner<'a>) {
    match best.entry(winner.entity_ref()) {
        std::collections::hash_map::Entry::Vacant(entry) => {
            entry.insert(winner);
        }
        std::collections::hash_map::Entry::Occupied(mut entry) => {
            if winner.version() > entry.get().version() {
                entry.insert(winner);
            }
        }
    }
}

impl<'a> Winner<'a> {
    fn live(n: usize, observed_at: Millis, updated_at: Millis, entity: &'a Entity) -> Winner<'a> {
        let kind = entity.entity_ref().kind;
        let (updated_at, content) = (Some(updated_at), Some(content(entity)));
        Winner { n, kind, gone: false, observed_at, updated_at, content, row: Row::Live(entity) }
    }

    fn gone(n: usize, observed_at: Millis, entity: &'a EntityRef) -> Winner<'a> {
        let row = Row::Gone { id: &entity.id };
        Winner { n, kind: entity.kind, gone: true, observed_at, updated_at: None, content: None, row }
    }

    /// A stub's version is the observation that embeds it: what is embedded has no time of its own (R6).
    fn stubs(n: usize, observed_at: Millis, naming: &'a Naming) -> [Winner<'a>; 2] {
        let stub = |kind, content, row| Winner {
            n,
            kind,
            gone: false,
            observed_at,
            updated_at: None,
            content: Some(content),
            row,
        };
        [
            stub(Kind::User, content(&naming.user), Row::User(&naming.user)),
            stub(Kind::Organization, content(&naming.organization), Row::Organization(&naming.organization)),
        ]
    }

    fn entity_ref(&self) -> EntityRef {
        let id = match &self.row {
            Row::Live(entity) => return entity.entity_ref(),
            Row::User(user) => user.id.as_str(),
            Row::Organization(organization) => organization.id.as_str(),
            Row::Gone { id } => id,
        };
        EntityRef::new(self.kind, id)
    }

    /// A delete beats everything (R4); else the greater version wins (R1).
    fn version(&self) -> (bool, Option<Millis>, Millis, Option<i64>) {
        (self.gone, self.updated_at, self.observed_at, self.content)
    }
}

impl<'a> MessageRow<'a> {
    fn new(n: usize, message: &'a Message) -> Self {
        MessageRow {
            n,
            message_id: &message.id,
            body_hash: &message.body_hash,
            event_type: &message.event_type,
            entity_id: message.entity_id.as_deref(),
            instance_id: message.instance_id.as_ref(),
            event_at: message.event_at,
            flaws: &message.flaws,
        }
    }
}

impl<'a> NamingRow<'a> {
    fn new(naming: &'a Naming) -> Self {
        NamingRow {
            organization_id: naming.organization.id.as_str(),
            user_id: naming.user.id.as_str(),
            membership_id: naming.membership_id.as_str(),
            created_at: naming.created_at,
        }
    }
}

impl<'a> DeadLetterRow<'a> {
    fn new(n: usize, letter: &'a DeadLetter) -> Self {
        DeadLetterRow { n, reason: &letter.reason, headers: &letter.headers, body_hex: hex(&letter.body) }
    }
}

fn as_map<S: Serializer>(headers: &&[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(headers.iter().map(|(name, value)| (name, value)))
}

//! A webhook's body, turned into a change. Pure: bytes in, value out.
//!
//! Three things can be wrong with a signed body, and each has its way: a field of no consequence is dropped; an object that
//! is named but not usable is to be read by its id; a body that names nothing becomes a dead letter.

use super::payload::{self, Object};
use crate::model::{
    Change, DeadLetter, Delivery, EntityRef, InstanceId, Item, Kind, Message, MessageId, Millis, Observation,
    OrganizationId,
};

/// How far ahead of the attempt an event's own time may lie, in ms: beyond it one of the two clocks is wrong, and ordering
/// by that time would freeze the row.
const AHEAD: i64 = 300_000;

/// How much later than its event a time in a body may be, in ms (R1, R5).
const SLACK: i64 = 1_000;
/// In s: how far Clerk's API may lag behind its events, clock differences included; and the age that a row's last observation must have
/// before its absence from a listing counts (R4).
const LAG: u16 = 12;
const ABSENCE: u16 = 300;

/// The events that an endpoint needs, and under which condition: what `init` prints, and the README and `docs/deploy.md` name.
pub const SUBSCRIBED: &[(&str, &str)] = &[
    ("user.*", ""),
    ("organization.*", ""),
    ("organizationMembership.*", ""),
    ("role.*", ""),
    ("permission.*", ""),
    ("subscription.*", " (with Clerk Billing)"),
    ("subscriptionItem.*", " (with Clerk Billing)"),
];

/// The members of an envelope that we read. Duplicates are refused.
const ENVELOPE: [&str; 5] = ["object", "type", "data", "timestamp", "instance_id"];

/// A body that could be read.
#[derive(Debug)]
pub struct Event {
    /// Such as `user.created`. An open set.
    pub event_type: String,
    /// Missing from older events and from the dashboard's examples.
    pub instance_id: Option<InstanceId>,
    pub entity: Option<EntityRef>,
    pub event_at: Option<Millis>,
    /// `None`: the type says nothing about what we mirror.
    pub change: Option<Change>,
    /// Fields that could not be taken as they came, and why; values never.
    pub field_errors: Vec<String>,
}

impl Event {
    /// What the writer is asked to write, as the message of that id; `None` if it says nothing about what we mirror.
    pub fn into_delivery(self, id: MessageId, body_hash: String) -> Option<Delivery> {
        let message = Message {
            id,
            body_hash,
            event_type: self.event_type,
            entity_id: self.entity.map(|entity| entity.id),
            instance_id: self.instance_id,
            event_at: self.event_at,
            field_errors: self.field_errors,
        };
        self.change.map(|change| Delivery { message: Some(message), item: Item::Change(Box::new(change)) })
    }
}

/// A body that cannot be used and names nothing that could be read instead.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unusable {
    /// As far as it could be read.
    pub event_type: Option<String>,
    /// Likewise: a body of another instance is no business of ours, usable or not.
    pub instance_id: Option<InstanceId>,
    /// Names a place in the body, never a value.
    pub reason: String,
}

impl Unusable {
    /// The message of that id as a dead letter, which `keep` makes of the reason.
    pub fn into_delivery(self, id: MessageId, body_hash: String, keep: impl FnOnce(String) -> DeadLetter) -> Delivery {
        let message = Message {
            id,
            body_hash,
            event_type: self.event_type.unwrap_or_default(),
            entity_id: None,
            instance_id: self.instance_id,
            event_at: None,
            field_errors: Vec::new(),
        };
        Delivery { message: Some(message), item: Item::DeadLetter(keep(self.reason)) }
    }
}

/// Reads one body. `attempted_at` is the time of the attempt on Clerk's side (the signed `svix-timestamp`).
///
/// # Errors
/// The body cannot be used at all: keep it as a dead letter.
pub fn parse(body: &[u8], attempted_at: Millis) -> Result<Event, Unusable> {
    let unusable = |reason: String| Unusable { event_type: None, instance_id: None, reason };
    let envelope = Object::parse(body).map_err(unusable)?;
    if let Some(name) = ENVELOPE.into_iter().find(|name| envelope.repeats(name)) {
        return Err(unusable(format!("{name} appears twice")));
    }
    let event_type = envelope
        .text("type")
        .filter(|event_type| !event_type.is_empty() && event_type.len() <= 255)
        .ok_or_else(|| unusable("type is missing, or is not a valid event type".to_owned()))?;
    let instance_id = envelope.id("instance_id").map(InstanceId);
    let unusable = |reason: &str| Unusable {
        event_type: Some(event_type.clone()),
        instance_id: instance_id.clone(),
        reason: reason.to_owned(),
    };
    if envelope.get("object").is_some() && envelope.text("object").as_deref() != Some("event") {
        return Err(unusable("object is not event"));
    }
    if instance_id.is_none() && envelope.get("instance_id").is_some() {
        return Err(unusable("instance_id is not a valid id"));
    }
    let span = envelope.integer("timestamp").and_then(Millis::span);

    let mut event = Event {
        event_type: event_type.clone(),
        instance_id: instance_id.clone(),
        entity: None,
        event_at: span.map(|(from, _)| from),
        change: None,
        field_errors: Vec::new(),
    };
    match Subject::of(&event_type) {
        None => {}
        Some(Subject::Billing) => {
            // Custom permissions come and go with an organization's plan, and no event of a membership says so.
            let payer = envelope.object("data").and_then(|data| data.object("payer"));
            if let Some(id) = payer.and_then(|payer| payer.id("organization_id")) {
                let kind = Kind::Organization;
                if !kind.contradicts(&id) {
                    let event_at = event.event_at.unwrap_or(attempted_at);
                    let organization_id = Some(OrganizationId(id.clone()));
                    let observation = Observation::NeedsPass {
                        kind: Kind::Membership,
                        organization_id,
                        reason: "a plan changed",
                        ripe_after: LAG,
                    };
                    event.change = Some(Change { observed_at: event_at, observation, mention: None });
                    event.entity = Some(EntityRef { kind, id });
                }
            }
        }
        Some(Subject::Roles) => {
            let event_at = event.event_at.unwrap_or(attempted_at);
            event.change = Some(unclear(Kind::Membership, event_at, "a role or permission changed", LAG));
        }
        Some(Subject::Entity { kind, deleted }) => {
            let data = envelope.object("data").ok_or_else(|| unusable("data is missing, or is not an object"))?;
            match data.id("id").filter(|id| !kind.contradicts(id)) {
                Some(id) => {
                    let entity = EntityRef { kind, id };
                    event.change = Some(observe(&data, entity.clone(), deleted, span, attempted_at));
                    event.entity = Some(entity);
                }
                None if deleted && data.get("id").is_none() => {
                    let event_at = event.event_at.unwrap_or(attempted_at);
                    event.change = Some(unclear(kind, event_at, "a delete without an id", LAG + ABSENCE));
                }
                None => return Err(unusable("data.id is missing, or is not an id of this kind")),
            }
            event.field_errors = data.field_errors();
        }
    }
    Ok(event)
}

/// What an event type is about.
enum Subject {
    Entity {
        kind: Kind,
        deleted: bool,
    },
    /// Memberships carry the permissions of their role, and whether they get events of their own is not documented.
    Roles,
    /// A subscription, or an item of one.
    Billing,
}

impl Subject {
    fn of(event_type: &str) -> Option<Subject> {
        let (subject, verb) = event_type.split_once('.')?;
        if matches!(subject, "subscription" | "subscriptionItem") {
            return Some(Subject::Billing);
        }
        let deleted = match verb {
            "created" | "updated" => false,
            "deleted" => true,
            _ => return None,
        };
        if matches!(subject, "role" | "permission") {
            return Some(Subject::Roles);
        }
        let kind = Kind::ALL.into_iter().find(|kind| kind.event_subject() == subject)?;
        Some(Subject::Entity { kind, deleted })
    }
}

fn unclear(kind: Kind, observed_at: Millis, reason: &'static str, ripe_after: u16) -> Change {
    Change {
        observed_at,
        observation: Observation::NeedsPass { kind, organization_id: None, reason, ripe_after },
        mention: None,
    }
}

/// What the object in `data` says. `span` is what the event's time can mean; in seconds, it covers one.
fn observe(
    data: &Object<'_>,
    entity: EntityRef,
    deleted: bool,
    span: Option<(Millis, Millis)>,
    attempted_at: Millis,
) -> Change {
    let updated_at = data.millis("updated_at");
    let sane = span.is_none_or(|(from, _)| from <= attempted_at.plus(AHEAD));
    // R4: a delete in seconds counts as the second's end, so that it beats what was created within that second.
    let observed_at = match span {
        Some((from, to)) if sane => Some(if deleted { to } else { from }),
        Some(_) => None,
        None => updated_at.filter(|at| !deleted && *at <= attempted_at.plus(AHEAD)),
    };
    let Some(observed_at) = observed_at else {
        let reason =
            if span.is_none() { "the event's time is missing" } else { "the event's time is ahead of Clerk's clock" };
        // What it embeds cannot be dated, so it names a membership but stubs no parent that anything dated has stubbed.
        let mention = payload::mention(data, &entity, attempted_at.plus(SLACK));
        let observation = payload::unusable(data, &entity, reason, deleted);
        return Change { observed_at: Millis::MIN, observation, mention };
    };
    let bound = observed_at.plus(SLACK);
    let mention = payload::mention(data, &entity, bound);
    let observation =
        if deleted { Observation::Deleted(entity) } else { payload::live(data, &entity, mention.as_ref(), bound) };
    Change { observed_at, observation, mention }
}

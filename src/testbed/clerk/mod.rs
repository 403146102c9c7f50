//! A simulated Clerk: a data model that changes as the real one would, and remembers the webhook of every change.
//!
//! Its bodies have the shapes of real traffic (`clerk/openapi-specs` `webhooks/2025-04-15.yml` and captured payloads), with
//! what makes that traffic hard: a delete of a membership keeps its old `updated_at`, a delete of a user or organization has
//! nothing but an id, members of a deleted organization get no event of their own, and what a membership embeds is a copy.

mod api;
mod json;

pub use api::{Shared, router};

use std::collections::BTreeMap;

/// A user, as far as it matters to anybody here.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    pub id: String,
    pub first_name: String,
    pub last_name: String,
    pub email_address: String,
    pub banned: bool,
    pub deprovisioned: bool,
    pub created_at: i64,
    pub updated_at: i64,
}

/// An organization.
#[derive(Clone, Debug, PartialEq)]
pub struct Organization {
    pub id: String,
    pub name: String,
    pub slug: String,
    pub created_by: String,
    pub created_at: i64,
    pub updated_at: i64,
}

/// A membership.
#[derive(Clone, Debug, PartialEq)]
pub struct Membership {
    pub id: String,
    pub organization_id: String,
    pub user_id: String,
    pub role: String,
    pub created_at: i64,
    pub updated_at: i64,
}

/// A webhook that is due: the body is what Svix would deliver, byte for byte, in every attempt.
#[derive(Clone, Debug)]
pub struct Event {
    /// The message's id, the same in every attempt.
    pub message_id: String,
    pub event_type: &'static str,
    /// The id of the object, and what it is about, for people.
    pub entity_id: String,
    pub subject: String,
    pub body: String,
}

/// The whole instance. Ids are drawn from its seed, so that a run can be repeated.
#[derive(Debug)]
pub struct Clerk {
    /// Unix time in ms: Clerk's clock. It moves when told to.
    pub now: i64,
    pub instance_id: String,
    pub users: BTreeMap<String, User>,
    pub organizations: BTreeMap<String, Organization>,
    pub memberships: BTreeMap<String, Membership>,
    /// Webhooks of the changes so far, oldest first. Take them out to deliver them.
    pub outbox: Vec<Event>,
    rng: fastrand::Rng,
}

impl Clerk {
    pub fn new(seed: u64, now: i64) -> Clerk {
        let mut rng = fastrand::Rng::with_seed(seed);
        let instance_id = format!("ins_{}", ksuid(&mut rng));
        Clerk {
            now,
            instance_id,
            users: BTreeMap::new(),
            organizations: BTreeMap::new(),
            memberships: BTreeMap::new(),
            outbox: Vec::new(),
            rng,
        }
    }

    /// Makes changes of which no webhook tells.
    pub fn silently<T>(&mut self, change: impl FnOnce(&mut Clerk) -> T) -> T {
        let due = self.outbox.len();
        let result = change(self);
        self.outbox.truncate(due);
        result
    }

    fn id(&mut self, prefix: &str) -> String {
        format!("{prefix}_{}", ksuid(&mut self.rng))
    }

    fn emit(&mut self, event_type: &'static str, subject: String, data: serde_json::Value) {
        // In captured traffic the event is stamped 4 to 22 ms after the change.
        let timestamp = self.now + self.rng.i64(4..=22);
        let entity_id = data["id"].as_str().unwrap_or_default().to_owned();
        let body = json::envelope(event_type, &self.instance_id, timestamp, data);
        let message_id = self.id("msg");
        self.outbox.push(Event { message_id, event_type, entity_id, subject, body });
    }

    // Users

    pub fn create_user(&mut self, first_name: &str, last_name: &str) -> String {
        let id = self.id("user");
        let user = User {
            id: id.clone(),
            first_name: first_name.to_owned(),
            last_name: last_name.to_owned(),
            email_address: format!("{}.{}@example.com", first_name.to_lowercase(), last_name.to_lowercase()),
            banned: false,
            deprovisioned: false,
            created_at: self.now,
            updated_at: self.now + 18,
        };
        self.users.insert(id.clone(), user);
        self.emit_user("user.created", &id);
        id
    }

    /// Changes a user; nothing happens where there is none of that id.
    pub fn update_user(&mut self, id: &str, change: impl FnOnce(&mut User)) {
        let now = self.now;
        let Some(user) = self.users.get_mut(id) else { return };
        change(user);
        user.updated_at = now;
        self.emit_user("user.updated", id);
    }

    /// Memberships go with the user, without events of their own.
    pub fn delete_user(&mut self, id: &str) {
        let Some(user) = self.users.remove(id) else { return };
        self.memberships.retain(|_, membership| membership.user_id != id);
        self.emit("user.deleted", user.first_name, json::deleted("user", id));
    }

    fn emit_user(&mut self, event_type: &'static str, id: &str) {
        let user = &self.users[id];
        let (subject, data) = (user.first_name.clone(), json::user(user));
        self.emit(event_type, subject, data);
    }

    // Organizations

    /// The creator becomes its admin: two events, 29 ms apart in captured traffic.
    pub fn create_organization(&mut self, name: &str, creator: &str) -> String {
        let id = self.id("org");
        let organization = Organization {
            id: id.clone(),
            name: name.to_owned(),
            slug: name.to_lowercase().replace(' ', "-"),
            created_by: creator.to_owned(),
            created_at: self.now,
            updated_at: self.now,
        };
        self.organizations.insert(id.clone(), organization);
        self.emit_organization("organization.created", &id);
        self.now += 17;
        self.add_member(&id, creator, "org:admin");
        id
    }

    /// Changes an organization; nothing happens where there is none of that id.
    pub fn update_organization(&mut self, id: &str, change: impl FnOnce(&mut Organization)) {
        let now = self.now;
        let Some(organization) = self.organizations.get_mut(id) else { return };
        change(organization);
        organization.updated_at = now;
        self.emit_organization("organization.updated", id);
    }

    /// Memberships go with the organization, without events of their own.
    pub fn delete_organization(&mut self, id: &str) {
        let Some(organization) = self.organizations.remove(id) else { return };
        self.memberships.retain(|_, membership| membership.organization_id != id);
        self.emit("organization.deleted", organization.name, json::deleted("organization", id));
    }

    fn emit_organization(&mut self, event_type: &'static str, id: &str) {
        let organization = &self.organizations[id];
        let (subject, data) = (organization.name.clone(), json::organization(organization));
        self.emit(event_type, subject, data);
    }

    // Memberships

    /// A user who is a member already stays the member he is. Returns the membership's id.
    pub fn add_member(&mut self, organization_id: &str, user_id: &str, role: &str) -> String {
        let existing = self.memberships.values().find(|m| m.organization_id == organization_id && m.user_id == user_id);
        if let Some(existing) = existing {
            return existing.id.clone();
        }
        let id = self.id("orgmem");
        let membership = Membership {
            id: id.clone(),
            organization_id: organization_id.to_owned(),
            user_id: user_id.to_owned(),
            role: role.to_owned(),
            created_at: self.now,
            updated_at: self.now,
        };
        self.emit_membership("organizationMembership.created", &membership);
        self.memberships.insert(id.clone(), membership);
        id
    }

    pub fn set_role(&mut self, id: &str, role: &str) {
        let now = self.now;
        let Some(membership) = self.memberships.get_mut(id) else { return };
        role.clone_into(&mut membership.role);
        membership.updated_at = now;
        let membership = membership.clone();
        self.emit_membership("organizationMembership.updated", &membership);
    }

    /// The event carries the whole membership, with the `updated_at` that it had.
    pub fn remove_member(&mut self, id: &str) {
        if let Some(membership) = self.memberships.remove(id) {
            self.emit_membership("organizationMembership.deleted", &membership);
        }
    }

    fn emit_membership(&mut self, event_type: &'static str, membership: &Membership) {
        let (Some(organization), Some(user)) =
            (self.organizations.get(&membership.organization_id), self.users.get(&membership.user_id))
        else {
            return;
        };
        let subject = format!("{} in {} as {}", user.first_name, organization.name, membership.role);
        let data = json::membership(membership, organization, user);
        self.emit(event_type, subject, data);
    }
}

/// 27 letters and digits, as Clerk's ids have behind their prefix.
fn ksuid(rng: &mut fastrand::Rng) -> String {
    std::iter::once('2').chain((0..26).map(|_| rng.alphanumeric())).collect()
}

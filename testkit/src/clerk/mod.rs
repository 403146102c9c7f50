//! A simulated Clerk: a data model that changes as the real one would, and remembers the webhook of every change.
//!
//! Its bodies have the shapes of real traffic (`clerk/openapi-specs` `webhooks/2025-04-15.yml` and captured payloads), with
//! what makes that traffic hard: a delete of a membership keeps its old `updated_at`, a delete of a user or organization has
//! nothing but an id, members of a deleted organization get no event of their own, and what a membership embeds is a copy.
//! Its Backend API ([`Server`]) answers from the same model, with the limits of the real one and with faults on demand.

mod api;
mod faults;
mod json;
mod populate;
mod query;
mod rate_limit;
mod server;
mod table;

pub use faults::{Fault, Rule};
pub use server::{Request, Server, Shared};
pub use table::{Row, Table};

use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use table::Links;

/// A user, as far as it matters to anybody here. What is not set is absent, as in Clerk; metadata takes
/// `Some(json!(…).into())`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct User {
    pub id: String,
    pub first_name: String,
    pub last_name: String,
    /// The primary address; empty: none.
    pub email_address: String,
    pub phone_number: Option<String>,
    pub username: Option<String>,
    pub external_id: Option<String>,
    /// Unset: `{ "plan": "pro" }`.
    pub public_metadata: Option<Arc<Value>>,
    pub unsafe_metadata: Option<Arc<Value>>,
    pub banned: bool,
    pub locked: bool,
    pub deprovisioned: bool,
    /// Such as `en-US`; most users have none.
    pub locale: Option<String>,
    pub created_at: i64,
    pub updated_at: i64,
}

impl User {
    /// Whichever the user has: what fellow members are shown.
    fn identifier(&self) -> Option<&str> {
        let address = Some(self.email_address.as_str()).filter(|address| !address.is_empty());
        address.or(self.phone_number.as_deref()).or(self.username.as_deref())
    }
}

/// An organization.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Organization {
    pub id: String,
    pub name: String,
    pub slug: String,
    pub created_by: String,
    pub public_metadata: Option<Arc<Value>>,
    pub created_at: i64,
    pub updated_at: i64,
}

/// A membership.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Membership {
    pub id: String,
    pub organization_id: String,
    pub user_id: String,
    pub role: String,
    pub public_metadata: Option<Arc<Value>>,
    pub created_at: i64,
    pub updated_at: i64,
}

/// What a member may do. Memberships show its name and permissions, and do not change when it does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Role {
    pub id: String,
    pub key: String,
    pub name: String,
    pub permissions: Vec<String>,
    pub created_at: i64,
    pub updated_at: i64,
}

macro_rules! rows {
    ($($kind:ty),*) => {$(
        impl Row for $kind {
            fn id(&self) -> &str {
                &self.id
            }
            fn created_at(&self) -> i64 {
                self.created_at
            }
            fn updated_at(&self) -> i64 {
                self.updated_at
            }
        }
    )*};
}
rows!(User, Organization, Membership);

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

/// See [`Clerk::moment`].
#[derive(Clone, Debug)]
pub struct Moment {
    users: Table<User>,
    organizations: Table<Organization>,
    memberships: Table<Membership>,
    links: Links,
}

/// The whole instance. Ids are drawn from its seed, so that a run can be repeated.
#[derive(Debug)]
pub struct Clerk {
    /// Unix time in ms: Clerk's clock. It moves when told to, unless [`Clerk::run_clock`] was called.
    pub now: i64,
    pub instance_id: String,
    /// `production` or `development`: the latter has a tenth of the former's rate limit.
    pub environment_type: &'static str,
    /// What the Backend API wants to be shown.
    pub secret_key: String,
    /// Off, the API answers 403 to everything about organizations.
    pub organizations_enabled: bool,
    pub users: Table<User>,
    pub organizations: Table<Organization>,
    pub memberships: Table<Membership>,
    /// By key.
    pub roles: BTreeMap<String, Role>,
    /// Whether permissions depend on plans.
    pub billing: bool,
    /// The features of each organization's plan.
    features: BTreeMap<String, Vec<String>>,
    /// Webhooks of the changes so far, oldest first. Take them out to deliver them.
    pub outbox: Vec<Event>,
    links: Links,
    /// When the clock began to run, and what it said then.
    running: Option<(Instant, i64)>,
    rng: fastrand::Rng,
}

impl Clerk {
    pub fn new(seed: u64, now: i64) -> Clerk {
        let mut rng = fastrand::Rng::with_seed(seed);
        let instance_id = format!("ins_{}", ksuid(&mut rng, now));
        let role = |key: &str, name: &str, permissions: &[&str]| {
            let role = Role {
                id: format!("role_{name}"),
                key: key.to_owned(),
                name: name.to_owned(),
                permissions: permissions.iter().map(ToString::to_string).collect(),
                created_at: now,
                updated_at: now,
            };
            (role.key.clone(), role)
        };
        Clerk {
            now,
            instance_id,
            environment_type: "production",
            secret_key: "sk_test_of_the_simulated_clerk".to_owned(),
            organizations_enabled: true,
            users: Table::default(),
            organizations: Table::default(),
            memberships: Table::default(),
            roles: BTreeMap::from([
                role("org:admin", "Admin", &["org:sys_memberships:read", "org:sys_memberships:manage"]),
                role("org:member", "Member", &["org:sys_memberships:read"]),
            ]),
            billing: false,
            features: BTreeMap::new(),
            outbox: Vec::new(),
            links: Links::default(),
            running: None,
            rng,
        }
    }

    /// What the API shows at this moment.
    pub fn moment(&self) -> Moment {
        let (users, organizations, memberships) =
            (self.users.clone(), self.organizations.clone(), self.memberships.clone());
        Moment { users, organizations, memberships, links: self.links.clone() }
    }

    /// Has the API show another moment, as a replica does that is stuck. Dates and webhooks stay what they are.
    pub fn show(&mut self, moment: Moment) {
        let Moment { users, organizations, memberships, links } = moment;
        (self.users, self.organizations, self.memberships, self.links) = (users, organizations, memberships, links);
    }

    /// From here on the clock runs by itself, beginning with what it says.
    pub fn run_clock(&mut self) {
        self.running = Some((Instant::now(), self.now));
    }

    /// Brings [`Clerk::now`] up to date where the clock runs.
    fn tick(&mut self) {
        if let Some((since, began)) = self.running {
            self.now = began + i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX);
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
        self.id_of(prefix, self.now)
    }

    /// The id of what was made at that time.
    fn id_of(&mut self, prefix: &str, at: i64) -> String {
        format!("{prefix}_{}", ksuid(&mut self.rng, at))
    }

    fn emit(&mut self, event_type: &'static str, entity_id: &str, subject: String, data: &impl Serialize) {
        // In captured traffic the event is stamped 4 to 22 ms after the change.
        let timestamp = self.now + self.rng.i64(4..=22);
        let envelope = json::Envelope { event_type, instance_id: &self.instance_id, timestamp, data };
        let body = serde_json::to_string(&envelope).unwrap_or_default();
        let message_id = self.id("msg");
        self.outbox.push(Event { message_id, event_type, entity_id: entity_id.to_owned(), subject, body });
    }

    /// Sets when an object was created, as the real API can: its `created_at` is not for ever. It counts as an update.
    pub fn set_created_at(&mut self, id: &str, created_at: i64) {
        self.update_user(id, |user| user.created_at = created_at);
        self.update_organization(id, |organization| organization.created_at = created_at);
    }

    // Users

    pub fn create_user(&mut self, first_name: &str, last_name: &str) -> String {
        let user = User {
            id: self.id("user"),
            first_name: first_name.to_owned(),
            last_name: last_name.to_owned(),
            email_address: format!("{}.{}@example.com", first_name.to_lowercase(), last_name.to_lowercase()),
            created_at: self.now,
            updated_at: self.now + 18,
            ..User::default()
        };
        let id = user.id.clone();
        self.users.insert(user);
        self.emit_user("user.created", &id);
        id
    }

    /// Changes a user; nothing happens where there is none of that id.
    pub fn update_user(&mut self, id: &str, change: impl FnOnce(&mut User)) {
        let now = self.now;
        let changed = self.users.change(id, |user| {
            change(user);
            user.updated_at = now;
        });
        if changed.is_some() {
            self.emit_user("user.updated", id);
        }
    }

    /// What SCIM does when a company takes a person off its directory: an update. The memberships stay.
    pub fn deprovision_user(&mut self, id: &str) {
        self.update_user(id, |user| user.deprovisioned = true);
    }

    pub fn ban_user(&mut self, id: &str) {
        self.update_user(id, |user| user.banned = true);
    }

    pub fn unban_user(&mut self, id: &str) {
        self.update_user(id, |user| user.banned = false);
    }

    /// Memberships go with the user, without events of their own.
    pub fn delete_user(&mut self, id: &str) {
        let Some(user) = self.users.remove(id) else { return };
        self.remove_memberships_of(id);
        self.emit("user.deleted", id, user.first_name, &json::Deleted { object: "user", id });
    }

    fn emit_user(&mut self, event_type: &'static str, id: &str) {
        let user = self.users[id].clone();
        self.emit(event_type, id, user.first_name.clone(), &user);
    }

    // Organizations

    /// The creator becomes its admin: two events, 29 ms apart in captured traffic.
    pub fn create_organization(&mut self, name: &str, creator: &str) -> String {
        let organization = Organization {
            id: self.id("org"),
            name: name.to_owned(),
            slug: name.to_lowercase().replace(' ', "-"),
            created_by: creator.to_owned(),
            created_at: self.now,
            updated_at: self.now,
            ..Organization::default()
        };
        let id = organization.id.clone();
        self.organizations.insert(organization);
        self.emit_organization("organization.created", &id);
        self.now += 17;
        self.add_member(&id, creator, "org:admin");
        id
    }

    /// Changes an organization; nothing happens where there is none of that id.
    pub fn update_organization(&mut self, id: &str, change: impl FnOnce(&mut Organization)) {
        let now = self.now;
        let changed = self.organizations.change(id, |organization| {
            change(organization);
            organization.updated_at = now;
        });
        if changed.is_some() {
            self.emit_organization("organization.updated", id);
        }
    }

    /// Memberships go with the organization, without events of their own.
    pub fn delete_organization(&mut self, id: &str) {
        let Some(organization) = self.organizations.remove(id) else { return };
        self.remove_memberships_of(id);
        self.emit("organization.deleted", id, organization.name, &json::Deleted { object: "organization", id });
    }

    fn emit_organization(&mut self, event_type: &'static str, id: &str) {
        let organization = self.organizations[id].clone();
        self.emit(event_type, id, organization.name.clone(), &organization);
    }

    // Memberships

    /// A user who is a member already stays the member he is; nothing happens where there is no such user or organization.
    /// Returns the membership's id.
    pub fn add_member(&mut self, organization_id: &str, user_id: &str, role: &str) -> String {
        if let Some(existing) = self.links.between(organization_id, user_id) {
            return existing.to_string();
        }
        let membership = Membership {
            id: self.id("orgmem"),
            organization_id: organization_id.to_owned(),
            user_id: user_id.to_owned(),
            role: role.to_owned(),
            created_at: self.now,
            updated_at: self.now,
            ..Membership::default()
        };
        let id = membership.id.clone();
        if self.membership_body(&membership).is_some() {
            self.emit_membership("organizationMembership.created", &membership);
            self.insert_membership(membership);
        }
        id
    }

    pub fn set_role(&mut self, id: &str, role: &str) {
        let now = self.now;
        let changed = self.memberships.change(id, |membership| {
            role.clone_into(&mut membership.role);
            membership.updated_at = now;
            membership.clone()
        });
        if let Some(membership) = changed {
            self.emit_membership("organizationMembership.updated", &membership);
        }
    }

    /// The event carries the whole membership, with the `updated_at` that it had.
    pub fn remove_member(&mut self, id: &str) {
        if let Some(membership) = self.memberships.remove(id) {
            self.links.remove(&membership.organization_id, &membership.user_id);
            self.emit_membership("organizationMembership.deleted", &membership);
        }
    }

    /// The memberships of a user, or of an organization.
    pub fn memberships_of<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Membership> {
        self.links.of(id).filter_map(|membership| self.memberships.get(membership))
    }

    fn insert_membership(&mut self, membership: Membership) {
        self.links.insert(&membership.organization_id, &membership.user_id, &membership.id);
        self.memberships.insert(membership);
    }

    fn remove_memberships_of(&mut self, id: &str) {
        let all: Vec<Membership> = self.memberships_of(id).cloned().collect();
        for membership in all {
            self.links.remove(&membership.organization_id, &membership.user_id);
            self.memberships.remove(&membership.id);
        }
    }

    fn emit_membership(&mut self, event_type: &'static str, membership: &Membership) {
        let Some(body) = self.membership_body(membership) else { return };
        let (organization, user, role) = (body.organization.clone(), body.user.cloned(), body.role.cloned());
        let name = user.as_ref().map_or("", |user| &user.first_name);
        let subject = format!("{name} in {} as {}", organization.name, membership.role);
        let permissions: Vec<String> = body.permissions.iter().map(ToString::to_string).collect();
        let data = json::MembershipBody {
            membership,
            organization: &organization,
            user: user.as_ref(),
            role: role.as_ref(),
            permissions: permissions.iter().map(String::as_str).collect(),
        };
        self.emit(event_type, &membership.id, subject, &data);
    }

    /// A membership with what it embeds; `None` where its user or organization was never there.
    fn membership_body<'a>(&'a self, membership: &'a Membership) -> Option<json::MembershipBody<'a>> {
        Some(json::MembershipBody {
            membership,
            organization: self.organizations.get(&membership.organization_id)?,
            user: Some(self.users.get(&membership.user_id)?),
            role: self.roles.get(&membership.role),
            permissions: self.permissions(membership),
        })
    }

    /// What the role of a membership allows, and its organization's plan. With billing on, a custom permission
    /// `org:FEATURE:…` is shown while the plan has that feature (`clerk/clerk-docs` `docs/guides/billing/for-b2b.mdx`).
    pub fn permissions(&self, membership: &Membership) -> Vec<&str> {
        let role = self.roles.get(&membership.role);
        let features = self.features.get(&membership.organization_id);
        let is_allowed = |permission: &&str| {
            let feature = permission.split(':').nth(1).unwrap_or_default();
            feature.starts_with("sys_") || features.is_some_and(|features| features.iter().any(|has| has == feature))
        };
        let all = role.into_iter().flat_map(|role| role.permissions.iter().map(String::as_str));
        all.filter(|permission| !self.billing || is_allowed(permission)).collect()
    }

    // Plans

    /// Gives an organization a plan with these features, or none, and turns billing on. No membership counts as updated, and none
    /// has an event: what the dashboard calls a new plan is the end of one item and the beginning of another.
    pub fn set_plan(&mut self, organization_id: &str, plan: &str, features: &[&str]) {
        self.billing = true;
        let features = features.iter().map(ToString::to_string).collect();
        let had = self.features.insert(organization_id.to_owned(), features).is_some();
        let mut tell = |event_type, object, status| {
            let (id, now) = (self.id(object), self.now);
            let data = json::Billing { object, id: &id, status, plan, organization_id, now };
            self.emit(event_type, organization_id, format!("plan {plan}"), &data);
        };
        if had {
            tell("subscriptionItem.ended", "subscription_item", "ended");
        }
        tell("subscriptionItem.active", "subscription_item", "active");
        tell("subscription.updated", "subscription", "active");
    }

    // Roles

    /// Changes what the members of a role may do: each of their memberships shows it, none counts as updated, and the one
    /// event is the role's. A role that was not there is made.
    pub fn set_role_permissions(&mut self, role: &str, permissions: &[&str]) {
        let permissions: Vec<String> = permissions.iter().map(ToString::to_string).collect();
        let known = self.roles.contains_key(role);
        let id = self.id("role");
        let now = self.now;
        let entry = self.roles.entry(role.to_owned()).or_insert_with(|| Role {
            id,
            key: role.to_owned(),
            name: role.trim_start_matches("org:").to_owned(),
            created_at: now,
            ..Role::default()
        });
        entry.permissions = permissions;
        entry.updated_at = now;
        let role = entry.clone();
        self.emit(if known { "role.updated" } else { "role.created" }, &role.id, role.name.clone(), &role);
    }

    /// Gives the members of one role another, as Clerk does when a role is removed: without an event, and without any
    /// membership counting as updated.
    pub fn remap_role(&mut self, from: &str, to: &str) {
        let members: Vec<String> = self.memberships.values().filter(|m| m.role == from).map(|m| m.id.clone()).collect();
        for id in members {
            self.memberships.change(&id, |membership| to.clone_into(&mut membership.role));
        }
    }
}

/// A KSUID, as Clerk's and Svix's ids have behind their prefix: 27 letters and digits that sort by the second in which they were
/// made (`segmentio/ksuid`: 32 bits of seconds since 2014-05-13, then 128 random ones, to the base of 62).
fn ksuid(rng: &mut fastrand::Rng, at: i64) -> String {
    const EPOCH: i64 = 1_400_000_000;
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let seconds = u64::try_from(at / 1_000 - EPOCH).unwrap_or_default();
    let mut words = [seconds, rng.u32(..).into(), rng.u32(..).into(), rng.u32(..).into(), rng.u32(..).into()];
    let mut digit = || {
        let mut rest = 0;
        for word in &mut words {
            let value = rest << 32 | *word;
            (*word, rest) = (value / 62, value % 62);
        }
        char::from(DIGITS[usize::try_from(rest).unwrap_or_default()])
    };
    let mut digits: Vec<char> = (0..27).map(|_| digit()).collect();
    digits.reverse();
    digits.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_the_second_in_which_they_were_made() {
        let mut rng = fastrand::Rng::with_seed(1);
        let ids: Vec<String> = (0..500).map(|n| ksuid(&mut rng, 1_760_000_000_000 + n * 1_000)).collect();
        assert!(ids.is_sorted(), "{ids:?}");
        assert!(ids.iter().all(|id| id.len() == 27 && id.starts_with('3')), "{ids:?}");
        assert_eq!(ksuid(&mut rng, 0).len(), 27);
    }
}

//! A hostile Clerk, for the rules of order: a true history of users, an organization and memberships, the webhooks that it would send,
//! and an API whose replicas lag behind it or are stuck. Times are ms on a virtual clock; nothing here waits.
//!
//! Every observation is remembered with its place in the true history, which no rule may look at: it tells a checker what the mirror
//! shows.

use clerk_sync::model::{
    Change, Entity, EntityRef, Kind, Membership, MembershipId, MembershipMention, Millis, Observation, Organization,
    OrganizationId, PendingRead, User, UserId,
};
use fastrand::Rng;
use std::collections::{BTreeMap, HashMap};

pub const SECOND: i64 = 1_000;
pub const MINUTE: i64 = 60 * SECOND;
pub const HOUR: i64 = 60 * MINUTE;
/// How far Clerk's API may be behind, and what is taken off an answer's `Date`.
pub const LAG: i64 = 10 * SECOND;
/// When the histories begin.
pub const BEGIN: i64 = 1_760_000_000_000;

const ORGANIZATION: &str = "org_1";
const ROLES: [&str; 3] = ["org:admin", "org:member", "org:viewer"];

/// What a state allows: of a membership its role, of a user whether he may do anything.
pub type Access = i64;

#[derive(Clone, Debug)]
struct State {
    /// Name of a user or the organization, role of a membership.
    content: &'static str,
    banned: bool,
    updated_at: i64,
    created_at: i64,
    /// The member of a membership.
    user: Option<String>,
    /// The place among the states of the object, and among those of its pair.
    place: (usize, usize),
}

/// Where an observation stands in the true history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truth {
    /// Of a membership among the states of its pair, else of the object.
    pub place: usize,
    pub access: Access,
}

/// A webhook, and what it does.
#[derive(Clone, Debug)]
pub struct Event {
    pub at: i64,
    pub change: Change,
    /// What it says, and what was before it; `None` where it says nothing about access.
    pub effect: Option<Effect>,
}

#[derive(Clone, Debug)]
pub struct Effect {
    /// The object, or the pair of a membership.
    pub subject: String,
    pub truth: Truth,
    pub before: Option<Access>,
}

pub struct HostileClerk {
    rng: Rng,
    pub now: i64,
    /// Two nodes, whose clocks differ.
    nodes: [i64; 2],
    /// Whether times ahead of the clock occur.
    ahead: bool,
    /// Whether events follow each other as people make them: seldom within seconds, and one node's clock is nearly the other's.
    ordinary: bool,
    objects: BTreeMap<String, Vec<(i64, Option<State>)>>,
    pairs: HashMap<String, usize>,
    joined: usize,
    pub events: Vec<Event>,
    /// Replicas that are stuck from, to, and how many of the requests meet one (in percent).
    pub stuck: Vec<(i64, i64, u32)>,
    /// By id, `observed_at`, bounded `updated_at` and content: where it stands.
    truths: HashMap<(String, i64, i64, i64), Truth>,
}

impl HostileClerk {
    pub fn new(seed: u64) -> HostileClerk {
        let mut rng = Rng::with_seed(seed);
        let skew = *rng.choice([0, 0, 20, 2_000].iter()).unwrap();
        let nodes = [0, rng.i64(-skew..=skew)];
        let ahead = rng.f64() < 0.2;
        let mut clerk = HostileClerk {
            rng,
            now: BEGIN,
            nodes,
            ahead,
            ordinary: false,
            objects: BTreeMap::new(),
            pairs: HashMap::new(),
            joined: 0,
            events: Vec::new(),
            stuck: Vec::new(),
            truths: HashMap::new(),
        };
        for (id, name) in [(ORGANIZATION, "X"), ("user_1", "Ada"), ("user_2", "Bob")] {
            let (updated_at, created_at) = (clerk.now, clerk.now);
            clerk.set(
                id,
                Some(State { content: name, banned: false, updated_at, created_at, user: None, place: (0, 0) }),
            );
            clerk.emit(id, None);
        }
        clerk
    }

    /// One that nothing hostile happens to.
    pub fn ordinary(seed: u64) -> HostileClerk {
        HostileClerk { ordinary: true, ahead: false, nodes: [0, 20], ..HostileClerk::new(seed) }
    }

    fn node(&mut self) -> i64 {
        self.nodes[self.rng.usize(0..2)]
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(0..of.len())]
    }

    fn set(&mut self, id: &str, state: Option<State>) -> (usize, usize) {
        let history = self.objects.entry(id.to_owned()).or_default();
        let user =
            state.as_ref().or_else(|| history.last().and_then(|(_, last)| last.as_ref())).and_then(|s| s.user.clone());
        let of_pair = user.map_or(0, |user| {
            let places = self.pairs.entry(user).or_default();
            *places += 1;
            *places
        });
        let place = (history.len(), of_pair);
        history.push((self.now, state.map(|state| State { place, ..state })));
        place
    }

    fn state(&self, id: &str) -> Option<&State> {
        self.objects.get(id)?.last()?.1.as_ref()
    }

    fn alive(&self, prefix: &str) -> Vec<String> {
        self.objects.keys().filter(|id| id.starts_with(prefix) && self.state(id).is_some()).cloned().collect()
    }

    /// What an observation of it says. No time in it counts as later than `bound`.
    fn change(&mut self, id: &str, state: &State, observed_at: i64, bound: i64) -> Change {
        let entity = entity(id, state);
        let mention = state.user.as_ref().map(|user| self.mention(id, state, user, bound));
        let observation = Observation::live(entity, ms(state.updated_at), ms(bound));
        let change = Change { observed_at: ms(observed_at), observation, mention };
        let Observation::Live { entity, updated_at, .. } = &change.observation else { unreachable!() };
        let key = (id.to_owned(), observed_at, updated_at.get(), entity.content());
        let truth = self.truths.entry(key).or_insert(truth(state));
        if truth.place < self::truth(state).place {
            *truth = self::truth(state);
        }
        change
    }

    fn mention(&self, id: &str, state: &State, user: &str, bound: i64) -> MembershipMention {
        let parent = |id: &str| {
            let history = &self.objects[id];
            history.iter().rev().find_map(|(_, state)| state.clone()).expect("it was there once")
        };
        let Entity::User(user) = entity(user, &parent(user)) else { unreachable!() };
        let Entity::Organization(organization) = entity(ORGANIZATION, &parent(ORGANIZATION)) else { unreachable!() };
        MembershipMention {
            membership_id: MembershipId::from(id),
            created_at: ms(state.created_at.min(bound)),
            organization,
            user,
        }
    }

    /// The webhook of what an object is now.
    fn emit(&mut self, id: &str, before: Option<Access>) {
        let state = self.state(id).expect("it is there").clone();
        let observed_at = self.now + self.node() + self.pick(&[3, 9]);
        let change = self.change(id, &state, observed_at, observed_at + SECOND);
        let effect = Effect { subject: subject(id, &state), truth: truth(&state), before };
        self.events.push(Event { at: self.now, change, effect: Some(effect) });
    }

    fn touch(&mut self, id: &str, edit: impl FnOnce(&mut State), moves: bool) {
        let mut state = self.state(id).expect("it is there").clone();
        let before = truth(&state).access;
        edit(&mut state);
        if moves {
            state.updated_at = self.now + self.node();
            if self.ahead && self.rng.f64() < 0.2 {
                state.updated_at += self.pick(&[30 * MINUTE, 1_000_000_000_000]);
            }
        }
        self.set(id, Some(state));
        self.emit(id, Some(before));
    }

    fn remove(&mut self, id: &str, announced: bool) {
        let last = self.state(id).expect("it is there").clone();
        let (place, of_pair) = self.set(id, None);
        if !announced {
            return;
        }
        let observed_at = self.now + self.node() + 5;
        let entity = EntityRef::new(kind(id), id);
        let with_body = last.user.is_some() && self.rng.f64() < 0.7;
        let mention =
            last.user.as_ref().filter(|_| with_body).map(|user| self.mention(id, &last, user, observed_at + SECOND));
        let observation = match self.rng.u8(0..40) {
            // Its envelope has no time: Clerk's API must tell.
            0 if with_body || last.user.is_none() => Observation::NeedsRead(PendingRead {
                kind: entity.kind,
                id: id.to_owned(),
                organization_id: last.user.as_ref().map(|_| OrganizationId(ORGANIZATION.to_owned())),
                user_id: last.user.clone().map(UserId),
                reason: "the event's time is missing",
                reported_deleted: true,
            }),
            1 => unclear(entity.kind, "a delete without an id", 312),
            _ => Observation::Deleted(entity),
        };
        let truth = Truth { place: if last.user.is_some() { of_pair } else { place }, access: 0 };
        let known = !matches!(observation, Observation::NeedsPass { .. });
        let effect = Effect { subject: subject(id, &last), truth, before: Some(self::truth(&last).access) };
        let mention = mention.filter(|_| known);
        self.events.push(Event {
            at: self.now,
            change: Change { observed_at: ms(observed_at), observation, mention },
            effect: known.then_some(effect),
        });
    }

    fn join(&mut self, user: &str) {
        self.joined += 1;
        let id = format!("orgmem_{}{}", self.rng.u8(10..100), self.joined);
        let mut created_at = self.now + self.node();
        if self.ahead && self.rng.f64() < 0.2 {
            created_at += self.pick(&[40 * MINUTE, 1_000_000_000_000]);
        }
        let updated_at = self.now + self.node();
        let content = self.pick(&ROLES[..2]);
        let user = Some(user.to_owned());
        self.set(&id, Some(State { content, banned: false, updated_at, created_at, user, place: (0, 0) }));
        self.emit(&id, None);
    }

    /// Something happens.
    pub fn step(&mut self) {
        self.now += if self.ordinary && self.rng.u8(0..50) > 0 {
            self.pick(&[20_000, 40_000, 2 * MINUTE, 5 * MINUTE, 20 * MINUTE])
        } else {
            self.pick(&[1, 20, 400, 1_500, 1_500, 7_000, 40_000, 5 * MINUTE, 20 * MINUTE, 70 * MINUTE])
        };
        let what = self.rng.f64();
        let (members, users) = (self.alive("orgmem_"), self.alive("user_"));
        let member_of = |clerk: &HostileClerk, id: &String| clerk.state(id).and_then(|state| state.user.clone());
        let free: Vec<String> = users
            .iter()
            .filter(|user| !members.iter().any(|id| member_of(self, id).as_ref() == Some(user)))
            .cloned()
            .collect();
        if what < 0.3 && !free.is_empty() {
            let user = free[self.rng.usize(0..free.len())].clone();
            self.join(&user);
        } else if what < 0.65 && !members.is_empty() {
            let id = members[self.rng.usize(0..members.len())].clone();
            let others: Vec<&'static str> =
                ROLES.into_iter().filter(|role| *role != self.state(&id).unwrap().content).collect();
            let (role, moves) = (self.pick(&others), self.rng.f64() < 0.7);
            self.touch(&id, |state| state.content = role, moves);
            // A remap of roles: the event of the role comes as well, or alone.
            if !moves && self.rng.bool() {
                let observation = unclear(Kind::Membership, "a role or permission changed", 12);
                if self.rng.bool() {
                    self.events.pop();
                }
                let change = Change { observed_at: ms(self.now + 9), observation, mention: None };
                self.events.push(Event { at: self.now, change, effect: None });
            }
        } else if what < 0.8 && !members.is_empty() {
            let id = members[self.rng.usize(0..members.len())].clone();
            let user = member_of(self, &id).unwrap();
            self.remove(&id, true);
            if self.rng.f64() < 0.4 {
                self.now += self.pick(&[1, 300, 2_000, 30_000]);
                self.join(&user);
            }
        } else if what < 0.96 && !users.is_empty() {
            let id = users[self.rng.usize(0..users.len())].clone();
            let states = [("Ada", false), ("Ada", true), ("Bea", false)];
            let state = self.state(&id).unwrap();
            let now = (state.content, state.banned);
            let others: Vec<(&'static str, bool)> = states.into_iter().filter(|other| *other != now).collect();
            let ((name, banned), moves) = (self.pick(&others), self.rng.f64() < 0.8);
            self.touch(&id, |state| (state.content, state.banned) = (name, banned), moves);
        } else if !users.is_empty() {
            let id = users[self.rng.usize(0..users.len())].clone();
            let of_user: Vec<String> =
                members.into_iter().filter(|member| member_of(self, member).as_ref() == Some(&id)).collect();
            for member in &of_user {
                let announced = self.rng.bool();
                self.remove(member, announced);
            }
            self.remove(&id, true);
        }
    }

    /// The moment that a request made now shows.
    fn shown(&mut self, now: i64) -> i64 {
        for (from, to, percent) in self.stuck.clone() {
            if from <= now && now <= to && self.rng.u32(0..100) < percent {
                return from;
            }
        }
        now - self.rng.i64(0..=LAG)
    }

    fn at(&self, id: &str, at: i64) -> Option<State> {
        self.objects[id].iter().take_while(|(when, _)| *when <= at).last()?.1.clone()
    }

    /// Reads by id, of memberships by their pairs: what is there now. What is not is left out.
    pub fn read(&mut self, wanted: &[(String, Option<String>)], now: i64) -> (Vec<Change>, i64) {
        let (shown, observed_at) = (self.shown(now), now + self.node() - LAG);
        let ids: Vec<String> = self
            .objects
            .iter()
            .filter(|(id, states)| {
                let user = states.iter().find_map(|(_, state)| state.as_ref()).and_then(|state| state.user.clone());
                wanted.iter().any(|(wanted, of)| (of.is_some() && *of == user) || (of.is_none() && wanted == *id))
            })
            .map(|(id, _)| id.clone())
            .collect();
        (self.shown_of(&ids, shown, observed_at), observed_at)
    }

    /// Lists all of a kind, in the order of their creation.
    pub fn list(&mut self, kind: Kind, now: i64) -> (Vec<Change>, i64) {
        let (shown, observed_at) = (self.shown(now), now + self.node() - LAG);
        let ids: Vec<String> = self.objects.keys().filter(|id| self::kind(id) == kind).cloned().collect();
        (self.shown_of(&ids, shown, observed_at), observed_at)
    }

    fn shown_of(&mut self, ids: &[String], shown: i64, observed_at: i64) -> Vec<Change> {
        let mut changes = Vec::new();
        for id in ids {
            if let Some(state) = self.at(id, shown) {
                changes.push(self.change(id, &state, observed_at, observed_at + LAG + SECOND));
            }
        }
        changes
    }

    /// Where what the mirror holds of an object stands.
    pub fn truth(&self, id: &str, observed_at: i64, updated_at: i64, content: i64) -> Option<Truth> {
        self.truths.get(&(id.to_owned(), observed_at, updated_at, content)).copied()
    }

    /// What is there now, with the access that it gives. Memberships of deleted users are none.
    pub fn table(&self) -> BTreeMap<String, (String, Access)> {
        let states = self.objects.keys().filter_map(|id| Some((id, self.state(id)?)));
        let counts = |state: &State| state.user.as_ref().is_none_or(|user| self.state(user).is_some());
        states.filter(|(_, state)| counts(state)).map(|(id, state)| (id.clone(), shown(state))).collect()
    }
}

fn unclear(kind: Kind, reason: &'static str, ripe_after: u16) -> Observation {
    Observation::NeedsPass { kind, organization_id: None, reason, ripe_after }
}

/// As [`Clerk::table`] and the mirror's tables are compared.
fn shown(state: &State) -> (String, Access) {
    (format!("{}{}", state.content, if state.banned { " banned" } else { "" }), truth(state).access)
}

fn truth(state: &State) -> Truth {
    let access = match (state.content, state.banned) {
        (_, true) => 0,
        ("org:admin", _) => 3,
        ("org:member", _) => 2,
        _ => 1,
    };
    Truth { place: if state.user.is_some() { state.place.1 } else { state.place.0 }, access }
}

/// What revocations are counted by: the pair of a membership, else the object.
fn subject(id: &str, state: &State) -> String {
    state.user.as_ref().map_or_else(|| id.to_owned(), |user| format!("membership of {user}"))
}

fn kind(id: &str) -> Kind {
    Kind::of_id(id).expect("ids have the prefix of their kind")
}

fn entity(id: &str, state: &State) -> Entity {
    let name = Some(state.content.to_owned());
    match kind(id) {
        Kind::User => Entity::User(user(id, name, Some(state.banned))),
        Kind::Organization => Entity::Organization(organization(id, name)),
        Kind::Membership => Entity::Membership(Membership {
            id: MembershipId::from(id),
            organization_id: OrganizationId(ORGANIZATION.to_owned()),
            user_id: UserId(state.user.clone().expect("a member")),
            role: state.content.to_owned(),
            permissions: permissions(state.content),
            public_metadata: None,
            created_at: ms(state.created_at),
        }),
    }
}

/// A role's, each of which has those of the next one.
pub fn permissions(role: &str) -> Vec<String> {
    let all = ["org:docs:delete", "org:docs:read", "org:docs:write"];
    let many = match role {
        "org:admin" => 3,
        "org:member" => 2,
        _ => 1,
    };
    let mut permissions: Vec<String> =
        ["org:docs:read", "org:docs:write", "org:docs:delete"][..many].iter().map(|p| (*p).to_owned()).collect();
    permissions.sort_unstable();
    assert!(permissions.iter().all(|permission| all.contains(&permission.as_str())));
    permissions
}

/// A user of whom nothing else is known.
pub fn user(id: &str, first_name: Option<String>, banned: Option<bool>) -> User {
    User {
        id: UserId(id.to_owned()),
        first_name,
        last_name: None,
        username: None,
        image_url: None,
        has_image: None,
        email_address: None,
        email_address_verified: None,
        phone_number: None,
        phone_number_verified: None,
        external_id: None,
        banned,
        locked: None,
        deprovisioned: None,
        public_metadata: None,
        unsafe_metadata: None,
        created_at: None,
    }
}

/// An organization of which nothing else is known.
pub fn organization(id: &str, name: Option<String>) -> Organization {
    Organization {
        id: OrganizationId(id.to_owned()),
        name,
        slug: None,
        image_url: None,
        has_image: None,
        max_allowed_memberships: None,
        public_metadata: None,
        created_at: None,
    }
}

pub fn ms(value: i64) -> Millis {
    Millis::new(value).expect("a plausible time")
}

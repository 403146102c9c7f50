//! Any history that Clerk could emit, delivered in any order and in any batches, ends in the same tables.
//!
//! The histories contain what broke simpler rules: content that goes A→B→A at one `updated_at`, deletes without a body,
//! members who leave and join again, `updated_at` that steps back or lies far ahead, deliveries lost and doubled.

use crate::support::history::{ms, organization, permissions, user};
use crate::support::oracle::{Key, Mirror, Pending, as_json};
use crate::support::tables::{EMPTY, expected, held};
use crate::support::{database, written};
use clerk_sync::model::{
    Batch, Change, Entity, EntityRef, Kind, Membership, MembershipId, MembershipMention, Millis, Observation,
    Organization, OrganizationId, Source, User, UserId,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// One step of a simulated Clerk's life. A step that makes no sense where it stands does nothing.
#[derive(Clone, Debug)]
enum Step {
    Wait(i64),
    /// The next step happens within the same millisecond.
    AtOnce,
    Join {
        user: usize,
        admin: bool,
    },
    /// `touch`: whether `updated_at` moves, and by how much it misses the clock.
    SetRole {
        user: usize,
        role: usize,
        touch: Option<i64>,
    },
    Leave {
        user: usize,
        with_body: bool,
    },
    Edit {
        parent: usize,
        content: usize,
        touch: Option<i64>,
    },
    Ban {
        user: usize,
        banned: Option<bool>,
    },
    /// Whether each membership gets an event of its own is not documented.
    Delete {
        parent: usize,
        announce_members: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let touch = || {
        prop_oneof![
            4 => Just(Some(0)),
            3 => Just(None),
            2 => (-4_i64..=4).prop_map(Some),
            1 => Just(Some(1_000_000_000_000)),
        ]
    };
    prop_oneof![
        3 => prop::sample::select(vec![20_i64, 400, 5_000, 200_000, 400_000]).prop_map(Step::Wait),
        1 => Just(Step::AtOnce),
        4 => (0..2_usize, any::<bool>()).prop_map(|(user, admin)| Step::Join { user, admin }),
        3 => (0..2_usize, 0..3_usize, touch()).prop_map(|(user, role, touch)| Step::SetRole { user, role, touch }),
        3 => (0..2_usize, any::<bool>()).prop_map(|(user, with_body)| Step::Leave { user, with_body }),
        3 => (0..3_usize, 0..3_usize, touch()).prop_map(|(parent, content, touch)| Step::Edit { parent, content, touch }),
        1 => (0..2_usize, prop::option::of(any::<bool>())).prop_map(|(user, banned)| Step::Ban { user, banned }),
        1 => (0..3_usize, any::<bool>()).prop_map(|(parent, announce_members)| Step::Delete { parent, announce_members }),
    ]
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 4..14)
}

const ORGANIZATION: usize = 2;
const NAMES: [&str; 3] = ["X", "Y", "Z"];
const ROLES: [&str; 3] = ["org:admin", "org:member", "org:viewer"];

/// The source: two users, one organization, memberships that come and go.
struct History {
    now: i64,
    pause: i64,
    joined: usize,
    /// Content, `updated_at` and ban of both users and the organization, while they exist.
    parents: [Option<(usize, i64, Option<bool>)>; 3],
    /// Id, role, creation time and `updated_at` of each user's membership.
    members: [Option<(String, usize, i64, i64)>; 2],
    emitted: Vec<Change>,
}

impl History {
    fn emit_all(steps: &[Step]) -> Vec<Change> {
        let mut source = History {
            now: 1_700_000_000_000,
            pause: 20,
            joined: 0,
            parents: [Some((0, 1_700_000_000_000, Some(false))); 3],
            members: [None, None],
            emitted: Vec::new(),
        };
        for parent in 0..3 {
            source.emit_parent(parent);
        }
        for step in steps {
            source.step(step);
        }
        source.emitted
    }

    fn step(&mut self, step: &Step) {
        self.now += std::mem::replace(&mut self.pause, 20);
        match *step {
            Step::AtOnce => self.pause = 0,
            Step::Wait(ms) => self.now += ms,
            Step::Join { user, admin } => {
                if self.parents[user].is_some() && self.parents[ORGANIZATION].is_some() && self.members[user].is_none()
                {
                    self.joined += 1;
                    let id = format!("orgmem_{}", self.joined);
                    self.members[user] = Some((id, usize::from(!admin), self.now, self.now));
                    self.emit_member(user);
                }
            }
            Step::SetRole { user, role, touch } => {
                let now = self.now;
                if let Some(member) = &mut self.members[user] {
                    member.1 = role;
                    member.3 = touch.map_or(member.3, |off| now + off);
                    self.emit_member(user);
                }
            }
            Step::Leave { user, with_body } => {
                if let Some(member) = self.members[user].take() {
                    self.emit_left(user, &member.0, member.2, with_body);
                }
            }
            Step::Edit { parent, content, touch } => {
                let now = self.now;
                if let Some(state) = &mut self.parents[parent] {
                    state.0 = content;
                    state.1 = touch.map_or(state.1, |off| now + off);
                    self.emit_parent(parent);
                }
            }
            Step::Ban { user, banned } => {
                let now = self.now;
                if let Some(state) = &mut self.parents[user] {
                    state.2 = banned;
                    state.1 = now;
                    self.emit_parent(user);
                }
            }
            Step::Delete { parent, announce_members } => {
                if self.parents[parent].is_some() {
                    for user in 0..2 {
                        if (parent == user || parent == ORGANIZATION)
                            && let Some(member) = self.members[user].take()
                            && announce_members
                        {
                            self.emit_left(user, &member.0, member.2, true);
                        }
                    }
                    self.parents[parent] = None;
                    let entity = match parent {
                        ORGANIZATION => EntityRef::new(Kind::Organization, self.organization_id().0),
                        user => EntityRef::new(Kind::User, self.user_id(user).0),
                    };
                    self.emit(Observation::Deleted(entity), None);
                }
            }
        }
    }

    fn organization_id(&self) -> OrganizationId {
        OrganizationId("org_1".to_owned())
    }

    fn user_id(&self, user: usize) -> UserId {
        UserId(format!("user_{user}"))
    }

    fn user(&self, user: usize) -> User {
        let (content, _, banned) = self.parents[user].unwrap_or((0, 0, Some(false)));
        self::user(self.user_id(user).as_str(), Some(NAMES[content].to_owned()), banned)
    }

    fn organization(&self) -> Organization {
        let (content, _, _) = self.parents[ORGANIZATION].unwrap_or((0, 0, None));
        organization(self.organization_id().as_str(), Some(NAMES[content].to_owned()))
    }

    fn mention(&self, user: usize, id: &str, created_at: i64) -> MembershipMention {
        MembershipMention {
            membership_id: MembershipId::from(id),
            created_at: ms(created_at).min(self.bound()),
            organization: self.organization(),
            user: self.user(user),
        }
    }

    /// No time in an event of now counts as later than this.
    fn bound(&self) -> Millis {
        ms(self.now + 5 + 1_000)
    }

    fn emit(&mut self, observation: Observation, mention: Option<MembershipMention>) {
        self.emitted.push(Change { observed_at: ms(self.now + 5), observation, mention });
    }

    fn emit_parent(&mut self, parent: usize) {
        let Some((_, updated_at, _)) = self.parents[parent] else { return };
        let entity = match parent {
            ORGANIZATION => Entity::Organization(self.organization()),
            user => Entity::User(self.user(user)),
        };
        self.emit(Observation::live(entity, ms(updated_at), self.bound()), None);
    }

    fn emit_member(&mut self, user: usize) {
        let Some((id, role, created_at, updated_at)) = self.members[user].clone() else { return };
        let entity = Entity::Membership(Membership {
            id: MembershipId::from(id.as_str()),
            organization_id: self.organization_id(),
            user_id: self.user_id(user),
            role: ROLES[role].to_owned(),
            permissions: permissions(ROLES[role]),
            public_metadata: None,
            created_at: ms(created_at),
        });
        let mention = self.mention(user, &id, created_at);
        self.emit(Observation::live(entity, ms(updated_at), self.bound()), Some(mention));
    }

    fn emit_left(&mut self, user: usize, id: &str, created_at: i64, with_body: bool) {
        let mention = with_body.then(|| self.mention(user, id, created_at));
        self.emit(Observation::Deleted(EntityRef::new(Kind::Membership, id)), mention);
    }
}

fn batch(changes: &[Change]) -> Batch<'_> {
    Batch::of_changes(Source::Webhook, changes.iter())
}

/// All orders of `0..n`.
fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    permutations(n - 1)
        .into_iter()
        .flat_map(|rest| {
            (0..n).map(move |at| {
                let mut order = rest.clone();
                order.insert(at, n - 1);
                order
            })
        })
        .collect()
}

/// An order cut after each position whose bit is set.
fn cut(order: &[usize], cuts: usize) -> impl Iterator<Item = &[usize]> {
    let places: Vec<usize> = (1..order.len()).filter(|position| cuts >> (position - 1) & 1 == 1).collect();
    let ends = places.clone().into_iter().chain([order.len()]);
    [0].into_iter().chain(places).zip(ends).map(|(from, to)| &order[from..to])
}

/// The batches that some changes can come in, as the oracle reads them; each is folded once.
struct Batches<'a> {
    changes: &'a [Change],
    folded: BTreeMap<Vec<usize>, Value>,
}

impl Batches<'_> {
    /// What these come to, one after the other.
    fn folded<'b>(&mut self, batches: impl Iterator<Item = &'b [usize]>) -> Mirror {
        let mut mirror = Mirror::default();
        for indices in batches {
            if !self.folded.contains_key(indices) {
                let changes: Vec<Change> = indices.iter().map(|index| self.changes[*index].clone()).collect();
                self.folded.insert(indices.to_vec(), as_json(&batch(&changes)));
            }
            mirror.apply(&self.folded[indices]);
        }
        mirror
    }
}

/// What must not depend on the order: all but what waits for a read to tell it (R9), and how often that was asked for.
fn settled(mut mirror: Mirror, open: &BTreeSet<Key>) -> Mirror {
    mirror.versions.retain(|key, _| !open.contains(key));
    mirror.rows.retain(|key, _| !open.contains(key));
    for version in mirror.versions.values_mut() {
        version.first_observed_at = None; // of several that come at once the winner's
        version.ahead = None; // the last one that was written, not the last one of all
    }
    mirror.pending.clear();
    (mirror.doubts, mirror.contradictions, mirror.writes) = (0, 0, 0);
    mirror
}

/// What events disagree about.
fn in_doubt(mirror: &Mirror) -> BTreeSet<Key> {
    let is_doubt = |(_, pending): &(&Key, &Pending)| pending.reason == "in doubt";
    mirror.pending.iter().filter(is_doubt).map(|(key, _)| key.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// R8 and all others, without a database: every order of the last four events, in every cut into batches.
    #[test]
    fn every_order_and_every_cut_of_a_history_end_alike(steps in history(), lost in prop::collection::vec(any::<u8>(), 24)) {
        let emitted = History::emit_all(&steps);
        let delivered: Vec<Change> =
            emitted.into_iter().zip(lost.iter().cycle()).filter(|(_, lost)| **lost >= 50).map(|(change, _)| change).collect();
        let changes = &delivered[delivered.len().saturating_sub(4)..];
        let mut batches = Batches { changes, folded: BTreeMap::new() };
        let as_emitted: Vec<usize> = (0..changes.len()).collect();
        let one_by_one = batches.folded(cut(&as_emitted, usize::MAX));
        let mut ends = Vec::new();
        for order in permutations(changes.len()) {
            for cuts in 0..(1_usize << changes.len().saturating_sub(1)) {
                ends.push((batches.folded(cut(&order, cuts)), order.clone(), cuts));
            }
        }
        let open: BTreeSet<Key> = ends.iter().flat_map(|(mirror, ..)| in_doubt(mirror)).collect();
        let expected = settled(one_by_one, &open);
        for (mirror, order, cuts) in ends {
            prop_assert_eq!(settled(mirror, &open), expected.clone(), "order {:?}, cuts {:b}", order, cuts);
        }
    }
}

// Two hundred histories on Postgres: lost, doubled, shuffled, cut into batches, each in six ways. Four tests, because each has
// a database of its own and they run side by side.

#[tokio::test]
async fn the_writer_and_the_oracle_agree_whatever_the_order_1() {
    agree(1, 50).await;
}

#[tokio::test]
async fn the_writer_and_the_oracle_agree_whatever_the_order_2() {
    agree(2, 50).await;
}

#[tokio::test]
async fn the_writer_and_the_oracle_agree_whatever_the_order_3() {
    agree(3, 50).await;
}

#[tokio::test]
async fn the_writer_and_the_oracle_agree_whatever_the_order_4() {
    agree(4, 50).await;
}

async fn agree(share: u64, histories: u64) {
    let database = database().await;
    let mut session = database.database().connect().await.expect("a session");
    let mut owner = database.owner().await;
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(
        ProptestConfig::default(),
        proptest::test_runner::TestRng::from_seed(
            proptest::test_runner::RngAlgorithm::ChaCha,
            &[u8::try_from(share).unwrap(); 32],
        ),
    );
    for number in 0..histories {
        let steps = history().new_tree(&mut runner).expect("a history").current();
        let mut rng = fastrand::Rng::with_seed(share * 1_000_000 + number);
        let lost: Vec<bool> = (0..64).map(|_| rng.u8(..) < 50).collect();
        let mut ends: Vec<Mirror> = Vec::new();
        for attempt in 0..6 {
            sqlx::raw_sql(EMPTY).execute(&mut owner).await.expect("empty tables");
            let emitted = History::emit_all(&steps);
            let mut delivered: Vec<Change> =
                emitted.into_iter().zip(&lost).filter(|(_, lost)| !**lost).map(|(change, _)| change).collect();
            let doubled: Vec<Change> = delivered.iter().filter(|_| rng.u8(..) < 75).cloned().collect();
            delivered.extend(doubled);
            rng.shuffle(&mut delivered);

            let mut oracle = Mirror::default();
            let mut rest = delivered.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rng.usize(1..=rest.len()));
                let batch = batch(now);
                session.apply(&batch, now.len()).await.expect("apply");
                oracle.apply(&as_json(&batch));
                rest = later;
            }
            let (held, expected) = (held(&mut owner).await, expected(&oracle));
            let differing: Vec<_> = held
                .iter()
                .filter(|(key, value)| expected.get(*key) != Some(value))
                .map(|(key, value)| (key, value, expected.get(key)))
                .collect();
            assert!(held == expected, "{differing:#?} seed {share}/{number}, attempt {attempt}\n{steps:#?}");
            let before = written(&mut owner).await;
            session.apply(&batch(&delivered), delivered.len()).await.expect("apply");
            assert_eq!(written(&mut owner).await, before, "applying everything again wrote a row: {share}/{number}");
            ends.push(oracle);
        }
        let open: BTreeSet<Key> = ends.iter().flat_map(in_doubt).collect();
        let ends: Vec<Mirror> = ends.into_iter().map(|end| settled(end, &open)).collect();
        assert!(
            ends.windows(2).all(|pair| pair[0] == pair[1]),
            "seed {share}/{number}: the order mattered\n{steps:#?}"
        );
    }
}

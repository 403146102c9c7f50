//! The scenarios of `docs/ordering.md`, each with all rules and without the one that it needs: right with them, wrong without it. Time is
//! Clerk's clock in ms, so how long a row is wrong or waits is exact. `tests/lagging.rs` has the same scenarios on Postgres and over HTTP.

use crate::support::history::{BEGIN, HOUR, LAG, MINUTE, SECOND, ms, organization, permissions, user};
use crate::support::oracle::{Key, Mirror, Without, as_json};
use clerk_sync::model::{
    Batch, Change, Entity, EntityRef, Kind, Membership, MembershipId, MembershipMention, Millis, Observation,
    OrganizationId, PendingRead, Source, UserId,
};
use serde_json::json;

const DAY: i64 = 24 * HOUR;

/// Ada, an organization, and what webhooks and reads say about them.
struct Scenario {
    mirror: Mirror,
    without: Option<Without>,
}

/// What Clerk says of a membership: its id, role, `updated_at` and `created_at`.
type Said<'a> = (&'a str, &'a str, i64, i64);

impl Scenario {
    /// Ada is admin since `BEGIN`, by a webhook.
    fn new(without: Option<Without>) -> Scenario {
        let mut scenario = Scenario { mirror: Mirror { without, ..Mirror::default() }, without };
        scenario.user(Source::Webhook, BEGIN + 5, BEGIN, Some(false));
        let acme = Entity::Organization(organization("org_1", Some("Acme".to_owned())));
        scenario.live(Source::Webhook, BEGIN + 5, BEGIN, acme, None);
        scenario.membership(Source::Webhook, BEGIN + 9, ("orgmem_1", "org:admin", BEGIN, BEGIN));
        scenario
    }

    fn apply(&mut self, source: Source, change: Change) {
        self.mirror.apply(&as_json(&Batch::of_changes(source, [&change].into_iter())));
    }

    /// A read made at `at` is dated 10 seconds back. No time counts as later than a second after the event or the response.
    fn live(&mut self, source: Source, at: i64, updated_at: i64, entity: Entity, mention: Option<MembershipMention>) {
        let observed_at = if source == Source::Webhook { at } else { at - LAG };
        let bound = if self.without == Some(Without::Bound) { Millis::MAX } else { ms(at + SECOND) };
        let observation = Observation::live(entity, ms(updated_at), bound);
        self.apply(source, Change { observed_at: ms(observed_at), observation, mention });
    }

    fn user(&mut self, source: Source, at: i64, updated_at: i64, banned: Option<bool>) {
        let ada = Entity::User(user("user_1", Some("Ada".to_owned()), banned));
        self.live(source, at, updated_at, ada, None);
    }

    fn membership(&mut self, source: Source, at: i64, (id, role, updated_at, created_at): Said<'_>) {
        let bound = if self.without == Some(Without::Bound) { created_at } else { at + SECOND };
        let mention = MembershipMention {
            membership_id: MembershipId::from(id),
            created_at: ms(created_at.min(bound)),
            organization: organization("org_1", Some("Acme".to_owned())),
            user: user("user_1", Some("Ada".to_owned()), Some(false)),
        };
        let entity = Entity::Membership(Membership {
            id: MembershipId::from(id),
            organization_id: OrganizationId("org_1".to_owned()),
            user_id: UserId("user_1".to_owned()),
            role: role.to_owned(),
            permissions: permissions(role),
            public_metadata: None,
            created_at: ms(created_at),
        });
        self.live(source, at, updated_at, entity, Some(mention));
    }

    fn deleted(&mut self, source: Source, at: i64, kind: Kind, id: &str) {
        let observed_at = if source == Source::Webhook { at } else { at - LAG };
        let observation = Observation::Deleted(EntityRef::new(kind, id));
        self.apply(source, Change { observed_at: ms(observed_at), observation, mention: None });
    }

    /// A reconcile of memberships began then.
    fn reconciled(&mut self, at: i64) {
        self.mirror.marks.insert("membership".to_owned(), at - LAG);
        self.mirror.marks.insert("user".to_owned(), at - LAG);
    }

    fn role(&self, id: &str) -> Option<&str> {
        self.mirror.rows.get(&key("membership", id)).and_then(|row| row["role"].as_str())
    }

    fn is_user(&self) -> bool {
        self.mirror.rows.contains_key(&key("user", "user_1"))
    }

    fn is_banned(&self) -> bool {
        self.mirror.rows[&key("user", "user_1")]["banned"] == json!(true)
    }

    fn is_pending(&self, kind: &str, id: &str) -> bool {
        self.mirror.pending.contains_key(&key(kind, id))
    }

    /// Reads the same every minute from `from` until `done`: how long after `from` that was, if it was within two days.
    fn read_until(&mut self, from: i64, said: Said<'_>, done: impl Fn(&Scenario) -> bool) -> Option<i64> {
        for at in (from..from + 2 * DAY).step_by(60_000) {
            self.membership(Source::Read, at, said);
            if done(self) {
                return Some(at - from);
            }
        }
        None
    }
}

fn key(kind: &str, id: &str) -> Key {
    (kind.to_owned(), id.to_owned())
}

/// A1: how long after the first read of a stuck replica a membership that a webhook demoted is admin again.
fn demoted_until(without: Option<Without>) -> Option<i64> {
    let mut scenario = Scenario::new(without);
    scenario.membership(Source::Webhook, BEGIN + MINUTE, ("orgmem_1", "org:member", BEGIN + MINUTE, BEGIN));
    let before = ("orgmem_1", "org:admin", BEGIN, BEGIN);
    scenario.read_until(BEGIN + 10 * MINUTE, before, |scenario| scenario.role("orgmem_1") == Some("org:admin"))
}

#[test]
fn a1_stuck_replica_gives_a_role_back() {
    assert_eq!(demoted_until(None), Some(DAY), "only after it has said so for a day");
    assert_eq!(demoted_until(Some(Without::Contradictions)), Some(0), "the first read is believed");
}

fn deleted_user_is_back(without: Option<Without>) -> bool {
    let mut scenario = Scenario::new(without);
    scenario.deleted(Source::Webhook, BEGIN + MINUTE, Kind::User, "user_1");
    for hour in 0..48 {
        scenario.user(Source::Read, BEGIN + 10 * MINUTE + hour * HOUR, BEGIN, Some(false));
    }
    scenario.is_user()
}

#[test]
fn a1_stuck_replica_brings_a_deleted_user_back() {
    assert!(!deleted_user_is_back(None));
    assert!(deleted_user_is_back(Some(Without::FinalTombstones)));
}

fn new_member_is_locked_out(without: Option<Without>, after: i64) -> bool {
    let mut scenario = Scenario::new(without);
    scenario.deleted(Source::Read, BEGIN + 9 + after, Kind::Membership, "orgmem_1");
    scenario.role("orgmem_1").is_none()
}

#[test]
fn a1_stuck_replica_locks_a_new_member_out() {
    assert!(!new_member_is_locked_out(None, HOUR), "absence is not believed for an hour");
    assert!(new_member_is_locked_out(None, HOUR + LAG + 1), "then it is");
    assert!(new_member_is_locked_out(Some(Without::YoungAbsence), MINUTE));
}

/// A3: what a response that is dated a day ahead would do if it reached the writer. So neither the client nor the writer accepts it.
#[test]
fn a3_date_skew_makes_every_later_ban_stale() {
    for (ahead, banned) in [(0, true), (DAY, false)] {
        let mut scenario = Scenario::new(None);
        scenario.user(Source::List, BEGIN + 10 * MINUTE + ahead, BEGIN, Some(false));
        scenario.reconciled(BEGIN + 10 * MINUTE + ahead);
        scenario.user(Source::Webhook, BEGIN + 20 * MINUTE, BEGIN + 1_000, Some(true));
        assert_eq!(scenario.is_banned(), banned, "{ahead} ms ahead");
    }
}

/// A5: how long after the first read of the pair a membership counts that seems to be older than the one before it.
fn rejoined_after(without: Option<Without>) -> Option<i64> {
    let mut scenario = Scenario::new(without);
    scenario.deleted(Source::Webhook, BEGIN + 10 * SECOND, Kind::Membership, "orgmem_1");
    let again = ("orgmem_2", "org:member", BEGIN + 20 * SECOND, BEGIN - 500);
    scenario.membership(Source::Webhook, BEGIN + 20 * SECOND + 9, again);
    assert_eq!(scenario.role("orgmem_2"), None);
    scenario.read_until(BEGIN + 10 * MINUTE, again, |scenario| scenario.role("orgmem_2").is_some())
}

#[test]
fn a5_generation_that_goes_back_locks_a_member_out() {
    assert_eq!(rejoined_after(None), Some(HOUR));
    assert_eq!(rejoined_after(Some(Without::Correction)), None, "for ever");
}

fn rejoined_at_once(without: Option<Without>) -> bool {
    let mut scenario = Scenario::new(without);
    scenario.deleted(Source::Webhook, BEGIN + 5 * SECOND, Kind::Membership, "orgmem_1");
    let ahead = ("orgmem_2", "org:member", BEGIN + 10 * SECOND, BEGIN + 365 * DAY);
    scenario.membership(Source::Webhook, BEGIN + 10 * SECOND, ahead);
    scenario.deleted(Source::Webhook, BEGIN + 20 * SECOND, Kind::Membership, "orgmem_2");
    let again = ("orgmem_3", "org:member", BEGIN + 30 * SECOND, BEGIN + 30 * SECOND);
    scenario.membership(Source::Webhook, BEGIN + 30 * SECOND, again);
    scenario.role("orgmem_3").is_some()
}

#[test]
fn f8_a_created_at_ahead_locks_a_member_out() {
    assert!(rejoined_at_once(None));
    assert!(!rejoined_at_once(Some(Without::Bound)));
}

/// B5: a ban whose `updated_at` is before the known one, by a webhook 500 ms later.
fn banned_at_once(without: Option<Without>, known: i64, updated_at: i64) -> bool {
    let mut scenario = Scenario::new(without);
    scenario.user(Source::Webhook, BEGIN + 10 * SECOND, known, Some(false));
    scenario.user(Source::Webhook, BEGIN + 10 * SECOND + 500, updated_at, Some(true));
    scenario.is_banned()
}

#[test]
fn b5_regress_makes_a_ban_stale() {
    let known = BEGIN + 10 * SECOND - 3;
    assert!(banned_at_once(None, known, known - 1));
    assert!(!banned_at_once(Some(Without::Doubt), known, known - 1));
}

#[test]
fn b5_future_updated_makes_a_ban_stale() {
    let (ahead, now) = (BEGIN + 11 * SECOND + HOUR, BEGIN + 10 * SECOND + 500);
    assert!(banned_at_once(None, ahead, now));
    assert!(!banned_at_once(Some(Without::Doubt), ahead, now));
}

/// Member and admin at one `updated_at`, 22 ms apart: which of them was last, the webhooks do not tell.
fn roles_of_one_moment(without: Option<Without>, turned: bool) -> String {
    let mut scenario = Scenario::new(without);
    let updated_at = BEGIN + 10 * SECOND;
    let mut both = [("org:member", updated_at + 5), ("org:admin", updated_at + 27)];
    if turned {
        both.reverse();
    }
    for (role, at) in both {
        scenario.membership(Source::Webhook, at, ("orgmem_1", role, updated_at, BEGIN));
    }
    assert!(without.is_some() || scenario.is_pending("membership", "orgmem_1"));
    scenario.role("orgmem_1").unwrap().to_owned()
}

#[test]
fn b5_same_updated_at_leaves_it_to_milliseconds() {
    for turned in [false, true] {
        assert_eq!(roles_of_one_moment(None, turned), "org:member");
        assert_eq!(roles_of_one_moment(Some(Without::Doubt), turned), "org:admin");
    }
}

fn let_in_behind_the_listing(without: Option<Without>) -> bool {
    let mut scenario = Scenario::new(without);
    scenario.deleted(Source::Webhook, BEGIN + 5 * SECOND, Kind::Membership, "orgmem_1");
    scenario.reconciled(BEGIN + 10 * MINUTE);
    // Its delete is lost, and the reconcile has listed what is there.
    let joined = ("orgmem_2", "org:admin", BEGIN + MINUTE, BEGIN + MINUTE);
    scenario.membership(Source::Webhook, BEGIN + MINUTE, joined);
    assert!(without.is_some() || scenario.is_pending("membership", "orgmem_2"));
    scenario.role("orgmem_2").is_some()
}

#[test]
fn c1_mark_at_end_lets_a_former_member_in() {
    assert!(!let_in_behind_the_listing(None));
    assert!(let_in_behind_the_listing(Some(Without::Mark)));
}

fn back_by_a_late_update(without: Option<Without>) -> bool {
    let mut scenario = Scenario::new(without);
    let changed = BEGIN + 2 * HOUR;
    scenario.deleted(Source::Read, changed + 4 * SECOND, Kind::Membership, "orgmem_1");
    assert_eq!(scenario.role("orgmem_1"), None);
    scenario.membership(Source::Webhook, changed + 9, ("orgmem_1", "org:member", changed, BEGIN));
    assert!(without.is_some() || scenario.is_pending("membership", "orgmem_1"));
    scenario.role("orgmem_1").is_some()
}

#[test]
fn c2_inferred_back_brings_a_former_member_back() {
    assert!(!back_by_a_late_update(None));
    assert!(back_by_a_late_update(Some(Without::InferredStays)));
}

fn writes_of_an_idle_list(without: Option<Without>) -> usize {
    let mut scenario = Scenario::new(without);
    let ahead = BEGIN + 1_000 * HOUR;
    scenario.user(Source::List, BEGIN + HOUR, ahead, Some(false));
    let before = scenario.mirror.writes;
    scenario.user(Source::List, BEGIN + 2 * HOUR, ahead, Some(false));
    scenario.mirror.writes - before
}

#[test]
fn c9_an_updated_at_far_ahead_is_written_by_every_list() {
    assert_eq!(writes_of_an_idle_list(None), 0);
    assert_eq!(writes_of_an_idle_list(Some(Without::IdleAhead)), 1);
}

/// B1: when a read that a webhook without a role asked for decides, if Clerk's API is 8 seconds behind.
fn settled_after(without: Option<Without>) -> (Option<i64>, String) {
    let mut scenario = Scenario::new(without);
    let changed = BEGIN + HOUR;
    let read = PendingRead {
        kind: Kind::Membership,
        id: "orgmem_1".to_owned(),
        organization_id: Some(OrganizationId("org_1".to_owned())),
        user_id: Some(UserId("user_1".to_owned())),
        reason: "role is missing",
        reported_deleted: false,
    };
    scenario.apply(
        Source::Webhook,
        Change { observed_at: ms(changed), observation: Observation::NeedsRead(read), mention: None },
    );
    for wait in 1..60 {
        let after = ("orgmem_1", "org:member", changed, BEGIN);
        let shown = if wait < 8 { ("orgmem_1", "org:admin", BEGIN, BEGIN) } else { after };
        scenario.membership(Source::Read, changed + wait * SECOND, shown);
        if !scenario.is_pending("membership", "orgmem_1") {
            return (Some(wait), scenario.role("orgmem_1").unwrap().to_owned());
        }
    }
    (None, scenario.role("orgmem_1").unwrap().to_owned())
}

#[test]
fn b1_unusable_lag_settles_too_early() {
    assert_eq!(
        settled_after(None),
        (Some(13), "org:member".to_owned()),
        "12.1 s after the event, by a read each second"
    );
    assert_eq!(settled_after(Some(Without::Delay)), (Some(1), "org:admin".to_owned()));
}

/// A revocation that comes after a reconcile, which met a replica from before it.
fn late_revocation(without: Option<Without>, reconciled_after: i64) -> String {
    let mut scenario = Scenario::new(without);
    let changed = BEGIN + 20 * MINUTE;
    scenario.reconciled(changed + reconciled_after);
    scenario.membership(Source::Webhook, changed, ("orgmem_1", "org:member", BEGIN, BEGIN));
    // The read by id that it asks for meets the same replica.
    scenario.membership(Source::Read, changed + reconciled_after + MINUTE, ("orgmem_1", "org:admin", BEGIN, BEGIN));
    scenario.role("orgmem_1").unwrap().to_owned()
}

#[test]
fn a_revocation_that_comes_after_a_reconcile_is_undone_by_a_stuck_replica() {
    assert_eq!(late_revocation(None, 30 * MINUTE), "org:member");
    assert_eq!(late_revocation(None, 65 * MINUTE + LAG), "org:member");
    assert_eq!(late_revocation(None, 65 * MINUTE + LAG + 1), "org:admin", "an hour has passed: the reads are believed");
    assert_eq!(late_revocation(Some(Without::LateRevocation), 30 * MINUTE), "org:admin");
}

//! The rules R1 to R9 a second time, as plainly as they can be said: the oracle that the writer's SQL is held against.
//!
//! It takes the batches that `clerk_sync.apply` takes, as JSON, and keeps what the tables keep.

use clerk_sync::model::{Batch, Entity, FoldedChange, Kind, Row, Stub};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const MARGIN: i64 = 300_000;
const SKEW: i64 = 2_100;
const SOON: i64 = 5_000;
const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

/// (kind, id)
pub type Key = (String, String);
/// (organization, user)
pub type Pair = (String, String);
/// `updated_at`, `observed_at`, content
pub type Event = (i64, i64, i64);

/// A row of `clerk_sync.versions`. Of a stub and a tombstone only the state and the time count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Version {
    pub state: &'static str,
    pub updated_at: Option<i64>,
    pub observed_at: i64,
    pub content: Option<i64>,
    pub denial: Option<i64>,
    pub floor: i64,
    pub first_observed_at: Option<i64>,
    pub event: Option<Event>,
    pub ahead: Option<i64>,
    pub by_event: bool,
    pub in_doubt: bool,
    pub inferred: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    pub created_at: i64,
    pub membership_id: String,
    pub rival: Option<(String, i64)>,
}

/// An object that only a read by id can settle.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pending {
    pub pair: Option<Pair>,
    pub reason: String,
    pub settles_after: i64,
    pub reported_deleted: bool,
    pub said: Option<(String, i64)>,
    /// When a contradiction is old enough to be believed.
    pub due: Option<i64>,
}

/// A rule that a counterexample does without: what the rules were before it, or what is simpler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// R1, R5: no time counts as later than a second after what says it. The bound is in the changes; the oracle does not know it.
    Bound,
    /// R2: a read may be behind the webhooks.
    Contradictions,
    /// R3: an `updated_at` ahead of its time that a list repeats is not newer.
    IdleAhead,
    /// R4: a read does not undo the tombstone of an event.
    FinalTombstones,
    /// R4: absence is not believed within an hour of the first observation.
    YoungAbsence,
    /// R4: an event does not undo an inferred tombstone.
    InferredStays,
    /// R5: reads of a pair correct its generation.
    Correction,
    /// R7: the start of the last pass is remembered, from its listing on.
    Mark,
    /// R7: a late event that takes access counts at once if it is the newest, and at most an hour older than the pass.
    LateRevocation,
    /// R9: of two events in doubt the one with less access counts.
    Doubt,
    /// R9: no read settles what was asked before Clerk's API must know it.
    Delay,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mirror {
    /// For counterexamples; else none.
    pub without: Option<Without>,
    pub versions: BTreeMap<Key, Version>,
    pub rows: BTreeMap<Key, Value>,
    pub generations: BTreeMap<Pair, Generation>,
    pub marks: BTreeMap<String, i64>,
    pub pending: BTreeMap<Key, Pending>,
    /// How often R2 and R9 left something to a read.
    pub contradictions: usize,
    pub doubts: usize,
    /// Rows and versions written.
    pub writes: usize,
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value, name: &str) -> i64 {
    value[name].as_i64().unwrap_or_else(|| panic!("{name} is missing in {value}"))
}

fn key(item: &Value) -> Key {
    (text(item, "kind"), text(item, "id"))
}

fn pair(item: &Value) -> Pair {
    (text(item, "organization_id"), text(item, "user_id"))
}

fn items<'a>(batch: &'a Value, name: &str) -> &'a [Value] {
    batch[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A batch as JSON, named as the composite types in the database are.
pub fn as_json(batch: &Batch<'_>) -> Value {
    let row = |winner: &FoldedChange<'_>| {
        let mut row = match winner.row {
            Row::Live(entity) => json!(entity),
            Row::Stub(Stub::User(user)) => json!(user),
            Row::Stub(Stub::Organization(organization)) => json!(organization),
            Row::Gone(entity) => json!({ "id": entity.id }),
        };
        row["n"] = json!(winner.n);
        row["kind"] = json!(winner.row.kind());
        row["observed_at"] = json!(winner.observed_at);
        row["updated_at"] = json!(winner.updated_at);
        row["content"] = json!(winner.content);
        row["denial"] = json!(winner.denial);
        row["ahead"] = json!(winner.ahead);
        if matches!(winner.row, Row::Live(Entity::User(user)) | Row::Stub(Stub::User(user)) if user.banned.is_none()) {
            row["read_reason"] = json!("banned is missing");
        }
        row
    };
    let rows = |kind: Kind| batch.changes.iter().filter(move |change| change.row.kind() == kind).map(row);
    let named = batch.mentions.iter().map(|(observed_at, mention)| {
        json!({ "organization_id": mention.organization.id, "user_id": mention.user.id, "observed_at": observed_at,
                "membership_id": mention.membership_id, "created_at": mention.created_at })
    });
    let reads = batch.pending_reads.iter().map(|(n, observed_at, read)| {
        json!({ "n": n, "kind": read.kind, "id": read.id, "organization_id": read.organization_id, "user_id": read.user_id,
                "reason": read.reason, "observed_at": observed_at, "reported_deleted": read.reported_deleted })
    });
    let doubts = batch.doubts.iter().map(|doubt| {
        let (updated_at, observed_at, content) = doubt.event;
        json!({ "n": doubt.n, "asks": doubt.asks, "in_doubt": doubt.in_doubt, "updated_at": updated_at, "observed_at": observed_at, "content": content })
    });
    json!({
        "source": batch.source,
        "deletions": batch.deletions.iter().map(row).collect::<Vec<_>>(),
        "changes": batch.changes.iter().map(row).collect::<Vec<_>>(),
        "users": rows(Kind::User).collect::<Vec<_>>(),
        "organizations": rows(Kind::Organization).collect::<Vec<_>>(),
        "memberships": rows(Kind::Membership).collect::<Vec<_>>(),
        "stubs": batch.stubs.iter().map(row).collect::<Vec<_>>(),
        "mentions": named.collect::<Vec<_>>(),
        "superseded": batch.superseded,
        "pending_reads": reads.collect::<Vec<_>>(),
        "doubts": doubts.collect::<Vec<_>>(),
    })
}

/// R2: 1 if the new state may give more access than the other, 0 if it gives the same, -1 if it provably gives less.
fn compare_access(kind: &str, new: &Value, known: Option<&Value>, denials: (i64, i64)) -> i64 {
    if kind != "membership" {
        return (denials.1 - denials.0).signum();
    }
    let Some(known) = known else { return 1 };
    let permissions = |row: &Value| -> Vec<String> {
        row["permissions"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().to_owned()).collect()
    };
    let (new_ones, known_ones) = (permissions(new), permissions(known));
    if new["role"] == known["role"] && new_ones == known_ones {
        0
    } else if new_ones.len() < known_ones.len() && new_ones.iter().all(|p| known_ones.contains(p)) {
        -1
    } else {
        1
    }
}

impl Mirror {
    pub fn apply(&mut self, batch: &Value) {
        let source = text(batch, "source");
        let mut superseded: Vec<String> =
            items(batch, "superseded").iter().map(|id| id.as_str().unwrap().to_owned()).collect();
        let mut unproven = Vec::new();
        for mention in items(batch, "mentions") {
            self.name(mention, &source, &mut superseded, &mut unproven);
        }
        if source != "webhook" {
            for change in items(batch, "memberships") {
                self.contradict_generation(change, &mut superseded);
            }
        }
        for gone in items(batch, "deletions") {
            if ["read", "undelete"].contains(&source.as_str()) {
                self.end_rivalry(gone, items(batch, "changes"));
            }
            self.bury(gone, &source);
        }
        for of_memberships in [false, true] {
            for stub in items(batch, "stubs").iter().filter(|_| of_memberships) {
                self.stub(stub, &source);
            }
            let changes = items(batch, "changes").iter();
            for change in changes.filter(|change| (change["kind"] == "membership") == of_memberships) {
                self.live(change, &source, &superseded, &unproven);
                self.leave_doubt(change, items(batch, "doubts"));
            }
        }
        for read in items(batch, "pending_reads") {
            self.ask_for(read, &source);
        }
        self.end_dead_memberships();
    }

    fn has(&self, rule: Without) -> bool {
        self.without != Some(rule)
    }

    fn is_buried(&self, kind: &str, id: &str) -> bool {
        self.versions.get(&(kind.to_owned(), id.to_owned())).is_some_and(|version| version.state == "deleted")
    }

    fn has_row(&self, kind: &str, id: &str) -> bool {
        self.rows.contains_key(&(kind.to_owned(), id.to_owned()))
    }

    /// R5
    fn name(&mut self, mention: &Value, source: &str, superseded: &mut Vec<String>, unproven: &mut Vec<String>) {
        let (id, created_at) = (text(mention, "membership_id"), number(mention, "created_at"));
        let mark = self.marks.get("membership").copied();
        let Some(known) = self.generations.get(&pair(mention)).cloned() else {
            self.generations.insert(pair(mention), Generation { created_at, membership_id: id, rival: None });
            return;
        };
        let is_later = (created_at, &id) > (known.created_at, &known.membership_id);
        let is_old = source == "webhook" && mark.is_some_and(|mark| number(mention, "observed_at") < mark - MARGIN);
        if is_later
            && id != known.membership_id
            && is_old
            && created_at - known.created_at <= SKEW
            && self.has_row("membership", &known.membership_id)
        {
            unproven.push(id);
        } else if is_later {
            let created_at = created_at.max(known.created_at);
            self.generations.insert(pair(mention), Generation { created_at, membership_id: id, rival: None });
        } else if id == known.membership_id {
            if source != "webhook" {
                self.generations.get_mut(&pair(mention)).unwrap().rival = None;
            }
        } else {
            superseded.push(id);
        }
        self.end_dead_memberships();
    }

    /// R5, R2: a read shows another membership of the pair.
    fn contradict_generation(&mut self, change: &Value, superseded: &mut Vec<String>) {
        let (id, observed_at) = (text(change, "id"), number(change, "observed_at"));
        let Some(known) = self.generations.get(&pair(change)).cloned() else { return };
        let tombstone = self.versions.get(&("membership".to_owned(), id.clone()));
        if !self.has(Without::Correction)
            || !superseded.contains(&id)
            || known.membership_id == id
            || tombstone.is_some_and(|version| version.state == "deleted" && !version.inferred)
        {
            return;
        }
        let since = known.rival.as_ref().filter(|(rival, _)| *rival == id).map_or(observed_at, |(_, since)| *since);
        let created_at = number(change, "created_at").min(observed_at + 11_000);
        let row = self.rows.get(&("membership".to_owned(), known.membership_id.clone()));
        let gives = compare_access("membership", change, row, (0, 0)) > 0;
        let wait = if known.created_at - created_at <= SKEW || !gives { HOUR } else { DAY };
        let generation = self.generations.get_mut(&pair(change)).unwrap();
        if observed_at - since >= wait {
            *generation = Generation { created_at: known.created_at + 1, membership_id: id.clone(), rival: None };
            superseded.retain(|other| *other != id);
            self.end_dead_memberships();
        } else {
            generation.rival = Some((id, since));
            self.contradictions += 1;
            let pending = self.pending.entry(("membership".to_owned(), known.membership_id)).or_insert_with(|| {
                Pending { pair: Some(pair(change)), reason: "contradicts".to_owned(), ..Pending::default() }
            });
            if pending.settles_after == 0 {
                pending.due = Some(since + wait + 10_000);
            }
        }
    }

    /// A read of a pair shows neither membership.
    fn end_rivalry(&mut self, gone: &Value, changes: &[Value]) {
        let Some(pair) = self.pending.get(&key(gone)).and_then(|pending| pending.pair.clone()) else { return };
        let Some(known) = self.generations.get_mut(&pair) else { return };
        let is_shown = |rival: &str| changes.iter().any(|change| change["id"] == rival);
        if known.membership_id == text(gone, "id") && known.rival.as_ref().is_some_and(|(rival, _)| !is_shown(rival)) {
            known.rival = None;
        }
    }

    /// R4
    fn bury(&mut self, change: &Value, source: &str) {
        let (key, observed_at, from_webhook) = (key(change), number(change, "observed_at"), source == "webhook");
        let known = self.versions.get(&key).cloned();
        let pending = self.pending.get(&key).cloned();
        if let Some(known) = &known {
            if known.state == "deleted" {
                if (from_webhook, observed_at) > (!known.inferred, known.observed_at) {
                    let buried = Version { observed_at, inferred: !from_webhook, ..known.clone() };
                    self.versions.insert(key.clone(), buried);
                    self.writes += 1;
                }
                self.settle_buried(&key);
                return;
            }
            let is_early = pending.as_ref().is_some_and(|pending| observed_at < pending.settles_after);
            let is_young = self.has(Without::YoungAbsence)
                && known.event.is_some()
                && known.first_observed_at.is_some_and(|at| at > observed_at - HOUR)
                && !pending.as_ref().is_some_and(|pending| pending.reported_deleted);
            if !from_webhook && (is_early || known.observed_at > observed_at || is_young) {
                return;
            }
        } else if !from_webhook && pending.is_some_and(|pending| observed_at < pending.settles_after) {
            return;
        }
        self.rows.remove(&key);
        let version = Version { state: "deleted", observed_at, inferred: !from_webhook, ..Version::default() };
        self.versions.insert(key.clone(), version);
        self.writes += 1;
        self.settle_buried(&key);
        self.end_dead_memberships();
    }

    /// Nothing of a deleted object waits, but for another membership of its pair.
    fn settle_buried(&mut self, key: &Key) {
        let waits = self.generations.values().any(|known| known.membership_id == key.1 && known.rival.is_some());
        if !waits {
            self.pending.remove(key);
        }
    }

    /// R6
    fn stub(&mut self, stub: &Value, source: &str) {
        let (key, version) = (key(stub), (number(stub, "observed_at"), stub["content"].as_i64()));
        let (observed_at, content) = version;
        let is_new = match self.versions.get(&key) {
            None => true,
            Some(known) if known.state == "stub" && (known.observed_at, known.content) < version => false,
            Some(_) => return,
        };
        if is_new {
            let is_doubtful =
                source == "webhook" && self.marks.get(&key.0).is_some_and(|mark| observed_at < mark - MARGIN);
            self.pending.entry(key.clone()).or_insert_with(|| Pending {
                reason: if is_doubtful { "doubtful stub" } else { "stub" }.to_owned(),
                settles_after: observed_at + SKEW,
                ..Pending::default()
            });
            if is_doubtful {
                return;
            }
        }
        self.versions.insert(key.clone(), Version { state: "stub", observed_at, content, ..Version::default() });
        self.rows.insert(key, row(stub));
        self.writes += 1;
    }

    /// R1, R2, R3, R5, R7, R9
    fn live(&mut self, change: &Value, source: &str, superseded: &[String], unproven: &[String]) {
        let (key, from_webhook) = (key(change), source == "webhook");
        let verdict = self.judge(change, source, superseded, unproven);
        let (updated_at, observed_at, content) =
            (number(change, "updated_at"), number(change, "observed_at"), number(change, "content"));
        let known = self.versions.get(&key).cloned().filter(|known| known.state == "live");
        let event = |known: Option<Event>| {
            let told = (updated_at, observed_at, content);
            if from_webhook { Some(known.map_or(told, |known| known.max(told))) } else { known }
        };
        let times = known.as_ref().map(|known| {
            let (updated, observed) = (updated_at - known.updated_at.unwrap(), observed_at - known.observed_at);
            (updated, updated * observed < 0 || (updated == 0 && (!known.by_event || observed.abs() <= SKEW)))
        });
        if ["new", "newer", "less access", "overruling"].contains(&verdict) {
            let is_same =
                known.as_ref().is_some_and(|k| (k.updated_at, k.content) == (Some(updated_at), Some(content)));
            let floor = known.as_ref().map_or(0, |known| known.floor);
            let version = Version {
                state: "live",
                updated_at: Some(updated_at),
                observed_at,
                content: Some(content),
                denial: change["denial"].as_i64(),
                floor: match (verdict, known.as_ref().and_then(|known| known.event)) {
                    ("overruling", Some((_, at, _))) => floor.max(at + 1).max(observed_at - MARGIN),
                    ("overruling", None) => floor.max(observed_at - MARGIN),
                    _ => floor,
                },
                first_observed_at: known.as_ref().and_then(|known| known.first_observed_at).or(Some(observed_at)),
                event: event(known.as_ref().and_then(|known| known.event)),
                ahead: change["ahead"].as_i64().or(known.as_ref().and_then(|known| known.ahead)),
                by_event: from_webhook || (is_same && known.as_ref().unwrap().by_event),
                in_doubt: if verdict == "less access" {
                    times.unwrap().1
                } else {
                    is_same && known.as_ref().unwrap().in_doubt
                },
                inferred: false,
            };
            self.versions.insert(key.clone(), version);
            self.rows.insert(key.clone(), row(change));
            self.writes += 1;
        } else if from_webhook
            && ["confirmed", "more access", "older", "read since", "to be sure"].contains(&verdict)
            && known.as_ref().is_some_and(|known| observed_at >= known.floor)
        {
            let known = self.versions.get_mut(&key).unwrap();
            known.by_event |= verdict == "confirmed";
            known.in_doubt |= verdict == "more access" && times.unwrap().1;
            known.event = event(known.event);
        }
        self.follow_up(change, source, verdict, known.as_ref());
    }

    /// How the access that a change gives differs from that of the row. Of an unknown ban a read tells for the first time.
    fn access(&self, change: &Value, known: &Version, from_webhook: bool) -> i64 {
        let (key, denials) = (key(change), (number(change, "denial"), known.denial.unwrap()));
        if known.content == Some(number(change, "content")) || (!from_webhook && key.0 == "user" && denials.1 == 1) {
            return 0;
        }
        compare_access(&key.0, change, self.rows.get(&key), denials)
    }

    fn judge(&self, change: &Value, source: &str, superseded: &[String], unproven: &[String]) -> &'static str {
        let (key, from_webhook, from_read) = (key(change), source == "webhook", ["read", "undelete"].contains(&source));
        let (updated_at, observed_at, content, denial) = (
            number(change, "updated_at"),
            number(change, "observed_at"),
            number(change, "content"),
            number(change, "denial"),
        );
        let ahead = change["ahead"].as_i64();
        let known = self.versions.get(&key);
        if let Some(tombstone) = known.filter(|known| known.state == "deleted")
            && source != "undelete"
            && !(from_read
                && (tombstone.inferred || !self.has(Without::FinalTombstones))
                && observed_at > tombstone.observed_at)
            && !(from_webhook && tombstone.inferred && !self.has(Without::InferredStays))
        {
            let asks = from_webhook && tombstone.inferred && observed_at.max(updated_at) > tombstone.observed_at;
            return if asks { "doubtful" } else { "deleted" };
        }
        let known = known.filter(|known| known.state == "live");
        let is_old = from_webhook
            && self.has(Without::Mark)
            && self.marks.get(&key.0).is_some_and(|mark| observed_at < mark - MARGIN);
        if is_old && known.is_none() {
            return "doubtful";
        }
        let is_same = known.is_some_and(|k| (k.updated_at, k.content) == (Some(updated_at), Some(content)));
        let access = known.map_or(0, |known| self.access(change, known, from_webhook));
        let is_told = |known: &Version| known.event.is_some_and(|event| (updated_at, observed_at, content) <= event);
        let is_soon = known.is_some_and(|known| (updated_at - known.updated_at.unwrap()).abs() <= SOON);
        let mut is_late_revocation = false;
        if let Some(known) = known
            && is_old
            && !is_same
            && updated_at <= known.updated_at.unwrap() + SKEW
        {
            let takes = access < 0 && is_soon;
            // The pass began less than an hour after it: its replica may have been behind.
            let is_recent = observed_at >= self.marks[&key.0] - MARGIN - HOUR;
            is_late_revocation = self.has(Without::LateRevocation)
                && takes
                && is_recent
                && !is_told(known)
                && observed_at >= known.floor;
            if !is_late_revocation {
                return if takes { "to be sure" } else { "read since" };
            }
        }
        if key.0 == "membership" {
            let parents = {
                let (organization, user) = pair(change);
                [("organization".to_owned(), organization), ("user".to_owned(), user)]
            };
            if parents.iter().any(|(kind, id)| self.is_buried(kind, id)) {
                let inferred = parents.iter().any(|parent| self.versions.get(parent).is_some_and(|v| v.inferred));
                return if inferred { "parent doubtful" } else { "parent deleted" };
            }
            if unproven.contains(&key.1) {
                return "doubtful";
            }
            if superseded.contains(&key.1) {
                return "newer membership known";
            }
            if parents.iter().any(|parent| !self.versions.contains_key(parent)) {
                return "parent doubtful";
            }
        }
        let Some(known) = known else { return "new" };
        let known_updated_at = known.updated_at.unwrap();
        let version = (updated_at, observed_at, denial, content);
        let known_version = (known_updated_at, known.observed_at, known.denial.unwrap(), known.content.unwrap());
        if from_webhook {
            if observed_at < known.floor {
                return "read since";
            }
            if is_same {
                return if observed_at > known.observed_at {
                    "newer"
                } else if known.by_event {
                    "same"
                } else {
                    "confirmed"
                };
            }
            let (updated, observed) = (updated_at - known_updated_at, observed_at - known.observed_at);
            let is_unordered = updated.abs() <= SOON && updated * observed < 0;
            let is_close = updated.abs() <= SKEW && (!known.by_event || observed.abs() <= SKEW);
            if access != 0 && self.has(Without::Doubt) && (is_unordered || is_close || is_late_revocation) {
                let less = (denial, updated_at, observed_at, content)
                    > (known_version.2, known_version.0, known_version.1, known_version.3);
                return if less { "less access" } else { "more access" };
            }
            return if version > known_version { "newer" } else { "older" };
        }
        if known.content == Some(content)
            && (updated_at <= known_updated_at
                || (self.has(Without::IdleAhead) && Some(ahead.unwrap_or(updated_at)) == known.ahead))
        {
            return "same";
        }
        if self.has(Without::Contradictions) && self.contradicts(change, known, access) {
            let is_near = known_updated_at - updated_at <= SKEW;
            let said = said(change, known);
            let since = self.pending.get(&key).and_then(|pending| pending.said.as_ref()).filter(|(s, _)| *s == said);
            let is_believed = since.is_some_and(|(_, since)| observed_at - since >= wait(change, known, access));
            return if (access < 0 && is_near) || is_believed { "overruling" } else { "contradicts" };
        }
        if updated_at > known_updated_at || observed_at >= known.observed_at { "newer" } else { "older" }
    }

    /// R2
    fn contradicts(&self, change: &Value, known: &Version, access: i64) -> bool {
        let (updated_at, content) = (number(change, "updated_at"), number(change, "content"));
        if let Some((event_updated_at, _, event_content)) = known.event
            && access > 0
        {
            let says_the_same = (updated_at, content) == (event_updated_at, event_content);
            if Some(change["ahead"].as_i64().unwrap_or(updated_at)) == known.ahead && !says_the_same {
                return true;
            }
            if updated_at <= event_updated_at + SKEW {
                return known.in_doubt || !says_the_same;
            }
        }
        updated_at < known.updated_at.unwrap()
    }

    fn follow_up(&mut self, change: &Value, source: &str, verdict: &'static str, known: Option<&Version>) {
        let (key, from_webhook) = (key(change), source == "webhook");
        let from_read = ["read", "undelete"].contains(&source);
        let observed_at = number(change, "observed_at");
        let lacks = !change["read_reason"].is_null();
        let can_wait = self.has(Without::Delay);
        if let Some(pending) = self.pending.get_mut(&key) {
            let decided = !["deleted", "parent doubtful", "older", "contradicts"].contains(&verdict);
            let settled = if from_read {
                (observed_at >= pending.settles_after || !can_wait) && decided && !lacks
            } else if from_webhook {
                pending.reason.ends_with("stub") && verdict == "new" && pending.reason == "stub" && !lacks
            } else {
                verdict == "same" && pending.said.is_some() && pending.settles_after == 0
            };
            if settled {
                self.pending.remove(&key);
            } else if !from_webhook && ["same", "newer"].contains(&verdict) {
                pending.said = None;
            }
        }
        let reason = match verdict {
            "doubtful" | "parent doubtful" | "contradicts" => verdict,
            "less access" | "more access" | "to be sure" => "in doubt",
            "new" | "newer" if lacks => "lacks",
            "deleted" if source == "list" && self.versions.get(&key).is_some_and(|version| version.inferred) => verdict,
            _ => return,
        };
        self.doubts += usize::from(reason == "in doubt");
        let by_event = known.filter(|known| known.by_event).map(|known| known.observed_at);
        let settles_after = if from_webhook { observed_at.max(by_event.unwrap_or(0)) + SKEW } else { 0 };
        let pair = (key.0 == "membership").then(|| pair(change));
        let contradiction = known
            .filter(|_| verdict == "contradicts")
            .map(|known| (said(change, known), wait(change, known, self.access(change, known, false))));
        let pending = self.pending.entry(key.clone()).or_insert_with(|| Pending {
            pair: pair.clone(),
            reason: reason.to_owned(),
            ..Pending::default()
        });
        pending.pair = pending.pair.take().or(pair);
        pending.settles_after = pending.settles_after.max(settles_after);
        if from_webhook {
            pending.due = None;
        }
        if let Some((said, wait)) = contradiction {
            let since =
                pending.said.as_ref().filter(|(before, _)| *before == said).map_or(observed_at, |(_, since)| *since);
            pending.due = Some(since + wait + 10_000);
            pending.said = Some((said, since));
            self.contradictions += 1;
        }
    }

    /// R8, R9: what a fold leaves open.
    fn leave_doubt(&mut self, change: &Value, doubts: &[Value]) {
        let Some(doubt) = doubts.iter().find(|doubt| doubt["n"] == change["n"]) else { return };
        let event = (number(doubt, "updated_at"), number(doubt, "observed_at"), number(doubt, "content"));
        let told = (change["updated_at"].as_i64(), change["content"].as_i64());
        let Some(known) = self.versions.get_mut(&key(change)) else { return };
        if known.state != "live" || (known.updated_at, known.content) != told || known.event.is_some_and(|e| event < e)
        {
            return;
        }
        known.event = Some(event);
        if doubt["in_doubt"] == json!(true) {
            known.in_doubt = true;
        }
        if doubt["asks"] == json!(false) {
            return;
        }
        let settles_after = number(change, "observed_at").max(event.1) + SKEW;
        let pair = (change["kind"] == "membership").then(|| pair(change));
        let pending = self.pending.entry(key(change)).or_insert_with(|| Pending {
            pair,
            reason: "in doubt".to_owned(),
            ..Pending::default()
        });
        pending.settles_after = pending.settles_after.max(settles_after);
        pending.due = None;
        self.doubts += 1;
    }

    /// What an event that cannot be used asks for.
    fn ask_for(&mut self, read: &Value, source: &str) {
        if self.versions.get(&key(read)).is_some_and(|version| version.state == "deleted" && !version.inferred) {
            return;
        }
        let pair = (!read["organization_id"].is_null() && !read["user_id"].is_null()).then(|| pair(read));
        let pending = self.pending.entry(key(read)).or_default();
        pending.pair = pending.pair.take().or(pair);
        pending.reported_deleted |= read["reported_deleted"] == json!(true);
        if pending.reason.is_empty() {
            pending.reason = text(read, "reason");
        }
        if source == "webhook" {
            let at = read["observed_at"].as_i64().expect("the histories have a time for it");
            pending.settles_after = pending.settles_after.max(at + SKEW);
            pending.due = None;
        }
    }

    fn end_dead_memberships(&mut self) {
        let dead: Vec<Key> = self
            .rows
            .iter()
            .filter(|((kind, id), row)| {
                let pair = pair(row);
                kind == "membership"
                    && (self.is_buried("organization", &pair.0)
                        || self.is_buried("user", &pair.1)
                        || self.generations.get(&pair).is_some_and(|known| known.membership_id != *id))
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in dead {
            self.rows.remove(&key);
            self.versions.remove(&key);
        }
    }
}

/// R2: how long a read must say the same before it is believed.
fn wait(change: &Value, known: &Version, access: i64) -> i64 {
    let (updated_at, content) = (number(change, "updated_at"), number(change, "content"));
    let is_possible = known.event.is_some_and(|(event_updated_at, event_observed_at, event_content)| {
        (updated_at, content) == (event_updated_at, event_content)
            || ((updated_at - event_updated_at).abs() <= SKEW
                && !(updated_at == event_updated_at && event_observed_at > updated_at + SOON))
    });
    if access > 0 && !is_possible { DAY } else { HOUR }
}

fn said(change: &Value, known: &Version) -> String {
    let raw = change["ahead"].as_i64().unwrap_or(number(change, "updated_at"));
    format!("{raw} {} {} {}", number(change, "content"), known.updated_at.unwrap(), known.content.unwrap())
}

/// What is stored of an item: its place in the batch is not.
fn row(item: &Value) -> Value {
    let mut row = item.clone();
    row.as_object_mut().unwrap().remove("n");
    row
}

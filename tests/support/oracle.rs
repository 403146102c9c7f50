//! The rules R1 to R8 a second time, as plainly as they can be said: the oracle that the writer's SQL is held against.
//!
//! It takes the batches that `clerk_sync.apply` takes, as JSON, and keeps what the tables keep.

use clerk_sync::model::{Batch, Kind, Row, Winner};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const MARGIN: i64 = 300_000;

/// (kind, id)
pub type Key = (String, String);

#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    pub state: &'static str,
    pub updated_at: Option<i64>,
    pub observed_at: i64,
    pub content: Option<i64>,
    pub floor: i64,
    pub inferred: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mirror {
    pub versions: BTreeMap<Key, Version>,
    pub rows: BTreeMap<Key, Value>,
    pub generations: BTreeMap<(String, String), (i64, String)>,
    pub marks: BTreeMap<String, i64>,
    pub pending: std::collections::BTreeSet<Key>,
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

fn key(item: &Value) -> Key {
    (text(item, "kind"), text(item, "id"))
}

/// A batch as JSON, named as the composite types in the database are.
pub fn as_json(batch: &Batch<'_>) -> Value {
    let row = |winner: &Winner<'_>| {
        let mut row = match winner.row {
            Row::User(user) => json!(user),
            Row::Organization(organization) => json!(organization),
            Row::Membership(membership) => json!(membership),
            Row::Gone(entity) => json!({ "id": entity.id }),
        };
        row["n"] = json!(winner.n);
        row["kind"] = json!(winner.row.kind());
        row["observed_at"] = json!(winner.observed_at);
        row["updated_at"] = json!(winner.updated_at);
        row["content"] = json!(winner.content);
        if matches!(winner.row, Row::User(user) if user.banned.is_none()) {
            row["lacks"] = json!("banned is missing");
        }
        row
    };
    let rows = |kind: Kind| batch.changes.iter().filter(move |change| change.row.kind() == kind).map(row);
    let named = batch.namings.iter().map(|naming| {
        json!({ "organization_id": naming.organization.id, "user_id": naming.user.id,
                "membership_id": naming.membership_id, "created_at": naming.created_at })
    });
    json!({
        "source": batch.source,
        "gone": batch.gone.iter().map(row).collect::<Vec<_>>(),
        "changes": batch.changes.iter().map(row).collect::<Vec<_>>(),
        "users": rows(Kind::User).collect::<Vec<_>>(),
        "organizations": rows(Kind::Organization).collect::<Vec<_>>(),
        "memberships": rows(Kind::Membership).collect::<Vec<_>>(),
        "stubs": batch.stubs.iter().map(row).collect::<Vec<_>>(),
        "namings": named.collect::<Vec<_>>(),
        "outdated": batch.outdated,
    })
}

impl Mirror {
    pub fn apply(&mut self, batch: &Value) {
        let source = text(batch, "source");
        for naming in items(batch, "namings") {
            let pair = (text(naming, "organization_id"), text(naming, "user_id"));
            let named = (naming["created_at"].as_i64().unwrap(), text(naming, "membership_id"));
            let known = self.generations.entry(pair).or_default();
            *known = named.max(known.clone());
        }
        for gone in items(batch, "gone") {
            self.bury(gone, &source);
        }
        for stub in items(batch, "stubs") {
            self.stub(stub, &source);
        }
        for of_memberships in [false, true] {
            let changes = items(batch, "changes").iter();
            for change in changes.filter(|change| (change["kind"] == "membership") == of_memberships) {
                self.live(change, &source);
            }
        }
        self.end_dead_memberships();
    }

    fn is_buried(&self, kind: &str, id: &str) -> bool {
        self.versions.get(&(kind.to_owned(), id.to_owned())).is_some_and(|version| version.state == "deleted")
    }

    /// R4
    fn bury(&mut self, change: &Value, source: &str) {
        let (key, observed_at, inferred) = (key(change), change["observed_at"].as_i64().unwrap(), source != "webhook");
        match self.versions.get(&key) {
            Some(known)
                if known.state == "deleted" && (!inferred, observed_at) <= (!known.inferred, known.observed_at) =>
            {
                return;
            }
            Some(known) if known.state != "deleted" && inferred && known.observed_at > observed_at => return,
            _ => {}
        }
        self.rows.remove(&key);
        self.pending.remove(&key);
        let version = Version { state: "deleted", updated_at: None, observed_at, content: None, floor: 0, inferred };
        self.versions.insert(key, version);
    }

    /// R6
    fn stub(&mut self, stub: &Value, source: &str) {
        let (key, version) = (key(stub), (stub["observed_at"].as_i64().unwrap(), stub["content"].as_i64()));
        match self.versions.get(&key) {
            None if source == "webhook" && self.marks.get(&key.0).is_some_and(|mark| version.0 < mark - MARGIN) => {
                self.pending.insert(key);
                return;
            }
            None => {}
            Some(known) if known.state == "stub" && (known.observed_at, known.content) < version => {}
            Some(_) => return,
        }
        let (observed_at, content) = version;
        let version = Version { state: "stub", updated_at: None, observed_at, content, floor: 0, inferred: false };
        self.versions.insert(key.clone(), version);
        self.rows.insert(key, row(stub));
    }

    /// R1, R2, R3, R5, R7
    fn live(&mut self, change: &Value, source: &str) {
        let (key, from_webhook) = (key(change), source == "webhook");
        let (updated_at, observed_at) =
            (change["updated_at"].as_i64().unwrap(), change["observed_at"].as_i64().unwrap());
        let content = change["content"].as_i64();
        let mut known = self.versions.get(&key).cloned();
        if let Some(tombstone) = known.as_ref().filter(|known| known.state == "deleted") {
            let read_since = source == "read" && observed_at > tombstone.observed_at + MARGIN;
            let back = from_webhook && tombstone.inferred && updated_at > tombstone.observed_at;
            if !read_since && !back {
                return;
            }
        }
        if from_webhook && self.marks.get(&key.0).is_some_and(|mark| observed_at < mark - MARGIN) {
            if known.is_none_or(|known| known.state != "live") {
                self.pending.insert(key);
            }
            return;
        }
        if key.0 == "membership" {
            let pair = (text(change, "organization_id"), text(change, "user_id"));
            if self.is_buried("organization", &pair.0) || self.is_buried("user", &pair.1) {
                let parents = [("organization".to_owned(), pair.0), ("user".to_owned(), pair.1)];
                if parents.iter().any(|parent| self.versions.get(parent).is_some_and(|version| version.inferred)) {
                    self.pending.insert(key);
                }
                return;
            }
            if self.generations.get(&pair).is_some_and(|(_, id)| *id != key.1) {
                return;
            }
            let parents = [("organization".to_owned(), pair.0), ("user".to_owned(), pair.1)];
            if parents.iter().any(|parent| !self.versions.contains_key(parent)) {
                self.pending.insert(key);
                return;
            }
        }
        let mut floor = if from_webhook { 0 } else { observed_at - MARGIN };
        if let Some(known) = known.as_mut().filter(|known| known.state == "live") {
            floor = floor.max(known.floor);
            let same_content = known.content == content && known.updated_at == Some(updated_at);
            let same = same_content && (source == "list" || known.observed_at == observed_at);
            if same {
                return;
            }
            let below = (known.observed_at < floor, observed_at < floor);
            let newer = match below {
                (true, false) => true,
                (false, true) => false,
                _ => (Some(updated_at), observed_at, content) > (known.updated_at, known.observed_at, known.content),
            };
            if !newer {
                known.floor = floor;
                self.versions.insert(key, known.clone());
                return;
            }
        }
        if key.0 == "user" && change["banned"].is_null() {
            self.pending.insert(key.clone());
        }
        let updated_at = Some(updated_at);
        self.versions
            .insert(key.clone(), Version { state: "live", updated_at, observed_at, content, floor, inferred: false });
        self.rows.insert(key, row(change));
    }

    fn end_dead_memberships(&mut self) {
        let dead: Vec<Key> = self
            .rows
            .iter()
            .filter(|((kind, id), row)| {
                let pair = (text(row, "organization_id"), text(row, "user_id"));
                kind == "membership"
                    && (self.is_buried("organization", &pair.0)
                        || self.is_buried("user", &pair.1)
                        || self.generations.get(&pair).is_some_and(|(_, newest)| newest != id))
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in dead {
            self.rows.remove(&key);
            self.versions.remove(&key);
        }
    }
}

/// What is stored of an item: its place in the batch is not.
fn row(item: &Value) -> Value {
    let mut row = item.clone();
    row.as_object_mut().unwrap().remove("n");
    row
}

fn items<'a>(batch: &'a Value, name: &str) -> &'a [Value] {
    batch[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

//! Was a promise broken? What the sender knows, folded by a few lines that share nothing with the worker, against the rows.
//!
//! The words are those of Jepsen's `set` test: each message was acknowledged, refused, or nobody knows. A message that
//! was acknowledged must show in the mirror, unless a newer one of the same object explains why it does not.

use anyhow::Context as _;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use testkit::clerk::{Clerk, Event};

/// Kind and id.
pub(super) type Key = (&'static str, String);

/// The mirror's public rows, each as one text.
pub(super) type Rows = BTreeMap<Key, String>;

const USER: &str = "user";
const ORGANIZATION: &str = "organization";
const MEMBERSHIP: &str = "membership";

/// A message, and what became of its attempts.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) event: Event,
    /// How many were made. A message that the sender lost has none.
    pub(super) attempts: u32,
    pub(super) refused: u32,
    /// Attempts without an answer.
    pub(super) unknown: u32,
    pub(super) is_acknowledged: bool,
    /// An attempt that nobody answered had been carried out: the next one found it done.
    pub(super) is_recovered: bool,
}

impl Message {
    pub(super) const fn new(event: Event) -> Message {
        Message { event, attempts: 0, refused: 0, unknown: 0, is_acknowledged: false, is_recovered: false }
    }
}

/// What one message says of its object. The greater `version` (`updated_at`, the event's time) is the newer.
struct Said {
    version: (i64, i64),
    /// The row; `None`: it is gone.
    row: Option<String>,
    is_acknowledged: bool,
}

/// That a membership exists or existed: between whom, and since when.
struct Bond {
    organization: Key,
    user: Key,
    created_at: i64,
}

/// What a row must be.
#[derive(PartialEq)]
enum Wanted {
    Row(String),
    /// Named by a membership, and never told of itself: whatever the membership embeds.
    Stub,
    Gone,
}

/// What the messages that were attempted come to, in whatever order they were.
#[derive(Default)]
struct Model {
    said: BTreeMap<Key, Vec<Said>>,
    bonds: BTreeMap<Key, Bond>,
}

impl Model {
    fn of(messages: &[Message]) -> anyhow::Result<Model> {
        let mut model = Model::default();
        for message in messages.iter().filter(|message| message.attempts > 0) {
            model.take(message).with_context(|| format!("{} says nothing of an object", message.event.message_id))?;
        }
        model.said.values_mut().for_each(|said| said.sort_by_key(|said| said.version));
        Ok(model)
    }

    fn take(&mut self, message: &Message) -> Option<()> {
        let body: Value = serde_json::from_str(&message.event.body).ok()?;
        let (data, text) = (&body["data"], |value: &Value| value.as_str().map(str::to_owned));
        let id = text(&data["id"])?;
        let is_gone = message.event.event_type.ends_with(".deleted");
        let key = match message.event.event_type.split('.').next()? {
            "user" => (USER, id),
            "organization" => (ORGANIZATION, id),
            _ => (MEMBERSHIP, id),
        };
        let row = match key.0 {
            _ if is_gone => None,
            USER => Some(user_row(data)?),
            ORGANIZATION => Some(format!("{} {}", data["name"].as_str()?, data["slug"].as_str()?)),
            _ => Some(membership_row(data)?),
        };
        if key.0 == MEMBERSHIP {
            let bond = Bond {
                organization: (ORGANIZATION, text(&data["organization"]["id"])?),
                user: (USER, text(&data["public_user_data"]["user_id"])?),
                created_at: data["created_at"].as_i64()?,
            };
            self.bonds.insert(key.clone(), bond);
        }
        let told_at = body["timestamp"].as_i64()?;
        let version = (if is_gone { i64::MAX } else { data["updated_at"].as_i64()? }, told_at);
        let said = Said { version, row, is_acknowledged: message.is_acknowledged };
        self.said.entry(key).or_default().push(said);
        Some(())
    }

    fn is_gone(&self, key: &Key) -> bool {
        self.said.get(key).and_then(|said| said.last()).is_some_and(|newest| newest.row.is_none())
    }

    /// Of several memberships of one user in one organization only the latest counts.
    fn latest(&self) -> BTreeMap<(&Key, &Key), (i64, &Key)> {
        let mut latest = BTreeMap::new();
        for (key, bond) in &self.bonds {
            let newest = latest.entry((&bond.organization, &bond.user)).or_insert((bond.created_at, key));
            *newest = (*newest).max((bond.created_at, key));
        }
        latest
    }

    fn wanted(&self) -> BTreeMap<Key, Wanted> {
        let latest = self.latest();
        let mut wanted = BTreeMap::new();
        for (key, said) in &self.said {
            let ended = self.bonds.get(key).is_some_and(|bond| {
                let pair = (&bond.organization, &bond.user);
                self.is_gone(pair.0)
                    || self.is_gone(pair.1)
                    || latest.get(&pair).is_some_and(|(_, newest)| *newest != key)
            });
            let row = said.last().and_then(|newest| newest.row.clone()).filter(|_| !ended);
            wanted.insert(key.clone(), row.map_or(Wanted::Gone, Wanted::Row));
        }
        for parent in self.bonds.values().flat_map(|bond| [&bond.organization, &bond.user]) {
            wanted.entry(parent.clone()).or_insert(Wanted::Stub);
        }
        wanted
    }

    /// How many acknowledged messages are newer than what is held of an object: each of them left no trace.
    fn lost(&self, key: &Key, held: Option<&String>) -> usize {
        let parents = self.bonds.get(key).into_iter().flat_map(|bond| [&bond.organization, &bond.user]);
        let deletes = parents.filter_map(|parent| self.said.get(parent)?.last()).filter(|said| said.row.is_none());
        let said = self.said.get(key).map(Vec::as_slice).unwrap_or_default();
        let shown = held.and_then(|held| said.iter().rposition(|said| said.row.as_ref() == Some(held)));
        let newer = &said[shown.map_or(0, |at| at + 1)..];
        newer.iter().chain(deletes).filter(|said| said.is_acknowledged && said.row.as_ref() != held).count()
    }
}

fn user_row(data: &Value) -> Option<String> {
    let primary = &data["primary_email_address_id"];
    let address = data["email_addresses"].as_array()?.iter().find(|address| &address["id"] == primary);
    let address = address.and_then(|address| address["email_address"].as_str()).unwrap_or_default();
    let (first, last, banned) = (data["first_name"].as_str()?, data["last_name"].as_str()?, data["banned"].as_bool()?);
    Some(format!("{first} {last} <{address}> {banned}"))
}

fn membership_row(data: &Value) -> Option<String> {
    let (organization, user) = (data["organization"]["id"].as_str()?, data["public_user_data"]["user_id"].as_str()?);
    Some(format!("{organization} {user} {}", data["role"].as_str()?))
}

/// The mirror's rows as [`held`] reads them.
const HELD: &str = "
select 'user', id, format('%s %s <%s> %s', first_name, last_name, email_address, banned::text)
  from clerk.users left join clerk.user_details using (id) where deleted_at is null
union all select 'organization', id, format('%s %s', name, slug) from clerk.organizations where deleted_at is null
union all select 'membership', id, format('%s %s %s', organization_id, user_id, role) from clerk.organization_memberships";

/// What the mirror's public tables hold.
///
/// # Errors
/// The database could not be asked.
pub(super) async fn held(owner: &mut sqlx::PgConnection) -> anyhow::Result<Rows> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(HELD).fetch_all(owner).await?;
    let kind = |kind: &str| [USER, ORGANIZATION, MEMBERSHIP].into_iter().find(|known| *known == kind);
    Ok(rows.into_iter().filter_map(|(kind_of, id, row)| Some(((kind(&kind_of)?, id), row))).collect())
}

/// What Clerk itself holds.
pub(super) fn source(clerk: &Clerk) -> Rows {
    let users = clerk.users.values().map(|user| {
        let row = format!("{} {} <{}> {}", user.first_name, user.last_name, user.email_address, user.banned);
        ((USER, user.id.clone()), row)
    });
    let organizations = clerk.organizations.values().map(|organization| {
        ((ORGANIZATION, organization.id.clone()), format!("{} {}", organization.name, organization.slug))
    });
    let memberships = clerk.memberships.values().map(|membership| {
        let row = format!("{} {} {}", membership.organization_id, membership.user_id, membership.role);
        ((MEMBERSHIP, membership.id.clone()), row)
    });
    users.chain(organizations).chain(memberships).collect()
}

/// Rows that are not what they should be.
pub(super) fn differences<'a>(left: &'a Rows, right: &'a Rows) -> Vec<&'a Key> {
    let keys: BTreeSet<&Key> = left.keys().chain(right.keys()).collect();
    keys.into_iter().filter(|key| left.get(*key) != right.get(*key)).collect()
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    pub(super) messages: usize,
    pub(super) attempts: u32,
    pub(super) acknowledged: usize,
    pub(super) refused: u32,
    pub(super) unknown: u32,
    pub(super) recovered: usize,
    /// Acknowledged messages that left no trace, and that no newer one explains.
    pub(super) lost: usize,
    /// Rows that no message told of.
    pub(super) unexpected: usize,
    /// Rows that are not what the messages come to.
    pub(super) different: usize,
    pub(super) rows: usize,
    /// Some of what is wrong, by id.
    examples: Vec<String>,
}

/// Holds the rows against the messages.
///
/// # Errors
/// A message cannot be read.
pub(super) fn judge(messages: &[Message], held: &Rows) -> anyhow::Result<Verdict> {
    let attempted = || messages.iter().filter(|message| message.attempts > 0);
    let mut verdict = Verdict {
        messages: attempted().count(),
        attempts: attempted().map(|message| message.attempts).sum(),
        acknowledged: attempted().filter(|message| message.is_acknowledged).count(),
        refused: attempted().map(|message| message.refused).sum(),
        unknown: attempted().map(|message| message.unknown).sum(),
        recovered: attempted().filter(|message| message.is_recovered).count(),
        rows: held.len(),
        ..Verdict::default()
    };
    let model = Model::of(messages)?;
    let wanted = model.wanted();
    for key in held.keys().filter(|key| !wanted.contains_key(*key)) {
        verdict.unexpected += 1;
        verdict.examples.push(format!("{} {} was never told of", key.0, key.1));
    }
    for (key, wanted) in &wanted {
        let is = held.get(key);
        let is_right = match wanted {
            Wanted::Row(row) => is == Some(row),
            Wanted::Stub => true,
            Wanted::Gone => is.is_none(),
        };
        if !is_right {
            let lost = model.lost(key, is);
            verdict.different += 1;
            verdict.lost += lost;
            let held = is.map_or("missing", |_| "not what was told");
            verdict.examples.push(format!("{} {} is {held}; acknowledged in vain: {lost}", key.0, key.1));
        }
    }
    Ok(verdict)
}

impl Verdict {
    /// Whether nothing is wrong.
    pub(super) const fn is_good(&self) -> bool {
        self.lost == 0 && self.unexpected == 0 && self.different == 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} messages in {} attempts ({} refused, {} without an answer): {} acknowledged, {} of them done by an attempt that \
             nobody answered\n  lost {}, unexpected {}, different {} of {} rows",
            self.messages,
            self.attempts,
            self.refused,
            self.unknown,
            self.acknowledged,
            self.recovered,
            self.lost,
            self.unexpected,
            self.different,
            self.rows
        )?;
        self.examples.iter().take(5).try_for_each(|example| write!(f, "\n  {example}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::traffic;

    /// A history, all of it acknowledged.
    fn history(seed: u64) -> (Clerk, Vec<Message>) {
        let mut clerk = Clerk::new(seed, 1_760_000_000_000);
        let mut rng = fastrand::Rng::with_seed(seed);
        let founder = traffic::sign_up(&mut clerk, &mut rng);
        clerk.create_organization("Acme Widgets", &founder);
        for _ in 0..400 {
            clerk.now += 40;
            traffic::change(&mut clerk, &mut rng);
        }
        let events = std::mem::take(&mut clerk.outbox);
        let told = |event| Message { attempts: 1, is_acknowledged: true, ..Message::new(event) };
        (clerk, events.into_iter().map(told).collect())
    }

    #[test]
    fn what_was_told_in_any_order_comes_to_what_clerk_holds() {
        for seed in 0..50 {
            let (clerk, mut messages) = history(seed);
            for _ in 0..3 {
                fastrand::Rng::with_seed(seed).shuffle(&mut messages);
                let verdict = judge(&messages, &source(&clerk)).unwrap();
                assert!(verdict.is_good(), "seed {seed}: {verdict}");
                assert_eq!(verdict.acknowledged, messages.len());
            }
        }
    }

    #[test]
    fn a_row_that_is_missing_old_undeleted_or_made_up_is_found() {
        let (clerk, messages) = history(7);
        let right = source(&clerk);
        let key = right.keys().find(|key| key.0 == MEMBERSHIP).unwrap().clone();
        let user = right.keys().find(|key| key.0 == USER).unwrap().clone();
        let gone = messages.iter().find(|message| message.event.event_type == "user.deleted").unwrap();
        let found = |change: &dyn Fn(&mut Rows)| {
            let mut rows = right.clone();
            change(&mut rows);
            let verdict = judge(&messages, &rows).unwrap();
            assert!(!verdict.is_good());
            (verdict.lost > 0, verdict.unexpected, verdict.different)
        };
        assert_eq!(found(&|rows| drop(rows.remove(&key))), (true, 0, 1));
        assert_eq!(found(&|rows| rows.get_mut(&user).unwrap().push('x')), (true, 0, 1));
        let undeleted = (USER, gone.event.entity_id.clone());
        assert_eq!(found(&|rows| drop(rows.insert(undeleted.clone(), "Ada Bell".to_owned()))), (true, 0, 1));
        assert_eq!(found(&|rows| drop(rows.insert((USER, "user_x".to_owned()), String::new()))), (false, 1, 0));
    }

    #[test]
    fn nobody_misses_what_was_never_acknowledged() {
        let (_, mut messages) = history(3);
        messages.iter_mut().for_each(|message| message.is_acknowledged = false);
        let verdict = judge(&messages, &Rows::new()).unwrap();
        assert_eq!(verdict.lost, 0);
        assert!(verdict.different > 0);
    }
}

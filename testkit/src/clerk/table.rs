//! The rows of one kind, in the orders in which lists walk them.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Index;
use std::sync::Arc;

/// What every kind has.
pub trait Row {
    fn id(&self) -> &str;
    fn created_at(&self) -> i64;
    fn updated_at(&self) -> i64;
}

/// Rows by id, and by the times at which they were created and updated.
#[derive(Clone, Debug)]
pub struct Table<T> {
    rows: BTreeMap<Arc<str>, T>,
    by_created_at: BTreeSet<Place>,
    by_updated_at: BTreeSet<Place>,
}

/// Where a row stands in an order. Clerk does not say how it orders rows of one time: here neither by id nor by age.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    at: i64,
    tie: u32,
    id: Arc<str>,
}

impl Place {
    fn new(at: i64, id: &Arc<str>) -> Place {
        Place { at, tie: tie(id), id: Arc::clone(id) }
    }
}

/// The order of rows that are equal in what they are ordered by: fixed, and of no meaning.
pub(super) fn tie(id: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    (hasher.finish() >> 32).try_into().unwrap_or_default()
}

/// The times that have an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Time {
    Created,
    Updated,
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table { rows: BTreeMap::new(), by_created_at: BTreeSet::new(), by_updated_at: BTreeSet::new() }
    }
}

impl<T> Table<T> {
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn get(&self, id: &str) -> Option<&T> {
        self.rows.get(id)
    }

    pub fn contains_key(&self, id: &str) -> bool {
        self.rows.contains_key(id)
    }

    pub fn keys(&self) -> btree_map::Keys<'_, Arc<str>, T> {
        self.rows.keys()
    }

    pub fn values(&self) -> btree_map::Values<'_, Arc<str>, T> {
        self.rows.values()
    }
}

impl<T: Row> Table<T> {
    /// Puts a row in; one of the same id makes room for it.
    pub(super) fn insert(&mut self, row: T) {
        self.remove(row.id());
        let id: Arc<str> = Arc::from(row.id());
        self.by_created_at.insert(Place::new(row.created_at(), &id));
        self.by_updated_at.insert(Place::new(row.updated_at(), &id));
        self.rows.insert(id, row);
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<T> {
        let (id, row) = self.rows.remove_entry(id)?;
        self.by_created_at.remove(&Place::new(row.created_at(), &id));
        self.by_updated_at.remove(&Place::new(row.updated_at(), &id));
        Some(row)
    }

    /// Changes a row, its times too; `None` where there is none of that id.
    pub fn change<R>(&mut self, id: &str, change: impl FnOnce(&mut T) -> R) -> Option<R> {
        let (id, _) = self.rows.get_key_value(id)?;
        let id = Arc::clone(id);
        let row = self.rows.get_mut(&id)?;
        let (created_at, updated_at) = (row.created_at(), row.updated_at());
        let result = change(row);
        if row.created_at() != created_at {
            self.by_created_at.remove(&Place::new(created_at, &id));
            self.by_created_at.insert(Place::new(row.created_at(), &id));
        }
        if row.updated_at() != updated_at {
            self.by_updated_at.remove(&Place::new(updated_at, &id));
            self.by_updated_at.insert(Place::new(row.updated_at(), &id));
        }
        Some(result)
    }

    /// The rows in the order of a time, from the one behind `after` on, without the first of them. Those are passed over
    /// in the index alone: the last page of a long list is not to cost as much as all pages.
    pub(super) fn walk(
        &self,
        time: Time,
        descending: bool,
        after: Option<&T>,
        skipped: usize,
    ) -> Box<dyn Iterator<Item = &T> + '_> {
        use std::ops::Bound::{Excluded, Unbounded};
        let (places, at): (_, fn(&T) -> i64) = match time {
            Time::Created => (&self.by_created_at, T::created_at),
            Time::Updated => (&self.by_updated_at, T::updated_at),
        };
        let bound = after.map_or(Unbounded, |row| Excluded(Place::new(at(row), &Arc::from(row.id()))));
        let row = |place: &Place| self.rows.get(&place.id);
        if descending {
            Box::new(places.range((Unbounded, bound)).rev().skip(skipped).filter_map(row))
        } else {
            Box::new(places.range((bound, Unbounded)).skip(skipped).filter_map(row))
        }
    }
}

impl<T, I: AsRef<str> + ?Sized> Index<&I> for Table<T> {
    type Output = T;

    fn index(&self, id: &I) -> &T {
        &self.rows[id.as_ref()]
    }
}

/// Which memberships a user has, and an organization: (either id, the other's id) to the membership's.
#[derive(Clone, Debug, Default)]
pub(super) struct Links(BTreeMap<(Arc<str>, Arc<str>), Arc<str>>);

impl Links {
    pub(super) fn insert(&mut self, organization_id: &str, user_id: &str, id: &str) {
        let (organization_id, user_id, id): (Arc<str>, Arc<str>, Arc<str>) =
            (organization_id.into(), user_id.into(), id.into());
        self.0.insert((Arc::clone(&organization_id), Arc::clone(&user_id)), Arc::clone(&id));
        self.0.insert((user_id, organization_id), id);
    }

    pub(super) fn remove(&mut self, organization_id: &str, user_id: &str) {
        self.0.remove(&(organization_id.into(), user_id.into()));
        self.0.remove(&(user_id.into(), organization_id.into()));
    }

    pub(super) fn between(&self, organization_id: &str, user_id: &str) -> Option<&Arc<str>> {
        self.0.get(&(organization_id.into(), user_id.into()))
    }

    /// The memberships of a user or an organization.
    pub(super) fn of<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Arc<str>> {
        let first: (Arc<str>, Arc<str>) = (id.into(), "".into());
        self.0.range(first..).take_while(move |((of, _), _)| **of == *id).map(|(_, membership)| membership)
    }
}

//! The kinds of objects that are mirrored: the one list of them, with what their names are everywhere.
//!
//! How Clerk's API lists and reads each kind is in `clerk/kinds.rs`, where its rows are in `store/kinds`. Nothing else tells
//! one kind from another: whatever needs all of them goes through [`Kind::ALL`], and a rule for one kind is a property of it in
//! one of these tables.

use super::Words;
use serde::{Serialize, Serializer};
use std::fmt;

/// See `kinds`.
struct Facts {
    /// As the database, logs, metrics and reports spell it.
    name: &'static str,
    /// As people say it, and as the command line takes it.
    plural: &'static str,
    /// What Clerk's ids of this kind begin with.
    id_prefix: &'static str,
    /// What the types of its events begin with, before the dot.
    event_subject: &'static str,
    /// Kinds whose objects it ends with.
    parents: &'static [Kind],
    /// Whether each row of it gives somebody access, so that one of which not enough is known must not stand.
    gives_access: bool,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident { $($field:ident: $value:expr),* $(,)? })*) => {
        /// One of the mirrored kinds of objects.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All kinds, parents first.
            pub const ALL: [Kind; [$(Kind::$kind),*].len()] = [$(Kind::$kind),*];

            const fn facts(self) -> &'static Facts {
                match self {
                    $(Kind::$kind => &Facts { $($field: $value),* },)*
                }
            }
        }
    };
}

kinds! {
    User {
        name: "user",
        plural: "users",
        id_prefix: "user_",
        event_subject: "user",
        parents: &[],
        gives_access: false,
    }
    Organization {
        name: "organization",
        plural: "organizations",
        id_prefix: "org_",
        event_subject: "organization",
        parents: &[],
        gives_access: false,
    }
    /// A user's place in an organization.
    Membership {
        name: "membership",
        plural: "memberships",
        id_prefix: "orgmem_",
        event_subject: "organizationMembership",
        parents: &[Kind::Organization, Kind::User],
        gives_access: true,
    }
}

impl Kind {
    /// As the database, logs, metrics and reports spell it.
    pub const fn as_str(self) -> &'static str {
        self.facts().name
    }

    /// As people say it, and as the command line takes it.
    pub(crate) const fn plural(self) -> &'static str {
        self.facts().plural
    }

    /// What Clerk's ids of this kind begin with.
    pub const fn id_prefix(self) -> &'static str {
        self.facts().id_prefix
    }

    /// What the types of its events begin with, before the dot.
    pub(crate) const fn event_subject(self) -> &'static str {
        self.facts().event_subject
    }

    /// Kinds whose objects it ends with: a membership with its organization and its user.
    pub const fn parents(self) -> &'static [Kind] {
        self.facts().parents
    }

    /// Whether each row of it gives somebody access, so that one of which not enough is known must not stand.
    pub(crate) const fn gives_access(self) -> bool {
        self.facts().gives_access
    }

    /// The kind that an id's prefix tells, if it does: tests and imports have ids without any.
    pub fn of_id(id: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| id.starts_with(kind.id_prefix()))
    }

    /// Whether `id` has the prefix of *another* kind: then it cannot name an object of this one.
    pub fn contradicts(self, id: &str) -> bool {
        Kind::of_id(id).is_some_and(|kind| kind != self)
    }
}

impl Words for Kind {
    const ALL: &'static [Kind] = &Kind::ALL;

    fn as_str(self) -> &'static str {
        Kind::as_str(self)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_another_kind_contradicts() {
        assert!(Kind::User.contradicts("org_1"));
        assert!(Kind::Organization.contradicts("orgmem_1"));
        assert!(!Kind::Membership.contradicts("orgmem_1"));
        assert!(!Kind::User.contradicts("an-imported-id"));
    }

    #[test]
    fn each_kind_comes_after_its_parents_and_has_names_of_its_own() {
        for (n, kind) in Kind::ALL.into_iter().enumerate() {
            assert!(
                kind.parents().iter().all(|parent| Kind::ALL[..n].contains(parent)),
                "{kind} comes before a parent"
            );
            assert_eq!(<Kind as Words>::parse(kind.as_str()), Some(kind));
            assert_eq!(Kind::of_id(kind.id_prefix()), Some(kind), "another kind's ids begin so");
            let others = Kind::ALL.into_iter().filter(|other| *other != kind);
            for other in others {
                assert_ne!(kind.event_subject(), other.event_subject());
                assert_ne!(kind.plural(), other.plural());
            }
        }
    }
}

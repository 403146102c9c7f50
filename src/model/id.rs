//! Identifiers. All of Clerk's are opaque text: never parsed, never sorted by meaning.

use serde::Serialize;
use std::fmt;

/// Which of the three mirrored things an id belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    User,
    Organization,
    Membership,
}

impl Kind {
    /// All kinds, parents first.
    pub const ALL: [Kind; 3] = [Kind::User, Kind::Organization, Kind::Membership];

    /// As the database and the logs spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::Organization => "organization",
            Kind::Membership => "membership",
        }
    }

    /// What Clerk's ids of this kind begin with.
    const fn prefix(self) -> &'static str {
        match self {
            Kind::User => "user_",
            Kind::Organization => "org_",
            Kind::Membership => "orgmem_",
        }
    }

    /// The kind that an id's prefix tells, if it does: tests and imports have ids without any.
    pub fn of_id(id: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| id.starts_with(kind.prefix()))
    }

    /// Whether `id` has the prefix of *another* kind: then it cannot name an object of this one.
    pub fn contradicts(self, id: &str) -> bool {
        Kind::of_id(id).is_some_and(|kind| kind != self)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One object of Clerk's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityRef {
    pub kind: Kind,
    pub id: String,
}

impl EntityRef {
    pub fn new(kind: Kind, id: impl Into<String>) -> Self {
        EntityRef { kind, id: id.into() }
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(id: &str) -> Self {
                $name(id.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

ids! {
    /// `user_…`
    UserId
    /// `org_…`
    OrganizationId
    /// `orgmem_…`; a user who leaves and joins again gets a new one.
    MembershipId
    /// `ins_…`: a Clerk application's production or development instance.
    InstanceId
    /// The header `svix-id`: one message has many attempts with one id. At most 256 of `[A-Za-z0-9_-]`.
    MessageId
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
}

//! Identifiers. All of Clerk's are opaque text: never parsed, never sorted by meaning.

use super::Kind;
use serde::Serialize;
use std::fmt;

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

/// Which Clerk instance the messages must belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceCheck {
    /// To the one that the mirror is pinned to; an empty mirror is pinned to this one, or to the first message's.
    Pinned(Option<InstanceId>),
    /// To any: for replays of fixtures.
    Off,
}

impl InstanceCheck {
    /// The one that is named.
    pub const fn expected(&self) -> Option<&InstanceId> {
        match self {
            InstanceCheck::Pinned(wanted) => wanted.as_ref(),
            InstanceCheck::Off => None,
        }
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

        impl From<String> for $name {
            fn from(id: String) -> Self {
                $name(id)
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

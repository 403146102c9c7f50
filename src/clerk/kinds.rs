//! How Clerk's Backend API lists and reads each kind, and what its JSON says: one entry a kind.

use super::payload::{self, Object};
use crate::model::{Entity, EntityRef, Kind, MembershipMention, Millis, OrganizationId, UserId};

/// What must be known of a kind to ask Clerk about it.
pub struct Api {
    /// Where it is listed.
    pub path: &'static str,
    pub listing: Listing,
    pub read_by: ReadBy,
    /// What the memberships of one object are called, behind its own path: `/users/ID/organization_memberships`.
    pub memberships: Option<&'static str>,
    /// Whether it is there only where the instance has organizations.
    pub needs_organizations: bool,
    /// The whole object. `Err`: what its access depends on, and it does not say.
    pub(super) parse: fn(&Object<'_>, &EntityRef, Option<&MembershipMention>) -> Result<Entity, &'static str>,
    /// What it embeds of its parents; no time in it counts as later than this.
    pub(super) mention: fn(&Object<'_>, &EntityRef, Millis) -> Option<MembershipMention>,
    /// Its organization and its user, as far as it names them.
    pub(super) pair: fn(&Object<'_>) -> (Option<OrganizationId>, Option<UserId>),
}

/// How a list is read from the oldest to the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Behind the last one of a page. The answer is a bare array: how many there are must be asked here.
    Cursor { count: &'static str },
    /// By offset. Each answer says how many there are.
    Offset,
}

/// How single objects are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadBy {
    /// By this parameter of the list, many at once.
    Id(&'static str),
    /// By organization and user: the id alone finds nothing.
    Pair,
}

/// The entry of a kind.
pub const fn of(kind: Kind) -> &'static Api {
    match kind {
        Kind::User => &Api {
            path: "/users",
            listing: Listing::Cursor { count: "/users/count" },
            read_by: ReadBy::Id("user_id"),
            memberships: Some("organization_memberships"),
            needs_organizations: false,
            parse: payload::user,
            mention: |_, _, _| None,
            pair: |_| (None, None),
        },
        Kind::Organization => &Api {
            path: "/organizations",
            listing: Listing::Offset,
            read_by: ReadBy::Id("organization_id"),
            memberships: Some("memberships"),
            needs_organizations: true,
            parse: payload::organization,
            mention: |_, _, _| None,
            pair: |_| (None, None),
        },
        Kind::Membership => &Api {
            path: "/organization_memberships",
            listing: Listing::Offset,
            read_by: ReadBy::Pair,
            memberships: None,
            needs_organizations: true,
            parse: payload::membership,
            mention: payload::naming_of_membership,
            pair: payload::pair_of_membership,
        },
    }
}

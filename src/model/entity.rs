//! The part of each Clerk object that we mirror.
//!
//! Volatile fields (`last_active_at`, `last_sign_in_at`, `members_count`, …) are left out: they change without
//! `updated_at` moving, so two bodies with one version would differ. `private_metadata` is left out for good.
//!
//! The fields' names are the columns' names, by which findings tell of them; `content` hashes their JSON.

use super::{Json, Kind, MembershipId, Millis, OrganizationId, UserId};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// A mirrored object.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Entity {
    User(User),
    Organization(Organization),
    Membership(Membership),
}

/// A user. As a stub (from `public_user_data`) it has names, image, and what decides access; the rest is absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct User {
    pub id: UserId,
    pub first_name: Option<String>,
    pub last_name: Option<String>,
    pub username: Option<String>,
    pub image_url: Option<String>,
    pub has_image: Option<bool>,
    /// The primary address, found by `primary_email_address_id`: the first of the list is often another one.
    pub email_address: Option<String>,
    pub email_address_verified: Option<bool>,
    pub phone_number: Option<String>,
    pub phone_number_verified: Option<bool>,
    pub external_id: Option<String>,
    /// `None` is "not known", which policies take for banned; the writer has it read by id.
    pub banned: Option<bool>,
    pub locked: Option<bool>,
    pub deprovisioned: Option<bool>,
    pub public_metadata: Option<Json>,
    pub unsafe_metadata: Option<Json>,
    /// Not a version: Clerk lets the Backend API set it.
    pub created_at: Option<Millis>,
}

/// An organization. As a stub it is what a membership embeds, which may be older than what we hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Organization {
    pub id: OrganizationId,
    pub name: Option<String>,
    pub slug: Option<String>,
    pub image_url: Option<String>,
    pub has_image: Option<bool>,
    /// 0 means unlimited.
    pub max_allowed_memberships: Option<i64>,
    pub public_metadata: Option<Json>,
    pub created_at: Option<Millis>,
}

/// A user's place in an organization.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Membership {
    pub id: MembershipId,
    pub organization_id: OrganizationId,
    pub user_id: UserId,
    /// The key, such as `org:admin`.
    pub role: String,
    pub permissions: Vec<String>,
    pub public_metadata: Option<Json>,
    /// With the id, the membership's place among all that this user ever had in this organization.
    pub created_at: Millis,
}

/// What each kind of object says of itself: one implementation a kind.
pub(super) trait Object {
    fn id(&self) -> &str;

    /// See [`Entity::created_at`].
    fn created_at(&self) -> Option<Millis>;

    /// See [`Entity::denial`].
    fn denial(&self) -> i32;

    /// See [`Entity::read_reason`].
    fn read_reason(&self) -> Option<&'static str>;

    /// See [`Entity::pair`].
    fn pair(&self) -> Option<(&OrganizationId, &UserId)>;

    /// See [`Entity::has_access_of`].
    fn has_access_of(&self, other: &Self) -> bool
    where
        Self: Sized;

    /// See [`Entity::differing_fields`].
    fn differing_fields(&self, other: &Self) -> Vec<&'static str>
    where
        Self: Sized;
}

/// The names of the fields in which two values of one type differ. All fields must be named.
macro_rules! differing {
    ($type:ident { $($field:ident),* $(,)? }, $a:expr, $b:expr) => {{
        let $type { $($field),* } = $a;
        let mut fields = Vec::new();
        $(if *$field != $b.$field { fields.push(stringify!($field)); })*
        fields
    }};
}

impl Object for User {
    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn created_at(&self) -> Option<Millis> {
        self.created_at
    }

    /// 2 if banned or deprovisioned, 1 if a ban is not known, else 0.
    fn denial(&self) -> i32 {
        match (self.banned, self.deprovisioned) {
            (Some(true), _) | (_, Some(true)) => 2,
            (None, _) => 1,
            (Some(false), _) => 0,
        }
    }

    fn read_reason(&self) -> Option<&'static str> {
        self.banned.is_none().then_some("banned is missing")
    }

    fn pair(&self) -> Option<(&OrganizationId, &UserId)> {
        None
    }

    fn has_access_of(&self, other: &User) -> bool {
        self.denial() == other.denial()
    }

    #[rustfmt::skip]
    fn differing_fields(&self, other: &User) -> Vec<&'static str> {
        differing!(
            User {
                id, first_name, last_name, username, image_url, has_image, email_address, email_address_verified, phone_number,
                phone_number_verified, external_id, banned, locked, deprovisioned, public_metadata, unsafe_metadata, created_at,
            },
            self,
            other
        )
    }
}

impl Object for Organization {
    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn created_at(&self) -> Option<Millis> {
        self.created_at
    }

    fn denial(&self) -> i32 {
        0
    }

    fn read_reason(&self) -> Option<&'static str> {
        None
    }

    fn pair(&self) -> Option<(&OrganizationId, &UserId)> {
        None
    }

    fn has_access_of(&self, _: &Organization) -> bool {
        true
    }

    #[rustfmt::skip]
    fn differing_fields(&self, other: &Organization) -> Vec<&'static str> {
        differing!(
            Organization {
                id, name, slug, image_url, has_image, max_allowed_memberships, public_metadata, created_at,
            },
            self,
            other
        )
    }
}

impl Object for Membership {
    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn created_at(&self) -> Option<Millis> {
        Some(self.created_at)
    }

    /// Minus the number of permissions.
    fn denial(&self) -> i32 {
        -i32::try_from(self.permissions.len()).unwrap_or(i32::MAX)
    }

    fn read_reason(&self) -> Option<&'static str> {
        None
    }

    fn pair(&self) -> Option<(&OrganizationId, &UserId)> {
        Some((&self.organization_id, &self.user_id))
    }

    fn has_access_of(&self, other: &Membership) -> bool {
        self.role == other.role && self.permissions == other.permissions
    }

    #[rustfmt::skip]
    fn differing_fields(&self, other: &Membership) -> Vec<&'static str> {
        differing!(
            Membership { id, organization_id, user_id, role, permissions, public_metadata, created_at },
            self,
            other
        )
    }
}

impl Entity {
    pub const fn kind(&self) -> Kind {
        match self {
            Entity::User(_) => Kind::User,
            Entity::Organization(_) => Kind::Organization,
            Entity::Membership(_) => Kind::Membership,
        }
    }

    fn object(&self) -> &dyn Object {
        match self {
            Entity::User(user) => user,
            Entity::Organization(organization) => organization,
            Entity::Membership(membership) => membership,
        }
    }

    pub fn id(&self) -> &str {
        self.object().id()
    }

    /// When Clerk made it, as far as it says.
    pub fn created_at(&self) -> Option<Millis> {
        self.object().created_at()
    }

    /// Breaks a tie of two states towards less access (R1): the greater, the less access it gives.
    pub fn denial(&self) -> i32 {
        self.object().denial()
    }

    /// What it does not say about access: then only a read by id can tell.
    pub fn read_reason(&self) -> Option<&'static str> {
        self.object().read_reason()
    }

    /// Of a membership: whose it is, and where.
    pub fn pair(&self) -> Option<(&OrganizationId, &UserId)> {
        self.object().pair()
    }

    /// Whether the two states give the same access. Those of two kinds give none in common.
    pub(crate) fn has_access_of(&self, other: &Entity) -> bool {
        match (self, other) {
            (Entity::User(a), Entity::User(b)) => a.has_access_of(b),
            (Entity::Organization(a), Entity::Organization(b)) => a.has_access_of(b),
            (Entity::Membership(a), Entity::Membership(b)) => a.has_access_of(b),
            (Entity::User(_) | Entity::Organization(_) | Entity::Membership(_), _) => false,
        }
    }

    /// A number for what is stored of it; see [`super::Batch`].
    pub fn content(&self) -> i64 {
        content(self)
    }

    /// The columns in which the two differ: none means that writing one over the other changes nothing.
    pub(crate) fn differing_fields(&self, other: &Entity) -> Vec<&'static str> {
        match (self, other) {
            (Entity::User(a), Entity::User(b)) => a.differing_fields(b),
            (Entity::Organization(a), Entity::Organization(b)) => a.differing_fields(b),
            (Entity::Membership(a), Entity::Membership(b)) => a.differing_fields(b),
            (Entity::User(_) | Entity::Organization(_) | Entity::Membership(_), _) => vec!["kind"],
        }
    }
}

/// Which columns [`content`] hashes: raised by the release that mirrors one more.
const CONTENT_VERSION: i64 = 1;

/// A number for what is stored of an object: breaks a full tie of two versions the same way in any order, on any replica.
///
/// Its first byte is the version of the hash. Two releases that serve one database hash different columns, so their numbers differ for
/// the same row: the later release's are greater, and a row that it wrote is not written back by the earlier one in a tie.
pub(super) fn content(row: &impl Serialize) -> i64 {
    let bytes = serde_json::to_vec(row).expect("an entity is plain data and always serializes");
    let digest = Sha256::digest(&bytes);
    let hash = u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"));
    CONTENT_VERSION << 56 | (hash >> 8).cast_signed()
}

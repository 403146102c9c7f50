//! The bodies: every field that real traffic has, since a field that is left out here cannot trip anybody.
//!
//! They are written from the rows straight into the answer, with no tree of values in between: listing a million users
//! must not cost more than the program that reads them.

use super::{Membership, Organization, Role, User};
use serde::ser::{Serialize, SerializeMap as _, SerializeSeq as _, Serializer};

const IMAGE: &str = "https://img.clerk.com/eyJ0eXBlIjoiZGVmYXVsdCJ9";
const NOTHING: [(); 0] = [];

/// An object with these fields, as `json!` would make it; more may be added before its `end`.
macro_rules! object {
    ($serializer:expr, { $($key:literal: $value:expr),* $(,)? }) => {{
        let mut object = $serializer.serialize_map(None)?;
        $(object.serialize_entry($key, &$value)?;)*
        object
    }};
}

/// The body of a webhook.
pub(super) struct Envelope<'a, T> {
    pub(super) event_type: &'a str,
    pub(super) instance_id: &'a str,
    pub(super) timestamp: i64,
    pub(super) data: &'a T,
}

impl<T: Serialize> Serialize for Envelope<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer, {
            "data": self.data,
            "event_attributes": Attributes,
            "instance_id": self.instance_id,
            "object": "event",
            "timestamp": self.timestamp,
            "type": self.event_type,
        })
        .end()
    }
}

struct Attributes;

impl Serialize for Attributes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer, { "http_request": HttpRequest }).end()
    }
}

struct HttpRequest;

impl Serialize for HttpRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer, { "client_ip": "203.0.113.7", "user_agent": "Mozilla/5.0" }).end()
    }
}

/// All that is told of what is gone.
pub(super) struct Deleted<'a> {
    pub(super) object: &'a str,
    pub(super) id: &'a str,
}

impl Serialize for Deleted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer, { "deleted": true, "id": self.id, "object": self.object }).end()
    }
}

/// `{}`.
struct NoFields;

impl Serialize for NoFields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_map(Some(0))?.end()
    }
}

struct Note;

impl Serialize for Note {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer, { "internal_note": "never to be stored" }).end()
    }
}

/// What metadata says, or `{ "plan": … }`, or nothing.
enum Metadata<'a> {
    Set(&'a serde_json::Value),
    Plan(&'a str),
    None,
}

impl Serialize for Metadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Metadata::Set(value) => value.serialize(serializer),
            Metadata::Plan(plan) => object!(serializer, { "plan": plan }).end(),
            Metadata::None => NoFields.serialize(serializer),
        }
    }
}

impl Serialize for User {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bare_id = self.id.trim_start_matches("user_");
        let (address_id, phone_id) = (format_args!("idn_{bare_id}"), format_args!("idn_phone_{bare_id}"));
        object!(serializer, {
            "backup_code_enabled": false,
            "banned": self.banned,
            "bypass_client_trust": false,
            "create_organization_enabled": true,
            "create_organizations_limit": (),
            "created_at": self.created_at,
            "delete_self_enabled": true,
            "deprovisioned": self.deprovisioned,
            "email_addresses": Addresses(self),
            "enterprise_accounts": NOTHING,
            "external_accounts": NOTHING,
            "external_id": self.external_id,
            "first_name": self.first_name,
            "has_image": false,
            "id": self.id,
            "image_url": IMAGE,
            "last_active_at": self.updated_at,
            "last_name": self.last_name,
            "last_sign_in_at": (),
            "legal_accepted_at": (),
            "locale": self.locale,
            "locked": self.locked,
            "lockout_expires_in_seconds": self.locked.then_some(3_600),
            "mfa_disabled_at": (),
            "mfa_enabled_at": (),
            "object": "user",
            "passkeys": NOTHING,
            "password_enabled": true,
            "password_last_updated_at": self.created_at,
            "phone_numbers": Phones(self),
            "primary_email_address_id": (!self.email_address.is_empty()).then_some(address_id),
            "primary_phone_number_id": self.phone_number.as_ref().map(|_| phone_id),
            "primary_web3_wallet_id": (),
            "private_metadata": Note,
            "profile_image_url": IMAGE,
            "public_metadata": self.public_metadata.as_deref().map_or(Metadata::Plan("pro"), Metadata::Set),
            "saml_accounts": NOTHING,
            "totp_enabled": false,
            "two_factor_enabled": false,
            "unsafe_metadata": self.unsafe_metadata.as_deref().map_or(Metadata::None, Metadata::Set),
            "updated_at": self.updated_at,
            "username": self.username,
            "verification_attempts_remaining": if self.locked { 0 } else { 100 },
            "web3_wallets": NOTHING,
        })
        .end()
    }
}

struct Addresses<'a>(&'a User);

impl Serialize for Addresses<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Addresses(user) = self;
        let mut addresses = serializer.serialize_seq(None)?;
        if !user.email_address.is_empty() {
            // Some users have another one, and first: code that takes the first address takes the wrong one.
            // (By the address, not the id, which begins with the time: one seed makes one population.)
            if user.email_address.bytes().map(u32::from).sum::<u32>() % 5 == 0 {
                addresses.serialize_element(&Address {
                    id: format_args!("idn_an_older_address"),
                    email_address: format_args!("old.{}", user.email_address),
                    status: "unverified",
                })?;
            }
            addresses.serialize_element(&Address {
                id: format_args!("idn_{}", user.id.trim_start_matches("user_")),
                email_address: format_args!("{}", user.email_address),
                status: "verified",
            })?;
        }
        addresses.end()
    }
}

struct Address<'a> {
    id: std::fmt::Arguments<'a>,
    email_address: std::fmt::Arguments<'a>,
    status: &'static str,
}

impl Serialize for Address<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer, {
            "created_at": 1_760_000_000_000_i64,
            "email_address": self.email_address,
            "id": self.id,
            "linked_to": NOTHING,
            "matches_sso_connection": false,
            "object": "email_address",
            "reserved": false,
            "updated_at": 1_760_000_000_000_i64,
            "verification": Verification { status: self.status, strategy: "email_code" },
        })
        .end()
    }
}

struct Phones<'a>(&'a User);

impl Serialize for Phones<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let phones = self.0.phone_number.as_deref().map(|number| Phone { user: self.0, number });
        serializer.collect_seq(phones)
    }
}

struct Phone<'a> {
    user: &'a User,
    number: &'a str,
}

impl Serialize for Phone<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer, {
            "backup_codes": (),
            "created_at": self.user.created_at,
            "default_second_factor": false,
            "id": format_args!("idn_phone_{}", self.user.id.trim_start_matches("user_")),
            "linked_to": NOTHING,
            "object": "phone_number",
            "phone_number": self.number,
            "reserved": false,
            "reserved_for_second_factor": false,
            "updated_at": self.user.created_at,
            "verification": Verification { status: "verified", strategy: "phone_code" },
        })
        .end()
    }
}

/// Real ones have no `object`, although Clerk's specification tells them apart by it.
struct Verification {
    status: &'static str,
    strategy: &'static str,
}

impl Serialize for Verification {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer, {
            "attempts": 1,
            "expire_at": 1_760_000_600_000_i64,
            "status": self.status,
            "strategy": self.strategy,
        })
        .end()
    }
}

impl Serialize for Organization {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        OrganizationBody { organization: self, embedded: false, members_count: None }.serialize(serializer)
    }
}

/// What a membership embeds lacks `created_by` and `private_metadata`; the count of members comes where it is asked for.
pub(super) struct OrganizationBody<'a> {
    pub(super) organization: &'a Organization,
    pub(super) embedded: bool,
    pub(super) members_count: Option<usize>,
}

impl Serialize for OrganizationBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let OrganizationBody { organization, embedded, members_count } = self;
        let mut object = object!(serializer, {
            "admin_delete_enabled": true,
            "created_at": organization.created_at,
            "has_image": false,
            "id": organization.id,
            "image_url": IMAGE,
            "logo_url": (),
            "max_allowed_memberships": 5,
            "name": organization.name,
            "object": "organization",
            "public_metadata": organization.public_metadata.as_deref().map_or(Metadata::None, Metadata::Set),
            "slug": organization.slug,
            "updated_at": organization.updated_at,
        });
        if !embedded {
            object.serialize_entry("created_by", &organization.created_by)?;
            object.serialize_entry("private_metadata", &NoFields)?;
        }
        if let Some(count) = members_count {
            object.serialize_entry("members_count", count)?;
        }
        object.end()
    }
}

/// A membership with what it embeds.
pub(super) struct MembershipBody<'a> {
    pub(super) membership: &'a Membership,
    pub(super) organization: &'a Organization,
    /// `None`: it does not say whose it is ([`Fault::Nameless`](super::Fault)).
    pub(super) user: Option<&'a User>,
    pub(super) role: Option<&'a Role>,
    /// Those of the role that the organization's plan allows.
    pub(super) permissions: Vec<&'a str>,
}

/// What a billing event has of who pays, beside what nobody here reads.
pub(super) struct Billing<'a> {
    pub(super) object: &'static str,
    pub(super) id: &'a str,
    pub(super) status: &'a str,
    pub(super) plan: &'a str,
    pub(super) organization_id: &'a str,
    pub(super) now: i64,
}

impl Serialize for Billing<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer, {
            "object": self.object,
            "id": self.id,
            "status": self.status,
            "plan": serde_json::json!({ "id": format!("cplan_{}", self.plan), "slug": self.plan, "name": self.plan }),
            "plan_id": format_args!("cplan_{}", self.plan),
            "payer": serde_json::json!({
                "object": "commerce_payer", "id": format!("cpayer_{}", self.organization_id), "organization_id": self.organization_id,
            }),
            "created_at": self.now,
            "updated_at": self.now,
        })
        .end()
    }
}

impl Serialize for MembershipBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let MembershipBody { membership, organization, user, role, permissions } = self;
        let mut object = object!(serializer, {
            "created_at": membership.created_at,
            "id": membership.id,
            "object": "organization_membership",
            "organization": OrganizationBody { organization, embedded: true, members_count: None },
            "permissions": permissions,
            "private_metadata": NoFields,
            "public_metadata": membership.public_metadata.as_deref().map_or(Metadata::None, Metadata::Set),
            "role": membership.role,
            "role_name": role.map_or_else(|| membership.role.trim_start_matches("org:"), |role| &role.name),
            "updated_at": membership.updated_at,
        });
        if let Some(user) = user {
            object.serialize_entry("public_user_data", &PublicUserData(user))?;
        }
        object.end()
    }
}

struct PublicUserData<'a>(&'a User);

impl Serialize for PublicUserData<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let PublicUserData(user) = self;
        object!(serializer, {
            "banned": user.banned,
            "deprovisioned": user.deprovisioned,
            "first_name": user.first_name,
            "has_image": false,
            "identifier": user.identifier(),
            "image_url": IMAGE,
            "last_name": user.last_name,
            "profile_image_url": IMAGE,
            "user_id": user.id,
            "username": user.username,
        })
        .end()
    }
}

impl Serialize for Role {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let permissions: Vec<Permission<'_>> =
            self.permissions.iter().map(|key| Permission { key, at: self.created_at }).collect();
        object!(serializer, {
            "created_at": self.created_at,
            "description": "",
            "id": self.id,
            "key": self.key,
            "name": self.name,
            "object": "role",
            "permissions": permissions,
            "updated_at": self.updated_at,
        })
        .end()
    }
}

struct Permission<'a> {
    key: &'a str,
    at: i64,
}

impl Serialize for Permission<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer, {
            "created_at": self.at,
            "description": "",
            "id": format_args!("perm_{}", self.key.replace(|c: char| !c.is_ascii_alphanumeric(), "")),
            "key": self.key,
            "name": self.key,
            "object": "permission",
            "type": if self.key.starts_with("org:sys_") { "system" } else { "custom" },
            "updated_at": self.at,
        })
        .end()
    }
}

//! Clerk's JSON objects, read field by field. Webhooks and the Backend API share these shapes
//! (`clerk/openapi-specs`, `webhooks/2025-04-15.yml` and `bapi/2026-05-12.yml`).

use super::kinds;
use crate::model::{
    Entity, EntityRef, Json, Membership, MembershipId, MembershipMention, Millis, Observation, Organization,
    OrganizationId, PendingRead, User, UserId, decode_string,
};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;

/// How many `field_errors` of one object are reported: a list can have any number.
const MAX_FIELD_ERRORS: usize = 16;

/// A JSON object whose members are still raw. Only an object will do: an array of the values in field order is refused.
pub(super) struct Object<'a> {
    members: Vec<(Cow<'a, str>, &'a RawValue)>,
    /// What could not be taken as it came, by field; values never.
    field_errors: RefCell<Vec<String>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut members = Vec::with_capacity(48);
                while let Some(Key(key)) = map.next_key()? {
                    members.push((key, map.next_value()?));
                }
                Ok(Object { members, field_errors: RefCell::default() })
            }
        }
        deserializer.deserialize_map(Members)
    }
}

struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(key)))
            }

            fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl<'a> Object<'a> {
    /// `Err` says in a few words, without any value, why `raw` is no usable object.
    pub(super) fn parse(raw: &'a [u8]) -> Result<Object<'a>, String> {
        serde_json::from_slice(raw).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => "not a JSON object".to_owned(),
            _ => format!("not JSON: line {}, column {}", error.line(), error.column()),
        })
    }

    /// The member of that name; of several the last, as in Postgres. `null` counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.members.iter().rev().find(|(key, _)| key == name).map(|(_, raw)| *raw).filter(|raw| raw.get() != "null")
    }

    /// Whether a member of that name stands twice.
    pub(super) fn repeats(&self, name: &str) -> bool {
        self.members.iter().filter(|(key, _)| key == name).count() > 1
    }

    /// What was wrong with the fields read so far.
    pub(super) fn field_errors(&self) -> Vec<String> {
        self.field_errors.take()
    }

    fn flaw(&self, name: &str, what: impl fmt::Display) {
        let mut field_errors = self.field_errors.borrow_mut();
        if field_errors.len() < MAX_FIELD_ERRORS {
            field_errors.push(format!("{name}: {what}"));
        }
    }

    /// The member as `read` takes it; if it is there and will not do, that is a flaw.
    fn read<T>(&self, name: &str, expected: &str, read: impl FnOnce(&'a str) -> Option<T>) -> Option<T> {
        let value = read(self.get(name)?.get());
        if value.is_none() {
            self.flaw(name, format_args!("not {expected}"));
        }
        value
    }

    fn string(&self, name: &str, literal: &'a str) -> String {
        let (text, replaced) = decode_string(literal);
        if replaced > 0 {
            self.flaw(name, format_args!("{replaced} characters replaced"));
        }
        text.into_owned()
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.read(name, "text", |raw| raw.starts_with('"').then(|| self.string(name, raw)))
    }

    /// An identifier: text of 1 to 255 bytes that Postgres can hold as it is.
    pub(super) fn id(&self, name: &str) -> Option<String> {
        self.text(name).filter(|id| !id.is_empty() && id.len() <= 255 && !id.contains(char::REPLACEMENT_CHARACTER))
    }

    pub(super) fn boolean(&self, name: &str) -> Option<bool> {
        self.read(name, "true or false", |raw| raw.parse().ok())
    }

    /// A whole number, also where it is written as a float (`1.7e12`).
    pub(super) fn integer(&self, name: &str) -> Option<i64> {
        self.read(name, "a whole number", integer)
    }

    pub(super) fn millis(&self, name: &str) -> Option<Millis> {
        self.read(name, "a time in milliseconds", |raw| Millis::new(integer(raw)?))
    }

    pub(super) fn object(&self, name: &str) -> Option<Object<'a>> {
        Object::parse(self.get(name)?.get().as_bytes()).ok()
    }

    fn items(&self, name: &str) -> Vec<&'a RawValue> {
        self.read(name, "a list", |raw| serde_json::from_str(raw).ok()).unwrap_or_default()
    }

    /// One after the other: a list may have any number.
    pub(super) fn objects(&self, name: &str) -> impl Iterator<Item = Object<'a>> {
        self.items(name).into_iter().filter_map(|item| Object::parse(item.get().as_bytes()).ok())
    }

    /// Metadata is an object or nothing.
    fn metadata(&self, name: &str) -> Option<Json> {
        let raw = self.read(name, "an object", |raw| raw.starts_with('{').then_some(raw))?;
        match Json::canonical(raw) {
            Ok((json, 0)) => Some(json),
            Ok((json, replaced)) => {
                self.flaw(name, format_args!("{replaced} characters replaced"));
                Some(json)
            }
            Err(unstorable) => {
                self.flaw(name, format_args!("left out: {unstorable}"));
                None
            }
        }
    }

    fn texts(&self, name: &str) -> Vec<String> {
        let texts = self.items(name).into_iter().filter(|raw| raw.get().starts_with('"'));
        texts.map(|raw| self.string(name, raw.get())).collect()
    }
}

fn integer(raw: &str) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53: beyond it a float has no whole-number precision
    raw.parse().ok().or_else(|| {
        let float: f64 = raw.parse().ok()?;
        #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
        (float.fract() == 0.0 && float.abs() < EXACT).then_some(float as i64)
    })
}

/// What the whole object in `data` says of itself. `mention` is what [`mention`] found in it; no time in it counts as later than
/// `bound`.
pub(super) fn live(
    data: &Object<'_>,
    entity: &EntityRef,
    mention: Option<&MembershipMention>,
    bound: Millis,
) -> Observation {
    match ((kinds::of(entity.kind).parse)(data, entity, mention), data.millis("updated_at")) {
        (Ok(found), Some(updated_at)) => Observation::live(found, updated_at, bound),
        (Err(lacks), _) => unusable(data, entity, lacks, false),
        (_, None) => unusable(data, entity, "updated_at is missing", false),
    }
}

/// An observation that a read by id must settle. `reported_deleted`: the event says that the object was deleted.
pub(super) fn unusable(
    data: &Object<'_>,
    entity: &EntityRef,
    reason: &'static str,
    reported_deleted: bool,
) -> Observation {
    let (organization_id, user_id) = (kinds::of(entity.kind).pair)(data);
    Observation::NeedsRead(PendingRead {
        kind: entity.kind,
        id: entity.id.clone(),
        organization_id,
        user_id,
        reason,
        reported_deleted,
    })
}

/// Which membership of which pair this is, with what it embeds of the two. `None` where the body lacks the pair or its
/// creation time, or is of no membership. That time counts as no later than `bound`: one far ahead must not lock a user out (R5).
pub(super) fn mention(data: &Object<'_>, entity: &EntityRef, bound: Millis) -> Option<MembershipMention> {
    (kinds::of(entity.kind).mention)(data, entity, bound)
}

/// A whole user.
pub(super) fn user(
    data: &Object<'_>,
    entity: &EntityRef,
    _: Option<&MembershipMention>,
) -> Result<Entity, &'static str> {
    let (email_address, email_address_verified) =
        primary(data, "primary_email_address_id", "email_addresses", "email_address");
    let (phone_number, phone_number_verified) =
        primary(data, "primary_phone_number_id", "phone_numbers", "phone_number");
    Ok(Entity::User(User {
        id: UserId(entity.id.clone()),
        first_name: data.text("first_name"),
        last_name: data.text("last_name"),
        username: data.text("username"),
        image_url: data.text("image_url"),
        has_image: data.boolean("has_image"),
        email_address,
        email_address_verified,
        phone_number,
        phone_number_verified,
        external_id: data.text("external_id"),
        banned: data.boolean("banned"),
        locked: data.boolean("locked"),
        deprovisioned: deprovisioned(data),
        public_metadata: data.metadata("public_metadata"),
        unsafe_metadata: data.metadata("unsafe_metadata"),
        created_at: data.millis("created_at"),
    }))
}

/// A value that is not a boolean counts as deprovisioned; an absent field does not.
fn deprovisioned(data: &Object<'_>) -> Option<bool> {
    data.boolean("deprovisioned").or_else(|| data.get("deprovisioned").map(|_| true))
}

/// The address that the id in `pointer` names, and whether it is verified. The id may be null or point nowhere.
fn primary(data: &Object<'_>, pointer: &str, list: &str, field: &str) -> (Option<String>, Option<bool>) {
    let Some(id) = data.text(pointer) else { return (None, None) };
    let Some(address) = data.objects(list).find(|item| item.text("id").as_ref() == Some(&id)) else {
        return (None, None);
    };
    let status = address.object("verification").and_then(|verification| verification.text("status"));
    (address.text(field), Some(status.as_deref() == Some("verified")))
}

/// A whole organization.
pub(super) fn organization(
    data: &Object<'_>,
    entity: &EntityRef,
    _: Option<&MembershipMention>,
) -> Result<Entity, &'static str> {
    Ok(Entity::Organization(organization_or_stub(data, OrganizationId(entity.id.clone()))))
}

/// The same object, or what a membership embeds of one.
fn organization_or_stub(data: &Object<'_>, id: OrganizationId) -> Organization {
    Organization {
        id,
        name: data.text("name"),
        slug: data.text("slug"),
        image_url: data.text("image_url"),
        has_image: data.boolean("has_image"),
        max_allowed_memberships: data.integer("max_allowed_memberships"),
        public_metadata: data.metadata("public_metadata"),
        created_at: data.millis("created_at"),
    }
}

/// What a membership embeds of its user (`public_user_data`).
fn user_stub(data: &Object<'_>, id: UserId) -> User {
    User {
        id,
        first_name: data.text("first_name"),
        last_name: data.text("last_name"),
        username: data.text("username"),
        image_url: data.text("image_url"),
        has_image: data.boolean("has_image"),
        email_address: None,
        email_address_verified: None,
        phone_number: None,
        phone_number_verified: None,
        external_id: None,
        banned: data.boolean("banned"),
        locked: None,
        deprovisioned: deprovisioned(data),
        public_metadata: None,
        unsafe_metadata: None,
        created_at: None,
    }
}

/// The two ids of a membership's pair, as far as the body has them. The user's stands in `public_user_data` alone.
pub(super) fn pair_of_membership(data: &Object<'_>) -> (Option<OrganizationId>, Option<UserId>) {
    let organization = data.object("organization").and_then(|organization| organization.id("id")).map(OrganizationId);
    let user = data.object("public_user_data").and_then(|user| user.id("user_id")).map(UserId);
    (organization, user)
}

/// See [`mention`].
pub(super) fn naming_of_membership(data: &Object<'_>, entity: &EntityRef, bound: Millis) -> Option<MembershipMention> {
    let (embedded_organization, public_user_data) = (data.object("organization")?, data.object("public_user_data")?);
    let (organization_id, user_id) = pair_of_membership(data);
    Some(MembershipMention {
        membership_id: MembershipId(entity.id.clone()),
        created_at: data.millis("created_at")?.min(bound),
        organization: organization_or_stub(&embedded_organization, organization_id?),
        user: user_stub(&public_user_data, user_id?),
    })
}

/// A whole membership. None without a role: access is never guessed.
pub(super) fn membership(
    data: &Object<'_>,
    _: &EntityRef,
    mention: Option<&MembershipMention>,
) -> Result<Entity, &'static str> {
    let whole = |mention: &MembershipMention| -> Option<Membership> {
        Some(Membership {
            id: mention.membership_id.clone(),
            organization_id: mention.organization.id.clone(),
            user_id: mention.user.id.clone(),
            role: data.text("role").filter(|role| !role.is_empty())?,
            permissions: sorted(data.texts("permissions")),
            public_metadata: data.metadata("public_metadata"),
            created_at: data.millis("created_at")?,
        })
    };
    mention.and_then(whole).map(Entity::Membership).ok_or("role, user or organization is missing")
}

/// Permissions are a set; webhooks and the API need not list them in one order.
fn sorted(mut permissions: Vec<String>) -> Vec<String> {
    permissions.sort_unstable();
    permissions.dedup();
    permissions
}

//! The bodies: every field that real traffic has, since a field that is left out here cannot trip anybody.

use super::{Membership, Organization, User};
use serde_json::{Value, json};

const IMAGE: &str = "https://img.clerk.com/eyJ0eXBlIjoiZGVmYXVsdCJ9";

pub(super) fn envelope(event_type: &str, instance_id: &str, timestamp: i64, data: Value) -> String {
    json!({
        "data": data,
        "event_attributes": { "http_request": { "client_ip": "203.0.113.7", "user_agent": "Mozilla/5.0" } },
        "instance_id": instance_id,
        "object": "event",
        "timestamp": timestamp,
        "type": event_type,
    })
    .to_string()
}

pub(super) fn deleted(object: &str, id: &str) -> Value {
    json!({ "deleted": true, "id": id, "object": object })
}

pub(super) fn user(user: &User) -> Value {
    let address_id = format!("idn_{}", user.id.trim_start_matches("user_"));
    let mut addresses = vec![address(&address_id, &user.email_address, "verified")];
    // Some users have another one, and first: code that takes the first address takes the wrong one.
    if user.id.bytes().map(u32::from).sum::<u32>() % 5 == 0 {
        addresses.insert(0, address("idn_an_older_address", &format!("old.{}", user.email_address), "unverified"));
    }
    json!({
        "backup_code_enabled": false,
        "banned": user.banned,
        "bypass_client_trust": false,
        "create_organization_enabled": true,
        "create_organizations_limit": null,
        "created_at": user.created_at,
        "delete_self_enabled": true,
        "deprovisioned": user.deprovisioned,
        "email_addresses": addresses,
        "enterprise_accounts": [],
        "external_accounts": [],
        "external_id": null,
        "first_name": user.first_name,
        "has_image": false,
        "id": user.id,
        "image_url": IMAGE,
        "last_active_at": user.updated_at,
        "last_name": user.last_name,
        "last_sign_in_at": null,
        "legal_accepted_at": null,
        "locale": null,
        "locked": false,
        "lockout_expires_in_seconds": null,
        "mfa_disabled_at": null,
        "mfa_enabled_at": null,
        "object": "user",
        "passkeys": [],
        "password_enabled": true,
        "password_last_updated_at": user.created_at,
        "phone_numbers": [],
        "primary_email_address_id": address_id,
        "primary_phone_number_id": null,
        "primary_web3_wallet_id": null,
        "private_metadata": { "internal_note": "never to be stored" },
        "profile_image_url": IMAGE,
        "public_metadata": { "plan": "pro" },
        "saml_accounts": [],
        "totp_enabled": false,
        "two_factor_enabled": false,
        "unsafe_metadata": {},
        "updated_at": user.updated_at,
        "username": null,
        "verification_attempts_remaining": 100,
        "web3_wallets": [],
    })
}

fn address(id: &str, email_address: &str, status: &str) -> Value {
    json!({
        "created_at": 1_760_000_000_000_i64,
        "email_address": email_address,
        "id": id,
        "linked_to": [],
        "matches_sso_connection": false,
        "object": "email_address",
        "reserved": false,
        "updated_at": 1_760_000_000_000_i64,
        "verification": { "attempts": 1, "expire_at": 1_760_000_600_000_i64, "status": status, "strategy": "email_code" },
    })
}

pub(super) fn organization(organization: &Organization) -> Value {
    let mut data = embedded_organization(organization);
    data["created_by"] = json!(organization.created_by);
    data["private_metadata"] = json!({});
    data
}

/// What a membership embeds lacks `created_by` and `private_metadata`.
fn embedded_organization(organization: &Organization) -> Value {
    json!({
        "admin_delete_enabled": true,
        "created_at": organization.created_at,
        "has_image": false,
        "id": organization.id,
        "image_url": IMAGE,
        "logo_url": null,
        "max_allowed_memberships": 5,
        "name": organization.name,
        "object": "organization",
        "public_metadata": {},
        "slug": organization.slug,
        "updated_at": organization.updated_at,
    })
}

pub(super) fn membership(membership: &Membership, organization: &Organization, user: &User) -> Value {
    let (name, permissions) = match membership.role.as_str() {
        "org:admin" => ("Admin", vec!["org:sys_memberships:read", "org:sys_memberships:manage"]),
        _ => ("Member", vec!["org:sys_memberships:read"]),
    };
    json!({
        "created_at": membership.created_at,
        "id": membership.id,
        "object": "organization_membership",
        "organization": embedded_organization(organization),
        "permissions": permissions,
        "private_metadata": {},
        "public_metadata": {},
        "public_user_data": {
            "banned": user.banned,
            "deprovisioned": user.deprovisioned,
            "first_name": user.first_name,
            "has_image": false,
            "identifier": user.email_address,
            "image_url": IMAGE,
            "last_name": user.last_name,
            "profile_image_url": IMAGE,
            "user_id": user.id,
            "username": null,
        },
        "role": membership.role,
        "role_name": name,
        "updated_at": membership.updated_at,
    })
}

//! Each event, and each quirk of Clerk's payloads: what one delivery does to an empty mirror.
//!
//! The people are invented. The quirks are Clerk's: see `clerk/openapi-specs` `webhooks/2025-04-15.yml` and
//! `andrictham/clerk-webhooks-inconsistent-payloads`.

use crate::support::World;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

const USER: &str = "select u.first_name, u.last_name, u.username, d.email_address, d.email_address_verified as email_verified, \
     d.phone_number, d.banned, d.locked, d.deprovisioned, d.external_id, d.public_metadata, d.unsafe_metadata \
     from clerk.users u join clerk.user_details d using (id)";
const DELETED_USER: &str = "select id, first_name, deleted_at from clerk.users";
const ORGANIZATION: &str =
    "select name, slug, max_allowed_memberships as seats, public_metadata from clerk.organizations";
const DELETED_ORGANIZATION: &str = "select id, name, deleted_at from clerk.organizations";
const MEMBERSHIP: &str = "select m.role, m.permissions, m.public_metadata, u.first_name, o.name from clerk.organization_memberships m \
     join clerk.users u on u.id = m.user_id join clerk.organizations o on o.id = m.organization_id";
const READS: &str = "select kind, id, organization_id, user_id, reason from clerk_sync.pending_reads \
     where reason <> 'stub'";
const PASSES: &str = "select kind, reason from clerk_sync.pending_passes";
const TOMBSTONES: &str = "select kind, id from clerk_sync.versions where state = 'deleted'";
const EVERYTHING: &str = "select id from clerk.users union select id from clerk.organizations union select id from clerk_sync.versions \
     union select id from clerk_sync.pending_reads";

/// Mira as most files have her, with what is said otherwise.
fn mira(differing: Value) -> Value {
    let mut row = json!({
        "first_name": "Mira", "last_name": "Okafor", "username": null, "email_address": "mira.okafor@example.com",
        "email_verified": true, "phone_number": null, "banned": false, "locked": false, "deprovisioned": false,
        "external_id": null, "public_metadata": {}, "unsafe_metadata": {},
    });
    for (name, value) in differing.as_object().unwrap() {
        row[name] = value.clone();
    }
    json!([row])
}

fn harbor(differing: Value) -> Value {
    let mut row =
        json!({ "name": "Harbor Coffee", "slug": "harbor-coffee", "seats": 5, "public_metadata": { "tier": "gold" } });
    for (name, value) in differing.as_object().unwrap() {
        row[name] = value.clone();
    }
    json!([row])
}

fn member(role: &str, permissions: &[&str]) -> Value {
    json!([{ "role": role, "permissions": permissions, "public_metadata": { "desk": 4 }, "first_name": "Mira", "name": "Harbor Coffee" }])
}

fn read(kind: &str, id: &str, organization_id: Value, user_id: Value, reason: &str) -> Value {
    json!([{ "kind": kind, "id": id, "organization_id": organization_id, "user_id": user_id, "reason": reason }])
}

/// File, outcome, query, rows.
fn table() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let no_address = json!({ "email_address": null, "email_verified": null });
    let permissions = ["org:invoices:read", "org:sys_memberships:read"];
    let gone = |at: &str| json!([{ "id": "user_2fxMira", "first_name": null, "deleted_at": at }]);
    let membership = "orgmem_2fxMiraAtHarbor";
    vec![
        ("user.created", "applied", USER, mira(json!({}))),
        ("user.created.primary-not-first", "applied", USER, mira(json!({}))),
        ("user.created.primary-nowhere", "applied", USER, mira(no_address)),
        ("user.created.address-unverified", "applied", USER, mira(json!({ "email_verified": false }))),
        (
            "user.created.phone-only",
            "applied",
            USER,
            mira(json!({ "email_address": null, "email_verified": null, "phone_number": "+15550100123" })),
        ),
        (
            "user.created.username-only",
            "applied",
            USER,
            mira(
                json!({ "email_address": null, "email_verified": null, "first_name": "", "last_name": null, "username": "mira_o" }),
            ),
        ),
        ("user.created.without-instance", "applied", USER, mira(json!({}))),
        ("user.created.without-banned", "applied", USER, mira(json!({ "banned": null }))),
        (
            "user.created.without-banned",
            "applied",
            READS,
            read("user", "user_2fxMira", Value::Null, Value::Null, "banned is missing"),
        ),
        (
            "user.created.wrong-types",
            "applied",
            USER,
            mira(
                json!({ "email_address": null, "email_verified": null, "public_metadata": null, "first_name": null, "locked": null }),
            ),
        ),
        ("user.created.float-times", "applied", USER, mira(json!({}))),
        (
            "user.created.without-updated-at",
            "pending",
            READS,
            read("user", "user_2fxMira", Value::Null, Value::Null, "updated_at is missing"),
        ),
        (
            "user.updated",
            "applied",
            USER,
            mira(json!({
                "first_name": "Miranda", "username": "miranda", "external_id": "crm-77",
                "public_metadata": { "plan": "team" }, "unsafe_metadata": { "theme": "dark" },
            })),
        ),
        (
            "user.updated.odd-metadata",
            "applied",
            "select public_metadata ->> 'nul' as nul, public_metadata ->> 'half' as half, public_metadata ->> 'big' as big, \
             length(public_metadata ->> 'huge') as huge, public_metadata ->> 'twice' as twice, public_metadata ->> 'smile' as smile, \
             length(public_metadata ->> 'deep') as deep from clerk.user_details",
            json!([{
                "nul": "a\u{fffd}b", "half": "\u{fffd}", "big": "12345678901234567890123456789", "huge": 401, "twice": "2",
                "smile": "😀", "deep": 400,
            }]),
        ),
        ("user.updated.banned", "applied", USER, mira(json!({ "banned": true }))),
        ("user.updated.locked", "applied", USER, mira(json!({ "locked": true }))),
        ("user.updated.deprovisioned", "applied", USER, mira(json!({ "deprovisioned": true }))),
        ("user.updated.names-null", "applied", USER, mira(json!({ "first_name": null, "last_name": null }))),
        ("user.deleted", "applied", DELETED_USER, gone("2025-10-09T08:54:50+00:00")),
        ("user.deleted.seconds", "applied", DELETED_USER, gone("2025-10-09T08:54:50.999+00:00")),
        ("user.deleted.without-id", "pending", PASSES, json!([{ "kind": "user", "reason": "a delete without an id" }])),
        ("user.deleted.without-id", "pending", EVERYTHING, json!([])),
        (
            "user.deleted.without-time",
            "pending",
            READS,
            read("user", "user_2fxMira", Value::Null, Value::Null, "the event's time is missing"),
        ),
        ("organization.created", "applied", ORGANIZATION, harbor(json!({}))),
        ("organization.created.slug-null", "applied", ORGANIZATION, harbor(json!({ "slug": null }))),
        (
            "organization.created.slug-absent",
            "applied",
            ORGANIZATION,
            harbor(json!({ "slug": null, "seats": 0, "public_metadata": null })),
        ),
        (
            "organization.updated",
            "applied",
            ORGANIZATION,
            harbor(json!({ "name": "Harbor Roasters", "slug": "harbor-roasters" })),
        ),
        (
            "organization.deleted",
            "applied",
            DELETED_ORGANIZATION,
            json!([{ "id": "org_2fxHarbor", "name": null, "deleted_at": "2025-10-09T08:54:55+00:00" }]),
        ),
        ("organizationMembership.created", "applied", MEMBERSHIP, member("org:member", &permissions)),
        ("organizationMembership.created.without-permissions", "applied", MEMBERSHIP, member("basic_member", &[])),
        ("organizationMembership.created.without-role", "pending", MEMBERSHIP, json!([])),
        (
            "organizationMembership.created.without-role",
            "pending",
            READS,
            read(
                "membership",
                membership,
                json!("org_2fxHarbor"),
                json!("user_2fxMira"),
                "role, user or organization is missing",
            ),
        ),
        (
            "organizationMembership.created.without-user",
            "pending",
            READS,
            read(
                "membership",
                membership,
                json!("org_2fxHarbor"),
                Value::Null,
                "role, user or organization is missing",
            ),
        ),
        ("organizationMembership.updated", "applied", MEMBERSHIP, member("org:admin", &permissions)),
        ("organizationMembership.deleted", "applied", MEMBERSHIP, json!([])),
        ("organizationMembership.deleted", "applied", TOMBSTONES, json!([{ "kind": "membership", "id": membership }])),
        (
            "organizationMembership.deleted.bare",
            "applied",
            TOMBSTONES,
            json!([{ "kind": "membership", "id": membership }]),
        ),
        (
            "role.updated",
            "pending",
            PASSES,
            json!([{ "kind": "membership", "reason": "a role or permission changed" }]),
        ),
        (
            "permission.deleted",
            "pending",
            PASSES,
            json!([{ "kind": "membership", "reason": "a role or permission changed" }]),
        ),
        ("session.created", "ignored", EVERYTHING, json!([])),
        ("email.created", "ignored", EVERYTHING, json!([])),
        ("user.frobnicated.unknown-type", "ignored", EVERYTHING, json!([])),
    ]
}

#[tokio::test]
async fn each_file_does_to_an_empty_mirror_what_the_table_says() {
    let world = World::new().await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clerk");
    let mut used = BTreeSet::new();
    for (file, outcome, sql, expected) in table() {
        world
            .database
            .execute("truncate clerk.users, clerk.user_details, clerk.organizations, clerk.organization_memberships, clerk_sync.versions, \
                 clerk_sync.generations, clerk_sync.receipts, clerk_sync.pending_reads, clerk_sync.pending_passes")
            .await;
        let body = std::fs::read(folder.join(format!("{file}.json"))).expect(file);
        let attempt = world.attempt("msg_of_this_file", &body).await;
        assert_eq!((attempt.status, attempt.outcome.as_deref()), (204, Some(outcome)), "{file}");
        assert_eq!(Value::Array(world.database.rows(sql).await), expected, "{file}");
        used.insert(format!("{file}.json"));
    }
    let there: BTreeSet<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(used, there, "each file is in the table");
    assert_eq!(world.database.count("clerk_sync.dead_letters").await, 0);
}

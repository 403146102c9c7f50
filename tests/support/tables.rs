//! What the mirror's tables hold, in the form of the oracle.

use super::oracle::{Key, Mirror, Version};
use super::rows;
use serde_json::{Value, json};
use sqlx::PgConnection;
use std::collections::BTreeMap;

/// Faster than `truncate` where there are few rows.
pub const EMPTY: &str = "delete from clerk.organization_memberships; delete from clerk.organizations; delete from clerk.users; \
     delete from clerk_sync.versions; delete from clerk_sync.generations; delete from clerk_sync.pending_reads; \
     delete from clerk_sync.pending_passes; delete from clerk_sync.pass_watermarks; delete from clerk_sync.deleted_parents";

/// What the tables hold: versions with their rows, generations, and what waits for a read.
pub async fn held(owner: &mut PgConnection) -> BTreeMap<(String, String), Value> {
    let sql = "select v.kind, v.id, to_jsonb(v) - 'kind' - 'id' as version,
                case when v.state = 'deleted' then null
                     when v.kind = 'user' then (select jsonb_build_object('name', u.first_name, 'banned', d.banned)
                                                  from clerk.users u join clerk.user_details d using (id)
                                                 where u.id = v.id and u.deleted_at is null)
                     when v.kind = 'organization' then (select jsonb_build_object('name', o.name) from clerk.organizations o
                                                         where o.id = v.id and o.deleted_at is null)
                     else (select jsonb_build_object('role', m.role) from clerk.organization_memberships m where m.id = v.id)
                end as row
           from clerk_sync.versions v
          union all
         select 'stray membership', m.id, null, null from clerk.organization_memberships m
          where not exists (select from clerk_sync.versions v where v.id = m.id and v.state = 'live')
          union all
         select 'generation', g.organization_id || ' ' || g.user_id,
                jsonb_build_object('created_at', g.created_at, 'membership_id', g.membership_id, 'rival_id', g.rival_id, 'rival_since', g.rival_since),
                null
           from clerk_sync.generations g
          union all
         select 'pending ' || p.kind, p.id,
                jsonb_build_object('settles_after', p.settles_after, 'reported_deleted', p.reported_deleted, 'said', p.said, 'said_since', p.said_since),
                null
           from clerk_sync.pending_reads p";
    let rows = rows(owner, sql).await;
    let entry = |row: Value| {
        let key = (row["kind"].as_str().unwrap().to_owned(), row["id"].as_str().unwrap().to_owned());
        (key, json!({ "version": row["version"], "row": row["row"] }))
    };
    rows.into_iter().map(entry).collect()
}

/// What they should hold.
pub fn expected(oracle: &Mirror) -> BTreeMap<(String, String), Value> {
    let row = |key: &Key| {
        let Some(row) = oracle.rows.get(key) else { return Value::Null };
        match key.0.as_str() {
            "user" => json!({ "name": row["first_name"], "banned": row["banned"] }),
            "organization" => json!({ "name": row["name"] }),
            _ => json!({ "role": row["role"] }),
        }
    };
    let version = |version: &Version| {
        let (event_updated_at, event_observed_at, event_content) =
            version.event.map_or((None, None, None), |(u, o, c)| (Some(u), Some(o), Some(c)));
        json!({
            "state": version.state,
            "updated_at": version.updated_at,
            "observed_at": version.observed_at,
            "content": version.content,
            "denial": version.denial,
            "floor": version.floor,
            "first_observed_at": version.first_observed_at,
            "event_updated_at": event_updated_at,
            "event_observed_at": event_observed_at,
            "event_content": event_content,
            "ahead": version.ahead,
            "by_event": version.by_event,
            "in_doubt": version.in_doubt,
            "inferred": version.inferred,
        })
    };
    let versions =
        oracle.versions.iter().map(|(key, held)| (key.clone(), json!({ "version": version(held), "row": row(key) })));
    let generations = oracle.generations.iter().map(|((organization, user), known)| {
        let (rival_id, rival_since) = known.rival.clone().unzip();
        let version = json!({ "created_at": known.created_at, "membership_id": known.membership_id, "rival_id": rival_id,
                              "rival_since": rival_since });
        (("generation".to_owned(), format!("{organization} {user}")), json!({ "version": version, "row": null }))
    });
    let pending = oracle.pending.iter().map(|((kind, id), pending)| {
        let (said, said_since) = pending.said.clone().unzip();
        let version = json!({ "settles_after": pending.settles_after, "reported_deleted": pending.reported_deleted, "said": said,
                              "said_since": said_since });
        ((format!("pending {kind}"), id.clone()), json!({ "version": version, "row": null }))
    });
    versions.chain(generations).chain(pending).collect()
}

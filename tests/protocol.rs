//! What the program and the database say to each other: two releases meet in one database, so it cannot change freely.
//!
//! `tests/fixtures/protocol/v1.json` holds calls as the first release makes them, and what the database answered. It is written by
//! `CLERK_SYNC_WRITE_PROTOCOL=1 cargo test --test main protocol::`, which is allowed until a release is tagged (`./x check` refuses
//! it afterwards): a later release adds a file of its own and keeps these calls working.

use crate::support::{self, Project, World};
use clerk_sync::model::{Kind, Observation};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Wraps the calls that carry a batch in functions that write down what they are given, as text, which is the same in every database.
const RECORDER: &str = "
create table public.calls (n integer generated always as identity, call text, arguments jsonb, batch text, answers jsonb);
alter function clerk_sync.apply(clerk_sync.batch_v1) rename to recorded_apply;
create function clerk_sync.apply(batch clerk_sync.batch_v1) returns table (n integer, outcome text, reason text)
  language plpgsql security definer as $$
declare answers jsonb;
begin
  answers := (select jsonb_agg(jsonb_build_array(a.n, a.outcome, a.reason) order by a.n) from clerk_sync.recorded_apply(batch) a);
  insert into public.calls (call, batch, answers) values ('apply', batch::text, answers);
  return query select (a ->> 0)::integer, a ->> 1, a ->> 2 from jsonb_array_elements(answers) a;
end $$;
grant execute on function clerk_sync.apply(clerk_sync.batch_v1) to clerk_sync_worker;";

/// What the mirror and its bookkeeping hold, without the times of this run.
const HELD: &str = "
select jsonb_build_object(
  'users', (select jsonb_agg(to_jsonb(u) || to_jsonb(d) order by u.id) from clerk.users u left join clerk.user_details d using (id)),
  'organizations', (select jsonb_agg(to_jsonb(o) order by o.id) from clerk.organizations o),
  'memberships', (select jsonb_agg(to_jsonb(m) order by m.id) from clerk.organization_memberships m),
  'versions', (select jsonb_agg(to_jsonb(v) order by v.kind, v.id) from clerk_sync.versions v),
  'pending_reads', (select jsonb_agg(jsonb_build_array(p.kind, p.id, p.reason) order by p.kind, p.id) from clerk_sync.pending_reads p),
  'dead_letters', (select count(*) from clerk_sync.dead_letters)) as held";

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/protocol/v1.json")
}

/// A life with something of everything that a batch can carry.
async fn live(world: &World) {
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    let ben = world.clerk.lock().create_user("Ben", "Bitdiddle");
    world.deliver().await;
    let acme = world.clerk.lock().create_organization("Acme Widgets", &ada);
    let membership = world.clerk.lock().add_member(&acme, &ben, "org:member");
    world.deliver().await;
    world.clerk.lock().now += 10_000;
    world.clerk.lock().set_role(&membership, "org:admin");
    world.clerk.lock().update_user(&ben, |user| user.banned = true);
    world.deliver().await;
    // A membership before its user and organization: stubs.
    let eve = world.clerk.lock().create_user("Eve", "Ecila");
    world.clerk.lock().outbox.clear();
    world.clerk.lock().now += 1_000;
    world.clerk.lock().add_member(&acme, &eve, "org:member");
    world.deliver().await;
    world.clerk.lock().now += 10_000;
    world.clerk.lock().remove_member(&membership);
    world.clerk.lock().delete_user(&ada);
    world.deliver().await;
}

async fn record() -> Value {
    let world = World::new().await;
    world.database.execute(RECORDER).await;
    live(&world).await;
    let calls = world.database.rows("select call, batch, answers from public.calls order by n").await;
    let held = world.database.rows(HELD).await;
    json!({ "calls": calls, "held": held[0]["held"] })
}

/// The calls of a release that the database has moved on from.
#[tokio::test]
async fn the_previous_release_still_writes() {
    if std::env::var_os("CLERK_SYNC_WRITE_PROTOCOL").is_some() {
        let recorded = serde_json::to_string_pretty(&record().await).unwrap();
        std::fs::write(fixture(), recorded + "\n").unwrap();
    }
    let recorded: Value = serde_json::from_str(&std::fs::read_to_string(fixture()).unwrap()).unwrap();
    let database = support::database().await;
    let mut worker = database.worker().await;
    for call in recorded["calls"].as_array().unwrap() {
        let sql = "select coalesce(jsonb_agg(jsonb_build_array(n, outcome, reason) order by n), 'null')::text \
             from clerk_sync.apply($1::clerk_sync.batch_v1)";
        let answers: String =
            sqlx::query_scalar(sql).bind(call["batch"].as_str().unwrap()).fetch_one(&mut worker).await.unwrap();
        assert_eq!(serde_json::from_str::<Value>(&answers).unwrap(), call["answers"], "{call:#}");
    }
    assert!(recorded["calls"].as_array().unwrap().len() > 5);
    let held = database.rows(HELD).await;
    assert_eq!(held[0]["held"], recorded["held"]);
}

/// Postgres checks number and type of what is encoded; that two texts did not change places it cannot see.
#[tokio::test]
async fn row_types_match_the_encoders() {
    let database = support::database().await;
    for kind in Kind::ALL {
        let Observation::Live { entity, .. } = support::an_object(kind).observation else { panic!("an object") };
        // Of a struct, JSON has the fields in their order.
        let json = serde_json::to_string(&entity).unwrap();
        let columns = columns(&database, &format!("{kind}_row_v1")).await;
        let (last, fields) = columns.split_last().unwrap();
        assert_eq!(last, "updated_at", "the version's, behind the fields");
        let places = fields.iter().map(|field| json.find(&format!("\"{field}\":")));
        let places: Vec<usize> = places.map(|place| place.unwrap_or_else(|| panic!("{fields:?} of {json}"))).collect();
        assert!(places.is_sorted(), "{fields:?} of {json}");
        let of_struct = serde_json::to_value(&entity).unwrap().as_object().unwrap().len();
        assert_eq!(fields.len(), of_struct, "{fields:?} of {json}");
    }
}

async fn columns(database: &Project, of: &str) -> Vec<String> {
    let sql = format!(
        "select a.attname from pg_attribute a where a.attrelid = 'clerk_sync.{of}'::regclass and a.attnum > 0 order by a.attnum"
    );
    database.rows(&sql).await.iter().map(|row| row["attname"].as_str().unwrap().to_owned()).collect()
}

/// A type that is altered is another one: these are for ever once a release is tagged.
#[tokio::test]
async fn the_types_of_the_protocol_are_as_they_were() {
    let database = support::database().await;
    let sql = "select t.typname as type, string_agg(a.attname || ' ' || format_type(a.atttypid, null), ', ' order by a.attnum) as fields
         from pg_type t join pg_attribute a on a.attrelid = t.typrelid and a.attnum > 0
        where t.typnamespace = 'clerk_sync'::regnamespace and t.typname ~ '_v[0-9]+$' group by 1 order by 1";
    let types = database.rows(sql).await;
    let lines: Vec<String> = types
        .iter()
        .map(|row| format!("{}: {}", row["type"].as_str().unwrap(), row["fields"].as_str().unwrap()))
        .collect();
    insta::assert_snapshot!("protocol_types", lines.join("\n"));
}

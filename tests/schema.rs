//! Our schemas held against a fresh installation. Each way to break or to open them is found by `doctor` with exit code 1, ended by
//! what it prints (SQL, or `clerk-sync migrate --repair`), and then nothing is found.

use crate::support::{Project, SECRET, database, source, supabase, unique};
use clerk_sync::store::manifest::{Difference, How, manifest};
use serde_json::Value;
use std::path::Path;
use std::process::Output;

fn run(database: &Project, arguments: &[&str]) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_clerk-sync"))
        .args(arguments)
        .env_remove("CLERK_SECRET_KEY")
        .env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET)
        .env("DATABASE_URL", database.url())
        .output()
        .expect("the program runs")
}

/// The exit code of doctor, with what failed: its name, what it says, the fix.
fn doctor(database: &Project) -> (i32, Vec<[String; 3]>) {
    let output = run(database, &["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let failed = report["checks"].as_array().unwrap().iter().filter(|check| check["status"] == "fail");
    let failed = failed.map(|check| ["name", "found", "fix"].map(|field| check[field].as_str().unwrap().to_owned()));
    (output.status.code().unwrap(), failed.collect())
}

/// Does what a fix says, as a person would paste it.
async fn follow(database: &Project, fix: &str) {
    let (statements, repairs) = match fix.split_once("clerk-sync migrate --repair") {
        // Either of the two does it.
        Some(("", statements)) if statements.starts_with(", or ") => (&statements[5..], false),
        Some((statements, _)) => (statements, true),
        None => (fix, false),
    };
    if !statements.trim().is_empty() {
        database.execute(statements).await;
    }
    if repairs {
        let output = run(database, &["migrate", "--repair"]);
        assert!(output.status.success(), "{output:?}");
    }
}

/// What is done to a database, and the check that must fail.
const WAYS: &[(&str, &str, &str)] = &[
    ("schema clerk dropped", "drop schema clerk cascade", "objects"),
    ("schema clerk_rls dropped", "drop schema clerk_rls cascade", "objects"),
    (
        "policies dropped",
        "drop policy members_read on clerk.users; drop policy members_read on clerk.organizations;
         drop policy members_read on clerk.organization_memberships; drop policy own_read on clerk.user_details",
        "objects",
    ),
    ("a policy of the worker dropped", "drop policy worker_reads on clerk.users", "objects"),
    (
        "a policy that opens a table",
        "create policy allow_all on clerk.user_details for select to authenticated using (true)",
        "objects",
    ),
    ("a policy altered", "alter policy own_read on clerk.user_details using (true)", "objects"),
    ("a column dropped", "alter table clerk.user_details drop column phone_number", "objects"),
    ("a required column dropped", "alter table clerk.organization_memberships drop column role cascade", "objects"),
    ("a column of another type", "alter table clerk.users alter column first_name type varchar(9)", "objects"),
    ("a column added", "alter table clerk.users add column mine text", "objects"),
    ("a function dropped", "drop function clerk_sync.request_pass(text, text)", "objects"),
    (
        "a function altered",
        "create or replace function clerk_rls.user_id() returns text language plpgsql stable security definer set search_path = ''
           as 'begin return ''user_1''; end'",
        "objects",
    ),
    ("a function with other rights", "alter function clerk_rls.organization_ids() security invoker", "objects"),
    ("a view altered", "create or replace view clerk_rls.able_users as select d.id from clerk.user_details d", "objects"),
    ("RLS forced", "alter table clerk.users force row level security", "row-level-security"),
    ("RLS off", "alter table clerk.organizations disable row level security", "row-level-security"),
    ("memberships dropped", "drop table clerk.organization_memberships cascade", "objects"),
    ("users dropped", "drop table clerk.users cascade", "objects"),
    ("organizations dropped", "drop table clerk.organizations cascade", "objects"),
    ("details dropped", "drop table clerk.user_details cascade", "objects"),
    ("a table of the bookkeeping dropped", "drop table clerk_sync.dead_letters cascade", "objects"),
    (
        "another login that writes",
        "create role ROLE login; grant usage on schema clerk to ROLE;
         grant insert, update, delete on clerk.organization_memberships to ROLE;
         create policy writes on clerk.organization_memberships to ROLE using (true)",
        "excess-rights",
    ),
    (
        "a view over details",
        "create view public.members as select * from clerk.user_details; grant select on public.members to anon",
        "policies",
    ),
    ("references and triggers", "grant references, trigger on clerk.users to authenticated", "excess-rights"),
    ("a right to a new role", "create role ROLE; grant select on clerk_sync.receipts to ROLE", "excess-rights"),
    ("a right that may be handed on", "grant select on clerk.users to service_role with grant option", "excess-rights"),
    ("a right on a column", "grant update (banned) on clerk.user_details to authenticated", "excess-rights"),
    ("a right on a sequence", "grant usage on sequence clerk_sync.passes_id_seq to authenticated", "excess-rights"),
    ("a right lost", "revoke select on clerk.users from authenticated", "missing-rights"),
    (
        "rights on new objects",
        "alter default privileges in schema clerk grant select on tables to anon",
        "excess-rights",
    ),
    ("an index dropped", "drop index clerk.organization_memberships_organization_id_idx", "objects"),
    ("a type dropped", "drop type clerk_sync.outcome cascade", "objects"),
    (
        "a constraint dropped",
        "alter table clerk.organization_memberships drop constraint organization_memberships_user_id_organization_id_key",
        "objects",
    ),
    ("a key dropped", "alter table clerk.user_details drop constraint user_details_id_fkey", "objects"),
    (
        "a trigger in clerk_sync",
        "create function public.f() returns trigger language plpgsql as 'begin return new; end';
         create trigger t after insert on clerk_sync.versions for each row execute function public.f()",
        "foreign-objects",
    ),
    ("a table among ours", "create table clerk.mine (id int primary key)", "objects"),
    ("a publication", "create publication p for table clerk_sync.receipts", "excess-rights"),
    ("a schema-only dump", "truncate clerk_sync._sqlx_migrations", "schema"),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_break_or_open_our_schemas_is_found_and_ended_by_what_is_printed() {
    for (name, plant, check) in WAYS {
        let database = database().await;
        database.execute(&plant.replace("ROLE", &unique("schema_role"))).await;
        let (code, failed) = doctor(&database);
        assert_eq!(code, 1, "{name}");
        assert!(failed.iter().any(|[failed, ..]| failed == check), "{name}: {failed:#?}");
        // In the order in which they are printed; a second round for what stood on something that was missing.
        let mut left = failed;
        for _ in 0..2 {
            for [_, _, fix] in &left {
                follow(&database, fix).await;
            }
            left = doctor(&database).1;
            if left.is_empty() {
                break;
            }
        }
        assert_eq!(left, Vec::<[String; 3]>::new(), "{name}");
        assert_eq!(doctor(&database).0, 0, "{name}");
        let output = run(&database, &["migrate"]);
        assert!(output.status.success(), "{name}: {output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_says_up_to_date_only_of_what_is() {
    for (plant, code) in [
        ("alter table clerk.user_details drop column phone_number", 1),
        ("create policy allow_all on clerk.user_details for select to authenticated using (true)", 0),
        ("drop schema clerk cascade", 1),
    ] {
        let database = database().await;
        database.execute(plant).await;
        for arguments in [&["migrate"][..], &["migrate", "--repair"]] {
            let output = run(&database, arguments);
            assert_eq!(output.status.code(), Some(code), "{plant}: {output:?}");
            assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{plant}: {output:?}");
        }
    }
}

/// What is lost is asked of Clerk again: nothing says that it is there, and what was deleted stays deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_lost_is_filled_again_and_never_said_to_be_there() {
    let world = crate::reconciling::ReconcileWorld::filled(6, 2, 5, 1).await;
    let source = source(&world.clerk.lock());
    let deleted = "insert into clerk_sync.versions (kind, id, state, observed_at) values ('membership', 'orgmem_gone', 'deleted', 1)";
    world.database.execute(deleted).await;
    let dropped = "drop table clerk.organization_memberships cascade; drop table clerk.users cascade";
    world.database.execute(dropped).await;
    for difference in world.database.database().differences().await.unwrap() {
        if difference.how == How::Missing && !difference.is_repairable {
            world.database.execute(&difference.fix).await;
        }
    }
    let output = run(&world.database, &["migrate", "--repair"]);
    assert!(output.status.success(), "{output:?}");
    let states = "select kind, state, count(*) from clerk_sync.versions where kind <> 'organization' group by 1, 2 order by 1, 2";
    let states = world.database.rows(states).await;
    assert_eq!(states, [serde_json::json!({ "kind": "membership", "state": "deleted", "count": 1 })]);
    let asked = world.database.rows("select kind from clerk_sync.pending_passes order by kind").await;
    assert_eq!(asked, ["membership", "user"].map(|kind| serde_json::json!({ "kind": kind })));
    let now = world.clerk.lock().now;
    world.database.set_clock(now).await;
    world.later();
    world.run_approved().await;
    world.database.equals(&source).await;
}

/// Where a new release changes the schemas: `INSTA_UPDATE=always cargo test --test main schema::the_manifest`, and read the difference.
#[tokio::test]
async fn the_manifest_is_what_a_fresh_installation_has() {
    let name = unique("fresh");
    supabase().create(&name).await.unwrap();
    let fresh = Project::named(name);
    clerk_sync::store::migrate(&fresh.database(), clerk_sync::store::Migrating::default()).await.unwrap();
    let objects = fresh.database().objects().await.unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/manifest.txt");
    if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
        std::fs::write(&path, manifest(&objects)).unwrap();
        return;
    }
    let differences = fresh.database().differences().await.unwrap();
    let says: Vec<String> = differences.iter().map(Difference::says).collect();
    assert!(says.is_empty(), "{says:#?}");
    // Indexes and constraints that are new are no differences of a user's database.
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), objects.len());
}

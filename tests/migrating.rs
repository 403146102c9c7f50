//! The schema as a Supabase customer gets it: migrated by a role that is no superuser, closed to everybody it is not meant for.

use crate::support::{Project, database, rows, supabase, unique};
use clerk_sync::model::InstanceId;
use clerk_sync::store::{self, Database, Migrating};
use serde_json::json;
use testkit::postgres::{Cluster, Durability};

/// A Supabase project without our schemas.
async fn empty_project() -> Project {
    let name = unique("project");
    supabase().create(&name).await.unwrap();
    Project::named(name)
}

#[tokio::test]
async fn migrating_twice_changes_nothing() {
    let project = empty_project().await;
    for _ in 0..2 {
        store::migrate(&project.database(), Migrating::default()).await.unwrap();
    }
    assert_eq!(project.count("clerk.users").await, 0);
    let versions = project.rows("select version from clerk_sync._sqlx_migrations where not success").await;
    assert!(versions.is_empty());
}

#[tokio::test]
async fn a_foreign_clerk_schema_is_refused_with_the_way_out() {
    let project = empty_project().await;
    project.execute("create schema clerk; create table clerk.users (id text)").await;
    let error =
        store::error_chain(store::migrate(&project.database(), Migrating::default()).await.unwrap_err().chain());
    assert!(error.contains("alter schema clerk rename to clerk_fdw"), "{error}");
    project.execute("alter schema clerk rename to clerk_fdw").await;
    store::migrate(&project.database(), Migrating::default()).await.unwrap();
}

#[tokio::test]
async fn a_database_that_is_not_supabase_is_named_as_such() {
    // Roles belong to the cluster, so this needs one in which nobody made them.
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(Durability::Fast).unwrap()).await.unwrap();
    let database = Database::parse(&cluster.url("supabase_admin", "postgres")).unwrap();
    let error = format!("{:#}", store::migrate(&database, Migrating::default()).await.unwrap_err());
    assert!(error.contains("not a Supabase database"), "{error}");
}

#[tokio::test]
async fn every_object_has_an_explicit_acl_and_every_table_rls() {
    let database = database().await;
    let open = "select c.oid::regclass::text as object from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where n.nspname in ('clerk', 'clerk_rls', 'clerk_sync') and c.relkind in ('r', 'v', 'm', 'S', 'p') \
           and (c.relacl is null or (c.relkind in ('r', 'p') and not c.relrowsecurity) or c.relforcerowsecurity) \
         union all select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace \
         where n.nspname in ('clerk', 'clerk_rls', 'clerk_sync') and (p.proacl is null or p.proconfig is null) \
         union all select t.typname from pg_type t join pg_namespace n on n.oid = t.typnamespace left join pg_class c on c.oid = t.typrelid \
         where n.nspname in ('clerk', 'clerk_rls', 'clerk_sync') and t.typtype = 'c' and c.relkind = 'c' and t.typacl is null \
         union all select n.nspname from pg_namespace n where n.nspname in ('clerk', 'clerk_rls', 'clerk_sync') and n.nspacl is null";
    assert_eq!(database.rows(open).await, Vec::<serde_json::Value>::new());
}

#[tokio::test]
async fn each_role_may_do_exactly_what_is_written_here() {
    let database = database().await;
    let tables = "select r.rolname || ': ' || string_agg(p.privilege || ' ' || c.oid::regclass, ', ' order by c.oid::regclass::text, p.privilege) as may \
         from (values ('anon'), ('authenticated'), ('service_role'), ('clerk_sync_worker')) r (rolname) \
         cross join (values ('select'), ('insert'), ('update'), ('delete'), ('truncate'), ('references'), ('trigger')) p (privilege) \
         cross join pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where n.nspname in ('clerk', 'clerk_rls', 'clerk_sync') and c.relkind in ('r', 'v') and has_table_privilege(r.rolname, c.oid, p.privilege) \
           and n.nspname || '.' || c.relname <> all (array['clerk_sync.receipts', 'clerk_sync.dead_letters', 'clerk_sync.pass_watermarks', \
               'clerk_sync.generations', 'clerk_sync.write_checks', 'clerk_sync.failed_start', 'clerk_sync.pending_reads', 'clerk_sync.pending_passes', 'clerk_sync.pending_listings', 'clerk_sync._sqlx_migrations']) \
         group by r.rolname order by r.rolname";
    let read = "select clerk.organization_memberships, select clerk.organizations, select clerk.user_details, select clerk.users";
    let expected = [
        json!({ "may": format!("authenticated: {read}, select clerk_rls.able_users") }),
        json!({ "may": format!(
            "clerk_sync_worker: {read}, select clerk_sync.absentees, select clerk_sync.deleted_parents, select clerk_sync.denials, select clerk_sync.ended_rows, select clerk_sync.findings, \
             select clerk_sync.instance, select clerk_sync.lease, select clerk_sync.listings, select clerk_sync.live_memberships, select clerk_sync.passes, select clerk_sync.replayed, select clerk_sync.versions"
        ) }),
        json!({ "may": format!("service_role: {read}") }),
    ];
    assert_eq!(database.rows(tables).await, expected);
    let functions = "select r.rolname as role, p.oid::regprocedure::text as function \
         from (values ('anon'), ('authenticated'), ('service_role'), ('clerk_sync_worker')) r (rolname) cross join pg_proc p \
         join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('clerk', 'clerk_rls', 'clerk_sync') and has_function_privilege(r.rolname, p.oid, 'execute') \
         order by 1, 2";
    let expected = [
        ("authenticated", "clerk_rls.active_organization_id()"),
        ("authenticated", "clerk_rls.active_organization_role()"),
        ("authenticated", "clerk_rls.denied_ids()"),
        ("authenticated", "clerk_rls.organization_ids()"),
        ("authenticated", "clerk_rls.organization_ids_by_permission(text)"),
        ("authenticated", "clerk_rls.organization_ids_by_role(text)"),
        ("authenticated", "clerk_rls.user_id()"),
        ("clerk_sync_worker", "clerk_sync.apply(clerk_sync.batch_v1)"),
        ("clerk_sync_worker", "clerk_sync.approve_pass(bigint,bigint)"),
        ("clerk_sync_worker", "clerk_sync.braked_pass(text)"),
        ("clerk_sync_worker", "clerk_sync.check_writes(boolean)"),
        ("clerk_sync_worker", "clerk_sync.claim_listings(integer)"),
        ("clerk_sync_worker", "clerk_sync.clock()"),
        ("clerk_sync_worker", "clerk_sync.deny_unsettled(text,text,bigint,text)"),
        ("clerk_sync_worker", "clerk_sync.drop_dead_letter(text,text)"),
        ("clerk_sync_worker", "clerk_sync.end_lease(bigint)"),
        ("clerk_sync_worker", "clerk_sync.end_pass(bigint,bigint,text,text,jsonb,jsonb)"),
        ("clerk_sync_worker", "clerk_sync.forget_deleted_parent(text)"),
        ("clerk_sync_worker", "clerk_sync.keep_lease(bigint,integer)"),
        ("clerk_sync_worker", "clerk_sync.mark_listed(text)"),
        ("clerk_sync_worker", "clerk_sync.mark_reads_attempted(text,text[],text[])"),
        ("clerk_sync_worker", "clerk_sync.open_pass(bigint,text,text,bigint,integer)"),
        ("clerk_sync_worker", "clerk_sync.pin_instance(text,text)"),
        ("clerk_sync_worker", "clerk_sync.prune(text,bigint,integer)"),
        ("clerk_sync_worker", "clerk_sync.purge(text,text[],bigint)"),
        ("clerk_sync_worker", "clerk_sync.purge_references(bigint)"),
        ("clerk_sync_worker", "clerk_sync.record_dead_letter_attempt(text,text,integer,text)"),
        ("clerk_sync_worker", "clerk_sync.record_environment(text,text)"),
        ("clerk_sync_worker", "clerk_sync.record_failed_start(text)"),
        ("clerk_sync_worker", "clerk_sync.record_page(jsonb,clerk_sync.batch_v1)"),
        ("clerk_sync_worker", "clerk_sync.remove_memberships_of_deleted(text[])"),
        ("clerk_sync_worker", "clerk_sync.request_listings(text[],text)"),
        ("clerk_sync_worker", "clerk_sync.request_pass(text,text)"),
        ("clerk_sync_worker", "clerk_sync.retry_dead_letter(text,text,integer,boolean,clerk_sync.batch_v1)"),
        ("clerk_sync_worker", "clerk_sync.retry_refused()"),
        ("clerk_sync_worker", "clerk_sync.take_lease(text,integer)"),
    ];
    let expected = expected.map(|(role, function)| json!({ "role": role, "function": function }));
    assert_eq!(database.rows(functions).await, expected);
}

/// Policies of users' applications call these: a signature never changes and is never removed. (`denied_ids` is for a policy of ours.)
#[tokio::test]
async fn the_functions_for_policies_are_for_ever() {
    let signatures = "select p.proname || '(' || pg_get_function_arguments(p.oid) || ') returns ' || pg_get_function_result(p.oid) as is \
         from pg_proc p where p.pronamespace = 'clerk_rls'::regnamespace and p.proname <> 'denied_ids' order by 1";
    let expected = [
        "active_organization_id() returns text",
        "active_organization_role() returns text",
        "organization_ids() returns SETOF text",
        "organization_ids_by_permission(permission text) returns SETOF text",
        "organization_ids_by_role(role text) returns SETOF text",
        "user_id() returns text",
    ];
    assert_eq!(database().await.rows(signatures).await, expected.map(|is| json!({ "is": is })));
}

/// `create or replace function` takes what it does not state from the defaults: a setting that was lost shows here.
#[tokio::test]
async fn each_function_has_the_owner_settings_and_rights_of_the_manifest() {
    let manifest = r#"select format(E'%s returns %s\n    %s %s security %s%s%s parallel %s, owner %s\n    %s\n    %s',
              p.oid::regprocedure, pg_get_function_result(p.oid), l.lanname,
              case p.provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end,
              case when p.prosecdef then 'definer' else 'invoker' end, case when p.proisstrict then ' strict' end,
              case when p.proleakproof then ' leakproof' end, p.proparallel, p.proowner::regrole,
              coalesce((select string_agg(s, ', ') from unnest(p.proconfig) s), 'no settings'),
              coalesce((select string_agg(a::text, ', ') from unnest(p.proacl) a), 'everybody'))
              as is
         from pg_proc p join pg_language l on l.oid = p.prolang
        where p.pronamespace in ('clerk'::regnamespace, 'clerk_rls'::regnamespace, 'clerk_sync'::regnamespace)
        order by p.oid::regprocedure::text collate "C""#;
    let functions = database().await.rows(manifest).await;
    let lines: Vec<&str> = functions.iter().map(|row| row["is"].as_str().unwrap()).collect();
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("functions", lines.join("\n")));
}

#[tokio::test]
async fn the_worker_may_write_no_table_and_no_sequence() {
    let database = database().await;
    let writable = "select c.oid::regclass::text as relation, p.privilege from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         cross join (values ('insert'), ('update'), ('delete'), ('truncate'), ('references'), ('trigger')) p (privilege) \
         where n.nspname in ('clerk', 'clerk_rls', 'clerk_sync') \
           and case c.relkind when 'S' then has_sequence_privilege('clerk_sync_worker', c.oid, 'usage, update') \
                    else c.relkind in ('r', 'v', 'p', 'm') and (has_table_privilege('clerk_sync_worker', c.oid, p.privilege) \
                         or p.privilege in ('insert', 'update', 'references') \
                            and has_any_column_privilege('clerk_sync_worker', c.oid, p.privilege)) end";
    assert_eq!(database.rows(writable).await, Vec::<serde_json::Value>::new());
    let create = "select n.nspname from pg_namespace n where n.nspname in ('clerk', 'clerk_rls', 'clerk_sync') \
         and has_schema_privilege('clerk_sync_worker', n.oid, 'create')";
    assert_eq!(database.rows(create).await, Vec::<serde_json::Value>::new());
}

/// Whoever holds the worker's rights removes nothing but what is old.
#[tokio::test]
async fn the_workers_functions_that_remove_have_a_least_age() {
    let database = database().await;
    let mut worker = database.worker().await;
    for sql in [
        "select clerk_sync.prune('receipts', 3599, 1)",
        "select clerk_sync.prune('receipts', null, 1)",
        "select clerk_sync.purge('user', array['user_1'], 86399)",
        "select clerk_sync.purge('user', array['user_1'], null)",
    ] {
        let error = sqlx::raw_sql(sql).execute(&mut worker).await.unwrap_err();
        let code = error.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned));
        assert_eq!(code.as_deref(), Some("22023"), "{sql}: {error}");
    }
    for what in ["versions", "generations", "pass_watermarks", "lease"] {
        let sql = sqlx::AssertSqlSafe(format!("select clerk_sync.prune('{what}', 86400, 1)"));
        assert!(sqlx::raw_sql(sql).execute(&mut worker).await.is_err(), "{what}");
    }
}

#[tokio::test]
async fn the_worker_reads_the_mirror_and_cannot_write_it() {
    let database = database().await;
    let mut worker = database.worker().await;
    assert!(rows(&mut worker, "select * from clerk.users").await.is_empty());
    for sql in [
        "insert into clerk.users (id) values ('user_1')",
        "update clerk.organization_memberships set role = 'org:admin' where true",
        "delete from clerk.organizations where true",
        "insert into clerk_sync.versions (kind, id, state, observed_at) values ('user', 'user_1', 'live', 0)",
        "delete from clerk_sync.receipts where true",
        "select clerk_rls.user_id()",
    ] {
        let error = sqlx::raw_sql(sql).execute(&mut worker).await.unwrap_err();
        let code = error.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned));
        assert_eq!(code.as_deref(), Some("42501"), "{sql}: {error}");
    }
}

#[tokio::test]
async fn deleting_a_user_leaves_the_applications_rows() {
    let world = crate::support::World::new().await;
    let ada = world.clerk.lock().create_user("Ada", "Lovelace");
    world.deliver().await;
    world
        .database
        .execute("create table public.documents (id int primary key, owner text references clerk.users)")
        .await;
    world.database.execute(&format!("insert into public.documents values (1, '{ada}')")).await;
    world.clerk.lock().delete_user(&ada);
    world.deliver().await;
    assert_eq!(world.database.count("public.documents").await, 1);
}

#[tokio::test]
async fn the_pin_changes_only_while_the_mirror_is_empty_or_by_repin() {
    let database = database().await;
    let pinned = async |wanted: Option<&str>| {
        let wanted = wanted.map(InstanceId::from);
        database
            .database()
            .connect()
            .await
            .unwrap()
            .pin_instance(wanted.as_ref(), "environment")
            .await
            .unwrap()
            .map(|id| id.0)
    };
    assert_eq!(pinned(None).await, None);
    assert_eq!(pinned(Some("ins_1")).await.as_deref(), Some("ins_1"));
    assert_eq!(pinned(Some("ins_2")).await.as_deref(), Some("ins_2"), "nothing is mirrored yet");
    database
        .execute("insert into clerk_sync.versions (kind, id, state, observed_at) values ('user', 'user_1', 'live', 0)")
        .await;
    assert_eq!(pinned(Some("ins_3")).await.as_deref(), Some("ins_2"));
    store::repin(&database.database(), Some(&InstanceId::from("ins_3"))).await.unwrap();
    assert_eq!(pinned(None).await.as_deref(), Some("ins_3"));
    store::repin(&database.database(), None).await.unwrap();
    assert_eq!(pinned(None).await, None, "the next webhook decides");
}

#[tokio::test]
async fn a_server_before_the_migrations_says_what_to_do() {
    let project = empty_project().await;
    let error = project.database().connect().await.err().expect("an error").to_string();
    assert!(error.contains("clerk-sync migrate"), "{error}");
}

/// With an empty search path a caller's temporary types still come first: a domain of that name would run the caller's code.
#[tokio::test]
async fn temporary_types_of_a_caller_run_nothing_as_the_owner() {
    let world = crate::support::World::new().await;
    world.clerk.lock().create_user("Ada", "Lovelace");
    world.deliver().await;
    world
        .database
        .execute(
            "create table public.documents (id int primary key, owner text references clerk.users); \
             insert into clerk_sync.dead_letters (message_id, body_hash, reason, headers, body) values ('msg_kept', 'hash', 'x', '{}', ''); \
             insert into clerk.users (id, deleted_at) values ('user_purged', now() - interval '9 days'); \
             insert into clerk_sync.versions (kind, id, state, observed_at) values ('user', 'user_purged', 'deleted', 0); \
             insert into public.documents values (1, 'user_purged')",
        )
        .await;
    for (role, call) in [
        ("authenticated", "select count(*) from clerk.users"),
        (
            "clerk_sync_worker",
            "select count(*) from clerk_sync.apply(pg_catalog.jsonb_populate_record(null::clerk_sync.batch_v1, '{\"source\": \"webhook\", \"messages\": [], \"reads\": \
            [{\"n\": 0, \"kind\": \"user\", \"id\": \"user_1\", \"reason\": \"x\"}], \"passes\": [{\"n\": 1, \"kind\": \"user\", \"reason\": \"x\"}]}'))",
        ),
        ("clerk_sync_worker", "select clerk_sync.pin_instance('ins_1', 'environment')"),
        (
            "clerk_sync_worker",
            "select clerk_sync.retry_dead_letter('msg_kept', 'hash', 0, true, pg_catalog.jsonb_populate_record(null::clerk_sync.batch_v1, \
             '{\"source\": \"webhook\", \"messages\": [{\"n\": 0, \"message_id\": \"msg_kept\", \"body_hash\": \"hash\", \"event_type\": \"x\", \
             \"field_errors\": []}], \"passes\": [{\"n\": 0, \"kind\": \"user\", \"reason\": \"x\"}]}'))",
        ),
        (
            "clerk_sync_worker",
            "select clerk_sync.record_dead_letter_attempt('a', 'b', 0, 'x'), clerk_sync.drop_dead_letter('a', 'b'), clerk_sync.prune('receipts', 3600, 1), \
             clerk_sync.prune('findings', 3600, 1), clerk_sync.prune('passes', 3600, 1), clerk_sync.prune('dead_letters', 3600, 1)",
        ),
        (
            "clerk_sync_worker",
            "select clerk_sync.purge('user', array['user_purged'], 86400), clerk_sync.purge_references(86400)",
        ),
    ] {
        let mut caller = world.database.owner().await;
        let plant = ["text", "jsonb", "timestamptz", "bytea"]
            .map(|name| format!("create domain pg_temp.{name} as pg_catalog.{name} check (pg_temp.planted());"));
        let sql = format!(
            "set role {role}; \
             create function pg_temp.planted() returns boolean language plpgsql as $$ begin raise exception 'ran as %', current_user; end $$; \
             {} select pg_catalog.set_config('request.jwt.claims', '{{\"sub\": \"user_1\"}}', false); {call}",
            plant.concat()
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&mut caller)
            .await
            .unwrap_or_else(|error| panic!("{role}: {error}"));
    }
}

#[tokio::test]
async fn the_writer_refuses_a_snapshot_older_than_its_lock() {
    let database = database().await;
    let mut worker = database.worker().await;
    let sql = "begin isolation level repeatable read; select * from clerk_sync.apply(row('webhook', null, false, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null)::clerk_sync.batch_v1)";
    let error = sqlx::raw_sql(sql).execute(&mut worker).await.unwrap_err().to_string();
    assert!(error.contains("read committed"), "{error}");
    database
        .execute(&format!("alter database \"{}\" set default_transaction_isolation = 'repeatable read'", database.name))
        .await;
    let mut session = database.database().connect().await.unwrap();
    let nothing = clerk_sync::model::Batch::fold(clerk_sync::model::Source::Webhook, true, std::iter::empty());
    assert!(session.apply(&nothing, 0).await.is_ok(), "a session of ours chooses its own");
}

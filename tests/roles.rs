//! Who may do what after a restore, a move to another project or an upgrade: `migrate` puts right what it may, and says what an
//! administrator must grant where it may not. Roles belong to the whole server, so each test has one of its own.

use crate::support::SECRET;
use clerk_sync::store::{self, Database, Error, Migrating};
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use testkit::postgres::SUPERUSER;
use testkit::supabase::Supabase;
use tokio::process::Command;

const NAME: &str = "project";

/// A server with one project.
async fn project() -> Supabase {
    let supabase = tokio::task::spawn_blocking(|| Supabase::start().expect("a private Postgres")).await.unwrap();
    supabase.create(NAME).await.unwrap();
    supabase
}

async fn superuser(supabase: &Supabase) -> PgConnection {
    supabase.connect(SUPERUSER, NAME).await.unwrap()
}

async fn execute(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn database(supabase: &Supabase, role: &str) -> Database {
    Database::parse(&supabase.cluster().url(role, NAME)).unwrap()
}

/// Whether it ended well, and all that was said.
async fn run(arguments: &[&str], variables: &[(&str, String)]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_clerk-sync"))
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

async fn migrate(supabase: &Supabase) -> (bool, String) {
    run(&["migrate"], &[("DATABASE_URL", supabase.url(NAME))]).await
}

/// As a dump with `--no-owner --no-privileges` leaves them: what was granted is gone, and functions are everybody's.
const WITHOUT_PRIVILEGES: &str = "
do $$ declare s text; begin
  foreach s in array array['clerk', 'clerk_rls', 'clerk_sync'] loop
    execute format('revoke all on schema %I from authenticated, service_role, clerk_sync_worker', s);
    execute format('revoke all on all tables in schema %I from authenticated, service_role, clerk_sync_worker', s);
    execute format('revoke all on all functions in schema %I from authenticated, service_role, clerk_sync_worker', s);
    execute format('grant execute on all functions in schema %I to public', s);
  end loop;
end $$;
drop policy worker_reads on clerk.users;";

#[tokio::test(flavor = "multi_thread")]
async fn migrate_grants_again_what_a_restored_dump_lacks_and_then_finds_nothing() {
    let supabase = project().await;
    assert!(migrate(&supabase).await.0);
    let mut superuser = superuser(&supabase).await;
    let acl = "select coalesce(string_agg(x, E'\\n' order by x), '') from (select n.nspname || array(select unnest(n.nspacl)::text order by 1)::text as x from pg_namespace n where n.nspname in ('clerk', 'clerk_rls', 'clerk_sync') \
        union all select c.oid::regclass || array(select unnest(c.relacl)::text order by 1)::text from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname in ('clerk', 'clerk_rls', 'clerk_sync') and c.relkind in ('r', 'v') \
        union all select f.oid::regprocedure || array(select unnest(f.proacl)::text order by 1)::text from pg_proc f join pg_namespace n on n.oid = f.pronamespace where n.nspname in ('clerk', 'clerk_rls', 'clerk_sync')) a";
    let as_migrated: String = sqlx::query_scalar(acl).fetch_one(&mut superuser).await.unwrap();
    for (what, sql, found) in [
        ("by the CLI's own scripts", "revoke clerk_sync_worker from postgres", Error::NotWorker as fn(_) -> _),
        ("without privileges", WITHOUT_PRIVILEGES, Error::MissingRight),
    ] {
        // A grant can be taken back by whoever made it: from 16 on the creator keeps the right to make it again.
        let mut owner = supabase.connect("postgres", NAME).await.unwrap();
        execute(if sql.starts_with("revoke") { &mut owner } else { &mut superuser }, sql).await;
        let error = database(&supabase, "postgres").connect().await.err().expect(what);
        let (told, cause) = (error.to_string(), std::error::Error::source(&error).is_some());
        assert_eq!(told, found(sqlx::Error::RowNotFound).to_string(), "{what}");
        assert!(cause && told.contains("clerk-sync migrate"), "{what}: {told}");
        let (done, said) = migrate(&supabase).await;
        assert!(done, "{what}: {said}");
        database(&supabase, "postgres").connect().await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let (_, said) = run(&["doctor"], &[("DATABASE_URL", supabase.url(NAME))]).await;
        assert!(said.contains("Failed: 0."), "{what}: {said}");
        let now: String = sqlx::query_scalar(acl).fetch_one(&mut superuser).await.unwrap();
        assert_eq!(now.replace(' ', ""), as_migrated.replace(' ', ""), "{what}");
        let (_, said) = migrate(&supabase).await;
        assert!(said.contains("up to date") && !said.contains("missing"), "{what}: {said}");
    }
    // Restored where nobody made the role.
    execute(&mut superuser, "drop owned by clerk_sync_worker; drop role clerk_sync_worker").await;
    let (done, said) = migrate(&supabase).await;
    assert!(done && said.contains("Was missing: grant usage on schema clerk to clerk_sync_worker"), "{said}");
    database(&supabase, "postgres").connect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_lets_the_role_that_serves_become_the_worker_and_no_role_of_the_api() {
    let supabase = project().await;
    let mut superuser = superuser(&supabase).await;
    execute(&mut superuser, "create role server login; create role idle login").await;
    let both = |role: &str| {
        [("MIGRATE_DATABASE_URL", supabase.url(NAME)), ("DATABASE_URL", supabase.cluster().url(role, NAME))]
    };
    // Behind Supabase's pooler the project is part of the name.
    for (login, role) in [("server", "server"), ("idle.abcdefgh", "idle")] {
        let (done, said) = run(&["migrate"], &both(login)).await;
        assert!(done && said.contains(&format!("Was missing: grant clerk_sync_worker to {role}")), "{said}");
        database(&supabase, role).connect().await.unwrap();
        let (_, said) = run(&["migrate"], &both(login)).await;
        assert!(!said.contains("missing"), "{said}");
    }
    for role in ["service_role", "authenticator", "nobody"] {
        let (done, said) = run(&["migrate"], &both(role)).await;
        assert!(done && !said.contains("missing"), "{role}: {said}");
    }
    // One that serves cannot migrate, and hears why.
    let (done, said) = run(&["migrate"], &[("DATABASE_URL", supabase.cluster().url("server", NAME))]).await;
    assert!(!done && said.contains("belongs to postgres") && said.contains("MIGRATE_DATABASE_URL"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_migrate_hears_what_to_grant_and_can_go_on_with_that() {
    let supabase = project().await;
    let mut superuser = superuser(&supabase).await;
    execute(&mut superuser, "create role owner login").await;
    let owner = [("DATABASE_URL", supabase.cluster().url("owner", NAME))];
    let (done, said) = run(&["migrate"], &owner).await;
    assert!(!done, "{said}");
    for statement in [format!("grant create on database {NAME} to owner;"), "alter role owner createrole;".to_owned()] {
        assert!(said.contains(&statement), "{said}");
        execute(&mut superuser, &statement).await;
    }
    let (done, said) = run(&["migrate"], &owner).await;
    assert!(done, "{said}");
    // Where the role is another database's, and nobody may grant it but an administrator.
    supabase.create("second").await.unwrap();
    execute(&mut superuser, "create role second login; grant create on database second to second").await;
    let second = [("DATABASE_URL", supabase.cluster().url("second", "second"))];
    let (done, said) = run(&["migrate"], &second).await;
    assert!(!done && said.contains("grant clerk_sync_worker to second with admin option;"), "{said}");
    execute(&mut superuser, "grant clerk_sync_worker to second with admin option").await;
    let (done, said) = run(&["migrate"], &second).await;
    assert!(done, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_may_grant_the_workers_role_before_and_after_an_upgrade() {
    let supabase = project().await;
    let mut superuser = superuser(&supabase).await;
    let version = superuser.server_version_num().unwrap();
    let admin = "select coalesce(bool_or(admin_option), false) from pg_auth_members \
                  where roleid = 'clerk_sync_worker'::regrole and member = 'postgres'::regrole";
    assert!(migrate(&supabase).await.0);
    assert!(
        sqlx::query_scalar::<_, bool>(admin).fetch_one(&mut superuser).await.unwrap(),
        "what an upgrade takes along"
    );
    if version < 160_000 {
        // As earlier releases left it.
        execute(&mut superuser, "revoke admin option for clerk_sync_worker from postgres").await;
        let (done, said) = migrate(&supabase).await;
        assert!(done && sqlx::query_scalar::<_, bool>(admin).fetch_one(&mut superuser).await.unwrap(), "{said}");
    }
    let mut owner = supabase.connect("postgres", NAME).await.unwrap();
    execute(&mut owner, "create role clerk_sync_login login in role clerk_sync_worker").await;
    database(&supabase, "clerk_sync_login").connect().await.unwrap();
    // After an upgrade from 15 without it nobody but a superuser can give it.
    if version >= 160_000 {
        execute(
            &mut superuser,
            "drop owned by clerk_sync_worker; drop role clerk_sync_worker; create role clerk_sync_worker",
        )
        .await;
        execute(&mut superuser, "create role server login; grant clerk_sync_worker to postgres").await;
        let variables =
            [("MIGRATE_DATABASE_URL", supabase.url(NAME)), ("DATABASE_URL", supabase.cluster().url("server", NAME))];
        let (done, said) = run(&["migrate"], &variables).await;
        assert!(!done && said.contains("cannot grant clerk_sync_worker to server"), "{said}");
        assert!(said.contains("admin option"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_switches_row_security_off_serves_all_the_same() {
    let supabase = project().await;
    assert!(migrate(&supabase).await.0);
    let mut superuser = superuser(&supabase).await;
    execute(&mut superuser, "alter role postgres set row_security = off").await;
    let mut session = database(&supabase, "postgres").connect().await.unwrap();
    assert_eq!(session.count(clerk_sync::model::Kind::User).await.unwrap(), 0);
    let (_, said) = run(&["doctor"], &[("DATABASE_URL", supabase.url(NAME))]).await;
    assert!(said.contains("Failed: 0."), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_refuses_is_told_once_and_without_its_source_lines() {
    let supabase = project().await;
    let mut superuser = superuser(&supabase).await;
    execute(&mut superuser, "create role small login connection limit 1 in role pg_monitor").await;
    let (_, said) = run(&["doctor"], &[("DATABASE_URL", supabase.cluster().url("small", NAME))]).await;
    assert!(
        said.contains("has no connection left (SQLSTATE 53300)") && said.contains("the role's connection limit"),
        "{said}"
    );
    execute(&mut superuser, &format!("alter database {NAME} set default_transaction_read_only = on")).await;
    let (done, said) = migrate(&supabase).await;
    assert!(!done && said.matches("read-only transaction").count() == 1, "{said}");
    assert!(said.contains("(SQLSTATE 25006)") && !said.contains("at line"), "{said}");
    execute(&mut superuser, &format!("alter database {NAME} reset default_transaction_read_only; create schema clerk"))
        .await;
    let (_, said) = migrate(&supabase).await;
    assert_eq!(said.matches("is there already").count(), 1, "{said}");
    assert!(said.contains("alter schema clerk rename") && !said.contains("at line"), "{said}");
    let error = store::migrate(&database(&supabase, "postgres"), Migrating::default()).await.unwrap_err();
    assert!(store::error_chain(error.chain()).starts_with("migration 1 failed and was rolled back: "), "{error:?}");
    let row = sqlx::raw_sql("select 1").fetch_one(&mut superuser).await.unwrap();
    assert_eq!(row.get::<i32, _>(0), 1);
}

//! `migrate` on a database that has something of ours already: upgrades, rollbacks, repairs, several at once, and what `serve` says.

use crate::support::schema::{assert_same, schema};
use crate::support::{Project, SECRET, database, supabase, unique};
use clerk_sync::model::InstanceCheck;
use clerk_sync::sender::Sender;
use clerk_sync::store::{self, Error, Migrated, Migrating, SchemaVersion};
use sqlx::migrate::{Migrate as _, Migrator};
use std::path::Path;
use std::process::Stdio;
use testkit::serve::Server;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// A project that has the migrations up to this number and nothing else, as one is left where `migrate` was killed.
async fn at_migration(newest: i64) -> Project {
    let name = unique("project");
    let project = Project::empty(supabase(), &name).await.unwrap();
    if newest > 0 {
        let mut migrator: Migrator = sqlx::migrate!("./migrations");
        migrator.create_schema("clerk_sync");
        migrator.dangerous_set_table_name("clerk_sync._sqlx_migrations");
        migrator.run_direct(Some(newest), &mut project.owner().await, false).await.unwrap();
    }
    project
}

async fn migrate(project: &Project) -> Migrated {
    store::migrate(&project.database(), Migrating::default()).await.unwrap()
}

/// What a release did that had the same files with other contents, under the number before.
const OF_AN_OLDER_GENERATION: &str = "
do $$
declare
  f record;
begin
  for f in select p.oid::regprocedure as name, obj_description(p.oid, 'pg_proc') is not null as has_comment
             from pg_proc p where p.pronamespace in ('clerk_rls'::regnamespace, 'clerk_sync'::regnamespace) loop
    execute format('alter function %s volatile called on null input security invoker reset all', f.name);
    execute format('alter function %s set work_mem = ''5MB''', f.name);
    execute format('grant execute on function %s to public, anon, service_role', f.name);
    if f.has_comment then
      execute format('comment on function %s is ''old''', f.name);
    end if;
  end loop;
  for f in select c.oid::regclass as name from pg_class c
            where c.relkind = 'v' and c.relnamespace in ('clerk_rls'::regnamespace, 'clerk_sync'::regnamespace) loop
    execute format('alter view %s set (security_barrier)', f.name);
    execute format('grant select on table %s to public, anon, service_role', f.name);
  end loop;
  for f in select tablename, policyname from pg_policies where schemaname = 'clerk' and policyname <> 'worker_reads' loop
    execute format('drop policy %I on clerk.%I', f.policyname, f.tablename);
    execute format('create policy %I on clerk.%I as restrictive for all to public using (false)', f.policyname, f.tablename);
  end loop;
  update clerk_sync.replayed
     set generation = generation - 1, files = (select jsonb_object_agg(key, 'another hash'::text) from jsonb_each(files));
end
$$";

async fn fresh() -> (Project, String) {
    let fresh = at_migration(0).await;
    let created = Migrated::Created(SchemaVersion::of_program());
    assert_eq!(migrate(&fresh).await, created);
    let schema = schema(&fresh).await;
    (fresh, schema)
}

#[tokio::test]
async fn a_fresh_an_upgraded_and_a_printed_schema_are_the_same() {
    let (fresh, expected) = fresh().await;
    assert_eq!(migrate(&fresh).await, Migrated::Nothing(SchemaVersion::of_program()));
    assert_same(&schema(&fresh).await, &expected, "migrated twice");

    let newest = SchemaVersion::of_program().migration;
    for from in 0..=newest {
        let (migrated, printed) = (at_migration(from).await, at_migration(from).await);
        migrate(&migrated).await;
        assert_same(&schema(&migrated).await, &expected, &format!("upgraded from migration {from}"));
        // As `psql -1` and `supabase db reset` do: all of it in one transaction.
        printed.execute(&store::printed(from).unwrap()).await;
        assert_same(&schema(&printed).await, &expected, &format!("printed from migration {from}"));
        assert_eq!(migrate(&printed).await, Migrated::Nothing(SchemaVersion::of_program()), "printed from {from}");
    }

    let older = at_migration(0).await;
    migrate(&older).await;
    older.execute(OF_AN_OLDER_GENERATION).await;
    assert_ne!(schema(&older).await, expected);
    migrate(&older).await;
    assert_same(&schema(&older).await, &expected, "upgraded from an older generation");
    older.execute(OF_AN_OLDER_GENERATION).await;
    older.execute(&store::printed(newest).unwrap()).await;
    assert_same(&schema(&older).await, &expected, "printed for an older generation");
}

/// Each file is what `migrate --print` of a released version wrote; `./x check` asks for one of every release.
#[tokio::test]
async fn the_schema_of_every_release_upgrades_to_the_present_one() {
    let (_, expected) = fresh().await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schema");
    let files = std::fs::read_dir(folder).map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    let releases = files.into_iter().map(|file| file.unwrap().path());
    let mut files: Vec<(String, String)> =
        releases.map(|path| (path.display().to_string(), std::fs::read_to_string(path).unwrap())).collect();
    files.push(("this release".to_owned(), store::printed(0).unwrap()));
    for (name, printed) in files {
        let project = at_migration(0).await;
        project.execute(&printed).await;
        migrate(&project).await;
        assert_same(&schema(&project).await, &expected, &name);
    }
}

/// psql reads a file in its own way: line by line, with commands that begin with a backslash.
#[tokio::test]
async fn psql_takes_the_printed_file_in_one_transaction() {
    let (_, expected) = fresh().await;
    let project = at_migration(0).await;
    let file = tempfile(&store::printed(0).unwrap());
    let mut psql = supabase().cluster().program("psql");
    psql.args(["-X", "-1", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-f", "-", "-h"])
        .arg(supabase().cluster().dir());
    psql.arg("-d").arg(&project.name).stdin(std::fs::File::open(&file).unwrap());
    let output = psql.output();
    std::fs::remove_file(file).unwrap();
    match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => println!("SKIPPED: this Postgres has no psql"),
        output => {
            let output = output.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_same(&schema(&project).await, &expected, "run by psql");
        }
    }
}

fn tempfile(text: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("clerk-sync-{}-{}.sql", std::process::id(), unique("printed")));
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn a_printed_file_refuses_a_database_that_it_is_not_for() {
    let project = at_migration(1).await;
    let refused = async |sql: &str| {
        let error = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut project.owner().await).await;
        error.unwrap_err().to_string()
    };
    let error = refused(&store::printed(2).unwrap()).await;
    assert!(error.contains("for a database at migration 2, and this one is at migration 1"), "{error}");
    let error = store::printed(1000).unwrap_err().to_string();
    assert!(error.contains("there is no migration 1000"), "{error}");
    migrate(&project).await;
    project.execute("update clerk_sync.replayed set generation = generation + 1").await;
    let error = refused(&store::printed(SchemaVersion::of_program().migration).unwrap()).await;
    assert!(error.contains("functions of a newer release"), "{error}");
}

#[tokio::test]
async fn only_the_files_that_changed_run_again() {
    let database = database().await;
    let user_id =
        "select provolatile::text || proacl::text as is from pg_proc where oid = 'clerk_rls.user_id()'::regprocedure";
    let policies = "select count(*) as is from pg_policies where policyname = 'own_read'";
    let before = (database.rows(user_id).await, database.rows(policies).await);
    database
        .execute(
            "alter function clerk_rls.user_id() volatile;
             drop policy own_read on clerk.user_details;
             update clerk_sync.replayed set generation = generation - 1,
                 files = (select jsonb_object_agg(key, case when key like '9%' then '\"another\"' else value end) from jsonb_each(files))",
        )
        .await;
    let Migrated::Upgraded { from, to } = migrate(&database).await else { panic!("an upgrade") };
    assert_eq!((from.generation + 1, from.migration), (to.generation, to.migration));
    assert_eq!(database.rows(policies).await, before.1, "the policies' file ran");
    assert_ne!(database.rows(user_id).await, before.0, "and that of the functions did not");
}

#[tokio::test]
async fn a_newer_generation_stays_and_serves() {
    let database = database().await;
    database
        .execute(
            "alter function clerk_rls.user_id() set jit = off;
             update clerk_sync.replayed set generation = generation + 1, files = '{}', release = '9.0.0'",
        )
        .await;
    let before = schema(&database).await;
    let (code, said, _) = run(&database, &["migrate"]).await;
    assert_eq!(code, 0);
    assert!(said.contains("Nothing to do: a newer release of clerk-sync has migrated the database"), "{said}");
    assert_same(&schema(&database).await, &before, "after the older release");
    database.database().connect().await.unwrap();
    let repair = Migrating { repairs: true, ..Migrating::default() };
    let error = store::migrate(&database.database(), repair).await.unwrap_err().to_string();
    assert!(error.contains("repair them with that release"), "{error}");
    assert_same(&schema(&database).await, &before, "after a repair by the older release");
}

#[tokio::test]
async fn another_build_of_the_same_generation_is_an_error_and_is_repaired_on_request() {
    let (_, expected) = fresh().await;
    let database = database().await;
    database.execute(OF_AN_OLDER_GENERATION).await;
    database.execute("update clerk_sync.replayed set generation = generation + 1").await;
    let before = schema(&database).await;
    let (code, _, said) = run(&database, &["migrate"]).await;
    assert_eq!(code, 1);
    assert!(said.contains("another build of clerk-sync") && said.contains("clerk-sync migrate --repair"), "{said}");
    assert_same(&schema(&database).await, &before, "after the error");
    let repair = Migrating { repairs: true, ..Migrating::default() };
    let repaired = store::migrate(&database.database(), repair).await.unwrap();
    assert_eq!(repaired, Migrated::Recreated(SchemaVersion::of_program()));
    assert_same(&schema(&database).await, &expected, "after the repair");
}

#[tokio::test]
async fn serve_waits_for_an_upgrade_and_works_after_it() {
    let database = database().await;
    database.execute("update clerk_sync.replayed set generation = 0").await;
    let server = Server::start(database.database(), InstanceCheck::Pinned(None)).await;
    let sender = Sender::new(server.webhook_url(), SECRET).unwrap();
    let body =
        r#"{"type":"user.deleted","object":"event","data":{"id":"user_1","deleted":true},"timestamp":1700000000000}"#;
    let attempt = sender.send("msg_1", body.as_bytes()).await.unwrap();
    assert_eq!((attempt.status, attempt.outcome.as_deref()), (503, Some("database_unavailable")));
    let (status, ready) = server.get("/readyz").await;
    assert!(status == 503 && ready["reasons"][0]["detail"].as_str().unwrap().contains("clerk-sync migrate"), "{ready}");
    migrate(&database).await;
    assert_eq!(sender.send("msg_1", body.as_bytes()).await.unwrap().status, 204);
}

/// The next release keeps what this one calls; the one after it need not.
#[tokio::test]
async fn serve_says_that_the_database_is_two_releases_newer() {
    let database = database().await;
    database.execute("update clerk_sync.replayed set generation = generation + 1").await;
    database.database().connect().await.unwrap();
    database.execute("alter type clerk_sync.doubt_v1 rename to doubt_of_the_past").await;
    let error = database.database().connect().await.err().expect("an error");
    assert!(matches!(error, Error::TooNew), "{error}");
    let said = error.to_string();
    assert!(said.contains("two releases newer than this program: deploy the newer program"), "{said}");
    database.execute("update clerk_sync.replayed set generation = generation - 1").await;
    let error = database.database().connect().await.err().expect("an error");
    assert!(matches!(error, Error::NotMigrated(_)), "in a database of this release it is missing: {error}");
}

/// Exit code, standard output, standard error.
async fn run(database: &Project, arguments: &[&str]) -> (i32, String, String) {
    let output = program(database, arguments).output().await.unwrap();
    let [out, error] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.code().unwrap(), out, error)
}

fn program(database: &Project, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clerk-sync"));
    command.args(arguments).env("DATABASE_URL", database.url()).kill_on_drop(true);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn several_at_once_take_turns() {
    let (_, expected) = fresh().await;
    let project = at_migration(0).await;
    let all = tokio::join!(run(&project, &["migrate"]), run(&project, &["migrate"]), run(&project, &["migrate"]));
    let all = [all.0, all.1, all.2];
    assert!(all.iter().all(|(code, ..)| *code == 0), "{all:?}");
    let count = |words: &str| all.iter().filter(|(_, said, _)| said.contains(words)).count();
    assert_eq!((count("Created the schemas"), count("Nothing to do")), (1, 2), "{all:?}");
    assert_same(&schema(&project).await, &expected, "by three at once");
}

/// Starts `migrate`, waits until it says that it waits, lets go of what it waits for, and returns what it said and how it ended.
async fn migrate_behind(database: &Project, release: impl AsyncFnOnce()) -> (String, i32) {
    let mut command = program(database, &["migrate"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = lines.next_line().await.unwrap().expect("a sentence");
    release().await;
    while lines.next_line().await.unwrap().is_some() {}
    (said, child.wait().await.unwrap().code().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_a_reader_and_says_so() {
    let database = database().await;
    let policies_of_another_release = "update clerk_sync.replayed set generation = generation - 1,
        files = (select jsonb_object_agg(key, case when key like '9%' then '\"another\"' else value end) from jsonb_each(files))";
    database.execute(policies_of_another_release).await;
    let mut reader = database.owner().await;
    sqlx::raw_sql("begin; select count(*) from clerk.users").execute(&mut reader).await.unwrap();
    let process: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut reader).await.unwrap();

    let once = Migrating { tries: 1, ..Migrating::default() };
    let error = format!("{:#}", store::migrate(&database.database(), once).await.unwrap_err());
    let holder = format!("process {process} holds a lock on clerk.users");
    assert!(error.starts_with("gave up after 1 tries") && error.contains(&holder), "{error}");
    assert!(error.contains("pg_terminate_backend"), "{error}");

    let (said, code) = migrate_behind(&database, async || {
        sqlx::raw_sql("commit").execute(&mut reader).await.unwrap();
    })
    .await;
    assert!(said.starts_with("Waiting, because ") && said.contains(&holder), "{said}");
    assert_eq!(code, 0);
    assert_eq!(migrate(&database).await, Migrated::Nothing(SchemaVersion::of_program()));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_another_migrate_and_says_so() {
    let database = database().await;
    let mut other = database.owner().await;
    other.lock().await.unwrap();
    let (said, code) = migrate_behind(&database, async || other.unlock().await.unwrap()).await;
    assert!(said.starts_with("Waiting, because another `clerk-sync migrate` is running"), "{said}");
    assert_eq!(code, 0);
}

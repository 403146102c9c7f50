//! `clerk-sync policy print` and `policy check`, as a person runs them: what is printed is right as it is, and each fault that
//! is planted is found.

use crate::support::{Project, database};
use serde_json::Value;
use std::process::Output;

fn clerk_sync(database: &Project, arguments: &str) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_clerk-sync"))
        .args(arguments.split(' '))
        .env("DATABASE_URL", database.url())
        .output()
        .expect("the program runs")
}

fn printed(database: &Project, arguments: &str) -> String {
    let output = clerk_sync(database, &format!("policy print {arguments}"));
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The codes of what is found, with the exit code.
fn found(database: &Project, table: &str) -> (Option<i32>, Vec<String>) {
    let output = clerk_sync(database, format!("policy check --json {table}").trim_end());
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code(), findings.iter().map(|finding| finding["code"].as_str().unwrap().to_owned()).collect())
}

/// A table with the printed policies.
async fn documents() -> Project {
    let database = database().await;
    database
        .execute(
            "create table public.documents (id int primary key, org_id text, author text, kind text, public_id uuid)",
        )
        .await;
    database.execute(&printed(&database, "documents --organization-column org_id")).await;
    database
}

#[tokio::test]
async fn what_is_printed_is_applied_as_it_is_and_leaves_nothing_to_find() {
    let database = documents().await;
    assert_eq!(found(&database, "documents"), (Some(0), vec![]));
    let again = printed(&database, "documents --organization-column org_id");
    assert!(!again.contains("create index"), "the index is there by now: {again}");
    database.execute("create table public.\"Notes\" (\"user\" text)").await;
    database.execute(&printed(&database, "Notes --user-column user")).await;
    let narrowing =
        printed(&database, "documents --organization-column org_id --role org:admin --for delete --restrictive");
    database.execute(&narrowing).await;
    assert_eq!(found(&database, ""), (Some(0), vec![]));
    let output = clerk_sync(&database, "policy check");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, "Tables checked: 2. Findings: 0.\n", "our own are not counted");
    assert!(output.stderr.is_empty(), "there are tables, so it says nothing more");
}

/// After a change of the table or of our release: policies are replaced, also while others read, and an index is made once.
#[tokio::test]
async fn what_is_printed_may_be_run_again_after_a_change() {
    let database = database().await;
    let long = "a_column_with_a_name_of_no_less_than_fifty_bytes_äöü";
    database
        .execute(&format!(
            "create table public.documents (id int primary key, org_id text, \"{long}\" text, kind text)"
        ))
        .await;
    let arguments = "--organization-column org_id --role org:admin --for delete --restrictive";
    let mut first = String::new();
    for arguments in [arguments, "--organization-column org_id", &format!("--user-column {long} --restrictive")] {
        first += &printed(&database, &format!("documents {arguments}"));
    }
    let state = async || {
        database
            .rows(
                "select polname, polcmd, pg_get_expr(polqual, polrelid) as using, pg_get_expr(polwithcheck, polrelid) as check
                   from pg_policy where polrelid = 'documents'::regclass
                 union all select indexrelid::regclass::text, 'i', pg_get_indexdef(indexrelid), null
                   from pg_index where indrelid = 'documents'::regclass order by 1, 2",
            )
            .await
    };
    database.execute(&first).await;
    let made = state().await;
    assert_eq!(made.len(), 1 + 4 + 4 + 3, "{made:#?}");
    // An index that was made without a name has the same one from Postgres: it is not made twice.
    for column in ["org_id", long] {
        database.execute(&format!("create table public.plains (\"{column}\" text)")).await;
        let printed = printed(&database, &format!("plains --user-column {column}"));
        database.execute(&format!("create index on plains (\"{column}\")")).await;
        let sql = "select indexrelid::regclass::text as name from pg_index where indrelid = 'plains'::regclass";
        let names = database.rows(sql).await;
        let statement = format!("create index if not exists {} on", names[0]["name"].as_str().unwrap());
        assert!(printed.contains(&statement), "{statement}: {printed}");
        database.execute("drop table plains").await;
    }
    database.execute(&first).await;
    assert_eq!(state().await, made);
    // Somebody widened a policy by hand, and dropped an index.
    database.execute("alter policy \"select by members\" on documents using (true)").await;
    database.execute("drop index documents_org_id_idx").await;
    database.execute(&first).await;
    assert_eq!(state().await, made);
}

/// What keeps rows that have ended is a finding; what may refuse one is a note. `migrate` says both.
#[tokio::test]
async fn objects_on_our_own_tables_are_named() {
    let database = documents().await;
    database.execute("create unique index one on clerk.user_details (email_address)").await;
    assert_eq!(found(&database, ""), (Some(0), vec![]));
    let key = "create table public.notes (m text constraint kept references clerk.organization_memberships); alter table public.notes enable row level security";
    database.execute(key).await;
    assert_eq!(found(&database, ""), (Some(2), vec!["foreign-object".to_owned()]));
    for command in ["policy check", "migrate"] {
        let output = clerk_sync(&database, command);
        let said = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
        assert!(
            said.contains("foreign key kept of public.notes on clerk.organization_memberships"),
            "{command}: {said}"
        );
        assert!(said.contains("warning: index one on clerk.user_details"), "{command}: {said}");
    }
}

#[tokio::test]
async fn each_planted_fault_is_found_and_nothing_else() {
    let select = "drop policy \"select by members\" on documents; create policy fault on documents for select";
    let faults = [
        ("rls-off", "alter table documents disable row level security".to_owned()),
        ("rls-forced", "alter table documents force row level security".to_owned()),
        ("widened", "create policy fault on documents for select to authenticated using (kind = 'public')".to_owned()),
        ("widened", "create policy fault on documents to authenticated using (org_id = (select clerk_rls.active_organization_id()))".to_owned()),
        ("no-index", "drop index documents_org_id_idx".to_owned()),
        ("no-index", format!("{select} to authenticated using (author = (select clerk_rls.user_id()))")),
        ("for-anon", format!("{select} using (org_id = any (array(select clerk_rls.organization_ids())))")),
        ("per-row-function", format!("{select} to authenticated using (org_id = clerk_rls.active_organization_id())")),
        (
            "per-row-function",
            format!(
                "create function is_member(o text) returns boolean language sql stable as 'select o = any (array(select clerk_rls.organization_ids()))'; \
                 {select} to authenticated using (org_id is not null and (select public.is_member(org_id)))"
            ),
        ),
        ("per-row-function", format!("{select} to authenticated using (org_id = (auth.jwt() -> 'o' ->> 'id'))")),
        ("auth-uid", format!("{select} to authenticated using (public_id = (select auth.uid()) and org_id = (select clerk_rls.active_organization_id()))")),
        ("in-select", format!("{select} to authenticated using (org_id in (select clerk_rls.organization_ids()))")),
        (
            "in-select",
            format!(
                "{select} to authenticated using (org_id in (select m.organization_id from clerk.organization_memberships m \
                 join clerk.organizations o on o.id = m.organization_id where m.user_id = (select clerk_rls.user_id())))"
            ),
        ),
        (
            "in-select",
            format!(
                "{select} to authenticated using (kind not in (select u.id from clerk_rls.able_users u) \
                 and org_id in (select clerk_rls.organization_ids()))"
            ),
        ),
        ("advisor-spelling", format!("{select} to authenticated using (org_id = (select auth.jwt() -> 'o' ->> 'id'))")),
        (
            "unsafe-metadata",
            format!("{select} to authenticated using (org_id = (select unsafe_metadata ->> 'org' from clerk.user_details))"),
        ),
        ("unsafe-metadata", format!("{select} to authenticated using (org_id = ((select auth.jwt()) -> 'unsafe_metadata' ->> 'org'))")),
    ];
    for (code, plant) in faults {
        let database = documents().await;
        database.execute(&plant).await;
        assert_eq!(found(&database, ""), (Some(2), vec![code.to_owned()]), "{plant}");
    }
}

#[tokio::test]
async fn good_policies_of_every_usual_form_are_left_alone() {
    for using in [
        "org_id = (select clerk_rls.active_organization_id()) and (select clerk_rls.active_organization_role()) = 'org:admin'",
        "org_id = ((select auth.jwt()) -> 'o' ->> 'id')",
        "org_id = any (array(select clerk_rls.organization_ids_by_permission('org:invoices:read'))) and kind = 'invoice'",
        "org_id = any (array(select clerk_rls.organization_ids())) and kind not in (select u.id from clerk_rls.able_users u)",
        "exists (select from clerk.organization_memberships m where m.organization_id = org_id and m.user_id = (select clerk_rls.user_id()))",
        "org_id = any (array(select m.organization_id from clerk.organization_memberships m where m.user_id = ((select auth.jwt()) ->> 'sub')))",
        "lower(kind) = 'public' or coalesce(org_id, '') = 'x' or org_id = any (array(select clerk_rls.organization_ids()))",
    ] {
        let database = documents().await;
        let sql = format!(
            "drop policy \"select by members\" on documents; create policy good on documents for select to authenticated using ({using})"
        );
        database.execute(&sql).await;
        assert_eq!(found(&database, "public.documents"), (Some(0), vec![]), "{using}");
    }
}

#[tokio::test]
async fn a_table_that_is_not_there_or_a_database_that_does_not_answer_is_an_error() {
    let database = database().await;
    // Where there is nothing to look at, it says what it looks for.
    let output = clerk_sync(&database, "policy check");
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("There is nothing to check") && said.contains("organization_id or user_id"), "{said}");
    assert!(output.stdout.starts_with(b"Tables checked: 0."), "{output:?}");
    let output = clerk_sync(&database, "policy check nowhere");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no table public.nowhere"), "{output:?}");
    // Policies may be printed for the migration that makes their table.
    let output = clerk_sync(&database, "policy print nowhere --user-column id");
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no table public.nowhere yet"), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("create index"), "{output:?}");
    let gone = Project::named("gone".to_owned());
    assert_eq!(clerk_sync(&gone, "policy check").status.code(), Some(1));
}

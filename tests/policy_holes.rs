//! What `policy check` sees and what it leaves alone: two lists, each case a table of its own in one database that is looked at
//! once. And what it prints can be pasted, whatever a name contains.

use crate::support::{Project, database, unique};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::Output;

const MINE: &str = "organization_id = any (array(select clerk_rls.organization_ids()))";

fn clerk_sync(database: &Project, arguments: &[&str]) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_clerk-sync"))
        .args(arguments)
        .env("DATABASE_URL", database.url())
        .output()
        .expect("the program runs")
}

fn check(database: &Project) -> Vec<Value> {
    let output = clerk_sync(database, &["policy", "check", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

/// The codes by table.
fn by_table(findings: &[Value]) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for finding in findings {
        let text = |field: &str| finding[field].as_str().unwrap().to_owned();
        found.entry(text("table")).or_default().insert(text("code"));
    }
    found
}

/// A table as an application has it, with every index that a policy may want.
fn table(name: &str) -> String {
    format!(
        "create table public.{name} (id int primary key, organization_id text references clerk.organizations, author_id text,
             kind text, is_public boolean, members text[], at timestamptz);
         create index on public.{name} (organization_id);
         create index on public.{name} (author_id);
         alter table public.{name} enable row level security;\n"
    )
}

/// The same with one policy for reading.
fn with_policy(name: &str, using: &str) -> String {
    table(name) + &format!("create policy p on public.{name} for select to authenticated using ({using});\n")
}

/// Supabase's own tables and functions for files and channels, as far as policies see them.
const SUPABASE: &str = "
    create schema storage; create schema realtime;
    grant usage on schema storage, realtime to authenticated;
    create table storage.buckets (id text primary key);
    create table storage.objects (id uuid primary key default gen_random_uuid(), bucket_id text, name text, owner uuid, owner_id text);
    create table realtime.messages (topic text, extension text, payload jsonb);
    alter table storage.objects enable row level security;
    alter table realtime.messages enable row level security;
    grant select, insert, update, delete on storage.objects, realtime.messages to authenticated;
    create function storage.foldername(name text) returns text[] language plpgsql as
      'declare parts text[]; begin select string_to_array(name, ''/'') into parts; return parts[1:array_length(parts, 1) - 1]; end';
    create function realtime.topic() returns text language sql stable as
      'select nullif(current_setting(''realtime.topic'', true), '''')::text';";

/// Functions of an application around our own.
const WRAPPERS: &str = "
    create function public.is_member(org text) returns boolean language sql stable security definer set search_path = '' as
      'select org = any (array(select clerk_rls.organization_ids()))';
    create function public.is_member_by_row(org text) returns boolean language plpgsql stable security definer set search_path = '' as
      'begin return exists (select 1 from clerk.organization_memberships m
                             where m.organization_id = org and m.user_id = (select clerk_rls.user_id())); end';
    create function public.has_members(org text) returns boolean language sql stable security definer set search_path = '' as
      'select exists (select 1 from clerk.organization_memberships m where m.organization_id = org)';
    create function public.my_organization() returns text language sql stable begin atomic; select clerk_rls.active_organization_id(); end;
    create function public.guess(org text) returns boolean language plpgsql stable as
      'declare n int; begin select 1 into n; if n = 1 then return true; end if; return false; end';";

/// Conditions that show other people's rows, or none at all, each with what is found.
const HOLES: &[(&str, &str, &[&str])] = &[
    ("is_true", "true", &["open"]),
    ("one_is_one", "1 = 1", &["open"]),
    ("or_true", "organization_id = any (array(select clerk_rls.organization_ids())) or true", &["open"]),
    ("signed_in", "(select clerk_rls.user_id()) is not null", &["open"]),
    ("of_some_organization", "(select count(*) from clerk_rls.organization_ids()) > 0", &["open"]),
    ("any_organization_exists", "exists (select 1 from clerk.organizations)", &["open"]),
    ("not_mine", "organization_id <> all (array(select clerk_rls.organization_ids()))", &["open"]),
    ("negated", "not (organization_id = any (array(select clerk_rls.organization_ids())))", &["open"]),
    ("twice_negated", "not (not (organization_id is not null))", &["open"]),
    ("a_header", "organization_id = (current_setting('request.headers', true)::json ->> 'x-org')", &["open"]),
    ("a_cookie", "organization_id = (current_setting('request.cookies', true)::json ->> 'org')", &["open"]),
    ("user_metadata", "organization_id = ((select auth.jwt()) -> 'user_metadata' ->> 'org')", &["unsafe-metadata"]),
    ("has_an_organization", "organization_id is not null", &["open"]),
    ("not_archived", "at is null", &["open"]),
    ("coalesced", "coalesce(organization_id = (select clerk_rls.active_organization_id()), true)", &["open"]),
    ("not_false", "(organization_id = (select clerk_rls.active_organization_id())) is not false", &["open"]),
    (
        "flat_claim_is_null",
        "((select auth.jwt()) ->> 'o.id') is null or ((select auth.jwt()) ->> 'o.id') = organization_id",
        &["open", "dead-claim"],
    ),
    ("admin_somewhere", "(select clerk_rls.active_organization_role()) = 'org:admin'", &["open"]),
    ("role_by_claim", "((select auth.jwt()) -> 'o' ->> 'rol') = 'admin'", &["open"]),
    ("authenticated", "(select auth.role()) = 'authenticated'", &["open"]),
    (
        "membership_without_caller",
        "exists (select from clerk.organization_memberships m where m.organization_id = membership_without_caller.organization_id)",
        &["open"],
    ),
    (
        "membership_without_row",
        "exists (select from clerk.organization_memberships m where m.user_id = (select clerk_rls.user_id()))",
        &["open"],
    ),
    (
        "admin_without_row",
        "exists (select from clerk.organization_memberships m where m.user_id = (select clerk_rls.user_id()) and m.role = 'org:admin')",
        &["open"],
    ),
    ("wrapper_without_caller", "public.has_members(organization_id)", &["open", "per-row-function"]),
    ("every_name", "kind like '%'", &["open"]),
    ("greater", "id > 0", &["open"]),
    ("itself", "organization_id = organization_id", &["open"]),
    (
        "case_else",
        "case when organization_id = (select clerk_rls.active_organization_id()) then true else id is not null end",
        &["open"],
    ),
    ("flat_claim", "organization_id = ((select auth.jwt()) ->> 'o.id')", &["dead-claim"]),
    ("claim_of_version_1", "organization_id = ((select auth.jwt()) ->> 'org_id')", &["dead-claim"]),
    (
        "role_of_version_1",
        "((select auth.jwt()) ->> 'org_role') = 'org:admin' and organization_id = (select clerk_rls.active_organization_id())",
        &["dead-claim"],
    ),
    (
        "prefixed_role",
        "((select auth.jwt()) -> 'o' ->> 'rol') = 'org:admin' and organization_id = (select clerk_rls.active_organization_id())",
        &["dead-claim"],
    ),
    (
        "itself_again",
        "organization_id in (select x.organization_id from public.itself_again x where x.author_id = (select clerk_rls.user_id()))",
        &["recursion"],
    ),
    ("uuid", "author_id = (select auth.uid())::text", &["auth-uid"]),
    ("beyond", "public.guess(organization_id)", &["unreadable", "per-row-function"]),
];

/// What else shows rows: SQL, the table or view, and what is found.
const OTHER_HOLES: &[(&str, &str, &[&str])] = &[
    (
        "create table public.no_rls (id int primary key, organization_id text references clerk.organizations)",
        "public.no_rls",
        &["rls-off"],
    ),
    ("create table public.named_only (id int primary key, \"clerkUserId\" text)", "public.named_only", &["rls-off"]),
    (
        "create table public.events (id int, organization_id text, at date, primary key (id, at)) partition by range (at);
         create index on public.events (organization_id);
         create table public.events_2026 partition of public.events for values from ('2026-01-01') to ('2027-01-01');
         alter table public.events enable row level security;
         create policy p on public.events for select to authenticated
           using (organization_id = any (array(select clerk_rls.organization_ids())))",
        "public.events_2026",
        &["rls-off"],
    ),
    (
        "create table public.defaults (id int primary key, organization_id text default (auth.jwt() ->> 'o.id'), author uuid default auth.uid());
         alter table public.defaults enable row level security",
        "public.defaults",
        &["auth-uid", "dead-claim"],
    ),
    ("create view public.all_documents as select * from public.documents", "public.all_documents", &["view"]),
    (
        "create view public.titles as select d.id from (select id, kind from public.documents) d where d.kind = d.kind",
        "public.titles",
        &["view"],
    ),
    ("create view public.people as select id, first_name from clerk.users", "public.people", &["view"]),
    (
        "create materialized view public.counted as select organization_id, count(*) from public.documents group by 1",
        "public.counted",
        &["view"],
    ),
    (
        "create policy files on storage.objects for select to authenticated using (bucket_id is not null)",
        "storage.objects",
        &["open"],
    ),
    (
        "create policy channels on realtime.messages for select to authenticated using ((select auth.role()) = 'authenticated')",
        "realtime.messages",
        &["open"],
    ),
];

/// Conditions that show the caller's own rows, or rows that somebody has chosen to show.
const SOUND: &[(&str, &str)] = &[
    ("members", MINE),
    (
        "active",
        "organization_id = (select clerk_rls.active_organization_id()) and (select clerk_rls.active_organization_role()) = 'org:admin'",
    ),
    ("own", "author_id = (select clerk_rls.user_id())"),
    ("claim", "author_id = ((select auth.jwt()) ->> 'sub')"),
    ("claim_of_setting", "author_id = (select current_setting('request.jwt.claims', true)::json ->> 'sub')"),
    ("active_claim", "organization_id = ((select auth.jwt()) -> 'o' ->> 'id')"),
    (
        "either_version",
        "organization_id = coalesce((select auth.jwt()) -> 'o' ->> 'id', (select auth.jwt()) ->> 'org_id')",
    ),
    (
        "own_or_organization",
        "(organization_id is null and author_id = (select clerk_rls.user_id())) or organization_id = any (array(select clerk_rls.organization_ids()))",
    ),
    (
        "switched",
        "case when (select clerk_rls.active_organization_id()) is null then organization_id is null and author_id = (select clerk_rls.user_id()) else organization_id = (select clerk_rls.active_organization_id()) end",
    ),
    ("public_or_mine", "is_public or organization_id = any (array(select clerk_rls.organization_ids()))"),
    ("chosen", "kind = 'template' or organization_id = any (array(select clerk_rls.organization_ids()))"),
    ("shared", "organization_id is null or organization_id = any (array(select clerk_rls.organization_ids()))"),
    (
        "narrowed",
        "organization_id = any (array(select clerk_rls.organization_ids())) and kind <> 'draft' and not (at is null)",
    ),
    (
        "membership",
        "exists (select from clerk.organization_memberships m where m.organization_id = membership.organization_id and m.user_id = (select clerk_rls.user_id()))",
    ),
    (
        "membership_with_role",
        "exists (select 1 from clerk.organization_memberships m where m.organization_id = membership_with_role.organization_id and m.user_id = ((select auth.jwt()) ->> 'sub') and m.role = 'org:admin')",
    ),
    (
        "counted",
        "(select count(*) from clerk.organization_memberships m where m.organization_id = counted_rows.organization_id and m.user_id = (select clerk_rls.user_id())) > 0",
    ),
    (
        "not_blocked",
        "organization_id = any (array(select clerk_rls.organization_ids())) and not exists (select from public.members b where b.author_id = not_blocked.author_id)",
    ),
    ("in_the_list", "(select clerk_rls.user_id()) = any (members)"),
    (
        "staff",
        "organization_id = any (array(select clerk_rls.organization_ids())) or 'org_of_staff' = any (array(select clerk_rls.organization_ids()))",
    ),
    ("administrators", "exists (select from public.superusers a where a.author_id = (select clerk_rls.user_id()))"),
    ("served", "(select auth.role()) = 'service_role'"),
    ("of_a_member_table", "id = any (array(select d.id from public.members d))"),
];

/// What else is sound.
const OTHER_SOUND: &[&str] = &[
    "create view public.as_caller with (security_invoker = true) as select * from public.documents",
    "create view public.filtered with (security_barrier = true) as select * from public.documents
      where organization_id = any (array(select clerk_rls.organization_ids()))",
    "create view public.of_published as select * from public.documents where is_public",
    "create view public.closed as select * from public.documents; revoke all on public.closed from anon, authenticated",
    "create table public.back_office (id int primary key, user_id text); revoke all on public.back_office from anon, authenticated",
    "create table public.nobodys (id int primary key, user_id text); alter table public.nobodys enable row level security",
    "create table public.settings (id int primary key, value text)",
    "create table public.by_default (id int primary key, organization_id text default clerk_rls.active_organization_id(),
       author_id text default clerk_rls.user_id());
     alter table public.by_default enable row level security",
    "create policy files on storage.objects for select to authenticated
       using (bucket_id = 'docs' and (storage.foldername(name))[1] = any (array(select clerk_rls.organization_ids())));
     create policy more_files on storage.objects for insert to authenticated
       with check (bucket_id = 'docs' and (storage.foldername(name))[1] = any (array(select clerk_rls.organization_ids())));
     create policy avatars on storage.objects to authenticated
       using (bucket_id = 'avatars' and owner_id = (select clerk_rls.user_id()))
       with check (bucket_id = 'avatars' and owner_id = (select clerk_rls.user_id()))",
    "create policy listen on realtime.messages for select to authenticated
       using (split_part((select realtime.topic()), ':', 2) = any (array(select clerk_rls.organization_ids())));
     create policy send on realtime.messages for insert to authenticated
       with check (split_part((select realtime.topic()), ':', 2) = any (array(select clerk_rls.organization_ids())))",
    "create table public.projects (id int primary key, organization_id text references clerk.organizations);
     create table public.tasks (id int primary key, project_id int references public.projects);
     create table public.comments (id int primary key, task_id int references public.tasks, author_id text);
     create index on public.projects (organization_id); create index on public.tasks (project_id); create index on public.comments (task_id);
     alter table public.projects enable row level security;
     alter table public.tasks enable row level security;
     alter table public.comments enable row level security;
     create policy p on public.projects to authenticated using (organization_id = any (array(select clerk_rls.organization_ids())));
     create policy p on public.tasks to authenticated using (project_id = any (array(select id from public.projects)));
     create policy p on public.comments to authenticated using (exists (
       select 1 from public.tasks t join public.projects p on p.id = t.project_id
        where t.id = task_id and p.organization_id = any (array(select clerk_rls.organization_ids()))))",
    "create table public.wrapped (id int primary key, organization_id text);
     create index on public.wrapped (organization_id);
     alter table public.wrapped enable row level security;
     create policy p on public.wrapped to authenticated using (organization_id = (select public.my_organization()))",
    "create table public.both (id int primary key, organization_id text, author_id text);
     create index on public.both (organization_id); create index on public.both (author_id);
     alter table public.both enable row level security;
     create policy of_organization on public.both for select to authenticated
       using (organization_id = any (array(select clerk_rls.organization_ids())));
     create policy of_author on public.both for select to authenticated using (author_id = (select clerk_rls.user_id()));
     create policy narrow on public.both as restrictive for select to authenticated using (id > 0);
     create policy jobs on public.both to service_role using (true)",
];

/// Wrappers that ask who the caller is, but for each row.
const WRAPPED: &[(&str, &str)] = &[
    ("wrapped_sql", "public.is_member(organization_id)"),
    ("wrapped_plpgsql", "public.is_member_by_row(organization_id)"),
];

async fn application() -> (Project, String) {
    let sql = String::from(SUPABASE)
        + WRAPPERS
        + &with_policy("documents", MINE)
        + &table("superusers")
        + "revoke all on public.superusers from anon, authenticated;";
    (database().await, sql)
}

#[tokio::test]
async fn each_hole_is_named() {
    let (database, mut sql) = application().await;
    let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, using, codes) in HOLES {
        sql.push_str(&with_policy(name, using));
        expected.insert(format!("public.{name}"), codes.iter().map(|code| (*code).to_owned()).collect());
    }
    for (name, using) in WRAPPED {
        sql.push_str(&with_policy(name, using));
        expected.insert(format!("public.{name}"), ["per-row-function".to_owned()].into());
    }
    for (statements, name, codes) in OTHER_HOLES {
        write!(sql, "{statements};").unwrap();
        expected.insert((*name).to_owned(), codes.iter().map(|code| (*code).to_owned()).collect());
    }
    database.execute(&sql).await;
    let findings = check(&database);
    let mut found = by_table(&findings);
    // That a condition is slow as well is another matter.
    for codes in found.values_mut() {
        codes.retain(|code| !matches!(code.as_str(), "no-index" | "in-select"));
    }
    found.retain(|_, codes| !codes.is_empty());
    for (name, codes) in &expected {
        let why = findings.iter().filter(|finding| finding["table"] == **name).collect::<Vec<_>>();
        assert_eq!(found.get(name), Some(codes), "{name}: {why:#?}");
    }
    let more: Vec<_> = found.keys().filter(|name| !expected.contains_key(*name)).collect();
    assert!(more.is_empty(), "{more:?}");
}

#[tokio::test]
async fn nothing_is_said_of_what_is_sound() {
    let (database, mut sql) = application().await;
    for (name, using) in SOUND {
        sql.push_str(&with_policy(if *name == "counted" { "counted_rows" } else { name }, using));
    }
    OTHER_SOUND.iter().for_each(|statements| write!(sql, "{statements};").unwrap());
    database.execute(&sql).await;
    let mut findings = check(&database);
    findings.retain(|finding| finding["code"] != "no-index");
    assert!(findings.is_empty(), "{findings:#?}");
}

/// Each way to write a policy, each of its policies, and five ways to break that one.
#[tokio::test]
async fn five_mutations_of_each_printed_policy_are_found() {
    let database = database().await;
    let variants = [
        ("members", "organization_id", vec!["--organization-column", "organization_id"]),
        ("admins", "organization_id", vec!["--organization-column", "organization_id", "--role", "org:admin"]),
        (
            "permitted",
            "organization_id",
            vec!["--organization-column", "organization_id", "--permission", "org:x:read"],
        ),
        ("owners", "author_id", vec!["--user-column", "author_id"]),
    ];
    let mut sql = String::new();
    let mut expected = BTreeSet::new();
    for (variant, column, arguments) in variants {
        let arguments = [&["policy", "print", "printed"], arguments.as_slice()].concat();
        let output = clerk_sync(&database, &arguments);
        let printed = String::from_utf8(output.stdout).unwrap();
        let (before, condition) = printed.split_once("using (").expect("a condition");
        let condition = condition.split(");\n").next().unwrap();
        let who = before.split("\"select by ").nth(1).unwrap().split('"').next().unwrap();
        let other = condition.replace("= any", "<> all").replace("= (select", "<> (select");
        let mutations = [
            format!("({condition}) or true"),
            format!("not ({condition})"),
            "(select clerk_rls.user_id()) is not null".to_owned(),
            format!("{column} is not null"),
            other,
        ];
        for command in ["select", "insert", "update", "delete"] {
            for (number, mutated) in mutations.iter().enumerate() {
                let clauses = match command {
                    "insert" => vec!["with check"],
                    "update" => vec!["using", "with check"],
                    _ => vec!["using"],
                };
                for clause in clauses {
                    let kind = clause.replace(' ', "_");
                    let table = format!("{variant}_{command}_{number}_{kind}");
                    let policy = format!("{command} by {who}");
                    write!(
                        sql,
                        "create table public.{table} (id int primary key, organization_id text, author_id text); {}
                         alter policy \"{policy}\" on public.{table} {clause} ({mutated});",
                        printed.replace("public.printed", &format!("public.{table}"))
                    )
                    .unwrap();
                    expected.insert((format!("public.{table}"), policy));
                }
            }
        }
    }
    assert_eq!(expected.len(), 4 * 5 * 5);
    database.execute(&sql).await;
    let open: BTreeSet<(String, String)> = check(&database)
        .iter()
        .filter(|finding| finding["code"] == "open")
        .map(|finding| (finding["table"].as_str().unwrap().to_owned(), finding["policy"].as_str().unwrap().to_owned()))
        .collect();
    let missed: Vec<_> = expected.difference(&open).collect();
    let more: Vec<_> = open.difference(&expected).collect();
    assert!(missed.is_empty() && more.is_empty(), "missed {missed:#?}, more {more:#?}");
}

/// A name may hold what ends a quote, a line or a statement, or what a terminal obeys: what is advised mends the table all the same.
#[tokio::test]
async fn advice_can_be_pasted_whatever_a_name_contains() {
    let database = database().await;
    let names = [
        "plain",
        "e\"; drop table public.victim; --",
        "a\nb",
        "\u{1b}[2J\u{202e}",
        "back\\slash",
        "select",
        "Ünï-côde",
    ];
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let mut sql = "create table public.victim (id int);".to_owned();
    for name in names {
        let name = quoted(name);
        write!(
            sql,
            "create table public.{name} (id int primary key, {name} text references clerk.users); alter table public.{name} enable row level security;
             create policy {name} on public.{name} for select using ({name} = (select clerk_rls.user_id()));
             create view public.{} as select * from public.{name};",
            name.replacen('"', "\"v", 1)
        )
        .unwrap();
    }
    database.execute(&sql).await;
    let output = clerk_sync(&database, &["policy", "check"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
    let advice: Vec<&str> =
        text.lines().map(str::trim).filter(|line| line.starts_with("alter ") || line.starts_with("create ")).collect();
    assert_eq!(advice.len(), names.len() * 3, "{text}");
    for statement in advice {
        database.execute(statement).await;
    }
    assert_eq!(check(&database), Vec::<Value>::new());
    assert_eq!(database.count("public.victim").await, 0);
}

#[tokio::test]
async fn print_quotes_every_word_that_a_server_takes_for_its_own() {
    let database = database().await;
    let words = database.rows("select word from pg_get_keywords() where catcode <> 'U' order by 1").await;
    assert!(words.len() > 100);
    for word in words {
        let word = word["word"].as_str().unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_clerk-sync"))
            .args(["policy", "print", word, "--user-column", word])
            .env_remove("DATABASE_URL")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&format!("on public.\"{word}\" (\"{word}\");")), "{word}: {text}");
    }
}

#[tokio::test]
async fn print_refuses_what_the_caller_may_not_run_and_says_where_it_belongs() {
    let (database, role) = (database().await, unique("documents_owner"));
    database
        .execute(&format!(
            "create table public.documents (id int primary key, \"orgId\" text, uuid uuid);
             create role {role}; grant {role} to postgres; create table public.theirs (user_id text);
             grant create on schema public to {role}; alter table public.theirs owner to {role};
             revoke {role} from postgres"
        ))
        .await;
    let refused = |arguments: &str| {
        let arguments: Vec<&str> = ["policy", "print"].into_iter().chain(arguments.split(' ')).collect();
        let output = clerk_sync(&database, &arguments);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused("storage.objects --organization-column name");
    assert!(
        said.contains("Storage → Policies") && said.contains("(storage.foldername(name))[1] = any (array("),
        "{said}"
    );
    let said = refused("realtime.messages --organization-column topic --role org:admin");
    assert!(said.contains("split_part((select realtime.topic()), ':', 2) = any (array("), "{said}");
    assert!(refused("auth.users --user-column id").contains("belongs to Supabase"));
    assert!(refused("clerk.users --user-column id").contains("belongs to clerk-sync"));
    assert!(refused("theirs --user-column user_id").contains(&format!("belongs to {role}")));
    let said = refused("documents --organization-column org_id");
    assert!(said.contains("has no column org_id; it has id, \"orgId\", uuid"), "{said}");
    let said = refused("documents --user-column uuid");
    assert!(said.contains("is uuid, and Clerk's ids are text"), "{said}");
    let output =
        clerk_sync(&database, &["policy", "print", "documents", "--organization-column", "orgId", "--role", "admin"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Do you mean org:admin?"));
}

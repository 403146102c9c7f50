//! `clerk-sync doctor`, as a person runs it: a good set-up has nothing to mend, each fault that is planted is named with its
//! fix, and nothing that is printed would have to be kept from a public issue.

use crate::support::{People, Project, SECRET, supabase, unique};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clerk_sync::model::{Kind, PassState};
use clerk_sync::reconcile::{PassLimits, PassRequest, Reconciler, Silent};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use testkit::clerk::{Fault, Rule, Shared};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

/// Everything that `doctor` looks at.
pub struct SetUp {
    pub world: testkit::World,
    ada: String,
    acme: String,
}

/// Checks by name, status and fix.
type Checks = Vec<(String, String, String)>;

impl SetUp {
    /// Migrated, filled by webhooks, and reconciled.
    pub async fn good() -> SetUp {
        let People { clerk, events, ada, acme } = People::now();
        let world = testkit::World::builder().clerk(clerk).serving().await.unwrap();
        for event in events {
            assert_eq!(world.attempt(&event.message_id, event.body.as_bytes()).await.status, 204);
        }
        let (world, server) = world.without_server();
        server.stop().await;
        let reconciler = Reconciler { times: PassLimits::default(), ..world.reconciler() };
        let reports =
            reconciler.run(&PassRequest::Kinds(Kind::ALL.to_vec()), "test", false, &mut Silent).await.unwrap();
        assert!(reports.iter().all(|report| report.state == PassState::Complete), "{reports:?}");
        // The database's clock is the machine's again.
        let how = clerk_sync::store::Migrating { repairs: true, ..Default::default() };
        clerk_sync::store::migrate(&world.database.database(), how).await.unwrap();
        SetUp { world, ada, acme }
    }

    /// The exit code, and what was printed.
    pub async fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_clerk-sync"));
        command
            .arg("doctor")
            .args(arguments)
            .env("DATABASE_URL", self.world.database.url())
            .env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET)
            .envs(self.world.api_environment())
            .env("CLERK_RATE_SHARE", "off")
            .envs(variables.iter().copied())
            .kill_on_drop(true);
        let output = command.output().await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.is_empty(), "{said}");
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    async fn examine(&self, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, Checks, String) {
        let (code, text) = self.run(&[&["--json"], arguments].concat(), variables).await;
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["ok"], code == 0);
        let field = |check: &Value, name: &str| check[name].as_str().unwrap_or_default().to_owned();
        let checks = report["checks"].as_array().unwrap().iter();
        let checks = checks.map(|check| (field(check, "name"), field(check, "status"), field(check, "fix"))).collect();
        (code, checks, text)
    }

    /// A session token as Clerk's Supabase integration makes them, with these claims changed; nobody checks its signature.
    pub fn token(&self, changed: Value) -> String {
        let now = clerk_sync::clock::now().get() / 1000;
        let mut claims = json!({
            "role": "authenticated", "sub": self.ada, "v": 2, "sid": "sess_1", "sts": "active", "iat": now, "exp": now + 60,
            "iss": "https://clerk.example.com", "azp": "https://app.example.com", "email": "ada@example.com",
            "o": { "id": self.acme, "rol": "admin", "slg": "acme-widgets" },
        });
        for (name, value) in changed.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let header = json!({ "alg": "RS256", "kid": self.world.clerk.lock().instance_id });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.{}", part(&header), part(&claims), URL_SAFE_NO_PAD.encode("no signature"))
    }
}

/// The names with a status.
fn with<'a>(checks: &'a Checks, status: &str) -> Vec<&'a str> {
    checks.iter().filter(|(_, is, _)| is == status).map(|(name, _, _)| name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_set_up_has_nothing_to_mend() {
    let set_up = SetUp::good().await;
    let (code, checks, text) = set_up.examine(&["--token", &set_up.token(json!({}))], &[]).await;
    assert_eq!(code, 0, "{text}");
    assert_eq!(with(&checks, "fail"), Vec::<&str>::new(), "{text}");
    assert_eq!(with(&checks, "skip"), Vec::<&str>::new(), "{text}");
    // Supabase's postgres may do more than serve needs.
    assert_eq!(with(&checks, "warn"), ["login-role"], "{text}");
    let seen = "organization_memberships 2, organizations 1, user_details 1, users 2";
    assert!(text.contains(seen) && text.contains(&set_up.ada) && text.contains(&set_up.acme), "{text}");
    let (code, text) = set_up.run(&[], &[]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("warn  login-role: ") && text.contains("\n      fix: "), "{text}");
    assert!(text.ends_with("Failed: 0. Warnings: 1. Skipped: 0.\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_of_its_own_is_enough_and_lacks_only_the_view_of_a_caller() {
    let set_up = SetUp::good().await;
    let role = unique("doctor_login");
    set_up.world.database.execute(&format!("create role {role} login")).await;
    let url = supabase().cluster().url(&role, &set_up.world.database.name);
    let token = set_up.token(json!({}));
    let arguments = ["--token", token.as_str()];
    let (code, checks, text) = set_up.examine(&arguments, &[("DATABASE_URL", &url)]).await;
    assert_eq!((code, with(&checks, "fail")), (1, vec!["worker-role"]), "{text}");
    assert!(text.contains(&format!("grant clerk_sync_worker to {role};")), "{text}");
    set_up.world.database.execute(&format!("grant clerk_sync_worker to {role}")).await;
    let (code, checks, text) = set_up.examine(&arguments, &[("DATABASE_URL", &url)]).await;
    assert_eq!((code, with(&checks, "warn"), with(&checks, "skip")), (0, vec![], vec!["token-rows"]), "{text}");
    let owner = set_up.world.database.url();
    let both = [("DATABASE_URL", url.as_str()), ("MIGRATE_DATABASE_URL", owner.as_str())];
    let (code, checks, text) = set_up.examine(&arguments, &both).await;
    assert_eq!((code, with(&checks, "skip")), (0, vec![]), "{text}");
}

/// How a fault is planted.
enum Plant {
    Sql(&'static str),
    Variable(&'static str, &'static str),
    Clerk(fn(&Shared)),
    Token(Value),
}

/// A fault of a set-up, and what `doctor` must say of it.
struct PlantedFault {
    name: &'static str,
    plant: Plant,
    /// The check that finds it.
    check: &'static str,
    status: &'static str,
    /// A passage of what is to be done.
    fix: &'static str,
}

#[tokio::test(flavor = "multi_thread")]
async fn each_planted_fault_is_named_with_its_fix_and_nothing_else_fails() {
    let faults = [
        PlantedFault {
            name: "secret of a wrong shape",
            plant: Plant::Variable("CLERK_WEBHOOK_SIGNING_SECRET", "whpk_bm90IGE"),
            check: "CLERK_WEBHOOK_SIGNING_SECRET",
            status: "fail",
            fix: "Signing Secret",
        },
        PlantedFault {
            name: "a status page for everybody in the network",
            plant: Plant::Variable("OPS_ADDR", "[::]:9091"),
            check: "OPS_TOKEN",
            status: "warn",
            fix: "openssl rand",
        },
        PlantedFault {
            name: "no secret key",
            plant: Plant::Variable("CLERK_SECRET_KEY", ""),
            check: "CLERK_SECRET_KEY",
            status: "warn",
            fix: "API keys",
        },
        PlantedFault {
            name: "publishable key",
            plant: Plant::Variable("CLERK_SECRET_KEY", "pk_live_Y2xlcms"),
            check: "CLERK_SECRET_KEY",
            status: "fail",
            fix: "API keys",
        },
        PlantedFault {
            name: "key that is revoked",
            plant: Plant::Clerk(|clerk| clerk.add_fault(Rule::on("*", Fault::Unauthorized))),
            check: "clerk-key",
            status: "fail",
            fix: "copy a secret key",
        },
        PlantedFault {
            name: "key of another instance",
            plant: Plant::Clerk(|clerk| clerk.add_fault(Rule::on("/v1/instance", Fault::WrongInstance))),
            check: "instance",
            status: "fail",
            fix: "--repin",
        },
        PlantedFault {
            name: "another instance wanted",
            plant: Plant::Variable("CLERK_INSTANCE_ID", "ins_of_another"),
            check: "instance",
            status: "fail",
            fix: "correct CLERK_INSTANCE_ID",
        },
        PlantedFault {
            name: "missing grant",
            plant: Plant::Sql(
                "revoke execute on function clerk_sync.apply(clerk_sync.batch_v1) from clerk_sync_worker",
            ),
            check: "missing-rights",
            status: "fail",
            fix: "grant execute on function clerk_sync.apply(clerk_sync.batch_v1) to clerk_sync_worker;",
        },
        PlantedFault {
            name: "missing select",
            plant: Plant::Sql("revoke select on clerk.users from authenticated"),
            check: "missing-rights",
            status: "fail",
            fix: "grant select on table clerk.users to authenticated;",
        },
        PlantedFault {
            name: "missing policy of the worker",
            plant: Plant::Sql("drop policy worker_reads on clerk.organizations"),
            check: "objects",
            status: "fail",
            fix: "clerk-sync migrate --repair",
        },
        PlantedFault {
            name: "worker that may write",
            plant: Plant::Sql("grant insert, delete on clerk.users to clerk_sync_worker"),
            check: "excess-rights",
            status: "fail",
            fix: "revoke delete on table clerk.users from clerk_sync_worker; revoke insert on table clerk.users from clerk_sync_worker;",
        },
        PlantedFault {
            name: "public that may read",
            plant: Plant::Sql("grant select on clerk.users to public"),
            check: "excess-rights",
            status: "fail",
            fix: "revoke select on table clerk.users from public;",
        },
        PlantedFault {
            name: "column that callers may write",
            plant: Plant::Sql("grant update (banned) on clerk.user_details to authenticated"),
            check: "excess-rights",
            status: "fail",
            fix: "revoke update (banned) on table clerk.user_details from authenticated;",
        },
        PlantedFault {
            name: "bookkeeping that callers may read",
            plant: Plant::Sql("grant select on clerk_sync.dead_letters to service_role"),
            check: "excess-rights",
            status: "fail",
            fix: "revoke select on table clerk_sync.dead_letters from service_role;",
        },
        PlantedFault {
            name: "RLS off",
            plant: Plant::Sql("alter table clerk.organization_memberships disable row level security"),
            check: "row-level-security",
            status: "fail",
            fix: "alter table clerk.organization_memberships enable row level security;",
        },
        PlantedFault {
            name: "stale schema",
            plant: Plant::Sql(
                "delete from clerk_sync._sqlx_migrations where version = (select max(version) from clerk_sync._sqlx_migrations)",
            ),
            check: "schema",
            status: "fail",
            fix: "clerk-sync migrate",
        },
        PlantedFault {
            name: "newer schema",
            plant: Plant::Sql(
                "insert into clerk_sync._sqlx_migrations select 9999, description, installed_on, success, checksum, execution_time from clerk_sync._sqlx_migrations limit 1",
            ),
            check: "schema",
            status: "warn",
            fix: "deploy the release",
        },
        PlantedFault {
            name: "transaction pooler",
            plant: Plant::Variable("DATABASE_URL", "postgres://postgres.ref:s3cret@db.example.com:6543/postgres"),
            check: "DATABASE_URL",
            status: "fail",
            fix: "Session pooler",
        },
        PlantedFault {
            name: "clock six minutes fast",
            plant: Plant::Clerk(|clerk| {
                let mut clerk = clerk.lock();
                clerk.now -= 360_000;
                clerk.run_clock();
            }),
            check: "clock",
            status: "fail",
            fix: "synchronize",
        },
        PlantedFault {
            name: "clock a minute slow",
            plant: Plant::Clerk(|clerk| {
                let mut clerk = clerk.lock();
                clerk.now += 60_000;
                clerk.run_clock();
            }),
            check: "clock",
            status: "warn",
            fix: "synchronize",
        },
        PlantedFault {
            name: "organizations off",
            plant: Plant::Clerk(|clerk| clerk.lock().organizations_enabled = false),
            check: "organizations",
            status: "warn",
            fix: "Organizations → Settings",
        },
        PlantedFault {
            name: "policy with auth.uid()",
            plant: Plant::Sql(
                "create table public.notes (id uuid primary key); alter table public.notes enable row level security; create policy own on public.notes for select to authenticated using (id = (select auth.uid()))",
            ),
            check: "policies",
            status: "fail",
            fix: "clerk_rls.user_id()",
        },
        PlantedFault {
            name: "token without role",
            plant: Plant::Token(json!({ "role": null })),
            check: "token-role",
            status: "fail",
            fix: "Integrations → Supabase",
        },
        PlantedFault {
            name: "token of a stranger",
            plant: Plant::Token(json!({ "sub": "user_of_nobody" })),
            check: "token-rows",
            status: "fail",
            fix: "clerk-sync refresh user_of_nobody",
        },
        PlantedFault {
            name: "token of a pending session",
            plant: Plant::Token(json!({ "sts": "pending" })),
            check: "token-rows",
            status: "fail",
            fix: "finish the task",
        },
        PlantedFault {
            name: "token of an organization that was left",
            plant: Plant::Token(json!({ "o": { "id": "org_left", "rol": "admin" } })),
            check: "token-rows",
            status: "warn",
            fix: "clerk-sync refresh org_left",
        },
        PlantedFault {
            name: "token that is too old",
            plant: Plant::Token(json!({ "exp": 1_700_000_000 })),
            check: "token-time",
            status: "warn",
            fix: "copy a new one",
        },
        PlantedFault {
            name: "user who is banned",
            plant: Plant::Sql("update clerk.user_details set banned = true"),
            check: "token-rows",
            status: "fail",
            fix: "Unban",
        },
        PlantedFault {
            name: "no webhook ever",
            plant: Plant::Sql("delete from clerk_sync.receipts"),
            check: "webhooks",
            status: "warn",
            fix: "Add endpoint",
        },
        PlantedFault {
            name: "restricting key on memberships",
            plant: Plant::Sql(
                "create table public.notes (m text references clerk.organization_memberships); alter table public.notes enable row level security",
            ),
            check: "foreign-objects",
            status: "fail",
            fix: "refer to clerk.users or clerk.organizations",
        },
        PlantedFault {
            name: "cascading key on details",
            plant: Plant::Sql(
                "create table public.notes (u text references clerk.user_details on delete cascade); alter table public.notes enable row level security",
            ),
            check: "foreign-objects",
            status: "warn",
            fix: "refer to clerk.users or clerk.organizations",
        },
        PlantedFault {
            name: "trigger on users",
            plant: Plant::Sql(
                "create function public.f() returns trigger language plpgsql as 'begin return new; end'; \
                 create trigger t after insert on clerk.users for each row execute function public.f()",
            ),
            check: "foreign-objects",
            status: "warn",
            fix: "name every schema in it",
        },
        PlantedFault {
            name: "unique index",
            plant: Plant::Sql("create unique index one on clerk.user_details (email_address)"),
            check: "foreign-objects",
            status: "warn",
            fix: "are not unique there",
        },
        PlantedFault {
            name: "expression index",
            plant: Plant::Sql("create index e on clerk.user_details ((unsafe_metadata ->> 'handle'))"),
            check: "foreign-objects",
            status: "warn",
            fix: "no value of Clerk's can break it",
        },
        PlantedFault {
            name: "check",
            plant: Plant::Sql("alter table clerk.user_details add constraint c check (length(email_address) < 1000)"),
            check: "foreign-objects",
            status: "warn",
            fix: "no value of Clerk's can break it",
        },
        PlantedFault {
            name: "rule",
            plant: Plant::Sql("create rule r as on delete to clerk.organization_memberships do instead nothing"),
            check: "foreign-objects",
            status: "warn",
            fix: "drop it",
        },
        PlantedFault {
            name: "trigger on versions",
            plant: Plant::Sql(
                "create function public.f() returns trigger language plpgsql as 'begin return new; end'; \
                 create trigger t after insert on clerk_sync.versions for each row execute function public.f()",
            ),
            check: "foreign-objects",
            status: "fail",
            fix: "nothing but clerk-sync",
        },
        PlantedFault {
            name: "index on receipts",
            plant: Plant::Sql("create index i on clerk_sync.receipts (lower(event_type))"),
            check: "foreign-objects",
            status: "fail",
            fix: "nothing but clerk-sync",
        },
        PlantedFault {
            name: "check on denials",
            plant: Plant::Sql("alter table clerk_sync.denials add check (kind <> 'user')"),
            check: "foreign-objects",
            status: "fail",
            fix: "nothing but clerk-sync",
        },
        PlantedFault {
            name: "denial",
            plant: Plant::Sql(
                "insert into clerk_sync.denials (kind, id, sqlstate, object) values ('membership', 'orgmem_1', '23503', 'notes_m_fkey')",
            ),
            check: "denials",
            status: "fail",
            fix: "clerk-sync refresh",
        },
        PlantedFault {
            name: "silent endpoint",
            plant: Plant::Sql(
                "update clerk_sync.receipts set received_at = now() - interval '16 days'; \
                 update clerk_sync.passes set missing = 60, backfill = false where scope = 'user'",
            ),
            check: "webhooks",
            status: "warn",
            fix: "is the endpoint there",
        },
        PlantedFault {
            name: "no pass can begin",
            plant: Plant::Sql("insert into clerk_sync.failed_start (problem) values ('Clerk refuses the key (401)')"),
            check: "passes",
            status: "fail",
            fix: "fix what is named",
        },
        PlantedFault {
            name: "no pass ever",
            plant: Plant::Sql("delete from clerk_sync.passes"),
            check: "passes",
            status: "warn",
            fix: "clerk-sync reconcile",
        },
        PlantedFault {
            name: "brake",
            plant: Plant::Sql("update clerk_sync.passes set state = 'braked' where scope = 'user'"),
            check: "passes",
            status: "fail",
            fix: "--approve",
        },
        PlantedFault {
            name: "drift",
            plant: Plant::Clerk(|clerk| {
                clerk.lock().create_user("Cleo", "Night");
            }),
            check: "rows",
            status: "warn",
            fix: "clerk-sync reconcile",
        },
    ];
    for PlantedFault { name, plant, check, status, fix } in faults {
        let set_up = SetUp::good().await;
        let mut variables = Vec::new();
        let mut token = set_up.token(json!({}));
        match plant {
            Plant::Sql(sql) => set_up.world.database.execute(sql).await,
            Plant::Variable(variable, value) => variables.push((variable, value)),
            Plant::Clerk(change) => change(&set_up.world.clerk),
            Plant::Token(changed) => token = set_up.token(changed),
        }
        let (code, checks, text) = set_up.examine(&["--token", &token], &variables).await;
        let found = checks.iter().any(|(is, of, how)| is == check && of == status && how.contains(fix));
        assert!(found, "{name}: {text}");
        assert_eq!(code, i32::from(status == "fail"), "{name}: {text}");
        assert!(with(&checks, "fail").iter().all(|failed| *failed == check), "{name}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_database_and_a_schema_of_somebody_else_are_told_apart() {
    let set_up = SetUp::good().await;
    let empty = Project::named(unique("empty"));
    supabase().create(&empty.name).await.unwrap();
    let url = empty.url();
    let variables = [("DATABASE_URL", url.as_str())];
    let (_, checks, text) = set_up.examine(&[], &variables).await;
    assert_eq!(with(&checks, "fail"), ["schema"], "{text}");
    assert!(text.contains("\"fix\": \"clerk-sync migrate\""), "{text}");
    empty.execute("create schema clerk; create table clerk.users (id text)").await;
    let (_, checks, text) = set_up.examine(&[], &variables).await;
    assert_eq!(with(&checks, "fail"), ["schema"], "{text}");
    assert!(text.contains("alter schema clerk rename to clerk_fdw"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_printed_is_secret_or_personal_and_nothing_is_written() {
    let set_up = SetUp::good().await;
    let before = set_up.world.database.written().await;
    let token = set_up.token(json!({ "name": "Ada Lovelace", "azp": "ada@example.com" }));
    let url = set_up.world.database.url().replacen("postgres@", "postgres:s3cret-pa55@", 1);
    let unreachable = "postgres://postgres:s3cret-pa55@127.0.0.1:9/postgres";
    let key = "sk_live_s3cret";
    let mut printed = String::new();
    for variables in [
        vec![("DATABASE_URL", url.as_str())],
        vec![("DATABASE_URL", unreachable)],
        vec![("DATABASE_URL", "postgres://postgres:s3cret-pa55@db.example.com:6543/postgres")],
        vec![("CLERK_SECRET_KEY", key)],
        vec![("CLERK_WEBHOOK_SIGNING_SECRET", "whsec_%s3cret")],
        vec![("CLERK_INSTANCE_ID", "sk_live_s3cret"), ("RECONCILE_CRON", "s3cret"), ("CLERK_API_URL", "s3cret")],
    ] {
        for arguments in [vec!["--token", token.as_str()], vec!["--json", "--token", token.as_str()]] {
            printed.push_str(&set_up.run(&arguments, &variables).await.1);
        }
    }
    let (signature, secret) = (token.rsplit('.').next().unwrap(), SECRET.trim_start_matches("whsec_"));
    let own_key = set_up.world.clerk.lock().secret_key.clone();
    for hidden in
        ["s3cret", secret, &own_key, signature, "@", "Ada", "Lovelace", "Ben", "Acme", "acme", "example.com:6543"]
    {
        assert!(!printed.contains(hidden), "{hidden}: {printed}");
    }
    assert!(before == set_up.world.database.written().await, "doctor wrote");
}

/// A transaction-mode pooler with one connection to lend, as far as `doctor` needs one: each round trip of any client goes
/// over it, and the server's greeting is repeated to all.
async fn transaction_pooler(database: &str) -> SocketAddr {
    let mut server = UnixStream::connect(supabase().cluster().dir().join(".s.PGSQL.5432")).await.unwrap();
    let mut startup = [0, 0, 0, 0, 0, 3, 0, 0].to_vec();
    startup.extend(format!("user\0postgres\0database\0{database}\0\0").bytes());
    let length = u32::try_from(startup.len()).unwrap().to_be_bytes();
    startup[..4].copy_from_slice(&length);
    server.write_all(&startup).await.unwrap();
    let greeting = until_ready(&mut server).await;
    let server = Arc::new(tokio::sync::Mutex::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (server, greeting) = (server.clone(), greeting.clone());
            tokio::spawn(async move {
                let length = client.read_u32().await?;
                client.read_exact(&mut vec![0; length as usize - 4]).await?;
                client.write_all(&greeting).await?;
                let mut question = Vec::new();
                loop {
                    let message = message(&mut client).await?;
                    question.extend_from_slice(&message);
                    match message[0] {
                        b'X' => return Ok::<(), std::io::Error>(()),
                        b'Q' | b'S' => {}
                        _ => continue,
                    }
                    let mut server = server.lock().await;
                    server.write_all(&std::mem::take(&mut question)).await?;
                    client.write_all(&until_ready(&mut server).await).await?;
                }
            });
        }
    });
    address
}

async fn message(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; 5];
    from.read_exact(&mut message).await?;
    let length = u32::from_be_bytes(message[1..].try_into().unwrap()) as usize;
    message.resize(length + 1, 0);
    from.read_exact(&mut message[5..]).await?;
    Ok(message)
}

async fn until_ready(server: &mut UnixStream) -> Vec<u8> {
    let mut answer = Vec::new();
    loop {
        let message = message(server).await.expect("the server answers");
        answer.extend_from_slice(&message);
        if message[0] == b'Z' {
            return answer;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_pooler_behind_another_port_is_found_out() {
    let set_up = SetUp::good().await;
    let address = transaction_pooler(&set_up.world.database.name).await;
    let url = format!("postgres://postgres@{address}/{}?sslmode=disable", set_up.world.database.name);
    let (code, checks, text) = set_up.examine(&[], &[("DATABASE_URL", &url)]).await;
    assert_eq!((code, with(&checks, "fail")), (1, vec!["pooler"]), "{text}");
    assert!(text.contains("session pooler (port 5432)"), "{text}");
}

//! Why there is no connection: what `doctor` makes of connection strings that cannot work, and of what poolers and servers answer.

use crate::support::pgbouncer::PgBouncer;
use crate::support::{SECRET, database, supabase};
use clerk_sync::sender::Sender;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use testkit::clerk::Clerk;
use testkit::worker::{Options, Worker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_clerk-sync");

/// The checks that failed, each with what it says and its fix, and all that was said.
async fn doctor(variables: &[(&str, &str)]) -> (Vec<(String, String, String)>, String) {
    let output = Command::new(PROGRAM)
        .args(["doctor", "--json"])
        .env_clear()
        .current_dir("/")
        .env("CLERK_WEBHOOK_SIGNING_SECRET", SECRET)
        .envs(variables.iter().copied())
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let word = |check: &Value, name: &str| check[name].as_str().unwrap_or_default().to_owned();
    let failed = report["checks"].as_array().unwrap().iter().filter(|check| check["status"] == "fail");
    let failed = failed.map(|check| (word(check, "name"), word(check, "found"), word(check, "fix"))).collect();
    (failed, text + &String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_connection_string_that_cannot_work_is_told_by_its_cause_once() {
    let folder = std::env::temp_dir().display().to_string();
    let a_folder = format!("postgres://postgres@localhost:5432/postgres?sslmode=verify-full&sslrootcert={folder}");
    let no_file = "postgres://postgres@localhost:5432/postgres?sslmode=verify-full&sslrootcert=/nowhere/ca.crt";
    let no_certificate = "postgres://postgres@localhost:5432/postgres?sslmode=verify-full&sslrootcert=/etc/passwd";
    let verified = "?sslmode=verify-full";
    let url = |text: &str| format!("{text}{verified}");
    for (text, name, says) in [
        (url("postgres://postgres:#secret@db.example.com:5432/postgres"), "DATABASE_URL", "write %23 for #"),
        (url("postgres://postgres:123#abc@db.example.com:5432/postgres"), "DATABASE_URL", "write %23 for #"),
        (url("postgres://postgres:12/34@db.example.com:5432/postgres"), "DATABASE_URL", "%2F for /"),
        (url("postgres://postgres:?x@db.example.com:5432/postgres"), "DATABASE_URL", "%3F for ?"),
        (
            "postgres://postgres:pw@db.example.com:5432/postgres?sslmode=no-verify".to_owned(),
            "DATABASE_URL",
            "Node calls no-verify is require",
        ),
        (
            "postgres://postgres:pw@db.example.com:5432/postgres?sslmode=required".to_owned(),
            "DATABASE_URL",
            "one of disable, allow, prefer, require, verify-ca, verify-full",
        ),
        (
            "postgres://postgres:pw@db.example.com/postgres?port=abc".to_owned(),
            "DATABASE_URL",
            "has a port that is not a number",
        ),
        ("postgres://postgres:[YOUR-PASSWORD]@db.example.com:5432/postgres".to_owned(), "DATABASE_URL", "placeholder"),
        (
            "\"postgres://postgres:pw@db.example.com:5432/postgres\"".to_owned(),
            "DATABASE_URL",
            "begins with a quotation mark",
        ),
        (
            "'postgres://postgres:pw@db.example.com:5432/postgres'".to_owned(),
            "DATABASE_URL",
            "begins with a quotation mark",
        ),
        (
            "postgres://postgres@[::1]:1/postgres?sslmode=disable".to_owned(),
            "database",
            "no server answers at the host and port",
        ),
        (a_folder, "database", "sslrootcert is a folder"),
        (no_file.to_owned(), "database", "sslrootcert does not exist"),
        (no_certificate.to_owned(), "database", "sslrootcert has no certificate in it"),
    ] {
        let (failed, said) = doctor(&[("DATABASE_URL", &text)]).await;
        assert_eq!(failed.len(), 1, "{text}: {failed:#?}");
        assert!(failed[0].0 == name && failed[0].1.contains(says), "{text}: {failed:#?}");
        println!("{text}\n    {}: {}", failed[0].0, failed[0].1);
        for hidden in ["#secret", "#abc", "12/34", "example.com", ":pw"] {
            assert!(!said.contains(hidden), "{text}: {said}");
        }
    }
    // A bracketed IPv6 address leads somewhere.
    if let Ok(listener) = TcpListener::bind("[::1]:0").await {
        let port = listener.local_addr().unwrap().port();
        let accepted = tokio::spawn(async move { listener.accept().await.is_ok() });
        doctor(&[("DATABASE_URL", &format!("postgres://postgres@[::1]:{port}/postgres?sslmode=disable"))]).await;
        assert!(accepted.is_finished() && accepted.await.unwrap());
    }
    // The quotes of docker, told for every variable that has them.
    let (failed, _) = doctor(&[
        ("DATABASE_URL", "\"postgres://u@db.example.com/postgres\""),
        ("CLERK_SECRET_KEY", "\"sk_test_x\""),
        ("CLERK_WEBHOOK_SIGNING_SECRET", &format!("\"{SECRET}\"")),
        ("CLERK_INSTANCE_ID", "'ins_1'"),
        ("CLERK_API_URL", "'https://api.clerk.com'"),
        ("OPS_ADDR", "\"127.0.0.1:9091\""),
        ("RECONCILE_CRON", "\"17 3 * * *\""),
    ])
    .await;
    assert_eq!(failed.len(), 7, "{failed:#?}");
    assert!(failed.iter().all(|(_, says, _)| says.contains("quotation mark")), "{failed:#?}");
}

/// A server that answers each login with an error, and counts them.
pub async fn refusing(code: &'static str, message: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let logins = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&logins);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            counts.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let length = client.read_u32().await?;
                client.read_exact(&mut vec![0; length as usize - 4]).await?;
                let body = format!("SFATAL\0VFATAL\0C{code}\0M{message}\0\0");
                let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
                client.write_all(&[b"E", &length[..], body.as_bytes()].concat()).await?;
                client.shutdown().await
            });
        }
    });
    (address, logins)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_poolers_and_servers_refuse_with_is_understood() {
    for (code, message, says, fix) in [
        ("XX000", "(ENOTFOUND) tenant/user postgres.abcdefgh not found", "does not know the project", "aws-0, aws-1"),
        (
            "XX000",
            "(ENOIDENTIFIER) no tenant identifier provided (external_id or sni_hostname required)",
            "does not know the project",
            "postgres.REF",
        ),
        ("XX000", "Tenant or user not found", "does not know the project", "paused or deleted"),
        (
            "XX000",
            "(EMAXCONNSESSION) max clients reached in session mode - max clients are limited to pool_size: 15",
            "no connection left",
            "raise the pool size",
        ),
        (
            "XX000",
            "MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size",
            "no connection left",
            "raise the pool size",
        ),
        (
            "XX000",
            "(ECHECKOUTTIMEOUT) unable to check out connection from the pool after 60000ms in Session mode",
            "no connection left",
            "raise the pool size",
        ),
        (
            "XX000",
            "(ECIRCUITBREAKER) too many authentication failures, new connections are temporarily blocked",
            "refuses every login from this address",
            "wait two minutes",
        ),
        (
            "XX000",
            "(EADDRNOTALLOWED) address not in tenant allow_list: {10, 0, 0, 1}",
            "network restrictions",
            "add the address",
        ),
        (
            "XX000",
            "(ESSLREQUIRED) SSL connection is required for user: postgres",
            "encrypted connections only",
            "sslmode=verify-full",
        ),
        (
            "XX000",
            "(EAUTHQUERY) user not found in the database",
            "refuses the role or its password",
            "copy the connection string",
        ),
        (
            "XX000",
            "(EDBHANDLEREXITED) connection to database closed. Check logs for more information",
            "cannot log in to the database behind it",
            "paused",
        ),
        (
            "28P01",
            "password authentication failed for user \"postgres\"",
            "refuses the role or its password",
            "percent-encode",
        ),
        (
            "28000",
            "no pg_hba.conf entry for host \"10.0.0.1\", user \"postgres\", database \"postgres\", no encryption",
            "encrypted connections only",
            "sslmode=verify-full",
        ),
        ("53300", "sorry, too many clients already", "no connection left", "raise the pool size"),
        ("08P01", "no such user: postgres", "refuses the role or its password", "copy the connection string"),
        ("08P01", "unsupported startup parameter: options", "refuses a parameter", "ignore_startup_parameters"),
        (
            "08P01",
            "pgbouncer cannot connect to server",
            "cannot log in to the database behind it",
            "PgBouncer is your own",
        ),
        ("3D000", "database \"postgre\" does not exist", "no such database", "on Supabase its name is postgres"),
    ] {
        let (address, _) = refusing(code, message).await;
        let url = format!("postgres://postgres.abcdefgh:PASSWORD-CANARY@{address}/postgres?sslmode=disable");
        let (failed, said) = doctor(&[("DATABASE_URL", &url)]).await;
        assert_eq!(failed.len(), 1, "{message}: {failed:#?}");
        let (name, told, how) = &failed[0];
        assert!(name == "database" && told.contains(says) && how.contains(fix), "{message}: {failed:#?}");
        println!("{message}\n    {told}\n    fix: {how}");
        assert!(!said.contains("abcdefgh") && !said.contains("CANARY") && !said.contains("10.0.0.1"), "{said}");
    }
}

/// Ten of them within 150 s, and Supabase's pooler blocks the address for everybody behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_password_is_tried_once_and_not_again_for_a_while() {
    let (address, logins) = refusing("28P01", "password authentication failed for user \"postgres\"").await;
    let options = Options {
        program: PathBuf::from(PROGRAM),
        database_url: format!("postgres://postgres:old@{address}/postgres?sslmode=disable"),
        environment: vec![
            ("CLERK_SECRET_KEY", "sk_test_x".to_owned()),
            ("CLERK_API_URL", "http://127.0.0.1:9".to_owned()),
        ],
    };
    let worker = Worker::start(options).await.unwrap();
    let sender = Sender::new(worker.webhook_url(), SECRET).unwrap();
    for n in 0..20 {
        let attempt = sender.send(&format!("msg_{n}"), br#"{"type": "user.deleted", "data": {"id": "user_1"}}"#).await;
        assert_eq!(attempt.unwrap().status, 503);
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(logins.load(Ordering::Relaxed), 1, "{:?}", worker.log_end());
    let log = worker.log_end().join("\n");
    assert!(log.contains("refuses the login role or its password") && log.contains("SQLSTATE 28P01"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_too_small_is_told_as_such() {
    for (waits, told) in [("120", "its pooler has no free connection"), ("1", "its pooler has no connection left")] {
        let settings = format!("pool_mode = session\ndefault_pool_size = 1\nquery_wait_timeout = {waits}");
        let Some(pooler) = PgBouncer::start(supabase().cluster(), &settings) else { return };
        let (failed, _) = doctor(&[("DATABASE_URL", &pooler.url(&database().await.name))]).await;
        assert_eq!(failed.len(), 1, "{failed:#?}");
        let (name, says, fix) = &failed[0];
        assert!(name == "database" && says.contains(told), "{failed:#?}");
        assert!(fix.contains("raise the pool size") && fix.contains("serve needs two"), "{failed:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_the_database_refuses_names_the_code() {
    let mut clerk = Clerk::new(7, clerk_sync::clock::now().get());
    clerk.create_user("Ada", "Lovelace");
    let world = testkit::World::builder().clerk(clerk).start().await.unwrap();
    world.database.execute("drop function clerk_sync.record_page(jsonb, clerk_sync.batch_v1)").await;
    let output = Command::new(PROGRAM)
        .args(["reconcile", "--kind", "users"])
        .env_clear()
        .current_dir("/")
        .env("DATABASE_URL", world.database.url())
        .envs(world.api_environment())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.matches("the database refused the call (SQLSTATE 42883)").count() == 1,
        "{said}"
    );
}

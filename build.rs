//! A migration that is added or changed is compiled in anew. `--version` says which commit was built. And no build asks a database.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-changed=build.rs");
    for variable in ["CLERK_SYNC_COMMIT", "CLERK_SYNC_DATE"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rustc-env=CLERK_SYNC_BUILD={}", build());
    check_queries_offline();
}

/// The macros of sqlx take the types of parameters and columns from `.sqlx`. Without this they would connect to the `DATABASE_URL` of
/// the environment or of a `.env` file, which may be a production database. `./x queries` alone lets them, to write `.sqlx`.
fn check_queries_offline() {
    println!("cargo:rerun-if-changed=.sqlx");
    println!("cargo:rerun-if-env-changed=CLERK_SYNC_DESCRIBE_QUERIES");
    if std::env::var_os("CLERK_SYNC_DESCRIBE_QUERIES").is_none() {
        println!("cargo:rustc-env=SQLX_OFFLINE=true");
    }
}

/// Commit and date: as the environment has them (an image is built without `.git`), else as git has them. A build for development
/// does not ask git: it would be built anew with each commit.
fn build() -> String {
    let given = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let (Some(commit), Some(date)) = (given("CLERK_SYNC_COMMIT"), given("CLERK_SYNC_DATE")) {
        return format!("{}, {date}", &commit[..commit.len().min(12)]);
    }
    if std::env::var("PROFILE").as_deref() != Ok("release") {
        return "development build".to_owned();
    }
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={head}");
    }
    git(&["log", "-1", "--format=%h, %cs", "--abbrev=12"]).unwrap_or_else(|| "unknown commit".to_owned())
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

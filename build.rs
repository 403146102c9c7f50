//! A migration that is added or changed is compiled in anew. And `--version` says which commit was built.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-changed=build.rs");
    for variable in ["CLERK_SYNC_COMMIT", "CLERK_SYNC_DATE"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rustc-env=CLERK_SYNC_BUILD={}", build());
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

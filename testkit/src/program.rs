//! Where is the product's program? Cargo puts it beside the laboratory's, and above the tests'.

use anyhow::ensure;
use std::path::PathBuf;
use std::process::Command;

/// Names the program to start, before all others: another build of it, to be measured.
pub const VARIABLE: &str = "CLERK_SYNC_BIN";

/// The `clerk-sync` to start as a process.
///
/// # Errors
/// It was not built: `cargo build -p clerk-sync` does that, and `./x` before whatever needs it.
pub fn path() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os(VARIABLE) {
        return Ok(named.into());
    }
    let ours = std::env::current_exe()?;
    let folder =
        ours.parent().map(|folder| if folder.ends_with("deps") { folder.join("..") } else { folder.to_owned() });
    let program = folder.unwrap_or_default().join(format!("clerk-sync{}", std::env::consts::EXE_SUFFIX));
    ensure!(
        program.is_file(),
        "{} is not there: build it with cargo build -p clerk-sync, or name one in {VARIABLE}",
        program.display()
    );
    Ok(program)
}

/// Whether it was built with the feature `failpoints`: only then it minds what `CLERK_SYNC_FAILPOINT` says.
///
/// # Errors
/// It cannot be started.
pub fn has_failpoints() -> anyhow::Result<bool> {
    let mut command = Command::new(path()?);
    let output = command.arg("serve").env_clear().env("CLERK_SYNC_FAILPOINT", "?").current_dir("/").output()?;
    Ok(String::from_utf8_lossy(&output.stderr).contains("CLERK_SYNC_FAILPOINT"))
}

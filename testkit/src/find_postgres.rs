//! Where is Postgres? Distributions keep its programs off the `PATH`, several versions side by side.

use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// Names the folder with `initdb`, `pg_ctl` and `postgres` to use, before all others.
pub const BIN_VARIABLE: &str = "CLERK_SYNC_POSTGRES_BIN";

/// The folder with the programs: the one that the variable names, else the newest of those in the usual places.
pub(super) fn find() -> anyhow::Result<PathBuf> {
    if let Some(bin) = std::env::var_os(BIN_VARIABLE) {
        return usable(Path::new(&bin))
            .with_context(|| format!("{BIN_VARIABLE} names no folder with initdb and postgres"));
    }
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let versioned = [
        "/usr/lib/postgresql",
        "/Applications/Postgres.app/Contents/Versions",
        "/usr",
        "/opt/homebrew/opt",
        "/usr/local/opt",
    ];
    let mut found: Vec<(u32, PathBuf)> = versioned
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let digits =
                name.trim_start_matches("postgresql").trim_start_matches("pgsql").trim_start_matches(['@', '-']);
            Some((digits.parse().ok()?, usable(&entry.path().join("bin"))?))
        })
        .collect();
    found.sort();
    let newest = found.pop().map(|(_, bin)| bin);
    std::env::split_paths(&on_path)
        .find_map(|folder| usable(&folder))
        .or(newest)
        .context("no Postgres found: install one (Debian: apt-get install postgresql; macOS: brew install postgresql), or run ./x, which gets one")
}

/// The real folder of `initdb`, if `postgres` is there too: it looks for its own files beside its real path.
fn usable(bin: &Path) -> Option<PathBuf> {
    let real = bin.join("initdb").canonicalize().ok()?.parent()?.to_owned();
    real.join("postgres").is_file().then_some(real)
}

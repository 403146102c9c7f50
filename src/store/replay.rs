//! Views, functions and policies: `migrate` creates them again when a release brings newer ones.
//!
//! They are the files of `migrations/replayed`, in the order of their numbers. Together they have one number, their *generation*, which
//! goes up with every change of them. The database keeps the generation that it has, and a hash of each file, in the one row of
//! `clerk_sync.replayed`. A release that is older than the database changes nothing, so that a rollback does not put its functions
//! under workers of the newer release.

use super::Error;
use crate::model::hex;
use anyhow::{Context as _, bail};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, SqlStr};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// A file of `migrations/replayed`.
pub(super) struct File {
    pub(super) name: String,
    pub(super) sql: SqlStr,
    pub(super) sha256: String,
}

/// In the order in which they run.
pub(super) static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    let embedded: Migrator = sqlx::migrate!("./migrations/replayed");
    let file = |file: &sqlx::migrate::Migration| File {
        name: format!("{:03}_{}.sql", file.version, file.description.replace(' ', "_")),
        sql: file.sql.clone(),
        sha256: hex(&Sha256::digest(file.sql.as_str())),
    };
    embedded.iter().map(file).collect()
});

/// A line for each generation, the newest last: its number, and a hash over the names and contents of all files.
const GENERATIONS: &str = include_str!("../../migrations/replayed/GENERATIONS");

/// The generation of this program's files.
pub(super) static GENERATION: LazyLock<i32> =
    LazyLock::new(|| newest(GENERATIONS).map(|(number, _)| number).expect("a test reads this file"));

fn newest(generations: &str) -> Option<(i32, &str)> {
    let (number, sha256) = generations.trim_end().lines().next_back()?.split_once(' ')?;
    Some((number.parse().ok()?, sha256))
}

/// What the database says of itself.
#[derive(Deserialize)]
struct Recorded {
    generation: i32,
    /// The hash of each file, by its name.
    files: BTreeMap<String, String>,
}

/// The statement that records what this program's files make.
pub(super) fn record() -> String {
    format!(
        "insert into clerk_sync.replayed (generation, files, release)\n  values ({}, '{}', '{}')\n  \
         on conflict (only_row) do update\n    set generation = excluded.generation, files = excluded.files, \
         release = excluded.release, replayed_at = now();",
        *GENERATION,
        hashes(),
        env!("CARGO_PKG_VERSION")
    )
}

/// The hash of each file, by its name, as JSON.
fn hashes() -> String {
    let hashes: BTreeMap<&str, &str> = FILES.iter().map(|file| (file.name.as_str(), file.sha256.as_str())).collect();
    serde_json::to_string(&hashes).expect("strings become JSON")
}

/// Which files run: those that changed since the database's generation, or, to repair, all of them.
///
/// # Errors
/// The database has other files under the same number, or, to repair, a newer generation.
fn to_run(recorded: Option<&Recorded>, all: bool) -> anyhow::Result<Vec<&'static File>> {
    let own = *GENERATION;
    let Some(Recorded { generation, files }) = recorded else { return Ok(FILES.iter().collect()) };
    if all && *generation > own {
        bail!(
            "the functions in the database are of a newer release (generation {generation}, this program has {own}): repair \
             them with that release"
        );
    }
    if all {
        return Ok(FILES.iter().collect());
    }
    if *generation > own {
        return Ok(Vec::new());
    }
    let changed: Vec<&File> = FILES.iter().filter(|file| files.get(&file.name) != Some(&file.sha256)).collect();
    let removed = files.keys().find(|name| FILES.iter().all(|file| file.name != **name));
    let differs = changed.first().map(|file| &file.name).or(removed);
    match differs {
        Some(name) if *generation == own => bail!(
            "the functions in the database have this program's generation, {own}, and are not the same (as {name} shows): another \
             build of clerk-sync migrated it. If this one is right, `clerk-sync migrate --repair` creates them all again"
        ),
        _ => Ok(changed),
    }
}

/// Creates again what the release changed, or `all`, in one transaction. No writer writes meanwhile.
///
/// # Errors
/// As [`to_run`]; or the database refused, and has what it had.
pub(super) async fn replay(connection: &mut PgConnection, all: bool) -> anyhow::Result<()> {
    let mut transaction = connection.begin().await.map_err(Error::Refused)?;
    let locking = sqlx::raw_sql("lock table clerk_sync.writer in exclusive mode").execute(&mut *transaction).await;
    locking.map_err(Error::Refused).context("cannot wait for the writers")?;
    let recorded = sqlx::query_scalar!(
        r#"select pg_catalog.json_build_object('generation', generation, 'files', files)::text as "recorded!" from clerk_sync.replayed"#
    );
    let recorded = recorded.fetch_optional(&mut *transaction).await.map_err(Error::Refused)?;
    let recorded: Option<Recorded> = recorded.as_deref().map(serde_json::from_str).transpose()?;
    let is_newer = recorded.as_ref().is_none_or(|recorded| *GENERATION > recorded.generation);
    let files = to_run(recorded.as_ref(), all)?;
    for file in &files {
        let running = sqlx::raw_sql(file.sql.clone()).execute(&mut *transaction).await;
        running.with_context(|| format!("migrations/replayed/{} failed; all of them were rolled back", file.name))?;
    }
    if is_newer || all {
        sqlx::raw_sql(AssertSqlSafe(record())).execute(&mut *transaction).await.map_err(Error::Refused)?;
    }
    transaction.commit().await.map_err(Error::Refused)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `./x generation` computes.
    fn sha256() -> String {
        let mut all = Sha256::new();
        for file in FILES.iter() {
            all.update(format!("{}\0{}\0", file.name, file.sql.as_str()));
        }
        hex(&all.finalize())
    }

    #[test]
    fn the_generation_goes_up_with_every_change_of_a_replayed_file() {
        let (number, recorded) = newest(GENERATIONS).expect("the last line of GENERATIONS is a number and a hash");
        let sha256 = sha256();
        assert!(
            recorded == sha256,
            "a file of migrations/replayed was changed. `./x generation` writes what GENERATIONS must say then:\n\
             the new line {} {sha256}\n\
             or, as long as no released version has generation {number}, {number} {sha256} in place of its last line",
            number + 1
        );
        for (line, number) in GENERATIONS.lines().zip(1..) {
            assert!(newest(line).is_some_and(|(n, hash)| n == number && hash.len() == 64), "{line}");
        }
    }

    /// sqlx has taken the names apart.
    #[test]
    fn the_files_have_the_names_that_they_have_on_disk() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/replayed");
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "GENERATIONS").collect();
        names.sort();
        assert_eq!(FILES.iter().map(|file| file.name.clone()).collect::<Vec<_>>(), names);
    }

    fn recorded(generation: i32, change: impl FnOnce(&mut BTreeMap<String, String>)) -> Option<Recorded> {
        let mut files = serde_json::from_str(&hashes()).unwrap();
        change(&mut files);
        Some(Recorded { generation, files })
    }

    #[test]
    fn only_a_newer_generation_runs_and_of_it_what_changed() {
        let run = |recorded: Option<Recorded>, all| {
            to_run(recorded.as_ref(), all).map(|files| files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>())
        };
        let (own, first, last) = (*GENERATION, FILES[0].name.as_str(), FILES.last().unwrap().name.as_str());
        let everything: Vec<&str> = FILES.iter().map(|file| file.name.as_str()).collect();
        let changed = |files: &mut BTreeMap<String, String>| {
            files.insert(first.to_owned(), "another".to_owned());
            files.remove(last);
        };
        assert_eq!(run(None, false).unwrap(), everything);
        assert_eq!(run(recorded(own - 1, changed), false).unwrap(), [first, last]);
        assert_eq!(run(recorded(own - 1, |_| {}), true).unwrap(), everything);
        assert!(run(recorded(own, |_| {}), false).unwrap().is_empty());
        assert_eq!(run(recorded(own, changed), true).unwrap(), everything);
        assert!(run(recorded(own + 1, changed), false).unwrap().is_empty());
        for error in [
            run(recorded(own, changed), false).unwrap_err(),
            run(recorded(own, |files| drop(files.insert("999_removed.sql".to_owned(), String::new()))), false)
                .unwrap_err(),
        ] {
            assert!(error.to_string().contains("migrate --repair"), "{error}");
        }
        let error = run(recorded(own + 1, |_| {}), true).unwrap_err().to_string();
        assert!(error.contains("newer release"), "{error}");
    }
}

//! Runs a command with the URL of a private, migrated Postgres in `DATABASE_URL`: `with_database COMMAND [ARGUMENT]...`.
//!
//! It needs no build of the product: with it `./x queries` describes the queries that the product does not compile without.

use anyhow::Context as _;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use testkit::supabase::Supabase;

const DATABASE: &str = "described";

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().context("usage: with_database COMMAND [ARGUMENT]...")?;
    let server = Supabase::start()?;
    server.create(DATABASE).await?;
    migrate(&server.url(DATABASE)).await?;
    // As in the product's sessions, every name of ours needs its schema.
    let url = format!("{}?options=-csearch_path%3D", server.url(DATABASE));
    let status = Command::new(program).args(arguments).env("DATABASE_URL", url).status().context("cannot run it")?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

/// What `clerk-sync migrate` does in a database that has nothing of ours.
async fn migrate(url: &str) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
    let mut connection = PgConnection::connect(url).await?;
    let mut migrator = Migrator::new(folder.as_path()).await?;
    migrator.create_schema("clerk_sync");
    migrator.dangerous_set_table_name("clerk_sync._sqlx_migrations");
    migrator.run_direct(None, &mut connection, false).await?;
    let entries = std::fs::read_dir(folder.join("replayed"))?.collect::<Result<Vec<_>, _>>()?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "sql")) {
        let sql = std::fs::read_to_string(file)?;
        let running = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
        running.with_context(|| format!("{} failed", file.display()))?;
    }
    Ok(())
}

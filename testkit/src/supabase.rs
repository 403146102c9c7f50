//! A private Postgres with databases that look like Supabase projects.

use super::postgres::{Cluster, Durability, SUPERUSER};
use anyhow::Context as _;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _, PgConnection};

/// The role that a Supabase customer logs in as. No superuser.
pub const OWNER: &str = "postgres";

/// A running server with any number of such databases.
#[derive(Debug)]
pub struct Supabase {
    cluster: Cluster,
}

impl Supabase {
    /// # Errors
    /// See [`Cluster::start`].
    pub fn start() -> anyhow::Result<Supabase> {
        Supabase::with(Durability::Fast)
    }

    /// # Errors
    /// See [`Cluster::start`].
    pub fn with(durability: Durability) -> anyhow::Result<Supabase> {
        Ok(Supabase { cluster: Cluster::start(durability)? })
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The connection URL of a Supabase customer.
    pub fn url(&self, database: &str) -> String {
        self.cluster.url(OWNER, database)
    }

    /// A connection as any role.
    ///
    /// # Errors
    /// The server or the database is not there.
    pub async fn connect(&self, role: &str, database: &str) -> anyhow::Result<PgConnection> {
        let options: PgConnectOptions = self.cluster.url(role, database).parse()?;
        options.disable_statement_logging().connect().await.with_context(|| format!("cannot connect as {role}"))
    }

    /// A new, empty project.
    ///
    /// # Errors
    /// The server refused.
    pub async fn create(&self, database: &str) -> anyhow::Result<()> {
        let mut superuser = self.connect(SUPERUSER, "postgres").await?;
        superuser.execute(AssertSqlSafe(format!("create database \"{database}\""))).await?;
        let mut superuser = self.connect(SUPERUSER, database).await?;
        sqlx::raw_sql(include_str!("supabase.sql")).execute(&mut superuser).await.context("supabase.sql failed")?;
        Ok(())
    }

    /// A copy of `template`, which nobody may be connected to.
    ///
    /// # Errors
    /// The server refused.
    pub async fn clone_database(&self, template: &str, database: &str) -> anyhow::Result<()> {
        let mut superuser = self.connect(SUPERUSER, "postgres").await?;
        let sql = format!("create database \"{database}\" owner {OWNER} template \"{template}\" strategy file_copy");
        superuser.execute(AssertSqlSafe(sql)).await?;
        Ok(())
    }

    /// Removes a database with whoever is connected to it.
    ///
    /// # Errors
    /// The server refused.
    pub async fn drop_database(&self, database: &str) -> anyhow::Result<()> {
        let mut superuser = self.connect(SUPERUSER, "postgres").await?;
        superuser.execute(AssertSqlSafe(format!("drop database if exists \"{database}\" with (force)"))).await?;
        Ok(())
    }
}

/// From here on the database's clock, as passes hold Clerk's against it, runs from `now`, in ms of Unix time: a simulated Clerk has
/// a time of its own.
///
/// # Errors
/// The server refused.
pub async fn set_clock(owner: &mut PgConnection, now: i64) -> anyhow::Result<()> {
    let clock = "select (extract(epoch from pg_catalog.clock_timestamp()) * 1000)::bigint";
    let ahead = now - sqlx::query_scalar::<_, i64>(clock).fetch_one(&mut *owner).await?;
    let sql = format!(
        "create or replace function clerk_sync.clock() returns bigint language sql volatile set search_path = '' as \
         'select (extract(epoch from pg_catalog.clock_timestamp()) * 1000)::bigint + ({ahead})'"
    );
    owner.execute(AssertSqlSafe(sql)).await?;
    Ok(())
}

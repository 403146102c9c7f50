//! `clerk-sync migrate`: the schemas, created or upgraded.

use crate::config;
use crate::model::InstanceId;
use crate::store::foreign::Weight;
use crate::store::manifest::How;
use crate::store::{self, Database, Migrating};
use crate::terminal;
use std::process::ExitCode;

/// Create or upgrade the schemas in the database
#[derive(clap::Args)]
pub struct Migrate {
    /// Connection string of the owner of the schemas, if that is another role than in `DATABASE_URL`
    #[arg(long, env = "MIGRATE_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    migrate_database_url: Option<String>,

    /// The database. The role in this connection string will own the schemas (on Supabase: postgres), unless --migrate-database-url is set
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,

    /// Write the whole schema as one plain SQL file to standard output, and touch no database
    #[arg(long)]
    print: bool,

    /// With --print: write only the migrations after this one. To find the last one that a database has, run: select max(version)
    /// from `clerk_sync._sqlx_migrations`
    #[arg(long, requires = "print", value_name = "MIGRATION", default_value_t = 0, hide_default_value = true)]
    from: i64,

    /// Create the views, functions and policies of clerk-sync again, and indexes and rights that are missing. Its tables, their rows, and
    /// your own policies are not touched
    #[arg(long, conflicts_with = "print")]
    repair: bool,

    /// Tie the tables to another Clerk instance: the one in `CLERK_INSTANCE_ID`. If that variable is unset, the next webhook decides; the
    /// secret key does not, as it does the first time
    #[arg(long, conflicts_with = "print")]
    repin: bool,

    #[arg(long, env = "CLERK_INSTANCE_ID", value_name = "ID", hide = true)]
    instance_id: Option<String>,
}

impl Migrate {
    /// Runs the command.
    ///
    /// # Errors
    /// A value is wrong, or the database refuses.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        if self.print {
            terminal::text(store::printed(self.from)?.trim_end());
            return Ok(ExitCode::SUCCESS);
        }
        // The role of another login is what serve logs in as.
        let serving =
            self.migrate_database_url.as_ref().and_then(|_| config::database(self.database_url.as_deref()).ok());
        let (variable, url) = match self.migrate_database_url {
            Some(url) => ("MIGRATE_DATABASE_URL", Some(url)),
            None => ("DATABASE_URL", self.database_url),
        };
        let database = config::database(url.as_deref()).map_err(|problem| anyhow::anyhow!("{variable} {problem}"))?;
        let is_whole = bring_up_to_date(&database, serving.as_ref(), self.repair).await?;
        if self.repin {
            let check = config::instance(self.instance_id.as_deref());
            let check = check.map_err(|problem| anyhow::anyhow!("CLERK_INSTANCE_ID {problem}"))?;
            let instance = check.expected();
            store::repin(&database, instance).await?;
            terminal::line(format_args!(
                "Pinned to {}.",
                instance.map_or("the next webhook's instance", InstanceId::as_str)
            ));
        }
        // What is open is said; only what is missing stops a deployment.
        Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Creates or upgrades the schemas, and prints what was missing and what depends on our tables. `serving`: the database as `serve` logs in,
/// where that is another role. Answers whether nothing that is needed is missing.
pub(super) async fn bring_up_to_date(
    database: &Database,
    serving: Option<&Database>,
    repairs: bool,
) -> anyhow::Result<bool> {
    let how = Migrating { repairs, say: |sentence| terminal::note(sentence), ..Migrating::default() };
    let migrated = store::migrate(database, how).await?;
    for statement in store::grant_again(database, how, serving.map(Database::user)).await? {
        terminal::line(format_args!("Was missing: {statement}"));
    }
    let differences = if migrated.is_by_newer() { Vec::new() } else { database.differences().await? };
    for difference in &differences {
        terminal::note(format_args!("error: {}: {}", difference.says(), difference.fix));
    }
    if differences.is_empty() {
        terminal::line(migrated);
    }
    for object in database.foreign_objects().await? {
        let grave = if object.weight == Weight::Fail { "error" } else { "warning" };
        terminal::note(format_args!("{grave}: {}: {}", object.describe(), object.advice()));
    }
    Ok(!differences.iter().any(|difference| difference.how != How::Extra))
}

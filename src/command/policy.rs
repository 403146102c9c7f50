//! `clerk-sync policy`: policies for the application's own tables, written and checked.

use super::arguments::DatabaseArguments;
use crate::policy::{TableName, check, print};
use crate::store::Database;
use crate::store::foreign::Weight;
use crate::terminal;
use std::process::ExitCode;

/// Print or check policies for your own tables
#[derive(clap::Subcommand)]
pub enum Policy {
    /// Print policies for a table. If `DATABASE_URL` is set and the column has no index, also print a `create index`
    Print(Print),
    /// Check the policies of your own tables that have a column for an organization or a user, and report what is wrong. Exit code 2:
    /// something is wrong
    Check(Check),
}

#[derive(clap::Args)]
pub struct Print {
    #[command(flatten)]
    policies: print::Policies,

    #[command(flatten)]
    database: DatabaseArguments,
}

#[derive(clap::Args)]
pub struct Check {
    /// Check only this table; without it, every table with a foreign key to clerk.*, with a text column such as `organization_id` or
    /// `user_id`, or with a policy that uses the signed-in user
    table: Option<TableName>,

    /// Print the findings as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArguments,
}

impl Policy {
    /// Runs the command.
    ///
    /// # Errors
    /// The database could not be asked, or has no such table.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Policy::Print(Print { policies, database }) => {
                if let Some(refusal) = policies.refusal() {
                    anyhow::bail!(refusal);
                }
                if let Some(warning) = policies.warning() {
                    terminal::note(format_args!("warning: {warning}"));
                }
                let index = match database.url() {
                    Some(_) => index(&policies, &database.database()?).await?,
                    None => print::Index::Unknown,
                };
                terminal::text(policies.sql(index).trim_end());
                Ok(ExitCode::SUCCESS)
            }
            Policy::Check(Check { table, json, database }) => {
                let database = database.database()?;
                let catalog = database.policies(table.as_ref().map(TableName::parts)).await?;
                let tables = catalog.tables.iter().filter(|table| table.is_listed).count();
                let objects = if table.is_none() { database.foreign_objects().await? } else { Vec::new() };
                if let (Some(table), true) = (&table, tables == 0) {
                    anyhow::bail!("there is no table {table}");
                }
                let mut findings = check::findings(&catalog);
                findings.extend(check::of_foreign_objects(&objects));
                for object in objects.iter().filter(|object| object.weight == Weight::Warn) {
                    terminal::note(format_args!("warning: {}: {}", object.describe(), object.advice()));
                }
                if json {
                    terminal::text(serde_json::to_string_pretty(&findings)?);
                } else {
                    findings.iter().for_each(check::Finding::print);
                    terminal::line(format_args!("Tables checked: {tables}. Findings: {}.", findings.len()));
                    if tables == 0 {
                        terminal::note(format_args!(
                            "There is nothing to check: {}. To check another table: clerk-sync policy check TABLE",
                            check::NO_TABLES
                        ));
                    }
                }
                Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
            }
        }
    }
}

/// Whether the table has the index, once it has been looked at.
async fn index(policies: &print::Policies, database: &Database) -> anyhow::Result<print::Index> {
    let (schema, name) = policies.table.parts();
    let Some(target) = database.target(schema, name).await? else {
        let table = &policies.table;
        terminal::note(format_args!("There is no table {table} yet, so its column and its index were not checked."));
        return Ok(print::Index::Unknown);
    };
    if let Some(objection) = policies.objection(&target) {
        anyhow::bail!(objection);
    }
    let is_there = target.indexed.iter().any(|column| column == policies.column());
    Ok(if is_there { print::Index::There } else { print::Index::Missing })
}

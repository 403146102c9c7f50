//! `clerk-sync policy`: policies for the application's own tables, written and checked.

use super::arguments::DatabaseArguments;
use crate::policy::{TableName, check, print};
use crate::store::foreign::Weight;
use crate::terminal;
use std::process::ExitCode;

/// Policies for your own tables: write them, check them
#[derive(clap::Subcommand)]
pub enum Policy {
    /// Write ready policies for a table to standard output; with `DATABASE_URL`, the index too if it is missing there
    Print(Print),
    /// Report what is wrong with policies that ask who the caller is. Exit code 2: something is
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
    /// This table alone; without it, every table with such a policy
    table: Option<TableName>,

    /// Write the findings as JSON
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
                let index = match database.url() {
                    Some(_) => {
                        let tables = database.database()?.policies(Some(policies.table.parts())).await?;
                        match tables.first() {
                            Some(table) if table.indexed.iter().any(|column| column == policies.column()) => {
                                print::Index::There
                            }
                            Some(_) => print::Index::Missing,
                            None => {
                                terminal::note(format_args!(
                                    "There is no table {} yet, so nobody looked whether it has an index.",
                                    policies.table
                                ));
                                print::Index::Unknown
                            }
                        }
                    }
                    None => print::Index::Unknown,
                };
                terminal::text(policies.sql(index).trim_end());
                Ok(ExitCode::SUCCESS)
            }
            Policy::Check(Check { table, json, database }) => {
                let database = database.database()?;
                let tables = database.policies(table.as_ref().map(TableName::parts)).await?;
                let objects = if table.is_none() { database.foreign_objects().await? } else { Vec::new() };
                if let (Some(table), true) = (&table, tables.is_empty()) {
                    anyhow::bail!("there is no table {table}");
                }
                let mut findings: Vec<check::Finding> = tables.iter().flat_map(check::findings).collect();
                findings.extend(check::of_foreign_objects(&objects));
                for object in objects.iter().filter(|object| object.weight == Weight::Warn) {
                    terminal::note(format_args!("warning: {}: {}", object.describe(), object.advice()));
                }
                if json {
                    terminal::text(serde_json::to_string_pretty(&findings)?);
                } else {
                    findings.iter().for_each(check::Finding::print);
                    terminal::line(format_args!("Tables looked at: {}. Findings: {}.", tables.len(), findings.len()));
                }
                Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
            }
        }
    }
}

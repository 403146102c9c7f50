//! Policies over the mirror for the application's own tables: writing them, and finding what is wrong with them.

pub mod check;
pub mod print;

use crate::config::named_database;
use crate::store::foreign::Weight;
use crate::terminal;
use std::process::ExitCode;
use std::str::FromStr;

/// `clerk-sync policy`.
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

    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL", help = DATABASE_HELP)]
    database_url: Option<String>,
}

#[derive(clap::Args)]
pub struct Check {
    /// This table alone; without it, every table with such a policy
    table: Option<TableName>,

    /// Write the findings as JSON
    #[arg(long)]
    json: bool,

    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL", help = DATABASE_HELP)]
    database_url: Option<String>,
}

const DATABASE_HELP: &str = "The database with the tables";

impl Policy {
    /// Runs the command.
    ///
    /// # Errors
    /// The database could not be asked, or has no such table.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Policy::Print(Print { policies, database_url }) => {
                let index = match &database_url {
                    Some(url) => {
                        let tables = named_database(Some(url))?.policies(Some(policies.table.parts())).await?;
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
            Policy::Check(Check { table, json, database_url }) => {
                let database = named_database(database_url.as_deref())?;
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

/// A table as a person names it: `documents`, or `app.documents`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableName {
    schema: String,
    name: String,
}

impl TableName {
    fn parts(&self) -> (&str, &str) {
        (&self.schema, &self.name)
    }
}

impl FromStr for TableName {
    type Err = String;

    fn from_str(text: &str) -> Result<TableName, String> {
        let (schema, name) = text.split_once('.').unwrap_or(("public", text));
        if schema.is_empty() || name.is_empty() {
            return Err("a table is named as documents or app.documents".to_owned());
        }
        if text.contains(char::is_control) {
            return Err("a name with control characters cannot be printed: rename the table".to_owned());
        }
        Ok(TableName { schema: schema.to_owned(), name: name.to_owned() })
    }
}

/// As SQL takes it, whatever the names are.
impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", print::identifier(&self.schema), print::identifier(&self.name))
    }
}

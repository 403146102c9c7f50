//! `clerk-sync purge`: removing the emptied rows of what was deleted long ago.

use super::arguments::DatabaseArguments;
use crate::model::Kind;
use crate::store::Reference;
use crate::terminal;
use crate::upkeep::purge::{self, Plan, Purged};
use crate::upkeep::retention;
use serde_json::json;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

/// Delete what remains of users and organizations that were deleted long ago: rows with only an id and `deleted_at`. Without --yes, only
/// print how many such rows there are, and how many rows of your tables would be deleted (on delete cascade) or changed (set null,
/// set default) with them. A user's or organization's row stays if another kind of foreign key in your tables (no action, restrict)
/// refers to it
#[derive(clap::Args)]
pub struct Purge {
    /// Only those that were deleted longer ago than this, such as 90d; at least 1d
    #[arg(long, value_name = "AGE", value_parser = age)]
    older_than: Duration,

    /// Actually delete
    #[arg(long)]
    yes: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    database: DatabaseArguments,
}

fn age(text: &str) -> Result<Duration, String> {
    match retention::parse_age(text) {
        Ok(age) if age < Duration::from_secs(86_400) => Err("it is less than a day".to_owned()),
        age => age.map_err(|problem| format!("it {problem}")),
    }
}

impl Purge {
    /// Runs the command.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let database = self.database.database()?;
        let plan = purge::plan(&database, self.older_than).await?;
        let purged = if self.yes { Some(purge::purge(&database, self.older_than).await?) } else { None };
        if self.json {
            terminal::text(serde_json::to_string_pretty(
                &json!({ "dry_run": !self.yes, "plan": plan, "purged": purged }),
            )?);
        } else {
            match purged {
                Some(purged) => print_purged(&purged),
                None => print_plan(&plan),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_plan(plan: &Plan) {
    terminal::line(format_args!("Would be removed: {}; add --yes to remove them.", in_words(&plan.rows)));
    for Reference { parent, constraint, table, column, on_delete, rows } in &plan.foreign_keys {
        let rows = rows.map_or_else(|| "rows that cannot be counted".to_owned(), |rows| format!("{rows} rows"));
        let effect = match on_delete.as_str() {
            "cascade" => "would be DELETED with them",
            "set null" => "would lose the reference (set null)",
            "set default" => "would get the column's default",
            _ => "refer to them",
        };
        terminal::line(format_args!(
            "  {table} ({column}): {rows} {effect} ({constraint}, on delete {on_delete}, of {parent})"
        ));
    }
}

fn in_words(rows: &BTreeMap<Kind, u64>) -> String {
    rows.iter().map(|(kind, rows)| format!("{rows} {}", kind.plural())).collect::<Vec<_>>().join(", ")
}

fn print_purged(purged: &Purged) {
    terminal::line(format_args!("Removed: {}.", in_words(&purged.rows)));
    for (by, rows) in &purged.held {
        terminal::line(format_args!("  {rows} stay because of {by}"));
    }
}

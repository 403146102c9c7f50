//! Policies of the user's own tables that ask who the caller is: what `policy check` finds, in short.

use super::{Check, no_database};
use crate::policy::check::{self, Code, Finding, findings};
use crate::policy::print::quoted;
use crate::store::Database;

const NAME: &str = "policies";

/// Findings that are printed, the worst first.
const MAX_LISTED: usize = 10;

pub(super) async fn examine(database: Option<&Database>) -> Vec<Check> {
    let Some(asked) = database else { return vec![Check::skip(NAME, no_database(None))] };
    match asked.policies(None).await {
        Ok(catalog) => checks(catalog.tables.iter().filter(|table| table.is_listed).count(), findings(&catalog)),
        Err(_) => vec![Check::skip(NAME, no_database(database))],
    }
}

fn checks(tables: usize, mut found: Vec<Finding>) -> Vec<Check> {
    if found.is_empty() && tables == 0 {
        return vec![Check::ok(NAME, format!("there is nothing to check: {}", check::NO_TABLES))];
    }
    if found.is_empty() {
        return vec![Check::ok(
            NAME,
            format!(
                "tables that hold rows of organizations or users: {tables}; no problem was found in their policies"
            ),
        )];
    }
    found.sort_by_key(|finding| (!finding.code.is_grave(), finding.code));
    // Whatever is grave is named.
    let shown = found.iter().filter(|finding| finding.code.is_grave()).count().max(MAX_LISTED);
    let mut checks: Vec<Check> = found.iter().take(shown).map(check).collect();
    if found.len() > shown {
        let says = format!("{} more findings", found.len() - shown);
        checks.push(Check::warn(NAME, says, "clerk-sync policy check lists them all"));
    }
    checks
}

fn check(finding: &Finding) -> Check {
    let place = match &finding.policy {
        Some(policy) => format!("{}, policy {}", finding.table, quoted(policy)),
        None => finding.table.clone(),
    };
    // The parser's complaint may quote the condition, and a condition may hold an address.
    let problem = match finding.code {
        Code::Unreadable => "doctor cannot analyze its condition.",
        _ => finding.problem.as_str(),
    };
    let says = format!("{place}: {problem}");
    if finding.code.is_grave() {
        Check::fail(NAME, says, &finding.advice)
    } else {
        Check::warn(NAME, says, &finding.advice)
    }
}

//! Policies of the user's own tables that ask who the caller is: what `policy check` finds, in short.

use super::{Check, no_database};
use crate::policy::check::{Code, Finding, findings};
use crate::store::Database;

const NAME: &str = "policies";

/// Findings that are printed, the worst first.
const SHOWN: usize = 10;

pub(super) async fn examine(database: Option<&Database>) -> Vec<Check> {
    let Some(asked) = database else { return vec![Check::skip(NAME, no_database(None))] };
    match asked.policies(None).await {
        Ok(tables) => checks(tables.len(), tables.iter().flat_map(findings).collect()),
        Err(_) => vec![Check::skip(NAME, no_database(database))],
    }
}

fn checks(tables: usize, mut found: Vec<Finding>) -> Vec<Check> {
    // Of our own tables that is told by another check.
    found.retain(|finding| finding.code != Code::RlsOff || !finding.table.starts_with("clerk."));
    if found.is_empty() {
        return vec![Check::ok(
            NAME,
            format!("{tables} tables have policies that ask who the caller is; all are sound"),
        )];
    }
    found.sort_by_key(|finding| (!is_grave(finding.code), finding.code));
    let mut checks: Vec<Check> = found.iter().take(SHOWN).map(check).collect();
    if found.len() > SHOWN {
        let says = format!("{} more findings", found.len() - SHOWN);
        checks.push(Check::warn(NAME, says, "clerk-sync policy check lists them all"));
    }
    checks
}

/// Whether rows are open to those whom they should not be, or queries fail; the rest is slow or unclear.
fn is_grave(code: Code) -> bool {
    matches!(code, Code::RlsOff | Code::AuthUid | Code::UnsafeMetadata)
}

fn check(finding: &Finding) -> Check {
    let place = match &finding.policy {
        Some(policy) => format!("{}, policy \"{policy}\"", finding.table),
        None => finding.table.clone(),
    };
    // The parser's complaint may quote the condition, and a condition may hold an address.
    let problem = match finding.code {
        Code::Unreadable => "doctor cannot read its condition.",
        _ => finding.problem.as_str(),
    };
    let says = format!("{place}: {problem}");
    if is_grave(finding.code) {
        Check::fail(NAME, says, &finding.advice)
    } else {
        Check::warn(NAME, says, &finding.advice)
    }
}

//! What is in our schemas, held against a fresh installation.

use super::Check;
use crate::store::manifest::{Difference, How, ObjectKind};

/// What re-creates all that holds no data.
const REPAIR: &str = "clerk-sync migrate --repair";

/// Rights, Row-Level Security, and everything else.
pub(super) fn checks(differences: &[Difference]) -> Vec<Check> {
    let of = |name| differences.iter().filter(move |difference| name_of(difference) == name).collect::<Vec<_>>();
    let mut checks = Vec::new();
    let (repairable, others): (Vec<_>, Vec<_>) =
        of("objects").into_iter().partition(|difference| difference.is_repairable);
    if repairable.is_empty() && others.is_empty() {
        checks.push(Check::ok("objects", "everything in our schemas is as migrations made it"));
    }
    // What stands on tables and types is made again after them.
    checks.extend(others.iter().map(|difference| Check::fail("objects", difference.says(), &difference.fix)));
    let mut says: Vec<String> = repairable.iter().map(|difference| difference.says()).collect();
    if others.iter().any(|difference| difference.takes_functions) {
        says.push("functions that use a type are dropped with it".to_owned());
    }
    if !says.is_empty() {
        checks.push(Check::fail("objects", says.join("; "), REPAIR));
    }
    // Rights are on objects, so they come after them.
    checks.extend([
        together(
            "missing-rights",
            of("missing-rights"),
            "the worker and signed-in users have the rights they need",
            true,
        ),
        together("excess-rights", of("excess-rights"), "no other role may read or write our tables", false),
        together("row-level-security", of("row-level-security"), "is on for every table of ours", false),
    ]);
    checks
}

fn name_of(difference: &Difference) -> &'static str {
    match (difference.object.kind, difference.how) {
        (ObjectKind::Grant, How::Missing) => "missing-rights",
        (
            ObjectKind::Grant
            | ObjectKind::Owner
            | ObjectKind::Member
            | ObjectKind::DefaultGrant
            | ObjectKind::Publication,
            _,
        ) => "excess-rights",
        (ObjectKind::RowSecurity | ObjectKind::ForcedRowSecurity, _) => "row-level-security",
        _ => "objects",
    }
}

/// All of one kind, with one fix.
fn together(name: &'static str, differences: Vec<&Difference>, good: &str, is_repairable: bool) -> Check {
    if differences.is_empty() {
        return Check::ok(name, good);
    }
    let says: Vec<String> = differences.iter().map(|difference| difference.says()).collect();
    let fixes: Vec<&str> = differences.iter().map(|difference| difference.fix.as_str()).collect();
    let first = if is_repairable { format!("{REPAIR}, or ") } else { String::new() };
    Check::fail(name, says.join("; "), format!("{first}{}", fixes.join(" ")))
}

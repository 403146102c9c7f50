//! What the application has on our tables that may refuse or alter a row.

use super::{Check, no_database};
use crate::store::Database;
use crate::store::foreign::{ForeignObject, Weight};

const NAME: &str = "foreign-objects";

/// Objects that are printed, the gravest first.
const MAX_LISTED: usize = 10;

pub(super) async fn examine(database: Option<&Database>) -> Vec<Check> {
    let Some(asked) = database else { return vec![Check::skip(NAME, no_database(None))] };
    match asked.foreign_objects().await {
        Ok(objects) => checks(&objects),
        Err(_) => vec![Check::skip(NAME, no_database(database))],
    }
}

fn checks(objects: &[ForeignObject]) -> Vec<Check> {
    if objects.is_empty() {
        return vec![Check::ok(NAME, "no object of your application can refuse or change our rows")];
    }
    let check = |object: &ForeignObject| match object.weight {
        Weight::Fail => Check::fail(NAME, object.describe(), object.advice()),
        Weight::Warn => Check::warn(NAME, object.describe(), object.advice()),
    };
    let mut checks: Vec<Check> = objects.iter().take(MAX_LISTED).map(check).collect();
    if objects.len() > MAX_LISTED {
        let says = format!("{} more objects", objects.len() - MAX_LISTED);
        checks.push(Check::warn(NAME, says, "fix those that are listed first"));
    }
    checks
}

//! How long bookkeeping is kept, and pruning what is older.

use crate::store::{Database, Error, Prunable};
use serde::Serialize;
use std::time::Duration;

/// Rows in one statement: each ends long before its time limit, and holds up nobody.
const STEP: u32 = 1_000;

const HOUR_S: u64 = 3_600;
const DAY_S: u64 = 24 * HOUR_S;
/// So that the database can subtract it from today.
const MOST_S: u64 = 36_500 * DAY_S;

/// Reads an age such as `30d` or `12h`.
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with the variable's name.
pub(crate) fn parse_age(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let unit_s = match text.chars().last() {
        Some('d') => DAY_S,
        Some('h') => HOUR_S,
        _ => return Err("must be a time such as 30d or 12h".to_owned()),
    };
    let number = &text[..text.len() - 1];
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("must be a time such as 30d or 12h".to_owned());
    }
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_s)) {
        Some(0) => Err("is less than an hour".to_owned()),
        Some(seconds) if seconds <= MOST_S => Ok(Duration::from_secs(seconds)),
        _ => Err("is more than 100 years".to_owned()),
    }
}

/// Reads an age, or `forever`, which is `None`.
///
/// # Errors
/// As [`parse_age`].
pub(crate) fn parse_retention(text: &str) -> Result<Option<Duration>, String> {
    if text.trim().eq_ignore_ascii_case("forever") {
        return Ok(None);
    }
    parse_age(text).map(Some).map_err(|problem| format!("{problem}; forever keeps everything"))
}

/// How long each is kept; `None`: for ever. An hour at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// They tell a repetition from something new, and a pass whether a webhook had come; the mirror is right without them.
    pub receipts: Option<Duration>,
    /// With the passes that found them.
    pub findings: Option<Duration>,
    pub dead_letters: Option<Duration>,
}

impl Default for Retention {
    fn default() -> Retention {
        let days = |days| Some(Duration::from_secs(days * DAY_S));
        Retention { receipts: days(30), findings: days(90), dead_letters: days(90) }
    }
}

/// How many rows were removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    pub receipts: u64,
    pub findings: u64,
    pub passes: u64,
    pub dead_letters: u64,
}

impl Pruned {
    /// Whether there was nothing to remove.
    pub fn is_empty(&self) -> bool {
        *self == Pruned::default()
    }
}

/// Removes what is older than it is to be kept, step by step.
///
/// # Errors
/// The database does not answer. What was removed stays removed.
pub async fn prune(database: &Database, retention: &Retention) -> Result<Pruned, Error> {
    let mut session = database.connect().await?;
    let mut pruned = Pruned::default();
    for (what, older_than, count) in [
        (Prunable::Receipts, retention.receipts, &mut pruned.receipts),
        (Prunable::Findings, retention.findings, &mut pruned.findings),
        (Prunable::Passes, retention.findings, &mut pruned.passes),
        (Prunable::DeadLetters, retention.dead_letters, &mut pruned.dead_letters),
    ] {
        let Some(older_than) = older_than else { continue };
        loop {
            let removed = session.prune(what, older_than, STEP).await?;
            *count += u64::from(removed);
            if removed < STEP {
                break;
            }
        }
    }
    session.close().await;
    Ok(pruned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_days_or_hours_and_neither_nothing_nor_endless() {
        let hours = |hours| Duration::from_secs(hours * HOUR_S);
        assert_eq!(parse_age("30d"), Ok(hours(720)));
        assert_eq!(parse_age(" 12h "), Ok(hours(12)));
        assert_eq!(parse_age("36500d"), Ok(hours(876_000)));
        for bad in
            ["", "d", "30", "-1d", "+1d", "1.5d", "30 d", "0h", "36501d", "99999999999999999999d", "forever", "3ä"]
        {
            assert!(parse_age(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_retention("Forever"), Ok(None));
        assert_eq!(parse_retention("1h"), Ok(Some(hours(1))));
        assert!(parse_retention("never").is_err());
    }
}

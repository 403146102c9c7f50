//! Rows that a pass could not judge, by reason: what it says about the mirror, it does not say about them. Pure.

use super::{Millis, grouped};
use serde::Serialize;
use std::collections::BTreeMap;

/// How many rows there are of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Undecided {
    /// Not listed, but observed so recently that the listing may be older.
    pub too_fresh: u64,
    /// What Clerk's API says is older than what its events said.
    pub contradicting: u64,
    /// Counted by Clerk, and not listed.
    pub not_listed: u64,
    /// Clerk shows them neither in its list nor by their ids, or not whole.
    pub unreadable: u64,
    /// The database does not take them: something of the application's refuses.
    pub refused: u64,
    /// Their deletion waits: the pass was stopped by the deletion limit, or it is their user's or organization's turn first.
    pub held_back: u64,
}

impl From<&BTreeMap<String, u64>> for Undecided {
    /// As the table has it.
    fn from(by_reason: &BTreeMap<String, u64>) -> Undecided {
        let rows = |reason: &str| by_reason.get(reason).copied().unwrap_or_default();
        Undecided {
            too_fresh: rows("too_fresh"),
            contradicting: rows("contradicting"),
            not_listed: rows("not_listed"),
            unreadable: rows("unreadable"),
            refused: rows("refused"),
            held_back: rows("held_back"),
        }
    }
}

impl Undecided {
    /// Each with its name, as JSON, metrics and the page have it.
    pub(crate) const fn by_reason(self) -> [(&'static str, u64); 6] {
        let Undecided { too_fresh, contradicting, not_listed, unreadable, refused, held_back } = self;
        [
            ("too_fresh", too_fresh),
            ("contradicting", contradicting),
            ("not_listed", not_listed),
            ("unreadable", unreadable),
            ("refused", refused),
            ("held_back", held_back),
        ]
    }

    pub fn total(self) -> u64 {
        self.by_reason().into_iter().map(|(_, rows)| rows).sum()
    }

    /// For people: how many rows, and why, as a sentence without its full stop; `None` where all were judged. `judge_after`: when those
    /// can be judged that were seen too lately.
    pub(crate) fn in_words(self, judge_after: Option<Millis>) -> Option<String> {
        let by_reason = self.by_reason().map(|(_, rows)| rows);
        let [too_fresh, contradicting, not_listed, unreadable, refused, held_back] = by_reason.map(grouped);
        let judge_after =
            judge_after.map_or_else(|| "five minutes later".to_owned(), |at| format!("after {}", moment(at)));
        let parts = [
            format!(
                "{too_fresh} changed less than five minutes before the comparison and can be compared {judge_after}"
            ),
            format!(
                "{contradicting} with older data in Clerk's API than in a webhook, which clerk-sync will read again"
            ),
            format!("{not_listed} in Clerk's count but not in its list"),
            format!("{unreadable} that could not be read completely"),
            format!("{refused} refused by the database"),
            format!("{held_back} to be deleted, which waits for your approval"),
        ];
        let parts: Vec<String> =
            by_reason.into_iter().zip(parts).filter(|(rows, _)| *rows > 0).map(|(_, words)| words).collect();
        if parts.is_empty() {
            return None;
        }
        let rows = self.total();
        Some(format!(
            "{} {} left as {}: {}",
            grouped(rows),
            if rows == 1 { "row was" } else { "rows were" },
            if rows == 1 { "it is" } else { "they are" },
            parts.join("; ")
        ))
    }
}

/// A time of day, as people in any country read it.
fn moment(at: Millis) -> String {
    chrono::DateTime::from_timestamp_millis(at.get())
        .map_or_else(String::new, |at| at.format("%Y-%m-%d %H:%M:%S UTC").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_judged_is_told_with_its_reasons() {
        assert_eq!(Undecided::default().in_words(None), None);
        let undecided = Undecided { too_fresh: 1, not_listed: 2, ..Undecided::default() };
        let words = undecided.in_words(Millis::new(1_760_000_000_000)).unwrap();
        assert_eq!(
            words,
            "3 rows were left as they are: 1 changed less than five minutes before the comparison and can be compared after \
             2025-10-09 08:53:20 UTC; \
             2 in Clerk's count but not in its list"
        );
    }
}

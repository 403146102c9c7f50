//! Rows that a pass could not judge, by reason: what it says about the mirror, it does not say about them. Pure.

use super::Millis;
use serde::Serialize;
use std::collections::BTreeMap;

/// How many rows there are of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Undecided {
    /// Not listed, and seen so lately that the listing may be the older of the two.
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
        [
            ("too_fresh", self.too_fresh),
            ("contradicting", self.contradicting),
            ("not_listed", self.not_listed),
            ("unreadable", self.unreadable),
            ("refused", self.refused),
            ("held_back", self.held_back),
        ]
    }

    pub const fn total(self) -> u64 {
        self.too_fresh + self.contradicting + self.not_listed + self.unreadable + self.refused + self.held_back
    }

    /// For people: how many rows, and why; `None` where all were judged. `judge_after`: when those can be judged that were seen
    /// too lately.
    pub(crate) fn in_words(self, judge_after: Option<Millis>) -> Option<String> {
        let judge_after =
            judge_after.map_or_else(|| "in five minutes".to_owned(), |at| format!("after {}", moment(at)));
        let parts: Vec<String> = self
            .by_reason()
            .into_iter()
            .filter(|(_, rows)| *rows > 0)
            .map(|(reason, rows)| match reason {
                "too_fresh" => {
                    format!("{rows} were seen within five minutes before, which can be judged {judge_after}")
                }
                "contradicting" => format!("of {rows} Clerk's API says what its events have overtaken"),
                "not_listed" => format!("{rows} are counted by Clerk and not listed"),
                "unreadable" => format!("{rows} could not be read whole"),
                "refused" => format!("{rows} are refused by the database"),
                _ => format!("the deletion of {rows} is held back"),
            })
            .collect();
        if parts.is_empty() {
            return None;
        }
        let rows = self.total();
        Some(format!("{rows} {} not judged: {}", if rows == 1 { "row was" } else { "rows were" }, parts.join("; ")))
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
            "3 rows were not judged: 1 were seen within five minutes before, which can be judged after 2025-10-09 08:53:20 UTC; \
             2 are counted by Clerk and not listed"
        );
    }
}

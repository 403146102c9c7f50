//! Rows that a pass could not judge, by reason: what it says about the mirror, it does not say about them. Pure.

use super::{Millis, capitalized, grouped};
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

    /// For people: how many rows, and why, in sentences, without the last full stop; `None` where all were judged. `judge_after`: when those
    /// can be judged that were seen too lately.
    pub(crate) fn in_words(self, judge_after: Option<Millis>) -> Option<String> {
        let rows = self.total();
        let judge_after =
            judge_after.map_or_else(|| "five minutes later".to_owned(), |at| format!("after {}", moment(at)));
        let because = |part: u64, sentence: &dyn Fn(Pronouns) -> String| {
            (part > 0).then(|| capitalized(&sentence(Pronouns::of(part, rows))))
        };
        let Undecided { too_fresh, contradicting, not_listed, unreadable, refused, held_back } = self;
        let reasons = [
            because(too_fresh, &|Pronouns { they, it, .. }| {
                format!(
                    "{they} changed less than five minutes before the comparison: clerk-sync compares {it} again {judge_after}"
                )
            }),
            because(contradicting, &|Pronouns { them, it, .. }| {
                format!(
                    "for {them}, Clerk's API returned older data than a webhook had brought: clerk-sync will read {it} again"
                )
            }),
            because(not_listed, &|Pronouns { them, it, .. }| format!("Clerk counted {them} but did not list {it}")),
            because(unreadable, &|Pronouns { they, .. }| format!("{they} could not be read completely")),
            because(refused, &|Pronouns { them, .. }| format!("the database refused {them}")),
            because(held_back, &|Pronouns { they, .. }| format!("{they} will be deleted only after your approval")),
        ];
        let reasons: Vec<String> = reasons.into_iter().flatten().collect();
        if reasons.is_empty() {
            return None;
        }
        let left = if rows == 1 { "row was left as it is" } else { "rows were left as they are" };
        Some(format!("{} {left}. {}", grouped(rows), reasons.join(". ")))
    }
}

/// What a sentence calls a part of the rows.
struct Pronouns {
    /// As its subject.
    they: String,
    /// As its object.
    them: String,
    /// Once they were named.
    it: &'static str,
}

impl Pronouns {
    fn of(part: u64, rows: u64) -> Pronouns {
        let it = if part == 1 { "it" } else { "them" };
        if part < rows {
            let some = format!("{} of them", grouped(part));
            return Pronouns { they: some.clone(), them: some, it };
        }
        Pronouns { they: if part == 1 { "it" } else { "they" }.to_owned(), them: it.to_owned(), it }
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
            "3 rows were left as they are. 1 of them changed less than five minutes before the comparison: clerk-sync compares it again after \
             2025-10-09 08:53:20 UTC. Clerk counted 2 of them but did not list them"
        );
        let words = |undecided: Undecided| undecided.in_words(None).unwrap();
        let one = Undecided { contradicting: 1, ..Undecided::default() };
        assert_eq!(
            words(one),
            "1 row was left as it is. For it, Clerk's API returned older data than a webhook had brought: clerk-sync will read it again"
        );
        let all = Undecided { refused: 2_000, ..Undecided::default() };
        assert_eq!(words(all), "2,000 rows were left as they are. The database refused them");
    }
}

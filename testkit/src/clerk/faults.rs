//! What can go wrong between Clerk and its client, as a script: which requests, how often, and what.

use std::time::Duration;

/// What is wrong with one answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// An error of the server in Clerk's own shape (500, 502, 503, 504, …).
    Status(u16),
    /// A gateway's HTML page under any status, 200 too.
    Html(u16),
    /// The connection is reset instead of an answer.
    Reset,
    /// The request is taken and never answered.
    Hang,
    /// The answer comes byte by byte, so much apart.
    Drip(Duration),
    /// The head promises the whole body, and the connection ends in its middle.
    Truncated,
    /// The same for a body of chunks, whose head promises no length.
    TruncatedChunks,
    /// JSON of another shape.
    WrongJson,
    /// A list has no rows, and its total says otherwise.
    EmptyPage,
    /// A list has no rows, its total is zero, and so is every count.
    Empty,
    /// A list has half its rows although more exist. Its total stays.
    ShortPage,
    /// The total of a list, and every count, is off by so much.
    Miscounted(i64),
    /// Rows that were made in the same moment are listed in an order that is drawn anew for each answer.
    Shuffled,
    /// A list has a row more, of the same kind, that was not requested.
    ExtraRow,
    /// A list of a user's memberships does not say whose they are: a body that was once published has no `public_user_data`, and
    /// Clerk's description lets it be absent. (Its SDK cannot read such a row.)
    Nameless,
    /// `/v1/instance` names another instance; so a key of another one would answer.
    WrongInstance,
    /// 401, as for a key that was revoked.
    Unauthorized,
    /// 403, as when organizations are switched off.
    Forbidden,
    /// 429 with `Retry-After`, and the endpoint is blocked so long (in seconds).
    TooManyRequests(u64),
    /// No `Date` header: nobody can tell when the answer was true.
    NoDate,
}

/// To which requests a fault happens: to those whose path matches, from the n-th on, so many times or by chance.
#[derive(Clone, Debug)]
pub struct Rule {
    path: String,
    fault: Fault,
    from: u32,
    times: u32,
    chance: Option<(u16, fastrand::Rng)>,
    matched: u32,
    happened: u32,
}

impl Rule {
    /// To every request of this path, in which `*` stands for any characters: `/v1/users`, `/v1/organizations/*`, `*`.
    pub fn on(path: &str, fault: Fault) -> Rule {
        Rule { path: path.to_owned(), fault, from: 1, times: u32::MAX, chance: None, matched: 0, happened: 0 }
    }

    /// Not before the n-th matching request; the first is 1.
    #[must_use]
    pub fn from(self, from: u32) -> Rule {
        Rule { from, ..self }
    }

    /// Not more often than this.
    #[must_use]
    pub fn times(self, times: u32) -> Rule {
        Rule { times, ..self }
    }

    /// Only with a chance in a thousand, drawn from a seed.
    #[must_use]
    pub fn sometimes(self, in_a_thousand: u16, seed: u64) -> Rule {
        Rule { chance: Some((in_a_thousand, fastrand::Rng::with_seed(seed))), ..self }
    }

    /// The fault of this request, if it has one.
    fn strike(&mut self, path: &str) -> Option<Fault> {
        if !matches(&self.path, path) {
            return None;
        }
        self.matched += 1;
        let due = self.matched >= self.from && self.happened < self.times;
        let drawn = due && self.chance.as_mut().is_none_or(|(chance, rng)| rng.u16(0..1_000) < *chance);
        self.happened += u32::from(drawn);
        drawn.then(|| self.fault.clone())
    }
}

/// The rules in force. Of several that fit, the oldest decides.
#[derive(Debug, Default)]
pub(super) struct Faults(pub(super) Vec<Rule>);

impl Faults {
    pub(super) fn strike(&mut self, path: &str) -> Option<Fault> {
        self.0.iter_mut().find_map(|rule| rule.strike(path))
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((start, rest)) => path.strip_prefix(start).is_some_and(|path| {
            (0..=path.len()).any(|skipped| path.get(skipped..).is_some_and(|path| matches(rest, path)))
        }),
    }
}

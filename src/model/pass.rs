//! What a pass is about, how far it is, and what it finds.

use super::Kind;
use super::words::{Words, words};
use serde::{Serialize, Serializer};
use std::fmt;

/// What a pass is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everything of a kind.
    Kind(Kind),
    /// What changed lately, and counts.
    Quick,
}

impl Scope {
    /// The kind, if it is a whole one.
    pub const fn kind(self) -> Option<Kind> {
        match self {
            Scope::Kind(kind) => Some(kind),
            Scope::Quick => None,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Scope::Kind(kind) => kind.as_str(),
            Scope::Quick => "quick",
        }
    }
}

/// Each kind's, and the quick one.
const SCOPES: [Scope; Kind::ALL.len() + 1] = {
    let mut scopes = [Scope::Quick; Kind::ALL.len() + 1];
    let mut n = 0;
    while n < Kind::ALL.len() {
        scopes[n] = Scope::Kind(Kind::ALL[n]);
        n += 1;
    }
    scopes
};

impl Words for Scope {
    const ALL: &'static [Scope] = &SCOPES;

    fn as_str(self) -> &'static str {
        Scope::as_str(self)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

words! {
    /// Where a pass stands, or how it ended.
    PassState {
        Running = "running",
        /// The mirror equals Clerk, but for what is undecided.
        Complete = "complete",
        /// It could not end, and the next one goes on from its last page; or it could not decide about all rows.
        Incomplete = "incomplete",
        /// Its listing contradicts itself; the next one begins anew.
        Void = "void",
        /// It would have ended too much, and has done everything else.
        Braked = "braked",
        /// The feature is off at Clerk.
        Skipped = "skipped",
    }
}

impl PassState {
    /// Whether it did not come to the end of what Clerk has.
    pub(crate) const fn is_failure(self) -> bool {
        matches!(self, PassState::Incomplete | PassState::Void)
    }
}

words! {
    /// How far a pass has come.
    Step {
        /// Page after page is compared.
        List = "list",
        /// What no page showed is asked for by id.
        Confirm = "confirm",
        /// What waits for a read is read.
        Reads = "reads",
        /// It has done what it could: the next one begins anew.
        End = "end",
    }
}

words! {
    /// In which way a row was wrong.
    Drift {
        /// Clerk has it, and it was not here, or a stub.
        Missing = "missing",
        /// Columns differed.
        Differing = "differing",
        /// It was here, and Clerk has it no more.
        Extra = "extra",
    }
}

/// The right to write as a pass: the number of a lease. Whoever takes the lease later has a greater one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Fence(pub i64);

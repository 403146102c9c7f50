//! Why the writer did what it did with a change.

use super::words::words;

words! {
    /// A word of `clerk_sync.apply`. What it keeps instead for later, a dead letter or a read, has its own reason.
    Reason {
        /// There was no row, or a stub.
        New = "new",
        Newer = "newer",
        /// It says what the row says.
        Same = "same",
        /// An event says what a read had said.
        Confirmed = "confirmed",
        /// A read was believed against what events said (R2).
        Overruling = "overruling",
        /// Of two states of which nobody knows which came last, it gives less access (R9).
        LessAccess = "less access",
        /// And this one more: a read must tell.
        MoreAccess = "more access",
        /// A read is asked for before access is taken (R7).
        ToBeSure = "to be sure",
        Older = "older",
        /// A pass or a read has seen the object since (R2, R7).
        ReadSince = "read since",
        /// A read says something older than an event did (R2).
        Contradicts = "contradicts",
        NewerMembership = "newer membership known",
        /// Only a read by id can tell whether it is there (R4, R5, R7).
        Doubtful = "doubtful",
        ParentDeleted = "parent deleted",
        ParentDoubtful = "parent doubtful",
        /// It is back, and what was left of its memberships is not gone yet.
        BeingEmptied = "being emptied",
        /// It is gone; or a tombstone stands against it (R4).
        Deleted = "deleted",
        DeletedAlready = "deleted already",
        DeletedLater = "deleted later than known",
        /// It is not at Clerk, and was seen later than that.
        SeenSince = "seen since",
        /// A read that was made before what asked for it can have reached the API.
        TooEarly = "too early",
        /// It is not at Clerk, and an event that told of it may be ahead of the API (R4).
        Young = "known for less than an hour",
        /// Something of the application's refuses the row.
        Refused = "refused",
        /// Another one of the same batch counts for it.
        Folded = "a newer change came with it",
    }
}

impl Reason {
    /// Whether what was read is older than what is known: the same read, made later, may tell more.
    pub const fn is_early(self) -> bool {
        matches!(self, Reason::Older | Reason::SeenSince | Reason::TooEarly)
    }

    /// Whether what was read speaks against what events said (R2, R4, R5): that Clerk's API is behind them is likelier. It is read
    /// again when that is over.
    pub const fn contradicts(self) -> bool {
        matches!(self, Reason::Contradicts | Reason::NewerMembership | Reason::Young)
    }
}

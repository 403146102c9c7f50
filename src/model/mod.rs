//! The vocabulary of the whole program, as plain values.
//!
//! A webhook and a reconcile pass both end in a [`Change`]: *at this moment of Clerk's clock, this object looked like this,
//! or was gone*. [`Batch::fold`] brings many of them down to one per object, and the writer decides by version which count.
//!
//! This module is pure: no async, no I/O, no SQL, no HTTP, and no clock. It uses nothing else of the crate.

mod change;
mod entity;
mod fold;
mod id;
mod json;
mod kind;
mod pass;
mod reason;
mod redact;
mod time;
mod undecided;
mod words;

pub use change::{Change, MembershipMention, Observation, Outcome, PendingRead, Source, Verdict};
pub use entity::{Entity, Membership, Organization, User};
pub use fold::{
    Batch, BatchMessage, DeadLetter, Delivery, Doubt, FoldedChange, Item, Message, Mode, Refusal, RequestedPass, Row,
    Stub,
};
pub use id::{EntityRef, InstanceCheck, InstanceId, MembershipId, MessageId, OrganizationId, UserId};
pub use json::Json;
pub(crate) use json::decode_string;
pub use kind::Kind;
pub use pass::{Drift, Fence, PassState, Scope, Step};
pub use reason::Reason;
pub(crate) use redact::without_private_metadata;
pub use time::Millis;
pub(crate) use time::span;
pub use undecided::Undecided;
pub(crate) use words::words;
pub use words::{Word, Words};

/// Bytes in hexadecimal, as Postgres and the field's hashes are written.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a string cannot fail");
        hex
    })
}

/// A number with its thousands apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A sentence, from its first letter.
pub(crate) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands_stand_apart() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(super::grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}

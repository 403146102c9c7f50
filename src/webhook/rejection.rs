//! Why a request is refused before anybody knows who sent it.

/// Why a request was not taken for Clerk's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("the header svix-{0} is missing")]
    MissingHeader(&'static str),
    #[error("the header svix-{0} is not ASCII")]
    InvalidHeader(&'static str),
    #[error("the header svix-{0} is not a valid value")]
    MalformedHeader(&'static str),
    #[error("the timestamp must be a number of seconds")]
    InvalidTimestamp,
    #[error("the signature is valid, but {0} s old by this machine's clock")]
    TimestampTooOld(u64),
    #[error("the signature is valid, but {0} s ahead of this machine's clock")]
    TimestampTooNew(u64),
    #[error("no signature matches a configured secret")]
    InvalidSignature,
    #[error("the body is not UTF-8")]
    InvalidPayload,
    #[error("the body is larger than 2 MiB")]
    TooLarge,
    #[error("the body did not arrive within 10 s")]
    TooSlow,
    #[error("the body is incomplete")]
    Incomplete,
    #[error("the body is compressed; send it uncompressed")]
    Encoded,
    #[error("too many bodies are held in memory, or too many connections are open")]
    Busy,
    #[error("CLERK_WEBHOOK_SIGNING_SECRET is not set, so no webhook can be verified")]
    NoSecret,
}

impl Rejection {
    /// One word for answers, logs and counters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Rejection::MissingHeader(_) => "missing_header",
            Rejection::InvalidHeader(_) => "invalid_header",
            Rejection::MalformedHeader(_) => "malformed_header",
            Rejection::InvalidTimestamp => "invalid_timestamp",
            Rejection::TimestampTooOld(_) => "timestamp_too_old",
            Rejection::TimestampTooNew(_) => "timestamp_too_new",
            Rejection::InvalidSignature => "invalid_signature",
            Rejection::InvalidPayload => "invalid_payload",
            Rejection::TooLarge => "too_large",
            Rejection::TooSlow => "too_slow",
            Rejection::Incomplete => "incomplete",
            Rejection::Encoded => "content_encoding",
            Rejection::Busy => "busy",
            Rejection::NoSecret => "no_signing_secret",
        }
    }

    /// By how many seconds this machine's clock is ahead of whoever signed; less than 0: behind. `None`: refused for
    /// another reason.
    pub(super) fn clock_ahead(self) -> Option<i64> {
        match self {
            Rejection::TimestampTooOld(seconds) => i64::try_from(seconds).ok(),
            Rejection::TimestampTooNew(seconds) => i64::try_from(seconds).ok().map(|seconds| -seconds),
            _ => None,
        }
    }
}

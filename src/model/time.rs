//! Moments, in milliseconds.

use serde::{Deserialize, Deserializer, Serialize};

/// A moment on Clerk's clock: Unix time in milliseconds. Between [`Millis::MIN`] and [`Millis::MAX`], so that arithmetic on
/// it cannot overflow and Postgres can hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Millis(i64);

impl Millis {
    /// 1970. Clerk cannot have sent anything earlier.
    pub const MIN: Millis = Millis(0);
    /// The end of the year 9999.
    pub const MAX: Millis = Millis(253_402_300_799_999);
    /// Below this, a time is meant in seconds: as milliseconds it would lie before April 1973. Clerk's own examples of
    /// webhooks have seconds in the envelope where its traffic has milliseconds.
    const SECONDS_BELOW: i64 = 100_000_000_000;

    /// `None` outside [`Millis::MIN`]..=[`Millis::MAX`].
    pub const fn new(ms: i64) -> Option<Millis> {
        if ms < Millis::MIN.0 || ms > Millis::MAX.0 { None } else { Some(Millis(ms)) }
    }

    /// The nearest within the limits.
    pub(crate) const fn clamped(ms: i64) -> Millis {
        Millis(0).plus(ms)
    }

    pub const fn get(self) -> i64 {
        self.0
    }

    /// This many milliseconds later, or earlier where negative; held within the limits.
    #[must_use]
    pub(crate) const fn plus(self, ms: i64) -> Millis {
        let sum = self.0.saturating_add(ms);
        if sum < Millis::MIN.0 {
            Millis::MIN
        } else if sum > Millis::MAX.0 {
            Millis::MAX
        } else {
            Millis(sum)
        }
    }

    /// A wire time that may be in seconds: the first and the last millisecond that it can mean.
    pub(crate) fn span(wire: i64) -> Option<(Millis, Millis)> {
        if wire < 0 {
            return None;
        }
        let (from, to) = if wire < Millis::SECONDS_BELOW { (wire * 1000, wire * 1000 + 999) } else { (wire, wire) };
        Some((Millis::new(from)?, Millis::new(to)?))
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Millis, D::Error> {
        i64::deserialize(deserializer).map(Millis::clamped)
    }
}

/// Seconds as people say them.
pub(crate) fn span(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7_200 => format!("{} min", s / 60),
        s @ 7_200..172_800 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_told_from_milliseconds() {
        let ms = |n| Millis::new(n).unwrap();
        assert_eq!(Millis::span(1_716_883_200), Some((ms(1_716_883_200_000), ms(1_716_883_200_999))));
        assert_eq!(Millis::span(1_716_883_200_123), Some((ms(1_716_883_200_123), ms(1_716_883_200_123))));
        assert_eq!(Millis::span(-1), None);
        assert_eq!(Millis::span(i64::MAX), None);
        assert_eq!(Millis::span(i64::MIN), None);
        assert_eq!(Millis::span(0), Some((ms(0), ms(999))));
    }
}

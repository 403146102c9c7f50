//! Places where the worker can be made to fail, mistakes that can be planted in it, and what can be taken away from it.
//!
//! `./x chaos` must survive the first and catch the second; `./x bench` measures what the third is worth. Without the feature
//! `failpoints`, which no release has, nothing here does anything.
//!
//! `CLERK_SYNC_FAILPOINT` is one of
//!
//! * `verified:N`, `writing:N`, `committed:N`: the process ends when that [`Point`] is reached for the Nth time;
//! * `early_answer`: a delivery is acknowledged before it is written;
//! * `no_write`: a delivery is acknowledged as applied, and never written;
//! * `batch:N`: at most N deliveries go into one statement.

/// Where a process can be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A delivery's signature is good; nobody else knows of it.
    Verified,
    /// A statement is under way.
    Writing,
    /// A statement has committed; nobody was answered.
    Committed,
}

/// What the variable says.
#[cfg(any(test, feature = "failpoints"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    End(Point, u64),
    EarlyAnswer,
    NoWrite,
    Batch(usize),
}

#[cfg(any(test, feature = "failpoints"))]
impl Planted {
    fn parse(text: &str) -> Option<Planted> {
        let Some((name, number)) = text.split_once(':') else {
            return match text {
                "early_answer" => Some(Planted::EarlyAnswer),
                "no_write" => Some(Planted::NoWrite),
                _ => None,
            };
        };
        let number = number.parse().ok().filter(|number| *number > 0)?;
        if name == "batch" {
            return Some(Planted::Batch(usize::try_from(number).ok()?));
        }
        let point =
            [Point::Verified, Point::Writing, Point::Committed].into_iter().find(|point| point.as_str() == name)?;
        Some(Planted::End(point, number))
    }
}

#[cfg(feature = "failpoints")]
mod planted {
    use super::{Planted, Point};
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// The error: what is not understood.
    static PLANTED: LazyLock<Result<Option<Planted>, String>> = LazyLock::new(|| {
        let Some(value) = std::env::var_os("CLERK_SYNC_FAILPOINT") else { return Ok(None) };
        let value = value.to_string_lossy();
        Planted::parse(&value).map(Some).ok_or_else(|| format!("CLERK_SYNC_FAILPOINT has no meaning: {value}"))
    });
    static REACHED: AtomicU64 = AtomicU64::new(0);

    fn planted() -> Option<Planted> {
        PLANTED.as_ref().ok().copied().flatten()
    }

    pub(super) fn check() -> anyhow::Result<()> {
        PLANTED.as_ref().map(drop).map_err(anyhow::Error::msg)
    }

    pub(super) fn reached(point: Point) {
        let Some(Planted::End(planted, times)) = planted() else { return };
        if planted != point || REACHED.fetch_add(1, Ordering::Relaxed) + 1 != times {
            return;
        }
        if point == Point::Writing {
            std::thread::spawn(|| {
                std::thread::sleep(std::time::Duration::from_micros(fastrand::u64(0..3_000)));
                std::process::abort();
            });
        } else {
            std::process::abort();
        }
    }

    pub(super) fn answers_early() -> bool {
        planted() == Some(Planted::EarlyAnswer)
    }

    pub(super) fn writes() -> bool {
        planted() != Some(Planted::NoWrite)
    }

    pub(super) fn batch() -> Option<usize> {
        match planted()? {
            Planted::Batch(number) => Some(number),
            _ => None,
        }
    }
}

#[cfg(not(feature = "failpoints"))]
mod planted {
    use super::Point;

    pub(super) const fn check() -> anyhow::Result<()> {
        Ok(())
    }

    pub(super) const fn reached(_: Point) {}

    pub(super) const fn answers_early() -> bool {
        false
    }

    pub(super) const fn writes() -> bool {
        true
    }

    pub(super) const fn batch() -> Option<usize> {
        None
    }
}

/// Whether the variable is understood, before anything depends on it.
///
/// # Errors
/// It is not: a trial that was meant to break something would break nothing.
pub fn check() -> anyhow::Result<()> {
    planted::check()
}

/// Ends the process if it is time to. While a statement is under way that is a moment later.
pub(crate) fn reached(point: Point) {
    planted::reached(point);
}

/// Whether deliveries are acknowledged before they are written.
pub(crate) fn answers_early() -> bool {
    planted::answers_early()
}

/// Whether deliveries are written at all.
pub(crate) fn writes() -> bool {
    planted::writes()
}

/// How many deliveries go into one statement at most, where fewer are asked for than usual.
pub(crate) fn batch() -> Option<usize> {
    planted::batch()
}

impl Point {
    /// As the variable spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Point::Verified => "verified",
            Point::Writing => "writing",
            Point::Committed => "committed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planted_is_spelled_out_and_nothing_else_has_a_meaning() {
        assert_eq!(Planted::parse("committed:20"), Some(Planted::End(Point::Committed, 20)));
        assert_eq!(Planted::parse("early_answer"), Some(Planted::EarlyAnswer));
        assert_eq!(Planted::parse("no_write"), Some(Planted::NoWrite));
        assert_eq!(Planted::parse("batch:1"), Some(Planted::Batch(1)));
        for text in
            ["", "none", "batch", "batch:0", "batch:x", "commited:20", "committed", "early_answer:1", " no_write"]
        {
            assert_eq!(Planted::parse(text), None, "{text}");
        }
    }
}

//! Places where the worker can be made to fail, and a mistake that can be planted in it.
//!
//! `clerk-sync chaos` must survive the one and catch the other. Without the feature `failpoints`, which no release has, nothing
//! here does anything.
//!
//! `CLERK_SYNC_FAILPOINT=committed:20` ends the process when [`Point::Committed`] is reached for the 20th time;
//! `CLERK_SYNC_FAILPOINT=early_answer` plants [`Point::EarlyAnswer`].

/// See the variable above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A delivery's signature is good; nobody else knows of it.
    Verified,
    /// A statement is under way.
    Writing,
    /// A statement has committed; nobody was answered.
    Committed,
    /// The mistake: a delivery is acknowledged before it is written.
    EarlyAnswer,
}

#[cfg(feature = "failpoints")]
mod planted {
    use super::Point;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static PLANTED: LazyLock<Option<(Point, u64)>> = LazyLock::new(|| {
        let planted = std::env::var("CLERK_SYNC_FAILPOINT").ok()?;
        let (name, times) = planted.split_once(':').unwrap_or((&planted, "0"));
        let all = [Point::Verified, Point::Writing, Point::Committed, Point::EarlyAnswer];
        Some((all.into_iter().find(|point| point.as_str() == name)?, times.parse().ok()?))
    });
    static REACHED: AtomicU64 = AtomicU64::new(0);

    /// Ends the process if it is time to. While a statement is under way that is a moment later.
    pub fn reached(point: Point) {
        let Some((planted, times)) = *PLANTED else { return };
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

    /// Whether the mistake is planted.
    pub fn is_planted(point: Point) -> bool {
        PLANTED.is_some_and(|(planted, _)| planted == point)
    }
}

#[cfg(not(feature = "failpoints"))]
mod planted {
    use super::Point;

    pub const fn reached(_: Point) {}

    pub const fn is_planted(_: Point) -> bool {
        false
    }
}

pub use planted::{is_planted, reached};

impl Point {
    /// As the variable spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Point::Verified => "verified",
            Point::Writing => "writing",
            Point::Committed => "committed",
            Point::EarlyAnswer => "early_answer",
        }
    }
}

//! The deletion limit: how many rows a pass may delete without approval. Pure.

/// How many rows a pass would delete, of how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    pub rows: u64,
    pub absent: u64,
}

impl Removal {
    /// More than 5 % of the rows (limit at least 10, at most 500), or more than half of them if there are at least two.
    pub(crate) const fn exceeds_limit(self) -> bool {
        let share = self.rows / 20;
        let capped = if share > 500 { 500 } else { share };
        let limit = if capped < 10 { 10 } else { capped };
        self.absent > limit || (self.rows > 1 && self.absent * 2 > self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_exact() {
        let heavy = |rows, absent| Removal { rows, absent }.exceeds_limit();
        assert!(!heavy(1, 1) && !heavy(2, 1) && heavy(2, 2) && heavy(3, 2) && heavy(0, 11));
        assert!(!heavy(100, 10) && heavy(100, 11));
        assert!(!heavy(1_000, 50) && heavy(1_000, 51));
        assert!(!heavy(1_000_000, 500) && heavy(1_000_000, 501));
    }
}

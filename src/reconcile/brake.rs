//! How much a pass may take away without being asked. Pure.

/// What a pass would end, beside what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    pub rows: u64,
    pub absent: u64,
}

impl Weight {
    /// More than 5 % (but ten rows always may go, and 500 at most), or over half of more than one row.
    pub(crate) const fn is_too_heavy(self) -> bool {
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
        let heavy = |rows, absent| Weight { rows, absent }.is_too_heavy();
        assert!(!heavy(1, 1) && !heavy(2, 1) && heavy(2, 2) && heavy(3, 2) && heavy(0, 11));
        assert!(!heavy(100, 10) && heavy(100, 11));
        assert!(!heavy(1_000, 50) && heavy(1_000, 51));
        assert!(!heavy(1_000_000, 500) && heavy(1_000_000, 501));
    }
}

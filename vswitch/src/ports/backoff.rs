//! Looking less often at a port that has nothing, where a look costs a system call.

/// Looks that are left out after a vain one, at most: some microseconds of turns.
const MAX_SKIP: u32 = 16;

/// Doubles the looks that are left out after each vain one.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    skip: u32,
    skipped: u32,
}

impl Backoff {
    /// Whether it is time to look.
    pub(super) fn is_due(&mut self) -> bool {
        if self.skipped < self.skip {
            self.skipped += 1;
            return false;
        }
        self.skipped = 0;
        true
    }

    /// A look found something, or nothing.
    pub(super) fn looked(&mut self, found: bool) {
        self.skip = if found {
            0
        } else {
            (self.skip * 2 + 1).min(MAX_SKIP)
        };
    }

    /// Look at the next occasion.
    pub(super) fn reset(&mut self) {
        self.skip = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vain_looks_grow_rare_and_a_find_makes_them_frequent() {
        let mut backoff = Backoff::default();
        let mut looks = Vec::new();
        for turn in 0..60 {
            if backoff.is_due() {
                looks.push(turn);
                backoff.looked(false);
            }
        }
        assert_eq!(looks, [0, 2, 6, 14, 30, 47]);
        backoff.looked(true);
        assert!(backoff.is_due() && backoff.is_due());
    }
}

//! How long a worker polls in vain before it sleeps.

/// Grows while sleeps turn out to be short, and is as short as it can be again after a long one.
///
/// To sleep costs the next frame a wake-up: 5 to 50 µs, and milliseconds in a virtual machine whose host has given the
/// halted processor away. A sleep shorter than that was a mistake, and the next pause of the same traffic is likely to be
/// as short.
#[derive(Debug)]
pub struct Patience {
    cycles: u64,
}

impl Patience {
    /// Processor cycles after which a worker that was quiet goes to sleep: some 200 µs. A shorter wait would sleep between
    /// the frames of one conversation, and whenever a sender in a virtual machine is held up for a moment.
    const LEAST: u64 = 500_000;
    /// Cycles of polling in vain at most, some 2 ms; a sleep of up to so many is a short one.
    const MOST: u64 = 5_000_000;

    /// The patience of a worker that has seen no traffic.
    pub fn new() -> Self {
        Patience {
            cycles: Self::LEAST,
        }
    }

    /// Whether a worker that has found nothing for `cycles` should sleep.
    #[inline]
    pub fn is_over(&self, cycles: u64) -> bool {
        cycles > self.cycles
    }

    /// A sleep took `cycles`.
    pub fn slept(&mut self, cycles: u64) {
        self.cycles = if cycles > Self::MOST {
            Self::LEAST
        } else {
            (self.cycles * 4).min(Self::MOST)
        };
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sleeps out of `pauses` pauses of `cycles` each.
    fn sleeps(patience: &mut Patience, cycles: u64, pauses: usize) -> usize {
        let mut pauses_slept = 0;
        for _ in 0..pauses {
            if patience.is_over(cycles) {
                pauses_slept += 1;
                patience.slept(cycles - patience.cycles);
            }
        }
        pauses_slept
    }

    #[test]
    fn regular_traffic_soon_finds_the_worker_awake() {
        let mut patience = Patience::new();
        assert_eq!(sleeps(&mut patience, 2_000_001, 100), 2);
        assert_eq!(sleeps(&mut patience, 400_000, 100), 0);
    }

    #[test]
    fn rare_traffic_never_keeps_it_awake() {
        let mut patience = Patience::new();
        assert_eq!(sleeps(&mut patience, 50_000_000, 100), 100);
        assert!(patience.is_over(Patience::LEAST + 1));
    }
}

//! How long a worker polls in vain before it sleeps.

/// As long as the traffic before it went on, up to a limit, and at least a little, which grows while sleeps turn out to be
/// short.
///
/// To sleep costs the next frame a wake-up: 5 to 50 µs, and milliseconds in a virtual machine whose host has given the
/// halted processor away. A sleep shorter than that was a mistake, and the next pause of the same traffic is likely to be
/// as short. A pause in traffic that has gone on for long is more likely that of a sender which was held up than its end;
/// and to poll in vain for as long as it worked costs a worker no more than twice the time.
#[derive(Debug)]
pub struct Patience {
    cycles: u64,
    /// When it last woke up.
    woken: u64,
}

impl Patience {
    /// Processor cycles after which a worker that was quiet goes to sleep: some 200 µs. A shorter wait would sleep between
    /// the frames of one conversation, and whenever a sender in a virtual machine is held up for a moment.
    const LEAST: u64 = 500_000;
    /// Cycles of polling in vain at most after little traffic, some 2 ms; a sleep of up to so many is a short one.
    const SHORT: u64 = 5_000_000;
    /// The same after traffic that went on for as long: some 10 ms.
    const MOST: u64 = 25_000_000;

    /// The patience of a worker that has seen no traffic, at cycle `now`.
    pub fn new(now: u64) -> Self {
        Patience {
            cycles: Self::LEAST,
            woken: now,
        }
    }

    /// Whether a worker that has found nothing from cycle `last_frame` to `now` should sleep.
    #[inline]
    pub fn is_over(&self, last_frame: u64, now: u64) -> bool {
        let earned = last_frame.wrapping_sub(self.woken).min(Self::MOST);
        now.wrapping_sub(last_frame) > self.cycles.max(earned)
    }

    /// It slept from cycle `asleep` to `now`.
    pub fn slept(&mut self, asleep: u64, now: u64) {
        self.woken = now;
        self.cycles = if now.wrapping_sub(asleep) > Self::SHORT {
            Self::LEAST
        } else {
            (self.cycles * 4).min(Self::SHORT)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sleeps out of `pauses` pauses of `cycles` each, with a frame between them.
    fn sleeps(patience: &mut Patience, cycles: u64, pauses: usize) -> usize {
        let mut now = patience.woken;
        let mut pauses_slept = 0;
        for _ in 0..pauses {
            let frame = now;
            now += cycles;
            if patience.is_over(frame, now) {
                pauses_slept += 1;
                patience.slept(frame + patience.cycles, now);
            }
        }
        pauses_slept
    }

    #[test]
    fn regular_traffic_soon_finds_the_worker_awake() {
        let mut patience = Patience::new(7);
        assert_eq!(sleeps(&mut patience, 2_000_001, 100), 2);
        assert_eq!(sleeps(&mut patience, 400_000, 100), 0);
    }

    #[test]
    fn rare_traffic_never_keeps_it_awake() {
        let mut patience = Patience::new(7);
        assert_eq!(sleeps(&mut patience, 50_000_000, 100), 100);
        assert!(patience.is_over(patience.woken, patience.woken + Patience::LEAST + 1));
    }

    #[test]
    fn long_traffic_is_waited_for_as_long_as_it_went_on_and_not_much_longer() {
        let mut patience = Patience::new(7);
        // 8 ms of traffic, then a pause.
        assert_eq!(sleeps(&mut patience, 400_000, 50), 0);
        let last = 7 + 50 * 400_000;
        assert!(!patience.is_over(last, last + 20_000_000));
        assert!(patience.is_over(last, last + 20_000_001));
        let last = last + 1_000_000_000;
        assert!(!patience.is_over(last, last + Patience::MOST));
        assert!(patience.is_over(last, last + Patience::MOST + 1));
    }
}

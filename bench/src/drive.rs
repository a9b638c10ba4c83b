//! The driver: keeps rings full, or sends at a rate, and counts.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::bare::{Guest, Taken};
use crate::case::Case;
use crate::machine::hertz;
use crate::stats::Histogram;
use crate::subject::{Attached, Contender, Counts};
use crate::syscalls::Counting;

/// Frames that are sent or received at once.
const BATCH: usize = 64;
/// Polls between two looks at the clock.
const POLLS: u32 = 256;
/// Before counting begins: caches, MAC table and clock speed settle. Repeated while the rate grows.
const WARM_UP: Duration = Duration::from_millis(60);
/// A rate that grows by less than this has settled.
const GROWTH: f64 = 1.1;
/// How often each address must have passed before: a switch that makes an entry for each pair of addresses when it first
/// meets them is not to be measured while it does.
const PASSES: u64 = 4;
/// How long that may take; a switch that is not at its speed by then is measured as it is.
const SETTLED: Duration = Duration::from_secs(10);
/// How long to wait for the first frame. Another switch may need a while until its ports are up.
const FIRST: Duration = Duration::from_secs(10);
/// How long a frame may take to the others before it is sent again: a worker that shares its core is not at it at once.
const HEARD: Duration = Duration::from_millis(50);
/// How long frames that were sent at a rate may be under way.
const LAST: Duration = Duration::from_millis(20);

/// Two guests, or more, of one case.
pub(crate) struct Pair {
    pub(crate) guests: Vec<Guest>,
    case: Case,
}

/// What the driver saw.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Driven {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) bytes: u64,
    /// Share of its time in which it found nothing to do.
    pub(crate) idle: f64,
    pub(crate) seconds: f64,
}

impl Driven {
    /// Frames received in a second.
    pub(crate) fn rate(&self) -> f64 {
        self.received as f64 / self.seconds
    }
}

/// What was sent at a rate.
#[derive(Clone, Default)]
pub(crate) struct Paced {
    /// Frames that were due.
    pub(crate) offered: u64,
    /// Frames that arrived.
    pub(crate) received: u64,
    /// From sending to receiving, in cycles.
    pub(crate) ages: Histogram,
}

impl Paced {
    /// Takes in what was sent at another time.
    pub(crate) fn add(&mut self, other: &Paced) {
        self.offered += other.offered;
        self.received += other.received;
        self.ages.merge(&other.ages);
    }

    /// Share of the frames that did not arrive, or found no room in the ring when they were due.
    pub(crate) fn loss(&self) -> f64 {
        let lost = self.offered.saturating_sub(self.received);
        lost as f64 / self.offered.max(1) as f64
    }
}

impl Pair {
    /// `count` guests that send to the next one, the last one to the first.
    pub(crate) fn new(case: &Case, count: u8) -> Result<Pair> {
        let guest = |number| Guest::new(case, number, (number + 1) % count);
        Ok(Pair {
            guests: (0..count).map(guest).collect::<Result<_>>()?,
            case: *case,
        })
    }

    /// Attaches the guests, and shows the switch where every address is.
    pub(crate) fn attach<'a>(&mut self, to: &'a mut dyn Contender) -> Result<Attached<'a>> {
        let fronts: Vec<_> = self.guests.iter().map(|guest| &guest.front).collect();
        let attached = to.attach(&self.case, &fronts)?;
        self.introduce()?;
        attached.tick();
        Ok(attached)
    }

    /// Keeps the rings full until the switch is at its speed.
    fn warm_up(&mut self, senders: usize) -> Result<()> {
        let start = Instant::now();
        let wanted = PASSES * u64::from(self.case.sources.max(self.case.destinations));
        let (mut received, mut best) = (0, 0.0);
        while start.elapsed() < SETTLED {
            let driven = self.saturate(senders, WARM_UP)?;
            received += driven.received;
            let rate = driven.rate();
            if received >= wanted && rate < best * GROWTH {
                break;
            }
            best = rate.max(best);
        }
        Ok(())
    }

    /// Every guest sends from each of its addresses once, until the others hear it.
    fn introduce(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            let mut heard = true;
            for index in 0..self.guests.len() {
                let heard_now = self.introduce_one(index)?;
                heard &= heard_now;
            }
            if heard {
                break;
            }
            ensure!(
                start.elapsed() < FIRST,
                "no frame went through the switch in {FIRST:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        self.drain(Duration::from_millis(2))
    }

    fn introduce_one(&mut self, index: usize) -> Result<bool> {
        let addresses = self.case.sources.max(self.case.destinations) as usize;
        let other = ((index + 1) % self.guests.len()) as u8;
        let Some(guest) = self.guests.get_mut(index) else {
            return Ok(false);
        };
        // The receiver of a lane must be known by all addresses that are sent to.
        guest.tx.sources(0, addresses as u32);
        guest
            .tx
            .aim(if addresses == 1 { None } else { Some(other) });
        let (mut sent, mut heard) = (0, 0);
        let start = Instant::now();
        while sent < addresses && start.elapsed() < FIRST {
            if let Some(guest) = self.guests.get_mut(index) {
                sent += guest.tx.send(BATCH.min(addresses - sent), None)?;
            }
            heard += self.receive_all()?;
        }
        let sent_at = Instant::now();
        while heard == 0 && sent_at.elapsed() < HEARD {
            // A driver that has nothing more to send wakes a worker that has gone to sleep.
            if let Some(guest) = self.guests.get_mut(index) {
                guest.tx.send(0, None)?;
            }
            heard += self.receive_all()?;
        }
        if let Some(guest) = self.guests.get_mut(index) {
            guest.tx.sources(0, self.case.sources);
            guest.tx.aim(Some(other));
        }
        Ok(heard > 0)
    }

    fn receive_all(&mut self) -> Result<u64> {
        let mut frames = 0;
        for guest in &mut self.guests {
            frames += guest.rx.receive(BATCH, None)?.frames;
        }
        Ok(frames)
    }

    /// Takes what is still under way.
    pub(crate) fn drain(&mut self, time: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            self.receive_all()?;
        }
        Ok(())
    }

    /// Keeps the rings of `senders` full for `time`.
    pub(crate) fn saturate(&mut self, senders: usize, time: Duration) -> Result<Driven> {
        let (start, born) = (Instant::now(), guestmem::cycles());
        let (mut driven, mut taken) = (Driven::default(), Taken::default());
        let (mut idle, mut last) = (0, born);
        loop {
            for _ in 0..POLLS {
                let before = (driven.sent, taken.frames);
                for (index, guest) in self.guests.iter_mut().enumerate() {
                    if index < senders {
                        driven.sent += guest.tx.send(BATCH, None)? as u64;
                    }
                    let now = guest.rx.receive(BATCH, None)?;
                    taken.frames += now.frames;
                    taken.bytes += now.bytes;
                }
                let now = guestmem::cycles();
                if before == (driven.sent, taken.frames) {
                    idle += now - last;
                    std::hint::spin_loop();
                }
                last = now;
            }
            if start.elapsed() >= time {
                break;
            }
        }
        driven.received = taken.frames;
        driven.bytes = taken.bytes;
        driven.idle = idle as f64 / (last - born).max(1) as f64;
        driven.seconds = start.elapsed().as_secs_f64();
        Ok(driven)
    }

    /// Sends from the first guest to the second at `rate` frames a second for `time`.
    pub(crate) fn pace(&mut self, rate: f64, time: Duration) -> Result<Paced> {
        let [from, to] = self.guests.as_mut_slice() else {
            anyhow::bail!("frames are sent at a rate between two guests");
        };
        let mut paced = Paced::default();
        let stamped = self.case.frame >= crate::bare::STAMPED;
        let (interval, mut born) = (hertz() / rate, guestmem::cycles() as f64);
        let end = (time.as_secs_f64() * rate) as u64;
        let mut under_way = 0i64;
        while paced.offered < end {
            let now = guestmem::cycles();
            let due = ((now as f64 - born) / interval) as u64 + 1;
            let mut due = due.min(end).saturating_sub(paced.offered);
            if due > BATCH as u64 {
                // The driver was held up. It goes on at the rate: a burst would be its own doing, not the switch's.
                born += (due - BATCH as u64) as f64 * interval;
                due = BATCH as u64;
            }
            if due > 0 {
                // What finds no room is lost to whoever wanted to send it.
                under_way += from.tx.send(due as usize, Some(now).filter(|_| stamped))? as i64;
                paced.offered += due;
            } else {
                // A switch that went to sleep between two frames must be told of them.
                from.tx.send(0, None)?;
            }
            let now = guestmem::cycles();
            let taken = to
                .rx
                .receive(BATCH, Some((&mut paced.ages, now)).filter(|_| stamped))?;
            paced.received += taken.frames;
            under_way -= taken.frames as i64;
            if due == 0 && taken.frames == 0 {
                std::hint::spin_loop();
            }
        }
        let sent = Instant::now();
        while under_way > 0 && sent.elapsed() < LAST {
            from.tx.send(0, None)?;
            let ages = Some((&mut paced.ages, guestmem::cycles())).filter(|_| stamped);
            let taken = to.rx.receive(BATCH, ages)?;
            paced.received += taken.frames;
            under_way -= taken.frames as i64;
        }
        Ok(paced)
    }
}

/// One run that keeps the rings full.
pub(crate) struct Run {
    pub(crate) driven: Driven,
    /// What the switch counted meanwhile, if it is ours.
    pub(crate) counts: Option<Counts>,
    /// Allocations of the whole process meanwhile.
    pub(crate) allocations: usize,
    /// System calls of the worker meanwhile, if they were counted.
    pub(crate) syscalls: Option<u64>,
}

/// Attaches two guests and keeps the rings full for `time`. System calls are counted by another process, which such a
/// run should not be timed with.
pub(crate) fn run(
    to: &mut dyn Contender,
    case: &Case,
    time: Duration,
    count_calls: bool,
) -> Result<Run> {
    let mut pair = Pair::new(case, 2)?;
    let attached = pair.attach(to)?;
    let senders = if case.both_ways { 2 } else { 1 };
    pair.warm_up(senders)?;
    let counting = count_calls.then(Counting::start).transpose()?;
    let before = attached.counts();
    let allocations = crate::allocations();
    let driven = pair.saturate(senders, time)?;
    let allocations = crate::allocations() - allocations;
    let after = attached.counts();
    let syscalls = counting.map(Counting::end).transpose()?;
    ensure!(driven.received > 0, "no frame arrived");
    // A frame of several buffers may be half received when the time begins and when it ends.
    let expected = driven.received * u64::from(case.frame);
    let partial = if case.frame + 12 > crate::bare::BUFFER {
        u64::from(case.frame) * pair.guests.len() as u64
    } else {
        0
    };
    ensure!(
        driven.bytes.abs_diff(expected) <= partial,
        "{} frames of {} bytes were {} bytes",
        driven.received,
        case.frame,
        driven.bytes
    );
    Ok(Run {
        driven,
        counts: before
            .zip(after)
            .map(|(before, after)| after.since(&before)),
        allocations,
        syscalls,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::subject::{CopyOnly, Ours};

    const SHORT: Duration = Duration::from_millis(100);
    /// Each test has a worker that polls on the same core.
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

    fn cases() -> Vec<Case> {
        let base = Case::of(64);
        vec![
            base,
            Case {
                packed: true,
                ..base
            },
            Case {
                both_ways: true,
                ..base
            },
            Case {
                sources: 1000,
                destinations: 1000,
                ..base
            },
            Case {
                touched: true,
                ..Case::of(1518)
            },
            Case::of(9000),
            Case::large(),
            Case {
                packed: true,
                ..Case::large()
            },
        ]
    }

    #[test]
    fn frames_of_every_case_go_through_the_switch_whole() {
        let _alone = ALONE.lock();
        let mut ours = Ours { cores: vec![0] };
        for case in cases() {
            // `run` itself checks that the bytes are those of the frames.
            let run = run(&mut ours, &case, SHORT, false).unwrap();
            let counts = run.counts.unwrap();
            assert!(
                counts.delivered > 0 && counts.busy_cycles > 0,
                "{}",
                case.label()
            );
        }
    }

    #[test]
    fn frames_of_every_case_are_copied_without_a_switch() {
        let _alone = ALONE.lock();
        let mut copy = CopyOnly { core: 0 };
        for case in cases().into_iter().filter(|case| !case.packed) {
            assert!(
                run(&mut copy, &case, SHORT, false).unwrap().driven.received > 0,
                "{}",
                case.label()
            );
        }
    }

    #[test]
    fn known_destinations_are_not_flooded() {
        let _alone = ALONE.lock();
        let case = Case {
            destinations: 1000,
            ..Case::of(64)
        };
        let mut pair = Pair::new(&case, 3).unwrap();
        let mut ours = Ours { cores: vec![0] };
        let attached = pair.attach(&mut ours).unwrap();
        let before = attached.counts().unwrap();
        pair.saturate(1, SHORT).unwrap();
        pair.drain(SHORT).unwrap();
        let counts = attached.counts().unwrap().since(&before);
        assert!(counts.delivered <= counts.taken, "{counts:?}");
    }

    #[test]
    fn a_slow_rate_arrives_whole_and_in_time() {
        let _alone = ALONE.lock();
        let mut pair = Pair::new(&Case::of(64), 2).unwrap();
        let mut ours = Ours { cores: vec![0] };
        let _attached = pair.attach(&mut ours).unwrap();
        // A machine that is busy with something else may hold frames up once.
        let mut trials = (0..5).map(|_| pair.pace(1000.0, Duration::from_millis(100)).unwrap());
        let paced = trials.find(|paced| paced.loss() == 0.0).unwrap();
        assert_eq!((paced.offered, paced.received), (100, 100));
        assert!(paced.ages.percentile(0.5) > 0);
    }
}

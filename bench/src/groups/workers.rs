//! What two workers cost each other. Each is on a core of its own, where the drivers of its two guests take turns with it:
//! so two cores are enough for both, and a frame's bytes are in the cache of the core. The cycles of a frame are those of
//! the worker's turns alone.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use vswitch::control::SteppedWorker;

use super::{Bench, Figures, Group};
use crate::bare::Guest;
use crate::case::Case;
use crate::figures::Runs;
use crate::machine::pin;
use crate::subject::{Local, OURS};

/// Frames that a driver sends before its worker's turn.
const BATCH: usize = 32;
/// Rounds between two looks at the clock.
const ROUNDS: u32 = 256;
const SIZES: [u32; 2] = [64, 1518];

/// Whom the guests of a worker send to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    /// To the other guest of the same worker.
    Own,
    /// To a guest of the other worker.
    Other,
}

/// A worker, and its guests: one that sends, one that receives.
struct Place {
    core: usize,
    worker: SteppedWorker,
    from: Guest,
    to: Guest,
}

/// Frames taken, and the cycles of the turns in which they were.
#[derive(Clone, Copy, Default)]
struct Turns {
    frames: u64,
    cycles: u64,
}

impl Place {
    /// One round: the sender's turn, the worker's, the receiver's.
    fn round(&mut self, turns: &mut Turns) -> Result<()> {
        self.from.tx.send(BATCH, None)?;
        let mut worker = self.worker.lock().map_err(|_| anyhow!("a worker failed"))?;
        let before = guestmem::cycles();
        let frames = worker.poll(1);
        if frames > 0 {
            turns.cycles += guestmem::cycles().wrapping_sub(before);
            turns.frames += u64::from(frames);
        }
        self.to.rx.receive(4 * BATCH, None)?;
        Ok(())
    }

    fn run(&mut self, time: Duration, start: &Barrier) -> Result<Turns> {
        let pinned = pin(self.core);
        // Also if that failed: the other one waits here.
        start.wait();
        pinned?;
        let begin = Instant::now();
        let mut turns = Turns::default();
        while begin.elapsed() < 2 * time {
            // Caches and clock speed settle in the first half.
            if begin.elapsed() < time {
                turns = Turns::default();
            }
            for _ in 0..ROUNDS {
                self.round(&mut turns)?;
            }
        }
        Ok(turns)
    }
}

/// The cycles of a frame, of workers on `cores` at the same time.
fn cycles(case: &Case, cores: &[usize], to: To, time: Duration) -> Result<f64> {
    let (mut local, workers) = Local::stepped(cores.len())?;
    let mut places = Vec::new();
    for (index, (worker, core)) in workers.into_iter().zip(cores).enumerate() {
        let receiver = |index: usize| 2 * index as u8 + 1;
        let aim = match to {
            To::Own => index,
            To::Other => (index + 1) % cores.len(),
        };
        let from = Guest::new(case, 2 * index as u8, receiver(aim))?;
        let to = Guest::new(case, receiver(index), 2 * index as u8)?;
        for guest in [&from, &to] {
            local.add_guest(&guest.front, Some(index))?;
        }
        places.push(Place {
            core: *core,
            worker,
            from,
            to,
        });
    }
    for place in &mut places {
        // The switch is shown where the receiver is.
        place.to.tx.aim(None);
        ensure!(place.to.tx.send(1, None)? == 1, "a new guest cannot send");
        place.round(&mut Turns::default())?;
    }
    let start = Barrier::new(places.len());
    let all = thread::scope(|scope| {
        let run = |place| scope.spawn(|| Place::run(place, time, &start));
        let running: Vec<_> = places.iter_mut().map(run).collect();
        let ended = running.into_iter().map(|each| each.join());
        ended
            .map(|turns| turns.map_err(|_| anyhow!("a measurement panicked"))?)
            .collect::<Result<Vec<Turns>>>()
    })?;
    let (frames, cycles) = all.iter().fold((0, 0), |(frames, cycles), turns| {
        (frames + turns.frames, cycles + turns.cycles)
    });
    let dropped = local.counts().dropped;
    ensure!(frames > 0, "no frame was taken");
    // Of two, one may pause while the other goes on sending to its guest.
    ensure!(
        to == To::Other || dropped == 0,
        "{dropped} frames were dropped"
    );
    Ok(cycles as f64 / frames as f64)
}

/// One worker and two, in turn.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let settings = bench.settings.clone();
    let cores = [settings.switch_core, settings.driver_core];
    ensure!(cores[0] != cores[1], "two workers need two cores");
    let group = Group::Workers.name();
    let remark = "Each worker shares its core with the drivers of its guests, which take turns with it; *cycles* are the \
                  worker's. *× one worker* is what two do together, measured by cycles in the same round.";
    bench
        .results
        .remarks
        .insert(group.clone(), vec![remark.to_owned()]);
    for size in SIZES {
        let case = Case::of(size);
        let ways = [
            ("one worker", 1, To::Own),
            ("two, each between its own guests", 2, To::Own),
            ("two, each to the other's guest", 2, To::Other),
        ];
        let mut runs = ways.map(|_| Runs::default());
        for _ in 0..settings.runs {
            bench.may_go_on()?;
            let mut one = None;
            for ((_, count, to), runs) in ways.iter().zip(&mut runs) {
                let cores = cores.get(..*count).unwrap_or(&cores);
                let figures = cycles(&case, cores, *to, settings.time).map(|cycles| -> Figures {
                    let alone = *one.get_or_insert(cycles);
                    let together = *count as f64 * alone / cycles;
                    vec![("cycles", cycles), ("together", together)]
                });
                runs.add(figures);
            }
        }
        for ((way, _, _), runs) in ways.iter().zip(runs) {
            let case = format!("{}, {way}", case.label());
            bench.add(runs.row(&group, &case, OURS), "cycles");
        }
    }
    Ok(())
}

//! The real switch and real rings in one thread, from a seed: random topologies, frames and hostile guests, with the
//! switch's rules as oracles.
//!
//! `SIM_SEED=n` replays one seed; `SIM_SEEDS=n` sets how many are run (200), from `SIM_FROM` (1) on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    missing_docs,
    reason = "a test"
)]

mod sim;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use sim::{Tally, World};
use vswitch::drops::DropReason;

/// Events of one simulation.
const STEPS: u32 = 400;

fn run(seed: u64) -> Tally {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.finish();
    world.tally
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}"))
    })
}

#[test]
fn the_rules_hold_for_every_seed() {
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let from = number("SIM_FROM").unwrap_or(1);
            from..from + number("SIM_SEEDS").unwrap_or(200)
        }
    };
    let whole = seeds.end - seeds.start >= 200;
    let mut all = Tally::default();
    for seed in seeds {
        let tally = catch_unwind(AssertUnwindSafe(|| run(seed))).unwrap_or_else(|panic| {
            println!("replay with SIM_SEED={seed}");
            resume_unwind(panic)
        });
        all.tx.merge(&tally.tx);
        all.completed += tally.completed;
        all.cut += tally.cut;
        all.faults += tally.faults;
    }
    println!(
        "{} frames, {} delivered, {} completed, {} cut, {} faults",
        all.tx.frames, all.tx.delivered, all.completed, all.cut, all.faults
    );
    for (reason, count) in all.tx.drops.iter() {
        println!("{:>20} {count}", reason.name());
    }
    // A simulation that does not get everywhere proves little.
    if whole {
        assert!(
            all.tx.delivered > 10_000 && all.completed > 1000 && all.cut > 100 && all.faults > 10
        );
        // What needs a port of the host kernel, an entry that an operator pinned, or an adapter of a VM of ours.
        let elsewhere = [
            DropReason::HostError,
            DropReason::VlanEgress,
            // Adapters of our own.
            DropReason::RxFilter,
            DropReason::Malformed,
        ];
        for &reason in DropReason::ALL
            .iter()
            .filter(|reason| !elsewhere.contains(reason))
        {
            assert!(
                all.tx.drops.get(reason) > 0,
                "no frame was dropped as {}",
                reason.name()
            );
        }
    }
}

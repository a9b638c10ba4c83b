//! Throughput between two legacy adapters (DEC 21140): the worker on one core, a driver of both on the other, which polls.
//! Both drivers were written from the manual and do what Linux's does for each frame, but look at no byte of it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use vnic_legacy::driver::Guest;
use vnic_legacy::driver::ring::Rings;
use vswitch::mac::Mac;

use super::rings::counted;
use super::{Bench, Figures, Group};
use crate::figures::Runs;
use crate::machine::on_core;
use crate::subject::{Local, OURS};

/// Frame sizes, without FCS; the last is the longest that there is.
const SIZES: [u32; 3] = [64, 512, 1514];
/// Frames sent or received at once.
const BATCH: u32 = 16;
/// Batches between two looks at the clock.
const ROUNDS: u32 = 64;
/// For the switch to learn where an adapter is.
const LEARN: Duration = Duration::from_millis(20);

const fn mac(index: u8) -> [u8; 6] {
    [0x52, 0x15, 0x5d, 0, 0, index]
}

struct Adapter {
    guest: Guest,
    rings: Rings,
}

impl Adapter {
    fn new(local: &mut Local, index: u8) -> Result<Adapter> {
        let mut guest = Guest::new(Mac(mac(index)))?;
        local.add(guest.open_port()?)?;
        let mut rings = guest.up(mac(index))?;
        let mut hello = [&[0xff; 6][..], &mac(index), &[0x88, 0xb5]].concat();
        hello.resize(60, 0);
        rings.send(&mut guest, &hello)?;
        thread::sleep(LEARN);
        while rings.receive(&guest)?.is_some() {}
        // A driver that polls has its interrupts off.
        guest.set_csr(7, 0);
        Ok(Adapter { guest, rings })
    }

    /// Has every transmit buffer hold a frame of `size` bytes for adapter `to`.
    fn fill(&self, size: u32, to: u8, from: u8) -> Result<()> {
        let mut frame = [&mac(to)[..], &mac(from), &[0x88, 0xb5]].concat();
        frame.resize(size as usize, 0x5a);
        Ok(self.rings.fill(&self.guest, &frame)?)
    }
}

/// Keeps the rings of the first adapter, or of both, full for `time`: frames received.
fn drive(adapters: &mut [Adapter; 2], size: u32, both: bool, time: Duration) -> Result<u64> {
    let start = Instant::now();
    let mut received = 0;
    while start.elapsed() < time {
        for _ in 0..ROUNDS {
            for (index, adapter) in adapters.iter_mut().enumerate() {
                if both || index == 0 {
                    adapter.rings.send_burst(size, BATCH)?;
                }
                if both || index == 1 {
                    received += u64::from(adapter.rings.receive_burst(2 * BATCH)?);
                }
            }
        }
        // The worker may have gone to sleep.
        for adapter in &mut *adapters {
            adapter.guest.set_csr(1, 0);
        }
    }
    Ok(received)
}

fn measure(core: usize, size: u32, both: bool, time: Duration) -> Result<Figures> {
    let mut local = Local::start(&[core])?;
    let mut adapters = [Adapter::new(&mut local, 0)?, Adapter::new(&mut local, 1)?];
    for (index, adapter) in adapters.iter().enumerate() {
        adapter.fill(size, 1 - index as u8, index as u8)?;
    }
    drive(&mut adapters, size, both, time)?;
    let (before, start) = (local.counts(), Instant::now());
    let received = drive(&mut adapters, size, both, time)?;
    let rate = received as f64 / start.elapsed().as_secs_f64();
    let counts = local.counts().since(&before);
    let mut figures = vec![
        ("mpps", rate / 1e6),
        ("gbps", rate * f64::from(size) * 8.0 / 1e9),
        ("lost", counts.lost()),
    ];
    figures.extend(counted(&counts));
    Ok(figures)
}

/// One way and both ways.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let settings = bench.settings.clone();
    for both in [false, true] {
        for size in SIZES {
            let mut runs = Runs::default();
            for _ in 0..settings.runs {
                bench.may_go_on()?;
                runs.add(on_core(settings.driver_core, || {
                    measure(settings.switch_core, size, both, settings.time)
                }));
            }
            let ways = if both { ", both ways" } else { "" };
            let case = format!("{size} B{ways}");
            bench.add(runs.row(&Group::Legacy.name(), &case, OURS), "mpps");
        }
    }
    Ok(())
}

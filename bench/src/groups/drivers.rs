//! Linux in a VM of our own, with its own driver of either adapter, fetches a file by TCP: how often it leaves for its
//! monitor. How fast it is says something of the adapter only where the processor runs guests itself: where KVM emulates
//! their kernel, that is what takes the time.

use std::time::Instant;

use anyhow::{Result, ensure};
use vswitch_tests::station::Address;
use vswitch_tests::vm::netboot::noise;
use vswitch_tests::vm::{Console, Netboot};
use vswitch_tests::{Lab, Station};

use super::{Bench, Figures, Group};
use crate::figures::Runs;
use crate::subject::OURS;

const HOST: Address = Address { net: 79, host: 1 };
const GUEST: Address = Address { net: 79, host: 2 };
/// Bytes of the first file. The next one is longer, until one takes long enough or is the longest.
const SHORTEST: usize = 1 << 20;
const LONGEST: usize = 1 << 28;
const LONGER: usize = 8;
const ENOUGH_SECONDS: f64 = 1.0;

/// An adapter, by its driver and its port.
struct Adapter {
    driver: &'static str,
    port: &'static str,
    create: fn(&Lab, &str, &[&str], &str) -> Result<()>,
}

const ADAPTERS: [Adapter; 2] = [
    Adapter {
        driver: "tulip, legacy adapter",
        port: "guest.legacy0",
        create: Lab::create_vm,
    },
    Adapter {
        driver: "hv_netvsc, synthetic adapter",
        port: "guest.synthetic0",
        create: Lab::create_synthetic_vm,
    },
];

/// A guest that is up.
struct Guest {
    adapter: &'static Adapter,
    lab: Lab,
    host: Station,
    console: Console,
}

impl Guest {
    fn start(adapter: &'static Adapter) -> Result<Guest> {
        let lab = Lab::start()?;
        lab.ctl("network create inner --type internal")?;
        let (host, console) = lab.ready_guest(adapter.create, HOST, GUEST)?;
        Ok(Guest {
            adapter,
            lab,
            host,
            console,
        })
    }

    /// Exits and frames, both ways, since it started.
    fn counted(&self) -> Result<[u64; 2]> {
        let stats = self.lab.daemon.stats()?;
        let port = stats.port("inner", self.adapter.port)?;
        let (_, exits) = self.lab.vm_exits("guest")?;
        Ok([exits, port.tx_frames + port.rx_frames])
    }

    /// Fetches `len` bytes; seconds, exits and frames.
    fn fetch(&mut self, web: &Netboot, len: usize) -> Result<(f64, [u64; 2])> {
        let hash = web.offer("file", &noise(len))?;
        let fetch = format!("wget -q -O - {} | sha256sum", web.url("file"));
        let (before, start) = (self.counted()?, Instant::now());
        let said = self.console.run(&fetch)?;
        let seconds = start.elapsed().as_secs_f64();
        ensure!(said.starts_with(&hash), "`{fetch}` gave {said}, not {hash}");
        let after = self.counted()?;
        let mut counts = [0; 2];
        for (count, (after, before)) in counts.iter_mut().zip(after.into_iter().zip(before)) {
            *count = after - before;
        }
        Ok((seconds, counts))
    }
}

fn measure(adapter: &'static Adapter) -> Result<Figures> {
    let mut guest = Guest::start(adapter)?;
    let web = Netboot::start(&guest.lab.host, "vsw-inner", guest.host.address)?;
    let mut len = SHORTEST;
    loop {
        let (seconds, [exits, frames]) = guest.fetch(&web, len)?;
        if seconds >= ENOUGH_SECONDS || len >= LONGEST {
            ensure!(frames > 0, "no frame was counted");
            return Ok(vec![
                ("mbps", len as f64 * 8.0 / seconds / 1e6),
                ("exits", exits as f64 * 1e6 / frames as f64),
            ]);
        }
        len *= LONGER;
    }
}

/// A guest for each run.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let group = Group::Drivers.name();
    let remark = "*exits / M* are exits of the guest to its monitor for each million frames, sent and received together. \
                  Where KVM emulates the guest's kernel, *Mb/s* is the speed of the emulation."
        .to_owned();
    bench.results.remarks.insert(group.clone(), vec![remark]);
    for adapter in &ADAPTERS {
        let mut runs = Runs::default();
        for _ in 0..bench.settings.runs.min(3) {
            bench.may_go_on()?;
            runs.add(measure(adapter));
        }
        bench.add(runs.row(&group, adapter.driver, OURS), "exits");
    }
    Ok(())
}

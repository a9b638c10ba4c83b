//! Throughput between two guests: one worker on a core, both drivers on another. Frames of one packet are sent together,
//! as drivers do.
//!
//! `cargo bench -p vnic-synthetic [-- SECONDS]`
//!
//! With `-- count`, everything runs in one thread without a clock, for a tool that counts instructions: those of a worker
//! are inside `Worker::poll`, and the frames are printed.

#![allow(clippy::print_stdout, missing_docs, reason = "a benchmark")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};
use vnic_synthetic::driver::{Frame, Guest, Setup};
use vnic_synthetic::port::Config;
use vswitch::control::{NetworkSpec, Switch};
use vswitch::mac::Mac;
use vswitch::network::PortPolicy;
use vswitch::port::PortControl;

fn setup(mac: Mac) -> Setup {
    let linux = Setup::linux();
    Setup {
        ring: 129,
        receive: 4096,
        send: 256,
        scattered: false,
        config: Config {
            mac,
            ..linux.config
        },
        ..linux
    }
}

fn frame(to: Mac, from: Mac, len: usize) -> Frame {
    let mut bytes = [&to.0[..], &from.0, &[0x88, 0xb5]].concat();
    bytes.resize(len, 7);
    Frame::plain(&bytes)
}

/// Frames received and seconds passed, with `batch` frames of `len` bytes a packet.
fn run(len: usize, batch: usize, duration: Duration) -> Result<()> {
    let macs = [1, 2].map(|n| Mac([2, 0, 0, 0, 0, n]));
    let switch = Switch::start(&[0])?;
    let network = switch.create_network(&NetworkSpec::default())?;
    let mut ports = Vec::new();
    let mut guests = macs.map(|mac| {
        let (guest, sides) = Guest::ready(setup(mac));
        ports.push(sides);
        guest
    });
    let mut handles = Vec::new();
    for sides in ports {
        let port = switch.add_port(PortPolicy::default(), None)?;
        port.attach(sides);
        port.connect(network)?;
        handles.push(port);
    }
    let [from, to] = &mut guests;
    // The switch learns where the other one is.
    let back = to.prepare(&[frame(macs[0], macs[1], 60)]);
    to.send_prepared(back, 1);
    let packet = from.prepare(&vec![frame(macs[1], macs[0], len); batch]);
    for guest in [&mut *from, &mut *to] {
        guest.from_host.mask(true);
    }
    let deadline = Instant::now() + Duration::from_millis(200);
    while Instant::now() < deadline {
        from.send_prepared(packet, 16);
        from.discard();
        to.discard();
    }
    let start = Instant::now();
    let before = handles
        .iter()
        .map(|port| port.counters())
        .collect::<Vec<_>>();
    let mut frames = 0;
    while start.elapsed() < duration {
        for _ in 0..64 {
            from.send_prepared(packet, 64);
            from.discard();
            frames += to.discard();
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    ensure!(frames > 0, "no frame arrived");
    let dropped = handles
        .iter()
        .zip(&before)
        .map(|(port, before)| port.counters().tx.dropped() - before.tx.dropped())
        .sum::<u64>();
    let rate = frames as f64 / seconds;
    println!(
        "{len:5} bytes, {batch} a packet: {:6.2} million frames/s, {:6.2} Gb/s, {:.1} % dropped, {} interrupts",
        rate / 1e6,
        rate * len as f64 * 8.0 / 1e9,
        100.0 * dropped as f64 / (frames + dropped) as f64,
        from.host.interrupts() + to.host.interrupts(),
    );
    Ok(())
}

/// Turns of a worker that is polled by hand, with both drivers between them; frames received.
fn count(len: usize, batch: usize) -> Result<()> {
    let macs = [1, 2].map(|n| Mac([2, 0, 0, 0, 0, n]));
    let (switch, workers) = Switch::stepped(1)?;
    let network = switch.create_network(&NetworkSpec::default())?;
    let mut handles = Vec::new();
    let mut guests = macs.map(|mac| {
        let (guest, sides) = Guest::ready(setup(mac));
        handles.push(sides);
        guest
    });
    let mut ports = Vec::new();
    for sides in handles {
        let port = switch.add_port(PortPolicy::default(), None)?;
        port.attach(sides);
        port.connect(network)?;
        ports.push(port);
    }
    let [from, to] = &mut guests;
    let back = to.prepare(&[frame(macs[0], macs[1], 60)]);
    to.send_prepared(back, 1);
    let packet = from.prepare(&vec![frame(macs[1], macs[0], len); batch]);
    let worker = workers.first().context("a worker")?;
    let mut frames = 0;
    for _ in 0..2000 {
        from.send_prepared(packet, 32_usize.div_ceil(batch));
        worker
            .lock()
            .map_err(|_| anyhow::anyhow!("a worker panicked"))?
            .poll(0);
        from.discard();
        frames += to.discard();
    }
    println!("{len:5} bytes, {batch} a packet: {frames} frames");
    Ok(())
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "count");
    if arguments.next().is_some() {
        let mut number = |default| {
            arguments
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(default)
        };
        return count(number(64), number(8));
    }
    let seconds = std::env::args()
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(2);
    let mut cores = CpuSet::new();
    cores.set(1);
    sched_setaffinity(None, &cores).context("pinning the drivers to core 1")?;
    for (len, batch) in [(64, 8), (64, 1), (1514, 3), (1514, 1)] {
        run(len, batch, Duration::from_secs(seconds))?;
    }
    Ok(())
}

//! Frames from one adapter through the switch to another: the worker on one core, the driver of both on another.
//!
//! Time is cut in windows of 20 ms: where other programs run on the same cores, the best one tells most.
//!
//! `cargo bench -p vnic-legacy -- [SECONDS] [SWITCH CORE] [DRIVER CORE]`, by default 2 s for each size, cores 1 and 0.

#![allow(clippy::print_stdout, reason = "a benchmark")]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};
use vnic_legacy::driver::Guest;
use vnic_legacy::driver::ring::Rings;
use vswitch::control::{NetworkSpec, PortHandle, Switch};
use vswitch::mac::Mac;
use vswitch::network::PortPolicy;
use vswitch::port::PortControl;

const A: [u8; 6] = [0, 0x15, 0x5d, 0, 0, 1];
const B: [u8; 6] = [0, 0x15, 0x5d, 0, 0, 2];
/// Frames sent or received at once.
const BATCH: u32 = 16;
const WINDOW: Duration = Duration::from_millis(20);

struct Adapter {
    guest: Guest,
    rings: Rings,
    port: Arc<PortHandle>,
}

impl Adapter {
    fn new(port: Arc<PortHandle>, mac: [u8; 6]) -> Result<Adapter, Box<dyn Error>> {
        let mut guest = Guest::new(Mac(mac))?;
        port.attach(guest.open_port()?);
        let mut rings = guest.up(mac)?;
        // The switch learns where it is.
        let mut hello = [&[0xff; 6][..], &mac, &[0x88, 0xb5]].concat();
        hello.resize(60, 0);
        rings.send(&mut guest, &hello)?;
        std::thread::sleep(Duration::from_millis(20));
        while rings.receive(&guest)?.is_some() {}
        // A driver that polls has its interrupts off.
        guest.set_csr(7, 0);
        Ok(Adapter { guest, rings, port })
    }
}

/// Sends and receives for `time`: frames received.
fn drive(
    from: &mut Adapter,
    to: &mut Adapter,
    size: u32,
    time: Duration,
) -> Result<u64, Box<dyn Error>> {
    let start = Instant::now();
    let mut received = 0;
    while start.elapsed() < time {
        for _ in 0..256 {
            from.rings.send_burst(size, BATCH)?;
            received += u64::from(to.rings.receive_burst(2 * BATCH)?);
        }
        // The worker may have gone to sleep.
        from.guest.set_csr(1, 0);
    }
    Ok(received)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    let seconds: f64 = arguments.next().map_or(Ok(2.0), |text| text.parse())?;
    let switch_core = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let driver_core = arguments.next().map_or(Ok(0), |text| text.parse())?;
    let switch = Switch::start(&[switch_core])?;
    let mut core = CpuSet::new();
    core.set(driver_core);
    sched_setaffinity(None, &core)?;
    let network = switch.create_network(&NetworkSpec::default())?;
    let port = || -> Result<_, Box<dyn Error>> {
        let port = switch.add_port(PortPolicy::default(), None)?;
        port.connect(network)?;
        Ok(port)
    };
    let (to_a, to_b) = (port()?, port()?);
    let mut a = Adapter::new(to_a, A)?;
    let mut b = Adapter::new(to_b, B)?;
    for size in [64u32, 512, 1514] {
        let mut frame = [&B[..], &A, &[0x88, 0xb5]].concat();
        frame.resize(size as usize, 0x5a);
        a.rings.fill(&a.guest, &frame)?;
        drive(&mut a, &mut b, size, Duration::from_millis(200))?;
        let before = b.port.counters();
        let mut rates = Vec::new();
        let start = Instant::now();
        while start.elapsed().as_secs_f64() < seconds {
            let window = Instant::now();
            let received = drive(&mut a, &mut b, size, WINDOW)?;
            rates.push(received as f64 / window.elapsed().as_secs_f64());
        }
        rates.sort_by(f64::total_cmp);
        let after = b.port.counters();
        for (what, rate) in [
            ("median", rates.get(rates.len() / 2)),
            ("best", rates.last()),
        ] {
            let rate = rate.copied().unwrap_or(0.0);
            println!(
                "{size:>5} bytes, {what:<6}: {:6.2} million frames/s, {:6.2} Gb/s",
                rate / 1e6,
                rate * f64::from(size) * 8.0 / 1e9,
            );
        }
        println!(
            "{size:>5} bytes, {} dropped",
            after.rx.drops.total() - before.rx.drops.total()
        );
    }
    Ok(())
}

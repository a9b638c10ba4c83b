//! Throughput from every kind of port to every other, through a switch of this process.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vswitch::ports::memory::{MemoryPort, Station};
use vswitch_tests::Netns;

use super::kernel::{End, Generator, IFNAME, Kind, received};
use super::rings::counted;
use super::{Bench, Figures, Group, Settings};
use crate::bare::Guest;
use crate::case::Case;
use crate::figures::Runs;
use crate::machine::{hertz, on_core};
use crate::peers::{BRIDGE, OVS, OvsCables};
use crate::subject::{Local, OURS};
use crate::syscalls::Counting;

const WARM_UP: Duration = Duration::from_millis(60);
/// A name of a port, and the kernel kind it is, if it is one.
const KINDS: [(&str, Option<Kind>); 5] = [
    ("vhost-user", None),
    ("memory", None),
    ("TAP", Some(Kind::Tap)),
    ("AF_XDP", Some(Kind::Xdp)),
    ("packet socket", Some(Kind::Packet)),
];

/// Who is at a port.
enum Who {
    Guest(Box<Guest>),
    Station(Station, Vec<u8>),
    /// Without a generator it only receives: a packet socket would hear every frame.
    Kernel(Option<Box<Generator>>, Box<End>),
}

impl Who {
    /// Puts number `number` of two at a port of a kind.
    fn open(
        local: &mut Local,
        (name, kind): (&str, Option<Kind>),
        case: &Case,
        number: u8,
    ) -> Result<Who> {
        let other = 1 - number;
        let frame = frame(case, number, other);
        if let Some(kind) = kind {
            let (end, sides) = End::open(kind, 1600)?;
            local.add(sides)?;
            let generator = Generator::new(&end.netns, &frame)?;
            return Ok(Who::Kernel(Some(Box::new(generator)), Box::new(end)));
        }
        if name == "memory" {
            let port = MemoryPort {
                buffer: 2048,
                ..MemoryPort::default()
            };
            let (sides, station) = port.open()?;
            local.add(sides)?;
            return Ok(Who::Station(station, frame));
        }
        let guest = Guest::new(case, number, other)?;
        local.add_guest(&guest.front, None)?;
        Ok(Who::Guest(Box::new(guest)))
    }

    /// Sends some frames.
    fn send(&mut self) -> Result<usize> {
        Ok(match self {
            Who::Guest(guest) => guest.tx.send(64, None)?,
            Who::Station(station, frame) => (0..64).take_while(|_| station.send(frame)).count(),
            Who::Kernel(generator, _) => match generator {
                Some(generator) => generator.send()?,
                None => 0,
            },
        })
    }

    /// Takes what has come. The kernel counts by itself.
    fn receive(&mut self) -> Result<u64> {
        Ok(match self {
            Who::Guest(guest) => guest.rx.receive(64, None)?.frames,
            Who::Station(station, _) => (0..64).take_while(|_| station.discard()).count() as u64,
            Who::Kernel(..) => 0,
        })
    }

    /// Frames that the kernel has counted at this end.
    fn counted(&self) -> Result<u64> {
        match self {
            Who::Kernel(_, end) => received(&end.netns),
            Who::Guest(_) | Who::Station(..) => Ok(0),
        }
    }
}

/// A frame from one end to the other.
fn frame(case: &Case, from: u8, to: u8) -> Vec<u8> {
    let mut frame = case.image().split_off(12);
    let addresses = [crate::case::station(to, 0), crate::case::station(from, 0)];
    for (at, byte) in addresses.into_iter().flatten().enumerate() {
        if let Some(to) = frame.get_mut(at) {
            *to = byte;
        }
    }
    frame
}

/// Sends from one end to the other for `time`: frames received, and seconds.
fn drive(from: &mut Who, to: &mut Who, time: Duration) -> Result<(u64, f64)> {
    let (start, before) = (Instant::now(), to.counted()?);
    let mut frames = 0;
    while start.elapsed() < time {
        for _ in 0..32 {
            from.send()?;
            // What comes back is noise of the kernel; it must not fill the rings.
            from.receive()?;
            frames += to.receive()?;
        }
    }
    Ok((
        frames + to.counted()? - before,
        start.elapsed().as_secs_f64(),
    ))
}

fn figures(
    local: &Local,
    from: &mut Who,
    to: &mut Who,
    (time, size): (Duration, u32),
) -> Result<Figures> {
    drive(from, to, WARM_UP)?;
    let before = local.counts();
    let (frames, seconds) = drive(from, to, time)?;
    let counts = local.counts().since(&before);
    ensure!(frames > 0, "no frame arrived");
    let mut figures = vec![
        ("mpps", frames as f64 / seconds / 1e6),
        (
            "gbps",
            frames as f64 * f64::from(size) * 8.0 / seconds / 1e9,
        ),
        (
            "busy",
            (counts.busy_cycles as f64 / hertz() / seconds).min(1.0),
        ),
        ("lost", counts.lost()),
    ];
    figures.extend(counted(&counts));
    Ok(figures)
}

/// Every pair of kinds.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let sizes: &[u32] = if bench.settings.quick {
        &[64]
    } else {
        &[64, 1514]
    };
    for &size in sizes {
        for from in KINDS {
            for to in KINDS {
                bench.may_go_on()?;
                pair(bench, from, to, size)?;
            }
        }
        if bench.settings.peers {
            peers(bench, size)?;
        }
    }
    let remark = "Frames are made, and those that the kernel receives are counted, on the driver's core; with `busy` \
                  well below 100 % the generator is the limit, not the switch. The bridge runs on the generator's \
                  core alone.";
    bench
        .results
        .remarks
        .insert(Group::Ports.name(), vec![remark.to_owned()]);
    Ok(())
}

fn pair(
    bench: &mut Bench,
    from: (&str, Option<Kind>),
    to: (&str, Option<Kind>),
    size: u32,
) -> Result<()> {
    let settings = bench.settings.clone();
    let case = Case::of(size);
    let runs = on_core(settings.driver_core, || {
        let mut local = Local::start(&[settings.switch_core])?;
        let mut first = Who::open(&mut local, from, &case, 0)?;
        let mut second = Who::open(&mut local, to, &case, 1)?;
        second.send()?;
        if let Who::Kernel(generator, _) = &mut second {
            *generator = None;
        }
        let mut runs = Runs::default();
        for _ in 0..settings.runs {
            runs.add(figures(
                &local,
                &mut first,
                &mut second,
                (settings.time, size),
            ));
        }
        if let Ok(counting) = Counting::start() {
            let (frames, _) = drive(&mut first, &mut second, settings.time)?;
            let calls = counting.end()? as f64;
            runs.add(Ok(vec![("syscalls", calls / frames.max(1) as f64)]));
        }
        drop(local);
        Ok(runs)
    })?;
    let label = format!("{} → {}, {size} B", from.0, to.0);
    bench.add(runs.row(&Group::Ports.name(), &label, OURS), "mpps");
    Ok(())
}

/// Two namespaces behind the kernel's bridge, and the bridge's own.
pub(super) fn bridged(mtu: u32) -> Result<[std::sync::Arc<Netns>; 3]> {
    let host = std::sync::Arc::new(Netns::new("bridge")?);
    host.ip("link add br0 type bridge")?;
    host.ip("link set br0 up")?;
    let mut ends = Vec::new();
    for name in ["c0", "c1"] {
        let end = std::sync::Arc::new(Netns::new("end")?);
        host.cable(name, &end, IFNAME)?;
        host.ip(&format!("link set {name} mtu {mtu} master br0"))?;
        end.ip(&format!("link set {IFNAME} mtu {mtu}"))?;
        ends.push(end);
    }
    let [first, second] = <[_; 2]>::try_from(ends).unwrap_or_else(|_| [host.clone(), host.clone()]);
    Ok([first, second, host])
}

/// Sends from one namespace to another through another switch.
fn between([first, second]: [&Netns; 2], settings: &Settings, size: u32) -> Result<Figures> {
    let case = Case::of(size);
    let forth = Generator::new(first, &frame(&case, 0, 1))?;
    Generator::new(second, &frame(&case, 1, 0))?.send()?;
    let send = |time: Duration| -> Result<f64> {
        let start = Instant::now();
        while start.elapsed() < time {
            forth.send()?;
        }
        Ok(start.elapsed().as_secs_f64())
    };
    send(WARM_UP)?;
    let before = received(second)?;
    let seconds = send(settings.time)?;
    let frames = (received(second)? - before) as f64;
    ensure!(frames > 0.0, "no frame arrived");
    let gbps = frames * f64::from(size) * 8.0 / seconds / 1e9;
    Ok(vec![("mpps", frames / seconds / 1e6), ("gbps", gbps)])
}

/// The kernel's bridge, and OVS with AF_XDP, between virtual cables.
fn peers(bench: &mut Bench, size: u32) -> Result<()> {
    let settings = bench.settings.clone();
    let label = format!("cable → cable, {size} B");
    let [first, second, _host] = bridged(1500)?;
    let mut bridge = Runs::default();
    let mut ovs = Runs::default();
    let mut cables = match OvsCables::start(settings.switch_core) {
        Ok(cables) => Some(cables),
        Err(error) => {
            bench
                .results
                .missing
                .push(format!("{OVS} with AF_XDP: {error:#}"));
            None
        }
    };
    for _ in 0..settings.runs {
        bench.may_go_on()?;
        let core = settings.driver_core;
        bridge.add(on_core(core, || {
            between([&first, &second], &settings, size)
        }));
        if let Some(cables) = &mut cables {
            let [first, second] = cables.ends().clone();
            let run = || between([&first, &second], &settings, size);
            ovs.add(cables.running(|| on_core(core, run)));
        }
    }
    let group = Group::Ports.name();
    bench.add(bridge.row(&group, &label, BRIDGE), "mpps");
    if cables.is_some() {
        bench.add(
            ovs.row(&group, &label.replace("cable", "AF_XDP"), OVS),
            "mpps",
        );
    }
    Ok(())
}

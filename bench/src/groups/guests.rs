//! Between guests of our own monitor that drive synthetic adapters at full speed (`tests/guest-bench`), through the
//! daemon: what VMs get.
//!
//! One guest with both adapters does both ends' work in turn on the driver's core. Two guests share that core where the
//! machine has but two: then each waits for its time on it, and frames that come meanwhile are dropped.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::Value;
use vswitch_tests::Lab;
use vswitch_tests::vm::bench::{BenchGuest, Report};

use super::{Bench, Figures, Group};
use crate::figures::Runs;
use crate::subject::OURS;

/// How long a guest sends. The daemon looks at its workers' load once a second.
const SECONDS: u64 = 3;
/// When the load is that of the second before, during which frames were sent all the time.
const LOOK: Duration = Duration::from_millis(2500);
const LIMIT: Duration = Duration::from_secs(60);
const MAC: [&str; 2] = ["02:00:00:00:76:01", "02:00:00:00:76:02"];
/// Bytes of a TCP connection.
const TCP: u64 = 12 << 30;
/// Bytes of a large frame: headers and 44 segments.
const LARGE: u64 = 54 + 44 * 1460;

/// What is sent.
#[derive(Clone, Copy)]
enum What {
    /// Frames of so many bytes.
    Frames(u64),
    /// One TCP connection.
    Tcp,
}

impl What {
    fn label(self) -> String {
        match self {
            What::Frames(LARGE) => "64 KB LSO".to_owned(),
            What::Frames(size) => format!("{size} B"),
            What::Tcp => "TCP".to_owned(),
        }
    }

    /// What the sending and the receiving adapter are for.
    fn lines(self) -> [String; 2] {
        match self {
            What::Frames(size) => [
                format!("role=generate to={} size={size} seconds={SECONDS}", MAC[1]),
                "role=sink".to_owned(),
            ],
            What::Tcp => [
                format!("role=tcp pattern=0 ip=10.0.0.1 peer=10.0.0.2 bytes={TCP}"),
                "role=tcp pattern=0 ip=10.0.0.2".to_owned(),
            ],
        }
    }
}

/// The guests of a run: one with both adapters, or one for each.
struct Guests {
    lab: Lab,
    guests: Vec<BenchGuest>,
}

impl Guests {
    fn start(what: What, together: bool, core: usize) -> Result<Guests> {
        let lab = Lab::start()?;
        lab.ctl("network create lab --type private")?;
        let adapters = MAC.map(|mac| format!("net=lab,mac={mac}"));
        let [first, second] = adapters.each_ref().map(String::as_str);
        let [from, to] = what.lines();
        let guests = if together {
            let line = format!("{from} / {to}");
            vec![lab.start_bench_guest("a", &[first, second], &line)?]
        } else {
            let to = lab.start_bench_guest("b", &[second], &to)?;
            vec![lab.start_bench_guest("a", &[first], &from)?, to]
        };
        for guest in &guests {
            let shown = lab.vm(&guest.name)?;
            let pid = shown.get("pid").and_then(Value::as_i64);
            pin(pid.context("a VM without a process")?, core)?;
        }
        Ok(Guests { lab, guests })
    }

    /// Waits for their end; what they say of the sending and of the receiving adapter.
    fn reports(&mut self) -> Result<(Value, Value, u64)> {
        let mut said = Vec::new();
        let mut exits = 0;
        for guest in &mut self.guests {
            let Report {
                adapters,
                exits: more,
            } = self.lab.bench_report(guest, LIMIT)?;
            said.extend(adapters);
            exits += more;
        }
        let mut said = said.into_iter();
        let both = said.next().zip(said.next());
        let (from, to) = both.context("an adapter without a report")?;
        Ok((from, to, exits))
    }
}

/// Keeps every thread of a process on a core.
fn pin(pid: i64, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = task?.file_name();
        let thread = name.to_str().and_then(|name| name.parse().ok());
        sched_setaffinity(thread.and_then(Pid::from_raw), &cores)?;
    }
    Ok(())
}

fn number(value: &Value, key: &str) -> Result<f64> {
    let found = value.get(key).and_then(Value::as_f64);
    found.with_context(|| format!("no {key} in {value}"))
}

fn measure(what: What, together: bool, core: usize) -> Result<Figures> {
    let mut guests = Guests::start(what, together, core)?;
    sleep(LOOK);
    let status = guests.lab.ctl("status")?;
    let worker = status.pointer("/workers/0").context("no worker")?;
    let (cycles, busy) = (
        number(worker, "cycles_per_frame")?,
        number(worker, "busy_permille")? / 1e3,
    );
    let (from, to, exits) = guests.reports()?;
    let stats = guests.lab.ctl("stats")?;
    let ports = stats.get("ports").and_then(Value::as_array);
    let ports = ports.context("no ports")?;
    let sum = |key: &str| {
        ports
            .iter()
            .map(|port| number(port, key))
            .sum::<Result<f64>>()
    };
    let (taken, delivered) = (sum("tx_frames")?, sum("rx_bytes")?);
    let (bytes, seconds) = (number(&to, "bytes")?, number(&to, "seconds")?);
    ensure!(bytes > 0.0 && seconds > 0.0, "nothing arrived: {to}");
    let mut figures = vec![
        ("gbps", bytes * 8.0 / seconds / 1e9),
        ("cycles", cycles),
        ("busy", busy),
        ("copied", sum("copied_bytes")? / delivered),
        ("exits", exits as f64 * 1e6 / taken),
    ];
    if let What::Frames(_) = what {
        let (sent, arrived) = (number(&from, "frames")?, number(&to, "frames")?);
        figures.push(("mpps", arrived / seconds / 1e6));
        figures.push(("lost", 1.0 - arrived / sent));
    }
    Ok(figures)
}

/// A daemon and its guests for each run.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let core = bench.settings.driver_core;
    let remarks = [
        format!(
            "All guests run on core {core}. Of two that share it one waits while the other runs, and the frames that come for \
             it meanwhile are dropped once its receive buffer is full."
        ),
        "*exits / M* are exits of the guests to their monitor for each million frames, from when their adapters were ready; \
         what they say at the end costs one for each letter."
            .to_owned(),
    ];
    let group = Group::Guests.name();
    bench.results.remarks.insert(group.clone(), remarks.into());
    let all = [
        What::Frames(64),
        What::Frames(1514),
        What::Frames(LARGE),
        What::Tcp,
    ];
    for what in all {
        for (together, where_) in [(true, "one guest with both ends"), (false, "two guests")] {
            let mut runs = Runs::default();
            for _ in 0..bench.settings.runs.min(3) {
                bench.may_go_on()?;
                runs.add(measure(what, together, core));
            }
            let case = format!("{}, {where_}", what.label());
            bench.add(runs.row(&group, &case, OURS), "gbps");
        }
    }
    Ok(())
}

//! TCP by iperf3 and ping between network namespaces. Programs run on whichever core the kernel chooses.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use vswitch_tests::{Netns, cmd};

use super::kernel::{End, IFNAME, Kind};
use super::ports::bridged;
use super::{Bench, Figures, Group};
use crate::figures::Runs;
use crate::peers::{BRIDGE, OVS, OvsCables};
use crate::subject::{Local, OURS};

/// Pings of a run, and the pause between two in seconds.
const PINGS: &str = "300";
const PAUSE: &str = "0.002";
/// What is connected with what by our switch.
const PAIRS: [(Kind, Kind); 4] = [
    (Kind::Tap, Kind::Tap),
    (Kind::HostNic, Kind::HostNic),
    (Kind::HostNic, Kind::Tap),
    (Kind::Xdp, Kind::Xdp),
];
const ADDRESSES: [&str; 2] = ["10.9.0.1", "10.9.0.2"];

/// Two namespaces and what connects them, which goes after them.
struct Connected {
    first: Arc<Netns>,
    second: Arc<Netns>,
    by: By,
}

enum By {
    Ours {
        /// Held for its workers.
        _local: Box<Local>,
        /// Held for their devices.
        _ends: Box<[End; 2]>,
    },
    Bridge {
        /// Held for its devices.
        _host: Arc<Netns>,
    },
    Ovs(Box<OvsCables>),
}

impl Connected {
    fn ours(core: usize, kinds: (Kind, Kind), mtu: u32) -> Result<Connected> {
        let mut local = Local::start(&[core])?;
        let mut open = |kind: Kind| -> Result<End> {
            let (end, sides) = End::open(kind, mtu)?;
            local.add(sides)?;
            if kind == Kind::Xdp {
                unfinished_off(&end.netns)?;
            }
            Ok(end)
        };
        let ends = [open(kinds.0)?, open(kinds.1)?];
        let [first, second] =
            [0, 1].map(|at: usize| ends.get(at).map(|end| Arc::clone(&end.netns)));
        let connected = Connected {
            first: first.context("two ends")?,
            second: second.context("two ends")?,
            by: By::Ours {
                _local: Box::new(local),
                _ends: Box::new(ends),
            },
        };
        connected.address()
    }

    fn bridge(mtu: u32) -> Result<Connected> {
        let [first, second, host] = bridged(mtu)?;
        let connected = Connected {
            first,
            second,
            by: By::Bridge { _host: host },
        };
        connected.address()
    }

    fn ovs(core: usize) -> Result<Connected> {
        let cables = OvsCables::start(core)?;
        let [first, second] = cables.ends().clone();
        for end in [&first, &second] {
            unfinished_off(end)?;
        }
        let connected = Connected {
            first,
            second,
            by: By::Ovs(Box::new(cables)),
        };
        connected.address()
    }

    /// Does `work`, with whatever connects the two running.
    fn with<T>(&mut self, work: impl FnOnce(&Netns, &Netns) -> Result<T>) -> Result<T> {
        let Connected { first, second, by } = self;
        match by {
            By::Ovs(cables) => cables.running(|| work(first, second)),
            By::Ours { .. } | By::Bridge { .. } => work(first, second),
        }
    }

    fn address(mut self) -> Result<Connected> {
        for (netns, address) in [&self.first, &self.second].into_iter().zip(ADDRESSES) {
            netns.ip(&format!("addr add {address}/24 dev {IFNAME}"))?;
            netns.ip(&format!("link set {IFNAME} up"))?;
        }
        let [_, other] = ADDRESSES;
        let limit = Duration::from_secs(5);
        self.with(|first, _| {
            cmd::wait_until("the namespaces to reach each other", limit, || {
                Ok(first.run(&["ping", "-c1", "-W1", other]).is_ok())
            })
        })?;
        Ok(self)
    }
}

/// As on a real wire: a virtual cable would carry unfinished checksums and large frames.
fn unfinished_off(netns: &Netns) -> Result<()> {
    let line = format!("ethtool -K {IFNAME} tx off tso off gso off gro off");
    netns
        .run(&line.split_whitespace().collect::<Vec<_>>())
        .map(drop)
}

/// Gigabits a second of one TCP stream.
fn tcp(first: &Netns, second: &Netns, seconds: &str) -> Result<Figures> {
    let _server = second.spawn(&["iperf3", "-s", "-1"])?;
    cmd::wait_until("iperf3 to listen", Duration::from_secs(5), || {
        let listening = second.run(&["ss", "-Hltn", "sport", "=", "5201"])?;
        Ok(!listening.is_empty())
    })?;
    let [_, other] = ADDRESSES;
    let said = first.run(&["iperf3", "-J", "-t", seconds, "-c", other])?;
    let answer: Value = serde_json::from_str(&said).context("reading what iperf3 said")?;
    let bits = answer.pointer("/end/sum_received/bits_per_second");
    let bits = bits.and_then(Value::as_f64);
    let gbps = bits.context("iperf3 measured nothing")? / 1e9;
    Ok(vec![("gbps", gbps)])
}

fn ping(first: &Netns, _: &Netns) -> Result<Figures> {
    let [_, other] = ADDRESSES;
    let said = first.run(&["ping", "-i", PAUSE, "-c", PINGS, other])?;
    let times = times(&said);
    let at = |part: f64| {
        let index = (times.len() as f64 * part) as usize;
        times.get(index).copied().context("ping measured nothing")
    };
    Ok(vec![("rtt_us", at(0.5)?), ("p99_us", at(0.99)?)])
}

/// The times that ping printed, in microseconds, ascending.
fn times(said: &str) -> Vec<f64> {
    let time = |line: &str| -> Option<f64> {
        let rest = line.split_once("time=")?.1;
        rest.split_whitespace().next()?.parse().ok()
    };
    let mut times: Vec<f64> = said.lines().filter_map(time).map(|ms| ms * 1e3).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// TCP and ping between all pairs, ours and others', in turn.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let quick = bench.settings.quick;
    let (mtus, seconds): (&[u32], _) = if quick {
        (&[1500], "1")
    } else {
        (&[1500, 9000], "1")
    };
    for &mtu in mtus {
        let label = format!("TCP, MTU {mtu}");
        let run = |first: &Netns, second: &Netns| tcp(first, second, seconds);
        measure(bench, (mtu, &label, "gbps"), run)?;
    }
    measure(bench, (1500, "ping", "rtt_us"), ping)
}

/// One pair of namespaces of a comparison.
struct Entry {
    case: String,
    contender: &'static str,
    pair: Connected,
    runs: Runs,
}

fn measure(
    bench: &mut Bench,
    (mtu, label, main): (u32, &str, &str),
    run: impl Fn(&Netns, &Netns) -> Result<Figures>,
) -> Result<()> {
    let mut entries = entries(bench, mtu, label)?;
    for _ in 0..bench.settings.runs {
        for Entry { pair, runs, .. } in &mut entries {
            bench.may_go_on()?;
            runs.add(pair.with(&run));
        }
    }
    for entry in entries {
        let row = entry
            .runs
            .row(&Group::Tcp.name(), &entry.case, entry.contender);
        bench.add(row, main);
    }
    Ok(())
}

fn entries(bench: &mut Bench, mtu: u32, label: &str) -> Result<Vec<Entry>> {
    let core = bench.settings.switch_core;
    let mut entries = Vec::new();
    let mut add = |what: String, contender, pair| {
        entries.push(Entry {
            case: format!("{label}, {what}"),
            contender,
            pair,
            runs: Runs::default(),
        });
    };
    for kinds in PAIRS {
        let what = format!("{} to {}", kinds.0.name(), kinds.1.name());
        add(what, OURS, Connected::ours(core, kinds, mtu)?);
    }
    if bench.settings.peers {
        add("cable to cable".into(), BRIDGE, Connected::bridge(mtu)?);
        // Its AF_XDP ports take no jumbo frames.
        if mtu <= 1500 {
            match Connected::ovs(core) {
                Ok(pair) => add("AF_XDP to AF_XDP".into(), OVS, pair),
                Err(error) => bench
                    .results
                    .missing
                    .push(format!("{OVS} with AF_XDP: {error:#}")),
            }
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_ping_are_read_and_sorted() {
        let said = "64 bytes from 10.9.0.2: icmp_seq=1 ttl=64 time=0.042 ms\n64 bytes: time=0.011 ms\n\
                    --- statistics ---\n2 packets transmitted, 2 received, time 2ms\n";
        let rounded: Vec<i64> = times(said)
            .into_iter()
            .map(|time| time.round() as i64)
            .collect();
        assert_eq!(rounded, [11, 42]);
    }
}

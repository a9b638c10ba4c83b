//! TCP by iperf3 and ping between network namespaces. Programs run on whichever core the kernel chooses.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use vswitch_tests::{Netns, cmd};

use super::kernel::{End, IFNAME, Kind};
use super::ports::{BRIDGE, bridged};
use super::{Bench, Figures, Group};
use crate::figures::Runs;
use crate::subject::{Local, OURS};

/// Pings of a run, and the pause between two in seconds.
const PINGS: usize = 300;
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
    _by: By,
}

enum By {
    Ours {
        /// Held for its workers.
        _local: Box<Local>,
        /// Held for their devices.
        _ends: [End; 2],
    },
    Bridge {
        /// Held for its devices.
        _host: Arc<Netns>,
    },
}

impl Connected {
    fn ours(core: usize, kinds: (Kind, Kind), mtu: u32) -> Result<Connected> {
        let mut local = Local::start(&[core])?;
        let mut open = |kind: Kind| -> Result<End> {
            let (end, sides) = End::open(kind, mtu)?;
            local.add(sides)?;
            if kind == Kind::Xdp {
                // As on a real wire: a virtual cable would carry unfinished checksums and large frames.
                let off = "tx off tso off gso off gro off";
                let line = format!("ethtool -K {IFNAME} {off}");
                end.netns
                    .run(&line.split_whitespace().collect::<Vec<_>>())?;
            }
            Ok(end)
        };
        let ends = [open(kinds.0)?, open(kinds.1)?];
        let [first, second] =
            [0, 1].map(|at: usize| ends.get(at).map(|end| Arc::clone(&end.netns)));
        let connected = Connected {
            first: first.context("two ends")?,
            second: second.context("two ends")?,
            _by: By::Ours {
                _local: Box::new(local),
                _ends: ends,
            },
        };
        connected.address()
    }

    fn bridge(mtu: u32) -> Result<Connected> {
        let [first, second, host] = bridged(mtu)?;
        let connected = Connected {
            first,
            second,
            _by: By::Bridge { _host: host },
        };
        connected.address()
    }

    fn address(self) -> Result<Connected> {
        for (netns, address) in [&self.first, &self.second].into_iter().zip(ADDRESSES) {
            netns.ip(&format!("addr add {address}/24 dev {IFNAME}"))?;
            netns.ip(&format!("link set {IFNAME} up"))?;
        }
        let [_, other] = ADDRESSES;
        cmd::wait_until(
            "the namespaces to reach each other",
            Duration::from_secs(5),
            || Ok(self.first.run(&["ping", "-c1", "-W1", other]).is_ok()),
        )?;
        Ok(self)
    }

    /// Gigabits a second of one TCP stream.
    fn tcp(&self, seconds: &str) -> Result<Figures> {
        let _server = self.second.spawn(&["iperf3", "-s", "-1"])?;
        cmd::wait_until("iperf3 to listen", Duration::from_secs(5), || {
            let listening = self.second.run(&["ss", "-Hltn", "sport", "=", "5201"])?;
            Ok(!listening.is_empty())
        })?;
        let [_, other] = ADDRESSES;
        let said = self
            .first
            .run(&["iperf3", "-J", "-t", seconds, "-O", "0.2", "-c", other])?;
        let answer: Value = serde_json::from_str(&said).context("reading what iperf3 said")?;
        let bits = answer
            .pointer("/end/sum_received/bits_per_second")
            .and_then(Value::as_f64);
        Ok(vec![(
            "gbps",
            bits.context("iperf3 measured nothing")? / 1e9,
        )])
    }

    fn ping(&self) -> Result<Figures> {
        let [_, other] = ADDRESSES;
        let count = PINGS.to_string();
        let said = self
            .first
            .run(&["ping", "-i", PAUSE, "-c", &count, other])?;
        let times = times(&said);
        let at = |part: f64| {
            let index = (times.len() as f64 * part) as usize;
            times.get(index).copied().context("ping measured nothing")
        };
        Ok(vec![("rtt_us", at(0.5)?), ("p99_us", at(0.99)?)])
    }
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

/// All pairs and the bridge, in turn.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let quick = bench.settings.quick;
    let mtus: &[u32] = if quick { &[1500] } else { &[1500, 9000] };
    for &mtu in mtus {
        measure(bench, mtu, &format!("TCP, MTU {mtu}"), "gbps", |pair| {
            pair.tcp(if quick { "0.5" } else { "1.5" })
        })?;
    }
    measure(bench, 1500, "ping", "rtt_us", Connected::ping)
}

fn measure(
    bench: &mut Bench,
    mtu: u32,
    label: &str,
    main: &str,
    run: impl Fn(&Connected) -> Result<Figures>,
) -> Result<()> {
    let core = bench.settings.switch_core;
    let mut pairs = Vec::new();
    for kinds in PAIRS {
        let case = format!("{label}, {} to {}", kinds.0.name(), kinds.1.name());
        pairs.push((
            case,
            OURS,
            Connected::ours(core, kinds, mtu)?,
            Runs::default(),
        ));
    }
    if bench.settings.peers {
        let case = format!("{label}, cable to cable");
        pairs.push((case, BRIDGE, Connected::bridge(mtu)?, Runs::default()));
    }
    for _ in 0..bench.settings.runs {
        for (_, _, pair, runs) in &mut pairs {
            bench.may_go_on()?;
            runs.add(run(pair));
        }
    }
    for (case, contender, _, runs) in pairs {
        bench.add(runs.row(&Group::Tcp.name(), &case, contender), main);
    }
    Ok(())
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

//! What the daemon costs when nothing happens: processor time, and memory for networks and ports.

use std::time::Duration;

use anyhow::{Context, Result};
use vswitch_tests::{Lab, cmd};

use super::{Bench, Figures, Group};
use crate::bare::Guest;
use crate::case::Case;
use crate::figures::Runs;
use crate::subject::{OURS, connect};

/// Networks and ports that memory is measured with.
const COUNT: usize = 20;
/// How long the daemon is watched doing nothing.
const IDLE: Duration = Duration::from_secs(2);
/// Clock ticks of `/proc/PID/stat` in a second: what x86-64 Linux shows to programs.
const TICKS: f64 = 100.0;

struct Watched {
    lab: Lab,
    pid: String,
}

impl Watched {
    fn start() -> Result<Watched> {
        let lab = Lab::start()?;
        let pids = cmd::run(&["ip", "netns", "pids", lab.host.name()])?;
        let pid = pids
            .split_whitespace()
            .next()
            .context("the daemon has no process")?;
        let pid = pid.to_owned();
        Ok(Watched { lab, pid })
    }

    /// Its own memory in KiB, that of guests not counted.
    fn memory(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let count = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        count.context("no RssAnon in the status of the daemon")
    }

    /// Processor time so far, in seconds.
    fn cpu(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        let rest = text.rsplit_once(')').context("a strange /proc/PID/stat")?.1;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
        // Fields 14 and 15, utime and stime, of which the first two are before the bracket.
        let both = ticks(11)
            .zip(ticks(12))
            .context("a strange /proc/PID/stat")?;
        Ok((both.0 + both.1) / TICKS)
    }

    fn guests(
        &self,
        count: usize,
    ) -> Result<Vec<(Guest, vswitch::ports::vhost::driver::Frontend)>> {
        let mut guests = Vec::new();
        for index in 0..count {
            let socket = self.lab.daemon.socket(&format!("p{index}"));
            self.lab.ctl(&format!(
                "port add n0 p{index} --vhost-user {socket} --server"
            ))?;
            let guest = Guest::new(&Case::of(64), 0, 1)?;
            let mut connections = connect(&[socket.into()], &[&guest.front])?;
            guests.push((guest, connections.pop().context("a connection")?));
        }
        Ok(guests)
    }
}

fn measure() -> Result<Vec<(&'static str, Figures)>> {
    let watched = Watched::start()?;
    let itself = watched.memory()?;
    for network in 0..COUNT {
        watched
            .lab
            .ctl(&format!("network create n{network} --type private"))?;
    }
    let with_networks = watched.memory()?;
    let _guests = watched.guests(COUNT)?;
    let with_ports = watched.memory()?;
    std::thread::sleep(Duration::from_millis(200));
    let before = watched.cpu()?;
    std::thread::sleep(IDLE);
    let cpu = (watched.cpu()? - before) / IDLE.as_secs_f64();
    let count = COUNT as f64;
    Ok(vec![
        ("vswitchd without a network", vec![("kib", itself)]),
        ("a network", vec![("kib", (with_networks - itself) / count)]),
        (
            "a vhost-user port and its guest",
            vec![("kib", (with_ports - with_networks) / count)],
        ),
        ("vswitchd with 20 idle guests", vec![("cpu", cpu)]),
    ])
}

/// Starts a daemon for each run.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let mut rows: Vec<(&'static str, Runs)> = Vec::new();
    for _ in 0..bench.settings.runs.min(3) {
        bench.may_go_on()?;
        for (case, figures) in measure()? {
            match rows.iter_mut().find(|(known, _)| *known == case) {
                Some((_, runs)) => runs.add(Ok(figures)),
                None => {
                    let mut runs = Runs::default();
                    runs.add(Ok(figures));
                    rows.push((case, runs));
                }
            }
        }
    }
    for (case, runs) in rows {
        bench.add(runs.row(&Group::Footprint.name(), case, OURS), "kib");
    }
    Ok(())
}

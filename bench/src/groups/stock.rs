//! Throughput with a stock guest: `dpdk-testpmd` with two virtio ports. It sends some frames from each port, and from
//! then on sends again from one port what arrives at the other, so that they go round until one is lost.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vswitch_tests::Background;

use super::{Bench, Figures, Group};
use crate::case::Case;
use crate::subject::Contender;

/// The sum of the receive rates is on the second line that testpmd prints of each port's throughput.
const RATE: &str = "Rx-pps:";
/// How long testpmd may take to start, or to answer.
const ANSWER: Duration = Duration::from_secs(5);
const MACS: [&str; 2] = ["02:00:00:00:09:01", "02:00:00:00:09:02"];

/// A running testpmd that is a guest with two ports.
struct Guest {
    _process: Background,
    stdin: ChildStdin,
    /// What it says, line by line.
    said: Receiver<String>,
}

impl Guest {
    fn start(core: usize, sockets: &[PathBuf], frame: u32) -> Result<Guest> {
        let mut command = Command::new("stdbuf");
        command
            .args(["-oL", "dpdk-testpmd", "--lcores"])
            .arg(format!("0@{core},1@{core}"))
            .args([
                "--no-pci",
                "--no-huge",
                "--no-shconf",
                "--no-telemetry",
                "-m",
                "256",
            ]);
        for (port, (socket, mac)) in sockets.iter().zip(MACS).enumerate() {
            let path = socket.display();
            command.arg("--vdev").arg(format!(
                "net_virtio_user{port},path={path},mac={mac},queues=1,queue_size=256"
            ));
        }
        command.args(["--", "-i", "--forward-mode=io", "--total-num-mbufs=8192"]);
        for (port, mac) in MACS.iter().rev().enumerate() {
            command.arg(format!("--eth-peer={port},{mac}"));
        }
        command
            .arg(format!("--txpkts={frame}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut process = Background::spawn(&mut command)?;
        let stdin = process.child().stdin.take().context("no standard input")?;
        let stdout = process
            .child()
            .stdout
            .take()
            .context("no standard output")?;
        let (lines, said) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // The other end goes with the guest.
                let _ = lines.send(line);
            }
        });
        let mut guest = Guest {
            _process: process,
            stdin,
            said,
        };
        guest.order("start tx_first 4")?;
        guest.rates()?;
        Ok(guest)
    }

    fn order(&mut self, line: &str) -> Result<()> {
        writeln!(self.stdin, "{line}").context("testpmd ended early")
    }

    /// The frames a second that both ports received since the last call.
    fn rates(&mut self) -> Result<f64> {
        self.order("show port stats all")?;
        let (mut sum, mut ports) = (0.0, 0);
        while ports < 2 {
            let line = self.said.recv_timeout(ANSWER);
            let line = line.context("testpmd did not answer, or ended early")?;
            if let Some((_, rest)) = line.split_once(RATE) {
                let rate = rest
                    .split_whitespace()
                    .next()
                    .and_then(|rate| rate.parse::<f64>().ok());
                sum += rate.with_context(|| format!("testpmd said {line}"))?;
                ports += 1;
            }
        }
        Ok(sum)
    }
}

fn measure(to: &mut dyn Contender, core: usize, frame: u32, time: Duration) -> Result<Figures> {
    let served = to.serve()?;
    let mut guest = Guest::start(core, &served.sockets, frame)?;
    std::thread::sleep(Duration::from_millis(200));
    guest.rates()?;
    std::thread::sleep(time);
    let rate = guest.rates()?;
    ensure!(rate > 0.0, "the frames that went round were all lost");
    drop(guest);
    Ok(vec![
        ("mpps", rate / 1e6),
        ("gbps", rate * f64::from(frame) * 8.0 / 1e9),
    ])
}

/// Both sizes with every switch.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let (core, time) = (bench.settings.driver_core, bench.settings.time);
    for size in [64, 1518] {
        let case = Case::of(size);
        bench.compare(
            (Group::Stock, "mpps"),
            (&case, &case.label(), 0),
            |to, case| measure(to, core, case.frame, time),
        )?;
    }
    Ok(())
}

//! A DPDK application as vhost-user peer: `dpdk-testpmd` with the `net_virtio_user` driver.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::cmd::{self, Background};

const START_LIMIT: Duration = Duration::from_secs(20);

/// A running testpmd with one port.
#[derive(Debug)]
pub struct Dpdk {
    testpmd: Background,
    stdin: ChildStdin,
    said: Arc<Mutex<String>>,
    _runtime: TempDir,
}

impl Dpdk {
    /// Starts testpmd on the virtual device `vdev`, as [`virtio_user`] names it, and lets it forward by `mode`
    /// (`icmpecho`, `5tswap`, `macswap`, `txonly`, `rxonly`).
    ///
    /// # Errors
    /// When it is missing or does not come up in 20 s; the error holds what it said.
    pub fn start(vdev: &str, mode: &str) -> Result<Self> {
        Self::start_with_queues(vdev, mode, 1)
    }

    /// As [`Dpdk::start`], forwarding on the first `queues` queues of the device.
    ///
    /// # Errors
    /// As [`Dpdk::start`].
    pub fn start_with_queues(vdev: &str, mode: &str, queues: u16) -> Result<Self> {
        let runtime = TempDir::new()?;
        let mut command = Command::new("stdbuf");
        // Without hugepages, memory is one memfd, which a vhost-user peer can map. `--in-memory` would want hugepages.
        // The forwarding thread shares the first core, so that it does not starve the switch on the last one.
        // Into a pipe it would speak in blocks; `stdbuf` replaces itself by testpmd.
        command
            .args(["-oL", "dpdk-testpmd"])
            .args([
                "--lcores",
                "0@0,1@0",
                "--no-pci",
                "--no-huge",
                "--no-shconf",
                "-m",
                "256",
            ])
            .args([
                "--no-telemetry",
                "--vdev",
                vdev,
                "--",
                "-i",
                "--total-num-mbufs=4096",
            ])
            // Room for a jumbo frame in one buffer.
            .args(["--mbuf-size=10240", "--max-pkt-len=9022"])
            .arg(format!("--forward-mode={mode}"))
            .args([format!("--rxq={queues}"), format!("--txq={queues}")])
            .env("XDG_RUNTIME_DIR", runtime.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut testpmd = Background::spawn(&mut command)?;
        let said = Arc::new(Mutex::new(String::new()));
        let stdin = testpmd
            .child()
            .stdin
            .take()
            .context("testpmd without a standard input")?;
        listen(
            testpmd
                .child()
                .stdout
                .take()
                .context("testpmd without a standard output")?,
            &said,
        );
        listen(
            testpmd
                .child()
                .stderr
                .take()
                .context("testpmd without a standard error")?,
            &said,
        );
        let mut dpdk = Self {
            testpmd,
            stdin,
            said,
            _runtime: runtime,
        };
        dpdk.wait_for("Checking link statuses").with_context(|| {
            format!("package dpdk-dev is needed; testpmd said: {}", dpdk.said())
        })?;
        dpdk.order("start")?;
        // It answers in the order it was told things: once it does, it forwards.
        dpdk.frames()?;
        Ok(dpdk)
    }

    /// Types a line at testpmd's prompt.
    ///
    /// # Errors
    /// When testpmd has ended.
    pub fn order(&mut self, line: &str) -> Result<()> {
        self.testpmd
            .must_run()
            .with_context(|| format!("testpmd said: {}", self.said()))?;
        writeln!(self.stdin, "{line}").with_context(|| format!("telling testpmd `{line}`"))
    }

    /// Waits until it has said `text` since the last wait, and returns what it said since then.
    ///
    /// # Errors
    /// When it has not in 20 s.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        let (testpmd, said) = (&mut self.testpmd, &self.said);
        cmd::wait_until(&format!("testpmd to say {text:?}"), START_LIMIT, || {
            testpmd.must_run()?;
            Ok(said
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(text))
        })?;
        Ok(std::mem::take(
            &mut *said.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }

    /// Frames received and sent since its start.
    ///
    /// # Errors
    /// When it answers something else.
    pub fn frames(&mut self) -> Result<(u64, u64)> {
        self.order("show port stats 0")?;
        let text = self.wait_for("TX-packets")?;
        let count = |key: &str| -> Result<u64> {
            let value = text
                .split(key)
                .nth(1)
                .and_then(|rest| rest.split_whitespace().next());
            value
                .and_then(|v| v.parse().ok())
                .with_context(|| format!("no {key} in {text}"))
        };
        Ok((count("RX-packets:")?, count("TX-packets:")?))
    }

    /// Frames received by each queue since forwarding began, for those that received any. It must have more than one.
    ///
    /// # Errors
    /// When it answers something else.
    pub fn frames_of_queues(&mut self) -> Result<BTreeMap<u16, u64>> {
        self.order("show fwd stats all")?;
        let text = self.wait_for("Accumulated forward statistics")?;
        let queues = text.split("Forward Stats for RX Port= 0/Queue=").skip(1);
        let parsed = queues.map(|queue| -> Result<(u16, u64)> {
            let mut words = queue.split_whitespace();
            let number = words.next().context("no number")?.parse()?;
            let mut words = words.skip_while(|&word| word != "RX-packets:").skip(1);
            Ok((number, words.next().context("no count")?.parse()?))
        });
        let parsed: Result<_> = parsed.collect();
        parsed.with_context(|| format!("testpmd said {text}"))
    }

    fn said(&self) -> String {
        self.said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The device that connects to a switch's socket; `options` are further ones, as `packed_vq=1`.
#[must_use]
pub fn virtio_user(socket: &str, mac: &str, options: &[&str]) -> String {
    let mut vdev = format!("net_virtio_user0,path={socket},mac={mac}");
    for option in options {
        vdev.push(',');
        vdev.push_str(option);
    }
    vdev
}

/// The device that is a switch's end of a vhost-user socket: the stand-in that proves guests without a switch.
#[must_use]
pub fn vhost_backend(socket: &str) -> String {
    format!("net_vhost0,iface={socket}")
}

fn listen(pipe: impl std::io::Read + Send + 'static, said: &Arc<Mutex<String>>) {
    let said = Arc::clone(said);
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push_str(&line);
            said.push('\n');
        }
    });
}

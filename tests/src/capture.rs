//! Captures, taken by tcpdump and judged by tshark: two programs that know nothing of the switch.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    cmd::{self, Background},
    netns::Netns,
};

/// Frames tshark finds a wrong checksum in. That it finds a TCP checksum of 0xffff where 0 would do is no such thing: both are
/// the same number to a receiver (RFC 1624, section 3), and Linux's `skb_checksum_help` writes the former.
const BAD_CHECKSUM: &str = "ip.checksum.status==\"Bad\" || (tcp.checksum.status==\"Bad\" && !tcp.checksum.ffff) \
     || udp.checksum.status==\"Bad\" \
     || icmp.checksum.status==\"Bad\" || icmpv6.checksum.status==\"Bad\"";

/// A running tcpdump.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Background,
    dir: TempDir,
}

impl Capture {
    /// Captures on `ifname` in `netns` what matches the pcap filter `filter`; `way` is `in`, `out` or `inout` as
    /// the namespace sees it. Returns once tcpdump listens.
    ///
    /// # Errors
    /// When tcpdump cannot be started or refuses the interface or the filter.
    pub fn start(netns: &Netns, ifname: &str, way: &str, filter: &str) -> Result<Self> {
        let dir = TempDir::new()?;
        let mut command = netns.command("tcpdump");
        command
            .args([
                "-n",
                "-U",
                "--immediate-mode",
                "-Z",
                "root",
                "-s",
                "0",
                "-i",
                ifname,
                "-Q",
                way,
                "-w",
            ])
            .arg(dir.path().join("capture.pcap"))
            .arg(filter)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut tcpdump = Background::spawn(&mut command)?;
        let stderr = tcpdump
            .child()
            .stderr
            .take()
            .context("tcpdump without a standard error")?;
        let mut said = String::new();
        let mut lines = BufReader::new(stderr);
        while !said.contains("listening on") {
            if lines.read_line(&mut said)? == 0 {
                bail!("tcpdump on {ifname} in {}: {}", netns.name(), said.trim());
            }
        }
        // Nobody reads the rest; a closed pipe would end tcpdump.
        thread::spawn(move || lines.lines().count());
        Ok(Self { tcpdump, dir })
    }

    /// Lets the last frames arrive, ends tcpdump and hands over what it caught.
    ///
    /// # Errors
    /// When tcpdump does not end.
    pub fn finish(mut self) -> Result<Frames> {
        thread::sleep(Duration::from_millis(150));
        self.tcpdump.end(Signal::INT, Duration::from_secs(5))?;
        Ok(Frames { dir: self.dir })
    }
}

/// A finished capture.
#[derive(Debug)]
pub struct Frames {
    dir: TempDir,
}

impl Frames {
    fn file(&self) -> String {
        self.dir.path().join("capture.pcap").display().to_string()
    }

    /// One summary line for each frame that matches the Wireshark display filter; all frames where it is empty.
    /// Checksums are verified.
    ///
    /// # Errors
    /// When tshark is missing or refuses the filter.
    pub fn lines(&self, filter: &str) -> Result<Vec<String>> {
        let file = self.file();
        if !Path::new(&file).exists() {
            bail!("tcpdump wrote no {file}");
        }
        let mut argv = vec!["tshark", "-n", "-r", &file];
        for check in ["ip", "tcp", "udp"] {
            argv.push("-o");
            argv.push(match check {
                "ip" => "ip.check_checksum:TRUE",
                "tcp" => "tcp.check_checksum:TRUE",
                _ => "udp.check_checksum:TRUE",
            });
        }
        argv.extend(["-Y", filter]);
        Ok(cmd::run(&argv)?
            .lines()
            .map(|line| line.trim().to_owned())
            .collect())
    }

    /// How many frames match the display filter.
    ///
    /// # Errors
    /// As [`Frames::lines`].
    pub fn count(&self, filter: &str) -> Result<usize> {
        Ok(self.lines(filter)?.len())
    }

    /// The frames whose IPv4, TCP, UDP, ICMP or ICMPv6 checksum is wrong.
    ///
    /// # Errors
    /// As [`Frames::lines`].
    pub fn bad_checksums(&self) -> Result<Vec<String>> {
        self.lines(BAD_CHECKSUM)
    }
}

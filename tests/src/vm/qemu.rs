//! The same guest under QEMU, on the same KVM, with the Tulip that QEMU emulates: what our monitor is measured against.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{Console, NO_IPV6, image};
use crate::{Background, Netns, cmd};

/// What QEMU needs beyond [`super::COMMAND_LINE`] where KVM emulates ring 0: its ACPI tables take half a minute there,
/// and it does nothing about instructions that KVM's emulator lacks.
const COMMAND_LINE: &str = "acpi=off spare_monitor";

/// A guest under QEMU.
#[derive(Debug)]
pub struct QemuTulip {
    /// Its first serial port.
    pub console: Console,
    /// When QEMU was started.
    pub started: Instant,
    _qemu: Background,
    _dir: TempDir,
}

impl QemuTulip {
    /// Starts the test kernel with its NIC on TAP device `tap` of `netns`. `parameters` are added to the kernel's.
    ///
    /// # Errors
    /// When QEMU does not start.
    pub fn start(netns: &Netns, tap: &str, mac: &str, parameters: &str) -> Result<Self> {
        let image = image::shared()?;
        let dir = TempDir::new()?;
        let socket = dir.path().join("console.sock");
        let log = std::fs::File::create(dir.path().join("qemu.log"))?;
        let mut command = netns.command("qemu-system-x86_64");
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args([
                "-machine",
                "pc,accel=kvm",
                "-cpu",
                "qemu64,+xsaveerptr",
                "-m",
                "64M",
            ])
            .arg("-serial")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .arg("-netdev")
            .arg(format!("tap,id=net,ifname={tap},script=no,downscript=no"))
            .arg("-device")
            .arg(format!("tulip,netdev=net,romfile=,mac={mac}"))
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initrd)
            .arg("-append")
            .arg(format!(
                "{} {NO_IPV6} {COMMAND_LINE} {parameters}",
                super::COMMAND_LINE
            ))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let started = Instant::now();
        let qemu = Background::spawn(&mut command)?;
        let console = Console::connect(&socket).with_context(|| said(dir.path()))?;
        Ok(Self {
            console,
            started,
            _qemu: qemu,
            _dir: dir,
        })
    }
}

/// Seconds from `start` until `from` has an answer to a ping of `ip`.
///
/// # Errors
/// When there is none within `limit`.
pub fn first_ping(from: &Netns, ip: &str, start: Instant, limit: Duration) -> Result<f64> {
    cmd::wait_until(&format!("an answer of {ip}"), limit, || {
        Ok(from
            .run(&["ping", "-n", "-q", "-c", "1", "-W", "0.2", ip])
            .is_ok())
    })?;
    Ok(start.elapsed().as_secs_f64())
}

fn said(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("qemu.log")).unwrap_or_default()
}

//! Live migration of a guest from one QEMU to another, in rounds: the first copies all memory, each further one what
//! was written meanwhile, and the last one is copied while the guest stands still.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{GuestConfig, QemuGuest, connect, said};
use crate::{Background, Netns, cmd};

/// How long a round may take, and the migration from [`Migration::finish`] on.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes a second that a migration copies.
const BANDWIDTH: u64 = 32 << 20;
/// Milliseconds that the guest may stand still until [`Migration::finish`]: too few for a guest that has traffic, so
/// that another round follows.
const NEVER: u64 = 1;
/// Milliseconds that it may stand still afterwards.
const SOON: u64 = 2000;

/// QEMU's monitor (QEMU, docs/interop/qmp-spec).
#[derive(Debug)]
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn connect(qemu: &mut Background, path: &Path) -> Result<Self> {
        let mut monitor = Self(BufReader::new(connect(qemu, path)?));
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.0.get_mut(), "{request}")?;
        loop {
            let mut line = String::new();
            let len = self.0.read_line(&mut line)?;
            ensure!(len > 0, "QEMU ended while it was asked to {command}");
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            // What else comes is the greeting and events.
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses to {command}: {error}");
            }
        }
    }
}

/// A guest that runs in one QEMU and is being copied to another.
#[derive(Debug)]
pub struct Migration {
    source: QemuGuest,
    target: QemuGuest,
    monitor: Monitor,
}

impl Migration {
    /// Starts another QEMU, with `config` but the same NIC, and lets `guest` be copied there, round by round.
    ///
    /// # Errors
    /// When QEMU does not start, or refuses to migrate the guest.
    pub fn start(mut guest: QemuGuest, netns: &Netns, config: &GuestConfig) -> Result<Self> {
        let socket = guest.dir.path().join("migration.sock");
        let mut target = QemuGuest::start(netns, config, Some(&socket))?;
        cmd::wait_until("QEMU to wait for a guest", LIMIT, || {
            target.qemu.must_run()?;
            Ok(socket.exists())
        })?;
        let path = guest.dir.path().join("qmp.sock");
        let mut monitor = Monitor::connect(&mut guest.qemu, &path)?;
        monitor.execute(
            "migrate-set-parameters",
            &json!({"max-bandwidth": BANDWIDTH, "downtime-limit": NEVER}),
        )?;
        let uri = format!("unix:{}", socket.display());
        monitor.execute("migrate", &json!({"uri": uri}))?;
        Ok(Self {
            source: guest,
            target,
            monitor,
        })
    }

    /// Waits until memory was copied `rounds` times more than when this was called.
    ///
    /// # Errors
    /// When the migration ends before.
    pub fn rounds(&mut self, rounds: u64) -> Result<()> {
        let mut end = None;
        cmd::wait_until("a round of the migration", LIMIT, || {
            let info = self.monitor.execute("query-migrate", &json!({}))?;
            let status = info.get("status").and_then(Value::as_str);
            ensure!(
                matches!(status, Some("setup" | "active")),
                "the migration ended too soon: {info}\n{}{}",
                said(&self.source.dir, "qemu.log"),
                said(&self.target.dir, "qemu.log")
            );
            // How often it was asked what is dirty, which is when a round starts.
            let started = info
                .pointer("/ram/dirty-sync-count")
                .and_then(Value::as_u64);
            let started = started.unwrap_or_default();
            Ok(started >= *end.get_or_insert(started + rounds))
        })
    }

    /// Lets the guest go on in the other QEMU, and ends the first one.
    ///
    /// # Errors
    /// When the migration fails.
    pub fn finish(mut self) -> Result<QemuGuest> {
        self.monitor
            .execute("migrate-set-parameters", &json!({"downtime-limit": SOON}))?;
        cmd::wait_until("the migration to end", LIMIT, || {
            let info = self.monitor.execute("query-migrate", &json!({}))?;
            let status = info.get("status").and_then(Value::as_str);
            let status = status.with_context(|| format!("no state in {info}"))?;
            ensure!(
                !matches!(status, "failed" | "cancelled"),
                "the migration ended: {info}\n{}{}",
                said(&self.source.dir, "qemu.log"),
                said(&self.target.dir, "qemu.log")
            );
            Ok(status == "completed")
        })?;
        // The source is done before the target has read it all.
        let path = self.target.dir.path().join("qmp.sock");
        let mut monitor = Monitor::connect(&mut self.target.qemu, &path)?;
        cmd::wait_until("the guest to run in the other QEMU", LIMIT, || {
            let state = monitor.execute("query-status", &json!({}));
            let state = state.with_context(|| said(&self.target.dir, "qemu.log"))?;
            Ok(state.get("status").and_then(Value::as_str) == Some("running"))
        })?;
        // Both ends count the commands of the same guest.
        self.target.commands = self.source.commands;
        Ok(self.target)
    }
}

//! Machines that run `guest-bench`: a guest that drives its synthetic adapters at full speed on every kind of host.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Console, image};
use crate::Lab;

/// How long a guest may take until its adapters are ready: a second is usual.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// A guest that is ready.
#[derive(Debug)]
pub struct BenchGuest {
    /// The machine's name.
    pub name: String,
    console: Console,
    /// How often it had left guest code when its adapters were ready.
    exits: u64,
}

/// What a guest did.
#[derive(Clone, Debug)]
pub struct Report {
    /// What it says of each adapter.
    pub adapters: Vec<Value>,
    /// How often it left guest code from when it was ready.
    pub exits: u64,
}

impl Report {
    /// A count of an adapter.
    ///
    /// # Errors
    /// It does not say.
    pub fn count(&self, adapter: usize, key: &str) -> Result<u64> {
        let value = self.adapters.get(adapter).and_then(|said| said.get(key));
        value
            .and_then(Value::as_u64)
            .with_context(|| format!("no {key} of adapter {adapter} in {:?}", self.adapters))
    }

    /// The seconds that an adapter was at work.
    ///
    /// # Errors
    /// As [`Report::count`].
    pub fn seconds(&self, adapter: usize) -> Result<f64> {
        let value = self.adapters.get(adapter);
        value
            .and_then(|said| said.get("seconds")?.as_f64())
            .with_context(|| format!("no seconds of adapter {adapter} in {:?}", self.adapters))
    }
}

impl Lab {
    /// Creates and starts a machine `name` with an adapter for each of `adapters`, which are arguments of `--synthetic`;
    /// `line` says what the guest does with them (`tests/guest-bench/src/main.rs`). It is ready, and begins.
    ///
    /// # Errors
    /// When something is refused, or the guest does not get ready.
    pub fn start_bench_guest(
        &self,
        name: &str,
        adapters: &[&str],
        line: &str,
    ) -> Result<BenchGuest> {
        let kernel = format!("kernel:{}", image::bench_guest()?.display());
        let mut words = vec!["vm", "create", name, "--memory", "128M", "--boot", &kernel];
        words.extend(["--services", "none", "--cmdline", line]);
        for adapter in adapters {
            words.extend(["--synthetic", adapter]);
        }
        self.daemon.ctl_words(&words)?;
        let mut console = self.start_vm(name)?;
        console.wait_for("ready\n", READY_LIMIT)?;
        let (_, exits) = self.vm_exits(name)?;
        Ok(BenchGuest {
            name: name.to_owned(),
            console,
            exits,
        })
    }

    /// Waits until a guest has ended its work.
    ///
    /// # Errors
    /// When it has not within `limit`, or failed.
    pub fn bench_report(&self, guest: &mut BenchGuest, limit: Duration) -> Result<Report> {
        let said = guest.console.wait_for("done\n", limit)?;
        let lines = said.lines().filter(|line| *line != "done");
        let adapters = lines.map(|line| serde_json::from_str(line).with_context(|| said.clone()));
        let adapters: Vec<Value> = adapters.collect::<Result<_>>()?;
        ensure!(!adapters.is_empty(), "{} said nothing", guest.name);
        let (_, exits) = self.vm_exits(&guest.name)?;
        Ok(Report {
            adapters,
            exits: exits - guest.exits,
        })
    }
}

//! The benchmarks: how fast the switch is, and others beside it. `cargo xtask bench` builds and runs this.

mod bare;
mod case;
mod document;
mod drive;
mod figures;
mod groups;
mod machine;
mod peers;
mod plot;
mod promises;
mod say;
mod search;
mod stats;
mod subject;
mod syscalls;
mod table;
mod wire;

use std::alloc::System;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum as _};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use vswitch_tests::{netns, paths};

use crate::figures::Results;
use crate::groups::{Bench, Group, Settings};
use crate::say::say;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations of this process so far.
fn allocations() -> usize {
    ALLOCATOR.stats().allocations
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench                          all groups, our own switch: some 15 minutes
  cargo xtask bench --peers                  beside other switches: some 30 minutes
  cargo xtask bench --quick --only sizes     under half a minute
  cargo xtask bench --peers --write-docs     writes docs/performance.md and its plots
  cargo xtask bench --gate                   fails where SPECIFICATION.md promises more than is measured

Groups that need root and the packages of `cargo xtask setup`: ports, tcp, footprint, guests, which needs KVM
too. Peers need root and packages
openvswitch-switch-dpdk, dpdk and dpdk-dev.";

/// Measures the switch, and others beside it
#[derive(Parser)]
#[command(name = "cargo xtask bench", after_help = EXAMPLES, max_term_width = 100)]
struct Options {
    /// Only these groups
    #[arg(long, value_delimiter = ',', value_name = "GROUP")]
    only: Vec<Group>,
    /// Run other switches too: OVS-DPDK, testpmd, the Linux bridge
    #[arg(long)]
    peers: bool,
    /// Fewer cases and shorter runs
    #[arg(long)]
    quick: bool,
    /// Runs of each case and switch, of which the median is shown [default: 9]
    #[arg(long, default_value_t = 9, hide_default_value = true)]
    runs: usize,
    /// Seconds of a run [default: 0.15, quick 0.05]
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write docs/performance.md and docs/performance; groups that are not measured stay as they were
    #[arg(long)]
    write_docs: bool,
    /// Compare with SPECIFICATION.md: the groups it is about, in short and with peers
    #[arg(long)]
    gate: bool,
    /// Write what was measured, less a margin, into the table of SPECIFICATION.md
    #[arg(long, conflicts_with = "gate")]
    write_promises: bool,
    /// Core of the switch [default: the last]
    #[arg(long, value_name = "CORE")]
    switch_core: Option<usize>,
    /// Core of the driver
    #[arg(long, value_name = "CORE", default_value_t = 0)]
    driver_core: usize,
}

impl Options {
    fn settings(&self) -> Result<Settings> {
        let quick = self.quick || self.gate;
        let seconds = self.seconds.unwrap_or(if quick { 0.05 } else { 0.15 });
        if !(0.01..=60.0).contains(&seconds) || !(1..=100).contains(&self.runs) {
            bail!(
                "--seconds {seconds} --runs {}: 0.01 to 60 seconds and 1 to 100 runs are allowed",
                self.runs
            );
        }
        let cores = std::thread::available_parallelism()?.get();
        let (switch_core, driver_core) = (self.switch_core.unwrap_or(cores - 1), self.driver_core);
        ensure!(
            switch_core != driver_core,
            "core {switch_core} for both the switch and the driver; two are needed"
        );
        for core in [switch_core, driver_core] {
            ensure!(
                core < cores,
                "there is no core {core}; 0 to {} are allowed",
                cores - 1
            );
        }
        Ok(Settings {
            quick,
            peers: self.peers || self.gate,
            runs: self.runs,
            time: Duration::from_secs_f64(seconds),
            switch_core,
            driver_core,
        })
    }

    fn groups(&self) -> Vec<Group> {
        if !self.only.is_empty() {
            return self.only.clone();
        }
        if self.gate {
            promises::groups()
        } else {
            Group::value_variants().to_vec()
        }
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, and returns whether all promises hold that were asked about.
fn run(options: &Options) -> Result<bool> {
    let (settings, groups) = (options.settings()?, options.groups());
    // Only a flag is set, so that everything made is taken away again.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // A second signal ends a measurement that does not end by itself.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&interrupted))?;
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    for (key, value) in machine::describe(settings.switch_core, settings.driver_core) {
        say!("{key}: {value}");
    }
    say!(
        "{} runs of {:?} each, in turn",
        settings.runs,
        settings.time
    );
    if groups.iter().any(|group| {
        let of_root = [Group::Ports, Group::Tcp, Group::Footprint, Group::Guests];
        of_root.contains(group)
    }) {
        netns::sweep().context("leave out the groups that need root and `ip` by --only")?;
    }
    let mut bench = Bench::new(settings, &groups, interrupted);
    let mut measured = true;
    for group in &groups {
        if let Err(error) = bench.run(*group) {
            measured = false;
            say!("FAILED: {}: {error:#}", group.name());
        }
    }
    let results = bench.end()?;
    write(options, &results)?;
    for missing in &results.missing {
        say!("MISSING: {missing}");
    }
    if !options.gate {
        return Ok(measured);
    }
    let (lines, all) = promises::check(
        &results,
        &groups,
        &paths::workspace().join("SPECIFICATION.md"),
    )?;
    lines.iter().for_each(|line| say!("{line}"));
    say!(
        "{}",
        if all {
            "all promises hold"
        } else {
            "PROMISES ARE BROKEN"
        }
    );
    Ok(all && measured)
}

fn write(options: &Options, results: &Results) -> Result<()> {
    if let Some(path) = &options.json {
        results.write(path)?;
    }
    let docs = paths::workspace().join("docs");
    let path = docs.join("performance/results.json");
    if options.write_docs {
        let mut all = if path.exists() {
            Results::read(&path)?
        } else {
            Results::default()
        };
        all.update(results.clone());
        document::write(&all, &docs)?;
        all.write(&path)?;
        say!("written: {}", docs.join("performance.md").display());
    }
    if options.write_promises {
        let path = paths::workspace().join("SPECIFICATION.md");
        promises::write(results, &path)?;
        say!("written: {}", path.display());
    }
    Ok(())
}

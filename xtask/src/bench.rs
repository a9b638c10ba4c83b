//! The benchmarks: a program of their own, built as released programs are.

use std::process::Command;

use anyhow::{Context, Result};
use vswitch_tests::paths;

use crate::{cargo, say::say, setup};

/// What the benchmarks run.
const PACKAGES: [&str; 5] = [
    "vswitch-bench",
    "vswitchd",
    "vswitchctl",
    "vswitch-vmm",
    "vswitch-tests",
];

/// Builds the benchmarks and runs them with `options`; returns whether they succeeded.
pub(crate) fn run(options: &[String]) -> Result<bool> {
    say!("* building");
    let mut args = vec!["--release"];
    for package in &PACKAGES {
        args.extend(["-p", *package]);
    }
    cargo::build(&args)?;
    setup::bench_guest()?;
    if boots_linux(options) {
        setup::vm_image()?;
    }
    let program = paths::workspace().join("target/release/vswitch-bench");
    let status = Command::new(&program).args(options).status();
    Ok(status
        .with_context(|| format!("starting {}", program.display()))?
        .success())
}

/// Whether the benchmarks have guests with Linux, whose kernel takes minutes to build.
fn boots_linux(options: &[String]) -> bool {
    let others = ["--only", "--gate", "--help", "-h"];
    let narrowed = |option: &String| others.iter().any(|other| option.starts_with(other));
    options.iter().any(|option| option.contains("drivers")) || !options.iter().any(narrowed)
}

//! Running the fuzz targets for a short while, on the stable toolchain.
//!
//! libFuzzer wants the compiler's coverage counters. `cargo fuzz` passes the flags for them together with those
//! of sanitizers, which need a nightly compiler; the counters alone do not.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use vswitch_tests::paths;

use crate::{
    cargo::{self, cargo},
    run::{self, Tally},
    say::say,
};

const MANIFEST: &str = "fuzz/Cargo.toml";
/// How long each target runs where nothing else is asked for, in seconds.
pub(crate) const SECONDS: u32 = 10;
/// Seconds that one input may take, and MiB that a target may use.
const LIMITS: [&str; 2] = ["-timeout=5", "-rss_limit_mb=2048"];
/// Last lines that are shown of a target that failed.
const TAIL: usize = 40;
/// With `--target`, flags go to the targets and not to build scripts and macros.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";

/// Builds all targets and runs those in `only`, or all where it is empty, for `seconds` each. Each counts as one.
///
/// What they find new goes to `fuzz/corpus`, what makes them fail to `fuzz/artifacts`; neither is committed.
pub(crate) fn run(only: &[String], seconds: u32) -> Result<Tally> {
    let mut targets = cargo::targets(&cargo::metadata(MANIFEST)?, "bin");
    ensure!(!targets.is_empty(), "{MANIFEST} names no fuzz target");
    for name in only {
        ensure!(
            targets.contains(name),
            "there is no fuzz target '{name}'; there are {}",
            targets.join(", ")
        );
    }
    targets.retain(|target| only.is_empty() || only.contains(target));
    build(&targets)?;
    let mut tally = Tally::default();
    for target in targets {
        let passed = run_one(&target, seconds)?;
        tally.add(Tally::one(passed));
    }
    Ok(tally)
}

fn folder() -> PathBuf {
    paths::workspace().join("fuzz")
}

fn program(target: &str) -> PathBuf {
    folder()
        .join("target")
        .join(TRIPLE)
        .join("release")
        .join(target)
}

fn build(targets: &[String]) -> Result<()> {
    let mut build = cargo(&["build", "--quiet", "--release", "--target", TRIPLE]);
    build.args(["--manifest-path", MANIFEST, "--target-dir", "fuzz/target"]);
    for target in targets {
        build.args(["--bin", target]);
    }
    ensure!(
        run::passes(build.env("RUSTFLAGS", FLAGS)),
        "the fuzz targets do not build"
    );
    Ok(())
}

/// Runs a target and prints a line about it. False if an input failed.
fn run_one(target: &str, seconds: u32) -> Result<bool> {
    let [seeds, corpus, artifacts] =
        ["seeds", "corpus", "artifacts"].map(|kind| folder().join(kind).join(target));
    std::fs::create_dir_all(&corpus)?;
    std::fs::create_dir_all(&artifacts)?;
    ensure!(seeds.is_dir(), "there are no seeds in {}", seeds.display());
    let mut command = Command::new(program(target));
    command
        .arg(format!("-max_total_time={seconds}"))
        .args(LIMITS)
        .arg("-print_final_stats=1")
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args([corpus, seeds])
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {target}"))?;
    let stderr = child.stderr.take().context("no standard error")?;
    let report = Report::read(BufReader::new(stderr));
    // A target that executed nothing has not passed.
    let passed = child.wait()?.success() && report.executions > 0;
    say!(
        "{} {target:16} {seconds:3} s {:10} executions, coverage {}",
        if passed { "ok  " } else { "FAIL" },
        report.executions,
        report.coverage
    );
    if !passed {
        report.tail.iter().for_each(|line| say!("    {line}"));
        match &report.artifact {
            Some(input) => say!("    again with: {} {input}", program(target).display()),
            None => say!("    no input was written"),
        }
    }
    Ok(passed)
}

/// What libFuzzer says of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    executions: u64,
    /// Edges of the control flow that were reached.
    coverage: u64,
    /// The input that failed.
    artifact: Option<String>,
    tail: VecDeque<String>,
}

impl Report {
    fn read(printed: impl BufRead) -> Report {
        let mut report = Report::default();
        for line in printed.split(b'\n').map_while(Result::ok) {
            report.add(&String::from_utf8_lossy(&line));
        }
        report
    }

    fn add(&mut self, line: &str) {
        let number = |text: &str| text.split_whitespace().next()?.parse().ok();
        if let Some((_, rest)) = line.split_once(" cov: ") {
            self.coverage = number(rest).unwrap_or(self.coverage);
            return;
        }
        if let Some((_, rest)) = line.split_once("stat::number_of_executed_units:") {
            self.executions = number(rest).unwrap_or(0);
        }
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.artifact = Some(path.trim().to_owned());
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read() {
        let printed = "INFO: Seed: 1\n#2\tINITED cov: 25 ft: 26 corp: 1/1b\n#9\tNEW    cov: 259 ft: 290\n\
            artifact_prefix='a/'; Test unit written to a/crash-1\nstat::number_of_executed_units: 417\n";
        let report = Report::read(printed.as_bytes());
        assert_eq!((report.executions, report.coverage), (417, 259));
        assert_eq!(report.artifact.as_deref(), Some("a/crash-1"));
        assert_eq!(report.tail.len(), 3);
        assert_eq!(Report::read(&b""[..]), Report::default());
    }
}

//! Running every fuzz target for a short while, on the stable toolchain.
//!
//! libFuzzer wants the compiler's coverage counters. `cargo fuzz` passes the flags for them together with those
//! of sanitizers, which need a nightly compiler; the counters alone do not.

use std::path::Path;

use anyhow::{Result, ensure};
use vswitch_tests::paths;

use crate::{
    cargo::{self, cargo},
    run::{self, Tally},
    say::say,
};

const MANIFEST: &str = "fuzz/Cargo.toml";
/// How long each target runs, in seconds.
const SECONDS: u32 = 10;
/// With `--target`, flags go to the targets and not to build scripts and macros.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";

/// Builds and runs the targets; each counts as one.
pub(crate) fn run() -> Result<Tally> {
    ensure!(
        Path::new(&paths::workspace()).join(MANIFEST).exists(),
        "there is no {MANIFEST}"
    );
    let targets = cargo::targets(&cargo::metadata(MANIFEST)?, "bin");
    ensure!(!targets.is_empty(), "{MANIFEST} names no fuzz target");
    let mut build = cargo(&[
        "build",
        "--quiet",
        "--release",
        "--manifest-path",
        MANIFEST,
        "--target",
        TRIPLE,
    ]);
    build.arg("--target-dir").arg("fuzz/target");
    ensure!(
        run::passes(build.env("RUSTFLAGS", FLAGS)),
        "the fuzz targets do not build"
    );
    let mut tally = Tally::default();
    for target in targets {
        let corpus = paths::workspace().join("fuzz/corpus").join(&target);
        let artifacts = paths::workspace().join("fuzz/artifacts").join(&target);
        std::fs::create_dir_all(&corpus)?;
        std::fs::create_dir_all(&artifacts)?;
        let program = paths::workspace()
            .join("fuzz/target")
            .join(TRIPLE)
            .join("release")
            .join(&target);
        let mut command = std::process::Command::new(program);
        command.arg(format!("-max_total_time={SECONDS}")).args([
            "-timeout=5",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            "-verbosity=0",
        ]);
        command
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(corpus);
        let passed = run::passes(&mut command);
        say!(
            "{} fuzz target {target}, {SECONDS} s",
            if passed { "ok  " } else { "FAIL" }
        );
        tally.add(Tally::one(passed));
    }
    Ok(tally)
}

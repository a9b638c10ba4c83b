//! Where the time of a frame goes: each stage by itself (criterion), and the worker sampled under load (perf).

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use vswitch_tests::{Background, cmd, paths};

use super::{Bench, Group};
use crate::case::Case;
use crate::drive::Pair;
use crate::figures::Runs;
use crate::machine::on_core;
use crate::subject::{OURS, Ours};
use crate::syscalls::threads;

/// Functions that are listed.
const LISTED: usize = 12;
/// Samples a second.
const FREQUENCY: &str = "4999";
/// How long the worker is sampled.
const TIME: Duration = Duration::from_secs(2);

/// Both ways. What cannot be had is remarked.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    let mut remarks = Vec::new();
    for case in [Case::of(64), Case::of(1518)] {
        bench.may_go_on()?;
        match sampled(bench, &case) {
            Ok(shares) => {
                for (function, share) in shares {
                    let label = format!("{}: {function}", case.label());
                    add(bench, &label, ("share", share));
                }
            }
            Err(error) => remarks.push(format!(
                "No samples of {} (package linux-perf): {error:#}",
                case.label()
            )),
        }
    }
    match stages() {
        Ok(stages) => {
            for (stage, nanoseconds) in stages {
                add(bench, &stage, ("ns", nanoseconds));
            }
        }
        Err(error) => remarks.push(format!("No stages by criterion: {error:#}")),
    }
    bench.results.remarks.insert(Group::Stages.name(), remarks);
    Ok(())
}

fn add(bench: &mut Bench, case: &str, figure: (&'static str, f64)) {
    let mut runs = Runs::default();
    runs.add(Ok(vec![figure]));
    bench.add(runs.row(&Group::Stages.name(), case, OURS), figure.0);
}

fn sampled(bench: &Bench, case: &Case) -> Result<Vec<(String, f64)>> {
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().to_str().context("a path that is not UTF-8")?;
    let switch = bench.settings.switch_core;
    on_core(bench.settings.driver_core, || {
        let mut ours = Ours {
            cores: vec![switch],
        };
        let mut pair = Pair::new(case, 2)?;
        let _attached = pair.attach(&mut ours)?;
        let ids = threads("worker-")?.join(",");
        let mut command = Command::new("perf");
        command
            .args([
                "record",
                "-q",
                "-e",
                "cpu-clock",
                "-F",
                FREQUENCY,
                "-t",
                &ids,
                "-o",
                path,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut perf = Background::spawn(&mut command).context("starting perf")?;
        pair.saturate(1, TIME)?;
        perf.end(Signal::INT, Duration::from_secs(10))?;
        Ok(())
    })?;
    let said = cmd::run(&[
        "perf",
        "report",
        "-i",
        path,
        "--stdio",
        "--no-children",
        "-g",
        "none",
        "-F",
        "overhead,symbol",
    ])?;
    let shares = shares(&said);
    ensure!(!shares.is_empty(), "perf has no samples");
    Ok(shares)
}

/// What `perf report` says, as the share of each function.
fn shares(said: &str) -> Vec<(String, f64)> {
    let share = |line: &str| -> Option<(String, f64)> {
        let (share, rest) = line.trim().split_once('%')?;
        let name = rest.split_once(']').map_or(rest, |(_, name)| name).trim();
        Some((short(name), share.trim().parse::<f64>().ok()? / 100.0))
    };
    let lines = said.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(share).take(LISTED).collect()
}

/// The last two parts of a path, without what a type is generic over.
fn short(name: &str) -> String {
    let mut depth = 0;
    let plain: String = name
        .replace("->", "")
        .chars()
        .filter(|c| {
            depth += i32::from(*c == '<');
            let keep = depth == 0;
            depth -= i32::from(*c == '>');
            keep
        })
        .collect();
    let plain = if plain.trim_matches(':').is_empty() {
        name
    } else {
        plain.as_str()
    };
    let parts: Vec<&str> = plain.split("::").filter(|part| !part.is_empty()).collect();
    parts
        .get(parts.len().saturating_sub(2)..)
        .unwrap_or_default()
        .join("::")
}

/// Runs the criterion benchmark of the stages.
fn stages() -> Result<Vec<(String, f64)>> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args([
            "bench", "--quiet", "-p", "vswitch", "--bench", "stages", "--", "--quick", "--noplot",
        ])
        .current_dir(paths::workspace());
    let out = command.output().context("starting cargo")?;
    if !out.status.success() {
        bail!(
            "cargo bench: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(times(&String::from_utf8_lossy(&out.stdout)))
}

/// What criterion says, in nanoseconds: `NAME time: [LOW UNIT MIDDLE UNIT HIGH UNIT]`, the name on a line of its own
/// where it is long.
fn times(said: &str) -> Vec<(String, f64)> {
    let (mut found, mut name) = (Vec::new(), "");
    for line in said.lines() {
        let Some((before, after)) = line.split_once("time:") else {
            name = line.trim();
            continue;
        };
        if !before.trim().is_empty() {
            name = before.trim();
        }
        let words: Vec<&str> = after
            .split(['[', ']', ' '])
            .filter(|word| !word.is_empty())
            .collect();
        let middle = words.get(2).and_then(|word| word.parse::<f64>().ok());
        let factor = match words.get(3).copied() {
            Some("ps") => 1e-3,
            Some("ns") => 1.0,
            Some("µs" | "us") => 1e3,
            Some("ms") => 1e6,
            _ => continue,
        };
        found.extend(middle.map(|middle| (name.to_owned(), middle * factor)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_criterion_says_is_read() {
        let said = "fdb/lookup/1000         time:   [10.1 ns 12.5 ns 13.0 ns]\n\
                    gather/send, gather and complete a burst\n                        time:   [1.1 µs 1.2 µs 1.3 µs]\n";
        let expected = [
            ("fdb/lookup/1000".to_owned(), 12.5),
            (
                "gather/send, gather and complete a burst".to_owned(),
                1200.0,
            ),
        ];
        assert_eq!(times(said), expected);
    }

    #[test]
    fn what_perf_says_is_read() {
        let said = "# Overhead  Symbol\n#\n    38.66%  [.] <vswitch::ports::vhost::port::VhostRx as vswitch::port::RxSide>::deliver\n     \
                    4.00%  [.] vswitch::turn::Turn::run\n     1.00%  [k] do_syscall_64\n";
        let expected = [
            ("deliver", 0.3866),
            ("Turn::run", 0.04),
            ("do_syscall_64", 0.01),
        ];
        let read = shares(said);
        assert_eq!(read.len(), expected.len());
        for ((name, share), (expected, value)) in read.iter().zip(expected) {
            assert!(
                name == expected && (share - value).abs() < 1e-9,
                "{name} {share}"
            );
        }
    }
}

//! The groups of tests: what belongs to each, what it needs, and running them.

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use vswitch_tests::{cmd, netns};

use crate::{
    cargo::{self, cargo},
    fuzz, lint,
    run::{self, Tally},
    say::say,
    setup,
};

/// A group of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Format, lints, documentation, and who may depend on whom
    Lint,
    /// Tests beside the code, property tests, documentation examples
    Unit,
    /// Simulations from printed seeds
    Sim,
    /// Every fuzz target for some seconds
    Fuzz,
    /// Real kernel stacks in network namespaces
    Netns,
    /// QEMU and DPDK guests by vhost-user
    Qemu,
    /// Guests under our own monitor
    Guests,
    /// Guests for minutes each; only if named
    Long,
}

impl Group {
    fn name(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Sim => "sim",
            Self::Fuzz => "fuzz",
            Self::Netns => "netns",
            Self::Qemu => "qemu",
            Self::Guests => "guests",
            Self::Long => "long",
        }
    }

    fn contents(self) -> &'static str {
        match self {
            Self::Lint => "format, clippy, documentation, dependency rules   needs nothing more",
            Self::Unit => "all tests that are in no other group               needs nothing more",
            Self::Sim => "test programs named sim_*                          needs nothing more",
            Self::Fuzz => "every fuzz target for some seconds                 needs g++",
            Self::Netns => {
                "test programs named netns_*                        needs root and packages"
            }
            Self::Qemu => {
                "test programs named qemu_*                         needs root and packages"
            }
            Self::Guests => {
                "test programs named guests_*                       needs root, KVM and packages"
            }
            Self::Long => {
                "long_*: for minutes each, only if named            needs root, KVM and packages"
            }
        }
    }

    /// The prefix of the names of its test programs.
    fn prefix(self) -> Option<&'static str> {
        match self {
            Self::Sim => Some("sim_"),
            Self::Netns => Some("netns_"),
            Self::Qemu => Some("qemu_"),
            Self::Guests => Some("guests_"),
            Self::Long => Some("long_"),
            Self::Lint | Self::Unit | Self::Fuzz => None,
        }
    }

    fn run(self) -> Result<Tally> {
        match self {
            Self::Lint => Ok(lint::run()),
            Self::Unit => unit(),
            Self::Sim => programs("sim_", &["--nocapture"]),
            Self::Fuzz => {
                setup::for_fuzzing()?;
                fuzz::run(&[], fuzz::SECONDS)
            }
            Self::Netns => privileged("netns_"),
            Self::Qemu => privileged("qemu_"),
            Self::Guests => with_kvm("guests_"),
            Self::Long => with_kvm("long_"),
        }
    }
}

fn with_kvm(prefix: &str) -> Result<Tally> {
    ensure!(
        Path::new("/dev/kvm").exists(),
        "there is no /dev/kvm; leave the group out by --only"
    );
    privileged(prefix)
}

/// Prints the groups.
pub(crate) fn list() {
    for group in Group::value_variants() {
        say!("{:6} {}", group.name(), group.contents());
    }
}

/// Runs the groups in `only`, or all but [`Group::Long`] where it is empty, prints the sum as the last line, and returns whether
/// all passed.
pub(crate) fn run(only: &[Group]) -> bool {
    let wanted = Group::value_variants().iter().filter(|group| match only {
        [] => **group != Group::Long,
        only => only.contains(group),
    });
    let mut sum = Tally::default();
    let mut table = Vec::new();
    for group in wanted {
        say!("=== {}", group.name());
        let start = Instant::now();
        let tally = group.run().unwrap_or_else(|error| {
            say!("group {} cannot run: {error:#}", group.name());
            Tally::FAILED
        });
        table.push(format!(
            "{:6} {:4} passed, {:3} failed, {:4} s",
            group.name(),
            tally.passed,
            tally.failed,
            start.elapsed().as_secs()
        ));
        sum.add(tally);
    }
    say!("===");
    table.iter().for_each(|line| say!("{line}"));
    say!("{} passed, {} failed", sum.passed, sum.failed);
    sum.failed == 0
}

/// The workspace's test programs, by name.
fn test_programs() -> Result<Vec<String>> {
    Ok(cargo::targets(&cargo::metadata("Cargo.toml")?, "test"))
}

fn unit() -> Result<Tally> {
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast", "--lib", "--bins"]);
    let prefixes: Vec<&str> = Group::value_variants()
        .iter()
        .filter_map(|group| group.prefix())
        .collect();
    for program in test_programs()?
        .iter()
        .filter(|name| !prefixes.iter().any(|prefix| name.starts_with(prefix)))
    {
        command.args(["--test", program]);
    }
    let mut tally = run::tests(&mut command);
    tally.add(run::tests(&mut cargo(&[
        "test",
        "--workspace",
        "--no-fail-fast",
        "--doc",
    ])));
    Ok(tally)
}

fn programs(prefix: &str, args: &[&str]) -> Result<Tally> {
    let names: Vec<String> = test_programs()?
        .into_iter()
        .filter(|name| name.starts_with(prefix))
        .collect();
    ensure!(
        !names.is_empty(),
        "the workspace has no test program named {prefix}*"
    );
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    for name in &names {
        command.args(["--test", name]);
    }
    command.arg("--").args(args);
    Ok(run::tests(&mut command))
}

/// Tests against the built daemon, one at a time: it polls on a core of its own, and a machine may have but two.
fn privileged(prefix: &str) -> Result<Tally> {
    let user = cmd::run(&["id", "-u"])?;
    ensure!(
        user.trim() == "0",
        "network namespaces need root; leave the group out by --only"
    );
    if matches!(prefix, "netns_" | "qemu_") {
        setup::for_networks()?;
    } else {
        setup::everything()?;
    }
    sweep()?;
    cargo::build(&["--workspace", "--bins"])?;
    let tally = programs(prefix, &["--test-threads=1"]);
    sweep()?;
    tally
}

fn sweep() -> Result<()> {
    let swept = netns::sweep().context("looking for namespaces that a killed test left")?;
    if !swept.is_empty() {
        say!("deleted what a killed test left: {}", swept.join(" "));
    }
    Ok(())
}

//! The workspace's own commands: `cargo xtask setup`, `test`, `fuzz`, `rom`, `demo`, `bench`.

mod bench;
mod cargo;
mod demo;
mod deps;
mod fuzz;
mod groups;
mod lint;
mod run;
mod say;
mod setup;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{groups::Group, say::say};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Set-up, tests, demonstration and benchmarks of vswitch",
    max_term_width = 100
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what is missing (apt packages as root, guest images)
    #[command(
        after_help = "Examples:\n  cargo xtask setup          install the packages and build the guest image\n  \
                            cargo xtask setup --check  only say what is missing; status 1 when something is"
    )]
    Setup {
        /// Say what is missing and change nothing
        #[arg(long)]
        check: bool,
    },
    /// Set up what is missing, build, and run the tests; the last line is `N passed, N failed`
    #[command(
        after_help = "Examples:\n  cargo xtask test                     all groups but `long`; needs root\n  \
                            cargo xtask test --only lint,unit    what needs no privileges\n  \
                            cargo xtask test --list              the groups and what they need"
    )]
    Test {
        /// Only these groups
        #[arg(long, value_delimiter = ',', value_name = "GROUP")]
        only: Vec<Group>,
        /// List the groups and run nothing
        #[arg(long)]
        list: bool,
    },
    /// Run fuzz targets longer than the tests do; the last line is `N passed, N failed`
    #[command(
        after_help = "Examples:\n  cargo xtask fuzz                              every target for 10 seconds\n  \
                            cargo xtask fuzz packed_ring --seconds 3600   one target for an hour\n\n\
                      An input that fails is kept in fuzz/artifacts; run the target's program with its path to see it again."
    )]
    Fuzz {
        /// Only these targets (fuzz/fuzz_targets)
        #[arg(value_name = "TARGET")]
        targets: Vec<String>,
        /// How long each runs
        #[arg(long, default_value_t = fuzz::SECONDS, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
    },
    /// Make the ROM that legacy adapters boot from the network with: iPXE of Debian's package
    #[command(
        after_help = "Example:\n  cargo xtask rom /usr/share/vswitch/legacy.rom    where vswitchd looks for it; anywhere else for --boot-rom"
    )]
    Rom {
        /// Where to
        file: std::path::PathBuf,
    },
    /// Run the switch on this machine, in namespaces of its own, and show who reached whom
    #[command(
        after_help = "Example:\n  cargo xtask demo    needs root; touches none of the machine's own interfaces and leaves nothing behind"
    )]
    Demo,
    /// Measure how fast the switch is; `cargo xtask bench --help` has the options
    #[command(disable_help_flag = true)]
    Bench {
        /// Options of the benchmarks
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "OPTION"
        )]
        options: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Setup { check: true } => setup::check(),
        Verb::Setup { check: false } => setup::everything().map(|()| true),
        Verb::Test { list: true, .. } => {
            groups::list();
            Ok(true)
        }
        // Says itself how it went: its last line is promised.
        Verb::Test { only, .. } => Ok(groups::run(&only)),
        Verb::Fuzz { targets, seconds } => fuzz_targets(&targets, seconds),
        Verb::Rom { file } => setup::rom(&file).map(|()| true),
        Verb::Demo => demo::run(),
        Verb::Bench { options } => bench::run(&options),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn fuzz_targets(targets: &[String], seconds: u32) -> anyhow::Result<bool> {
    setup::for_fuzzing()?;
    let tally = fuzz::run(targets, seconds)?;
    say!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0)
}

//! What vswitchd is told: the command line, and a file with the same settings. The command line wins.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use serde::Deserialize;

use crate::mac_pool::MacPool;

const EXAMPLES: &str = "\
Examples:
  vswitchd                                  one worker on the last core
  vswitchd --cores 2-3 --group vswitch      two workers; members of group vswitch may use vswitchctl
  vswitchd --state-dir /tmp/s --run-dir /tmp/r
  vswitchd --config /etc/vswitch.toml       with lines as:  cores = \"2-3\"   group = \"vswitch\"

Environment:
  VSWITCH_RUN_DIR   stands in for --run-dir
  VSWITCH_LOG       what is logged to stderr, as: info (default), debug, vswitchd=debug,warn";

/// The command line.
#[derive(Debug, Default, Parser)]
#[command(name = "vswitchd", version, about = "The host daemon of the vswitch layer-2 switch", after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where the state is kept [default: /var/lib/vswitch]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where the sockets are made [default: /run/vswitch]
    #[arg(long, value_name = "DIR", env = "VSWITCH_RUN_DIR", hide_env = true)]
    run_dir: Option<PathBuf>,
    /// Cores with a worker each, as 1,3-5 [default: the last core]
    #[arg(long, value_name = "LIST")]
    cores: Option<CoreList>,
    /// The group of the API's socket: its members may use the API [default: that of the process]
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Where the program of VMs is [default: vswitch-vmm beside vswitchd, in PATH or /usr/libexec]
    #[arg(long, value_name = "PATH")]
    vmm: Option<PathBuf>,
    /// The BIOS of VMs [default: that of package seabios]
    #[arg(long, value_name = "PATH")]
    firmware: Option<PathBuf>,
    /// The option ROM that legacy adapters boot with [default: /usr/share/vswitch/legacy.rom]
    #[arg(long, value_name = "PATH")]
    legacy_rom: Option<PathBuf>,
    /// Addresses for adapters that are given none, as FIRST-LAST [default: 65536 chosen at the first start]
    #[arg(long, value_name = "RANGE")]
    mac_pool: Option<MacPool>,
    /// A TOML file with these settings, as state_dir, mac_pool
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    state_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    cores: Option<CoreList>,
    group: Option<String>,
    vmm: Option<PathBuf>,
    firmware: Option<PathBuf>,
    legacy_rom: Option<PathBuf>,
    mac_pool: Option<MacPool>,
}

/// What holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Where the state is kept.
    pub(crate) state_dir: PathBuf,
    /// Where the sockets are made.
    pub(crate) run_dir: PathBuf,
    /// Cores with a worker each, at least one.
    pub(crate) cores: Vec<usize>,
    /// The group of the API's socket.
    pub(crate) group: Option<String>,
    /// Where the program of VMs is, if that is not to be found out.
    pub(crate) vmm: Option<PathBuf>,
    /// The BIOS of VMs, if it is not the usual one.
    pub(crate) firmware: Option<PathBuf>,
    /// The option ROM of legacy adapters, if it is not the usual one.
    pub(crate) legacy_rom: Option<PathBuf>,
    /// Addresses for adapters, if they are not to be chosen by chance.
    pub(crate) mac_pool: Option<MacPool>,
}

impl Settings {
    /// Joins the command line and the file it names.
    pub(crate) fn new(args: Args) -> anyhow::Result<Settings> {
        let file = args
            .config
            .as_deref()
            .map(read_file)
            .transpose()?
            .unwrap_or_default();
        let cores = match args.cores.or(file.cores) {
            Some(cores) => cores.0,
            None => vec![last_core()?],
        };
        Ok(Settings {
            state_dir: args
                .state_dir
                .or(file.state_dir)
                .unwrap_or_else(|| "/var/lib/vswitch".into()),
            run_dir: args
                .run_dir
                .or(file.run_dir)
                .unwrap_or_else(|| "/run/vswitch".into()),
            cores,
            group: args.group.or(file.group),
            vmm: args.vmm.or(file.vmm),
            firmware: args.firmware.or(file.firmware),
            legacy_rom: args.legacy_rom.or(file.legacy_rom),
            mac_pool: args.mac_pool.or(file.mac_pool),
        })
    }
}

fn read_file(path: &Path) -> anyhow::Result<File> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| {
        format!(
            "{}: allowed: state_dir, run_dir, cores, group, vmm, firmware, legacy_rom, mac_pool",
            path.display()
        )
    })
}

/// The highest core this process may run on.
fn last_core() -> anyhow::Result<usize> {
    let cores = vswitch::control::allowed_cores();
    cores
        .last()
        .copied()
        .context("cannot read the cores of this process")
}

/// Cores as users write them: numbers and ranges, as `1,3-5`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct CoreList(Vec<usize>);

impl FromStr for CoreList {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<CoreList> {
        let highest = rustix::thread::CpuSet::MAX_CPU - 1;
        let allowed = || {
            format!(
                "cores '{text}' not allowed; allowed: numbers 0 to {highest} and ranges, as 1,3-5"
            )
        };
        let mut cores = Vec::new();
        for item in text.split(',') {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let first: usize = first.parse().with_context(allowed)?;
            let last: usize = last.parse().with_context(allowed)?;
            if first > last || last > highest {
                bail!(allowed());
            }
            for core in first..=last {
                ensure!(
                    !cores.contains(&core),
                    "core {core} is twice in '{text}'; a core has one worker"
                );
                cores.push(core);
            }
        }
        Ok(CoreList(cores))
    }
}

impl TryFrom<String> for CoreList {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<CoreList> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(arguments: &[&str]) -> Args {
        Args::try_parse_from([&["vswitchd"], arguments].concat()).unwrap()
    }

    #[test]
    fn core_lists() {
        for (text, cores) in [
            ("0", vec![0]),
            ("1,3-5", vec![1, 3, 4, 5]),
            ("2-2", vec![2]),
        ] {
            assert_eq!(text.parse::<CoreList>().unwrap().0, cores);
        }
        for bad in [
            "",
            ",",
            "1,",
            "a",
            "-1",
            "3-1",
            "1,1",
            "1-3,2",
            "1-",
            "99999",
            "1-99999999999",
        ] {
            assert!(bad.parse::<CoreList>().is_err(), "{bad}");
        }
    }

    #[test]
    fn defaults() {
        let settings = Settings::new(args(&[])).unwrap();
        assert_eq!(settings.state_dir, Path::new("/var/lib/vswitch"));
        assert_eq!(settings.run_dir, Path::new("/run/vswitch"));
        assert_eq!(settings.cores, [last_core().unwrap()]);
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "run_dir = '/r'\ncores = '0-1'\ngroup = 'g'\n").unwrap();
        let path = file.path().to_str().unwrap();
        let settings = Settings::new(args(&["--config", path, "--cores", "1"])).unwrap();
        assert_eq!(
            (
                settings.run_dir.to_str(),
                settings.cores,
                settings.group.as_deref()
            ),
            (Some("/r"), vec![1], Some("g"))
        );
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for bad in ["x = 1", "cores = 1", "cores = '3-1'", "cores ="] {
            std::fs::write(&file, bad).unwrap();
            let error =
                Settings::new(args(&["--config", file.path().to_str().unwrap()])).unwrap_err();
            assert!(
                format!("{error:#}").contains("allowed: state_dir"),
                "{error:#}"
            );
        }
        let error = Settings::new(args(&["--config", "/nowhere.toml"])).unwrap_err();
        assert!(error.to_string().contains("/nowhere.toml"));
        assert!(Args::try_parse_from(["vswitchd", "--cores", "x"]).is_err());
        assert!(Args::try_parse_from(["vswitchd", "--frobnicate"]).is_err());
    }
}

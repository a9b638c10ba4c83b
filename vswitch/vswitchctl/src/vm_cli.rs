//! The command line of VMs and adapters.

use std::str::FromStr;

use clap::{ArgGroup, Args, Subcommand};
use vswitch::api::{
    AdapterName, AutoStart, AutoStop, Boot, CreateAdapter, InvalidValue, MemorySize, NetworkName,
    Profile, StationMac, VlanId, VmName,
};

use crate::cli::OrNone;

#[derive(Debug, Subcommand)]
pub(crate) enum VmVerbs {
    /// Make a VM, which is off
    Create(Box<VmCreate>),
    /// List the VMs
    List,
    /// Show a VM
    Show { name: VmName },
    /// Change a VM; what the machine is made of, only while it is off
    Set(Box<VmSet>),
    /// Delete a VM that is off or saved
    Delete { name: VmName },
    /// Switch it on, or go on from where it was saved
    Start { name: VmName },
    /// Pull its plug
    TurnOff { name: VmName },
    /// Press its power button, and wait until it is off
    Shutdown {
        name: VmName,
        /// How long to wait: 0 to 3600 [default: 60]
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u32>,
    },
    /// Stop its processors
    Pause { name: VmName },
    /// Let them go on
    Resume { name: VmName },
    /// Press its reset button
    Reset { name: VmName },
    /// Write its state to a file, and switch it off
    Save { name: VmName },
    /// Throw its saved state away
    Discard { name: VmName },
    /// Its serial console; Ctrl-] leaves
    Console {
        name: VmName,
        /// Which serial port: 1 or 2
        #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=2))]
        com: u8,
        /// Print what COM1 has said so far
        #[arg(long, conflicts_with = "com")]
        log: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct VmCreate {
    /// 1 to 50 characters A-Z a-z 0-9 . _ -
    pub(crate) name: VmName,
    /// RAM: 8M to 64G, a multiple of 2M [default: 512M]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<MemorySize>,
    /// Processors: 1 to 4, or to 64 with --profile modern [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<u32>,
    /// Which limits hold: classic (those of Hyper-V of the day) or modern [default: classic]
    #[arg(long, value_name = "PROFILE")]
    pub(crate) profile: Option<Profile>,
    /// network, or kernel:PATH [default: network]
    #[arg(long, value_name = "SOURCE")]
    pub(crate) boot: Option<Boot>,
    /// The kernel's initial RAM disk
    #[arg(long, value_name = "PATH")]
    pub(crate) initrd: Option<String>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) cmdline: Option<String>,
    /// The option ROM that legacy adapters boot with [default: that of vswitchd]
    #[arg(long, value_name = "PATH")]
    pub(crate) boot_rom: Option<String>,
    /// A legacy adapter: `[net=NETWORK][,mac=MAC][,vlan=ID]`; up to 4 times
    #[arg(long, value_name = "ADAPTER", num_args = 0..=1, default_missing_value = "")]
    pub(crate) legacy: Vec<AdapterSpec>,
    /// A synthetic adapter; not to be had yet
    #[arg(long, value_name = "ADAPTER", num_args = 0..=1, default_missing_value = "")]
    pub(crate) synthetic: Vec<NoSynthetic>,
    #[command(flatten)]
    pub(crate) upkeep: Upkeep,
}

#[derive(Debug, Args)]
pub(crate) struct Upkeep {
    /// When vswitchd starts it: nothing, if-running, always, with ,delay=SECONDS [default: if-running]
    #[arg(long, value_name = "WHEN")]
    pub(crate) auto_start: Option<AutoStart>,
    /// What becomes of it when vswitchd ends: save, shutdown, turn-off [default: save]
    #[arg(long, value_name = "ACTION")]
    pub(crate) auto_stop: Option<AutoStop>,
    /// A note for people
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) notes: Option<String>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true)
    .args(["memory", "cpus", "profile", "boot", "initrd", "cmdline", "boot_rom", "auto_start", "auto_stop", "notes"]))]
pub(crate) struct VmSet {
    pub(crate) name: VmName,
    /// RAM: 8M to 64G, a multiple of 2M
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<MemorySize>,
    /// Processors: 1 to 4, or to 64 with --profile modern
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<u32>,
    /// Which limits hold: classic or modern
    #[arg(long, value_name = "PROFILE")]
    pub(crate) profile: Option<Profile>,
    /// network, or kernel:PATH
    #[arg(long, value_name = "SOURCE")]
    pub(crate) boot: Option<Boot>,
    /// The kernel's initial RAM disk, or none
    #[arg(long, value_name = "PATH|none")]
    pub(crate) initrd: Option<OrNone<String>>,
    /// The option ROM that legacy adapters boot with, or none for that of vswitchd
    #[arg(long, value_name = "PATH|none")]
    pub(crate) boot_rom: Option<OrNone<String>>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) cmdline: Option<String>,
    #[command(flatten)]
    pub(crate) upkeep: Upkeep,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdapterVerb {
    /// Give a VM that is off another adapter
    Add {
        vm: VmName,
        /// legacy0 to legacy3 [default: the first that is free]
        adapter: Option<AdapterName>,
        /// The network it is connected to
        #[arg(long, value_name = "NETWORK")]
        net: Option<NetworkName>,
        /// Its address [default: one of the host's pool]
        #[arg(long, value_name = "MAC")]
        mac: Option<StationMac>,
        /// Its VLAN: 1 to 4094
        #[arg(long, value_name = "ID")]
        vlan: Option<VlanId>,
    },
    /// Connect, disconnect or move an adapter under its running VM; or change it
    #[command(group = ArgGroup::new("change").required(true).multiple(true).args(["connect", "disconnect", "mac", "vlan"]))]
    Set {
        vm: VmName,
        adapter: AdapterName,
        /// Connect it to this network, or move it there
        #[arg(long, value_name = "NETWORK", conflicts_with = "disconnect")]
        connect: Option<NetworkName>,
        /// Pull its cable out
        #[arg(long)]
        disconnect: bool,
        /// Its address, or pool for a new one of the host's pool; only while the VM is off
        #[arg(long, value_name = "MAC|pool")]
        mac: Option<OrPool>,
        /// Its VLAN: 1 to 4094, or none
        #[arg(long, value_name = "ID|none")]
        vlan: Option<OrNone<VlanId>>,
    },
    /// Take an adapter from a VM that is off
    Remove { vm: VmName, adapter: AdapterName },
}

/// An address, or the word `pool`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OrPool(pub(crate) Option<StationMac>);

impl FromStr for OrPool {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<OrPool, InvalidValue> {
        match text {
            "pool" => Ok(OrPool(None)),
            _ => text.parse().map(|mac| OrPool(Some(mac))),
        }
    }
}

/// `[net=NETWORK][,mac=MAC][,vlan=ID]`.
#[derive(Clone, Debug)]
pub(crate) struct AdapterSpec(pub(crate) CreateAdapter);

impl FromStr for AdapterSpec {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<AdapterSpec, InvalidValue> {
        let error = || {
            let allowed = "net=NETWORK, mac=MAC, vlan=ID, each at most once, separated by commas";
            InvalidValue::new("adapter", text, allowed)
        };
        let mut adapter = CreateAdapter::default();
        for item in text.split(',').filter(|_| !text.is_empty()) {
            match item.split_once('=').ok_or_else(error)? {
                ("net", value) if adapter.network.is_none() => {
                    adapter.network = Some(value.parse()?);
                }
                ("mac", value) if adapter.mac.is_none() => adapter.mac = Some(value.parse()?),
                ("vlan", value) if adapter.vlan.is_none() => adapter.vlan = Some(value.parse()?),
                _ => return Err(error()),
            }
        }
        Ok(AdapterSpec(adapter))
    }
}

/// What is parsed to be refused.
#[derive(Clone, Debug)]
pub(crate) struct NoSynthetic;

impl FromStr for NoSynthetic {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<NoSynthetic, InvalidValue> {
        let allowed = "--legacy; this version has no synthetic adapters yet";
        Err(InvalidValue::new("synthetic adapter", text, allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters() {
        let spec = |text: &str| text.parse::<AdapterSpec>().map(|spec| spec.0);
        assert_eq!(spec("").unwrap(), CreateAdapter::default());
        let full = spec("vlan=7,net=lab,mac=02:00:00:00:00:01").unwrap();
        assert_eq!(
            (full.network.unwrap().as_str(), full.vlan.unwrap().get()),
            ("lab", 7)
        );
        for (bad, why) in [
            ("lab", "allowed: net=NETWORK"),
            ("net=a,net=b", "each at most once"),
            ("net=", "network name '' is not allowed"),
            ("vlan=0", "VLAN '0' is not allowed"),
            ("mac=01:00:00:00:00:01", "no group address"),
            (",", "allowed: net=NETWORK"),
            ("speed=10", "allowed: net=NETWORK"),
        ] {
            let error = spec(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}

//! The command line of VMs and adapters.

use std::str::FromStr;

use clap::{ArgGroup, Args, Subcommand};
use vswitch::api::{
    AdapterKind, AdapterName, AutoStart, AutoStop, Boot, CreateAdapter, InvalidValue, MemorySize,
    NetworkName, Profile, Service, StationMac, VlanId, VmName,
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
#[command(after_help = CREATE_EXAMPLES)]
pub(crate) struct VmCreate {
    /// 1 to 50 characters A-Z a-z 0-9 . _ -
    pub(crate) name: VmName,
    /// A legacy adapter: `[net=NETWORK][,mac=MAC][,vlan=ID]`; up to 4 times
    #[arg(long, value_name = "ADAPTER", num_args = 0..=1, default_missing_value = "")]
    pub(crate) legacy: Vec<AdapterSpec>,
    /// A synthetic adapter: `[net=NETWORK][,mac=MAC][,vlan=ID]`; up to 8 times
    #[arg(long, value_name = "ADAPTER", num_args = 0..=1, default_missing_value = "", conflicts_with = "no_hyperv")]
    pub(crate) synthetic: Vec<AdapterSpec>,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

const CREATE_EXAMPLES: &str = "\
Examples:
  vswitchctl vm create pxe --legacy net=lab
  vswitchctl vm create linux --boot kernel:/boot/vmlinuz --initrd /boot/initrd.img --synthetic net=lab,vlan=10
  vswitchctl vm create retro --no-hyperv --legacy net=lab --auto-start nothing";

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true)
    .args(["memory", "cpus", "profile", "boot", "initrd", "cmdline", "boot_rom", "hyperv", "no_hyperv", "services",
           "auto_start", "auto_stop", "notes"]))]
pub(crate) struct VmSet {
    pub(crate) name: VmName,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

/// What a VM is made with, and what can be changed of it. Defaults are those of a new VM.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// RAM: 8M to 64G, or to 1024G with --profile modern; a multiple of 2M [default: 512M]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<MemorySize>,
    /// Processors: 1 to 4, or to 64 with --profile modern [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<u32>,
    /// Which limits hold: classic (those of Hyper-V of the day) or modern [default: classic]
    #[arg(long, value_name = "PROFILE")]
    pub(crate) profile: Option<Profile>,
    /// network, which tries legacy0 first, then legacy1 and so on; or kernel:PATH [default: network]
    #[arg(long, value_name = "SOURCE")]
    pub(crate) boot: Option<Boot>,
    /// The kernel's initial RAM disk, or none [default: none]
    #[arg(long, value_name = "PATH|none")]
    pub(crate) initrd: Option<OrNone<String>>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) cmdline: Option<String>,
    /// The option ROM that legacy adapters boot with, or none for that of vswitchd [default: none]
    #[arg(long, value_name = "PATH|none")]
    pub(crate) boot_rom: Option<OrNone<String>>,
    /// The guest finds Hyper-V, which synthetic adapters and integration services need: the default
    #[arg(long)]
    pub(crate) hyperv: bool,
    /// The guest does not find Hyper-V
    #[arg(long, conflicts_with_all = ["hyperv", "services"])]
    pub(crate) no_hyperv: bool,
    /// Integration services: all, none, or some of shutdown,heartbeat,time-sync,key-value [default: all]
    #[arg(long, value_name = "LIST")]
    pub(crate) services: Option<ServiceList>,
    /// When vswitchd starts it: nothing, if-running, always, with ,delay=SECONDS [default: if-running]
    #[arg(long, value_name = "WHEN")]
    pub(crate) auto_start: Option<AutoStart>,
    /// What becomes of it when vswitchd ends: save, turn-off, or shutdown, which turns it off after a minute, or
    /// after ,timeout=SECONDS [default: save]
    #[arg(long, value_name = "ACTION")]
    pub(crate) auto_stop: Option<AutoStop>,
    /// A note for people
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) notes: Option<String>,
}

impl Settings {
    /// Whether the guest finds Hyper-V, if that is said.
    pub(crate) fn finds_hyperv(&self) -> Option<bool> {
        (self.hyperv || self.no_hyperv).then_some(self.hyperv)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdapterVerb {
    /// Give a VM another adapter: a legacy one while it is off, a synthetic one also while it runs
    #[command(after_help = ADD_EXAMPLES)]
    Add {
        vm: VmName,
        /// legacy0 to legacy3, synthetic0 to synthetic7 [default: the first of its kind that is free]
        adapter: Option<AdapterName>,
        /// legacy or synthetic [default: that of its name, or legacy]
        #[arg(long, value_name = "KIND")]
        kind: Option<AdapterKind>,
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
    /// Take an adapter from a VM: a legacy one while it is off, a synthetic one also while it runs
    Remove { vm: VmName, adapter: AdapterName },
}

const ADD_EXAMPLES: &str = "\
Examples:
  vswitchctl adapter add web --kind synthetic --net lab
  vswitchctl adapter add web legacy1 --net lab --mac 52:00:00:00:00:01 --vlan 10";

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

/// `all`, `none`, or integration services separated by commas.
#[derive(Clone, Debug)]
pub(crate) struct ServiceList(pub(crate) Vec<Service>);

impl FromStr for ServiceList {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<ServiceList, InvalidValue> {
        match text {
            "all" => Ok(ServiceList(Service::ALL.to_vec())),
            "none" => Ok(ServiceList(Vec::new())),
            _ => Ok(ServiceList(
                text.split(',').map(str::parse).collect::<Result<_, _>>()?,
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services() {
        let list = |text: &str| text.parse::<ServiceList>().map(|list| list.0);
        assert_eq!(list("all").unwrap(), Service::ALL);
        assert_eq!(list("none").unwrap(), []);
        assert_eq!(
            list("time-sync,shutdown").unwrap(),
            [Service::TimeSync, Service::Shutdown]
        );
        for bad in ["", "backup", "shutdown,", "all,none"] {
            let error = list(bad).unwrap_err().to_string();
            assert!(error.contains("allowed: shutdown, heartbeat"), "{error}");
        }
    }

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

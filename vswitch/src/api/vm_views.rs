//! What the API answers about VMs. Keys are stable: scripts and checks read them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::policy::StationMac;
use super::values::{Link, NetworkName, VlanId};
use super::vm::{
    AdapterKind, AdapterName, AutoStart, AutoStop, Boot, MemorySize, Profile, Service, VmName,
    VmState,
};

/// Whether a driver of the guest has taken an adapter into use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DriverState {
    /// None has.
    None,
    /// One has.
    Bound,
}

impl fmt::Display for DriverState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DriverState::None => "none",
            DriverState::Bound => "bound",
        })
    }
}

/// An adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AdapterView {
    /// Its name.
    pub name: AdapterName,
    /// Its kind.
    pub kind: AdapterKind,
    /// Its address.
    pub mac: StationMac,
    /// Whether the address was given by an operator; otherwise it is one of the host's pool.
    pub static_mac: bool,
    /// The network it is connected to.
    pub network: Option<NetworkName>,
    /// Its VLAN.
    pub vlan: Option<VlanId>,
    /// The link that the guest sees.
    pub link: Link,
    /// Whether a driver has taken it into use.
    pub driver: DriverState,
}

/// An integration service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ServiceView {
    /// Which.
    pub name: Service,
    /// Whether a driver of the guest has taken it into use.
    pub driver: DriverState,
}

/// What a guest said when it crashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CrashView {
    /// Five numbers; their meaning is the guest's, as a Windows bug check and its parameters.
    pub parameters: [u64; 5],
    /// Its last words, if it had any.
    pub message: Option<String>,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VmView {
    /// Its name.
    pub name: VmName,
    /// Its state.
    pub state: VmState,
    /// Why it ended last, or what it waits for.
    pub detail: Option<String>,
    /// Its process.
    pub pid: Option<i32>,
    /// Its RAM.
    pub memory: MemorySize,
    /// Its processors.
    pub cpus: u32,
    /// Which limits hold.
    pub profile: Profile,
    /// What it boots.
    #[schema(value_type = String)]
    pub boot: Boot,
    /// The kernel's initial RAM disk.
    pub initrd: Option<String>,
    /// The kernel's command line.
    pub cmdline: String,
    /// The option ROM that legacy adapters boot with, if it is not vswitchd's own.
    pub boot_rom: Option<String>,
    /// Whether its guest finds Hyper-V.
    pub hyperv: bool,
    /// The integration services that its guest is offered.
    pub services: Vec<ServiceView>,
    /// When it starts by itself.
    #[schema(value_type = String)]
    pub auto_start: AutoStart,
    /// What becomes of it when vswitchd ends.
    #[schema(value_type = String)]
    pub auto_stop: AutoStop,
    /// A note for people.
    pub notes: String,
    /// Its adapters, by name.
    pub adapters: Vec<AdapterView>,
    /// What the guest says of itself by key/value exchange.
    pub facts: BTreeMap<String, String>,
    /// What the guest said when it crashed, since the VM was started.
    pub crash: Option<CrashView>,
    /// Exits to user space by kind, since its process was started.
    pub exits: BTreeMap<String, u64>,
    /// What is not as one would wish, as an address that two adapters of a network have.
    pub warnings: Vec<String>,
}

/// The VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VmList {
    /// By name.
    pub vms: Vec<VmView>,
}

/// A VM at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VmGlance {
    /// Its name.
    pub name: VmName,
    /// Its state.
    pub state: VmState,
}

/// Where the serial consoles of a VM are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConsoleView {
    /// The socket of COM1.
    pub com1: String,
    /// The socket of COM2.
    pub com2: String,
}

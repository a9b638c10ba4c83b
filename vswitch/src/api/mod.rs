//! The types of the API that `vswitchd` serves and `vswitchctl` speaks: what may be asked, and what is answered.
//!
//! Requests are parsed once, by [`from_json`], into types that hold only what is allowed, then checked across fields
//! into configurations ([`NetworkConfig`], [`PortConfig`]). The data path knows nothing of this module.

mod config;
mod error;
mod network;
mod policy;
mod port;
mod values;
mod views;
mod vm;
mod vm_views;

pub use config::{ConfigDocument, PortSettings};
pub use error::{ErrorBody, ErrorCode, Refusal, from_json};
pub use network::{CreateNetwork, NetworkConfig, NetworkKind, NetworkType, PatchNetwork};
pub use policy::{MAX_GUARD, MacGuard, StationMac, VlanSpec};
pub use port::{
    AddFdbEntry, CreatePort, HOST_PORT, PatchPort, PortBackend, PortConfig, UPLINK_PORT,
    VhostUserMode,
};
pub use values::{
    Ageing, IfName, InvalidValue, Link, MacQuota, Mtu, NetworkName, PortName, Queues, SocketPath,
    VlanId,
};
pub use views::{
    FdbEntryView, FdbView, NetworkList, NetworkView, PortList, PortState, PortStats, PortView,
    StatsView, StatusView, WorkerView,
};

pub use vm::{
    AdapterKind, AdapterName, AutoStart, AutoStop, Boot, CLASSIC_CPUS, CreateAdapter, CreateVm,
    MAX_CPUS, MAX_LEGACY, MAX_SYNTHETIC, MemorySize, PatchAdapter, PatchVm, Profile, Service,
    StartWhen, VmAction, VmConfig, VmName, VmState, VmVerb, no_hyperv,
};
pub use vm_views::{
    AdapterView, ConsoleView, CrashView, DriverState, ServiceView, VmGlance, VmList, VmView,
};

#[cfg(test)]
mod tests;

//! What the API answers. Keys are stable: scripts and checks read them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::network::NetworkType;
use super::policy::{MacGuard, StationMac, VlanSpec};
use super::port::PortBackend;
use super::values::{Ageing, IfName, Link, MacQuota, Mtu, NetworkName, PortName, VlanId};
use super::vm_views::VmGlance;

/// A worker: one poll-mode thread on its core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WorkerView {
    /// The core it is pinned to.
    pub core: usize,
    /// Ports it owns.
    pub ports: u64,
    /// Thousandths of its time spent on frames.
    pub busy_permille: u64,
    /// Whether it sleeps for want of frames.
    pub parked: bool,
    /// Clock cycles per frame, on average over its busy time.
    pub cycles_per_frame: u64,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NetworkView {
    /// Its name.
    pub name: NetworkName,
    /// What it is connected to.
    #[serde(rename = "type")]
    pub kind: NetworkType,
    /// The physical interface of an external network.
    pub uplink: Option<IfName>,
    /// The host's adapter.
    pub host_nic: Option<IfName>,
    /// The VLAN of the host NIC, where it is in one.
    pub vlan: Option<VlanId>,
    /// The MTU of everything in it that is given none.
    pub mtu: Mtu,
    /// Seconds that its MAC table remembers a silent station; 0 is for ever.
    pub ageing: Ageing,
    /// Ports in it, host NIC and uplink included.
    pub ports: usize,
}

/// Whether a port can pass frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortState {
    /// What is behind it is there.
    Up,
    /// Its peer has not connected yet, or is not ready.
    Waiting,
    /// What is behind it cannot be opened; it is tried again.
    Down,
    /// Its peer broke the rules; it is out of service until the peer starts anew.
    Fault,
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PortState::Up => "up",
            PortState::Waiting => "waiting",
            PortState::Down => "down",
            PortState::Fault => "fault",
        })
    }
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PortView {
    /// The network it is in.
    pub network: NetworkName,
    /// Its name.
    pub port: PortName,
    /// What is behind it: `kind`, and the keys of that kind.
    #[serde(flatten)]
    pub backend: PortBackend,
    /// How it takes part in VLANs.
    pub vlan: VlanSpec,
    /// The addresses it may send from.
    pub mac_guard: MacGuard,
    /// Most addresses that are learned behind it.
    pub mac_quota: MacQuota,
    /// Its MTU.
    pub mtu: Mtu,
    /// Its link, as the operator set it.
    pub link: Link,
    /// Whether its frames reach the network.
    pub connected: bool,
    /// Whether it can pass frames.
    pub state: PortState,
    /// How it is attached, or why it is down.
    pub detail: Option<String>,
}

/// Everything at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StatusView {
    /// The version of vswitchd.
    pub version: String,
    /// The workers.
    pub workers: Vec<WorkerView>,
    /// The networks, by name.
    pub networks: Vec<NetworkView>,
    /// The ports, by network and name.
    pub ports: Vec<PortView>,
    /// The VMs, by name.
    pub vms: Vec<VmGlance>,
}

/// The networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NetworkList {
    /// By name.
    pub networks: Vec<NetworkView>,
}

/// The ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PortList {
    /// By network and name.
    pub ports: Vec<PortView>,
}

/// The counters of a port since vswitchd started. tx leaves the guest, rx enters it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PortStats {
    /// The network the port is in.
    pub network: NetworkName,
    /// The port.
    pub port: PortName,
    /// Frames from the guest.
    pub tx_frames: u64,
    /// Bytes of these.
    pub tx_bytes: u64,
    /// Frames to the guest.
    pub rx_frames: u64,
    /// Bytes of these.
    pub rx_bytes: u64,
    /// Copies of frames from this port that were dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Copies of frames for this port that were dropped because of it, by reason; booked on their senders too.
    pub rx_drops: BTreeMap<String, u64>,
    /// Frames taken in from this port. With `extra_copies` this is `delivered + consumed + dropped`.
    pub taken_frames: u64,
    /// Copies made beyond the first: a flood to n ports makes n - 1.
    pub extra_copies: u64,
    /// Copies that reached a port.
    pub delivered_frames: u64,
    /// Frames that were for the switch itself.
    pub consumed_frames: u64,
    /// Copies dropped, for all reasons.
    pub dropped_frames: u64,
    /// Bytes the switch itself copied.
    pub copied_bytes: u64,
    /// Times that a source address was not learned: quota, full table, or pinned to another port.
    pub learn_refused: u64,
    /// Times that a source address was behind another port until then.
    pub mac_moves: u64,
}

/// Counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StatsView {
    /// By network and port.
    pub ports: Vec<PortStats>,
}

/// An entry of a MAC table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FdbEntryView {
    /// The address.
    pub mac: StationMac,
    /// Its VLAN; absent for none.
    pub vlan: Option<VlanId>,
    /// The port it is behind.
    pub port: PortName,
    /// Whether an operator set it, so that it does not age.
    #[serde(rename = "static")]
    pub is_static: bool,
    /// Seconds since it was last seen; absent for static entries.
    pub age_seconds: Option<u64>,
}

/// The MAC table of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FdbView {
    /// By address and VLAN.
    pub entries: Vec<FdbEntryView>,
}

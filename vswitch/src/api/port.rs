//! Requests about ports and MAC table entries, and what they are checked into.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::{Refusal, present};
use super::policy::{MacGuard, StationMac, VlanSpec};
use super::values::{
    IfName, Link, MacQuota, Mtu, NetworkName, PortName, Queues, SocketPath, VlanId,
};
use super::vm::{AdapterKind, AdapterName, VmName};

/// The name of the host NIC's port.
pub const HOST_PORT: &str = "host";
/// The name of the uplink's port.
pub const UPLINK_PORT: &str = "uplink";

/// Which end of a vhost-user socket vswitchd is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VhostUserMode {
    /// vswitchd makes the socket and listens; the VMM connects.
    #[default]
    Server,
    /// The VMM listens; vswitchd connects, again and again.
    Client,
}

impl fmt::Display for VhostUserMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            VhostUserMode::Server => "server",
            VhostUserMode::Client => "client",
        })
    }
}

/// What is behind a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PortBackend {
    /// The host's own adapter, a persistent TAP device; comes and goes with its network.
    HostNic {
        /// Its name.
        interface: IfName,
    },
    /// The physical interface of an external network.
    Uplink {
        /// Its name.
        interface: IfName,
    },
    /// A TAP device for a foreign program.
    Tap {
        /// Its name.
        interface: IfName,
    },
    /// A VMM that speaks vhost-user.
    VhostUser {
        /// The socket.
        path: SocketPath,
        /// Which end of it vswitchd is.
        mode: VhostUserMode,
        /// Pairs of queues offered.
        queues: Queues,
    },
    /// A legacy adapter of a VM; comes and goes with it.
    Legacy {
        /// The VM.
        vm: VmName,
        /// The adapter.
        adapter: AdapterName,
    },
    /// A synthetic adapter of a VM; comes and goes with it.
    Synthetic {
        /// The VM.
        vm: VmName,
        /// The adapter.
        adapter: AdapterName,
    },
}

impl PortBackend {
    /// What is behind the port of an adapter.
    pub fn of_adapter(vm: VmName, adapter: AdapterName) -> PortBackend {
        match adapter.kind() {
            AdapterKind::Legacy => PortBackend::Legacy { vm, adapter },
            AdapterKind::Synthetic => PortBackend::Synthetic { vm, adapter },
        }
    }

    /// The interface, socket or adapter: what no two ports may share.
    pub fn target(&self) -> Cow<'_, str> {
        match self {
            PortBackend::HostNic { interface }
            | PortBackend::Uplink { interface }
            | PortBackend::Tap { interface } => interface.as_str().into(),
            PortBackend::VhostUser { path, .. } => path.as_str().into(),
            // No interface has a colon in its name, and no socket's path begins so.
            PortBackend::Legacy { vm, adapter } | PortBackend::Synthetic { vm, adapter } => {
                format!("vm:{vm}.{adapter}").into()
            }
        }
    }

    /// The VM and its adapter, where the port is that of one.
    pub fn adapter(&self) -> Option<(&VmName, AdapterName)> {
        match self {
            PortBackend::Legacy { vm, adapter } | PortBackend::Synthetic { vm, adapter } => {
                Some((vm, *adapter))
            }
            _ => None,
        }
    }

    /// Whether the port comes and goes with its network.
    pub fn belongs_to_network(&self) -> bool {
        matches!(
            self,
            PortBackend::HostNic { .. } | PortBackend::Uplink { .. }
        )
    }

    /// The name of the kind.
    pub fn kind(&self) -> &'static str {
        match self {
            PortBackend::HostNic { .. } => "host_nic",
            PortBackend::Uplink { .. } => "uplink",
            PortBackend::Tap { .. } => "tap",
            PortBackend::VhostUser { .. } => "vhost_user",
            PortBackend::Legacy { .. } => "legacy",
            PortBackend::Synthetic { .. } => "synthetic",
        }
    }
}

/// Asks for a new port.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePort {
    /// Its name, unique in the network; `host` and `uplink` are taken.
    pub name: PortName,
    /// The path of a vhost-user socket. Either this or `tap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<SocketPath>,
    /// The name of a TAP device. Either this or `vhost_user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<IfName>,
    /// Which end of the vhost-user socket vswitchd is; `server` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<VhostUserMode>,
    /// Pairs of queues offered to the VMM, 1 unless given; `vhost_user` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<Queues>,
    /// How it takes part in VLANs; `none` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanSpec>,
    /// The addresses it may send from; `off` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_guard: Option<MacGuard>,
    /// Most addresses that are learned behind it; 131072 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_quota: Option<MacQuota>,
    /// Its MTU; that of the network unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// Its link; `up` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
}

/// A port, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// Its name, unique in its network.
    pub name: PortName,
    /// What is behind it.
    pub backend: PortBackend,
    /// How it takes part in VLANs.
    pub vlan: VlanSpec,
    /// The addresses it may send from.
    pub mac_guard: MacGuard,
    /// Most addresses that are learned behind it; `None` is what is usual for its kind.
    pub mac_quota: Option<MacQuota>,
    /// Its MTU; `None` is that of the network.
    pub mtu: Option<Mtu>,
    /// Its link, as the operator set it.
    pub link: Link,
    /// Whether its frames reach the network.
    pub connected: bool,
}

impl PortConfig {
    /// The link that the other end is shown. A port that is disconnected has its cable pulled out.
    pub fn shown_link(&self) -> Link {
        if self.connected {
            self.link
        } else {
            Link::Down
        }
    }

    /// Most addresses that are learned behind it.
    pub fn effective_mac_quota(&self) -> MacQuota {
        self.mac_quota.unwrap_or(match self.backend {
            PortBackend::Uplink { .. } => MacQuota::UPLINK,
            _ => MacQuota::DEFAULT,
        })
    }

    /// A connected port with default settings.
    pub fn new(name: PortName, backend: PortBackend) -> PortConfig {
        PortConfig {
            name,
            backend,
            vlan: VlanSpec::default(),
            mac_guard: MacGuard::default(),
            mac_quota: None,
            mtu: None,
            link: Link::Up,
            connected: true,
        }
    }
}

impl CreatePort {
    /// Checks the fields against each other.
    pub fn check(self) -> Result<PortConfig, Refusal> {
        let name = self.name;
        let refuse = |what: &str| Err(Refusal::invalid(format!("port '{name}': {what}")));
        if [HOST_PORT, UPLINK_PORT].contains(&name.as_str()) {
            return refuse(
                "this name is that of a port which comes and goes with its network; choose another",
            );
        }
        let backend = match (self.vhost_user, self.tap) {
            (Some(path), None) => PortBackend::VhostUser {
                path,
                mode: self.mode.unwrap_or_default(),
                queues: self.queues.unwrap_or(Queues::ONE),
            },
            (None, Some(interface)) => {
                if self.mode.is_some() || self.queues.is_some() {
                    return refuse(
                        "mode and queues are settings of vhost_user ports, and this is a tap port",
                    );
                }
                PortBackend::Tap { interface }
            }
            _ => {
                return refuse(
                    "give one of vhost_user (the path of a socket) and tap (the name of an interface)",
                );
            }
        };
        Ok(PortConfig {
            vlan: self.vlan.unwrap_or_default(),
            mac_guard: self.mac_guard.unwrap_or_default(),
            mac_quota: self.mac_quota,
            mtu: self.mtu,
            link: self.link.unwrap_or_default(),
            ..PortConfig::new(name, backend)
        })
    }
}

/// Asks for changes to a port. Absent keys change nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchPort {
    /// How it takes part in VLANs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanSpec>,
    /// The addresses it may send from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_guard: Option<MacGuard>,
    /// Most addresses that are learned behind it; `null` for what is usual. One that holds more keeps them until they age.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    #[schema(value_type = Option<MacQuota>)]
    pub mac_quota: Option<Option<MacQuota>>,
    /// Its MTU; `null` for that of the network.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    #[schema(value_type = Option<Mtu>)]
    pub mtu: Option<Option<Mtu>>,
    /// Its link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    /// The network it is to be in, connected: its own, or another that it moves to; `null` disconnects it.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    #[schema(value_type = Option<NetworkName>)]
    pub network: Option<Option<NetworkName>>,
}

impl PatchPort {
    /// The port's configuration after the change. `network` is where it is now.
    pub fn apply(&self, network: &NetworkName, config: &PortConfig) -> Result<PortConfig, Refusal> {
        let name = &config.name;
        let refuse = |what: String| {
            Err(Refusal::invalid(format!(
                "port '{name}' of network '{network}': {what}"
            )))
        };
        let mut new = config.clone();
        new.vlan = self.vlan.clone().unwrap_or(new.vlan);
        new.mac_guard = self.mac_guard.clone().unwrap_or(new.mac_guard);
        new.mac_quota = self.mac_quota.unwrap_or(new.mac_quota);
        new.mtu = self.mtu.unwrap_or(new.mtu);
        new.link = self.link.unwrap_or(new.link);
        if let Some(target) = &self.network {
            new.connected = target.is_some();
        }
        let none = self.vlan.is_none()
            && self.mac_guard.is_none()
            && self.mac_quota.is_none()
            && self.mtu.is_none()
            && self.link.is_none();
        if none && self.network.is_none() {
            return refuse(
                "nothing to change; allowed: vlan, mac_guard, mac_quota, mtu, link, network"
                    .to_owned(),
            );
        }
        if config.backend.belongs_to_network() {
            if self
                .network
                .as_ref()
                .is_some_and(|target| target.as_ref() != Some(network))
            {
                return refuse(
                    "it comes and goes with its network, and is neither moved nor disconnected"
                        .to_owned(),
                );
            }
            if self.mtu.is_some() {
                return refuse("its MTU is that of its network; change the network's".to_owned());
            }
        }
        if matches!(config.backend, PortBackend::Legacy { .. }) && self.mtu.is_some() {
            return refuse(
                "a legacy adapter is a 10/100 Mb/s card of its time, which has MTU 1500".to_owned(),
            );
        }
        Ok(new)
    }
}

/// Asks for a static entry in the MAC table of a network.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddFdbEntry {
    /// The address.
    pub mac: StationMac,
    /// The port that frames for it go to.
    pub port: PortName,
    /// The VLAN; absent for frames of no VLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
}

impl AddFdbEntry {
    /// Refuses an entry for a VLAN that its port, which is one of `network`, does not carry.
    pub fn check(&self, network: &NetworkName, port: &PortConfig) -> Result<(), Refusal> {
        let vid = self.vlan.map_or(0, VlanId::get);
        if port.vlan.mode().egress(vid).is_some() {
            return Ok(());
        }
        let vlan = self
            .vlan
            .map_or("no VLAN".to_owned(), |vlan| format!("VLAN {vlan}"));
        Err(Refusal::invalid(format!(
            "port '{}' of network '{network}' carries no frames of {vlan}; its setting is '{}'",
            self.port, port.vlan
        )))
    }
}

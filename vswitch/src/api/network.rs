//! Requests about networks, and what they are checked into.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Refusal, present};
use super::policy::VlanSpec;
use super::port::{HOST_PORT, PortBackend, PortConfig, UPLINK_PORT};
use super::values::{Ageing, IfName, InvalidValue, Mtu, NetworkName, VlanId, words};

/// What a network is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkType {
    /// Ports, an uplink, and (unless refused) a host NIC.
    External,
    /// Ports and a host NIC.
    Internal,
    /// Ports only.
    Private,
}

words! {
    NetworkType, "network type",
    External => "external", Internal => "internal", Private => "private"
}

/// Asks for a new network.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Its name.
    pub name: NetworkName,
    /// What it is connected to.
    #[serde(rename = "type")]
    pub kind: NetworkType,
    /// The physical interface; external networks only, and needed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<IfName>,
    /// The name of the host NIC, `vsw-NAME` unless given; external and internal networks only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_nic: Option<IfName>,
    /// The host takes no part in this network; external networks only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_host_nic: bool,
    /// The VLAN of the host NIC; untagged frames of no VLAN unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
    /// The MTU of the host NIC, the uplink, and of ports that are given none; 1500 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// Seconds that its MAC table remembers a silent station, 300 unless given; 0 is for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ageing: Option<Ageing>,
}

/// What a network is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkKind {
    /// An uplink, and perhaps a host NIC.
    External {
        /// The physical interface.
        uplink: IfName,
        /// The host's adapter.
        host_nic: Option<IfName>,
    },
    /// A host NIC and no uplink.
    Internal {
        /// The host's adapter.
        host_nic: IfName,
    },
    /// Neither.
    Private,
}

impl NetworkKind {
    /// The type, as the API names it.
    pub fn network_type(&self) -> NetworkType {
        match self {
            NetworkKind::External { .. } => NetworkType::External,
            NetworkKind::Internal { .. } => NetworkType::Internal,
            NetworkKind::Private => NetworkType::Private,
        }
    }

    /// The physical interface, where there is one.
    pub fn uplink(&self) -> Option<&IfName> {
        match self {
            NetworkKind::External { uplink, .. } => Some(uplink),
            _ => None,
        }
    }

    /// Gives an external network another uplink; the other kinds have none.
    pub fn set_uplink(&mut self, new: IfName) {
        if let NetworkKind::External { uplink, .. } = self {
            *uplink = new;
        }
    }

    /// The host's adapter, where there is one.
    pub fn host_nic(&self) -> Option<&IfName> {
        match self {
            NetworkKind::External { host_nic, .. } => host_nic.as_ref(),
            NetworkKind::Internal { host_nic } => Some(host_nic),
            NetworkKind::Private => None,
        }
    }
}

/// A network, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Its name.
    pub name: NetworkName,
    /// What it is made of.
    pub kind: NetworkKind,
    /// The MTU of everything in it that is given none.
    pub mtu: Mtu,
    /// How long its MAC table remembers a silent station.
    pub ageing: Ageing,
}

impl NetworkConfig {
    /// The ports that come and go with it; `vlan` is that of the host NIC.
    pub fn own_ports(&self, vlan: Option<VlanId>) -> Result<Vec<PortConfig>, Refusal> {
        let mut ports = Vec::new();
        if let Some(interface) = self.kind.host_nic().cloned() {
            let mut port = PortConfig::new(HOST_PORT.parse()?, PortBackend::HostNic { interface });
            port.vlan = vlan.map_or_else(VlanSpec::default, VlanSpec::access);
            ports.push(port);
        }
        if let Some(interface) = self.kind.uplink().cloned() {
            let mut port = PortConfig::new(UPLINK_PORT.parse()?, PortBackend::Uplink { interface });
            port.vlan = VlanSpec::all();
            ports.push(port);
        }
        Ok(ports)
    }
}

const VLAN_NEEDS_HOST_NIC: &str = "a VLAN is that of the host NIC, which private networks and those without one do not have; give each port its VLAN";

impl CreateNetwork {
    /// Checks the fields against each other. The second value is the VLAN of the host NIC.
    pub fn check(self) -> Result<(NetworkConfig, Option<VlanId>), Refusal> {
        let name = &self.name;
        let refuse = |what: String| Err(Refusal::invalid(format!("network '{name}': {what}")));
        let kind = match self.kind {
            NetworkType::External => {
                let Some(uplink) = self.uplink.clone() else {
                    return refuse(
                        "an external network needs an uplink: the name of a physical interface"
                            .to_owned(),
                    );
                };
                if let (true, Some(nic)) = (self.no_host_nic, &self.host_nic) {
                    return refuse(format!(
                        "host_nic '{nic}' and no_host_nic exclude each other"
                    ));
                }
                let host_nic = if self.no_host_nic {
                    None
                } else {
                    Some(self.host_nic_name()?)
                };
                if host_nic.as_ref() == Some(&uplink) {
                    return refuse(format!(
                        "'{uplink}' cannot be both the uplink and the host NIC"
                    ));
                }
                NetworkKind::External { uplink, host_nic }
            }
            NetworkType::Internal | NetworkType::Private if self.uplink.is_some() => {
                let uplink = self.uplink.as_ref().map_or("", IfName::as_str);
                return refuse(format!(
                    "uplink '{uplink}' given, but only external networks have one"
                ));
            }
            NetworkType::Internal if self.no_host_nic => {
                return refuse(
                    "an internal network is its host NIC; use a private network for none"
                        .to_owned(),
                );
            }
            NetworkType::Internal => NetworkKind::Internal {
                host_nic: self.host_nic_name()?,
            },
            NetworkType::Private => {
                if let Some(nic) = &self.host_nic {
                    return refuse(format!(
                        "host_nic '{nic}' given, but a private network has none; allowed on external, internal"
                    ));
                }
                if self.no_host_nic {
                    return refuse(
                        "no_host_nic is for external networks; a private network has none anyway"
                            .to_owned(),
                    );
                }
                NetworkKind::Private
            }
        };
        if let (Some(vlan), None) = (self.vlan, kind.host_nic()) {
            return refuse(format!("VLAN {vlan} refused: {VLAN_NEEDS_HOST_NIC}"));
        }
        Ok((
            NetworkConfig {
                name: self.name,
                kind,
                mtu: self.mtu.unwrap_or(Mtu::DEFAULT),
                ageing: self.ageing.unwrap_or(Ageing::DEFAULT),
            },
            self.vlan,
        ))
    }

    fn host_nic_name(&self) -> Result<IfName, Refusal> {
        match &self.host_nic {
            Some(name) => Ok(name.clone()),
            None => format!("vsw-{}", self.name).parse().map_err(|_| {
                let name = &self.name;
                Refusal::invalid(format!(
                    "network '{name}': the default host NIC name 'vsw-{name}' is longer than 15 bytes; \
                     choose one with host_nic (--host-nic)"
                ))
            }),
        }
    }
}

/// Asks for changes to a network. Absent keys change nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchNetwork {
    /// Its new name. Ports, static entries and adapters stay in it; its host NIC keeps its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<NetworkName>,
    /// The MTU of everything in the network that is given none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// Seconds that its MAC table remembers a silent station; 0 is for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ageing: Option<Ageing>,
    /// The VLAN of the host NIC; `null` for none.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    #[schema(value_type = Option<VlanId>)]
    pub vlan: Option<Option<VlanId>>,
    /// Another physical interface; external networks only. The host NIC keeps its addresses, routes and MAC address, and
    /// gets the addresses and routes of the new uplink besides; the old one gets the rest back that it had before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<IfName>,
}

impl PatchNetwork {
    /// Checks that something is to be changed, and that `config` can be changed so.
    pub fn check(&self, config: &NetworkConfig) -> Result<(), Refusal> {
        let name = &config.name;
        let none = self.mtu.is_none() && self.vlan.is_none() && self.ageing.is_none();
        if none && self.name.is_none() && self.uplink.is_none() {
            return Err(Refusal::invalid(format!(
                "network '{name}': nothing to change; allowed: name, mtu, vlan, ageing, uplink"
            )));
        }
        if let (Some(uplink), None) = (&self.uplink, config.kind.uplink()) {
            return Err(Refusal::invalid(format!(
                "network '{name}': uplink '{uplink}' given, but only external networks have one"
            )));
        }
        if let (Some(vlan), None) = (self.vlan, config.kind.host_nic()) {
            let vlan = vlan.map_or("none".to_owned(), |vlan| vlan.to_string());
            return Err(Refusal::invalid(format!(
                "network '{name}': VLAN {vlan} refused: {VLAN_NEEDS_HOST_NIC}"
            )));
        }
        Ok(())
    }
}

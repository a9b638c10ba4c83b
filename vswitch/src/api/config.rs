//! The whole configuration as one document: what `vswitchctl config` writes and checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use serde::{Deserialize, Serialize};

use super::error::Refusal;
use super::network::{CreateNetwork, NetworkConfig};
use super::policy::{MacGuard, VlanSpec};
use super::port::{AddFdbEntry, CreatePort, PatchPort, PortBackend, PortConfig};
use super::values::{Link, MacQuota, Mtu, NetworkName, PortName};
use super::vm::CreateVm;

/// Networks, ports, VMs and static MAC table entries, each as it would be asked for. Addresses that were taken from the
/// host's pools are no part of it.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigDocument {
    /// The version of the format.
    pub version: u32,
    /// Networks.
    #[serde(default, rename = "network", skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<CreateNetwork>,
    /// Ports that do not come with something else, by network.
    #[serde(default, rename = "port", skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Vec<CreatePort>>)]
    pub ports: BTreeMap<NetworkName, Vec<CreatePort>>,
    /// VMs with their adapters.
    #[serde(default, rename = "vm", skip_serializing_if = "Vec::is_empty")]
    pub vms: Vec<CreateVm>,
    /// What was changed of ports that come with something else, and which ports are disconnected, by network and port.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, BTreeMap<String, PortSettings>>)]
    pub settings: BTreeMap<NetworkName, BTreeMap<PortName, PortSettings>>,
    /// Static entries of MAC tables, by network.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Vec<AddFdbEntry>>)]
    pub fdb: BTreeMap<NetworkName, Vec<AddFdbEntry>>,
}

/// Settings of a port that are others than those it comes with. Absent keys change nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSettings {
    /// How it takes part in VLANs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanSpec>,
    /// The addresses it may send from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_guard: Option<MacGuard>,
    /// Most addresses that are learned behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_quota: Option<MacQuota>,
    /// Its MTU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// Its link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    /// Whether its frames reach the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected: Option<bool>,
}

impl PortSettings {
    /// Those of `new`, where it was made as `made`; `None` if they are the same.
    pub fn between(made: &PortConfig, new: &PortConfig) -> Option<PortSettings> {
        let settings = PortSettings {
            vlan: (made.vlan != new.vlan).then(|| new.vlan.clone()),
            mac_guard: (made.mac_guard != new.mac_guard).then(|| new.mac_guard.clone()),
            mac_quota: new.mac_quota.filter(|_| made.mac_quota != new.mac_quota),
            mtu: new.mtu.filter(|_| made.mtu != new.mtu),
            link: (made.link != new.link).then_some(new.link),
            connected: (made.connected != new.connected).then_some(new.connected),
        };
        (settings != PortSettings::default()).then_some(settings)
    }

    fn as_patch(&self, network: &NetworkName) -> PatchPort {
        PatchPort {
            vlan: self.vlan.clone(),
            mac_guard: self.mac_guard.clone(),
            mac_quota: self.mac_quota.map(Some),
            mtu: self.mtu.map(Some),
            link: self.link,
            network: self
                .connected
                .map(|connected| connected.then(|| network.clone())),
        }
    }
}

/// What a document comes to, as far as it is checked.
#[derive(Default)]
struct Found {
    networks: BTreeMap<NetworkName, NetworkConfig>,
    ports: BTreeMap<(NetworkName, PortName), PortConfig>,
    /// Interfaces and sockets.
    targets: BTreeSet<String>,
}

impl ConfigDocument {
    /// The version of the format that is written and read.
    pub const VERSION: u32 = 1;

    /// Checks every part by itself, and all against each other. What depends on the host, as whether an interface is
    /// there, is seen when it is applied only.
    ///
    /// # Errors
    /// The first part that is not allowed, by its name.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.version != ConfigDocument::VERSION {
            return Err(Refusal::invalid(format!(
                "version '{}' of the configuration is not known; allowed: {}",
                self.version,
                ConfigDocument::VERSION
            )));
        }
        let mut found = Found::default();
        for network in &self.networks {
            found.add_network(network)?;
        }
        for (network, ports) in &self.ports {
            for port in ports {
                found.add_port(network, port.clone().check()?)?;
            }
        }
        let mut vms = BTreeSet::new();
        for vm in &self.vms {
            once(&mut vms, &vm.name, "VM")?;
            found.add_vm(vm)?;
        }
        for (network, ports) in &self.settings {
            for (name, settings) in ports {
                let port = found.port(network, name)?;
                *port = settings.as_patch(network).apply(network, port)?;
            }
        }
        for (network, entries) in &self.fdb {
            let mut stations = BTreeSet::new();
            for entry in entries {
                entry.check(network, found.port(network, &entry.port)?)?;
                let vlan = entry.vlan.map_or(0, |vlan| vlan.get());
                let station = format!("{} in VLAN {vlan} of network {network}", entry.mac);
                once(&mut stations, &station, "static entry for")?;
            }
        }
        Ok(())
    }
}

impl Found {
    fn add_network(&mut self, request: &CreateNetwork) -> Result<(), Refusal> {
        let (config, vlan) = request.clone().check()?;
        let name = config.name.clone();
        let ports = config.own_ports(vlan)?;
        if self.networks.insert(name.clone(), config).is_some() {
            return Err(twice("network", &name));
        }
        for port in ports {
            self.add_port(&name, port)?;
        }
        Ok(())
    }

    fn add_port(&mut self, network: &NetworkName, port: PortConfig) -> Result<(), Refusal> {
        self.network(network)?;
        once(
            &mut self.targets,
            &port.backend.target().into_owned(),
            "interface or socket",
        )?;
        let place = (network.clone(), port.name.clone());
        if self.ports.contains_key(&place) {
            return Err(twice(&format!("port of network '{network}'"), &port.name));
        }
        self.ports.insert(place, port);
        Ok(())
    }

    fn add_vm(&mut self, request: &CreateVm) -> Result<(), Refusal> {
        let (config, adapters) = request.clone().check()?;
        for (name, adapter) in adapters {
            let Some(network) = &adapter.network else {
                continue;
            };
            let backend = PortBackend::of_adapter(config.name.clone(), name);
            let mut port = PortConfig::new(config.name.port(name)?, backend);
            port.vlan = adapter
                .vlan
                .map_or_else(VlanSpec::default, VlanSpec::access);
            self.add_port(network, port)?;
        }
        Ok(())
    }

    fn network(&self, name: &NetworkName) -> Result<&NetworkConfig, Refusal> {
        self.networks.get(name).ok_or_else(|| {
            Refusal::invalid(format!(
                "the configuration has no network '{name}', which another part of it names"
            ))
        })
    }

    fn port(&mut self, network: &NetworkName, name: &PortName) -> Result<&mut PortConfig, Refusal> {
        self.network(network)?;
        self.ports
            .get_mut(&(network.clone(), name.clone()))
            .ok_or_else(|| {
                Refusal::invalid(format!(
                    "the configuration has no port '{name}' in network '{network}', which another part of it names"
                ))
            })
    }
}

/// Enters `one` among `all`, which has everything once.
fn once<T: Ord + Clone + Display>(
    all: &mut BTreeSet<T>,
    one: &T,
    what: &str,
) -> Result<(), Refusal> {
    if all.insert(one.clone()) {
        Ok(())
    } else {
        Err(twice(what, one))
    }
}

fn twice(what: &str, name: &dyn Display) -> Refusal {
    Refusal::invalid(format!(
        "{what} '{name}' is there twice; allowed: each once"
    ))
}

//! Networks: made, changed and deleted, each as a whole or not at all.

use tracing::{error, info};
use vswitch::api::{
    CreateNetwork, HOST_PORT, NetworkConfig, NetworkName, NetworkView, PatchNetwork, PortBackend, PortConfig,
    PortName, Refusal, UPLINK_PORT, VlanId, VlanSpec,
};

use super::{Manager, Network, failed, no_network};
use crate::backend::Fate;
use crate::store::HostChange;

impl Manager {
    /// Makes a network, with its host NIC and uplink.
    pub fn create_network(&mut self, request: CreateNetwork) -> Result<NetworkView, Refusal> {
        let (config, vlan) = request.check()?;
        let name = config.name.clone();
        if self.networks.contains_key(&name) {
            return Err(Refusal::conflict(format!("there is a network '{name}' already; names are unique")));
        }
        let ports = own_ports(&config, vlan)?;
        for port in &ports {
            self.check_target(port.backend.target())?;
        }
        let note = self.plan_host_change(&config)?;
        if let Some(note) = &note {
            self.store.note_host_change(note)?;
        }
        let built = self.build_network(config, ports, note.as_ref());
        if let (Err(_), Some(note)) = (&built, &note) {
            self.store.forget_host_change(&note.host_nic).unwrap_or_else(|error| error!(%error, "a note stays behind"));
        }
        let network = built?;
        info!(network = %name, "network created");
        let view = network.view();
        self.networks.insert(name, network);
        Ok(view)
    }

    /// Looks at the host without changing it: what will be made, and what moved.
    fn plan_host_change(&self, config: &NetworkConfig) -> Result<Option<HostChange>, Refusal> {
        let host = &self.plant.host;
        let refuse = |error| failed(format_args!("cannot create network '{}'", config.name), error);
        if let Some(uplink) = config.kind.uplink() {
            host.check_uplink(uplink).map_err(refuse)?;
        }
        let Some(host_nic) = config.kind.host_nic().cloned() else { return Ok(None) };
        host.check_unused(&host_nic).map_err(refuse)?;
        let uplink = config.kind.uplink().cloned();
        let moved = match &uplink {
            Some(uplink) => host.addresses(uplink).map_err(refuse)?,
            None => None,
        };
        Ok(Some(HostChange { host_nic, uplink, moved }))
    }

    fn build_network(
        &mut self,
        config: NetworkConfig,
        ports: Vec<PortConfig>,
        note: Option<&HostChange>,
    ) -> Result<Network, Refusal> {
        let name = config.name.clone();
        let change = self.store.change()?;
        change.add_network(&config)?;
        for port in &ports {
            change.add_port(&name, port)?;
        }
        let network = self.plant.build(config, ports)?;
        let move_addresses = note.and_then(|note| Some((note.moved.as_ref()?, note.uplink.as_ref()?, &note.host_nic)));
        let host = &self.plant.host;
        let result = match move_addresses {
            Some((record, from, to)) => host
                .move_addresses(record, from, to)
                .map_err(|error| failed(format_args!("cannot move the addresses of '{from}' to '{to}'"), error))
                .and_then(|()| {
                    change.commit().map_err(|refused| {
                        host.move_addresses(record, to, from)
                            .unwrap_or_else(|error| error!("addresses stay on '{to}': {error:#}"));
                        refused.into()
                    })
                }),
            None => change.commit().map_err(Refusal::from),
        };
        match result {
            Ok(()) => Ok(network),
            Err(refusal) => {
                self.plant.dismantle(network, Fate::Delete);
                Err(refusal)
            }
        }
    }

    /// Deletes a network that has no ports but its own, and gives the uplink its addresses back.
    pub fn delete_network(&mut self, name: &NetworkName) -> Result<(), Refusal> {
        let network = self.network(name)?;
        let others: Vec<&str> = network
            .ports
            .values()
            .filter(|port| !port.config.backend.belongs_to_network())
            .map(|port| port.config.name.as_str())
            .collect();
        if !others.is_empty() {
            let others = others.join("', '");
            return Err(Refusal::conflict(format!("network '{name}' still has ports: '{others}'; remove them first")));
        }
        let host_nic = network.config.kind.host_nic().cloned();
        let uplink = network.config.kind.uplink().cloned();
        let moved = match &host_nic {
            Some(nic) => self.store.moved(nic)?,
            None => None,
        };
        let change = self.store.change()?;
        change.delete_network(name)?;
        let host = &self.plant.host;
        if let (Some(record), Some(nic), Some(uplink)) = (&moved, &host_nic, &uplink) {
            host.move_addresses(record, nic, uplink)
                .map_err(|error| failed(format_args!("cannot give '{uplink}' its addresses back"), error))?;
            change.commit().map_err(|refused| {
                host.move_addresses(record, uplink, nic)
                    .unwrap_or_else(|error| error!("addresses stay on '{uplink}': {error:#}"));
                refused
            })?;
        } else {
            change.commit()?;
        }
        if let Some(network) = self.networks.remove(name) {
            self.plant.dismantle(network, Fate::Delete);
        }
        if let Some(nic) = &host_nic {
            self.store.forget_host_change(nic).unwrap_or_else(|error| error!(%error, "a note stays behind"));
        }
        info!(network = %name, "network deleted");
        Ok(())
    }

    /// Changes a network under traffic.
    pub fn set_network(&mut self, name: &NetworkName, patch: &PatchNetwork) -> Result<NetworkView, Refusal> {
        let network = self.networks.get_mut(name).ok_or_else(|| no_network(name))?;
        patch.check(&network.config)?;
        let before = (network.config.clone(), network.host_vlan());
        let after_mtu = patch.mtu.unwrap_or(network.config.mtu);
        let change = self.store.change()?;
        network.config.mtu = after_mtu;
        if let Some(vlan) = patch.vlan {
            network.set_host_vlan(vlan.map_or_else(VlanSpec::default, VlanSpec::access));
        }
        let result = change
            .set_network(&network.config)
            .and_then(|()| network.host_config().map_or(Ok(()), |host| change.set_port(name, host)))
            .map_err(Refusal::from)
            .and_then(|()| self.plant.settle_all(network))
            .and_then(|()| change.commit().map_err(Refusal::from));
        if let Err(refusal) = result {
            network.config = before.0;
            before.1.into_iter().for_each(|vlan| network.set_host_vlan(vlan));
            self.plant.settle_all(network).unwrap_or_else(|error| error!(%error, "a change was not taken back"));
            return Err(refusal);
        }
        info!(network = %name, "network changed");
        Ok(network.view())
    }
}

impl super::plant::Plant {
    /// Settles every port of a network.
    fn settle_all(&self, network: &mut Network) -> Result<(), Refusal> {
        let mut ports = std::mem::take(&mut network.ports);
        let result = ports.values_mut().try_for_each(|port| self.settle(network, port));
        network.ports = ports;
        result
    }
}

impl Network {
    fn host_config(&self) -> Option<&PortConfig> {
        self.ports.values().map(|port| &port.config).find(|config| config.name.as_str() == HOST_PORT)
    }

    fn host_vlan(&self) -> Option<VlanSpec> {
        self.host_config().map(|config| config.vlan.clone())
    }

    fn set_host_vlan(&mut self, vlan: VlanSpec) {
        let host = self.ports.values_mut().find(|port| port.config.name.as_str() == HOST_PORT);
        host.into_iter().for_each(|port| port.config.vlan = vlan.clone());
    }
}

/// The ports that come and go with a network.
fn own_ports(config: &NetworkConfig, vlan: Option<VlanId>) -> Result<Vec<PortConfig>, Refusal> {
    let mut ports = Vec::new();
    if let Some(interface) = config.kind.host_nic().cloned() {
        let name: PortName = HOST_PORT.parse()?;
        let mut port = PortConfig::new(name, PortBackend::HostNic { interface });
        port.vlan = vlan.map_or_else(VlanSpec::default, VlanSpec::access);
        ports.push(port);
    }
    if let Some(interface) = config.kind.uplink().cloned() {
        let name: PortName = UPLINK_PORT.parse()?;
        let mut port = PortConfig::new(name, PortBackend::Uplink { interface });
        port.vlan = VlanSpec::all();
        ports.push(port);
    }
    Ok(ports)
}

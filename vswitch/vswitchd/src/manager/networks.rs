//! Networks: made, changed and deleted, each as a whole or not at all.

use anyhow::ensure;
use tracing::{error, info};
use vswitch::api::{
    CreateNetwork, HOST_PORT, IfName, NetworkConfig, NetworkName, NetworkView, PatchNetwork,
    PortConfig, Refusal, VlanSpec,
};

use super::{Manager, Network, failed, no_network};
use crate::backend::Fate;
use crate::store::{HostChange, HostSide};

impl Manager {
    /// Makes a network, with its host NIC and uplink.
    pub(crate) fn create_network(
        &mut self,
        request: CreateNetwork,
    ) -> Result<NetworkView, Refusal> {
        let (config, vlan) = request.check()?;
        let name = config.name.clone();
        if self.networks.contains_key(&name) {
            return Err(Refusal::conflict(format!(
                "there is a network '{name}' already; names are unique"
            )));
        }
        let ports = config.own_ports(vlan)?;
        for port in &ports {
            self.check_target(&port.backend.target())?;
        }
        let (host, note) = self.plan_host_change(&config)?;
        if let Some(note) = &note {
            self.store.note_host_change(note)?;
        }
        let before = note.as_ref().and_then(|note| note.moved.as_deref());
        let built = self.build_network(config, host, ports, before);
        if let (Err(_), Some(note)) = (&built, &note) {
            self.store
                .forget_host_change(&note.host_nic)
                .unwrap_or_else(|error| error!(%error, "a note stays behind"));
        }
        let network = built?;
        info!(network = %name, "network created");
        let view = network.view();
        self.networks.insert(name, network);
        Ok(view)
    }

    /// Looks at the host without changing it: what is to be kept of it, and what will be changed.
    fn plan_host_change(
        &self,
        config: &NetworkConfig,
    ) -> Result<(HostSide, Option<HostChange>), Refusal> {
        let host = &self.plant.host;
        let refuse = |error| {
            Refusal::conflict(format!(
                "cannot create network '{}': {error:#}",
                config.name
            ))
        };
        let uplink_mtu = config
            .kind
            .uplink()
            .map(|uplink| host.check_uplink(uplink))
            .transpose()
            .map_err(refuse)?;
        let mac = self.plant.choose_host_mac(&config.kind).map_err(refuse)?;
        let kept = HostSide { uplink_mtu, mac };
        let Some(host_nic) = config.kind.host_nic().cloned() else {
            if let Some(uplink) = config.kind.uplink() {
                self.check_no_addresses(uplink).map_err(refuse)?;
            }
            return Ok((kept, None));
        };
        host.check_unused(&host_nic).map_err(refuse)?;
        let uplink = config.kind.uplink().cloned();
        let moved = uplink
            .as_ref()
            .map(|uplink| host.begin_record(uplink, &host_nic))
            .transpose()
            .map_err(refuse)?;
        let note = HostChange {
            host_nic,
            uplink,
            moved,
        };
        Ok((kept, Some(note)))
    }

    /// Refuses an uplink with addresses where no host NIC can take them: nobody would reach them any more.
    fn check_no_addresses(&self, uplink: &IfName) -> anyhow::Result<()> {
        let addresses = self.plant.host.addresses(uplink)?;
        ensure!(
            addresses.is_empty(),
            "'{uplink}' has addresses, {}, which need a host NIC to be reached; \
             allowed: a network with a host NIC, which takes them, or an uplink without (ip addr del … dev {uplink})",
            addresses.join(", ")
        );
        Ok(())
    }

    fn build_network(
        &mut self,
        config: NetworkConfig,
        host: HostSide,
        ports: Vec<PortConfig>,
        before: Option<&str>,
    ) -> Result<Network, Refusal> {
        let change = self.store.change()?;
        change.add_network(&config, host)?;
        for port in &ports {
            change.add_port(&config.name, port)?;
        }
        let network = self.plant.build(config, host, ports)?;
        let result = self.plant.take_over(&network, before).and_then(|moved| {
            let kept = match (&moved, network.config.kind.host_nic()) {
                (Some(record), Some(nic)) => change.set_moved(nic, record),
                _ => Ok(()),
            };
            kept.and_then(|()| change.commit()).map_err(|refused| {
                let back = self.plant.return_addresses(&network, moved.as_deref());
                back.unwrap_or_else(|error| {
                    error!("the uplink did not get its addresses back: {error:#}")
                });
                Refusal::from(refused)
            })
        });
        match result {
            Ok(()) => Ok(network),
            Err(refusal) => {
                self.plant.dismantle(network, Fate::Delete);
                Err(refusal)
            }
        }
    }

    /// Deletes a network that has no ports but its own, and gives the uplink its addresses back.
    pub(crate) fn delete_network(&mut self, name: &NetworkName) -> Result<(), Refusal> {
        let network = self.networks.get(name).ok_or_else(|| no_network(name))?;
        let others: Vec<&str> = network
            .ports
            .values()
            .filter(|port| !port.config.backend.belongs_to_network())
            .map(|port| port.config.name.as_str())
            .collect();
        if !others.is_empty() {
            let others = others.join("', '");
            return Err(Refusal::conflict(format!(
                "network '{name}' still has ports: '{others}'; remove them first"
            )));
        }
        let host_nic = network.config.kind.host_nic().cloned();
        let moved = match &host_nic {
            Some(nic) => self.store.moved(nic)?,
            None => None,
        };
        let change = self.store.change()?;
        change.delete_network(name)?;
        self.plant
            .return_addresses(network, moved.as_deref())
            .map_err(|error| {
                let what = format_args!(
                    "cannot delete network '{name}', as its uplink cannot get its addresses back"
                );
                failed(what, error)
            })?;
        change.commit().inspect_err(|_| {
            self.plant
                .take_over(network, moved.as_deref())
                .map_or_else(|error| error!("{error}"), drop);
        })?;
        if let Some(network) = self.networks.remove(name) {
            self.plant.dismantle(network, Fate::Delete);
        }
        if let Some(nic) = &host_nic {
            self.store
                .forget_host_change(nic)
                .unwrap_or_else(|error| error!(%error, "a note stays behind"));
        }
        info!(network = %name, "network deleted");
        Ok(())
    }

    /// Changes a network under traffic.
    pub(crate) fn set_network(
        &mut self,
        name: &NetworkName,
        patch: &PatchNetwork,
    ) -> Result<NetworkView, Refusal> {
        let network = self
            .networks
            .get_mut(name)
            .ok_or_else(|| no_network(name))?;
        patch.check(&network.config)?;
        let before = (network.config.clone(), network.host_vlan());
        let after_mtu = patch.mtu.unwrap_or(network.config.mtu);
        let change = self.store.change()?;
        network.config.mtu = after_mtu;
        network.config.ageing = patch.ageing.unwrap_or(network.config.ageing);
        if let Some(vlan) = patch.vlan {
            network.set_host_vlan(vlan.map_or_else(VlanSpec::default, VlanSpec::access));
        }
        let result = change
            .set_network(&network.config)
            .and_then(|()| {
                network
                    .host_config()
                    .map_or(Ok(()), |host| change.set_port(name, host))
            })
            .map_err(Refusal::from)
            .and_then(|()| self.plant.settle_all(network))
            .and_then(|()| change.commit().map_err(Refusal::from));
        if let Err(refusal) = result {
            network.config = before.0;
            before
                .1
                .into_iter()
                .for_each(|vlan| network.set_host_vlan(vlan));
            self.plant
                .settle_all(network)
                .unwrap_or_else(|error| error!(%error, "a change was not taken back"));
            return Err(refusal);
        }
        info!(network = %name, "network changed");
        Ok(network.view())
    }
}

impl super::plant::Plant {
    /// Moves the addresses of a network's uplink to its host NIC, where it has both; the record `before` with them in it.
    /// On failure they are where they were.
    pub(super) fn take_over(
        &self,
        network: &Network,
        before: Option<&str>,
    ) -> Result<Option<String>, Refusal> {
        let (Some(uplink), Some(nic)) = (network.uplink(), network.config.kind.host_nic()) else {
            return Ok(None);
        };
        let moved = self.host.move_addresses(uplink, nic, before);
        moved.map(Some).map_err(|error| {
            failed(
                format_args!("cannot move the addresses of '{uplink}' to '{nic}'"),
                error,
            )
        })
    }

    /// Moves the addresses of a network's host NIC to its uplink, where it has both.
    fn return_addresses(&self, network: &Network, record: Option<&str>) -> anyhow::Result<()> {
        match (network.config.kind.host_nic(), network.uplink()) {
            (Some(nic), Some(uplink)) => self.host.return_addresses(nic, uplink, record),
            _ => Ok(()),
        }
    }

    /// Settles the MAC table and every port of a network.
    fn settle_all(&self, network: &mut Network) -> Result<(), Refusal> {
        if let Some(fdb) = self.switch.fdb(network.id) {
            fdb.set_ageing(network.config.ageing.get());
        }
        let mut ports = std::mem::take(&mut network.ports);
        let result = ports
            .values_mut()
            .try_for_each(|port| self.settle(network, port));
        network.ports = ports;
        result
    }
}

impl Network {
    fn host_config(&self) -> Option<&PortConfig> {
        self.ports
            .values()
            .map(|port| &port.config)
            .find(|config| config.name.as_str() == HOST_PORT)
    }

    fn host_vlan(&self) -> Option<VlanSpec> {
        self.host_config().map(|config| config.vlan.clone())
    }

    fn set_host_vlan(&mut self, vlan: VlanSpec) {
        let host = self
            .ports
            .values_mut()
            .find(|port| port.config.name.as_str() == HOST_PORT);
        host.into_iter()
            .for_each(|port| port.config.vlan = vlan.clone());
    }
}

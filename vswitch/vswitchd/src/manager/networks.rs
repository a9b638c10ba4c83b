//! Networks: made, changed and deleted, each as a whole or not at all.

use tracing::{error, info};
use vswitch::api::{
    CreateNetwork, HOST_PORT, NetworkConfig, NetworkName, NetworkView, PatchNetwork, PortConfig,
    Refusal, VlanSpec,
};

use super::{Manager, Network, failed, no_network};
use crate::backend::{Fate, LooseUplink};
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
            return Err(name_taken(&name));
        }
        let ports = config.own_ports(vlan)?;
        for port in &ports {
            self.check_target(&port.backend.target())?;
        }
        let (host, note) = self.plan_host_change(&config)?;
        let loose = host.loose_uplink(&config);
        if let Some(loose) = &loose {
            self.store.note_loose_uplink(loose)?;
        }
        if let Some(note) = &note {
            self.store.note_host_change(note)?;
        }
        let before = note.as_ref().and_then(|note| note.moved.as_deref());
        let built = self.build_network(config, host, ports, before);
        if built.is_err() {
            if let Some(loose) = &loose {
                self.release(loose);
            }
            if let Some(note) = &note {
                self.store
                    .forget_host_change(&note.host_nic)
                    .unwrap_or_else(|error| error!(%error, "a note stays behind"));
            }
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
        let uplink = config.kind.uplink();
        let host_nic = config.kind.host_nic();
        let loose = uplink
            .map(|uplink| self.plant.look_at_uplink(uplink, host_nic))
            .transpose()
            .map_err(refuse)?;
        let mac = self.plant.choose_host_mac(&config.kind).map_err(refuse)?;
        let mut kept = HostSide {
            mac,
            ..HostSide::default()
        };
        let mut moved = None;
        if let Some(loose) = loose {
            (kept.uplink_mtu, kept.uplink_settings, moved) =
                (loose.mtu, loose.settings, loose.moved);
        }
        let Some(host_nic) = host_nic.cloned() else {
            return Ok((kept, None));
        };
        host.check_unused(&host_nic).map_err(refuse)?;
        let note = HostChange {
            host_nic,
            uplink: uplink.cloned(),
            moved,
        };
        Ok((kept, Some(note)))
    }

    fn build_network(
        &mut self,
        config: NetworkConfig,
        host: HostSide,
        ports: Vec<PortConfig>,
        before: Option<&str>,
    ) -> Result<Network, Refusal> {
        let change = self.store.change()?;
        change.add_network(&config, &host)?;
        if let Some(uplink) = config.kind.uplink() {
            change.hold(uplink)?;
        }
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
        let loose = network.host.loose_uplink(&network.config);
        let change = self.store.change()?;
        change.delete_network(name)?;
        if let Some(loose) = &loose {
            change.let_go(loose)?;
        }
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
        if let Some(loose) = &loose {
            self.release(loose);
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
        let new_name = patch.name.as_ref().unwrap_or(name);
        let network = self.network(name)?;
        patch.check(&network.config)?;
        if new_name != name && self.networks.contains_key(new_name) {
            return Err(name_taken(new_name));
        }
        let uplink = patch.uplink.as_ref();
        let uplink = uplink.filter(|uplink| network.uplink() != Some(uplink));
        let new = uplink
            .map(|uplink| self.plan_uplink(network, uplink))
            .transpose()?;
        if let Some(new) = &new {
            self.store.note_loose_uplink(new)?;
        }
        let changed = self.change_network(name, patch, new.as_ref());
        let loose = match &changed {
            Ok(old) => old.as_ref(),
            Err(_) => new.as_ref(),
        };
        if let Some(loose) = loose {
            self.release(loose);
        }
        changed?;
        if let Some(network) = self.networks.remove(name) {
            self.networks.insert(new_name.clone(), network);
        }
        info!(network = %name, now = %new_name, "network changed");
        self.show_network(new_name)
    }

    /// Makes it so and commits it, or leaves all but the uplink `new` as it was; the uplink that the network has no more.
    fn change_network(
        &mut self,
        name: &NetworkName,
        patch: &PatchNetwork,
        new: Option<&LooseUplink>,
    ) -> Result<Option<LooseUplink>, Refusal> {
        let network = self
            .networks
            .get_mut(name)
            .ok_or_else(|| no_network(name))?;
        let new_name = patch.name.as_ref().unwrap_or(name);
        let before = (network.config.clone(), network.host_vlan());
        let change = self.store.change()?;
        network.config.name = new_name.clone();
        network.config.mtu = patch.mtu.unwrap_or(network.config.mtu);
        network.config.ageing = patch.ageing.unwrap_or(network.config.ageing);
        if let Some(vlan) = patch.vlan {
            network.set_host_vlan(vlan.map_or_else(VlanSpec::default, VlanSpec::access));
        }
        let result = change
            .rename_network(name, new_name)
            .and_then(|()| change.set_network(&network.config))
            .and_then(|()| {
                network
                    .host_config()
                    .map_or(Ok(()), |host| change.set_port(new_name, host))
            })
            .map_err(Refusal::from)
            .and_then(|()| self.plant.settle_all(network))
            .and_then(|()| match new {
                Some(new) => self.plant.change_uplink(network, new, change),
                None => change.commit().map(|()| None).map_err(Refusal::from),
            });
        result.inspect_err(|_| {
            network.config = before.0;
            before
                .1
                .into_iter()
                .for_each(|vlan| network.set_host_vlan(vlan));
            self.plant
                .settle_all(network)
                .unwrap_or_else(|error| error!(%error, "a change was not taken back"));
        })
    }
}

fn name_taken(name: &NetworkName) -> Refusal {
    Refusal::conflict(format!(
        "there is a network '{name}' already; names are unique"
    ))
}

impl super::plant::Plant {
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

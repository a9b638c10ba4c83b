//! From start to stop: the stored state brought back, what is down tried again, everything closed.

use tracing::{error, info, warn};
use vswitch::api::{NetworkConfig, NetworkName, PortBackend, PortState, Refusal, StationMac};
use vswitch::port::PortControl;

use super::{Attachment, Manager, Network, Port};
use crate::backend::Fate;
use crate::store::{HostChange, SavedNetwork};

impl Manager {
    /// Brings the stored networks, ports and static entries back, and cleans up after a vswitchd that was killed in the
    /// middle of a change. What cannot be opened now is down, and tried again by [`Manager::tick`].
    pub(crate) fn restore(&mut self) -> Result<(), Refusal> {
        let saved = self.store.load()?;
        for change in self.store.host_changes()? {
            let known = saved
                .iter()
                .any(|network| network.config.kind.host_nic() == Some(&change.host_nic));
            if !known {
                self.undo_host_change(&change);
            }
        }
        self.release_loose_uplinks()?;
        for network in saved {
            self.restore_network(network)?;
        }
        let names: Vec<NetworkName> = self.networks.keys().cloned().collect();
        names.iter().for_each(|name| self.settle_addresses(name));
        self.restore_vms()
    }

    fn restore_network(&mut self, saved: SavedNetwork) -> Result<(), Refusal> {
        let name = saved.config.name.clone();
        let mut host = saved.host;
        if host.mac.is_none() {
            host.mac = self.settle_host_mac(&saved.config);
        }
        if host.uplink_settings.is_none() && saved.config.kind.host_nic().is_none() {
            host.uplink_settings = self.settle_uplink_settings(&saved.config);
        }
        let mut network = self.plant.add_network(saved.config, host)?;
        network.statics = saved.statics.into_iter().collect();
        for config in saved.ports {
            let mut port = self.plant.add_port(&network, config)?;
            if let Err(reason) = self.plant.open(&network, &mut port) {
                warn!(network = %name, port = %port.config.name, "port is down: {reason:#}");
            }
            network.ports.insert(port.config.name.clone(), port);
        }
        info!(network = %name, ports = network.ports.len(), "network restored");
        self.networks.insert(name, network);
        Ok(())
    }

    /// Keeps an address for the host NIC of a network that an earlier version made.
    fn settle_host_mac(&mut self, config: &NetworkConfig) -> Option<StationMac> {
        let found = self.plant.find_host_mac(&config.kind);
        let mac = found
            .inspect_err(|reason| warn!(network = %config.name, "no address is kept: {reason:#}"))
            .ok()??;
        let kept = self.store.change().and_then(|change| {
            change.set_host_mac(&config.name, mac)?;
            change.commit()
        });
        kept.unwrap_or_else(|error| warn!(network = %config.name, %error, "no address is kept"));
        Some(mac)
    }

    /// Keeps the settings of the uplink of a network without a host NIC that an earlier version made: it left them alone.
    fn settle_uplink_settings(&mut self, config: &NetworkConfig) -> Option<String> {
        let uplink = config.kind.uplink()?;
        let kept = self.plant.host.settings(uplink).and_then(|settings| {
            let change = self.store.change()?;
            change.set_uplink_settings(&config.name, &settings)?;
            change.commit()?;
            Ok(settings)
        });
        kept.inspect_err(|reason| warn!(network = %config.name, "no settings are kept: {reason:#}"))
            .ok()
    }

    /// Undoes what was begun for a network that never came to be, or was all but deleted.
    fn undo_host_change(&mut self, change: &HostChange) {
        let HostChange {
            host_nic,
            uplink,
            moved,
        } = change;
        let host = &self.plant.host;
        let given_back = match uplink {
            Some(uplink) => host.return_addresses(host_nic, uplink, moved.as_deref()),
            None => Ok(()),
        };
        match given_back.and_then(|()| host.delete_host_nic(host_nic)) {
            Ok(()) => {
                info!(%host_nic, "cleaned up after a change that was cut short");
                self.store
                    .forget_host_change(host_nic)
                    .unwrap_or_else(|error| error!(%error, "a note stays behind"));
            }
            Err(reason) => {
                error!(%host_nic, "cannot clean up after a change that was cut short: {reason:#}")
            }
        }
    }

    /// Moves addresses that the uplink of a network has to its host NIC, where both are there: after a reboot the
    /// host's own configuration may have given it some.
    fn settle_addresses(&mut self, name: &NetworkName) {
        let Some(network) = self.networks.get(name) else {
            return;
        };
        let all_open = network
            .own_ports()
            .all(|port| matches!(port.attachment, Attachment::Open(_)));
        if !all_open {
            return;
        }
        let Some(host_nic) = network.config.kind.host_nic().cloned() else {
            return self
                .plant
                .take_over(network, None)
                .map_or_else(|reason| error!(network = %name, "{reason}"), drop);
        };
        let before = match self.store.moved(&host_nic) {
            Ok(before) => before,
            Err(reason) => return error!(network = %name, "{reason}"),
        };
        let moved = self.plant.take_over(network, before.as_deref());
        let kept = moved.and_then(|moved| match moved {
            Some(record) if Some(&record) != before.as_ref() => {
                let change = self.store.change()?;
                change.set_moved(&host_nic, &record)?;
                Ok(change.commit()?)
            }
            _ => Ok(()),
        });
        if let Err(reason) = kept {
            error!(network = %name, "{reason}");
        }
    }

    /// To be called every second or two: reads the workers' load, gives aged entries' places back, and opens again what
    /// is down.
    pub(crate) fn tick(&mut self) {
        self.settle_vms();
        self.sampler.sample(&self.plant.switch.workers());
        self.plant.switch.sweep();
        for network in self.networks.values_mut() {
            if let Some(fdb) = self.plant.switch.fdb(network.id) {
                network.warn_of(fdb.take_flaps());
            }
        }
        let mut changed = Vec::new();
        for (name, network) in &mut self.networks {
            let mut ports = std::mem::take(&mut network.ports);
            for port in ports.values_mut() {
                close_if_failed(name, port);
                let was = match &port.attachment {
                    Attachment::Open(_) => continue,
                    Attachment::Down(reason) => reason.clone(),
                };
                match self.plant.open(network, port) {
                    Ok(()) => changed.push(name.clone()),
                    Err(reason) if format!("{reason:#}") != was => {
                        warn!(network = %name, port = %port.config.name, "port is down: {reason:#}");
                    }
                    Err(_) => {}
                }
            }
            network.ports = ports;
        }
        changed.iter().for_each(|name| self.settle_addresses(name));
    }

    /// Closes everything. Host NICs stay, with their addresses, for the next start.
    pub(crate) fn stop(&mut self) {
        for network in std::mem::take(&mut self.networks).into_values() {
            self.plant.dismantle(network, Fate::Keep);
        }
    }
}

impl Network {
    fn own_ports(&self) -> impl Iterator<Item = &Port> {
        self.ports
            .values()
            .filter(|port| port.config.backend.belongs_to_network())
    }
}

/// An interface that failed is closed, to be opened anew. vhost-user ports and adapters see to their peers themselves.
fn close_if_failed(network: &NetworkName, port: &mut Port) {
    let Attachment::Open(backend) = &port.attachment else {
        return;
    };
    if matches!(
        port.config.backend,
        PortBackend::VhostUser { .. } | PortBackend::Legacy { .. } | PortBackend::Synthetic { .. }
    ) {
        return;
    }
    let reason = match (port.handle.fault(), backend.status()) {
        (Some(fault), _) => fault.to_string(),
        (None, (PortState::Down, detail)) => detail.unwrap_or_default(),
        _ => return,
    };
    warn!(%network, port = %port.config.name, "port is down: {reason}");
    let down = Attachment::Down(reason);
    if let Attachment::Open(backend) = std::mem::replace(&mut port.attachment, down) {
        backend.close(Fate::Keep);
    }
}

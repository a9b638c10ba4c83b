//! Ports: made, changed, moved and removed.

use tracing::{error, info};
use vswitch::api::{
    CreatePort, Link, NetworkName, PatchPort, PortConfig, PortName, PortView, Refusal,
};

use super::plant::close_port;
use super::{Attachment, Manager, Port, no_network, no_port};
use crate::backend::Fate;

impl Manager {
    /// Makes a port in a network.
    pub(crate) fn create_port(
        &mut self,
        network: &NetworkName,
        request: CreatePort,
    ) -> Result<PortView, Refusal> {
        let config = request.check()?;
        self.add_port(network, config)
    }

    /// Makes a port as it is configured.
    pub(super) fn add_port(
        &mut self,
        network: &NetworkName,
        config: PortConfig,
    ) -> Result<PortView, Refusal> {
        let name = config.name.clone();
        self.check_port_name(network, &name)?;
        self.check_target(&config.backend.target())?;
        let home = self
            .networks
            .get_mut(network)
            .ok_or_else(|| no_network(network))?;
        let change = self.store.change()?;
        change.add_port(network, &config)?;
        let port = self.plant.open_port(home, config)?;
        if let Err(refused) = change.commit() {
            close_port(port, Fate::Delete);
            return Err(refused.into());
        }
        info!(%network, port = %name, "port created");
        let view = home.port_view(&port);
        home.ports.insert(name, port);
        Ok(view)
    }

    /// Removes a port.
    pub(crate) fn delete_port(
        &mut self,
        network: &NetworkName,
        name: &PortName,
    ) -> Result<(), Refusal> {
        let port = self.network(network)?.port(name)?;
        if port.config.backend.belongs_to_network() {
            return Err(Refusal::conflict(format!(
                "port '{name}' comes and goes with network '{network}'; delete the network"
            )));
        }
        if let Some((vm, adapter)) = port.config.backend.adapter() {
            return Err(Refusal::conflict(format!(
                "port '{name}' is adapter '{adapter}' of VM '{vm}'; disconnect or remove the adapter"
            )));
        }
        self.remove_port(network, name)
    }

    /// Removes a port, whatever is behind it.
    pub(super) fn remove_port(
        &mut self,
        network: &NetworkName,
        name: &PortName,
    ) -> Result<(), Refusal> {
        let change = self.store.change()?;
        change.delete_port(network, name)?;
        change.commit()?;
        let home = self
            .networks
            .get_mut(network)
            .ok_or_else(|| no_network(network))?;
        home.statics.retain(|_, port| port != name);
        if let Some(port) = home.ports.remove(name) {
            close_port(port, Fate::Delete);
        }
        info!(%network, port = %name, "port removed");
        Ok(())
    }

    /// Changes a port under traffic; it may move to another network.
    pub(crate) fn set_port(
        &mut self,
        network: &NetworkName,
        name: &PortName,
        patch: &PatchPort,
    ) -> Result<PortView, Refusal> {
        let old = self.network(network)?.port(name)?.config.clone();
        let new = patch.apply(network, &old)?;
        match &patch.network {
            Some(Some(target)) if target != network => {
                self.check_port_name(target, name)?;
                self.move_port(network, target, old, new)?;
                info!(%network, port = %name, to = %target, "port moved");
                self.port(target, name)
            }
            _ => {
                self.change_port(network, old, new)?;
                info!(%network, port = %name, "port changed");
                self.port(network, name)
            }
        }
    }

    fn change_port(
        &mut self,
        network: &NetworkName,
        old: PortConfig,
        new: PortConfig,
    ) -> Result<(), Refusal> {
        let change = self.store.change()?;
        change.set_port(network, &new)?;
        let home = self
            .networks
            .get_mut(network)
            .ok_or_else(|| no_network(network))?;
        let mut port = home
            .ports
            .remove(&new.name)
            .ok_or_else(|| no_port(network, &new.name))?;
        port.config = new;
        let settled = self.plant.settle(home, &mut port);
        let result = settled.and_then(|()| change.commit().map_err(Refusal::from));
        if result.is_err() {
            port.config = old;
            self.plant
                .settle(home, &mut port)
                .unwrap_or_else(|error| error!(%error, "a change was not taken back"));
        }
        home.ports.insert(port.config.name.clone(), port);
        result
    }

    /// Moves a port, and forgets its static entries: they were those of the network it leaves.
    fn move_port(
        &mut self,
        from: &NetworkName,
        to: &NetworkName,
        old: PortConfig,
        new: PortConfig,
    ) -> Result<(), Refusal> {
        let name = new.name.clone();
        let change = self.store.change()?;
        change.delete_port(from, &name)?;
        change.add_port(to, &new)?;
        let home = self
            .networks
            .get_mut(from)
            .ok_or_else(|| no_network(from))?;
        let mut port: Port = home
            .ports
            .remove(&name)
            .ok_or_else(|| no_port(from, &name))?;
        port.config = new;
        pull_plug(&mut port);
        let target = self.networks.get(to).ok_or_else(|| no_network(to));
        let settled = target.and_then(|target| self.plant.settle(target, &mut port));
        let result = settled.and_then(|()| change.commit().map_err(Refusal::from));
        if result.is_err() {
            port.config = old;
        }
        let place = if result.is_ok() { to } else { from };
        if let Some(place) = self.networks.get_mut(place) {
            // Settled already, unless the move was taken back.
            self.plant
                .settle(place, &mut port)
                .unwrap_or_else(|error| error!(%error, "a move was not taken back"));
            place.ports.insert(name.clone(), port);
        }
        if result.is_ok()
            && let Some(left) = self.networks.get_mut(from)
        {
            left.statics.retain(|_, port| *port != name);
        }
        result
    }

    pub(super) fn check_port_name(
        &self,
        network: &NetworkName,
        name: &PortName,
    ) -> Result<(), Refusal> {
        if self.network(network)?.ports.contains_key(name) {
            return Err(Refusal::conflict(format!(
                "there is a port '{name}' in network '{network}' already; names are unique in a network"
            )));
        }
        Ok(())
    }
}

/// Shows the other end of a port that it loses the network it was in; settling the port shows it the new one.
fn pull_plug(port: &mut Port) {
    if let Attachment::Open(backend) = &mut port.attachment
        && backend.set_link(Link::Down).is_ok()
    {
        port.link = Link::Down;
    }
}

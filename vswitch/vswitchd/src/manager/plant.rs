//! The switch and the host together: networks and ports brought into service, settled, and taken out of it.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{info, warn};
use vswitch::api::{Mtu, NetworkConfig, PortConfig, PortName, Refusal};
use vswitch::control::{NetworkSpec, Switch};
use vswitch::fdb::Key;
use vswitch::network::PortPolicy;

use super::flaps::Flaps;
use super::{Attachment, Network, Port, failed};
use crate::backend::{Fate, Host, Open};
use crate::store::{HostSide, StaticKey};
use crate::vm::Seats;

/// Where networks and ports are made.
pub(super) struct Plant {
    pub(super) switch: Switch,
    pub(super) host: Box<dyn Host>,
    pub(super) seats: Seats,
}

impl Plant {
    /// Makes a network without ports.
    pub(super) fn add_network(
        &self,
        config: NetworkConfig,
        host: HostSide,
    ) -> Result<Network, Refusal> {
        let id = self
            .switch
            .create_network(&NetworkSpec {
                ageing: Duration::from_secs(config.ageing.get().into()),
                ..NetworkSpec::default()
            })
            .map_err(|error| {
                failed(format_args!("cannot make network '{}'", config.name), error)
            })?;
        Ok(Network {
            id,
            config,
            host,
            ports: BTreeMap::new(),
            statics: BTreeMap::new(),
            flaps: Flaps::default(),
        })
    }

    /// Makes a network with `ports`, all of them open. On failure nothing is left of it.
    pub(super) fn build(
        &self,
        config: NetworkConfig,
        host: HostSide,
        ports: Vec<PortConfig>,
    ) -> Result<Network, Refusal> {
        let mut network = self.add_network(config, host)?;
        for config in ports {
            match self.open_port(&network, config) {
                Ok(port) => network.ports.insert(port.config.name.clone(), port),
                Err(error) => {
                    self.dismantle(network, Fate::Delete);
                    return Err(error);
                }
            };
        }
        Ok(network)
    }

    /// Takes a network out of service, with all its ports.
    pub(super) fn dismantle(&self, mut network: Network, fate: Fate) {
        for port in std::mem::take(&mut network.ports).into_values() {
            close_port(port, fate);
        }
        if let Err(error) = self.switch.delete_network(network.id) {
            warn!(network = %network.config.name, %error, "the switch did not delete the network");
        }
    }

    /// Makes a port with what is behind it. On failure nothing is left of it.
    pub(super) fn open_port(&self, network: &Network, config: PortConfig) -> Result<Port, Refusal> {
        let mut port = self.add_port(network, config)?;
        if let Err(error) = self.open(network, &mut port) {
            let what = format!(
                "cannot open port '{}' of network '{}'",
                port.config.name, network.config.name
            );
            close_port(port, Fate::Delete);
            return Err(failed(what, error));
        }
        Ok(port)
    }

    /// Makes a port with nothing behind it yet.
    pub(super) fn add_port(&self, network: &Network, config: PortConfig) -> Result<Port, Refusal> {
        let mtu = network.mtu_of(&config);
        let what = format!(
            "cannot make port '{}' of network '{}'",
            config.name, network.config.name
        );
        let handle = self
            .switch
            .add_port(policy(&config, mtu), None)
            .map_err(|error| failed(&what, error))?;
        let link = config.shown_link();
        let mut port = Port {
            config,
            handle,
            attachment: Attachment::Down("not opened yet".to_owned()),
            mtu,
            link,
        };
        match self.settle(network, &mut port) {
            Ok(()) => Ok(port),
            Err(error) => {
                close_port(port, Fate::Delete);
                Err(error)
            }
        }
    }

    /// Opens what is behind a port.
    pub(super) fn open(&self, network: &Network, port: &mut Port) -> anyhow::Result<()> {
        let what = Open {
            backend: &port.config.backend,
            mtu: network.mtu_of(&port.config),
            link: port.config.shown_link(),
            host_mac: network.host.mac,
            port: port.handle.clone(),
        };
        let opened = match port.config.backend.adapter() {
            Some((vm, adapter)) => Ok(self.seats.open(vm, adapter, &what)),
            None => self.host.open(&what),
        };
        match opened {
            Ok(backend) => {
                info!(network = %network.config.name, port = %port.config.name, "port opened");
                port.attachment = Attachment::Open(backend);
                Ok(())
            }
            Err(error) => {
                port.attachment = Attachment::Down(format!("{error:#}"));
                Err(error)
            }
        }
    }

    /// Makes the switch and the back end agree with the port's configuration. What agrees already is not touched, so
    /// this also takes a change back.
    pub(super) fn settle(&self, network: &Network, port: &mut Port) -> Result<(), Refusal> {
        let name = &port.config.name;
        let mtu = network.mtu_of(&port.config);
        if port.mtu != mtu {
            if let Attachment::Open(backend) = &mut port.attachment {
                backend.set_mtu(mtu).map_err(|error| {
                    failed(format_args!("cannot set MTU {mtu} of '{name}'"), error)
                })?;
            }
            port.mtu = mtu;
        }
        let link = port.config.shown_link();
        if port.link != link {
            if let Attachment::Open(backend) = &mut port.attachment {
                backend.set_link(link).map_err(|error| {
                    failed(format_args!("cannot set link {link} of '{name}'"), error)
                })?;
            }
            port.link = link;
        }
        let wanted = policy(&port.config, mtu);
        if port.handle.policy() != wanted {
            port.handle.set_policy(wanted);
        }
        let place = port.handle.place().map(|(id, _)| id);
        if port.config.connected && place != Some(network.id) {
            let what = format_args!(
                "cannot connect port '{name}' to network '{}'",
                network.config.name
            );
            port.handle
                .connect(network.id)
                .map_err(|error| failed(what, error))?;
            self.enter_statics(network, name, port);
        } else if !port.config.connected && place.is_some() {
            port.handle.disconnect();
        }
        Ok(())
    }

    /// Enters the static entries of a port that was just connected.
    fn enter_statics(&self, network: &Network, name: &PortName, port: &Port) {
        for (&key, _) in network.statics.iter().filter(|(_, at)| *at == name) {
            if !self.add_static(network, key, port) {
                warn!(network = %network.config.name, port = %name, mac = %key.0, "no room for a static entry");
            }
        }
    }

    /// Enters a static entry. False if the table has no room; a port that is not connected has no table.
    pub(super) fn add_static(&self, network: &Network, (mac, vid): StaticKey, port: &Port) -> bool {
        match (self.switch.fdb(network.id), port.handle.place()) {
            (Some(fdb), Some((_, index))) => {
                fdb.add_static(Key::new(mac.mac(), vid), index, self.switch.now())
            }
            _ => true,
        }
    }
}

/// Takes a port out of service.
pub(super) fn close_port(port: Port, fate: Fate) {
    port.handle.disconnect();
    if let Attachment::Open(backend) = port.attachment {
        backend.close(fate);
    }
    drop(port.handle.remove());
}

fn policy(config: &PortConfig, mtu: Mtu) -> PortPolicy {
    PortPolicy {
        vlan: config.vlan.mode().clone(),
        mac_guard: config.mac_guard.list().map(<[_]>::to_vec),
        mtu: mtu.get(),
        link_up: config.link == vswitch::api::Link::Up,
        mac_quota: config.effective_mac_quota().get(),
    }
}

//! The uplinks of external networks: looked at, changed under traffic, and released as the host had them.

use anyhow::ensure;
use tracing::{error, info};
use vswitch::api::{IfName, NetworkConfig, PortBackend, PortConfig, Refusal, UPLINK_PORT};

use super::plant::{Plant, close_port};
use super::{Manager, Network, Port, failed};
use crate::backend::{Fate, LooseUplink};
use crate::store::{Change, HostSide};

impl Manager {
    /// Looks at another uplink for a network without touching it.
    pub(super) fn plan_uplink(
        &self,
        network: &Network,
        uplink: &IfName,
    ) -> Result<LooseUplink, Refusal> {
        self.check_target(uplink.as_str())?;
        let host_nic = network.config.kind.host_nic();
        let looked = self.plant.look_at_uplink(uplink, host_nic);
        looked.map_err(|error| {
            Refusal::conflict(format!(
                "cannot change the uplink of network '{}': {error:#}",
                network.config.name
            ))
        })
    }

    /// Makes an uplink that no network has any more what it was before.
    pub(super) fn release(&mut self, loose: &LooseUplink) {
        let uplink = &loose.uplink;
        match self.plant.host.release(loose) {
            Ok(()) => self
                .store
                .forget_loose_uplink(uplink)
                .unwrap_or_else(|error| error!(%error, "a note stays behind")),
            Err(reason) => error!(%uplink, "the uplink is not what it was before: {reason:#}"),
        }
    }

    /// Releases what a vswitchd left that was killed in the middle of a change.
    pub(super) fn release_loose_uplinks(&mut self) -> Result<(), Refusal> {
        for loose in self.store.loose_uplinks()? {
            info!(uplink = %loose.uplink, "releasing the uplink of a change that was cut short");
            self.release(&loose);
        }
        Ok(())
    }
}

impl HostSide {
    /// What the uplink of a network is to be when the network has it no more; addresses are not part of it.
    pub(super) fn loose_uplink(&self, config: &NetworkConfig) -> Option<LooseUplink> {
        config.kind.uplink().map(|uplink| LooseUplink {
            uplink: uplink.clone(),
            mtu: self.uplink_mtu,
            settings: self.uplink_settings.clone(),
            moved: None,
        })
    }
}

impl Plant {
    /// What an interface is like that is to be an uplink; refuses one that can't be bound, or has addresses that no
    /// host NIC would take: nobody would reach them any more.
    pub(super) fn look_at_uplink(
        &self,
        uplink: &IfName,
        host_nic: Option<&IfName>,
    ) -> anyhow::Result<LooseUplink> {
        let mtu = self.host.check_uplink(uplink)?;
        let moved = match host_nic {
            Some(nic) => Some(self.host.begin_record(uplink, nic)?),
            None => {
                let addresses = self.host.addresses(uplink)?;
                ensure!(
                    addresses.is_empty(),
                    "'{uplink}' has addresses, {}, which need a host NIC to be reached; \
                     allowed: a network with a host NIC, which takes them, or an uplink without (ip addr del … dev {uplink})",
                    addresses.join(", ")
                );
                None
            }
        };
        Ok(LooseUplink {
            uplink: uplink.clone(),
            mtu: Some(mtu),
            settings: Some(self.host.settings(uplink)?),
            moved,
        })
    }

    /// Gives a network another uplink and commits the change: the old one carries the traffic until the new one is open.
    /// Answers the old one, closed and to be released. On failure the network has it still, and the new one is to be
    /// released.
    pub(super) fn change_uplink(
        &self,
        network: &mut Network,
        new: &LooseUplink,
        change: Change<'_>,
    ) -> Result<Option<LooseUplink>, Refusal> {
        let old = (network.config.clone(), network.host.clone());
        let spare = self.open_spare(network, &new.uplink)?;
        network.config.kind.set_uplink(new.uplink.clone());
        network.host.uplink_mtu = new.mtu;
        network.host.uplink_settings.clone_from(&new.settings);
        let replaced = match self.exchange(network, spare) {
            Ok(replaced) => replaced,
            Err(refusal) => {
                (network.config, network.host) = old;
                return Err(refusal);
            }
        };
        let loose = old.1.loose_uplink(&old.0);
        let result = self
            .take_over(network, new.moved.as_deref())
            .and_then(|moved| {
                let port = network.port(&replaced.config.name)?;
                change.set_uplink(
                    &network.config,
                    &network.host,
                    &port.config,
                    moved.as_deref(),
                )?;
                change.hold(&new.uplink)?;
                loose.iter().try_for_each(|loose| change.let_go(loose))?;
                Ok(change.commit()?)
            });
        match result {
            Ok(()) => {
                close_port(replaced, Fate::Delete);
                info!(network = %network.config.name, uplink = %new.uplink, "uplink changed");
                Ok(loose)
            }
            Err(refusal) => {
                (network.config, network.host) = old;
                match self.exchange(network, replaced) {
                    Ok(spare) => close_port(spare, Fate::Delete),
                    Err(error) => error!(%error, "a change was not taken back"),
                }
                Err(refusal)
            }
        }
    }

    /// A port for another uplink of a network, open, and connected to nothing yet.
    fn open_spare(&self, network: &Network, uplink: &IfName) -> Result<Port, Refusal> {
        let present = network.port(&UPLINK_PORT.parse()?)?;
        let config = PortConfig {
            backend: PortBackend::Uplink {
                interface: uplink.clone(),
            },
            connected: false,
            ..present.config.clone()
        };
        self.open_port(network, config)
    }

    /// Puts `new` in the place of the network's port of the same name, which is answered: it is open still, and connected
    /// to nothing. At no time are both connected, so that no frame goes from one LAN to the other. On failure `new` is
    /// closed, and the other in its place.
    fn exchange(&self, network: &mut Network, mut new: Port) -> Result<Port, Refusal> {
        let name = new.config.name.clone();
        let Some(mut old) = network.ports.remove(&name) else {
            return Err(super::no_port(&network.config.name, &name));
        };
        new.config.connected = old.config.connected;
        old.handle.disconnect();
        if let Err(refusal) = self.settle(network, &mut new) {
            self.settle(network, &mut old)
                .unwrap_or_else(|error| error!(%error, "a change was not taken back"));
            network.ports.insert(name, old);
            close_port(new, Fate::Delete);
            return Err(refusal);
        }
        network.ports.insert(name, new);
        Ok(old)
    }

    /// Moves the addresses of a network's uplink to its host NIC, where it has one, and quietens it; the record `before`
    /// with them in it. On failure they are where they were.
    pub(super) fn take_over(
        &self,
        network: &Network,
        before: Option<&str>,
    ) -> Result<Option<String>, Refusal> {
        let Some(uplink) = network.uplink() else {
            return Ok(None);
        };
        let Some(nic) = network.config.kind.host_nic() else {
            self.host.quieten(uplink);
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
    pub(super) fn return_addresses(
        &self,
        network: &Network,
        record: Option<&str>,
    ) -> anyhow::Result<()> {
        match (network.config.kind.host_nic(), network.uplink()) {
            (Some(nic), Some(uplink)) => self.host.return_addresses(nic, uplink, record),
            _ => Ok(()),
        }
    }
}

//! The one place where the configuration changes: plan, check all, apply, commit; on failure everything is undone.
//!
//! Calls block (sqlite, netlink, the workers' answers) and are made one at a time, off the threads that serve the API.

mod adapters;
mod export;
mod fdb;
mod flaps;
mod host_mac;
mod life;
mod networks;
mod plant;
mod ports;
mod uplinks;
mod views;
mod vm_life;
mod vm_views;
mod vms;

use std::collections::BTreeMap;
use std::sync::Arc;

use vswitch::api::{
    ErrorCode, IfName, Link, Mtu, NetworkConfig, NetworkName, PortConfig, PortName, Refusal, VmName,
};
use vswitch::control::{PortHandle, Switch};
use vswitch::network::NetworkId;

use crate::backend::{Backend, Host};
use crate::store::{HostSide, StaticKey, Store};
use crate::vm::Seats;
use flaps::Flaps;
use plant::Plant;
use views::Sampler;
use vms::Vm;

pub(crate) use vms::VmHost;

/// The control side of the switch and its state on disk.
pub(crate) struct Manager {
    plant: Plant,
    store: Store,
    networks: BTreeMap<NetworkName, Network>,
    vm_host: VmHost,
    vms: BTreeMap<VmName, Vm>,
    /// vswitchd ends: VMs that run now are to run again.
    stopping: bool,
    sampler: Sampler,
}

/// A network in service.
struct Network {
    id: NetworkId,
    config: NetworkConfig,
    host: HostSide,
    ports: BTreeMap<PortName, Port>,
    statics: BTreeMap<StaticKey, PortName>,
    flaps: Flaps,
}

/// A port in service.
struct Port {
    config: PortConfig,
    handle: Arc<PortHandle>,
    attachment: Attachment,
    /// The MTU that the back end was last told.
    mtu: Mtu,
    /// The link that it was last shown.
    link: Link,
}

/// What is behind a port.
enum Attachment {
    /// It is there.
    Open(Box<dyn Backend>),
    /// It cannot be opened, for this reason.
    Down(String),
}

impl Manager {
    /// A manager with nothing in service yet; [`Manager::restore`] brings the stored state back.
    pub(crate) fn new(
        switch: Switch,
        host: Box<dyn Host>,
        vm_host: VmHost,
        store: Store,
    ) -> Manager {
        Manager {
            plant: Plant {
                switch,
                host,
                seats: Seats::default(),
            },
            store,
            networks: BTreeMap::new(),
            vm_host,
            vms: BTreeMap::new(),
            stopping: false,
            sampler: Sampler::default(),
        }
    }

    fn network(&self, name: &NetworkName) -> Result<&Network, Refusal> {
        self.networks.get(name).ok_or_else(|| no_network(name))
    }

    /// Refuses an interface or socket that another port uses.
    fn check_target(&self, target: &str) -> Result<(), Refusal> {
        for (network, port) in self.all_ports() {
            if port.config.backend.target() == target {
                return Err(Refusal::conflict(format!(
                    "'{target}' is in use by port '{}' of network '{}'; allowed: one that no port uses",
                    port.config.name, network.config.name
                )));
            }
        }
        Ok(())
    }

    fn all_ports(&self) -> impl Iterator<Item = (&Network, &Port)> {
        self.networks
            .values()
            .flat_map(|network| network.ports.values().map(move |port| (network, port)))
    }
}

impl Network {
    fn port(&self, name: &PortName) -> Result<&Port, Refusal> {
        self.ports
            .get(name)
            .ok_or_else(|| no_port(&self.config.name, name))
    }

    fn uplink(&self) -> Option<&IfName> {
        self.config.kind.uplink()
    }

    fn mtu_of(&self, port: &PortConfig) -> Mtu {
        port.mtu.unwrap_or(self.config.mtu)
    }
}

fn no_network(name: &NetworkName) -> Refusal {
    Refusal::new(ErrorCode::NotFound, format!("there is no network '{name}'"))
}

fn no_port(network: &NetworkName, name: &PortName) -> Refusal {
    Refusal::new(
        ErrorCode::NotFound,
        format!("there is no port '{name}' in network '{network}'"),
    )
}

/// What the host or the switch did not let us do.
fn failed(what: impl std::fmt::Display, error: impl Into<anyhow::Error>) -> Refusal {
    Refusal::new(ErrorCode::Failed, format!("{what}: {:#}", error.into()))
}

//! What the API shows.

use std::collections::BTreeMap;

use vswitch::api::{
    HOST_PORT, NetworkList, NetworkName, NetworkView, PortList, PortName, PortState, PortStats,
    PortView, Refusal, StatsView, StatusView, WorkerView,
};
use vswitch::control::WorkerStatus;
use vswitch::drops::DropCounts;
use vswitch::port::PortControl;
use vswitch::worker::WorkerTotals;

use super::{Attachment, Manager, Network, Port};

/// The load of the workers between the last two samples.
#[derive(Default)]
pub(super) struct Sampler {
    last: BTreeMap<usize, WorkerTotals>,
    load: BTreeMap<usize, Load>,
}

#[derive(Clone, Copy, Default)]
struct Load {
    busy_permille: u64,
    cycles_per_frame: u64,
}

impl Sampler {
    /// Takes a sample; to be called about once a second.
    pub(super) fn sample(&mut self, workers: &[WorkerStatus]) {
        for worker in workers {
            let now = worker.totals;
            let last = self.last.insert(worker.core, now).unwrap_or_default();
            let busy = now.busy_cycles.saturating_sub(last.busy_cycles);
            let cycles = now.cycles.saturating_sub(last.cycles);
            let frames = now.frames.saturating_sub(last.frames);
            let load = Load {
                busy_permille: busy
                    .saturating_mul(1000)
                    .checked_div(cycles)
                    .unwrap_or(0)
                    .min(1000),
                cycles_per_frame: busy.checked_div(frames).unwrap_or(0),
            };
            self.load.insert(worker.core, load);
        }
    }
}

impl Manager {
    /// Everything at a glance.
    pub(crate) fn status(&self) -> StatusView {
        let worker = |status: WorkerStatus| {
            let load = self
                .sampler
                .load
                .get(&status.core)
                .copied()
                .unwrap_or_default();
            WorkerView {
                core: status.core,
                ports: status.totals.ports,
                busy_permille: load.busy_permille,
                parked: status.totals.parked,
                cycles_per_frame: load.cycles_per_frame,
            }
        };
        StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            workers: self
                .plant
                .switch
                .workers()
                .into_iter()
                .map(worker)
                .collect(),
            networks: self.networks().networks,
            ports: self
                .all_ports()
                .map(|(network, port)| network.port_view(port))
                .collect(),
            vms: self.vms_at_a_glance(),
        }
    }

    /// All networks.
    pub(crate) fn networks(&self) -> NetworkList {
        NetworkList {
            networks: self.networks.values().map(Network::view).collect(),
        }
    }

    /// One network.
    pub(crate) fn show_network(&self, name: &NetworkName) -> Result<NetworkView, Refusal> {
        Ok(self.network(name)?.view())
    }

    /// All ports, or those of one network.
    pub(crate) fn ports(&self, network: Option<&NetworkName>) -> Result<PortList, Refusal> {
        if let Some(name) = network {
            self.network(name)?;
        }
        let chosen = self
            .all_ports()
            .filter(|(home, _)| network.is_none_or(|name| home.config.name == *name));
        Ok(PortList {
            ports: chosen
                .map(|(network, port)| network.port_view(port))
                .collect(),
        })
    }

    /// One port.
    pub(crate) fn port(&self, network: &NetworkName, name: &PortName) -> Result<PortView, Refusal> {
        let network = self.network(network)?;
        Ok(network.port_view(network.port(name)?))
    }

    /// The counters of all ports, those of one network, or those of one port.
    pub(crate) fn stats(
        &self,
        network: Option<&NetworkName>,
        port: Option<&PortName>,
    ) -> Result<StatsView, Refusal> {
        match (network, port) {
            (Some(network), Some(port)) => {
                self.network(network)?.port(port)?;
            }
            (Some(network), None) => {
                self.network(network)?;
            }
            (None, Some(port)) => {
                return Err(Refusal::invalid(format!(
                    "port '{port}' given without its network"
                )));
            }
            (None, None) => {}
        }
        let chosen = self.all_ports().filter(|(home, candidate)| {
            network.is_none_or(|name| home.config.name == *name)
                && port.is_none_or(|name| candidate.config.name == *name)
        });
        Ok(StatsView {
            ports: chosen
                .map(|(network, port)| stats(&network.config.name, port))
                .collect(),
        })
    }
}

impl Network {
    /// The network as the API shows it.
    pub(super) fn view(&self) -> NetworkView {
        let host = self
            .ports
            .values()
            .find(|port| port.config.name.as_str() == HOST_PORT);
        NetworkView {
            name: self.config.name.clone(),
            kind: self.config.kind.network_type(),
            uplink: self.config.kind.uplink().cloned(),
            host_nic: self.config.kind.host_nic().cloned(),
            vlan: host.and_then(|host| host.config.vlan.access_vlan()),
            mtu: self.config.mtu,
            ageing: self.config.ageing,
            ports: self.ports.len(),
        }
    }

    /// A port of the network as the API shows it.
    pub(super) fn port_view(&self, port: &Port) -> PortView {
        let config = &port.config;
        let (state, detail) = match &port.attachment {
            Attachment::Down(reason) => (PortState::Down, Some(reason.clone())),
            Attachment::Open(backend) => match port.handle.fault() {
                Some(fault) => (PortState::Fault, Some(fault.to_string())),
                None => backend.status(),
            },
        };
        PortView {
            network: self.config.name.clone(),
            port: config.name.clone(),
            backend: config.backend.clone(),
            vlan: config.vlan.clone(),
            mac_guard: config.mac_guard.clone(),
            mac_quota: config.effective_mac_quota(),
            mtu: self.mtu_of(config),
            link: config.link,
            connected: config.connected,
            state,
            detail,
        }
    }
}

fn stats(network: &NetworkName, port: &Port) -> PortStats {
    let counters = port.handle.counters();
    PortStats {
        network: network.clone(),
        port: port.config.name.clone(),
        tx_frames: counters.tx.frames,
        tx_bytes: counters.tx.bytes,
        rx_frames: counters.rx.frames,
        rx_bytes: counters.rx.bytes,
        drops: by_name(&counters.tx.drops),
        rx_drops: by_name(&counters.rx.drops),
        taken_frames: counters.tx.frames,
        extra_copies: counters.tx.extra_copies,
        delivered_frames: counters.tx.delivered,
        consumed_frames: counters.tx.consumed,
        dropped_frames: counters.tx.dropped(),
        copied_bytes: counters.tx.copied_bytes,
        learn_refused: counters.tx.learn_refused,
        mac_moves: counters.tx.mac_moves,
    }
}

fn by_name(drops: &DropCounts) -> BTreeMap<String, u64> {
    drops
        .iter()
        .map(|(reason, count)| (reason.name().to_owned(), count))
        .collect()
}

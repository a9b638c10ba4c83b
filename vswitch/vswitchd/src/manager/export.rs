//! The configuration as one document.

use std::collections::BTreeMap;

use vswitch::api::{
    AdapterKind, AddFdbEntry, ConfigDocument, CreateAdapter, CreateNetwork, CreatePort, CreateVm,
    HOST_PORT, Mtu, NetworkKind, PortBackend, PortConfig, PortName, PortSettings, VlanId, VlanSpec,
    VmConfig,
};

use super::vms::Vm;
use super::{Manager, Network};
use crate::store::SavedAdapter;

impl Manager {
    /// Everything that an operator has configured.
    pub(crate) fn export(&self) -> ConfigDocument {
        let mut document = ConfigDocument {
            version: ConfigDocument::VERSION,
            networks: Vec::new(),
            ports: BTreeMap::new(),
            vms: self.vms.values().map(|vm| self.export_vm(vm)).collect(),
            settings: BTreeMap::new(),
            fdb: BTreeMap::new(),
        };
        for (name, network) in &self.networks {
            document.networks.push(export_network(network));
            let mut settings = BTreeMap::new();
            for (port, config) in network
                .ports
                .iter()
                .map(|(name, port)| (name, &port.config))
            {
                let made = made(config);
                if let Some(request) = export_port(config) {
                    document
                        .ports
                        .entry(name.clone())
                        .or_default()
                        .push(request);
                }
                if let Some(changed) = PortSettings::between(&made, config) {
                    settings.insert(port.clone(), changed);
                }
            }
            if !settings.is_empty() {
                document.settings.insert(name.clone(), settings);
            }
            if !network.statics.is_empty() {
                document.fdb.insert(name.clone(), export_stations(network));
            }
        }
        document
    }

    fn export_vm(&self, vm: &Vm) -> CreateVm {
        let VmConfig {
            name,
            memory,
            cpus,
            profile,
            boot,
            initrd,
            cmdline,
            boot_rom,
            hyperv,
            services,
            auto_start,
            auto_stop,
            notes,
        } = vm.config.clone();
        let adapters = |kind| {
            let chosen = vm.adapters.values().filter(|one| one.name.kind() == kind);
            chosen.map(|one| self.export_adapter(vm, one)).collect()
        };
        CreateVm {
            name,
            memory: Some(memory),
            cpus: Some(cpus),
            profile: Some(profile),
            boot: Some(boot),
            initrd,
            cmdline: Some(cmdline).filter(|cmdline| !cmdline.is_empty()),
            boot_rom,
            legacy: adapters(AdapterKind::Legacy),
            synthetic: adapters(AdapterKind::Synthetic),
            hyperv: Some(hyperv),
            services: hyperv.then_some(services),
            auto_start: Some(auto_start),
            auto_stop: Some(auto_stop),
            notes: Some(notes).filter(|notes| !notes.is_empty()),
        }
    }

    fn export_adapter(&self, vm: &Vm, adapter: &SavedAdapter) -> CreateAdapter {
        let home = self.port_of(&vm.config.name, adapter.name);
        let vlan = match &home {
            Some((_, port)) => port.config.vlan.access_vlan(),
            None => adapter.vlan,
        };
        CreateAdapter {
            kind: None,
            name: Some(adapter.name),
            network: home.map(|(network, _)| network.config.name.clone()),
            mac: adapter.static_mac.then_some(adapter.mac),
            vlan,
        }
    }
}

fn export_network(network: &Network) -> CreateNetwork {
    let config = &network.config;
    let host = network
        .ports
        .iter()
        .find(|(name, _)| name.as_str() == HOST_PORT);
    CreateNetwork {
        name: config.name.clone(),
        kind: config.kind.network_type(),
        uplink: config.kind.uplink().cloned(),
        host_nic: config.kind.host_nic().cloned(),
        no_host_nic: matches!(config.kind, NetworkKind::External { host_nic: None, .. }),
        vlan: host.and_then(|(_, port)| port.config.vlan.access_vlan()),
        mtu: Some(config.mtu),
        ageing: Some(config.ageing),
    }
}

/// The request that makes a port; `None` for one that comes with something else.
fn export_port(config: &PortConfig) -> Option<CreatePort> {
    let mut request = CreatePort {
        name: config.name.clone(),
        vhost_user: None,
        tap: None,
        mode: None,
        queues: None,
        vlan: Some(config.vlan.clone()),
        mac_guard: Some(config.mac_guard.clone()),
        mac_quota: config.mac_quota,
        mtu: config.mtu,
        link: Some(config.link),
    };
    match &config.backend {
        PortBackend::Tap { interface } => request.tap = Some(interface.clone()),
        PortBackend::VhostUser { path, mode, queues } => {
            request.vhost_user = Some(path.clone());
            (request.mode, request.queues) = (Some(*mode), Some(*queues));
        }
        _ => return None,
    }
    Some(request)
}

/// A port as the document makes it before its settings are applied.
fn made(config: &PortConfig) -> PortConfig {
    let backend = &config.backend;
    if !backend.belongs_to_network() && backend.adapter().is_none() {
        return PortConfig {
            connected: true,
            ..config.clone()
        };
    }
    let vlan = match (&config.backend, config.vlan.access_vlan()) {
        (PortBackend::Uplink { .. }, _) => VlanSpec::all(),
        (_, vlan) => vlan.map_or_else(VlanSpec::default, VlanSpec::access),
    };
    PortConfig {
        vlan,
        mtu: matches!(config.backend, PortBackend::Legacy { .. }).then_some(Mtu::DEFAULT),
        ..PortConfig::new(config.name.clone(), config.backend.clone())
    }
}

fn export_stations(network: &Network) -> Vec<AddFdbEntry> {
    let entry = |((mac, vid), port): (&(_, u16), &PortName)| AddFdbEntry {
        mac: *mac,
        port: port.clone(),
        vlan: VlanId::try_from(i64::from(*vid)).ok(),
    };
    network.statics.iter().map(entry).collect()
}

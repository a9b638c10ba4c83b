//! Adapters of VMs: made, changed, moved and removed. What an adapter is to its network is a port, `VM.legacy0`.

use std::sync::Arc;

use tracing::{info, warn};
use vswitch::api::{
    AdapterKind, AdapterName, CreateAdapter, ErrorCode, Mtu, NetworkName, PatchAdapter, PatchPort,
    PortBackend, PortConfig, Refusal, StationMac, VlanSpec, VmName, no_hyperv,
};
use vswitch::mac::Mac;

use super::vms::no_vm;
use super::{Manager, Network, Port};
use crate::mac_pool::MacPool;
use crate::store::{Change, SavedAdapter};
use crate::vm::{Live, Place};

impl Manager {
    /// Gives a VM another adapter; answers its name and, if the VM runs, the process into which it is to be plugged.
    pub(crate) fn add_adapter(
        &mut self,
        vm: &VmName,
        request: &CreateAdapter,
    ) -> Result<(AdapterName, Option<(Arc<Live>, Place)>), Refusal> {
        self.settle_vms();
        let home = self.vm(vm)?;
        let taken: Vec<AdapterName> = home.adapters.keys().copied().collect();
        let name = request.choose_name(vm, &taken)?;
        if name.kind() == AdapterKind::Synthetic && !home.config.hyperv {
            return Err(no_hyperv(vm, "a synthetic adapter"));
        }
        let live = home.pluggable(name.kind(), "cannot add a")?;
        self.add_adapter_named(vm, name, request)?;
        let place = self.place_of(self.vm(vm)?, self.adapter(vm, name)?).1;
        Ok((name, live.map(|live| (live, place))))
    }

    pub(super) fn add_adapter_named(
        &mut self,
        vm: &VmName,
        name: AdapterName,
        request: &CreateAdapter,
    ) -> Result<(), Refusal> {
        let pool = self.mac_pool()?;
        let change = self.store.change()?;
        let mac = match request.mac {
            Some(mac) => mac,
            None => next_mac(&change, pool)?,
        };
        let adapter = SavedAdapter {
            name,
            mac,
            static_mac: request.mac.is_some(),
            vlan: request.vlan,
        };
        change.set_adapter(vm, &adapter)?;
        change.commit()?;
        let home = self.vms.get_mut(vm).ok_or_else(|| no_vm(vm))?;
        home.adapters.insert(name, adapter.clone());
        if let Some(network) = &request.network
            && let Err(refusal) = self.connect_first(vm, &adapter, network)
        {
            self.drop_adapter(vm, name)?;
            return Err(refusal);
        }
        info!(%vm, adapter = %name, %mac, "adapter added");
        self.warn_of_twins(vm, name);
        Ok(())
    }

    /// Takes an adapter from a VM that is off. If the VM runs, answers the process from which it has to be unplugged
    /// before it is [dropped](Self::drop_adapter).
    pub(crate) fn remove_adapter(
        &mut self,
        vm: &VmName,
        name: AdapterName,
    ) -> Result<Option<Arc<Live>>, Refusal> {
        self.settle_vms();
        self.adapter(vm, name)?;
        let live = self.vm(vm)?.pluggable(name.kind(), "cannot remove a")?;
        if live.is_none() {
            self.drop_adapter(vm, name)?;
        }
        Ok(live)
    }

    /// Forgets an adapter, with its port.
    pub(crate) fn drop_adapter(&mut self, vm: &VmName, name: AdapterName) -> Result<(), Refusal> {
        if let Some((network, port)) = self.port_of(vm, name) {
            let (network, port) = (network.config.name.clone(), port.config.name.clone());
            self.remove_port(&network, &port)?;
        }
        let change = self.store.change()?;
        change.delete_adapter(vm, name)?;
        change.commit()?;
        if let Some(home) = self.vms.get_mut(vm) {
            home.adapters.remove(&name);
        }
        self.plant.seats.remove(vm, name);
        info!(%vm, adapter = %name, "adapter removed");
        Ok(())
    }

    /// Changes an adapter; connects, disconnects or moves it under a running VM.
    pub(crate) fn set_adapter(
        &mut self,
        vm: &VmName,
        name: AdapterName,
        patch: &PatchAdapter,
    ) -> Result<(), Refusal> {
        patch.check(vm, name)?;
        self.settle_vms();
        let old = self.adapter(vm, name)?.clone();
        let mut new = old.clone();
        if let Some(mac) = patch.mac {
            self.vm(vm)?
                .must_be_off("cannot change an adapter's address")?;
            new.static_mac = mac.is_some();
            new.mac = mac.unwrap_or(old.mac);
        }
        new.vlan = patch.vlan.unwrap_or(old.vlan);
        let pool = self.mac_pool()?;
        let change = self.store.change()?;
        if patch.mac == Some(None) {
            new.mac = next_mac(&change, pool)?;
        }
        change.set_adapter(vm, &new)?;
        change.commit()?;
        if let Err(refusal) = self.set_port_of(vm, &new, patch) {
            let change = self.store.change()?;
            change.set_adapter(vm, &old)?;
            change.commit()?;
            return Err(refusal);
        }
        if let Some(home) = self.vms.get_mut(vm) {
            home.adapters.insert(name, new);
        }
        info!(%vm, adapter = %name, "adapter changed");
        self.warn_of_twins(vm, name);
        Ok(())
    }

    fn set_port_of(
        &mut self,
        vm: &VmName,
        adapter: &SavedAdapter,
        patch: &PatchAdapter,
    ) -> Result<(), Refusal> {
        let Some((network, port)) = self.port_of(vm, adapter.name) else {
            return match &patch.network {
                Some(Some(network)) => self.connect_first(vm, adapter, &network.clone()),
                _ => Ok(()),
            };
        };
        if patch.network.is_none() && patch.vlan.is_none() {
            return Ok(());
        }
        let (network, port) = (network.config.name.clone(), port.config.name.clone());
        let change = PatchPort {
            vlan: patch
                .vlan
                .map(|vlan| vlan.map_or_else(VlanSpec::default, VlanSpec::access)),
            network: patch.network.clone(),
            ..PatchPort::default()
        };
        self.set_port(&network, &port, &change).map(drop)
    }

    /// Makes the port of an adapter that was never in a network.
    fn connect_first(
        &mut self,
        vm: &VmName,
        adapter: &SavedAdapter,
        network: &NetworkName,
    ) -> Result<(), Refusal> {
        let backend = PortBackend::of_adapter(vm.clone(), adapter.name);
        // What a legacy adapter can take; the driver of a synthetic one takes what its network has.
        let mtu = (adapter.name.kind() == AdapterKind::Legacy).then_some(Mtu::DEFAULT);
        let config = PortConfig {
            vlan: adapter
                .vlan
                .map_or_else(VlanSpec::default, VlanSpec::access),
            mtu,
            ..PortConfig::new(vm.port(adapter.name)?, backend)
        };
        self.add_port(network, config).map(drop)
    }

    pub(super) fn adapter(&self, vm: &VmName, name: AdapterName) -> Result<&SavedAdapter, Refusal> {
        self.vm(vm)?.adapters.get(&name).ok_or_else(|| {
            Refusal::new(
                ErrorCode::NotFound,
                format!("there is no adapter '{name}' in VM '{vm}'"),
            )
        })
    }

    /// The port of an adapter, and the network it is in.
    pub(super) fn port_of(&self, vm: &VmName, name: AdapterName) -> Option<(&Network, &Port)> {
        self.all_ports()
            .find(|(_, port)| port.config.backend.adapter() == Some((vm, name)))
    }

    /// The other adapters of its network that have the address of an adapter.
    pub(super) fn twins(&self, vm: &VmName, name: AdapterName) -> Vec<String> {
        let place = |vm, name| {
            let (network, port) = self.port_of(vm, name)?;
            let connected = port.config.connected;
            connected.then(|| (network.id, port.config.vlan.access_vlan()))
        };
        let (Some(here), Ok(own)) = (place(vm, name), self.adapter(vm, name)) else {
            return Vec::new();
        };
        let all = self
            .vms
            .iter()
            .flat_map(|(vm, home)| home.adapters.values().map(move |other| (vm, other)));
        all.filter(|(other_vm, other)| {
            (*other_vm, other.name) != (vm, name)
                && other.mac == own.mac
                && place(other_vm, other.name) == Some(here)
        })
        .map(|(other_vm, other)| format!("{other_vm}.{}", other.name))
        .collect()
    }

    fn warn_of_twins(&self, vm: &VmName, name: AdapterName) {
        for twin in self.twins(vm, name) {
            warn!(%vm, adapter = %name, "its address is also that of {twin}, in the same network");
        }
    }

    /// The pool of addresses: the configured one, or one that was chosen once.
    fn mac_pool(&mut self) -> Result<MacPool, Refusal> {
        match self.vm_host.macs {
            Some(pool) => Ok(pool),
            None => {
                let new = MacPool::by_chance().to_string();
                Ok(self.store.choose("mac_pool", &new)?.parse()?)
            }
        }
    }
}

/// The next address of the pool, which was never given before and is nobody's static one.
fn next_mac(change: &Change<'_>, pool: MacPool) -> Result<StationMac, Refusal> {
    loop {
        let next = change.next_mac(pool.first(), pool.last())?;
        let next = next.ok_or_else(|| {
            Refusal::conflict(format!(
                "all addresses of the pool {pool} have been given out, and none is given twice; allowed: a static \
                 address (mac=), or a larger pool (setting mac_pool of vswitchd)"
            ))
        })?;
        change.give_mac(next)?;
        let mac = StationMac::from(Mac::from_u64(next));
        if !change.has_mac(mac)? {
            return Ok(mac);
        }
    }
}

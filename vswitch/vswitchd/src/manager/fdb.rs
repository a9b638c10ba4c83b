//! The MAC table of a network: shown, and entries set and forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::error;
use vswitch::api::{
    AddFdbEntry, ErrorCode, FdbEntryView, FdbView, NetworkName, PortName, Refusal, StationMac,
    VlanId,
};
use vswitch::fdb::{Fdb, Key};

use super::{Manager, Network, no_network};

impl Manager {
    /// The MAC table of a network, by address and VLAN.
    pub(crate) fn fdb(&self, network: &NetworkName) -> Result<FdbView, Refusal> {
        let network = self.network(network)?;
        let names: BTreeMap<u16, &PortName> = network
            .ports
            .values()
            .filter_map(|port| Some((port.handle.place()?.1, &port.config.name)))
            .collect();
        let mut found = self.table(network)?.entries(self.plant.switch.now());
        found.sort_unstable_by_key(|entry| (entry.mac, entry.vid));
        let view = |entry: vswitch::fdb::Entry| {
            Some(FdbEntryView {
                mac: entry.mac.into(),
                vlan: VlanId::try_from(i64::from(entry.vid)).ok(),
                // An entry whose port left while the table was read has no name any more.
                port: (*names.get(&entry.port)?).clone(),
                is_static: entry.fixed,
                age_seconds: (!entry.fixed).then_some(entry.age.into()),
            })
        };
        Ok(FdbView {
            entries: found.into_iter().filter_map(view).collect(),
        })
    }

    /// Pins an address to a port.
    pub(crate) fn add_fdb_entry(
        &mut self,
        name: &NetworkName,
        entry: &AddFdbEntry,
    ) -> Result<FdbEntryView, Refusal> {
        let network = self
            .networks
            .get_mut(name)
            .ok_or_else(|| no_network(name))?;
        let port = network.port(&entry.port)?;
        entry.check(name, &port.config)?;
        let vid = entry.vlan.map_or(0, VlanId::get);
        let key = (entry.mac, vid);
        let change = self.store.change()?;
        change.add_static(name, key, &entry.port)?;
        if !self.plant.add_static(network, key, port) {
            return Err(Refusal::conflict(format!(
                "the MAC table of network '{name}' has no room for a static entry"
            )));
        }
        if let Err(refused) = change.commit() {
            if let Some(fdb) = self.plant.switch.fdb(network.id) {
                fdb.remove(Key::new(entry.mac.mac(), vid));
            }
            let before = network
                .statics
                .get(&key)
                .and_then(|port| network.ports.get(port));
            if before.is_some_and(|before| !self.plant.add_static(network, key, before)) {
                error!(network = %name, mac = %entry.mac, "a static entry was not taken back");
            }
            return Err(refused.into());
        }
        network.statics.insert(key, entry.port.clone());
        Ok(FdbEntryView {
            mac: entry.mac,
            vlan: entry.vlan,
            port: entry.port.clone(),
            is_static: true,
            age_seconds: None,
        })
    }

    /// Forgets an address, static or learned.
    pub(crate) fn delete_fdb_entry(
        &mut self,
        name: &NetworkName,
        mac: StationMac,
        vlan: Option<VlanId>,
    ) -> Result<(), Refusal> {
        let vid = vlan.map_or(0, VlanId::get);
        let fdb = self.table(self.network(name)?)?;
        let change = self.store.change()?;
        change.delete_static(name, (mac, vid))?;
        change.commit()?;
        let network = self
            .networks
            .get_mut(name)
            .ok_or_else(|| no_network(name))?;
        let was_static = network.statics.remove(&(mac, vid)).is_some();
        if !fdb.remove(Key::new(mac.mac(), vid)) && !was_static {
            let vlan = vlan.map_or("no VLAN".to_owned(), |vlan| format!("VLAN {vlan}"));
            return Err(Refusal::new(
                ErrorCode::NotFound,
                format!("there is no entry for {mac} in {vlan} in network '{name}'"),
            ));
        }
        Ok(())
    }

    /// Forgets all learned entries of a network, or those of one port. Static ones stay.
    pub(crate) fn flush_fdb(
        &self,
        name: &NetworkName,
        port: Option<&PortName>,
    ) -> Result<(), Refusal> {
        let network = self.network(name)?;
        let fdb = self.table(network)?;
        match port {
            None => fdb.flush(),
            // A port that is not connected has no entries.
            Some(port) => {
                if let Some((_, index)) = network.port(port)?.handle.place() {
                    fdb.flush_port(index);
                }
            }
        }
        Ok(())
    }

    fn table(&self, network: &Network) -> Result<Arc<Fdb>, Refusal> {
        self.plant
            .switch
            .fdb(network.id)
            .ok_or_else(|| no_network(&network.config.name))
    }
}

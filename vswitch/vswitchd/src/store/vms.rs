//! VMs and their adapters on disk, and the addresses given out.

use rusqlite::{OptionalExtension, Row, params};
use vswitch::api::{AdapterName, StationMac, VlanId, VmConfig, VmName};

use super::{Change, Store, StoreError, parsed, wrong};

/// How a VM stands, as far as it outlives vswitchd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoredState {
    /// It has no process and no saved state.
    Off,
    /// It has a process.
    Running {
        /// Its number.
        pid: i32,
        /// When it was started, in the words of proc(5).
        started: i64,
    },
    /// Its state is in a file.
    Saved,
}

/// A VM as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct SavedVm {
    /// Its settings.
    pub(crate) config: VmConfig,
    /// Identifies it to its guest.
    pub(crate) uuid: [u8; 16],
    /// How it stands.
    pub(crate) state: StoredState,
    /// Whether it ran when vswitchd ended.
    pub(crate) resume: bool,
    /// Its adapters, by name.
    pub(crate) adapters: Vec<SavedAdapter>,
}

/// An adapter as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SavedAdapter {
    /// Its name.
    pub(crate) name: AdapterName,
    /// Its address.
    pub(crate) mac: StationMac,
    /// Whether an operator gave it.
    pub(crate) static_mac: bool,
    /// Its VLAN, until it has a port.
    pub(crate) vlan: Option<VlanId>,
}

impl Store {
    /// All VMs, by name.
    pub(crate) fn load_vms(&self) -> Result<Vec<SavedVm>, StoreError> {
        let mut query = self
            .connection
            .prepare("SELECT config, uuid, state, pid, started, resume FROM vm ORDER BY name")?;
        let mut vms = query
            .query_map([], read_vm)?
            .collect::<Result<Vec<_>, _>>()?;
        for vm in &mut vms {
            let mut query = self.connection.prepare(
                "SELECT name, mac, static_mac, vlan FROM adapter WHERE vm = ? ORDER BY name",
            )?;
            let rows = query.query_map([vm.config.name.as_str()], read_adapter)?;
            vm.adapters = rows.collect::<Result<_, _>>()?;
        }
        Ok(vms)
    }

    /// What was chosen under `name`; the first time it is `new`.
    pub(crate) fn choose(&mut self, name: &str, new: &str) -> Result<String, StoreError> {
        self.connection.execute(
            "INSERT OR IGNORE INTO chosen (name, value) VALUES (?, ?)",
            [name, new],
        )?;
        let query = "SELECT value FROM chosen WHERE name = ?";
        Ok(self.connection.query_row(query, [name], |row| row.get(0))?)
    }
}

impl Change<'_> {
    /// Adds a VM without adapters, which is off.
    pub(crate) fn add_vm(&self, config: &VmConfig, uuid: [u8; 16]) -> Result<(), StoreError> {
        self.0.execute(
            "INSERT INTO vm (name, config, uuid, state, resume) VALUES (?, ?, ?, 'off', 0)",
            params![config.name.as_str(), json(config)?, uuid],
        )?;
        Ok(())
    }

    /// Changes the settings of a VM.
    pub(crate) fn set_vm(&self, config: &VmConfig) -> Result<(), StoreError> {
        self.0.execute(
            "UPDATE vm SET config = ? WHERE name = ?",
            params![json(config)?, config.name.as_str()],
        )?;
        Ok(())
    }

    /// Notes how a VM stands.
    pub(crate) fn set_vm_state(
        &self,
        name: &VmName,
        state: StoredState,
        resume: bool,
    ) -> Result<(), StoreError> {
        let (text, pid, started) = match state {
            StoredState::Off => ("off", None, None),
            StoredState::Running { pid, started } => ("running", Some(pid), Some(started)),
            StoredState::Saved => ("saved", None, None),
        };
        self.0.execute(
            "UPDATE vm SET state = ?, pid = ?, started = ?, resume = ? WHERE name = ?",
            params![text, pid, started, resume, name.as_str()],
        )?;
        Ok(())
    }

    /// Deletes a VM with its adapters.
    pub(crate) fn delete_vm(&self, name: &VmName) -> Result<(), StoreError> {
        self.0
            .execute("DELETE FROM vm WHERE name = ?", [name.as_str()])?;
        Ok(())
    }

    /// Adds an adapter, or changes it.
    pub(crate) fn set_adapter(
        &self,
        vm: &VmName,
        adapter: &SavedAdapter,
    ) -> Result<(), StoreError> {
        self.0.execute(
            "INSERT OR REPLACE INTO adapter (vm, name, mac, static_mac, vlan) VALUES (?, ?, ?, ?, ?)",
            params![
                vm.as_str(),
                adapter.name.to_string(),
                adapter.mac.to_string(),
                adapter.static_mac,
                adapter.vlan.map(VlanId::get),
            ],
        )?;
        Ok(())
    }

    /// Deletes an adapter.
    pub(crate) fn delete_adapter(
        &self,
        vm: &VmName,
        adapter: AdapterName,
    ) -> Result<(), StoreError> {
        self.0.execute(
            "DELETE FROM adapter WHERE vm = ? AND name = ?",
            params![vm.as_str(), adapter.to_string()],
        )?;
        Ok(())
    }

    /// An address of `first` to `last` that was never given: the one after all that were, else the lowest, as of a range
    /// that was widened downwards; `None` if all were given.
    pub(crate) fn next_mac(&self, first: u64, last: u64) -> Result<Option<u64>, StoreError> {
        let query = "SELECT max(mac) FROM mac_given WHERE mac BETWEEN ? AND ?";
        let given: Option<i64> =
            self.0
                .query_row(query, params![first as i64, last as i64], |row| row.get(0))?;
        let next = given.map_or(first, |mac| mac as u64 + 1);
        if next <= last {
            return Ok(Some(next));
        }
        let query = "SELECT min(mac) FROM (SELECT ?1 AS mac UNION ALL \
                     SELECT mac + 1 FROM mac_given WHERE mac BETWEEN ?1 AND ?2 - 1) AS free \
                     WHERE NOT EXISTS (SELECT 1 FROM mac_given WHERE mac_given.mac = free.mac)";
        let lowest: Option<i64> =
            self.0
                .query_row(query, params![first as i64, last as i64], |row| row.get(0))?;
        Ok(lowest.map(|mac| mac as u64))
    }

    /// Notes that an address has been given, or shall never be.
    pub(crate) fn give_mac(&self, mac: u64) -> Result<(), StoreError> {
        self.0.execute(
            "INSERT OR IGNORE INTO mac_given (mac) VALUES (?)",
            [mac as i64],
        )?;
        Ok(())
    }

    /// Whether an adapter has this address.
    pub(crate) fn has_mac(&self, mac: StationMac) -> Result<bool, StoreError> {
        let query = "SELECT 1 FROM adapter WHERE mac = ?";
        let row = self
            .0
            .query_row(query, [mac.to_string()], |row| row.get::<_, i64>(0));
        Ok(row.optional()?.is_some())
    }
}

fn json(config: &VmConfig) -> Result<String, rusqlite::Error> {
    serde_json::to_string(config)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn read_vm(row: &Row<'_>) -> rusqlite::Result<SavedVm> {
    let config =
        serde_json::from_str(row.get_ref(0)?.as_str()?).map_err(|error| wrong(0, error))?;
    let state = match row.get_ref(2)?.as_str()? {
        "off" => StoredState::Off,
        "saved" => StoredState::Saved,
        _ => StoredState::Running {
            pid: row.get(3)?,
            started: row.get(4)?,
        },
    };
    Ok(SavedVm {
        config,
        uuid: row.get(1)?,
        state,
        resume: row.get(5)?,
        adapters: Vec::new(),
    })
}

fn read_adapter(row: &Row<'_>) -> rusqlite::Result<SavedAdapter> {
    let vlan: Option<i64> = row.get(3)?;
    Ok(SavedAdapter {
        name: parsed(row, 0)?,
        mac: parsed(row, 1)?,
        static_mac: row.get(2)?,
        vlan: vlan
            .map(|vlan| VlanId::try_from(vlan).map_err(|error| wrong(3, error)))
            .transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::Store;
    use super::*;

    fn store(dir: &tempfile::TempDir) -> Store {
        Store::open(&dir.path().join("state.db")).unwrap()
    }

    fn take(change: &Change<'_>, first: u64, last: u64) -> Option<u64> {
        let mac = change.next_mac(first, last).unwrap()?;
        change.give_mac(mac).unwrap();
        Some(mac)
    }

    #[test]
    fn ten_thousand_adapters_have_addresses_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store(&dir);
        let (first, last) = (0x5200_0000_0000, 0x5200_0000_ffff);
        let mut seen = BTreeSet::new();
        for _ in 0..10 {
            let change = store.change().unwrap();
            for _ in 0..1000 {
                assert!(seen.insert(take(&change, first, last).unwrap()));
            }
            change.commit().unwrap();
        }
        assert!(seen.iter().all(|mac| (first..=last).contains(mac)));
    }

    #[test]
    fn every_address_of_a_range_is_given_once_however_the_range_is_moved() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store(&dir);
        let change = store.change().unwrap();
        let mut seen = BTreeSet::new();
        // Ranges within 64 addresses, by a linear congruential generator, each used for a while.
        let mut random = 1_u64;
        for _ in 0..200 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let (a, b) = ((random >> 33) % 64 + 1, (random >> 48) % 64 + 1);
            let (first, last) = (a.min(b), a.max(b));
            for _ in 0..(random >> 60) {
                let before = (first..=last).filter(|mac| !seen.contains(mac)).count();
                match take(&change, first, last) {
                    Some(mac) => {
                        assert!((first..=last).contains(&mac) && seen.insert(mac), "{mac}");
                    }
                    None => assert_eq!(before, 0, "{first} to {last}"),
                }
            }
        }
        assert!(seen.len() > 32, "{}", seen.len());
    }
}

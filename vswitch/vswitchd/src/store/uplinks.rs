//! Uplinks: those to be released, and the change from one to another.

use rusqlite::params;
use vswitch::api::{IfName, NetworkConfig, NetworkName, PortConfig};

use super::{Change, HostSide, Store, StoreError, backend_text, parsed};
use crate::backend::LooseUplink;

impl Store {
    /// The uplinks to be released.
    pub(crate) fn loose_uplinks(&self) -> Result<Vec<LooseUplink>, StoreError> {
        let query = "SELECT uplink, mtu, settings, moved FROM loose_uplink";
        let mut query = self.connection.prepare(query)?;
        let rows = query.query_map([], |row| {
            Ok(LooseUplink {
                uplink: parsed(row, 0)?,
                mtu: row.get(1)?,
                settings: row.get(2)?,
                moved: row.get(3)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Notes an uplink that is about to be bound.
    pub(crate) fn note_loose_uplink(&mut self, uplink: &LooseUplink) -> Result<(), StoreError> {
        let change = self.change()?;
        change.let_go(uplink)?;
        change.commit()
    }

    /// The uplink has been released.
    pub(crate) fn forget_loose_uplink(&mut self, uplink: &IfName) -> Result<(), StoreError> {
        let change = self.change()?;
        change.hold(uplink)?;
        change.commit()
    }
}

impl Change<'_> {
    /// The uplink belongs to a network and is not to be released.
    pub(crate) fn hold(&self, uplink: &IfName) -> Result<(), StoreError> {
        let statement = "DELETE FROM loose_uplink WHERE uplink = ?";
        self.0.execute(statement, [uplink.as_str()])?;
        Ok(())
    }

    /// The uplink belongs to no network and is to be released.
    pub(crate) fn let_go(&self, loose: &LooseUplink) -> Result<(), StoreError> {
        self.0.execute(
            "INSERT OR REPLACE INTO loose_uplink (uplink, mtu, settings, moved) VALUES (?, ?, ?, ?)",
            params![loose.uplink.as_str(), loose.mtu, loose.settings, loose.moved],
        )?;
        Ok(())
    }

    /// Keeps the settings that a network's uplink had before it was bound.
    pub(crate) fn set_uplink_settings(
        &self,
        name: &NetworkName,
        settings: &str,
    ) -> Result<(), StoreError> {
        self.0.execute(
            "UPDATE network SET uplink_settings = ? WHERE name = ?",
            [settings, name.as_str()],
        )?;
        Ok(())
    }

    /// Gives a network another uplink; `port` is that of it, and `moved` the record of what its host NIC got.
    pub(crate) fn set_uplink(
        &self,
        network: &NetworkConfig,
        host: &HostSide,
        port: &PortConfig,
        moved: Option<&str>,
    ) -> Result<(), StoreError> {
        let uplink = network.kind.uplink().map(IfName::as_str);
        self.0.execute(
            "UPDATE network SET uplink = ?, uplink_mtu = ?, uplink_settings = ? WHERE name = ?",
            params![
                uplink,
                host.uplink_mtu,
                host.uplink_settings,
                network.name.as_str()
            ],
        )?;
        self.0.execute(
            "UPDATE port SET backend = ?, target = ? WHERE network = ? AND name = ?",
            params![
                backend_text(port)?,
                port.backend.target().as_ref(),
                network.name.as_str(),
                port.name.as_str(),
            ],
        )?;
        self.0.execute(
            "UPDATE host_change SET uplink = ?, moved = ? WHERE host_nic = ?",
            params![uplink, moved, network.kind.host_nic().map(IfName::as_str)],
        )?;
        Ok(())
    }
}

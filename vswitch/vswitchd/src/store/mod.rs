//! The state on disk: networks, ports, static entries, VMs, and what was changed on the host.

mod uplinks;
mod vms;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use vswitch::api::{
    ErrorCode, IfName, MacQuota, Mtu, NetworkConfig, NetworkKind, NetworkName, NetworkType,
    PortConfig, PortName, Refusal, StationMac,
};

pub(crate) use vms::{SavedAdapter, SavedVm, StoredState};

/// What each version of the schema adds. The version is kept in `PRAGMA user_version`.
const SCHEMAS: [&str; 5] = [
    include_str!("schema1.sql"),
    include_str!("schema2.sql"),
    include_str!("schema3.sql"),
    include_str!("schema4.sql"),
    include_str!("schema5.sql"),
];
const VERSION: i64 = SCHEMAS.len() as i64;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// It was written by a later vswitchd.
    #[error(
        "{path}: the database has version {found}, and this vswitchd knows versions up to {VERSION}; \
         use the vswitchd that wrote it, or a newer one"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// The file cannot be opened or made.
    #[error("cannot open the database {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What sqlite said.
        source: rusqlite::Error,
    },
    /// A statement failed, or a row does not hold what the schema says.
    #[error("the database refused a statement")]
    Sql(#[from] rusqlite::Error),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Refusal {
        Refusal::new(
            ErrorCode::Failed,
            format!("{:#}", anyhow::Error::from(error)),
        )
    }
}

/// An address in a VLAN (0: none).
pub(crate) type StaticKey = (StationMac, u16);

/// What is kept of the host for a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostSide {
    /// The MTU that its uplink had before it was bound.
    pub(crate) uplink_mtu: Option<u32>,
    /// The settings that its uplink had before it was bound, in the words of the host module.
    pub(crate) uplink_settings: Option<String>,
    /// The address of its host NIC.
    pub(crate) mac: Option<StationMac>,
}

/// A network as it is stored.
pub(crate) struct SavedNetwork {
    /// The network.
    pub(crate) config: NetworkConfig,
    /// What is kept of the host for it.
    pub(crate) host: HostSide,
    /// Its ports.
    pub(crate) ports: Vec<PortConfig>,
    /// Its static entries.
    pub(crate) statics: Vec<(StaticKey, PortName)>,
}

/// What was, or was about to be, changed on the host for a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostChange {
    /// The host NIC that was made.
    pub(crate) host_nic: IfName,
    /// The uplink whose addresses were moved to it.
    pub(crate) uplink: Option<IfName>,
    /// These addresses and routes, in the words of the host module.
    pub(crate) moved: Option<String>,
}

/// The database.
pub(crate) struct Store {
    connection: Connection,
}

impl Store {
    /// Opens the database, or makes it.
    pub(crate) fn open(path: &Path) -> Result<Store, StoreError> {
        let failed = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        let mut connection = Connection::open(path).map_err(failed)?;
        let found: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(failed)?;
        if found > VERSION {
            return Err(StoreError::Newer {
                path: path.to_owned(),
                found,
            });
        }
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(failed)?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(failed)?;
        connection
            .pragma_update(None, "foreign_keys", true)
            .map_err(failed)?;
        if found < VERSION {
            let transaction = connection.transaction()?;
            for schema in SCHEMAS.iter().skip(found.max(0) as usize) {
                transaction.execute_batch(schema)?;
            }
            transaction.pragma_update(None, "user_version", VERSION)?;
            transaction.commit()?;
        }
        Ok(Store { connection })
    }

    /// Begins a change: nothing of it is there before [`Change::commit`].
    pub(crate) fn change(&mut self) -> Result<Change<'_>, StoreError> {
        Ok(Change(self.connection.transaction()?))
    }

    /// All networks, with what is in them.
    pub(crate) fn load(&self) -> Result<Vec<SavedNetwork>, StoreError> {
        let mut query = self.connection.prepare(
            "SELECT name, type, uplink, host_nic, mtu, uplink_mtu, host_mac, ageing, uplink_settings \
             FROM network ORDER BY name",
        )?;
        let configs = query
            .query_map([], |row| {
                let host = HostSide {
                    uplink_mtu: row.get(5)?,
                    mac: parsed_option(row, 6)?,
                    uplink_settings: row.get(8)?,
                };
                Ok((read_network(row)?, host))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        configs
            .into_iter()
            .map(|(config, host)| {
                let ports = self.load_ports(&config.name)?;
                let statics = self.load_statics(&config.name)?;
                Ok(SavedNetwork {
                    config,
                    host,
                    ports,
                    statics,
                })
            })
            .collect()
    }

    fn load_ports(&self, network: &NetworkName) -> Result<Vec<PortConfig>, StoreError> {
        let mut query = self.connection.prepare(
            "SELECT name, backend, vlan, mac_guard, mtu, link, connected, mac_quota FROM port WHERE network = ? ORDER BY name",
        )?;
        let rows = query.query_map([network.as_str()], read_port)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn load_statics(
        &self,
        network: &NetworkName,
    ) -> Result<Vec<(StaticKey, PortName)>, StoreError> {
        let mut query = self
            .connection
            .prepare("SELECT mac, vlan, port FROM static_entry WHERE network = ?")?;
        let rows = query.query_map([network.as_str()], |row| {
            Ok(((parsed(row, 0)?, row.get(1)?), parsed(row, 2)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What was changed on the host and not undone.
    pub(crate) fn host_changes(&self) -> Result<Vec<HostChange>, StoreError> {
        let mut query = self
            .connection
            .prepare("SELECT host_nic, uplink, moved FROM host_change")?;
        let rows = query.query_map([], |row| {
            Ok(HostChange {
                host_nic: parsed(row, 0)?,
                uplink: parsed_option(row, 1)?,
                moved: row.get(2)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The addresses that were moved to `host_nic`.
    pub(crate) fn moved(&self, host_nic: &IfName) -> Result<Option<String>, StoreError> {
        let query = "SELECT moved FROM host_change WHERE host_nic = ?";
        let row = self
            .connection
            .query_row(query, [host_nic.as_str()], |row| row.get(0))
            .optional()?;
        Ok(row.flatten())
    }

    /// Notes what is about to be changed on the host.
    pub(crate) fn note_host_change(&mut self, change: &HostChange) -> Result<(), StoreError> {
        let uplink = change.uplink.as_ref().map(IfName::as_str);
        self.connection.execute(
            "INSERT OR REPLACE INTO host_change (host_nic, uplink, moved) VALUES (?, ?, ?)",
            params![change.host_nic.as_str(), uplink, change.moved],
        )?;
        Ok(())
    }

    /// Everything noted for `host_nic` has been undone.
    pub(crate) fn forget_host_change(&mut self, host_nic: &IfName) -> Result<(), StoreError> {
        self.connection.execute(
            "DELETE FROM host_change WHERE host_nic = ?",
            [host_nic.as_str()],
        )?;
        Ok(())
    }
}

/// A change in the making. Dropped without commit, it leaves no trace.
pub(crate) struct Change<'a>(Transaction<'a>);

impl Change<'_> {
    /// Makes it so.
    pub(crate) fn commit(self) -> Result<(), StoreError> {
        Ok(self.0.commit()?)
    }

    /// Keeps the record of what was moved to a host NIC.
    pub(crate) fn set_moved(&self, host_nic: &IfName, moved: &str) -> Result<(), StoreError> {
        self.0.execute(
            "UPDATE host_change SET moved = ? WHERE host_nic = ?",
            [moved, host_nic.as_str()],
        )?;
        Ok(())
    }

    /// Adds a network without ports.
    pub(crate) fn add_network(
        &self,
        config: &NetworkConfig,
        host: &HostSide,
    ) -> Result<(), StoreError> {
        self.0.execute(
            "INSERT INTO network (name, type, uplink, host_nic, mtu, uplink_mtu, host_mac, ageing, uplink_settings) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                config.name.as_str(),
                config.kind.network_type().to_string(),
                config.kind.uplink().map(IfName::as_str),
                config.kind.host_nic().map(IfName::as_str),
                config.mtu.get(),
                host.uplink_mtu,
                host.mac.map(|mac| mac.to_string()),
                config.ageing.get(),
                host.uplink_settings,
            ],
        )?;
        Ok(())
    }

    /// Keeps the address of a network's host NIC.
    pub(crate) fn set_host_mac(
        &self,
        name: &NetworkName,
        mac: StationMac,
    ) -> Result<(), StoreError> {
        let parameters = [mac.to_string(), name.to_string()];
        self.0
            .execute("UPDATE network SET host_mac = ? WHERE name = ?", parameters)?;
        Ok(())
    }

    /// Gives a network another name, with everything in it.
    pub(crate) fn rename_network(
        &self,
        old: &NetworkName,
        new: &NetworkName,
    ) -> Result<(), StoreError> {
        // What refers to the old name follows before the commit.
        self.0.pragma_update(None, "defer_foreign_keys", true)?;
        for statement in [
            "UPDATE network SET name = ? WHERE name = ?",
            "UPDATE port SET network = ? WHERE network = ?",
            "UPDATE static_entry SET network = ? WHERE network = ?",
        ] {
            self.0.execute(statement, [new.as_str(), old.as_str()])?;
        }
        Ok(())
    }

    /// Sets what may change about a network.
    pub(crate) fn set_network(&self, config: &NetworkConfig) -> Result<(), StoreError> {
        self.0.execute(
            "UPDATE network SET mtu = ?, ageing = ? WHERE name = ?",
            params![config.mtu.get(), config.ageing.get(), config.name.as_str()],
        )?;
        Ok(())
    }

    /// Deletes a network with everything in it.
    pub(crate) fn delete_network(&self, name: &NetworkName) -> Result<(), StoreError> {
        self.0
            .execute("DELETE FROM network WHERE name = ?", [name.as_str()])?;
        Ok(())
    }

    /// Adds a port.
    pub(crate) fn add_port(
        &self,
        network: &NetworkName,
        config: &PortConfig,
    ) -> Result<(), StoreError> {
        let backend = backend_text(config)?;
        self.0.execute(
            "INSERT INTO port (network, name, backend, target, vlan, mac_guard, mtu, link, connected, mac_quota) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                network.as_str(),
                config.name.as_str(),
                backend,
                config.backend.target().as_ref(),
                config.vlan.to_string(),
                config.mac_guard.to_string(),
                config.mtu.map(Mtu::get),
                config.link.to_string(),
                config.connected,
                config.mac_quota.map(MacQuota::get),
            ],
        )?;
        Ok(())
    }

    /// Deletes a port with its static entries.
    pub(crate) fn delete_port(
        &self,
        network: &NetworkName,
        name: &PortName,
    ) -> Result<(), StoreError> {
        self.0.execute(
            "DELETE FROM port WHERE network = ? AND name = ?",
            [network.as_str(), name.as_str()],
        )?;
        Ok(())
    }

    /// Sets what may change about a port.
    pub(crate) fn set_port(
        &self,
        network: &NetworkName,
        config: &PortConfig,
    ) -> Result<(), StoreError> {
        self.0.execute(
            "UPDATE port SET vlan = ?, mac_guard = ?, mtu = ?, link = ?, connected = ?, mac_quota = ? \
             WHERE network = ? AND name = ?",
            params![
                config.vlan.to_string(),
                config.mac_guard.to_string(),
                config.mtu.map(Mtu::get),
                config.link.to_string(),
                config.connected,
                config.mac_quota.map(MacQuota::get),
                network.as_str(),
                config.name.as_str(),
            ],
        )?;
        Ok(())
    }

    /// Adds a static entry, or moves it to another port.
    pub(crate) fn add_static(
        &self,
        network: &NetworkName,
        key: StaticKey,
        port: &PortName,
    ) -> Result<(), StoreError> {
        self.0.execute(
            "INSERT OR REPLACE INTO static_entry (network, mac, vlan, port) VALUES (?, ?, ?, ?)",
            params![network.as_str(), key.0.to_string(), key.1, port.as_str()],
        )?;
        Ok(())
    }

    /// Deletes a static entry.
    pub(crate) fn delete_static(
        &self,
        network: &NetworkName,
        key: StaticKey,
    ) -> Result<(), StoreError> {
        self.0.execute(
            "DELETE FROM static_entry WHERE network = ? AND mac = ? AND vlan = ?",
            params![network.as_str(), key.0.to_string(), key.1],
        )?;
        Ok(())
    }
}

/// What is behind a port, as it is stored.
fn backend_text(config: &PortConfig) -> rusqlite::Result<String> {
    serde_json::to_string(&config.backend)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// A text column as the type it was written from.
fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.get_ref(column)?
        .as_str()?
        .parse()
        .map_err(|error| wrong(column, error))
}

fn parsed_option<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: Option<String> = row.get(column)?;
    text.map(|text| text.parse().map_err(|error| wrong(column, error)))
        .transpose()
}

fn wrong(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

fn number<T>(column: usize, number: i64) -> rusqlite::Result<T>
where
    T: TryFrom<i64, Error: std::error::Error + Send + Sync + 'static>,
{
    T::try_from(number).map_err(|error| wrong(column, error))
}

fn read_network(row: &Row<'_>) -> rusqlite::Result<NetworkConfig> {
    let (uplink, host_nic) = (parsed_option(row, 2)?, parsed_option(row, 3)?);
    let kind = match (parsed(row, 1)?, uplink, host_nic) {
        (NetworkType::External, Some(uplink), host_nic) => {
            NetworkKind::External { uplink, host_nic }
        }
        (NetworkType::Internal, None, Some(host_nic)) => NetworkKind::Internal { host_nic },
        (NetworkType::Private, None, None) => NetworkKind::Private,
        (kind, ..) => {
            return Err(wrong(
                1,
                Refusal::invalid(format!("a network of type {kind} is not made so")),
            ));
        }
    };
    Ok(NetworkConfig {
        name: parsed(row, 0)?,
        kind,
        mtu: number(4, row.get(4)?)?,
        ageing: number(7, row.get(7)?)?,
    })
}

fn read_port(row: &Row<'_>) -> rusqlite::Result<PortConfig> {
    let backend =
        serde_json::from_str(row.get_ref(1)?.as_str()?).map_err(|error| wrong(1, error))?;
    let (own_mtu, quota): (Option<i64>, Option<i64>) = (row.get(4)?, row.get(7)?);
    Ok(PortConfig {
        name: parsed(row, 0)?,
        backend,
        vlan: parsed(row, 2)?,
        mac_guard: parsed(row, 3)?,
        mtu: own_mtu.map(|own| number(4, own)).transpose()?,
        link: parsed(row, 5)?,
        connected: row.get(6)?,
        mac_quota: quota.map(|quota| number(7, quota)).transpose()?,
    })
}

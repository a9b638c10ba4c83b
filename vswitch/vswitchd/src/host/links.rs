//! Addresses, routes and settings of interfaces, by rtnetlink.
//!
//! The manager's calls run on threads that may block, so each of these waits for its answers.

use anyhow::Context;
use hostif::links::{Links, Moved};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use vswitch::api::{IfName, Mtu};

use super::{name, quiet, read};
use crate::backend::LooseUplink;

fn connect() -> anyhow::Result<(Handle, Links)> {
    let runtime = Handle::try_current().context("not called by the API's runtime")?;
    let (links, _) = Links::connect().context("cannot connect to rtnetlink")?;
    Ok((runtime, links))
}

/// What is kept of a move, to be undone.
#[derive(Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    moved: Moved,
    /// The settings that the uplink had before. Records of earlier versions have none.
    settings: Option<quiet::Settings>,
}

impl Record {
    fn parse(record: &str) -> anyhow::Result<Record> {
        serde_json::from_str(record).context("the record of moved addresses cannot be read")
    }

    fn write(&self) -> anyhow::Result<String> {
        serde_json::to_string(self).context("cannot write down what was moved")
    }
}

fn nothing_moved(from: &IfName, to: &IfName) -> anyhow::Result<Moved> {
    Ok(Moved {
        from: name(from)?,
        to: name(to)?,
        addresses: Vec::new(),
        routes: Vec::new(),
    })
}

/// A record of what `from` is like before it is moved to `to`.
pub(super) fn begin_record(from: &IfName, to: &IfName) -> anyhow::Result<String> {
    let (runtime, links) = connect()?;
    let record = Record {
        moved: runtime.block_on(links.survey(&name(from)?, &name(to)?))?,
        settings: Some(quiet::read(from)),
    };
    record.write()
}

/// Moves all addresses and routes, and quietens the interface they were on; `before` with them in it.
pub(super) fn move_addresses(
    from: &IfName,
    to: &IfName,
    before: Option<&str>,
) -> anyhow::Result<String> {
    let mut record = match before {
        Some(before) => Record::parse(before)?,
        None => Record {
            moved: nothing_moved(from, to)?,
            settings: None,
        },
    };
    let (runtime, links) = connect()?;
    let moved = runtime.block_on(links.take_over(&name(from)?, &name(to)?))?;
    // Not before: without IPv6 an interface loses its addresses.
    quiet::quieten(from);
    record.moved.add(moved);
    record.write()
}

/// Gives the uplink its settings back, and the addresses and routes that the host NIC has; where that is gone, those of
/// the record.
pub(super) fn return_addresses(
    host_nic: &IfName,
    uplink: &IfName,
    record: Option<&str>,
) -> anyhow::Result<()> {
    let record = record.map(Record::parse).transpose()?;
    let (runtime, links) = connect()?;
    // Before the addresses: without IPv6 an interface takes none.
    let settings = record.as_ref().and_then(|record| record.settings.as_ref());
    quiet::restore(uplink, settings);
    let returned = if read(host_nic)?.is_some() {
        let host_nic = name(host_nic)?;
        let nothing =
            read(uplink)?.is_none() && runtime.block_on(links.addresses(&host_nic))?.is_empty();
        if nothing {
            return Ok(());
        }
        runtime
            .block_on(links.take_over(&host_nic, &name(uplink)?))
            .map(drop)
    } else {
        match &record {
            Some(record) => runtime.block_on(links.give_back(&record.moved)),
            None => Ok(()),
        }
    };
    Ok(returned.inspect_err(|_| quiet::quieten(uplink))?)
}

/// Gives an interface that is not bound any more its settings and MTU back, and the addresses and routes that go with it.
pub(super) fn release(before: &LooseUplink) -> anyhow::Result<()> {
    let uplink = &before.uplink;
    if read(uplink)?.is_none() {
        return Ok(());
    }
    let settings = before.settings.as_deref().map(serde_json::from_str);
    let settings = settings
        .transpose()
        .context("the record of the uplink's settings cannot be read")?;
    let (runtime, links) = connect()?;
    // First: without IPv6 an interface takes no addresses of it.
    quiet::restore(uplink, settings.as_ref());
    if let Some(mtu) = before.mtu {
        runtime.block_on(links.set_mtu(&name(uplink)?, mtu))?;
    }
    if let Some(moved) = &before.moved {
        runtime.block_on(links.give_back(&Record::parse(moved)?.moved))?;
    }
    Ok(())
}

/// The addresses of an interface that would be moved.
pub(super) fn addresses(interface: &IfName) -> anyhow::Result<Vec<String>> {
    let (runtime, links) = connect()?;
    Ok(runtime.block_on(links.addresses(&name(interface)?))?)
}

/// Sets the MTU of an interface.
pub(super) fn set_mtu(interface: &IfName, mtu: u32) -> anyhow::Result<()> {
    let (runtime, links) = connect()?;
    Ok(runtime.block_on(links.set_mtu(&name(interface)?, mtu))?)
}

/// Sets the MTU of an interface, and sets it up.
pub(super) fn set_mtu_and_up(interface: &IfName, mtu: Mtu) -> anyhow::Result<()> {
    let (runtime, links) = connect()?;
    let interface = name(interface)?;
    runtime.block_on(async {
        links.set_mtu(&interface, mtu.get().into()).await?;
        Ok(links.set_up(&interface, true).await?)
    })
}

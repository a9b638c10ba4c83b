//! Addresses, routes and settings of interfaces, by rtnetlink.
//!
//! The manager's calls run on threads that may block, so each of these waits for its answers.

use anyhow::Context;
use hostif::links::{Links, Moved};
use tokio::runtime::Handle;
use vswitch::api::{IfName, Mtu};

use super::{name, quiet};

fn connect() -> anyhow::Result<(Handle, Links)> {
    let runtime = Handle::try_current().context("not called by the API's runtime")?;
    let (links, _) = Links::connect().context("cannot connect to rtnetlink")?;
    Ok((runtime, links))
}

/// Moves all addresses and routes; a record of them, `None` if there were none.
pub(super) fn move_addresses(
    from: &hostif::IfName,
    to: &hostif::IfName,
) -> anyhow::Result<Option<String>> {
    let (runtime, links) = connect()?;
    let moved = runtime.block_on(links.take_over(from, to))?;
    if moved.addresses.is_empty() && moved.routes.is_empty() {
        return Ok(None);
    }
    Ok(Some(
        serde_json::to_string(&moved).context("cannot write down what was moved")?,
    ))
}

/// Moves back what a record names.
pub(super) fn give_back(record: &str) -> anyhow::Result<()> {
    let moved: Moved =
        serde_json::from_str(record).context("the record of moved addresses cannot be read")?;
    quiet::restore(&moved.from.as_str().parse()?);
    let (runtime, links) = connect()?;
    Ok(runtime.block_on(links.give_back(&moved))?)
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

//! TAP devices: the host NIC, and ports of foreign programs.

use std::sync::Arc;

use anyhow::Context;
use hostif::tap::{Tap, TapConfig};
use tracing::warn;
use vswitch::api::{IfName, Link, Mtu, PortState};
use vswitch::control::PortHandle;
use vswitch::port::PortControl;
use vswitch::ports;

use super::{name, read};
use crate::backend::{Backend, Fate, Open};

/// Queues of a host NIC, at most: with more of them the host's cores send without waiting for each other.
const MAX_QUEUES: usize = 4;

/// Makes the host NIC of a network, or takes up the one that was left by the last vswitchd, and sets it up.
pub(super) fn open_host_nic(
    what: &Open<'_>,
    interface: &IfName,
) -> anyhow::Result<Box<dyn Backend>> {
    let is_new = read(interface)?.is_none();
    // One that was left keeps its address, which an operator may have set.
    let mac = what.host_mac.filter(|_| is_new).map(|mac| mac.mac().0);
    let queues = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MAX_QUEUES) as u16;
    let device = open(
        what,
        &TapConfig {
            name: name(interface)?,
            queues,
            persist: true,
            mac,
        },
    );
    // What is new must not outlive a failure.
    device
        .map(|device| {
            Box::new(TapPort {
                delete: true,
                ..device
            }) as Box<dyn Backend>
        })
        .inspect_err(|_| {
            if is_new
                && let Err(error) =
                    crate::backend::Host::delete_host_nic(&super::LinuxHost, interface)
            {
                warn!("'{interface}' stays behind: {error:#}");
            }
        })
}

/// Makes a TAP device that goes with the port, or takes up a persistent one that stays.
pub(super) fn open_tap(what: &Open<'_>, interface: &IfName) -> anyhow::Result<Box<dyn Backend>> {
    let persist = read(interface)?
        .and_then(|link| link.tun)
        .is_some_and(|tun| tun.persist);
    Ok(Box::new(open(
        what,
        &TapConfig {
            name: name(interface)?,
            queues: 1,
            persist,
            mac: None,
        },
    )?))
}

fn open(what: &Open<'_>, config: &TapConfig) -> anyhow::Result<TapPort> {
    let interface: IfName = config.name.as_str().parse()?;
    let (device, queues) = Tap::open(config)?;
    device.set_mtu(what.mtu.get().into())?;
    device.set_carrier(what.link == Link::Up)?;
    device.set_up(true)?;
    let sides = ports::tap::open(queues).context("cannot map receive buffers")?;
    drop(what.port.attach(sides));
    Ok(TapPort {
        device,
        interface,
        port: what.port.clone(),
        delete: false,
    })
}

struct TapPort {
    device: Tap,
    interface: IfName,
    port: Arc<PortHandle>,
    /// Whether the device is deleted with the port.
    delete: bool,
}

impl Backend for TapPort {
    fn close(self: Box<Self>, fate: Fate) {
        drop(self.port.detach());
        if self.delete
            && fate == Fate::Delete
            && let Err(error) = self.device.set_persist(false)
        {
            warn!(
                "'{}' stays behind: {:#}",
                self.interface,
                anyhow::Error::from(error)
            );
        }
    }

    fn status(&self) -> (PortState, Option<String>) {
        (PortState::Up, None)
    }

    fn set_mtu(&mut self, mtu: Mtu) -> anyhow::Result<()> {
        // A device that was moved to another namespace has its MTU set there.
        if read(&self.interface)?.is_some() {
            self.device.set_mtu(mtu.get().into())?;
        }
        Ok(())
    }

    fn set_link(&mut self, link: Link) -> anyhow::Result<()> {
        Ok(self.device.set_carrier(link == Link::Up)?)
    }
}

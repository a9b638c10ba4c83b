//! The physical interface of an external network.

use std::sync::Arc;

use tracing::{info, warn};
use vswitch::api::{IfName, Link, Mtu, PortState};
use vswitch::control::PortHandle;
use vswitch::port::PortControl;
use vswitch::ports::uplink::{Uplink, Way};

use super::{links, name};
use crate::backend::{Backend, Fate, Open};

/// Binds the interface: from now on its frames come to the port. On failure it has the MTU `before` again.
pub(super) fn open(
    what: &Open<'_>,
    interface: &IfName,
    before: u32,
) -> anyhow::Result<Box<dyn Backend>> {
    links::set_mtu_and_up(interface, what.mtu)?;
    let (uplink, sides) = Uplink::open(&name(interface)?, Way::Any)
        .inspect_err(|_| restore_mtu(interface, before))?;
    drop(what.port.attach(sides));
    info!(%interface, mode = %uplink.mode(), "uplink bound");
    Ok(Box::new(UplinkPort {
        uplink: Some(uplink),
        interface: interface.clone(),
        port: what.port.clone(),
    }))
}

fn restore_mtu(interface: &IfName, mtu: u32) {
    if let Err(error) = links::set_mtu(interface, mtu) {
        warn!("'{interface}' keeps its MTU: {error:#}");
    }
}

struct UplinkPort {
    /// `None` if it was lost when it was bound anew.
    uplink: Option<Uplink>,
    interface: IfName,
    port: Arc<PortHandle>,
}

impl Backend for UplinkPort {
    fn close(self: Box<Self>, _: Fate) {
        drop(self.port.detach());
        let UplinkPort {
            uplink, interface, ..
        } = *self;
        drop(uplink);
        info!(%interface, "uplink released");
    }

    fn status(&self) -> (PortState, Option<String>) {
        match &self.uplink {
            Some(uplink) => (PortState::Up, Some(uplink.mode().to_string())),
            None => (
                PortState::Down,
                Some("the interface could not be bound again after its MTU was changed".to_owned()),
            ),
        }
    }

    /// Binds the interface anew: whether a frame may take several buffers is agreed when it is bound.
    fn set_mtu(&mut self, mtu: Mtu) -> anyhow::Result<()> {
        drop(self.port.detach());
        self.uplink = None;
        let result = links::set_mtu(&self.interface, mtu.get().into());
        let (uplink, sides) = Uplink::open(&name(&self.interface)?, Way::Any)?;
        drop(self.port.attach(sides));
        self.uplink = Some(uplink);
        result
    }

    /// The physical link is left alone: the port's link is the switch's matter.
    fn set_link(&mut self, _: Link) -> anyhow::Result<()> {
        Ok(())
    }
}

//! Ports of VMMs that speak vhost-user.

use std::path::PathBuf;

use vswitch::api::{Link, Mtu, PortState, Queues, SocketPath, VhostUserMode};
use vswitch::ports::vhost::server::{Config, Mode, VhostPort};
use vswitch::ports::vhost::session::Offer;

use crate::backend::{Backend, Fate, Open};

/// Starts to listen on the socket, or to connect to it.
pub(super) fn open(
    what: &Open<'_>,
    path: &SocketPath,
    mode: VhostUserMode,
    queues: Queues,
) -> anyhow::Result<Box<dyn Backend>> {
    let config = Config {
        path: PathBuf::from(path.as_str()),
        mode: match mode {
            VhostUserMode::Server => Mode::Server,
            VhostUserMode::Client => Mode::Client,
        },
        offer: Offer {
            queue_pairs: queues.get(),
            mtu: what.mtu.get(),
        },
    };
    let port = VhostPort::start(config, what.port.clone())?;
    port.set_link(what.link == Link::Up);
    Ok(Box::new(VhostUserPort(port)))
}

struct VhostUserPort(VhostPort);

impl Backend for VhostUserPort {
    fn close(self: Box<Self>, _: Fate) {
        self.0.stop();
    }

    fn status(&self) -> (PortState, Option<String>) {
        let status = self.0.status();
        if status.running {
            let mtu = status.guest_mtu;
            let mtu = mtu.map_or(String::new(), |mtu| format!(", guest was told MTU {mtu}"));
            return (PortState::Up, Some(format!("{} rings{mtu}", status.rings)));
        }
        let fault = status.fault.map(|fault| fault.to_string());
        let state = fault
            .as_ref()
            .map_or(PortState::Waiting, |_| PortState::Fault);
        (state, fault.or(status.last_error))
    }

    /// A guest asks for its MTU when it connects: the next one is told the new MTU. One that is connected keeps what it
    /// was told, and the switch drops by name what is too long.
    fn set_mtu(&mut self, mtu: Mtu) -> anyhow::Result<()> {
        self.0.set_mtu(mtu.get());
        Ok(())
    }

    fn set_link(&mut self, link: Link) -> anyhow::Result<()> {
        self.0.set_link(link == Link::Up);
        Ok(())
    }
}

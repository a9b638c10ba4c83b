//! Ports of VMMs that speak vhost-user.

use std::path::PathBuf;
use std::sync::Arc;

use vswitch::api::{Link, Mtu, PortState, Queues, SocketPath, VhostUserMode};
use vswitch::control::PortHandle;
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
    let mut port = VhostUserPort {
        running: None,
        config,
        port: what.port.clone(),
        link: what.link,
    };
    port.start()?;
    Ok(Box::new(port))
}

struct VhostUserPort {
    /// `None` only while it is started anew.
    running: Option<VhostPort>,
    config: Config,
    port: Arc<PortHandle>,
    link: Link,
}

impl VhostUserPort {
    fn start(&mut self) -> anyhow::Result<()> {
        let running = VhostPort::start(self.config.clone(), self.port.clone())?;
        running.set_link(self.link == Link::Up);
        self.running = Some(running);
        Ok(())
    }
}

impl Backend for VhostUserPort {
    fn close(self: Box<Self>, _: Fate) {
        if let Some(running) = self.running {
            running.stop();
        }
    }

    fn status(&self) -> (PortState, Option<String>) {
        let Some(status) = self.running.as_ref().map(VhostPort::status) else {
            return (PortState::Down, None);
        };
        if status.running {
            let mtu = status
                .guest_mtu
                .map_or(String::new(), |mtu| format!(", guest was told MTU {mtu}"));
            return (PortState::Up, Some(format!("{} rings{mtu}", status.rings)));
        }
        let state = if status.fault.is_some() {
            PortState::Fault
        } else {
            PortState::Waiting
        };
        let fault = status.fault.map(|fault| fault.to_string());
        (state, fault.or(status.last_error))
    }

    /// A guest asks for its MTU when it starts its driver. Where nobody is connected the next one is told the new MTU;
    /// a connected guest keeps what it was told, and the switch drops by name what is too long.
    fn set_mtu(&mut self, mtu: Mtu) -> anyhow::Result<()> {
        self.config.offer.mtu = mtu.get();
        if self
            .running
            .as_ref()
            .is_some_and(|running| !running.status().connected)
        {
            drop(self.running.take());
            self.start()?;
        }
        Ok(())
    }

    fn set_link(&mut self, link: Link) -> anyhow::Result<()> {
        self.link = link;
        if let Some(running) = &self.running {
            running.set_link(link == Link::Up);
        }
        Ok(())
    }
}

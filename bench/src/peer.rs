//! What is measured: the switch of this process, or another behind vhost-user sockets.

use std::sync::Arc;

use anyhow::{Context, Result};
use vswitch::control::{NetworkSpec, PortHandle, Switch};
use vswitch::network::PortPolicy;
use vswitch::port::PortControl;
use vswitch::ports::vhost::driver::{Frontend, Guest, Setup};
use vswitch::ports::vhost::session::{Offer, Session};

use crate::Options;

/// The switch of this process, with a port for each guest.
pub(crate) struct Local {
    pub(crate) switch: Switch,
    pub(crate) sender: Arc<PortHandle>,
    pub(crate) receiver: Arc<PortHandle>,
    _sessions: [Session; 2],
}

/// Whoever is at the other end of the rings.
pub(crate) enum Peer {
    Local(Box<Local>),
    Remote { _frontends: [Frontend; 2] },
}

pub(crate) fn guest(options: &Options, size: u32) -> Result<Guest> {
    // A buffer for the whole frame and its header, as drivers choose it.
    let buffer_len = if size > 2000 { 9216 } else { 2048 };
    let features = options.features();
    let queue_size = options.queue_size;
    Ok(Guest::new(Setup {
        features,
        queue_size,
        buffer_len,
        ..Setup::default()
    })?)
}

fn attach(guest: &Guest, port: &PortHandle) -> Result<Session> {
    let mut session = Session::new(Offer {
        queue_pairs: 1,
        mtu: 9000,
    });
    port.attach(guest.start_in(&mut session)?);
    Ok(session)
}

impl Peer {
    pub(crate) fn new(options: &Options, sender: &Guest, receiver: &Guest) -> Result<Peer> {
        if let [first, second] = options.sockets.as_slice() {
            let connect = |path: &std::path::Path, guest: &Guest| -> Result<Frontend> {
                let frontend = Frontend::connect(path)
                    .with_context(|| format!("cannot connect to {}", path.display()))?;
                frontend.handshake(guest)?;
                Ok(frontend)
            };
            return Ok(Peer::Remote {
                _frontends: [connect(first, sender)?, connect(second, receiver)?],
            });
        }
        let switch = Switch::start(&[options.switch_core])?;
        let network = switch.create_network(&NetworkSpec::default())?;
        let port = || -> Result<Arc<PortHandle>> {
            let port = switch.add_port(
                PortPolicy {
                    mtu: 9000,
                    ..PortPolicy::default()
                },
                None,
            )?;
            port.connect(network)?;
            Ok(port)
        };
        let (from, to) = (port()?, port()?);
        let sessions = [attach(sender, &from)?, attach(receiver, &to)?];
        Ok(Peer::Local(Box::new(Local {
            switch,
            sender: from,
            receiver: to,
            _sessions: sessions,
        })))
    }
}

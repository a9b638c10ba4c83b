//! Ends of a network in the host's kernel: an interface in a namespace of its own.

use std::sync::Arc;

use anyhow::{Context, Result};
use hostif::iov::Iov;
use hostif::packet::{BATCH, PacketConfig, PacketSocket, SEND_HEADER_LEN};
use hostif::tap::{Tap, TapConfig};
use rustix::io::Errno;
use vswitch::port::Sides;
use vswitch::ports::tap;
use vswitch::ports::uplink::{Uplink, Way};
use vswitch_tests::Netns;

/// The interface of every end.
pub(super) const IFNAME: &str = "eth0";

/// A kind of port with the kernel behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A TAP device of one queue.
    Tap,
    /// A TAP device of a queue for each core, as host NICs have.
    HostNic,
    /// AF_XDP on a virtual cable.
    Xdp,
    /// A packet socket on a virtual cable.
    Packet,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Tap => "TAP",
            Kind::HostNic => "host NIC",
            Kind::Xdp => "AF_XDP",
            Kind::Packet => "packet socket",
        }
    }
}

/// What a port is made of, besides its sides. Dropped after the switch, in this order.
pub(super) struct End {
    _tap: Option<Tap>,
    _uplink: Option<Uplink>,
    /// Where [`IFNAME`] is.
    pub(super) netns: Arc<Netns>,
    _host: Option<Netns>,
}

impl End {
    /// Makes a port of a kind, and the interface at its other end.
    pub(super) fn open(kind: Kind, mtu: u32) -> Result<(End, Sides)> {
        let netns = Arc::new(Netns::new("end")?);
        let (mut tap, mut uplink, mut host) = (None, None, None);
        let sides = match kind {
            Kind::Tap | Kind::HostNic => {
                let cores = std::thread::available_parallelism()?.get() as u16;
                let config = TapConfig {
                    name: IFNAME.parse()?,
                    queues: if kind == Kind::Tap { 1 } else { cores },
                    persist: false,
                    mac: None,
                };
                let (device, queues) = netns.inside(|| -> Result<_> {
                    let (device, queues) = Tap::open(&config)?;
                    device.set_mtu(mtu)?;
                    device.set_carrier(true)?;
                    device.set_up(true)?;
                    Ok((device, queues))
                })??;
                tap = Some(device);
                tap::open(queues)?
            }
            Kind::Xdp | Kind::Packet => {
                let near = Netns::new("near")?;
                near.cable("up0", &netns, IFNAME)?;
                near.ip(&format!("link set up0 mtu {mtu}"))?;
                netns.ip(&format!("link set {IFNAME} mtu {mtu}"))?;
                let way = if kind == Kind::Xdp {
                    Way::Xdp
                } else {
                    Way::Packet
                };
                let name = "up0".parse()?;
                let (held, sides) = near.inside(|| Uplink::open(&name, way))??;
                uplink = Some(held);
                host = Some(near);
                sides
            }
        };
        let end = End {
            _tap: tap,
            _uplink: uplink,
            netns,
            _host: host,
        };
        Ok((end, sides))
    }
}

/// Sends frames out of [`IFNAME`] in a namespace, past its queueing discipline.
pub(super) struct Generator {
    socket: PacketSocket,
    frame: Vec<u8>,
}

impl Generator {
    /// Sends `frame` again and again.
    pub(super) fn new(netns: &Netns, frame: &[u8]) -> Result<Generator> {
        let config = PacketConfig {
            name: IFNAME.parse()?,
            qdisc_bypass: true,
        };
        let socket = netns.inside(|| PacketSocket::open(&config))??;
        Ok(Generator {
            socket,
            frame: frame.to_vec(),
        })
    }

    /// Sends as many as one call can. How many went.
    pub(super) fn send(&self) -> Result<usize> {
        let header = [0; SEND_HEADER_LEN];
        let pieces = [Iov::bytes(&header), Iov::bytes(&self.frame)];
        let frames = [&pieces[..]; BATCH];
        match self.socket.send(&frames) {
            Ok(sent) => Ok(sent),
            Err(Errno::NOBUFS) => Ok(0),
            Err(error) => Err(error).context("sending on a packet socket"),
        }
    }
}

/// Frames that [`IFNAME`] in a namespace has received.
pub(super) fn received(netns: &Netns) -> Result<u64> {
    let text = netns.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(IFNAME));
    let count = line.and_then(|line| line.trim_start_matches(':').split_whitespace().nth(1));
    let count = count.and_then(|count| count.parse().ok());
    count.with_context(|| format!("no counter of {IFNAME} in {text}"))
}

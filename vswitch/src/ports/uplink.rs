//! The uplink of an external network: AF_XDP where it can be had, else a packet socket.

use std::fmt;
use std::sync::Arc;

use guestmem::{MapError, Memory};
use hostif::IfName;
use hostif::packet::{PacketConfig, PacketError, PacketSocket};
use hostif::xdp::{AttachMode, Unclaimed, Xdp, XdpConfig, XdpError, XdpMode, umem_len};

use crate::port::Sides;
use crate::ports::{packet, xdp};

/// Frame buffers of each AF_XDP queue: 16 MiB, half for each direction.
const FRAMES: u32 = 4096;
/// Slots of each AF_XDP ring: one for every buffer.
const SLOTS: u32 = 4096;

/// Which way an uplink shall be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// AF_XDP, or a packet socket where it can't be had.
    #[default]
    Any,
    /// AF_XDP or nothing.
    Xdp,
    /// A packet socket.
    Packet,
}

/// How an uplink was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By AF_XDP, in this mode.
    Xdp(XdpMode),
    /// By a packet socket.
    Packet {
        /// Why AF_XDP was not had, if it was tried.
        why: Option<String>,
        /// The host's network stack does not see the frames.
        exclusive: bool,
    },
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::Xdp(mode) => {
                let copy = if mode.zero_copy { "zero copy" } else { "copy" };
                write!(f, "AF_XDP, {copy} mode, {} queues", mode.queues)
            }
            Mode::Packet { why, exclusive } => {
                write!(f, "packet socket")?;
                if let Some(why) = why {
                    write!(f, ", as AF_XDP can't be had: {why}")?;
                }
                if !exclusive {
                    write!(f, "; the host's network stack sees its frames too")?;
                }
                Ok(())
            }
        }
    }
}

/// Why an uplink was not opened.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// AF_XDP was asked for.
    #[error("cannot open {0} by AF_XDP")]
    Xdp(IfName, #[source] Box<XdpError>),
    /// Neither way works.
    #[error("cannot open {0} by a packet socket")]
    Packet(IfName, #[source] PacketError),
    /// Memory for buffers.
    #[error("cannot map buffers for {0}")]
    Map(IfName, #[source] MapError),
}

/// An open uplink. While it lives, the interface's frames come to its port.
#[derive(Debug)]
pub struct Uplink {
    mode: Mode,
    _xdp: Option<Xdp>,
}

impl Uplink {
    /// How it was opened.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Opens the interface `name` and makes the sides of its port.
    ///
    /// # Errors
    /// [`UplinkError`].
    pub fn open(name: &IfName, way: Way) -> Result<(Uplink, Sides), UplinkError> {
        let why = match way {
            Way::Packet => None,
            Way::Any | Way::Xdp => match Self::open_xdp(name) {
                Ok(uplink) => return Ok(uplink),
                Err(UplinkError::Xdp(_, error)) if way == Way::Any => Some(chain(&*error)),
                Err(error) => return Err(error),
            },
        };
        let config = PacketConfig {
            name: name.clone(),
            qdisc_bypass: false,
        };
        let socket = PacketSocket::open(&config)
            .map_err(|error| UplinkError::Packet(name.clone(), error))?;
        let exclusive = socket.is_exclusive();
        let sides = packet::open(socket).map_err(|error| UplinkError::Map(name.clone(), error))?;
        let mode = Mode::Packet { why, exclusive };
        Ok((Uplink { mode, _xdp: None }, sides))
    }

    fn open_xdp(name: &IfName) -> Result<(Uplink, Sides), UplinkError> {
        let failed = |error| UplinkError::Xdp(name.clone(), Box::new(error));
        let queues = hostif::info::rx_queues(name).map_err(|source| {
            failed(XdpError::Call {
                call: "ETHTOOL_GCHANNELS",
                name: name.clone(),
                source,
            })
        })?;
        let memory = Memory::anonymous(umem_len(queues.max(1), FRAMES))
            .map_err(|error| UplinkError::Map(name.clone(), error))?;
        let memory = Arc::new(memory);
        let config = XdpConfig {
            name: name.clone(),
            frames_per_queue: FRAMES,
            ring_size: SLOTS,
            unclaimed: Unclaimed::Drop,
            generic: false,
        };
        let (held, queues) = Xdp::open(&config, &memory).map_err(failed)?;
        debug_assert!(
            held.mode().attach == AttachMode::Native,
            "generic mode was not allowed"
        );
        let mode = held.mode();
        // A virtual cable carries requests; to hardware AF_XDP is the better way for all.
        let requests = mode
            .unfinished_checksums
            .then(|| PacketSocket::open_sender(name).ok())
            .flatten();
        let sides = xdp::open(queues, &memory, FRAMES, mode, requests);
        let uplink = Uplink {
            mode: Mode::Xdp(mode),
            _xdp: Some(held),
        };
        Ok((uplink, sides))
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

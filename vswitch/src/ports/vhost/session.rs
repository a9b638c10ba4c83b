//! The state of one connection: messages in, replies and the sides of the port out.
//!
//! A session does no I/O of its own. Before it handles a message that [`Session::disturbs`] the running rings, its user
//! detaches the sides and hands them back by [`Session::take_back`]; afterwards [`Session::start`] builds new ones
//! that go on where the old ones stood.
//!
//! A ring runs once it has a size, addresses, a kick (or was told to poll) and is enabled, and until `GET_VRING_BASE`.
//! What waits in a transmit ring that is started and disabled is not taken, and not discarded either.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use guestmem::{DirtyLog, MapError, Memory, RegionSpec};

use super::connection::Reply;
use super::inflight::{Inflight, InflightError};
use super::message::{Message, RegionKey, VringFd};
use super::notify::{self, NotifyError};
use super::port::{Stopped, VhostRx, VhostTx};
use super::vring::{Kick, Vring};
use super::{feature, protocol};
use crate::mac::Mac;
use crate::port::{PortFault, Sides};

/// Features offered to the front-end.
pub const FEATURES: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::MTU
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN
    | feature::MRG_RXBUF
    | feature::STATUS
    | feature::CTRL_VQ
    | feature::CTRL_RX
    | feature::GUEST_ANNOUNCE
    | feature::MQ
    | feature::CTRL_MAC_ADDR
    | feature::LOG_ALL
    | feature::ANY_LAYOUT
    | feature::INDIRECT_DESC
    | feature::EVENT_IDX
    | feature::PROTOCOL_FEATURES
    | feature::VERSION_1
    | feature::RING_PACKED
    | feature::IN_ORDER;

/// Protocol features offered to the front-end.
pub const PROTOCOL_FEATURES: u64 = protocol::MQ
    | protocol::LOG_SHMFD
    | protocol::RARP
    | protocol::REPLY_ACK
    | protocol::NET_MTU
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS;

/// Most regions of memory (`VHOST_USER_GET_MAX_MEM_SLOTS`): as many as QEMU asks for.
pub const MAX_SLOTS: usize = 509;
/// Most queue pairs of a port: ring indices are 8 bits in `SET_VRING_KICK`.
pub const MAX_QUEUE_PAIRS: u16 = 128;
/// Announcements that wait for the rings to start, at most.
const MAX_ANNOUNCE: usize = 16;

/// What a port offers its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Queue pairs, 1 to [`MAX_QUEUE_PAIRS`].
    pub queue_pairs: u16,
    /// MTU of the port in IP bytes: the most that a guest may be told to have.
    pub mtu: u16,
}

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Feature bits that were not offered.
    #[error("{what} {bits:#x} were not offered")]
    NotOffered {
        /// Which kind of features.
        what: &'static str,
        /// The bits.
        bits: u64,
    },
    /// A ring that the port does not have.
    #[error("ring {index}: the port has {rings}, two for each queue pair")]
    NoRing {
        /// Index of the ring.
        index: u16,
        /// Rings of the port.
        rings: usize,
    },
    /// A value out of range.
    #[error("{what} {value:#x} is not allowed; {allowed}")]
    Value {
        /// What it is.
        what: &'static str,
        /// The value.
        value: u64,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Memory that cannot be mapped.
    #[error("cannot map guest memory")]
    Map(#[from] MapError),
    /// A region to remove that is not there.
    #[error("no memory region at guest address {:#x} of {:#x} bytes", .0.guest_addr, .0.len)]
    NoRegion(RegionKey),
    /// The in-flight region.
    #[error("in-flight region")]
    Inflight(#[from] InflightError),
    /// An eventfd.
    #[error("eventfd of ring {index}")]
    Notify {
        /// Index of the ring.
        index: u16,
        /// What was wrong with it.
        source: NotifyError,
    },
    /// A ring that cannot start.
    #[error("ring {index} cannot start")]
    Ring {
        /// Index of the ring.
        index: u16,
        /// Why not.
        source: PortFault,
    },
    /// A descriptor could not be duplicated.
    #[error("cannot duplicate a file descriptor")]
    Duplicate(#[source] std::io::Error),
}

/// The state of a connection.
pub struct Session {
    offer: Offer,
    features: u64,
    protocol: u64,
    /// The virtio device status, as the front-end passed it on.
    device_status: u8,
    regions: Vec<RegionSpec>,
    memory: Option<Arc<Memory>>,
    log: Option<Arc<DirtyLog>>,
    inflight: Option<Inflight>,
    vrings: Vec<Vring>,
    announce: Vec<Mac>,
    guest_mtu: Option<u16>,
}

impl Session {
    /// A new connection to a port with this offer.
    pub fn new(offer: Offer) -> Session {
        let rings = 2 * usize::from(offer.queue_pairs);
        Session {
            offer,
            features: 0,
            protocol: 0,
            device_status: 0,
            regions: Vec::new(),
            memory: None,
            log: None,
            inflight: None,
            vrings: (0..rings).map(|_| Vring::default()).collect(),
            announce: Vec::new(),
            guest_mtu: None,
        }
    }

    /// The features that driver and device agreed on.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The MTU that the guest was told, in IP bytes.
    pub fn guest_mtu(&self) -> Option<u16> {
        self.guest_mtu
    }

    /// Rings that are ready to run.
    pub fn ready_rings(&self) -> usize {
        self.vrings.iter().filter(|vring| vring.is_ready()).count()
    }

    /// Whether requests are acknowledged that ask for it (`VHOST_USER_PROTOCOL_F_REPLY_ACK`).
    pub fn acknowledges(&self) -> bool {
        self.protocol & protocol::REPLY_ACK != 0
    }

    /// The fault that keeps the port out of service, if there is one.
    pub fn fault(&self) -> Option<PortFault> {
        self.vrings.iter().find_map(|vring| vring.fault)
    }

    /// Whether the rings must be out of service while `message` is handled.
    pub fn disturbs(&self, message: &Message) -> bool {
        match message {
            Message::GetFeatures
            | Message::SetOwner
            | Message::GetProtocolFeatures
            | Message::SetProtocolFeatures(_)
            | Message::GetQueueNum
            | Message::NetSetMtu(_)
            | Message::GetInflightFd(_)
            | Message::GetMaxMemSlots
            | Message::GetStatus => false,
            Message::SetStatus(status) => *status == 0,
            Message::SetFeatures(features) => *features != self.features,
            Message::SetVringEnable(state) => self
                .vrings
                .get(usize::from(state.index))
                .is_none_or(|vring| vring.enabled != (state.num != 0)),
            _ => true,
        }
    }

    /// Handles a message, and says what it is answered with if it is one that has an answer.
    pub fn handle(&mut self, message: Message) -> Result<Option<Reply>, SessionError> {
        match message {
            Message::GetFeatures => return number(FEATURES),
            Message::GetProtocolFeatures => return number(PROTOCOL_FEATURES),
            Message::GetQueueNum => return number(self.offer.queue_pairs.into()),
            Message::GetMaxMemSlots => return number(MAX_SLOTS as u64),
            Message::GetStatus => return number(self.device_status.into()),
            Message::GetVringBase(state) => return self.stop_ring(state.index).map(Some),
            Message::GetInflightFd(desc) => {
                let (desc, fd) =
                    Inflight::create(&desc, self.is_packed(), self.vrings.len() as u16)?;
                return Ok(Some(Reply {
                    body: desc.to_bytes(),
                    fd: Some(fd),
                }));
            }
            Message::SetLogBase { size, offset, fd } => {
                self.log = Some(Arc::new(DirtyLog::map(fd, offset, size)?));
                self.apply_log()?;
                // The one reply without a body.
                return Ok(Some(Reply::default()));
            }
            Message::SetOwner => {}
            Message::ResetOwner => self
                .vrings
                .iter_mut()
                .for_each(|vring| vring.enabled = false),
            Message::SetFeatures(features) => self.set_features(features)?,
            Message::SetProtocolFeatures(bits) => {
                refuse_unknown("protocol features", bits, PROTOCOL_FEATURES)?;
                self.protocol = bits;
            }
            Message::SetMemTable(regions) => self.set_regions(regions)?,
            Message::AddMemReg(region) => self.add_region(region)?,
            Message::RemMemReg(key) => self.remove_region(key)?,
            Message::SetInflightFd(desc, fd) => {
                self.inflight = Some(Inflight::map(
                    &desc,
                    fd,
                    self.is_packed(),
                    self.vrings.len() as u16,
                )?);
            }
            Message::SendRarp(mac) => self.add_announcement(mac)?,
            Message::NetSetMtu(mtu) => self.set_mtu(mtu)?,
            Message::ResetDevice | Message::SetStatus(0) => self.reset(),
            Message::SetStatus(status) => {
                let value = SessionError::Value {
                    what: "device status",
                    value: status,
                    allowed: "it is one byte",
                };
                self.device_status = u8::try_from(status).map_err(|_| value)?;
            }
            message => self.handle_vring(message)?,
        }
        Ok(None)
    }

    fn handle_vring(&mut self, message: Message) -> Result<(), SessionError> {
        match message {
            Message::SetVringNum(state) => {
                let size = u16::try_from(state.num)
                    .ok()
                    .filter(|size| (1..=32_768).contains(size));
                self.vring(state.index)?.size = size.ok_or(SessionError::Value {
                    what: "ring size",
                    value: state.num.into(),
                    allowed: "1 to 32768 are",
                })?;
            }
            Message::SetVringAddr(addr) => self.vring(addr.index)?.addr = Some(addr),
            Message::SetVringBase(state) => self.vring(state.index)?.base = state.num,
            Message::SetVringEnable(state) => self.vring(state.index)?.enabled = state.num != 0,
            Message::SetVringKick(vring) => {
                let (vring, fd) = self.vring_fd(vring)?;
                vring.kick = fd.map_or(Kick::Poll, Kick::Fd);
            }
            Message::SetVringCall(vring) => {
                let (vring, fd) = self.vring_fd(vring)?;
                vring.call = fd;
            }
            Message::SetVringErr(vring) => {
                let (vring, fd) = self.vring_fd(vring)?;
                vring.err = fd;
            }
            // `handle` deals with all others.
            _ => {}
        }
        Ok(())
    }

    fn vring(&mut self, index: u16) -> Result<&mut Vring, SessionError> {
        let rings = self.vrings.len();
        self.vrings
            .get_mut(usize::from(index))
            .ok_or(SessionError::NoRing { index, rings })
    }

    fn vring_fd(
        &mut self,
        message: VringFd,
    ) -> Result<(&mut Vring, Option<Arc<OwnedFd>>), SessionError> {
        let VringFd { index, fd } = message;
        let vring = self.vring(index)?;
        let fd = fd
            .map(notify::adopt)
            .transpose()
            .map_err(|source| SessionError::Notify { index, source })?;
        Ok((vring, fd.map(Arc::new)))
    }

    fn is_packed(&self) -> bool {
        self.features & feature::RING_PACKED != 0
    }

    fn set_features(&mut self, features: u64) -> Result<(), SessionError> {
        refuse_unknown("features", features, FEATURES)?;
        self.features = features;
        if features & feature::PROTOCOL_FEATURES == 0 {
            self.vrings
                .iter_mut()
                .for_each(|vring| vring.enabled = true);
        }
        self.apply_log()
    }

    fn set_regions(&mut self, regions: Vec<RegionSpec>) -> Result<(), SessionError> {
        let copies = regions
            .iter()
            .map(duplicate)
            .collect::<Result<Vec<_>, _>>()?;
        self.memory = if copies.is_empty() {
            None
        } else {
            Some(Arc::new(Memory::map(copies)?))
        };
        self.regions = regions;
        self.apply_log()
    }

    fn add_region(&mut self, region: RegionSpec) -> Result<(), SessionError> {
        let value = self.regions.len() as u64;
        if self.regions.len() >= MAX_SLOTS {
            return Err(SessionError::Value {
                what: "memory slot",
                value,
                allowed: "there are 509",
            });
        }
        let mut regions = std::mem::take(&mut self.regions);
        regions.push(region);
        self.set_regions(regions)
    }

    fn remove_region(&mut self, key: RegionKey) -> Result<(), SessionError> {
        let matches = |region: &RegionSpec| {
            RegionKey {
                guest_addr: region.guest_addr,
                user_addr: region.user_addr,
                len: region.len,
            } == key
        };
        let at = self
            .regions
            .iter()
            .position(matches)
            .ok_or(SessionError::NoRegion(key))?;
        let mut regions = std::mem::take(&mut self.regions);
        regions.remove(at);
        self.set_regions(regions)
    }

    /// Turns logging on or off, as features, log and memory say.
    fn apply_log(&mut self) -> Result<(), SessionError> {
        if let Some(memory) = &self.memory {
            let on = self.features & feature::LOG_ALL != 0;
            memory.set_dirty_log(self.log.clone().filter(|_| on))?;
        }
        Ok(())
    }

    fn add_announcement(&mut self, mac: Mac) -> Result<(), SessionError> {
        let value = mac.to_u64();
        if !mac.is_station() {
            return Err(SessionError::Value {
                what: "announced address",
                value,
                allowed: "station addresses are",
            });
        }
        if self.announce.len() >= MAX_ANNOUNCE {
            return Err(SessionError::Value {
                what: "announced address",
                value,
                allowed: "16 at a time are",
            });
        }
        self.announce.push(mac);
        Ok(())
    }

    fn set_mtu(&mut self, mtu: u64) -> Result<(), SessionError> {
        let value = SessionError::Value {
            what: "MTU",
            value: mtu,
            allowed: "68 to the MTU of the port is",
        };
        let mtu = u16::try_from(mtu)
            .ok()
            .filter(|mtu| (68..=self.offer.mtu).contains(mtu))
            .ok_or(value)?;
        self.guest_mtu = Some(mtu);
        Ok(())
    }

    /// Everything is forgotten but where the rings stood: QEMU 7.2 resets the device before it asks for that when it
    /// stops a VM, and a migrated guest goes on there. A ring that is started again is told anew where it starts.
    fn reset(&mut self) {
        self.features = 0;
        self.device_status = 0;
        self.inflight = None;
        self.announce.clear();
        for vring in &mut self.vrings {
            *vring = Vring {
                base: vring.base,
                ..Vring::default()
            };
        }
    }

    fn stop_ring(&mut self, index: u16) -> Result<Reply, SessionError> {
        let packed = self.is_packed();
        let Session {
            vrings, inflight, ..
        } = self;
        let rings = vrings.len();
        let vring = vrings
            .get_mut(usize::from(index))
            .ok_or(SessionError::NoRing { index, rings })?;
        if let Some(inflight) = inflight
            && packed
            && vring.size > 0
        {
            let forgotten = inflight
                .place(index, vring.size)
                .and_then(|place| place.forget());
            forgotten.map_err(|source| SessionError::Ring { index, source })?;
        }
        let mut body = u32::from(index).to_ne_bytes().to_vec();
        body.extend(vring.base.to_ne_bytes());
        vring.stop();
        Ok(Reply { body, fd: None })
    }

    /// Builds the sides over all rings that are ready. `None` if there is none, or a fault keeps the port out of
    /// service.
    pub fn start(&mut self) -> Result<Option<Sides>, SessionError> {
        let Some(memory) = self.memory.clone().filter(|_| self.fault().is_none()) else {
            return Ok(None);
        };
        let (mut tx, mut rx) = (Vec::new(), Vec::new());
        for (index, vring) in self
            .vrings
            .iter()
            .enumerate()
            .filter(|(_, vring)| vring.is_ready())
        {
            let index = index as u16;
            let parts = super::vring::Context {
                memory: &memory,
                features: self.features,
                inflight: self.inflight.as_ref(),
            };
            let error = |source| SessionError::Ring { index, source };
            if index % 2 == 1 {
                tx.push(vring.build_tx(index, &parts).map_err(error)?);
            } else {
                rx.push(vring.build_rx(index, &parts).map_err(error)?);
            }
        }
        if tx.is_empty() && rx.is_empty() {
            return Ok(None);
        }
        let announce = std::mem::take(&mut self.announce);
        let tx = Box::new(VhostTx::new(memory, tx, announce));
        Ok(Some(Sides {
            tx,
            rx: Box::new(VhostRx::new(rx)),
        }))
    }

    /// Takes sides that this session built out of service, and keeps where their rings stood.
    pub fn take_back(&mut self, sides: Sides) {
        let mut stopped: Vec<Stopped> = Vec::new();
        if let Ok(tx) = (sides.tx as Box<dyn Any>).downcast::<VhostTx>() {
            let (queues, announce) = tx.into_stopped();
            stopped.extend(queues);
            self.announce = announce;
        }
        if let Ok(rx) = (sides.rx as Box<dyn Any>).downcast::<VhostRx>() {
            stopped.extend(rx.into_stopped());
        }
        for Stopped { index, base, fault } in stopped {
            if let Some(vring) = self.vrings.get_mut(usize::from(index)) {
                vring.base = base;
                vring.fault = fault;
            }
        }
    }
}

fn number(value: u64) -> Result<Option<Reply>, SessionError> {
    Ok(Some(Reply {
        body: value.to_ne_bytes().to_vec(),
        fd: None,
    }))
}

fn refuse_unknown(what: &'static str, bits: u64, offered: u64) -> Result<(), SessionError> {
    let bits = bits & !offered;
    if bits == 0 {
        Ok(())
    } else {
        Err(SessionError::NotOffered { what, bits })
    }
}

fn duplicate(spec: &RegionSpec) -> Result<RegionSpec, SessionError> {
    let fd = spec.fd.try_clone().map_err(SessionError::Duplicate)?;
    Ok(RegionSpec { fd, ..*spec })
}

#[cfg(test)]
mod tests;

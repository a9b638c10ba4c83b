//! A guest for tests: a virtio-net driver over memory of its own, and a vhost-user front-end.
//!
//! It can lay frames and buffers out over descriptors in any way, and is fast enough to measure the switch with:
//! [`Guest::send_burst`] and [`Guest::receive_burst`] allocate nothing.

mod buffers;
mod frontend;
mod ring;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use guestmem::{Fault, MapError, Memory, RegionSpec};
use offload::VirtioNetHdr;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

pub use buffers::{GuestRing, Layout};
pub use frontend::{Frontend, FrontendError};
pub use ring::{DriverRing, RingAddr, RingSetup};

use super::message::{Message, VringAddr, VringFd, VringState};
use super::ring::DESC_LEN;
use super::session::{Session, SessionError};
use super::{feature, notify, protocol};
use crate::port::Sides;

/// Guest address of the first byte of memory.
const GUEST_BASE: u64 = 0x10_0000;
/// Address of the first byte in the front-end.
const USER_BASE: u64 = 0x7f00_0000_0000;
/// Most pieces that a frame or buffer is laid out in.
pub const MAX_PIECES: usize = 128;
/// Bytes of an indirect table for that many.
const TABLE_LEN: u64 = (MAX_PIECES * DESC_LEN) as u64;

/// A guest to make.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Feature bits the driver negotiates; they also decide on the format of the rings.
    pub features: u64,
    /// Descriptors of each ring.
    pub queue_size: u16,
    /// Queue pairs.
    pub pairs: u16,
    /// Bytes of a buffer, virtio header included.
    pub buffer_len: u32,
    /// Order in which descriptors are used; empty for ascending.
    pub order: Vec<u16>,
    /// Regions that memory is cut in.
    pub regions: u64,
}

impl Default for Setup {
    fn default() -> Self {
        let features = feature::VERSION_1 | feature::MRG_RXBUF | feature::PROTOCOL_FEATURES;
        Setup {
            features,
            queue_size: 256,
            pairs: 1,
            buffer_len: 2048,
            order: Vec::new(),
            regions: 1,
        }
    }
}

/// Why a guest could not be made or driven.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Its memory cannot be had.
    #[error("cannot map the memory of a test guest")]
    Map(#[from] MapError),
    /// A file descriptor cannot be had.
    #[error("cannot make a file descriptor for a test guest")]
    System(#[from] rustix::io::Errno),
    /// Its own memory is gone.
    #[error("access to the memory of a test guest")]
    Fault(#[from] Fault),
    /// The session refused its messages.
    #[error("the session refused the test guest")]
    Session(#[from] SessionError),
    /// The setup does not fit together.
    #[error("the setup of a test guest is contradictory")]
    Setup,
}

/// A guest: its memory and its rings.
pub struct Guest {
    setup: Setup,
    memory: Arc<Memory>,
    fd: OwnedFd,
    len: u64,
    /// Rings by index: 2n receives, 2n + 1 transmits.
    pub rings: Vec<GuestRing>,
}

/// A frame that the guest received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its header.
    pub header: VirtioNetHdr,
    /// Its bytes.
    pub frame: Vec<u8>,
}

pub(super) fn round_up(len: u64) -> u64 {
    len.next_multiple_of(64)
}

impl Setup {
    fn ring(&self) -> RingSetup {
        RingSetup {
            packed: self.features & feature::RING_PACKED != 0,
            event_idx: self.features & feature::EVENT_IDX != 0,
            in_order: self.features & feature::IN_ORDER != 0,
            size: self.queue_size,
        }
    }

    fn header_len(&self) -> usize {
        if self.features & (feature::VERSION_1 | feature::MRG_RXBUF) != 0 {
            12
        } else {
            10
        }
    }
}

impl Guest {
    /// Makes a guest; its rings are empty.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn new(setup: Setup) -> Result<Guest, GuestError> {
        let size = u64::from(setup.queue_size);
        let parts: u64 = setup
            .ring()
            .part_lens()
            .iter()
            .map(|&len| round_up(len as u64))
            .sum();
        let tables = TABLE_LEN * size;
        let per_ring = parts + tables + round_up(setup.buffer_len.into()) * size;
        let len =
            (per_ring * 2 * u64::from(setup.pairs)).next_multiple_of(4096 * setup.regions.max(1));
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, len)?;
        let memory = Arc::new(Memory::map(
            regions(&fd, len, 1).map_err(|_| GuestError::Setup)?,
        )?);
        let rings = (0..2 * u64::from(setup.pairs))
            .map(|index| GuestRing::new(&memory, &setup, GUEST_BASE + index * per_ring))
            .collect::<Result<_, _>>()?;
        Ok(Guest {
            setup,
            memory,
            fd,
            len,
            rings,
        })
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The file that the memory is in.
    pub fn memory_fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// What the guest was made from.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The memory table.
    ///
    /// # Errors
    /// No more file descriptors.
    pub fn mem_table(&self) -> std::io::Result<Vec<RegionSpec>> {
        regions(&self.fd, self.len, self.setup.regions.max(1))
    }

    /// The messages of a front-end, after those that ask for features, that set the device up and start it.
    ///
    /// # Errors
    /// No more file descriptors.
    pub fn messages(&self) -> std::io::Result<Vec<Message>> {
        let protocol =
            protocol::MQ | protocol::REPLY_ACK | protocol::CONFIGURE_MEM_SLOTS | protocol::NET_MTU;
        let mut messages = vec![
            Message::SetOwner,
            Message::SetProtocolFeatures(protocol),
            Message::SetFeatures(self.setup.features),
            Message::SetMemTable(self.mem_table()?),
        ];
        for index in 0..self.rings.len() as u16 {
            messages.extend(self.ring_messages(index)?);
        }
        Ok(messages)
    }

    /// The messages that start one ring.
    ///
    /// # Errors
    /// No more file descriptors.
    pub fn ring_messages(&self, index: u16) -> std::io::Result<Vec<Message>> {
        let Some(ring) = self.rings.get(usize::from(index)) else {
            return Ok(Vec::new());
        };
        let user = |guest: u64| guest - GUEST_BASE + USER_BASE;
        let RingAddr { table, avail, used } = ring.addr;
        // Packed rings start with both wrap counters at 1.
        let base = if self.setup.ring().packed {
            0x8000_8000
        } else {
            0
        };
        Ok(vec![
            Message::SetVringNum(VringState {
                index,
                num: self.setup.queue_size.into(),
            }),
            Message::SetVringBase(VringState { index, num: base }),
            Message::SetVringAddr(VringAddr {
                index,
                table: user(table),
                avail: user(avail),
                used: user(used),
            }),
            Message::SetVringKick(VringFd {
                index,
                fd: Some(ring.kick.try_clone()?),
            }),
            Message::SetVringCall(VringFd {
                index,
                fd: Some(ring.call.try_clone()?),
            }),
            Message::SetVringEnable(VringState { index, num: 1 }),
        ])
    }

    /// Starts the device in a session of this process, without a socket.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn start_in(&self, session: &mut Session) -> Result<Sides, GuestError> {
        for message in self.messages().map_err(|_| GuestError::Setup)? {
            session.handle(message)?;
        }
        session.start()?.ok_or(GuestError::Setup)
    }

    /// Ring `index`.
    ///
    /// # Errors
    /// There is no such ring.
    pub fn ring(&mut self, index: usize) -> Result<&mut GuestRing, GuestError> {
        self.rings.get_mut(index).ok_or(GuestError::Setup)
    }

    /// Sends a frame on queue pair `pair`. False if the ring is full. Not visible before [`Guest::publish`].
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn send(
        &mut self,
        pair: usize,
        header: &VirtioNetHdr,
        frame: &[u8],
        layout: &Layout,
    ) -> Result<bool, GuestError> {
        let header_len = self.setup.header_len();
        let memory = Arc::clone(&self.memory);
        let mut bytes = header.to_bytes().get(..header_len).unwrap_or(&[]).to_vec();
        bytes.extend(frame);
        let ring = self.ring(2 * pair + 1)?;
        ring.reclaim()?;
        let Some(id) = ring.post(bytes.len() as u32, layout, false)? else {
            return Ok(false);
        };
        let mut left = bytes.as_slice();
        for piece in ring.pieces_of(id) {
            let (now, rest) = left
                .split_at_checked(piece.len as usize)
                .ok_or(GuestError::Setup)?;
            memory.write(
                memory
                    .span(piece.addr, piece.len)
                    .ok_or(GuestError::Setup)?,
                now,
            )?;
            left = rest;
        }
        Ok(true)
    }

    /// Gives the device a receive buffer of `len` bytes. False if the ring is full. Not visible before
    /// [`Guest::publish`].
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn post_receive(
        &mut self,
        pair: usize,
        len: u32,
        layout: &Layout,
    ) -> Result<bool, GuestError> {
        Ok(self.ring(2 * pair)?.post(len, layout, true)?.is_some())
    }

    /// Makes what was added to ring `index` visible, and notifies the device if it wants that. True if it did.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn publish(&mut self, index: usize) -> Result<bool, GuestError> {
        let ring = self.ring(index)?;
        let wanted = ring.ring.publish()?;
        if wanted {
            notify::signal(&ring.kick);
        }
        Ok(wanted)
    }

    /// Takes the next frame received on queue pair `pair`.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn receive(&mut self, pair: usize) -> Result<Option<Received>, GuestError> {
        let header_len = self.setup.header_len();
        let mergeable = self.setup.features & feature::MRG_RXBUF != 0;
        let memory = Arc::clone(&self.memory);
        let ring = self.ring(2 * pair)?;
        let mut bytes = Vec::new();
        if !ring.take_into(&memory, &mut bytes)? {
            return Ok(None);
        }
        let mut fixed = [0; VirtioNetHdr::LEN];
        let header = bytes.get(..header_len).ok_or(GuestError::Setup)?;
        fixed
            .get_mut(..header_len)
            .ok_or(GuestError::Setup)?
            .copy_from_slice(header);
        let header = VirtioNetHdr::from_bytes(&fixed);
        for _ in 1..if mergeable { header.num_buffers } else { 1 } {
            if !ring.take_into(&memory, &mut bytes)? {
                return Err(GuestError::Setup);
            }
        }
        Ok(Some(Received {
            header,
            frame: bytes.split_off(header_len),
        }))
    }

    /// Fills every free transmit buffer of pair `pair` with one of `frames` in turn, behind an empty header, for
    /// [`Guest::send_burst`].
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn prepare_sending<F: AsRef<[u8]>>(
        &mut self,
        pair: usize,
        frames: &[F],
    ) -> Result<(), GuestError> {
        let header = vec![0; self.setup.header_len()];
        let memory = Arc::clone(&self.memory);
        let free = self.ring(2 * pair + 1)?.free.iter();
        for (buffer, frame) in free.zip(frames.iter().cycle()) {
            let mut at = *buffer;
            for bytes in [&header, frame.as_ref()] {
                let to = memory.span(at, bytes.len() as u32);
                memory.write(to.ok_or(GuestError::Setup)?, bytes)?;
                at += bytes.len() as u64;
            }
        }
        Ok(())
    }

    /// Takes used buffers back and sends up to `count` prepared frames of `len` bytes, one descriptor each. How many
    /// it sent.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn send_burst(&mut self, pair: usize, len: u32, count: usize) -> Result<usize, GuestError> {
        let len = len + self.setup.header_len() as u32;
        let ring = self.ring(2 * pair + 1)?;
        ring.reclaim()?;
        let mut sent = 0;
        while sent < count && ring.post_plain(len, false)? {
            sent += 1;
        }
        if sent > 0 && ring.ring.publish()? {
            notify::signal(&ring.kick);
        }
        Ok(sent)
    }

    /// Takes up to `count` received buffers, without looking at them, and gives the ring full buffers again. How many
    /// it took.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn receive_burst(&mut self, pair: usize, count: usize) -> Result<usize, GuestError> {
        let len = self.setup.buffer_len;
        let ring = self.ring(2 * pair)?;
        let mut taken = 0;
        while taken < count && ring.reclaim_one()? {
            taken += 1;
        }
        while ring.post_plain(len, true)? {}
        if ring.ring.publish()? {
            notify::signal(&ring.kick);
        }
        Ok(taken)
    }

    /// The first 64 bytes of the buffer that chain `id` of ring `index` is, or was last.
    pub fn first_bytes(&self, index: usize, id: u16) -> [u8; 64] {
        let mut bytes = [0; 64];
        if let Some(span) = self.memory.span(self.buffer_addr(index, id), 64) {
            let _ = self.memory.read(span, &mut bytes);
        }
        bytes
    }

    /// Address of the buffer that chain `id` of ring `index` is, or was last.
    pub fn buffer_addr(&self, index: usize, id: u16) -> u64 {
        let ring = self.rings.get(index);
        ring.and_then(|ring| ring.posted.get(usize::from(id)))
            .map_or(0, |posted| posted.buffer)
    }

    /// Whether the device has notified the driver of ring `index` since the last call.
    pub fn was_called(&mut self, index: usize) -> bool {
        let zero = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let Some(ring) = self.rings.get(index) else {
            return false;
        };
        let mut fds = [rustix::event::PollFd::new(
            &ring.call,
            rustix::event::PollFlags::IN,
        )];
        let called = rustix::event::poll(&mut fds, Some(&zero)).is_ok_and(|ready| ready > 0);
        notify::drain(ring.call.as_fd());
        called
    }
}

/// The memory of `len` bytes in `fd`, in `count` adjacent regions.
fn regions(fd: &OwnedFd, len: u64, count: u64) -> std::io::Result<Vec<RegionSpec>> {
    let part = len / count;
    let region = |index: u64| {
        let (guest_addr, user_addr) = (GUEST_BASE + index * part, USER_BASE + index * part);
        Ok(RegionSpec {
            guest_addr,
            user_addr,
            len: part,
            fd: fd.try_clone()?,
            fd_offset: index * part,
        })
    };
    (0..count).map(region).collect()
}

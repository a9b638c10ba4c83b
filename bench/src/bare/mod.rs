//! A guest whose driver does nothing but keep its rings busy.
//!
//! Every frame costs it what a driver cannot do without: a descriptor, an entry of the available ring and the first
//! cache line of the buffer, written when it sends; the used entry and the first cache line, read when it receives.

mod packed;
mod split;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use guestmem::{Fault, Memory, Window};
use vswitch::ports::vhost::driver::{Guest as Front, RingAddr, Setup};
use vswitch::ports::vhost::notify;

use self::{packed::Packed, split::Split};
use crate::case::{Case, word};
use crate::stats::Histogram;

/// Bytes of a mergeable receive buffer.
pub(crate) const BUFFER: u32 = 2048;
/// Bytes of the virtio header.
const HEADER: usize = 12;
/// Bytes of a cache line.
const LINE: usize = 64;
/// The broadcast address as [`word`] gives it.
const EVERYBODY: u64 = 0xffff_ffff_ffff;
/// Where a frame carries the time at which it was sent: behind all headers.
const STAMP: usize = 56;
/// The shortest frame that has room for a time.
pub(crate) const STAMPED: u32 = 60;
/// From one address to the next: a walk that no prefetcher follows, and that reaches all of 1,000, 50,000 or 100,000.
const STEP: u32 = 40_503;

/// The driver's half of a virtqueue whose buffers take one descriptor each.
trait Ring: Sized + Send + 'static {
    /// The empty ring of `size` descriptors at `addr`.
    fn new(memory: &Arc<Memory>, size: u16, addr: RingAddr) -> Option<Self>;
    /// The next used buffer: its id, and the bytes written.
    fn take(&mut self) -> Result<Option<(u16, u32)>, Fault>;
    /// Asks for the lines that giving buffer `id` will write.
    fn fetch(&self, id: u16);
    /// Makes a buffer available. The device may see it only after [`Ring::publish`].
    fn give(&mut self, id: u16, addr: u64, len: u32, writable: bool) -> Result<(), Fault>;
    /// Shows the device what was given.
    fn publish(&mut self) -> Result<(), Fault>;
    /// Whether the device wants to be notified of what was published.
    fn wants_kick(&self) -> Result<bool, Fault>;
}

/// Addresses that frames take in turn.
#[derive(Clone, Copy)]
struct Walk {
    guest: u8,
    count: u32,
    step: u32,
    at: u32,
}

impl Walk {
    /// Through `count` stations of `guest`, from the one with index `at` on.
    fn new(guest: u8, count: u32, at: u32) -> Self {
        Walk {
            guest,
            count,
            step: STEP % count,
            at,
        }
    }

    /// The next address, in the low 48 bits as it lies in memory.
    #[inline]
    fn next(&mut self) -> u64 {
        let address = word(self.guest, self.at);
        self.at += self.step;
        if self.at >= self.count {
            self.at -= self.count;
        }
        address
    }
}

/// Sends frames.
pub(crate) trait Sends: Send {
    /// Takes sent buffers back and sends up to `limit` frames, `stamp` in each of them if it is given. How many it sent:
    /// fewer where the ring has no room.
    fn send(&mut self, limit: usize, stamp: Option<u64>) -> Result<usize, Fault>;
    /// Sends to a guest from now on, or to everybody.
    fn aim(&mut self, destination: Option<u8>);
    /// Sends from `count` addresses in turn, from the one with index `first` on.
    fn sources(&mut self, first: u32, count: u32);
    /// Sends to `count` addresses in turn.
    fn destinations(&mut self, count: u32);
}

/// What was received.
#[derive(Clone, Copy, Default)]
pub(crate) struct Taken {
    pub(crate) frames: u64,
    /// Bytes of frames, without virtio headers.
    pub(crate) bytes: u64,
}

/// Receives frames.
pub(crate) trait Receives: Send {
    /// Takes up to `limit` buffers and gives them to the device again. The age of frames at `now` goes to `ages`.
    fn receive(
        &mut self,
        limit: usize,
        ages: Option<(&mut Histogram, u64)>,
    ) -> Result<Taken, Fault>;
}

struct Tx<R> {
    ring: R,
    area: Window,
    first: u64,
    stride: usize,
    free: VecDeque<u16>,
    /// Bytes of header and frame.
    len: u32,
    /// Header and frame, written again for each frame if payload is touched.
    image: Vec<u8>,
    /// The header as two words, the second one with room for the first half of the destination's address.
    header: [u64; 2],
    touched: bool,
    source: Walk,
    destination: Walk,
    everybody: bool,
    kick: OwnedFd,
    /// Frames were published, and it is not known whether the device sleeps.
    unheard: bool,
}

impl<R: Ring> Tx<R> {
    #[inline(always)]
    fn write(&mut self, at: usize, stamp: Option<u64>) -> Result<(), Fault> {
        if self.touched {
            self.area.write(at, &self.image)?;
        }
        let (to, from) = (self.destination.next(), self.source.next());
        let to = if self.everybody { EVERYBODY } else { to };
        // Header and addresses as whole words: pieces put together in memory would be waited for.
        let [first, second] = self.header;
        let words = [first, second | to << 32, to >> 32 | from << 16];
        for (index, word) in words.into_iter().enumerate() {
            self.area
                .store_u64(at + 8 * index, word, Ordering::Relaxed)?;
        }
        match stamp {
            Some(stamp) => self.area.write(at + STAMP, &stamp.to_ne_bytes()),
            None => Ok(()),
        }
    }
}

impl<R: Ring> Sends for Tx<R> {
    fn send(&mut self, limit: usize, stamp: Option<u64>) -> Result<usize, Fault> {
        let mut sent = 0;
        while sent < limit
            && let Some(id) = self.free.pop_front()
        {
            let at = usize::from(id) * self.stride;
            self.write(at, stamp)?;
            self.ring
                .give(id, self.first + at as u64, self.len, false)?;
            sent += 1;
        }
        if sent > 0 {
            self.ring.publish()?;
            self.unheard = true;
        }
        // The lines of what is taken back now are there when the next frames are written.
        for _ in 0..limit.max(64) {
            let Some((id, _)) = self.ring.take()? else {
                break;
            };
            self.ring.fetch(id);
            let at = usize::from(id) * self.stride;
            self.area.prefetch_write(at);
            if self.touched {
                let rest = (at..at + self.len as usize).step_by(LINE).skip(1);
                rest.for_each(|at| self.area.prefetch_write(at));
            }
            self.free.push_back(id);
        }
        if sent == 0 && self.unheard {
            // To ask costs a fence, so it is left until there is nothing else to do.
            self.unheard = false;
            if self.ring.wants_kick()? {
                notify::signal(&self.kick);
            }
        }
        Ok(sent)
    }

    fn aim(&mut self, destination: Option<u8>) {
        self.everybody = destination.is_none();
        if let Some(guest) = destination {
            self.destination.guest = guest;
        }
    }

    fn sources(&mut self, first: u32, count: u32) {
        self.source = Walk::new(self.source.guest, count, first);
    }

    fn destinations(&mut self, count: u32) {
        self.destination = Walk::new(self.destination.guest, count, 0);
    }
}

/// Where frames begin and end in the buffers they are received in.
struct Frames {
    /// Buffers of the current frame that are still to come.
    continued: u16,
    touched: bool,
    scratch: Vec<u8>,
}

impl Frames {
    /// Looks at a used buffer as a driver must; a frame starts in it or goes on.
    #[inline(always)]
    fn look(&mut self, area: &Window, at: usize, len: u32, taken: &mut Taken) -> Result<(), Fault> {
        let word = area.load_u64(at + 8, Ordering::Relaxed)?;
        if self.continued == 0 {
            self.continued = ((word >> 16) as u16).saturating_sub(1);
            taken.frames += 1;
            taken.bytes += u64::from(len) - HEADER as u64;
        } else {
            self.continued -= 1;
            taken.bytes += u64::from(len);
        }
        match self.scratch.get_mut(..len as usize) {
            Some(to) if self.touched => area.read(at, to),
            _ => Ok(()),
        }
    }
}

struct Rx<R> {
    ring: R,
    area: Window,
    first: u64,
    stride: usize,
    frames: Frames,
    /// Used buffers that were taken and not yet looked at.
    waiting: VecDeque<(u16, u32)>,
}

impl<R: Ring> Receives for Rx<R> {
    fn receive(
        &mut self,
        limit: usize,
        mut ages: Option<(&mut Histogram, u64)>,
    ) -> Result<Taken, Fault> {
        let mut taken = Taken::default();
        // Take all, so that their first lines are on the way before the first is read.
        while self.waiting.len() < limit
            && let Some((id, len)) = self.ring.take()?
        {
            let at = usize::from(id) * self.stride;
            self.area.prefetch(at);
            if self.frames.touched {
                let rest = (at..at + len as usize).step_by(LINE).skip(1);
                rest.for_each(|at| self.area.prefetch(at));
            }
            self.ring.fetch(id);
            self.waiting.push_back((id, len));
        }
        if self.waiting.is_empty() {
            return Ok(taken);
        }
        for (id, len) in self.waiting.drain(..) {
            let at = usize::from(id) * self.stride;
            self.frames.look(&self.area, at, len, &mut taken)?;
            if let Some((ages, now)) = &mut ages {
                let mut stamp = [0; 8];
                self.area.read(at + STAMP, &mut stamp)?;
                ages.add(now.saturating_sub(u64::from_ne_bytes(stamp)));
            }
            self.ring.give(id, self.first + at as u64, BUFFER, true)?;
        }
        self.ring.publish()?;
        Ok(taken)
    }
}

/// A guest with one queue pair, ready to be started by a front-end's messages.
pub(crate) struct Guest {
    /// Its memory and the messages that start it.
    pub(crate) front: Front,
    pub(crate) tx: Box<dyn Sends>,
    pub(crate) rx: Box<dyn Receives>,
}

/// An odd number of cache lines: buffers then do not compete for the same sets of a cache.
fn stride(len: u32) -> u32 {
    (len.div_ceil(64) | 1) * 64
}

impl Guest {
    /// Guest `number`, for `case`, that sends to guest `other`. All receive buffers are available; none is sent.
    pub(crate) fn new(case: &Case, number: u8, other: u8) -> Result<Guest> {
        let image = case.image();
        let (receive, transmit) = (stride(BUFFER + 256), stride((image.len() as u32).max(1024)));
        let mut front = Front::new(Setup {
            features: case.features(),
            queue_size: case.ring,
            buffer_len: receive.max(transmit),
            ..Setup::default()
        })?;
        for ring in &mut front.rings {
            ring.ring.disarm()?;
        }
        let plan = Plan {
            case,
            number,
            other,
            image,
            stride: [receive as usize, transmit as usize],
        };
        let (tx, rx) = if case.packed {
            plan.rings::<Packed>(&front)?
        } else {
            plan.rings::<Split>(&front)?
        };
        Ok(Guest { front, tx, rx })
    }
}

/// What the rings of a guest are made of.
struct Plan<'a> {
    case: &'a Case,
    number: u8,
    other: u8,
    image: Vec<u8>,
    /// From one receive and one transmit buffer to the next.
    stride: [usize; 2],
}

impl Plan<'_> {
    fn ring<R: Ring>(&self, front: &Front, index: usize) -> Result<(R, Window, u64, OwnedFd)> {
        let ring = front.rings.get(index).context("a guest without rings")?;
        let first = ring.buffers().next().context("a ring without buffers")?;
        let stride = self.stride.get(index).copied().unwrap_or(0);
        let len = stride * usize::from(self.case.ring);
        let memory = front.memory();
        let bare = R::new(memory, self.case.ring, ring.addr()).context("a ring outside memory")?;
        let area = memory
            .window(first, len)
            .context("buffers outside memory")?;
        Ok((bare, area, first, ring.kick().try_clone()?))
    }

    fn rings<R: Ring>(self, front: &Front) -> Result<(Box<dyn Sends>, Box<dyn Receives>)> {
        let [receive, transmit] = self.stride;
        let (mut ring, area, first, _) = self.ring::<R>(front, 0)?;
        for id in 0..self.case.ring {
            ring.give(id, first + u64::from(id) * receive as u64, BUFFER, true)?;
        }
        ring.publish()?;
        let rx = Rx {
            ring,
            area,
            first,
            stride: receive,
            frames: Frames {
                continued: 0,
                touched: self.case.touched,
                scratch: vec![0; BUFFER as usize],
            },
            waiting: VecDeque::with_capacity(self.case.ring.into()),
        };
        let (ring, area, first, kick) = self.ring::<R>(front, 1)?;
        for id in 0..self.case.ring {
            area.write(usize::from(id) * transmit, &self.image)?;
        }
        let header = |range: std::ops::Range<usize>| match self.image.get(range) {
            Some(bytes) => bytes
                .iter()
                .rev()
                .fold(0, |word: u64, byte| word << 8 | u64::from(*byte)),
            None => 0,
        };
        let tx = Tx {
            ring,
            area,
            first,
            stride: transmit,
            free: (0..self.case.ring).collect(),
            len: self.image.len() as u32,
            touched: self.case.touched,
            source: Walk::new(self.number, self.case.sources, 0),
            destination: Walk::new(self.other, self.case.destinations, 0),
            everybody: false,
            header: [header(0..8), header(8..HEADER)],
            image: self.image,
            kick,
            unheard: false,
        };
        Ok((Box::new(tx), Box::new(rx)))
    }
}

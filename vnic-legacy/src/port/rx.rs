//! The receive process: frames are written into the buffers of the receive list (manual, sections 4.2.1 and 4.3.4).

use std::sync::Arc;

use arrayvec::ArrayVec;
use guestmem::{Fault, Memory, Span};
use offload::Features;
use vswitch::deliver::{Job, Report, deliver};
use vswitch::drops::DropReason;
use vswitch::mac::Mac;
use vswitch::port::{MAX_ROOM, Room, RxMeta, RxRing};

use super::filter::{Filter, FilterKind, SETUP_LEN};
use super::{Process, Shared};
use crate::csr::{mode, status};
use crate::descriptor::{BusError, ES, Format, Place, rdes0};
use crate::page::{Control, Counted, SharedPage};

/// Longest frame, without CRC: 1500 bytes and an Ethernet header.
const MAX_FRAME: u32 = 1514;
/// Shortest frame on a wire, without CRC: what comes shorter is padded with zeros (IEEE 802.3, 4.2.3.3).
const MIN_FRAME: u32 = 60;
const CRC_LEN: u32 = 4;
/// Longest packet, in IP bytes.
const MTU: u16 = 1500;

/// Why there is no room for a frame.
enum NoRoom {
    /// The next descriptor is the host's.
    NotOwned,
    /// All there was of the list does not hold the frame.
    TooSmall,
    Bus,
}

impl From<BusError> for NoRoom {
    fn from(_: BusError) -> Self {
        NoRoom::Bus
    }
}

/// The receive process.
pub(super) struct RxProcess {
    memory: Arc<Memory>,
    format: Format,
    csr6: u32,
    bus: bool,
    filter: Filter,
    state: Process,
    place: Place,
    /// Of the base in `place`.
    count: u32,
    demands: u32,
    /// Descriptors taken for the frame being written: where their status is.
    taken: ArrayVec<Span, MAX_ROOM>,
    /// Their buffers, as many bytes as the frame has with padding and CRC.
    pieces: ArrayVec<Span, MAX_ROOM>,
    /// The place behind them.
    next: Place,
    /// Bytes of the frame being written.
    len: u32,
    /// The frame as it was written, to compute its CRC.
    frame: Box<[u8]>,
    /// Status bits to be raised at the end of the burst.
    events: u32,
    missed: u32,
}

impl RxProcess {
    /// Goes on where `page` says that the last one stopped.
    pub(super) fn new(memory: Arc<Memory>, page: &SharedPage) -> RxProcess {
        let (kind, bytes) = page.filter();
        let position = page.rx_at();
        RxProcess {
            memory,
            format: Format::default(),
            csr6: 0,
            bus: false,
            filter: Filter::new(kind, &bytes),
            state: Process::Stopped,
            place: Place {
                base: 0,
                at: position.address,
            },
            count: position.count,
            demands: page.control().rx_demands,
            taken: ArrayVec::new(),
            pieces: ArrayVec::new(),
            next: Place::default(),
            len: 0,
            frame: vec![0; (MAX_FRAME + CRC_LEN) as usize].into(),
            events: 0,
            missed: 0,
        }
    }

    /// Takes over what the registers tell. `stop`: there was a bus error. Gives the status bits to be raised before
    /// [`RxProcess::show`].
    pub(super) fn take_over(&mut self, control: &Control, stop: bool) -> u32 {
        let mut events = 0;
        self.format = Format::new(control.csr0);
        self.csr6 = control.csr6;
        self.bus = control.bus;
        if control.rx_base.count != self.count {
            self.count = control.rx_base.count;
            self.place.at = control.rx_base.address;
        }
        self.place.base = control.rx_base.address;
        let start = control.csr6 & mode::SR != 0 && !stop;
        if !start {
            if self.state != Process::Stopped && !stop {
                events |= status::RPS;
            }
            self.state = Process::Stopped;
        } else if self.state == Process::Stopped {
            self.state = Process::Running;
        }
        if control.rx_demands != self.demands {
            self.demands = control.rx_demands;
            if self.state == Process::Suspended {
                // Looked at anew: what is found decides whether it is suspended once more.
                self.state = Process::Running;
                events |= self.look();
            }
        }
        events
    }

    /// Looks at the current descriptor and is suspended if it is the host's.
    fn look(&mut self) -> u32 {
        match self.place.fetch(&self.memory, self.format) {
            Ok(None) => {
                self.state = Process::Suspended;
                status::RU
            }
            // A bad address is found when a frame is to go there.
            _ => 0,
        }
    }

    /// Shows state and position.
    pub(super) fn show(&self, page: &SharedPage) {
        page.set_rx_state(match self.state {
            Process::Stopped => 0,
            Process::Running => status::RS_WAITING,
            Process::Suspended => status::RS_SUSPENDED,
        });
        page.set_rx_at(Counted {
            count: self.count,
            address: self.place.at,
        });
    }

    /// Forgets the filter, as a reset does.
    pub(super) fn reset(&mut self) {
        self.filter = Filter::new(FilterKind::None, &[0; SETUP_LEN]);
        self.state = Process::Stopped;
    }

    pub(super) fn set_filter(&mut self, filter: Filter) {
        self.filter = filter;
    }

    /// Whether frames from the network are received.
    pub(super) fn is_listening(&self) -> bool {
        self.is_running() && self.csr6 & mode::OM == 0
    }

    /// Whether frames of the adapter itself are received, in loopback.
    pub(super) fn is_running(&self) -> bool {
        self.state != Process::Stopped && self.bus
    }

    /// Delivers the frames of `job` that the filter takes. [`RxProcess::finish`] follows.
    pub(super) fn deliver(&mut self, job: &Job<'_>, report: &mut Report) {
        let mut frames = job.frames;
        for (index, frame) in job.burst.frames().iter().enumerate() {
            let bit = 1 << index;
            if frames & bit != 0 && !self.filter.receives(destination(frame.head()), self.csr6) {
                frames &= !bit;
            }
        }
        let filtered = (job.frames & !frames).count_ones();
        if filtered > 0 {
            report.dropped(DropReason::RxFilter, filtered);
        }
        let job = Job {
            frames,
            mtu: job.mtu.min(MTU),
            ..*job
        };
        deliver(self, &job, report);
    }

    /// Shows what a burst changed. The status bits to be raised.
    pub(super) fn finish(&mut self, shared: &Shared) -> u32 {
        if self.missed > 0 {
            shared.page.add_missed(std::mem::take(&mut self.missed));
        }
        let mut events = std::mem::take(&mut self.events);
        if events & status::FBE != 0 {
            self.state = Process::Stopped;
            events |= shared.bus_error();
        }
        self.show(&shared.page);
        events
    }

    /// Takes descriptors until their buffers hold `total` bytes.
    fn take(&mut self, total: u32) -> Result<(), NoRoom> {
        let mut left = total;
        self.next = self.place;
        while left > 0 {
            if !self.taken.is_empty() && self.next.at == self.place.at {
                return Err(NoRoom::TooSmall);
            }
            let Some(descriptor) = self.next.fetch(&self.memory, self.format)? else {
                return Err(NoRoom::NotOwned);
            };
            if self.taken.try_push(descriptor.status).is_err() {
                return Err(NoRoom::TooSmall);
            }
            for (address, size) in descriptor.buffers() {
                let now = size.min(left);
                left -= now;
                let pieces = &mut self.pieces;
                let mut fits = true;
                let known = self.memory.spans(address.into(), now, |span| {
                    fits &= pieces.try_push(span).is_ok();
                    true
                });
                if !known {
                    return Err(NoRoom::Bus);
                }
                if !fits {
                    return Err(NoRoom::TooSmall);
                }
            }
            self.next = self.next.after(&descriptor, self.format);
        }
        Ok(())
    }

    /// What is told of a frame that found no room.
    fn refuse(&mut self, why: &NoRoom) -> DropReason {
        match why {
            NoRoom::Bus => {
                self.events |= status::FBE;
                DropReason::RxFault
            }
            NoRoom::NotOwned => {
                if self.state != Process::Suspended {
                    self.state = Process::Suspended;
                    self.events |= status::RU;
                }
                self.missed += u32::from(self.taken.is_empty());
                self.cut_off();
                DropReason::RxFull
            }
            NoRoom::TooSmall => {
                self.cut_off();
                DropReason::RxTooSmall
            }
        }
    }

    /// Gives descriptors that a frame began to fill back as an error: the frame is cut off.
    fn cut_off(&mut self) {
        let last = self.taken.len().wrapping_sub(1);
        for (index, &at) in self.taken.iter().enumerate().rev() {
            let mut word = 0;
            if index == 0 {
                word |= rdes0::FS;
            }
            if index == last {
                word |= rdes0::LS | rdes0::DE | ES;
            }
            if self.format.close(&self.memory, at, word).is_err() {
                self.events |= status::FBE;
            }
        }
        if !self.taken.is_empty() {
            self.place = self.next;
            self.events |= status::RI;
        }
    }

    /// Pads the frame, appends its CRC and gives its descriptors back, the first one last.
    fn close(&mut self) -> Result<(), Fault> {
        let (len, padded) = (self.len as usize, self.len.max(MIN_FRAME) as usize);
        let mut at = 0;
        for piece in &self.pieces {
            let now = (piece.len() as usize).min(len.saturating_sub(at));
            let from = piece.sub(0, now as u32).ok_or(Fault::Length)?;
            let to = self.frame.get_mut(at..at + now).ok_or(Fault::Length)?;
            self.memory.read(from, to)?;
            at += now;
            if at == len {
                break;
            }
        }
        self.frame
            .get_mut(len..padded)
            .ok_or(Fault::Length)?
            .fill(0);
        let crc = crc32fast::hash(self.frame.get(..padded).ok_or(Fault::Length)?);
        let total = padded + CRC_LEN as usize;
        self.frame
            .get_mut(padded..total)
            .ok_or(Fault::Length)?
            .copy_from_slice(&crc.to_le_bytes());
        self.write_tail(len, total)?;
        let word = self.frame_status(total as u32);
        for (index, &at) in self.taken.iter().enumerate().rev() {
            let first = if index == 0 { rdes0::FS } else { 0 };
            let rest = if index + 1 == self.taken.len() {
                word
            } else {
                0
            };
            self.format.close(&self.memory, at, first | rest)?;
        }
        Ok(())
    }

    /// Writes what follows the `len` bytes of the frame: padding and CRC, up to `total` bytes.
    fn write_tail(&self, len: usize, total: usize) -> Result<(), Fault> {
        let mut at = 0;
        for piece in &self.pieces {
            let end = at + piece.len() as usize;
            let from = at.max(len);
            if from < end {
                let to = piece
                    .sub((from - at) as u32, (end - from) as u32)
                    .ok_or(Fault::Length)?;
                let bytes = self.frame.get(from..end.min(total)).ok_or(Fault::Length)?;
                self.memory.write(to, bytes)?;
            }
            at = end;
        }
        Ok(())
    }

    /// RDES0 of the last descriptor of a frame of `total` bytes.
    fn frame_status(&self, total: u32) -> u32 {
        let to = destination(&self.frame);
        let type_field = match self.frame.get(12..14) {
            Some(&[high, low]) => u16::from_be_bytes([high, low]),
            _ => 0,
        };
        let mut word = total << rdes0::FL_SHIFT | rdes0::LS;
        if to.is_group() {
            word |= rdes0::MF;
        }
        if type_field > MTU {
            word |= rdes0::FT;
        }
        if self.filter.fails(to, self.csr6) {
            word |= rdes0::FF;
        }
        word | match self.csr6 & mode::OM {
            0 => 0,
            mode::OM_INTERNAL => rdes0::DT_INTERNAL,
            _ => rdes0::DT_EXTERNAL,
        }
    }
}

/// The destination address of a frame.
#[inline]
fn destination(frame: &[u8]) -> Mac {
    frame
        .first_chunk::<6>()
        .map_or(Mac::default(), |&bytes| Mac(bytes))
}

impl RxRing for RxProcess {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The adapter knows no offloads: checksums are filled in and large frames cut before it.
    fn features(&self) -> Features {
        Features::default()
    }

    fn reserve(&mut self, len: u32, room: &mut Room) -> Result<(), DropReason> {
        self.cancel();
        if len > MAX_FRAME {
            return Err(DropReason::Mtu);
        }
        if self.events & status::FBE != 0 {
            return Err(DropReason::RxFault);
        }
        if let Err(why) = self.take(len.max(MIN_FRAME) + CRC_LEN) {
            return Err(self.refuse(&why));
        }
        self.len = len;
        let mut left = len;
        for piece in &self.pieces {
            let Some(part) = piece
                .sub(0, piece.len().min(left))
                .filter(|part| !part.is_empty())
            else {
                break;
            };
            left -= part.len();
            // There are no more pieces than the room has places.
            let _ = room.try_push(part);
        }
        self.state = Process::Running;
        Ok(())
    }

    fn commit(&mut self, _meta: &RxMeta) {
        match self.close() {
            Ok(()) => self.events |= status::RI,
            Err(_) => self.events |= status::FBE,
        }
        self.place = self.next;
    }

    fn cancel(&mut self) {
        self.taken.clear();
        self.pieces.clear();
    }

    /// Done by [`RxProcess::finish`]: descriptors are given back one by one as they are filled.
    fn publish(&mut self) -> bool {
        false
    }
}

//! The transmit process: frames are gathered from the buffers of the transmit list (manual, sections 4.2.2 and 4.3.5).

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use guestmem::{Memory, Span};
use offload::Request;
use offload::request::validate;
use vswitch::burst::{BURST, Burst};
use vswitch::deliver::{FrameMeta, Job, Quiet, Report};
use vswitch::port::{PortFault, TxSide};
use vswitch::ports::vhost::notify;
use vswitch::vlan::VlanMode;

use super::filter::{Filter, FilterKind, SETUP_LEN};
use super::pieces::{Found, Pieces};
use super::{Process, Shared};
use crate::csr::{JABBER_CLOCK, JABBER_DISABLE, bus_mode, mode, status};
use crate::descriptor::{BusError, Descriptor, ES, Format, Place, tdes0, tdes1};
use crate::page::{Control, Counted};

/// Descriptors of one frame, at most, and about as many in one turn: a frame of the longest length that a wire carries,
/// in buffers of one byte. A list that goes on for longer is cut off by the jabber timer.
const WORK: usize = 2048;
/// Turns without a frame after which the transmit process is suspended: some microseconds.
const IDLE_TURNS: u32 = 32;
/// Turns without a frame after which the driver is told that it is, unless an interrupt for another reason says so before,
/// or the worker goes to sleep. A driver that sends one frame after the other, or answers what it receives, is then not
/// interrupted after each frame: what it does about TU it does as well at the next interrupt.
const TELL_TURNS: u32 = 256;
/// Jabber limits in bytes (manual, CSR15): with JCK, and 3 ms at 100 Mb/s without.
const JABBER_SHORT: u32 = 2048;
const JABBER_LONG: u32 = 32_500;

/// What was found at a place of the list.
enum Step {
    Frame(Found),
    /// A descriptor without a frame was dealt with.
    Passed,
    /// The descriptor is the host's, or the frame is not complete yet.
    Nothing,
    /// The frame never ends.
    Jabber,
}

/// The transmit process, and the transmit side of the port.
pub(super) struct TxProcess {
    shared: Arc<Shared>,
    /// Generation of the shared page that was taken over.
    seen: Option<u32>,
    control: Control,
    format: Format,
    state: Process,
    place: Place,
    /// Of the base in `place`.
    count: u32,
    /// Descriptors to be given back: where their status is, and what it will be.
    pending: Vec<(Span, u32)>,
    /// Address of the first of them.
    first_pending: u32,
    /// Where the frames of one gathering lie.
    pieces: Pieces,
    /// Status bits to be raised with the completion.
    events: u32,
    idle: u32,
    /// The current descriptor begins a frame whose end is not there yet.
    unfinished: bool,
    /// Frames on their way back, in loopback.
    looped: Option<Box<Burst>>,
}

impl TxProcess {
    /// Goes on where the page says that the last one stopped.
    pub(super) fn new(shared: Arc<Shared>) -> TxProcess {
        let position = shared.page.tx_at();
        TxProcess {
            seen: None,
            control: Control {
                resets: shared.page.resets_seen(),
                ..Control::default()
            },
            format: Format::default(),
            state: Process::Stopped,
            place: Place {
                base: 0,
                at: position.address,
            },
            count: position.count,
            pending: Vec::with_capacity(2 * WORK),
            first_pending: 0,
            pieces: Pieces::new(),
            events: 0,
            idle: 0,
            unfinished: false,
            looped: Some(Box::default()),
            shared,
        }
    }

    /// Takes over what the registers tell, if it is new. Left for the next turn while the receive process is in use.
    fn take_over(&mut self) {
        let shared = Arc::clone(&self.shared);
        let generation = shared.page.generation();
        if self.seen == Some(generation) {
            return;
        }
        let Some(mut rx) = shared.try_rx() else {
            return;
        };
        let control = shared.page.control();
        if control.resets != self.control.resets {
            self.state = Process::Stopped;
            rx.reset();
            shared.page.set_filter(FilterKind::None, &[0; SETUP_LEN]);
            shared.page.clear_status(status::PORT);
            shared.page.set_bus_error(None);
            shared.fatal.store(false, Ordering::Relaxed);
            shared.page.set_resets_seen(control.resets);
        }
        let fatal = shared.is_fatal();
        let mut events = rx.take_over(&control, fatal);
        self.format = Format::new(control.csr0);
        if control.tx_base.count != self.count {
            self.count = control.tx_base.count;
            self.place.at = control.tx_base.address;
        }
        self.place.base = control.tx_base.address;
        if control.csr6 & mode::ST == 0 || fatal {
            if self.state != Process::Stopped && !fatal {
                events |= status::TPS;
            }
            self.state = Process::Stopped;
        } else if self.state == Process::Stopped {
            self.state = Process::Running;
        }
        if self.state != Process::Suspended {
            shared.untold.store(false, Ordering::Relaxed);
        }
        self.idle = 0;
        self.control = control;
        self.seen = Some(generation);
        // Whoever sees that a process stopped finds its status bit set.
        shared.raise(events);
        rx.show(&shared.page);
        self.show_state();
        self.show_position();
        shared.page.set_seen(generation);
    }

    fn show_state(&self) {
        self.shared.page.set_tx_state(match self.state {
            Process::Stopped => 0,
            Process::Running => status::TS_RUNNING,
            Process::Suspended => status::TS_SUSPENDED,
        });
    }

    fn show_position(&self) {
        self.shared.page.set_tx_at(Counted {
            count: self.count,
            address: self.place.at,
        });
    }

    fn set_state(&mut self, state: Process) {
        if self.state != state {
            self.state = state;
            self.show_state();
        }
    }

    /// Ends the process for a reason that the guest is told by `events`.
    fn halt(&mut self, events: u32) {
        self.events |= events;
        self.set_state(Process::Stopped);
    }

    fn is_running(&self) -> bool {
        self.state != Process::Stopped && self.control.bus
    }

    /// The list was found empty.
    fn found_nothing(&mut self, now: bool) {
        self.idle = self.idle.saturating_add(1);
        if self.state == Process::Running && (now || self.idle > IDLE_TURNS) {
            self.set_state(Process::Suspended);
            self.shared.untold.store(true, Ordering::Relaxed);
        }
        if now || self.idle > TELL_TURNS {
            let events = self.shared.untold();
            self.shared.raise(events);
        }
    }

    /// Deals with what is at the current place, and goes past it.
    fn step(&mut self, memory: &Memory) -> Result<Step, BusError> {
        self.unfinished = false;
        if !self.pending.is_empty() && self.place.at == self.first_pending {
            return Ok(Step::Nothing);
        }
        let Some(first) = self.place.fetch(memory, self.format)? else {
            return Ok(Step::Nothing);
        };
        if self.pending.is_empty() {
            self.first_pending = self.place.at;
        }
        if first.control & tdes1::SET != 0 {
            self.set_up(memory, &first)?;
        } else if first.control & tdes1::FS == 0 {
            self.pending.push((first.status, 0));
        } else {
            return self.frame(memory, first);
        }
        self.place = self.place.after(&first, self.format);
        Ok(Step::Passed)
    }

    /// Follows the descriptors of a frame to its end.
    fn frame(&mut self, memory: &Memory, first: Descriptor) -> Result<Step, BusError> {
        let mark = self.pending.len();
        let (mut descriptor, mut place) = (first, self.place);
        let mut len = 0;
        self.pieces.begin();
        loop {
            for (address, size) in descriptor.buffers() {
                len += size;
                self.pieces.add(address, size);
            }
            self.pending.push((descriptor.status, 0));
            place = place.after(&descriptor, self.format);
            if len > self.jabber_limit() || self.pending.len() - mark >= WORK {
                if let Some((_, word)) = self.pending.last_mut() {
                    *word = ES | tdes0::TO;
                }
                self.place = place;
                return Ok(Step::Jabber);
            }
            if descriptor.control & tdes1::LS != 0 {
                break;
            }
            // The end is not there yet: nothing of the frame is taken.
            let next = match place.at == self.first_pending {
                true => None,
                false => place.fetch(memory, self.format)?,
            };
            let Some(next) = next else {
                self.pending.truncate(mark);
                self.unfinished = true;
                return Ok(Step::Nothing);
            };
            if next.control & (tdes1::FS | tdes1::SET) != 0 {
                // The driver gave the frame up.
                self.place = place;
                return Ok(Step::Passed);
            }
            descriptor = next;
        }
        let crc = if descriptor.control & tdes1::AC != 0 {
            4
        } else {
            0
        };
        let found = self.pieces.end(memory, len.saturating_sub(crc))?;
        self.place = place;
        self.events |= match descriptor.control & tdes1::IC {
            0 => status::ETI,
            _ => status::TI,
        };
        Ok(Step::Frame(found))
    }

    fn jabber_limit(&self) -> u32 {
        match self.control.csr15 {
            csr15 if csr15 & JABBER_DISABLE != 0 => u32::MAX,
            csr15 if csr15 & JABBER_CLOCK != 0 => JABBER_SHORT,
            _ => JABBER_LONG,
        }
    }

    /// Takes a setup frame over. One that has not the length of setup frames changes nothing.
    fn set_up(&mut self, memory: &Memory, descriptor: &Descriptor) -> Result<(), BusError> {
        let [(address, size), _] = descriptor.buffers();
        if size as usize == SETUP_LEN {
            let mut frame = [0; SETUP_LEN];
            let mut rest = &mut frame[..];
            let mut result = Ok(());
            let known = memory.spans(address.into(), size, |span| {
                let (now, later) = std::mem::take(&mut rest).split_at_mut(span.len() as usize);
                result = memory.read(span, now);
                rest = later;
                result.is_ok()
            });
            if !known {
                return Err(BusError);
            }
            let kind = FilterKind::of_control(descriptor.control);
            self.shared.rx().set_filter(Filter::new(kind, &frame));
            self.shared.page.set_filter(kind, &frame);
        }
        self.pending.push((descriptor.status, tdes0::SETUP_DONE));
        if descriptor.control & tdes1::IC != 0 {
            self.events |= status::TI;
        }
        Ok(())
    }

    /// Takes frames until `burst` is full, the list is empty, or a turn's work is done.
    fn collect(&mut self, burst: &mut Burst) {
        let shared = Arc::clone(&self.shared);
        let mut frames = ArrayVec::<Found, BURST>::new();
        let want = BURST - burst.len();
        // Where descriptors follow one another, a cache line has four: the next ones are on their way meanwhile.
        for line in 1..=3 {
            let at = u64::from(self.place.at) + 64 * line;
            if let Some(span) = shared.memory.span(at, 1) {
                shared.memory.prefetch(span);
            }
        }
        self.pieces.clear();
        while frames.len() < want && self.pending.len() < WORK {
            match self.step(&shared.memory) {
                Ok(Step::Frame(found)) => frames.push(found),
                Ok(Step::Passed) => {}
                Ok(Step::Nothing) => break,
                Ok(Step::Jabber) => {
                    self.halt(status::TJT | status::TPS);
                    break;
                }
                Err(BusError) => {
                    let events = shared.bus_error();
                    shared.rx().halt(&shared.page);
                    self.halt(events);
                    break;
                }
            }
        }
        for found in &frames {
            match found.refused {
                Some(reason) => burst.push_refused(reason),
                None => burst.take(&shared.memory, self.pieces.of(found), Request::default()),
            };
        }
    }

    /// Takes frames and hands them to the receive process.
    fn loop_back(&mut self) {
        let Some(mut looped) = self.looped.take() else {
            return;
        };
        looped.clear();
        self.collect(&mut looped);
        self.receive(&looped);
        self.looped = Some(looped);
    }

    fn receive(&mut self, looped: &Burst) {
        let mut meta = [None; BURST];
        let mut frames = 0;
        for ((index, frame), meta) in looped.frames().iter().enumerate().zip(&mut meta) {
            let checked = validate(&frame.request, frame.head(), frame.len());
            if let Some(checked) = checked.ok().filter(|_| frame.refused.is_none()) {
                frames |= 1 << index;
                *meta = Some(FrameMeta {
                    checked,
                    tag: None,
                    vid: 0,
                    priority: 0,
                });
            }
        }
        let job = Job {
            burst: looped,
            source: &self.shared.memory,
            meta: meta.get(..looped.len()).unwrap_or(&[]),
            quiet: Quiet::default(),
            frames,
            vlan: &VlanMode::None,
            mtu: u16::MAX,
        };
        let mut rx = self.shared.rx();
        if rx.is_running() {
            rx.deliver(&job, &mut Report::default());
            self.events |= rx.finish(&self.shared);
        }
    }
}

impl TxSide for TxProcess {
    fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    fn gather(&mut self, burst: &mut Burst) {
        self.take_over();
        if self.shared.is_fatal() {
            self.set_state(Process::Stopped);
        }
        if !self.is_running() {
            return;
        }
        if self.control.csr6 & mode::OM == 0 {
            self.collect(burst);
        } else {
            self.loop_back();
        }
        if self.pending.is_empty() && self.events == 0 {
            self.found_nothing(false);
        } else {
            self.idle = 0;
            if self.state == Process::Suspended {
                self.set_state(Process::Running);
            }
        }
        // Nobody else completes a turn without frames.
        if burst.is_empty() {
            self.complete();
        }
    }

    fn complete(&mut self) -> bool {
        if self.pending.is_empty() && self.events == 0 {
            return false;
        }
        for (at, word) in self.pending.drain(..) {
            // Memory that went away is a fault of the port, which the worker asks for.
            let _ = self.format.close(&self.shared.memory, at, word);
        }
        self.show_position();
        let events = std::mem::take(&mut self.events);
        self.shared.raise(events)
    }

    fn arm(&mut self) -> bool {
        if self.seen != Some(self.shared.page.generation()) {
            return true;
        }
        if !self.is_running() {
            return false;
        }
        // The driver gives no poll demands: it expects the list to be looked at.
        if self.control.csr0 & bus_mode::TAP != 0 {
            return true;
        }
        let next = self.place.fetch(&self.shared.memory, self.format);
        // The rest of a frame comes with a poll demand.
        if self.unfinished || matches!(next, Ok(None)) {
            self.found_nothing(true);
            return false;
        }
        true
    }

    fn disarm(&mut self) {
        notify::drain(self.shared.kick_fd());
    }

    fn wake_fds(&self, each: &mut dyn FnMut(BorrowedFd<'_>)) {
        each(self.shared.kick_fd());
    }

    fn fault(&self) -> Option<PortFault> {
        self.shared.fault()
    }
}

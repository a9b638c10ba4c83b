//! Frames of one burst on their way to one channel: each in a section of the receive buffer, or a large one in several.

use arrayvec::ArrayVec;
use guestmem::{Memory, Span};
use offload::{Features, Gso, Sum};
use vswitch::deliver::Outgoing;
use vswitch::drops::DropReason;
use vswitch::port::{MAX_ROOM, PlainFrame, PortFault, Room, RxMeta, RxRing};

use super::coalesce::{Flow, Segment};
use super::place::Place;
use super::verdict::verdicts;
use super::{Buffer, MAX_RANGES, RANGES_AT, RxChannel, announce};
use crate::nvsp::{self, Channel};
use crate::port::sections::Sections;
use crate::rndis::offload::Receive;
use crate::rndis::packet::{self, INFO_LEN, MAX_FRONT, Part, Received, verdict};

/// Smallest section in which large frames go whole: each may lie in two pieces of memory, and with their headers no frame
/// takes more than half as many as there is room for.
const LARGE_SECTION: u32 = (65_535 + 14) / (MAX_ROOM as u32 / 2 - 1) + MAX_FRONT as u32 + 1;

/// Sections that are taken before one that is fetched.
const AHEAD: usize = 4;
/// Bytes of a cache line.
const LINE: u32 = 64;

/// A frame that is being written.
#[derive(Default)]
struct Writing {
    about: Received,
    /// It may go into several sections.
    large: bool,
    len: u32,
    sections: ArrayVec<u16, MAX_RANGES>,
}

/// The segments that may go on, which are the last that were written.
struct Open {
    flow: Flow,
    /// Where the first section starts, and what is in front of its frame.
    first: u32,
    about: Received,
    /// Where the last section starts.
    last: u32,
}

/// One delivery to one channel.
pub(super) struct Delivery<'a> {
    channel: &'a mut RxChannel,
    buffer: &'a Buffer,
    sections: &'a mut Sections,
    receive: Receive,
    fault: &'a mut Option<PortFault>,
    writing: Writing,
    open: Option<Open>,
    /// What is written and not yet named by a packet: sections, and their ranges.
    taken: ArrayVec<u16, MAX_RANGES>,
    ranges: ArrayVec<(u32, u32), MAX_RANGES>,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(
        channel: &'a mut RxChannel,
        buffer: &'a Buffer,
        sections: &'a mut Sections,
        receive: Receive,
        fault: &'a mut Option<PortFault>,
    ) -> Delivery<'a> {
        Delivery {
            channel,
            buffer,
            sections,
            receive,
            fault,
            writing: Writing::default(),
            open: None,
            taken: ArrayVec::new(),
            ranges: ArrayVec::new(),
        }
    }

    /// Names what is written in a packet; there is room for it.
    fn announce(&mut self) -> Result<(), PortFault> {
        self.end_flow();
        if self.taken.is_empty() {
            return Ok(());
        }
        let transaction = self.sections.show(&self.taken);
        let (id, ranges) = (self.buffer.id, &self.ranges);
        announce(self.channel, id, Channel::Data, transaction, ranges)?;
        self.taken.clear();
        self.ranges.clear();
        Ok(())
    }

    /// Makes sure that a packet can name `count` sections more. False if there is no room.
    #[inline]
    fn make_room(&mut self, count: usize) -> Result<bool, PortFault> {
        if self.taken.len() + count > MAX_RANGES {
            self.announce()?;
        }
        let header = RANGES_AT + 8 * (self.ranges.len() + count);
        self.channel.ring.fits(header, nvsp::MESSAGE)
    }

    /// Takes `count` sections for the frame that is being written.
    fn take(&mut self, count: usize) -> Result<(), DropReason> {
        match self.make_room(count) {
            Ok(true) => {}
            Ok(false) => return Err(DropReason::RxFull),
            Err(fault) => {
                self.fail(fault);
                return Err(DropReason::RxFault);
            }
        }
        for _ in 0..count {
            match self.sections.take() {
                Some(section) => self.writing.sections.push(section),
                None => {
                    self.cancel();
                    return Err(DropReason::RxFull);
                }
            }
        }
        Ok(())
    }

    /// Fetches what a small frame fills of a section that will be taken soon.
    #[inline]
    fn fetch_ahead(&self) {
        let Some(section) = self.sections.ahead(AHEAD) else {
            return;
        };
        for line in [0, LINE] {
            if let Some(at) = self.buffer.pages.span(self.start(section) + line, LINE) {
                self.buffer.pages.memory().prefetch_write(at);
            }
        }
    }

    /// Where a section starts.
    #[inline]
    fn start(&self, section: u16) -> u32 {
        u32::from(section) * self.buffer.section
    }

    /// What is in front of part `index` of the frame that is being written, which has so many.
    fn about(&self, index: usize, parts: usize) -> Received {
        let whole = &self.writing.about;
        let part = (parts > 1).then_some(Part {
            first: index == 0,
            last: index + 1 == parts,
        });
        match index {
            0 => Received { part, ..*whole },
            _ => Received {
                part,
                ..Received::default()
            },
        }
    }

    /// Sections that a frame of `len` bytes takes.
    fn parts(&self, len: u32) -> Result<usize, DropReason> {
        let size = self.buffer.section;
        if len + self.writing.about.front() as u32 <= size {
            return Ok(1);
        }
        if !self.writing.large {
            return Err(DropReason::RxTooSmall);
        }
        let room = |index| size - self.about(index, 2).front() as u32;
        let rest = len.saturating_sub(room(0));
        Ok(1 + rest.div_ceil(room(1)) as usize)
    }

    /// Calls `each` for every part of the frame that is being written: where its section starts, what is in front, and its
    /// length. False if one of them says so.
    fn each_part(&self, mut each: impl FnMut(u32, &Received, u32) -> bool) -> bool {
        let parts = self.writing.sections.len();
        let mut left = self.writing.len;
        for (index, section) in self.writing.sections.iter().enumerate() {
            let about = self.about(index, parts);
            let len = left.min(self.buffer.section - about.front() as u32);
            if !each(self.start(*section), &about, len) {
                return false;
            }
            left -= len;
        }
        true
    }

    /// Writes private bytes to the receive buffer. The only way to fail is that the guest's memory is gone.
    fn write(&mut self, at: u32, bytes: &[u8]) {
        if self.buffer.pages.write(at, bytes).is_err() {
            self.fail(PortFault {
                what: "receive buffer",
                value: at.into(),
            });
        }
    }

    #[cold]
    fn fail(&mut self, fault: PortFault) {
        self.fault.get_or_insert(fault);
    }

    /// The segments that were put together are a frame now.
    #[inline]
    fn end_flow(&mut self) {
        if self.open.is_some() {
            self.end_open();
        }
    }

    fn end_open(&mut self) {
        let Some(mut open) = self.open.take() else {
            return;
        };
        if open.flow.segments() > 1 {
            let at = open.first + open.about.front() as u32;
            self.write(at, open.flow.finish());
        }
    }

    /// Writes `frame`, which is `segment`, as the next part of what went before, or by itself. `None`: it is not for this.
    fn put_segment(
        &mut self,
        source: &Memory,
        frame: &PlainFrame<'_>,
        segment: &Segment<'_>,
    ) -> Option<Result<(), DropReason>> {
        let wanted = match segment.is_v4() {
            true => self.receive.rsc4 && self.receive.tcp4,
            false => self.receive.rsc6 && self.receive.tcp6,
        };
        let goes_on = |open: &Open| open.flow.takes(segment);
        // A packet that is full ends the flow: its parts are named together.
        let goes_on = !self.taken.is_full() && self.open.as_ref().is_some_and(goes_on);
        if !wanted || self.buffer.section < LARGE_SECTION {
            return None;
        }
        let (skip, about) = match goes_on {
            true => (segment.header_len(), Received::default()),
            false => (
                0,
                Received {
                    checksum: verdicts(&self.receive, frame.head, frame.len, true),
                    ..Received::default()
                },
            ),
        };
        let part = Some(Part {
            first: !goes_on,
            last: true,
        });
        let about = Received { part, ..about };
        let len = frame.len - skip as u32;
        let sum = segment.sum();
        let verify = (!frame.csum_valid).then_some((sum, segment.header_len()));
        let (at, result) = match self.put_bytes(source, frame, skip, &about, verify)? {
            Ok(section) => (self.start(section), Ok(())),
            Err(reason) => return Some(Err(reason)),
        };
        if goes_on {
            self.go_on(segment, sum, at);
        } else {
            self.end_flow();
            // For a segment that stays alone, the last item is not there.
            let info = about.front() - packet::HEADER - packet::ITEM_LEN;
            self.write(at + INFO_LEN as u32, &(info as u32).to_le_bytes());
            self.open = Some(Open {
                flow: Flow::new(segment, sum),
                first: at,
                about,
                last: at,
            });
        }
        self.ranges.push((about.front() as u32 + len, at));
        Some(result)
    }

    /// The segment at `at` goes on with the flow that is open.
    fn go_on(&mut self, segment: &Segment<'_>, sum: Sum, at: u32) {
        let Some(mut open) = self.open.take() else {
            return;
        };
        let front = match open.flow.segments() {
            1 => {
                let front = open.about.front();
                let info = (front - packet::HEADER) as u32;
                self.write(open.first + INFO_LEN as u32, &info.to_le_bytes());
                front
            }
            _ => packet::HEADER + packet::ITEM_LEN,
        };
        // What was the last part is no longer.
        let part = Part {
            first: open.last == open.first,
            last: false,
        };
        let value = part.value().to_le_bytes();
        self.write(open.last + front as u32 - value.len() as u32, &value);
        open.last = at;
        open.flow.add(segment, sum);
        self.open = Some(open);
    }

    /// Writes a frame from byte `skip` on, with what is in front, to a section that lies in one piece; it is taken then, and
    /// has no range yet. With `verify`, what a segment's headers sum to and where they end, only if its checksum is right.
    /// `None`: another way has to be found.
    #[inline]
    fn put_bytes(
        &mut self,
        source: &Memory,
        frame: &PlainFrame<'_>,
        skip: usize,
        about: &Received,
        verify: Option<(Sum, usize)>,
    ) -> Option<Result<u16, DropReason>> {
        if self.fault.is_some() {
            return None;
        }
        match self.make_room(1) {
            Ok(true) => {}
            Ok(false) => return Some(Err(DropReason::RxFull)),
            Err(fault) => {
                self.fail(fault);
                return Some(Err(DropReason::RxFault));
            }
        }
        let len = frame.len - skip as u32;
        let size = about.front() as u32 + len;
        let Some(section) = self.sections.peek() else {
            return Some(Err(DropReason::RxFull));
        };
        if size > self.buffer.section {
            return None;
        }
        let to = Place {
            pages: &self.buffer.pages,
            at: self.start(section),
            len: size,
        };
        let front = packet::front(len, about);
        let private = [&front, frame.head.get(skip..)?];
        let written = match verify {
            None => to.fill(&private, source, frame.body).map(|()| true),
            Some((mut sum, headers)) => {
                sum.add_bytes(frame.head.get(headers..)?);
                let filled = to.fill_summed(&private, source, frame.body, &mut sum);
                filled.map(|()| sum.checksum() == 0)
            }
        };
        match written {
            Ok(true) => {
                self.sections.take();
                self.taken.push(section);
                self.fetch_ahead();
                Some(Ok(section))
            }
            // Delivered as any frame, for the driver to find out.
            Ok(false) => None,
            Err(_) if source.is_faulted() => Some(Err(DropReason::SourceFault)),
            Err(_) => Some(Err(DropReason::RxFault)),
        }
    }
}

impl RxRing for Delivery<'_> {
    fn memory(&self) -> &Memory {
        self.buffer.pages.memory()
    }

    fn features(&self) -> Features {
        Features::default()
    }

    /// A large frame may stay whole. A partial checksum is always filled in: a guest may look at it whatever it was told (of
    /// that, Linux tells nobody), or pass on what is in it.
    fn agreed(&mut self, frame: &Outgoing<'_>) -> Features {
        let request = frame.checked.request();
        let sound = request.csum.is_some() || request.csum_valid;
        let checksum = verdicts(&self.receive, frame.head, frame.len, sound);
        let wanted = match request.gso {
            Gso::None => false,
            Gso::Tcp4 { .. } => self.receive.rsc4,
            Gso::Tcp6 { .. } => self.receive.rsc6,
        };
        let large = wanted && checksum & verdict::TCP != 0 && self.buffer.section >= LARGE_SECTION;
        self.writing.about = Received {
            checksum,
            tag: frame.tag.map(|tag| tag.tci),
            part: None,
        };
        self.writing.large = large;
        Features {
            csum: false,
            tso4: large,
            tso6: large,
            ecn: large,
        }
    }

    fn takes_tags(&self) -> bool {
        true
    }

    #[inline]
    fn put(&mut self, source: &Memory, frame: &PlainFrame<'_>) -> Option<Result<(), DropReason>> {
        if (self.receive.rsc4 || self.receive.rsc6)
            && let Some(segment) = Segment::parse(frame.head, frame.len)
            && let Some(result) = self.put_segment(source, frame, &segment)
        {
            return Some(result);
        }
        let about = Received {
            checksum: verdicts(&self.receive, frame.head, frame.len, frame.csum_valid),
            ..Received::default()
        };
        let result = self.put_bytes(source, frame, 0, &about, None)?;
        self.end_flow();
        Some(result.map(|section| {
            let len = about.front() as u32 + frame.len;
            self.ranges.push((len, self.start(section)));
        }))
    }

    #[inline]
    fn reserve(&mut self, len: u32, room: &mut Room) -> Result<(), DropReason> {
        if self.fault.is_some() {
            return Err(DropReason::RxFault);
        }
        self.end_flow();
        let parts = self.parts(len)?;
        self.take(parts)?;
        self.writing.len = len;
        room.clear();
        let pages = &self.buffer.pages;
        let all = self.each_part(|start, about, len| {
            let at = start + about.front() as u32;
            pages.spans(at, len, |span: Span| room.try_push(span).is_ok())
        });
        if !all {
            self.cancel();
            return Err(DropReason::RxTooSmall);
        }
        Ok(())
    }

    #[inline]
    fn commit(&mut self, _meta: &RxMeta) {
        let mut parts: ArrayVec<(u32, u32, Received), MAX_RANGES> = ArrayVec::new();
        self.each_part(|start, about, len| parts.try_push((start, len, *about)).is_ok());
        for (start, len, about) in parts {
            self.write(start, &packet::front(len, &about));
            self.ranges.push((about.front() as u32 + len, start));
        }
        let sections = std::mem::take(&mut self.writing.sections);
        self.taken.extend(sections);
    }

    fn cancel(&mut self) {
        for section in self.writing.sections.drain(..) {
            self.sections.put_back(section);
        }
    }

    fn publish(&mut self) -> bool {
        let published = self
            .announce()
            .and_then(|()| self.channel.ring.publish())
            .unwrap_or_else(|fault| {
                self.fail(fault);
                false
            });
        published && self.channel.signal.raise()
    }
}

//! A guest whose port is driven by hand: what it sends is looked at, and frames are delivered to it.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests, of which not every one uses all"
)]

use offload::Request;
use offload::request::validate;
use vnic_legacy::csr::{mode, status};
use vnic_legacy::descriptor::{END_OF_RING, OWN, rdes0};
use vnic_legacy::driver::{BASE, Guest};
use vswitch::burst::{BURST, Burst};
use vswitch::deliver::{FrameMeta, Job, Quiet, Report};
use vswitch::drops::DropReason;
use vswitch::mac::Mac;
use vswitch::port::Sides;
use vswitch::ports::memory::{MemoryPort, Station};
use vswitch::vlan::VlanMode;

pub(crate) const OWN_MAC: [u8; 6] = [0x00, 0x15, 0x5d, 1, 2, 3];
pub(crate) const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Lists and buffers of tests that lay them out themselves.
pub(crate) const TX: u32 = BASE + 0x8000;
pub(crate) const RX: u32 = BASE + 0x9000;
pub(crate) const DATA: u32 = BASE + 0x2_0000;
pub(crate) const ROOM: u32 = BASE + 0x4_0000;

/// A guest and its port.
pub(crate) struct Bench {
    pub(crate) guest: Guest,
    pub(crate) sides: Option<Sides>,
    /// Frames that the port took, or why it could not.
    pub(crate) sent: Vec<Result<Vec<u8>, DropReason>>,
    source: (Sides, Station),
}

/// A frame of `len` bytes.
pub(crate) fn frame(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from, &[0x88, 0xb5]].concat();
    frame.extend((frame.len()..len.max(14)).map(|at| (at * 7 + len) as u8));
    frame
}

impl Bench {
    /// A guest with an open port; nothing is started, on the lists at `RX` and `TX`.
    pub(crate) fn new() -> Bench {
        let mut guest = Guest::new(Mac(OWN_MAC)).unwrap();
        let sides = guest.open_port().unwrap();
        let mut bench = Bench {
            guest,
            sides: Some(sides),
            sent: Vec::new(),
            source: MemoryPort::default().open().unwrap(),
        };
        bench.guest.set_csr(3, RX);
        bench.guest.set_csr(4, TX);
        bench.turn();
        bench
    }

    /// As `new`, with both processes started in the mode `csr6`, all interrupts on.
    pub(crate) fn started(csr6: u32) -> Bench {
        let mut bench = Bench::new();
        bench.guest.set_csr(7, u32::MAX);
        bench.guest.set_csr(6, csr6 | mode::SR | mode::ST);
        bench.turn();
        bench
    }

    /// One turn of the port. How many frames it took.
    pub(crate) fn turn(&mut self) -> usize {
        let Some(sides) = &mut self.sides else {
            return 0;
        };
        let mut burst = Burst::new();
        sides.tx.gather(&mut burst);
        for frame in burst.frames() {
            self.sent.push(match frame.refused {
                Some(reason) => Err(reason),
                None => {
                    let mut bytes = frame.head().to_vec();
                    for span in burst.body(frame) {
                        let at = bytes.len();
                        bytes.resize(at + span.len() as usize, 0);
                        sides.tx.memory().read(*span, &mut bytes[at..]).unwrap();
                    }
                    Ok(bytes)
                }
            });
        }
        if !burst.is_empty() {
            sides.tx.complete();
        }
        burst.len()
    }

    /// Turns until nothing is taken for so long that the transmit process is suspended, and the driver has been told.
    pub(crate) fn settle(&mut self) {
        for _ in 0..300 {
            self.turn();
        }
    }

    /// Delivers a frame; why it was dropped, if it was.
    pub(crate) fn deliver(&mut self, bytes: &[u8]) -> Option<DropReason> {
        self.deliver_all(&[bytes])[0]
    }

    /// Delivers frames as one burst.
    pub(crate) fn deliver_all(&mut self, frames: &[&[u8]]) -> Vec<Option<DropReason>> {
        frames
            .chunks(BURST)
            .map(|frames| self.deliver_burst(frames))
            .flat_map(|reasons| reasons.into_iter())
            .collect()
    }

    fn deliver_burst(&mut self, frames: &[&[u8]]) -> Vec<Option<DropReason>> {
        let sides = self.sides.as_mut().unwrap();
        for bytes in frames {
            assert!(self.source.1.send(bytes));
        }
        let mut burst = Burst::new();
        self.source.0.tx.gather(&mut burst);
        let meta: Vec<_> = burst
            .frames()
            .iter()
            .map(|frame| {
                validate(&Request::default(), frame.head(), frame.len())
                    .ok()
                    .map(|checked| FrameMeta {
                        checked,
                        tag: None,
                        vid: 0,
                        priority: 0,
                    })
            })
            .collect();
        let mut reasons = Vec::new();
        let mut whole = Report::default();
        let job = Job {
            burst: &burst,
            source: self.source.0.tx.memory(),
            meta: &meta,
            quiet: Quiet::default(),
            frames: u32::MAX >> (BURST - frames.len()),
            vlan: &VlanMode::None,
            mtu: 9000,
        };
        sides.rx.deliver(&job, &mut whole);
        let delivered = whole.destination.frames as usize;
        let dropped: u64 = whole.destination.drops.total();
        assert_eq!(delivered + dropped as usize, frames.len(), "conservation");
        reasons.resize(delivered, None);
        for (reason, count) in whole.destination.drops.iter() {
            reasons.resize(reasons.len() + count as usize, Some(reason));
        }
        self.source.0.tx.complete();
        reasons
    }

    /// Writes descriptor `index` of a list.
    pub(crate) fn describe(&self, list: u32, index: u32, words: [u32; 4]) {
        self.guest.describe(list + 16 * index, words).unwrap();
    }

    /// A ring of `count` receive descriptors with one buffer of `size` bytes each.
    pub(crate) fn receive_ring(&self, count: u32, size: u32) {
        for index in 0..count {
            let end = if index + 1 == count { END_OF_RING } else { 0 };
            self.describe(RX, index, [OWN, size | end, ROOM + index * 2048, 0]);
        }
    }

    /// DES0 of descriptor `index` of a list.
    pub(crate) fn status(&self, list: u32, index: u32) -> u32 {
        self.guest.word(list + 16 * index).unwrap()
    }

    /// Status bits of CSR5, summary included.
    pub(crate) fn events(&mut self) -> u32 {
        self.guest.csr(5) & 0x1_ffff
    }

    /// Clears all status bits.
    pub(crate) fn acknowledge(&mut self) {
        self.guest.set_csr(5, u32::MAX);
        assert_eq!(self.events(), 0);
        self.guest.interrupts();
    }

    /// State of the receive process.
    pub(crate) fn rs(&mut self) -> u32 {
        self.guest.csr(5) & status::RS
    }

    /// State of the transmit process.
    pub(crate) fn ts(&mut self) -> u32 {
        self.guest.csr(5) & status::TS
    }

    /// Lets the worker fall asleep: whether it may.
    pub(crate) fn sleep(&mut self) -> bool {
        !self.sides.as_mut().unwrap().tx.arm()
    }

    /// The worker wakes up.
    pub(crate) fn wake(&mut self) {
        self.sides.as_mut().unwrap().tx.disarm();
    }

    /// Takes the port away, as when the switch's process ends.
    pub(crate) fn lose_port(&mut self) {
        self.sides = None;
        self.guest.detach();
    }

    /// A new port on the same page.
    pub(crate) fn new_port(&mut self) {
        self.sides = Some(self.guest.open_port().unwrap());
    }
}

/// Puts the bytes of a frame to be sent in guest memory.
pub(crate) fn data(bench: &Bench, at: u32, bytes: &[u8]) {
    bench.guest.put(DATA + at, bytes).unwrap();
}

/// What the adapter sends in one turn.
pub(crate) fn sent(bench: &mut Bench) -> Vec<Vec<u8>> {
    bench.turn();
    bench.sent.drain(..).map(Result::unwrap).collect()
}

/// A frame's length, CRC included, in RDES0.
pub(crate) fn length(bytes: u32) -> u32 {
    bytes << rdes0::FL_SHIFT
}

/// RDES0 of a frame in one descriptor.
pub(crate) const WHOLE: u32 = rdes0::FS | rdes0::LS;

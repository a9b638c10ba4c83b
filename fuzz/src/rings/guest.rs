//! A guest's memory, two rings in it, and what a driver, honest or not, does to them.

use std::cell::OnceCell;
use std::sync::Arc;

use guestmem::{Memory, RegionSpec};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vswitch::ports::vhost::packed::{AVAIL, EVENT_LEN, PackedParts, USED};
use vswitch::ports::vhost::ring::{DESC_LEN, INDIRECT, NEXT, WRITE};
use vswitch::ports::vhost::split::{SplitParts, avail_len, table_len, used_len};

use crate::input::Input;

/// Bytes of guest memory, from address 0. It is cut in two regions, so that buffers can lie across.
const LEN: u64 = 0x1_0000;
/// Where a ring's parts start: descriptors, available ring, used ring.
const PARTS: [u64; 3] = [0, 0x1000, 0x1400];
/// From one ring to the next.
const STRIDE: u64 = 0x2000;
/// Where a driver puts indirect tables, and buffers.
const TABLES: u64 = 0x4000;
const BUFFERS: u64 = 0x5000;

/// Which of the two rings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Tx = 0,
    Rx = 1,
}

/// What a driver knows of its ring.
#[derive(Clone, Copy)]
struct Driver {
    /// Where the next descriptor goes.
    desc: u16,
    /// Packed: the wrap counter. Split: the available index.
    wrap: bool,
    avail: u16,
}

pub(super) struct Guest {
    pub(super) memory: Arc<Memory>,
    packed: bool,
    size: u16,
    drivers: [Driver; 2],
    /// Where the next buffer goes.
    buffer: u64,
}

thread_local! {
    /// Mapped once; every run starts with zeros.
    static MEMORY: OnceCell<Arc<Memory>> = const { OnceCell::new() };
}

fn map() -> Arc<Memory> {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&fd, LEN).expect("memfd");
    let half = LEN / 2;
    let region = |at| RegionSpec {
        guest_addr: at,
        user_addr: at,
        len: half,
        fd: fd.try_clone().expect("descriptor"),
        fd_offset: at,
    };
    Arc::new(Memory::map(vec![region(0), region(half)]).expect("memory"))
}

impl Guest {
    /// Two empty rings that start at `base`.
    pub(super) fn new(packed: bool, size: u16, base: u16) -> Guest {
        let memory = MEMORY.with(|memory| memory.get_or_init(map).clone());
        let driver = if packed {
            Driver {
                desc: (base & 0x7fff) % size,
                wrap: base & 0x8000 != 0,
                avail: 0,
            }
        } else {
            Driver {
                desc: 0,
                wrap: false,
                avail: base,
            }
        };
        let guest = Guest {
            memory,
            packed,
            size,
            drivers: [driver; 2],
            buffer: BUFFERS,
        };
        for at in (0..LEN).step_by(4096) {
            guest.write(at, &[0; 4096]);
        }
        if !packed {
            for ring in 0..2 {
                guest.write(ring * STRIDE + PARTS[1] + 2, &base.to_le_bytes());
                guest.write(ring * STRIDE + PARTS[2] + 2, &base.to_le_bytes());
            }
        }
        guest
    }

    pub(super) fn split_parts(&self, which: Which) -> SplitParts {
        let window = |part: usize, len| {
            self.memory
                .window(which as u64 * STRIDE + PARTS[part], len)
                .expect("inside")
        };
        let size = self.size;
        SplitParts {
            table: window(0, table_len(size)),
            avail: window(1, avail_len(size)),
            used: window(2, used_len(size)),
        }
    }

    pub(super) fn packed_parts(&self, which: Which) -> PackedParts {
        let window = |part: usize, len| {
            self.memory
                .window(which as u64 * STRIDE + PARTS[part], len)
                .expect("inside")
        };
        PackedParts {
            table: window(0, usize::from(self.size) * DESC_LEN),
            driver_event: window(1, EVENT_LEN),
            device_event: window(2, EVENT_LEN),
        }
    }

    pub(super) fn is_packed(&self) -> bool {
        self.packed
    }

    /// Writes what fits.
    fn write(&self, at: u64, bytes: &[u8]) {
        if let Some(span) = self.memory.span(at, bytes.len() as u32) {
            self.memory
                .write(span, bytes)
                .expect("memory does not go away");
        }
    }

    fn write_desc(&self, at: u64, addr: u64, len: u32, third: u16, fourth: u16) {
        let high = u64::from(len) | u64::from(third) << 32 | u64::from(fourth) << 48;
        self.write(at, &addr.to_le_bytes());
        self.write(at + 8, &high.to_le_bytes());
    }

    /// Something that a driver does.
    pub(super) fn act(&mut self, input: &mut Input<'_>) {
        let action = input.u8();
        let which = if action & 0x10 == 0 {
            Which::Tx
        } else {
            Which::Rx
        };
        match action & 15 {
            0..10 => self.post(input, which),
            // Anything anywhere.
            10 | 11 => {
                let (at, len) = (input.u16(), input.u8() % 64);
                let bytes = input.bytes(len.into());
                self.write(at.into(), bytes);
            }
            // Any descriptor.
            12 | 13 => {
                let index = input.u8();
                let at = which as u64 * STRIDE + u64::from(index) * DESC_LEN as u64;
                let (addr, len) = (input.u32(), input.u32());
                let addr = u64::from(addr) << ((addr >> 31) * 32);
                self.write_desc(at, addr, len, input.u16(), input.u16());
            }
            // Any available index, or notification wish.
            14 => self.write(
                which as u64 * STRIDE + PARTS[1] + 2,
                &input.u16().to_le_bytes(),
            ),
            _ => self.write(which as u64 * STRIDE + PARTS[1], &input.u32().to_le_bytes()),
        }
    }

    /// Makes a chain available, well formed but for what the lengths do.
    fn post(&mut self, input: &mut Input<'_>, which: Which) {
        let bits = input.u8();
        let count = u64::from(bits & 7) + 1;
        let write = if (which == Which::Rx) ^ (bits & 0xf0 == 0xf0) {
            WRITE
        } else {
            0
        };
        let indirect = bits & 8 != 0;
        let pieces: Vec<(u64, u32)> = (0..count).map(|_| self.piece(input)).collect();
        if which == Which::Tx && bits & 0x40 != 0 {
            // A header that asks for something, and the start of a frame.
            let bytes = input.bytes(80);
            self.write(pieces[0].0, bytes);
        }
        let packed = self.packed;
        if !indirect {
            let chain: Vec<_> = pieces
                .iter()
                .map(|&(addr, len)| (addr, len, write))
                .collect();
            self.publish(which, &chain);
            return;
        }
        for (index, &(addr, len)) in (0u64..).zip(&pieces) {
            let next = if index + 1 < count && !packed {
                NEXT
            } else {
                0
            };
            let (third, fourth) = if packed {
                (0, write)
            } else {
                (write | next, index as u16 + 1)
            };
            self.write_desc(TABLES + index * DESC_LEN as u64, addr, len, third, fourth);
        }
        self.publish(
            which,
            &[(TABLES, (count * DESC_LEN as u64) as u32, INDIRECT)],
        );
    }

    fn piece(&mut self, input: &mut Input<'_>) -> (u64, u32) {
        let len = u32::from(input.u16());
        let len = if len & 0x8000 != 0 { len } else { len % 2048 };
        if self.buffer + u64::from(len) > LEN {
            self.buffer = BUFFERS;
        }
        let at = self.buffer;
        self.buffer += u64::from(len).next_multiple_of(64);
        (at, len)
    }

    fn publish(&mut self, which: Which, chain: &[(u64, u32, u16)]) {
        let ring = which as u64 * STRIDE;
        let mut driver = self.drivers[which as usize];
        let head = driver.desc;
        for (index, &(addr, len, flags)) in chain.iter().enumerate() {
            let flags = flags | if index + 1 < chain.len() { NEXT } else { 0 };
            let at = ring + u64::from(driver.desc) * DESC_LEN as u64;
            let next = (driver.desc + 1) % self.size;
            if self.packed {
                let lap = if driver.wrap { AVAIL } else { USED };
                self.write_desc(at, addr, len, head, flags | lap);
                driver.wrap ^= next == 0;
            } else {
                self.write_desc(at, addr, len, flags, next);
            }
            driver.desc = next;
        }
        if !self.packed {
            let slot = u64::from(driver.avail % self.size);
            driver.avail = driver.avail.wrapping_add(1);
            self.write(ring + PARTS[1] + 4 + 2 * slot, &head.to_le_bytes());
            self.write(ring + PARTS[1] + 2, &driver.avail.to_le_bytes());
        }
        self.drivers[which as usize] = driver;
    }
}

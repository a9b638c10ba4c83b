//! The legacy adapter under a guest that does anything: to its registers, and to its lists while the switch uses them.

use guestmem::{Memory, RegionSpec};
use offload::Request;
use offload::request::validate;
use vnic_legacy::driver::{BASE, Guest, MEMORY};
use vnic_legacy::page;
use vswitch::burst::{Burst, MAX_FRAME};
use vswitch::deliver::{FrameMeta, Job, Quiet, Report};
use vswitch::mac::Mac;
use vswitch::port::Sides;
use vswitch::ports::memory::MemoryPort;
use vswitch::vlan::VlanMode;

use crate::input::Input;

const OWN: Mac = Mac([0, 0x15, 0x5d, 1, 2, 3]);

/// The registers alone. Input: actions until it ends, each a byte and what it needs. What must hold: any state can be
/// saved and restored, and comes back the same; no timer is asked for that is longer than the longest.
pub fn registers(data: &[u8]) {
    let mut input = Input::new(data);
    let mut guest = Guest::new(OWN).expect("a guest");
    while !input.is_empty() {
        match input.u8() {
            action @ 0..0xc0 => {
                let len = [1, 2, 4, 4, 4, 4, 4, 8][usize::from(action & 7)];
                let at = input.u8();
                // Mostly registers, sometimes what is between them and behind.
                let at = if at < 0x80 { at & 0x78 } else { at };
                access(&mut guest, at.into(), len, action & 8 != 0, &mut input);
            }
            0xc0..0xe0 => guest.advance(u64::from(input.u32() & 0xff_ffff)),
            0xe0..0xe8 => {
                let link = input.u8() & 1 != 0;
                guest.registers.set_link(link);
            }
            0xe8..0xf0 => {
                let (power, mut effects) = (input.u32(), Default::default());
                guest.registers.set_power(power, &mut effects);
                guest.carry_out(&effects);
            }
            0xf0..0xf8 => check_state(&mut guest),
            _ => {
                let mut effects = Default::default();
                guest.registers.reset(&mut effects);
                guest.carry_out(&effects);
            }
        }
        let longest = 0xffff * 819_200;
        assert!(guest.deadline.is_none_or(|at| at - guest.now <= longest));
    }
    check_state(&mut guest);
}

fn access(guest: &mut Guest, at: u64, len: usize, write: bool, input: &mut Input<'_>) {
    let mut bytes = [0; 8];
    let bytes = &mut bytes[..len];
    if write {
        let value = input.bytes(len);
        bytes[..value.len()].copy_from_slice(value);
        guest.write(at, bytes);
    } else {
        let mut effects = Default::default();
        guest.registers.read(at, bytes, guest.now, &mut effects);
        guest.carry_out(&effects);
    }
}

fn check_state(guest: &mut Guest) {
    let state = guest.registers.save(guest.now);
    let text = serde_json::to_string(&state).expect("state is plain");
    let read = serde_json::from_str(&text).expect("state reads back");
    let mut effects = Default::default();
    guest
        .registers
        .restore(&read, guest.now, &mut effects)
        .expect("a state that was saved");
    guest.carry_out(&effects);
    assert_eq!(guest.registers.save(guest.now), state);
}

/// The lists under the switch. Input: actions until it ends: registers, descriptors, guest memory and the shared page are
/// written, the port takes turns, frames are delivered. What must hold: every call comes back after bounded work, what is
/// taken can be carried, and no copy gets lost in a delivery.
pub fn rings(data: &[u8]) {
    let mut input = Input::new(data);
    let mut lab = Lab::new();
    while !input.is_empty() {
        lab.act(&mut input);
    }
    lab.turn();
    lab.deliver(1, 60);
}

struct Lab {
    guest: Guest,
    sides: Sides,
    source: Sides,
    station: vswitch::ports::memory::Station,
    page: Memory,
}

/// Descriptors are here, buffers anywhere.
const LISTS: u32 = 0x400;

impl Lab {
    fn new() -> Lab {
        let mut guest = Guest::new(OWN).expect("a guest");
        let sides = guest.open_port().expect("a port");
        let (source, station) = MemoryPort {
            depth: 32,
            buffer: 2048,
            ..MemoryPort::default()
        }
        .open()
        .expect("a port");
        let page = Memory::map(vec![RegionSpec {
            guest_addr: 0,
            user_addr: 0,
            len: page::LEN as u64,
            fd: guest.page.try_clone().expect("descriptor"),
            fd_offset: 0,
        }])
        .expect("a page");
        let mut lab = Lab {
            guest,
            sides,
            source,
            station,
            page,
        };
        lab.guest.set_csr(3, BASE);
        lab.guest.set_csr(4, BASE + LISTS / 2);
        lab.guest.set_csr(7, u32::MAX);
        lab
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.u8() {
            0..0x40 => self.describe(input),
            0x40..0x60 => self.turn(),
            0x60..0x80 => {
                let (count, len) = (input.u8() % 32 + 1, input.u16() % 1600);
                self.deliver(count.into(), len.max(14).into());
            }
            // Start, in any mode; more often without loopback.
            0x80..0x90 => {
                let csr6 = input.u32() | 0x2002;
                let loopback = if input.u8() & 3 == 0 { 0 } else { 0xc00 };
                self.guest.set_csr(6, csr6 & !loopback);
            }
            0x90..0xa8 => {
                let (csr, value) = (input.u8() % 16, input.u32());
                self.guest.set_csr(csr.into(), value);
            }
            0xa8..0xb0 => {
                // Somewhere among the descriptors.
                let (list, at) = (u64::from(input.u8() & 1) + 3, u32::from(input.u16()));
                self.guest.set_csr(list, BASE + at % (2 * LISTS));
            }
            0xb0..0xc0 => {
                let (at, bytes) = (u32::from(input.u16()) % LISTS, input.bytes(24));
                self.guest.put(BASE + at, bytes).expect("inside");
            }
            0xc0..0xd0 => {
                if !self.sides.tx.arm() {
                    self.turn();
                }
                self.sides.tx.disarm();
            }
            0xd0..0xd8 => {
                self.guest.detach();
                self.sides = self.guest.open_port().expect("a port");
            }
            0xd8..0xe0 => {
                // The process of the registers says anything.
                // But for the page's identity, without which no new port opens.
                let (at, value) = (u64::from(input.u8() & !3).max(0x40), input.u32());
                let word = self.page.span(at, 4).expect("inside");
                self.page.store_u32(word, value).expect("aligned");
            }
            0xe0..0xe8 => {
                self.guest.set_csr(0, 1);
                self.turn();
                self.guest.set_csr(0, 0);
                self.guest.set_csr(3, BASE);
                self.guest.set_csr(4, BASE + LISTS / 2);
            }
            _ => {
                let csr = input.u8() % 16;
                self.guest.csr(csr.into());
            }
        }
    }

    /// A descriptor that makes some sense.
    fn describe(&mut self, input: &mut Input<'_>) {
        let (index, bits) = (u32::from(input.u8()), input.u8());
        let at = BASE + index * 16 % LISTS;
        let flags = [
            0x6000_0000u32,
            0xe000_0000,
            0x2000_0000,
            0x4000_0000,
            0,
            0x0800_0000,
        ][usize::from(bits & 7) % 6];
        let ends = [0, 1 << 25, 1 << 24, 0][usize::from(bits >> 3 & 3)];
        let size = sizes(bits >> 5, input);
        let buffer = match input.u8() {
            0 => input.u32(),
            page => BASE + 0x1000 * u32::from(page) % MEMORY,
        };
        let next = match ends {
            0 => buffer,
            _ => BASE + u32::from(input.u8()) * 16 % LISTS,
        };
        self.guest
            .describe(at, [1 << 31, flags | ends | size, buffer, next])
            .expect("inside");
    }

    fn turn(&mut self) {
        let mut burst = Burst::new();
        self.sides.tx.gather(&mut burst);
        for frame in burst.frames() {
            assert!(frame.refused.is_some() || (14..=MAX_FRAME).contains(&frame.len()));
        }
        if !burst.is_empty() {
            self.sides.tx.complete();
        }
        assert!(self.sides.tx.fault().is_none() && self.sides.rx.fault().is_none());
    }

    fn deliver(&mut self, count: usize, len: usize) {
        let mut bytes = [&OWN.0[..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5]].concat();
        bytes.resize(len, 7);
        for _ in 0..count {
            assert!(self.station.send(&bytes));
        }
        let mut burst = Burst::new();
        self.source.tx.gather(&mut burst);
        let checked = validate(&Request::default(), &bytes[..len.min(128)], len as u32);
        let meta = vec![
            Some(FrameMeta {
                checked: checked.expect("a plain frame"),
                tag: None,
                vid: 0,
                priority: 0,
            });
            count
        ];
        let job = Job {
            burst: &burst,
            source: self.source.tx.memory(),
            meta: &meta,
            quiet: Quiet::default(),
            frames: u32::MAX >> (32 - count),
            vlan: &VlanMode::None,
            mtu: 1500,
        };
        let mut report = Report::default();
        self.sides.rx.deliver(&job, &mut report);
        let accounted = report.destination.frames + report.destination.drops.total();
        assert_eq!(accounted, count as u64);
        self.source.tx.complete();
    }
}
/// Both buffer sizes of a descriptor, as `how` (0 to 7) says: mostly such as make sense.
pub(crate) fn sizes(how: u8, input: &mut Input<'_>) -> u32 {
    match how {
        0 => 192,
        1 => input.u32() & 0x3f_ffff,
        _ => u32::from(input.u16() & 0x7ff),
    }
}

//! Hyper-V's interface (Hypervisor Top-Level Functional Specification) and VMBus: messages, channels, shared memory.

use core::arch::asm;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::cpu;
use crate::memory::{self, PAGE};

const GUEST_OS_ID: u32 = 0x4000_0000;
const HYPERCALL: u32 = 0x4000_0001;
const TSC_FREQUENCY: u32 = 0x4000_0022;
const APIC_FREQUENCY: u32 = 0x4000_0023;
const SCONTROL: u32 = 0x4000_0080;
const SIEFP: u32 = 0x4000_0082;
const SIMP: u32 = 0x4000_0083;
const EOM: u32 = 0x4000_0084;
const SINT2: u32 = 0x4000_0092;
/// An open-source operating system that has no number of its own.
const SELF: u64 = 1 << 63 | 0xff << 48;
/// Interrupts only wake a processor that halts: any vector will do.
const VECTOR: u64 = 0xf3;
const TIMER_VECTOR: u32 = 0xf2;
/// Of the source that VMBus uses, in the pages of messages and of event flags.
const SLOT: usize = 2 * 256;

const POST_MESSAGE: u64 = 0x5c;
const SIGNAL_EVENT_FAST: u64 = 0x1_005d;
/// Where messages of VMBus go from version 5.0 on, until the host names another.
const FIRST_CONNECTION: u32 = 4;
const VERSION: u32 = 0x5_0003;
const NETWORK: [u8; 16] = [
    0x63, 0x51, 0x61, 0xf8, 0x3e, 0xdf, 0xc5, 0x46, 0x91, 0x3f, 0xf2, 0xd2, 0xf9, 0x65, 0xed, 0x0e,
];

/// Most adapters that are used.
pub const MAX_ADAPTERS: usize = 2;

/// An adapter's channel as it is offered.
#[derive(Clone, Copy, Default)]
pub struct Offer {
    /// Its number.
    pub relid: u32,
    /// What it is signalled by.
    pub connection: u32,
}

/// A message of the host.
struct Message([u8; 240]);

impl Message {
    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }
}

/// The bus.
pub struct Bus {
    /// Ticks of the time-stamp counter in a second.
    pub tsc_hz: u64,
    apic_hz: u64,
    calls: *mut u8,
    input: *mut u8,
    messages: *mut u8,
    flags: *mut u8,
    connection: u32,
    next_gpadl: u32,
}

impl Bus {
    /// Connects; `interface` is EAX of CPUID leaf 0x40000001.
    pub fn connect(interface: u32) -> Bus {
        assert_eq!(interface.to_le_bytes(), *b"Hv#1", "no Hyper-V");
        let [calls, input, messages, flags] = [(); 4].map(|()| memory::take(1));
        cpu::write_msr(GUEST_OS_ID, SELF);
        for (register, page) in [(HYPERCALL, calls), (SIMP, messages), (SIEFP, flags)] {
            cpu::write_msr(register, page as u64 | 1);
        }
        cpu::write_msr(SINT2, VECTOR);
        cpu::write_msr(SCONTROL, 1);
        let mut bus = Bus {
            tsc_hz: cpu::read_msr(TSC_FREQUENCY),
            apic_hz: cpu::read_msr(APIC_FREQUENCY),
            calls,
            input,
            messages,
            flags,
            connection: FIRST_CONNECTION,
            next_gpadl: 1,
        };
        bus.post(&[14, 0, VERSION, 0, 2, 0, 0, 0, 0, 0]);
        let answer = bus.wait_for(15);
        assert_eq!(answer.word(8) & 0xffff, 1, "version {VERSION:#x} of VMBus");
        bus.connection = answer.word(12);
        bus
    }

    /// The channels of network adapters, in the order of their numbers.
    pub fn adapters(&self) -> ([Offer; MAX_ADAPTERS], usize) {
        let (mut found, mut count) = ([Offer::default(); MAX_ADAPTERS], 0);
        self.post(&[3, 0]);
        loop {
            let message = self.receive();
            match message.word(0) {
                1 if message.0[8..24] == NETWORK && count < MAX_ADAPTERS => {
                    found[count] = Offer {
                        relid: message.word(184),
                        connection: message.word(192),
                    };
                    count += 1;
                }
                4 => break,
                _ => {}
            }
        }
        found[..count].sort_unstable_by_key(|offer| offer.relid);
        (found, count)
    }

    /// Shares pages with the host; their number by which it knows them.
    pub fn share(&mut self, relid: u32, start: *mut u8, pages: usize) -> u32 {
        let gpadl = self.next_gpadl;
        self.next_gpadl += 1;
        let bytes = (pages * PAGE) as u32;
        let ranges = 8 + 8 * pages as u32;
        let mut words = [0; 60];
        words[..7].copy_from_slice(&[8, 0, relid, gpadl, ranges | 1 << 16, bytes, 0]);
        let (mut page, end) = (
            memory::page_number(start),
            memory::page_number(start) + pages as u64,
        );
        let (mut at, mut limit) = (7, 26);
        while page < end {
            while page < end && limit > 0 {
                words[at] = page as u32;
                words[at + 1] = (page >> 32) as u32;
                (at, limit, page) = (at + 2, limit - 1, page + 1);
            }
            self.post(&words[..at]);
            words[..4].copy_from_slice(&[9, 0, 0, gpadl]);
            (at, limit) = (4, 28);
        }
        let answer = self.wait_for(10);
        assert_eq!(
            (answer.word(12), answer.word(16)),
            (gpadl, 0),
            "sharing memory"
        );
        gpadl
    }

    /// Opens a channel whose rings are `gpadl`, of which the second begins at page `second`.
    pub fn open(&self, relid: u32, gpadl: u32, second: usize) {
        let mut words = [0; 37];
        words[..7].copy_from_slice(&[5, 0, relid, 1, gpadl, 0, second as u32]);
        self.post(&words);
        let answer = self.wait_for(6);
        assert_eq!(
            (answer.word(8), answer.word(16)),
            (relid, 0),
            "opening a channel"
        );
    }

    /// Signals the host.
    pub fn signal(&self, connection: u32) {
        self.call(SIGNAL_EVENT_FAST, connection.into());
    }

    /// Sleeps until the host signals, for at most two milliseconds, unless `is_needed` once signals count.
    pub fn sleep(&self, is_needed: impl FnOnce() -> bool) {
        const TIMER: *mut u32 = 0xfee0_0320 as *mut u32;
        const INITIAL_COUNT: *mut u32 = 0xfee0_0380 as *mut u32;
        const DIVIDE: *mut u32 = 0xfee0_03e0 as *mut u32;
        for word in 0..32 {
            // SAFETY: the page of event flags is ours, and the host changes it atomically.
            unsafe { AtomicU64::from_ptr(self.flags.add(SLOT + 8 * word).cast()) }
                .store(0, Ordering::SeqCst);
        }
        if is_needed() {
            return;
        }
        // SAFETY: registers of the local APIC: the timer once, divided by 1.
        unsafe {
            DIVIDE.write_volatile(0b1011);
            TIMER.write_volatile(TIMER_VECTOR);
            INITIAL_COUNT.write_volatile((self.apic_hz / 500) as u32);
        }
        cpu::halt();
    }

    fn call(&self, control: u64, input: u64) -> u64 {
        let status;
        // SAFETY: the page has code for this, which changes no other registers than the convention says.
        unsafe {
            asm!("call {page}", page = in(reg) self.calls, inout("rcx") control => _, inout("rdx") input => _,
                out("rax") status, out("r8") _, out("r9") _, out("r10") _, out("r11") _)
        };
        status
    }

    fn post(&self, words: &[u32]) {
        let header = [self.connection, 0, 1, 4 * words.len() as u32];
        for (at, word) in header.iter().chain(words).enumerate() {
            // SAFETY: the page of input is ours; a message has at most 60 words.
            unsafe { self.input.cast::<u32>().add(at).write_volatile(*word) };
        }
        loop {
            match self.call(POST_MESSAGE, self.input as u64) & 0xffff {
                0 => return,
                // No room: the host wants to be asked again.
                0x13 => spin_loop(),
                status => panic!("posting message {}: status {status:#x}", words[0]),
            }
        }
    }

    fn wait_for(&self, kind: u32) -> Message {
        loop {
            let message = self.receive();
            if message.word(0) == kind {
                return message;
            }
        }
    }

    fn receive(&self) -> Message {
        let mut message = Message([0; 240]);
        // SAFETY: the slot of our source in the page of messages, which the host leaves alone while its type is not 0.
        unsafe {
            let slot = self.messages.add(SLOT);
            let kind = AtomicU32::from_ptr(slot.cast());
            while kind.load(Ordering::Acquire) == 0 {
                spin_loop();
            }
            slot.add(16)
                .copy_to_nonoverlapping(message.0.as_mut_ptr(), 240);
            kind.store(0, Ordering::Release);
            fence(Ordering::SeqCst);
            if slot.add(5).read_volatile() & 1 != 0 {
                cpu::write_msr(EOM, 0);
            }
        }
        message
    }
}

//! A guest without an operating system, for tests and benchmarks of synthetic adapters: it brings up VMBus and NetVSC by
//! itself and drives the rings from ring 3, at the processor's own speed on every kind of host.
//!
//! The kernel's command line says what each adapter is for (see [`options`]); what came of it is said on the first serial
//! port, a line of JSON for each adapter, and then `done`.
//!
//! | `role=` | |
//! |---|---|
//! | `generate` | sends frames: [`raw::Generator`] |
//! | `sink` | counts frames: [`raw::Sink`] |
//! | `tcp` | an end of a connection: [`tcp::Tcp`] |

#![no_std]
#![no_main]

mod bus;
mod cpu;
mod memory;
mod nic;
mod options;
mod raw;
mod ring;
mod serial;
mod tcp;
mod wire;

use core::arch::global_asm;
use core::ffi::CStr;
use core::panic::PanicInfo;

use crate::bus::Bus;
use crate::nic::Nic;
use crate::options::Options;
use crate::raw::{Generator, Sink};
use crate::serial::say;
use crate::tcp::Tcp;

global_asm!(include_str!("boot.s"));

/// Turns without work before the processor sleeps: some tens of microseconds.
const IDLE: u32 = 1000;

/// What an adapter is for.
#[allow(
    clippy::large_enum_variant,
    reason = "there are two, and nothing allocates"
)]
enum Role {
    Generator(Generator),
    Sink(Sink),
    Tcp(Tcp),
}

impl Role {
    fn new(bus: &Bus, nic: &mut Nic, options: Options<'_>) -> Role {
        match options.text("role") {
            Some("generate") => Role::Generator(Generator::new(bus, nic, options)),
            Some("sink") => Role::Sink(Sink::new(bus, options)),
            Some("tcp") => Role::Tcp(Tcp::new(nic, options, cpu::time())),
            other => panic!("role={other:?}: generate, sink and tcp are allowed"),
        }
    }

    /// Does some work. Whether there was any; `None` once it has ended.
    #[inline]
    fn step(&mut self, bus: &Bus, nic: &mut Nic) -> Option<bool> {
        let now = cpu::time();
        match self {
            Role::Generator(generator) => generator.step(bus, nic, now),
            Role::Sink(sink) => sink.step(bus, nic, now),
            Role::Tcp(tcp) => tcp.step(bus, nic, now),
        }
    }

    fn report(&self, bus: &Bus, index: usize) {
        match self {
            Role::Generator(generator) => generator.report(bus, index),
            Role::Sink(sink) => sink.report(bus, index),
            Role::Tcp(tcp) => tcp.report(bus, index),
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn main(zero_page: *const u8, _: u64, interface: u64) -> ! {
    const COMMAND_LINE: usize = 0x228;
    const LONGEST: usize = 2048;
    // SAFETY: the boot protocol's zero page, with the address of the command line, and nothing was taken yet.
    let line = unsafe {
        memory::init(zero_page);
        let address = zero_page.add(COMMAND_LINE).cast::<u32>().read_unaligned();
        core::slice::from_raw_parts(address as *const u8, LONGEST)
    };
    let line = CStr::from_bytes_until_nul(line).expect("a command line that ends");
    let line = line.to_str().expect("a command line of ASCII");
    let mut bus = Bus::connect(interface as u32);
    let (offers, count) = bus.adapters();
    let mut ends: [Option<(Nic, Role)>; bus::MAX_ADAPTERS] = [const { None }; bus::MAX_ADAPTERS];
    for (index, (end, offer)) in ends.iter_mut().zip(&offers[..count]).enumerate() {
        let mut nic = Nic::new(&mut bus, *offer);
        let role = Role::new(&bus, &mut nic, Options::new(line, index));
        *end = Some((nic, role));
    }
    say!("ready");
    work(&bus, &mut ends);
    for (index, (_, role)) in ends.iter().flatten().enumerate() {
        role.report(&bus, index);
    }
    say!("done");
    loop {
        cpu::halt();
    }
}

/// Goes on until all have ended.
fn work(bus: &Bus, ends: &mut [Option<(Nic, Role)>]) {
    let mut idle = 0;
    loop {
        let (mut any, mut open) = (false, false);
        for (nic, role) in ends.iter_mut().flatten() {
            let did = role.step(bus, nic);
            open |= did.is_some();
            any |= did == Some(true);
        }
        if !open {
            return;
        }
        idle = if any { 0 } else { idle + 1 };
        if idle > IDLE {
            bus.sleep(|| ends.iter().flatten().any(|(nic, _)| nic.before_sleep()));
            ends.iter().flatten().for_each(|(nic, _)| nic.after_sleep());
            idle = 0;
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn fault_report(vector: u64, _: u64, address: u64, about: u64, error: u64) -> ! {
    panic!("fault {vector}, error {error:#x}, at {address:#x}, CR2 {about:#x}");
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("guest-bench: {info}");
    loop {
        cpu::halt();
    }
}

//! SeaBIOS on our chipset: console, boot order, option ROMs, power-off and reset. Needs /dev/kvm and the package seabios.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(missing_docs)]

use std::fs::File;
use std::io::Write as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use hypervisor::chipset::i440fx::HostBridge;
use hypervisor::chipset::serial::ComPort;
use hypervisor::device::{Device, Effects, RestoreError, Space, State, Wiring};
use hypervisor::memory::GuestMemory;
use hypervisor::pc::{COM1, PCI, Pc, Start};
use hypervisor::pci::{Bar, ConfigSpace, Function, Identity};
use hypervisor::{Event, Machine};
use iced_x86::code_asm::*;
use rustix::fs::{MemfdFlags, memfd_create};

const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";
/// Firmware takes a second or so where KVM emulates it; the rest is for a busy host.
const PATIENCE: Duration = Duration::from_secs(120);

/// A NIC whose registers do nothing.
struct Nic;

impl Device for Nic {
    fn read(&mut self, _: usize, _: u64, data: &mut [u8], _: &mut Effects) {
        data.fill(0);
    }
    fn write(&mut self, _: usize, _: u64, _: &[u8], _: &mut Effects) {}
    fn reset(&mut self, _: &mut Effects) {}
    fn save(&self) -> State {
        State::Null
    }
    fn restore(&mut self, _: &State, _: &mut Effects) -> Result<(), RestoreError> {
        Ok(())
    }
    fn wiring(&self) -> Wiring {
        Wiring::default()
    }
}

fn nic(rom: &[u8]) -> Function {
    let mut config = ConfigSpace::new(&Identity {
        vendor: 0x1011,
        device: 0x0009,
        revision: 0x22,
        class: 0x02_00_00,
        ..Identity::default()
    });
    config.add_bar(Bar::standard(0, Space::Port, 128));
    config.add_bar(Bar::standard(1, Space::Memory, 128));
    config.set_pin(1);
    Function::new(config, Box::new(Nic)).with_rom(rom).unwrap()
}

/// An option ROM for the NIC, with a bootstrap entry (BIOS Boot Specification 1.01) that says `letter` on COM1, and
/// then turns the machine off, or waits for a key, says it and gives up.
fn rom(letter: u8, off: bool) -> Vec<u8> {
    const PCI: usize = 0x20;
    const PNP: usize = 0x40;
    const INIT: usize = 0x70;
    const BOOT: usize = 0x80;
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x55, 0xaa, 2]);
    let word = |at: usize| (at as u16).to_le_bytes();
    put(0x18, &word(PCI));
    put(0x1a, &word(PNP));
    put(
        PCI,
        b"PCIR\x11\x10\x09\x00\x00\x00\x18\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x80\x00\x00",
    );
    put(PNP, b"$PnP\x01\x02");
    put(PNP + 0x12, &[0x02, 0x00, 0x00, 0x14]);
    put(PNP + 0x1a, &word(BOOT));
    // jmp INIT; there: a device to boot from is attached.
    put(3, &[0xe9, (INIT - 6) as u8, 0x00]);
    put(INIT, &[0xb8, 0x20, 0x00, 0xcb]);
    let mut a = CodeAssembler::new(16).unwrap();
    a.mov(dx, 0x3f8_u32).unwrap();
    a.mov(al, u32::from(letter)).unwrap();
    a.out(dx, al).unwrap();
    if off {
        a.mov(dx, 0x604_u32).unwrap();
        a.mov(ax, 0x2000_u32).unwrap();
        a.out(dx, ax).unwrap();
    } else {
        a.mov(ah, 0_u32).unwrap();
        a.int(0x16).unwrap();
        a.mov(dx, 0x3f8_u32).unwrap();
        a.out(dx, al).unwrap();
        a.int(0x18).unwrap();
    }
    put(BOOT, &a.assemble(BOOT as u64).unwrap());
    let sum = image.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    image[1023] = 0_u8.wrapping_sub(sum);
    image
}

fn pc(adapters: Vec<Option<Function>>, vcpus: u8, start: Start) -> Pc {
    Pc {
        name: "test".to_owned(),
        uuid: *b"0123456789abcdef",
        vcpus,
        memory: GuestMemory::new(64 << 20).unwrap(),
        unix_nanos: 1_795_264_496_000_000_000,
        adapters,
        hyperv: false,
        start,
        debug: false,
    }
}

fn seabios() -> Vec<u8> {
    std::fs::read(SEABIOS).expect("the package seabios")
}

struct Pcs {
    machine: Machine,
    output: Receiver<Vec<u8>>,
    /// What COM1 has said.
    said: String,
}

impl Pcs {
    fn start(adapters: Vec<Function>, vcpus: u8) -> Self {
        Self::start_with(adapters, vcpus, Start::Firmware(seabios()))
    }

    fn start_with(adapters: Vec<Function>, vcpus: u8, start: Start) -> Self {
        let (sender, output) = channel();
        let adapters = adapters.into_iter().map(Some).collect();
        let (config, devices) = pc(adapters, vcpus, start)
            .assemble(Box::new(move |console, bytes| {
                if console == 0 {
                    let _ = sender.send(bytes.to_vec());
                }
            }))
            .unwrap();
        let machine = Machine::new(config, devices).unwrap();
        machine.start().unwrap();
        Self {
            machine,
            output,
            said: String::new(),
        }
    }

    /// Waits until COM1 has said `text`, and forgets all up to it.
    fn expect(&mut self, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.said.contains(text) {
            let left = end.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.said.extend(bytes.iter().map(|&byte| char::from(byte))),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!(
                        "no `{text}` in {:?}; {:?}",
                        self.said,
                        self.machine.events()
                    )
                }
            }
        }
        let at = self.said.find(text).unwrap() + text.len();
        self.said.drain(..at);
    }

    fn expect_event(&self, expected: &Event) {
        let end = Instant::now() + PATIENCE;
        loop {
            let events = self.machine.events();
            if events.contains(expected) {
                return;
            }
            assert!(events.is_empty(), "{events:?}");
            assert!(Instant::now() < end, "no {expected:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn firmware_starts_again_after_a_reset() {
    let mut pc = Pcs::start(Vec::new(), 2);
    pc.expect("SeaBIOS (version ");
    pc.expect("30313233-3435-3637-3839-616263646566");
    pc.machine.reset().unwrap();
    pc.expect("SeaBIOS (version ");
    pc.expect("No bootable device.");
}

#[test]
fn option_roms_boot_in_the_order_of_adapters_and_take_keys_from_the_console() {
    let roms = [rom(b'@', false), rom(b'#', true), rom(b'$', true)];
    let mut pc = Pcs::start(roms.iter().map(|rom| nic(rom)).collect(), 1);
    pc.expect("SeaBIOS (version ");
    pc.expect("@");
    pc.machine.with(COM1, |port: &mut ComPort, effects| {
        port.input(b"K", effects)
    });
    pc.expect("K");
    pc.expect("#");
    pc.expect_event(&Event::PoweredOff);
    assert!(!pc.said.contains('$'));
    // The ROMs are mapped.
    assert_eq!(pc.machine.exits().memory_reads, 0);
}

#[test]
fn an_adapter_is_in_its_own_slot_beside_an_empty_one() {
    let image = rom(b'@', true);
    let (config, devices) = pc(vec![None, Some(nic(&image))], 1, Start::Firmware(seabios()))
        .assemble(Box::new(|_, _| {}))
        .unwrap();
    let machine = Machine::new(config, devices).unwrap();
    let found = [0, 1].map(|slot| {
        machine.with(PCI, |bridge: &mut HostBridge, effects| {
            let address = Pc::adapter_address(slot);
            bridge
                .with_device(address, effects, |_: &mut Nic, _| ())
                .is_some()
        })
    });
    assert_eq!(found, [Some(false), Some(true)]);
}

const PAYLOAD: &[u8; 32] = b"what runs in protected mode, say";
const INITRD: &[u8] = b"an initial file system";
/// Setup sectors of [`kernel`] behind its boot sector.
const SETUP_SECTORS: usize = 4;

/// A kernel by version 2.03 of the boot protocol, whose code says its command line on COM1 and stops.
fn kernel() -> Vec<u8> {
    let setup = 512 * (1 + SETUP_SECTORS);
    let mut image = vec![0; setup];
    image[0x1f1] = SETUP_SECTORS as u8;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x208].copy_from_slice(b"HdrS\x03\x02");
    // LOADED_HIGH; the initrd may end anywhere.
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x37ff_ffff_u32.to_le_bytes());
    let mut a = CodeAssembler::new(16).unwrap();
    let (mut next, mut end) = (a.create_label(), a.create_label());
    a.cld().unwrap();
    a.mov(si, word_ptr(0x228)).unwrap();
    a.mov(dx, 0x3f8_u32).unwrap();
    a.set_label(&mut next).unwrap();
    a.lodsb().unwrap();
    a.out(dx, al).unwrap();
    a.test(al, al).unwrap();
    a.jne(next).unwrap();
    a.set_label(&mut end).unwrap();
    a.hlt().unwrap();
    a.jmp(end).unwrap();
    // The jump over the rest of the header, where the kernel is entered.
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x7e]);
    let code = a.assemble(0x280).unwrap();
    image[0x280..0x280 + code.len()].copy_from_slice(&code);
    image.extend_from_slice(PAYLOAD);
    image
}

fn file(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("image", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file
}

fn start_kernel(firmware: Option<Vec<u8>>) -> Start {
    Start::Linux {
        kernel: file(&kernel()),
        firmware,
        initrd: Some(file(INITRD)),
        command_line: "dhcp and so on".to_owned(),
    }
}

#[test]
fn a_kernel_without_an_entry_for_64_bits_is_started_by_firmware_again_and_again() {
    let mut pc = Pcs::start_with(
        vec![nic(&rom(b'@', true))],
        1,
        start_kernel(Some(seabios())),
    );
    for _ in 0..2 {
        pc.expect("SeaBIOS (version ");
        pc.expect("dhcp and so on\0");
        assert!(
            !pc.said.contains('@'),
            "the adapter boots first: {}",
            pc.said
        );
        let memory = pc.machine.memory();
        let mut payload = [0; PAYLOAD.len()];
        memory.read("kernel", 0x10_0000, &mut payload).unwrap();
        assert_eq!(&payload, PAYLOAD);
        let mut fields = [0; 8];
        memory.read("header", 0x9_0218, &mut fields).unwrap();
        let at = u32::from_le_bytes(fields[..4].try_into().unwrap());
        assert_eq!(fields[4..], (INITRD.len() as u32).to_le_bytes());
        let mut initrd = [0; INITRD.len()];
        memory.read("initrd", at.into(), &mut initrd).unwrap();
        assert_eq!(initrd, *INITRD);
        pc.machine.reset().unwrap();
    }
}

#[test]
fn a_kernel_that_needs_firmware_says_so() {
    let pc = pc(Vec::new(), 1, start_kernel(None));
    let error = pc.assemble(Box::new(|_, _| {})).err().unwrap().to_string();
    assert!(error.contains("seabios"), "{error}");
}

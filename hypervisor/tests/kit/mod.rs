//! Machines that run a few instructions of our own, with a device that tells what they do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses some of it"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use hypervisor::boot::Boot;
use hypervisor::device::{Device, Effect, Effects, Region, RestoreError, Space, State, Wiring};
use hypervisor::memory::GuestMemory;
use hypervisor::{Config, Machine, Named};
use iced_x86::code_asm::CodeAssembler;

/// First port of the [`Probe`].
pub const PORT: u32 = 0x500;
/// Writing here asks for a reset of the machine, for power-off with 1.
pub const CONTROL: u32 = PORT + 8;
const PORTS: u64 = 16;

/// How long a guest may take for a few instructions.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A device at ports 0x500 to 0x50f: hands every write to the test, and answers reads with `answer`.
pub struct Probe {
    writes: Sender<(u64, u64)>,
    pub answer: u8,
    pub wiring: Wiring,
    /// How often it still wants its interrupt.
    pub wanted: u32,
    pub timers: u32,
    /// What opening a file from the guest's access gave, last.
    pub opened: Option<std::io::ErrorKind>,
    /// Whether its reset is taken over by who serves it.
    pub settled: Arc<AtomicBool>,
}

impl Probe {
    pub fn new() -> (Self, Receiver<(u64, u64)>) {
        let (writes, seen) = channel();
        let region = Region {
            number: 0,
            space: Space::Port,
            start: PORT.into(),
            len: PORTS,
        };
        let wiring = Wiring {
            regions: vec![region],
            ..Wiring::default()
        };
        let probe = Self {
            writes,
            answer: 0x5a,
            wiring,
            wanted: 0,
            timers: 0,
            opened: None,
            settled: Arc::new(true.into()),
        };
        (probe, seen)
    }
}

impl Device for Probe {
    fn read(&mut self, _region: usize, _offset: u64, data: &mut [u8], _effects: &mut Effects) {
        data.fill(self.answer);
    }

    fn write(&mut self, region: usize, offset: u64, data: &[u8], effects: &mut Effects) {
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(value);
        if region == 0 && offset == 12 {
            self.opened = std::fs::File::open("/etc/hostname")
                .err()
                .map(|error| error.kind());
        }
        let _ = self.writes.send((region as u64 * 0x1000 + offset, value));
        if region == 0 && offset == 8 {
            effects.push(if value == 1 {
                Effect::PowerOff
            } else {
                Effect::Reset
            });
        }
    }

    fn timer(&mut self, _id: u32, _effects: &mut Effects) {
        self.timers += 1;
    }

    fn wants_interrupt(&mut self, _id: u32) -> bool {
        let wants = self.wanted > 0;
        self.wanted = self.wanted.saturating_sub(1);
        wants
    }

    fn reset(&mut self, _effects: &mut Effects) {}

    fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    fn save(&self) -> State {
        State::from(self.answer)
    }

    fn restore(&mut self, state: &State, _effects: &mut Effects) -> Result<(), RestoreError> {
        self.answer = serde_json::from_value(state.clone())?;
        Ok(())
    }

    fn wiring(&self) -> Wiring {
        self.wiring.clone()
    }
}

/// Firmware of 64 KiB that runs `code`, in 16-bit mode at f000:0000, after power-on.
pub fn firmware(code: impl FnOnce(&mut CodeAssembler)) -> Boot {
    firmware_with(code, |a| a.nop().unwrap())
}

/// As [`firmware`]; the other processors run `others`, at f800:0000, after a start-up request with vector 0xf8.
pub fn firmware_with(
    code: impl FnOnce(&mut CodeAssembler),
    others: impl FnOnce(&mut CodeAssembler),
) -> Boot {
    let mut image = vec![0xf4; 64 << 10];
    let mut put = |offset: usize, code: Vec<u8>| {
        image[offset..offset + code.len()].copy_from_slice(&code);
    };
    let mut assembler = CodeAssembler::new(16).unwrap();
    code(&mut assembler);
    put(0, assembler.assemble(0).unwrap());
    let mut assembler = CodeAssembler::new(16).unwrap();
    others(&mut assembler);
    put(0x8000, assembler.assemble(0).unwrap());
    // jmp 0xf000:0x0000
    put(0xfff0, vec![0xea, 0x00, 0x00, 0x00, 0xf0]);
    Boot::Firmware(image)
}

pub fn config(vcpus: u8, boot: Boot) -> Config {
    Config {
        vcpus,
        memory: GuestMemory::new(16 << 20).unwrap(),
        boot,
        hyperv: false,
        output: Box::new(|_, _| {}),
    }
}

/// A machine with a probe named "probe" and nothing else.
pub fn machine(vcpus: u8, boot: Boot) -> (Machine, Receiver<(u64, u64)>) {
    let (probe, seen) = Probe::new();
    let machine = Machine::new(config(vcpus, boot), vec![Named::new("probe", probe)]).unwrap();
    (machine, seen)
}

/// The next write of the guest.
pub fn next(seen: &Receiver<(u64, u64)>) -> (u64, u64) {
    seen.recv_timeout(PATIENCE).expect("the guest writes")
}

//! Any accesses to all devices of a PC: ports and memory of every width, configuration space, time that passes, keys typed,
//! resets, states saved and restored, and forged ones. One of its adapters is a DEC 21140, whose registers a driver writes,
//! and whose rings a port of the switch uses: nothing that either does may harm the other, nor any device beside them.
//!
//! Input: a byte of how the PC is made, then operations. An operation is a byte, and what it needs. A PC of each kind is made
//! once; what an input finds is the state that it had then, and memory that is zero.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use hypervisor::Named;
use hypervisor::bus::Bus;
use hypervisor::chipset::i440fx::HostBridge;
use hypervisor::chipset::serial::ComPort;
use hypervisor::device::{Device, Effect, Effects, RestoreError, Space, State, Wiring};
use hypervisor::memory::GuestMemory;
use hypervisor::pc::{Pc, Start};
use hypervisor::pci::{Bar, ConfigSpace, Function, INTX, Identity};

use crate::input::Input;

mod adapter;

/// The ports of the chipset and of where the guest usually puts its functions.
const PORTS: [u16; 24] = [
    0x60, 0x64, 0x70, 0x71, 0x80, 0x92, 0xb2, 0xb3, 0x2f8, 0x3f8, 0x3f9, 0x402, 0x510, 0x511,
    0x514, 0x518, 0x600, 0x604, 0x608, 0xcf8, 0xcf9, 0xcfc, 0xc000, 0xc088,
];
/// Registers of configuration space that mean something.
const REGISTERS: [u8; 12] = [
    0x04, 0x0c, 0x10, 0x14, 0x30, 0x3c, 0x40, 0x58, 0x5c, 0x60, 0x80, 0xf8,
];
/// Bytes of memory.
const MEMORY: u64 = 4 << 20;
/// Kinds of PCs.
const KINDS: u8 = 16;
/// Most effects of one access.
const MAX_EFFECTS: usize = 64;
/// Most bytes of the state of all devices.
const MAX_STATE: usize = 128 << 10;
/// Timers that may run out in one step of time: no device may ask for one again and again at once.
const MAX_TIMERS: usize = 20_000;

/// A NIC's registers: they keep what is written, and the first one's lowest bit drives the pin.
struct Nic([u8; 128]);

impl Device for Nic {
    fn read(&mut self, region: usize, offset: u64, data: &mut [u8], _effects: &mut Effects) {
        assert!(region < 2, "region {region}");
        data.copy_from_slice(&self.0[offset as usize..][..data.len()]);
    }

    fn write(&mut self, region: usize, offset: u64, data: &[u8], effects: &mut Effects) {
        if region < 2 {
            self.0[offset as usize..][..data.len()].copy_from_slice(data);
            let high = self.0[0] & 1 != 0;
            effects.push(Effect::Line { gsi: INTX, high });
        }
    }

    fn reset(&mut self, _effects: &mut Effects) {
        self.0 = [0; 128];
    }

    fn save(&self) -> State {
        self.0[0].into()
    }

    fn restore(&mut self, state: &State, effects: &mut Effects) -> Result<(), RestoreError> {
        let byte = serde_json::from_value::<u8>(state.clone())?;
        self.0 = [0; 128];
        self.write(0, 0, &[byte], effects);
        Ok(())
    }

    fn wiring(&self) -> Wiring {
        Wiring::default()
    }
}

fn nic() -> Function {
    let mut config = ConfigSpace::new(&Identity {
        vendor: 0x1011,
        device: 0x0009,
        class: 0x02_00_00,
        ..Identity::default()
    });
    config.add_bar(Bar::standard(0, Space::Port, 128));
    config.add_bar(Bar::standard(1, Space::Memory, 128));
    config.set_pin(1);
    let (event, _) = std::io::pipe().expect("pipe");
    let event = Arc::new(event.into());
    let mut rom = vec![0x90; 3000];
    rom[..2].copy_from_slice(&[0x55, 0xaa]);
    Function::new(config, Box::new(Nic([0; 128])))
        .with_doorbell(0, 8, 4, Arc::clone(&event))
        .with_doorbell(1, 8, 4, Arc::clone(&event))
        .with_interrupt(event)
        .with_rom(&rom)
        .expect("an option ROM")
}

/// What a machine does around its devices, without a machine.
struct Board {
    devices: Vec<Named>,
    bus: Bus,
    now: u64,
    timers: BTreeMap<(usize, u32), u64>,
    memory: GuestMemory,
    /// The state of a PC that was just made.
    first: Vec<State>,
    /// Which devices were accessed.
    accessed: Vec<bool>,
    adapter: adapter::Adapter,
}

impl Board {
    fn new(how: u8) -> Self {
        let start = match how & 1 {
            0 => Start::Firmware(vec![0; 64 << 10]),
            _ => Start::Linux {
                kernel: File::open("/dev/null").expect("a file"),
                firmware: None,
                initrd: None,
                command_line: String::new(),
            },
        };
        let (function, adapter) = adapter::make();
        let functions = (0..adapter::INDEX).map(|_| nic()).chain([function]);
        let pc = Pc {
            name: "fuzz".to_owned(),
            uuid: [7; 16],
            vcpus: 1 + (how >> 1 & 3),
            memory: GuestMemory::new(MEMORY).expect("memory"),
            unix_nanos: 1_795_264_496_000_000_000,
            adapters: functions.map(Some).collect(),
            hyperv: false,
            start,
            debug: how & 8 != 0,
        };
        let (config, devices) = pc.assemble(Box::new(|_, _| {})).expect("a PC");
        let mut board = Self {
            accessed: vec![false; devices.len()],
            devices,
            bus: Bus::default(),
            now: 0,
            timers: BTreeMap::new(),
            memory: config.memory,
            first: Vec::new(),
            adapter,
        };
        board.reset();
        board.first = board.save();
        board
    }

    /// Makes it what it was at first.
    fn begin(&mut self) {
        self.detach();
        self.now = 0;
        self.memory.clear().expect("memory");
        let first = std::mem::take(&mut self.first);
        self.restore(&first);
        self.first = first;
        self.attach();
    }

    /// Calls a device and carries out what it asks for.
    fn call<R>(
        &mut self,
        index: usize,
        call: impl FnOnce(&mut dyn Device, &mut Effects) -> R,
    ) -> R {
        let mut effects = Effects::new(self.now);
        let result = call(self.devices[index].device.as_mut(), &mut effects);
        let effects = effects.take();
        assert!(effects.len() <= MAX_EFFECTS, "{effects:?}");
        for effect in effects {
            match effect {
                Effect::Line { gsi, .. } => assert!(gsi < 16, "line {gsi}"),
                Effect::Timer { id, after } => {
                    let after = u64::try_from(after.as_nanos()).expect("some centuries at most");
                    self.timers
                        .insert((index, id), self.now.saturating_add(after));
                }
                Effect::CancelTimer { id } => {
                    self.timers.remove(&(index, id));
                }
                Effect::Rewire => self.rewire(index),
                Effect::Shadow { start, len, .. } => {
                    assert!(start >= 0xc_0000 && len > 0 && start + len <= 0x10_0000);
                    assert_eq!((start % 0x4000, len % 0x4000), (0, 0));
                }
                Effect::Output { bytes, .. } => assert!(bytes.len() <= 8),
                Effect::Reset | Effect::PowerOff | Effect::Message { .. } => {}
            }
        }
        result
    }

    fn rewire(&mut self, index: usize) {
        let wiring = self.devices[index].device.wiring();
        assert!(wiring.regions.len() <= 32);
        for bell in &wiring.doorbells {
            let chipset = bell.space == Space::Port && bell.address < 0x1000;
            let controllers = bell.space == Space::Memory && bell.address >= 0xfec0_0000;
            assert!(!chipset && !controllers, "{bell:?}");
            let (start, end) = (bell.address, bell.address + u64::from(bell.len));
            let over = wiring.regions.iter().find(|region| {
                region.space == bell.space
                    && start < region.start + region.len
                    && region.start < end
            });
            let over = over.expect("a doorbell lies in a region");
            assert!(
                over.start <= start && end <= over.start + over.len,
                "{bell:?} {over:?}"
            );
        }
        assert!(wiring.interrupts.iter().all(|interrupt| interrupt.gsi < 16));
        self.bus.set(index, &wiring.regions);
    }

    fn access(&mut self, space: Space, address: u64, data: &mut [u8], write: bool) {
        if let Some(target) = self.bus.find(space, address, data.len()) {
            self.accessed[target.device] = true;
            self.call(target.device, |device, effects| match write {
                true => device.write(target.region, target.offset, data, effects),
                false => device.read(target.region, target.offset, data, effects),
            });
        } else if space == Space::Memory && write {
            // Beyond the memory nobody answers.
            let _ = self.memory.write("guest", address, data);
        }
    }

    fn reset(&mut self) {
        self.timers.clear();
        for index in 0..self.devices.len() {
            self.call(index, |device, effects| device.reset(effects));
            self.rewire(index);
        }
    }

    /// Lets time pass, and timers run out in their order.
    fn pass(&mut self, nanos: u64) {
        let end = self.now.saturating_add(nanos);
        let mut run = 0;
        while let Some((&key, &at)) = { self.timers.iter() }
            .filter(|&(_, &at)| at <= end)
            .min_by_key(|&(_, &at)| at)
        {
            self.timers.remove(&key);
            self.now = self.now.max(at);
            self.call(key.0, |device, effects| device.timer(key.1, effects));
            run += 1;
            assert!(
                run < MAX_TIMERS,
                "timers of device {}",
                self.devices[key.0].name
            );
        }
        self.now = end;
    }

    fn save(&self) -> Vec<State> {
        let states = self.devices.iter().map(|named| named.device.save());
        let states: Vec<State> = states.collect();
        let len = serde_json::to_vec(&states).expect("JSON").len();
        assert!(len <= MAX_STATE, "{len} bytes of state");
        states
    }

    fn restore(&mut self, states: &[State]) {
        self.timers.clear();
        for (index, state) in states.iter().enumerate() {
            self.call(index, |device, effects| device.restore(state, effects))
                .expect("its own state");
            self.rewire(index);
        }
    }

    /// Gives a device a state of which bytes were changed. If it refuses, it is as it was.
    fn forge(&mut self, input: &mut Input<'_>) {
        let index = usize::from(input.u8()) % self.devices.len();
        let before = self.devices[index].device.save();
        let mut text = serde_json::to_vec(&before).expect("JSON");
        for _ in 0..1 + input.u8() % 4 {
            let at = usize::from(input.u16()) % text.len();
            text[at] = input.choose(b"0123456789-.ne[]{},\": ");
        }
        if let Ok(forged) = serde_json::from_slice::<State>(&text) {
            let result = self.call(index, |device, effects| device.restore(&forged, effects));
            if result.is_err() {
                assert_eq!(self.devices[index].device.save(), before);
            }
            self.rewire(index);
        }
    }

    fn save_and_restore(&mut self) {
        let states = self.save();
        self.restore(&states);
        let again = self.save();
        self.restore(&again);
        assert_eq!(self.save(), again);
    }

    fn with<T: Device>(&mut self, name: &str, call: impl FnOnce(&mut T, &mut Effects)) {
        let index = { self.devices.iter() }.position(|named| named.name == name);
        self.call(index.expect("the device"), |device, effects| {
            let device: &mut dyn std::any::Any = device;
            call(device.downcast_mut().expect("its type"), effects);
        });
    }

    fn step(&mut self, how: u8, input: &mut Input<'_>) {
        let len = 1 << input.choose(&[0, 1, 2, 3]);
        let write = how & 0x80 != 0;
        let mut data = [0xff; 8];
        let data = &mut data[..len];
        if write {
            let bytes = input.bytes(len);
            data[..bytes.len()].copy_from_slice(bytes);
        }
        match how & 0x0f {
            0 => self.access(Space::Port, input.u16().into(), data, write),
            1 | 5 => self.adapter(input),
            2..=4 => self.access(Space::Port, input.choose(&PORTS).into(), data, write),
            6 => {
                let address = 0xfebf_f000 | u64::from(input.u16() & 0xfff);
                self.access(Space::Memory, address, data, write);
            }
            7 => {
                // Mostly memory.
                let mask = input.choose(&[MEMORY - 1, MEMORY - 1, u64::MAX]);
                self.access(Space::Memory, input.u64() & mask, data, write);
            }
            8..=10 => {
                let (slot, register) = (input.choose(&[0, 1, 2, 3, 5]), input.choose(&REGISTERS));
                let function = if slot == 1 { input.choose(&[0, 3]) } else { 0 };
                let address = 1_u32 << 31 | slot << 11 | function << 8 | u32::from(register);
                self.access(Space::Port, 0xcf8, &mut address.to_le_bytes(), true);
                self.access(Space::Port, 0xcfc, data, write);
            }
            11 => self.pass(u64::from(input.u16()) << (how >> 4 & 7)),
            12 => self.with("com1", |port: &mut ComPort, effects| {
                port.input(&data.repeat(16), effects);
            }),
            13 => self.with("pci", HostBridge::press_power_button),
            14 => {
                self.detach();
                match write {
                    true => self.forge(input),
                    false => self.save_and_restore(),
                }
                self.attach();
            }
            _ if how == 0xff => self.reset(),
            _ => self.pass(u64::from(input.u8()) << 20),
        }
    }
}

thread_local! {
    static BOARDS: RefCell<BTreeMap<u8, Board>> = const { RefCell::new(BTreeMap::new()) };
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let how = input.u8() % KINDS;
    BOARDS.with_borrow_mut(|boards| {
        let board = boards.entry(how).or_insert_with(|| Board::new(how));
        board.begin();
        play(board, input);
    });
}

fn play(board: &mut Board, mut input: Input<'_>) {
    while !input.is_empty() {
        let how = input.u8();
        board.step(how, &mut input);
    }
    board.save();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What the switch took and delivered on that of the adapter.
    #[test]
    fn the_adapters_seed_carries_frames() {
        let seed = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds/platform/tulip");
        run(&std::fs::read(seed).expect("the seed"));
        let carried = BOARDS.with_borrow(|boards| {
            let adapters = boards.values().map(|board| board.adapter.carried);
            adapters.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
        });
        assert_eq!(carried, (4, 6), "sent, received");
    }

    /// The fuzzer begins with something to say to each device.
    #[test]
    fn seeds_reach_every_device() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds/platform");
        for seed in std::fs::read_dir(folder).expect("seeds") {
            run(&std::fs::read(seed.expect("a seed").path()).expect("a seed"));
        }
        let (mut all, mut accessed) = (BTreeSet::new(), BTreeSet::new());
        BOARDS.with_borrow(|boards| {
            for board in boards.values() {
                for (named, was) in board.devices.iter().zip(&board.accessed) {
                    all.insert(named.name.clone());
                    accessed.extend(was.then(|| named.name.clone()));
                }
            }
        });
        assert_eq!(accessed, all);
    }
}

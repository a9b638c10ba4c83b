use std::os::fd::OwnedFd;
use std::time::Duration;

use super::*;
use crate::device::Effect;
use crate::pci::function::CONFIG_REGION;
use crate::pci::{Bar, INTX, Identity};

const ROUTES: Routes = [Some(10), Some(10), Some(11), None];

/// A device with one register: bit 0 drives the pin. A read of it starts a timer.
#[derive(Default)]
struct Probe {
    register: u8,
    reads: u8,
    /// What it was told last of its configuration space.
    config: Option<(u64, Vec<u8>)>,
}

impl Device for Probe {
    fn read(&mut self, region: usize, offset: u64, data: &mut [u8], effects: &mut Effects) {
        self.reads += 1;
        data.fill(region as u8 * 16 + offset as u8);
        effects.push(Effect::Timer {
            id: 3,
            after: Duration::from_millis(1),
        });
    }

    fn write(&mut self, region: usize, offset: u64, data: &[u8], effects: &mut Effects) {
        if region == CONFIG_REGION {
            self.config = Some((offset, data.to_vec()));
            return;
        }
        self.register = data[0];
        effects.push(Effect::Line {
            gsi: INTX,
            high: self.register & 1 != 0,
        });
    }

    fn timer(&mut self, id: u32, effects: &mut Effects) {
        effects.push(Effect::CancelTimer { id });
    }

    fn wants_interrupt(&mut self, _id: u32) -> bool {
        self.register & 1 != 0
    }

    fn reset(&mut self, _effects: &mut Effects) {
        self.register = 0;
    }

    fn save(&self) -> State {
        self.register.into()
    }

    fn restore(&mut self, state: &State, effects: &mut Effects) -> Result<(), RestoreError> {
        let value = u8::deserialize(state)?;
        self.write(0, 0, &[value], effects);
        Ok(())
    }

    fn wiring(&self) -> Wiring {
        Wiring::default()
    }
}

fn at(slot: u8) -> Address {
    Address { slot, function: 0 }
}

fn function() -> Function {
    let mut config = ConfigSpace::new(&Identity {
        vendor: 0x1234,
        device: 1,
        ..Identity::default()
    });
    config.add_bar(Bar::standard(0, Space::Port, 128));
    config.add_bar(Bar::standard(1, Space::Memory, 4096));
    config.set_pin(1);
    Function::new(config, Box::new(Probe::default()))
}

fn event() -> Arc<OwnedFd> {
    let (reader, _) = std::io::pipe().unwrap();
    Arc::new(reader.into())
}

/// A bus with functions in the slots from 2 on, their regions assigned.
fn bus(count: u8) -> Bus {
    let mut bus = Bus::default();
    for slot in 2..2 + count {
        let function = function()
            .with_doorbell(0, 8, 4, event())
            .with_interrupt(event());
        bus.add(at(slot), function).unwrap();
    }
    bus.assign(&ROUTES, &mut Effects::default());
    bus
}

fn write32(bus: &mut Bus, slot: u8, offset: u8, value: u32) -> bool {
    bus.config_write(
        at(slot),
        offset,
        &value.to_le_bytes(),
        &mut Effects::default(),
    )
}

#[test]
fn places_are_checked() {
    let mut bus = Bus::default();
    bus.add(at(2), function()).unwrap();
    assert!(matches!(
        bus.add(at(2), function()),
        Err(BusError::Taken(_))
    ));
    assert!(matches!(
        bus.add(at(32), function()),
        Err(BusError::Address(_))
    ));
    let eighth = Address {
        slot: 2,
        function: 8,
    };
    assert!(matches!(
        bus.add(eighth, function()),
        Err(BusError::Address(_))
    ));
}

#[test]
fn function_zero_says_that_there_are_more() {
    let mut bus = Bus::default();
    bus.add(at(3), function()).unwrap();
    assert_eq!(bus.config(at(3)).unwrap().byte(0x0e), 0);
    bus.add(
        Address {
            slot: 3,
            function: 3,
        },
        function(),
    )
    .unwrap();
    assert_eq!(bus.config(at(3)).unwrap().byte(0x0e), 0x80);
}

#[test]
fn an_empty_slot_reads_as_ones_and_takes_writes() {
    let mut bus = bus(1);
    let mut data = [0xff; 4];
    bus.config_read(at(9), 0, &mut data);
    assert_eq!(data, [0xff; 4]);
    assert!(!write32(&mut bus, 9, 0x10, 0));
}

#[test]
fn interrupt_pins_of_neighbouring_slots_go_to_requests_in_turn() {
    let requests: Vec<_> = (1..=5).map(|slot| at(slot).request(1)).collect();
    assert_eq!(requests, [Some(0), Some(1), Some(2), Some(3), Some(0)]);
    assert_eq!(at(1).request(4), Some(3));
    assert_eq!(at(1).request(0), None);
    assert_eq!(at(1).request(255), None);
}

#[test]
fn regions_and_doorbells_follow_moves() {
    let mut bus = bus(1);
    let wiring = bus.wiring(&ROUTES);
    let places: Vec<_> = { wiring.regions.iter() }
        .map(|region| (region.number, region.start, region.len))
        .collect();
    assert_eq!(places, [(0, 0xc000, 128), (1, 0xfebf_f000, 4096)]);
    assert_eq!(wiring.doorbells[0].address, 0xc008);
    assert!(write32(&mut bus, 2, 0x10, 0xd001));
    assert!(!write32(&mut bus, 2, 0x10, 0xd001), "where it was before");
    let wiring = bus.wiring(&ROUTES);
    assert_eq!(
        (wiring.regions[0].start, wiring.doorbells[0].address),
        (0xd000, 0xd008)
    );
    assert!(write32(&mut bus, 2, 0x04, 0));
    let wiring = bus.wiring(&ROUTES);
    assert_eq!((wiring.regions.len(), wiring.doorbells.len()), (0, 0));
}

#[test]
fn doorbells_never_cover_the_chipset_or_another_function() {
    let mut bus = bus(2);
    let bells = |bus: &Bus| -> Vec<u64> {
        let wiring = bus.wiring(&ROUTES);
        wiring.doorbells.iter().map(|bell| bell.address).collect()
    };
    assert_eq!(bells(&bus), [0xc008, 0xc088]);
    write32(&mut bus, 3, 0x10, 0xc000);
    assert_eq!(bells(&bus), [0xc008], "the first function has it");
    write32(&mut bus, 3, 0x10, 0x0380);
    assert_eq!(bells(&bus), [0xc008], "among the chipset's ports");
    write32(&mut bus, 3, 0x10, 0xffff_ff80);
    assert_eq!(bells(&bus), [0xc008], "no port");
    write32(&mut bus, 3, 0x10, 0xff80);
    assert_eq!(bells(&bus), [0xc008, 0xff88]);
}

#[test]
fn lines_are_shared_and_follow_the_routes() {
    let mut bus = bus(3);
    let mut effects = Effects::default();
    bus.write(0, 0, &[1], &mut effects);
    bus.write(8, 0, &[1], &mut effects);
    bus.write(16, 0, &[1], &mut effects);
    assert!(effects.take().is_empty(), "pins are the bus's own affair");
    // Slot 2 is on request 1, slot 3 on 2, slot 4 on 3, which is switched off.
    assert_eq!(bus.lines(&ROUTES), 1 << 10 | 1 << 11);
    assert_eq!(bus.lines(&[Some(5), Some(9), Some(9), Some(9)]), 1 << 9);
    bus.write(0, 0, &[0], &mut effects);
    assert_eq!(bus.lines(&ROUTES), 1 << 11);
    let interrupts = bus.wiring(&ROUTES).interrupts;
    let gsis: Vec<u32> = { interrupts.iter() }
        .map(|interrupt| interrupt.gsi)
        .collect();
    assert_eq!(gsis, [10, 11]);
    assert!(bus.wants_interrupt(1));
    assert!(!bus.wants_interrupt(0));
    assert!(!bus.wants_interrupt(99));
}

#[test]
fn the_device_is_told_what_its_configuration_space_holds() {
    let mut bus = bus(1);
    let mut effects = Effects::default();
    bus.config_write(at(2), 0x04, &[0xff, 0xff], &mut effects);
    let told = bus.with_device(at(2), &mut effects, |probe: &mut Probe, _| {
        probe.config.take()
    });
    assert_eq!(told.unwrap(), Some((4, vec![0x47, 0x01])));
}

#[test]
fn timers_come_back_to_the_function_that_asked() {
    let mut bus = bus(2);
    let mut effects = Effects::default();
    let mut data = [0; 2];
    bus.read(9, 5, &mut data, &mut effects);
    assert_eq!(data, [0x15, 0x15]);
    let asked = effects.take();
    let [Effect::Timer { id, .. }] = asked.as_slice() else {
        panic!("{asked:?}");
    };
    bus.timer(*id, &mut effects);
    assert_eq!(effects.take(), [Effect::CancelTimer { id: *id }]);
    bus.timer(u32::MAX, &mut effects);
    assert!(effects.take().is_empty());
    let reads = bus.with_device(at(3), &mut effects, |probe: &mut Probe, _| probe.reads);
    assert_eq!(reads, Some(1));
    let wrong = bus.with_device(at(9), &mut effects, |probe: &mut Probe, _| probe.reads);
    assert_eq!(wrong, None);
}

#[test]
fn a_saved_bus_comes_back_and_another_one_does_not() {
    let mut bus2 = bus(2);
    let mut effects = Effects::default();
    write32(&mut bus2, 3, 0x10, 0xe000);
    bus2.write(8, 0, &[1], &mut effects);
    let state = bus2.save();
    let wiring = format!("{:?}", bus2.wiring(&ROUTES).regions);
    bus2.reset(&mut effects);
    assert_eq!(bus2.lines(&ROUTES), 0);
    assert!(bus2.wiring(&ROUTES).regions.is_empty());
    bus2.restore(&state, &mut effects).unwrap();
    assert_eq!(format!("{:?}", bus2.wiring(&ROUTES).regions), wiring);
    assert_eq!(bus2.lines(&ROUTES), 1 << 11);
    let error = bus(3).restore(&state, &mut effects).unwrap_err();
    assert_eq!(
        error.to_string(),
        "PCI functions: it was saved with 00:02.0, 00:03.0, and this machine has 00:02.0, 00:03.0, 00:04.0"
    );
}

/// A bus with one function, which has an option ROM of so many bytes that ends in this one.
fn bus_with_rom(rom: Option<(usize, u8)>) -> Bus {
    let mut bus = Bus::default();
    let function = match rom {
        Some((len, last)) => {
            let mut image = vec![0; len];
            image[..2].copy_from_slice(&[0x55, 0xaa]);
            image[len - 1] = last;
            function().with_rom(&image).unwrap()
        }
        None => function(),
    };
    bus.add(at(2), function).unwrap();
    bus
}

#[test]
fn a_state_saved_with_a_rom_of_another_size_is_refused_and_changes_nothing() {
    let mut effects = Effects::default();
    let roms = [None, Some((4096, 1)), Some((4096, 2)), Some((8192, 1))];
    for saved in roms {
        let mut first = bus_with_rom(saved);
        write32(&mut first, 2, 0x10, 0xe000);
        let state = first.save();
        for here in roms {
            let mut second = bus_with_rom(here);
            let before = second.save();
            let restored = second.restore(&state, &mut effects);
            if saved.map(|(len, _)| len) == here.map(|(len, _)| len) {
                restored.unwrap();
                assert_eq!(second.save(), state);
                continue;
            }
            let error = restored.unwrap_err().to_string();
            assert!(
                error.starts_with("option ROM of PCI function 00:02.0: "),
                "{error}"
            );
            assert_eq!(
                error.contains("saved with none"),
                saved.is_none(),
                "{error}"
            );
            assert_eq!(
                error.contains("machine has none"),
                here.is_none(),
                "{error}"
            );
            assert_eq!(second.save(), before);
        }
    }
}

#[test]
fn a_state_of_another_kind_of_function_is_refused() {
    let mut bus = bus_with_rom(None);
    let mut state = bus.save();
    let vendor = state.pointer_mut("/0/config/0").unwrap();
    *vendor = 0x77.into();
    let error = bus.restore(&state, &mut Effects::default()).unwrap_err();
    assert!(
        error.to_string().contains("PCI function 00:02.0"),
        "{error}"
    );
    let mut short = bus.save();
    *short.pointer_mut("/0/config").unwrap() = serde_json::json!([]);
    assert!(bus.restore(&short, &mut Effects::default()).is_err());
}

#[test]
fn an_enabled_rom_is_mapped_unless_something_is_in_its_way() {
    const ROM_BAR: u8 = 0x30;
    let mut image = vec![0; 8192];
    image[..2].copy_from_slice(&[0x55, 0xaa]);
    let mut bus = Bus::default();
    bus.add(at(2), function().with_rom(&image).unwrap())
        .unwrap();
    bus.assign(&ROUTES, &mut Effects::default());
    let mut roms = |value| {
        write32(&mut bus, 2, ROM_BAR, value);
        let roms = bus.wiring(&ROUTES).roms;
        roms.iter()
            .map(|rom| (rom.start, rom.len))
            .collect::<Vec<_>>()
    };
    assert_eq!(roms(0xe000_0001), [(0xe000_0000, 8192)]);
    assert_eq!(roms(0xe000_0000), []);
    // Over its registers, which `assign` has put just below 0xfec00000, and over the I/O APIC's.
    assert_eq!(roms(0xfebf_e001), []);
    assert_eq!(roms(0xfec0_0001), []);
}

//! The 82371AB (PIIX4) south bridge's function 3, power management: ACPI's fixed registers (Advanced Configuration and
//! Power Interface Specification 2.0, section 4.7).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::device::{Device, Effect, Effects, RestoreError, Space, State, Wiring};
use crate::pci::config::INTERRUPT_LINE;
use crate::pci::function::CONFIG_REGION;
use crate::pci::{Address, Bar, Bus, ConfigSpace, Function, INTX, Identity};

/// Where power management is on PCI bus 0.
pub const ADDRESS: Address = Address {
    slot: 1,
    function: 3,
};

/// The first of its ports, where SeaBIOS puts them for ACPI tables made by the monitor.
pub const PM_BASE: u16 = 0x600;
/// The interrupt line of ACPI events.
pub const SCI: u8 = 9;
/// Ticks of the timer a second.
pub const TIMER_HZ: u64 = 3_579_545;
/// The sleep type of state S5 in PM1_CNT.
pub const SLEEP_OFF: u8 = 0;

/// Offset of PM1_STS in the ports; PM1_EN is 2 further on.
pub const PM1_EVENT: u8 = 0x00;
/// Offset of PM1_CNT.
pub const PM1_CONTROL: u8 = 0x04;
/// Offset of PM_TMR.
pub const PM_TIMER: u8 = 0x08;
/// Offset of the global control register: bit 0 lets the chipset raise system management interrupts. It keeps what
/// firmware writes.
const GLOBAL_CONTROL: u64 = 0x28;

const PORTS: u32 = 64;
/// Offset of the ports' base address in configuration space.
const PMBASE: u8 = 0x40;
/// Offset of the register whose bit 0 enables the ports.
const PMREGMISC: u8 = 0x80;

/// PM1 event: the timer's highest bit (23) has changed.
const TIMER: u16 = 1 << 0;
/// PM1 event: the operating system released the global lock; nobody holds one.
const GLOBAL: u16 = 1 << 5;
/// PM1 event: the power button.
const POWER_BUTTON: u16 = 1 << 8;
/// Events that can interrupt.
const EVENTS: u16 = TIMER | GLOBAL | POWER_BUTTON;
/// PM1_CNT bit: power management events are interrupts, which they always are here.
const SCI_ENABLE: u16 = 1 << 0;
/// PM1_CNT bits that keep what is written: BM_RLD and SLP_TYP.
const CONTROL_MASK: u16 = 0b1_1100_0000_0010;
/// SLP_EN, in the upper byte of PM1_CNT.
const SLEEP_ENABLE: u8 = 1 << 5;
/// Ticks after which the timer's highest bit changes.
const HALF: u64 = 1 << 23;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    status: u16,
    enable: u16,
    control: u16,
    global_control: [u8; 4],
    /// How often the timer's highest bit had changed when it was last looked at.
    changes: u64,
}

/// The registers behind the base address.
#[derive(Debug, Default)]
pub struct PowerManagement {
    registers: Registers,
}

impl PowerManagement {
    /// The power button is pressed.
    pub fn press_power_button(&mut self, effects: &mut Effects) {
        self.registers.status |= POWER_BUTTON;
        self.update(effects);
    }

    /// Notes what the timer did, drives the interrupt, and asks to be called when the timer does more.
    fn update(&mut self, effects: &mut Effects) {
        let registers = &mut self.registers;
        let ticks = ticks(effects.now);
        if ticks / HALF != registers.changes {
            registers.changes = ticks / HALF;
            registers.status |= TIMER;
        }
        let high = registers.status & registers.enable & EVENTS != 0;
        effects.push(Effect::Line { gsi: INTX, high });
        if registers.enable & TIMER != 0 && registers.status & TIMER == 0 {
            let left = HALF - ticks % HALF;
            let after = Duration::from_nanos(left * 1_000_000_000 / TIMER_HZ + 1);
            effects.push(Effect::Timer { id: 0, after });
        }
    }

    fn byte(&self, offset: u64, now: u64) -> u8 {
        let registers = &self.registers;
        let word = |word: u16| word.to_le_bytes();
        let at = |bytes: &[u8], first: u64| {
            let index = usize::try_from(offset - first).unwrap_or(usize::MAX);
            bytes.get(index).copied().unwrap_or(0)
        };
        match offset {
            0..2 => at(&word(registers.status), 0),
            2..4 => at(&word(registers.enable), 2),
            4..6 => at(&word(registers.control | SCI_ENABLE), 4),
            8..11 => at(&ticks(now).to_le_bytes(), 8),
            GLOBAL_CONTROL..0x2c => at(&registers.global_control, GLOBAL_CONTROL),
            _ => 0,
        }
    }

    fn write_byte(&mut self, offset: u64, byte: u8, effects: &mut Effects) {
        let registers = &mut self.registers;
        let shift = offset as u32 % 2 * 8;
        let word = u16::from(byte) << shift;
        let kept = !(0xff << shift);
        match offset {
            0..2 => registers.status &= !word,
            2..4 => registers.enable = (registers.enable & kept) | (word & EVENTS),
            4..6 => {
                registers.control = (registers.control & kept) | (word & CONTROL_MASK);
                if offset == 5 && byte & SLEEP_ENABLE != 0 && byte >> 2 & 7 == SLEEP_OFF {
                    effects.push(Effect::PowerOff);
                }
            }
            GLOBAL_CONTROL..0x2c => {
                let index = (offset - GLOBAL_CONTROL) as usize;
                if let Some(kept) = registers.global_control.get_mut(index) {
                    *kept = byte;
                }
            }
            _ => {}
        }
    }
}

impl Device for PowerManagement {
    fn read(&mut self, _region: usize, offset: u64, data: &mut [u8], effects: &mut Effects) {
        if offset < u64::from(PM_TIMER) {
            self.update(effects);
        }
        for (at, byte) in (offset..).zip(data) {
            *byte = self.byte(at, effects.now);
        }
    }

    fn write(&mut self, region: usize, offset: u64, data: &[u8], effects: &mut Effects) {
        if region == CONFIG_REGION {
            return;
        }
        self.update(effects);
        for (at, &byte) in (offset..).zip(data) {
            self.write_byte(at, byte, effects);
        }
        self.update(effects);
    }

    fn timer(&mut self, _id: u32, effects: &mut Effects) {
        self.update(effects);
    }

    fn reset(&mut self, effects: &mut Effects) {
        self.registers = Registers {
            changes: ticks(effects.now) / HALF,
            ..Registers::default()
        };
    }

    fn save(&self) -> State {
        serde_json::to_value(&self.registers).unwrap_or_default()
    }

    fn restore(&mut self, state: &State, effects: &mut Effects) -> Result<(), RestoreError> {
        let saved = Registers::deserialize(state)?;
        self.registers = Registers {
            enable: saved.enable & EVENTS,
            control: saved.control & CONTROL_MASK,
            ..saved
        };
        self.update(effects);
        Ok(())
    }

    fn wiring(&self) -> Wiring {
        Wiring::default()
    }
}

/// The timer's value, unbounded, at machine time `now`.
fn ticks(now: u64) -> u64 {
    (u128::from(now) * u128::from(TIMER_HZ) / 1_000_000_000) as u64
}

/// The function.
pub fn function() -> Function {
    let mut config = ConfigSpace::new(&Identity {
        vendor: 0x8086,
        device: 0x7113,
        revision: 3,
        class: 0x06_80_00,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    });
    config.add_bar(Bar {
        region: 0,
        register: PMBASE,
        space: Space::Port,
        size: PORTS,
        enable: [Some((PMREGMISC, 1)), None],
    });
    config.allow(PMREGMISC, &[0x01]);
    // Firmware's choices for a bus of sensors that is not there.
    config.set(0x90, &[0x01]);
    config.allow(0x90, &[0xf0, 0xff]);
    config.allow(0xd2, &[0x0f]);
    // APMC_EN: writes to port 0xb2 interrupt into system management mode. SeaBIOS takes the bit, when it finds it
    // set, to mean that this mode has been set up; so it leaves it alone, and guests have none.
    config.set(0x58, &[0, 0, 0, 0x02]);
    config.set_pin(1);
    Function::new(config, Box::new(PowerManagement::default())).with_fixed_line(SCI)
}

/// Does as firmware does: places the ports at [`PM_BASE`], and notes the interrupt line.
pub fn enable(bus: &mut Bus, effects: &mut Effects) {
    bus.config_write(ADDRESS, PMBASE, &PM_BASE.to_le_bytes(), effects);
    bus.config_write(ADDRESS, PMREGMISC, &[1], effects);
    bus.config_write(ADDRESS, INTERRUPT_LINE, &[SCI], effects);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(device: &mut PowerManagement, offset: u64, len: usize, now: u64) -> u64 {
        let mut data = [0; 8];
        device.read(0, offset, &mut data[..len], &mut Effects::new(now));
        u64::from_le_bytes(data)
    }

    fn write16(device: &mut PowerManagement, offset: u64, value: u16, now: u64) -> Vec<Effect> {
        let mut effects = Effects::new(now);
        device.write(0, offset, &value.to_le_bytes(), &mut effects);
        effects.take()
    }

    fn high(effects: &[Effect]) -> bool {
        let line = effects.iter().rev().find_map(|effect| match effect {
            Effect::Line { gsi: INTX, high } => Some(*high),
            _ => None,
        });
        line.unwrap()
    }

    #[test]
    fn the_timer_has_24_bits_at_its_rate() {
        let mut device = PowerManagement::default();
        let second = 1_000_000_000;
        assert_eq!(read(&mut device, 8, 4, second), TIMER_HZ);
        assert_eq!(
            read(&mut device, 8, 4, 5 * second),
            (5 * TIMER_HZ) & 0xff_ffff
        );
        assert_eq!(read(&mut device, 8, 4, u64::MAX) >> 24, 0);
        assert_eq!(read(&mut device, 9, 1, second), TIMER_HZ >> 8 & 0xff);
    }

    #[test]
    fn the_timers_highest_bit_interrupts_when_it_changes() {
        let mut device = PowerManagement::default();
        let asked = write16(&mut device, 2, TIMER, 0);
        assert!(!high(&asked));
        let Some(Effect::Timer { after, .. }) = asked.last() else {
            panic!("{asked:?}");
        };
        let now = after.as_nanos() as u64;
        assert_eq!(read(&mut device, 8, 4, now - 1000) >> 23, 0);
        assert_eq!(read(&mut device, 8, 4, now) >> 23, 1);
        let mut effects = Effects::new(now);
        device.timer(0, &mut effects);
        assert!(high(&effects.take()));
        assert_eq!(read(&mut device, 0, 2, now), u64::from(TIMER));
        assert!(!high(&write16(&mut device, 0, TIMER, now)), "acknowledged");
    }

    #[test]
    fn the_power_button_interrupts_if_enabled() {
        let mut device = PowerManagement::default();
        let mut effects = Effects::new(0);
        device.press_power_button(&mut effects);
        assert!(!high(&effects.take()));
        assert_eq!(read(&mut device, 0, 2, 0), u64::from(POWER_BUTTON));
        assert!(high(&write16(&mut device, 2, POWER_BUTTON, 0)));
        assert!(
            high(&write16(&mut device, 0, TIMER, 0)),
            "another event acknowledged"
        );
        assert!(!high(&write16(&mut device, 0, POWER_BUTTON, 0)));
    }

    #[test]
    fn only_soft_off_turns_the_machine_off() {
        let mut device = PowerManagement::default();
        assert_eq!(read(&mut device, 4, 2, 0), 1, "events are interrupts");
        let off = |effects: &[Effect]| effects.contains(&Effect::PowerOff);
        assert!(off(&write16(&mut device, 4, 0x2000, 0)));
        assert!(!off(&write16(&mut device, 4, 0x0000, 0)));
        assert!(!off(&write16(&mut device, 4, 0x2400, 0)), "sleep type 1");
        assert_eq!(read(&mut device, 4, 2, 0), 0x0401);
    }

    #[test]
    fn a_saved_device_raises_its_interrupt_again() {
        let mut device = PowerManagement::default();
        write16(&mut device, 2, POWER_BUTTON, 0);
        device.press_power_button(&mut Effects::new(0));
        let state = device.save();
        let mut other = PowerManagement::default();
        let mut effects = Effects::new(0);
        other.restore(&state, &mut effects).unwrap();
        assert!(high(&effects.take()));
        assert!(other.restore(&State::Null, &mut effects).is_err());
    }
}

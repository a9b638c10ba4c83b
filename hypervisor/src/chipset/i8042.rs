//! The keyboard controller (Intel 8042; IBM PS/2 Technical Reference, "Keyboard and Auxiliary Device Controller").
//!
//! No keyboard and no mouse are connected. It is there because firmware and operating systems test it, switch address
//! line 20 by it, and reset the machine by it.

use serde::{Deserialize, Serialize};

use crate::device::{Device, Effect, Effects, Region, RestoreError, Space, State, Wiring};

/// The data register, port 0x60.
const DATA: usize = 0;
/// The command and status register, port 0x64.
const COMMAND: usize = 1;

/// The interrupt line of the keyboard.
const LINE: u32 = 1;

/// Status: there is a byte to read.
const OUTPUT_FULL: u8 = 1 << 0;
/// Status: the last write was to the command register.
const WAS_COMMAND: u8 = 1 << 3;
/// Status: the keyboard's lock is open.
const UNLOCKED: u8 = 1 << 4;
/// Status: the byte to read is the mouse's.
const FROM_AUX: u8 = 1 << 5;
/// Status: the device did not answer.
const TIMEOUT: u8 = 1 << 6;

/// Configuration: interrupt when there is a byte of the keyboard.
const KEYBOARD_INTERRUPT: u8 = 1 << 0;
/// Configuration and status: the self test has passed.
const SYSTEM: u8 = 1 << 2;
/// Configuration: the keyboard is disabled.
const KEYBOARD_DISABLED: u8 = 1 << 4;
/// Configuration: the mouse is disabled.
const AUX_DISABLED: u8 = 1 << 5;

/// Output port: the processor is not held in reset.
const NOT_RESET: u8 = 1 << 0;
/// Output port: address line 20 is not masked. It never is; the bit only keeps what is written.
const A20: u8 = 1 << 1;

/// What a port's test says when the device's clock line stays low: nothing is connected.
const NOT_CONNECTED: u8 = 0x01;
/// What a device says when it did not understand, and the controller in place of one that does not answer.
const RESEND: u8 = 0xfe;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    config: u8,
    output_port: u8,
    /// The byte to read, and the status bits that go with it.
    output: Option<(u8, u8)>,
    /// The command that waits for its data byte.
    pending: Option<u8>,
    was_command: bool,
}

const AFTER_RESET: Registers = Registers {
    config: KEYBOARD_DISABLED | AUX_DISABLED,
    output_port: NOT_RESET | A20,
    output: None,
    pending: None,
    was_command: false,
};

/// The keyboard controller.
#[derive(Debug)]
pub struct I8042 {
    registers: Registers,
}

impl Default for I8042 {
    fn default() -> Self {
        Self {
            registers: AFTER_RESET,
        }
    }
}

impl I8042 {
    fn status(&self) -> u8 {
        let registers = &self.registers;
        let output = { registers.output }.map_or(0, |(_, flags)| flags | OUTPUT_FULL);
        let command = if registers.was_command {
            WAS_COMMAND
        } else {
            0
        };
        output | command | (registers.config & SYSTEM) | UNLOCKED
    }

    fn answer(&mut self, byte: u8) {
        self.registers.output = Some((byte, 0));
    }

    fn command(&mut self, command: u8, effects: &mut Effects) {
        self.registers.was_command = true;
        self.registers.pending = None;
        match command {
            0x20 => self.answer(self.registers.config),
            // Their data byte follows: configuration, output port, bytes in place of a device's, byte for the mouse.
            0x60 | 0xd1..=0xd4 => self.registers.pending = Some(command),
            0xa7 => self.registers.config |= AUX_DISABLED,
            0xa8 => self.registers.config &= !AUX_DISABLED,
            0xaa => {
                self.registers.config |= SYSTEM;
                self.answer(0x55);
            }
            0xa9 | 0xab => self.answer(NOT_CONNECTED),
            0xad => self.registers.config |= KEYBOARD_DISABLED,
            0xae => self.registers.config &= !KEYBOARD_DISABLED,
            // The input port: the lock is open.
            0xc0 => self.answer(0x80),
            0xd0 => self.answer(self.registers.output_port),
            // Pulse output lines: a zero bit pulses, and bit 0 is the reset line.
            0xf0..=0xff if command & NOT_RESET == 0 => effects.push(Effect::Reset),
            _ => {}
        }
    }

    fn data(&mut self, byte: u8, effects: &mut Effects) {
        self.registers.was_command = false;
        match self.registers.pending.take() {
            Some(0x60) => self.registers.config = byte & !(1 << 3 | 1 << 7),
            Some(0xd1) => {
                self.registers.output_port = byte | NOT_RESET;
                if byte & NOT_RESET == 0 {
                    effects.push(Effect::Reset);
                }
            }
            Some(0xd2) => self.answer(byte),
            // The mouse's side: nobody is there to say the byte back, or to take it.
            Some(_) => self.registers.output = Some((RESEND, FROM_AUX | TIMEOUT)),
            None => self.registers.output = Some((RESEND, TIMEOUT)),
        }
    }

    fn drive_line(&self, effects: &mut Effects) {
        let keyboard = matches!(self.registers.output, Some((_, flags)) if flags & FROM_AUX == 0);
        effects.push(Effect::Line {
            gsi: LINE,
            high: keyboard && self.registers.config & KEYBOARD_INTERRUPT != 0,
        });
    }
}

impl Device for I8042 {
    fn read(&mut self, region: usize, _offset: u64, data: &mut [u8], effects: &mut Effects) {
        match (region, data) {
            (DATA, [byte]) => {
                *byte = self.registers.output.take().map_or(0, |(byte, _)| byte);
                self.drive_line(effects);
            }
            (COMMAND, [byte]) => *byte = self.status(),
            _ => {}
        }
    }

    fn write(&mut self, region: usize, _offset: u64, data: &[u8], effects: &mut Effects) {
        match (region, data) {
            (DATA, &[byte]) => self.data(byte, effects),
            (COMMAND, &[byte]) => self.command(byte, effects),
            _ => return,
        }
        self.drive_line(effects);
    }

    fn reset(&mut self, _effects: &mut Effects) {
        self.registers = AFTER_RESET;
    }

    fn save(&self) -> State {
        serde_json::to_value(&self.registers).unwrap_or_default()
    }

    fn restore(&mut self, state: &State, effects: &mut Effects) -> Result<(), RestoreError> {
        let saved = Registers::deserialize(state)?;
        let flags = |(byte, flags)| (byte, flags & (FROM_AUX | TIMEOUT));
        self.registers = Registers {
            output: saved.output.map(flags),
            ..saved
        };
        self.drive_line(effects);
        Ok(())
    }

    fn wiring(&self) -> Wiring {
        let port = |number, start| Region {
            number,
            space: Space::Port,
            start,
            len: 1,
        };
        Wiring {
            regions: vec![port(DATA, 0x60), port(COMMAND, 0x64)],
            ..Wiring::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(device: &mut I8042, region: usize, byte: u8) -> Vec<Effect> {
        let mut effects = Effects::default();
        device.write(region, 0, &[byte], &mut effects);
        effects.take()
    }

    fn read(device: &mut I8042, region: usize) -> u8 {
        let mut data = [0xff];
        device.read(region, 0, &mut data, &mut Effects::default());
        data[0]
    }

    fn answer(device: &mut I8042, command: u8) -> u8 {
        write(device, COMMAND, command);
        assert_eq!(read(device, COMMAND) & OUTPUT_FULL, OUTPUT_FULL);
        let answer = read(device, DATA);
        assert_eq!(read(device, COMMAND) & OUTPUT_FULL, 0);
        answer
    }

    #[test]
    fn the_self_test_passes_and_no_device_is_connected() {
        let mut device = I8042::default();
        assert_eq!(read(&mut device, COMMAND) & SYSTEM, 0);
        assert_eq!(answer(&mut device, 0xaa), 0x55);
        assert_eq!(read(&mut device, COMMAND) & SYSTEM, SYSTEM);
        assert_ne!(answer(&mut device, 0xab), 0);
        assert_ne!(answer(&mut device, 0xa9), 0);
    }

    #[test]
    fn bytes_for_devices_are_answered_by_a_timeout_at_once() {
        let mut device = I8042::default();
        write(&mut device, DATA, 0xff);
        assert_eq!(read(&mut device, COMMAND) & (TIMEOUT | FROM_AUX), TIMEOUT);
        assert_eq!(read(&mut device, DATA), RESEND);
        write(&mut device, COMMAND, 0xd4);
        write(&mut device, DATA, 0xff);
        assert_eq!(
            read(&mut device, COMMAND) & (TIMEOUT | FROM_AUX),
            TIMEOUT | FROM_AUX
        );
    }

    #[test]
    fn the_reset_line_resets_by_command_and_by_output_port() {
        let mut device = I8042::default();
        assert!(write(&mut device, COMMAND, 0xfe).contains(&Effect::Reset));
        assert!(!write(&mut device, COMMAND, 0xff).contains(&Effect::Reset));
        write(&mut device, COMMAND, 0xd1);
        assert!(!write(&mut device, DATA, 0xdf).contains(&Effect::Reset));
        assert_eq!(answer(&mut device, 0xd0), 0xdf);
        write(&mut device, COMMAND, 0xd1);
        assert!(write(&mut device, DATA, 0xde).contains(&Effect::Reset));
    }

    #[test]
    fn a_byte_interrupts_if_the_configuration_says_so() {
        let mut device = I8042::default();
        let high = |effects: &[Effect]| effects.contains(&Effect::Line { gsi: 1, high: true });
        assert!(!high(&write(&mut device, COMMAND, 0xaa)));
        write(&mut device, COMMAND, 0x60);
        assert!(high(&write(&mut device, DATA, KEYBOARD_INTERRUPT)));
        let mut effects = Effects::default();
        device.read(DATA, 0, &mut [0], &mut effects);
        assert_eq!(
            effects.take(),
            [Effect::Line {
                gsi: 1,
                high: false
            }]
        );
        assert_eq!(answer(&mut device, 0x20), KEYBOARD_INTERRUPT);
    }

    #[test]
    fn a_saved_controller_goes_on_in_the_middle_of_a_command() {
        let mut device = I8042::default();
        write(&mut device, COMMAND, 0x60);
        let state = device.save();
        let mut other = I8042::default();
        other.restore(&state, &mut Effects::default()).unwrap();
        write(&mut other, DATA, 0x47);
        assert_eq!(answer(&mut other, 0x20), 0x47);
        assert!(other.restore(&3.into(), &mut Effects::default()).is_err());
    }
}

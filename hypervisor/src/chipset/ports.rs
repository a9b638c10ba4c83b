//! Small ports of the chipset: fast A20 and reset, the POST code, the firmware's debug port, and APM's two bytes.

use serde::{Deserialize, Serialize};

use crate::device::{
    DEBUG_CONSOLE, Device, Effect, Effects, Region, RestoreError, Space, State, Wiring,
};

/// The POST code (port 0x80): firmware writes its progress there, and operating systems anything, for the delay.
const POST: usize = 0;
/// System control port A (0x92).
const CONTROL: usize = 1;
/// APM control and status (0xb2, 0xb3): they keep what is written, since there is no system management mode to tell.
const APM: usize = 2;
/// The debug port (0x402).
const DEBUG: usize = 3;

/// Where these ports are: region and address, each of one byte but for APM's two.
const PORTS: [(usize, u16); 4] = [(POST, 0x80), (CONTROL, 0x92), (APM, 0xb2), (DEBUG, 0x402)];

/// Control port bit: resets the processor when it is set.
const FAST_RESET: u8 = 1 << 0;
/// Control port bit: address line 20 is not masked. It never is; the bit only keeps what is written.
const A20: u8 = 1 << 1;
/// What the debug port reads as, so that firmware knows that somebody listens.
const DEBUG_PRESENT: u8 = 0xe9;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    post: u8,
    control: u8,
    apm: [u8; 2],
}

/// The ports.
#[derive(Debug)]
pub struct Ports {
    registers: Registers,
    debug: bool,
}

const AFTER_RESET: Registers = Registers {
    post: 0,
    control: A20,
    apm: [0; 2],
};

impl Ports {
    /// The ports; with `debug` the debug port too, whose bytes go to [`DEBUG_CONSOLE`]. Each is an exit, of which
    /// SeaBIOS causes some ten thousand.
    pub fn new(debug: bool) -> Self {
        Self {
            registers: AFTER_RESET,
            debug,
        }
    }
}

impl Device for Ports {
    fn read(&mut self, region: usize, offset: u64, data: &mut [u8], _effects: &mut Effects) {
        match (region, data) {
            (POST, [byte]) => *byte = self.registers.post,
            (CONTROL, [byte]) => *byte = self.registers.control,
            (APM, data) => {
                for (to, from) in data
                    .iter_mut()
                    .zip(self.registers.apm.iter().skip(offset as usize))
                {
                    *to = *from;
                }
            }
            (DEBUG, [byte]) => *byte = DEBUG_PRESENT,
            _ => {}
        }
    }

    fn write(&mut self, region: usize, offset: u64, data: &[u8], effects: &mut Effects) {
        let registers = &mut self.registers;
        match (region, data) {
            (POST, &[byte]) => registers.post = byte,
            (CONTROL, &[byte]) => {
                registers.control = byte & A20;
                if byte & FAST_RESET != 0 {
                    effects.push(Effect::Reset);
                }
            }
            (APM, data) => {
                for (to, from) in registers.apm.iter_mut().skip(offset as usize).zip(data) {
                    *to = *from;
                }
            }
            (DEBUG, data) => effects.push(Effect::Output {
                console: DEBUG_CONSOLE,
                bytes: data.to_vec(),
            }),
            _ => {}
        }
    }

    fn reset(&mut self, _effects: &mut Effects) {
        self.registers = AFTER_RESET;
    }

    fn save(&self) -> State {
        serde_json::to_value(&self.registers).unwrap_or_default()
    }

    fn restore(&mut self, state: &State, _effects: &mut Effects) -> Result<(), RestoreError> {
        let saved = Registers::deserialize(state)?;
        self.registers = Registers {
            control: saved.control & A20,
            ..saved
        };
        Ok(())
    }

    fn wiring(&self) -> Wiring {
        let ports = { PORTS.iter() }.filter(|(number, _)| *number != DEBUG || self.debug);
        let regions = ports.map(|&(number, port)| Region {
            number,
            space: Space::Port,
            start: port.into(),
            len: if number == APM { 2 } else { 1 },
        });
        Wiring {
            regions: regions.collect(),
            ..Wiring::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(ports: &mut Ports, region: usize, byte: u8) -> Vec<Effect> {
        let mut effects = Effects::default();
        ports.write(region, 0, &[byte], &mut effects);
        effects.take()
    }

    fn read(ports: &mut Ports, region: usize) -> u8 {
        let mut data = [0xff];
        ports.read(region, 0, &mut data, &mut Effects::default());
        data[0]
    }

    #[test]
    fn fast_reset_resets_and_a20_keeps_its_bit() {
        let mut ports = Ports::new(false);
        assert_eq!(read(&mut ports, CONTROL), A20);
        assert_eq!(write(&mut ports, CONTROL, 0), []);
        assert_eq!(read(&mut ports, CONTROL), 0);
        assert_eq!(
            write(&mut ports, CONTROL, A20 | FAST_RESET),
            [Effect::Reset]
        );
    }

    #[test]
    fn the_debug_port_is_there_only_if_somebody_listens() {
        assert!(
            !Ports::new(false)
                .wiring()
                .regions
                .iter()
                .any(|r| r.start == 0x402)
        );
        let mut ports = Ports::new(true);
        assert!(ports.wiring().regions.iter().any(|r| r.start == 0x402));
        assert_eq!(read(&mut ports, DEBUG), 0xe9);
        let output = Effect::Output {
            console: DEBUG_CONSOLE,
            bytes: vec![b'x'],
        };
        assert_eq!(write(&mut ports, DEBUG, b'x'), [output]);
    }

    #[test]
    fn bytes_are_kept_through_save_and_lost_in_reset() {
        let mut ports = Ports::new(false);
        write(&mut ports, POST, 0x55);
        ports.write(APM, 0, &[1, 2], &mut Effects::default());
        let state = ports.save();
        ports.reset(&mut Effects::default());
        assert_eq!(read(&mut ports, POST), 0);
        ports.restore(&state, &mut Effects::default()).unwrap();
        assert_eq!(read(&mut ports, POST), 0x55);
        let mut apm = [0xff; 2];
        ports.read(APM, 0, &mut apm, &mut Effects::default());
        assert_eq!(apm, [1, 2]);
    }
}

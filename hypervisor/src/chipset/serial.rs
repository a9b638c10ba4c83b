//! A COM port: a 16550A UART of the crate `vm-superio`, and input that waits until the guest takes it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

use crate::device::{Device, Effect, Effects, Region, RestoreError, Space, State, Wiring};

/// Most bytes of input that wait in front of the UART's FIFO.
pub const INPUT_BYTES: usize = 4096;

/// COM1's ports start here.
pub const COM1: u16 = 0x3f8;
/// COM2's ports start here.
pub const COM2: u16 = 0x2f8;

/// Interrupt identification bit: there is no interrupt.
const NOT_PENDING: u8 = 1 << 0;
/// Modem control bit: what is sent comes back.
const LOOPBACK: u8 = 1 << 4;

/// The UART asks for an interrupt.
#[derive(Debug, Default)]
struct Asked(Cell<bool>);

impl Trigger for Asked {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

type Uart = Serial<Asked, NoEvents, Vec<u8>>;

/// A saved port.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    fifo: Vec<u8>,
    waiting: Vec<u8>,
}

/// A COM port. What the guest sends is an [`Effect::Output`].
pub struct ComPort {
    uart: Uart,
    waiting: VecDeque<u8>,
    console: u32,
    /// The interrupt line, as last told.
    line: bool,
}

impl ComPort {
    /// COM1 (`console` 0: ports 0x3f8, interrupt line 4) or COM2 (any other: ports 0x2f8, interrupt line 3).
    pub fn new(console: u32) -> Self {
        Self {
            uart: fresh(),
            waiting: VecDeque::new(),
            console,
            line: false,
        }
    }

    /// Gives the guest input; says how many bytes of it were taken. The rest is to be offered again once
    /// [`room`](Self::room) says so.
    pub fn input(&mut self, bytes: &[u8], effects: &mut Effects) -> usize {
        let taken = bytes.len().min(self.room());
        self.waiting.extend(bytes.iter().take(taken));
        self.refill();
        self.settle(effects);
        taken
    }

    /// How many bytes of input would be taken now. It grows when the guest reads.
    pub fn room(&self) -> usize {
        INPUT_BYTES - self.waiting.len()
    }

    /// Puts waiting input into an empty FIFO. An interrupt comes with each filling, so that a driver that read only a
    /// part of the FIFO is not left waiting for one.
    fn refill(&mut self) {
        let state = self.uart.state();
        if state.in_buffer.is_empty() && state.modem_control & LOOPBACK == 0 {
            let count = self.waiting.len().min(self.uart.fifo_capacity());
            let bytes: Vec<u8> = self.waiting.drain(..count).collect();
            // It cannot be refused: there is room for all.
            let _taken = self.uart.enqueue_raw_bytes(&bytes);
        }
    }

    /// Tells what the UART has sent, and what its interrupt line does. ISA interrupts are edges: a new one while the line
    /// is high starts with it going low.
    fn settle(&mut self, effects: &mut Effects) {
        let bytes = std::mem::take(self.uart.writer_mut());
        if !bytes.is_empty() {
            effects.push(Effect::Output {
                console: self.console,
                bytes,
            });
        }
        let asked = self.uart.interrupt_evt().0.take();
        let pending = self.uart.state().interrupt_identification & NOT_PENDING == 0;
        if self.line && (asked || !pending) {
            self.drive(false, effects);
        }
        if asked && pending {
            self.drive(true, effects);
        }
    }

    fn drive(&mut self, high: bool, effects: &mut Effects) {
        let gsi = if self.console == 0 { 4 } else { 3 };
        self.line = high;
        effects.push(Effect::Line { gsi, high });
    }
}

fn fresh() -> Uart {
    Serial::new(Asked::default(), Vec::new())
}

impl Device for ComPort {
    fn read(&mut self, _region: usize, offset: u64, data: &mut [u8], effects: &mut Effects) {
        for (at, byte) in (offset as u8..8).zip(data) {
            *byte = self.uart.read(at);
            self.refill();
        }
        self.settle(effects);
    }

    fn write(&mut self, _region: usize, offset: u64, data: &[u8], effects: &mut Effects) {
        for (at, &byte) in (offset as u8..8).zip(data) {
            // It cannot fail: neither the trigger nor the vector written to does.
            let _written = self.uart.write(at, byte);
            self.refill();
        }
        self.settle(effects);
    }

    fn reset(&mut self, _effects: &mut Effects) {
        self.uart = fresh();
        self.line = false;
        self.refill();
    }

    fn save(&self) -> State {
        let state = self.uart.state();
        let saved = Saved {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            fifo: state.in_buffer,
            waiting: self.waiting.iter().copied().collect(),
        };
        serde_json::to_value(saved).unwrap_or_default()
    }

    fn restore(&mut self, state: &State, effects: &mut Effects) -> Result<(), RestoreError> {
        let saved = Saved::deserialize(state)?;
        if saved.waiting.len() > INPUT_BYTES {
            return Err(RestoreError::Value {
                what: "bytes of console input",
                value: saved.waiting.len().to_string(),
                allowed: "0 to 4096",
            });
        }
        let fifo = saved.fifo.len();
        let state = SerialState {
            baud_divisor_low: saved.divisor[0],
            baud_divisor_high: saved.divisor[1],
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.fifo,
        };
        let uart = Serial::from_state(&state, Asked::default(), NoEvents, Vec::new());
        self.uart = uart.map_err(|_| RestoreError::Value {
            what: "bytes in the UART",
            value: fifo.to_string(),
            allowed: "0 to 64",
        })?;
        self.waiting = saved.waiting.into();
        self.line = false;
        self.settle(effects);
        Ok(())
    }

    fn wiring(&self) -> Wiring {
        let start = if self.console == 0 { COM1 } else { COM2 };
        let region = Region {
            number: 0,
            space: Space::Port,
            start: start.into(),
            len: 8,
        };
        Wiring {
            regions: vec![region],
            ..Wiring::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIGH: Effect = Effect::Line { gsi: 4, high: true };
    const LOW: Effect = Effect::Line {
        gsi: 4,
        high: false,
    };

    fn write(port: &mut ComPort, register: u64, byte: u8) -> Vec<Effect> {
        let mut effects = Effects::default();
        port.write(0, register, &[byte], &mut effects);
        effects.take()
    }

    fn read(port: &mut ComPort, register: u64) -> (u8, Vec<Effect>) {
        let mut effects = Effects::default();
        let mut data = [0xff];
        port.read(0, register, &mut data, &mut effects);
        (data[0], effects.take())
    }

    fn input(port: &mut ComPort, bytes: &[u8]) -> (usize, Vec<Effect>) {
        let mut effects = Effects::default();
        (port.input(bytes, &mut effects), effects.take())
    }

    #[test]
    fn what_the_guest_sends_is_output_of_its_console() {
        for console in [0, 1] {
            let mut port = ComPort::new(console);
            let output = Effect::Output {
                console,
                bytes: vec![b'a'],
            };
            assert_eq!(write(&mut port, 0, b'a'), [output]);
        }
        assert_eq!(ComPort::new(0).wiring().regions[0].start, 0x3f8);
        assert_eq!(ComPort::new(1).wiring().regions[0].start, 0x2f8);
    }

    #[test]
    fn no_input_is_lost_and_what_does_not_fit_is_not_taken() {
        let mut port = ComPort::new(0);
        let sent: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        let (mut given, mut got) = (0, Vec::new());
        while got.len() < sent.len() {
            given += input(&mut port, &sent[given..]).0;
            assert!(given - got.len() <= INPUT_BYTES + 64);
            while read(&mut port, 5).0 & 1 != 0 {
                got.push(read(&mut port, 0).0);
            }
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn each_filling_of_the_fifo_interrupts() {
        let mut port = ComPort::new(0);
        write(&mut port, 1, 0x01);
        assert_eq!(input(&mut port, &[7; 65]), (65, vec![HIGH]));
        assert_eq!(read(&mut port, 0).1, [LOW]);
        let told: Vec<_> = (1..64).flat_map(|_| read(&mut port, 0).1).collect();
        assert_eq!(told, [HIGH], "the 65th byte came when the FIFO was empty");
        assert_eq!(read(&mut port, 0).1, [LOW]);
        assert_eq!(read(&mut port, 5).0 & 1, 0);
    }

    #[test]
    fn a_new_interrupt_is_a_new_edge() {
        let mut port = ComPort::new(0);
        assert_eq!(
            write(&mut port, 1, 0x02),
            [HIGH],
            "the transmitter is empty"
        );
        assert_eq!(read(&mut port, 2), (0xc2, vec![LOW]));
        write(&mut port, 1, 0x03);
        assert_eq!(input(&mut port, b"x").1, [LOW, HIGH]);
    }

    #[test]
    fn input_waits_while_the_uart_talks_to_itself() {
        let mut port = ComPort::new(0);
        write(&mut port, 4, LOOPBACK);
        input(&mut port, b"xy");
        assert_eq!(write(&mut port, 0, b'l'), []);
        assert_eq!(read(&mut port, 0).0, b'l');
        write(&mut port, 4, 0);
        assert_eq!((read(&mut port, 0).0, read(&mut port, 0).0), (b'x', b'y'));
    }

    #[test]
    fn input_before_and_after_a_save_arrives_once() {
        let mut port = ComPort::new(0);
        input(&mut port, &[1; 100]);
        write(&mut port, 7, 0x5a);
        let state = port.save();
        let mut other = ComPort::new(0);
        other.restore(&state, &mut Effects::default()).unwrap();
        assert_eq!(read(&mut other, 7).0, 0x5a);
        let mut count = 0;
        while read(&mut other, 5).0 & 1 != 0 {
            count += u32::from(read(&mut other, 0).0);
        }
        assert_eq!(count, 100);
    }

    #[test]
    fn a_forged_state_is_refused_and_changes_nothing() {
        let mut port = ComPort::new(0);
        write(&mut port, 7, 0x77);
        for (field, len) in [("fifo", 65), ("waiting", INPUT_BYTES + 1)] {
            let mut state = port.save();
            state[field] = vec![0; len].into();
            let error = port.restore(&state, &mut Effects::default()).unwrap_err();
            assert!(error.to_string().contains(&len.to_string()), "{error}");
        }
        assert_eq!(read(&mut port, 7).0, 0x77);
    }
}

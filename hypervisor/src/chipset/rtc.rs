//! The real-time clock and its 128 bytes of memory kept by a battery (Motorola MC146818A), ports 0x70 and 0x71.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::calendar::Calendar;
use crate::device::{Device, Effect, Effects, Region, RestoreError, Space, State, Wiring};

/// Bytes of the memory.
pub const SIZE: usize = 128;

/// The interrupt line.
const LINE: u32 = 8;
const SECOND: i64 = 1_000_000_000;

const SECONDS: u8 = 0x00;
const ALARM_SECONDS: u8 = 0x01;
const MINUTES: u8 = 0x02;
const ALARM_MINUTES: u8 = 0x03;
const HOURS: u8 = 0x04;
const ALARM_HOURS: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
/// Where a PC's firmware keeps the century; the ACPI tables say so too.
pub const CENTURY: u8 = 0x32;

/// Register A: the time is about to change.
const UPDATE_IN_PROGRESS: u8 = 0x80;
/// How long before the change that bit is set.
const UPDATE_NANOS: i64 = 244_000;
/// Register A after reset: the oscillator runs, 1,024 periodic interrupts a second.
const DIVIDER: u8 = 0x26;
/// Register B: the time stands still while it is being set.
const SET: u8 = 0x80;
/// Register B: numbers are binary, not BCD.
const BINARY: u8 = 0x04;
/// Register B: hours are 0 to 23, not 1 to 12 with a bit for the afternoon.
const HOURS_24: u8 = 0x02;
/// Registers B (enabled) and C (has happened): periodic, alarm and update interrupt.
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE: u8 = 0x10;
const EVENTS: u8 = PERIODIC | ALARM | UPDATE;
/// Register C: an enabled interrupt has happened.
const INTERRUPT: u8 = 0x80;
/// Register D: memory and time are valid.
const VALID: u8 = 0x80;
/// Hours of a twelve-hour clock: afternoon.
const AFTERNOON: u8 = 0x80;
/// Alarm values from here on match everything.
const ANY: u8 = 0xc0;

/// What firmware finds in the memory, beside the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Bytes of memory from address 0 on, below 4 GiB.
    pub memory_below_4g: u64,
    /// Bytes of memory at 4 GiB.
    pub memory_above_4g: u64,
    /// Processors, 1 to 256.
    pub cpus: u16,
}

impl Contents {
    /// The bytes, where the firmwares of virtual machines look for them.
    fn bytes(&self) -> [(u8, u8); 17] {
        let kib = |bytes: u64, above: u64| {
            u16::try_from(bytes.saturating_sub(above) >> 10).unwrap_or(u16::MAX)
        };
        let [base_low, base_high] = 640_u16.to_le_bytes();
        let [ext_low, ext_high] = kib(self.memory_below_4g, 1 << 20).to_le_bytes();
        let above_16m = self.memory_below_4g.saturating_sub(16 << 20) >> 16;
        let [ext2_low, ext2_high] = u16::try_from(above_16m).unwrap_or(u16::MAX).to_le_bytes();
        let [high0, high1, high2, ..] = (self.memory_above_4g >> 16).to_le_bytes();
        [
            // Equipment: a mathematics coprocessor, no floppy drive.
            (0x14, 0x02),
            (0x15, base_low),
            (0x16, base_high),
            (0x17, ext_low),
            (0x18, ext_high),
            (0x30, ext_low),
            (0x31, ext_high),
            (0x34, ext2_low),
            (0x35, ext2_high),
            // Boot order, a nibble each: option ROMs of network adapters (4) only. Bit 0 of 0x38: no floppy check.
            (0x38, 0x01),
            (0x3d, 0x04),
            (0x5b, high0),
            (0x5c, high1),
            (0x5d, high2),
            (0x5f, self.cpus.saturating_sub(1).min(255) as u8),
            (REGISTER_A, DIVIDER),
            (REGISTER_B, HOURS_24),
        ]
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    index: u8,
    /// The memory. Those of the time hold what the guest sets while it stands still.
    memory: Vec<u8>,
    /// What the guest's clock is ahead of the one given, in nanoseconds.
    ahead: i64,
    /// Machine time up to which events are in register C.
    seen: u64,
}

/// The clock.
#[derive(Debug)]
pub struct Rtc {
    registers: Registers,
    /// Unix time at machine time 0, in nanoseconds.
    base: i64,
}

impl Rtc {
    /// A clock that says `unix_nanos` (nanoseconds since 1970-01-01 UTC) at machine time 0.
    pub fn new(contents: &Contents, unix_nanos: i64) -> Self {
        let mut rtc = Self {
            registers: Registers {
                index: 0,
                memory: vec![0; SIZE],
                ahead: 0,
                seen: 0,
            },
            base: unix_nanos,
        };
        for (index, value) in contents.bytes() {
            rtc.put(index, value);
        }
        rtc
    }

    /// Puts the clock right after the machine stood still: it is `unix_nanos` now. What the guest has set the clock
    /// ahead stays.
    pub fn set_time(&mut self, unix_nanos: i64, effects: &mut Effects) {
        self.note_events(effects.now);
        self.base = unix_nanos.saturating_sub_unsigned(effects.now);
        self.settle(effects);
    }

    fn get(&self, index: u8) -> u8 {
        let memory = &self.registers.memory;
        memory.get(usize::from(index)).copied().unwrap_or(0)
    }

    fn put(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.registers.memory.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    /// The guest's time at machine time `now`, in nanoseconds since 1970.
    fn nanos(&self, now: u64) -> i64 {
        let base = self.base.saturating_add_unsigned(now);
        base.saturating_add(self.registers.ahead)
    }

    fn seconds(&self, now: u64) -> i64 {
        self.nanos(now).div_euclid(SECOND)
    }

    fn standing_still(&self) -> bool {
        self.get(REGISTER_B) & SET != 0
    }

    /// A number as the guest wants it.
    fn encode(&self, value: u8) -> u8 {
        match self.get(REGISTER_B) & BINARY {
            0 => ((value / 10) << 4) | (value % 10),
            _ => value,
        }
    }

    fn decode(&self, value: u8) -> u8 {
        match self.get(REGISTER_B) & BINARY {
            0 => (value >> 4) * 10 + (value & 0x0f),
            _ => value,
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.get(REGISTER_B) & HOURS_24 != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { AFTERNOON } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    /// An alarm register's number.
    fn decode_alarm(&self, index: u8) -> u8 {
        match index {
            ALARM_HOURS => self.decode_hour(self.get(index)),
            _ => self.decode(self.get(index)),
        }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.get(REGISTER_B) & HOURS_24 != 0 {
            return self.decode(value);
        }
        let hour = self.decode(value & !AFTERNOON) % 12;
        hour + if value & AFTERNOON != 0 { 12 } else { 0 }
    }

    /// A register of the time, as the calendar says.
    fn encode_time(&self, index: u8, time: &Calendar) -> u8 {
        match index {
            SECONDS => self.encode(time.second),
            MINUTES => self.encode(time.minute),
            HOURS => self.encode_hour(time.hour),
            WEEKDAY => self.encode(time.weekday()),
            DAY => self.encode(time.day),
            MONTH => self.encode(time.month),
            YEAR => self.encode((time.year % 100) as u8),
            _ => self.encode((time.year / 100 % 100) as u8),
        }
    }

    /// Puts the time of now into its registers.
    fn freeze(&mut self, now: u64) {
        let time = Calendar::from_unix(self.seconds(now));
        for index in TIME {
            let value = self.encode_time(index, &time);
            self.put(index, value);
        }
    }

    /// Sets the clock to what its registers say. A date that is none leaves it as it is.
    fn thaw(&mut self, now: u64) {
        let value = |index| self.decode(self.get(index));
        let time = Calendar {
            year: u16::from(value(CENTURY)) * 100 + u16::from(value(YEAR)),
            month: value(MONTH),
            day: value(DAY),
            hour: self.decode_hour(self.get(HOURS)),
            minute: value(MINUTES),
            second: value(SECONDS),
        };
        if let Some(seconds) = time.to_unix() {
            let difference = seconds.saturating_sub(self.seconds(now));
            let ahead = difference.saturating_mul(SECOND);
            self.registers.ahead = self.registers.ahead.saturating_add(ahead);
        }
    }

    /// The length of a periodic interrupt, in nanoseconds, unless it is off.
    fn period(&self) -> Option<u64> {
        match self.get(REGISTER_A) & 0x0f {
            0 => None,
            // The two fastest settings repeat slower ones.
            rate @ 1..=2 => Some(rate + 7),
            rate => Some(rate),
        }
        .map(|rate| (1_000_000_000 << (rate - 1)) / 32_768)
    }

    /// The first second after `from`, at most a day later, at which the alarm goes off.
    fn next_alarm(&self, from: i64) -> Option<i64> {
        let field = |index, value: u8| (value < ANY).then(|| i64::from(self.decode_alarm(index)));
        let [hour, minute, second] =
            [ALARM_HOURS, ALARM_MINUTES, ALARM_SECONDS].map(|index| field(index, self.get(index)));
        let matches = |field: Option<i64>, value| field.is_none_or(|wanted| wanted == value);
        let mut at = from + 1;
        while at <= from + 86_400 {
            let of_day = at.rem_euclid(86_400);
            // What does not match now does not before its hour or minute is over.
            let unit = if !matches(hour, of_day / 3600) {
                3600
            } else if !matches(minute, of_day / 60 % 60) {
                60
            } else {
                match second {
                    None => return Some(at),
                    Some(wanted @ 0..60) if wanted >= of_day % 60 => {
                        return Some(at + wanted - of_day % 60);
                    }
                    Some(_) => 60,
                }
            };
            at += unit - of_day % unit;
        }
        None
    }

    /// Notes in register C what has happened up to `now`.
    fn note_events(&mut self, now: u64) {
        let seen = std::mem::replace(&mut self.registers.seen, now);
        let mut events = 0;
        if let Some(period) = self.period()
            && now / period != seen / period
        {
            events |= PERIODIC;
        }
        let (before, after) = (self.seconds(seen), self.seconds(now));
        if before < after && !self.standing_still() {
            events |= UPDATE;
            let enabled = self.get(REGISTER_B) & ALARM != 0;
            if enabled && self.next_alarm(before).is_some_and(|alarm| alarm <= after) {
                events |= ALARM;
            }
        }
        self.put(REGISTER_C, self.get(REGISTER_C) | events);
    }

    /// Drives the interrupt, and asks to be called for the next event that interrupts.
    fn settle(&mut self, effects: &mut Effects) {
        let (now, enabled) = (effects.now, self.get(REGISTER_B) & EVENTS);
        let events = self.get(REGISTER_C) & EVENTS;
        let high = events & enabled != 0;
        self.put(REGISTER_C, events | if high { INTERRUPT } else { 0 });
        effects.push(Effect::Line { gsi: LINE, high });
        let to_second = |second: i64| {
            let left = second
                .saturating_mul(SECOND)
                .saturating_sub(self.nanos(now));
            u64::try_from(left).unwrap_or(0)
        };
        let waits = |event: u8| enabled & event != 0 && events & event == 0;
        let periodic = self.period().filter(|_| waits(PERIODIC));
        let second = self.seconds(now);
        let runs = !self.standing_still();
        let update = (runs && waits(UPDATE)).then(|| to_second(second.saturating_add(1)));
        let alarm = (runs && waits(ALARM)).then(|| self.next_alarm(second).map(to_second));
        let next = [
            periodic.map(|period| period - now % period),
            update,
            alarm.flatten(),
        ];
        match next.into_iter().flatten().min() {
            Some(after) => effects.push(Effect::Timer {
                id: 0,
                after: Duration::from_nanos(after),
            }),
            None => effects.push(Effect::CancelTimer { id: 0 }),
        }
    }

    fn read_register(&mut self, index: u8, effects: &mut Effects) -> u8 {
        let now = effects.now;
        match index {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY if !self.standing_still() => {
                self.encode_time(index, &Calendar::from_unix(self.seconds(now)))
            }
            REGISTER_A => {
                let left = SECOND - self.nanos(now).rem_euclid(SECOND);
                let updating = left <= UPDATE_NANOS && !self.standing_still();
                self.get(REGISTER_A) | if updating { UPDATE_IN_PROGRESS } else { 0 }
            }
            REGISTER_C => {
                self.note_events(now);
                self.settle(effects);
                let value = self.get(REGISTER_C);
                self.put(REGISTER_C, 0);
                self.settle(effects);
                value
            }
            REGISTER_D => VALID,
            _ => self.get(index),
        }
    }

    fn write_register(&mut self, index: u8, value: u8, effects: &mut Effects) {
        let now = effects.now;
        self.note_events(now);
        match index {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY => {
                if self.standing_still() {
                    self.put(index, value);
                } else {
                    self.freeze(now);
                    self.put(index, value);
                    self.thaw(now);
                }
            }
            REGISTER_A => self.put(REGISTER_A, value & !UPDATE_IN_PROGRESS),
            REGISTER_B => {
                let stood = self.standing_still();
                if value & SET != 0 && !stood {
                    self.freeze(now);
                }
                self.put(REGISTER_B, value);
                if value & SET == 0 && stood {
                    self.thaw(now);
                }
            }
            REGISTER_C | REGISTER_D => {}
            _ => self.put(index, value),
        }
        self.settle(effects);
    }
}

/// The registers that hold the time.
const TIME: [u8; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];

impl Device for Rtc {
    fn read(&mut self, _region: usize, offset: u64, data: &mut [u8], effects: &mut Effects) {
        // The index cannot be read.
        if let (1, [byte]) = (offset, data) {
            *byte = self.read_register(self.registers.index, effects);
        }
    }

    fn write(&mut self, _region: usize, offset: u64, data: &[u8], effects: &mut Effects) {
        match (offset, data) {
            // Bit 7 masks the NMI, of which there is none.
            (0, &[byte]) => self.registers.index = byte & 0x7f,
            // A word to the index port is an index and its data.
            (0, &[index, byte]) => {
                self.registers.index = index & 0x7f;
                self.write_register(self.registers.index, byte, effects);
            }
            (1, &[byte]) => self.write_register(self.registers.index, byte, effects),
            _ => {}
        }
    }

    fn timer(&mut self, _id: u32, effects: &mut Effects) {
        self.note_events(effects.now);
        self.settle(effects);
    }

    /// The battery keeps time and memory; interrupts are disabled.
    fn reset(&mut self, effects: &mut Effects) {
        let enabled = self.get(REGISTER_B) & !EVENTS;
        self.write_register(REGISTER_B, enabled, effects);
        self.put(REGISTER_C, 0);
        self.registers.index = 0;
    }

    fn save(&self) -> State {
        serde_json::to_value(&self.registers).unwrap_or_default()
    }

    fn restore(&mut self, state: &State, effects: &mut Effects) -> Result<(), RestoreError> {
        let saved = Registers::deserialize(state)?;
        if saved.memory.len() != SIZE {
            return Err(RestoreError::Value {
                what: "bytes of CMOS memory",
                value: saved.memory.len().to_string(),
                allowed: "128",
            });
        }
        self.registers = Registers {
            index: saved.index & 0x7f,
            seen: saved.seen.min(effects.now),
            ..saved
        };
        self.settle(effects);
        Ok(())
    }

    fn wiring(&self) -> Wiring {
        let region = Region {
            number: 0,
            space: Space::Port,
            start: 0x70,
            len: 2,
        };
        Wiring {
            regions: vec![region],
            ..Wiring::default()
        }
    }
}

#[cfg(test)]
mod tests;

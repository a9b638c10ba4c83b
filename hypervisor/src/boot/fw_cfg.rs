//! fw_cfg, the device by which a virtual machine's firmware reads its configuration (QEMU's "Firmware Configuration
//! Device" specification): numbered items, some of them files with names, read by port or by DMA.

use std::sync::Arc;

use guestmem::Memory;
use serde::{Deserialize, Serialize};

use crate::device::{Device, Effects, Region, RestoreError, Space, State, Wiring};

/// The selector register; the data register is 1 further on, the DMA address register 4.
const SELECTOR: u16 = 0x510;
const DATA: u64 = 1;
const DMA_HIGH: u64 = 4;
const DMA_LOW: u64 = 8;
const PORTS: u64 = 12;

/// Item: the signature.
const SIGNATURE: u16 = 0x0000;
/// Item: what the device can do, bit 0 the data register, bit 1 DMA.
const FEATURES: u16 = 0x0001;
/// Item: the directory of files.
const DIRECTORY: u16 = 0x0019;
/// The first file's number.
const FIRST_FILE: u16 = 0x0020;
/// Most files.
const MAX_FILES: usize = 256;
/// Longest name of a file in bytes; a zero byte follows.
pub const MAX_NAME: usize = 55;

/// What the DMA address register reads as.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// DMA control bits. The device answers with 0 or [`DMA_ERROR`].
const DMA_ERROR: u32 = 1 << 0;
const DMA_READ: u32 = 1 << 1;
const DMA_SKIP: u32 = 1 << 2;
const DMA_SELECT: u32 = 1 << 3;
const DMA_WRITE: u32 = 1 << 4;

/// Why a file cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The name is too long, or empty.
    #[error("firmware file name `{0}`; allowed: 1 to {MAX_NAME} bytes, none of them zero")]
    Name(String),
    /// Another file has the name.
    #[error("there are two firmware files `{0}`")]
    Twice(String),
    /// Too many files, or too long.
    #[error("firmware file `{0}`: there may be {MAX_FILES} files of less than 2 GiB")]
    TooMuch(String),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    selector: u16,
    /// Bytes of the item that have been read or skipped.
    offset: u64,
    /// The upper half of the DMA address.
    dma_high: u32,
}

/// The device. Its items are the machine's configuration, not part of a saved state.
pub struct FwCfg {
    memory: Arc<Memory>,
    /// Numbered items, in no order.
    items: Vec<(u16, Vec<u8>)>,
    /// Files in the order of their numbers.
    files: Vec<(String, Vec<u8>)>,
    registers: Registers,
}

impl FwCfg {
    /// A device without files, for DMA to `memory`.
    pub fn new(memory: Arc<Memory>) -> Self {
        let mut device = Self {
            memory,
            items: Vec::new(),
            files: Vec::new(),
            registers: Registers::default(),
        };
        device.set_item(SIGNATURE, b"QEMU");
        device.set_item(FEATURES, &3_u32.to_le_bytes());
        device.set_item(DIRECTORY, &device.directory());
        device
    }

    /// Sets the item `number`.
    pub fn set_item(&mut self, number: u16, bytes: &[u8]) {
        self.items.retain(|(other, _)| *other != number);
        self.items.push((number, bytes.to_vec()));
    }

    /// Adds a file.
    ///
    /// # Errors
    /// A wrong or taken name, or too many files.
    pub fn add_file(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), FileError> {
        if !(1..=MAX_NAME).contains(&name.len()) || name.contains('\0') {
            return Err(FileError::Name(name.to_owned()));
        }
        if self.files.iter().any(|(other, _)| other == name) {
            return Err(FileError::Twice(name.to_owned()));
        }
        if self.files.len() == MAX_FILES || bytes.len() >= 1 << 31 {
            return Err(FileError::TooMuch(name.to_owned()));
        }
        self.files.push((name.to_owned(), bytes));
        let directory = self.directory();
        self.set_item(DIRECTORY, &directory);
        Ok(())
    }

    /// The directory: a count, and for each file its length, number and name, all big-endian.
    fn directory(&self) -> Vec<u8> {
        let mut bytes = (self.files.len() as u32).to_be_bytes().to_vec();
        for (number, (name, content)) in (FIRST_FILE..).zip(&self.files) {
            bytes.extend_from_slice(&(content.len() as u32).to_be_bytes());
            bytes.extend_from_slice(&number.to_be_bytes());
            bytes.extend_from_slice(&[0; 2]);
            let end = bytes.len() + MAX_NAME + 1;
            bytes.extend_from_slice(name.as_bytes());
            bytes.resize(end, 0);
        }
        bytes
    }

    /// What is left of the selected item; nothing if there is none.
    fn rest(&self) -> &[u8] {
        let number = self.registers.selector;
        let file = || self.files.get(usize::from(number.checked_sub(FIRST_FILE)?));
        let item = self.items.iter().find(|(other, _)| *other == number);
        let item = item.map(|(_, bytes)| bytes);
        let bytes = item.or_else(|| file().map(|(_, bytes)| bytes));
        let offset = usize::try_from(self.registers.offset).unwrap_or(usize::MAX);
        bytes
            .and_then(|bytes| bytes.get(offset..))
            .unwrap_or_default()
    }

    fn select(&mut self, number: u16) {
        self.registers.selector = number;
        self.registers.offset = 0;
    }

    fn skip(&mut self, len: u64) {
        self.registers.offset = self.registers.offset.saturating_add(len);
    }

    /// Carries out the command at `address`, and answers in its first word.
    fn dma(&mut self, address: u64) {
        let mut command = [0; 16];
        if !read_memory(&self.memory, address, &mut command) {
            return;
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3, to @ ..] = command;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        if control & DMA_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let done = if control & DMA_READ != 0 {
            let done = self.copy_out(u64::from_be_bytes(to), len);
            self.skip(len.into());
            done
        } else if control & DMA_SKIP != 0 {
            self.skip(len.into());
            true
        } else {
            // No item can be written.
            control & DMA_WRITE == 0
        };
        let answer = if done { 0 } else { DMA_ERROR };
        // Where the command could be read, the answer can be written.
        let _written = write_memory(&self.memory, address, &answer.to_be_bytes());
    }

    /// Copies `len` bytes of the item to guest memory; zeros behind its end. False if they do not all lie in memory.
    fn copy_out(&self, to: u64, len: u32) -> bool {
        let rest = self.rest();
        let bytes = rest.get(..len as usize).unwrap_or(rest);
        if !write_memory(&self.memory, to, bytes) {
            return false;
        }
        let zeros = [0; 4096];
        let mut at = bytes.len() as u64;
        while at < u64::from(len) {
            let count = (u64::from(len) - at).min(zeros.len() as u64);
            let chunk = zeros.get(..count as usize).unwrap_or_default();
            let Some(address) = to.checked_add(at) else {
                return false;
            };
            if !write_memory(&self.memory, address, chunk) {
                return false;
            }
            at += count;
        }
        true
    }
}

/// Reads guest memory, wherever its regions meet. False if a byte is not memory.
fn read_memory(memory: &Memory, from: u64, mut to: &mut [u8]) -> bool {
    memory.spans(from, to.len() as u32, |span| {
        let Some((now, rest)) = std::mem::take(&mut to).split_at_mut_checked(span.len() as usize)
        else {
            return false;
        };
        to = rest;
        memory.read(span, now).is_ok()
    })
}

/// Writes guest memory, as [`read_memory`] reads it.
fn write_memory(memory: &Memory, to: u64, mut from: &[u8]) -> bool {
    memory.spans(to, from.len() as u32, |span| {
        let Some((now, rest)) = from.split_at_checked(span.len() as usize) else {
            return false;
        };
        from = rest;
        memory.write(span, now).is_ok()
    })
}

impl Device for FwCfg {
    fn read(&mut self, _region: usize, offset: u64, data: &mut [u8], _effects: &mut Effects) {
        match (offset, data) {
            (DATA, [byte]) => {
                *byte = self.rest().first().copied().unwrap_or(0);
                self.skip(1);
            }
            (DMA_HIGH.., data) => {
                let from = DMA_SIGNATURE.iter().skip((offset - DMA_HIGH) as usize);
                data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
            _ => {}
        }
    }

    fn write(&mut self, _region: usize, offset: u64, data: &[u8], _effects: &mut Effects) {
        match (offset, data) {
            (0, &[low, high]) => self.select(u16::from_le_bytes([low, high])),
            (DMA_HIGH, &[a, b, c, d]) => self.registers.dma_high = u32::from_be_bytes([a, b, c, d]),
            (DMA_LOW, &[a, b, c, d]) => {
                let high = std::mem::take(&mut self.registers.dma_high);
                let low = u32::from_be_bytes([a, b, c, d]);
                self.dma(u64::from(high) << 32 | u64::from(low));
            }
            (DMA_HIGH, &[a, b, c, d, e, f, g, h]) => {
                self.dma(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
            }
            _ => {}
        }
    }

    fn reset(&mut self, _effects: &mut Effects) {
        self.registers = Registers::default();
    }

    fn save(&self) -> State {
        serde_json::to_value(&self.registers).unwrap_or_default()
    }

    fn restore(&mut self, state: &State, _effects: &mut Effects) -> Result<(), RestoreError> {
        self.registers = Registers::deserialize(state)?;
        Ok(())
    }

    fn wiring(&self) -> Wiring {
        let region = Region {
            number: 0,
            space: Space::Port,
            start: SELECTOR.into(),
            len: PORTS,
        };
        Wiring {
            regions: vec![region],
            ..Wiring::default()
        }
    }
}

#[cfg(test)]
mod tests;

//! A kernel that firmware starts in real mode, by the 16-bit boot protocol (Documentation/arch/x86/boot.rst): one without
//! an entry point for 64-bit mode. Programs that come in a kernel's form need the services of a BIOS: iPXE for one.
//!
//! The firmware is given an option ROM as [`fw_cfg`](super::fw_cfg) file, with a bootstrap entry (BIOS boot specification
//! 1.01). That has `fw_cfg` copy the kernel to where boot loaders put it, and jumps there.
//!
//! ```text
//! 0x0009_0000   setup part, its heap and stack    0x0010_0000              the rest of the kernel
//! 0x0009_e000   command line                      below the end of memory  initrd
//! ```

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};

use super::complement;
use super::fw_cfg::FwCfg;
use super::linux::MAX_COMMAND_LINE;
use crate::Error;
use crate::memory::{EXTENDED, PCI_HOLE};

/// The option ROM's name among the firmware's files.
pub(crate) const ROM_FILE: &str = "genroms/kernel.bin";

/// Items by their numbers in the specification of `fw_cfg`.
const KERNEL: u16 = 0x0011;
const INITRD: u16 = 0x0012;
const COMMAND_LINE: u16 = 0x0015;
const SETUP: u16 = 0x0018;

const SETUP_AT: u64 = 0x9_0000;
/// Its stack is below, in the same segment, and its heap up to [`HEAP_END`].
const COMMAND_LINE_AT: u64 = 0x9_e000;
const HEAP_END: usize = 0xd000;
/// At the end of memory, for the firmware: its tables and what it keeps there.
const FIRMWARE_ROOM: u64 = 1 << 20;

/// Fields of the setup header, as offsets from the start of the kernel.
mod field {
    pub(super) const SECTORS: usize = 0x1f1;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const HEAP_END_PTR: usize = 0x224;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
}
const HEADER_LEN: usize = 0x238;
const SECTOR: usize = 512;
/// `loadflags`: the kernel runs at 1 MiB; there is a heap.
const LOADED_HIGH: u8 = 1 << 0;
const CAN_USE_HEAP: u8 = 1 << 7;
/// `xloadflags`: there is an entry point for 64-bit mode.
const XLF_KERNEL_64: u16 = 1 << 0;
/// `type_of_loader`: one without a number.
const LOADER_UNDEFINED: u8 = 0xff;
/// The first version that takes a command line from anywhere.
const OLDEST: u16 = 0x202;
/// Longest command line of a kernel that does not say (before version 2.06).
const SHORT_COMMAND_LINE: usize = 255;
/// Where an initrd ends at the latest, for a kernel that does not say (before version 2.03).
const INITRD_END: u32 = 0x3800_0000;

/// Whether `kernel` is one that only firmware can start. What is no kernel at all is not.
pub(crate) fn is_for_firmware(kernel: &mut File) -> Result<bool, Error> {
    let mut header = Vec::new();
    kernel
        .seek(SeekFrom::Start(0))
        .and_then(|_| {
            kernel
                .by_ref()
                .take(HEADER_LEN as u64)
                .read_to_end(&mut header)
        })
        .map_err(|error| refusal("kernel", error))?;
    let is_kernel = get(&header, field::MAGIC).is_some_and(|magic| &magic == b"HdrS");
    let version = get(&header, field::VERSION).map_or(0, u16::from_le_bytes);
    let flags = get(&header, field::XLOADFLAGS).map_or(0, u16::from_le_bytes);
    Ok(is_kernel && (version < 0x20c || flags & XLF_KERNEL_64 == 0))
}

/// Why a kernel cannot be started that only firmware can start.
pub(crate) fn no_firmware() -> Error {
    let why = "it has no entry point for 64-bit mode, so that only a BIOS can start it, and there is none (package seabios)";
    refusal("kernel", why)
}

/// Hands a kernel, its initrd and its command line to the firmware of a machine with `memory` bytes.
pub(crate) fn hand_over(
    fw_cfg: &mut FwCfg,
    memory: u64,
    kernel: &mut File,
    initrd: Option<&mut File>,
    command_line: &str,
) -> Result<(), Error> {
    if command_line.len() > MAX_COMMAND_LINE || command_line.contains('\0') {
        return Err(Error::Config {
            what: "command line",
            value: format!("of {} bytes", command_line.len()),
            allowed: "up to 2047 bytes without a zero",
        });
    }
    let low = memory.min(PCI_HOLE);
    let mut setup = read("kernel", kernel, low)?;
    let sectors = get::<1>(&setup, field::SECTORS).map_or(0, |[sectors]| usize::from(sectors));
    // 0 means 4, as in the beginning.
    let setup_len = SECTOR * (1 + if sectors == 0 { 4 } else { sectors });
    let [loadflags] = get(&setup, field::LOADFLAGS).unwrap_or_default();
    if loadflags & LOADED_HIGH == 0 || setup_len > HEAP_END || setup.len() < setup_len {
        let why = "it is no bzImage, or its first part is longer than 52 KiB or cut off";
        return Err(refusal("kernel", why));
    }
    let version = get(&setup, field::VERSION).map_or(0, u16::from_le_bytes);
    if version < OLDEST {
        let [minor, major] = version.to_le_bytes();
        let why =
            format!("its boot protocol has version {major}.{minor:02}; allowed: 2.02 and later");
        return Err(refusal("kernel", why));
    }
    let longest = match version {
        ..0x206 => SHORT_COMMAND_LINE,
        _ => get(&setup, field::CMDLINE_SIZE).map_or(0, u32::from_le_bytes) as usize,
    };
    fits_command_line(command_line, longest)?;
    let kernel = setup.split_off(setup_len);
    let initrd = match initrd {
        Some(file) => read("initrd", file, low)?,
        None => Vec::new(),
    };
    let last = match version {
        ..0x203 => INITRD_END,
        _ => get(&setup, field::INITRD_ADDR_MAX).map_or(0, u32::from_le_bytes),
    };
    let end = u64::from(last).min(low.saturating_sub(FIRMWARE_ROOM));
    let initrd_at = end.saturating_sub(initrd.len() as u64) & !0xfff;
    if initrd_at < EXTENDED + kernel.len() as u64 {
        let why = format!("it and its initrd do not fit between 1 MiB and {end:#x}");
        return Err(refusal("kernel", why));
    }
    let at = if initrd.is_empty() { 0 } else { initrd_at };
    fill_header(&mut setup, at as u32, initrd.len() as u32);
    let mut line = command_line.as_bytes().to_vec();
    line.push(0);
    let parts = [
        (SETUP, SETUP_AT, setup),
        (KERNEL, EXTENDED, kernel),
        (COMMAND_LINE, COMMAND_LINE_AT, line),
        (INITRD, initrd_at, initrd),
    ];
    let rom = rom(&parts.each_ref().map(|(item, to, bytes)| Transfer {
        item: *item,
        to: *to,
        len: bytes.len() as u32,
    }));
    for (item, _, bytes) in parts {
        fw_cfg.set_item(item, &bytes);
    }
    fw_cfg.add_file(ROM_FILE, rom)?;
    Ok(())
}

/// Whether a kernel that takes `longest` bytes of command line takes this one as a whole.
pub(crate) fn fits_command_line(command_line: &str, longest: usize) -> Result<(), Error> {
    if command_line.len() <= longest {
        return Ok(());
    }
    let why = format!(
        "it takes a command line of {longest} bytes, and this one has {}",
        command_line.len()
    );
    Err(refusal("kernel", why))
}

/// Tells the kernel where its initrd and its command line are.
fn fill_header(setup: &mut [u8], initrd_at: u32, initrd_len: u32) {
    let [loadflags] = get(setup, field::LOADFLAGS).unwrap_or_default();
    let fields: [(usize, &[u8]); 6] = [
        (field::TYPE_OF_LOADER, &[LOADER_UNDEFINED]),
        (field::LOADFLAGS, &[loadflags | CAN_USE_HEAP]),
        (field::RAMDISK_IMAGE, &initrd_at.to_le_bytes()),
        (field::RAMDISK_SIZE, &initrd_len.to_le_bytes()),
        (field::HEAP_END_PTR, &(HEAP_END as u16).to_le_bytes()),
        (field::CMD_LINE_PTR, &(COMMAND_LINE_AT as u32).to_le_bytes()),
    ];
    for (at, bytes) in fields {
        put(setup, at, bytes);
    }
}

/// An item of `fw_cfg` that is copied to guest memory.
struct Transfer {
    item: u16,
    to: u64,
    len: u32,
}

/// Places in the option ROM.
const PNP: usize = 0x20;
const BOOT: usize = 0x40;
const COPIES: usize = 0x80;
const PRODUCT: usize = 0xc0;
const CHECKSUM: usize = SECTOR - 1;

/// It asks for one copy after the other by the DMA port of `fw_cfg`, and jumps to the setup part.
#[rustfmt::skip]
const BOOT_CODE: [u8; 54] = [
    0x66, 0x31, 0xdb,                                     // xor ebx, ebx
    0x8c, 0xcb,                                           // mov bx, cs
    0x66, 0xc1, 0xe3, 0x04,                               // shl ebx, 4
    0x66, 0x81, 0xc3, COPIES as u8, 0x00, 0x00, 0x00,     // add ebx, COPIES
    0xb9, 0x04, 0x00,                                     // mov cx, 4
    0xba, 0x18, 0x05,                                     // mov dx, DMA address register, lower half
    0x66, 0x89, 0xd8,                                     // next: mov eax, ebx
    0x66, 0x0f, 0xc8,                                     // bswap eax
    0x66, 0xef,                                           // out dx, eax
    0x66, 0x83, 0xc3, 0x10,                               // add ebx, 16
    0xe2, 0xf2,                                           // loop next
    0xfa,                                                 // cli
    0xb8, (SETUP_AT >> 4) as u8, (SETUP_AT >> 12) as u8,  // mov ax, SETUP_AT / 16
    0x8e, 0xd8, 0x8e, 0xc0,                               // mov ds, ax; mov es, ax
    0x8e, 0xd0,                                           // mov ss, ax
    0xbc, 0x00, 0xe0,                                     // mov sp, COMMAND_LINE_AT - SETUP_AT
    0xea, 0x00, 0x00, 0x20, 0x90,                         // jmp SETUP_AT / 16 + 0x20 : 0
];

fn rom(copies: &[Transfer; 4]) -> Vec<u8> {
    let mut rom = vec![0; SECTOR];
    // Length in sectors; initialisation: mov ax, 0x20 (there is something to boot); retf.
    put(&mut rom, 0, &[0x55, 0xaa, 1, 0xb8, 0x20, 0x00, 0xcb]);
    put(&mut rom, 0x1a, &[PNP as u8, 0]);
    put(&mut rom, PNP, b"$PnP\x01\x02");
    put(&mut rom, PNP + 0x10, &[PRODUCT as u8, 0]);
    // It boots, by a bootstrap entry.
    put(&mut rom, PNP + 0x15, &[0x14]);
    put(&mut rom, PNP + 0x1a, &[BOOT as u8, 0]);
    put(&mut rom, PRODUCT, b"kernel");
    put(&mut rom, BOOT, &BOOT_CODE);
    for (at, copy) in (COPIES..).step_by(16).zip(copies) {
        // Select, and read.
        let control = u32::from(copy.item) << 16 | 1 << 3 | 1 << 1;
        put(&mut rom, at, &control.to_be_bytes());
        put(&mut rom, at + 4, &copy.len.to_be_bytes());
        put(&mut rom, at + 8, &copy.to.to_be_bytes());
    }
    complement(&mut rom, CHECKSUM);
    rom
}

fn read(what: &'static str, file: &mut File, most: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.by_ref().take(most + 1).read_to_end(&mut bytes))
        .map_err(|error| refusal(what, error))?;
    if bytes.len() as u64 > most {
        return Err(refusal(
            what,
            "it is longer than the guest's memory below 4 GiB",
        ));
    }
    Ok(bytes)
}

fn refusal(what: &'static str, why: impl ToString) -> Error {
    Error::Image {
        what,
        why: why.to_string(),
    }
}

fn get<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = to.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
pub(super) mod tests;

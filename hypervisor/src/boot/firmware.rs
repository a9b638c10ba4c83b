//! What SeaBIOS reads from [`fw_cfg`](super::fw_cfg): memory, tables, boot order.

use std::sync::Arc;

use guestmem::Memory;

use super::acpi::{self, Fixup, Part};
use super::fw_cfg::{FileError, FwCfg, MAX_NAME};
use super::real_mode::ROM_FILE;
use super::smbios;
use crate::chipset::serial;
use crate::pci::Address;

/// Item: processors that run.
const CPUS: u16 = 0x0005;
/// Item: show the boot menu.
const BOOT_MENU: u16 = 0x000e;
/// Item: processors that there can be.
const MAX_CPUS: u16 = 0x000f;
/// Item: the PIT is wired to input 2 of the I/O APIC.
const IRQ0_OVERRIDE: u16 = 0x8002;

/// Memory, in `etc/e820`.
const E820_MEMORY: u32 = 1;

/// Names of the files with the tables.
const ACPI_TABLES: &str = "etc/acpi/tables";
const ACPI_RSDP: &str = "etc/acpi/rsdp";

/// Commands of `etc/table-loader`, and where their fields are. Each has 128 bytes.
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
const COMMAND_LEN: usize = 128;
/// Allocate anywhere below 4 GiB, or in the last 64 KiB below 1 MiB.
const ZONE_HIGH: u8 = 1;
const ZONE_LOW: u8 = 2;

/// What the firmware is told.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// The ACPI tables.
    pub acpi: acpi::Description,
    /// The SMBIOS tables, and how much memory there is.
    pub smbios: smbios::Description,
    /// The PCI functions to boot from by their option ROMs, in this order, before anything else.
    pub boot_order: Vec<Address>,
    /// Before these boots the option ROM that starts a kernel.
    pub kernel: bool,
    /// Show firmware's messages, and those of what it boots by its services, on COM1; take keys from there.
    pub serial_console: bool,
}

/// The device that tells it, for a guest with `memory`.
///
/// # Errors
/// None that a caller could cause.
pub fn fw_cfg(description: &Description, memory: Arc<Memory>) -> Result<FwCfg, FileError> {
    let mut device = FwCfg::new(memory);
    let cpus = u16::from(description.acpi.cpus);
    device.set_item(CPUS, &cpus.to_le_bytes());
    device.set_item(MAX_CPUS, &cpus.to_le_bytes());
    device.set_item(BOOT_MENU, &0_u16.to_le_bytes());
    device.set_item(IRQ0_OVERRIDE, &[1]);
    device.add_file("etc/e820", e820(&description.smbios))?;
    let tables = acpi::Tables::new(&description.acpi);
    device.add_file("etc/table-loader", loader(&tables.fixups))?;
    device.add_file(ACPI_TABLES, tables.tables)?;
    device.add_file(ACPI_RSDP, tables.rsdp)?;
    let (anchor, structures) = smbios::tables(&description.smbios, 0);
    device.add_file("etc/smbios/smbios-anchor", anchor)?;
    device.add_file("etc/smbios/smbios-tables", structures)?;
    let order = boot_order(description);
    if !order.is_empty() {
        device.add_file("bootorder", order)?;
    }
    if description.serial_console {
        let port = u64::from(serial::COM1);
        device.add_file("etc/sercon-port", port.to_le_bytes().to_vec())?;
    }
    Ok(device)
}

/// Memory ranges: start and length of 8 bytes, type of 4.
fn e820(description: &smbios::Description) -> Vec<u8> {
    let ranges = [
        (0, description.memory_below_4g),
        (1_u64 << 32, description.memory_above_4g),
    ];
    let mut bytes = Vec::new();
    for (start, len) in ranges.into_iter().filter(|(_, len)| *len > 0) {
        bytes.extend_from_slice(&start.to_le_bytes());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&E820_MEMORY.to_le_bytes());
    }
    bytes
}

/// Open Firmware paths, one a line, the last one ended by a zero byte. Nothing if there is nothing to boot from.
fn boot_order(description: &Description) -> Vec<u8> {
    let path = |address: &Address| match *address {
        Address { slot, function: 0 } => format!("/pci@i0cf8/ethernet@{slot:x}\n"),
        Address { slot, function } => format!("/pci@i0cf8/ethernet@{slot:x},{function:x}\n"),
    };
    let kernel = description.kernel.then(|| format!("/rom@{ROM_FILE}\n"));
    let functions = description.boot_order.iter().map(path);
    let mut lines: String = kernel.into_iter().chain(functions).collect();
    if !lines.is_empty() {
        lines.push('\0');
    }
    lines.into_bytes()
}

/// The commands that place the tables.
fn loader(fixups: &[Fixup]) -> Vec<u8> {
    let file = |part| match part {
        Part::Rsdp => name(ACPI_RSDP),
        Part::Tables => name(ACPI_TABLES),
    };
    let number = |value: usize| (value as u32).to_le_bytes().to_vec();
    let mut commands = vec![
        (ALLOCATE, vec![name(ACPI_RSDP), number(16), vec![ZONE_LOW]]),
        (
            ALLOCATE,
            vec![name(ACPI_TABLES), number(64), vec![ZONE_HIGH]],
        ),
    ];
    commands.extend(fixups.iter().map(|fixup| match *fixup {
        Fixup::Pointer { part, at, len } => {
            let fields = vec![file(part), name(ACPI_TABLES), number(at), vec![len as u8]];
            (ADD_POINTER, fields)
        }
        Fixup::Checksum {
            part,
            at,
            start,
            len,
        } => {
            let fields = vec![file(part), number(at), number(start), number(len)];
            (ADD_CHECKSUM, fields)
        }
    }));
    let mut bytes = Vec::new();
    for (command, fields) in commands {
        let end = bytes.len() + COMMAND_LEN;
        bytes.extend_from_slice(&command.to_le_bytes());
        bytes.extend_from_slice(&fields.concat());
        bytes.resize(end, 0);
    }
    bytes
}

/// A file's name as commands have it.
fn name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(MAX_NAME + 1, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8]) -> usize {
        u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize
    }

    fn text(bytes: &[u8]) -> &str {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap();
        std::str::from_utf8(&bytes[..end]).unwrap()
    }

    /// Carries out the commands as firmware does, with the tables at `base`.
    fn place(tables: &acpi::Tables, base: u32) -> (Vec<u8>, Vec<u8>) {
        let mut files = [tables.rsdp.clone(), tables.tables.clone()];
        let index = |bytes: &[u8]| usize::from(text(bytes) == ACPI_TABLES);
        for command in loader(&tables.fixups).chunks(COMMAND_LEN) {
            let fields = &command[4..];
            let file = &mut files[index(fields)];
            match word(command) as u32 {
                ALLOCATE => assert_eq!(fields[60], if text(fields) == ACPI_RSDP { 2 } else { 1 }),
                ADD_POINTER => {
                    assert_eq!(text(&fields[56..]), ACPI_TABLES);
                    let (at, len) = (word(&fields[112..]), usize::from(fields[116]));
                    let mut number = [0; 8];
                    number[..len].copy_from_slice(&file[at..at + len]);
                    let sum = u64::from_le_bytes(number) + u64::from(base);
                    file[at..at + len].copy_from_slice(&sum.to_le_bytes()[..len]);
                }
                ADD_CHECKSUM => {
                    let (at, start, len) = (
                        word(&fields[56..]),
                        word(&fields[60..]),
                        word(&fields[64..]),
                    );
                    let sum = file[start..start + len]
                        .iter()
                        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
                    file[at] = file[at].wrapping_sub(sum);
                }
                other => panic!("command {other}"),
            }
        }
        let [rsdp, tables] = files;
        (rsdp, tables)
    }

    #[test]
    fn firmware_places_the_same_tables_as_we_do() {
        let description = acpi::Description {
            cpus: 2,
            pci_hole: 0xc000_0000,
            ..acpi::Description::default()
        };
        let tables = acpi::Tables::new(&description);
        let base = 0x3ffe_0000;
        assert_eq!(place(&tables, base), tables.placed_at(base));
    }

    #[test]
    fn the_boot_order_names_a_kernel_and_functions_in_hexadecimal() {
        let at = |slot, function| Address { slot, function };
        let mut description = Description::default();
        assert_eq!(boot_order(&description), b"");
        description.boot_order = vec![at(10, 0), at(2, 1)];
        assert_eq!(
            boot_order(&description),
            b"/pci@i0cf8/ethernet@a\n/pci@i0cf8/ethernet@2,1\n\0"
        );
        description.boot_order.truncate(1);
        description.kernel = true;
        assert_eq!(
            boot_order(&description),
            b"/rom@genroms/kernel.bin\n/pci@i0cf8/ethernet@a\n\0"
        );
    }

    #[test]
    fn memory_above_4_gib_is_told_if_there_is_any() {
        let mut description = smbios::Description {
            memory_below_4g: 64 << 20,
            ..smbios::Description::default()
        };
        assert_eq!(e820(&description).len(), 20);
        description.memory_above_4g = 1 << 30;
        let map = e820(&description);
        assert_eq!(map.len(), 40);
        assert_eq!(map[20..28], (4_u64 << 30).to_le_bytes());
    }
}

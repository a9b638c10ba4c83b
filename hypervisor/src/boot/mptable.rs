//! The MP table (Intel MultiProcessor Specification 1.4), for guests without ACPI. SeaBIOS makes its own.

use super::acpi::{IO_APIC, IO_APIC_ID, LOCAL_APIC};
use super::complement;
use crate::pci::Address;

/// Bytes of the floating pointer.
const POINTER_LEN: usize = 16;

/// The bus numbers in the table.
const PCI: u8 = 0;
const ISA: u8 = 1;

/// Active high and level; 0 is what the bus has.
const LEVEL: u8 = 0b1101;

/// The floating pointer structure with the table behind it, for `address`. There are `cpus` processors, and the PCI
/// functions `interrupts` with the lines of their INTA#.
pub fn table(cpus: u8, interrupts: &[(Address, u8)], address: u32) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count = 0_u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..cpus {
        // Enabled, the first one boots; a processor with FPU, CX8 and APIC.
        let flags = if id == 0 { 0b11 } else { 0b01 };
        let mut entry = [0; 20];
        let (head, features) = ([0, id, 0x14, flags, 0, 6, 0, 0], 0x301_u32.to_le_bytes());
        entry
            .iter_mut()
            .zip(head.into_iter().chain(features))
            .for_each(|(to, from)| *to = from);
        add(&entry);
    }
    add(&[1, PCI, b'P', b'C', b'I', b' ', b' ', b' ']);
    add(&[1, ISA, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = IO_APIC.to_le_bytes();
    add(&[2, IO_APIC_ID, 0x11, 1, a, b, c, d]);
    for &(function, line) in interrupts {
        add(&[3, 0, LEVEL, 0, PCI, function.slot << 2, IO_APIC_ID, line]);
    }
    let taken = |line: u8| line == 2 || interrupts.iter().any(|&(_, pci)| pci == line);
    for line in (0..16).filter(|&line| !taken(line)) {
        // The PIT is wired to input 2.
        let input = if line == 0 { 2 } else { line };
        add(&[3, 0, 0, 0, ISA, line, IO_APIC_ID, input]);
    }
    // The PICs at LINT0, NMIs at LINT1, of all processors.
    add(&[4, 3, 0, 0, ISA, 0, 0xff, 0]);
    add(&[4, 1, 0, 0, ISA, 0, 0xff, 1]);

    let mut config = b"PCMP".to_vec();
    config.extend_from_slice(&(44 + entries.len() as u16).to_le_bytes());
    config.extend_from_slice(&[4, 0]);
    config.extend_from_slice(b"VSWITCH VM          ");
    config.extend_from_slice(&[0; 6]);
    config.extend_from_slice(&count.to_le_bytes());
    config.extend_from_slice(&LOCAL_APIC.to_le_bytes());
    config.extend_from_slice(&[0; 4]);
    config.extend_from_slice(&entries);
    complement(&mut config, 7);

    let mut table = b"_MP_".to_vec();
    table.extend_from_slice(&(address + POINTER_LEN as u32).to_le_bytes());
    table.extend_from_slice(&[1, 4, 0, 0, 0, 0, 0, 0]);
    complement(&mut table, 10);
    table.extend_from_slice(&config);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointer_and_table_add_up_and_all_entries_are_counted() {
        let interrupts = [
            (
                Address {
                    slot: 2,
                    function: 0,
                },
                10,
            ),
            (
                Address {
                    slot: 3,
                    function: 0,
                },
                11,
            ),
        ];
        let table = table(4, &interrupts, 0x9_fc00);
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        let (pointer, config) = table.split_at(POINTER_LEN);
        assert_eq!((sum(pointer), sum(config)), (0, 0));
        assert_eq!(pointer[4..8], 0x9_fc10_u32.to_le_bytes());
        assert_eq!(config[4..6], (config.len() as u16).to_le_bytes());
        let (mut at, mut kinds) = (44, [0_u16; 5]);
        while at < config.len() {
            kinds[usize::from(config[at])] += 1;
            at += if config[at] == 0 { 20 } else { 8 };
        }
        // Two PCI interrupts; ISA's 16 without the cascade and those two.
        assert_eq!(kinds, [4, 2, 1, 2 + 13, 2]);
        assert_eq!(config[34..36], kinds.iter().sum::<u16>().to_le_bytes());
    }
}

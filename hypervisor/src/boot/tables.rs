//! Where the tables of a guest are that is started without firmware: in the 128 KiB below 1 MiB, which a PC keeps for its
//! firmware, and where operating systems look.

use super::{acpi, mptable, smbios};

/// Address of the ACPI root pointer. A boot protocol that has a place for it should say it.
pub const RSDP: u64 = 0xe_0000;

const ACPI: u32 = RSDP as u32 + 0x40;
const MP: u32 = 0xf_0000;
const SMBIOS: u32 = 0xf_1000;
const SMBIOS_STRUCTURES: u32 = SMBIOS + 0x20;

/// The tables, each with its address. All lie in 0xe0000 to 0xfffff, which is memory, and not to be given to the guest
/// as such.
pub fn place(acpi: &acpi::Description, smbios: &smbios::Description) -> Vec<(u64, Vec<u8>)> {
    let mp = mptable::table(acpi.cpus, &acpi.interrupts, MP);
    let (rsdp, tables) = acpi::Tables::new(acpi).placed_at(ACPI);
    let (anchor, structures) = smbios::tables(smbios, SMBIOS_STRUCTURES);
    vec![
        (RSDP, rsdp),
        (ACPI.into(), tables),
        (MP.into(), mp),
        (SMBIOS.into(), anchor),
        (SMBIOS_STRUCTURES.into(), structures),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Address;

    #[test]
    fn the_largest_tables_have_their_places_to_themselves() {
        let acpi = acpi::Description {
            cpus: 64,
            pci_hole: 0xc000_0000,
            interrupts: (2..14)
                .map(|slot| (Address { slot, function: 0 }, 10))
                .collect(),
            vmbus: true,
        };
        let smbios = smbios::Description {
            cpus: 64,
            memory_below_4g: 3 << 30,
            memory_above_4g: 61 << 30,
            name: "n".repeat(64),
            firmware: true,
            ..smbios::Description::default()
        };
        let mut places = place(&acpi, &smbios);
        places.push((0x10_0000, Vec::new()));
        for pair in places.windows(2) {
            assert!(
                pair[0].0 + pair[0].1.len() as u64 <= pair[1].0,
                "{:#x}",
                pair[0].0
            );
        }
    }
}

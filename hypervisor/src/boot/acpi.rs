//! ACPI tables (Advanced Configuration and Power Interface Specification 6.5): RSDP, RSDT, XSDT, FADT, FACS, MADT, DSDT.
//!
//! The DSDT has no methods, only names with constant values, and few of them: where KVM emulates the guest's kernel, its
//! AML interpreter runs at some million instructions a second.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Name, Package, PackageBuilder, Path,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use crate::chipset::{LEVEL_LINES, piix4, rtc, serial};
use crate::pci::Address;

const OEM: [u8; 6] = *b"VSWTCH";
const OEM_TABLE: [u8; 8] = *b"VSWITCH ";
const OEM_REVISION: u32 = 1;

/// Physical address of the local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Physical address of the I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Identifier of the I/O APIC.
pub const IO_APIC_ID: u8 = 0;

/// Where memory of the virtual machine bus's devices may lie: between the local APICs and the I/O APIC.
const VMBUS_MEMORY: u32 = 0xfed8_0000;
const VMBUS_MEMORY_LEN: u32 = 0x8_0000;

/// Bytes of an RSDP.
pub const RSDP_LEN: usize = 36;

/// What the tables describe.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// Processors, 1 to 64; their APIC identifiers are 0, 1 and so on.
    pub cpus: u8,
    /// First address of the hole below 4 GiB where PCI functions have their memory.
    pub pci_hole: u32,
    /// The PCI functions with an interrupt pin, and the line that firmware routes INTA# to.
    pub interrupts: Vec<(Address, u8)>,
    /// There is a virtual machine bus of Hyper-V.
    pub vmbus: bool,
}

/// A byte string of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The root pointer.
    Rsdp,
    /// All the tables.
    Tables,
}

/// What is to be done once it is known where the tables are. In this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fixup {
    /// The little-endian number of `len` bytes at `at` is an offset into the tables: add their address.
    Pointer {
        /// Where the number is.
        part: Part,
        /// Its offset there.
        at: usize,
        /// Its length in bytes, 4 or 8.
        len: usize,
    },
    /// The byte at `at` makes the bytes from `start` on add up to 0.
    Checksum {
        /// Where the byte is.
        part: Part,
        /// Its offset there.
        at: usize,
        /// The first byte that is summed.
        start: usize,
        /// How many are.
        len: usize,
    },
}

/// The tables, not yet placed.
#[derive(Clone, Debug)]
pub struct Tables {
    /// The root pointer, to be placed at a multiple of 16.
    pub rsdp: Vec<u8>,
    /// The tables, to be placed at a multiple of 64 below 4 GiB.
    pub tables: Vec<u8>,
    /// What to do then.
    pub fixups: Vec<Fixup>,
}

/// Offset of the checksum in a table's header.
const CHECKSUM: usize = 9;

impl Tables {
    /// The tables of a machine.
    pub fn new(description: &Description) -> Self {
        let mut made = Self {
            rsdp: Vec::new(),
            tables: Vec::new(),
            fixups: Vec::new(),
        };
        // The FACS comes first, since it wants the alignment.
        let facs = made.add(&bytes(&FACS::new()));
        let dsdt = made.add(&dsdt(description));
        let fadt = made.add(&fadt(facs, dsdt));
        for (field, len) in [(36, 4), (40, 4), (140, 8)] {
            made.point(Part::Tables, fadt + field, len);
        }
        made.sum_table(fadt);
        let madt = made.add(&madt(description));
        let entries = [fadt, madt];
        let rsdt = made.add_root(*b"RSDT", &entries, 4);
        let xsdt = made.add_root(*b"XSDT", &entries, 8);
        made.add_rsdp(rsdt, xsdt);
        made
    }

    /// The tables as they are at `address`, and the root pointer to them.
    pub fn placed_at(mut self, address: u32) -> (Vec<u8>, Vec<u8>) {
        for fixup in std::mem::take(&mut self.fixups) {
            match fixup {
                Fixup::Pointer { part, at, len } => {
                    let field = self.field(part, at, len);
                    let mut number = [0; 8];
                    number
                        .iter_mut()
                        .zip(&*field)
                        .for_each(|(to, from)| *to = *from);
                    let sum = u64::from_le_bytes(number) + u64::from(address);
                    field
                        .iter_mut()
                        .zip(sum.to_le_bytes())
                        .for_each(|(to, from)| *to = from);
                }
                Fixup::Checksum {
                    part,
                    at,
                    start,
                    len,
                } => {
                    let summed = self.field(part, start, len).iter();
                    let sum = summed.fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
                    let field = self.field(part, at, 1).iter_mut();
                    field.for_each(|byte| *byte = byte.wrapping_sub(sum));
                }
            }
        }
        (self.rsdp, self.tables)
    }

    fn field(&mut self, part: Part, at: usize, len: usize) -> &mut [u8] {
        let bytes = match part {
            Part::Rsdp => &mut self.rsdp,
            Part::Tables => &mut self.tables,
        };
        bytes.get_mut(at..at + len).unwrap_or_default()
    }

    /// Appends a table; says its offset.
    fn add(&mut self, table: &[u8]) -> usize {
        let at = self.tables.len().next_multiple_of(16);
        self.tables.resize(at, 0);
        self.tables.extend_from_slice(table);
        at
    }

    fn point(&mut self, part: Part, at: usize, len: usize) {
        self.fixups.push(Fixup::Pointer { part, at, len });
    }

    fn sum(&mut self, part: Part, at: usize, start: usize, len: usize) {
        self.field(part, at, 1).fill(0);
        self.fixups.push(Fixup::Checksum {
            part,
            at,
            start,
            len,
        });
    }

    /// The checksum of the table at `at`, which is the last one, depends on where the tables are.
    fn sum_table(&mut self, at: usize) {
        let len = self.tables.len() - at;
        self.sum(Part::Tables, at + CHECKSUM, at, len);
    }

    /// Appends a table of pointers of `len` bytes.
    fn add_root(&mut self, signature: [u8; 4], entries: &[usize], len: usize) -> usize {
        let mut sdt = Sdt::new(signature, 36, 1, OEM, OEM_TABLE, OEM_REVISION);
        for entry in entries {
            let number = (*entry as u64).to_le_bytes();
            sdt.append_slice(number.get(..len).unwrap_or_default());
        }
        let at = self.add(sdt.as_slice());
        for index in 0..entries.len() {
            self.point(Part::Tables, at + 36 + index * len, len);
        }
        self.sum_table(at);
        at
    }

    fn add_rsdp(&mut self, rsdt: usize, xsdt: usize) {
        self.rsdp.extend_from_slice(b"RSD PTR \0");
        self.rsdp.extend_from_slice(&OEM);
        self.rsdp.push(2);
        self.rsdp.extend_from_slice(&(rsdt as u32).to_le_bytes());
        self.rsdp
            .extend_from_slice(&(RSDP_LEN as u32).to_le_bytes());
        self.rsdp.extend_from_slice(&(xsdt as u64).to_le_bytes());
        self.rsdp.resize(RSDP_LEN, 0);
        self.point(Part::Rsdp, 16, 4);
        self.point(Part::Rsdp, 24, 8);
        self.sum(Part::Rsdp, 8, 0, 20);
        self.sum(Part::Rsdp, 32, 0, RSDP_LEN);
    }
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

/// The fixed hardware: power management, the reset register, no keyboard controller to look for, no graphics. ACPI is always
/// on, so there is no command that switches it on.
fn fadt(facs: usize, dsdt: usize) -> Vec<u8> {
    let port = |offset: u8| (u32::from(piix4::PM_BASE) + u32::from(offset)).into();
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = (dsdt as u64).into();
    fadt.sci_int = u16::from(piix4::SCI).into();
    fadt.pm1a_evt_blk = port(piix4::PM1_EVENT);
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = port(piix4::PM1_CONTROL);
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = port(piix4::PM_TIMER);
    fadt.pm_tmr_len = 4;
    // Latencies above 100 and 1000 microseconds: C2 and C3 are not there.
    fadt.p_lvl2_lat = 0x0fff.into();
    fadt.p_lvl3_lat = 0x0fff.into();
    fadt.century = rtc::CENTURY;
    // Legacy devices on ISA; no graphics.
    fadt.iapc_boot_arch = (1 << 0 | 1 << 2).into();
    fadt.reset_reg = GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, 0xcf9);
    fadt.reset_value = 0x06;
    bytes(&fadt.finalize())
}

/// The interrupt controllers.
fn madt(description: &Description) -> Vec<u8> {
    let mut sdt = Sdt::new(*b"APIC", 44, 4, OEM, OEM_TABLE, OEM_REVISION);
    sdt.write_u32(36, LOCAL_APIC);
    // There are PICs too.
    sdt.write_u32(40, 1);
    for id in 0..description.cpus {
        sdt.append_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    let mut io_apic = vec![1, 12, IO_APIC_ID, 0];
    io_apic.extend_from_slice(&IO_APIC.to_le_bytes());
    io_apic.extend_from_slice(&0_u32.to_le_bytes());
    sdt.append_slice(&io_apic);
    // The PIT is wired to input 2; its signal conforms to the bus.
    sdt.append_slice(&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    for line in (0..16).filter(|line| LEVEL_LINES & (1 << line) != 0) {
        // Active high, level.
        sdt.append_slice(&[2, 10, 0, line, line, 0, 0, 0, 0b1101, 0]);
    }
    // NMIs arrive at LINT1 of all processors.
    sdt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    sdt.as_slice().to_vec()
}

fn dsdt(description: &Description) -> Vec<u8> {
    let mut sdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    let off = piix4::SLEEP_OFF;
    let sleep = Package::new(vec![&off, &off, &ZERO, &ZERO]);
    let mut aml = bytes(&Name::new(Path::new("_S5_"), &sleep));
    let pci = Pci(description);
    let com1 = Com(1, serial::COM1, 4);
    let com2 = Com(2, serial::COM2, 3);
    let mut devices: Vec<&dyn Aml> = vec![&pci, &com1, &com2];
    if description.vmbus {
        devices.push(&Vmbus);
    }
    Scope::new(Path::new("_SB_"), devices).to_aml_bytes(&mut aml);
    sdt.append_slice(&aml);
    sdt.as_slice().to_vec()
}

/// The virtual machine bus in its module device. Its drivers are bound by these names; all else they learn from the bus. The
/// memory is for its devices to be placed in, of which none has any so far.
struct Vmbus;

impl Aml for Vmbus {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let memory = AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            VMBUS_MEMORY,
            VMBUS_MEMORY + VMBUS_MEMORY_LEN - 1,
            None,
        );
        let memory = ResourceTemplate::new(vec![&memory]);
        let nothing = ResourceTemplate::new(Vec::new());
        let bus: [Name; 3] = [
            Name::new(Path::new("_HID"), &"VMBus"),
            Name::new(Path::new("_UID"), &ZERO),
            Name::new(Path::new("_CRS"), &nothing),
        ];
        let bus = bus.iter().map(|name| name as &dyn Aml).collect();
        let bus = Device::new(Path::new("VMBS"), bus);
        let module: [Name; 3] = [
            Name::new(Path::new("_HID"), &"ACPI0004"),
            Name::new(Path::new("_UID"), &ZERO),
            Name::new(Path::new("_CRS"), &memory),
        ];
        let mut module: Vec<_> = module.iter().map(|name| name as &dyn Aml).collect();
        module.push(&bus);
        Device::new(Path::new("VMOD"), module).to_aml_bytes(sink);
    }
}

/// An interrupt line in a resource list: `IRQNoFlags`, an edge.
struct Line(u8);

impl Aml for Line {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << (self.0 & 15));
    }
}

/// A COM port: its number, ports and line.
struct Com(u8, u16, u8);

impl Aml for Com {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let Self(number, port, line) = *self;
        let (ports, line) = (IO::new(port, port, 8, 8), Line(line));
        let resources = ResourceTemplate::new(vec![&ports, &line]);
        let name = if number == 1 { "COM1" } else { "COM2" };
        let children: [Name; 3] = [
            Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            Name::new(Path::new("_UID"), &number),
            Name::new(Path::new("_CRS"), &resources),
        ];
        let children = children.iter().map(|name| name as &dyn Aml).collect();
        Device::new(Path::new(name), children).to_aml_bytes(sink);
    }
}

/// The host bridge: what it passes on to its bus, and the interrupts of the functions there.
struct Pci<'a>(&'a Description);

impl Aml for Pci<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let buses = AddressSpace::new_bus_number(0_u16, 0xff);
        let config = IO::new(0xcf8, 0xcf8, 1, 8);
        let low_ports = AddressSpace::new_io(0_u16, 0xcf7, None);
        let ports = AddressSpace::new_io(0xd00_u16, 0xffff, None);
        let memory = AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            self.0.pci_hole,
            IO_APIC - 1,
            None,
        );
        let resources = ResourceTemplate::new(vec![&buses, &config, &low_ports, &ports, &memory]);
        let mut routes = PackageBuilder::new();
        for (address, line) in &self.0.interrupts {
            let function = u32::from(address.slot) << 16 | 0xffff;
            // INTA#; no link device, so the last number is the interrupt.
            routes.add_element(&Package::new(vec![&function, &ZERO, &ZERO, line]));
        }
        let children: [Name; 3] = [
            Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")),
            Name::new(Path::new("_CRS"), &resources),
            Name::new(Path::new("_PRT"), &routes),
        ];
        let children = children.iter().map(|name| name as &dyn Aml).collect();
        Device::new(Path::new("PCI0"), children).to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description() -> Description {
        Description {
            cpus: 3,
            pci_hole: 0xc000_0000,
            interrupts: vec![
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
            ],
            vmbus: false,
        }
    }

    fn word(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    const BASE: usize = 0xe_0040;

    /// The table that a pointer says, checked.
    fn table(tables: &[u8], pointer: usize) -> &[u8] {
        let at = pointer - BASE;
        let table = &tables[at..at + word(tables, at + 4)];
        assert_eq!(sum(table), 0, "{:?}", std::str::from_utf8(&table[..4]));
        table
    }

    #[test]
    fn placed_tables_lead_from_the_root_to_everything() {
        let (rsdp, tables) = Tables::new(&description()).placed_at(BASE as u32);
        assert_eq!((&rsdp[..8], rsdp.len()), (&b"RSD PTR "[..], RSDP_LEN));
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let rsdt = table(&tables, word(&rsdp, 16));
        let xsdt = table(&tables, word(&rsdp, 24));
        assert_eq!((&rsdt[..4], &xsdt[..4]), (&b"RSDT"[..], &b"XSDT"[..]));
        assert_eq!((rsdt.len(), xsdt.len()), (44, 52));
        assert_eq!(
            (word(rsdt, 36), word(rsdt, 40)),
            (word(xsdt, 36), word(xsdt, 44))
        );
        let fadt = table(&tables, word(rsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        let dsdt = table(&tables, word(fadt, 40));
        assert_eq!(&dsdt[..4], b"DSDT");
        assert_eq!(word(fadt, 140), word(fadt, 40));
        let facs = word(fadt, 36);
        assert_eq!((&tables[facs - BASE..][..4], facs % 64), (&b"FACS"[..], 0));
        assert_eq!(&table(&tables, word(rsdt, 40))[..4], b"APIC");
    }

    #[test]
    fn the_fixed_hardware_is_where_the_chipset_has_it() {
        let fadt = fadt(0, 0);
        assert_eq!(u16::from_le_bytes([fadt[46], fadt[47]]), 9, "SCI");
        assert_eq!(word(&fadt, 48), 0, "no SMI command: ACPI is on");
        assert_eq!((word(&fadt, 56), fadt[88]), (0x600, 4), "PM1 event");
        assert_eq!((word(&fadt, 64), fadt[89]), (0x604, 2), "PM1 control");
        assert_eq!((word(&fadt, 76), fadt[91]), (0x608, 4), "PM timer");
        assert_eq!(fadt[108], 0x32, "century");
        assert_eq!(
            (fadt[116], word(&fadt, 120), fadt[128]),
            (1, 0xcf9, 6),
            "reset"
        );
    }

    #[test]
    fn every_processor_and_level_line_is_told() {
        for cpus in [1, 3, 64] {
            let madt = madt(&Description {
                cpus,
                ..description()
            });
            let mut at = 44;
            let mut seen = Vec::new();
            while at < madt.len() {
                let entry = &madt[at..at + usize::from(madt[at + 1])];
                seen.push((entry[0], entry[3]));
                if entry[0] == 0 {
                    assert_eq!(
                        (entry[2], entry[4]),
                        (entry[3], 1),
                        "enabled, and its own number"
                    );
                }
                at += entry.len();
            }
            assert_eq!((at, word(&madt, 4)), (madt.len(), madt.len()));
            assert_eq!(sum(&madt), 0);
            let processors: Vec<(u8, u8)> = (0..cpus).map(|id| (0, id)).collect();
            let overrides = [(2, 0), (2, 9), (2, 10), (2, 11)];
            assert_eq!(
                seen,
                [&processors[..], &[(1, 0)], &overrides, &[(4, 0)]].concat()
            );
        }
    }

    #[test]
    fn the_dsdt_stays_small() {
        let len = dsdt(&description()).len();
        assert!(len < 400, "{len} bytes");
    }

    #[test]
    fn drivers_of_the_virtual_machine_bus_find_it() {
        let mut description = description();
        let finds = |table: &[u8], name: &[u8]| table.windows(name.len()).any(|at| at == name);
        assert!(!finds(&dsdt(&description), b"VMBus\0"));
        description.vmbus = true;
        let table = dsdt(&description);
        assert_eq!(sum(&table), 0);
        for name in [&b"VMBus\0"[..], b"ACPI0004\0"] {
            assert!(finds(&table, name));
        }
    }
}

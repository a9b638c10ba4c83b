//! Linux without firmware, by the kernel's 64-bit boot protocol (Documentation/arch/x86/boot.rst): bzImage or an
//! uncompressed ELF kernel, initrd, command line.
//!
//! ```text
//! 0x0000_0500   descriptor table          0x0000_9000   page tables: the first 4 GiB, address for address
//! 0x0000_7000   zero page                 0x0002_0000   command line
//! below the end of low memory             initrd
//! ```

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};

use kvm_bindings::kvm_segment;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Elf, KernelLoader as _, KernelLoaderResult};
use vm_memory::{ByteValued as _, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::real_mode::fits_command_line;
use crate::Error;
use crate::kvm::Vcpu;
use crate::memory::{EXTENDED, GuestMemory, HIGH_MEMORY, PCI_HOLE};

const GDT: u64 = 0x500;
const ZERO_PAGE: u64 = 0x7000;
const PAGE_TABLES: u64 = 0x9000;
const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line in bytes, without its final zero: what today's kernels take.
pub const MAX_COMMAND_LINE: usize = 2047;
/// Ordinary memory ends here; up to 1 MiB follow an extended BIOS data area and tables.
const CONVENTIONAL_END: u64 = 0x9_fc00;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// The entry point for 64-bit mode, from the kernel's start.
const ENTRY_64: u64 = 0x200;
/// "HdrS", and the number of a loader without a registered one.
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xff;

/// A Linux kernel and what it is given.
#[derive(Debug)]
pub struct Linux {
    /// A bzImage or an ELF file, of a 64-bit kernel.
    pub kernel: File,
    /// The initial file system.
    pub initrd: Option<File>,
    /// The command line: up to [`MAX_COMMAND_LINE`] bytes without a zero.
    pub command_line: String,
    /// Tables of the platform (ACPI, SMBIOS, MP) by address, below 1 MiB.
    pub tables: Vec<(u64, Vec<u8>)>,
    /// Address of the ACPI root pointer among them, 0 if there is none.
    pub rsdp: u64,
}

impl Linux {
    pub(super) fn load(&mut self, memory: &GuestMemory, first: &Vcpu) -> Result<(), Error> {
        if self.command_line.len() > MAX_COMMAND_LINE || self.command_line.contains('\0') {
            return Err(Error::Config {
                what: "command line",
                value: format!("of {} bytes", self.command_line.len()),
                allowed: "up to 2047 bytes without a zero",
            });
        }
        let view = view(memory)?;
        let (kernel, entry) = load_kernel(&view, &mut self.kernel)?;
        // An ELF file does not say how much it takes.
        if let Some(header) = &kernel.setup_header {
            fits_command_line(&self.command_line, header.cmdline_size as usize)?;
        }
        let mut line = self.command_line.clone().into_bytes();
        line.push(0);
        memory.write("command line", COMMAND_LINE, &line)?;
        let initrd = match &mut self.initrd {
            Some(file) => load_initrd(&view, memory.size(), &kernel, file)?,
            None => (0, 0),
        };
        for (address, bytes) in &self.tables {
            if address.saturating_add(bytes.len() as u64) > EXTENDED {
                return Err(Error::Config {
                    what: "address of a table",
                    value: format!("{address:#x}"),
                    allowed: "below 1 MiB",
                });
            }
            memory.write("table", *address, bytes)?;
        }
        let mut params = boot_params {
            hdr: kernel.setup_header.unwrap_or(setup_header {
                header: HEADER_MAGIC,
                kernel_alignment: 0x100_0000,
                ..Default::default()
            }),
            acpi_rsdp_addr: self.rsdp,
            ..Default::default()
        };
        params.hdr.type_of_loader = LOADER_UNDEFINED;
        params.hdr.boot_flag = 0xaa55;
        params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
        params.hdr.cmdline_size = line.len() as u32;
        (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = initrd;
        let map = e820(memory.size());
        params.e820_entries = map.len() as u8;
        for (to, entry) in params.e820_table.iter_mut().zip(map) {
            *to = entry;
        }
        memory.write("zero page", ZERO_PAGE, params.as_slice())?;
        enter_long_mode(memory, first, entry)
    }
}

/// The guest's memory as the loader wants it.
fn view(memory: &GuestMemory) -> Result<GuestMemoryMmap, Error> {
    let low = memory.size().min(PCI_HOLE);
    let mut parts = vec![(0, low, 0)];
    if memory.size() > low {
        parts.push((HIGH_MEMORY, memory.size() - low, low));
    }
    let mut ranges = Vec::new();
    for (address, len, offset) in parts {
        let fd = memory.fd().try_clone();
        let file = File::from(fd.map_err(Error::system("F_DUPFD_CLOEXEC"))?);
        let file = Some(FileOffset::new(file, offset));
        ranges.push((GuestAddress(address), len as usize, file));
    }
    GuestMemoryMmap::from_ranges_with_files(ranges)
        .map_err(|error| image_error("guest memory", error))
}

fn image_error(what: &'static str, error: impl ToString) -> Error {
    Error::Image {
        what,
        why: error.to_string(),
    }
}

/// Loads the kernel; gives what the loader says and the entry point.
fn load_kernel(
    view: &impl GuestMemoryBackend,
    file: &mut File,
) -> Result<(KernelLoaderResult, u64), Error> {
    let failed = |error| image_error("kernel", error);
    let mut magic = [0; 4];
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_exact(&mut magic))
        .map_err(|error| image_error("kernel", error))?;
    if &magic == b"\x7fELF" {
        let start = Some(GuestAddress(EXTENDED));
        let loaded = Elf::load(view, None, file, start).map_err(failed)?;
        let entry = loaded.kernel_load.0;
        return Ok((loaded, entry));
    }
    let loaded = BzImage::load(view, None, file, Some(GuestAddress(EXTENDED))).map_err(failed)?;
    let header = loaded.setup_header.unwrap_or_default();
    // What the decompressor needs behind its start.
    let end = loaded
        .kernel_load
        .0
        .saturating_add(u64::from(header.init_size));
    let last = GuestAddress(end.saturating_sub(1));
    if !view.address_in_range(last) {
        return Err(image_error(
            "kernel",
            format!("it needs memory up to {end:#x}"),
        ));
    }
    let entry = loaded.kernel_load.0 + ENTRY_64;
    Ok((loaded, entry))
}

/// Loads the initrd at the end of low memory; gives its address and size.
fn load_initrd(
    view: &impl GuestMemoryBackend,
    size: u64,
    kernel: &KernelLoaderResult,
    file: &mut File,
) -> Result<(u32, u32), Error> {
    use vm_memory::Bytes as _;
    let failed = |error: std::io::Error| image_error("initrd", error);
    let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let header = kernel.setup_header.unwrap_or_default();
    let (highest, kernel_end) = match header.initrd_addr_max {
        0 => (size.min(PCI_HOLE), kernel.kernel_end),
        max => {
            let needed = kernel.kernel_load.0 + u64::from(header.init_size);
            (size.min(PCI_HOLE).min(u64::from(max) + 1), needed)
        }
    };
    let start = highest.checked_sub(len).map(|start| start & !0xfff);
    let Some(start) = start.filter(|&start| start >= kernel_end.max(EXTENDED)) else {
        let why = format!(
            "its {len} bytes do not fit between the kernel, which ends at {kernel_end:#x}, and {highest:#x}"
        );
        return Err(image_error("initrd", why));
    };
    view.read_exact_volatile_from(GuestAddress(start), file, len as usize)
        .map_err(|error| image_error("initrd", error))?;
    Ok((start as u32, len as u32))
}

/// The memory map that the kernel is told.
fn e820(size: u64) -> Vec<boot_e820_entry> {
    let low = size.min(PCI_HOLE);
    let entry = |addr, end: u64, kind| boot_e820_entry {
        addr,
        size: end - addr,
        r#type: kind,
    };
    let mut map = vec![
        entry(0, CONVENTIONAL_END, E820_RAM),
        entry(CONVENTIONAL_END, EXTENDED, E820_RESERVED),
        entry(EXTENDED, low, E820_RAM),
    ];
    if size > low {
        map.push(entry(HIGH_MEMORY, HIGH_MEMORY + (size - low), E820_RAM));
    }
    map
}

/// Puts the first processor at `entry` in 64-bit mode with the registers that the protocol asks for.
fn enter_long_mode(memory: &GuestMemory, first: &Vcpu, entry: u64) -> Result<(), Error> {
    // The selectors that the protocol names: code at 0x10, data at 0x18.
    const CODE: u64 = 0x00af_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    let gdt: Vec<u8> = [0, 0, CODE, DATA]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect();
    memory.write("descriptor table", GDT, &gdt)?;
    memory.write("page tables", PAGE_TABLES, &page_tables())?;

    let mut sregs = first
        .fd()
        .get_sregs()
        .map_err(Error::kvm("KVM_GET_SREGS"))?;
    let code = kvm_segment {
        limit: 0xffff_ffff,
        selector: 0x10,
        type_: 0xb,
        present: 1,
        l: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: 0x18,
        type_: 0x3,
        l: 0,
        db: 1,
        ..code
    };
    sregs.cs = code;
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, gdt.len() as u16 - 1);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr0 |= 1 << 31 | 1 << 0; // PG, PE
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 |= 1 << 5; // PAE
    sregs.efer |= 1 << 10 | 1 << 8; // LMA, LME
    first
        .fd()
        .set_sregs(&sregs)
        .map_err(Error::kvm("KVM_SET_SREGS"))?;
    let regs = kvm_bindings::kvm_regs {
        rip: entry,
        rsi: ZERO_PAGE,
        rflags: 2,
        ..Default::default()
    };
    first
        .fd()
        .set_regs(&regs)
        .map_err(Error::kvm("KVM_SET_REGS"))
}

/// Page tables that map the first 4 GiB in 2 MiB pages: top level, one table of 1 GiB entries, four of 2 MiB entries.
fn page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const TABLE: u64 = 4096;
    let table = |entries: Vec<u64>| {
        let mut entries = entries;
        entries.resize(512, 0);
        entries
    };
    let top = table(vec![(PAGE_TABLES + TABLE) | PRESENT_WRITABLE]);
    let second = (2..6).map(|index| (PAGE_TABLES + index * TABLE) | PRESENT_WRITABLE);
    let third = (0..4 * 512).map(|index| index << 21 | LARGE | PRESENT_WRITABLE);
    top.into_iter()
        .chain(table(second.collect()))
        .chain(third)
        .flat_map(u64::to_le_bytes)
        .collect()
}

#[cfg(test)]
mod tests;

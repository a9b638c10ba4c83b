use std::io::Write as _;
use std::sync::Arc;

use super::*;
use crate::device::{Device as _, Effects};
use crate::memory::GuestMemory;

const MEMORY: u64 = 32 << 20;

/// A file of these bytes.
pub(in crate::boot) fn file(bytes: &[u8]) -> File {
    let fd = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(fd);
    file.write_all(bytes).unwrap();
    file
}

/// A kernel of 1 KiB setup part, and 16 bytes.
fn kernel(version: u16, xloadflags: u16, cmdline_size: u32) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[field::SECTORS] = 1;
    put(&mut image, field::MAGIC, b"HdrS");
    put(&mut image, field::VERSION, &version.to_le_bytes());
    image[field::LOADFLAGS] = LOADED_HIGH;
    put(
        &mut image,
        field::INITRD_ADDR_MAX,
        &0x7f_ffff_u32.to_le_bytes(),
    );
    put(&mut image, field::XLOADFLAGS, &xloadflags.to_le_bytes());
    put(&mut image, field::CMDLINE_SIZE, &cmdline_size.to_le_bytes());
    image.extend([0x5a; 16]);
    image
}

/// Hands over; gives the setup part that firmware copies.
fn hand(kernel: &[u8], initrd: Option<usize>, line: &str) -> Result<Vec<u8>, String> {
    let memory = GuestMemory::new(MEMORY).unwrap();
    let mut device = FwCfg::new(Arc::clone(memory.memory()));
    let mut initrd = initrd.map(|len| file(&vec![1; len]));
    hand_over(
        &mut device,
        MEMORY,
        &mut file(kernel),
        initrd.as_mut(),
        line,
    )
    .map_err(|error| crate::board::describe(&error))?;
    let mut effects = Effects::default();
    device.write(0, 0, &SETUP.to_le_bytes(), &mut effects);
    let mut byte = || {
        let mut byte = [0];
        device.read(0, 1, &mut byte, &mut effects);
        byte[0]
    };
    Ok((0..1024).map(|_| byte()).collect())
}

fn refused(kernel: &[u8], initrd: Option<usize>, line: &str, why: &str) {
    let error = hand(kernel, initrd, line).unwrap_err();
    assert!(error.contains(why), "{error}");
}

#[test]
fn firmware_starts_what_has_no_entry_for_64_bits() {
    let rows = [
        (0x20b, 1, true),
        (0x20c, 0, true),
        (0x20c, 1, false),
        (0x20f, 0x7f, false),
        (0x20f, 0x7e, true),
    ];
    for (version, flags, firmware) in rows {
        let mut kernel = file(&kernel(version, flags, 2047));
        assert_eq!(
            is_for_firmware(&mut kernel).unwrap(),
            firmware,
            "{version:#x}"
        );
    }
    for other in [&b""[..], b"\x7fELF", &[0; 4096]] {
        assert!(!is_for_firmware(&mut file(other)).unwrap());
    }
}

#[test]
fn protocols_without_a_pointer_to_the_command_line_are_refused_by_version() {
    for (version, said) in [(0x200, "2.00"), (0x201, "2.01"), (0x1ff, "1.255")] {
        refused(&kernel(version, 0, 0), None, "", said);
        refused(&kernel(version, 0, 0), None, "", "2.02 and later");
    }
    assert!(hand(&kernel(0x202, 0, 0), None, "quiet").is_ok());
}

#[test]
fn a_command_line_that_the_kernel_would_cut_off_is_refused() {
    let line = |len| "x".repeat(len);
    // Before 2.06 kernels take 255 bytes, whatever is at the field's place.
    for version in [0x202, 0x205] {
        assert!(hand(&kernel(version, 0, 2047), None, &line(255)).is_ok());
        refused(
            &kernel(version, 0, 2047),
            None,
            &line(256),
            "255 bytes, and this one has 256",
        );
    }
    let kernel = kernel(0x207, 0, 300);
    assert!(hand(&kernel, None, &line(300)).is_ok());
    refused(&kernel, None, &line(301), "300 bytes, and this one has 301");
    refused(&kernel, None, &line(2048), "up to 2047 bytes");
    refused(&kernel, None, "a\0b", "without a zero");
}

#[test]
fn an_initrd_lies_below_the_kernels_limit_or_is_refused() {
    let word = |setup: &[u8], at| u32::from_le_bytes(get(setup, at).unwrap());
    let kernel = kernel(0x207, 0, 300);
    let setup = hand(&kernel, Some(5000), "").unwrap();
    assert_eq!(word(&setup, field::RAMDISK_IMAGE), 0x7f_e000);
    assert_eq!(word(&setup, field::RAMDISK_SIZE), 5000);
    let setup = hand(&kernel, None, "").unwrap();
    assert_eq!(word(&setup, field::RAMDISK_IMAGE), 0);
    refused(
        &kernel,
        Some(7 << 20),
        "",
        "do not fit between 1 MiB and 0x7fffff",
    );
    refused(
        &kernel,
        Some(33 << 20),
        "",
        "longer than the guest's memory",
    );
}

#[test]
fn what_is_no_bzimage_is_refused() {
    let good = kernel(0x207, 0, 300);
    let mut low = good.clone();
    low[field::LOADFLAGS] = 0;
    refused(&low, None, "", "no bzImage");
    refused(&good[..1000], None, "", "no bzImage");
    let mut long = good.clone();
    long[field::SECTORS] = 200;
    refused(&long, None, "", "longer than 52 KiB");
}

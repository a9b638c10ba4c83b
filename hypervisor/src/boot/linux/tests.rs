use super::*;
use crate::boot::real_mode::tests::file;

const MIB: u64 = 1 << 20;

/// A kernel by version 2.15 of the boot protocol, which begins with `code` and needs `init_size` bytes.
fn kernel(code: &[u8], init_size: u32, initrd_addr_max: u32) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&(EXTENDED as u32).to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&initrd_addr_max.to_le_bytes());
    image[0x236] = 1;
    image[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
    image.extend_from_slice(code);
    image
}

/// An ELF file with one segment at 2 MiB, entered at its fourth byte.
fn elf() -> Vec<u8> {
    let words = |words: &[u64]| {
        words
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect::<Vec<_>>()
    };
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    image.extend(words(&[0x20_0004, 64, 0]));
    // Flags, sizes of the headers, and that there is one of a program and none of sections.
    image.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    image.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    image.extend(words(&[120, 0x20_0000, 0x20_0000, 8, 8, 0x1000]));
    image.extend(b"12345678");
    image
}

fn load(memory: &GuestMemory, image: &[u8]) -> Result<(KernelLoaderResult, u64), Error> {
    load_kernel(&view(memory).unwrap(), &mut file(image))
}

fn why<T>(result: Result<T, Error>) -> String {
    crate::board::describe(&result.err().unwrap())
}

#[test]
fn a_kernel_is_entered_at_the_entry_point_of_its_form() {
    let memory = GuestMemory::new(32 * MIB).unwrap();
    let (_, entry) = load(&memory, &kernel(b"code", 4096, 0)).unwrap();
    assert_eq!(entry, EXTENDED + 0x200, "512 bytes behind the 32-bit one");
    let mut code = [0; 4];
    memory.read("kernel", EXTENDED, &mut code).unwrap();
    assert_eq!(&code, b"code");
    let (_, entry) = load(&memory, &elf()).unwrap();
    assert_eq!(entry, 0x20_0004);
    let mut code = [0; 8];
    memory.read("kernel", 0x20_0000, &mut code).unwrap();
    assert_eq!(&code, b"12345678");
}

#[test]
fn what_is_no_kernel_is_refused() {
    let memory = GuestMemory::new(32 * MIB).unwrap();
    let refused = |image: &[u8]| why(load(&memory, image));
    assert!(refused(b"ab").contains("kernel"));
    assert!(refused(&[0x11; 4096]).contains("bzImage"));
    let good = kernel(b"code", 4096, 0);
    let mut low = good.clone();
    low[0x211] = 0;
    assert!(refused(&low).contains("bzImage"), "it is not loaded high");
    let mut old = good.clone();
    old[0x206..0x208].copy_from_slice(&[0xff, 0x01]);
    assert!(refused(&old).contains("bzImage"), "version 1.255");
    let mut elf = elf();
    elf[64..68].copy_from_slice(&[1, 0, 0, 0]);
    elf[72] = 0xff;
    elf[79] = 0xff;
    assert!(
        refused(&elf).contains("kernel"),
        "a segment outside the file"
    );
}

#[test]
fn a_kernel_that_needs_more_memory_is_refused() {
    let memory = GuestMemory::new(32 * MIB).unwrap();
    let room = (31 * MIB) as u32;
    assert!(load(&memory, &kernel(b"code", room, 0)).is_ok());
    let error = why(load(&memory, &kernel(b"code", room + 1, 0)));
    assert!(error.contains("it needs memory up to 0x2000001"), "{error}");
}

#[test]
fn an_initrd_lies_below_the_kernels_limit_and_above_the_kernel() {
    let memory = GuestMemory::new(32 * MIB).unwrap();
    let view = view(&memory).unwrap();
    let place = |max: u32, init_size: u64, len: u64| {
        let image = kernel(b"code", init_size as u32, max);
        let (kernel, _) = load_kernel(&view, &mut file(&image)).unwrap();
        let mut initrd = file(&vec![0x5a; len as usize]);
        load_initrd(&view, memory.size(), &kernel, &mut initrd)
    };
    // At the end of memory, or of what the kernel takes.
    assert_eq!(place(u32::MAX - 1, MIB, 5000).unwrap(), (0x1ff_e000, 5000));
    assert_eq!(place(0x7f_ffff, MIB, 5000).unwrap(), (0x7f_e000, 5000));
    assert_eq!(place(0, MIB, 4096).unwrap(), (0x1ff_f000, 4096));
    let mut bytes = [0; 2];
    memory.read("initrd", 0x7f_e000 + 4999, &mut bytes).unwrap();
    assert_eq!(bytes, [0x5a, 0]);
    // The kernel has what is below 3 MiB.
    assert!(place(0x7f_ffff, 2 * MIB, 5 * MIB).is_ok());
    let error = why(place(0x7f_ffff, 2 * MIB, 5 * MIB + 1));
    assert!(error.contains("its 5242881 bytes do not fit"), "{error}");
    assert!(error.contains("0x800000"), "{error}");
    assert!(why(place(0, MIB, 40 * MIB)).contains("do not fit"));
}

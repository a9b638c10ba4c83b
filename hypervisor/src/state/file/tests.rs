use super::*;
const MEMORY: u64 = 4 << 20;

/// A machine without processors whose memory has something in it.
fn saved() -> Vec<u8> {
    let memory = GuestMemory::new(MEMORY).unwrap();
    memory.write("test", 0x1000, b"low").unwrap();
    memory.write("test", 0x10_0ffd, b"across").unwrap();
    memory.write("test", MEMORY - 3, b"end").unwrap();
    let mut out = Vec::new();
    write(&mut out, &document(MEMORY), &memory).unwrap();
    out
}

fn document(memory: u64) -> Document {
    Document {
        memory,
        cpuid: Vec::new(),
        tsc_khz: 1,
        vcpus: Vec::new(),
        chips: Chips::default(),
        clock: 77,
        devices: BTreeMap::from([("a".to_owned(), State::from(5))]),
    }
}

fn refused(bytes: &[u8]) -> String {
    let memory = GuestMemory::new(MEMORY).unwrap();
    let Err(error) = read(bytes, &memory) else {
        panic!("it was taken");
    };
    error.to_string()
}

#[test]
fn what_is_written_is_read_again() {
    let bytes = saved();
    // Three runs of pages (the second has two pages), and no zeros.
    assert!(bytes.len() < 4 * 4096 + 20_000, "{} bytes", bytes.len());
    let memory = GuestMemory::new(MEMORY).unwrap();
    let document = read(bytes.as_slice(), &memory).unwrap();
    assert_eq!((document.clock, document.memory), (77, MEMORY));
    assert_eq!(document.devices["a"], State::from(5));
    for (address, expected) in [(0x1000, "low"), (0x10_0ffd, "across"), (MEMORY - 3, "end")] {
        let mut found = vec![0; expected.len()];
        memory.read("test", address, &mut found).unwrap();
        assert_eq!(found, expected.as_bytes());
    }
}

#[test]
fn every_damaged_byte_is_noticed() {
    let bytes = saved();
    let step = bytes.len() / 97;
    for at in (0..bytes.len())
        .step_by(step)
        .chain([0, 8, 12, 16, bytes.len() - 1])
    {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        refused(&damaged);
    }
}

#[test]
fn a_state_that_is_cut_or_continued_is_refused() {
    let mut bytes = saved();
    for len in [0, 4, 11, 100, bytes.len() - 33, bytes.len() - 1] {
        assert!(refused(&bytes[..len]).contains("reading"), "{len}");
    }
    bytes.push(0);
    assert!(refused(&bytes).contains("more follows"));
}

#[test]
fn versions_and_sizes_are_named() {
    let mut bytes = saved();
    bytes[8] = 9;
    assert!(refused(&bytes).contains("version 9"));
    let mut bytes = saved();
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(refused(&bytes).contains("4294967295"));
    let mut out = Vec::new();
    let memory = GuestMemory::new(2 * MEMORY).unwrap();
    write(&mut out, &document(2 * MEMORY), &memory).unwrap();
    assert!(refused(&out).contains("8388608 bytes of memory"));
}

#[test]
fn pages_outside_memory_are_refused() {
    let good = saved();
    let len = u32::from_le_bytes(good[12..16].try_into().unwrap()) as usize;
    let first = 16 + len;
    for (offset, value) in [
        (0, MEMORY),
        (0, 1),
        (8, 0),
        (8, MEMORY * 2),
        (8, 4097),
        (0, u64::MAX - 4095),
    ] {
        let mut bytes = good.clone();
        bytes[first + offset..first + offset + 8].copy_from_slice(&value.to_le_bytes());
        assert!(
            refused(&bytes).contains("bytes of memory at"),
            "{offset} {value:#x}"
        );
    }
}

use super::*;

const LEN: usize = 0x4000;

fn device() -> FwCfg {
    let memory = Arc::new(Memory::anonymous(LEN).unwrap());
    let mut device = FwCfg::new(memory);
    device.add_file("etc/one", b"hello".to_vec()).unwrap();
    device.add_file("bootorder", vec![7; 5000]).unwrap();
    device.set_item(0x8002, &[1]);
    device
}

fn write(device: &mut FwCfg, offset: u64, data: &[u8]) {
    device.write(0, offset, data, &mut Effects::default());
}

fn read<const N: usize>(device: &mut FwCfg, offset: u64) -> [u8; N] {
    let mut data = [0xff; N];
    device.read(0, offset, &mut data, &mut Effects::default());
    data
}

fn read_item(device: &mut FwCfg, number: u16, len: usize) -> Vec<u8> {
    write(device, 0, &number.to_le_bytes());
    (0..len).map(|_| read::<1>(device, DATA)[0]).collect()
}

fn poke(device: &FwCfg, at: u64, bytes: &[u8]) {
    assert!(write_memory(&device.memory, at, bytes));
}

fn peek(device: &FwCfg, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    assert!(read_memory(&device.memory, at, &mut bytes));
    bytes
}

/// Gives a DMA command at address 0x100; the answer.
fn dma(device: &mut FwCfg, control: u32, len: u32, to: u64) -> u32 {
    let command = [
        &control.to_be_bytes()[..],
        &len.to_be_bytes(),
        &to.to_be_bytes(),
    ]
    .concat();
    poke(device, 0x100, &command);
    write(device, DMA_HIGH, &[0; 4]);
    write(device, DMA_LOW, &0x100_u32.to_be_bytes());
    u32::from_be_bytes(peek(device, 0x100, 4).try_into().unwrap())
}

#[test]
fn the_device_is_known_by_its_signatures() {
    let mut device = device();
    assert_eq!(read_item(&mut device, SIGNATURE, 6), b"QEMU\0\0");
    assert_eq!(read_item(&mut device, FEATURES, 4), [3, 0, 0, 0]);
    assert_eq!(read::<8>(&mut device, DMA_HIGH), *b"QEMU CFG");
    assert_eq!(read::<4>(&mut device, DMA_LOW), *b" CFG");
    assert_eq!(read_item(&mut device, 0x8002, 2), [1, 0]);
    assert_eq!(read_item(&mut device, 0x7777, 2), [0, 0]);
}

#[test]
fn files_are_found_by_name() {
    let mut device = device();
    let directory = read_item(&mut device, DIRECTORY, 4 + 2 * 64);
    assert_eq!(directory[..4], 2_u32.to_be_bytes());
    let entry = &directory[4 + 64..];
    assert_eq!(entry[..4], 5000_u32.to_be_bytes());
    assert_eq!(entry[4..6], (FIRST_FILE + 1).to_be_bytes());
    assert!(entry[8..].starts_with(b"bootorder\0"));
    assert_eq!(read_item(&mut device, FIRST_FILE, 7), b"hello\0\0");
}

#[test]
fn dma_selects_reads_and_skips() {
    let mut device = device();
    let select = u32::from(FIRST_FILE) << 16 | DMA_SELECT;
    assert_eq!(dma(&mut device, select | DMA_SKIP, 1, 0), 0);
    assert_eq!(dma(&mut device, DMA_READ, 3, 0x200), 0);
    assert_eq!(peek(&device, 0x200, 4), b"ell\0");
    poke(&device, 0x203, &[9; 8]);
    assert_eq!(dma(&mut device, DMA_READ, 4, 0x203), 0);
    assert_eq!(
        peek(&device, 0x203, 5),
        [b'o', 0, 0, 0, 9],
        "zeros behind the end"
    );
    let select = u32::from(FIRST_FILE + 1) << 16 | DMA_SELECT;
    assert_eq!(dma(&mut device, select | DMA_READ, 6000, 0x1000), 0);
    assert_eq!(peek(&device, 0x1000 + 4999, 2), [7, 0]);
}

#[test]
fn dma_that_leaves_memory_or_writes_is_an_error() {
    let mut device = device();
    let select = u32::from(FIRST_FILE) << 16 | DMA_SELECT;
    let end = LEN as u64;
    assert_eq!(dma(&mut device, select | DMA_READ, 5, end - 4), DMA_ERROR);
    assert_eq!(
        dma(&mut device, select | DMA_READ, 5, u64::MAX - 2),
        DMA_ERROR
    );
    assert_eq!(
        dma(&mut device, select | DMA_READ, u32::MAX, 0x200),
        DMA_ERROR
    );
    assert_eq!(dma(&mut device, select | DMA_WRITE, 5, 0x200), DMA_ERROR);
    assert_eq!(dma(&mut device, select | DMA_READ, 0, u64::MAX), 0);
    // The command itself outside.
    write(&mut device, DMA_LOW, &u32::MAX.to_be_bytes());
    write(&mut device, DMA_HIGH, &u64::MAX.to_be_bytes());
}

#[test]
fn wrong_names_and_too_many_files_are_refused() {
    let mut device = device();
    let mut refused = |name: &str| device.add_file(name, Vec::new()).unwrap_err().to_string();
    assert!(refused("").contains("1 to 55 bytes"));
    assert!(refused(&"n".repeat(56)).contains("1 to 55 bytes"));
    assert!(refused("a\0b").contains("zero"));
    assert!(refused("etc/one").contains("two"));
    for number in 2..MAX_FILES {
        device.add_file(&number.to_string(), Vec::new()).unwrap();
    }
    let error = device.add_file("last", Vec::new()).unwrap_err();
    assert!(error.to_string().contains("256"), "{error}");
}

#[test]
fn a_saved_device_goes_on_reading() {
    let mut device1 = device();
    read_item(&mut device1, FIRST_FILE, 2);
    let state = device1.save();
    device1.reset(&mut Effects::default());
    assert_eq!(read::<1>(&mut device1, DATA), *b"Q");
    let mut other = device();
    other.restore(&state, &mut Effects::default()).unwrap();
    assert_eq!(read::<1>(&mut other, DATA), *b"l");
    assert!(
        other
            .restore(&State::Null, &mut Effects::default())
            .is_err()
    );
}

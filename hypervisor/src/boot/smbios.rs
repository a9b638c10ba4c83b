//! SMBIOS tables (DMTF DSP0134, version 2.8): what the machine is called, its processors and its memory.

use super::complement;

/// The anchor's length: a 32-bit entry point.
pub const ANCHOR_LEN: usize = 31;

/// What the tables describe.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// The machine's identity, as its bytes are written in text.
    pub uuid: [u8; 16],
    /// The machine's name: its serial number.
    pub name: String,
    /// Processors.
    pub cpus: u8,
    /// Memory below 4 GiB, in bytes.
    pub memory_below_4g: u64,
    /// Memory from 4 GiB on, in bytes.
    pub memory_above_4g: u64,
    /// Describe the firmware too. SeaBIOS does so itself.
    pub firmware: bool,
}

/// The structures, one after the other.
#[derive(Default)]
struct Structures {
    bytes: Vec<u8>,
    count: u16,
    longest: u16,
}

impl Structures {
    /// Appends a structure of the type `kind`: its formatted area without header, and its strings, which the area refers to by
    /// 1 for the first and so on.
    fn add(&mut self, kind: u8, area: &[u8], strings: &[&str]) {
        let start = self.bytes.len();
        let len = area.len() as u8 + 4;
        let [low, high] = (0x100 * u16::from(kind)).to_le_bytes();
        self.bytes.extend_from_slice(&[kind, len, low, high]);
        self.bytes.extend_from_slice(area);
        for string in strings {
            // An empty string would end the list.
            let string = if string.is_empty() { " " } else { string };
            self.bytes.extend(string.bytes().filter(|&byte| byte != 0));
            self.bytes.push(0);
        }
        if strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.push(0);
        self.count += 1;
        self.longest = self.longest.max((self.bytes.len() - start) as u16);
    }
}

/// Reference to no string.
const NONE: u8 = 0;
/// "Other" or "unknown" in most enumerations.
const OTHER: u8 = 1;
const UNKNOWN: u8 = 2;
/// A state that is safe.
const SAFE: u8 = 3;

/// The anchor and the structures of a machine, for structures at `address`. Firmware that places them itself changes the
/// address in the anchor.
pub fn tables(description: &Description, address: u32) -> (Vec<u8>, Vec<u8>) {
    let mut structures = Structures::default();
    if description.firmware {
        firmware(&mut structures);
    }
    system(description, &mut structures);
    chassis(&mut structures);
    for _ in 0..description.cpus {
        processor(&mut structures);
    }
    memory(description, &mut structures);
    // Boot information: no error. End of the table.
    structures.add(32, &[0; 7], &[]);
    structures.add(127, &[], &[]);
    (anchor(&structures, address), structures.bytes)
}

fn firmware(structures: &mut Structures) {
    let mut area = vec![1, 2, 0, 0xe0, 3, 0];
    // Characteristics: none of those listed; a virtual machine.
    area.extend_from_slice(&(1_u64 << 3).to_le_bytes());
    area.extend_from_slice(&[0, 1 << 4, 0, 0, 0xff, 0xff]);
    structures.add(
        0,
        &area,
        &["vswitch", env!("CARGO_PKG_VERSION"), "01/01/2026"],
    );
}

fn system(description: &Description, structures: &mut Structures) {
    let mut area = vec![1, 2, 3, 4];
    // The first three fields of the text are little-endian numbers.
    let [a, b, c, d, e, f, g, h, rest @ ..] = description.uuid;
    area.extend_from_slice(&[d, c, b, a, f, e, h, g]);
    area.extend_from_slice(&rest);
    // Woken by the power switch; no stock number, no family.
    area.extend_from_slice(&[6, NONE, NONE]);
    let version = env!("CARGO_PKG_VERSION");
    let strings = ["vswitch", "Virtual Machine", version, &description.name];
    structures.add(1, &area, &strings);
}

fn chassis(structures: &mut Structures) {
    let mut area = vec![1, OTHER, NONE, NONE, NONE, SAFE, SAFE, SAFE, UNKNOWN];
    area.extend_from_slice(&[0; 4]);
    // Height and power cords not told, no elements.
    area.extend_from_slice(&[0, 0, 0, 0, NONE]);
    structures.add(3, &area, &["vswitch"]);
}

fn processor(structures: &mut Structures) {
    // Socket, a central processor, family and maker untold.
    let mut area = vec![1, 3, OTHER, 2];
    area.extend_from_slice(&[0; 8]);
    area.extend_from_slice(&[NONE, 0]);
    // External clock, maximum and current speed untold; populated and enabled; no upgrade.
    area.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0x41, OTHER]);
    // No caches told.
    area.extend_from_slice(&[0xff; 6]);
    area.extend_from_slice(&[NONE, NONE, NONE, 1, 1, 1]);
    // 64-bit capable.
    area.extend_from_slice(&(1_u16 << 2).to_le_bytes());
    area.extend_from_slice(&u16::from(UNKNOWN).to_le_bytes());
    structures.add(4, &area, &["CPU", "vswitch"]);
}

/// One array, one module of all memory, and where it is.
fn memory(description: &Description, structures: &mut Structures) {
    let total = description.memory_below_4g + description.memory_above_4g;
    let kib = u32::try_from(total >> 10)
        .unwrap_or(u32::MAX)
        .min(0x8000_0000);
    // On no board in particular, as system memory, multi-bit correction; no error told; one module.
    let mut area = vec![OTHER, 3, 6];
    area.extend_from_slice(&kib.to_le_bytes());
    area.extend_from_slice(&[0xfe, 0xff, 1, 0]);
    area.extend_from_slice(&total.to_le_bytes());
    structures.add(16, &area, &[]);

    let mib = u32::try_from(total >> 20).unwrap_or(u32::MAX);
    let mut area = 0x1000_u16.to_le_bytes().to_vec();
    area.extend_from_slice(&[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);
    let short = u16::try_from(mib).ok().filter(|&mib| mib < 0x7fff);
    area.extend_from_slice(&short.unwrap_or(0x7fff).to_le_bytes());
    // A DIMM, in no set, in the socket named, memory of a kind that is not listed.
    area.extend_from_slice(&[9, 0, 1, NONE, OTHER, 2, 0]);
    area.extend_from_slice(&[0, 0, 2, NONE, NONE, NONE, 0]);
    area.extend_from_slice(&(mib & 0x7fff_ffff).to_le_bytes());
    area.extend_from_slice(&[0; 8]);
    structures.add(17, &area, &["DIMM 0", "vswitch"]);

    let ranges = [
        (0, description.memory_below_4g),
        (4 << 20, description.memory_above_4g),
    ];
    for (start_kib, len) in ranges.into_iter().filter(|(_, len)| *len > 0) {
        let end = start_kib + (len >> 10) - 1;
        let mut area = Vec::new();
        area.extend_from_slice(&(start_kib as u32).to_le_bytes());
        area.extend_from_slice(&(end as u32).to_le_bytes());
        area.extend_from_slice(&0x1000_u16.to_le_bytes());
        area.push(1);
        structures.add(19, &area, &[]);
    }
}

fn anchor(structures: &Structures, address: u32) -> Vec<u8> {
    let mut anchor = b"_SM_".to_vec();
    anchor.extend_from_slice(&[0, ANCHOR_LEN as u8, 2, 8]);
    anchor.extend_from_slice(&structures.longest.to_le_bytes());
    anchor.extend_from_slice(&[0; 6]);
    let mut rest = b"_DMI_\0".to_vec();
    rest.extend_from_slice(&(structures.bytes.len() as u16).to_le_bytes());
    rest.extend_from_slice(&address.to_le_bytes());
    rest.extend_from_slice(&structures.count.to_le_bytes());
    rest.push(0x28);
    complement(&mut rest, 5);
    anchor.extend_from_slice(&rest);
    complement(&mut anchor, 4);
    anchor
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description() -> Description {
        Description {
            uuid: *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
            name: "web1".to_owned(),
            cpus: 2,
            memory_below_4g: 3 << 30,
            memory_above_4g: 61 << 30,
            firmware: true,
        }
    }

    /// The structures: type, formatted area with header, strings.
    fn parse(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (area, rest) = bytes.split_at(usize::from(bytes[1]));
            let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
            let strings = rest[..end]
                .split(|&byte| byte == 0)
                .filter(|string| !string.is_empty());
            let strings = strings.map(|string| String::from_utf8(string.to_vec()).unwrap());
            found.push((area[0], area.to_vec(), strings.collect()));
            bytes = &rest[end + 2..];
        }
        found
    }

    #[test]
    fn the_anchor_tells_where_and_how_many() {
        let (anchor, structures) = tables(&description(), 0xf_0020);
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(anchor.len(), ANCHOR_LEN);
        assert_eq!((sum(&anchor), sum(&anchor[16..])), (0, 0));
        assert_eq!(anchor[22..24], (structures.len() as u16).to_le_bytes());
        assert_eq!(anchor[24..28], 0xf_0020_u32.to_le_bytes());
        assert_eq!(usize::from(anchor[28]), parse(&structures).len());
    }

    #[test]
    fn structures_have_their_specified_lengths_and_strings() {
        let (_, structures) = tables(&description(), 0);
        let parsed = parse(&structures);
        let lengths: Vec<_> = parsed
            .iter()
            .map(|(kind, area, _)| (*kind, area.len()))
            .collect();
        let expected = [
            (0, 24),
            (1, 27),
            (3, 22),
            (4, 42),
            (4, 42),
            (16, 23),
            (17, 40),
            (19, 15),
            (19, 15),
            (32, 11),
            (127, 4),
        ];
        assert_eq!(lengths, expected);
        assert_eq!(
            parsed[1].2,
            [
                "vswitch",
                "Virtual Machine",
                env!("CARGO_PKG_VERSION"),
                "web1"
            ]
        );
        assert_eq!(parsed[1].1[8..12], [0x33, 0x22, 0x11, 0x00], "UUID");
        assert_eq!(parsed[1].1[16..18], [0x88, 0x99]);
        assert_eq!(
            parsed[6].1[12..14],
            [0xff, 0x7f],
            "size in the extended field"
        );
        assert_eq!(parsed[6].1[28..32], (64_u32 << 10).to_le_bytes());
    }

    #[test]
    fn without_firmware_type_0_is_left_to_it() {
        let (_, structures) = tables(
            &Description {
                firmware: false,
                name: String::new(),
                ..description()
            },
            0,
        );
        let parsed = parse(&structures);
        assert_eq!(parsed[0].0, 1);
        assert_eq!(
            parsed[0].2[3], " ",
            "an empty name does not end the strings"
        );
    }
}

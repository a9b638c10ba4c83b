//! What is sent: one case of a measurement.

use vswitch::ports::vhost::feature;

/// Bytes of Ethernet, IPv4 and TCP headers of a large frame.
const TCP_HEADERS: usize = 54;
/// A large frame with TCP payload of 44 segments of 1460 bytes: the most that 64 KiB of IP hold.
pub(crate) const LARGE: u32 = TCP_HEADERS as u32 + 44 * 1460;
/// Sizes of plain frames that are measured, in bytes without FCS.
pub(crate) const SIZES: [u32; 8] = [64, 128, 256, 512, 1024, 1280, 1518, 9000];

/// How frames are sent from one guest to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    /// Bytes of a frame without FCS; [`LARGE`] is one large TCP frame that asks for segmentation.
    pub(crate) frame: u32,
    /// Source addresses that frames come from, in turn.
    pub(crate) sources: u32,
    /// Destination addresses that frames go to, in turn.
    pub(crate) destinations: u32,
    /// From each guest to the other, not only from the first to the second.
    pub(crate) both_ways: bool,
    /// Packed rings, not split ones.
    pub(crate) packed: bool,
    /// Descriptors of a ring.
    pub(crate) ring: u16,
    /// The guests write and read every byte of a frame, not only its first cache line.
    pub(crate) touched: bool,
}

impl Default for Case {
    fn default() -> Self {
        Case {
            frame: 64,
            sources: 1,
            destinations: 1,
            both_ways: false,
            packed: false,
            ring: 256,
            touched: false,
        }
    }
}

impl Case {
    /// Plain frames of `frame` bytes, one way, between one address and another.
    pub(crate) fn of(frame: u32) -> Case {
        Case {
            frame,
            ..Case::default()
        }
    }

    /// Large TCP frames, over rings that hold several.
    pub(crate) fn large() -> Case {
        Case {
            frame: LARGE,
            ring: 1024,
            ..Case::default()
        }
    }

    /// Whether the frame asks for segmentation.
    pub(crate) fn is_large(&self) -> bool {
        self.frame == LARGE
    }

    /// Feature bits that the guests negotiate.
    pub(crate) fn features(&self) -> u64 {
        let base = feature::VERSION_1 | feature::MRG_RXBUF | feature::PROTOCOL_FEATURES;
        let offloads =
            feature::CSUM | feature::GUEST_CSUM | feature::HOST_TSO4 | feature::GUEST_TSO4;
        base | if self.packed { feature::RING_PACKED } else { 0 }
            | if self.is_large() { offloads } else { 0 }
    }

    /// What the case is called in tables: the size, and what differs from the default.
    pub(crate) fn label(&self) -> String {
        let mut label = if self.is_large() {
            "64 KB TSO".to_owned()
        } else {
            format!("{} B", self.frame)
        };
        let default = if self.is_large() { 1024 } else { 256 };
        let parts = [
            (self.sources > 1, format!("{} sources", self.sources)),
            (
                self.destinations > 1,
                format!("{} destinations", self.destinations),
            ),
            (self.both_ways, "both ways".to_owned()),
            (self.packed, "packed".to_owned()),
            (self.ring != default, format!("ring {}", self.ring)),
            (self.touched, "touched".to_owned()),
        ];
        for (_, part) in parts.iter().filter(|(differs, _)| *differs) {
            label.push_str(", ");
            label.push_str(part);
        }
        label
    }

    /// The virtio header and the frame, whose addresses are filled in when it is sent.
    pub(crate) fn image(&self) -> Vec<u8> {
        let (len, large) = (self.frame as usize, self.is_large());
        let ip_len = ((len - 14) as u16).to_be_bytes();
        let mut bytes = vec![0; 12 + 12];
        if large {
            // NEEDS_CSUM, GSO_TCPV4, header length, segment size, and where the checksum is.
            let fields = [TCP_HEADERS as u16, 1460, 34, 16].map(u16::to_le_bytes);
            let header = [&[1, 1][..], fields.as_flattened()].concat();
            bytes.splice(..header.len(), header);
        }
        let protocol = if large { 6 } else { 17 };
        bytes.extend([8, 0, 0x45, 0]);
        bytes.extend(ip_len);
        bytes.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        if large {
            bytes.extend([
                0x13, 0x88, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff,
            ]);
        } else {
            bytes.extend([0x13, 0x88, 0x13, 0x89]);
            bytes.extend(((len - 34) as u16).to_be_bytes());
        }
        bytes.resize(12 + len, 0);
        fill_checksums(&mut bytes, large);
        bytes
    }
}

/// The checksum of the IPv4 header, and for a large frame the sum of the pseudo-header.
fn fill_checksums(bytes: &mut [u8], large: bool) {
    let sum = |bytes: &[u8]| -> u32 {
        let words = bytes.as_chunks::<2>().0;
        words
            .iter()
            .map(|word| u32::from(u16::from_be_bytes(*word)))
            .sum()
    };
    let fold = |sum: u32| -> u16 {
        let once = (sum & 0xffff) + (sum >> 16);
        ((once & 0xffff) + (once >> 16)) as u16
    };
    let (ip, tcp) = (12 + 14, 12 + 34);
    let header = fold(sum(bytes.get(ip..ip + 20).unwrap_or_default()));
    let addresses = sum(bytes.get(ip + 12..ip + 20).unwrap_or_default());
    let pseudo = fold(addresses + 6 + (bytes.len() - tcp) as u32);
    let mut put = |at: usize, value: u16| {
        for (to, from) in bytes.iter_mut().skip(at).zip(value.to_be_bytes()) {
            *to = from;
        }
    };
    put(ip + 10, !header);
    if large {
        put(tcp + 16, pseudo);
    }
}

/// The address of station `index` of guest `guest`, in the low 48 bits as it lies in memory.
#[inline]
pub(crate) fn word(guest: u8, index: u32) -> u64 {
    u64::from(index.swap_bytes() >> 8) << 24 | u64::from(guest) << 8 | 2
}

/// The same as bytes.
pub(crate) fn station(guest: u8, index: u32) -> [u8; 6] {
    let [a, b, c, d, e, f, _, _] = word(guest, index).to_le_bytes();
    [a, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use etherparse::SlicedPacket;

    #[test]
    fn an_address_has_the_guest_and_the_station() {
        assert_eq!(station(0, 0), [2, 0, 0, 0, 0, 0]);
        assert_eq!(station(1, 0x01_02_03), [2, 1, 0, 1, 2, 3]);
        assert_eq!(station(255, 99_999), [2, 255, 0, 1, 0x86, 0x9f]);
        assert_eq!(word(1, 0x01_02_03) >> 48, 0);
    }

    #[test]
    fn frames_are_what_an_independent_parser_expects() {
        for case in [Case::of(64), Case::of(9000), Case::large()] {
            let image = case.image();
            let (_, frame) = image.split_at(12);
            assert_eq!(frame.len(), case.frame as usize);
            let parsed = SlicedPacket::from_ethernet(frame).unwrap();
            let etherparse::NetSlice::Ipv4(ip) = parsed.net.unwrap() else {
                panic!("not IPv4");
            };
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            match parsed.transport.unwrap() {
                etherparse::TransportSlice::Udp(udp) => {
                    assert_eq!(usize::from(udp.length()), frame.len() - 34);
                }
                etherparse::TransportSlice::Tcp(tcp) => {
                    assert!(case.is_large() && tcp.payload().len() == 44 * 1460);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn labels_say_what_differs() {
        let case = Case {
            packed: true,
            sources: 1000,
            ..Case::of(512)
        };
        assert_eq!(case.label(), "512 B, 1000 sources, packed");
        assert_eq!(Case::large().label(), "64 KB TSO");
    }
}

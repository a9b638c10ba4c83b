//! Offloads: what the adapter offers, and what a driver switched on (NDIS 6 offload structures).

use serde::{Deserialize, Serialize};

use crate::wire::{put, put32, u16_at};

/// Type of a structure of offload capabilities (`NDIS_OBJECT_TYPE_OFFLOAD`).
const OBJECT_OFFLOAD: u8 = 0xa7;
/// Type of a structure of offload parameters (`NDIS_OBJECT_TYPE_DEFAULT`).
const OBJECT_DEFAULT: u8 = 0x80;
/// Bytes of the capabilities in revision 3.
pub const CAPABILITIES: usize = 156;
/// Shortest parameters: up to the sizes that NDIS 6.0 knows.
const PARAMETERS_MIN: usize = 20;

/// Where the parameters say whether received segments may be coalesced: over IPv4, and IPv6.
const RSC: usize = 22;
/// Where the capabilities say so.
const CAPABILITY_RSC: usize = 144;

/// Ethernet without tag, and with the tag in per-packet information.
const ENCAPSULATION: u32 = 0x2 | 0x8;
/// Checksums of IPv4, TCP and UDP over it, with options.
const CHECKSUMS_V4: u32 = 0x100 | 0x40 | 0x10 | 0x4 | 0x1;
/// Checksums of TCP and UDP over IPv6, with options and extension headers.
const CHECKSUMS_V6: u32 = 0x40 | 0x10 | 0x4 | 0x1;
/// Longest large frame, in bytes; with its headers it fits 16 bits.
const MAX_LARGE: u32 = 0xff00;
/// Fewest segments of a large frame.
const MIN_SEGMENTS: u32 = 2;
/// LSOv1 takes TCP and IP options.
const LSO_V1_OPTIONS: u32 = 0x5;
/// LSOv2 takes IPv6 extension headers and TCP options.
const LSO_V2_OPTIONS: u32 = 0x5;

/// The revision of NDIS structures that a driver of this NDIS version reads.
pub fn revision(major: u32, minor: u32) -> u8 {
    match (major, minor) {
        (7.., _) | (6, 0x1e..) => 3,
        (6, 1..) => 2,
        _ => 1,
    }
}

/// Bytes of the capabilities in a revision.
fn capabilities_len(revision: u8) -> usize {
    match revision {
        0 | 1 => 112,
        2 => 144,
        _ => CAPABILITIES,
    }
}

/// What the adapter offers (`NDIS_OFFLOAD`), in the revision that `asked`, the driver's own structure, names, else in
/// `default`; `coalescing` if both sides speak of it. The bytes, and how many of them count.
pub fn capabilities(asked: &[u8], default: u8, coalescing: bool) -> ([u8; CAPABILITIES], usize) {
    let revision = match asked {
        [OBJECT_OFFLOAD, revision @ 1..=3, ..] => *revision,
        _ => default,
    };
    let len = capabilities_len(revision);
    let mut bytes = [0; CAPABILITIES];
    put(&mut bytes, 0, [OBJECT_OFFLOAD, revision]);
    put(&mut bytes, 2, (len as u16).to_le_bytes());
    for (at, value) in [
        // IPv4: transmit, receive; IPv6: transmit, receive.
        (4, ENCAPSULATION),
        (8, CHECKSUMS_V4),
        (12, ENCAPSULATION),
        (16, CHECKSUMS_V4),
        (20, ENCAPSULATION),
        (24, CHECKSUMS_V6),
        (28, ENCAPSULATION),
        (32, CHECKSUMS_V6),
        // LSOv1.
        (36, ENCAPSULATION),
        (40, MAX_LARGE),
        (44, MIN_SEGMENTS),
        (48, LSO_V1_OPTIONS),
        // LSOv2: IPv4, then IPv6.
        (80, ENCAPSULATION),
        (84, MAX_LARGE),
        (88, MIN_SEGMENTS),
        (92, ENCAPSULATION),
        (96, MAX_LARGE),
        (100, MIN_SEGMENTS),
        (104, LSO_V2_OPTIONS),
    ] {
        put32(&mut bytes, at, value);
    }
    if coalescing && revision >= 3 {
        put(&mut bytes, CAPABILITY_RSC, [1, 1]);
    }
    (bytes, len)
}

/// Receive offloads that a driver switched on. Transmit offloads are asked for packet by packet and always done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receive {
    /// Verdicts on checksums of IPv4 headers.
    pub ip4: bool,
    /// On those of TCP over IPv4.
    pub tcp4: bool,
    /// On those of UDP over IPv4.
    pub udp4: bool,
    /// On those of TCP over IPv6.
    pub tcp6: bool,
    /// On those of UDP over IPv6.
    pub udp6: bool,
    /// TCP segments over IPv4 may come as one large frame.
    pub rsc4: bool,
    /// And those over IPv6.
    pub rsc6: bool,
}

impl Receive {
    /// Whether verdicts of any kind are wanted.
    pub fn any_checksum(&self) -> bool {
        self.ip4 || self.tcp4 || self.udp4 || self.tcp6 || self.udp6
    }

    /// Applies parameters (`NDIS_OFFLOAD_PARAMETERS`). False, and nothing is changed, if they are none, hold a value that is
    /// not defined, or switch coalescing on that was not offered.
    pub fn set(&mut self, parameters: &[u8], coalescing: bool) -> bool {
        let shape = (parameters.first(), u16_at(parameters, 2));
        let (Some(&OBJECT_DEFAULT), Some(len)) = shape else {
            return false;
        };
        if parameters.len() < PARAMETERS_MIN || usize::from(len) < PARAMETERS_MIN {
            return false;
        }
        let Some(checksums) = parameters.get(4..9) else {
            return false;
        };
        let mut new = *self;
        let fields = [
            &mut new.ip4,
            &mut new.tcp4,
            &mut new.udp4,
            &mut new.tcp6,
            &mut new.udp6,
        ];
        for (field, value) in fields.into_iter().zip(checksums) {
            match value {
                // No change.
                0 => {}
                // Off; transmit only.
                1 | 2 => *field = false,
                // Receive only; both.
                3 | 4 => *field = true,
                _ => return false,
            }
        }
        // Older drivers' structures end before these.
        let known = parameters.get(..usize::from(len)).unwrap_or(parameters);
        let coalesce = known.get(RSC..RSC + 2).unwrap_or(&[0, 0]);
        for (field, value) in [&mut new.rsc4, &mut new.rsc6].into_iter().zip(coalesce) {
            match value {
                0 => {}
                1 => *field = false,
                2 if coalescing => *field = true,
                _ => return false,
            }
        }
        *self = new;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::u32_at;

    #[test]
    fn capabilities_come_in_the_revision_asked_for() {
        for (asked, default, len) in [
            (&[0xa7, 3, 156, 0][..], 1, 156),
            (&[0xa7, 2, 144, 0], 1, 144),
            (&[0xa7, 1, 112, 0], 3, 112),
            (&[], 2, 144),
            (&[0x80, 1, 0, 0], 3, 156),
            (&[0xa7, 9, 0, 0], 3, 156),
        ] {
            let (bytes, count) = capabilities(asked, default, true);
            assert_eq!(count, len, "{asked:?}");
            assert_eq!(u16_at(&bytes, 2), Some(len as u16));
            assert_eq!(bytes[0], 0xa7);
        }
        assert_eq!(revision(6, 0x1e), 3);
        assert_eq!(revision(6, 1), 2);
        assert_eq!(revision(5, 0), 1);
    }

    /// The bits that drivers insist on.
    #[test]
    fn drivers_find_what_they_look_for() {
        let (bytes, _) = capabilities(&[], 3, true);
        let word = |at| u32_at(&bytes, at).unwrap();
        assert_eq!(word(8) & 0x14, 0x14, "TCP over IPv4, with options");
        assert_eq!(
            word(24) & 0x15,
            0x15,
            "TCP over IPv6, with options and extensions"
        );
        assert_eq!(word(80) & 2, 2, "LSOv2 over IPv4");
        assert_eq!(
            word(104) & 5,
            5,
            "LSOv2 over IPv6, with options and extensions"
        );
        assert_eq!(bytes[144..146], [1, 1], "coalescing");
        let (bytes, _) = capabilities(&[], 3, false);
        assert_eq!(bytes[144..146], [0, 0], "without it");
        let (bytes, _) = capabilities(&[], 2, true);
        assert_eq!(
            bytes[144..146],
            [0, 0],
            "nothing that the revision does not know"
        );
    }

    #[test]
    fn parameters_change_what_they_name() {
        let mut receive = Receive::default();
        let parameters = |values: [u8; 5]| {
            let mut bytes = vec![0x80, 3, 28, 0];
            bytes.extend(values);
            bytes.resize(28, 0);
            bytes
        };
        assert!(receive.set(&parameters([4, 4, 3, 4, 3]), true));
        assert!(receive.ip4 && receive.tcp4 && receive.udp4 && receive.tcp6 && receive.udp6);
        assert!(receive.set(&parameters([0, 2, 1, 0, 0]), true));
        assert!(receive.ip4 && !receive.tcp4 && !receive.udp4 && receive.tcp6);
        let before = receive;
        assert!(!receive.set(&parameters([1, 5, 0, 0, 0]), true));
        assert!(!receive.set(&parameters([1; 5])[..19], true));
        assert!(!receive.set(&[0xa7; 28], true));
        assert_eq!(receive, before);
        assert!(
            receive.set(&parameters([1; 5])[..22], true),
            "what older drivers send"
        );
    }

    #[test]
    fn coalescing_is_switched_on_and_off() {
        let mut receive = Receive::default();
        let parameters = |v4, v6, len: u8| {
            let mut bytes = vec![0x80, 3, len, 0];
            bytes.resize(28, 0);
            (bytes[22], bytes[23]) = (v4, v6);
            bytes
        };
        assert!(!receive.set(&parameters(2, 0, 28), false), "not offered");
        assert!(receive.set(&parameters(2, 0, 28), true));
        assert!(receive.rsc4 && !receive.rsc6);
        assert!(receive.set(&parameters(1, 2, 28), true));
        assert!(!receive.rsc4 && receive.rsc6);
        assert!(!receive.set(&parameters(3, 0, 28), true));
        assert!(
            receive.set(&parameters(2, 1, 22), true),
            "not in the structure"
        );
        assert!(!receive.rsc4 && receive.rsc6);
    }
}

//! Random valid frames, put together byte by byte.

use offload::{CsumAt, Gso, Request, SNAPSHOT};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::subsequence;

/// A frame and where its headers are.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    pub(crate) l3: usize,
    pub(crate) l4: usize,
    pub(crate) header_len: usize,
    pub(crate) v6: bool,
}

impl Frame {
    pub(crate) fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    /// What the switch keeps of it.
    pub(crate) fn head(&self) -> &[u8] {
        &self.bytes[..self.bytes.len().min(SNAPSHOT)]
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.bytes[self.header_len..]
    }

    /// The request of a sender that wants a TCP frame cut.
    pub(crate) fn tso(&self, mss: u16) -> Request {
        let ecn = self.bytes[self.l4 + 13] & 0x80 != 0;
        Request {
            csum: Some(CsumAt {
                start: self.l4 as u16,
                offset: 16,
            }),
            gso: if self.v6 {
                Gso::Tcp6 { mss, ecn }
            } else {
                Gso::Tcp4 { mss, ecn }
            },
            csum_valid: false,
        }
    }
}

/// The transport of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Udp,
    Icmp,
}

/// Headers below the transport: the bytes, where IP starts, whether it is version 6.
type Lower = (Vec<u8>, usize, bool);

fn ethernet() -> impl Strategy<Value = Vec<u8>> {
    let tags = prop_oneof![
        Just(vec![]),
        Just(vec![0x8100u16]),
        Just(vec![0x88a8]),
        Just(vec![0x88a8, 0x8100]),
        Just(vec![0x8100, 0x8100]),
    ];
    (any::<[u8; 12]>(), tags, any::<[u16; 2]>()).prop_map(|(macs, tpids, tcis)| {
        let mut bytes = macs.to_vec();
        for (tpid, tci) in tpids.into_iter().zip(tcis) {
            bytes.extend(tpid.to_be_bytes());
            bytes.extend(tci.to_be_bytes());
        }
        bytes
    })
}

/// Lengths, protocol and checksum are filled in by `finish`.
fn ipv4() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let options = (0usize..=10).prop_flat_map(|words| vec(any::<u8>(), words * 4));
    (
        any::<[u8; 8]>(),
        any::<u8>(),
        any::<u16>(),
        any::<bool>(),
        options,
    )
        .prop_map(|(addresses, tos, id, dont_fragment, options)| {
            let mut ip = vec![0x45 + (options.len() / 4) as u8, tos, 0, 0];
            ip.extend(id.to_be_bytes());
            ip.extend([if dont_fragment { 0x40 } else { 0 }, 0, 64, 0, 0, 0]);
            ip.extend(addresses);
            ip.extend(options);
            (ip, vec![])
        })
}

/// The fixed header, and the types and lengths of extension headers in the order that RFC 8200 recommends.
fn ipv6() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let chain = subsequence(vec![0u8, 60, 43, 44, 51], 0..=3);
    (any::<[u8; 32]>(), any::<[u8; 3]>(), chain).prop_map(|(addresses, class, chain)| {
        let mut ip = vec![0x60 | class[0] >> 4, class[1], class[2], 0, 0, 0, 0, 64];
        ip.extend(addresses);
        (ip, chain)
    })
}

/// Appends the extension headers and sets every next header field. No routing header has segments left and every
/// fragment header is atomic, so the packet is whole and addressed to the destination in its header.
fn chain_extensions(ip: &mut Vec<u8>, chain: &[u8], protocol: u8) {
    let mut next_at = 6;
    for &kind in chain {
        ip[next_at] = kind;
        next_at = ip.len();
        match kind {
            // Padded with PadN to 16 bytes.
            0 | 60 => ip.extend([0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            43 => ip.extend([0, 0, 253, 0, 0, 0, 0, 0]),
            44 => ip.extend([0, 0, 0, 0, 1, 2, 3, 4]),
            _ => ip.extend([0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 9, 9, 9, 9]),
        }
    }
    ip[next_at] = protocol;
}

fn lower(kind: Kind) -> impl Strategy<Value = Lower> {
    let ip = prop_oneof![
        ipv4().prop_map(|ip| (ip, false)),
        ipv6().prop_map(|ip| (ip, true))
    ];
    (ethernet(), ip).prop_map(move |(mut bytes, ((mut ip, chain), v6))| {
        let protocol = match kind {
            Kind::Tcp => 6,
            Kind::Udp => 17,
            Kind::Icmp if v6 => 58,
            Kind::Icmp => 1,
        };
        if v6 {
            chain_extensions(&mut ip, &chain, protocol);
        } else {
            ip[9] = protocol;
        }
        bytes.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
        let l3 = bytes.len();
        bytes.extend(ip);
        (bytes, l3, v6)
    })
}

fn transport(kind: Kind) -> BoxedStrategy<Vec<u8>> {
    match kind {
        Kind::Tcp => {
            let options = (0usize..=10).prop_flat_map(|words| vec(any::<u8>(), words * 4));
            (any::<[u8; 20]>(), options)
                .prop_map(|(mut tcp, options)| {
                    tcp[12] = 0x50 + ((options.len() / 4) as u8) * 0x10;
                    [&tcp[..], &options].concat()
                })
                .boxed()
        }
        Kind::Udp => any::<[u8; 8]>().prop_map(Vec::from).boxed(),
        // Echo request.
        Kind::Icmp => any::<[u8; 4]>()
            .prop_map(|rest| [&[8, 0, 0, 0][..], &rest].concat())
            .boxed(),
    }
}

/// A whole packet of `kind`, its headers in the snapshot, lengths and IPv4 checksum right. The checksum of TCP is
/// partial.
pub(crate) fn frame(
    kind: Kind,
    payload: impl Strategy<Value = Vec<u8>>,
) -> impl Strategy<Value = Frame> {
    (lower(kind), transport(kind), payload)
        .prop_map(move |((mut bytes, l3, v6), transport, payload)| {
            let l4 = bytes.len();
            bytes.extend(transport);
            let header_len = bytes.len();
            bytes.extend(payload);
            finish(&mut bytes, l3, l4, kind, v6);
            Frame {
                bytes,
                l3,
                l4,
                header_len,
                v6,
            }
        })
        .prop_filter("headers fit the snapshot", |frame| {
            frame.header_len <= SNAPSHOT
        })
}

fn finish(bytes: &mut [u8], l3: usize, l4: usize, kind: Kind, v6: bool) {
    let ip_len = (bytes.len() - l3) as u16;
    let l4_len = (bytes.len() - l4) as u16;
    if v6 {
        bytes[l3 + 4..l3 + 6].copy_from_slice(&(ip_len - 40).to_be_bytes());
    } else {
        bytes[l3 + 2..l3 + 4].copy_from_slice(&ip_len.to_be_bytes());
        let checksum = !naive_sum(&bytes[l3..l4]);
        bytes[l3 + 10..l3 + 12].copy_from_slice(&checksum.to_be_bytes());
    }
    match kind {
        Kind::Tcp => {
            let addresses = if v6 {
                l3 + 8..l3 + 40
            } else {
                l3 + 12..l3 + 20
            };
            let mut pseudo = bytes[addresses].to_vec();
            pseudo.extend([0, 6]);
            pseudo.extend(l4_len.to_be_bytes());
            let sum = naive_sum(&pseudo);
            bytes[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
        }
        Kind::Udp => bytes[l4 + 4..l4 + 6].copy_from_slice(&l4_len.to_be_bytes()),
        Kind::Icmp => {}
    }
}

/// One's-complement sum, a word at a time.
pub(crate) fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub(crate) fn any_frame() -> impl Strategy<Value = (Kind, Frame)> {
    prop_oneof![Just(Kind::Tcp), Just(Kind::Udp), Just(Kind::Icmp)]
        .prop_flat_map(|kind| (Just(kind), frame(kind, vec(any::<u8>(), 0..200))))
}

/// Arbitrary bytes, and valid frames with some bytes changed: the latter get past the first checks.
pub(crate) fn hostile_bytes() -> impl Strategy<Value = Vec<u8>> {
    let mutated = (
        any_frame(),
        vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    )
        .prop_map(|((_, frame), edits)| {
            let mut bytes = frame.bytes;
            let end = bytes.len().min(frame.header_len + 4);
            for (index, byte) in edits {
                bytes[12 + index.index(end - 12)] = byte;
            }
            bytes
        });
    prop_oneof![1 => vec(any::<u8>(), 0..200), 4 => mutated]
}

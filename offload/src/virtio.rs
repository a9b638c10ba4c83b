//! The virtio-net header: how virtio and TAP ports say a [`Request`].

use crate::request::{CsumAt, Gso, Request, RequestError};

/// `struct virtio_net_hdr_v1` (virtio 1.2 section 5.1.6), 12 bytes, little-endian. The legacy `virtio_net_hdr` is its
/// first 10 bytes.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct VirtioNetHdr {
    /// `NEEDS_CSUM` 1, `DATA_VALID` 2, `RSC_INFO` 4.
    pub flags: u8,
    /// `GSO_NONE` 0, `GSO_TCPV4` 1, `GSO_UDP` 3, `GSO_TCPV6` 4, `GSO_UDP_L4` 5; `GSO_ECN` 0x80 is added to a TCP type.
    pub gso_type: u8,
    /// Length of the headers of a large frame. A hint: never trusted.
    pub hdr_len: u16,
    /// Most payload bytes in a segment.
    pub gso_size: u16,
    /// As [`CsumAt::start`].
    pub csum_start: u16,
    /// As [`CsumAt::offset`].
    pub csum_offset: u16,
    /// Buffers that a received frame spans.
    pub num_buffers: u16,
}

impl VirtioNetHdr {
    /// Size in bytes.
    pub const LEN: usize = 12;
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
    pub const NEEDS_CSUM: u8 = 1;
    /// `VIRTIO_NET_HDR_F_DATA_VALID`.
    pub const DATA_VALID: u8 = 2;
    /// `VIRTIO_NET_HDR_GSO_NONE`.
    pub const GSO_NONE: u8 = 0;
    /// `VIRTIO_NET_HDR_GSO_TCPV4`.
    pub const GSO_TCPV4: u8 = 1;
    /// `VIRTIO_NET_HDR_GSO_TCPV6`.
    pub const GSO_TCPV6: u8 = 4;
    /// `VIRTIO_NET_HDR_GSO_ECN`.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the header.
    #[inline]
    #[must_use]
    pub const fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: u16::from_le_bytes([n0, n1]),
        }
    }

    /// Writes the header.
    #[inline]
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; Self::LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        [
            self.flags,
            self.gso_type,
            h0,
            h1,
            g0,
            g1,
            s0,
            s1,
            o0,
            o1,
            n0,
            n1,
        ]
    }
}

impl Request {
    /// The request in a virtio header (virtio 1.2 section 5.1.6.2). Flags that are not known are ignored, as the
    /// specification demands of a device, and so are the fields that the flags and the type do not call for.
    ///
    /// # Errors
    /// `GsoType`, `GsoWithoutCsum`, `GsoSize`.
    #[inline]
    pub fn from_virtio(header: &VirtioNetHdr) -> Result<Self, RequestError> {
        let csum = (header.flags & VirtioNetHdr::NEEDS_CSUM != 0).then_some(CsumAt {
            start: header.csum_start,
            offset: header.csum_offset,
        });
        let mss = header.gso_size;
        let ecn = header.gso_type & VirtioNetHdr::GSO_ECN != 0;
        let gso = match header.gso_type & !VirtioNetHdr::GSO_ECN {
            VirtioNetHdr::GSO_NONE if !ecn => Gso::None,
            VirtioNetHdr::GSO_TCPV4 => Gso::Tcp4 { mss, ecn },
            VirtioNetHdr::GSO_TCPV6 => Gso::Tcp6 { mss, ecn },
            _ => return Err(RequestError::GsoType),
        };
        if gso != Gso::None && csum.is_none() {
            return Err(RequestError::GsoWithoutCsum);
        }
        if gso != Gso::None && mss == 0 {
            return Err(RequestError::GsoSize);
        }
        Ok(Self {
            csum,
            gso,
            csum_valid: header.flags & VirtioNetHdr::DATA_VALID != 0,
        })
    }

    /// The virtio header of a frame with this request that spans one buffer. `hdr_len` is the length of the headers of
    /// a large frame ([`Checked::header_len`](crate::Checked::header_len)).
    #[inline]
    #[must_use]
    pub fn to_virtio(&self, hdr_len: u16) -> VirtioNetHdr {
        let mut header = VirtioNetHdr {
            num_buffers: 1,
            ..VirtioNetHdr::default()
        };
        if let Some(at) = self.csum {
            header.flags = VirtioNetHdr::NEEDS_CSUM;
            header.csum_start = at.start;
            header.csum_offset = at.offset;
        } else if self.csum_valid {
            header.flags = VirtioNetHdr::DATA_VALID;
        }
        let (kind, mss, ecn) = match self.gso {
            Gso::None => return header,
            Gso::Tcp4 { mss, ecn } => (VirtioNetHdr::GSO_TCPV4, mss, ecn),
            Gso::Tcp6 { mss, ecn } => (VirtioNetHdr::GSO_TCPV6, mss, ecn),
        };
        header.gso_type = if ecn {
            kind | VirtioNetHdr::GSO_ECN
        } else {
            kind
        };
        header.gso_size = mss;
        header.hdr_len = hdr_len;
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: CsumAt = CsumAt {
        start: 34,
        offset: 16,
    };

    /// flags, gso_type, gso_size, and what they ask for.
    #[test]
    fn requests_of_headers() {
        let csum = Request {
            csum: Some(AT),
            ..Request::default()
        };
        let valid = Request {
            csum_valid: true,
            ..Request::default()
        };
        let tcp4 = |ecn| Request {
            gso: Gso::Tcp4 { mss: 1448, ecn },
            ..csum
        };
        let tcp6 = |ecn| Request {
            gso: Gso::Tcp6 { mss: 1448, ecn },
            ..csum
        };
        let table = [
            (0, 0, 0, Ok(Request::default())),
            (0, 0, 99, Ok(Request::default())),
            (1, 0, 0, Ok(csum)),
            (2, 0, 0, Ok(valid)),
            (0xf8, 0, 0, Ok(Request::default())),
            (1, 1, 1448, Ok(tcp4(false))),
            (1, 0x81, 1448, Ok(tcp4(true))),
            (1, 4, 1448, Ok(tcp6(false))),
            (1, 0x84, 1448, Ok(tcp6(true))),
            (0, 1, 1448, Err(RequestError::GsoWithoutCsum)),
            (1, 1, 0, Err(RequestError::GsoSize)),
            (1, 3, 1448, Err(RequestError::GsoType)),
            (1, 5, 1448, Err(RequestError::GsoType)),
            (1, 0x80, 1448, Err(RequestError::GsoType)),
            (1, 0x85, 1448, Err(RequestError::GsoType)),
        ];
        for (flags, gso_type, gso_size, expected) in table {
            let header = VirtioNetHdr {
                flags,
                gso_type,
                gso_size,
                hdr_len: 0xffff,
                csum_start: AT.start,
                csum_offset: AT.offset,
                num_buffers: 0,
            };
            assert_eq!(Request::from_virtio(&header), expected, "{header:?}");
            if let Ok(request) = expected {
                assert_eq!(Request::from_virtio(&request.to_virtio(54)), expected);
            }
        }
    }

    #[test]
    fn bytes_of_header() {
        let bytes = [1, 0x84, 74, 0, 0x94, 5, 54, 0, 16, 0, 1, 0];
        let header = VirtioNetHdr::from_bytes(&bytes);
        let request = Request {
            csum: Some(CsumAt {
                start: 54,
                offset: 16,
            }),
            gso: Gso::Tcp6 {
                mss: 1428,
                ecn: true,
            },
            csum_valid: false,
        };
        assert_eq!(Request::from_virtio(&header), Ok(request));
        assert_eq!(request.to_virtio(74).to_bytes(), bytes);
        assert_eq!(
            Request::default().to_virtio(74).to_bytes(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
        );
    }
}

//! The one pure function that says what must be done so that a destination gets no shape that it did not agree to.

use crate::ETHER_LEN;
use crate::request::{Checked, Gso, MAX_SEGMENTS, Request};

/// What a destination agreed to receive.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Features {
    /// Partial checksums. Without it, those of large frames are completed too.
    pub csum: bool,
    /// Large TCP over IPv4.
    pub tso4: bool,
    /// Large TCP over IPv6.
    pub tso6: bool,
    /// Large TCP with CWR set.
    pub ecn: bool,
}

/// What is done to a frame for one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A plain frame, delivered as it is: a partial checksum stays partial.
    AsIs,
    /// Complete the partial checksum.
    FillChecksum,
    /// Cut into segments of `mss` payload bytes, and complete the checksum of each unless the destination agreed to
    /// partial ones ([`Features::csum`]).
    Segment {
        /// Most TCP payload bytes in a segment, at least 1.
        mss: u16,
    },
    /// Deliver a large frame uncut, with `mss` in its request.
    KeepLarge {
        /// Most TCP payload bytes in a segment, at least 1; lowered to the destination's MTU.
        mss: u16,
    },
    /// Deliver a large frame uncut, its partial checksum completed.
    FillLarge,
    /// Drop: longer than the destination's MTU, and no cutting helps.
    TooLong,
}

impl Action {
    /// The request that accompanies what is delivered, or each segment of it. Offsets are those before any tag edit.
    #[inline]
    #[must_use]
    pub fn outgoing(self, frame: &Checked, dest: &Features) -> Request {
        let request = frame.request();
        match self {
            Self::TooLong | Self::FillChecksum | Self::FillLarge => Request::default(),
            Self::AsIs => Request {
                csum_valid: request.csum_valid && dest.csum,
                ..request
            },
            Self::Segment { .. } => Request {
                csum: request.csum.filter(|_| dest.csum),
                ..Request::default()
            },
            Self::KeepLarge { mss } => Request {
                gso: request.gso.with_mss(mss),
                csum_valid: false,
                ..request
            },
        }
    }
}

/// What to do with a frame of `len` bytes for a destination with the features `dest`, whose longest untagged frame is
/// `max_frame` bytes (its MTU and 14).
///
/// Length is compared behind the Ethernet header and its tags, so tags never count, neither those that are there nor
/// those that a later [`TagEdit`](crate::TagEdit) adds. A large frame is cut smaller than its sender asked for if the
/// MTU is smaller; a plain one is too long.
#[inline]
#[must_use]
pub fn plan(frame: &Checked, len: u32, dest: &Features, max_frame: u32) -> Action {
    let mtu = max_frame.saturating_sub(ETHER_LEN as u32);
    let l2_len = u32::from(frame.l2_len());
    let request = frame.request();
    let (mss, agreed) = match request.gso {
        Gso::None => {
            return if len.saturating_sub(l2_len) > mtu {
                Action::TooLong
            } else if request.csum.is_some() && !dest.csum {
                Action::FillChecksum
            } else {
                Action::AsIs
            };
        }
        Gso::Tcp4 { mss, ecn } => (mss, dest.tso4 && (dest.ecn || !ecn)),
        Gso::Tcp6 { mss, ecn } => (mss, dest.tso6 && (dest.ecn || !ecn)),
    };
    let header_len = u32::from(frame.header_len());
    let room = mtu.saturating_sub(header_len.saturating_sub(l2_len));
    let mss = u32::from(mss).min(room) as u16;
    let payload = len.saturating_sub(header_len);
    if mss == 0 || payload.div_ceil(u32::from(mss)) > MAX_SEGMENTS {
        Action::TooLong
    } else {
        match (agreed, dest.csum) {
            (true, true) => Action::KeepLarge { mss },
            (true, false) => Action::FillLarge,
            (false, _) => Action::Segment { mss },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{CsumAt, validate};

    const NOTHING: Features = Features {
        csum: false,
        tso4: false,
        tso6: false,
        ecn: false,
    };
    const CSUM: Features = Features {
        csum: true,
        ..NOTHING
    };
    const TSO4: Features = Features { tso4: true, ..CSUM };
    const TSO4_ALONE: Features = Features {
        tso4: true,
        ..NOTHING
    };
    const ALL: Features = Features {
        csum: true,
        tso4: true,
        tso6: true,
        ecn: true,
    };

    /// Untagged IPv4 and TCP without options: 54 bytes of headers.
    fn head(flags: u8) -> [u8; 54] {
        let mut head = [0; 54];
        head[12] = 8;
        head[14] = 0x45;
        head[23] = 6;
        head[46] = 0x50;
        head[47] = flags;
        head
    }

    fn checked(gso: Gso, flags: u8, len: u32) -> Checked {
        let csum = (flags != 0).then_some(CsumAt {
            start: 34,
            offset: 16,
        });
        validate(
            &Request {
                csum,
                gso,
                csum_valid: false,
            },
            &head(flags),
            len,
        )
        .unwrap()
    }

    #[test]
    fn plain_frames() {
        let table = [
            (0, 1514, NOTHING, Action::AsIs),
            (0, 1515, ALL, Action::TooLong),
            (0x10, 1514, NOTHING, Action::FillChecksum),
            (0x10, 1514, CSUM, Action::AsIs),
            (0x10, 1515, CSUM, Action::TooLong),
        ];
        for (flags, len, features, expected) in table {
            let frame = checked(Gso::None, flags, len);
            assert_eq!(
                plan(&frame, len, &features, 1514),
                expected,
                "{flags:#x} {len} {features:?}"
            );
        }
    }

    #[test]
    fn tags_do_not_count() {
        let tagged = [
            &[0; 12][..],
            &[0x81, 0, 0, 1, 0x81, 0, 0, 2, 8, 0],
            &[0; 40],
        ]
        .concat();
        let frame = validate(&Request::default(), &tagged, 1522).unwrap();
        assert_eq!(plan(&frame, 1522, &NOTHING, 1514), Action::AsIs);
        assert_eq!(plan(&frame, 1523, &NOTHING, 1514), Action::TooLong);
    }

    #[test]
    fn large_frames() {
        let mss = 1460;
        let no_tso4 = Features { tso4: false, ..ALL };
        let no_csum = Features { csum: false, ..ALL };
        let table = [
            (0x10, TSO4, 1514, Action::KeepLarge { mss }),
            (0x10, TSO4, 9014, Action::KeepLarge { mss }),
            (0x10, TSO4, 1014, Action::KeepLarge { mss: 960 }),
            (0x10, CSUM, 1514, Action::Segment { mss }),
            (0x10, NOTHING, 1014, Action::Segment { mss: 960 }),
            (0x10, no_tso4, 1514, Action::Segment { mss }),
            (0x10, no_csum, 1514, Action::FillLarge),
            (0x90, TSO4_ALONE, 1514, Action::Segment { mss }),
            (0x90, TSO4, 1514, Action::Segment { mss }),
            (0x90, ALL, 1514, Action::KeepLarge { mss }),
            (0x10, ALL, 14 + 40 + 9, Action::KeepLarge { mss: 9 }),
            (0x10, ALL, 14 + 40 + 8, Action::TooLong),
            (0x10, ALL, 14 + 40, Action::TooLong),
            (0x10, ALL, 0, Action::TooLong),
        ];
        for (flags, features, max_frame, expected) in table {
            let len = 54 + 9 * MAX_SEGMENTS;
            let frame = checked(Gso::Tcp4 { mss, ecn: false }, flags, len);
            assert_eq!(
                plan(&frame, len, &features, max_frame),
                expected,
                "{flags:#x} {features:?} {max_frame}"
            );
        }
    }
}

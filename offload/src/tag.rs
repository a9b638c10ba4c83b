//! The Ethernet header and its 802.1Q tag.
//!
//! Only a first tag with TPID 0x8100 is a VLAN tag to the switch. A frame that starts with TPID 0x88a8 (802.1ad) is
//! untagged to it and passes through; the parser still steps over it to find the network header.

use crate::field::{array, be16};
use crate::{ETHER_LEN, HEAD_MAX};

/// TPID of an 802.1Q customer tag.
pub const TPID_8021Q: u16 = 0x8100;
/// TPID of an 802.1ad service tag.
pub const TPID_8021AD: u16 = 0x88a8;

const TAG_LEN: usize = 4;
/// The tag follows the two MAC addresses.
const TAG_AT: usize = 12;
/// Tags that the parser steps over: one service and one customer tag.
const TAGS_MAX: usize = 2;

/// An 802.1Q tag (IEEE 802.1Q-2018 section 9.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// Tag control information: PCP (3 bits), DEI (1 bit), VID (12 bits).
    pub tci: u16,
}

impl Tag {
    /// Priority code point, 0 to 7.
    #[must_use]
    pub const fn pcp(self) -> u8 {
        (self.tci >> 13) as u8
    }

    /// Drop eligible indicator.
    #[must_use]
    pub const fn dei(self) -> bool {
        self.tci & 0x1000 != 0
    }

    /// VLAN identifier, 0 to 4095. 0 is a priority tag, 4095 is reserved.
    #[must_use]
    pub const fn vid(self) -> u16 {
        self.tci & 0x0fff
    }
}

/// What the link layer says: the part of [`Headers`](crate::Headers) that needs no more than 22 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) len: u16,
    pub(crate) tag: Option<Tag>,
    pub(crate) ethertype: u16,
}

impl Link {
    /// `None` if `head` is shorter than an Ethernet header. A tag that is cut off stays in `ethertype`.
    #[inline]
    pub(crate) fn parse(head: &[u8]) -> Option<Self> {
        let mut ethertype = be16(head, TAG_AT)?;
        let mut len = ETHER_LEN;
        let mut tag = None;
        for depth in 0..TAGS_MAX {
            if ethertype != TPID_8021Q && ethertype != TPID_8021AD {
                break;
            }
            let Some([tci_high, tci_low, type_high, type_low]) = array(head, len) else {
                break;
            };
            if depth == 0 && ethertype == TPID_8021Q {
                tag = Some(Tag {
                    tci: u16::from_be_bytes([tci_high, tci_low]),
                });
            }
            ethertype = u16::from_be_bytes([type_high, type_low]);
            len += TAG_LEN;
        }
        Some(Self {
            len: len as u16,
            tag,
            ethertype,
        })
    }
}

/// A change of a frame's first 802.1Q tag on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TagEdit {
    /// Leave the head as it is.
    #[default]
    Keep,
    /// Take the tag away.
    Strip,
    /// Put a tag in front of the ethertype (and of any tag that is there).
    Insert(Tag),
    /// Overwrite the tag control information of the tag that is there.
    Replace(Tag),
}

impl TagEdit {
    /// The edit that turns a frame with the tag `now` into one with the tag `wanted`.
    #[must_use]
    pub fn between(now: Option<Tag>, wanted: Option<Tag>) -> Self {
        match (now, wanted) {
            (None, None) => Self::Keep,
            (Some(_), None) => Self::Strip,
            (None, Some(tag)) => Self::Insert(tag),
            (Some(old), Some(tag)) if old == tag => Self::Keep,
            (Some(_), Some(tag)) => Self::Replace(tag),
        }
    }

    /// By how many bytes the frame, its head and every offset behind the MAC addresses grow: -4, 0 or 4.
    #[inline]
    #[must_use]
    pub const fn delta(self) -> i8 {
        match self {
            Self::Keep | Self::Replace(_) => 0,
            Self::Strip => -(TAG_LEN as i8),
            Self::Insert(_) => TAG_LEN as i8,
        }
    }

    /// Writes the edited `head` to the start of `out` and gives its length.
    ///
    /// Offsets of a request move with it: see [`Checked::retagged`](crate::Checked::retagged) and
    /// [`CsumAt::moved`](crate::CsumAt::moved).
    ///
    /// `None` if the edit does not fit the head: no MAC addresses, no 802.1Q tag to strip or replace, or no room.
    #[inline]
    pub fn apply(self, head: &[u8], out: &mut [u8; HEAD_MAX]) -> Option<usize> {
        let (macs, rest) = head.split_at_checked(TAG_AT)?;
        let rest = match self {
            Self::Keep | Self::Insert(_) => rest,
            Self::Strip | Self::Replace(_) => {
                let [high, low, _, _, ..] = rest else {
                    return None;
                };
                if u16::from_be_bytes([*high, *low]) != TPID_8021Q {
                    return None;
                }
                rest.get(TAG_LEN..)?
            }
        };
        let (out_macs, out_rest) = out.split_at_mut_checked(TAG_AT)?;
        let tail = match self {
            Self::Keep | Self::Strip => out_rest,
            Self::Insert(tag) | Self::Replace(tag) => {
                let (field, tail) = out_rest.split_first_chunk_mut::<TAG_LEN>()?;
                let [tci_high, tci_low] = tag.tci.to_be_bytes();
                let [tpid_high, tpid_low] = TPID_8021Q.to_be_bytes();
                *field = [tpid_high, tpid_low, tci_high, tci_low];
                tail
            }
        };
        tail.get_mut(..rest.len())?.copy_from_slice(rest);
        out_macs.copy_from_slice(macs);
        head.len().checked_add_signed(isize::from(self.delta()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    const TAG: Tag = Tag { tci: 0xb064 };

    fn frame(rest: &[u8]) -> Vec<u8> {
        [&MACS, rest].concat()
    }

    #[test]
    fn fields_of_tag() {
        assert_eq!((TAG.pcp(), TAG.dei(), TAG.vid()), (5, true, 100));
    }

    #[test]
    fn links() {
        let table: [(&[u8], u16, Option<Tag>, u16); 8] = [
            (&[8, 0], 14, None, 0x800),
            (&[0x81, 0, 0xb0, 100, 8, 0], 18, Some(TAG), 0x800),
            (
                &[0x81, 0, 0xb0, 100, 0x81, 0, 0, 1, 8, 0],
                22,
                Some(TAG),
                0x800,
            ),
            (&[0x88, 0xa8, 0xb0, 100, 8, 0], 18, None, 0x800),
            (
                &[0x88, 0xa8, 0xb0, 100, 0x81, 0, 0, 1, 8, 0],
                22,
                None,
                0x800,
            ),
            (&[0x81, 0, 0xb0, 100, 8], 14, None, 0x8100),
            (&[0x81, 0, 0xb0, 100, 0x81, 0, 0, 1], 18, Some(TAG), 0x8100),
            (
                &[0x81, 0, 0xb0, 100, 0x81, 0, 0, 1, 0x81, 0, 0, 1, 8, 0],
                22,
                Some(TAG),
                0x8100,
            ),
        ];
        for (rest, len, tag, ethertype) in table {
            assert_eq!(
                Link::parse(&frame(rest)),
                Some(Link {
                    len,
                    tag,
                    ethertype
                }),
                "{rest:x?}"
            );
        }
        assert_eq!(Link::parse(&frame(&[8])), None);
    }

    #[test]
    fn edits() {
        let plain: &[u8] = &[8, 0, 0x45];
        let tagged: &[u8] = &[0x81, 0, 0, 1, 8, 0, 0x45];
        let retagged: &[u8] = &[0x81, 0, 0xb0, 100, 8, 0, 0x45];
        let service: &[u8] = &[0x88, 0xa8, 0, 1, 8, 0, 0x45];
        let inserted: &[u8] = &[0x81, 0, 0xb0, 100, 0x88, 0xa8, 0, 1, 8, 0, 0x45];
        let table = [
            (TagEdit::Keep, tagged, Some(tagged)),
            (TagEdit::Strip, tagged, Some(plain)),
            (TagEdit::Replace(TAG), tagged, Some(retagged)),
            (TagEdit::Insert(TAG), plain, Some(retagged)),
            (TagEdit::Insert(TAG), service, Some(inserted)),
            (TagEdit::Strip, plain, None),
            (TagEdit::Strip, service, None),
            (TagEdit::Replace(TAG), service, None),
            (TagEdit::Strip, &[0x81, 0, 0], None),
        ];
        for (edit, rest, expected) in table {
            let mut out = [0; HEAD_MAX];
            let len = edit.apply(&frame(rest), &mut out);
            let expected = expected.map(frame);
            assert_eq!(
                len.map(|len| &out[..len]),
                expected.as_deref(),
                "{edit:?} {rest:x?}"
            );
        }
    }

    #[test]
    fn edits_at_the_ends() {
        let mut out = [0; HEAD_MAX];
        assert_eq!(TagEdit::Keep.apply(&MACS[..11], &mut out), None);
        assert_eq!(TagEdit::Insert(TAG).apply(&[7; 128], &mut out), Some(132));
        assert_eq!(TagEdit::Insert(TAG).apply(&[7; 129], &mut out), None);
    }

    #[test]
    fn edit_between_tags() {
        let other = Tag { tci: 1 };
        assert_eq!(TagEdit::between(None, None), TagEdit::Keep);
        assert_eq!(TagEdit::between(Some(TAG), None), TagEdit::Strip);
        assert_eq!(TagEdit::between(None, Some(TAG)), TagEdit::Insert(TAG));
        assert_eq!(TagEdit::between(Some(TAG), Some(TAG)), TagEdit::Keep);
        assert_eq!(
            TagEdit::between(Some(other), Some(TAG)),
            TagEdit::Replace(TAG)
        );
    }
}

//! Taking values off the front of a fuzzer's input. Past its end all is zero, so every input means something.

use arbitrary::Unstructured;
use offload::Features;
use vswitch::mac::Mac;
use vswitch::vlan::{VidSet, VlanMode};

/// The rest of an input.
pub struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    /// All of `data`.
    pub fn new(data: &'a [u8]) -> Input<'a> {
        Input(Unstructured::new(data))
    }

    /// Whether all was taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> u16 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> u32 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// Up to `len` bytes, fewer at the end.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        self.0.bytes(len.min(self.0.len())).unwrap_or(&[])
    }

    /// One of `choices`.
    pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.u8()) % choices.len()]
    }

    /// All that is left.
    pub fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }

    /// What a destination takes: a bit each.
    pub fn features(&mut self) -> Features {
        let bits = self.u8();
        Features {
            csum: bits & 1 != 0,
            tso4: bits & 2 != 0,
            tso6: bits & 4 != 0,
            ecn: bits & 8 != 0,
        }
    }

    /// VLAN membership, with identifiers of few bits so that ports meet.
    pub fn vlan(&mut self) -> VlanMode {
        let bits = self.u8();
        let vid = u16::from(bits >> 2 & 3) + 10;
        match bits & 3 {
            0 => VlanMode::None,
            1 => VlanMode::Access(vid),
            _ => {
                let mut allowed = VidSet::empty();
                (0..4)
                    .filter(|bit| bits >> (4 + bit) & 1 != 0)
                    .for_each(|bit| allowed.insert(10 + bit));
                let native = [None, Some(0), Some(10), Some(vid)][usize::from(bits >> 2 & 3)];
                VlanMode::Trunk { allowed, native }
            }
        }
    }

    /// One of a few addresses: stations, groups, and what no station may have.
    pub fn mac(&mut self) -> Mac {
        let byte = self.u8();
        match byte {
            0..0xf0 => Mac([2, 0, 0, 0, 0, byte % 6]),
            0xf0..0xf8 => Mac::BROADCAST,
            0xf8..0xfb => Mac([0x33, 0x33, 0, 0, 0, 1]),
            0xfb..0xfd => Mac([0x01, 0x80, 0xc2, 0, 0, 0x0e]),
            _ => Mac::default(),
        }
    }
}

//! What leaves for a destination, computed on whole frames in the plainest way.

use offload::{Checked, CsumAt, Features, Gso, Request};
use vswitch::drops::DropReason;

use super::model::Egress;

/// One's complement sum of big-endian words, word by word (RFC 1071 section 1).
pub fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn add(a: u16, b: u16) -> u16 {
    let sum = u32::from(a) + u32::from(b);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub fn pseudo(frame: &[u8], l3: usize, v6: bool, protocol: u8, len: usize) -> u16 {
    let addresses = if v6 {
        &frame[l3 + 8..l3 + 40]
    } else {
        &frame[l3 + 12..l3 + 20]
    };
    add(sum(addresses), add(protocol.into(), len as u16))
}

/// A frame as it was judged: its snapshot, then its body as it was when it was copied.
#[derive(Clone)]
pub struct Judged {
    pub bytes: Vec<u8>,
    /// Bytes of it that are the snapshot.
    pub head: usize,
    pub checked: Checked,
}

/// A frame as a destination gets it.
#[derive(Clone)]
pub struct Out {
    pub bytes: Vec<u8>,
    pub request: Request,
    pub header_len: u16,
    /// It needs bytes of the source's memory.
    pub needs_body: bool,
    /// The switch completed its checksum.
    pub completed: bool,
}

fn tag(frame: &[u8]) -> Option<u16> {
    (frame.len() >= 18 && frame[12..14] == [0x81, 0])
        .then(|| u16::from_be_bytes([frame[14], frame[15]]))
}

/// Bytes of the Ethernet header, with two tags at most.
fn l2_len(frame: &[u8]) -> usize {
    let mut len = 14;
    while len < 22
        && frame.len() >= len + 4
        && (frame[len - 2..len] == [0x81, 0] || frame[len - 2..len] == [0x88, 0xa8])
    {
        len += 4;
    }
    len
}

fn retag(frame: &[u8], egress: Egress, vid: u16) -> (Vec<u8>, i64) {
    let old = tag(frame);
    let rest = if old.is_some() {
        &frame[16..]
    } else {
        &frame[12..]
    };
    let mut out = frame[..12].to_vec();
    if egress == Egress::Tagged {
        out.extend([0x81, 0]);
        out.extend((old.unwrap_or(0) & 0xf000 | vid).to_be_bytes());
    }
    out.extend(rest);
    let delta = out.len() as i64 - frame.len() as i64;
    (out, delta)
}

fn complete(frame: &mut [u8], at: CsumAt) {
    let (start, field) = (
        usize::from(at.start),
        usize::from(at.start) + usize::from(at.offset),
    );
    let value = match !sum(&frame[start..]) {
        0 if at.offset == 6 => 0xffff,
        value => value,
    };
    frame[field..field + 2].copy_from_slice(&value.to_be_bytes());
}

/// How `frame` of VLAN `vid` leaves for a destination, or why it does not.
pub fn leave(
    frame: &Judged,
    (egress, vid): (Egress, u16),
    features: Features,
    mtu: usize,
) -> Result<Vec<Out>, DropReason> {
    let (mut bytes, delta) = retag(&frame.bytes, egress, vid);
    // Without its tag the frame would be one of the VLAN of the tag under it.
    if egress == Egress::Untagged && delta < 0 && bytes[12..14] == [0x81, 0] {
        return Err(DropReason::VlanTagged);
    }
    let l2 = (l2_len(&frame.bytes) as i64 + delta) as usize;
    let head = (frame.head as i64 + delta) as usize;
    let asked = frame.checked.request();
    let csum = asked.csum.map(|at| CsumAt {
        start: (i64::from(at.start) + delta) as u16,
        ..at
    });
    let one = |bytes: Vec<u8>, request, header_len, completed| {
        let needs_body = bytes.len() > head;
        Ok(vec![Out {
            bytes,
            request,
            header_len,
            needs_body,
            completed,
        }])
    };
    let (mss, agreed) = match asked.gso {
        Gso::None if bytes.len() - l2 > mtu => return Err(DropReason::Mtu),
        Gso::None => {
            return match csum {
                Some(at) if !features.csum => {
                    complete(&mut bytes, at);
                    one(bytes, Request::default(), 0, true)
                }
                csum => {
                    let csum_valid = asked.csum_valid && features.csum;
                    let request = Request {
                        csum_valid,
                        csum,
                        gso: Gso::None,
                    };
                    one(bytes, request, 0, false)
                }
            };
        }
        Gso::Tcp4 { mss, .. } => (mss, features.tso4),
        Gso::Tcp6 { mss, .. } => (mss, features.tso6),
    };
    let l4 = usize::from(csum.unwrap().start);
    let headers = l4 + usize::from(bytes[l4 + 12] >> 4) * 4;
    let cwr = bytes[l4 + 13] & 0x80 != 0;
    let mss = usize::from(mss).min((mtu + l2).saturating_sub(headers));
    if mss == 0 || (bytes.len() - headers).div_ceil(mss) > 1024 {
        return Err(DropReason::Mtu);
    }
    if agreed && features.csum && (features.ecn || !cwr) {
        let gso = large(asked.gso, mss as u16, cwr);
        let request = Request {
            csum,
            gso,
            ..Request::default()
        };
        return one(bytes, request, headers as u16, false);
    }
    let keep_partial = features.csum;
    Ok(Cut {
        l2,
        l4,
        headers,
        mss,
        head,
        keep_partial,
    }
    .segments(&bytes))
}

fn large(kind: Gso, mss: u16, ecn: bool) -> Gso {
    match kind {
        Gso::Tcp4 { .. } => Gso::Tcp4 { mss, ecn },
        _ => Gso::Tcp6 { mss, ecn },
    }
}

struct Cut {
    l2: usize,
    l4: usize,
    headers: usize,
    mss: usize,
    head: usize,
    keep_partial: bool,
}

impl Cut {
    fn segments(&self, frame: &[u8]) -> Vec<Out> {
        let Cut {
            l4, headers, mss, ..
        } = *self;
        let payload = frame.len() - headers;
        (0..payload.div_ceil(mss))
            .map(|n| self.segment(frame, n, (n + 1) * mss >= payload, l4))
            .collect()
    }

    fn segment(&self, frame: &[u8], n: usize, last: bool, l4: usize) -> Out {
        let (l2, headers) = (self.l2, self.headers);
        let (from, to) = (
            headers + n * self.mss,
            (headers + (n + 1) * self.mss).min(frame.len()),
        );
        let mut bytes = [&frame[..headers], &frame[from..to]].concat();
        let (l3_len, l4_len) = ((bytes.len() - l2) as u16, (bytes.len() - l4) as u16);
        if bytes[l2 - 2..l2] == [8, 0] {
            bytes[l2 + 2..l2 + 4].copy_from_slice(&l3_len.to_be_bytes());
            let id = u16::from_be_bytes([bytes[l2 + 4], bytes[l2 + 5]]).wrapping_add(n as u16);
            bytes[l2 + 4..l2 + 6].copy_from_slice(&id.to_be_bytes());
            bytes[l2 + 10..l2 + 12].fill(0);
            let check = !sum(&bytes[l2..l4]);
            bytes[l2 + 10..l2 + 12].copy_from_slice(&check.to_be_bytes());
        } else {
            bytes[l2 + 4..l2 + 6].copy_from_slice(&(l3_len - 40).to_be_bytes());
        }
        let sequence = u32::from_be_bytes(bytes[l4 + 4..l4 + 8].try_into().unwrap());
        let sequence = sequence.wrapping_add((n * self.mss) as u32);
        bytes[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
        if !last {
            bytes[l4 + 13] &= !9;
        }
        if n > 0 {
            bytes[l4 + 13] &= !0x80;
        }
        let old = u16::from_be_bytes([bytes[l4 + 16], bytes[l4 + 17]]);
        let partial = add(add(old, !((frame.len() - l4) as u16)), l4_len);
        bytes[l4 + 16..l4 + 18].copy_from_slice(&partial.to_be_bytes());
        let at = CsumAt {
            start: l4 as u16,
            offset: 16,
        };
        if !self.keep_partial {
            complete(&mut bytes, at);
        }
        let request = Request {
            csum: self.keep_partial.then_some(at),
            ..Request::default()
        };
        Out {
            bytes,
            request,
            header_len: 0,
            needs_body: to > self.head,
            completed: !self.keep_partial,
        }
    }
}

//! Random frames: right ones, wrong ones, and wrong requests.

use offload::{CsumAt, Gso, Request};
use vswitch::mac::Mac;

use super::rng::Rng;

/// Stations of a simulation: few, so that they move between ports and are found.
pub fn station(index: u64) -> Mac {
    Mac([2, 0, 0, 0, 0, index as u8 + 1])
}

/// VLANs of a simulation.
pub const VIDS: [u16; 4] = [1, 10, 20, 4094];

pub struct Sent {
    pub frame: Vec<u8>,
    pub request: Request,
}

/// One frame from the port that is home to `station(home)`.
pub fn random(rng: &mut Rng, home: u64, stations: u64) -> Sent {
    match rng.below(100) {
        // Runts and frames that are too long for most.
        0..3 => return plain(rng.below(14) as usize, rng),
        3..5 => return plain(rng.range(9100, 66_000) as usize, rng),
        _ => {}
    }
    let mut frame = macs(rng, home, stations);
    tags(rng, &mut frame);
    let l2 = frame.len();
    match rng.below(10) {
        0..2 => {
            frame.extend([0x12, 0x34]);
            let len = rng.pick(&[0, 2, 46, 112, 114, 200, 1496, 1500, 1501]);
            frame.extend(rng.bytes(len));
            let request = if rng.chance(10) {
                bad(rng)
            } else {
                Request::default()
            };
            Sent { frame, request }
        }
        _ => ip(rng, frame, l2),
    }
}

fn plain(len: usize, rng: &mut Rng) -> Sent {
    Sent {
        frame: rng.bytes(len),
        request: Request::default(),
    }
}

fn macs(rng: &mut Rng, home: u64, stations: u64) -> Vec<u8> {
    let to = match rng.below(20) {
        0 => Mac::BROADCAST,
        1 => Mac([1, 0, 0x5e, 0, 0, 1]),
        2 => Mac([1, 0x80, 0xc2, 0, 0, rng.range(0, 17) as u8]),
        3 => station(100),
        _ => station(rng.below(stations)),
    };
    let from = match rng.below(40) {
        0 => Mac([3, 0, 0, 0, 0, 1]),
        1 => Mac::default(),
        2..6 => station(rng.below(stations)),
        _ => station(home),
    };
    [to.0, from.0].concat()
}

fn tags(rng: &mut Rng, frame: &mut Vec<u8>) {
    let mut tag = |tpid: u16, vid: u16, rng: &mut Rng| {
        frame.extend(tpid.to_be_bytes());
        frame.extend((vid | (rng.next() as u16 & 0xf000)).to_be_bytes());
    };
    match rng.below(10) {
        0..3 => tag(0x8100, rng.pick(&VIDS), rng),
        3 => tag(0x8100, 0, rng),
        4 => tag(0x88a8, rng.pick(&VIDS), rng),
        5 if rng.chance(30) => {
            tag(0x8100, rng.pick(&VIDS), rng);
            for _ in 0..rng.range(1, 2) {
                tag(rng.pick(&[0x8100, 0x88a8]), rng.pick(&VIDS), rng);
            }
        }
        _ => {}
    }
}

/// TCP or UDP over IPv4 or IPv6, complete or with a request.
fn ip(rng: &mut Rng, mut frame: Vec<u8>, l2: usize) -> Sent {
    let (v6, tcp, large) = (rng.chance(50), rng.chance(60), rng.chance(40));
    let large = tcp && large;
    let options = if tcp { rng.below(4) as usize * 4 } else { 0 };
    let l4_len = if tcp { 20 + options } else { 8 };
    let payload = match (large, rng.below(4)) {
        (true, 0) => rng.range(60_000, 65_300) as usize,
        (true, _) => rng.range(1, 12_000) as usize,
        (false, 0) => rng.pick(&[0, 1, 7, 1452, 1460, 1461, 8960]),
        (false, _) => rng.below(1460) as usize,
    };
    let protocol = if tcp { 6 } else { 17 };
    let l3 = l2 + 2;
    let l4_total = l4_len + payload;
    ip_header(rng, &mut frame, v6, protocol, l4_total);
    let l4 = frame.len();
    frame.extend([0x10, rng.below(4) as u8, 0, 80]);
    if tcp {
        frame.extend(rng.bytes(8));
        frame.extend([
            (l4_len as u8 / 4) << 4,
            0x10 | rng.pick(&[0, 1, 8, 9, 0x80, 0x89]),
            1,
            0,
            0,
            0,
            0,
            0,
        ]);
        frame.extend(vec![1; options]);
    } else {
        frame.extend((l4_total as u16).to_be_bytes());
        frame.extend([0, 0]);
    }
    frame.extend(rng.bytes(payload));
    let offset = if tcp { 16 } else { 6 };
    let pseudo = super::shape::pseudo(&frame, l3, v6, protocol, l4_total);
    let field = l4 + offset;
    frame[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
    let csum = Some(CsumAt {
        start: l4 as u16,
        offset: offset as u16,
    });
    if large || rng.chance(50) {
        let request = if large {
            large_request(rng, v6, csum)
        } else {
            Request {
                csum,
                ..Request::default()
            }
        };
        return Sent { frame, request };
    }
    let sum = match !super::shape::sum(&frame[l4..]) {
        0 if !tcp => 0xffff,
        sum => sum,
    };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    Sent {
        frame,
        request: Request::default(),
    }
}

/// Ethertype and IP header in front of `len` bytes.
fn ip_header(rng: &mut Rng, frame: &mut Vec<u8>, v6: bool, protocol: u8, len: usize) {
    let l3 = frame.len() + 2;
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((len as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend([0xfd; 15]);
        frame.push(rng.below(4) as u8);
        frame.extend([0xfd; 15]);
        frame.push(rng.below(4) as u8);
    } else {
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend((20 + len as u16).to_be_bytes());
        frame.extend(rng.bytes(2));
        frame.extend([
            0x40,
            0,
            64,
            protocol,
            0,
            0,
            10,
            0,
            0,
            rng.below(4) as u8,
            10,
            0,
            0,
            rng.below(4) as u8,
        ]);
        let sum = super::shape::sum(&frame[l3..]);
        frame[l3 + 10..l3 + 12].copy_from_slice(&(!sum).to_be_bytes());
    }
}

fn large_request(rng: &mut Rng, v6: bool, csum: Option<CsumAt>) -> Request {
    let mss = rng.pick(&[1460, 1448, 8960, 536, 100, 70]);
    let ecn = rng.chance(50);
    let gso = if v6 {
        Gso::Tcp6 { mss, ecn }
    } else {
        Gso::Tcp4 { mss, ecn }
    };
    if rng.chance(5) {
        bad(rng)
    } else {
        Request {
            csum,
            gso,
            csum_valid: false,
        }
    }
}

/// Requests that do not fit most frames.
fn bad(rng: &mut Rng) -> Request {
    let at = |rng: &mut Rng| CsumAt {
        start: rng.pick(&[0, 6, 14, 34, 54, 127, 1000, 0xffff]),
        offset: rng.pick(&[0, 2, 6, 16, 0xffff]),
    };
    let gso = match rng.below(3) {
        0 => Gso::None,
        1 => Gso::Tcp4 {
            mss: rng.pick(&[0, 1, 1460, 0xffff]),
            ecn: false,
        },
        _ => Gso::Tcp6 {
            mss: rng.pick(&[0, 1, 1460, 0xffff]),
            ecn: true,
        },
    };
    let csum = rng.chance(70).then(|| at(rng));
    Request {
        csum,
        gso,
        csum_valid: false,
    }
}

//! The guest's side of an integration service, as Linux has it: a request goes back as the answer, filled in.

use std::collections::VecDeque;
use std::sync::Arc;

use guestmem::Memory;

use super::guest::guest_rings;
use super::heap::Heap;
use super::ring::GuestRing;
use super::rndis::word;
use crate::vmbus::{Interrupts, Open, PageList};

/// Pages of each ring.
const RING: usize = 3;
/// Where the body starts.
const BODY: usize = 28;

/// Versions: major and minor.
pub type Versions = Vec<(u16, u16)>;

/// A guest with one service.
pub struct GuestService {
    heap: Heap,
    rings: super::heap::Area,
    /// The ring to the host.
    pub to_host: GuestRing,
    /// The ring from the host.
    pub from_host: GuestRing,
    /// Versions it speaks: of the framework and of the service, best first.
    pub speaks: (Versions, Versions),
    /// Items that it has, and those that were set.
    pub items: Vec<(String, String)>,
    /// The status it answers with.
    pub status: u32,
    /// Requests it has answered: type and body.
    pub requests: VecDeque<(u16, Vec<u8>)>,
}

impl GuestService {
    /// A guest that speaks version `service`, and framework 3.0.
    pub fn new(service: (u16, u16)) -> GuestService {
        let mut heap = Heap::new(64, true);
        let rings = heap.take(2 * RING);
        let (to_host, from_host) = guest_rings(&heap.memory, &rings, RING);
        GuestService {
            heap,
            rings,
            to_host,
            from_host,
            speaks: (vec![(3, 0), (1, 0)], vec![service]),
            items: Vec::new(),
            status: 0,
            requests: VecDeque::new(),
        }
    }

    /// Its memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.heap.memory
    }

    /// How it opens the channel.
    pub fn open(&self) -> Open {
        let list = PageList {
            ranges: [self.rings.range.clone()].into(),
        };
        Open {
            ring: Arc::new(list),
            downstream_page: RING as u32,
            target_vp: 0,
            interrupts: Interrupts::Flag,
        }
    }

    /// Answers every request there is.
    ///
    /// # Panics
    /// The host does not keep to the protocol.
    pub fn run(&mut self) {
        while let Some(packet) = self.from_host.receive() {
            assert_eq!(
                (packet.kind, packet.flags),
                (6, 0),
                "in band, no completion"
            );
            let mut message = packet.payload;
            let len = 8 + word(&message, 4) as usize;
            assert_eq!(word(&message, 0), 1, "data of a pipe");
            assert!(len <= message.len() && len + 8 > message.len());
            assert_eq!(message[25], 3, "a request of a transaction");
            assert_eq!(usize::from(half(&message, 18)), len - BODY);
            let kind = half(&message, 12);
            self.requests.push_back((kind, message[BODY..len].to_vec()));
            self.fill_in(kind, &mut message);
            message[25] = 5;
            let sent = self.to_host.send(6, 0, packet.transaction, &[], &message);
            sent.expect("room for the answer");
        }
    }

    fn fill_in(&mut self, kind: u16, message: &mut [u8]) {
        if kind == 0 {
            return self.negotiate(message);
        }
        message[20..24].copy_from_slice(&self.status.to_le_bytes());
        match kind {
            1 => message[BODY] += 1,
            2 => self.key_value(message),
            _ => {}
        }
    }

    fn negotiate(&self, message: &mut [u8]) {
        let counts = [half(message, BODY), half(message, BODY + 2)].map(usize::from);
        let offered: Vec<(u16, u16)> = (0..counts[0] + counts[1])
            .map(|index| BODY + 8 + 4 * index)
            .map(|at| (half(message, at), half(message, at + 2)))
            .collect();
        let (frameworks, services) = offered.split_at(counts[0]);
        let first = |mine: &[(u16, u16)], offered: &[(u16, u16)]| {
            mine.iter()
                .find(|version| offered.contains(version))
                .copied()
        };
        let chosen = first(&self.speaks.0, frameworks).zip(first(&self.speaks.1, services));
        let count = u16::from(chosen.is_some()).to_le_bytes();
        message[BODY..BODY + 2].copy_from_slice(&count);
        message[BODY + 2..BODY + 4].copy_from_slice(&count);
        if let Some((framework, service)) = chosen {
            let halves = [framework.0, framework.1, service.0, service.1];
            for (index, half) in halves.into_iter().enumerate() {
                let at = BODY + 8 + 2 * index;
                message[at..at + 2].copy_from_slice(&half.to_le_bytes());
            }
        }
    }

    fn key_value(&mut self, message: &mut [u8]) {
        let (operation, body) = (message[BODY], BODY + 4);
        let (value, index) = match operation {
            3 => (body + 4, word(message, body) as usize),
            _ => {
                let key = text(&message[body + 12..][..512]);
                (
                    body,
                    self.items
                        .iter()
                        .position(|item| item.0 == key)
                        .unwrap_or(usize::MAX),
                )
            }
        };
        match operation {
            1 => {
                assert_eq!(word(message, body), 1, "a text");
                let key = text(&message[body + 12..][..word(message, body + 4) as usize]);
                let set = text(&message[body + 524..][..word(message, body + 8) as usize]);
                self.items.push((key, set));
            }
            2 => {
                let key = text(&message[body + 4..][..word(message, body) as usize]);
                self.items.retain(|item| item.0 != key);
            }
            _ => match self.items.get(index) {
                Some((key, text)) => {
                    let lens = [
                        put_text(message, value + 12, key),
                        put_text(message, value + 524, text),
                    ];
                    let words = [1, lens[0], lens[1]];
                    for (index, word) in words.into_iter().enumerate() {
                        let at = value + 4 * index;
                        message[at..at + 4].copy_from_slice(&word.to_le_bytes());
                    }
                }
                None => message[20..24].copy_from_slice(&0x8007_0103_u32.to_le_bytes()),
            },
        }
    }
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The text up to its end.
fn text(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    String::from_utf16(&units).expect("UTF-16")
}

fn put_text(bytes: &mut [u8], at: usize, text: &str) -> u32 {
    let units: Vec<u8> = text
        .encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect();
    bytes[at..at + units.len()].copy_from_slice(&units);
    units.len() as u32
}

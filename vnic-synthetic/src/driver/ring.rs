//! The guest's ends of a channel's rings, written from the description of the rings and not from the host's code.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use guestmem::{Memory, Window};

use crate::vmbus::pages::Pages;

/// A packet that the guest received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Its type.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// What its answer names it by.
    pub transaction: u64,
    /// The header behind the descriptor.
    pub header: Vec<u8>,
    /// What follows, padding included.
    pub payload: Vec<u8>,
}

/// A ring as the guest has it.
pub struct GuestRing {
    /// The control page.
    pub control: Window,
    /// The data area.
    data: Pages,
    size: u32,
    /// The index that this side moves: the write index of a ring it writes, the read index of one it reads.
    own: u32,
    /// The host's index as last loaded: looked at again only when it is in the way.
    other: u32,
}

impl GuestRing {
    /// A ring with its control page at `control`, and data in `data`. It is zeroed.
    ///
    /// # Panics
    /// The pages are not in `memory`.
    pub fn new(memory: &Arc<Memory>, control: u64, data: Pages) -> GuestRing {
        let control = memory.window(control, 4096).expect("control page");
        control.write(0, &[0; 4096]).expect("own memory");
        control.write(64, &[1, 0, 0, 0]).expect("own memory");
        let size = data.len();
        GuestRing {
            control,
            data,
            size,
            own: 0,
            other: 0,
        }
    }

    fn load(&self, at: usize) -> u32 {
        self.control
            .load_u32(at, Ordering::Acquire)
            .expect("own memory")
    }

    fn store(&self, at: usize, value: u32) {
        self.control
            .store_u32(at, value, Ordering::Release)
            .expect("own memory");
    }

    /// Writes bytes at an offset of the data area, whatever was there.
    pub fn overwrite(&self, at: u32, bytes: &[u8]) {
        let (end, front) = bytes.split_at(bytes.len().min((self.size - at) as usize));
        self.data.write(at, end).expect("own memory");
        self.data.write(0, front).expect("own memory");
    }

    fn copy_out(&self, at: u32, bytes: &mut [u8]) {
        let len = bytes.len().min((self.size - at) as usize);
        let (end, front) = bytes.split_at_mut(len);
        self.data.read(at, end).expect("own memory");
        self.data.read(0, front).expect("own memory");
    }

    /// Writes a packet and shows it. `None` if there is no room, else whether the host wants a signal.
    pub fn send(
        &mut self,
        kind: u16,
        flags: u16,
        transaction: u64,
        header: &[u8],
        payload: &[u8],
    ) -> Option<bool> {
        let header_len = 16 + header.len();
        let len = (header_len + payload.len()).next_multiple_of(8);
        let free = |own: u32, other: u32| match other > own {
            true => other - own,
            false => self.size - own + other,
        };
        if free(self.own, self.other) <= len as u32 + 8 {
            self.other = self.load(4);
            if free(self.own, self.other) <= len as u32 + 8 {
                return None;
            }
        }
        let mut packet = arrayvec::ArrayVec::<u8, 4096>::new();
        let descriptor = [kind, header_len as u16 / 8, len as u16 / 8, flags];
        let trailer = u64::from(self.own) << 32;
        for half in descriptor {
            packet.try_extend_from_slice(&half.to_le_bytes()).ok()?;
        }
        for part in [&transaction.to_le_bytes()[..], header, payload] {
            packet.try_extend_from_slice(part).ok()?;
        }
        let padding = [0; 8];
        packet
            .try_extend_from_slice(&padding[..len - packet.len()])
            .ok()?;
        packet.try_extend_from_slice(&trailer.to_le_bytes()).ok()?;
        self.overwrite(self.own, &packet);
        let before = self.own;
        self.own = (self.own + packet.len() as u32) % self.size;
        self.store(0, self.own);
        fence(Ordering::SeqCst);
        Some(self.load(8) == 0 && self.load(4) == before)
    }

    /// Waits for `bytes` of room: the host is to signal once there are more.
    pub fn wait_for_room(&mut self, bytes: u32) {
        self.store(12, bytes);
    }

    /// Takes the next packet; its room is given back at once.
    pub fn receive(&mut self) -> Option<Received> {
        let mut bytes = Vec::new();
        let (kind, flags, transaction, header) = self.receive_into(&mut bytes)?;
        Some(Received {
            kind,
            flags,
            transaction,
            header: bytes[16..header].to_vec(),
            payload: bytes[header..].to_vec(),
        })
    }

    /// As [`GuestRing::receive`], into a buffer of the caller: type, flags, transaction and the length of the header.
    pub fn receive_into(&mut self, bytes: &mut Vec<u8>) -> Option<(u16, u16, u64, usize)> {
        if self.own == self.other {
            self.other = self.load(0);
            if self.own == self.other {
                return None;
            }
        }
        let mut front = [0; 16];
        self.copy_out(self.own, &mut front);
        let half = |at: usize| u16::from_le_bytes([front[at], front[at + 1]]);
        let (header, len) = (usize::from(half(2)) * 8, usize::from(half(4)) * 8);
        bytes.resize(len, 0);
        self.copy_out(self.own, bytes);
        let mut trailer = [0; 8];
        self.copy_out((self.own + len as u32) % self.size, &mut trailer);
        assert_eq!(
            u64::from_le_bytes(trailer),
            u64::from(self.own) << 32,
            "trailer of a packet"
        );
        self.own = (self.own + len as u32 + 8) % self.size;
        self.store(4, self.own);
        let transaction = u64::from_le_bytes(front[8..].try_into().expect("8 bytes"));
        Some((half(0), half(6), transaction, header))
    }

    /// Tells the host whether signals are needed.
    pub fn mask(&mut self, masked: bool) {
        self.store(8, masked.into());
        fence(Ordering::SeqCst);
    }
}

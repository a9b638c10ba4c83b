//! The driver as a generator and sink of frames, fast enough to measure the switch with.

use super::frame::Frame;
use super::guest::{CONNECTION, Guest, SECTION, rndis_packet};
use super::rndis::{data_header, word};

impl Guest {
    /// Writes `frames`, as one packet, to every section of the send buffer; gives its length.
    ///
    /// # Panics
    /// There is no send buffer, or they do not fit a section.
    pub fn prepare(&mut self, frames: &[Frame]) -> u32 {
        let mut bytes = Vec::new();
        for frame in frames {
            let header = data_header(frame, 8);
            let end = bytes.len() + word(&header, 4) as usize;
            bytes.extend(header);
            bytes.extend(&frame.bytes);
            bytes.resize(end, 0);
        }
        assert!(bytes.len() <= SECTION as usize);
        let send = self.send.as_ref().expect("a send buffer");
        for section in &self.sections {
            send.pages
                .write(section * SECTION, &bytes)
                .expect("a section");
        }
        bytes.len() as u32
    }

    /// Sends prepared packets of `len` bytes, as many as there are free sections and room for, at most `most`; gives how
    /// many.
    pub fn send_prepared(&mut self, len: u32, most: usize) -> usize {
        let mut payload = rndis_packet(0, 0, len);
        let mut sent = 0;
        while sent < most
            && let Some(section) = self.sections.pop()
        {
            payload[8..12].copy_from_slice(&section.to_le_bytes());
            match self.to_host.send(6, 1, section.into(), &[], &payload) {
                Some(signal) => {
                    if signal {
                        self.host.signal(CONNECTION);
                    }
                }
                None => {
                    self.sections.push(section);
                    break;
                }
            }
            sent += 1;
        }
        sent
    }

    /// Takes everything the host sent and gives it back without a look; gives the number of frames. Only for packets that
    /// were sent prepared.
    pub fn discard(&mut self) -> u64 {
        let mut frames = 0;
        let mut bytes = std::mem::take(&mut self.scratch);
        while let Some((kind, _, transaction, _)) = self.from_host.receive_into(&mut bytes) {
            if kind == 11 {
                self.sections.push(transaction as u32);
                continue;
            }
            frames += u64::from(word(&bytes, 20));
            // The packet is done, and well.
            let answer = [108, 0, 0, 0, 1, 0, 0, 0];
            if self.to_host.send(11, 0, transaction, &[], &answer) == Some(true) {
                self.host.signal(CONNECTION);
            }
        }
        self.scratch = bytes;
        frames
    }
}

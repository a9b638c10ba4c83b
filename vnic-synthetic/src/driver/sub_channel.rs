//! Sub-channels of the driver.

use super::frame::Frame;
use super::guest::{CONNECTION, Guest, RING, guest_rings, message, rndis_packet, share};
use super::rndis::{data_header, word};

impl Guest {
    /// Asks for `count` sub-channels and opens those that are offered; gives how many.
    ///
    /// # Panics
    /// The host does not keep to the protocol.
    pub fn open_sub_channels(&mut self, step: &mut dyn FnMut(), count: u32) -> usize {
        let answer = self.ask(step, &[133, 1, count]).expect("an answer");
        assert_eq!((word(&answer, 0), word(&answer, 4)), (133, 1));
        let granted = word(&answer, 8);
        let told = self.host.messages.len();
        self.host.offer_sub_channels();
        let offers = self.host.messages.split_off(told);
        assert_eq!(offers.len(), granted as usize);
        for offer in &offers {
            assert_eq!(word(offer, 0), 1, "an offer");
            self.open_sub_channel(word(offer, 184));
        }
        offers.len()
    }

    fn open_sub_channel(&mut self, relid: u32) {
        let pages = self.setup.ring;
        let gpadl = RING + 0x100 + relid;
        let area = self.heap.take(2 * pages);
        share(&mut self.host, relid, gpadl, &area);
        let rings = guest_rings(&self.heap.memory, &area, pages);
        self.host
            .message(&message(5, &[relid, 1, gpadl, 0, pages as u32]));
        let opened = self.host.messages.last().expect("an answer");
        assert_eq!((word(opened, 0), word(opened, 16)), (6, 0));
        self.subs.push(rings);
    }

    /// Sends a frame by sub-channel `index`, in the send buffer. False if there is no room.
    ///
    /// # Panics
    /// There is no such channel, or no send buffer.
    pub fn send_by(&mut self, index: usize, frame: &Frame) -> bool {
        let Some(section) = self.sections.pop() else {
            return false;
        };
        let mut bytes = data_header(frame, 1);
        bytes.extend(&frame.bytes);
        let send = self.send.as_ref().expect("a send buffer");
        let at = section * super::guest::SECTION;
        send.pages.write(at, &bytes).expect("a section");
        let payload = rndis_packet(0, section, bytes.len() as u32);
        let transaction = self.next;
        let Some(signal) = self.subs[index - 1]
            .0
            .send(6, 1, transaction, &[], &payload)
        else {
            return false;
        };
        self.next += 1;
        self.outstanding.insert(transaction, Some(section));
        if signal {
            self.host.signal(CONNECTION + index as u32);
        }
        true
    }
}

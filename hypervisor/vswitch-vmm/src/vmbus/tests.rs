#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use guestmem::Window;
use hypervisor::memory::GuestMemory;
use vswitch::attach::demand::{Demand, Flag};

use super::*;

/// Where the guest has its pages: for calls, messages, event flags, the input of calls, and rings.
const CALLS: u64 = 0x8000;
const MESSAGES: u64 = 0x3000;
const FLAGS: u64 = 0x4000;
const INPUT: u64 = 0x9000;
const RING: u64 = 0x10;
const VECTOR: u64 = 0xf3;
/// The handle of the guest's rings.
const GPADL: u32 = 77;
/// The first channel of the bus.
const RELID: u32 = 1;

/// A guest's driver, and the bus it speaks to.
struct Guest {
    vmbus: Vmbus,
    memory: Window,
    effects: Effects,
}

impl Guest {
    /// With one adapter, and its interrupt controller set up.
    fn new() -> Guest {
        let memory = GuestMemory::new(8 << 20).unwrap();
        let window = memory.memory().window(0, 0x2_0000).unwrap();
        let mut vmbus = Vmbus::new(memory.memory().clone(), 1).unwrap();
        let mut effects = Effects::default();
        let name = "synthetic0".parse().unwrap();
        vmbus.add_adapter(name, [7; 16], &mut effects).unwrap();
        for (register, value) in [
            (0x4000_0000, 1),
            (0x4000_0001, CALLS | 1),
            (0x4000_0083, MESSAGES | 1),
            (0x4000_0082, FLAGS | 1),
            (0x4000_0092, VECTOR),
            (0x4000_0080, 1),
        ] {
            assert!(vmbus.write_msr(0, register, value, &mut effects));
        }
        effects.take();
        Guest {
            vmbus,
            memory: window,
            effects,
        }
    }

    fn post(&mut self, words: &[u32]) -> Status {
        let payload: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let header = [4, 0, 1, payload.len() as u32];
        let header: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.memory.write(INPUT as usize, &header).unwrap();
        self.memory.write(INPUT as usize + 16, &payload).unwrap();
        let call = Input {
            control: 0x5c,
            input: INPUT,
        };
        self.vmbus.hypercall(call, &mut self.effects).unwrap()
    }

    /// The next message to the guest, which makes room for the one after it.
    fn message(&mut self) -> Option<Vec<u32>> {
        let slot = MESSAGES as usize + 2 * 256;
        let mut bytes = [0; 256];
        self.memory.read(slot, &mut bytes).unwrap();
        let words: Vec<u32> = bytes
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        if words[0] == 0 {
            return None;
        }
        self.memory.write(slot, &[0; 4]).unwrap();
        self.vmbus.write_msr(0, 0x4000_0084, 0, &mut self.effects);
        Some(words[4..].to_vec())
    }

    /// Up to the offer of the adapter.
    fn connect(&mut self) {
        assert_eq!(
            self.post(&[14, 0, 0x5_0003, 0, 2, 0, 0, 0, 0, 0]),
            Status::Success
        );
        let interrupt = Effect::Message {
            address: 0xfee0_0000,
            data: VECTOR as u32,
        };
        assert_eq!(self.effects.take(), [interrupt]);
        assert_eq!(self.message().unwrap()[0], 15);
        self.post(&[3, 0]);
        assert_eq!(self.message().unwrap()[0], 1, "an offer");
        assert_eq!(self.message().unwrap()[0], 4, "the end of offers");
    }

    /// Shares two pages for rings.
    fn share(&mut self) {
        let range = [2 * 4096, 0, RING as u32, 0, RING as u32 + 1, 0];
        let header = [8, 0, RELID, GPADL, 1 << 16 | 24];
        self.post(&[&header[..], &range].concat());
    }

    fn open(&mut self) {
        let mut words = vec![5, 0, RELID, 9, GPADL, 0, 1];
        words.resize(7 + 30, 0);
        self.post(&words);
    }

    fn demands(&mut self) -> Vec<(u64, Demand)> {
        let demands = self.vmbus.take_demands();
        demands.into_iter().map(|of| (of.id, of.demand)).collect()
    }

    fn done(&mut self, id: u64, ok: bool) {
        self.vmbus.done(id, ok, &mut self.effects);
    }

    fn serve(&mut self, served: bool) {
        self.vmbus.set_served(served, &mut self.effects);
    }
}

/// A guest that has opened its adapter under a vswitchd.
fn opened() -> Guest {
    let mut guest = Guest::new();
    guest.serve(true);
    guest.connect();
    guest.share();
    let demands = guest.demands();
    let [
        (
            id,
            Demand::Add {
                gpadl: GPADL,
                range,
            },
        ),
    ] = &demands[..]
    else {
        panic!("{demands:?}");
    };
    assert_eq!(range.pages, [RING, RING + 1]);
    assert_eq!(
        guest.message(),
        None,
        "answered before vswitchd has answered"
    );
    guest.done(*id, true);
    assert_eq!(guest.message().unwrap()[..5], [10, 0, RELID, GPADL, 0]);
    guest.open();
    let demands = guest.demands();
    let [
        (
            id,
            Demand::Open {
                channel: 0,
                flags,
                resumed: false,
                ..
            },
        ),
    ] = &demands[..]
    else {
        panic!("{demands:?}");
    };
    let flag = Flag {
        address: FLAGS + 2 * 256,
        bit: RELID,
    };
    assert_eq!(flags[..], [flag]);
    guest.done(*id, true);
    assert_eq!(guest.message().unwrap()[..5], [6, 0, RELID, 9, 0]);
    guest
}

#[test]
fn a_guest_opens_its_adapter_once_vswitchd_has_answered() {
    let guest = opened();
    assert_eq!(guest.vmbus.drivers().len(), 1);
    let wiring = guest.vmbus.wiring();
    let message = (wiring.messages[0].address, wiring.messages[0].data);
    assert_eq!(message, (0xfee0_0000, VECTOR as u32));
    assert_eq!(wiring.doorbells[0].value, Some(0x1_0000 + u64::from(RELID)));
}

#[test]
fn what_vswitchd_refuses_is_refused_to_the_guest() {
    let mut guest = Guest::new();
    guest.serve(true);
    guest.connect();
    guest.share();
    let (id, _) = guest.demands().remove(0);
    guest.done(id, false);
    let created = guest.message().unwrap();
    assert_eq!(created[0], 10);
    assert_ne!(created[4], 0);
    // Nothing is left to be told the next vswitchd.
    guest.serve(false);
    guest.serve(true);
    assert_eq!(guest.demands(), []);
}

#[test]
fn without_vswitchd_the_guest_goes_on_and_the_next_one_is_told_everything() {
    let mut guest = opened();
    let name = "synthetic0".parse().unwrap();
    guest.vmbus.keep(name, "known".to_owned()).unwrap();
    guest.serve(false);
    guest.serve(true);
    let demands: Vec<Demand> = guest
        .demands()
        .into_iter()
        .map(|(_, demand)| demand)
        .collect();
    let again = matches!(
        &demands[..],
        [
            Demand::Add { gpadl: GPADL, .. },
            Demand::Open { channel: 0, resumed: true, .. },
            Demand::Restore { state },
        ] if state == "known"
    );
    assert!(again, "{demands:?}");
    guest.serve(false);
    guest.post(&[7, 0, RELID]);
    guest.post(&[11, 0, RELID, GPADL]);
    assert_eq!(guest.message().unwrap()[..3], [12, 0, GPADL]);
    guest.serve(true);
    assert_eq!(guest.demands(), [], "the guest has taken everything back");
}

#[test]
fn a_saved_bus_goes_on_elsewhere() {
    let mut guest = opened();
    let saved = guest.vmbus.save();
    let mut other = Guest::new();
    other.vmbus.restore(&saved, &mut other.effects).unwrap();
    assert_eq!(other.vmbus.drivers(), guest.vmbus.drivers());
    assert_eq!(other.message(), None, "the guest is not told");
    other.serve(true);
    let demands = other.demands();
    assert!(matches!(demands[1].1, Demand::Open { resumed: true, .. }));
    let nonsense = serde_json::json!({ "bus": 1 });
    assert!(guest.vmbus.restore(&nonsense, &mut guest.effects).is_err());
    assert_eq!(guest.vmbus.drivers().len(), 1);
}

#[test]
fn a_reset_is_settled_once_vswitchd_has_let_go() {
    let mut guest = opened();
    assert!(guest.vmbus.is_settled());
    guest.vmbus.reset(&mut guest.effects);
    assert!(!guest.vmbus.is_settled());
    while let Some((id, _)) = guest.demands().into_iter().next() {
        guest.done(id, true);
    }
    let ids: Vec<u64> = guest.vmbus.asked.keys().copied().collect();
    for id in ids {
        guest.done(id, true);
    }
    assert!(guest.vmbus.is_settled());
    assert_eq!(guest.vmbus.drivers(), []);
}

#[test]
fn a_guest_that_asks_for_too_much_waits() {
    let mut guest = opened();
    let mut status = Status::Success;
    for gpadl in 0..=MAX_DEMANDS as u32 {
        status = guest.post(&[8, 0, RELID, 1000 + gpadl, 1 << 16 | 16, 4096, 0, 0x10, 0]);
    }
    assert_eq!(status, Status::InsufficientBuffers);
    assert_eq!(guest.demands().len(), MAX_DEMANDS);
}

//! Saved states of a bus and of an adapter, with anything in them.
//!
//! Input: JSON, of a bus if the first byte is even, else of an adapter. What must hold: what is refused changes nothing; what
//! is accepted can be saved and read again; a bus goes on to answer an unload, and an adapter to carry frames.

use vnic_synthetic::driver::{Guest, Setup, poll};
use vnic_synthetic::port::State;
use vnic_synthetic::vmbus::{Bus, BusState, Effect};

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((which, json)) = data.split_first() else {
        return;
    };
    if which & 1 == 0 {
        if let Ok(state) = serde_json::from_slice(json) {
            restore_bus(&state);
        }
    } else if let Ok(state) = serde_json::from_slice(json) {
        restore_adapter(&state);
    }
}

fn restore_bus(state: &BusState) {
    let mut effects = Vec::new();
    let Ok(mut bus) = Bus::restore(state, &mut effects) else {
        assert!(effects.is_empty());
        return;
    };
    // Lists may come in another order, but only once.
    let saved = bus.save();
    let again = Bus::restore(&saved, &mut Vec::new()).expect("what was saved");
    assert_eq!(again.save(), saved);
    serve(&mut bus, effects);
    let contact = [14u32, 0, 0x5_0003, 0, 2, 0, 0, 0, 0, 0];
    say(&mut bus, &contact);
    assert!(say(&mut bus, &[16, 0]), "unload is answered");
}

/// Says something and meets what comes of it. True if the guest is told that it was unloaded.
fn say(bus: &mut Bus, words: &[u32]) -> bool {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut effects = Vec::new();
    let _ = bus.message(&bytes, &mut effects);
    serve(bus, effects)
}

fn serve(bus: &mut Bus, mut effects: Vec<Effect>) -> bool {
    let mut unloaded = false;
    while let Some(effect) = effects.pop() {
        let (relid, demand) = match effect {
            Effect::Post { message, .. } => {
                unloaded |= message.first() == Some(&17);
                continue;
            }
            Effect::Ask { relid, demand } => (relid, demand),
        };
        let done = demand.answer(true);
        let mut more = Vec::new();
        bus.done(relid, done, &mut more);
        effects.extend(more);
    }
    unloaded
}

fn restore_adapter(state: &State) {
    let (guest, mut sides) = Guest::ready(Setup {
        ring: 4,
        receive: 32,
        send: 8,
        ..Setup::linux()
    });
    let adapter = &guest.host.adapter;
    let before = adapter.save();
    match adapter.restore(state) {
        Ok(()) => {
            poll(&mut *sides.tx);
        }
        Err(_) => assert_eq!(adapter.save(), before, "nothing is changed"),
    }
}

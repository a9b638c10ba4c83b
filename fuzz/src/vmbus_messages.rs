//! Messages of VMBus from a guest that says anything, and services that answer late, or no.
//!
//! Input: actions until it ends. What must hold: every call comes back after bounded work, and once the guest unloads and
//! every demand is met, the unload is answered and nothing is open.

use vnic_synthetic::vmbus::{Bus, Demand, Effect, Offer};

use crate::input::Input;

/// Types of messages: those that guests send, and unknown ones.
const KINDS: [u8; 13] = [3, 5, 7, 8, 9, 11, 13, 14, 16, 22, 1, 0, 99];

fn offer(sub_channel: Option<(u16, u16)>) -> Offer {
    Offer {
        interface: [1; 16],
        instance: [2; 16],
        user_defined: [0; 120],
        pipe: false,
        sub_channel,
    }
}

/// A demand of a channel, to be answered.
type Asked = (u16, Demand);

fn sort(effects: Vec<Effect>, asked: &mut Vec<Asked>) -> Vec<Vec<u8>> {
    let mut posted = Vec::new();
    for effect in effects {
        match effect {
            Effect::Post { message, .. } => posted.push(message),
            Effect::Ask { relid, demand } => asked.push((relid, demand)),
        }
    }
    posted
}

fn answer(bus: &mut Bus, (relid, demand): Asked, ok: bool, asked: &mut Vec<Asked>) -> Vec<Vec<u8>> {
    if let Demand::Add { list, .. } = &demand {
        assert!(
            list.ranges
                .iter()
                .all(|range| range.len > 0 && range.offset < 4096)
        );
    }
    let done = demand.answer(ok);
    let mut effects = Vec::new();
    bus.done(relid, done, &mut effects);
    sort(effects, asked)
}

/// Meets every demand there is; gives what was posted meanwhile.
fn settle(bus: &mut Bus, asked: &mut Vec<Asked>) -> Vec<Vec<u8>> {
    let mut posted = Vec::new();
    while !asked.is_empty() {
        let next = asked.remove(0);
        posted.extend(answer(bus, next, true, asked));
    }
    posted
}

fn say(bus: &mut Bus, bytes: &[u8], asked: &mut Vec<Asked>) -> Vec<Vec<u8>> {
    let mut effects = Vec::new();
    let _ = bus.message(bytes, &mut effects);
    sort(effects, asked)
}

/// A message of small numbers, with the fields that are seldom right set right where `input` says so.
fn message(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.choose(&KINDS);
    let mut words = vec![u32::from(kind), 0];
    let bits = input.u8();
    for _ in 0..input.u8() % 58 {
        words.push(u32::from(input.u8()) % 8);
    }
    if bits & 1 != 0 && words.len() > 6 && kind == 8 {
        // One range of so many bytes.
        words[4] = 16 | 1 << 16;
        words[5] = 4096;
        words[6] = 0;
    }
    if bits & 2 != 0 && words.len() > 2 && kind == 14 {
        words[2] = input.choose(&[0xd, 0x1_0001, 0x2_0004, 0x4_0001, 0x5_0003]);
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut bus = Bus::new();
    let mut asked = Vec::new();
    while !input.is_empty() {
        match input.u8() % 16 {
            0 => {
                let primary = u16::from(input.u8() % 4);
                let sub_channel = (primary != 0).then_some((primary, 1));
                let mut effects = Vec::new();
                let _ = bus.offer(offer(sub_channel), &mut effects);
                sort(effects, &mut asked);
            }
            1 => {
                let mut effects = Vec::new();
                let _ = bus.rescind(u16::from(input.u8() % 6), &mut effects);
                sort(effects, &mut asked);
            }
            2 => {
                let mut effects = Vec::new();
                bus.reset(&mut effects);
                sort(effects, &mut asked);
            }
            3..6 if !asked.is_empty() => {
                let next = asked.remove(usize::from(input.u8()) % asked.len());
                answer(&mut bus, next, input.u8() & 1 != 0, &mut asked);
            }
            6 => {
                let raw = usize::from(input.u8());
                let bytes = input.bytes(raw).to_vec();
                say(&mut bus, &bytes, &mut asked);
            }
            _ => {
                let bytes = message(&mut input);
                say(&mut bus, &bytes, &mut asked);
            }
        }
    }
    settle(&mut bus, &mut asked);
    let contact: Vec<u8> = [14u32, 0, 0x5_0003, 0, 2, 0, 0, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    say(&mut bus, &contact, &mut asked);
    settle(&mut bus, &mut asked);
    let mut posted = say(&mut bus, &[16, 0, 0, 0, 0, 0, 0, 0], &mut asked);
    posted.extend(settle(&mut bus, &mut asked));
    assert!(
        posted.contains(&vec![17, 0, 0, 0, 0, 0, 0, 0]),
        "unload is answered"
    );
    assert!(
        (0..2048).all(|relid| bus.signal(0x1_0000 + relid).is_none()),
        "nothing is open"
    );
}

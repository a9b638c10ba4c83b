//! A guest that says anything.

use proptest::prelude::*;

use super::*;

/// Meets every demand at once, as a service in the same process would.
fn serve(bus: &mut Bus, effects: Vec<Effect>, posted: &mut Vec<Vec<u8>>) {
    let mut todo = effects;
    while let Some(effect) = todo.pop() {
        let (relid, demand) = match effect {
            Effect::Post { message, .. } => {
                posted.push(message);
                continue;
            }
            Effect::Ask { relid, demand } => (relid, demand),
        };
        if let Demand::Add { list, .. } = &demand {
            assert!(Arc::strong_count(list) > 0 && list.page_count() <= MAX_GPADL_PAGES);
        }
        let done = demand.answer(true);
        let mut more = Vec::new();
        bus.done(relid, done, &mut more);
        todo.extend(more);
    }
}

proptest! {
    /// Whatever a guest says, an unload is answered, and then everything is closed.
    #[test]
    fn any_messages_and_then_an_unload(messages in prop::collection::vec(
        (0u32..26, prop::collection::vec(0u32..9, 0..60)), 0..60)) {
        let mut bus = Bus::new();
        let mut posted = Vec::new();
        for _ in 0..3 {
            bus.offer(net(None), &mut Vec::new()).unwrap();
        }
        for (kind, mut words) in messages {
            if kind == kind::GPADL_HEADER && words.len() > 6 {
                words[2] = 16 | 1 << 16;
                words[3] = 4096;
                words[4] = 0;
            }
            if kind == kind::INITIATE_CONTACT && !words.is_empty() {
                words[0] = Version::V5_3.0;
                if let Some(sint) = words.get_mut(2) {
                    *sint = 2;
                }
            }
            let mut effects = Vec::new();
            let _ = bus.message(&guest(kind, &words), &mut effects);
            serve(&mut bus, effects, &mut posted);
            let saved = bus.save();
            let mut effects = Vec::new();
            bus = Bus::restore(&saved, &mut effects).unwrap();
            prop_assert_eq!(bus.save(), saved);
            let told = posted.len();
            serve(&mut bus, effects, &mut posted);
            prop_assert_eq!(told, posted.len(), "the guest is not told again");
        }
        let mut effects = Vec::new();
        bus.message(&contact(Version::V5_3), &mut effects).unwrap();
        serve(&mut bus, effects, &mut posted);
        posted.clear();
        let mut effects = Vec::new();
        bus.message(&guest(kind::UNLOAD, &[]), &mut effects).unwrap();
        serve(&mut bus, effects, &mut posted);
        let mut expected = vec![0; 8];
        put32(&mut expected, 0, kind::UNLOAD_RESPONSE);
        prop_assert_eq!(posted, vec![expected]);
        for relid in 1..=3 {
            prop_assert_eq!(bus.signal(0x1_0000 + relid), None);
        }
    }
}

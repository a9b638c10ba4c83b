//! A bus that is saved and restored.

use serde_json::{Value, json};

use super::*;

/// Saves the bus of `rig` as text, and makes a rig of what was read again.
fn again(rig: &Rig) -> Rig {
    let text = serde_json::to_string(&rig.bus.save()).unwrap();
    let state: BusState = serde_json::from_str(&text).unwrap();
    let mut effects = Vec::new();
    let bus = Bus::restore(&state, &mut effects).unwrap();
    assert_eq!(bus.save(), state);
    Rig { bus, effects }
}

#[test]
fn an_open_channel_is_opened_again_without_a_word_to_the_guest() {
    let mut rig = again(&Rig::open(Version::WIN8));
    assert_eq!(rig.bus.channels().count(), 1);
    let asked = rig.asked();
    let [(1, Demand::Add { gpadl, list }), (1, Demand::Open(open))] = &asked[..] else {
        panic!("{asked:?}");
    };
    assert_eq!((*gpadl, list.page_count()), (0xe1e10, 8));
    assert_eq!((open.downstream_page, open.target_vp), (4, 2));
    assert_eq!(open.ring, *list);
    let (gpadl, ok) = (0xe1e10, true);
    rig.done(1, Done::Added { gpadl, ok });
    rig.done(1, Done::Opened { ok });
    assert!(rig.posted().is_empty());
    assert_eq!(rig.bus.signal(0x1_0001), Some(Target::Channel(1)));
    rig.say(&guest(kind::CLOSE_CHANNEL, &[1]));
    assert_eq!(rig.asked(), [(1, Demand::Close)]);
    rig.done(1, Done::Closed);
    rig.say(&guest(kind::GPADL_TEARDOWN, &[1, 0xe1e10]));
    rig.done(1, Done::Removed { gpadl: 0xe1e10 });
    assert_eq!(rig.posted(), [(kind::GPADL_TORNDOWN, vec![0xe1e10])]);
}

#[test]
fn what_was_on_its_way_arrives() {
    // Half a list of pages.
    let mut rig = Rig::connected(Version::V5_3);
    let mut header = guest(kind::GPADL_HEADER, &[1, 5, 24 | 1 << 16, 8192, 0]);
    header.extend(7u64.to_le_bytes());
    rig.say(&header);
    let mut rig = again(&rig);
    assert!(rig.asked().is_empty());
    let mut body = guest(kind::GPADL_BODY, &[0, 5]);
    body.extend(8u64.to_le_bytes());
    rig.say(&body);
    // Memory that nobody has taken yet.
    let mut rig = again(&rig);
    assert!(matches!(
        rig.asked()[..],
        [(1, Demand::Add { gpadl: 5, .. })]
    ));
    rig.done(1, Done::Added { gpadl: 5, ok: true });
    assert_eq!(rig.posted(), [(kind::GPADL_CREATED, vec![1, 5, 0])]);
    // A channel that is being opened, moved, closed.
    rig.say(&guest(kind::OPEN_CHANNEL, &[1, 9, 5, 2, 1]));
    let mut rig = again(&rig);
    assert!(matches!(rig.asked()[..], [_, (1, Demand::Open(_))]));
    rig.done(1, Done::Opened { ok: true });
    assert_eq!(rig.posted(), [(kind::OPEN_CHANNEL_RESULT, vec![1, 9, 0])]);
    rig.say(&guest(kind::MODIFY_CHANNEL, &[1, 6]));
    let mut rig = again(&rig);
    assert!(matches!(
        rig.asked()[..],
        [_, _, (1, Demand::Retarget { target_vp: 6 })]
    ));
    rig.done(1, Done::Retargeted { ok: true });
    assert_eq!(rig.posted(), [(kind::MODIFY_CHANNEL_RESPONSE, vec![1, 0])]);
    let mut rig = again(&rig);
    let asked = rig.asked();
    assert!(matches!(&asked[1], (1, Demand::Open(open)) if open.target_vp == 6));
    rig.say(&guest(kind::UNLOAD, &[]));
    let mut rig = again(&rig);
    assert_eq!(
        rig.asked(),
        [(1, Demand::Remove { gpadl: 5 }), (1, Demand::Close)]
    );
    rig.done(1, Done::Closed);
    rig.done(1, Done::Removed { gpadl: 5 });
    assert_eq!(rig.posted(), [(kind::UNLOAD_RESPONSE, vec![])]);
}

#[test]
fn sub_channels_are_opened_after_their_primary_channel() {
    let mut rig = Rig::open(Version::V5_3);
    let sub = rig.offer(net(Some((1, 1))));
    let other = rig.offer(net(None));
    for (relid, gpadl) in [(sub, 20), (other, 10)] {
        rig.share(relid.into(), gpadl, 100, 4);
        rig.done(relid, Done::Added { gpadl, ok: true });
        rig.say(&guest(kind::OPEN_CHANNEL, &[relid.into(), 1, gpadl, 0, 2]));
        rig.done(relid, Done::Opened { ok: true });
    }
    let opened: Vec<u16> = again(&rig)
        .asked()
        .into_iter()
        .filter_map(|(relid, demand)| matches!(demand, Demand::Open(_)).then_some(relid))
        .collect();
    assert_eq!(opened, [1, other, sub]);
}

#[test]
fn a_state_that_no_bus_was_ever_in_is_refused() {
    let good = serde_json::to_value(Rig::open(Version::V5_3).bus.save()).unwrap();
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 12] = [
        ("another form", |state| state["form"] = json!(2)),
        ("a version nobody speaks", |state| {
            state["connection"]["version"] = json!(99);
        }),
        ("open without a guest", |state| {
            state["connection"] = Value::Null
        }),
        ("open without rings", |state| state["gpadls"] = json!([])),
        ("number 0", |state| state["channels"][0]["relid"] = json!(0)),
        ("number 2048", |state| {
            state["channels"][0]["relid"] = json!(2048)
        }),
        ("a channel twice", |state| {
            let again = state["channels"][0].clone();
            state["channels"].as_array_mut().unwrap().push(again);
        }),
        ("memory twice", |state| {
            let again = state["gpadls"][0].clone();
            state["gpadls"].as_array_mut().unwrap().push(again);
        }),
        ("a range without its pages", |state| {
            state["gpadls"][0]["state"]["Ready"]["ranges"][0]["len"] = json!(9 * 4096);
        }),
        ("a range that starts beyond its page", |state| {
            state["gpadls"][0]["state"]["Ready"]["ranges"][0]["offset"] = json!(4096);
        }),
        ("no range", |state| {
            state["gpadls"][0]["state"]["Ready"]["ranges"] = json!([]);
        }),
        ("its own sub-channel", |state| {
            state["channels"][0]["channel"]["offer"]["sub_channel"] = json!([1, 1]);
        }),
    ];
    for (name, change) in cases {
        let mut state = good.clone();
        change(&mut state);
        assert_ne!(state, good, "{name}");
        let state: BusState = serde_json::from_value(state).unwrap();
        let mut effects = Vec::new();
        assert!(Bus::restore(&state, &mut effects).is_err(), "{name}");
        assert!(effects.is_empty(), "{name}");
    }
    for (at, value) in [
        ("/connection/target_vp", json!(-1)),
        ("/channels/0/channel/offer/user_defined", json!([1, 2])),
        ("/channels/0/channel/state", json!("Ajar")),
    ] {
        let mut state = good.clone();
        *state.pointer_mut(at).unwrap() = value;
        assert!(serde_json::from_value::<BusState>(state).is_err(), "{at}");
    }
}

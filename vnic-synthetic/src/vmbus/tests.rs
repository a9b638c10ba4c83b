//! The bus as drivers use it, and as nobody should.

use std::sync::Arc;

use super::message::{REFUSED, Version, kind};
use super::*;
use crate::wire::{put32, u16_at, u32_at};

mod any;
mod saved;

const VP: u32 = 3;

fn guest(kind: u32, words: &[u32]) -> Vec<u8> {
    [kind, 0]
        .iter()
        .chain(words)
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

fn contact(version: Version) -> Vec<u8> {
    let page_or_sint = if version < Version::V5_0 { 0x5000 } else { 2 };
    let body = [version.0, VP, page_or_sint, 0, 0, 0, 0, 0];
    guest(kind::INITIATE_CONTACT, &body)
}

fn net(sub_channel: Option<(u16, u16)>) -> Offer {
    Offer {
        interface: [0x63; 16],
        instance: [7; 16],
        user_defined: [0; 120],
        pipe: false,
        sub_channel,
    }
}

/// A bus and everything it said.
#[derive(Default)]
struct Rig {
    bus: Bus,
    effects: Vec<Effect>,
}

impl Rig {
    fn connected(version: Version) -> Rig {
        let mut rig = Rig::default();
        rig.offer(net(None));
        rig.say(&contact(version));
        rig.say(&guest(kind::REQUEST_OFFERS, &[]));
        rig.effects.clear();
        rig
    }

    fn offer(&mut self, offer: Offer) -> u16 {
        self.bus.offer(offer, &mut self.effects).unwrap()
    }

    fn say(&mut self, bytes: &[u8]) {
        self.bus.message(bytes, &mut self.effects).unwrap();
    }

    fn done(&mut self, relid: u16, done: Done) {
        self.bus.done(relid, done, &mut self.effects);
    }

    /// Types of the messages posted, and first words of their bodies.
    fn posted(&mut self) -> Vec<(u32, Vec<u32>)> {
        let word = |bytes: &[u8]| u32_at(bytes, 0).unwrap();
        self.effects
            .drain(..)
            .filter_map(|effect| match effect {
                Effect::Post { vp, message } => {
                    assert_eq!(vp, VP);
                    let body = message[8..].chunks_exact(4).take(3).map(word).collect();
                    Some((word(&message), body))
                }
                Effect::Ask { .. } => None,
            })
            .collect()
    }

    fn asked(&mut self) -> Vec<(u16, Demand)> {
        self.effects
            .drain(..)
            .filter_map(|effect| match effect {
                Effect::Ask { relid, demand } => Some((relid, demand)),
                Effect::Post { .. } => None,
            })
            .collect()
    }

    /// Shares `count` pages from `first` as `gpadl`, as drivers do: what does not fit the header goes into bodies.
    fn share(&mut self, relid: u32, gpadl: u32, first: u64, count: usize) {
        let pages: Vec<u64> = (first..).take(count).collect();
        let mut ranges: Vec<u8> =
            [(count as u32 * 4096).to_le_bytes(), 0u32.to_le_bytes()].concat();
        ranges.extend(pages.iter().flat_map(|page| page.to_le_bytes()));
        let (header, mut rest) = ranges.split_at(ranges.len().min(8 + 26 * 8));
        let lens = ranges.len() as u32 | 1 << 16;
        let mut message = guest(kind::GPADL_HEADER, &[relid, gpadl, lens]);
        message.extend(header);
        self.say(&message);
        while !rest.is_empty() {
            let (part, later) = rest.split_at(rest.len().min(28 * 8));
            let mut message = guest(kind::GPADL_BODY, &[0, gpadl]);
            message.extend(part);
            self.say(&message);
            rest = later;
        }
    }

    /// A channel that is open over GPADL 0xe1e10.
    fn open(version: Version) -> Rig {
        let mut rig = Rig::connected(version);
        rig.share(1, 0xe1e10, 100, 8);
        rig.done(
            1,
            Done::Added {
                gpadl: 0xe1e10,
                ok: true,
            },
        );
        rig.say(&guest(kind::OPEN_CHANNEL, &[1, 9, 0xe1e10, 2, 4]));
        rig.done(1, Done::Opened { ok: true });
        rig.effects.clear();
        rig
    }
}

#[test]
fn every_version_that_drivers_try_is_spoken_and_no_other() {
    for (version, supported) in [
        (0x0000_000d, true),
        (0x0001_0001, true),
        (0x0002_0004, true),
        (0x0003_0000, true),
        (0x0004_0000, true),
        (0x0004_0001, true),
        (0x0005_0000, true),
        (0x0005_0001, true),
        (0x0005_0002, true),
        (0x0005_0003, true),
        (0x0006_0000, false),
        (0, false),
    ] {
        let mut rig = Rig::default();
        rig.say(&contact(Version(version)));
        // Trap: drivers of old versions refuse an answer that does not name theirs.
        let accepted = match version {
            _ if !supported => 0,
            0x5_0000.. => 4,
            old => old,
        };
        let body = vec![u32::from(supported), accepted];
        assert_eq!(
            rig.posted(),
            [(kind::VERSION_RESPONSE, body)],
            "{version:#x}"
        );
        assert_eq!(rig.bus.version().is_some(), supported);
        assert!(rig.bus.takes_messages(1) && rig.bus.takes_messages(4));
    }
}

#[test]
fn messages_go_to_no_other_interrupt_source() {
    let mut rig = Rig::default();
    rig.say(&guest(
        kind::INITIATE_CONTACT,
        &[Version::V5_3.0, VP, 5, 0, 0, 0, 0, 0],
    ));
    assert_eq!(rig.posted(), [(kind::VERSION_RESPONSE, vec![0, 0])]);
    assert_eq!(rig.bus.version(), None);
}

/// Drivers wait without a limit for the results of these.
#[test]
fn what_is_refused_is_answered() {
    let mut rig = Rig::open(Version::V5_3);
    let ranges = [8 | 1 << 16, 4096, 0, 7, 0];
    for (message, answer) in [
        (
            guest(kind::OPEN_CHANNEL, &[1, 6, 0xe1e10, 0, 4]),
            (kind::OPEN_CHANNEL_RESULT, vec![1, 6, REFUSED]),
        ),
        (
            guest(kind::OPEN_CHANNEL, &[77, 6, 0xe1e10, 0, 4]),
            (kind::OPEN_CHANNEL_RESULT, vec![77, 6, REFUSED]),
        ),
        (
            guest(
                kind::GPADL_HEADER,
                &[&[1, 0xe1e10][..], &ranges[..]].concat(),
            ),
            (kind::GPADL_CREATED, vec![1, 0xe1e10, REFUSED]),
        ),
        (
            guest(kind::GPADL_HEADER, &[&[77, 5][..], &ranges[..]].concat()),
            (kind::GPADL_CREATED, vec![77, 5, REFUSED]),
        ),
        (
            guest(kind::MODIFY_CHANNEL, &[77, 1]),
            (kind::MODIFY_CHANNEL_RESPONSE, vec![77, REFUSED]),
        ),
    ] {
        let refused = rig.bus.message(&message, &mut rig.effects);
        assert!(matches!(refused, Err(Refused::State { .. })));
        assert_eq!(rig.posted(), [answer]);
    }
}

#[test]
fn a_boot_loader_connects_unloads_and_connects_again() {
    let mut rig = Rig::default();
    rig.offer(net(None));
    rig.say(&contact(Version(0x3_0000)));
    rig.say(&guest(kind::UNLOAD, &[]));
    rig.say(&contact(Version::WS2008));
    rig.say(&guest(kind::REQUEST_OFFERS, &[]));
    let kinds: Vec<u32> = rig.posted().iter().map(|(kind, _)| *kind).collect();
    assert_eq!(
        kinds,
        [
            kind::VERSION_RESPONSE,
            kind::UNLOAD_RESPONSE,
            kind::VERSION_RESPONSE,
            kind::OFFER_CHANNEL,
            kind::ALL_OFFERS_DELIVERED
        ]
    );
}

#[test]
fn an_offer_has_the_layout_that_drivers_read() {
    let mut rig = Rig::connected(Version::WIN10_V4_1);
    let relid = rig.offer(net(Some((1, 5))));
    let Some(Effect::Post { message, .. }) = rig.effects.pop() else {
        panic!("a new channel is offered at once");
    };
    assert_eq!(message.len(), 196);
    assert_eq!(message[8..24], [0x63; 16]);
    assert_eq!(message[24..40], [7; 16]);
    assert_eq!(u16_at(&message, 56), Some(1), "shown to drivers");
    assert_eq!(u16_at(&message, 180), Some(5), "index of the sub-channel");
    assert_eq!(u32_at(&message, 184), Some(relid.into()));
    assert_eq!(message[189], 0, "no monitor page");
    assert_eq!(u16_at(&message, 190), Some(1), "dedicated interrupt");
    assert_eq!(
        rig.bus.signal(u32_at(&message, 192).unwrap()),
        None,
        "not open yet"
    );
}

#[test]
fn memory_in_one_header_or_many_bodies_becomes_one_list() {
    for count in [1, 26, 27, 54, 256, 4096] {
        let mut rig = Rig::connected(Version::V5_3);
        rig.share(1, 5, 1000, count);
        let [(1, Demand::Add { gpadl: 5, list })] = &rig.asked()[..] else {
            panic!("{count} pages: the service is asked once");
        };
        let range = list.single().unwrap();
        assert_eq!((range.offset, range.len as usize), (0, count * 4096));
        assert!(range.pages.iter().copied().eq(1000..1000 + count as u64));
        rig.done(1, Done::Added { gpadl: 5, ok: true });
        assert_eq!(rig.posted(), [(kind::GPADL_CREATED, vec![1, 5, 0])]);
    }
}

#[test]
fn lists_that_do_not_add_up_are_refused() {
    // Length of all ranges, number of ranges, then the ranges.
    let cases: [(&str, u32, u32, &[u32]); 6] = [
        ("no range", 0, 0, &[]),
        ("empty range", 8, 1, &[0, 0]),
        ("offset beyond the page", 16, 1, &[4096, 4096, 1, 0]),
        ("too few pages", 16, 1, &[8192, 0, 1, 0]),
        ("bytes left over", 24, 1, &[4096, 0, 1, 0, 2, 0]),
        ("4 GiB", 16, 1, &[u32::MAX, 4095, 1, 0]),
    ];
    for (name, len, count, ranges) in cases {
        let mut rig = Rig::connected(Version::V5_3);
        let words = [&[1, 5, len | count << 16], ranges].concat();
        rig.say(&guest(kind::GPADL_HEADER, &words));
        assert_eq!(
            rig.posted(),
            [(kind::GPADL_CREATED, vec![1, 5, REFUSED])],
            "{name}"
        );
    }
}

#[test]
fn several_ranges_make_one_list() {
    let mut rig = Rig::connected(Version::V5_3);
    let ranges = [4096, 0, 11, 0, 100, 4090, 12, 0, 14, 0];
    rig.say(&guest(
        kind::GPADL_HEADER,
        &[&[1, 5, 40 | 2 << 16], &ranges[..]].concat(),
    ));
    let [(_, Demand::Add { list, .. })] = &rig.asked()[..] else {
        panic!("asked once");
    };
    assert_eq!(list.ranges.len(), 2);
    assert_eq!(&*list.ranges[1].pages, [12, 14]);
    assert_eq!(list.single(), None);
}

#[test]
fn a_channel_opens_over_shared_memory_and_closes() {
    let mut rig = Rig::connected(Version::WIN10_V4_1);
    rig.share(1, 5, 100, 8);
    rig.done(1, Done::Added { gpadl: 5, ok: true });
    rig.effects.clear();
    rig.say(&guest(kind::OPEN_CHANNEL, &[1, 9, 5, 2, 4]));
    let asked = rig.asked();
    let [(1, Demand::Open(open))] = &asked[..] else {
        panic!("asked to open");
    };
    assert_eq!((open.downstream_page, open.target_vp), (4, 2));
    assert_eq!(open.interrupts, Interrupts::Flag);
    rig.done(1, Done::Opened { ok: true });
    assert_eq!(rig.posted(), [(kind::OPEN_CHANNEL_RESULT, vec![1, 9, 0])]);
    assert_eq!(rig.bus.signal(0x1_0001), Some(Target::Channel(1)));
    assert_eq!(rig.bus.signal(2), Some(Target::All));
    assert_eq!(rig.bus.signal(0x1_0002), None);

    rig.say(&guest(kind::CLOSE_CHANNEL, &[1]));
    rig.say(&guest(kind::GPADL_TEARDOWN, &[1, 5]));
    assert_eq!(
        rig.asked(),
        [(1, Demand::Close), (1, Demand::Remove { gpadl: 5 })]
    );
    rig.done(1, Done::Closed);
    assert!(rig.posted().is_empty(), "closing is not answered");
    rig.done(1, Done::Removed { gpadl: 5 });
    assert_eq!(rig.posted(), [(kind::GPADL_TORNDOWN, vec![5])]);
}

#[test]
fn a_channel_whose_rings_are_taken_back_is_closed_first() {
    let mut rig = Rig::open(Version::V5_3);
    rig.say(&guest(kind::GPADL_TEARDOWN, &[1, 0xe1e10]));
    let removal = Demand::Remove { gpadl: 0xe1e10 };
    assert_eq!(rig.asked(), [(1, Demand::Close), (1, removal)]);
}

#[test]
fn a_channel_does_not_open_over_memory_that_is_not_its_own() {
    let mut rig = Rig::connected(Version::WIN10_V4_1);
    let other = rig.offer(net(None));
    rig.share(other.into(), 5, 100, 8);
    rig.done(other, Done::Added { gpadl: 5, ok: true });
    rig.effects.clear();
    for ring in [5, 6] {
        let open = guest(kind::OPEN_CHANNEL, &[1, 9, ring, 2, 4]);
        assert!(rig.bus.message(&open, &mut rig.effects).is_err());
        assert_eq!(
            rig.posted(),
            [(kind::OPEN_CHANNEL_RESULT, vec![1, 9, REFUSED])]
        );
    }
}

#[test]
fn unload_is_answered_once_nobody_uses_the_guests_memory() {
    let mut rig = Rig::open(Version::V5_3);
    rig.share(1, 6, 500, 3);
    rig.done(1, Done::Added { gpadl: 6, ok: true });
    rig.effects.clear();
    rig.say(&guest(kind::UNLOAD, &[]));
    let removals = [6, 0xe1e10].map(|gpadl| (1, Demand::Remove { gpadl }));
    assert_eq!(rig.asked(), [&[(1, Demand::Close)], &removals[..]].concat());
    rig.done(1, Done::Closed);
    rig.done(1, Done::Removed { gpadl: 6 });
    assert!(
        rig.effects.is_empty(),
        "not yet, and no answer to what was not asked"
    );
    rig.done(1, Done::Removed { gpadl: 0xe1e10 });
    let Some(Effect::Post { message, .. }) = rig.effects.pop() else {
        panic!("answered");
    };
    assert_eq!(u32_at(&message, 0), Some(kind::UNLOAD_RESPONSE));
}

#[test]
fn a_crash_kernel_that_connects_without_a_word_finds_everything_closed() {
    let mut rig = Rig::open(Version::V5_3);
    rig.say(&contact(Version::WIN8));
    assert_eq!(rig.asked().len(), 2, "close, and give the memory back");
    rig.done(1, Done::Closed);
    assert!(rig.effects.is_empty());
    rig.done(1, Done::Removed { gpadl: 0xe1e10 });
    assert_eq!(
        rig.posted(),
        [(kind::VERSION_RESPONSE, vec![1, Version::WIN8.0])]
    );
    assert_eq!(rig.bus.version(), Some(Version::WIN8));
}

#[test]
fn a_rescinded_channel_keeps_its_number_until_the_guest_lets_go() {
    let mut rig = Rig::open(Version::V5_3);
    rig.bus.rescind(1, &mut rig.effects).unwrap();
    assert_eq!(rig.posted(), [(kind::RESCIND_CHANNEL_OFFER, vec![1])]);
    assert_eq!(rig.offer(net(None)), 2);
    rig.effects.clear();
    rig.say(&guest(kind::RELID_RELEASED, &[1]));
    assert_eq!(rig.asked(), [(1, Demand::Close)], "released while open");
    rig.done(1, Done::Closed);
    assert_eq!(rig.offer(net(None)), 1);
}

#[test]
fn sub_channels_go_with_their_primary_channel() {
    let mut rig = Rig::open(Version::V5_3);
    let sub = rig.offer(net(Some((1, 1))));
    rig.effects.clear();
    rig.say(&guest(kind::CLOSE_CHANNEL, &[1]));
    assert_eq!(
        rig.posted(),
        [(kind::RESCIND_CHANNEL_OFFER, vec![sub.into()])]
    );
    assert_eq!(
        rig.bus.offer(net(Some((77, 1))), &mut rig.effects),
        Err(OfferError::NoChannel(77))
    );
}

#[test]
fn a_channel_moves_to_another_processor() {
    for (version, answer) in [(Version::V5_3, true), (Version::WIN10_V4_1, false)] {
        let mut rig = Rig::open(version);
        rig.say(&guest(kind::MODIFY_CHANNEL, &[1, 1]));
        assert_eq!(rig.asked(), [(1, Demand::Retarget { target_vp: 1 })]);
        rig.done(1, Done::Retargeted { ok: true });
        let expected = [(kind::MODIFY_CHANNEL_RESPONSE, vec![1, 0])];
        assert_eq!(rig.posted(), expected[..usize::from(answer)]);
    }
}

#[test]
fn old_versions_are_told_by_the_interrupt_page() {
    let mut rig = Rig::connected(Version::WIN7);
    rig.share(1, 5, 100, 8);
    rig.done(1, Done::Added { gpadl: 5, ok: true });
    rig.say(&guest(kind::OPEN_CHANNEL, &[1, 9, 5, 0, 4]));
    let asked = rig.asked();
    let Some((1, Demand::Open(open))) = asked.last() else {
        panic!("asked to open");
    };
    assert_eq!(open.interrupts, Interrupts::Page(0x5000));
}

#[test]
fn a_reset_machine_forgets_its_guest() {
    let mut rig = Rig::open(Version::V5_3);
    rig.bus.reset(&mut rig.effects);
    rig.done(1, Done::Closed);
    rig.done(1, Done::Removed { gpadl: 0xe1e10 });
    assert!(rig.posted().is_empty());
    assert_eq!(rig.bus.version(), None);
    let early = rig
        .bus
        .message(&guest(kind::REQUEST_OFFERS, &[]), &mut rig.effects);
    assert!(matches!(early, Err(Refused::State { .. })));
}

#[test]
fn a_refused_gpadl_leaves_nothing() {
    let mut rig = Rig::connected(Version::V5_3);
    rig.share(1, 5, u64::MAX - 3, 2);
    rig.done(
        1,
        Done::Added {
            gpadl: 5,
            ok: false,
        },
    );
    assert_eq!(rig.posted(), [(kind::GPADL_CREATED, vec![1, 5, REFUSED])]);
    rig.say(&guest(kind::GPADL_TEARDOWN, &[1, 5]));
    assert_eq!(
        rig.posted(),
        [(kind::GPADL_TORNDOWN, vec![5])],
        "drivers wait for it"
    );
}

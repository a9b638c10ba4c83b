//! Integration services against a guest that answers as Linux does.

use vnic_synthetic::driver::GuestService;
use vnic_synthetic::integration::{
    Event, Kind, Now, Pool, Request, RequestError, Service, Shutdown, Status, Turn, Version,
};
use vnic_synthetic::vmbus::{Bus, Effect};

/// Units of 100 ns in a second.
const SECOND: u64 = 10_000_000;

/// A service, its guest and the time.
struct Rig {
    service: Service,
    guest: GuestService,
    now: Now,
}

impl Rig {
    fn new(kind: Kind, version: (u16, u16)) -> Rig {
        let guest = GuestService::new(version);
        let mut service = Service::new(kind);
        service.open(guest.memory(), &guest.open()).unwrap();
        let now = Now {
            reference_100ns: 7 * SECOND,
            unix_ns: 1_600_000_000_000_000_000,
        };
        Rig {
            service,
            guest,
            now,
        }
    }

    /// A service that has agreed with its guest on a version.
    fn ready(kind: Kind, version: (u16, u16)) -> Rig {
        let mut rig = Rig::new(kind, version);
        assert!(rig.run().signal);
        rig.guest.run();
        let turn = rig.run();
        assert_eq!(turn.events, [Event::Status], "{kind:?}");
        let version = Version(version.0, version.1);
        assert_eq!(rig.service.status(), Status::Ready(version));
        let (asked, versions) = rig.guest.requests.pop_front().unwrap();
        assert_eq!((asked, versions[0]), (0, 2), "two frameworks");
        rig
    }

    fn run(&mut self) -> Turn {
        self.service.run(&self.now)
    }

    /// What happens until nobody has anything to say.
    fn settle(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..40 {
            events.extend(self.run().events);
            self.guest.run();
        }
        events.extend(self.run().events);
        events
    }

    fn pass(&mut self, seconds: u64) {
        self.now.reference_100ns += seconds * SECOND;
        self.now.unix_ns += seconds * 1_000_000_000;
    }
}

#[test]
fn every_service_agrees_on_the_versions_of_old_and_new_guests() {
    for (kind, versions) in [
        (Kind::Shutdown, &[(1, 0), (3, 0), (3, 1), (3, 2)][..]),
        (Kind::Heartbeat, &[(1, 0), (3, 0)]),
        (Kind::TimeSync, &[(1, 0), (3, 0), (4, 0)]),
        (Kind::KeyValue, &[(1, 0), (3, 0), (4, 0)]),
    ] {
        for version in versions {
            Rig::ready(kind, *version);
        }
        let mut rig = Rig::new(kind, (9, 9));
        assert_eq!(rig.service.status(), Status::Negotiating);
        assert_eq!(rig.settle(), [Event::Status]);
        assert_eq!(rig.service.status(), Status::NoCommonVersion);
        let mut rig = Rig::new(kind, versions[0]);
        rig.guest.speaks.0 = vec![(2, 0)];
        assert_eq!(rig.settle(), [Event::Status]);
        assert_eq!(rig.service.status(), Status::NoCommonVersion);
    }
}

#[test]
fn a_guest_without_the_service_is_reported_as_such() {
    let mut service = Service::new(Kind::Shutdown);
    assert_eq!(service.status(), Status::Absent);
    assert_eq!(service.run(&Now::default()), Turn::default());
    let error = service.ask(Request::Shutdown(Shutdown::default()));
    assert!(matches!(error, Err(RequestError::Absent(_))));
    let mut rig = Rig::ready(Kind::Shutdown, (3, 2));
    rig.service.close();
    assert_eq!(rig.service.status(), Status::Absent);
}

#[test]
fn offers_are_those_that_guests_know() {
    let mut bus = Bus::new();
    let mut effects = Vec::new();
    for kind in Kind::ALL {
        bus.offer(Service::new(kind).offer(), &mut effects).unwrap();
    }
    let words =
        |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
    bus.message(
        &words(&[14, 0, 0x5_0003, 0, 2, 0, 0, 0, 0, 0]),
        &mut effects,
    )
    .unwrap();
    bus.message(&words(&[3, 0]), &mut effects).unwrap();
    let offers: Vec<&Vec<u8>> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Post { message, .. } if message[0] == 1 => Some(message),
            _ => None,
        })
        .collect();
    assert_eq!(offers.len(), 4);
    // 0e0b6031-5213-4934-818b-38d90ced39db, as on the wire.
    let shutdown = [
        0x31, 0x60, 0x0b, 0x0e, 0x13, 0x52, 0x34, 0x49, 0x81, 0x8b, 0x38, 0xd9, 0x0c, 0xed, 0x39,
        0xdb,
    ];
    assert_eq!(offers[0][8..24], shutdown);
    for offer in offers {
        assert_eq!(offer[56..58], [0x11, 0], "a pipe that is shown to drivers");
        assert_eq!(offer[60..64], [4, 0, 0, 0], "of messages");
    }
}

#[test]
fn a_guest_shuts_down_when_asked() {
    let mut rig = Rig::ready(Kind::Shutdown, (3, 2));
    for (how, flags) in [
        (Shutdown::default(), 0),
        (
            Shutdown {
                force: true,
                seconds: 60,
                ..Shutdown::default()
            },
            1,
        ),
        (
            Shutdown {
                restart: true,
                ..Shutdown::default()
            },
            2,
        ),
    ] {
        rig.service.ask(Request::Shutdown(how)).unwrap();
        assert_eq!(rig.settle(), [Event::Shutdown(Ok(()))]);
        let (kind, body) = rig.guest.requests.pop_front().unwrap();
        assert_eq!((kind, body.len()), (3, 2060));
        assert_eq!(body[4..8], how.seconds.to_le_bytes());
        assert_eq!(body[8..12], u32::to_le_bytes(flags));
    }
    rig.guest.status = 0x8000_4005;
    rig.service
        .ask(Request::Shutdown(Shutdown::default()))
        .unwrap();
    assert_eq!(rig.settle(), [Event::Shutdown(Err(0x8000_4005))]);
}

#[test]
fn a_guest_that_hangs_does_not_answer_a_shutdown() {
    let mut rig = Rig::ready(Kind::Shutdown, (3, 0));
    rig.service
        .ask(Request::Shutdown(Shutdown::default()))
        .unwrap();
    rig.run();
    rig.pass(29);
    assert!(rig.run().events.is_empty());
    rig.pass(1);
    assert_eq!(rig.run().events, [Event::Unanswered]);
    // A late answer means nothing.
    rig.guest.run();
    assert!(rig.run().events.is_empty());
}

#[test]
fn a_heartbeat_is_missed_and_heard_again() {
    let mut rig = Rig::ready(Kind::Heartbeat, (3, 0));
    assert_eq!(rig.settle(), [Event::Alive]);
    assert_eq!(rig.guest.requests.len(), 1);
    rig.pass(1);
    assert!(!rig.run().signal, "not due yet");
    rig.pass(1);
    assert!(rig.settle().is_empty(), "still alive");
    assert_eq!(rig.guest.requests.len(), 2);
    rig.pass(2);
    rig.run();
    rig.pass(9);
    assert!(rig.run().events.is_empty());
    rig.pass(1);
    assert_eq!(rig.run().events, [Event::Silent]);
    rig.pass(5);
    assert!(rig.run().events.is_empty(), "said once");
    assert_eq!(rig.settle(), [Event::Alive]);
}

#[test]
fn a_guest_is_told_the_time() {
    for (version, len) in [((4, 0), 22), ((3, 0), 25), ((1, 0), 25)] {
        let mut rig = Rig::ready(Kind::TimeSync, version);
        let first = rig.now;
        rig.settle();
        rig.pass(5);
        rig.settle();
        rig.service.ask(Request::SetTime).unwrap();
        rig.settle();
        let flags = if version.0 == 4 { 16 } else { 24 };
        for (index, flag) in [1, 2, 1].into_iter().enumerate() {
            let (kind, body) = rig.guest.requests.pop_front().unwrap();
            assert_eq!((kind, body.len()), (4, len));
            assert_eq!(body[flags], flag, "set, sample, set");
            let now = if index == 0 { first } else { rig.now };
            // 2020-09-13 12:26:40 is 132444736000000000 units of 100 ns after 1601.
            let since = (now.unix_ns - 1_600_000_000_000_000_000) / 100;
            assert_eq!(body[..8], (132_444_736_000_000_000 + since).to_le_bytes());
            if version.0 == 4 {
                assert_eq!(body[8..16], now.reference_100ns.to_le_bytes());
            }
        }
        assert!(rig.guest.requests.is_empty());
    }
}

#[test]
fn items_are_listed_set_got_and_removed() {
    let mut rig = Rig::ready(Kind::KeyValue, (4, 0));
    let item = |n: u32| (format!("Key{n}"), format!("Grüße {n} \u{1f600}"));
    rig.guest.items = (0..10).map(item).collect();
    rig.service.ask(Request::List(Pool::Auto)).unwrap();
    let items = rig.guest.items.clone();
    let pool = Pool::Auto;
    assert_eq!(rig.settle(), [Event::Items { pool, items }]);
    let (kind, body) = rig.guest.requests[3].clone();
    assert_eq!((kind, &body[..8]), (2, &[3, 2, 0, 0, 3, 0, 0, 0][..]));
    assert_eq!(body.len(), 2580);

    let pool = Pool::External;
    let key = "k".repeat(255);
    let value = "v".repeat(1023);
    let set = Request::Set {
        pool,
        key: key.clone(),
        value: value.clone(),
    };
    rig.service.ask(set).unwrap();
    rig.service
        .ask(Request::Get {
            pool,
            key: key.clone(),
        })
        .unwrap();
    assert_eq!(
        rig.settle(),
        [Event::Value(Ok(String::new())), Event::Value(Ok(value))]
    );
    rig.service
        .ask(Request::Remove {
            pool,
            key: key.clone(),
        })
        .unwrap();
    rig.service.ask(Request::Get { pool, key }).unwrap();
    assert_eq!(
        rig.settle(),
        [
            Event::Value(Ok(String::new())),
            Event::Value(Err(0x8007_0103))
        ]
    );
    rig.guest.status = 0x8000_4005;
    rig.guest.items.clear();
    rig.service.ask(Request::List(Pool::Guest)).unwrap();
    let none = Event::Items {
        pool: Pool::Guest,
        items: Vec::new(),
    };
    assert_eq!(rig.settle(), [none]);
}

#[test]
fn what_does_not_fit_a_service_is_refused() {
    let mut rig = Rig::ready(Kind::KeyValue, (4, 0));
    let ask = |rig: &mut Rig, request| rig.service.ask(request).unwrap_err();
    assert_eq!(ask(&mut rig, Request::SetTime), RequestError::Kind);
    let shutdown = Request::Shutdown(Shutdown::default());
    assert_eq!(ask(&mut rig, shutdown), RequestError::Kind);
    let pool = Pool::Guest;
    for key in [String::new(), "k".repeat(256)] {
        assert_eq!(
            ask(&mut rig, Request::Get { pool, key }),
            RequestError::Length
        );
    }
    let (key, value) = ("k".to_owned(), "v".repeat(1024));
    assert_eq!(
        ask(&mut rig, Request::Set { pool, key, value }),
        RequestError::Length
    );
    for _ in 0..16 {
        rig.service.ask(Request::List(pool)).unwrap();
    }
    assert_eq!(ask(&mut rig, Request::List(pool)), RequestError::Busy);
}

#[test]
fn a_service_whose_rings_lie_is_gone_until_it_is_opened_anew() {
    let mut rig = Rig::ready(Kind::Heartbeat, (3, 0));
    rig.guest.to_host.control.write(0, &[3, 0, 0, 0]).unwrap();
    assert_eq!(rig.run().events, [Event::Status]);
    assert!(matches!(rig.service.status(), Status::Faulted(_)));
    assert_eq!(rig.run(), Turn::default());
    let guest = GuestService::new((3, 0));
    rig.service.open(guest.memory(), &guest.open()).unwrap();
    rig.guest = guest;
    assert_eq!(rig.settle(), [Event::Status, Event::Alive]);
}

//! Integration services of a guest that answers anything.
//!
//! Input: which service, then actions until it ends: packets with any bytes, answers that fit, lies in the control pages,
//! requests, time. What must hold: every call comes back after bounded work, a run has few events, texts are no longer than
//! they can be, and what was asked for is answered or given up once.

use vnic_synthetic::driver::GuestService;
use vnic_synthetic::integration::{
    Event, Kind, MAX_KEY, MAX_VALUE, Now, Pool, Request, Service, Shutdown, Status,
};

use crate::input::Input;

/// Units of 100 ns in a second.
const SECOND: u64 = 10_000_000;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.choose(&Kind::ALL);
    let mut guest = GuestService::new((u16::from(input.u8() % 5), u16::from(input.u8() % 3)));
    let mut service = Service::new(kind);
    service
        .open(guest.memory(), &guest.open())
        .expect("rings that are rings");
    let mut now = Now {
        reference_100ns: 0,
        unix_ns: 1_700_000_000_000_000_000,
    };
    let (mut asked, mut answered, mut budget, mut lied) = (0, 0, 200, false);
    while !input.is_empty() && budget > 0 {
        budget -= 1;
        let action = input.u8() % 8;
        if action == 0 {
            lie(&mut input, &guest);
            lied = true;
        } else if !lied || action > 3 {
            asked += usize::from(act(action, &mut input, &mut guest, &mut service, &mut now));
        }
        let turn = service.run(&now);
        assert!(turn.events.len() <= 68, "{:?}", turn.events);
        answered += turn.events.iter().map(check).sum::<usize>();
    }
    if matches!(service.status(), Status::Ready(_)) {
        for _ in 0..40 {
            now.reference_100ns += 31 * SECOND;
            let turn = service.run(&now);
            answered += turn.events.iter().map(check).sum::<usize>();
        }
        if kind != Kind::TimeSync && matches!(service.status(), Status::Ready(_)) {
            assert_eq!(asked, answered, "answered or given up, once");
        }
    }
    service.close();
    assert_eq!(service.status(), Status::Absent);
}

/// 1 if it ends a request.
fn check(event: &Event) -> usize {
    match event {
        Event::Items { items, .. } => {
            let fits = |text: &String, most: usize| text.encode_utf16().count() * 2 <= most;
            assert!(items.len() <= 256);
            for (key, value) in items {
                assert!(fits(key, MAX_KEY) && fits(value, MAX_VALUE));
            }
            1
        }
        Event::Shutdown(_) | Event::Value(_) | Event::Unanswered => 1,
        Event::Status | Event::Alive | Event::Silent => 0,
    }
}

/// Writes anything to a control page.
fn lie(input: &mut Input<'_>, guest: &GuestService) {
    let at = usize::from(input.u8() % 4) * 4;
    let value = u32::from(input.u16()).to_le_bytes();
    let ring = match input.u8() & 1 {
        0 => &guest.to_host,
        _ => &guest.from_host,
    };
    ring.control.write(at, &value).expect("own");
}

/// One action. True if something was asked for.
fn act(
    action: u8,
    input: &mut Input<'_>,
    guest: &mut GuestService,
    service: &mut Service,
    now: &mut Now,
) -> bool {
    match action {
        1 => {
            let len = usize::from(input.u8());
            let bytes = input.bytes(len);
            guest.to_host.send(6, 0, input.u64(), &[], bytes);
        }
        2 | 3 => answer(input, guest),
        4 => guest.status = [0, 0x8007_0103, 0x8000_4005][usize::from(input.u8() % 3)],
        5 => now.reference_100ns += u64::from(input.u8()) * SECOND / 4,
        _ => return service.ask(request(input)).is_ok(),
    }
    false
}

/// Sends the oldest request back with any changes, so that the answer fits.
fn answer(input: &mut Input<'_>, guest: &mut GuestService) {
    let Some(packet) = guest.from_host.receive() else {
        return;
    };
    let mut message = packet.payload;
    message[25] = 5;
    if message[12] == 0 && input.u8() & 3 != 0 {
        // One of the versions that were offered.
        message[28] = 1;
        message[30] = 1;
        message.copy_within(44..48, 40);
    }
    for _ in 0..input.u8() % 6 {
        let at = usize::from(input.u16()) % message.len();
        message[at] = input.u8();
    }
    guest.to_host.send(6, 0, packet.transaction, &[], &message);
}

fn request(input: &mut Input<'_>) -> Request {
    let pool = input.choose(&[Pool::External, Pool::Guest, Pool::Auto]);
    let key = "k".repeat(usize::from(input.u8()) * 2);
    match input.u8() % 6 {
        0 => Request::Shutdown(Shutdown::default()),
        1 => Request::SetTime,
        2 => Request::List(pool),
        3 => Request::Get { pool, key },
        4 => Request::Set {
            pool,
            key,
            value: "v".repeat(usize::from(input.u8()) * 5),
        },
        _ => Request::Remove { pool, key },
    }
}

//! Notifications: never lost, and not sent where nobody asked.

use offload::VirtioNetHdr;

use super::{BASE, frame, started, turn};
use crate::burst::Burst;
use crate::deliver::Report;
use crate::ports::vhost::driver::{Layout, Setup};
use crate::ports::vhost::feature;

const FORMATS: [u64; 4] = [
    0,
    feature::EVENT_IDX,
    feature::RING_PACKED,
    feature::RING_PACKED | feature::EVENT_IDX,
];

#[test]
fn device_asks_for_kicks_only_while_armed() {
    for features in FORMATS {
        let (mut guest, _session, mut sides) = started(Setup {
            features: BASE | features,
            ..Setup::default()
        });
        let mut burst = Burst::new();
        let send = |guest: &mut crate::ports::vhost::driver::Guest| {
            guest
                .send(
                    0,
                    &VirtioNetHdr::default(),
                    &frame(0, 60),
                    &Layout::default(),
                )
                .unwrap();
            guest.publish(1).unwrap()
        };
        // An event index of 0 stands in fresh memory: the first one may kick.
        send(&mut guest);
        assert!(!send(&mut guest), "{features:#x}: kick while polling");
        assert!(sides.tx.arm(), "{features:#x}: frames are waiting");
        sides.tx.disarm();
        sides.tx.gather(&mut burst);
        sides.tx.complete();
        assert!(!sides.tx.arm());
        assert!(send(&mut guest), "{features:#x}: armed, and no kick");
        let mut readable = 0;
        sides.tx.wake_fds(&mut |_| readable += 1);
        assert_eq!(readable, 1);
        sides.tx.disarm();
        burst.clear();
        sides.tx.gather(&mut burst);
        assert_eq!(burst.len(), 1);
    }
}

#[test]
fn driver_is_called_only_while_armed() {
    for features in FORMATS {
        let setup = Setup {
            features: BASE | features,
            ..Setup::default()
        };
        let (mut from, _session, mut from_sides) = started(setup.clone());
        let (mut to, _other, mut to_sides) = started(setup);
        let (mut burst, mut report) = (Burst::new(), Report::default());
        to.receive_burst(0, 0).unwrap();
        let mut pass = |count: usize| {
            for _ in 0..count {
                from.send(
                    0,
                    &VirtioNetHdr::default(),
                    &frame(0, 60),
                    &Layout::default(),
                )
                .unwrap();
            }
            from.publish(1).unwrap();
            turn(&mut from_sides, &mut to_sides, &mut burst, &mut report);
        };
        to.rings[0].ring.disarm().unwrap();
        pass(3);
        assert!(!to.was_called(0), "{features:#x}: call while polling");
        assert!(
            to.rings[0].ring.arm().unwrap(),
            "{features:#x}: frames are waiting"
        );
        assert_eq!(to.receive_burst(0, 64).unwrap(), 3);
        assert!(!to.rings[0].ring.arm().unwrap());
        pass(2);
        assert!(to.was_called(0), "{features:#x}: armed, and no call");
    }
}

/// An index that was asked for and passed is not reached again by going round the ring.
#[test]
fn a_wish_is_fulfilled_once() {
    for features in [
        feature::EVENT_IDX,
        feature::RING_PACKED | feature::EVENT_IDX,
    ] {
        let features = BASE | features;
        let setup = Setup {
            features,
            queue_size: 8,
            ..Setup::default()
        };
        let (mut from, _session, mut from_sides) = started(setup.clone());
        let (mut to, _other, mut to_sides) = started(setup);
        let (mut burst, mut report) = (Burst::new(), Report::default());
        to.receive_burst(0, 0).unwrap();
        let mut calls = Vec::new();
        assert!(!to.rings[0].ring.arm().unwrap());
        // Not two laps: the wrap counter of a packed ring cannot tell those apart.
        for _ in 0..5 {
            from.send_burst(0, 60, 3).unwrap();
            turn(&mut from_sides, &mut to_sides, &mut burst, &mut report);
            calls.push(to.was_called(0));
            assert_eq!(to.receive_burst(0, 64).unwrap(), 3);
        }
        assert!(calls[0]);
        assert!(!calls[1..].contains(&true), "{features:#x}: {calls:?}");
    }
}

/// A driver and a device on two threads that sleep on every occasion: a wake-up that is lost ends in the timeout.
#[test]
fn no_wake_up_is_lost() {
    for features in FORMATS {
        let (mut guest, _session, mut sides) = started(Setup {
            features: BASE | features,
            ..Setup::default()
        });
        const FRAMES: usize = 20_000;
        let device = std::thread::spawn(move || {
            let mut burst = Burst::new();
            let mut taken = 0;
            while taken < FRAMES {
                burst.clear();
                sides.tx.gather(&mut burst);
                taken += burst.len();
                sides.tx.complete();
                if burst.is_empty() && !sides.tx.arm() {
                    sleep(|each| sides.tx.wake_fds(each));
                    sides.tx.disarm();
                } else if burst.is_empty() {
                    sides.tx.disarm();
                }
            }
        });
        let mut sent = 0;
        guest.prepare_sending(0, &[frame(0, 60)]).unwrap();
        while sent < FRAMES && !device.is_finished() {
            let burst = 1 + sent % 5;
            sent += guest.send_burst(0, 60, burst.min(FRAMES - sent)).unwrap();
            if sent % 3 == 0 {
                std::thread::yield_now();
            }
        }
        device.join().unwrap();
    }
}

/// Waits for one of the descriptors that `fds` gives.
fn sleep(fds: impl Fn(&mut dyn FnMut(std::os::fd::BorrowedFd<'_>))) {
    let timeout = rustix::event::Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    fds(&mut |fd| {
        let mut poll = [rustix::event::PollFd::new(
            &fd,
            rustix::event::PollFlags::IN,
        )];
        assert_eq!(
            rustix::event::poll(&mut poll, Some(&timeout)).unwrap(),
            1,
            "a wake-up was lost"
        );
    });
}

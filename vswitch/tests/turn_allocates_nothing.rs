//! Rule 4 of the architecture: a turn allocates nothing. A test program of its own, as the allocator is counted.

#![allow(
    unsafe_code,
    clippy::unwrap_used,
    reason = "a test; a global allocator is unsafe to implement"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use offload::{CsumAt, Features, Gso, Request};
use vswitch::control::{NetworkSpec, Switch};
use vswitch::mac::Mac;
use vswitch::network::PortPolicy;
use vswitch::port::PortControl;
use vswitch::ports::memory::MemoryPort;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as our caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as our caller promised.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() -> u64 {
    COUNT.with(Cell::get)
}

/// TCP over IPv4 with a partial checksum and `payload` bytes, from station 1.
fn tcp(to: Mac, payload: usize) -> Vec<u8> {
    let mut frame = [&to.0[..], &[2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0]].concat();
    frame.extend((40 + payload as u16).to_be_bytes());
    frame.extend([
        0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 0, 80,
    ]);
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.extend(vec![7; payload]);
    frame
}

#[test]
fn a_turn_allocates_nothing() {
    let (switch, workers) = Switch::stepped(1).unwrap();
    let network = switch.create_network(&NetworkSpec::default()).unwrap();
    let all = Features {
        csum: true,
        tso4: true,
        tso6: true,
        ecn: true,
    };
    let mut ports = Vec::new();
    for features in [all, all, Features::default()] {
        let port = switch.add_port(PortPolicy::default(), None).unwrap();
        port.connect(network).unwrap();
        let (sides, station) = MemoryPort {
            features,
            ..MemoryPort::default()
        }
        .open()
        .unwrap();
        assert!(port.attach(sides).is_none());
        ports.push((port, station));
    }
    let mut worker = workers[0].lock().unwrap();
    let csum = Some(CsumAt {
        start: 34,
        offset: 16,
    });
    let large = Request {
        csum,
        gso: Gso::Tcp4 {
            mss: 1460,
            ecn: false,
        },
        csum_valid: false,
    };
    let partial = Request {
        csum,
        ..Request::default()
    };
    for (index, request, payload) in [
        (0, Request::default(), 10),
        (1, partial, 1000),
        (2, large, 60_000),
    ] {
        // A flood, cut and completed for the third; a new station each time, so that the table is written too.
        for to in [Mac::BROADCAST, Mac([2, 0, 0, 0, 0, 9])] {
            let mut frame = tcp(to, payload);
            frame[11] = index + 1;
            assert!(ports[0].1.send_with(&frame, request));
            let before = count();
            assert_eq!(worker.poll(1), 1);
            assert_eq!(count() - before, 0, "payload of {payload} bytes");
        }
    }
    assert_eq!(ports[1].0.counters().rx.frames, 6);
    assert!(ports[2].0.counters().rx.frames > 80);
}

//! The stages of a turn: time of a frame, or of a burst where the name says so.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use offload::request::validate;
use offload::{CsumAt, Features, Gso, Request};
use vswitch::burst::{BURST, Burst};
use vswitch::control::{NetworkSpec, PortHandle, Switch};
use vswitch::deliver::{FrameMeta, Job, Quiet, Report};
use vswitch::fdb::{Fdb, Key};
use vswitch::mac::Mac;
use vswitch::network::{NetworkId, PortPolicy};
use vswitch::port::{PortControl, Sides};
use vswitch::ports::memory::MemoryPort;
use vswitch::ports::vhost::driver::{Guest, Setup};
use vswitch::ports::vhost::feature;
use vswitch::ports::vhost::session::{Offer, Session};
use vswitch::vlan::VlanMode;

fn frame(len: usize) -> Vec<u8> {
    let mut frame = [
        &[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0][..],
        &(len as u16 - 14).to_be_bytes(),
    ]
    .concat();
    frame.extend([
        0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 0, 80,
    ]);
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.resize(len, 7);
    frame
}

fn partial() -> Request {
    Request {
        csum: Some(CsumAt {
            start: 34,
            offset: 16,
        }),
        ..Request::default()
    }
}

fn gather(c: &mut Criterion) {
    let (mut sides, station) = MemoryPort::default().open().unwrap();
    let bytes = frame(64);
    let mut burst = Burst::new();
    let mut group = c.benchmark_group("gather");
    group.throughput(Throughput::Elements(BURST as u64));
    group.bench_function("send, gather and complete a burst", |b| {
        b.iter(|| {
            for _ in 0..BURST {
                station.send(black_box(&bytes));
            }
            burst.clear();
            sides.tx.gather(&mut burst);
            sides.tx.complete()
        });
    });
}

fn table(c: &mut Criterion) {
    let mut group = c.benchmark_group("fdb");
    for stations in [1u64, 1000, 100_000] {
        let table = Fdb::new(1 << 20, 300, 12345).unwrap();
        let key = |index: u64| Key::new(Mac::from_u64(0x0200_0000_0000 + index), 0);
        for index in 0..stations {
            table.learn(key(index), 1, 1);
        }
        // A walk that no prefetcher follows.
        let mut at = 0;
        let mut next = move || {
            at = (at + 40_503) % stations;
            key(at)
        };
        group.bench_function(BenchmarkId::new("lookup", stations), |b| {
            b.iter(|| table.lookup(black_box(next()), 1))
        });
        group.bench_function(BenchmarkId::new("learn known", stations), |b| {
            b.iter(|| table.learn(black_box(next()), 1, 1));
        });
    }
}

fn delivery(c: &mut Criterion) {
    let mut group = c.benchmark_group("deliver");
    let csum = Features {
        csum: true,
        ..Features::default()
    };
    let all = Features {
        csum: true,
        tso4: true,
        tso6: true,
        ecn: true,
    };
    let large = Request {
        gso: Gso::Tcp4 {
            mss: 1460,
            ecn: false,
        },
        ..partial()
    };
    let cases = [
        ("as it is", 64, Request::default(), all),
        ("as it is", 1514, Request::default(), all),
        ("as it is", 9014, Request::default(), all),
        ("checksum filled in", 64, partial(), Features::default()),
        ("checksum filled in", 1514, partial(), Features::default()),
        ("uncut", 65_000, large, all),
        ("cut, partial checksums", 65_000, large, csum),
        (
            "cut, checksums filled in",
            65_000,
            large,
            Features::default(),
        ),
    ];
    for (name, len, request, features) in cases {
        let (from, sender) = MemoryPort::default().open().unwrap();
        assert!(sender.send_with(&frame(len), request));
        group.throughput(Throughput::Bytes(len as u64));
        deliver_to(&mut group, BenchmarkId::new(name, len), from, features, len);
    }
}

/// Delivers the frame that waits in `from` again and again.
fn deliver_to(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    mut from: Sides,
    features: Features,
    len: usize,
) {
    let port = MemoryPort {
        features,
        ..MemoryPort::default()
    };
    let (mut to, receiver) = port.open().unwrap();
    let mut burst = Burst::new();
    from.tx.gather(&mut burst);
    let taken = burst.frames().first().unwrap();
    let checked = validate(&taken.request, taken.head(), taken.len()).unwrap();
    let meta = [Some(FrameMeta {
        checked,
        tag: None,
        vid: 0,
        priority: 0,
    })];
    let vlan = VlanMode::None;
    group.bench_function(id, |b| {
        b.iter(|| {
            let job = Job {
                burst: &burst,
                source: from.tx.memory(),
                meta: &meta,
                quiet: Quiet::default(),
                frames: 1,
                vlan: &vlan,
                mtu: if len == 9014 { 9000 } else { 1500 },
            };
            let mut report = Report::default();
            to.rx.deliver(black_box(&job), &mut report);
            assert!(report.source.delivered > 0);
            while receiver.discard() {}
        });
    });
}

/// Stations of the turns to and from many: more than any cache next to a core holds.
const MANY: u64 = 50_000;

/// Whose addresses the frames of a turn carry.
#[derive(Clone, Copy)]
enum Stations {
    /// One sends to one.
    One,
    /// One sends to [`MANY`] in turn.
    To,
    /// [`MANY`] in turn send to one.
    From,
}

/// A whole turn between two vhost-user guests, everything in the cache of one core: what a frame costs without the
/// other core. The drivers' part is not counted.
fn turn(c: &mut Criterion) {
    let mut group = c.benchmark_group("turn");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, packed, len, stations) in [
        ("split", 0, 64, Stations::One),
        ("packed", feature::RING_PACKED, 64, Stations::One),
        ("to 50,000", 0, 64, Stations::To),
        ("from 50,000", 0, 64, Stations::From),
        ("split", 0, 512, Stations::One),
        ("split", 0, 1518, Stations::One),
    ] {
        let (switch, workers) = Switch::stepped(1).unwrap();
        let network = switch.create_network(&NetworkSpec::default()).unwrap();
        let mut guests = [0, 1].map(|_| guest(&switch, network, packed));
        let mut worker = workers.first().unwrap().lock().unwrap();
        let [(_, _, sender), (_, _, receiver)] = &mut guests;
        // The first 3 bytes say whose they are, the others count.
        let mac = |side: u64, index: u64| Mac::from_u64(0x0200_0000_0000 | side << 24 | index).0;
        let ethertype = [0x88, 0xb5];
        // The switch is shown where the receiver is.
        for index in 0..MANY {
            receiver.receive_burst(0, BURST).unwrap();
            sender.receive_burst(0, BURST).unwrap();
            let hello = [&[0xff; 6], &mac(2, index)[..], &ethertype].concat();
            receiver.prepare_sending(0, &[hello]).unwrap();
            receiver.send_burst(0, 14, 1).unwrap();
            worker.poll(1);
        }
        // As the daemon does every second or two.
        switch.sweep();
        let mut at = 0;
        let mut frame = || {
            // A walk that no prefetcher follows.
            at = (at + 40_503) % MANY;
            let (to, from) = match stations {
                Stations::One => (0, 0),
                Stations::To => (at, 0),
                Stations::From => (0, at),
            };
            let mut frame = [mac(2, to), mac(1, from)].concat();
            frame.extend(ethertype);
            frame.resize(len, 0);
            frame
        };
        sender.prepare_sending(0, &[frame()]).unwrap();
        group.bench_function(BenchmarkId::new(name, len), |b| {
            b.iter_custom(|times| {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    if !matches!(stations, Stations::One) {
                        let frames: Vec<_> = (0..BURST).map(|_| frame()).collect();
                        sender.prepare_sending(0, &frames).unwrap();
                    }
                    sender.send_burst(0, len as u32, BURST).unwrap();
                    let start = Instant::now();
                    let taken = worker.poll(1);
                    spent += start.elapsed();
                    assert_eq!(taken, BURST as u32);
                    assert_eq!(receiver.receive_burst(0, 2 * BURST).unwrap(), BURST);
                }
                spent
            });
        });
    }
}

/// A guest with a port in `network`.
fn guest(
    switch: &Switch,
    network: NetworkId,
    packed: u64,
) -> (std::sync::Arc<PortHandle>, Session, Guest) {
    let base = feature::VERSION_1 | feature::MRG_RXBUF | feature::PROTOCOL_FEATURES;
    let mut guest = Guest::new(Setup {
        features: base | packed,
        ..Setup::default()
    })
    .unwrap();
    for ring in &mut guest.rings {
        ring.ring.disarm().unwrap();
    }
    let policy = PortPolicy {
        mtu: 9000,
        ..PortPolicy::default()
    };
    let port = switch.add_port(policy, None).unwrap();
    port.connect(network).unwrap();
    let mut session = Session::new(Offer {
        queue_pairs: 1,
        mtu: 9000,
    });
    port.attach(guest.start_in(&mut session).unwrap());
    (port, session, guest)
}

criterion_group! {
    name = stages;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = gather, table, delivery, turn
}
criterion_main!(stages);

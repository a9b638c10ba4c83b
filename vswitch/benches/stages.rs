//! The stages of a turn: time of a frame, or of a burst where the name says so.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use offload::request::validate;
use offload::{CsumAt, Features, Gso, Request};
use vswitch::burst::{BURST, Burst};
use vswitch::deliver::{FrameMeta, Job, Report};
use vswitch::fdb::{Fdb, Key};
use vswitch::mac::Mac;
use vswitch::port::Sides;
use vswitch::ports::memory::MemoryPort;
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

criterion_group! {
    name = stages;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = gather, table, delivery
}
criterion_main!(stages);

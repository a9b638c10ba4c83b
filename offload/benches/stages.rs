//! What the pure stages cost for one frame.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use offload::parse::parse;
use offload::plan::plan;
use offload::request::validate;
use offload::{
    CsumAt, Features, Gso, HEAD_MAX, Request, SNAPSHOT, Segmenter, Sum, Tag, TagEdit, flow_hash,
};
use std::hint::black_box;

const MSS: u16 = 1448;
/// A large frame of 64 KiB.
const LARGE: u32 = 65_536;

/// IPv4 and TCP with a timestamp option: 66 bytes of headers.
fn head() -> [u8; SNAPSHOT] {
    let mut head = [0; SNAPSHOT];
    let headers = [
        &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0][..],
        &[
            0x45, 0, 5, 0xdc, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ],
        &[
            0, 80, 0x80, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x10, 1, 0, 0, 0, 0, 0,
        ],
        &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
    ]
    .concat();
    for (to, from) in head.iter_mut().zip(headers) {
        *to = from;
    }
    head
}

const fn request(gso: Gso) -> Request {
    Request {
        csum: Some(CsumAt {
            start: 34,
            offset: 16,
        }),
        gso,
        csum_valid: false,
    }
}

fn stages(c: &mut Criterion) {
    let head = head();
    let none = Features::default();
    let mut out = [0; HEAD_MAX];
    c.bench_function("parse", |b| {
        b.iter(|| parse(black_box(&head), black_box(1514)))
    });
    c.bench_function("flow_hash", |b| {
        b.iter(|| flow_hash(black_box(&head), black_box(1514)))
    });
    let tso = Gso::Tcp4 {
        mss: MSS,
        ecn: false,
    };
    for (name, request, len) in [
        ("validate_plan/plain", Request::default(), 1514),
        ("validate_plan/csum", request(Gso::None), 1514),
        ("validate_plan/tso", request(tso), LARGE),
    ] {
        c.bench_function(name, |b| {
            b.iter(|| {
                validate(black_box(&request), black_box(&head), len)
                    .map(|checked| plan(&checked, len, black_box(&none), 1514))
            });
        });
    }
    c.bench_function("tag_insert", |b| {
        b.iter(|| {
            TagEdit::Insert(black_box(Tag { tci: 10 })).apply(black_box(&head), black_box(&mut out))
        });
    });
    if let Ok(checked) = validate(&request(tso), &head, LARGE) {
        c.bench_function("segment_64k", |b| {
            b.iter_batched(
                || Segmenter::new(&head, &checked, LARGE, MSS),
                |mut segmenter| while segmenter.next(black_box(&mut out)).is_some() {},
                BatchSize::SmallInput,
            );
        });
    }
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for len in [64, 1500] {
        let bytes = vec![0x5a; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(len.to_string(), |b| {
            b.iter(|| {
                let mut sum = Sum::new();
                sum.add_bytes(black_box(&bytes));
                sum.fold()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, stages, checksums);
criterion_main!(benches);

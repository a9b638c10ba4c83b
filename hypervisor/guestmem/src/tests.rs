//! Tests of the whole crate; those of SIGBUS are in `tests/truncation.rs`.

use crate::*;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn memfd(len: u64) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, len).unwrap();
    fd
}

/// A region with a file of its own; user addresses are guest addresses plus 2^40.
fn region(guest_addr: u64, len: u64) -> RegionSpec {
    RegionSpec {
        guest_addr,
        user_addr: guest_addr.wrapping_add(1 << 40),
        len,
        fd: memfd(len),
        fd_offset: 0,
    }
}

fn map(ranges: &[(u64, u64)]) -> Result<Memory, MapError> {
    Memory::map(ranges.iter().map(|&(at, len)| region(at, len)).collect())
}

fn bytes(memory: &Memory, at: u64, len: usize) -> Vec<u8> {
    let mut to = vec![0xaa; len];
    memory
        .read(memory.span(at, len as u32).unwrap(), &mut to)
        .unwrap();
    to
}

fn refused(result: Result<Memory, MapError>) -> String {
    result.unwrap_err().to_string()
}

/// The model of `copy_sum`, folded.
fn model_sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0u16, |sum, word| {
        let word = u16::from_le_bytes([word[0], *word.get(1).unwrap_or(&0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(next).collect()
}

#[test]
fn types_are_small_and_shared() {
    fn shared<T: Send + Sync>() {}
    shared::<Memory>();
    shared::<Window>();
    shared::<DirtyLog>();
    assert_eq!(size_of::<Span>(), 16);
    assert_eq!(size_of::<Result<u16, Fault>>(), 4);
}

#[test]
fn bad_tables_are_refused_with_the_value() {
    assert_eq!(refused(map(&[])), "0 memory regions: 1 to 511 are allowed");
    assert!(refused(map(&[(0, 0)])).contains("length 0x0 "));
    let spec = RegionSpec {
        guest_addr: 0,
        user_addr: 0,
        len: (1 << 46) + 1,
        fd: memfd(1),
        fd_offset: 0,
    };
    assert!(refused(Memory::map(vec![spec])).contains("length 0x400000000001 "));
    assert!(
        refused(map(&[(u64::MAX - 4095, 4096)]))
            .contains("guest address 0xfffffffffffff000 plus length 0x1000")
    );
    let spec = RegionSpec {
        user_addr: u64::MAX,
        ..region(0, 4096)
    };
    assert!(refused(Memory::map(vec![spec])).contains("user address 0xffffffffffffffff plus"));
    for fd_offset in [u64::MAX, i64::MAX as u64] {
        let spec = RegionSpec {
            fd_offset,
            ..region(0, 4096)
        };
        assert!(
            refused(Memory::map(vec![spec])).contains(&format!("file offset {fd_offset:#x} plus"))
        );
    }
    assert_eq!(
        refused(map(&[(0x3000, 0x1000), (0x1000, 0x2001)])),
        "memory regions at guest addresses 0x1000 and 0x3000 overlap"
    );
    assert!(refused(map(&[(0x1000, 0x1000), (0x1000, 0x1000)])).contains("overlap"));
    let spec = RegionSpec {
        fd_offset: 1,
        ..region(0, 4096)
    };
    assert_eq!(
        refused(Memory::map(vec![spec])),
        "file of 0x1000 bytes is too short for offset 0x1 plus length 0x1000"
    );
    let spec = RegionSpec {
        fd: std::fs::File::open("/dev/zero").unwrap().into(),
        ..region(0, 4096)
    };
    assert!(refused(Memory::map(vec![spec])).contains("only memfd, tmpfs and hugetlbfs"));
    let spec = RegionSpec {
        fd: std::fs::File::open("/proc/self/maps").unwrap().into(),
        ..region(0, 4096)
    };
    assert!(refused(Memory::map(vec![spec])).contains("file system type 0x9fa0"));
    assert!(Memory::anonymous(0).is_err());
}

#[test]
fn region_limit() {
    let table = |n: u64| (0..n).map(|i| (i * 0x2000, 0x1000)).collect::<Vec<_>>();
    assert_eq!(
        refused(map(&table(512))),
        "512 memory regions: 1 to 511 are allowed"
    );
    let memory = map(&table(511)).unwrap();
    for i in 0..511 {
        let at = i * 0x2000;
        memory
            .write(memory.span(at, 8).unwrap(), &i.to_ne_bytes())
            .unwrap();
    }
    for i in 0..511 {
        let at = i * 0x2000;
        assert_eq!(bytes(&memory, at, 8), i.to_ne_bytes());
        assert!(memory.span(at + 0xfff, 1).is_some());
        assert!(memory.span(at + 0xfff, 2).is_none());
        assert!(memory.span(at + 0x1000, 0).is_none());
    }
}

#[test]
fn translation() {
    let memory = map(&[(0x4000, 0x1000), (0x1000, 0x1000), (0x2000, 0x1000)]).unwrap();
    assert!(memory.span(0xfff, 1).is_none());
    assert!(memory.span(0x1000, 0x1000).is_some());
    assert!(memory.span(0x1000, 0x1001).is_none());
    assert!(memory.span(0x3000, 0).is_none());
    assert!(memory.span(u64::MAX, u32::MAX).is_none());
    assert_eq!(memory.span(0x1ff0, 0x10).unwrap().len(), 0x10);

    let pieces = |at, len| {
        let mut pieces = Vec::new();
        let whole = memory.spans(at, len, |span| {
            pieces.push(span.len());
            true
        });
        (whole, pieces)
    };
    assert_eq!(pieces(0x1ff0, 0x20), (true, vec![0x10, 0x10]));
    assert_eq!(pieces(0x1000, 0x2000), (true, vec![0x1000, 0x1000]));
    assert_eq!(pieces(0x1000, 0x2001), (false, vec![0x1000, 0x1000]));
    assert_eq!(pieces(0, 0), (true, vec![]));
    assert_eq!(pieces(u64::MAX, 5), (false, vec![]));
    assert!(!memory.spans(0x1000, 8, |_| false));

    let user = 1 << 40;
    assert_eq!(memory.user_to_guest(user + 0x1004, 0xffc), Some(0x1004));
    assert_eq!(memory.user_to_guest(user + 0x1004, 0xffd), None);
    assert_eq!(memory.user_to_guest(user + 0x3000, 0), None);
    assert_eq!(memory.user_to_guest(user + 0x4fff, 1), Some(0x4fff));
    assert_eq!(memory.user_to_guest(0, u64::MAX), None);
}

#[test]
fn a_region_may_begin_inside_a_page_of_its_file() {
    let fd = memfd(0x4000);
    let whole = RegionSpec {
        guest_addr: 0,
        user_addr: 0,
        len: 0x4000,
        fd: fd.try_clone().unwrap(),
        fd_offset: 0,
    };
    let part = RegionSpec {
        guest_addr: 0x700,
        user_addr: 0,
        len: 0x1803,
        fd,
        fd_offset: 0x1801,
    };
    let (whole, part) = (
        Memory::map(vec![whole]).unwrap(),
        Memory::map(vec![part]).unwrap(),
    );
    part.write(part.span(0x700, 4).unwrap(), b"head").unwrap();
    part.write(part.span(0x1eff, 4).unwrap(), b"tail").unwrap();
    assert_eq!(bytes(&whole, 0x1801, 4), b"head");
    assert_eq!(bytes(&whole, 0x3000, 4), b"tail");
    let part = Arc::new(part);
    // Alignment is that of the host address.
    let window = part.window(0x700, 16).unwrap();
    assert_eq!(
        window.load_u16(0, Ordering::Relaxed),
        Err(Fault::Misaligned)
    );
    assert!(window.load_u16(1, Ordering::Relaxed).is_ok());
}

#[test]
fn spans_are_checked_at_use() {
    let memory = map(&[(0, 0x1000), (0x10000, 0x3000)]).unwrap();
    let small = map(&[(0, 0x1000)]).unwrap();
    let span = memory.span(0x12000, 4).unwrap();
    assert_eq!(small.read(span, &mut [0; 4]), Err(Fault::Range));
    assert_eq!(small.write(span, &[0; 4]), Err(Fault::Range));
    assert_eq!(small.sum(span), Err(Fault::Range));
    assert_eq!(memory.copy(span, &small, span), Err(Fault::Range));
    assert_eq!(small.copy_sum(span, &memory, span), Err(Fault::Range));
    assert_eq!(small.host_addr(span), None);
    small.prefetch(span);
    small.prefetch_write(span);
    // Same region index, too far in.
    let large = map(&[(0, 0x3000)]).unwrap();
    for (at, len) in [(0xfff, 2), (0x1001, 0), (0x2000, 4), (0, 0x1001)] {
        let span = large.span(at, len).unwrap();
        assert_eq!(
            small.read(span, &mut vec![0; len as usize]),
            Err(Fault::Range),
            "{at:#x} {len}"
        );
    }

    let span = memory.span(0, 8).unwrap();
    assert_eq!(memory.read(span, &mut [0; 7]), Err(Fault::Length));
    assert_eq!(memory.write(span, &[0; 9]), Err(Fault::Length));
    let other = memory.span(0, 7).unwrap();
    assert_eq!(memory.copy(span, &memory, other), Err(Fault::Length));
    assert_eq!(memory.copy_sum(span, &memory, other), Err(Fault::Length));
    memory.read(Span::EMPTY, &mut []).unwrap();
    assert!(Span::EMPTY.is_empty());
}

#[test]
fn spans_divide() {
    let memory = map(&[(0, 0x1000)]).unwrap();
    memory
        .write(memory.span(0x10, 8).unwrap(), b"abcdefgh")
        .unwrap();
    let span = memory.span(0x10, 8).unwrap();
    let (left, right) = span.split_at(3).unwrap();
    assert_eq!(
        (left, right),
        (memory.span(0x10, 3).unwrap(), memory.span(0x13, 5).unwrap())
    );
    assert_eq!(span.split_at(8).unwrap().1.len(), 0);
    assert_eq!(span.split_at(9), None);
    assert_eq!(span.sub(2, 6), memory.span(0x12, 6));
    assert_eq!(span.sub(2, 7), None);
    assert_eq!(span.sub(u32::MAX, 1), None);
    assert_eq!(span.sub(1, u32::MAX), None);
}

#[test]
fn windows() {
    let memory = Arc::new(map(&[(0x1000, 0x2000), (0x3000, 0x1000)]).unwrap());
    assert!(memory.window(0x2ff8, 9).is_none());
    assert!(memory.window(0x4000, 0).is_none());
    let window = memory.window(0x2ff8, 8).unwrap();
    assert_eq!((window.len(), window.is_empty()), (8, false));
    let all = Ordering::SeqCst;
    window.store_u64(0, 0x0807_0605_0403_0201, all).unwrap();
    assert_eq!(bytes(&memory, 0x2ff8, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(window.load_u16(6, Ordering::Acquire), Ok(0x0807));
    assert_eq!(window.load_u32(4, Ordering::Release), Ok(0x0807_0605));
    window.store_u16(2, 0xbbaa, Ordering::Acquire).unwrap();
    window.store_u32(4, 0xffee_ddcc, Ordering::Release).unwrap();
    assert_eq!(
        window.load_u64(0, Ordering::Relaxed),
        Ok(0xffee_ddcc_bbaa_0201)
    );
    for off in [7, 8, usize::MAX] {
        assert_eq!(window.load_u16(off, all), Err(Fault::Range));
        assert_eq!(window.store_u16(off, 0, all), Err(Fault::Range));
        assert_eq!(window.read(off, &mut [0; 2]), Err(Fault::Range));
        assert_eq!(window.write(off, &[0; 2]), Err(Fault::Range));
        window.prefetch(off);
        window.prefetch_write(off);
    }
    assert_eq!(window.load_u32(6, all), Err(Fault::Range));
    assert_eq!(window.store_u64(1, 0, all), Err(Fault::Range));
    assert_eq!(window.load_u32(2, all), Err(Fault::Misaligned));
    assert_eq!(window.store_u16(1, 0, all), Err(Fault::Misaligned));
    window.write(3, b"xyz").unwrap();
    let mut to = [0; 5];
    window.read(2, &mut to).unwrap();
    assert_eq!(&to, b"\xaaxyz\xee");
    drop(memory);
    window.read(0, &mut to).unwrap();
}

#[test]
fn words_are_changed_in_one_step() {
    let memory = Arc::new(map(&[(0x1000, 0x1000)]).unwrap());
    let window = memory.window(0x1000, 0x100).unwrap();
    assert_eq!(window.fetch_or_u32(8, 0b0101), Ok(0));
    assert_eq!(window.fetch_or_u32(8, 0b0011), Ok(0b0101));
    assert_eq!(window.fetch_and_u32(8, !1), Ok(0b0111));
    assert_eq!(window.fetch_add_u32(8, u32::MAX), Ok(0b0110));
    assert_eq!(window.swap_u32(8, 77), Ok(0b0101));
    let word = memory.span(0x1008, 4).unwrap();
    assert_eq!(memory.load_u32(word), Ok(77));
    memory.store_u32(word, 78).unwrap();
    assert_eq!(window.load_u32(8, Ordering::Acquire), Ok(78));
    for (off, error) in [
        (0x100, Fault::Range),
        (0xfe, Fault::Range),
        (6, Fault::Misaligned),
    ] {
        assert_eq!(window.fetch_or_u32(off, 1), Err(error));
        assert_eq!(window.swap_u32(off, 1), Err(error));
    }
    for (addr, len, error) in [(0x1000, 8, Fault::Length), (0x1002, 4, Fault::Misaligned)] {
        let span = memory.span(addr, len).unwrap();
        assert_eq!(memory.load_u32(span), Err(error));
        assert_eq!(memory.store_u32(span, 1), Err(error));
    }
}

#[test]
fn shared_memory_has_two_views_and_keeps_its_size() {
    let (memory, fd) = Memory::shared(0x1000).unwrap();
    assert!(rustix::fs::ftruncate(&fd, 0).is_err());
    let other = Memory::map(vec![RegionSpec {
        guest_addr: 0,
        user_addr: 0,
        len: 0x1000,
        fd,
        fd_offset: 0,
    }])
    .unwrap();
    memory.write(memory.span(8, 3).unwrap(), b"abc").unwrap();
    assert_eq!(bytes(&other, 8, 3), b"abc");
}

/// Every length to 300 at every pair of alignments, against slices; bytes around the destination stay.
#[test]
fn copies_of_all_lengths_and_alignments() {
    let (from, to) = (
        Memory::anonymous(4096).unwrap(),
        Memory::anonymous(4096).unwrap(),
    );
    let data = noise(512, 7);
    from.write(from.span(0, 512).unwrap(), &data).unwrap();
    let clear = vec![0x5a; 512];
    for len in 0..300usize {
        for (src, dst) in (0..16)
            .flat_map(|src| (0..16).map(move |dst| (src, dst)))
            .chain([(17, 33), (31, 63)])
        {
            let expected = [&clear[..dst], &data[src..src + len], &clear[dst + len..]].concat();
            let spans = |span: u64| {
                (
                    from.span(src as u64, len as u32).unwrap(),
                    to.span(span, len as u32).unwrap(),
                )
            };
            let (source, target) = spans(dst as u64);
            to.write(to.span(0, 512).unwrap(), &clear).unwrap();
            from.copy(source, &to, target).unwrap();
            assert_eq!(bytes(&to, 0, 512), expected, "copy {len} {src} {dst}");
            to.write(to.span(0, 512).unwrap(), &clear).unwrap();
            let sum = from.copy_sum(source, &to, target).unwrap();
            assert_eq!(bytes(&to, 0, 512), expected, "copy_sum {len} {src} {dst}");
            assert_eq!(
                fold(sum),
                model_sum(&data[src..src + len]),
                "sum {len} {src} {dst}"
            );
            assert_eq!(from.sum(source), Ok(sum));
        }
    }
}

proptest! {
    #[test]
    fn copies_of_long_pieces(src in 0usize..100, dst in 0usize..100, len in 0usize..70_000, seed: u64, ones: bool) {
        let data = if ones { vec![0xff; len] } else { noise(len, seed) };
        let (from, to) = (Memory::anonymous(1 << 17).unwrap(), Memory::anonymous(1 << 17).unwrap());
        let source = from.span(src as u64, len as u32).unwrap();
        let target = to.span(dst as u64, len as u32).unwrap();
        from.write(source, &data).unwrap();
        from.copy(source, &to, target).unwrap();
        prop_assert_eq!(&bytes(&to, dst as u64, len), &data);
        to.write(target, &vec![0; len]).unwrap();
        let sum = from.copy_sum(source, &to, target).unwrap();
        prop_assert!(sum <= 1 << 33);
        prop_assert_eq!(fold(sum), model_sum(&data));
        prop_assert_eq!(&bytes(&to, dst as u64, len), &data);
        prop_assert_eq!(bytes(&to, (dst + len) as u64, 64), vec![0; 64]);
    }

    #[test]
    fn translation_agrees_with_a_model(
        starts in proptest::collection::btree_set(0u64..64, 1..24), at in 0u64..66, off in 0u64..4096, len in 0u32..10_000,
    ) {
        let table: Vec<_> = starts.iter().map(|&page| (page * 4096, 4096)).collect();
        let memory = map(&table).unwrap();
        let addr = at * 4096 + off;
        let inside = |addr: u64| starts.contains(&(addr / 4096));
        let one = inside(addr) && off + u64::from(len) <= 4096;
        prop_assert_eq!(memory.span(addr, len).is_some(), one);
        let mut total = 0;
        let all = memory.spans(addr, len, |span| { total += span.len(); true });
        prop_assert_eq!(all, (0..u64::from(len)).all(|i| inside(addr + i)));
        prop_assert!(!all || total == len);
    }
}

#[test]
fn the_sum_is_that_of_the_bytes_written() {
    let (from, to) = (
        Memory::anonymous(4096).unwrap(),
        Memory::anonymous(4096).unwrap(),
    );
    let (source, target) = (from.span(0, 127).unwrap(), to.span(0, 127).unwrap());
    let done = AtomicBool::new(false);
    // Counted, as a panic in the scope would wait for the writer for ever.
    let mut wrong = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0u64.. {
                from.write(source, &[round as u8; 127]).unwrap();
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..500_000 {
            let sum = from.copy_sum(source, &to, target).unwrap();
            wrong += usize::from(to.sum(target).unwrap() != sum);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(
        wrong, 0,
        "copies whose sum is not that of the bytes written"
    );
}

#[test]
fn dirty_log_bits() {
    let fd = memfd(0x1000);
    let view = RegionSpec {
        guest_addr: 0,
        user_addr: 0,
        len: 0x1000,
        fd: fd.try_clone().unwrap(),
        fd_offset: 0,
    };
    let view = Memory::map(vec![view]).unwrap();
    let memory = Arc::new(map(&[(0x2000, 0x8000), (0x10000, 0x8000)]).unwrap());
    // Pages 0 to 0x17 take three bytes.
    let short = Arc::new(DirtyLog::map(fd.try_clone().unwrap(), 0x100, 2).unwrap());
    let error = memory.set_dirty_log(Some(short)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "dirty log of 0x2 bytes: guest addresses up to 0x17fff need 0x3"
    );
    let log = Arc::new(DirtyLog::map(fd, 0x100, 3).unwrap());
    let taken = || {
        let bits = bytes(&view, 0x100, 4);
        view.write(view.span(0x100, 4).unwrap(), &[0; 4]).unwrap();
        bits
    };
    let (one, two) = (
        memory.span(0x2000, 16).unwrap(),
        memory.span(0x11ff8, 16).unwrap(),
    );
    memory.write(one, &[1; 16]).unwrap();
    assert_eq!(taken(), [0, 0, 0, 0]);

    memory.set_dirty_log(Some(Arc::clone(&log))).unwrap();
    memory.write(one, &[1; 16]).unwrap();
    assert_eq!(taken(), [4, 0, 0, 0]);
    memory.copy(one, &memory, two).unwrap();
    assert_eq!(taken(), [0, 0, 6, 0]);
    memory.copy_sum(two, &memory, one).unwrap();
    assert_eq!(taken(), [4, 0, 0, 0]);
    memory
        .write(memory.span(0x17fff, 1).unwrap(), &[1])
        .unwrap();
    assert_eq!(taken(), [0, 0, 0x80, 0]);
    memory.write(memory.span(0x2000, 0).unwrap(), &[]).unwrap();
    memory.read(one, &mut [0; 16]).unwrap();
    memory.sum(one).unwrap();
    assert_eq!(taken(), [0, 0, 0, 0]);
    let window = memory.window(0x3000, 0x3000).unwrap();
    window.store_u16(0, 1, Ordering::Relaxed).unwrap();
    window.store_u32(0x1000, 1, Ordering::Relaxed).unwrap();
    window.store_u64(0x2000, 1, Ordering::Relaxed).unwrap();
    assert_eq!(taken(), [0x38, 0, 0, 0]);
    window.write(0xfff, &[1, 2]).unwrap();
    assert_eq!(taken(), [0x18, 0, 0, 0]);

    memory.set_dirty_log(None).unwrap();
    memory.write(one, &[1; 16]).unwrap();
    window.write(0, &[1]).unwrap();
    assert_eq!(taken(), [0, 0, 0, 0]);
    assert_eq!(Arc::strong_count(&log), 1);
}

#[test]
fn sixteen_bytes_are_exchanged_at_once() {
    let memory = Memory::anonymous(1 << 20).unwrap();
    let span = memory.span(0x1000, 16).unwrap();
    memory
        .write(span, &(5_u128 << 64 | 7).to_le_bytes())
        .unwrap();
    assert_eq!(memory.compare_exchange(span, 1, 2), Ok(5 << 64 | 7));
    assert_eq!(
        memory.compare_exchange(span, 5 << 64 | 7, 9 << 64 | 11),
        Ok(5 << 64 | 7)
    );
    let mut bytes = [0; 16];
    memory.read(span, &mut bytes).unwrap();
    assert_eq!(u128::from_le_bytes(bytes), 9 << 64 | 11);
    let crooked = memory.span(0x1008, 16).unwrap();
    assert_eq!(
        memory.compare_exchange(crooked, 0, 0),
        Err(Fault::Misaligned)
    );
    let short = memory.span(0x1000, 8).unwrap();
    assert_eq!(memory.compare_exchange(short, 0, 0), Err(Fault::Length));
}

#[test]
fn collapsing_leaves_contents_alone() {
    let words: Vec<u64> = (0..1 << 20).collect();
    crate::collapse(&words[3..]);
    crate::collapse(&words[..1]);
    crate::collapse::<u64>(&[]);
    assert!(words.iter().copied().eq(0..1 << 20));
}

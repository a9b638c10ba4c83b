//! Moving bytes that another process may be changing.
//!
//! Every access is one `mov` in an `asm!` block of its own. To the compiler such a block is opaque: it runs exactly as
//! often as written, and nothing is assumed about the value. To the processor it is an ordinary access, for which a
//! concurrent writer means an old or a new value. So a race decides which bytes are moved, never what the program does.
//! The arithmetic between the blocks works on registers.
//!
//! [`copy`] may load a byte twice (its first and last blocks overlap); [`copy_sum`] loads and stores each byte once,
//! so its sum is that of the bytes it stored. Source and destination may overlap; the destination then holds some mix.
#![allow(unsafe_code, reason = "inline assembly on raw pointers")]

use std::arch::asm;
use std::arch::x86_64::*;

macro_rules! access {
    ($load:ident, $store:ident, $type:ty, $class:ident, $load_op:literal, $store_op:literal $(, $feature:literal)?) => {
        /// # Safety
        /// The bytes at `from` are mapped and readable.
        #[inline]
        $(#[target_feature(enable = $feature)])?
        unsafe fn $load(from: *const u8) -> $type {
            let value: $type;
            // SAFETY: reads one value at `from`, which the caller vouches for; needs no alignment. Not `pure` or
            // `readonly`: a signal handler may run in it, whose stores must be seen after it.
            unsafe { asm!($load_op, v = out($class) value, p = in(reg) from, options(nostack, preserves_flags)) };
            value
        }

        /// # Safety
        /// The bytes at `to` are mapped and writable.
        #[inline]
        $(#[target_feature(enable = $feature)])?
        unsafe fn $store(to: *mut u8, value: $type) {
            // SAFETY: writes one value at `to`, which the caller vouches for; needs no alignment.
            unsafe { asm!($store_op, v = in($class) value, p = in(reg) to, options(nostack, preserves_flags)) };
        }
    };
}

access!(
    load1,
    store1,
    u8,
    reg_byte,
    "mov {v}, byte ptr [{p}]",
    "mov byte ptr [{p}], {v}"
);
access!(
    load2,
    store2,
    u16,
    reg,
    "mov {v:x}, word ptr [{p}]",
    "mov word ptr [{p}], {v:x}"
);
access!(
    load4,
    store4,
    u32,
    reg,
    "mov {v:e}, dword ptr [{p}]",
    "mov dword ptr [{p}], {v:e}"
);
access!(
    load8,
    store8,
    u64,
    reg,
    "mov {v}, qword ptr [{p}]",
    "mov qword ptr [{p}], {v}"
);
access!(
    load16,
    store16,
    __m128i,
    xmm_reg,
    "movups {v}, [{p}]",
    "movups [{p}], {v}"
);
access!(
    load32,
    store32,
    __m256i,
    ymm_reg,
    "vmovdqu {v}, [{p}]",
    "vmovdqu [{p}], {v}",
    "avx2"
);
access!(
    load64,
    store64,
    __m512i,
    zmm_reg,
    "vmovdqu64 {v}, [{p}]",
    "vmovdqu64 [{p}], {v}",
    "avx512f"
);

/// Moves the first `$block` and the last `$block` bytes of `$len`, loading all before storing any.
macro_rules! ends {
    ($load:ident, $store:ident, $block:literal, $to:ident, $from:ident, $len:ident) => {{
        let last = $len - $block;
        let head = $load($from);
        let tail = $load($from.wrapping_add(last));
        $store($to, head);
        $store($to.wrapping_add(last), tail);
    }};
}

/// Moves `$count` blocks of `$block` bytes at offset `$at`.
macro_rules! blocks {
    ($load:ident, $store:ident, $block:literal, $to:ident, $from:ident, $at:expr, [$($i:literal),+]) => {{
        let at = $at;
        let values = [$($load($from.wrapping_add(at + $i * $block))),+];
        for (i, value) in values.into_iter().enumerate() {
            $store($to.wrapping_add(at + i * $block), value);
        }
    }};
}

/// Copies `len` bytes.
///
/// # Safety
/// `from..from + len` is mapped and readable, `to..to + len` mapped and writable.
#[inline]
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: each arm stays within `len` bytes of both, as its lower bound on `len` shows.
    unsafe {
        match len {
            0 => {}
            1 => store1(to, load1(from)),
            2..4 => ends!(load2, store2, 2, to, from, len),
            4..8 => ends!(load4, store4, 4, to, from, len),
            8..16 => ends!(load8, store8, 8, to, from, len),
            16..=32 => ends!(load16, store16, 16, to, from, len),
            33..=64 => copy_64(to, from, len),
            // AVX-512 where it does not slow the clock down: the processors before Ice Lake and Zen 4 lack VBMI2.
            257.. if is_x86_feature_detected!("avx512vbmi2") => copy_avx512(to, from, len),
            65.. if is_x86_feature_detected!("avx2") => copy_avx2(to, from, len),
            65.. => copy_sse2(to, from, len),
        }
    }
}

/// # Safety
/// As [`copy`], and 32 <= `len` <= 64.
#[inline]
unsafe fn copy_64(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: `len` is at least 32, so both 32-byte ends are inside.
    unsafe {
        let last = len - 32;
        let head = [load16(from), load16(from.wrapping_add(16))];
        let tail = [
            load16(from.wrapping_add(last)),
            load16(from.wrapping_add(last + 16)),
        ];
        store16(to, head[0]);
        store16(to.wrapping_add(16), head[1]);
        store16(to.wrapping_add(last), tail[0]);
        store16(to.wrapping_add(last + 16), tail[1]);
    }
}

/// # Safety
/// As [`copy`], and 64 <= `len`.
unsafe fn copy_sse2(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: a block at `at` ends at `at + 64 <= len`; the last one begins at `len - 64`.
    unsafe {
        let mut at = 0;
        while at < len - 64 {
            blocks!(load16, store16, 16, to, from, at, [0, 1, 2, 3]);
            at += 64;
        }
        blocks!(load16, store16, 16, to, from, len - 64, [0, 1, 2, 3]);
    }
}

macro_rules! wide_copy {
    ($name:ident, $load:ident, $store:ident, $block:literal, $feature:literal) => {
        /// # Safety
        /// As [`copy`], and `len` is at least two blocks; the processor has the feature.
        #[target_feature(enable = $feature)]
        unsafe fn $name(to: *mut u8, from: *const u8, len: usize) {
            // SAFETY: `len` is at least two blocks, and in the second half of the function over four. In the loop four
            // blocks end before `len`; after it at most four are left, and the tail's last block ends at `len`.
            unsafe {
                if len <= 4 * $block {
                    blocks!($load, $store, $block, to, from, 0, [0, 1]);
                    return blocks!($load, $store, $block, to, from, len - 2 * $block, [0, 1]);
                }
                $store(to, $load(from));
                // Aligned stores: one that crosses a cache line costs two.
                let mut at = $block - to.addr() % $block;
                while at + 4 * $block < len {
                    blocks!($load, $store, $block, to, from, at, [0, 1, 2, 3]);
                    at += 4 * $block;
                }
                blocks!(
                    $load,
                    $store,
                    $block,
                    to,
                    from,
                    len - 4 * $block,
                    [0, 1, 2, 3]
                );
            }
        }
    };
}

wide_copy!(copy_avx2, load32, store32, 32, "avx2");
wide_copy!(copy_avx512, load64, store64, 64, "avx512f");

/// The sum of the first `len` bytes at `from`, while copying them to `to`: one's complement, of little-endian 16-bit
/// words counted from `from`, an odd last byte being the low half of a word. At most 2^33, not folded to 16 bits;
/// zero only if all bytes are.
///
/// # Safety
/// As [`copy`].
#[inline]
pub(crate) unsafe fn copy_sum(to: *mut u8, from: *const u8, len: usize) -> u64 {
    // SAFETY: the caller's promise, handed on.
    unsafe { sum_wide::<true>(to, from, len) }
}

/// As [`copy_sum`] without the copy.
///
/// # Safety
/// `from..from + len` is mapped and readable.
#[inline]
pub(crate) unsafe fn sum(from: *const u8, len: usize) -> u64 {
    // SAFETY: the caller's promise; nothing is stored through the null pointer.
    unsafe { sum_wide::<false>(std::ptr::null_mut(), from, len) }
}

/// # Safety
/// As [`copy`]; `to` is not used unless `STORE`.
#[inline]
unsafe fn sum_wide<const STORE: bool>(to: *mut u8, from: *const u8, len: usize) -> u64 {
    // SAFETY: the caller's promise, handed on; AVX2 only where the processor has it.
    let sum = unsafe {
        match len {
            64.. if is_x86_feature_detected!("avx2") => sum_avx2::<STORE>(to, from, len),
            _ => sum_sse2::<STORE>(to, from, len),
        }
    };
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// Sums and stores 32-byte blocks, then the rest. Each 64-bit lane adds up the 32-bit halves of its words, which
/// cannot overflow below 16 GiB.
///
/// # Safety
/// As [`copy`]; the processor has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn sum_avx2<const STORE: bool>(to: *mut u8, from: *const u8, len: usize) -> u64 {
    let low = _mm256_set1_epi64x(0xffff_ffff);
    let mut sums = [_mm256_setzero_si256(); 4];
    let mut at = 0;
    while at + 64 <= len {
        // SAFETY: the block ends at `at + 64 <= len`.
        let [a, b] = unsafe {
            [
                load32(from.wrapping_add(at)),
                load32(from.wrapping_add(at + 32)),
            ]
        };
        if STORE {
            // SAFETY: as above.
            unsafe {
                store32(to.wrapping_add(at), a);
                store32(to.wrapping_add(at + 32), b);
            }
        }
        let parts = [
            _mm256_and_si256(a, low),
            _mm256_srli_epi64::<32>(a),
            _mm256_and_si256(b, low),
            _mm256_srli_epi64::<32>(b),
        ];
        for (sum, part) in sums.iter_mut().zip(parts) {
            *sum = _mm256_add_epi64(*sum, part);
        }
        at += 64;
    }
    let sum = _mm256_add_epi64(
        _mm256_add_epi64(sums[0], sums[1]),
        _mm256_add_epi64(sums[2], sums[3]),
    );
    let pair = _mm_add_epi64(
        _mm256_castsi256_si128(sum),
        _mm256_extracti128_si256::<1>(sum),
    );
    // SAFETY: `at <= len`, so the rest is inside. Its offset is even.
    lanes(pair) + unsafe { sum_sse2::<STORE>(to.wrapping_add(at), from.wrapping_add(at), len - at) }
}

/// # Safety
/// As [`copy`].
#[inline]
#[target_feature(enable = "sse2")]
unsafe fn sum_sse2<const STORE: bool>(to: *mut u8, from: *const u8, len: usize) -> u64 {
    let low = _mm_set1_epi64x(0xffff_ffff);
    let mut sums = [_mm_setzero_si128(); 2];
    let mut at = 0;
    while at + 16 <= len {
        // SAFETY: the block ends at `at + 16 <= len`.
        let value = unsafe { load16(from.wrapping_add(at)) };
        if STORE {
            // SAFETY: as above.
            unsafe { store16(to.wrapping_add(at), value) };
        }
        sums[0] = _mm_add_epi64(sums[0], _mm_and_si128(value, low));
        sums[1] = _mm_add_epi64(sums[1], _mm_srli_epi64::<32>(value));
        at += 16;
    }
    let mut sum = lanes(_mm_add_epi64(sums[0], sums[1]));
    // Fewer than 16 bytes are left: the bits of their count say which powers of two.
    macro_rules! rest {
        ($size:literal, $load:ident, $store:ident) => {
            if len & $size != 0 {
                // SAFETY: `len - at` is at least `$size`.
                let value = unsafe { $load(from.wrapping_add(at)) };
                if STORE {
                    // SAFETY: as above.
                    unsafe { $store(to.wrapping_add(at), value) };
                }
                let value = u64::from(value);
                sum += (value & 0xffff_ffff) + (value >> 32);
                at += $size;
            }
        };
    }
    rest!(8, load8, store8);
    rest!(4, load4, store4);
    rest!(2, load2, store2);
    rest!(1, load1, store1);
    debug_assert_eq!(at, len);
    sum
}

/// The sum of both 64-bit lanes.
#[inline]
#[target_feature(enable = "sse2")]
fn lanes(pair: __m128i) -> u64 {
    (_mm_cvtsi128_si64(pair) as u64)
        .wrapping_add(_mm_cvtsi128_si64(_mm_unpackhi_epi64(pair, pair)) as u64)
}

/// Exchanges the 16 bytes at `at` for `new` if they are `old`, at once for all processors; gives what they were.
///
/// # Safety
/// The bytes at `at` are mapped and writable, `at` is a multiple of 16, and the processor has CMPXCHG16B.
pub(crate) unsafe fn compare_exchange_16(at: *mut u8, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: as the caller vouches. RBX, which the compiler keeps for itself, is put back.
    unsafe {
        asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            inout("rsi") new as u64 => _,
            in("rdi") at,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack)
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

/// Asks for the cache line of `at`, to be read soon. Never faults, whatever the address.
#[inline]
pub(crate) fn prefetch(at: *const u8) {
    // SAFETY: a prefetch is a hint: it neither faults nor changes anything.
    unsafe {
        asm!("prefetcht0 [{p}]", p = in(reg) at, options(nostack, preserves_flags, readonly))
    };
}

/// Asks for the cache line of `at`, to be written soon. Never faults, whatever the address.
#[inline]
pub(crate) fn prefetch_write(at: *const u8) {
    // SAFETY: as `prefetch`; processors without PREFETCHW treat it as a no-op.
    unsafe { asm!("prefetchw [{p}]", p = in(reg) at, options(nostack, preserves_flags, readonly)) };
}

/// The time-stamp counter.
#[inline]
pub(crate) fn cycles() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and Linux lets processes use it.
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies `len` bytes between buffers at the given alignments, and checks every byte around them.
    fn check(name: &str, copy: unsafe fn(*mut u8, *const u8, usize), lens: std::ops::Range<usize>) {
        let from: Vec<u8> = (0..2048u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for (len, shift) in
            lens.flat_map(|len| [(0, 0), (1, 0), (0, 31), (13, 12), (7, 63)].map(|s| (len, s)))
        {
            let mut to = vec![0x5a; 2048];
            let (src, dst) = (64 + shift.0, 64 + shift.1);
            // SAFETY: both ranges are inside their buffers of 2048 bytes.
            unsafe {
                copy(
                    to[dst..dst + len].as_mut_ptr(),
                    from[src..src + len].as_ptr(),
                    len,
                )
            };
            assert_eq!(
                to[dst..dst + len],
                from[src..src + len],
                "{name} {len} {shift:?}"
            );
            assert!(
                to[..dst]
                    .iter()
                    .chain(&to[dst + len..])
                    .all(|&byte| byte == 0x5a),
                "{name} {len} {shift:?}"
            );
        }
    }

    /// On processors without AVX the first two are what runs; all that this one has must agree.
    #[test]
    fn every_variant_copies() {
        check("64", copy_64, 33..65);
        check("sse2", copy_sse2, 64..1500);
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            check(
                "avx2",
                |to, from, len| unsafe { copy_avx2(to, from, len) },
                64..1500,
            );
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512.
            check(
                "avx512",
                |to, from, len| unsafe { copy_avx512(to, from, len) },
                128..1500,
            );
        }
    }

    #[test]
    fn every_variant_sums() {
        let from: Vec<u8> = (0..700u32)
            .map(|i| (i * 7 + i / 251) as u8 | 0x80)
            .collect();
        for len in 0..600 {
            let words = from[..len]
                .chunks(2)
                .map(|pair| u64::from(pair[0]) + (u64::from(*pair.get(1).unwrap_or(&0)) << 8));
            let expected = words.sum::<u64>() % 0xffff;
            let mut to = vec![0x5a; 700];
            // SAFETY: `len` bytes are inside both buffers.
            let sum = unsafe { sum_sse2::<true>(to.as_mut_ptr(), from.as_ptr(), len) };
            assert_eq!(sum % 0xffff, expected, "sse2 {len}");
            assert_eq!(to[..len], from[..len]);
            assert!(to[len..].iter().all(|&byte| byte == 0x5a));
            if is_x86_feature_detected!("avx2") {
                // SAFETY: as above; the processor has AVX2, and nothing is stored.
                let sum = unsafe { sum_avx2::<false>(std::ptr::null_mut(), from.as_ptr(), len) };
                assert_eq!(sum % 0xffff, expected, "avx2 {len}");
            }
        }
    }
}

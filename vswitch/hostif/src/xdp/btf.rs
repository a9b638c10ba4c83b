//! The kernel's description of its own types (Documentation/bpf/btf.rst), as far as to find a function.

use std::fs;

/// The number by which a program calls the kernel's function `name`; `None` where the kernel has none.
pub(super) fn function_id(name: &str) -> Option<i32> {
    find_function(&fs::read("/sys/kernel/btf/vmlinux").ok()?, name)
}

fn find_function(btf: &[u8], name: &str) -> Option<i32> {
    const FUNC: u32 = 12;
    // struct btf_header: magic, version, flags, hdr_len, type_off, type_len, str_off, str_len
    let word = |bytes: &[u8], at: usize| {
        Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
    };
    let field = |at| word(btf, at).map(|value| value as usize);
    let body = btf.get(field(4)?..)?;
    let mut types = body.get(field(8)?..)?.get(..field(12)?)?;
    let strings = body.get(field(16)?..)?.get(..field(20)?)?;
    let mut id = 0;
    // struct btf_type: name_off, info, size or type; then what its kind adds
    while !types.is_empty() {
        id += 1;
        let (name_at, info) = (word(types, 0)? as usize, word(types, 4)?);
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        if kind == FUNC && strings.get(name_at..)?.split(|b| *b == 0).next()? == name.as_bytes() {
            return Some(id);
        }
        let more = match kind {
            1 | 14 | 17 => 4,              // INT, VAR, DECL_TAG
            3 => 12,                       // ARRAY
            4 | 5 | 15 | 19 => 12 * count, // STRUCT, UNION, DATASEC, ENUM64
            6 | 13 => 8 * count,           // ENUM, FUNC_PROTO
            2 | 7..=12 | 16 | 18 => 0, // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
            _ => return None,
        };
        types = types.get(12 + more..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two types, an INT and then a FUNC called `f`, as the kernel lays them out.
    fn sample() -> Vec<u8> {
        let header = [0x0001_eb9f, 24, 0, 16 + 12, 28, 3];
        let int = [0, 1 << 24, 4, 32];
        let func = [1, 12 << 24, 1];
        let words = header
            .iter()
            .chain(&int)
            .chain(&func)
            .flat_map(|w: &u32| w.to_le_bytes());
        words.chain(*b"\0f\0").collect()
    }

    #[test]
    fn a_function_is_found_by_its_name() {
        let btf = sample();
        assert_eq!(find_function(&btf, "f"), Some(2));
        assert_eq!(find_function(&btf, "g"), None);
        for end in 0..btf.len() - 1 {
            find_function(&btf[..end], "f");
        }
    }
}

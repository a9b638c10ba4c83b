use std::cell::RefCell;

use super::*;

const AVX: u64 = 1 << 2;
const PKRU: u64 = 1 << 9;
const BASE: u64 = 0x40;

struct Ram(RefCell<Vec<u8>>);

impl Linear for Ram {
    fn read(&self, address: u64, to: &mut [u8]) -> Option<()> {
        let start = address as usize;
        to.copy_from_slice(self.0.borrow().get(start..start + to.len())?);
        Some(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Option<()> {
        let start = address as usize;
        let mut ram = self.0.borrow_mut();
        ram.get_mut(start..start + from.len())?
            .copy_from_slice(from);
        Some(())
    }

    fn compare_exchange(&self, _: u64, _: u128, _: u128) -> Option<u128> {
        None
    }
}

fn ram() -> Ram {
    Ram(RefCell::new(vec![0xee; 0x2000]))
}

/// AVX at 576, and PKRU far behind it, on a multiple of 64 when packed.
fn components() -> [Option<Component>; 64] {
    let mut components = [None; 64];
    components[2] = Some(Component {
        offset: 576,
        size: 256,
        aligned: false,
    });
    components[9] = Some(Component {
        offset: 2688,
        size: 8,
        aligned: true,
    });
    components
}

/// Registers with all components in use: byte n of the area is n modulo 251.
fn area(used: u64) -> Area {
    let mut area = [0; 4096];
    for (index, byte) in area.iter_mut().enumerate() {
        *byte = (index % 251) as u8;
    }
    area[LEGACY..EXTENDED].fill(0);
    area[LEGACY..LEGACY + 8].copy_from_slice(&used.to_le_bytes());
    area
}

#[test]
fn the_standard_form_is_that_of_the_manual() {
    let (ram, from) = (ram(), area(X87 | SSE | AVX | PKRU));
    ram.0.borrow_mut()[BASE as usize + LEGACY..][..64].fill(0);
    store(&from, &components(), X87 | AVX, false, BASE, &ram).unwrap();
    let memory = ram.0.borrow();
    let memory = &memory[BASE as usize..];
    assert_eq!(memory[..24], from[..24]);
    assert_eq!(memory[24..32], [0xee; 8], "MXCSR belongs to SSE");
    assert_eq!(memory[32..160], from[32..160]);
    assert_eq!(memory[160..416], [0xee; 256]);
    assert_eq!(word(memory, LEGACY), X87 | AVX);
    assert_eq!(memory[576..832], from[576..832]);
    assert_eq!(memory[2688..2696], [0xee; 8]);
}

#[test]
fn bits_that_are_not_asked_for_stay_in_the_header() {
    let ram = ram();
    ram.0.borrow_mut()[BASE as usize + LEGACY..][..8].copy_from_slice(&(SSE | AVX).to_le_bytes());
    store(&area(X87), &components(), X87 | AVX, false, BASE, &ram).unwrap();
    assert_eq!(word(&ram.0.borrow()[BASE as usize..], LEGACY), X87 | SSE);
}

#[test]
fn both_forms_restore_what_they_saved() {
    for compact in [false, true] {
        for asked in [
            X87,
            SSE,
            X87 | AVX,
            X87 | SSE | PKRU,
            X87 | SSE | AVX | PKRU,
        ] {
            let (ram, from) = (ram(), area(X87 | AVX | PKRU));
            ram.0.borrow_mut()[BASE as usize + LEGACY..][..64].fill(0);
            store(&from, &components(), asked, compact, BASE, &ram).unwrap();
            let mut to = [0; 4096];
            load(&mut to, &components(), asked, BASE, &ram).unwrap();
            let used = asked & (X87 | AVX | PKRU);
            assert_eq!(in_use(&to), used, "{compact} {asked:#x}");
            for (bit, range) in [(X87, 32..160), (AVX, 576..832), (PKRU, 2688..2696)] {
                let expected = if used & bit == 0 {
                    vec![0; range.len()]
                } else {
                    from[range.clone()].to_vec()
                };
                assert_eq!(
                    to[range.clone()],
                    expected,
                    "{compact} {asked:#x} {range:?}"
                );
            }
        }
    }
}

#[test]
fn packed_components_follow_each_other() {
    let (ram, from) = (ram(), area(X87 | AVX | PKRU));
    store(&from, &components(), AVX | PKRU, true, BASE, &ram).unwrap();
    let memory = ram.0.borrow();
    let memory = &memory[BASE as usize..];
    assert_eq!(word(memory, LEGACY + 8), XCOMP_COMPACT | AVX | PKRU);
    assert_eq!(memory[576..832], from[576..832]);
    assert_eq!(memory[832..840], from[2688..2696]);
}

#[test]
fn what_was_asked_for_and_is_not_there_becomes_initial() {
    let ram = ram();
    ram.0.borrow_mut()[BASE as usize + LEGACY..][..64].fill(0);
    let mut to = area(X87 | SSE | AVX);
    load(&mut to, &components(), X87 | AVX, BASE, &ram).unwrap();
    assert_eq!(in_use(&to), SSE);
}

#[test]
fn memory_that_is_not_mapped_is_noticed() {
    let mut to = area(0);
    assert!(load(&mut to, &components(), X87, 0x1f00, &ram()).is_none());
    assert!(store(&to, &components(), X87, false, 0x1f00, &ram()).is_none());
}

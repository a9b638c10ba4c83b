//! A ring by itself, its operations in any order that its users keep to.

use std::collections::VecDeque;

use vswitch::port::PortFault;
use vswitch::ports::vhost::ring::{Buffer, MAX_CHAIN, Mark, Ring};
use vswitch::ports::vhost::run::Plain;

use super::guest::Guest;
use crate::input::Input;

/// Calls operations until the input ends or the ring faults.
pub(super) fn run<R: Ring>(input: &mut Input<'_>, guest: &mut Guest, mut ring: R, size: u16) {
    let mut taken = VecDeque::new();
    while !input.is_empty() {
        let action = input.u8();
        if action & 1 == 0 {
            guest.act(input);
        } else if call(action >> 1, &mut ring, size, &mut taken).is_err() {
            return;
        }
    }
}

fn call<R: Ring>(
    action: u8,
    ring: &mut R,
    size: u16,
    taken: &mut VecDeque<(Mark, Buffer)>,
) -> Result<(), PortFault> {
    match action & 7 {
        0 if action & 8 != 0 => {
            let mark = ring.mark();
            let Some(&Plain { span, id }) = ring.plain() else {
                assert_eq!(ring.mark(), mark, "looking takes nothing");
                return Ok(());
            };
            assert!(!span.is_empty());
            ring.take_plain();
            taken.push_back((mark, Buffer { id, slots: 1 }));
            assert!(
                taken.len() <= size.into(),
                "{} of {size} taken",
                taken.len()
            );
        }
        0..3 => {
            let mark = ring.mark();
            let mut pieces = 0;
            let result = ring.take(|_| {
                pieces += 1;
                Ok(())
            });
            assert!(
                pieces <= u32::from(size) + MAX_CHAIN,
                "{pieces} pieces in a chain"
            );
            match result? {
                Some(buffer) => taken.push_back((mark, buffer)),
                None => assert_eq!((ring.mark(), pieces), (mark, 0), "nothing was there"),
            }
            let slots: u32 = taken
                .iter()
                .map(|(_, buffer)| u32::from(buffer.slots))
                .sum();
            assert!(slots <= size.into(), "{slots} of {size} descriptors taken");
        }
        3 => {
            // Back to one of the chains that were not given back.
            let keep = usize::from(action >> 3) % (taken.len() + 1);
            if let Some((mark, _)) = taken.get(keep).copied() {
                ring.rewind(mark);
                assert_eq!(ring.mark(), mark);
            }
            taken.truncate(keep);
        }
        4 => {
            if let Some((_, buffer)) = taken.pop_front() {
                ring.give(buffer, u32::from(action >> 3) * 100)?;
            }
        }
        5 => {
            let _ = ring.ahead(usize::from(action));
            ring.fetch();
            ring.publish()?;
            assert_eq!(ring.publish(), Ok(false), "there was nothing more");
        }
        6 => {
            ring.arm()?;
        }
        _ => ring.disarm()?,
    }
    Ok(())
}

//! Rings of both formats against the driver mock.

mod flow;
mod hostile;
mod wake;

use super::driver::{Guest, Setup};
use super::feature;
use super::session::{Offer, Session};
use crate::burst::Burst;
use crate::deliver::{FrameMeta, Job, Quiet, Report};
use crate::port::{RxSide, Sides, TxSide};
use crate::vlan::VlanMode;

/// What every guest here negotiates.
pub(super) const BASE: u64 = feature::VERSION_1 | feature::PROTOCOL_FEATURES;

pub(super) fn offer(queue_pairs: u16) -> Offer {
    Offer {
        queue_pairs,
        mtu: 9000,
    }
}

/// A guest with its device started in a session of its own.
pub(super) fn started(setup: Setup) -> (Guest, Session, Sides) {
    let mut session = Session::new(offer(setup.pairs));
    let guest = Guest::new(setup).unwrap();
    let sides = guest.start_in(&mut session).unwrap();
    (guest, session, sides)
}

/// A frame of `len` bytes whose contents tell `seed`; its addresses are those of stations.
pub(super) fn frame(seed: u32, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len as u32)
        .map(|at| (seed.wrapping_mul(31).wrapping_add(at * 7)) as u8)
        .collect();
    let start = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    let end = start.len().min(len);
    frame[..end].copy_from_slice(&start[..end]);
    frame
}

/// Moves one burst from `from` to `to`; gives the frames taken in.
pub(super) fn turn(
    from: &mut Sides,
    to: &mut Sides,
    burst: &mut Burst,
    report: &mut Report,
) -> usize {
    pass(&mut *from.tx, &mut *to.rx, burst, report)
}

/// As [`turn`], between two sides.
pub(super) fn pass(
    tx: &mut dyn TxSide,
    rx: &mut dyn RxSide,
    burst: &mut Burst,
    report: &mut Report,
) -> usize {
    burst.clear();
    tx.gather(burst);
    let meta: Vec<Option<FrameMeta>> = burst
        .frames()
        .iter()
        .map(|frame| {
            let checked =
                offload::request::validate(&frame.request, frame.head(), frame.len()).ok()?;
            frame.refused.is_none().then_some(FrameMeta {
                checked,
                tag: None,
                vid: 0,
                priority: 0,
            })
        })
        .collect();
    let frames = meta
        .iter()
        .enumerate()
        .map(|(index, meta)| u32::from(meta.is_some()) << index)
        .sum();
    let vlan = VlanMode::None;
    let job = Job {
        burst,
        source: tx.memory(),
        meta: &meta,
        quiet: Quiet::default(),
        frames,
        vlan: &vlan,
        mtu: u16::MAX,
    };
    rx.deliver(&job, report);
    tx.complete();
    burst.len()
}

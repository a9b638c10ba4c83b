//! Medians, a table, JSON.

use std::io::{Write as _, stdout};

use anyhow::Result;
use serde::Serialize;

/// The generator is the limit where its ring was full in fewer polls than this.
const SATURATED: f64 = 0.5;

/// One run.
#[derive(Clone, Serialize)]
pub(crate) struct Run {
    /// Bytes of a frame, without FCS.
    pub(crate) size: u32,
    /// Million frames received in a second.
    pub(crate) mpps: f64,
    /// Gigabits of frames received in a second, without FCS, preamble and gap.
    pub(crate) gbps: f64,
    /// Cycles of the switch for a frame, in turns that took frames.
    pub(crate) cycles: Option<f64>,
    /// Bytes copied for each byte delivered.
    pub(crate) copied: Option<f64>,
    /// Notifications sent for each frame.
    pub(crate) notifications: Option<f64>,
    /// Share of frames that were sent and not received.
    pub(crate) lost: f64,
    /// Share of polls in which the transmit ring had no room for a whole batch.
    pub(crate) full: f64,
}

/// The run in the middle, by frames a second.
pub(crate) fn median(mut runs: Vec<Run>) -> Run {
    runs.sort_by(|a, b| a.mpps.total_cmp(&b.mpps));
    runs.swap_remove(runs.len() / 2)
}

pub(crate) fn show(runs: &[Run], json: bool) -> Result<()> {
    let mut out = stdout().lock();
    if json {
        serde_json::to_writer(&mut out, runs)?;
        writeln!(out)?;
        return Ok(());
    }
    writeln!(
        out,
        "{:>6} {:>8} {:>8} {:>12} {:>8} {:>13} {:>6} {:>9}  limit",
        "bytes", "Mpps", "Gb/s", "cycles/frame", "copied", "notifications", "lost", "ring full"
    )?;
    for run in runs {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or("-".into(), |value| format!("{value:.digits$}"))
        };
        let limit = if run.full >= SATURATED {
            "switch"
        } else {
            "driver"
        };
        writeln!(
            out,
            "{:>6} {:>8.3} {:>8.2} {:>12} {:>8} {:>13} {:>5.1}% {:>8.0}%  {limit}",
            run.size,
            run.mpps,
            run.gbps,
            number(run.cycles, 0),
            number(run.copied, 2),
            number(run.notifications, 4),
            run.lost * 100.0,
            run.full * 100.0,
        )?;
    }
    Ok(())
}

//! The driver: sends on one guest, receives on the other, and counts.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::thread::{CpuSet, sched_setaffinity};
use vswitch::ports::vhost::driver::{Guest, Layout};

use crate::Options;
use crate::peer::{Local, Peer, guest};
use crate::report::Run;

/// Frames that are sent or received at once.
const BATCH: usize = 64;
/// Batches between two looks at the clock.
const POLLS: u32 = 256;
/// Before counting begins: caches, MAC table and clock speed settle.
const WARM_UP: Duration = Duration::from_millis(100);
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const RECEIVER: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// What the switch counted so far.
#[derive(Clone, Copy, Default)]
struct Seen {
    busy_cycles: u64,
    taken: u64,
    copied: u64,
    bytes: u64,
    notifications: u64,
}

fn seen(local: &Local) -> Seen {
    let (tx, rx) = (local.sender.counters(), local.receiver.counters());
    let busy_cycles = local
        .switch
        .workers()
        .iter()
        .map(|worker| worker.totals.busy_cycles)
        .sum();
    Seen {
        busy_cycles,
        taken: tx.tx.frames,
        copied: rx.rx.copied_bytes,
        bytes: rx.rx.bytes,
        notifications: tx.tx.notifications + rx.rx.notifications,
    }
}

#[derive(Clone, Copy, Default)]
struct Driven {
    sent: u64,
    received: u64,
    polls: u64,
    full: u64,
}

struct Guests {
    sender: Guest,
    receiver: Guest,
    size: u32,
}

impl Guests {
    /// Polls both rings for `time`.
    fn drive(&mut self, time: Duration) -> Result<(Driven, Duration)> {
        let start = Instant::now();
        let mut driven = Driven::default();
        loop {
            for _ in 0..POLLS {
                let sent = self.sender.send_burst(0, self.size, BATCH)?;
                driven.sent += sent as u64;
                driven.full += u64::from(sent < BATCH);
                driven.received += self.receiver.receive_burst(0, BATCH)? as u64;
                driven.polls += 1;
            }
            let elapsed = start.elapsed();
            if elapsed >= time {
                return Ok((driven, elapsed));
            }
        }
    }

    /// Shows the switch where the receiver is, and prepares the frames.
    fn prepare(&mut self) -> Result<()> {
        let frame = |to: [u8; 6], from: [u8; 6], size: u32| {
            let mut frame = [&to[..], &from, &[0x88, 0xb5]].concat();
            frame.resize(size as usize, 0);
            frame
        };
        for ring in self.receiver.rings.iter_mut().chain(&mut self.sender.rings) {
            ring.ring.disarm()?;
        }
        self.receiver.receive_burst(0, 0)?;
        self.sender.receive_burst(0, 0)?;
        let start = Instant::now();
        while self.sender.receive_burst(0, BATCH)? == 0 {
            if start.elapsed() > Duration::from_secs(5) {
                bail!("a broadcast from the receiver did not reach the sender within 5 s");
            }
            // Again and again: another switch may need a while until its port is up.
            let broadcast = frame([0xff; 6], RECEIVER, 60);
            self.receiver
                .send(0, &Default::default(), &broadcast, &Layout::default())?;
            self.receiver.publish(1)?;
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(self
            .sender
            .prepare_sending(0, &frame(RECEIVER, SENDER, self.size))?)
    }
}

/// One run with new guests.
pub(crate) fn measure(options: &Options, size: u32) -> Result<Run> {
    let mut guests = Guests {
        sender: guest(options, size)?,
        receiver: guest(options, size)?,
        size,
    };
    let peer = Peer::new(options, &guests.sender, &guests.receiver)?;
    let mut core = CpuSet::new();
    core.set(options.driver_core);
    sched_setaffinity(None, &core)?;
    guests.prepare()?;
    guests.drive(WARM_UP)?;
    let before = counts(&peer);
    let (driven, elapsed) = guests.drive(Duration::from_secs_f64(options.seconds))?;
    let after = counts(&peer);
    let switch = before.zip(after);
    let per = |of: u64, each: u64| of as f64 / each.max(1) as f64;
    let seconds = elapsed.as_secs_f64();
    let received = driven.received as f64;
    Ok(Run {
        size,
        mpps: received / seconds / 1e6,
        gbps: received * f64::from(size) * 8.0 / seconds / 1e9,
        cycles: switch.map(|(a, b)| per(b.busy_cycles - a.busy_cycles, b.taken - a.taken)),
        copied: switch.map(|(a, b)| per(b.copied - a.copied, b.bytes - a.bytes)),
        notifications: switch
            .map(|(a, b)| per(b.notifications - a.notifications, b.taken - a.taken)),
        lost: 1.0 - per(driven.received, driven.sent).min(1.0),
        full: per(driven.full, driven.polls),
    })
}

fn counts(peer: &Peer) -> Option<Seen> {
    match peer {
        Peer::Local(local) => Some(seen(local)),
        Peer::Remote { .. } => None,
    }
}

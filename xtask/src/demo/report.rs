//! The tables that the demonstration ends with.

use vswitch_tests::stats::Stats;

use crate::say::say;

/// One ping.
pub(super) struct Attempt {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    /// Whether it has to succeed.
    pub(super) must: bool,
    /// Whether it did.
    pub(super) did: bool,
}

impl Attempt {
    pub(super) fn as_it_must(&self) -> bool {
        self.must == self.did
    }
}

/// One measurement by iperf3.
pub(super) struct Speed {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    /// Bits per second received.
    pub(super) bits: f64,
}

pub(super) fn attempts(attempts: &[Attempt]) {
    say!("\n{:12} {:12} result", "from", "to");
    for attempt in attempts {
        let result = match (attempt.did, attempt.must) {
            (true, true) => "reached",
            (false, false) => "rightly not reached",
            (true, false) => "REACHED, BUT MUST NOT BE",
            (false, true) => "NOT REACHED",
        };
        say!("{:12} {:12} {result}", attempt.from, attempt.to);
    }
}

pub(super) fn speeds(speeds: &[Speed]) {
    say!("\n{:12} {:12} TCP, Gbit/s", "from", "to");
    for speed in speeds {
        say!("{:12} {:12} {:.2}", speed.from, speed.to, speed.bits / 1e9);
    }
}

/// The frames taken from each port and what became of them.
pub(super) fn counters(stats: &Stats) {
    say!(
        "\n{:8} {:14} {:>9} {:>7} {:>10} {:>9} {:>8}  sum",
        "network",
        "port",
        "taken",
        "+extra",
        "=delivered",
        "+consumed",
        "+dropped"
    );
    for p in &stats.0 {
        let sum = if p.adds_up() {
            "adds up"
        } else {
            "DOES NOT ADD UP"
        };
        let reasons: Vec<String> = p
            .drops
            .iter()
            .filter(|(_, n)| *n > 0)
            .map(|(why, n)| format!("{why} {n}"))
            .collect();
        say!(
            "{:8} {:14} {:>9} {:>7} {:>10} {:>9} {:>8}  {sum} {}",
            p.network,
            p.port,
            p.taken,
            p.extra_copies,
            p.delivered,
            p.consumed,
            p.dropped,
            reasons.join(", ")
        );
    }
}

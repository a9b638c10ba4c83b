//! Measurements between vhost-user guests with the bare driver.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Bench, Figures, Group, Settings};
use crate::case::{Case, SIZES};
use crate::drive::{self, Paced, Pair, Run};
use crate::machine::{hertz, on_core};
use crate::search::zero_loss;
use crate::stats::Stat;
use crate::subject::{Contender, Counts, OURS, Ours};

/// Rates at which latency is measured, in frames a second.
const RATES: [(f64, &str); 2] = [(1e5, "100,000/s"), (1e6, "1,000,000/s")];
/// Slices of a latency measurement: a thousand frames at the lower rate.
const SLICE: Duration = Duration::from_millis(10);
/// The search for the rate without loss ends at this share of the highest rate.
const PRECISION: f64 = 0.01;
/// A trial that lost frames is repeated: a host that takes the processor away for as long as a ring lasts makes any
/// switch lose frames.
const ATTEMPTS: u32 = 3;
/// Offered rates of the frame loss test, as shares of the highest.
const OFFERED: [f64; 4] = [1.0, 0.9, 0.8, 0.5];
/// Addresses of the learning test.
const ADDRESSES: u32 = 100_000;

/// What the switch counted for each frame.
pub(super) fn counted(counts: &Counts) -> Figures {
    let per = |of: u64, each: u64| of as f64 / each.max(1) as f64;
    vec![
        ("cycles", per(counts.busy_cycles, counts.taken)),
        ("copied", per(counts.copied_bytes, counts.delivered_bytes)),
        ("notifications", per(counts.notifications, counts.taken)),
    ]
}

fn figures(run: &Run) -> Figures {
    let driven = &run.driven;
    let received = driven.received as f64;
    let mut figures = vec![
        ("mpps", driven.rate() / 1e6),
        ("gbps", driven.bytes as f64 * 8.0 / driven.seconds / 1e9),
        (
            "lost",
            (1.0 - received / driven.sent.max(1) as f64).max(0.0),
        ),
        ("idle", driven.idle),
    ];
    if let Some(counts) = &run.counts {
        figures.extend(counted(counts));
        figures.push(("allocations", run.allocations as f64 / received));
    }
    figures
}

/// The same, and the rate as a share of that in the plain case of this size right after it, for our own switch.
fn beside_plain(to: &mut dyn Contender, case: &Case, time: Duration) -> Result<Figures> {
    let run = drive::run(to, case, time, false)?;
    let mut figures = figures(&run);
    let plain = Case::of(case.frame);
    if to.name() == OURS && *case != plain {
        let plain = drive::run(to, &plain, time, false)?;
        figures.push(("of_plain", run.driven.rate() / plain.driven.rate()));
    }
    Ok(figures)
}

/// Keeps the rings full in each case.
fn saturated(bench: &mut Bench, group: Group, cases: &[Case]) -> Result<()> {
    let time = bench.settings.time;
    for case in cases {
        bench.compare(
            (group, "mpps"),
            (case, &case.label(), 2),
            |to, case| match group {
                Group::Variants => beside_plain(to, case, time),
                _ => Ok(figures(&drive::run(to, case, time, false)?)),
            },
        )?;
        count_calls(bench, group, case);
    }
    Ok(())
}

/// Adds the system calls of our own switch to its row, or says why they are not known.
fn count_calls(bench: &mut Bench, group: Group, case: &Case) {
    let Settings {
        switch_core,
        driver_core,
        time,
        ..
    } = bench.settings;
    let counted = on_core(driver_core, || {
        let mut ours = Ours {
            cores: vec![switch_core],
        };
        drive::run(&mut ours, case, time, true)
    });
    let calls = match counted {
        Ok(run) => run
            .syscalls
            .map(|calls| calls as f64 / run.driven.received.max(1) as f64),
        Err(error) => {
            let remark = format!("System calls were not counted: {error:#}");
            let remarks = bench.results.remarks.entry(group.name()).or_default();
            if !remarks.contains(&remark) {
                remarks.push(remark);
            }
            None
        }
    };
    let rows = bench.results.rows.iter_mut().rev();
    let row = rows
        .take(8)
        .find(|row| row.contender == OURS && row.case == case.label());
    if let (Some(row), Some(stat)) = (row, calls.and_then(|calls| Stat::of(vec![calls]))) {
        row.figures.insert("syscalls".into(), stat);
    }
}

/// Throughput by frame size.
pub(super) fn sizes(bench: &mut Bench) -> Result<()> {
    let quick = bench.settings.quick;
    let wanted = |size: &u32| !quick || [64, 512, 1518, 9000].contains(size);
    let mut cases: Vec<Case> = SIZES.into_iter().filter(wanted).map(Case::of).collect();
    // Before the sizes for which OVS must be started anew.
    let touched = Case {
        touched: true,
        ..Case::of(1518)
    };
    cases.insert(cases.len().saturating_sub(1), touched);
    cases.push(Case::large());
    saturated(bench, Group::Sizes, &cases)
}

/// Throughput by everything but size.
pub(super) fn variants(bench: &mut Bench) -> Result<()> {
    let base = Case::of(64);
    let mut cases = vec![base];
    let counts: &[u32] = if bench.settings.quick {
        &[50_000]
    } else {
        &[1000, 50_000, 100_000]
    };
    for &count in counts {
        cases.push(Case {
            destinations: count,
            ..base
        });
        cases.push(Case {
            sources: count,
            ..base
        });
    }
    let sizes: &[u32] = if bench.settings.quick {
        &[64]
    } else {
        &[64, 1518]
    };
    for &size in sizes {
        let base = Case::of(size);
        cases.push(Case {
            both_ways: true,
            ..base
        });
        cases.push(Case {
            packed: true,
            ..base
        });
        cases.push(Case { ring: 1024, ..base });
        if size != 1518 {
            cases.push(Case {
                touched: true,
                ..base
            });
        }
    }
    saturated(bench, Group::Variants, &cases)
}

fn microseconds(cycles: u64) -> f64 {
    cycles as f64 / hertz() * 1e6
}

/// Latency at given rates.
pub(super) fn latency(bench: &mut Bench) -> Result<()> {
    let time = bench.settings.time.max(Duration::from_millis(200));
    let sizes: &[u32] = if bench.settings.quick {
        &[64]
    } else {
        &[64, 1518]
    };
    for &size in sizes {
        for (rate, at) in RATES {
            let case = Case::of(size);
            let label = format!("{} at {at}", case.label());
            bench.compare(
                (Group::Latency, "p50_us"),
                (&case, &label, 2),
                |to, case| {
                    let mut pair = Pair::new(case, 2)?;
                    let _attached = pair.attach(to)?;
                    pair.pace(rate, Duration::from_millis(30))?;
                    latency_at(&mut pair, rate, time)
                },
            )?;
        }
    }
    Ok(())
}

/// Percentiles of latency at `rate` frames a second: of all frames sent in `time`, and of those of a slice in the middle.
fn latency_at(pair: &mut Pair, rate: f64, time: Duration) -> Result<Figures> {
    let (mut whole, mut tails) = (Paced::default(), Vec::new());
    for _ in 0..time.div_duration_f64(SLICE).ceil() as u32 {
        let paced = pair.pace(rate, SLICE)?;
        tails.push(microseconds(paced.ages.percentile(0.99)));
        whole.add(&paced);
    }
    let age = |part| microseconds(whole.ages.percentile(part));
    let slices = Stat::of(tails).context("no slice was measured")?;
    Ok(vec![
        ("p50_us", age(0.5)),
        ("p99_slice_us", slices.median),
        ("p99_us", age(0.99)),
        ("p999_us", age(0.999)),
        ("lost", whole.loss()),
    ])
}

/// The highest rate, measured first, for tests that offer shares of it.
fn highest(pair: &mut Pair) -> Result<f64> {
    pair.saturate(1, Duration::from_millis(60))?;
    let driven = pair.saturate(1, Duration::from_millis(100))?;
    pair.drain(Duration::from_millis(2))?;
    ensure!(driven.received > 0, "no frame arrived");
    Ok(driven.received as f64 / driven.seconds)
}

/// Throughput without loss, and loss by offered rate.
pub(super) fn rfc2544(bench: &mut Bench) -> Result<()> {
    let trial = if bench.settings.quick { 20 } else { 50 };
    let trial = Duration::from_millis(trial);
    let sizes: &[u32] = if bench.settings.quick {
        &[64, 1518]
    } else {
        &SIZES
    };
    for &size in sizes {
        let case = Case::of(size);
        bench.compare(
            (Group::Rfc2544, "zero_loss_mpps"),
            (&case, &case.label(), 2),
            |to, case| {
                let mut pair = Pair::new(case, 2)?;
                let _attached = pair.attach(to)?;
                let highest = highest(&mut pair)?;
                let found = zero_loss(highest, PRECISION, |rate| -> Result<bool> {
                    for _ in 0..ATTEMPTS {
                        if pair.pace(rate, trial)?.loss() == 0.0 {
                            return Ok(true);
                        }
                        pair.drain(Duration::from_millis(1))?;
                    }
                    Ok(false)
                })?;
                Ok(vec![
                    ("zero_loss_mpps", found / 1e6),
                    ("of_maximum", found / highest),
                ])
            },
        )?;
    }
    for size in [64, 1518] {
        for share in OFFERED {
            let case = Case::of(size);
            let label = format!("{size} B, {:.0} % offered", share * 100.0);
            bench.compare((Group::Rfc2544, "lost"), (&case, &label, 2), |to, case| {
                let mut pair = Pair::new(case, 2)?;
                let _attached = pair.attach(to)?;
                let highest = highest(&mut pair)?;
                let paced = pair.pace(highest * share, trial)?;
                Ok(vec![("lost", paced.loss())])
            })?;
        }
    }
    Ok(())
}

/// Learning, forwarding and broadcast with three ports.
pub(super) fn rfc2889(bench: &mut Bench) -> Result<()> {
    let time = bench.settings.time;
    let case = Case::of(64);
    let mesh = "forwarding, each of 3 ports to the next";
    bench.compare((Group::Rfc2889, "mpps"), (&case, mesh, 3), |to, case| {
        let mut pair = Pair::new(case, 3)?;
        let attached = pair.attach(to)?;
        spread(&mut pair, &attached, (3, 1.0), time)
    })?;
    let broadcast = "broadcast from 1 port to 2";
    bench.compare(
        (Group::Rfc2889, "mpps"),
        (&case, broadcast, 3),
        |to, case| {
            let mut pair = Pair::new(case, 3)?;
            let attached = pair.attach(to)?;
            if let Some(guest) = pair.guests.first_mut() {
                guest.tx.aim(None);
            }
            spread(&mut pair, &attached, (1, 2.0), time)
        },
    )?;
    let label = format!("learning of {ADDRESSES} addresses");
    bench.compare(
        (Group::Rfc2889, "learn_mpps"),
        (&case, &label, 3),
        |to, case| {
            let mut pair = Pair::new(case, 3)?;
            let _attached = pair.attach(to)?;
            learning(&mut pair)
        },
    )
}

/// Keeps the rings of `senders` full; each frame shall make `copies`.
fn spread(
    pair: &mut Pair,
    attached: &crate::subject::Attached<'_>,
    (senders, copies): (usize, f64),
    time: Duration,
) -> Result<Figures> {
    pair.saturate(senders, Duration::from_millis(60))?;
    let before = attached.counts();
    let driven = pair.saturate(senders, time)?;
    let received = driven.received as f64;
    let mut figures = vec![
        ("mpps", received / driven.seconds / 1e6),
        (
            "lost",
            (1.0 - received / copies / driven.sent.max(1) as f64).max(0.0),
        ),
        ("idle", driven.idle),
    ];
    if let Some((before, after)) = before.zip(attached.counts()) {
        figures.extend(counted(&after.since(&before)));
    }
    Ok(figures)
}

/// The first guest sends from many addresses, then the second one sends to each of them: what reaches the third was not
/// learnt.
fn learning(pair: &mut Pair) -> Result<Figures> {
    let addresses = ADDRESSES as usize;
    let [learnt, sender, _] = pair.guests.as_mut_slice() else {
        anyhow::bail!("learning takes three guests");
    };
    learnt.tx.sources(0, ADDRESSES);
    learnt.tx.aim(Some(1));
    sender.tx.destinations(ADDRESSES);
    sender.tx.aim(Some(0));
    let (_, took) = send_all(pair, 0, addresses)?;
    let seconds = took.as_secs_f64();
    let ([_, _, flooded], _) = send_all(pair, 1, addresses)?;
    Ok(vec![
        ("learn_mpps", addresses as f64 / seconds / 1e6),
        ("learnt", 1.0 - flooded as f64 / addresses as f64),
    ])
}

/// Sends `count` frames from one guest. What each guest received meanwhile, and the time until the last was sent.
fn send_all(pair: &mut Pair, from: usize, count: usize) -> Result<([u64; 3], Duration)> {
    let mut received = [0; 3];
    let start = Instant::now();
    let (mut sent, mut quiet) = (0, start);
    while sent < count || quiet.elapsed() < Duration::from_millis(5) {
        for (at, guest) in pair.guests.iter_mut().enumerate() {
            if at == from && sent < count {
                let now = guest.tx.send((count - sent).min(64), None)?;
                sent += now;
                if now > 0 {
                    quiet = Instant::now();
                }
            }
            let taken = guest.rx.receive(64, None)?.frames;
            if let Some(received) = received.get_mut(at) {
                *received += taken;
            }
        }
        ensure!(
            quiet.elapsed() < Duration::from_secs(2),
            "the switch takes no more frames"
        );
    }
    Ok((received, quiet - start))
}

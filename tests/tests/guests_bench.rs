//! A guest that drives its synthetic adapters at full speed: every frame is accounted for, none needs an exit, and
//! bytes come through TCP unharmed, judged by the guest and by the host's kernel.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use vswitch_tests::{Lab, cmd, vm::bench::Report};

/// On a machine that does much else.
const LIMIT: Duration = Duration::from_secs(180);
const MAC: [&str; 2] = ["02:00:00:00:75:01", "02:00:00:00:75:02"];
/// Bytes of a connection.
const BYTES: usize = 32 << 20;

/// Two guests in the network `lab`, of which the first does what `line` says to the second, which does `other`.
fn two_guests(lab: &Lab, line: &str, other: &str) -> Result<[Report; 2]> {
    let adapters = MAC.map(|mac| format!("net=lab,mac={mac}"));
    let [first, second] = &adapters;
    let mut second = lab.start_bench_guest("second", &[second], other)?;
    let mut first = lab.start_bench_guest("first", &[first], line)?;
    let reports = [
        lab.bench_report(&mut first, LIMIT)?,
        lab.bench_report(&mut second, LIMIT)?,
    ];
    for name in ["first", "second"] {
        lab.ctl(&format!("vm turn-off {name}"))?;
        lab.wait_vm(name, "off")?;
        lab.ctl(&format!("vm delete {name}"))?;
    }
    Ok(reports)
}

/// The bytes that a guest sends and expects: 64-bit little-endian numbers, each a large odd number more than the last.
fn pattern() -> Vec<u8> {
    let number = |index: u64| index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..BYTES as u64 / 8).flat_map(number).collect()
}

#[test]
fn every_frame_between_two_guests_is_accounted_for_and_needs_no_exit() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create lab --type private")?;
    let adapters = MAC.map(|mac| format!("net=lab,mac={mac}"));
    let mut sink = lab.start_bench_guest("sink", &[&adapters[1]], "role=sink")?;
    let line = format!("role=generate to={} frames=1000000", MAC[1]);
    let mut source = lab.start_bench_guest("source", &[&adapters[0]], &line)?;
    let sent = lab.bench_report(&mut source, LIMIT)?;
    let taken = lab.bench_report(&mut sink, LIMIT)?;

    let (frames, received) = (sent.count(0, "frames")?, taken.count(0, "frames")?);
    ensure!(frames == 1_000_000 && received > 0, "{sent:?} {taken:?}");
    ensure!(taken.count(0, "bytes")? == 64 * received, "{taken:?}");
    let stats = lab.daemon.stats()?;
    let (from, to) = (
        stats.port("lab", "source.synthetic0")?,
        stats.port("lab", "sink.synthetic0")?,
    );
    let named: u64 = from.drops.iter().map(|(_, count)| count).sum();
    ensure!(from.tx_frames == frames, "{from:?} sent {frames}");
    ensure!(received + named == frames, "{received} arrived: {from:?}");
    ensure!(to.rx_frames == received, "{to:?} was given {received}");
    lab.counters_add_up()?;

    // What they say of it costs an exit for each letter.
    for report in [&sent, &taken] {
        let rate = report.exits as f64 * 1e6 / frames as f64;
        ensure!(rate < 1000.0, "{rate} exits per million frames: {report:?}");
    }
    Ok(())
}

#[test]
fn large_segments_pass_between_two_guests_and_to_the_hosts_kernel() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create lab --type internal")?;
    lab.host.ip("addr add 10.75.0.3/24 dev vsw-lab")?;

    let line = format!("role=tcp ip=10.75.0.1 peer=10.75.0.2 bytes={BYTES}");
    let [sent, taken] = two_guests(&lab, &line, "role=tcp ip=10.75.0.2")?;
    ensure!(sent.count(0, "bytes")? == BYTES as u64, "{sent:?}");
    ensure!(taken.count(0, "bytes")? == BYTES as u64, "{taken:?}");
    ensure!(taken.count(0, "wrong")? == 0, "{taken:?}");

    // One adapter of a guest sends to the host's kernel, the other is sent to by it.
    let pattern = pattern();
    let listener = lab.host.inside(|| TcpListener::bind("10.75.0.3:5001"))??;
    let adapters = MAC.map(|mac| format!("net=lab,mac={mac}"));
    let line =
        format!("role=tcp ip=10.75.0.1 peer=10.75.0.3 bytes={BYTES} / role=tcp ip=10.75.0.2");
    let mut guest = lab.start_bench_guest("both", &[&adapters[0], &adapters[1]], &line)?;
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut received = Vec::new();
    stream
        .read_to_end(&mut received)
        .context("reading what the guest sent")?;
    ensure!(
        received == pattern,
        "{} other bytes arrived",
        received.len()
    );
    // The guest has done its work when its peer has closed too.
    drop(stream);
    let mut stream = connected(&lab, "10.75.0.2:5001")?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(&pattern)?;
    drop(stream);
    let report = lab.bench_report(&mut guest, LIMIT)?;
    ensure!(report.count(1, "bytes")? == BYTES as u64, "{report:?}");
    ensure!(report.count(1, "wrong")? == 0, "{report:?}");
    lab.counters_add_up()
}

/// A connection from the host.
fn connected(lab: &Lab, to: &str) -> Result<TcpStream> {
    let mut stream = None;
    cmd::wait_until(&format!("{to} to accept"), LIMIT, || {
        stream = lab.host.inside(|| TcpStream::connect(to))?.ok();
        Ok(stream.is_some())
    })?;
    stream.context("no connection")
}

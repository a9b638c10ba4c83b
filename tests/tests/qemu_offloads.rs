//! A guest that agreed to no offload: every frame it gets is one packet with its checksum in place.

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Capture, Lab, Station,
    station::{Address, Transport::Tcp},
};

const HOST: Address = Address { net: 68, host: 1 };
const GUEST: Address = Address { net: 68, host: 2 };
const BYTES: usize = 500_000;

fn frames(guest: &mut Station) -> Result<usize> {
    let count = guest.run("cat /sys/class/net/eth0/statistics/rx_packets")?;
    count.trim().parse().context("a number of frames")
}

/// What the guest's kernel counts of TCP by this name (RFC 4022, and `InCsumErrors`).
fn tcp_counter(guest: &mut Station, name: &str) -> Result<u64> {
    let text = guest.run("cat /proc/net/snmp")?;
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next(), lines.next());
    let (names, values) = names.zip(values).context("no TCP in /proc/net/snmp")?;
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let found = pairs.find(|(key, _)| *key == name);
    let (_, value) = found.with_context(|| format!("no {name} in {names}"))?;
    Ok(value.parse()?)
}

#[test]
fn a_guest_that_agreed_to_nothing_gets_cut_frames_with_right_checksums() -> Result<()> {
    let lab = Lab::start()?;
    lab.ctl("network create inner --type internal")?;
    let mut host = lab.host_station("inner", HOST)?;
    let device = [
        "guest_csum=off",
        "guest_tso4=off",
        "guest_tso6=off",
        "guest_ecn=off",
        "guest_ufo=off",
    ];
    let mut guest = lab.guest_station_with("inner", "guest", (None, GUEST), &device)?;
    // VIRTIO_NET_F_GUEST_CSUM, _TSO4, _TSO6, _ECN and _UFO: bits 1 and 7 to 10 (virtio 1.2, section 5.1.3).
    let agreed = guest.run("cat /sys/class/net/eth0/device/features")?;
    let one = |&bit: &usize| agreed.as_bytes().get(bit) != Some(&b'0');
    ensure!(![1, 7, 8, 9, 10].iter().any(one), "agreed to: {agreed}");
    for v6 in [false, true] {
        host.ping(GUEST, v6, 56)?;
        let large = Capture::start(&lab.host, "vsw-inner", "out", "tcp and greater 1515")?;
        let before = frames(&mut guest)?;
        host.bytes(GUEST, v6, Tcp, BYTES)?;
        let came = frames(&mut guest)? - before;
        ensure!(
            large.finish()?.count("")? > 0,
            "the host has cut its frames itself"
        );
        // Acknowledgements of what the guest sends back come besides, one for two of its segments at most.
        ensure!(came >= BYTES / 1448, "{came} frames came: not all were cut");
    }
    let wrong = tcp_counter(&mut guest, "InCsumErrors")?;
    ensure!(wrong == 0, "{wrong} wrong checksums");
    lab.counters_add_up()
}

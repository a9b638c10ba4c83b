//! vhost-user ports: both modes, and what happens when one of the two ends goes and comes back.

use std::time::Duration;

use anyhow::{Result, ensure};
use vswitch_tests::{
    Dpdk, Lab, QemuGuest, Station, cmd,
    dpdk::virtio_user,
    guest::{Attachment, GuestConfig},
    station::{
        Address,
        Transport::{Tcp, Udp},
    },
};

const fn at(host: u8) -> Address {
    Address { net: 66, host }
}
/// How long a peer may take to come back.
const BACK: Duration = Duration::from_secs(10);

fn lab() -> Result<Lab> {
    let lab = Lab::start()?;
    lab.ctl("network create lab --type private")?;
    Ok(lab)
}

fn comes_back(from: &mut Station, to: Address) -> Result<()> {
    let what = format!("{} to reach {} again", from.name, to.ip(false));
    cmd::wait_until(&what, BACK, || Ok(from.reaches(to)))?;
    from.bytes(to, false, Tcp, 200_000)?;
    from.bytes(to, true, Udp, 8000).map(drop)
}

#[test]
fn the_switch_connects_to_a_guest_that_listens() -> Result<()> {
    let lab = lab()?;
    let socket = lab.daemon.socket("guest");
    let mut alice = lab.tap_station("lab", "alice", None, at(1))?;
    // The port is there first: it keeps trying.
    lab.ctl(&format!(
        "port add lab guest --vhost-user {socket} --client"
    ))?;
    let config = GuestConfig {
        attachment: Attachment::VhostUserServer(socket),
        mac: at(2).mac(),
        addresses: Vec::new(),
        device: Vec::new(),
    };
    let mut guest = Station::guest("guest", QemuGuest::boot(&lab.host, &config)?, None, at(2))?;
    comes_back(&mut alice, at(2))?;
    // A disconnected port has its cable pulled out, as the guest sees.
    lab.ctl("port set lab guest --disconnect")?;
    has_carrier(&mut guest, false)?;
    lab.ctl("port set lab guest --connect lab")?;
    has_carrier(&mut guest, true)?;
    comes_back(&mut alice, at(2))
}

fn has_carrier(guest: &mut Station, wanted: bool) -> Result<()> {
    let file = format!("/sys/class/net/{}/carrier", guest.interface());
    let wanted = if wanted { "1" } else { "0" };
    cmd::wait_until(&format!("{file} to be {wanted}"), BACK, || {
        Ok(guest.run(&format!("cat {file}"))?.trim() == wanted)
    })
}

#[test]
fn a_guest_outlives_a_crash_of_the_daemon() -> Result<()> {
    let mut lab = lab()?;
    lab.ctl("network create inner --type internal")?;
    let mut guest = lab.guest_station("inner", "guest", None, at(2))?;
    let mut host = lab.host_station("inner", at(1))?;
    host.bytes(at(2), false, Tcp, 200_000)?;
    for _ in 0..3 {
        lab.daemon.kill()?;
        lab.daemon.start_again()?;
        comes_back(&mut host, at(2))?;
        comes_back(&mut guest, at(1))?;
    }
    ensure!(
        lab.daemon.stats()?.wrong().is_empty(),
        "{:?}",
        lab.daemon.stats()?.wrong()
    );
    Ok(())
}

#[test]
fn a_port_takes_a_guest_after_another_and_its_neighbours_do_not_notice() -> Result<()> {
    let lab = lab()?;
    let mut alice = lab.tap_station("lab", "alice", None, at(1))?;
    let _bob = lab.tap_station("lab", "bob", None, at(2))?;
    let socket = lab.daemon.socket("guest");
    lab.ctl(&format!(
        "port add lab guest --vhost-user {socket} --server"
    ))?;
    for _ in 0..2 {
        let config = GuestConfig {
            attachment: Attachment::VhostUserClient(socket.clone()),
            mac: at(3).mac(),
            addresses: Vec::new(),
            device: Vec::new(),
        };
        // Dropped, it is killed: its memory and its rings are gone at once.
        let guest = Station::guest("guest", QemuGuest::boot(&lab.host, &config)?, None, at(3))?;
        comes_back(&mut alice, at(3))?;
        drop(guest);
        alice.ping(at(2), false, 56)?;
    }
    ensure!(
        lab.daemon.stats()?.wrong().is_empty(),
        "{:?}",
        lab.daemon.stats()?.wrong()
    );
    Ok(())
}

#[test]
fn dpdk_peers_of_every_ring_format_send_back_what_they_get() -> Result<()> {
    for options in [
        ["packed_vq=0", "in_order=0"],
        ["packed_vq=0", "in_order=1"],
        ["packed_vq=1", "in_order=0"],
        ["packed_vq=1", "in_order=1"],
    ] {
        let lab = lab()?;
        let mut alice = lab.tap_station("lab", "alice", None, at(1))?;
        let socket = lab.daemon.socket("dpdk");
        lab.ctl(&format!("port add lab dpdk --vhost-user {socket} --server"))?;
        let _dpdk = Dpdk::start(&virtio_user(&socket, &at(2).mac(), &options), "5tswap")?;
        for v6 in [false, true] {
            alice.run(&format!(
                "ip neigh replace {} lladdr {} dev eth0",
                at(2).ip(v6),
                at(2).mac()
            ))?;
            cmd::wait_until(&format!("DPDK with {options:?}"), BACK, || {
                Ok(alice.bytes(at(2), v6, Udp, 1400).is_ok())
            })?;
        }
        ensure!(
            lab.daemon.stats()?.wrong().is_empty(),
            "{options:?}: {:?}",
            lab.daemon.stats()?.wrong()
        );
    }
    Ok(())
}

#[test]
fn a_flood_of_small_frames_is_accounted_for() -> Result<()> {
    let lab = lab()?;
    let sockets = [lab.daemon.socket("source"), lab.daemon.socket("sink")];
    for (port, socket) in ["source", "sink"].iter().zip(&sockets) {
        lab.ctl(&format!(
            "port add lab {port} --vhost-user {socket} --server"
        ))?;
    }
    let [source, sink] = &sockets;
    let _sink = Dpdk::start(&virtio_user(sink, &at(2).mac(), &[]), "rxonly")?;
    let mut sender = Dpdk::start(&virtio_user(source, &at(1).mac(), &[]), "txonly")?;
    cmd::wait_until("100 000 frames", BACK, || {
        Ok(lab.daemon.stats()?.port("lab", "source")?.taken > 100_000)
    })?;
    sender.order("stop")?;
    let mut last = 0;
    cmd::wait_until("the last frame", BACK, || {
        let taken = lab.daemon.stats()?.port("lab", "source")?.taken;
        Ok(std::mem::replace(&mut last, taken) == taken)
    })?;
    let stats = lab.daemon.stats()?;
    ensure!(stats.wrong().is_empty(), "{:?}", stats.wrong());
    let (source, sink) = (stats.port("lab", "source")?, stats.port("lab", "sink")?);
    ensure!(source.delivered == sink.rx_frames, "{source:?} {sink:?}");
    Ok(())
}

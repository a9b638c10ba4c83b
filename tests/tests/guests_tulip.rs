//! Linux's own driver for the DEC 21140, `tulip`, on legacy adapters.

#[path = "guests_tulip/filter.rs"]
mod filter;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Background, Lab, Station, cmd,
    station::Address,
    vm::{
        Console, Netboot,
        netboot::noise,
        ours::{BOOT_LIMIT, guest_on_internal_network, repeat},
    },
};

const fn at(host: u8) -> Address {
    Address { net: 71, host }
}
const HOST: Address = at(1);
const GUEST: Address = at(2);
/// How often a link goes down or up.
const LINK_CHANGES: u32 = 1000;
/// The driver looks at its link every 3 s while it is down.
const LINK_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn traffic_goes_both_ways_and_the_driver_starts_again_and_again() -> Result<()> {
    let (lab, mut host, mut console) = guest_on_internal_network(HOST, GUEST)?;
    console.ping(HOST)?;
    for payload in [1, 56, 1472] {
        host.ping(GUEST, false, payload)?;
    }
    let (exits, frames) = (lab.vm_exits("guest")?.1, frames(&lab)?);
    traffic(&lab, &mut console)?;
    exits_are_few(&lab, exits, frames)?;

    for round in 0..repeat(5) {
        console.run("ifconfig eth0 down && ifconfig eth0 up")?;
        console
            .ping(HOST)
            .map_err(|e| e.context(format!("after {round} times down")))?;
    }
    // What module unload and load are for a driver that is built in.
    let address = console.run("basename $(readlink /sys/class/net/eth0/device)")?;
    for _ in 0..repeat(2) {
        for verb in ["unbind", "bind"] {
            let file = format!("/sys/bus/pci/drivers/tulip/{verb}");
            console.run(&format!("echo {} >{file}", address.trim()))?;
        }
        console.run(&format!("ifconfig eth0 {} up", GUEST.ip(false)))?;
        console.ping(HOST)?;
    }
    traffic(&lab, &mut console)?;
    filter::is_the_drivers(&lab, &mut host, &mut console)?;
    lab.counters_add_up()
}

/// Frames that the guest sent and received.
fn frames(lab: &Lab) -> Result<u64> {
    let stats = lab.daemon.stats()?;
    let port = stats.port("inner", "guest.legacy0")?;
    Ok(port.tx_frames + port.rx_frames)
}

/// An interrupt costs the driver a few accesses to CSR5, and there is at most one for each frame.
fn exits_are_few(lab: &Lab, exits: u64, before: u64) -> Result<()> {
    let frames = frames(lab)? - before;
    let exits = lab.vm_exits("guest")?.1 - exits;
    ensure!(exits < 10 * frames, "{exits} exits for {frames} frames");
    Ok(())
}

/// A file from a web server to the guest, and back and forth through an echo server, unharmed.
fn traffic(lab: &Lab, console: &mut Console) -> Result<()> {
    let web = Netboot::start(&lab.host, "vsw-inner", HOST)?;
    let hash = web.offer("file", &noise(400_000))?;
    let echo = format!("nc {} 7000 </tmp/file | sha256sum", HOST.ip(false));
    for command in [
        format!(
            "wget -q -O /tmp/file {}; sha256sum /tmp/file",
            web.url("file")
        ),
        echo,
    ] {
        let said = console.run(&command)?;
        ensure!(
            said.starts_with(&hash),
            "`{command}` gave {said}, not {hash}"
        );
    }
    Ok(())
}

/// The number of adapters that a machine can have.
const ADAPTERS: u8 = 4;

/// A guest with as many adapters as it can have, each in a network of its own with a station.
struct Four {
    lab: Lab,
    stations: Vec<Station>,
    console: Console,
}

impl Four {
    fn start() -> Result<Self> {
        let lab = Lab::start()?;
        let mut stations = Vec::new();
        for net in 0..ADAPTERS {
            lab.ctl(&format!("network create n{net} --type private"))?;
            let station = Self::at(net, 1);
            stations.push(lab.tap_station(
                &format!("n{net}"),
                &format!("peer{net}"),
                None,
                station,
            )?);
        }
        lab.create_vm("guest", &["net=n0", "net=n1", "net=n2", "net=n3"], "")?;
        lab.ctl("vm set guest --cpus 2")?;
        let mut console = lab.start_vm("guest")?;
        console.wait_ready(BOOT_LIMIT)?;
        for net in 0..ADAPTERS {
            // Without a mask it would be that of the old class A, and all adapters in one subnet.
            let ip = Self::at(net, 2).ip(false);
            console.run(&format!("ifconfig eth{net} {ip} netmask 255.255.255.0 up"))?;
        }
        Ok(Self {
            lab,
            stations,
            console,
        })
    }

    const fn at(net: u8, host: u8) -> Address {
        Address {
            net: 80 + net,
            host,
        }
    }

    fn ping_on_all(&mut self) -> Result<()> {
        for (net, station) in (0..ADAPTERS).zip(&mut self.stations) {
            self.console.ping(Self::at(net, 1))?;
            station.ping(Self::at(net, 2), false, 1400)?;
        }
        // Two adapters each share an interrupt line.
        std::thread::scope(|scope| {
            let pings = (0..ADAPTERS).zip(&mut self.stations).map(|(net, station)| {
                scope.spawn(move || -> Result<()> {
                    (0..5).try_for_each(|_| station.ping(Self::at(net, 2), false, 1000))
                })
            });
            let pings: Vec<_> = pings.collect();
            pings.into_iter().try_for_each(|ping| {
                ping.join()
                    .map_err(|_| anyhow::anyhow!("a ping panicked"))?
            })
        })
    }

    /// Pings for the first adapter as fast as they are answered, and a hundred a second that are not: more than a guest can
    /// take that is asked something else at the same time.
    fn flood(&self) -> Result<Background> {
        let netns = self.stations.first().and_then(Station::netns);
        let netns = netns.context("a station without a namespace")?;
        netns.spawn(&["ping", "-f", "-q", "-s", "1000", &Self::at(0, 2).ip(false)])
    }

    /// Waits until eth0 has a carrier (`1`) or none (`0`).
    fn wait_carrier(&mut self, wanted: &str) -> Result<()> {
        let what = format!("carrier {wanted} in the guest");
        cmd::wait_until(&what, LINK_LIMIT, || {
            let carrier = self.console.run("cat /sys/class/net/eth0/carrier")?;
            Ok(carrier.trim() == wanted)
        })
    }

    fn wait_ping(&mut self, when: &str) -> Result<()> {
        let what = format!("the guest to reach its peer {when}");
        let ping = format!("ping -c 1 -W 2 {}", Self::at(0, 1).ip(false));
        cmd::wait_until(&what, LINK_LIMIT, || Ok(self.console.output(&ping)?.0 == 0))
    }
}

#[test]
fn four_adapters_serve_four_networks() -> Result<()> {
    let mut guest = Four::start()?;
    guest.ping_on_all()?;
    for net in 0..ADAPTERS {
        let mac = format!("cat /sys/class/net/eth{net}/address");
        let mac = guest.console.run(&mac)?;
        let learned = guest.lab.ctl(&format!("fdb show n{net}"))?.to_string();
        ensure!(
            learned.contains(mac.trim()),
            "{mac} is not in n{net}: {learned}"
        );
    }
    let macs = guest
        .console
        .run("cat /sys/class/net/eth?/address | sort | uniq -d")?;
    ensure!(macs.is_empty(), "given twice: {macs}");
    the_second_processor_takes_interrupts(&mut guest)?;
    links_change(&mut guest)?;
    moves_under_traffic(&mut guest)?;
    guest.ping_on_all()?;
    guest.lab.counters_add_up()
}

/// The guest has two processors, and moves the first adapter's interrupts to the second.
fn the_second_processor_takes_interrupts(guest: &mut Four) -> Result<()> {
    let irq = "$(awk '/eth0/ {print $1 + 0}' /proc/interrupts)";
    let console = &mut guest.console;
    console.run(&format!("echo 2 >/proc/irq/{irq}/smp_affinity"))?;
    let taken_by_second = |console: &mut Console| -> Result<u64> {
        let taken = console.run("awk '/eth0/ {print $3}' /proc/interrupts")?;
        let taken = taken.trim();
        taken
            .parse()
            .with_context(|| format!("no number of interrupts: {taken}"))
    };
    let before = taken_by_second(console)?;
    console.ping(Four::at(0, 1))?;
    let after = taken_by_second(console)?;
    ensure!(
        after > before,
        "the second processor took {before}, then {after}"
    );
    Ok(())
}

/// The first adapter's cable is pulled out and plugged in.
fn links_change(guest: &mut Four) -> Result<()> {
    guest.wait_carrier("1")?;
    guest.lab.ctl("adapter set guest legacy0 --disconnect")?;
    // With its link up the driver looks at it once a minute only, but 3 s after it was started.
    guest
        .console
        .run("ifconfig eth0 down && ifconfig eth0 up")?;
    guest.wait_carrier("0")?;
    guest.lab.ctl("adapter set guest legacy0 --connect n0")?;
    guest.wait_carrier("1")?;
    guest.wait_ping("once connected")?;
    // Faster than the driver looks: what counts is where it ends, and that nothing is left of the way.
    let flood = guest.flood()?;
    for _ in 0..repeat(LINK_CHANGES / 2) {
        guest.lab.ctl("adapter set guest legacy0 --disconnect")?;
        guest.lab.ctl("adapter set guest legacy0 --connect n0")?;
    }
    drop(flood);
    guest.wait_ping("after many changes of its link")?;
    guest.wait_carrier("1")
}

/// The first adapter goes from network to network while it is sent to and answers. The others do not notice.
fn moves_under_traffic(guest: &mut Four) -> Result<()> {
    for _ in 0..repeat(3) {
        let flood = guest.flood()?;
        for net in ["n1", "n2", "n0", "n3", "n0"] {
            guest
                .lab
                .ctl(&format!("adapter set guest legacy0 --connect {net}"))?;
        }
        drop(flood);
        guest.wait_ping("after it went round")?;
        guest.console.ping(Four::at(3, 1))?;
    }
    // Moved to another network, it reaches nobody.
    guest.lab.ctl("adapter set guest legacy0 --connect n1")?;
    ensure!(
        guest.console.ping(Four::at(0, 1)).is_err(),
        "a guest in another network reached its peer"
    );
    guest.lab.ctl("adapter set guest legacy0 --connect n0")?;
    guest.wait_ping("back in its network")
}

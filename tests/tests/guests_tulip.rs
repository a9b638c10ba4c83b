//! Linux's own driver for the DEC 21140, `tulip`, on legacy adapters.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Lab, Netns, Station, cmd,
    station::Address,
    vm::{
        Console, Netboot, image,
        netboot::noise,
        ours::{BOOT_LIMIT, guest_on_internal_network, repeat},
    },
};

const fn at(host: u8) -> Address {
    Address { net: 71, host }
}
const HOST: Address = at(1);
const GUEST: Address = at(2);
/// The driver looks at its link every 3 s while it is down.
const LINK_LIMIT: Duration = Duration::from_secs(15);

#[test]
fn traffic_goes_both_ways_and_the_driver_starts_again_and_again() -> Result<()> {
    let (lab, mut host, mut console) = guest_on_internal_network(HOST, GUEST)?;
    console.ping(HOST)?;
    for payload in [1, 56, 1472] {
        host.ping(GUEST, false, payload)?;
    }
    traffic(&lab, &mut console)?;

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
    lab.counters_add_up()
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

/// A guest whose packet socket sees all that its adapter lets in.
struct Sniffer {
    lab: Lab,
    host: Station,
    console: Console,
    netns: Arc<Netns>,
    rounds: u32,
}

const PINGS: u64 = 5;
/// How often a register is written.
const POKES: u64 = 1000;
/// Length of an echo request without payload, as a packet socket sees it.
const EMPTY_PING: u32 = 42;

impl Sniffer {
    fn start() -> Result<Self> {
        let (lab, host, mut console) = guest_on_internal_network(HOST, GUEST)?;
        let netns = host.netns().context("the host has no namespace")?.clone();
        let web = Netboot::start(&netns, "vsw-inner", HOST)?;
        web.offer_packed("guest.gz", &image::guest_program()?)?;
        console.run(&format!(
            "cd /tmp && wget -q -O - {} | gunzip >vswitch-guest && chmod +x vswitch-guest",
            web.url("guest.gz")
        ))?;
        console.run("./vswitch-guest sniff 100000 3600 >seen &")?;
        Ok(Self {
            lab,
            host,
            console,
            netns,
            rounds: 0,
        })
    }

    /// How many of [`PINGS`] pings that the host sends to `ip` at `mac` reach the guest.
    fn sees(&mut self, ip: &str, mac: &str) -> Result<u64> {
        let before = self.seen(mac)?;
        let count = PINGS.to_string();
        // Nobody answers, so its exit status is 1.
        let _ = self.netns.run(&[
            "ping",
            "-n",
            "-q",
            "-c",
            &count,
            "-i",
            "0.05",
            "-W",
            "0.1",
            "-I",
            "vsw-inner",
            ip,
        ]);
        // What the guest sees of a ping to itself comes after what it saw of the others. It has a length of its own.
        self.rounds += 1;
        let payload = 200 + self.rounds;
        self.host.ping(GUEST, false, payload)?;
        let fence = format!(" 0800 {}$", payload + EMPTY_PING);
        self.console
            .run(&format!("until grep -q '{fence}' seen; do sleep 0.1; done"))?;
        Ok(self.seen(mac)? - before)
    }

    /// How many frames for `mac` the guest has seen so far.
    fn seen(&mut self, mac: &str) -> Result<u64> {
        let count = self.console.output(&format!("grep -c '^{mac}' seen"))?.1;
        count
            .trim()
            .parse()
            .with_context(|| format!("grep counted {count:?}"))
    }

    /// Frames that adapters' filters dropped.
    fn filtered(&self) -> Result<u64> {
        let stats = self.lab.daemon.stats()?;
        let drops = stats.0.iter().flat_map(|port| port.drops.iter());
        let filtered = drops.filter(|(reason, _)| reason == "rx_filter");
        Ok(filtered.map(|(_, count)| count).sum())
    }
}

#[test]
fn the_filter_of_the_adapter_is_the_one_the_driver_sets() -> Result<()> {
    let mut guest = Sniffer::start()?;
    let (ip, mac) = (at(77).ip(false), at(77).mac());
    guest
        .netns
        .ip(&format!("neigh add {ip} lladdr {mac} dev vsw-inner"))?;

    // The switch floods frames for an address it has not learned; the adapter filters them.
    let before = guest.filtered()?;
    ensure!(guest.sees(&ip, &mac)? == 0);
    let filtered = guest.filtered()? - before;
    ensure!(
        filtered >= PINGS,
        "{filtered} frames were dropped as rx_filter"
    );
    guest.console.run("ifconfig eth0 promisc")?;
    ensure!(guest.sees(&ip, &mac)? == PINGS);
    guest.console.run("ifconfig eth0 -promisc")?;
    ensure!(guest.sees(&ip, &mac)? == 0);

    // Every IPv4 host is in the first group. Nobody is in the second until somebody joins it.
    let got = guest.sees("224.0.0.1", "01:00:5e:00:00:01")?;
    ensure!(got == PINGS, "{got} of {PINGS} frames came");
    let (group, mac) = ("239.1.2.3", "01:00:5e:01:02:03");
    ensure!(guest.sees(group, mac)? == 0);
    guest.console.run(&format!(
        "./vswitch-guest join {group} 3600 >joined & joiner=$!"
    ))?;
    guest
        .console
        .run("until grep -q joined joined; do sleep 0.1; done")?;
    ensure!(guest.sees(group, mac)? == PINGS);
    guest.console.run("kill $joiner; wait $joiner; true")?;
    ensure!(guest.sees(group, mac)? == 0);
    // More groups than a perfect filter has places: the driver goes over to the hash filter.
    let groups = "for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do ./vswitch-guest join 239.9.9.$n 3600 & done >/tmp/many";
    guest.console.run(groups)?;
    guest
        .console
        .run("until [ $(grep -c joined many) = 15 ]; do sleep 0.1; done")?;
    ensure!(guest.sees("239.9.9.15", "01:00:5e:09:09:0f")? == PINGS);
    ensure!(guest.sees(group, mac)? == 0);
    guest.console.run("ifconfig eth0 allmulti")?;
    ensure!(guest.sees(group, mac)? == PINGS);
    guest.lab.counters_add_up()?;
    a_poll_demand_does_not_stop_the_guest(&mut guest)
}

/// The kernel tells the switch of transmit poll demands (CSR1); receive poll demands (CSR2) go through the monitor.
fn a_poll_demand_does_not_stop_the_guest(guest: &mut Sniffer) -> Result<()> {
    let mut exits = |csr: u32| -> Result<u64> {
        let before = guest.lab.vm_exits("guest")?.1;
        let ports = "/sys/class/net/eth0/device/resource0";
        guest
            .console
            .run(&format!("./vswitch-guest poke {ports} {} {POKES}", 8 * csr))?;
        Ok(guest.lab.vm_exits("guest")?.1 - before)
    };
    let (transmit, receive) = (exits(1)?, exits(2)?);
    ensure!(receive >= POKES, "{receive} exits by {POKES} accesses");
    // The console has some.
    ensure!(
        transmit < POKES / 2,
        "{transmit} exits by {POKES} poll demands"
    );
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
        Ok(())
    }

    /// Waits until eth0 has a carrier (`1`) or none (`0`).
    fn wait_carrier(&mut self, wanted: &str) -> Result<()> {
        let what = format!("carrier {wanted} in the guest");
        cmd::wait_until(&what, LINK_LIMIT, || {
            let carrier = self.console.run("cat /sys/class/net/eth0/carrier")?;
            Ok(carrier.trim() == wanted)
        })
    }

    fn wait_ping(&mut self) -> Result<()> {
        cmd::wait_until("the guest to reach its peer again", LINK_LIMIT, || {
            Ok(self.console.ping(Self::at(0, 1)).is_ok())
        })
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
    links_change(&mut guest)?;
    moves_under_traffic(&mut guest)?;
    guest.ping_on_all()?;
    guest.lab.counters_add_up()
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
    guest.wait_ping()?;
    for _ in 0..repeat(100) {
        guest.lab.ctl("adapter set guest legacy0 --disconnect")?;
        guest.lab.ctl("adapter set guest legacy0 --connect n0")?;
    }
    guest.wait_ping()
}

/// The first adapter goes from network to network while it is sent to and answers. The others do not notice.
fn moves_under_traffic(guest: &mut Four) -> Result<()> {
    let netns = guest.stations.first().and_then(Station::netns);
    let netns = netns.context("a station without a namespace")?.clone();
    // A guest whose ring 0 is emulated can take no more beside what it is asked.
    let adapter = Four::at(0, 2).ip(false);
    let _traffic = netns.spawn(&["ping", "-q", "-i", "0.1", "-s", "1000", &adapter])?;
    for _ in 0..repeat(3) {
        for net in ["n1", "n2", "n3", "n0"] {
            guest
                .lab
                .ctl(&format!("adapter set guest legacy0 --connect {net}"))?;
            guest.console.ping(Four::at(3, 1))?;
        }
        guest.wait_ping()?;
    }
    // Moved to another network, it reaches nobody.
    guest.lab.ctl("adapter set guest legacy0 --connect n1")?;
    ensure!(
        guest.console.ping(Four::at(0, 1)).is_err(),
        "a guest in another network reached its peer"
    );
    guest.lab.ctl("adapter set guest legacy0 --connect n0")?;
    guest.wait_ping()
}

//! The address filter of the legacy adapter as Linux's own driver sets it, and what its poll demands cost.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Lab, Netns, Station,
    vm::{Console, Netboot, image},
};

use super::{GUEST, HOST, at};

/// A guest whose packet socket sees all that its adapter lets in.
struct Sniffer<'a> {
    lab: &'a Lab,
    host: &'a mut Station,
    console: &'a mut Console,
    netns: Arc<Netns>,
    rounds: u32,
}

const PINGS: u64 = 5;
/// How often a register is written.
const POKES: u64 = 1000;
/// Length of an echo request without payload, as a packet socket sees it.
const EMPTY_PING: u32 = 42;

impl<'a> Sniffer<'a> {
    fn start(lab: &'a Lab, host: &'a mut Station, console: &'a mut Console) -> Result<Self> {
        let netns = host.netns().context("the host has no namespace")?.clone();
        let web = Netboot::start(&netns, "vsw-inner", HOST)?;
        web.offer_packed("guest.gz", &image::guest_program()?)?;
        console.run(&format!(
            "cd /tmp && wget -q -O - {} | gunzip >vswitch-guest && chmod +x vswitch-guest",
            web.url("guest.gz")
        ))?;
        console.run("./vswitch-guest sniff 100000 3600 >seen & sniffer=$!")?;
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

/// The filter of the adapter is the one that the driver sets.
pub(super) fn is_the_drivers(lab: &Lab, host: &mut Station, console: &mut Console) -> Result<()> {
    let mut guest = Sniffer::start(lab, host, console)?;
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
    // The kernel looks for the interface by a route.
    let route = "route add -net 224.0.0.0 netmask 240.0.0.0 dev eth0";
    guest.console.run(route)?;
    guest.console.run(&format!(
        "./vswitch-guest join {group} 3600 >joined & joiner=$!"
    ))?;
    guest
        .console
        .run("until grep -q joined joined; do sleep 0.1; done")?;
    ensure!(guest.sees(group, mac)? == PINGS);
    guest.console.run("kill $joiner; wait $joiner; true")?;
    ensure!(guest.sees(group, mac)? == 0);
    guest.console.run("ifconfig eth0 allmulti")?;
    ensure!(guest.sees(group, mac)? == PINGS);
    guest
        .console
        .run("ifconfig eth0 -allmulti; kill $sniffer; true")?;
    a_poll_demand_does_not_stop_the_guest(&mut guest)
}

/// The kernel tells the switch of transmit poll demands (CSR1); receive poll demands (CSR2) go through the monitor.
fn a_poll_demand_does_not_stop_the_guest(guest: &mut Sniffer<'_>) -> Result<()> {
    let mut exits = |csr: u32| -> Result<u64> {
        let register = format!("csr{csr}");
        let before = guest.lab.vm_exits_at("guest", &register)?;
        let ports = "/sys/class/net/eth0/device/resource0";
        guest
            .console
            .run(&format!("./vswitch-guest poke {ports} {} {POKES}", 8 * csr))?;
        Ok(guest.lab.vm_exits_at("guest", &register)? - before)
    };
    let (transmit, receive) = (exits(1)?, exits(2)?);
    ensure!(receive == POKES, "{receive} exits by {POKES} accesses");
    ensure!(transmit == 0, "{transmit} exits by {POKES} poll demands");
    Ok(())
}

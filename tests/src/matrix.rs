//! Every kind of port with every other, in all the ways that mean something.
//!
//! The axes are pairs of port kinds × {TCP, UDP, ICMP} × {IPv4, IPv6} × MTU {1500, 9000} × offloads {on, off} ×
//! {untagged, access, trunk}. What is left out, and why:
//! - A pair is tried from one end only: what TCP and UDP send comes back, so both ways are used, and hashed.
//! - A network has one uplink: AF_XDP and packet socket never meet. The LAN stands for the uplink, for its frames
//!   go through it; its offloads are always off, for a virtual cable does not fill in what a real NIC would.
//! - The MTU and the offloads of both ends change together; frames too long for one end have a test of their own.
//! - On a network with VLANs the uplink is a trunk and the LAN tags. The DPDK port stays an access port in a trunk
//!   matrix, for DPDK knows no tags here, and so does the host NIC, for the host's kernel may know none; as a trunk the
//!   host NIC is tested with a guest that tags behind it (`netns_vlan`).
//! - Of a kind there is one port, but for QEMU guests, of which there are two. A second one would go the same ways as
//!   the first; TAP to TAP is what `netns_private` and `netns_vlan` are made of, DPDK to DPDK is the flood of
//!   `qemu_vhost_user`. A network has one host NIC.
//! - DPDK has no TCP. It sends UDP back with addresses and ports exchanged, whole datagrams only, and answers ICMP
//!   over IPv4.
//! - The matrix of a machine of our own monitor has the pairs with its synthetic adapter, which Linux's `hv_netvsc`
//!   drives: as source and as destination of every other kind. It may be emulated, and is sent less.
//! - One matrix, access over AF_XDP, runs on two workers and not on one, for a port does the same whoever owns it.
//! - The matrix of guests leaves out pairs without a guest. With a packet socket it keeps pairs with the LAN, on a
//!   trunk: to the others the uplink makes no difference.

use std::{fmt, sync::Arc};

use anyhow::{Context, Result, ensure};

use crate::{
    Capture, Dpdk, Frames, Lab, Netns, Station,
    dpdk::virtio_user,
    lab::UPLINK,
    station::{Address, Transport},
    vm::ours::BOOT_LIMIT,
};

const NETWORK: &str = "net";
const HOST_NIC: &str = "vsw-net";
const NET: u8 = 70;
const VLAN: u16 = 10;
/// Bytes by TCP, in each direction.
const STREAM: usize = 200_000;
/// The longest datagram between two kernels: fragments at either MTU.
const DATAGRAM: usize = 20_000;
/// The same for a slow machine.
const SLOW_STREAM: usize = 60_000;
const SLOW_DATAGRAM: usize = 9_000;
/// So many failures show the pattern; each may cost seconds.
const ENOUGH: usize = 16;

const HOST: Address = Address { net: NET, host: 1 };
const TAP: Address = Address { net: NET, host: 2 };
const LAN: Address = Address { net: NET, host: 3 };
const GUEST: Address = Address { net: NET, host: 4 };
const PACKED_GUEST: Address = Address { net: NET, host: 5 };
const MACHINE: Address = Address { net: NET, host: 7 };
const DPDK: Address = Address { net: NET, host: 6 };

/// How the uplink is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// AF_XDP.
    Xdp,
    /// A packet socket, the way out where AF_XDP cannot be had.
    Packet,
}

/// How the stations are tagged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tagging {
    /// No VLAN anywhere.
    Untagged,
    /// Stations on access ports, tags on the uplink only.
    Access,
    /// Stations that tag by themselves on trunk ports.
    Trunk,
}

/// A network with a station of each kind.
#[derive(Debug)]
pub struct Matrix {
    // In the order in which they have to end.
    stations: Vec<Station>,
    dpdk: Option<Dpdk>,
    bystander: Arc<Netns>,
    lan: Arc<Netns>,
    lab: Lab,
    tagging: Tagging,
    uplink: Uplink,
}

struct Way {
    mtu: u32,
    offloads: bool,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "MTU {}, offloads {}",
            self.mtu,
            if self.offloads { "on" } else { "off" }
        )
    }
}

impl Matrix {
    /// The host NIC, a TAP port and the LAN behind the uplink.
    ///
    /// # Errors
    /// When the daemon refuses something.
    pub fn new(uplink: Uplink, tagging: Tagging) -> Result<Self> {
        Self::in_lab(Lab::start()?, uplink, tagging)
    }

    /// The same where two workers share the ports.
    ///
    /// # Errors
    /// As [`Matrix::new`], and when a worker owns no port.
    pub fn with_two_workers(uplink: Uplink, tagging: Tagging) -> Result<Self> {
        let matrix = Self::in_lab(Lab::start_with_two_workers()?, uplink, tagging)?;
        matrix.lab.every_worker_owns_ports()?;
        Ok(matrix)
    }

    fn in_lab(lab: Lab, uplink: Uplink, tagging: Tagging) -> Result<Self> {
        let lan = match uplink {
            Uplink::Xdp => lab.lan()?,
            Uplink::Packet => lab.lan_without_xdp()?,
        };
        let vlan = if tagging == Tagging::Untagged {
            String::new()
        } else {
            format!(" --vlan {VLAN}")
        };
        lab.ctl(&format!(
            "network create {NETWORK} --type external --uplink {UPLINK} --mtu 9000{vlan}"
        ))?;
        let lan_tag = (tagging != Tagging::Untagged).then_some(VLAN);
        let port_tag = (tagging == Tagging::Trunk).then_some(VLAN);
        let stations = vec![
            lab.host_station(NETWORK, HOST)?,
            lab.tap_station(NETWORK, "tap", port_tag, TAP)?,
            Station::inside("lan", &lan, "eth0", lan_tag, LAN)?,
        ];
        let bystander = lab.tap_port(NETWORK, "bystander")?;
        let matrix = Self {
            stations,
            dpdk: None,
            bystander,
            lan,
            lab,
            tagging,
            uplink,
        };
        matrix.set_vlan("tap", tagging == Tagging::Trunk)?;
        if tagging != Tagging::Untagged {
            matrix
                .lab
                .ctl(&format!("port set {NETWORK} bystander --vlan access:20"))?;
        }
        Ok(matrix)
    }

    /// And two QEMU guests, one with packed rings, and a DPDK peer.
    ///
    /// # Errors
    /// When the daemon refuses something or a guest does not boot.
    pub fn with_guests(uplink: Uplink, tagging: Tagging) -> Result<Self> {
        let mut matrix = Self::new(uplink, tagging)?;
        let trunk = tagging == Tagging::Trunk;
        let tag = trunk.then_some(VLAN);
        for (port, address, device) in [
            ("qemu", GUEST, "packed=off"),
            ("packed", PACKED_GUEST, "packed=on"),
        ] {
            let guest = matrix
                .lab
                .guest_station_with(NETWORK, port, (tag, address), &[device])?;
            matrix.stations.push(guest);
            matrix.set_vlan(port, trunk)?;
        }
        let socket = matrix.lab.daemon.socket("dpdk");
        matrix.lab.ctl(&format!(
            "port add {NETWORK} dpdk --vhost-user {socket} --server"
        ))?;
        matrix.set_vlan("dpdk", false)?;
        matrix.dpdk = Some(Dpdk::start(
            &virtio_user(&socket, &DPDK.mac(), &[]),
            "5tswap",
        )?);
        for station in &mut matrix.stations {
            let interface = station.interface();
            for v6 in [false, true] {
                station.run(&format!(
                    "ip neigh replace {} lladdr {} dev {interface}",
                    DPDK.ip(v6),
                    DPDK.mac()
                ))?;
            }
        }
        Ok(matrix)
    }

    /// And a QEMU guest, and a machine of our own monitor with a synthetic adapter.
    ///
    /// # Errors
    /// When the daemon refuses something or a guest does not boot.
    pub fn with_machine(tagging: Tagging) -> Result<Self> {
        let mut matrix = Self::new(Uplink::Xdp, tagging)?;
        let trunk = tagging == Tagging::Trunk;
        let tag = trunk.then_some(VLAN);
        let lab = &matrix.lab;
        let adapter = format!("net={NETWORK},mac={}", MACHINE.mac());
        lab.create_equipped_vm("machine", &[&adapter], "")?;
        let mut console = lab.start_vm("machine")?;
        let guest = lab.guest_station(NETWORK, "qemu", tag, GUEST)?;
        matrix.stations.push(guest);
        matrix.set_vlan("qemu", trunk)?;
        console.wait_ready(BOOT_LIMIT)?;
        let machine = Station::machine("machine", console, tag, MACHINE)?;
        matrix.stations.push(machine);
        matrix.set_vlan("machine.synthetic0", trunk)?;
        Ok(matrix)
    }

    fn set_vlan(&self, port: &str, trunk: bool) -> Result<()> {
        let vlan = match (self.tagging, trunk) {
            (Tagging::Untagged, _) => return Ok(()),
            (_, true) => format!("trunk:{VLAN}"),
            (_, false) => format!("access:{VLAN}"),
        };
        self.lab
            .ctl(&format!("port set {NETWORK} {port} --vlan {vlan}"))
            .map(drop)
    }

    /// Tries all pairs in all ways, and checks what the LAN, those who are no party to it, and the counters have seen.
    ///
    /// # Errors
    /// With a line for each way that failed.
    pub fn run(mut self) -> Result<()> {
        let mut failures = Vec::new();
        self.introduce()?;
        let captures = self.listen_for_strangers()?;
        for mtu in [1500, 9000] {
            for offloads in [true, false] {
                self.all_pairs(&Way { mtu, offloads }, &mut failures)?;
            }
        }
        for (name, capture) in captures {
            let seen = capture.finish()?.lines("")?;
            let lines = seen.iter().take(3);
            failures.extend(lines.map(|f| format!("{name} saw {} frames: {f}", seen.len())));
        }
        self.ping_dpdk(&mut failures)?;
        let stats = self.lab.daemon.stats()?;
        failures.extend(
            stats
                .wrong()
                .iter()
                .map(|port| format!("does not add up: {port:?}")),
        );
        ensure!(
            failures.is_empty(),
            "{:?} {:?}:\n{}",
            self.uplink,
            self.tagging,
            failures.join("\n")
        );
        Ok(())
    }

    /// Captures what comes to anybody in a namespace though it does not belong there: frames to the address of another,
    /// and to a bystander in another VLAN any frame at all.
    fn listen_for_strangers(&mut self) -> Result<Vec<(String, Capture)>> {
        let strange = if self.tagging == Tagging::Untagged {
            "not ether multicast"
        } else {
            ""
        };
        let bystander = Capture::start(&self.bystander, "eth0", "in", strange)?;
        let mut captures = vec![("the bystander".to_owned(), bystander)];
        for station in &mut self.stations {
            let strange = format!("not ether multicast and not ether dst {}", station.mac()?);
            let Some(netns) = station.netns() else {
                continue;
            };
            let nic = if station.address == HOST {
                HOST_NIC
            } else {
                "eth0"
            };
            let capture = Capture::start(netns, nic, "in", &strange)?;
            captures.push((station.name.clone(), capture));
        }
        Ok(captures)
    }

    /// Lets everybody speak once, so that every address is known and nothing needs to be flooded.
    fn introduce(&mut self) -> Result<()> {
        let addresses: Vec<Address> = self
            .stations
            .iter()
            .map(|station| station.address)
            .collect();
        for station in &mut self.stations {
            let own = station.address;
            for &to in addresses.iter().filter(|&&to| to != own) {
                station.ping(to, false, 56)?;
                station.ping(to, true, 56)?;
            }
        }
        if self.dpdk.is_some() {
            let first = self.stations.first_mut().context("no station")?;
            first
                .bytes(DPDK, false, Transport::Udp, 64)
                .context("DPDK does not send back")?;
        }
        Ok(())
    }

    fn all_pairs(&mut self, way: &Way, failures: &mut Vec<String>) -> Result<()> {
        for station in &mut self.stations {
            station.set_mtu(way.mtu)?;
            // The LAN's are off for good.
            if station.address != LAN {
                station.set_offloads(way.offloads)?;
            }
        }
        let on_the_wire = Capture::start(&self.lan, "eth0", "in", "")?;
        let addresses: Vec<Address> = self
            .stations
            .iter()
            .map(|station| station.address)
            .collect();
        let (guests, uplink) = (self.dpdk.is_some(), self.uplink);
        let machine = addresses.contains(&MACHINE);
        for (number, station) in self.stations.iter_mut().enumerate() {
            let from = station.address;
            for &to in addresses.iter().skip(number + 1).filter(|&&to| {
                if machine {
                    with_machine(from, to)
                } else {
                    wanted(guests, uplink, from, to)
                }
            }) {
                pair(station, to, way, failures);
            }
            if guests && wanted(guests, uplink, from, DPDK) {
                reflection(station, way, failures);
            }
            ensure!(
                failures.len() < ENOUGH,
                "too much fails:\n{}",
                failures.join("\n")
            );
        }
        failures.extend(wrong_on_the_wire(&on_the_wire.finish()?, way)?);
        Ok(())
    }

    fn ping_dpdk(&mut self, failures: &mut Vec<String>) -> Result<()> {
        let Some(dpdk) = &mut self.dpdk else {
            return Ok(());
        };
        // This mode answers every ARP request too, hence at the end.
        for line in ["stop", "set fwd icmpecho", "start"] {
            dpdk.order(line)?;
        }
        dpdk.wait_for("icmpecho packet forwarding")?;
        // It answers in the order it was told things: once it does, it forwards.
        dpdk.frames()?;
        for station in &mut self.stations {
            if let Err(error) = station.ping(DPDK, false, 56) {
                failures.push(format!("{} to dpdk, ICMP: {error:#}", station.name));
            }
        }
        Ok(())
    }
}

/// Whether the pair belongs to this matrix: the rules at the head of this file.
fn wanted(guests: bool, uplink: Uplink, from: Address, to: Address) -> bool {
    let guest = |address: Address| address.host >= GUEST.host;
    let lan = from == LAN || to == LAN;
    !guests || ((guest(from) || guest(to)) && (uplink == Uplink::Xdp || lan))
}

/// Whether the machine is one of them.
fn with_machine(from: Address, to: Address) -> bool {
    from == MACHINE || to == MACHINE
}

fn pair(from: &mut Station, to: Address, way: &Way, failures: &mut Vec<String>) {
    let (stream, datagram) = if with_machine(from.address, to) {
        (SLOW_STREAM, SLOW_DATAGRAM)
    } else {
        (STREAM, DATAGRAM)
    };
    for v6 in [false, true] {
        let payload = way.mtu - if v6 { 48 } else { 28 };
        let results = [
            ("ICMP", from.ping(to, v6, payload)),
            ("TCP", from.bytes(to, v6, Transport::Tcp, stream).map(drop)),
            (
                "UDP",
                from.bytes(to, v6, Transport::Udp, datagram).map(drop),
            ),
        ];
        for (what, result) in results {
            if let Err(error) = result {
                failures.push(format!(
                    "{} to {}, {what}, {way}: {error:#}",
                    from.name,
                    to.ip(v6)
                ));
            }
        }
    }
}

fn reflection(from: &mut Station, way: &Way, failures: &mut Vec<String>) {
    for v6 in [false, true] {
        let longest = way.mtu as usize - if v6 { 48 } else { 28 };
        if let Err(error) = from.bytes(DPDK, v6, Transport::Udp, longest) {
            failures.push(format!(
                "{} to dpdk, UDP, IPv6 {v6}, {way}: {error:#}",
                from.name
            ));
        }
    }
}

/// Frames that may not be on a wire: with a wrong checksum, or longer than its MTU.
fn wrong_on_the_wire(frames: &Frames, way: &Way) -> Result<Vec<String>> {
    let longest = way.mtu + 18;
    let mut wrong = frames.bad_checksums()?;
    wrong.extend(frames.lines(&format!("frame.len > {longest}"))?);
    let none = frames.count("ip || ipv6")? == 0;
    let lines = wrong
        .iter()
        .take(3)
        .map(|frame| format!("{} wrong frames on the wire, {way}: {frame}", wrong.len()));
    Ok(lines
        .chain(none.then(|| format!("nothing on the wire, {way}")))
        .collect())
}

//! What a user sets at Linux's own `hv_netvsc` while it sends and receives: offloads, MTU, VLANs and promiscuous mode.
//! One guest for all of it, as some start slowly.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Capture, Lab, Station, cmd,
    station::{Address, Transport},
    vm::{Console, Netboot, netboot::noise, ours::repeat},
};

const fn at(host: u8) -> Address {
    Address { net: 76, host }
}
const HOST: Address = at(1);
const GUEST: Address = at(2);
/// Where the guest is on its VLAN, and a peer there.
const TAGGED_GUEST: Address = Address { net: 77, host: 2 };
const TAGGED_PEER: Address = Address { net: 77, host: 1 };
const GIVE_V6: &str =
    "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip addr replace fd00:76::2/64 dev eth0";
/// Nobody has it.
const STRANGER: Address = at(77);
/// Bytes of a transfer.
const LEN: usize = 30_000;
/// Of TCP in a frame of 1514 bytes, with time stamps.
const SEGMENT: usize = 1448;
/// How long the driver may take for what it does by and by.
const SOON: Duration = Duration::from_secs(20);

/// A guest with one synthetic adapter, with programs, servers and a file.
struct Guest {
    web: Netboot,
    hash: String,
    host: Station,
    console: Console,
    lab: Lab,
}

/// What was seen of frames that the guest sent by IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    /// Some were longer than its MTU.
    uncut: bool,
    /// The checksum of some was left to others.
    partial: bool,
}

impl Guest {
    fn start() -> Result<Self> {
        let lab = Lab::start()?;
        lab.ctl("network create inner --type internal --mtu 9000")?;
        let (host, mut console) = lab.ready_guest(Lab::create_equipped_vm, HOST, GUEST)?;
        let web = Netboot::start(&lab.host, "vsw-inner", HOST)?;
        let hash = web.offer("file", &noise(LEN))?;
        console.run("httpd -p 80 -h /tmp")?;
        console.run(GIVE_V6)?;
        Ok(Self {
            web,
            hash,
            host,
            console,
            lab,
        })
    }

    fn fetch(&self) -> String {
        format!("wget -q -O /tmp/file {}", self.web.url("file"))
    }

    /// The guest has the file unharmed.
    fn has_file(&mut self) -> Result<()> {
        let said = self.console.run("sha256sum /tmp/file")?;
        ensure!(said.starts_with(&self.hash), "the guest has {said}");
        Ok(())
    }

    /// The file comes to the guest by IPv4.
    fn get(&mut self) -> Result<()> {
        let fetch = self.fetch();
        self.console.run(&fetch)?;
        self.has_file()
    }

    /// It goes to the host and back by IPv6.
    fn echo(&mut self) -> Result<()> {
        let echo = format!("nc {} 7000 </tmp/file | sha256sum", HOST.ip(true));
        let said = self.console.run(&echo)?;
        ensure!(said.starts_with(&self.hash), "`{echo}` gave {said}");
        Ok(())
    }

    /// The host gets it by IPv4 and by IPv6.
    fn serve(&mut self) -> Result<()> {
        for url in [
            format!("http://{}/file", GUEST.ip(false)),
            format!("http://[{}]/file", GUEST.ip(true)),
        ] {
            let get = format!("busybox wget -q -O - {url} | sha256sum");
            let said = self.host.run(&get)?;
            ensure!(said.starts_with(&self.hash), "`{get}` gave {said}");
        }
        Ok(())
    }

    fn transfers(&mut self) -> Result<()> {
        self.get()?;
        self.echo()?;
        self.serve()
    }

    /// What the guest sends by IPv4 and IPv6.
    fn sends(&mut self) -> Result<[Seen; 2]> {
        let capture = Capture::start(&self.lab.host, "vsw-inner", "in", "tcp src port 80")?;
        self.serve()?;
        let frames = capture.finish()?;
        let seen = |family: &str| -> Result<Seen> {
            let some = |what: &str| Ok::<_, anyhow::Error>(frames.count(what)? > 0);
            Ok(Seen {
                uncut: some(&format!("{family} && frame.len > 1514"))?,
                partial: some(&format!("{family} && tcp.checksum.status == \"Bad\""))?,
            })
        };
        Ok([seen("ip")?, seen("ipv6")?])
    }

    /// Packets that the adapter receives meanwhile.
    fn received(&mut self, by: fn(&mut Self) -> Result<()>) -> Result<usize> {
        let before = self.counter("rx_packets")?;
        by(self)?;
        Ok(self.counter("rx_packets")? - before)
    }

    fn set(&mut self, features: &str) -> Result<()> {
        self.console
            .run(&format!("ethtool -K eth0 {features}"))
            .map(drop)
    }

    /// A counter of the interface. To start `ethtool -S` takes a slow guest seconds.
    fn counter(&mut self, name: &str) -> Result<usize> {
        let read = format!("read -r count </sys/class/net/eth0/statistics/{name}; echo $count");
        let said = self.console.run(&read)?;
        said.trim().parse().context("a counter")
    }
}

/// What `ethtool` says of `key`.
fn value<'a>(said: &'a str, key: &str) -> Result<&'a str> {
    let of_key = |line: &'a str| {
        let (name, value) = line.trim().split_once(':')?;
        (name == key).then(|| value.trim())
    };
    let found = said.lines().find_map(of_key);
    found.with_context(|| format!("ethtool says nothing of {key}: {said}"))
}

#[test]
fn what_a_user_sets_takes_effect_under_traffic() -> Result<()> {
    let mut guest = Guest::start()?;
    type Case = fn(&mut Guest) -> Result<()>;
    let cases: [(&str, Case); 7] = [
        ("what ethtool says", ethtool_makes_sense),
        ("offloads of transmit", transmit_offloads),
        ("checksums of receive", receive_checksums),
        ("coalescing", coalescing),
        ("MTU", mtu_changes),
        ("VLAN", vlan_interface),
        ("promiscuous mode", promiscuous_mode),
    ];
    let mut failures = Vec::new();
    for (name, case) in cases {
        let start = std::time::Instant::now();
        let result = case(&mut guest);
        println!("{name}: {:?} after {:?}", result, start.elapsed());
        failures.extend(result.err().map(|error| format!("{name}: {error:#}")));
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    guest.lab.counters_add_up()
}

fn ethtool_makes_sense(guest: &mut Guest) -> Result<()> {
    let mut expect = |command: &str, facts: &[(&str, &str)]| -> Result<()> {
        let said = guest.console.run(&format!("ethtool {command} eth0"))?;
        for (key, wanted) in facts {
            let is = value(&said, key)?;
            ensure!(is == *wanted, "ethtool {command}: {key} is {is}");
        }
        Ok(())
    };
    expect("", &[("Speed", "10000Mb/s"), ("Duplex", "Full")])?;
    let features = [
        "rx-checksumming",
        "tx-checksum-ipv4",
        "tx-checksum-ipv6",
        "scatter-gather",
        "tx-tcp-segmentation",
        "tx-tcp6-segmentation",
    ];
    expect("-k", &features.map(|feature| (feature, "on")))?;
    // As many sections as fit its buffers.
    let rings = guest.console.run("ethtool -g eth0")?;
    for key in ["RX", "TX"] {
        let sections: u32 = value(&rings, key)?.parse().context("sections")?;
        ensure!(sections > 100, "{rings}");
    }
    // There is nothing to be set there, and the driver says so.
    let (status, said) = guest.console.output("ethtool -c eth0")?;
    ensure!(status != 0 && said.contains("not supported"), "{said}");
    guest.transfers()?;
    let said = guest.console.run("ethtool -S eth0")?;
    for (counter, some) in [
        ("tx_no_memory", false),
        ("tx_too_big", false),
        ("rx_no_memory", false),
        ("tx_queue_0_packets", true),
        ("rx_queue_0_packets", true),
    ] {
        let counted: u64 = value(&said, counter)?.parse().context("a counter")?;
        let right = if some { counted > 10 } else { counted == 0 };
        ensure!(right, "{counter} is {counted}");
    }
    Ok(())
}

fn transmit_offloads(guest: &mut Guest) -> Result<()> {
    // What is set, and whether frames are left to be cut and sums to be filled in by others.
    for (features, uncut, partial) in [
        ("tx on sg on tso on gso on", [true; 2], [true; 2]),
        ("tx-tcp-segmentation off", [false, true], [true; 2]),
        (
            "tx-tcp6-segmentation off tx-checksum-ipv4 off",
            [false; 2],
            [false, true],
        ),
        ("tx-checksum-ipv6 off", [false; 2], [false; 2]),
        ("tx on tso on", [true; 2], [true; 2]),
    ] {
        guest.set(features)?;
        let seen = guest.sends()?;
        ensure!(
            seen.map(|seen| seen.uncut) == uncut && seen.map(|seen| seen.partial) == partial,
            "with {features}: {seen:?}"
        );
    }
    Ok(())
}

fn receive_checksums(guest: &mut Guest) -> Result<()> {
    // Large frames come whole, and Linux looks at their sums itself.
    guest.set("rx off lro on")?;
    guest.transfers()?;
    // The last column of TCP's counters.
    let wrong = guest
        .console
        .run("grep '^Tcp: [0-9]' /proc/net/snmp | sed 's/.* //'")?;
    ensure!(wrong.trim() == "0", "{wrong} wrong sums");
    guest.set("rx on")
}

fn coalescing(guest: &mut Guest) -> Result<()> {
    let segments = LEN / SEGMENT;
    let mut counts = Vec::new();
    // It is on to begin with.
    for features in ["lro off", "lro on"] {
        guest.set(features)?;
        counts.push([guest.received(Guest::get)?, guest.received(Guest::echo)?]);
    }
    let joined = |family: usize| {
        let count = |at: usize| counts.get(at).and_then(|both| both.get(family)).copied();
        let (apart, joined) = (count(0)?, count(1)?);
        // How many segments come together is up to their sender.
        Some(apart > segments && 10 * joined < 9 * apart)
    };
    ensure!(
        joined(0) == Some(true) && joined(1) == Some(true),
        "packets received by IPv4 and IPv6 without coalescing, and with it: {counts:?}"
    );
    Ok(())
}

fn mtu_changes(guest: &mut Guest) -> Result<()> {
    // What is on its way to the guest when its MTU shrinks comes in frames too long for it, and nobody tells their sender:
    // this has it try shorter ones after some time without an answer.
    guest.lab.host.sysctl("ipv4/tcp_mtu_probing", "1")?;
    let fetch = guest.fetch();
    for (mtu, payload) in [(9000, 8972), (1500, 1472)].repeat(repeat(1) as usize) {
        guest
            .console
            .run(&format!("rm /tmp/file; {fetch} & fetching=$!"))?;
        guest.console.run(&format!("ifconfig eth0 mtu {mtu}"))?;
        guest.console.run("wait $fetching")?;
        guest.has_file()?;
        guest.host.ping(GUEST, false, payload)?;
    }
    Ok(())
}

fn vlan_interface(guest: &mut Guest) -> Result<()> {
    let mut peer = guest
        .lab
        .tap_station("inner", "tagged", None, TAGGED_PEER)?;
    // Frames too long for the guest are dropped.
    peer.set_mtu(1500)?;
    guest.lab.ctl("port set inner tagged --vlan access:10")?;
    guest
        .lab
        .ctl("port set inner guest.synthetic0 --vlan trunk:10")?;
    let ip = TAGGED_GUEST.ip(false);
    for command in [
        "vconfig add eth0 10".to_owned(),
        format!("ifconfig eth0.10 {ip} netmask 255.255.255.0 up"),
        "vswitch-traffic serve 7000 >/dev/null 2>&1 & serving=$!".to_owned(),
    ] {
        guest.console.run(&command)?;
    }
    guest.console.ping(TAGGED_PEER)?;
    peer.ping(TAGGED_GUEST, false, 1472)?;
    let capture = Capture::start(
        peer.netns().context("a peer without a namespace")?,
        "eth0",
        "inout",
        "vlan",
    )?;
    peer.bytes(TAGGED_GUEST, false, Transport::Tcp, LEN)?;
    peer.bytes(TAGGED_GUEST, false, Transport::Udp, 4000)?;
    let tagged = capture.finish()?.count("")?;
    ensure!(tagged == 0, "{tagged} frames on an access port have a tag");
    ensure!(
        !guest.host.reaches(GUEST),
        "a trunk lets untagged frames in"
    );
    for command in ["kill $serving", "vconfig rem eth0.10"] {
        guest.console.run(command)?;
    }
    guest
        .lab
        .ctl("port set inner guest.synthetic0 --vlan none")?;
    guest.console.ping(HOST)
}

fn promiscuous_mode(guest: &mut Guest) -> Result<()> {
    let (ip, mac) = (STRANGER.ip(false), STRANGER.mac());
    guest
        .lab
        .host
        .ip(&format!("neigh add {ip} lladdr {mac} dev vsw-inner"))?;
    guest
        .console
        .run("vswitch-guest sniff 1000000 3600 >>/tmp/seen & sniffer=$!")?;
    sees_strangers(guest, false)?;
    for _ in 0..repeat(1) {
        guest.console.run("ifconfig eth0 promisc")?;
        sees_strangers(guest, true)?;
        guest.console.run("ifconfig eth0 -promisc")?;
        sees_strangers(guest, false)?;
    }
    guest
        .console
        .run("kill $sniffer; wait $sniffer; true")
        .map(drop)
}

/// Waits until a packet socket in the guest sees frames for nobody's address, or none; the driver sets its filter later
/// than it is told to.
fn sees_strangers(guest: &mut Guest, wanted: bool) -> Result<()> {
    let (ip, mac) = (STRANGER.ip(false), STRANGER.mac());
    let what = format!("the guest to see strangers' frames: {wanted}");
    cmd::wait_until(&what, SOON, || {
        guest.console.run("truncate -s 0 /tmp/seen")?;
        // Nobody answers, and nobody knows where it is: everybody is sent what is for it.
        let argv = ["ping", "-n", "-q", "-c", "3", "-i", "0.1", "-W", "0.1", &ip];
        let _ = guest.lab.host.run(&argv);
        // It comes after these.
        guest.host.ping(GUEST, false, 56)?;
        let seen = guest
            .console
            .output(&format!("grep -q '^{mac}' /tmp/seen"))?;
        Ok((seen.0 == 0) == wanted)
    })
}

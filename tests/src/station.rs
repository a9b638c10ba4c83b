//! A place that traffic starts from and ends at: a namespace's interface, or a guest's.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};

use crate::{
    Background, Netns, QemuGuest, cmd,
    guest::{Attachment, GuestConfig},
    paths,
    vm::Console,
};

/// The port that `vswitch-traffic serve` listens on.
const TRAFFIC_PORT: u16 = 7000;

#[derive(Debug)]
enum Place {
    Inside(Arc<Netns>),
    Guest(Box<QemuGuest>),
    Machine(Box<Console>),
}

/// The number of a station in its network, from which its addresses follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The network: 10.NET.0.0/24 and fd00:NET::/64.
    pub net: u8,
    /// The station in it.
    pub host: u8,
}

impl Address {
    /// The address without prefix length.
    #[must_use]
    pub fn ip(self, v6: bool) -> String {
        let Self { net, host } = self;
        if v6 {
            format!("fd00:{net}::{host}")
        } else {
            format!("10.{net}.0.{host}")
        }
    }

    /// Both addresses with prefix length.
    #[must_use]
    pub fn both(self) -> [String; 2] {
        [
            format!("{}/24", self.ip(false)),
            format!("{}/64", self.ip(true)),
        ]
    }

    /// A locally administered MAC address.
    #[must_use]
    pub fn mac(self) -> String {
        format!("02:00:00:00:{:02x}:{:02x}", self.net, self.host)
    }
}

/// A transport whose bytes are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One stream there and back.
    Tcp,
    /// Datagrams there and back.
    Udp,
}

/// A station with its addresses.
#[derive(Debug)]
pub struct Station {
    // The place ends before its namespace.
    place: Place,
    netns: Option<Arc<Netns>>,
    ifname: String,
    tag: Option<u16>,
    /// Its addresses.
    pub address: Address,
    /// Its name in messages.
    pub name: String,
    _server: Option<Background>,
}

impl Station {
    /// A station on interface `ifname` of `netns`, which is brought up and given its addresses. With a `tag` it is a
    /// guest that is bridged to the interface and tags by itself, for not every host kernel knows VLAN interfaces.
    /// It answers to [`Station::bytes`] from now on.
    ///
    /// # Errors
    /// When the interface is missing, or the guest does not boot.
    pub fn inside(
        name: &str,
        netns: &Arc<Netns>,
        ifname: &str,
        tag: Option<u16>,
        address: Address,
    ) -> Result<Self> {
        if tag.is_some() {
            let guest = bridged_guest(netns, ifname, address)?;
            let mut station = Self::guest(name, guest, tag, address)?;
            station.netns = Some(Arc::clone(netns));
            return Ok(station);
        }
        let mut station = Self {
            place: Place::Inside(Arc::clone(netns)),
            netns: Some(Arc::clone(netns)),
            ifname: ifname.to_owned(),
            tag,
            address,
            name: name.to_owned(),
            _server: None,
        };
        station.configure()?;
        let program = paths::program("vswitch-traffic")?.display().to_string();
        station._server = Some(netns.spawn(&[&program, "serve", &TRAFFIC_PORT.to_string()])?);
        Ok(station)
    }

    /// A guest, whose eth0 is given its addresses. It answers to [`Station::bytes`] from now on.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn guest(name: &str, guest: QemuGuest, tag: Option<u16>, address: Address) -> Result<Self> {
        Self::elsewhere(name, Place::Guest(Box::new(guest)), tag, address)
    }

    /// A machine of our own monitor with [`vswitch-traffic`](crate::vm::image::VmImage::equipped_initrd), as
    /// [`Station::guest`].
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn machine(
        name: &str,
        console: Console,
        tag: Option<u16>,
        address: Address,
    ) -> Result<Self> {
        Self::elsewhere(name, Place::Machine(Box::new(console)), tag, address)
    }

    fn elsewhere(name: &str, place: Place, tag: Option<u16>, address: Address) -> Result<Self> {
        let mut station = Self {
            place,
            netns: None,
            ifname: "eth0".into(),
            tag,
            address,
            name: name.to_owned(),
            _server: None,
        };
        station.configure()?;
        station.run(&format!(
            "vswitch-traffic serve {TRAFFIC_PORT} >/dev/null 2>&1 &"
        ))?;
        cmd::wait_until("the guest to listen", Duration::from_secs(20), || {
            Ok(station
                .run(&format!("grep -q ':{TRAFFIC_PORT:04X} ' /proc/net/tcp6"))
                .is_ok())
        })?;
        Ok(station)
    }

    fn configure(&mut self) -> Result<()> {
        let (ifname, upper) = (self.ifname.clone(), self.interface());
        self.run(&format!("ip link set {ifname} up"))?;
        if let Some(tag) = self.tag {
            self.run(&format!(
                "ip link add link {ifname} name {upper} type vlan id {tag}"
            ))?;
            self.run(&format!("ip link set {upper} up"))?;
        }
        for address in self.address.both() {
            self.run(&format!("ip addr replace {address} dev {upper}"))?;
        }
        Ok(())
    }

    /// The interface that has the addresses.
    #[must_use]
    pub fn interface(&self) -> String {
        match self.tag {
            Some(tag) => format!("{}.{tag}", self.ifname),
            None => self.ifname.clone(),
        }
    }

    /// The namespace it is in, or bridged to; none for a guest on a port of its own.
    #[must_use]
    pub fn netns(&self) -> Option<&Arc<Netns>> {
        self.netns.as_ref()
    }

    /// The MAC address of its interface.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn mac(&mut self) -> Result<String> {
        let address = self.run(&format!("cat /sys/class/net/{}/address", self.ifname))?;
        Ok(address.trim().to_owned())
    }

    /// Runs a shell command there and returns what it printed.
    ///
    /// # Errors
    /// When it does not end with status 0.
    pub fn run(&mut self, command: &str) -> Result<String> {
        let result = match &mut self.place {
            Place::Guest(guest) => guest.run(command),
            Place::Machine(console) => console.run(command),
            Place::Inside(netns) => {
                let traffic = paths::program("vswitch-traffic")?;
                let bin = traffic
                    .parent()
                    .context("a program without a folder")?
                    .display();
                netns.run(&["sh", "-c", &format!("PATH=$PATH:{bin}; {command}")])
            }
        };
        result.with_context(|| format!("at {}", self.name))
    }

    /// Sets the MTU of the interface, in bytes of IP.
    ///
    /// # Errors
    /// When the interface refuses.
    pub fn set_mtu(&mut self, mtu: u32) -> Result<()> {
        let (lower, upper) = (self.ifname.clone(), self.interface());
        // Down from above, up from below: an upper interface may not be longer than the lower one.
        self.run(&format!(
            "ip link set {lower} mtu {mtu} && ip link set {upper} mtu {mtu}"
        ))
        .map(drop)
    }

    /// Switches checksum and segmentation offloads of the sending side on or off.
    ///
    /// # Errors
    /// When the interface refuses.
    pub fn set_offloads(&mut self, on: bool) -> Result<()> {
        let (ifname, word) = (self.ifname.clone(), if on { "on" } else { "off" });
        self.run(&format!(
            "ethtool -K {ifname} tx {word} sg {word} tso {word} gso {word}"
        ))
        .map(drop)
    }

    /// Pings `to` with `payload` bytes.
    ///
    /// # Errors
    /// When an answer is missing.
    pub fn ping(&mut self, to: Address, v6: bool, payload: u32) -> Result<()> {
        let ip = to.ip(v6);
        // One at a time: once it had an answer, ping waits for the next ones for two round trips only.
        let family = if v6 { 6 } else { 4 };
        let said = self.run(&format!("ping -{family} -c 1 -W 3 -s {payload} {ip}"))?;
        anyhow::ensure!(
            said.contains(" 0% packet loss"),
            "{}: an answer of {ip} is missing: {said}",
            self.name
        );
        Ok(())
    }

    /// Whether `to` answers one ping within a second.
    pub fn reaches(&mut self, to: Address) -> bool {
        // A neighbour that was asked for in vain is asked for again a second later only, which would be too late.
        let ip = to.ip(false);
        self.run(&format!("ip neigh flush to {ip}; ping -c 1 -W 1 {ip}"))
            .is_ok()
    }

    /// Sends `bytes` bytes to `to` and back again and compares their SHA-256; returns the hash.
    ///
    /// # Errors
    /// When they are not the same or do not come.
    pub fn bytes(
        &mut self,
        to: Address,
        v6: bool,
        transport: Transport,
        bytes: usize,
    ) -> Result<String> {
        let kind = match transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        self.run(&format!(
            "vswitch-traffic {kind} {} {TRAFFIC_PORT} {bytes}",
            to.ip(v6)
        ))
    }
}

/// A guest on a TAP device that is bridged with `ifname`. Where that is a virtual cable, the guest fills in its
/// checksums and cuts its segments by itself, for nobody else would.
fn bridged_guest(netns: &Arc<Netns>, ifname: &str, address: Address) -> Result<QemuGuest> {
    netns.ip("link add name br0 type bridge")?;
    netns.run(&[
        "sh",
        "-c",
        "echo 1 >/proc/sys/net/ipv6/conf/br0/disable_ipv6",
    ])?;
    netns.ip("tuntap add dev tag0 mode tap")?;
    for port in [ifname, "tag0"] {
        netns.ip(&format!("link set {port} mtu 9000 master br0 up"))?;
    }
    netns.ip("link set br0 up")?;
    let cable = netns
        .ip(&format!("-d link show dev {ifname}"))?
        .contains("veth");
    let off = [
        "csum=off",
        "gso=off",
        "host_tso4=off",
        "host_tso6=off",
        "host_ecn=off",
        "host_ufo=off",
    ];
    let device = if cable {
        off.map(str::to_owned).into()
    } else {
        Vec::new()
    };
    let config = GuestConfig {
        attachment: Attachment::Tap("tag0".into()),
        mac: address.mac(),
        addresses: Vec::new(),
        device,
    };
    QemuGuest::boot(netns, &config)
}

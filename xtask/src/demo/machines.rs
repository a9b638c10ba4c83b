//! Virtual machines of our own in the demonstration, with legacy and with synthetic adapters, on one network with a QEMU
//! guest and the host. Two of them boot from the network.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result};
use vswitch_tests::{
    Lab, Netns, Station,
    station::Address,
    vm::{
        Console, Netboot, image,
        netboot::noise,
        ours::{BOOT_LIMIT, NETWORK_BOOT_LIMIT, ip_parameter},
    },
};

use super::{OFFICE, PRIVATE, report::Attempt};
use crate::say::say;

/// The network that all are on. Another one has the same addresses.
const NETWORK: &str = "vms";
const fn at(host: u8) -> Address {
    Address { net: PRIVATE, host }
}
/// Who is on it, and where.
const EVERYBODY: [(&str, Address); 5] = [
    ("first", at(21)),
    ("second", at(22)),
    ("third", at(23)),
    ("qemu", at(24)),
    ("host@vms", at(25)),
];
/// On another network.
const ELSEWHERE: [(&str, Address, bool); 2] = [
    (
        "host@office",
        Address {
            net: OFFICE,
            host: 1,
        },
        true,
    ),
    ("alice", at(1), false),
];
const FILE_LEN: usize = 1 << 20;
/// Of it goes from machine to machine.
const PART_LEN: usize = 256 << 10;

/// What a machine that boots from the network says, one after the other, and what that means.
const BY_LEGACY: [(&str, &str); 5] = [
    ("SeaBIOS", "firmware runs"),
    (
        "iPXE initialising",
        "firmware has started iPXE out of the adapter's boot ROM",
    ),
    FOUND,
    KERNEL,
    INITRD,
];
const BY_SYNTHETIC: [(&str, &str); 5] = [
    ("SeaBIOS", "firmware runs"),
    (
        "using netvsc",
        "iPXE drives its synthetic adapter, the only kind it has",
    ),
    FOUND,
    KERNEL,
    INITRD,
];
const FOUND: (&str, &str) = (
    "boot.ipxe...",
    "DHCP has given an address; a script comes by TFTP",
);
const KERNEL: (&str, &str) = ("/linux...", "a Linux kernel comes by HTTP");
const INITRD: (&str, &str) = ("/initrd...", "and its initial file system; then it starts");

/// Machines that are booting, and who is on their network besides.
pub(super) struct Machines {
    servers: Netboot,
    hash: String,
    first: Console,
    second: Console,
    third: Console,
    guest: Station,
    host: Station,
    started: Instant,
}

/// What the machines did.
#[derive(Default)]
pub(super) struct Played {
    pub(super) attempts: Vec<Attempt>,
    deeds: Vec<(&'static str, bool)>,
}

impl Played {
    pub(super) fn is_done(&self) -> bool {
        self.deeds.iter().all(|(_, good)| *good)
    }

    pub(super) fn report(&self) {
        say!("\nvirtual machines of our own");
        for (what, good) in &self.deeds {
            say!("{:6} {what}", if *good { "done" } else { "FAILED" });
        }
    }
}

impl Machines {
    /// Creates and starts them. `lan` is the namespace behind the uplink of network `office`.
    pub(super) fn start(lab: &Lab, lan: &Arc<Netns>) -> Result<Self> {
        let address = Address {
            net: OFFICE,
            host: 3,
        };
        let servers = Netboot::start(lan, "eth0", address)?;
        let hash = servers.offer_guest(image::shared()?, &noise(FILE_LEN))?;
        lab.ctl(&format!("network create {NETWORK} --type internal"))?;
        let own = format!("net={NETWORK}");
        lab.create_network_vm("first", &["net=office", &own])?;
        let ip = ip_parameter(&address_of("second")?.ip(false), "eth0");
        lab.create_vm("second", &[&own], &ip)?;
        lab.create_ipxe_vm("third", &["net=office", &own])?;
        let started = Instant::now();
        let (first, second) = (lab.start_vm("first")?, lab.start_vm("second")?);
        let third = lab.start_vm("third")?;
        let guest = lab.guest_station(NETWORK, "qemu", None, address_of("qemu")?)?;
        Ok(Self {
            first,
            second,
            third,
            guest,
            host: lab.host_station(NETWORK, address_of("host@vms")?)?,
            servers,
            hash,
            started,
        })
    }

    /// Waits until all are up and has them do what they must.
    pub(super) fn play(&mut self, lab: &Lab) -> Result<Played> {
        self.wait()?;
        for name in ["first", "third"] {
            let ip = address_of(name)?.ip(false);
            self.runs(
                name,
                &format!("ifconfig eth1 {ip} netmask 255.255.255.0 up"),
            )?;
        }
        let mut played = Played::default();
        self.boots(&mut played)?;
        self.files(&mut played)?;
        for (from, own) in EVERYBODY {
            let others = EVERYBODY.into_iter().filter(|(_, to)| *to != own);
            for (to, address) in others {
                let did = self.reaches(from, address)?;
                played.attempts.push(Attempt {
                    from,
                    to,
                    must: true,
                    did,
                });
            }
        }
        for (to, address, must) in ELSEWHERE {
            let did = self.reaches("third", address)?;
            played.attempts.push(Attempt {
                from: "third",
                to,
                must,
                did,
            });
        }
        for name in ["first", "second", "third"] {
            let (exits, sum) = lab.vm_exits(name)?;
            let kinds: Vec<String> = exits
                .iter()
                .map(|(kind, count)| format!("{kind} {count}"))
                .collect();
            say!("  {name} left guest code {sum} times: {}", kinds.join(", "));
        }
        Ok(played)
    }

    /// What those did that booted from the network.
    fn boots(&mut self, played: &mut Played) -> Result<()> {
        let url = self.servers.url("file");
        let fetch = format!(
            "wget -q -O /tmp/file {url} && sha256sum /tmp/file | grep -q {}",
            self.hash
        );
        let driver = |name| {
            format!("[ $(basename $(readlink /sys/class/net/eth0/device/driver)) = {name} ]")
        };
        for (name, what, command) in [
            (
                "first",
                "first: firmware, iPXE, DHCP, TFTP, HTTP, then Linux with its driver `tulip`",
                driver("tulip"),
            ),
            (
                "third",
                "third: firmware, iPXE with its driver `netvsc`, DHCP, TFTP, HTTP, then Linux with `hv_netvsc`",
                driver("hv_netvsc"),
            ),
            (
                "first",
                "first: a file of 1 MiB from the LAN by HTTP, and its SHA-256 is right",
                fetch.clone(),
            ),
            (
                "third",
                "third: a file of 1 MiB from the LAN by HTTP, and its SHA-256 is right",
                fetch,
            ),
        ] {
            played.deeds.push((what, self.runs(name, &command)?));
        }
        Ok(())
    }

    /// What goes from machine to machine, in both directions of each kind.
    fn files(&mut self, played: &mut Played) -> Result<()> {
        let hash = self.servers.offer("part", &noise(PART_LEN))?;
        for name in ["first", "third"] {
            let serve = format!("head -c {PART_LEN} /tmp/file >/tmp/part && httpd -p 80 -h /tmp");
            self.runs(name, &serve)?;
        }
        for (what, to, from) in [
            (
                "second gets 256 KiB from third, and their SHA-256 is right",
                "second",
                "third",
            ),
            ("third gets them from first", "third", "first"),
            ("qemu gets them from third", "qemu", "third"),
            ("host@vms gets them from third", "host@vms", "third"),
        ] {
            let url = format!("http://{}/part", address_of(from)?.ip(false));
            let command = format!("busybox wget -q -O - {url} | sha256sum | grep -q {hash}");
            played.deeds.push((what, self.runs(to, &command)?));
        }
        for (what, to) in [
            ("third sends them to qemu and gets them back", "qemu"),
            (
                "third sends them to host@vms and gets them back",
                "host@vms",
            ),
        ] {
            let ip = address_of(to)?.ip(false);
            let command = format!("nc {ip} 7000 </tmp/part | sha256sum | grep -q {hash}");
            played.deeds.push((what, self.runs("third", &command)?));
        }
        Ok(())
    }

    fn reaches(&mut self, from: &str, to: Address) -> Result<bool> {
        let ping = format!("ping -c 1 -W 5 {}", to.ip(false));
        self.runs(from, &ping)
    }

    /// Runs a command; whether it ended well.
    fn runs(&mut self, name: &str, command: &str) -> Result<bool> {
        let console = match name {
            "first" => &mut self.first,
            "second" => &mut self.second,
            "third" => &mut self.third,
            "qemu" => return Ok(self.guest.run(command).is_ok()),
            _ => return Ok(self.host.run(command).is_ok()),
        };
        Ok(console.output(command)?.0 == 0)
    }

    /// Waits until all take commands, and tells how far they are.
    fn wait(&mut self) -> Result<()> {
        let started = self.started;
        let tell = |what: &str| say!("  {:3} s: {what}", started.elapsed().as_secs());
        let servers = &self.servers;
        let asked = || format!("dnsmasq said: {}", servers.log());
        for (first, third) in BY_LEGACY.into_iter().zip(BY_SYNTHETIC) {
            for (name, console, (text, what)) in [
                ("first", &mut self.first, first),
                ("third", &mut self.third, third),
            ] {
                let said = console.wait_for(text, NETWORK_BOOT_LIMIT);
                said.with_context(asked)?;
                tell(&format!("{name}: {what}"));
            }
        }
        self.second.wait_ready(BOOT_LIMIT)?;
        tell("second: Linux is up");
        for (name, console) in [("first", &mut self.first), ("third", &mut self.third)] {
            let ready = console.wait_ready(NETWORK_BOOT_LIMIT);
            ready.with_context(asked)?;
            tell(&format!("{name}: Linux is up"));
        }
        Ok(())
    }
}

fn address_of(name: &str) -> Result<Address> {
    let found = EVERYBODY.into_iter().find(|(other, _)| *other == name);
    Ok(found.with_context(|| format!("nobody is {name}"))?.1)
}

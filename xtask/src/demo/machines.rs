//! Virtual machines of our own in the demonstration: one boots from the network, a second one reaches it.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result};
use vswitch_tests::{
    Lab, Netns,
    station::Address,
    vm::{
        Console, Netboot, image,
        netboot::noise,
        ours::{BOOT_LIMIT, NETWORK_BOOT_LIMIT, ip_parameter},
    },
};

use super::{OFFICE, PRIVATE, report::Attempt};
use crate::say::say;

/// The network that both are on.
const NETWORK: &str = "vms";
const FIRST: Address = Address {
    net: PRIVATE,
    host: 21,
};
const SECOND: Address = Address {
    net: PRIVATE,
    host: 22,
};
const FILE_LEN: usize = 1 << 20;

/// What a machine that boots from the network says, one after the other, and what that means.
const MILESTONES: [(&str, &str); 5] = [
    ("SeaBIOS", "firmware runs"),
    (
        "iPXE initialising",
        "firmware has started iPXE out of the adapter's boot ROM",
    ),
    (
        "boot.ipxe...",
        "DHCP has given an address; a script comes by TFTP",
    ),
    ("/linux...", "a Linux kernel comes by HTTP"),
    ("/initrd...", "and its initial file system; then it starts"),
];
/// The same for what machines ping, and whether that must succeed.
const PINGS: [(&str, &str, Address, bool); 4] = [
    (
        "first",
        "host@office",
        Address {
            net: OFFICE,
            host: 1,
        },
        true,
    ),
    ("first", "second", SECOND, true),
    ("second", "first", FIRST, true),
    // On another network with the same addresses.
    (
        "second",
        "alice",
        Address {
            net: PRIVATE,
            host: 1,
        },
        false,
    ),
];

/// Two machines that are booting.
pub(super) struct Machines {
    servers: Netboot,
    hash: String,
    first: Console,
    second: Console,
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
        lab.ctl(&format!("network create {NETWORK} --type private"))?;
        let own = format!("net={NETWORK}");
        lab.create_network_vm("first", &["net=office", &own])?;
        let ip = ip_parameter(&SECOND.ip(false), "eth0");
        lab.create_vm("second", &[&own], &ip)?;
        let started = Instant::now();
        Ok(Self {
            first: lab.start_vm("first")?,
            second: lab.start_vm("second")?,
            servers,
            hash,
            started,
        })
    }

    /// Waits until both are up and has them do what they must.
    pub(super) fn play(&mut self, lab: &Lab) -> Result<Played> {
        self.wait()?;
        let interface = format!("ifconfig eth1 {} up", FIRST.ip(false));
        self.first.run(&interface)?;
        let fetch = format!(
            "wget -q -O - {} | sha256sum | grep -q {}",
            self.servers.url("file"),
            self.hash
        );
        let commands = [
            (
                "first: firmware, iPXE, DHCP, TFTP, HTTP, then Linux with its driver `tulip`",
                "[ $(basename $(readlink /sys/class/net/eth0/device/driver)) = tulip ]",
            ),
            (
                "first: a file of 1 MiB from the LAN by HTTP, and its SHA-256 is right",
                &fetch,
            ),
        ];
        let mut played = Played::default();
        for (what, command) in commands {
            let (status, _) = self.first.output(command)?;
            played.deeds.push((what, status == 0));
        }
        for (from, to, address, must) in PINGS {
            let console = match from {
                "first" => &mut self.first,
                _ => &mut self.second,
            };
            let (status, _) = console.output(&format!("ping -c 1 -W 5 {}", address.ip(false)))?;
            played.attempts.push(Attempt {
                from,
                to,
                must,
                did: status == 0,
            });
        }
        for name in ["first", "second"] {
            let (exits, sum) = lab.vm_exits(name)?;
            let kinds: Vec<String> = exits
                .iter()
                .map(|(kind, count)| format!("{kind} {count}"))
                .collect();
            say!("  {name} left guest code {sum} times: {}", kinds.join(", "));
        }
        Ok(played)
    }

    /// Waits until both take commands, and tells how far they are.
    fn wait(&mut self) -> Result<()> {
        let started = self.started;
        let tell = |what: &str| say!("  {:3} s: {what}", started.elapsed().as_secs());
        let servers = &self.servers;
        let asked = || format!("dnsmasq said: {}", servers.log());
        for (text, what) in MILESTONES {
            let said = self.first.wait_for(text, NETWORK_BOOT_LIMIT);
            said.with_context(asked)?;
            tell(&format!("first: {what}"));
        }
        self.second.wait_ready(BOOT_LIMIT)?;
        tell("second: Linux is up");
        let ready = self.first.wait_ready(NETWORK_BOOT_LIMIT);
        ready.with_context(asked)?;
        tell("first: Linux is up");
        Ok(())
    }
}

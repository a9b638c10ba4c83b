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

use super::{OFFICE, PRIVATE};
use crate::say::say;

/// On the network of their own.
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

/// Two machines that are booting.
pub(super) struct Machines {
    servers: Netboot,
    hash: String,
    first: Console,
    second: Console,
    started: Instant,
}

/// One thing that a machine did, or not.
pub(super) struct Deed {
    what: String,
    good: bool,
}

impl Deed {
    pub(super) fn is_done(&self) -> bool {
        self.good
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

    /// Waits until both are up, has them do what they must, and turns them off.
    pub(super) fn play(mut self, lab: &Lab) -> Result<Vec<Deed>> {
        self.second.wait_ready(BOOT_LIMIT)?;
        let ready = self.first.wait_ready(NETWORK_BOOT_LIMIT);
        ready.with_context(|| format!("dnsmasq said: {}", self.servers.log()))?;
        let seconds = self.started.elapsed().as_secs();
        say!("  the machine that boots from the network took {seconds} s");
        let interface = format!("ifconfig eth1 {} up", FIRST.ip(false));
        self.first.run(&interface)?;
        let host = Address {
            net: OFFICE,
            host: 1,
        };
        let driver = "[ $(basename $(readlink /sys/class/net/eth0/device/driver)) = tulip ]";
        let fetch = format!(
            "wget -q -O - {} | sha256sum | grep -q {}",
            self.servers.url("file"),
            self.hash
        );
        let ping = |to: Address| format!("ping -c 2 -W 5 {} >/dev/null", to.ip(false));
        let mut deeds = vec![deed(
            &mut self.first,
            "first: firmware, iPXE, DHCP, TFTP, HTTP, then Linux with its driver `tulip`",
            driver,
        )?];
        deeds.push(deed(
            &mut self.first,
            "first pings the host NIC of office",
            &ping(host),
        )?);
        let what = "first fetches a file of 1 MiB from the LAN, and its SHA-256 is right";
        deeds.push(deed(&mut self.first, what, &fetch)?);
        let what = "second reaches first on their private network";
        deeds.push(deed(&mut self.second, what, &ping(FIRST))?);
        for name in ["first", "second"] {
            let (exits, sum) = lab.vm_exits(name)?;
            let kinds: Vec<String> = exits
                .iter()
                .map(|(kind, count)| format!("{kind} {count}"))
                .collect();
            say!("  {name} left guest code {sum} times: {}", kinds.join(", "));
        }
        for name in ["first", "second"] {
            lab.ctl(&format!("vm turn-off {name}"))?;
            lab.wait_vm(name, "off")?;
        }
        Ok(deeds)
    }
}

fn deed(console: &mut Console, what: &str, command: &str) -> Result<Deed> {
    let (status, _) = console.output(command)?;
    Ok(Deed {
        what: what.to_owned(),
        good: status == 0,
    })
}

/// Prints what they did.
pub(super) fn report(deeds: &[Deed]) {
    say!("\nvirtual machines of our own");
    for deed in deeds {
        let result = if deed.good { "done" } else { "FAILED" };
        say!("{result:6} {}", deed.what);
    }
}

//! A daemon in a namespace that plays the host machine, and stations on its networks.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    Daemon, Netns, QemuGuest, Station,
    guest::{Attachment, GuestConfig},
    station::Address,
};

/// The uplink's name in the host namespace.
pub const UPLINK: &str = "eth1";

/// A host machine that is a namespace, with vswitchd running in it. Whoever holds stations drops them first.
#[derive(Debug)]
pub struct Lab {
    /// The daemon. It is declared before the host, so that it ends first.
    pub daemon: Daemon,
    /// The namespace the daemon runs in.
    pub host: Arc<Netns>,
}

impl Lab {
    /// Starts a daemon with empty state.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start() -> Result<Self> {
        let host = Arc::new(Netns::new("host")?);
        Ok(Self {
            daemon: Daemon::start(&host)?,
            host,
        })
    }

    /// Starts a daemon that cannot have AF_XDP.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_without_xdp() -> Result<Self> {
        let host = Arc::new(Netns::new("host")?);
        Ok(Self {
            daemon: Daemon::start_without_xdp(&host)?,
            host,
        })
    }

    /// Starts a daemon whose virtual machines are processes of the program `vmm`.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_with_vmm(vmm: &Path) -> Result<Self> {
        let host = Arc::new(Netns::new("host")?);
        Ok(Self {
            daemon: Daemon::start_with_vmm(&host, vmm)?,
            host,
        })
    }

    /// Starts a daemon with two workers, on cores 0 and 1.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_with_two_workers() -> Result<Self> {
        let host = Arc::new(Netns::new("host")?);
        Ok(Self {
            daemon: Daemon::start_on_cores(&host, "0,1")?,
            host,
        })
    }

    /// Checks that there is more than one worker, and that each owns a port: frames between their ports are then
    /// delivered to ports of other workers.
    ///
    /// # Errors
    /// When there is one worker or one without ports; the error shows them.
    pub fn every_worker_owns_ports(&self) -> Result<()> {
        let status = self.ctl("status")?;
        let workers = status.get("workers").and_then(Value::as_array);
        let workers = workers.context("no list \"workers\" in the answer of status")?;
        let owns = |worker: &Value| worker.get("ports").and_then(Value::as_u64) > Some(0);
        ensure!(workers.len() > 1 && workers.iter().all(owns), "{status}");
        Ok(())
    }

    /// Runs vswitchctl.
    ///
    /// # Errors
    /// As [`Daemon::ctl`].
    pub fn ctl(&self, args: &str) -> Result<Value> {
        self.daemon.ctl(args)
    }

    /// Checks that the counters of every port add up.
    ///
    /// # Errors
    /// When they do not; the error shows them.
    pub fn counters_add_up(&self) -> Result<()> {
        let stats = self.daemon.stats()?;
        ensure!(stats.wrong().is_empty(), "{:?}", stats.wrong());
        Ok(())
    }

    /// Adds a TAP port and gives its device, as eth0, to a new namespace.
    ///
    /// # Errors
    /// When the port is refused.
    pub fn tap_port(&self, network: &str, port: &str) -> Result<Arc<Netns>> {
        let tap = format!("t-{port}");
        self.ctl(&format!("port add {network} {port} --tap {tap}"))?;
        let netns = Arc::new(Netns::new(port)?);
        self.host
            .ip(&format!("link set {tap} netns {}", netns.name()))?;
        netns.ip(&format!("link set {tap} name eth0"))?;
        netns.ip("link set eth0 up")?;
        Ok(netns)
    }

    /// A station on a TAP port.
    ///
    /// # Errors
    /// As [`Lab::tap_port`].
    pub fn tap_station(
        &self,
        network: &str,
        port: &str,
        tag: Option<u16>,
        address: Address,
    ) -> Result<Station> {
        let netns = self.tap_port(network, port)?;
        Station::inside(port, &netns, "eth0", tag, address)
    }

    /// Connects [`UPLINK`] with eth0 of a new namespace that plays the physical LAN, for MTUs up to 9000. What the
    /// LAN sends has its checksums filled in, as on a real wire; a virtual cable would leave them open. What it
    /// receives is shown as it came, not joined.
    ///
    /// # Errors
    /// When the cable cannot be made.
    pub fn lan(&self) -> Result<Arc<Netns>> {
        self.lan_at(UPLINK)
    }

    /// As [`Lab::lan`], with an uplink of another name.
    ///
    /// # Errors
    /// As [`Lab::lan`].
    pub fn lan_at(&self, uplink: &str) -> Result<Arc<Netns>> {
        let lan = self.plain_lan_at(uplink)?;
        lan.run(&[
            "ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off", "gro", "off",
        ])?;
        // A virtual cable would pass on the checksums and segments that the switch leaves to it.
        self.host
            .run(&["ethtool", "-K", uplink, "tx", "off", "tso", "off"])?;
        Ok(lan)
    }

    /// As [`Lab::lan`], with the cable as it is by itself: it hands over large frames whole, and checksums open.
    ///
    /// # Errors
    /// As [`Lab::lan`].
    pub fn plain_lan(&self) -> Result<Arc<Netns>> {
        self.plain_lan_at(UPLINK)
    }

    fn plain_lan_at(&self, uplink: &str) -> Result<Arc<Netns>> {
        let lan = Arc::new(Netns::new("lan")?);
        self.host.cable(uplink, &lan, "eth0")?;
        self.host.ip(&format!("link set {uplink} mtu 9000"))?;
        lan.ip("link set eth0 mtu 9000")?;
        Ok(lan)
    }

    /// As [`Lab::lan`], with an uplink that cannot have AF_XDP.
    ///
    /// # Errors
    /// As [`Lab::lan`].
    pub fn lan_without_xdp(&self) -> Result<Arc<Netns>> {
        let lan = self.lan()?;
        self.take_xdp()?;
        Ok(lan)
    }

    /// Puts an interface whose driver can't run an XDP program in the uplink's place: macvlan on the cable.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn take_xdp(&self) -> Result<()> {
        self.host.ip(&format!("link set {UPLINK} down"))?;
        self.host.ip(&format!("link set {UPLINK} name cable"))?;
        self.host.ip("link set cable up")?;
        self.host.ip(&format!(
            "link add name {UPLINK} link cable mtu 9000 type macvlan mode passthru"
        ))?;
        self.host.ip(&format!("link set {UPLINK} up")).map(drop)
    }

    /// Boots a guest on a new vhost-user port, on which the switch listens.
    ///
    /// # Errors
    /// When the port is refused or the guest does not boot.
    pub fn guest_station(
        &self,
        network: &str,
        port: &str,
        tag: Option<u16>,
        address: Address,
    ) -> Result<Station> {
        self.guest_station_with(network, port, (tag, address), &[])
    }

    /// As [`Lab::guest_station`], with further options of the guest's NIC, as `packed=on`.
    ///
    /// # Errors
    /// As [`Lab::guest_station`].
    pub fn guest_station_with(
        &self,
        network: &str,
        port: &str,
        (tag, address): (Option<u16>, Address),
        device: &[&str],
    ) -> Result<Station> {
        let socket = self.daemon.socket(port);
        self.ctl(&format!(
            "port add {network} {port} --vhost-user {socket} --server"
        ))?;
        let config = GuestConfig {
            attachment: Attachment::VhostUserClient(socket),
            mac: address.mac(),
            addresses: Vec::new(),
            device: device.iter().map(|&option| option.to_owned()).collect(),
        };
        let guest = QemuGuest::boot(&self.host, &config)
            .with_context(|| format!("vswitchd said: {}", self.daemon.log()))?;
        Station::guest(port, guest, tag, address)
    }

    /// The host machine's own station, on the host NIC of `network`.
    ///
    /// # Errors
    /// When the host NIC is missing.
    pub fn host_station(&self, network: &str, address: Address) -> Result<Station> {
        Station::inside("host", &self.host, &format!("vsw-{network}"), None, address)
    }

    /// Runs a command line that must be refused: exit status 1 with one line on standard error, or 2 (wrong usage),
    /// and networks, ports and interfaces as they were. The first line must hold each of `words`; it is returned.
    ///
    /// # Errors
    /// When it was accepted, says something else, or left something half done.
    pub fn refused(&self, args: &[&str], words: &[&str]) -> Result<String> {
        let line = args.join(" ");
        let before = self.snapshot()?;
        let out = self.daemon.ctl_output(args)?;
        let said = String::from_utf8_lossy(&out.stderr);
        let code = out.status.code();
        ensure!(
            matches!(code, Some(1 | 2)),
            "`{line}` ended with {}: {said}",
            out.status
        );
        ensure!(
            code == Some(2) || said.trim().lines().count() == 1,
            "`{line}`: more than one line: {said}"
        );
        let first = said.lines().next().unwrap_or_default();
        for word in words {
            ensure!(
                first.contains(word),
                "`{line}`: the error does not name {word:?}: {first}"
            );
        }
        let after = self.snapshot()?;
        ensure!(
            before == after,
            "`{line}` was refused, but left something:\nbefore {before:?}\nafter  {after:?}"
        );
        Ok(first.to_owned())
    }

    /// What a refused change must leave alone: networks and ports with all their settings, static entries of MAC tables,
    /// and the host's interfaces with their addresses.
    fn snapshot(&self) -> Result<Vec<String>> {
        // Without states and link-local addresses, which come by themselves a little later than their interface.
        let links = self.host.ip("-br link show")?;
        let names: Vec<&str> = links
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        let addresses = self.host.ip("-o addr show scope global")?;
        let networks = self.ctl("network list")?;
        let mut snapshot = vec![
            networks.to_string(),
            ports_of(self.ctl("port list")?),
            names.join("\n"),
            addresses,
        ];
        for network in members(&networks, "networks") {
            let fdb = self.ctl(&format!("fdb show {}", text(network, "name")))?;
            let fixed = members(&fdb, "entries")
                .filter(|entry| entry.get("static").is_some_and(|fixed| fixed == true));
            snapshot.extend(fixed.map(Value::to_string));
        }
        Ok(snapshot)
    }
}

fn members<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A `port list` without what changes by itself.
fn ports_of(mut list: Value) -> String {
    let ports = list.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
        port.remove("state");
        port.remove("detail");
    }
    list.to_string()
}

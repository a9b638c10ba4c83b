//! The Linux host: interfaces opened as ports, and their addresses moved.

mod links;
mod quiet;
mod tap;
mod uplink;
mod vhost_user;

use anyhow::{Context, bail, ensure};
use hostif::info::LinkInfo;
use hostif::tap::{Tap, TapConfig};
use vswitch::api::{IfName, PortBackend, StationMac};
use vswitch::mac::Mac;

use crate::backend::{Backend, Host, LooseUplink, Open};

/// The host this process runs on.
pub(crate) struct LinuxHost;

impl Host for LinuxHost {
    fn check_uplink(&self, uplink: &IfName) -> anyhow::Result<u32> {
        let Some(link) = read(uplink)? else {
            bail!("there is no interface '{uplink}'; allowed: an Ethernet interface of this host");
        };
        ensure!(
            link.mac.is_some_and(|mac| mac != [0; 6]),
            "interface '{uplink}' is not Ethernet; allowed: an Ethernet interface"
        );
        ensure!(
            link.master.is_none(),
            "interface '{uplink}' has a master, '{}'; allowed: one without (ip link set {uplink} nomaster)",
            link.master
                .map(|index| master_name(uplink, index))
                .unwrap_or_default()
        );
        Ok(link.mtu)
    }

    fn mac(&self, interface: &IfName) -> anyhow::Result<Option<StationMac>> {
        let mac = read(interface)?.and_then(|link| link.mac).map(Mac);
        Ok(mac.filter(|mac| mac.is_station()).map(StationMac::from))
    }

    fn settings(&self, uplink: &IfName) -> anyhow::Result<String> {
        ensure!(
            read(uplink)?.is_some(),
            "there is no interface '{uplink}' to read the settings of"
        );
        Ok(serde_json::to_string(&quiet::read(uplink))?)
    }

    fn quieten(&self, uplink: &IfName) {
        quiet::quieten(uplink);
    }

    fn release(&self, uplink: &LooseUplink) -> anyhow::Result<()> {
        links::release(uplink)
    }

    fn check_unused(&self, host_nic: &IfName) -> anyhow::Result<()> {
        ensure!(
            read(host_nic)?.is_none(),
            "there is an interface '{host_nic}' already; allowed: a name for the host NIC that no interface has"
        );
        Ok(())
    }

    fn open(&self, what: &Open<'_>) -> anyhow::Result<Box<dyn Backend>> {
        match what.backend {
            PortBackend::HostNic { interface } => tap::open_host_nic(what, interface),
            PortBackend::Tap { interface } => tap::open_tap(what, interface),
            PortBackend::Uplink { interface } => {
                let mtu = self.check_uplink(interface)?;
                uplink::open(what, interface, mtu)
            }
            PortBackend::VhostUser { path, mode, queues } => {
                vhost_user::open(what, path, *mode, *queues)
            }
            PortBackend::Legacy { .. } | PortBackend::Synthetic { .. } => {
                bail!("adapters are not of the host, but of VMs")
            }
        }
    }

    fn addresses(&self, interface: &IfName) -> anyhow::Result<Vec<String>> {
        links::addresses(interface)
    }

    fn begin_record(&self, from: &IfName, to: &IfName) -> anyhow::Result<String> {
        links::begin_record(from, to)
    }

    fn move_addresses(
        &self,
        from: &IfName,
        to: &IfName,
        before: Option<&str>,
    ) -> anyhow::Result<String> {
        links::move_addresses(from, to, before)
    }

    fn return_addresses(
        &self,
        host_nic: &IfName,
        uplink: &IfName,
        record: Option<&str>,
    ) -> anyhow::Result<()> {
        links::return_addresses(host_nic, uplink, record)
    }

    fn delete_host_nic(&self, host_nic: &IfName) -> anyhow::Result<()> {
        if read(host_nic)?.is_some() {
            let config = TapConfig {
                name: name(host_nic)?,
                queues: 1,
                persist: false,
                mac: None,
            };
            // Opened without persistence, it goes when it is closed.
            Tap::open(&config).with_context(|| format!("cannot delete '{host_nic}'"))?;
        }
        Ok(())
    }
}

/// The name as `hostif` takes it; the rules are the same.
fn name(interface: &IfName) -> anyhow::Result<hostif::IfName> {
    Ok(interface.as_str().parse()?)
}

/// What the kernel says about an interface; `None` where there is none.
fn read(interface: &IfName) -> anyhow::Result<Option<LinkInfo>> {
    LinkInfo::read(&name(interface)?)
        .with_context(|| format!("cannot ask for interface '{interface}'"))
}

/// The name of the master of an interface, by sysfs; its index where that does not tell.
fn master_name(interface: &IfName, index: u32) -> String {
    let link = std::fs::read_link(format!("/sys/class/net/{interface}/master"));
    let name = link
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    name.unwrap_or_else(|| format!("interface {index}"))
}

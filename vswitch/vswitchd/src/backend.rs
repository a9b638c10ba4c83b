//! What is behind a port, opened on this host and closed again; and what else is asked of the host.

use std::sync::Arc;

use vswitch::api::{IfName, Link, Mtu, PortBackend, PortState, StationMac};
use vswitch::control::PortHandle;

/// What becomes of what was made on the host for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// vswitchd ends, or opens it again: persistent devices stay, with their addresses.
    Keep,
    /// The port is deleted, and everything with it.
    Delete,
}

/// What to open.
pub(crate) struct Open<'a> {
    /// What is behind the port.
    pub(crate) backend: &'a PortBackend,
    /// The port's MTU.
    pub(crate) mtu: Mtu,
    /// The port's link.
    pub(crate) link: Link,
    /// The MAC address that the host NIC of the port's network gets when it is made.
    pub(crate) host_mac: Option<StationMac>,
    /// The port, which the sides are attached to.
    pub(crate) port: Arc<PortHandle>,
}

/// Something open behind a port.
pub(crate) trait Backend: Send {
    /// Takes it out of service and closes it. What cannot be closed is logged.
    fn close(self: Box<Self>, fate: Fate);

    /// Whether it can pass frames, and a word about how.
    fn status(&self) -> (PortState, Option<String>);

    /// Tells the other end its new MTU, if there is a way to.
    fn set_mtu(&mut self, mtu: Mtu) -> anyhow::Result<()>;

    /// Shows the other end its new link, if there is a way to.
    fn set_link(&mut self, link: Link) -> anyhow::Result<()>;
}

/// An uplink that is to be as it was before it was bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LooseUplink {
    /// The interface.
    pub(crate) uplink: IfName,
    /// The MTU that it had.
    pub(crate) mtu: Option<u32>,
    /// The settings that it had, in the words of the host module.
    pub(crate) settings: Option<String>,
    /// The record of the addresses and routes that it gets back; `None` where they stay, or came back by themselves.
    pub(crate) moved: Option<String>,
}

/// The host, as vswitchd uses it.
pub(crate) trait Host: Send + Sync {
    /// Checks that `uplink` can be bound: it is there, it is Ethernet, and it has no master. Answers its MTU.
    fn check_uplink(&self, uplink: &IfName) -> anyhow::Result<u32>;

    /// The MAC address of an interface; `None` if it is not there, or has none that a station can have.
    fn mac(&self, interface: &IfName) -> anyhow::Result<Option<StationMac>>;

    /// The settings of the network stack for an interface that [`quieten`](Host::quieten) changes.
    fn settings(&self, uplink: &IfName) -> anyhow::Result<String>;

    /// Makes the host's network stack leave an interface alone. What it does not admit is logged.
    fn quieten(&self, uplink: &IfName);

    /// Makes an uplink that is not bound any more what it was before. One that is gone is no error.
    fn release(&self, uplink: &LooseUplink) -> anyhow::Result<()>;

    /// Checks that no interface has the name of a host NIC that is to be made.
    fn check_unused(&self, host_nic: &IfName) -> anyhow::Result<()>;

    /// Opens what is behind a port and attaches it. On failure nothing is left of it.
    fn open(&self, what: &Open<'_>) -> anyhow::Result<Box<dyn Backend>>;

    /// The addresses of an interface, but for those that Linux makes for each.
    fn addresses(&self, interface: &IfName) -> anyhow::Result<Vec<String>>;

    /// What is to be known of an interface before its addresses are moved to another, so that it can be undone: a record
    /// of its addresses, routes and settings.
    fn begin_record(&self, from: &IfName, to: &IfName) -> anyhow::Result<String>;

    /// Moves all addresses and routes from one interface to another; the record `before` with them in it. On failure
    /// everything is as it was.
    fn move_addresses(
        &self,
        from: &IfName,
        to: &IfName,
        before: Option<&str>,
    ) -> anyhow::Result<String>;

    /// Moves the addresses and routes that the host NIC has now to the uplink; if it is gone, as after a crash and a
    /// reboot, the uplink gets those of `record`. What is there already is no error.
    fn return_addresses(
        &self,
        host_nic: &IfName,
        uplink: &IfName,
        record: Option<&str>,
    ) -> anyhow::Result<()>;

    /// Deletes a host NIC that a killed vswitchd left behind; one that is not there is no error.
    fn delete_host_nic(&self, host_nic: &IfName) -> anyhow::Result<()>;
}

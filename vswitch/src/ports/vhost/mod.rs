//! vhost-user ports: guests of QEMU, libvirt, cloud-hypervisor and DPDK.
//!
//! The switch is the back-end of the vhost-user protocol (QEMU, docs/interop/vhost-user.rst): the front-end passes the
//! guest's memory and the addresses of its virtqueues over a Unix socket, and frames then move without it.
//!
//! * [`server`] is the thread of a port: it listens or connects, and drives
//! * [`session`], the state of one connection, by the messages ([`message`]) that [`connection`] takes off the socket.
//! * A session builds the two sides of the port ([`port`]) from its rings, and takes them apart again before anything
//!   under them changes.
//! * [`tx`] and [`rx`] turn chains of descriptors into frames and frames into chains, the same for both formats of a
//!   virtqueue, [`split`] and [`packed`], which [`ring`] abstracts over.
//! * [`inflight`] keeps the place in a ring where the front-end finds it again after this process was killed.
//! * [`socket`] binds and connects without waiting; [`notify`] signals and drains the eventfds of a peer.
//!
//! With feature `test-support` there is `driver`: a guest with a virtio-net driver, and a front-end, for tests.

pub mod connection;
pub mod inflight;
pub mod message;
pub mod notify;
pub mod packed;
pub mod port;
pub mod ring;
pub mod run;
pub mod rx;
pub mod server;
pub mod session;
pub mod socket;
pub mod split;
pub mod tx;
mod vring;

#[cfg(any(test, feature = "test-support"))]
pub mod driver;
#[cfg(test)]
mod tests;

/// Feature bits (virtio 1.2 sections 5.1.3 and 6; vhost-user specification, "Feature bits").
pub mod feature {
    /// The device handles frames with a partial checksum.
    pub const CSUM: u64 = 1 << 0;
    /// The driver handles frames with a partial checksum.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The front-end's configuration space has an MTU.
    pub const MTU: u64 = 1 << 3;
    /// The driver takes large TCP over IPv4.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes large TCP over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The driver takes large TCP with CWR set.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The device takes large TCP over IPv4.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device takes large TCP over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The device takes large TCP with CWR set.
    pub const HOST_ECN: u64 = 1 << 13;
    /// A frame may span several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The front-end's configuration space has a link status.
    pub const STATUS: u64 = 1 << 16;
    /// The front-end has a control virtqueue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// The control virtqueue sets receive modes. The switch delivers by address, whatever the mode.
    pub const CTRL_RX: u64 = 1 << 18;
    /// The front-end can ask the driver for gratuitous packets.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Several queue pairs.
    pub const MQ: u64 = 1 << 22;
    /// The control virtqueue sets the MAC address.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    /// `VHOST_F_LOG_ALL`: writes to guest memory are logged.
    pub const LOG_ALL: u64 = 1 << 26;
    /// Legacy: descriptors of a header and a frame in any layout.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Indirect descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications are suppressed by ring index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VHOST_USER_F_PROTOCOL_FEATURES`.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// virtio 1.0 or later.
    pub const VERSION_1: u64 = 1 << 32;
    /// Packed virtqueues.
    pub const RING_PACKED: u64 = 1 << 34;
    /// Buffers are used in the order in which they are made available.
    pub const IN_ORDER: u64 = 1 << 35;
}

/// Protocol feature bits (vhost-user specification, "Protocol features").
pub mod protocol {
    /// Several queues.
    pub const MQ: u64 = 1 << 0;
    /// The dirty log is shared memory.
    pub const LOG_SHMFD: u64 = 1 << 1;
    /// The back-end announces the guest after a migration.
    pub const RARP: u64 = 1 << 2;
    /// Requests can ask for a reply.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The front-end says which MTU the guest sees.
    pub const NET_MTU: u64 = 1 << 4;
    /// In-flight descriptors are in shared memory.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// The front-end can reset the device.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// Memory regions come and go one by one.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// The front-end passes the device status on.
    pub const STATUS: u64 = 1 << 16;
}

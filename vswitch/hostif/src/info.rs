//! What the kernel says about one interface.

use std::io;
use std::os::fd::OwnedFd;

use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoTun, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo as LinkInfoNla,
    LinkMessage,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::name::IfName;
use crate::sys::ioctl;

/// One interface of the calling thread's network namespace, as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Its number; never given to another interface while this one lives.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address; `None` for what is not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes of IP.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The link is up: a cable is plugged and the other end is there.
    pub carrier: bool,
    /// Operational state as RFC 2863 names it: `up`, `down`, `dormant`, `unknown`, ….
    pub oper_state: String,
    /// Index of the bridge, bond, team or VRF that it belongs to.
    pub master: Option<u32>,
    /// Kind of a software device: `veth`, `tun`, `bridge`, …. `None` for hardware and loopback.
    pub kind: Option<String>,
    /// Receive queues that it was made with; see [`rx_queues`] for those in use.
    pub rx_queues: u32,
    /// More than 0 while somebody wants every frame of the wire.
    pub promiscuity: u32,
    /// What is particular to TUN/TAP devices.
    pub tun: Option<TunInfo>,
}

/// What is particular to TUN/TAP devices (`IFLA_TUN_*`, linux/if_link.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunInfo {
    /// It carries Ethernet frames; if not, IP packets.
    pub tap: bool,
    /// It may have several queues.
    pub multi_queue: bool,
    /// It stays when its last file is closed.
    pub persist: bool,
    /// Files that hold a queue of it.
    pub queues: u32,
}

impl LinkInfo {
    /// Asks for the interface `name`; `None` where there is none.
    ///
    /// The kernel answers within the call: it does not block, and may be called from asynchronous code.
    ///
    /// # Errors
    /// What the netlink socket answers, and `InvalidData` for an answer that makes no sense.
    pub fn read(name: &IfName) -> io::Result<Option<Self>> {
        let mut request = LinkMessage::default();
        request
            .attributes
            .push(LinkAttribute::IfName(name.as_str().to_owned()));
        request
            .attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetLink(request));
        message.header.flags = NLM_F_REQUEST;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);

        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        let (answer, _) = socket.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                Ok(Some(Self::from_message(&link)))
            }
            NetlinkPayload::Error(error) => match error.to_io() {
                error if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
                error => Err(error),
            },
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "netlink did not answer with a link",
            )),
        }
    }

    /// Reads what is known out of a link message.
    pub(crate) fn from_message(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut info = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            oper_state: String::new(),
            master: None,
            kind: None,
            rx_queues: 1,
            promiscuity: 0,
            tun: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => info.name.clone_from(name),
                LinkAttribute::Address(mac) => info.mac = mac.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => info.mtu = *mtu,
                LinkAttribute::OperState(state) => {
                    info.oper_state = format!("{state:?}").to_lowercase()
                }
                LinkAttribute::Controller(index) => info.master = Some(*index),
                LinkAttribute::NumRxQueues(count) => info.rx_queues = *count,
                LinkAttribute::Promiscuity(count) => info.promiscuity = *count,
                LinkAttribute::LinkInfo(parts) => info.take_kind(parts),
                _ => {}
            }
        }
        info
    }

    fn take_kind(&mut self, parts: &[LinkInfoNla]) {
        for part in parts {
            match part {
                LinkInfoNla::Kind(InfoKind::Other(kind)) => self.kind = Some(kind.clone()),
                LinkInfoNla::Kind(kind) => self.kind = Some(kind.to_string()),
                LinkInfoNla::Data(InfoData::Tun(attributes)) => {
                    self.tun = Some(TunInfo::from_attributes(attributes))
                }
                _ => {}
            }
        }
    }
}

impl TunInfo {
    fn from_attributes(attributes: &[InfoTun]) -> Self {
        const TYPE: u16 = 3;
        const PERSIST: u16 = 6;
        const MULTI_QUEUE: u16 = 7;
        const NUM_QUEUES: u16 = 8;
        const NUM_DISABLED_QUEUES: u16 = 9;
        let mut info = Self::default();
        for attribute in attributes {
            let mut value = [0; 4];
            let length = attribute.value_len().min(value.len());
            if attribute.value_len() <= value.len() {
                attribute.emit_value(value.get_mut(..length).unwrap_or_default());
            }
            let value = u32::from_ne_bytes(value);
            match attribute.kind() {
                TYPE => info.tap = value == linux_raw_sys::if_tun::IFF_TAP,
                PERSIST => info.persist = value != 0,
                MULTI_QUEUE => info.multi_queue = value != 0,
                NUM_QUEUES | NUM_DISABLED_QUEUES => info.queues += value,
                _ => {}
            }
        }
        info
    }
}

/// A socket to call interface ioctls on.
pub(crate) fn ioctl_socket() -> rustix::io::Result<OwnedFd> {
    socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// The number of receive queues of `name` that are in use.
///
/// From the driver (`ETHTOOL_GCHANNELS`); one that has no such call uses all that it has.
///
/// # Errors
/// `NotFound` or `ENODEV` where there is no such interface.
pub fn rx_queues(name: &IfName) -> io::Result<u32> {
    match ioctl::ethtool_channels(ioctl_socket()?, name) {
        Ok(channels) => Ok((channels.rx_count + channels.combined_count).max(1)),
        Err(rustix::io::Errno::OPNOTSUPP) => LinkInfo::read(name)?
            .map(|link| link.rx_queues)
            .ok_or_else(|| io::ErrorKind::NotFound.into()),
        Err(error) => Err(error.into()),
    }
}

/// The name of the driver behind `name`: `virtio_net`, `ixgbe`, `veth`, `tun`, ….
///
/// # Errors
/// `ENODEV` where there is no such interface, `EOPNOTSUPP` where it has no driver that says its name.
pub fn driver(name: &IfName) -> io::Result<String> {
    Ok(ioctl::ethtool_driver(ioctl_socket()?, name)?)
}

//! The ioctls of TUN/TAP devices and network interfaces (linux/if_tun.h, linux/sockios.h, linux/ethtool.h).
#![allow(unsafe_code, reason = "ioctl(2) takes untyped memory")]

use std::os::fd::AsFd;

use linux_raw_sys::ioctl as op;
use rustix::io::Result;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl};

use crate::name::{IFNAMSIZ, IfName};

/// `struct ifreq` of linux/if.h: a name, and 24 bytes whose meaning depends on the call.
#[repr(C, align(8))]
struct Ifreq {
    name: [u8; IFNAMSIZ],
    value: [u8; 24],
}

impl Ifreq {
    fn new(name: &IfName, value: &[u8]) -> Self {
        let mut padded = [0; 24];
        for (to, from) in padded.iter_mut().zip(value) {
            *to = *from;
        }
        Self {
            name: name.padded(),
            value: padded,
        }
    }

    fn first_u16(&self) -> u16 {
        let [a, b, ..] = self.value;
        u16::from_ne_bytes([a, b])
    }
}

/// Calls `OP` with the address of `request`.
///
/// # Safety
/// `OP` must be a call that reads and writes a `struct ifreq` without a pointer in it, and nothing else.
unsafe fn with_ifreq<const OP: Opcode>(fd: impl AsFd, mut request: Ifreq) -> Result<Ifreq> {
    // SAFETY: by the caller's promise the kernel accesses `request` alone, which is valid for the call; every value of
    // its bytes is a valid `Ifreq`.
    unsafe { ioctl(fd, Updater::<OP, Ifreq>::new(&mut request)) }?;
    Ok(request)
}

/// Calls `OP` with the address of an `int` holding `value`.
///
/// # Safety
/// `OP` must be a call that reads one `int` and accesses no other memory.
unsafe fn set_int<const OP: Opcode>(fd: impl AsFd, value: i32) -> Result<()> {
    // SAFETY: by the caller's promise the kernel reads one int, and `Setter` passes the address of one.
    unsafe { ioctl(fd, Setter::<OP, i32>::new(value)) }
}

/// Calls `OP` with `value` in place of an address.
///
/// # Safety
/// `OP` must be a call that takes its argument by value.
unsafe fn set_value<const OP: Opcode>(fd: impl AsFd, value: u32) -> Result<()> {
    // SAFETY: by the caller's promise the kernel takes the value as it is, and accesses no memory.
    unsafe { ioctl(fd, IntegerSetter::<OP>::new_usize(value as usize)) }
}

/// `TUNSETIFF`: makes the device `name`, or a queue of it, of this open file.
pub(crate) fn tun_set_iff(fd: impl AsFd, name: &IfName, flags: u32) -> Result<()> {
    let request = Ifreq::new(name, &(flags as u16).to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes name and flags of a struct ifreq.
    unsafe { with_ifreq::<{ op::TUNSETIFF }>(fd, request) }.map(|_| ())
}

/// `TUNSETPERSIST`: whether the device stays when its last file is closed.
pub(crate) fn tun_set_persist(fd: impl AsFd, persist: bool) -> Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    unsafe { set_value::<{ op::TUNSETPERSIST }>(fd, u32::from(persist)) }
}

/// `TUNSETOFFLOAD`: which unfinished frames (`TUN_F_*`) the reader of the device takes.
pub(crate) fn tun_set_offload(fd: impl AsFd, offloads: u32) -> Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    unsafe { set_value::<{ op::TUNSETOFFLOAD }>(fd, offloads) }
}

/// `TUNSETVNETHDRSZ`: length of the header before each frame, in bytes.
pub(crate) fn tun_set_vnet_hdr_size(fd: impl AsFd, size: i32) -> Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    unsafe { set_int::<{ op::TUNSETVNETHDRSZ }>(fd, size) }
}

/// `TUNSETVNETLE`: whether the header's fields are little-endian on every host.
pub(crate) fn tun_set_vnet_le(fd: impl AsFd, little_endian: bool) -> Result<()> {
    // SAFETY: TUNSETVNETLE reads one int.
    unsafe { set_int::<{ op::TUNSETVNETLE }>(fd, i32::from(little_endian)) }
}

/// `TUNSETCARRIER`: whether the device tells its host that the link is up.
pub(crate) fn tun_set_carrier(fd: impl AsFd, up: bool) -> Result<()> {
    // SAFETY: TUNSETCARRIER reads one int.
    unsafe { set_int::<{ op::TUNSETCARRIER }>(fd, i32::from(up)) }
}

/// `SIOCSIFHWADDR`: sets the MAC address of an Ethernet interface.
pub(crate) fn set_mac(fd: impl AsFd, name: &IfName, mac: [u8; 6]) -> Result<()> {
    let mut sockaddr = [0; 8];
    let (family, address) = sockaddr.split_at_mut(2);
    family.copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
    address.copy_from_slice(&mac);
    // SAFETY: SIOCSIFHWADDR reads the name and a struct sockaddr, 16 bytes, from a struct ifreq.
    unsafe { with_ifreq::<{ op::SIOCSIFHWADDR }>(fd, Ifreq::new(name, &sockaddr)) }.map(|_| ())
}

/// `SIOCSIFMTU`: sets the MTU in bytes.
pub(crate) fn set_mtu(fd: impl AsFd, name: &IfName, mtu: u32) -> Result<()> {
    let request = Ifreq::new(name, &mtu.to_ne_bytes());
    // SAFETY: SIOCSIFMTU reads the name and an int from a struct ifreq.
    unsafe { with_ifreq::<{ op::SIOCSIFMTU }>(fd, request) }.map(|_| ())
}

/// `SIOCSIFFLAGS`: sets or clears `IFF_UP`, leaving the other flags as they are.
pub(crate) fn set_up(fd: impl AsFd, name: &IfName, up: bool) -> Result<()> {
    let fd = fd.as_fd();
    // SAFETY: SIOCGIFFLAGS reads the name and writes a short of a struct ifreq.
    let got = unsafe { with_ifreq::<{ op::SIOCGIFFLAGS }>(fd, Ifreq::new(name, &[])) }?;
    let iff_up = libc::IFF_UP as u16;
    let flags = if up {
        got.first_u16() | iff_up
    } else {
        got.first_u16() & !iff_up
    };
    // SAFETY: SIOCSIFFLAGS reads the name and a short from a struct ifreq.
    unsafe { with_ifreq::<{ op::SIOCSIFFLAGS }>(fd, Ifreq::new(name, &flags.to_ne_bytes())) }
        .map(|_| ())
}

/// `struct ethtool_channels` of linux/ethtool.h: how many queues of each kind a device has.
#[repr(C)]
#[derive(Default)]
pub(crate) struct EthtoolChannels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    /// Queues that only receive.
    pub(crate) rx_count: u32,
    tx_count: u32,
    other_count: u32,
    /// Queues that receive and send.
    pub(crate) combined_count: u32,
}

/// `struct ethtool_drvinfo` of linux/ethtool.h; the fields after the driver's name are not looked at.
#[repr(C)]
struct EthtoolDrvinfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// `struct ifreq` with a pointer in it.
#[repr(C)]
struct IfreqPointer<T> {
    name: [u8; IFNAMSIZ],
    value: *mut T,
    rest: [u8; 16],
}

/// Calls `SIOCETHTOOL` with `value`.
///
/// # Safety
/// `value` must begin with the number of an ethtool command that reads and writes a `T`, and nothing beyond it.
unsafe fn ethtool<T>(fd: impl AsFd, name: &IfName, value: &mut T) -> Result<()> {
    const SIOCETHTOOL: Opcode = 0x8946;
    let mut request = IfreqPointer {
        name: name.padded(),
        value: &raw mut *value,
        rest: [0; 16],
    };
    // SAFETY: SIOCETHTOOL reads a struct ifreq, whose pointer is valid for a `T` while the call lasts; by the caller's
    // promise nothing else is accessed.
    unsafe {
        ioctl(
            fd,
            Updater::<SIOCETHTOOL, IfreqPointer<T>>::new(&mut request),
        )
    }
}

/// `ETHTOOL_GCHANNELS`: the queues of `name`.
pub(crate) fn ethtool_channels(fd: impl AsFd, name: &IfName) -> Result<EthtoolChannels> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    let mut channels = EthtoolChannels {
        command: ETHTOOL_GCHANNELS,
        ..Default::default()
    };
    // SAFETY: ETHTOOL_GCHANNELS reads and writes a struct ethtool_channels, nine u32.
    unsafe { ethtool(fd, name, &mut channels) }?;
    Ok(channels)
}

/// `ETHTOOL_GDRVINFO`: the name of the driver of `name`.
pub(crate) fn ethtool_driver(fd: impl AsFd, name: &IfName) -> Result<String> {
    const ETHTOOL_GDRVINFO: u32 = 3;
    let mut info = EthtoolDrvinfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    // SAFETY: ETHTOOL_GDRVINFO reads and writes a struct ethtool_drvinfo, 196 bytes.
    unsafe { ethtool(fd, name, &mut info) }?;
    let driver = info.driver.split(|b| *b == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(driver).into_owned())
}

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `ETHTOOL_GFLAGS`: the bits `ETH_FLAG_*` of `name`.
pub(crate) fn ethtool_flags(fd: impl AsFd, name: &IfName) -> Result<u32> {
    const ETHTOOL_GFLAGS: u32 = 0x25;
    let mut value = EthtoolValue {
        command: ETHTOOL_GFLAGS,
        data: 0,
    };
    // SAFETY: ETHTOOL_GFLAGS reads and writes a struct ethtool_value.
    unsafe { ethtool(fd, name, &mut value) }?;
    Ok(value.data)
}

/// `ETHTOOL_SFLAGS`: sets the bits `ETH_FLAG_*` of `name`.
pub(crate) fn ethtool_set_flags(fd: impl AsFd, name: &IfName, flags: u32) -> Result<()> {
    const ETHTOOL_SFLAGS: u32 = 0x26;
    // SAFETY: ETHTOOL_SFLAGS reads a struct ethtool_value.
    unsafe {
        ethtool(
            fd,
            name,
            &mut EthtoolValue {
                command: ETHTOOL_SFLAGS,
                data: flags,
            },
        )
    }
}

/// `ETHTOOL_GGRO`: whether the kernel joins received TCP segments of `name`.
pub(crate) fn ethtool_gro(fd: impl AsFd, name: &IfName) -> Result<bool> {
    const ETHTOOL_GGRO: u32 = 0x2b;
    let mut value = EthtoolValue {
        command: ETHTOOL_GGRO,
        data: 0,
    };
    // SAFETY: ETHTOOL_GGRO reads and writes a struct ethtool_value.
    unsafe { ethtool(fd, name, &mut value) }?;
    Ok(value.data != 0)
}

/// `ETHTOOL_SGRO`: sets whether the kernel joins received TCP segments of `name`.
pub(crate) fn ethtool_set_gro(fd: impl AsFd, name: &IfName, on: bool) -> Result<()> {
    const ETHTOOL_SGRO: u32 = 0x2c;
    // SAFETY: ETHTOOL_SGRO reads a struct ethtool_value.
    unsafe {
        ethtool(
            fd,
            name,
            &mut EthtoolValue {
                command: ETHTOOL_SGRO,
                data: u32::from(on),
            },
        )
    }
}

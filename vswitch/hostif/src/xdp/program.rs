//! The XDP program: hand the frame to the socket of its receive queue.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::{Errno, Result};

use super::btf::function_id;
use super::{AttachMode, Unclaimed, XdpConfig, XdpError, call_failed};
use crate::sys::bpf::{
    BPF_F_XDP_DEV_BOUND_ONLY, BPF_F_XDP_HAS_FRAGS, Instruction, XDP_FLAGS_DRV_MODE,
    XDP_FLAGS_SKB_MODE, create_xskmap, link_xdp, load_xdp, set_xskmap_entry,
};

/// The program, attached to an interface. Closing the link detaches it; the kernel does so when the process dies.
#[derive(Debug)]
pub(super) struct Program {
    map: OwnedFd,
    _link: OwnedFd,
    pub(super) mode: AttachMode,
    /// It puts VLAN tags that come beside a frame back into it.
    pub(super) tagging: bool,
}

impl Program {
    /// Loads the program for `queues` receive queues and attaches it in the driver, or else, if that is allowed, before
    /// the network stack. With `restore_tags` the program puts VLAN tags back into frames, if the driver can tell them.
    pub(super) fn attach(
        config: &XdpConfig,
        interface: u32,
        queues: u32,
        multi_buffer: bool,
        restore_tags: bool,
    ) -> std::result::Result<Self, XdpError> {
        let name = &config.name;
        let failed = |call| move |errno: Errno| call_failed(call, name, errno.into());
        let map = create_xskmap(queues).map_err(failed("BPF_MAP_CREATE"))?;
        let flags = if multi_buffer { BPF_F_XDP_HAS_FRAGS } else { 0 };
        let tagging = restore_tags
            .then(|| attach_tagging(&map, config.unclaimed, interface, flags))
            .flatten();
        if let Some(link) = tagging {
            return Ok(Self {
                map,
                _link: link,
                mode: AttachMode::Native,
                tagging: true,
            });
        }
        let program = redirect_to(map.as_raw_fd(), config.unclaimed);
        let program = load_xdp(&program, flags, 0).map_err(failed("BPF_PROG_LOAD"))?;
        let attach = |mode| link_xdp(program.as_fd(), interface, mode);
        let (link, mode) = match attach(XDP_FLAGS_DRV_MODE) {
            Ok(link) => (Ok(link), AttachMode::Native),
            Err(Errno::BUSY | Errno::EXIST) => return Err(XdpError::Occupied(name.clone())),
            Err(_) if config.generic => (attach(XDP_FLAGS_SKB_MODE), AttachMode::Generic),
            Err(errno) => {
                return Err(XdpError::NoDriverSupport {
                    name: name.clone(),
                    source: errno.into(),
                });
            }
        };
        let link = link.map_err(failed("BPF_LINK_CREATE"))?;
        Ok(Self {
            map,
            _link: link,
            mode,
            tagging: false,
        })
    }

    /// From now on, frames of `queue` go to `socket`.
    pub(super) fn claim(&self, queue: u32, socket: &OwnedFd) -> Result<()> {
        set_xskmap_entry(self.map.as_fd(), queue, socket.as_fd())
    }
}

/// `return bpf_redirect_map(&map, ctx->rx_queue_index, unclaimed)`, in the encoding of RFC 9669.
fn redirect_to(map: i32, unclaimed: Unclaimed) -> [Instruction; 6] {
    /// Offset of `rx_queue_index` in `struct xdp_md`.
    const RX_QUEUE_INDEX: i16 = 16;
    const BPF_FUNC_REDIRECT_MAP: i32 = 51;
    const BPF_PSEUDO_MAP_FD: u8 = 1;
    let action = match unclaimed {
        Unclaimed::Drop => 1,
        Unclaimed::Pass => 2,
    };
    [
        Instruction::new(0x61, 2, 1, RX_QUEUE_INDEX, 0), // r2 = *(u32 *)(r1 + 16)
        Instruction::new(0x18, 1, BPF_PSEUDO_MAP_FD, 0, map), // r1 = map, in two slots
        Instruction::new(0x00, 0, 0, 0, 0),              //
        Instruction::new(0xb7, 3, 0, 0, action),         // r3 = action
        Instruction::new(0x85, 0, 0, 0, BPF_FUNC_REDIRECT_MAP), // r0 = bpf_redirect_map(r1, r2, r3)
        Instruction::new(0x95, 0, 0, 0, 0),              // return r0
    ]
}

/// Attaches the program that puts VLAN tags back, in the driver; `None` where kernel or driver can't.
fn attach_tagging(
    map: &OwnedFd,
    unclaimed: Unclaimed,
    interface: u32,
    flags: u32,
) -> Option<OwnedFd> {
    let rx_vlan_tag = function_id("bpf_xdp_metadata_rx_vlan_tag")?;
    let mut program = tag_from_metadata(rx_vlan_tag).to_vec();
    program.extend(redirect_to(map.as_raw_fd(), unclaimed));
    let program = load_xdp(&program, flags | BPF_F_XDP_DEV_BOUND_ONLY, interface).ok()?;
    link_xdp(program.as_fd(), interface, XDP_FLAGS_DRV_MODE).ok()
}

/// If there is a VLAN tag beside the frame, puts it in; drops the frame if that can't be. Ends with the context in r1.
#[rustfmt::skip]
fn tag_from_metadata(rx_vlan_tag: i32) -> [Instruction; 31] {
    const BPF_FUNC_XDP_ADJUST_HEAD: i32 = 44;
    const BPF_PSEUDO_KFUNC_CALL: u8 = 2;
    const XDP_DROP: i32 = 1;
    [
        Instruction::new(0xbf, 6, 1, 0, 0),                                // r6 = r1
        Instruction::new(0x62, 10, 0, -8, 0),                              // proto, tci = 0
        Instruction::new(0xbf, 2, 10, 0, 0),                               // r2 = &proto
        Instruction::new(0x07, 2, 0, 0, -8),
        Instruction::new(0xbf, 3, 10, 0, 0),                               // r3 = &tci
        Instruction::new(0x07, 3, 0, 0, -6),
        Instruction::new(0x85, 0, BPF_PSEUDO_KFUNC_CALL, 0, rx_vlan_tag),  // r0 = bpf_xdp_metadata_rx_vlan_tag(r1, r2, r3)
        Instruction::new(0x55, 0, 0, 22, 0),                               // if r0 != 0 goto end
        Instruction::new(0xbf, 1, 6, 0, 0),                                // r1 = r6
        Instruction::new(0xb7, 2, 0, 0, -4),                               // r2 = -4
        Instruction::new(0x85, 0, 0, 0, BPF_FUNC_XDP_ADJUST_HEAD),         // r0 = bpf_xdp_adjust_head(r1, r2)
        Instruction::new(0x55, 0, 0, 5, 0),                                // if r0 != 0 goto drop
        Instruction::new(0x61, 2, 6, 0, 0),                                // r2 = data
        Instruction::new(0x61, 3, 6, 4, 0),                                // r3 = data_end
        Instruction::new(0xbf, 4, 2, 0, 0),                                // r4 = r2 + 18
        Instruction::new(0x07, 4, 0, 0, 18),
        Instruction::new(0xbd, 4, 3, 2, 0),                                // if r4 <= r3 goto over the next two
        Instruction::new(0xb7, 0, 0, 0, XDP_DROP),                         // drop: r0 = XDP_DROP
        Instruction::new(0x95, 0, 0, 0, 0),                                // return r0
        Instruction::new(0x61, 4, 2, 4, 0),                                // the addresses move to the front
        Instruction::new(0x63, 2, 4, 0, 0),
        Instruction::new(0x61, 4, 2, 8, 0),
        Instruction::new(0x63, 2, 4, 4, 0),
        Instruction::new(0x61, 4, 2, 12, 0),
        Instruction::new(0x63, 2, 4, 8, 0),
        Instruction::new(0x69, 4, 10, -8, 0),                              // proto is in network order
        Instruction::new(0x6b, 2, 4, 12, 0),
        Instruction::new(0x69, 4, 10, -6, 0),                              // tci is not
        Instruction::new(0xdc, 4, 0, 0, 16),
        Instruction::new(0x6b, 2, 4, 14, 0),
        Instruction::new(0xbf, 1, 6, 0, 0),                                // end: r1 = r6
    ]
}

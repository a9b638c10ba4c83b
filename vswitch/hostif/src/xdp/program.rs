//! The XDP program: hand the frame to the socket of its receive queue.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::{Errno, Result};

use super::{AttachMode, Unclaimed, XdpConfig, XdpError, call_failed};
use crate::sys::bpf::{
    BPF_F_XDP_HAS_FRAGS, Instruction, XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, create_xskmap,
    link_xdp, load_xdp, set_xskmap_entry,
};

/// The program, attached to an interface. Closing the link detaches it; the kernel does so when the process dies.
#[derive(Debug)]
pub(super) struct Program {
    map: OwnedFd,
    _link: OwnedFd,
    pub(super) mode: AttachMode,
}

impl Program {
    /// Loads the program for `queues` receive queues and attaches it in the driver, or else, if that is allowed, before
    /// the network stack.
    pub(super) fn attach(
        config: &XdpConfig,
        interface: u32,
        queues: u32,
        multi_buffer: bool,
    ) -> std::result::Result<Self, XdpError> {
        let name = &config.name;
        let failed = |call| move |errno: Errno| call_failed(call, name, errno.into());
        let map = create_xskmap(queues).map_err(failed("BPF_MAP_CREATE"))?;
        let flags = if multi_buffer { BPF_F_XDP_HAS_FRAGS } else { 0 };
        let program = redirect_to(map.as_raw_fd(), config.unclaimed);
        let program = load_xdp(&program, flags).map_err(failed("BPF_PROG_LOAD"))?;
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
        instruction(0x61, 2, 1, RX_QUEUE_INDEX, 0), // r2 = *(u32 *)(r1 + 16)
        instruction(0x18, 1, BPF_PSEUDO_MAP_FD, 0, map), // r1 = map, in two slots
        instruction(0x00, 0, 0, 0, 0),              //
        instruction(0xb7, 3, 0, 0, action),         // r3 = action
        instruction(0x85, 0, 0, 0, BPF_FUNC_REDIRECT_MAP), // r0 = bpf_redirect_map(r1, r2, r3)
        instruction(0x95, 0, 0, 0, 0),              // return r0
    ]
}

fn instruction(opcode: u8, dst: u8, src: u8, offset: i16, imm: i32) -> Instruction {
    let [o0, o1] = offset.to_le_bytes();
    let [i0, i1, i2, i3] = imm.to_le_bytes();
    Instruction([opcode, src << 4 | dst, o0, o1, i0, i1, i2, i3])
}

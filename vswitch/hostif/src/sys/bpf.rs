//! bpf(2), as far as one XDP program with one map, and one that drops, need it (linux/bpf.h).
#![allow(unsafe_code, reason = "bpf(2) takes untyped memory")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{Errno, Result};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;

const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;

/// The program can take frames in several pieces (Linux 5.18).
pub(crate) const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
/// The program may call functions of the driver of the interface that it is loaded for (Linux 6.3).
pub(crate) const BPF_F_XDP_DEV_BOUND_ONLY: u32 = 1 << 6;
/// Run the program after the kernel has made its own buffer of the frame (linux/if_link.h).
pub(crate) const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
/// Run the program in the driver (linux/if_link.h).
pub(crate) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `struct bpf_insn`: one instruction, from its first byte on.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction([u8; 8]);

impl Instruction {
    /// An instruction in the encoding of RFC 9669.
    pub(crate) const fn new(opcode: u8, dst: u8, src: u8, offset: i16, imm: i32) -> Self {
        let [o0, o1] = offset.to_le_bytes();
        let [i0, i1, i2, i3] = imm.to_le_bytes();
        Self([opcode, src << 4 | dst, o0, o1, i0, i1, i2, i3])
    }
}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Calls `bpf(command, attributes)`; gives what it returns.
///
/// # Safety
/// `A` must be the beginning of what `command` takes as its attributes, without padding, and each address in
/// it must be valid for what the command does with it.
unsafe fn bpf<A>(command: libc::c_int, attributes: &A) -> Result<i32> {
    // SAFETY: the kernel reads `size_of::<A>()` bytes, takes what is behind as zero, and writes none of them for the
    // commands of this module; the addresses inside are the caller's promise.
    let got = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const *attributes,
            size_of::<A>(),
        )
    };
    if got < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(got as i32)
}

/// Takes the file descriptor that a command made.
///
/// # Safety
/// `fd` must be new and nobody else's.
unsafe fn own(fd: i32) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Makes a map from queue numbers below `entries` to AF_XDP sockets.
pub(crate) fn create_xskmap(entries: u32) -> Result<OwnedFd> {
    let attributes = MapCreate {
        map_type: BPF_MAP_TYPE_XSKMAP,
        key_size: 4,
        value_size: 4,
        max_entries: entries,
    };
    // SAFETY: BPF_MAP_CREATE takes these four fields first, no addresses, and returns a new file descriptor.
    unsafe { Ok(own(bpf(BPF_MAP_CREATE, &attributes)?)) }
}

/// Puts `socket` into a map made by [`create_xskmap`], at `queue`.
pub(crate) fn set_xskmap_entry(
    map: BorrowedFd<'_>,
    queue: u32,
    socket: BorrowedFd<'_>,
) -> Result<()> {
    let value = socket.as_raw_fd();
    let attributes = MapUpdate {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: (&raw const queue).expose_provenance() as u64,
        value: (&raw const value).expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: BPF_MAP_UPDATE_ELEM takes these fields; key and value are 4 bytes as the map was made with, and live.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &attributes) }.map(|_| ())
}

/// What kind of program, and where it will be attached.
#[derive(Clone, Copy)]
struct Kind {
    prog_type: u32,
    attach_type: u32,
}

const XDP: Kind = Kind {
    prog_type: BPF_PROG_TYPE_XDP,
    attach_type: BPF_XDP,
};
const TCX_INGRESS: Kind = Kind {
    prog_type: BPF_PROG_TYPE_SCHED_CLS,
    attach_type: BPF_TCX_INGRESS,
};

/// Loads an XDP program; with [`BPF_F_XDP_DEV_BOUND_ONLY`] for `interface` alone, else that is 0.
pub(crate) fn load_xdp(
    instructions: &[Instruction],
    flags: u32,
    interface: u32,
) -> Result<OwnedFd> {
    load(XDP, instructions, flags, interface)
}

/// Loads a program for frames on their way from an interface to the network stack.
pub(crate) fn load_ingress(instructions: &[Instruction]) -> Result<OwnedFd> {
    load(TCX_INGRESS, instructions, 0, 0)
}

fn load(kind: Kind, instructions: &[Instruction], flags: u32, interface: u32) -> Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let attributes = ProgLoad {
        prog_type: kind.prog_type,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: flags,
        prog_name: *b"vswitch_uplink\0\0",
        prog_ifindex: interface,
        expected_attach_type: kind.attach_type,
    };
    // SAFETY: BPF_PROG_LOAD takes these fields; `insns` is `insn_cnt` instructions, `license` a C string, both live;
    // it returns a new file descriptor.
    unsafe { Ok(own(bpf(BPF_PROG_LOAD, &attributes)?)) }
}

/// Attaches an XDP program to an interface for as long as the returned file is open.
pub(crate) fn link_xdp(program: BorrowedFd<'_>, interface: u32, flags: u32) -> Result<OwnedFd> {
    link(XDP, program, interface, flags)
}

/// Attaches a program of [`load_ingress`] to an interface for as long as the returned file is open (Linux 6.6).
pub(crate) fn link_ingress(program: BorrowedFd<'_>, interface: u32) -> Result<OwnedFd> {
    link(TCX_INGRESS, program, interface, 0)
}

fn link(kind: Kind, program: BorrowedFd<'_>, interface: u32, flags: u32) -> Result<OwnedFd> {
    let attributes = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_ifindex: interface,
        attach_type: kind.attach_type,
        flags,
    };
    // SAFETY: BPF_LINK_CREATE takes these four fields first, no addresses, and returns a new file descriptor.
    unsafe { Ok(own(bpf(BPF_LINK_CREATE, &attributes)?)) }
}

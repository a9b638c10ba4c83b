//! The promises themselves.

use super::{Bound, Of, Promise};
use crate::groups::Group;
use crate::peers::{BRIDGE, OVS};
use crate::subject::OURS;

const fn ours(case: &'static str, figure: &'static str) -> Of {
    Of::One([case, OURS, figure])
}

const fn to_ovs(case: &'static str, figure: &'static str) -> Of {
    Of::Ratio([case, OURS, figure], [case, OVS, figure])
}

const fn at_least(id: &'static str, group: Group, of: Of, text: &'static str) -> Promise {
    Promise {
        id,
        text,
        group,
        of,
        bound: Bound::AtLeast,
        margin: (0.85, 0.0),
    }
}

const fn at_most(id: &'static str, group: Group, of: Of, text: &'static str) -> Promise {
    Promise {
        id,
        text,
        group,
        of,
        bound: Bound::AtMost,
        margin: (1.3, 0.0),
    }
}

/// As [`at_most`], with a margin that is added.
const fn hardly_more(id: &'static str, of: Of, more: f64, text: &'static str) -> Promise {
    Promise {
        margin: (1.0, more),
        ..at_most(id, Group::Sizes, of, text)
    }
}

const TCP_TAP: [&str; 3] = ["TCP, MTU 1500, TAP to TAP", OURS, "gbps"];
const TCP_NIC: [&str; 3] = ["TCP, MTU 1500, host NIC to host NIC", OURS, "gbps"];
const TCP_BRIDGE: [&str; 3] = ["TCP, MTU 1500, cable to cable", BRIDGE, "gbps"];

/// All that is promised.
pub(super) const PROMISES: [Promise; 35] = [
    at_least(
        "ovs-64",
        Group::Sizes,
        to_ovs("64 B", "mpps"),
        "Frames of 64 bytes, as a multiple of OVS-DPDK's rate",
    ),
    at_least(
        "ovs-512",
        Group::Sizes,
        to_ovs("512 B", "mpps"),
        "Frames of 512 bytes, as a multiple of OVS-DPDK's rate",
    ),
    at_least(
        "ovs-1518",
        Group::Sizes,
        to_ovs("1518 B", "mpps"),
        "Frames of 1518 bytes, as a multiple of OVS-DPDK's rate",
    ),
    at_least(
        "ovs-touched",
        Group::Sizes,
        to_ovs("1518 B, touched", "mpps"),
        "The same with payload written and read by the guests",
    ),
    at_least(
        "ovs-9000",
        Group::Sizes,
        to_ovs("9000 B", "mpps"),
        "Frames of 9000 bytes, as a multiple of OVS-DPDK's rate",
    ),
    at_least(
        "ovs-tso",
        Group::Sizes,
        to_ovs("64 KB TSO", "mpps"),
        "Large TCP frames, as a multiple of OVS-DPDK's rate",
    ),
    at_most(
        "cycles-64",
        Group::Sizes,
        ours("64 B", "cycles"),
        "Cycles of the switch for a frame of 64 bytes, in turns with frames",
    ),
    at_most(
        "cycles-1518",
        Group::Sizes,
        ours("1518 B", "cycles"),
        "Cycles of the switch for a frame of 1518 bytes",
    ),
    hardly_more(
        "copied-64",
        ours("64 B", "copied"),
        0.01,
        "Bytes copied for each byte delivered, frames of 64 bytes",
    ),
    hardly_more(
        "copied-1518",
        ours("1518 B", "copied"),
        0.01,
        "Bytes copied for each byte delivered, frames of 1518 bytes",
    ),
    hardly_more(
        "copied-tso",
        ours("64 KB TSO", "copied"),
        0.01,
        "Bytes copied for each byte delivered, large TCP frames",
    ),
    hardly_more(
        "allocations",
        ours("64 B", "allocations"),
        0.0,
        "Allocations for each frame",
    ),
    hardly_more(
        "notifications",
        ours("64 B", "notifications"),
        0.001,
        "Notifications for each frame to guests that poll",
    ),
    hardly_more(
        "syscalls",
        ours("64 B", "syscalls"),
        0.001,
        "System calls for each frame between guests that poll",
    ),
    hardly_more(
        "lost",
        ours("64 B", "lost"),
        0.01,
        "Share of frames lost when the rings are kept full",
    ),
    at_least(
        "destinations",
        Group::Variants,
        ours("64 B, 50000 destinations", "of_plain"),
        "50,000 destination addresses, as a share of the rate with one",
    ),
    at_least(
        "sources",
        Group::Variants,
        ours("64 B, 50000 sources", "of_plain"),
        "50,000 source addresses, as a share of the rate with one",
    ),
    at_least(
        "packed",
        Group::Variants,
        ours("64 B, packed", "of_plain"),
        "Packed rings, as a share of the rate of split ones",
    ),
    at_most(
        "p50",
        Group::Latency,
        to_ovs("64 B at 100,000/s", "p50_us"),
        "Median latency at 100,000 frames/s, as a multiple of OVS-DPDK's",
    ),
    at_most(
        "p99-slice",
        Group::Latency,
        to_ovs("64 B at 100,000/s", "p99_slice_us"),
        "The same of the 99th percentile in 10 ms, the median of many",
    ),
    at_most(
        "p99",
        Group::Latency,
        to_ovs("64 B at 100,000/s", "p99_us"),
        "99th percentile at 100,000 frames/s, as a multiple of OVS-DPDK's",
    ),
    at_least(
        "no-loss",
        Group::Rfc2544,
        ours("64 B", "of_maximum"),
        "Throughput without loss (RFC 2544), as a share of the maximum",
    ),
    at_least(
        "legacy-64",
        Group::Legacy,
        ours("64 B", "mpps"),
        "Frames of 64 bytes between two legacy adapters, in millions a second",
    ),
    at_least(
        "legacy-1514",
        Group::Legacy,
        ours("1514 B", "gbps"),
        "Frames of 1514 bytes between two legacy adapters, in Gb/s",
    ),
    at_least(
        "learning",
        Group::Rfc2889,
        ours("learning of 100000 addresses", "learnt"),
        "Share of 100,000 addresses that are learnt as fast as they come (RFC 2889)",
    ),
    at_most(
        "calls-tap",
        Group::Ports,
        ours("TAP → vhost-user, 64 B", "syscalls"),
        "System calls for each frame from a TAP port to a guest",
    ),
    at_most(
        "calls-xdp",
        Group::Ports,
        ours("AF_XDP → vhost-user, 64 B", "syscalls"),
        "System calls for each frame from an AF_XDP port to a guest",
    ),
    at_least(
        "tcp-tap",
        Group::Tcp,
        Of::Ratio(TCP_TAP, TCP_BRIDGE),
        "TCP between two TAP ports, as a multiple of the kernel bridge between cables",
    ),
    at_least(
        "tcp-host-nic",
        Group::Tcp,
        Of::Ratio(TCP_NIC, TCP_BRIDGE),
        "TCP between two host NICs, as a multiple of the kernel bridge between cables",
    ),
    at_least(
        "tcp-af-xdp",
        Group::Tcp,
        to_ovs("TCP, MTU 1500, AF_XDP to AF_XDP", "gbps"),
        "TCP between two AF_XDP ports, as a multiple of OVS-DPDK's",
    ),
    at_most(
        "ping",
        Group::Tcp,
        ours("ping, TAP to TAP", "rtt_us"),
        "Median ping through two TAP ports, in µs",
    ),
    at_most(
        "idle",
        Group::Footprint,
        ours("vswitchd with 20 idle guests", "cpu"),
        "Processor time of vswitchd with 20 idle guests, as a share of a core",
    ),
    at_most(
        "memory-itself",
        Group::Footprint,
        ours("vswitchd without a network", "kib"),
        "Memory of vswitchd, in KiB",
    ),
    at_most(
        "memory-network",
        Group::Footprint,
        ours("a network", "kib"),
        "Memory of a network, in KiB",
    ),
    at_most(
        "memory-port",
        Group::Footprint,
        ours("a vhost-user port and its guest", "kib"),
        "Memory of a vhost-user port, in KiB",
    ),
];

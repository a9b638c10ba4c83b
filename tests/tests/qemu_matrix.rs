//! All pairs with a QEMU or DPDK guest; see [`vswitch_tests::matrix`] for what is tried and what is not.

use anyhow::Result;
use vswitch_tests::matrix::{Matrix, Tagging, Uplink};

#[test]
fn untagged() -> Result<()> {
    Matrix::with_guests(Uplink::Xdp, Tagging::Untagged)?.run()
}

#[test]
fn access() -> Result<()> {
    Matrix::with_guests(Uplink::Xdp, Tagging::Access)?.run()
}

#[test]
fn trunk() -> Result<()> {
    Matrix::with_guests(Uplink::Xdp, Tagging::Trunk)?.run()
}

#[test]
fn trunk_over_a_packet_socket() -> Result<()> {
    Matrix::with_guests(Uplink::Packet, Tagging::Trunk)?.run()
}

//! All pairs of host NIC, TAP port and uplink; see [`vswitch_tests::matrix`] for what is tried and what is not.

use anyhow::Result;
use vswitch_tests::matrix::{Matrix, Tagging, Uplink};

#[test]
fn untagged_over_af_xdp() -> Result<()> {
    Matrix::new(Uplink::Xdp, Tagging::Untagged)?.run()
}

#[test]
fn access_over_af_xdp_with_two_workers() -> Result<()> {
    Matrix::with_two_workers(Uplink::Xdp, Tagging::Access)?.run()
}

#[test]
fn trunk_over_af_xdp() -> Result<()> {
    Matrix::new(Uplink::Xdp, Tagging::Trunk)?.run()
}

#[test]
fn untagged_over_a_packet_socket() -> Result<()> {
    Matrix::new(Uplink::Packet, Tagging::Untagged)?.run()
}

#[test]
fn access_over_a_packet_socket() -> Result<()> {
    Matrix::new(Uplink::Packet, Tagging::Access)?.run()
}

#[test]
fn trunk_over_a_packet_socket() -> Result<()> {
    Matrix::new(Uplink::Packet, Tagging::Trunk)?.run()
}

//! All pairs with Linux's `hv_netvsc` on a synthetic adapter; see [`vswitch_tests::matrix`] for what is tried and what is
//! not.

use anyhow::Result;
use vswitch_tests::matrix::{Matrix, Tagging};

#[test]
fn untagged() -> Result<()> {
    Matrix::with_machine(Tagging::Untagged)?.run()
}

#[test]
fn trunk() -> Result<()> {
    Matrix::with_machine(Tagging::Trunk)?.run()
}

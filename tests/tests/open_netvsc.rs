//! Saving a machine while Linux's `hv_netvsc` receives.

use anyhow::{Result, ensure};
use vswitch_tests::vm::scene::{GUEST, Scene};

#[test]
fn a_transfer_outlives_a_save() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.transfer(|scene| {
        scene.lab.ctl("vm save guest")?;
        scene.lab.wait_vm("guest", "saved")?;
        ensure!(!scene.host.reaches(GUEST), "a saved guest answers");
        scene.lab.ctl("vm start guest")?;
        scene.console = scene.lab.console("guest")?;
        Ok(())
    })?;
    scene.lab.counters_add_up()
}

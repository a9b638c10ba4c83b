//! What a user can do to a virtual machine while Linux's `hv_netvsc` sends and receives.

use anyhow::{Result, ensure};
use vswitch_tests::{
    Lab,
    vm::{
        ours::BOOT_LIMIT,
        scene::{GUEST, Scene},
    },
};

#[test]
fn a_transfer_outlives_pause_save_and_the_end_of_vswitchd() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.transfer(|scene| {
        scene.lab.ctl("vm pause guest")?;
        ensure!(!scene.host.reaches(GUEST), "a paused guest answers");
        scene.lab.ctl("vm resume guest").map(drop)
    })?;
    scene.transfer(Scene::save_and_start)?;
    scene.transfer(|scene| {
        scene.lab.daemon.kill()?;
        scene.lab.daemon.start_again()
    })?;
    scene.answers("after vswitchd was killed")?;
    scene.lab.counters_add_up()
}

#[test]
fn a_guest_that_starts_again_finds_its_adapter_as_new() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.console.begin("reboot -f")?;
    scene.console.wait_ready(BOOT_LIMIT)?;
    scene.answers("after it has rebooted")?;

    scene.lab.ctl("vm reset guest")?;
    scene.console.wait_ready(BOOT_LIMIT)?;
    scene.answers("after a reset")?;
    scene.transfer(|_| Ok(()))?;

    // The end of init is the end of Linux, which says so in the registers for that.
    let crash = |lab: &Lab| Ok::<_, anyhow::Error>(lab.vm("guest")?["crash"].clone());
    ensure!(crash(&scene.lab)?.is_null(), "the guest has crashed before");
    scene.console.begin("exit")?;
    scene.console.wait_ready(BOOT_LIMIT)?;
    scene.answers("after a crash")?;
    let report = crash(&scene.lab)?;
    // The second number is the guest's name of itself: Linux, open source.
    let who = report.pointer("/parameters/1").and_then(|id| id.as_u64());
    ensure!(who.is_some_and(|id| id >> 48 == 0x8100), "{report}");
    scene.lab.counters_add_up()
}

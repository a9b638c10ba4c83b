//! What a user can do to a virtual machine while Linux's `hv_netvsc` sends and receives.

use std::time::Duration;

use anyhow::{Result, ensure};
use vswitch_tests::{
    Lab, Station, cmd,
    station::Address,
    vm::{
        Console, Netboot,
        netboot::noise,
        ours::{BOOT_LIMIT, STATE_LIMIT, ip_parameter},
    },
};

const fn at(host: u8) -> Address {
    Address { net: 74, host }
}
const HOST: Address = at(1);
const GUEST: Address = at(2);
/// Bytes of a transfer that takes a slow guest some ten seconds.
const LONG: usize = 300_000;

struct Scene {
    lab: Lab,
    host: Station,
    console: Console,
}

impl Scene {
    fn new() -> Result<Scene> {
        let lab = Lab::start()?;
        lab.ctl("network create inner --type internal")?;
        let host = lab.host_station("inner", HOST)?;
        let ip = ip_parameter(&GUEST.ip(false), "eth0");
        lab.create_synthetic_vm("guest", &["net=inner"], &ip)?;
        let mut console = lab.start_vm("guest")?;
        console.wait_ready(BOOT_LIMIT)?;
        Ok(Scene { lab, host, console })
    }

    fn answers(&mut self, what: &str) -> Result<()> {
        cmd::wait_until(&format!("the guest to answer {what}"), STATE_LIMIT, || {
            Ok(self.host.reaches(GUEST))
        })
    }

    /// A file comes through unharmed, though `meanwhile` happens on its way.
    fn transfer(&mut self, meanwhile: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
        let web = Netboot::start(&self.lab.host, "vsw-inner", HOST)?;
        let hash = web.offer("file", &noise(LONG))?;
        let command = format!(
            "wget -q -O /tmp/file {}; sha256sum /tmp/file",
            web.url("file")
        );
        let number = self.console.begin(&command)?;
        std::thread::sleep(Duration::from_secs(3));
        meanwhile(self)?;
        let (_, said) = self.console.end(number)?;
        ensure!(
            said.starts_with(&hash),
            "`{command}` gave {said}, not {hash}"
        );
        Ok(())
    }

    fn counters_add_up(&self) -> Result<()> {
        let stats = self.lab.daemon.stats()?;
        ensure!(stats.wrong().is_empty(), "{:?}", stats.wrong());
        Ok(())
    }
}

#[test]
fn a_transfer_outlives_pause_save_and_the_end_of_vswitchd() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.transfer(|scene| {
        scene.lab.ctl("vm pause guest")?;
        ensure!(!scene.host.reaches(GUEST), "a paused guest answers");
        scene.lab.ctl("vm resume guest").map(drop)
    })?;
    scene.transfer(|scene| {
        scene.lab.daemon.kill()?;
        scene.lab.daemon.start_again()
    })?;
    scene.answers("after vswitchd was killed")?;
    scene.counters_add_up()?;
    scene.transfer(|scene| {
        scene.lab.ctl("vm save guest")?;
        scene.lab.wait_vm("guest", "saved")?;
        ensure!(!scene.host.reaches(GUEST), "a saved guest answers");
        scene.lab.ctl("vm start guest")?;
        scene.console = scene.lab.console("guest")?;
        Ok(())
    })?;
    scene.counters_add_up()
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
    scene.counters_add_up()
}

//! Hyper-V's integration services with Linux's own drivers (`hv_utils`), seen from both sides.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vswitch_tests::{
    Lab, cmd,
    vm::{
        Console, Netboot, image,
        ours::BOOT_LIMIT,
        scene::{GUEST, Scene},
    },
};

/// How long a guest may take to be where it is wanted.
const LIMIT: Duration = Duration::from_secs(60);
/// How far a clock may be off: what a slow guest takes to say the time.
const OFF: u64 = 5;

/// What `vm show` says of the drivers of services.
fn services(lab: &Lab) -> Result<Vec<(String, String)>> {
    let shown = lab.vm("guest")?;
    let services = shown.get("services").and_then(Value::as_array);
    let text = |service: &Value, key| service.get(key)?.as_str().map(str::to_owned);
    services
        .context("no services in `vm show`")?
        .iter()
        .map(|service| text(service, "name").zip(text(service, "driver")))
        .collect::<Option<_>>()
        .with_context(|| format!("{shown}"))
}

/// Waits until the guest uses exactly these of the services.
fn wait_used(lab: &Lab, wanted: &[&str]) -> Result<()> {
    let mut found = Vec::new();
    let waited = cmd::wait_until("drivers of services", LIMIT, || {
        found = services(lab)?;
        let used = found.iter().filter(|(_, driver)| driver == "bound");
        Ok(used
            .map(|(name, _)| name.as_str())
            .eq(wanted.iter().copied()))
    });
    waited.with_context(|| format!("wanted {wanted:?} of {found:?}"))
}

/// Whether the guest's clock shows the time of day.
fn is_right(console: &mut Console) -> Result<bool> {
    let said = console.run("date +%s")?;
    let guest: u64 = said.trim().parse().with_context(|| said.clone())?;
    let host = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(guest.abs_diff(host) <= OFF)
}

/// Puts the guest's clock wrong.
fn put_wrong(console: &mut Console) -> Result<()> {
    console.run("date -s 2001.02.03-04:05")?;
    ensure!(!is_right(console)?, "its clock cannot be set");
    Ok(())
}

/// Interrupts of the heartbeat's channel, as the guest counts them.
fn beats(console: &mut Console) -> Result<u64> {
    let said = console.run(
        "cd /sys/bus/vmbus/devices; for d in *; do grep -q 57164f39 $d/class_id && cat $d/channels/*/interrupts; done; cd /",
    )?;
    said.trim().parse().with_context(|| said.clone())
}

#[test]
fn a_guest_beats_has_the_time_says_what_it_knows_and_shuts_down() -> Result<()> {
    let mut scene = Scene::with(|lab: &Lab, name, adapters, parameters| {
        lab.create_full_vm(name, adapters, parameters, 1)
    })?;
    let drivers = ["shutdown", "heartbeat", "time-sync"];
    // The driver of the fourth waits for a program.
    wait_used(&scene.lab, &drivers)?;
    let before = beats(&mut scene.console)?;
    let console = &mut scene.console;
    cmd::wait_until("beats in the guest", LIMIT, || Ok(beats(console)? > before))?;

    ensure!(is_right(&mut scene.console)?, "the guest's clock is wrong");
    put_wrong(&mut scene.console)?;
    scene.lab.ctl("vm pause guest")?;
    scene.lab.ctl("vm resume guest")?;
    let console = &mut scene.console;
    cmd::wait_until("the time after a pause", LIMIT, || is_right(console))?;

    facts(&mut scene)?;
    let all = ["shutdown", "heartbeat", "time-sync", "key-value"];
    wait_used(&scene.lab, &all)?;

    put_wrong(&mut scene.console)?;
    scene.save_and_start()?;
    wait_used(&scene.lab, &all)?;
    let console = &mut scene.console;
    cmd::wait_until("the time after it was saved", LIMIT, || is_right(console))?;
    has_fact(&scene.lab, "OSName", "a test")?;

    // It is asked by the service: its power button is not pressed.
    let asked = scene.lab.ctl("vm shutdown guest --timeout 50");
    cmd::wait_until("the guest to shut down", BOOT_LIMIT, || {
        Ok(scene.lab.vm_state("guest")? == "off")
    })
    .with_context(|| format!("it was asked to: {asked:?}"))?;
    let said = scene.console.said();
    ensure!(!said.contains("power button"), "{said}");
    let shown = scene.lab.vm("guest")?.to_string();
    ensure!(shown.contains("the guest switched itself off"), "{shown}");
    scene.lab.counters_add_up()
}

/// A program in the guest answers what the host asks of the guest's facts.
fn facts(scene: &mut Scene) -> Result<()> {
    let address = GUEST.ip(false);
    let web = Netboot::start(&scene.lab.host, "vsw-inner", scene.host.address)?;
    web.offer_packed("guest.gz", &image::guest_program()?)?;
    scene.console.run(&format!(
        "cd /tmp && wget -q -O - {} | gunzip >vswitch-guest && chmod +x vswitch-guest",
        web.url("guest.gz")
    ))?;
    scene.console.run(&format!(
        "./vswitch-guest facts NetworkAddressIPv4={address} 'OSName=a test' >facts 2>&1 &"
    ))?;
    let told = has_fact(&scene.lab, "NetworkAddressIPv4", &address);
    if let Err(error) = told {
        let said = scene.console.output("cat facts")?.1;
        return Err(error.context(format!("its program said: {said}")));
    }
    has_fact(&scene.lab, "OSName", "a test")
}

fn has_fact(lab: &Lab, name: &str, value: &str) -> Result<()> {
    let mut facts = Value::Null;
    let waited = cmd::wait_until("a fact of the guest", LIMIT, || {
        facts = lab.vm("guest")?.get("facts").cloned().unwrap_or_default();
        Ok(facts.get(name).and_then(Value::as_str) == Some(value))
    });
    waited.with_context(|| format!("wanted {name} = {value} in {facts}"))
}

//! A guest of four processors, its second serial port, and its end when it ignores its power button.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Lab, Station, cmd,
    station::Address,
    vm::{Console, ours::STATE_LIMIT},
};

const fn at(host: u8) -> Address {
    Address { net: 74, host }
}
const HOST: Address = at(1);
const GUEST: Address = at(2);

/// A guest with as many processors as the default profile has at most, all of which run and share its interrupts.
fn four_processors(lab: &Lab) -> Result<(Station, Console)> {
    lab.ctl("network create inner --type internal")?;
    let create = |lab: &Lab, name: &str, adapters: &[&str], parameters: &str| {
        lab.create_vm(name, adapters, parameters)?;
        // Without the integration service, which would be asked in place of the button.
        lab.ctl(&format!("vm set {name} --cpus 4 --services none"))
            .map(drop)
    };
    let wide = ["vm", "create", "wide", "--cpus", "5"];
    lab.refused(&wide, &["1 to 4", "profile modern"])?;
    lab.ready_guest(create, HOST, GUEST)
}

/// The second serial port is a socket of its own, in both directions.
fn second_port(lab: &Lab, console: &mut Console) -> Result<()> {
    let path = lab.daemon.run_dir().join("vm/guest.com2.sock");
    let mut second = UnixStream::connect(&path).context("connecting with COM2")?;
    second.set_read_timeout(Some(STATE_LIMIT))?;
    console.run("stty -F /dev/ttyS1 raw -echo && echo by the second port >/dev/ttyS1")?;
    let mut heard = [0; 19];
    second.read_exact(&mut heard).context("reading COM2")?;
    ensure!(&heard == b"by the second port\n", "{heard:?}");
    console.run("head -n 1 /dev/ttyS1 >/tmp/heard & sleep 1")?;
    second.write_all(b"to the guest\n")?;
    cmd::wait_until("the guest to hear it", STATE_LIMIT, || {
        Ok(console.run("cat /tmp/heard")?.contains("to the guest"))
    })
}

#[test]
fn a_guest_of_four_processors_that_ignores_its_button_is_turned_off_in_time() -> Result<()> {
    let mut lab = Lab::start()?;
    let (mut host, mut console) = four_processors(&lab)?;
    ensure!(console.run("grep -c ^processor /proc/cpuinfo")?.trim() == "4");
    console.ping(HOST)?;
    for payload in [1, 1472] {
        host.ping(GUEST, false, payload)?;
    }
    second_port(&lab, &mut console)?;
    // Nobody reads what the button says then.
    console.run("killall head")?;
    lab.ctl("vm set guest --auto-stop shutdown,timeout=4 --auto-start nothing")?;
    drop((host, console));
    let begin = Instant::now();
    lab.daemon.terminate()?;
    let took = begin.elapsed();
    ensure!(took >= Duration::from_secs(4), "it had {took:?} only");
    let log = lab.daemon.log();
    ensure!(log.contains("the guest is not off after 4 s"), "{log}");
    lab.daemon.start_again()?;
    ensure!(lab.vm_state("guest")? == "off", "it is not off");
    Ok(())
}

//! What a user can do to a virtual machine, while somebody pings it and holds a TCP connection with it.

use std::{
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use vswitch_tests::{
    Lab, Station, cmd,
    station::Address,
    vm::{
        Console,
        ours::{BOOT_LIMIT, STATE_LIMIT, ip_parameter},
    },
};

const fn at(host: u8) -> Address {
    Address { net: 72, host }
}
const LAN: Address = at(1);
const GUEST: Address = at(2);
const TICKS_PORT: u16 = 7100;
/// Verbs that a machine refuses in each state.
const ILLEGAL: [(&str, &[&str]); 4] = [
    (
        "off",
        &["pause", "resume", "reset", "save", "shutdown", "turn-off"],
    ),
    ("running", &["start", "resume"]),
    ("paused", &["start", "pause", "shutdown"]),
    ("saved", &["pause", "resume", "reset", "save", "shutdown"]),
];

/// A guest on an external network, with a station on the LAN behind it: nothing of that station's ends with vswitchd.
struct Scene {
    lab: Lab,
    lan: Station,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::start()?;
        let cable = lab.lan()?;
        lab.ctl("network create office --type external --uplink eth1")?;
        let lan = Station::inside("lan", &cable, "eth0", None, LAN)?;
        let ip = ip_parameter(&GUEST.ip(false), "eth0");
        lab.create_vm("guest", &["net=office"], &ip)?;
        Ok(Self { lab, lan })
    }

    fn boot(&self) -> Result<Console> {
        let mut console = self.lab.start_vm("guest")?;
        console.wait_ready(BOOT_LIMIT)?;
        Ok(console)
    }

    fn answers(&mut self, what: &str) -> Result<()> {
        cmd::wait_until(&format!("the guest to answer {what}"), STATE_LIMIT, || {
            Ok(self.lan.reaches(GUEST))
        })
    }

    fn silent(&mut self, what: &str) -> Result<()> {
        ensure!(!self.lan.reaches(GUEST), "the guest answers {what}");
        Ok(())
    }

    fn refuses(&self, state: &str) -> Result<()> {
        ensure!(self.lab.vm_state("guest")? == state, "it is not {state}");
        let verbs = ILLEGAL.iter().find(|(name, _)| *name == state);
        for verb in verbs.context("an unknown state")?.1 {
            self.lab
                .refused(&["vm", verb, "guest"], &["guest", state])?;
            ensure!(
                self.lab.vm_state("guest")? == state,
                "{verb} changed {state}"
            );
        }
        Ok(())
    }
}

#[test]
fn every_verb_under_ping() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.refuses("off")?;
    scene.silent("while it is off")?;
    let mut console = scene.boot()?;
    scene.answers("once it runs")?;
    scene.refuses("running")?;

    scene.lab.ctl("vm pause guest")?;
    scene.silent("while it is paused")?;
    let stats = scene.lab.daemon.stats()?;
    let drops = &stats.port("office", "uplink")?.drops;
    ensure!(
        drops
            .iter()
            .any(|(reason, count)| reason == "paused" && *count > 0),
        "what it was sent was not dropped as paused: {drops:?}"
    );
    scene.refuses("paused")?;
    scene.lab.ctl("vm resume guest")?;
    scene.answers("after it was resumed")?;
    console.run("true")?;

    scene.lab.ctl("vm reset guest")?;
    console.wait_ready(BOOT_LIMIT)?;
    scene.answers("after a reset")?;
    ensure!(scene.lab.vm_state("guest")? == "running");

    scene.lab.ctl("vm turn-off guest")?;
    scene.lab.wait_vm("guest", "off")?;
    scene.silent("after it was turned off")?;

    // Without the integration service, which would ask the guest first.
    scene.lab.ctl("vm set guest --services none")?;
    let mut console = scene.boot()?;
    scene.answers("after another start")?;
    // The guest does it, not the monitor.
    let asked = scene.lab.ctl("vm shutdown guest --timeout 50");
    // Where ring 0 is emulated, on a machine that does something else too, it may take longer than a command may.
    cmd::wait_until("the guest to shut down", BOOT_LIMIT, || {
        Ok(scene.lab.vm_state("guest")? == "off")
    })
    .with_context(|| format!("it was asked to: {asked:?}"))?;
    console.wait_for("power button pressed", STATE_LIMIT)?;
    let shown = scene.lab.vm("guest")?.to_string();
    ensure!(shown.contains("the guest switched itself off"), "{shown}");
    scene.silent("after it was shut down")?;
    scene.lab.counters_add_up()?;
    scene.lab.ctl("vm delete guest").map(drop)
}

#[test]
fn a_saved_machine_goes_on_after_everything_was_killed() -> Result<()> {
    let mut scene = Scene::new()?;
    let listener = scene.lab_listener()?;
    let mut console = scene.boot()?;
    scene.answers("once it runs")?;
    console.run("cd /tmp && echo precious >note")?;
    console.run(&format!(
        "(while sleep 1; do echo tick; done | nc {} {TICKS_PORT}) >/dev/null 2>&1 &",
        LAN.ip(false)
    ))?;
    let mut ticks = Ticks::accept(&listener)?;
    ticks.next()?;

    scene.lab.ctl("vm save guest")?;
    scene.lab.wait_vm("guest", "saved")?;
    scene.silent("while it is saved")?;
    scene.refuses("saved")?;
    scene.lab.daemon.kill()?;
    scene.lab.daemon.start_again()?;
    ensure!(scene.lab.vm_state("guest")? == "saved");

    let mut console = scene.lab.start_vm("guest")?;
    scene.answers("after it was restored")?;
    ensure!(console.run("pwd; cat note")? == "/tmp\nprecious\n");
    // The same connection, from the same program.
    ticks.next()?;
    ticks.next()?;
    scene.lab.counters_add_up()
}

impl Scene {
    fn lab_listener(&self) -> Result<TcpListener> {
        let netns = self
            .lan
            .netns()
            .context("the LAN's station has no namespace")?;
        Ok(netns.inside(|| TcpListener::bind(("0.0.0.0", TICKS_PORT)))??)
    }
}

/// The lines that a guest sends, one a second.
struct Ticks(BufReader<TcpStream>);

impl Ticks {
    fn accept(listener: &TcpListener) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let mut accepted = None;
        cmd::wait_until("the guest to connect", BOOT_LIMIT, || {
            accepted = listener.accept().ok();
            Ok(accepted.is_some())
        })?;
        let (stream, _) = accepted.context("no connection")?;
        stream.set_nonblocking(false)?;
        // Longer than the guest waits before it sends again what was lost.
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Waits for one that comes from now on.
    fn next(&mut self) -> Result<()> {
        let waiting = self.0.buffer().len();
        self.0.consume(waiting);
        let mut line = String::new();
        self.0
            .read_line(&mut line)
            .context("waiting for the guest's next line")?;
        ensure!(line.ends_with('\n'), "the guest closed the connection");
        Ok(())
    }
}

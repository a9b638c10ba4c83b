//! The demonstration: networks of every type, hosts and a guest on them, and who reached whom.

mod machines;
mod report;

use std::{
    fs::OpenOptions,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vswitch_tests::{Lab, Station, cmd, lab::UPLINK, netns, paths, station::Address};

use self::{
    machines::{Machines, Played},
    report::{Attempt, Speed},
};
use crate::{cargo, say::say, setup};

/// The private networks share an address range, so that only the switch keeps them apart.
const PRIVATE: u8 = 51;
const OFFICE: u8 = 52;
const INNER: u8 = 53;

/// What is tried: from, to, and whether it must succeed.
const ATTEMPTS: [(&str, &str, bool); 15] = [
    ("alice", "bob", true),
    ("bob", "guest", true),
    ("guest", "alice", true),
    ("carol", "lan", true),
    ("lan", "carol", true),
    ("host@office", "lan", true),
    ("host@office", "carol", true),
    ("host@inner", "dave", true),
    ("dave", "host@inner", true),
    ("red1", "red2", true),
    ("red1", "blue", false),
    ("blue", "red2", false),
    ("alice", "red1", false),
    ("blue", "bob", false),
    ("guest", "red2", false),
];
/// Whose throughput is measured, from and to.
const SPEEDS: [(&str, &str); 4] = [
    ("alice", "bob"),
    ("guest", "alice"),
    ("carol", "lan"),
    ("host@inner", "dave"),
];

/// Runs the demonstration and returns whether all went as it must.
pub(crate) fn run() -> Result<bool> {
    let start = Instant::now();
    let user = cmd::run(&["id", "-u"])?;
    ensure!(
        user.trim() == "0",
        "the demonstration makes network namespaces, which needs root"
    );
    // Only a flag is set, so that the steps end by an error and everything made is taken away again.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    say!("* setting up");
    setup::for_networks()?;
    say!("* building");
    build()?;
    paths::take_programs_from(paths::workspace().join("target/release"));
    netns::sweep()?;
    let no_vms = no_vms()?;
    if let Some(reason) = &no_vms {
        say!("* there will be NO virtual machines of our own: {reason}");
    }
    let good = Stage {
        interrupted,
        no_vms: no_vms.clone(),
    }
    .play()?;
    let seconds = start.elapsed().as_secs();
    say!("\n{}, in {seconds} s", verdict(good, no_vms.as_deref()));
    Ok(good && no_vms.is_none())
}

/// Builds the guests' kernel and the programs side by side: each has long stretches on one core.
fn build() -> Result<()> {
    thread::scope(|scope| {
        // Without the device no guest will start it.
        let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        let image = device.is_ok().then(|| scope.spawn(setup::vm_image));
        cargo::build(&["--release", "--workspace", "--bins"])?;
        match image {
            Some(image) => image
                .join()
                .map_err(|_| anyhow!("the build of the guests' kernel panicked"))?,
            None => Ok(()),
        }
    })
}

/// Why this host cannot run virtual machines of our own; `None` if it can.
fn no_vms() -> Result<Option<String>> {
    let program = paths::program("vswitch-vmm")?.display().to_string();
    let output = cmd::output(&[&program, "--check"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    Ok((!output.status.success()).then(|| said.trim().to_owned()))
}

/// How it went, in one line.
fn verdict(good: bool, no_vms: Option<&str>) -> String {
    match (good, no_vms) {
        (true, None) => "all went as it must".to_owned(),
        (true, Some(reason)) => format!(
            "NOT COMPLETE: what ran went as it must, but the virtual machines of our own did not run: {reason}"
        ),
        (false, _) => "NOT ALL WENT AS IT MUST".to_owned(),
    }
}

struct Stage {
    interrupted: Arc<AtomicBool>,
    /// Why there are no virtual machines of our own.
    no_vms: Option<String>,
}

impl Stage {
    fn step(&self, what: &str) -> Result<()> {
        ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        say!("* {what}");
        Ok(())
    }

    fn play(&self) -> Result<bool> {
        self.step("starting vswitchd in a namespace that plays the host machine")?;
        let lab = Lab::start()?;
        // Declared after the lab, so that the stations go first.
        let mut stations = self.stations(&lab)?;
        let machines = match self.no_vms {
            None => Some(self.machines(&lab, &mut stations)?),
            Some(_) => None,
        };
        self.step("who reaches whom")?;
        let mut attempts = self.attempts(&mut stations)?;
        let played = machines
            .map(|mut machines| {
                self.step(
                    "waiting for the virtual machines, which take a minute where KVM emulates ring 0",
                )?;
                machines.play(&lab)
            })
            .transpose()?;
        self.step("how fast")?;
        let speeds = self.speeds(&mut stations)?;
        let stats = lab.daemon.stats()?;
        let done = played.as_ref().is_none_or(Played::is_done);
        if let Some(played) = played {
            played.report();
            attempts.extend(played.attempts);
        }
        report::attempts(&attempts);
        report::speeds(&speeds);
        report::counters(&stats);
        // Every station has sent something, so a port that has taken nothing does not count.
        let counted = stats.wrong().is_empty() && stats.0.iter().all(|port| port.taken > 0);
        let as_it_must = attempts.iter().all(Attempt::as_it_must);
        Ok(as_it_must && done && counted)
    }

    fn machines(&self, lab: &Lab, stations: &mut [Station]) -> Result<Machines> {
        self.step(
            "three virtual machines of our own on internal network `vms`, with a QEMU guest: the first has legacy adapters \
             and the third synthetic ones, and both boot from network `office`; the second has a legacy adapter",
        )?;
        let lan = find(stations, "lan")?.netns().map(Arc::clone);
        let lan = lan.context("the LAN's station has no namespace")?;
        Machines::start(lab, &lan)
    }

    fn stations(&self, lab: &Lab) -> Result<Vec<Station>> {
        let private = |host| Address { net: PRIVATE, host };
        let office = |host| Address { net: OFFICE, host };
        let inner = |host| Address { net: INNER, host };

        self.step("private network `lab`: two hosts on TAP ports")?;
        lab.ctl("network create lab --type private")?;
        let mut stations = vec![
            lab.tap_station("lab", "alice", None, private(1))?,
            lab.tap_station("lab", "bob", None, private(2))?,
        ];
        self.step("external network `office`: its uplink is a cable to a namespace that plays the physical LAN")?;
        let lan = lab.lan()?;
        for address in office(1).both() {
            lab.host.ip(&format!("addr add {address} dev {UPLINK}"))?;
        }
        lab.ctl(&format!(
            "network create office --type external --uplink {UPLINK}"
        ))?;
        stations.push(named("host@office", lab.host_station("office", office(1))?));
        stations.push(lab.tap_station("office", "carol", None, office(2))?);
        stations.push(Station::inside("lan", &lan, "eth0", None, office(3))?);

        self.step("internal network `inner`: the host and a TAP port")?;
        lab.ctl("network create inner --type internal")?;
        stations.push(named("host@inner", lab.host_station("inner", inner(1))?));
        stations.push(lab.tap_station("inner", "dave", None, inner(2))?);

        self.step("private network `floors`: VLANs 10 (red) and 20 (blue)")?;
        lab.ctl("network create floors --type private")?;
        for (port, vlan, host) in [("red1", 10, 11), ("red2", 10, 12), ("blue", 20, 13)] {
            stations.push(lab.tap_station("floors", port, None, private(host))?);
            lab.ctl(&format!("port set floors {port} --vlan access:{vlan}"))?;
        }
        self.step("a QEMU guest with Debian's stock kernel on a vhost-user port of `lab`")?;
        stations.push(lab.guest_station("lab", "guest", None, private(3))?);
        Ok(stations)
    }

    fn attempts(&self, stations: &mut [Station]) -> Result<Vec<Attempt>> {
        let mut attempts = Vec::new();
        for (from, to, must) in ATTEMPTS {
            ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
            let address = find(stations, to)?.address;
            let did = find(stations, from)?.reaches(address);
            attempts.push(Attempt {
                from,
                to,
                must,
                did,
            });
        }
        Ok(attempts)
    }

    fn speeds(&self, stations: &mut [Station]) -> Result<Vec<Speed>> {
        let mut speeds = Vec::new();
        for (from, to) in SPEEDS {
            ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
            let server = find(stations, to)?;
            let address = server.address;
            let netns = Arc::clone(server.netns().context("iperf3 servers run in namespaces")?);
            let _server = netns.spawn(&["iperf3", "-s", "-1"])?;
            cmd::wait_until("iperf3 to listen", Duration::from_secs(5), || {
                Ok(!netns
                    .run(&["ss", "-Hltn", "sport", "=", "5201"])?
                    .is_empty())
            })?;
            let client = find(stations, from)?;
            let said = client.run(&format!("iperf3 -J -t 2 -c {}", address.ip(false)))?;
            let answer: Value = serde_json::from_str(&said).context("reading what iperf3 said")?;
            let bits = answer
                .pointer("/end/sum_received/bits_per_second")
                .and_then(Value::as_f64);
            speeds.push(Speed {
                from,
                to,
                bits: bits.context("iperf3 measured nothing")?,
            });
        }
        Ok(speeds)
    }
}

fn named(name: &str, mut station: Station) -> Station {
    name.clone_into(&mut station.name);
    station
}

fn find<'a>(stations: &'a mut [Station], name: &str) -> Result<&'a mut Station> {
    stations
        .iter_mut()
        .find(|station| station.name == name)
        .with_context(|| format!("no station {name}"))
}

#[cfg(test)]
mod tests {
    use super::verdict;

    #[test]
    fn what_did_not_run_is_not_passed_over() {
        let reason = "there is no /dev/kvm";
        assert_eq!(verdict(true, None), "all went as it must");
        let said = verdict(true, Some(reason));
        assert!(said.starts_with("NOT COMPLETE") && said.ends_with(reason));
        for no_vms in [None, Some(reason)] {
            assert_eq!(verdict(false, no_vms), "NOT ALL WENT AS IT MUST");
        }
    }
}

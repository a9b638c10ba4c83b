//! As many adapters as a machine can have.

use anyhow::{Context, Result, ensure};
use vswitch_tests::{Lab, station::Address, vm::ours::BOOT_LIMIT};

/// Legacy and synthetic adapters that a machine can have.
const LEGACY: u8 = 4;
const SYNTHETIC: u8 = 8;

/// Each in a network of its own: what `host` there is.
const fn on(adapter: u8, host: u8) -> Address {
    Address {
        net: 100 + adapter,
        host,
    }
}

/// Linux's driver of the legacy adapter takes an address that begins with 02:00 for that of a board whose bytes are swapped.
fn mac(adapter: u8) -> String {
    format!("52:00:00:00:00:{adapter:02x}")
}

#[test]
fn eight_synthetic_and_four_legacy_adapters_serve_twelve_networks() -> Result<()> {
    let lab = Lab::start()?;
    let mut stations = Vec::new();
    for adapter in 0..SYNTHETIC + LEGACY {
        let network = format!("n{adapter}");
        lab.ctl(&format!("network create {network} --type internal"))?;
        stations.push(lab.host_station(&network, on(adapter, 1))?);
    }
    let adapters = |range: std::ops::Range<u8>| -> Vec<String> {
        range
            .map(|adapter| format!("net=n{adapter},mac={}", mac(adapter)))
            .collect()
    };
    let synthetic = adapters(0..SYNTHETIC);
    let synthetic: Vec<&str> = synthetic.iter().map(String::as_str).collect();
    lab.create_synthetic_vm("guest", &synthetic, "")?;
    for adapter in SYNTHETIC..SYNTHETIC + LEGACY {
        let mac = mac(adapter);
        lab.ctl(&format!(
            "adapter add guest --kind legacy --net n{adapter} --mac {mac}"
        ))?;
    }
    for one_more in ["legacy", "synthetic"] {
        lab.refused(
            &["adapter", "add", "guest", "--kind", one_more],
            &[one_more],
        )?;
    }
    // Each synthetic adapter's driver takes 17 MiB for its buffers.
    lab.ctl("vm set guest --memory 256M")?;
    let mut console = lab.start_vm("guest")?;
    console.wait_ready(BOOT_LIMIT)?;
    for adapter in 0..SYNTHETIC + LEGACY {
        let (ip, mac) = (on(adapter, 2).ip(false), mac(adapter));
        console.run(&format!(
            "ifname=$(basename $(dirname $(grep -l {mac} /sys/class/net/*/address)))"
        ))?;
        console.run(&format!("ifconfig $ifname {ip} netmask 255.255.255.0 up"))?;
    }
    for (adapter, station) in (0..).zip(&mut stations) {
        station.ping(on(adapter, 2), false, 1472)?;
        console.ping(on(adapter, 1))?;
        let learned = lab.ctl(&format!("fdb show n{adapter}"))?.to_string();
        let mac = mac(adapter);
        ensure!(learned.contains(&mac), "{mac} is not in {learned}");
    }
    let shown = lab.vm("guest")?;
    let bound = |adapter: &serde_json::Value| adapter["driver"] == "bound";
    let adapters = shown["adapters"].as_array().context("no adapters")?;
    ensure!(
        adapters.len() == 12 && adapters.iter().all(bound),
        "{shown}"
    );
    lab.counters_add_up()
}

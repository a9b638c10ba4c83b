//! Answers about VMs, for people.

use vswitch::api::{AdapterView, VmView};

use crate::show::or_dash;
use crate::table::table;

pub(crate) fn vms(vms: &[VmView]) -> String {
    let rows: Vec<_> = vms
        .iter()
        .map(|vm| {
            let exits: u64 = vm.exits.values().sum();
            vec![
                vm.name.to_string(),
                vm.state.to_string(),
                vm.memory.to_string(),
                vm.cpus.to_string(),
                vm.boot.to_string(),
                vm.adapters.len().to_string(),
                exits.to_string(),
                vm.detail.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(
        &[
            "VM",
            "STATE",
            ">MEMORY",
            ">CPUS",
            "BOOT",
            ">ADAPTERS",
            ">EXITS",
            "DETAIL",
        ],
        &rows,
    )
}

/// One VM, in full.
pub(crate) fn vm(vm: &VmView) -> String {
    let lines = [
        ("name", vm.name.to_string()),
        ("state", vm.state.to_string()),
        ("detail", or_dash(vm.detail.as_ref())),
        ("process", or_dash(vm.pid)),
        ("memory", vm.memory.to_string()),
        ("cpus", vm.cpus.to_string()),
        ("profile", vm.profile.to_string()),
        ("boot", vm.boot.to_string()),
        ("initrd", or_dash(vm.initrd.as_ref())),
        ("cmdline", vm.cmdline.clone()),
        ("boot ROM", or_dash(vm.boot_rom.as_ref())),
        ("Hyper-V", if vm.hyperv { "on" } else { "off" }.to_owned()),
        ("auto start", vm.auto_start.to_string()),
        ("auto stop", vm.auto_stop.to_string()),
        ("notes", vm.notes.clone()),
    ];
    let mut text = lines.into_iter().fold(String::new(), |text, (key, value)| {
        text + format!("{key:<10}  {value}").trim_end() + "\n"
    });
    if !vm.adapters.is_empty() {
        text += &format!("\n{}", adapters(&vm.adapters));
    }
    if !vm.services.is_empty() {
        let rows: Vec<_> = vm
            .services
            .iter()
            .map(|service| vec![service.name.to_string(), service.driver.to_string()])
            .collect();
        text += &format!("\n{}", table(&["SERVICE", "DRIVER"], &rows));
    }
    if !vm.facts.is_empty() {
        let rows: Vec<_> = vm
            .facts
            .iter()
            .map(|(name, value)| vec![printable(name), printable(value)])
            .collect();
        text += &format!("\n{}", table(&["GUEST SAYS", "VALUE"], &rows));
    }
    if let Some(crash) = &vm.crash {
        let numbers = crash.parameters.map(|number| format!("{number:#x}"));
        text += &format!("\nthe guest crashed: {}\n", numbers.join(" "));
        if let Some(message) = &crash.message {
            for line in message.lines() {
                text += &format!("{}\n", printable(line));
            }
        }
    }
    if !vm.exits.is_empty() {
        let rows: Vec<_> = vm
            .exits
            .iter()
            .map(|(kind, count)| vec![kind.clone(), count.to_string()])
            .collect();
        text += &format!("\n{}", table(&["EXIT", ">COUNT"], &rows));
    }
    for warning in &vm.warnings {
        text += &format!("\nwarning: {warning}\n");
    }
    text
}

/// What a guest said, without what would drive a terminal.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

fn adapters(adapters: &[AdapterView]) -> String {
    let rows: Vec<_> = adapters
        .iter()
        .map(|adapter| {
            vec![
                adapter.name.to_string(),
                adapter.kind.to_string(),
                adapter.mac.to_string(),
                if adapter.static_mac { "static" } else { "pool" }.to_owned(),
                or_dash(adapter.network.as_ref()),
                or_dash(adapter.vlan),
                adapter.link.to_string(),
                adapter.driver.to_string(),
            ]
        })
        .collect();
    table(
        &[
            "ADAPTER", "KIND", "MAC", "FROM", "NETWORK", "VLAN", "LINK", "DRIVER",
        ],
        &rows,
    )
}

//! Answers for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use vswitch::api::{FdbView, NetworkView, PortBackend, PortStats, PortView, StatsView, StatusView};

use crate::table::table;

pub(crate) fn status(status: &StatusView) -> String {
    let workers: Vec<_> = status
        .workers
        .iter()
        .map(|worker| {
            vec![
                worker.core.to_string(),
                worker.ports.to_string(),
                format!(
                    "{}.{}",
                    worker.busy_permille / 10,
                    worker.busy_permille % 10
                ),
                yes(worker.parked),
                worker.cycles_per_frame.to_string(),
            ]
        })
        .collect();
    let mut text = table(
        &[">CORE", ">PORTS", ">BUSY %", "PARKED", ">CYCLES/FRAME"],
        &workers,
    );
    if !status.networks.is_empty() {
        let _ = write!(text, "\n{}", networks(&status.networks));
    }
    if !status.ports.is_empty() {
        let _ = write!(text, "\n{}", ports(&status.ports));
    }
    if !status.vms.is_empty() {
        let rows: Vec<_> = status
            .vms
            .iter()
            .map(|vm| vec![vm.name.to_string(), vm.state.to_string()])
            .collect();
        let _ = write!(text, "\n{}", table(&["VM", "STATE"], &rows));
    }
    text
}

pub(crate) fn networks(networks: &[NetworkView]) -> String {
    let rows: Vec<_> = networks
        .iter()
        .map(|network| {
            vec![
                network.name.to_string(),
                network.kind.to_string(),
                or_dash(network.uplink.as_ref()),
                or_dash(network.host_nic.as_ref()),
                or_dash(network.vlan),
                network.mtu.to_string(),
                match network.ageing.get() {
                    0 => "never".to_owned(),
                    seconds => format!("{seconds} s"),
                },
                network.ports.to_string(),
            ]
        })
        .collect();
    table(
        &[
            "NETWORK", "TYPE", "UPLINK", "HOST NIC", "VLAN", ">MTU", ">AGEING", ">PORTS",
        ],
        &rows,
    )
}

pub(crate) fn ports(ports: &[PortView]) -> String {
    let rows: Vec<_> = ports
        .iter()
        .map(|port| {
            vec![
                port.network.to_string(),
                port.port.to_string(),
                port.backend.kind().to_owned(),
                port.backend.target().into_owned(),
                port.vlan.to_string(),
                port.mtu.to_string(),
                port.link.to_string(),
                if port.connected {
                    port.state.to_string()
                } else {
                    format!("{}, disconnected", port.state)
                },
                port.detail.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(
        &[
            "NETWORK",
            "PORT",
            "KIND",
            "BEHIND IT",
            "VLAN",
            ">MTU",
            "LINK",
            "STATE",
            "DETAIL",
        ],
        &rows,
    )
}

/// One port, in full.
pub(crate) fn port(port: &PortView) -> String {
    let mut lines = vec![
        ("network", port.network.to_string()),
        ("port", port.port.to_string()),
        ("kind", port.backend.kind().to_owned()),
        ("behind it", port.backend.target().into_owned()),
    ];
    if let PortBackend::VhostUser { mode, queues, .. } = &port.backend {
        lines.push(("mode", mode.to_string()));
        lines.push(("queues", queues.to_string()));
    }
    lines.extend([
        ("vlan", port.vlan.to_string()),
        ("mac guard", port.mac_guard.to_string()),
        ("mac quota", port.mac_quota.to_string()),
        ("mtu", port.mtu.to_string()),
        ("link", port.link.to_string()),
        ("connected", yes(port.connected)),
        ("state", port.state.to_string()),
        ("detail", or_dash(port.detail.as_ref())),
    ]);
    lines.into_iter().fold(String::new(), |text, (key, value)| {
        text + &format!("{key:<10}  {value}\n")
    })
}

pub(crate) fn fdb(fdb: &FdbView) -> String {
    let rows: Vec<_> = fdb
        .entries
        .iter()
        .map(|entry| {
            vec![
                entry.mac.to_string(),
                or_dash(entry.vlan),
                entry.port.to_string(),
                entry
                    .age_seconds
                    .map_or("static".to_owned(), |age| format!("{age} s")),
            ]
        })
        .collect();
    table(&["MAC", "VLAN", "PORT", ">AGE"], &rows)
}

pub(crate) fn stats(stats: &StatsView) -> String {
    let row = |port: &PortStats| {
        vec![
            port.network.to_string(),
            port.port.to_string(),
            port.tx_frames.to_string(),
            port.tx_bytes.to_string(),
            port.rx_frames.to_string(),
            port.rx_bytes.to_string(),
            port.dropped_frames.to_string(),
        ]
    };
    let rows: Vec<_> = stats.ports.iter().map(row).collect();
    let headings = [
        "NETWORK",
        "PORT",
        ">TX FRAMES",
        ">TX BYTES",
        ">RX FRAMES",
        ">RX BYTES",
        ">DROPPED",
    ];
    table(&headings, &rows) + &drops(stats) + &learning(stats)
}

/// Rates since `before`, which was a second ago.
pub(crate) fn rates(before: &StatsView, now: &StatsView) -> String {
    let known: BTreeMap<_, _> = before
        .ports
        .iter()
        .map(|port| ((&port.network, &port.port), port))
        .collect();
    let row = |port: &PortStats| {
        let before = known.get(&(&port.network, &port.port));
        let rate = |value: fn(&PortStats) -> u64| {
            value(port)
                .saturating_sub(before.map_or(0, |before| value(before)))
                .to_string()
        };
        vec![
            port.network.to_string(),
            port.port.to_string(),
            rate(|port| port.tx_frames),
            rate(|port| port.tx_bytes),
            rate(|port| port.rx_frames),
            rate(|port| port.rx_bytes),
            rate(|port| port.dropped_frames),
        ]
    };
    let rows: Vec<_> = now.ports.iter().map(row).collect();
    let headings = [
        "NETWORK",
        "PORT",
        ">TX FRAMES/S",
        ">TX BYTES/S",
        ">RX FRAMES/S",
        ">RX BYTES/S",
        ">DROPPED/S",
    ];
    table(&headings, &rows) + &drops(now)
}

fn drops(stats: &StatsView) -> String {
    let rows: Vec<_> = stats
        .ports
        .iter()
        .flat_map(|port| port.drops.iter().map(move |drop| (port, drop)))
        .map(|(port, (reason, count))| {
            vec![
                port.network.to_string(),
                port.port.to_string(),
                reason.clone(),
                count.to_string(),
            ]
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "\n{}",
        table(&["NETWORK", "FROM PORT", "DROPPED FOR", ">COPIES"], &rows)
    )
}

/// What the MAC tables had to refuse or to move, of the ports where that is not nothing.
fn learning(stats: &StatsView) -> String {
    let rows: Vec<_> = stats
        .ports
        .iter()
        .filter(|port| port.learn_refused > 0 || port.mac_moves > 0)
        .map(|port| {
            vec![
                port.network.to_string(),
                port.port.to_string(),
                port.learn_refused.to_string(),
                port.mac_moves.to_string(),
            ]
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "\n{}",
        table(
            &["NETWORK", "FROM PORT", ">NOT LEARNED", ">MOVED HERE"],
            &rows
        )
    )
}

fn yes(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or("-".to_owned(), |value| value.to_string())
}

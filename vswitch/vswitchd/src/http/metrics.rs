//! `/metrics`: the counters in Prometheus' text format (exposition format 0.0.4).

use std::fmt::Write;

use vswitch::api::{PortState, PortStats, StatsView, StatusView, WorkerView};

/// One metric: its name, what it is, and where it is found.
type Metric<T> = (&'static str, &'static str, Reading<T>);
/// Where a number is found.
type Reading<T> = fn(&T) -> u64;

const WORKERS: &[Metric<WorkerView>] = &[
    ("vswitch_worker_ports", "Ports the worker owns.", |worker| {
        worker.ports
    }),
    (
        "vswitch_worker_busy_permille",
        "Thousandths of the time spent on frames.",
        |worker| worker.busy_permille,
    ),
    (
        "vswitch_worker_parked",
        "Whether the worker sleeps.",
        |worker| u64::from(worker.parked),
    ),
    (
        "vswitch_worker_cycles_per_frame",
        "Clock cycles per frame.",
        |worker| worker.cycles_per_frame,
    ),
];

/// These come in pairs: tx, and rx of the same name.
const DIRECTED: &[(Metric<PortStats>, Reading<PortStats>)] = &[
    (
        (
            "vswitch_port_frames_total",
            "Frames, as the guest sees them.",
            |port| port.tx_frames,
        ),
        |port| port.rx_frames,
    ),
    (
        (
            "vswitch_port_bytes_total",
            "Bytes of these frames.",
            |port| port.tx_bytes,
        ),
        |port| port.rx_bytes,
    ),
];

const PORTS: &[Metric<PortStats>] = &[
    (
        "vswitch_port_taken_frames_total",
        "Frames taken in from the port.",
        |port| port.taken_frames,
    ),
    (
        "vswitch_port_extra_copies_total",
        "Copies made beyond the first of each frame.",
        |port| port.extra_copies,
    ),
    (
        "vswitch_port_delivered_frames_total",
        "Copies that reached a port.",
        |port| port.delivered_frames,
    ),
    (
        "vswitch_port_consumed_frames_total",
        "Frames that were for the switch itself.",
        |port| port.consumed_frames,
    ),
    (
        "vswitch_port_dropped_frames_total",
        "Copies dropped, for all reasons.",
        |port| port.dropped_frames,
    ),
    (
        "vswitch_port_copied_bytes_total",
        "Bytes the switch itself copied.",
        |port| port.copied_bytes,
    ),
    (
        "vswitch_port_learn_refused_total",
        "Times that a source address was not learned: quota, full table, or pinned to another port.",
        |port| port.learn_refused,
    ),
    (
        "vswitch_port_mac_moves_total",
        "Times that a source address was behind another port until then.",
        |port| port.mac_moves,
    ),
];

/// All metrics.
pub(super) fn render(status: &StatusView, stats: &StatsView) -> String {
    let mut text = Text::default();
    text.header("vswitch_build_info", "gauge", "The version of vswitchd.");
    text.sample("vswitch_build_info", &[("version", &status.version)], 1);
    text.header("vswitch_networks", "gauge", "Networks in service.");
    text.sample("vswitch_networks", &[], status.networks.len() as u64);
    for (name, help, value) in WORKERS {
        text.header(name, "gauge", help);
        for worker in &status.workers {
            text.sample(name, &[("core", &worker.core.to_string())], value(worker));
        }
    }
    text.header(
        "vswitch_port_up",
        "gauge",
        "Whether what is behind the port is there.",
    );
    for port in &status.ports {
        let labels = [
            ("network", port.network.as_str()),
            ("port", port.port.as_str()),
        ];
        text.sample(
            "vswitch_port_up",
            &labels,
            u64::from(port.state == PortState::Up),
        );
    }
    ports(&mut text, &stats.ports);
    text.0
}

fn ports(text: &mut Text, ports: &[PortStats]) {
    for ((name, help, tx), rx) in DIRECTED {
        text.header(name, "counter", help);
        for port in ports {
            text.port_sample(name, port, Some(("direction", "tx")), tx(port));
            text.port_sample(name, port, Some(("direction", "rx")), rx(port));
        }
    }
    let drops = "vswitch_port_drops_total";
    text.header(
        drops,
        "counter",
        "Copies of frames from the port that were dropped, by reason.",
    );
    for port in ports {
        for (reason, &count) in &port.drops {
            text.port_sample(drops, port, Some(("reason", reason)), count);
        }
    }
    for (name, help, value) in PORTS {
        text.header(name, "counter", help);
        for port in ports {
            text.port_sample(name, port, None, value(port));
        }
    }
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn header(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn port_sample(
        &mut self,
        name: &str,
        port: &PortStats,
        further: Option<(&str, &str)>,
        value: u64,
    ) {
        let mut labels = vec![
            ("network", port.network.as_str()),
            ("port", port.port.as_str()),
        ];
        labels.extend(further);
        self.sample(name, &labels, value);
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let shown: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{}\"", escape(value)))
            .collect();
        let labels = if shown.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", shown.join(","))
        };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut text = Text::default();
        text.sample("m", &[("a", "x\"y\\z\n"), ("b", "plain")], 7);
        assert_eq!(text.0, "m{a=\"x\\\"y\\\\z\\n\",b=\"plain\"} 7\n");
        text.sample("n", &[], 0);
        assert!(text.0.ends_with("\nn 0\n"));
    }
}

//! `docs/performance.md` and its plots, out of results.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum as _;

use crate::figures::{Results, Row};
use crate::groups::Group;
use crate::plot::{Series, bars};
use crate::table;

/// The text that stands before the tables.
const INTRODUCTION: &str = include_str!("introduction.md");

/// A plot: its file, the group, the figure, its unit, and a part of the cases that it shows.
struct Plot {
    file: &'static str,
    title: &'static str,
    group: Group,
    figure: &'static str,
    unit: &'static str,
    cases: &'static str,
}

const PLOTS: [Plot; 9] = [
    plot(
        "sizes",
        "Throughput by frame size",
        Group::Sizes,
        ("mpps", "Mpps"),
        " B",
    ),
    plot(
        "sizes-gbps",
        "Throughput by frame size, in bits",
        Group::Sizes,
        ("gbps", "Gb/s"),
        "",
    ),
    plot(
        "variants",
        "Throughput by addresses, rings and directions",
        Group::Variants,
        ("mpps", "Mpps"),
        "64 B",
    ),
    plot(
        "latency-p50",
        "Latency, median",
        Group::Latency,
        ("p50_us", "µs"),
        "",
    ),
    plot(
        "latency-p99",
        "Latency, 99th percentile",
        Group::Latency,
        ("p99_us", "µs"),
        "",
    ),
    plot(
        "rfc2544",
        "Throughput without loss",
        Group::Rfc2544,
        ("zero_loss_mpps", "Mpps"),
        "",
    ),
    plot(
        "ports",
        "From vhost-user to every kind of port, 64 bytes",
        Group::Ports,
        ("mpps", "Mpps"),
        "vhost-user →",
    ),
    plot(
        "tcp",
        "TCP between namespaces",
        Group::Tcp,
        ("gbps", "Gb/s"),
        "TCP",
    ),
    plot(
        "stock",
        "Throughput with testpmd as the guest",
        Group::Stock,
        ("mpps", "Mpps"),
        "",
    ),
];

const fn plot(
    file: &'static str,
    title: &'static str,
    group: Group,
    (figure, unit): (&'static str, &'static str),
    cases: &'static str,
) -> Plot {
    Plot {
        file,
        title,
        group,
        figure,
        unit,
        cases,
    }
}

impl Plot {
    /// The plot as SVG; `None` if nothing of it was measured.
    fn draw(&self, results: &Results) -> Result<Option<String>> {
        let name = self.group.name();
        let rows: Vec<&Row> = results
            .group(&name)
            .filter(|row| row.case.contains(self.cases) && row.figures.contains_key(self.figure))
            .collect();
        let (mut cases, mut names) = (Vec::<String>::new(), Vec::<String>::new());
        for row in &rows {
            if !cases.contains(&row.case) {
                cases.push(row.case.clone());
            }
            if !names.contains(&row.contender) {
                names.push(row.contender.clone());
            }
        }
        let value = |case: &String, name: &String| {
            let row = rows
                .iter()
                .find(|row| row.case == *case && row.contender == *name)?;
            row.figures.get(self.figure).map(|stat| stat.median)
        };
        let series: Vec<Series> = names
            .iter()
            .map(|name| Series {
                name: name.clone(),
                values: cases.iter().map(|case| value(case, name)).collect(),
            })
            .collect();
        bars(self.title, self.unit, &cases, &series)
    }
}

/// Writes the document and its plots into `folder`.
pub(crate) fn write(results: &Results, folder: &Path) -> Result<()> {
    let plots = folder.join("performance");
    std::fs::create_dir_all(&plots).with_context(|| format!("making {}", plots.display()))?;
    let mut text = INTRODUCTION.to_owned();
    for missing in &results.missing {
        let _ = writeln!(text, "\nNot measured, as it is missing: {missing}");
    }
    for group in Group::value_variants() {
        section(&mut text, results, *group, &plots)?;
    }
    let path = folder.join("performance.md");
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

fn section(text: &mut String, results: &Results, group: Group, plots: &Path) -> Result<()> {
    let name = group.name();
    let Some(machine) = results.machine.get(&name) else {
        return Ok(());
    };
    let rows: Vec<&Row> = results.group(&name).collect();
    let _ = writeln!(
        text,
        "\n## {}\n`cargo xtask bench --peers --only {name}`\n",
        group.about()
    );
    for plot in PLOTS.iter().filter(|plot| plot.group == group) {
        if let Some(svg) = plot.draw(results)? {
            let file = plots.join(format!("{}.svg", plot.file));
            std::fs::write(&file, svg).with_context(|| format!("writing {}", file.display()))?;
            let _ = writeln!(text, "![{}](performance/{}.svg)\n", plot.title, plot.file);
        }
    }
    text.push_str(&table::markdown(&rows));
    for remark in results.remarks.get(&name).into_iter().flatten() {
        let _ = writeln!(text, "\n{remark}");
    }
    let settings: Vec<String> = machine
        .iter()
        .map(|(key, value)| format!("{key}: {value}"))
        .collect();
    let _ = writeln!(
        text,
        "\n<details><summary>Machine and settings</summary>\n\n{}\n\n</details>",
        settings.join("  \n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::figures::Runs;
    use crate::subject::OURS;
    use std::collections::BTreeMap;

    #[test]
    fn a_measured_group_has_its_command_table_plot_and_machine() {
        let mut runs = Runs::default();
        runs.add(Ok(vec![("mpps", 4.5)]));
        let machine = BTreeMap::from([("kernel".to_owned(), "6.1".to_owned())]);
        let results = Results {
            machine: BTreeMap::from([("sizes".to_owned(), machine)]),
            missing: vec!["OVS-DPDK: no".to_owned()],
            rows: vec![runs.row("sizes", "64 B", OURS)],
            ..Results::default()
        };
        let dir = tempfile::tempdir().unwrap();
        write(&results, dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("performance.md")).unwrap();
        for part in [
            "--only sizes",
            "| 64 B | vswitch | 4.50 |",
            "performance/sizes.svg",
            "kernel: 6.1",
            "missing: OVS-DPDK: no",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("--only latency"));
        assert!(dir.path().join("performance/sizes.svg").exists());
    }
}

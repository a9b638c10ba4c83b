//! Tables: for the terminal, 100 columns wide at most, and for a document.

use std::fmt::Write as _;

use crate::figures::Row;
use crate::peers::OVS;
use crate::stats::Stat;
use crate::subject::OURS;

/// A figure that a table can show: its name in results, its heading, its factor and its digits.
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) heading: &'static str,
    factor: f64,
    digits: usize,
}

const fn column(name: &'static str, heading: &'static str, factor: f64, digits: usize) -> Column {
    Column {
        name,
        heading,
        factor,
        digits,
    }
}

/// All figures, in the order in which tables show them.
pub(crate) const COLUMNS: [Column; 27] = [
    column("mpps", "Mpps", 1.0, 2),
    column("zero_loss_mpps", "Mpps, no loss", 1.0, 2),
    column("of_maximum", "of maximum %", 100.0, 0),
    column("learn_mpps", "learnt M/s", 1.0, 2),
    column("learnt", "learnt %", 100.0, 2),
    column("p50_us", "p50 µs", 1.0, 2),
    column("p99_slice_us", "p99 of 10 ms µs", 1.0, 2),
    column("p99_us", "p99 µs", 1.0, 2),
    column("p999_us", "p99.9 µs", 1.0, 2),
    column("gbps", "Gb/s", 1.0, 1),
    column("mbps", "Mb/s", 1.0, 1),
    column("rtt_us", "round trip µs", 1.0, 1),
    column("cycles", "cycles", 1.0, 0),
    column("together", "× one worker", 1.0, 2),
    column("of_plain", "× plain", 1.0, 2),
    column("busy", "busy %", 100.0, 0),
    column("copied", "copied", 1.0, 2),
    column("notifications", "notif.", 1.0, 4),
    column("syscalls", "syscalls", 1.0, 4),
    column("allocations", "alloc.", 1.0, 4),
    column("exits", "exits / M", 1.0, 0),
    column("lost", "lost %", 100.0, 2),
    column("idle", "driver idle %", 100.0, 0),
    column("cpu", "CPU %", 100.0, 2),
    column("kib", "KiB", 1.0, 0),
    column("ns", "ns", 1.0, 1),
    column("share", "share %", 100.0, 1),
];

/// The driver is the limit where it was idle for less than this share of its time.
const BUSY: f64 = 0.05;
/// Most characters of a line on the terminal.
const WIDTH: usize = 100;

fn shown(stat: &Stat, column: &Column, with_spread: bool) -> String {
    let mut text = format!("{:.*}", column.digits, stat.median * column.factor);
    if with_spread && stat.runs.len() > 1 {
        let _ = write!(text, " ±{:.0} %", stat.spread() * 100.0);
    }
    text
}

/// The figure of our own switch as a multiple of that of OVS in the same case.
fn ratio(rows: &[&Row], row: &Row, name: &str) -> Option<String> {
    if row.contender != OURS {
        return None;
    }
    let other = rows
        .iter()
        .find(|other| other.case == row.case && other.contender == OVS)?;
    let (ours, theirs) = (row.figures.get(name)?, other.figures.get(name)?);
    Some(format!("{:.2}", ours.over(theirs)))
}

fn limit(row: &Row) -> &'static str {
    match row.figures.get("idle") {
        Some(idle) if idle.median < BUSY => "driver",
        Some(_) => "switch",
        None => "",
    }
}

/// Headings and cells of the rows of one group. Columns without a figure are left out.
pub(crate) fn cells(rows: &[&Row]) -> Vec<Vec<String>> {
    let columns: Vec<&Column> = COLUMNS
        .iter()
        .filter(|column| rows.iter().any(|row| row.figures.contains_key(column.name)))
        .collect();
    let first = columns.first().map_or("", |column| column.name);
    let compared = rows.iter().any(|row| ratio(rows, row, first).is_some());
    let limited = rows.iter().any(|row| !limit(row).is_empty());
    let mut heading = vec!["case".to_owned(), "switch".to_owned()];
    for (index, column) in columns.iter().enumerate() {
        heading.push(column.heading.to_owned());
        if index == 0 && compared {
            heading.push("× OVS".to_owned());
        }
    }
    if limited {
        heading.push("limit".to_owned());
    }
    let mut table = vec![heading];
    let mut last = "";
    for row in rows {
        let case = if row.case == last { "" } else { &row.case };
        last = &row.case;
        let mut line = vec![case.to_owned(), row.contender.clone()];
        for (index, column) in columns.iter().enumerate() {
            let stat = row.figures.get(column.name);
            line.push(stat.map_or_else(String::new, |stat| shown(stat, column, index == 0)));
            if index == 0 && compared {
                line.push(ratio(rows, row, first).unwrap_or_default());
            }
        }
        if limited {
            line.push(limit(row).to_owned());
        }
        table.push(line);
    }
    table
}

/// What was noted about rows, each with its row.
pub(crate) fn notes(rows: &[&Row]) -> Vec<String> {
    let noted = rows.iter().filter(|row| !row.note.is_empty());
    noted
        .map(|row| format!("{}, {}: {}", row.case, row.contender, row.note))
        .collect()
}

/// The lines of headings of several words, which stand at the bottom.
fn headings<'a>(words: &[Vec<&'a str>]) -> Vec<Vec<&'a str>> {
    let lines = words.iter().map(Vec::len).max().unwrap_or(0);
    let word = |line: usize, words: &Vec<&'a str>| {
        let at = (line + words.len()).checked_sub(lines);
        at.and_then(|at| words.get(at)).copied().unwrap_or("")
    };
    (0..lines)
        .map(|line| words.iter().map(|words| word(line, words)).collect())
        .collect()
}

/// A table for the terminal. Headings of several words take several lines, and what is still too wide loses spaces
/// before it loses text.
pub(crate) fn terminal(rows: &[&Row]) -> String {
    let table = cells(rows);
    let (heading, body) = table
        .split_first()
        .map_or((&[][..], &[][..]), |(h, b)| (h.as_slice(), b));
    let words: Vec<Vec<&str>> = heading
        .iter()
        .map(|text| text.split(' ').collect())
        .collect();
    let len = |text: &str| text.chars().count();
    let mut widths: Vec<usize> = words
        .iter()
        .enumerate()
        .map(|(at, words)| {
            let cells = body.iter().filter_map(|line| line.get(at));
            let widest = cells.map(|cell| len(cell)).max().unwrap_or(0);
            words
                .iter()
                .map(|word| len(word))
                .max()
                .unwrap_or(0)
                .max(widest)
        })
        .collect();
    // Where it is too wide, a case has a line of its own.
    let folded = widths.iter().sum::<usize>() + widths.len() > WIDTH;
    if let Some(first) = widths.first_mut().filter(|_| folded) {
        *first = 4;
    }
    let all: usize = widths.iter().sum();
    let gap = if all + 2 * widths.len() <= WIDTH {
        "  "
    } else {
        " "
    };
    let mut out = String::new();
    let mut put = |cells: &[&str]| {
        let padded = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(at, (cell, width))| {
                let space = " ".repeat(width.saturating_sub(len(cell)));
                if at < 2 {
                    format!("{cell}{space}")
                } else {
                    format!("{space}{cell}")
                }
            });
        let line: Vec<String> = padded.collect();
        out.push_str(line.join(gap).trim_end());
        out.push('\n');
    };
    for cells in headings(&words) {
        put(&cells);
    }
    for line in body {
        let mut cells: Vec<&str> = line.iter().map(String::as_str).collect();
        if let Some(case) = cells.first_mut().filter(|case| folded && !case.is_empty()) {
            put(&[*case]);
            *case = "";
        }
        put(&cells);
    }
    for note in notes(rows) {
        out.push_str(&format!("! {note}\n"));
    }
    out
}

/// A table for a Markdown document.
pub(crate) fn markdown(rows: &[&Row]) -> String {
    let mut out = String::new();
    for (at, line) in cells(rows).iter().enumerate() {
        let _ = writeln!(out, "| {} |", line.join(" | "));
        if at == 0 {
            let rule: Vec<&str> = line
                .iter()
                .enumerate()
                .map(|(at, _)| if at < 2 { "---" } else { "--:" })
                .collect();
            let _ = writeln!(out, "|{}|", rule.join("|"));
        }
    }
    for note in notes(rows) {
        let _ = writeln!(out, "\n{note}");
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::figures::Runs;

    fn row(case: &str, contender: &str, figures: &[(&'static str, f64)]) -> Row {
        let mut runs = Runs::default();
        for factor in [1.0, 1.1, 1.2] {
            let run = figures.iter().map(|(name, value)| (*name, value * factor));
            runs.add(Ok(run.collect()));
        }
        runs.row("sizes", case, contender)
    }

    #[test]
    fn ours_is_compared_with_ovs_and_the_limit_is_named() {
        let rows = [
            row(
                "64 B",
                OURS,
                &[("mpps", 8.0), ("idle", 0.3), ("cycles", 300.0)],
            ),
            row("64 B", OVS, &[("mpps", 4.0), ("idle", 0.001)]),
        ];
        let rows: Vec<&Row> = rows.iter().collect();
        let table = cells(&rows);
        assert_eq!(
            table[0],
            [
                "case",
                "switch",
                "Mpps",
                "× OVS",
                "cycles",
                "driver idle %",
                "limit"
            ]
        );
        assert_eq!(
            table[1],
            ["64 B", OURS, "8.80 ±9 %", "2.00", "330", "33", "switch"]
        );
        assert_eq!(table[2], ["", OVS, "4.40 ±9 %", "", "", "0", "driver"]);
        let shown = markdown(&rows);
        assert!(shown.starts_with("| case | switch | Mpps |") && shown.contains("|---|---|--:|"));
    }

    #[test]
    fn the_widest_table_fits_the_terminal() {
        let all = [
            "mpps",
            "gbps",
            "cycles",
            "copied",
            "notifications",
            "syscalls",
            "allocations",
            "lost",
            "idle",
        ];
        let figures: Vec<_> = all.iter().map(|name| (*name, 12.345)).collect();
        let rows = [
            row("64 B, 100000 destinations", OURS, &figures),
            row("64 B, 100000 destinations", OVS, &figures),
        ];
        let text = terminal(&rows.iter().collect::<Vec<_>>());
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= WIDTH, "{widest}\n{text}");
    }
}

//! What `SPECIFICATION.md` promises, and whether it holds.
//!
//! What is promised stands here; how much, in the table of the document: numbers that were measured, with a margin.

mod list;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use self::list::PROMISES;
use crate::figures::Results;
use crate::groups::Group;

/// The table is between these lines of the document.
const MARKERS: [&str; 2] = ["<!-- promises -->", "<!-- end of promises -->"];

/// Which way a figure may differ from what is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    AtLeast,
    AtMost,
}

/// A figure: case, contender and name; or that of one by that of another.
#[derive(Clone, Copy)]
enum Of {
    One([&'static str; 3]),
    Ratio([&'static str; 3], [&'static str; 3]),
}

/// Something that is promised.
struct Promise {
    id: &'static str,
    text: &'static str,
    group: Group,
    of: Of,
    bound: Bound,
    /// What a measured figure is multiplied by, and then added to it, to become what is promised.
    margin: (f64, f64),
}

/// The groups that promises are about.
pub(crate) fn groups() -> Vec<Group> {
    let mut groups: Vec<Group> = PROMISES.iter().map(|promise| promise.group).collect();
    groups.sort();
    groups.dedup();
    groups
}

impl Promise {
    fn measured(&self, results: &Results) -> Option<f64> {
        let group = self.group.name();
        let one =
            |[case, contender, name]: [&str; 3]| results.figure([&group, case, contender, name]);
        match self.of {
            Of::One(figure) => Some(one(figure)?.median),
            Of::Ratio(figure, by) => Some(one(figure)?.over(&one(by)?)),
        }
    }

    /// What may be promised where this was measured. Two digits more than zeros in front, rounded to the safe side.
    fn promised(&self, measured: f64) -> f64 {
        let (factor, more) = self.margin;
        let value = measured * factor + more;
        if value == 0.0 {
            return 0.0;
        }
        let scale = 10f64.powf(1.0 - value.abs().log10().floor());
        let rounded = match self.bound {
            Bound::AtLeast => (value * scale).floor(),
            Bound::AtMost => (value * scale).ceil(),
        };
        rounded / scale
    }

    fn holds(&self, measured: f64, promised: f64) -> bool {
        match self.bound {
            Bound::AtLeast => measured >= promised,
            Bound::AtMost => measured <= promised,
        }
    }

    fn sign(&self) -> &'static str {
        match self.bound {
            Bound::AtLeast => "≥",
            Bound::AtMost => "≤",
        }
    }
}

/// A number with three significant digits.
fn number(value: f64) -> String {
    let digits = if value == 0.0 {
        0
    } else {
        (2.0 - value.abs().log10().floor()).clamp(0.0, 7.0) as usize
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// The table of all promises that `results` have figures for. What has none keeps its line of `before`.
fn table(results: &Results, before: &str) -> String {
    let mut out = String::from(
        "| promise | | at least, at most | measured | check with |\n|---|---|--:|--:|---|\n",
    );
    for promise in &PROMISES {
        let Some(measured) = promise.measured(results) else {
            let kept = before
                .lines()
                .find(|line| line.starts_with(&format!("| `{}` |", promise.id)));
            if let Some(kept) = kept {
                let _ = writeln!(out, "{kept}");
            }
            continue;
        };
        let _ = writeln!(
            out,
            "| `{}` | {} | {} {} | {} | `cargo xtask bench --gate --only {}` |",
            promise.id,
            promise.text,
            promise.sign(),
            number(promise.promised(measured)),
            number(measured),
            promise.group.name(),
        );
    }
    out
}

/// The parts of the document before, in and behind the table.
fn parts(document: &str) -> Result<[&str; 3]> {
    let [start, end] = MARKERS;
    let around = document.split_once(start).and_then(|(before, rest)| {
        let (table, after) = rest.split_once(end)?;
        Some([before, table, after])
    });
    around.with_context(|| format!("no table between {start} and {end}"))
}

/// Writes what was measured, with its margin, into the document.
pub(crate) fn write(results: &Results, path: &Path) -> Result<()> {
    let document =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let [before, old, after] = parts(&document).with_context(|| path.display().to_string())?;
    let [start, end] = MARKERS;
    let new = format!("{before}{start}\n{}{end}{after}", table(results, old));
    std::fs::write(path, new).with_context(|| format!("writing {}", path.display()))
}

/// The value that the document promises.
fn limit(table: &str, promise: &Promise) -> Result<f64> {
    let id = promise.id;
    let line = table
        .lines()
        .find(|line| line.starts_with(&format!("| `{id}` |")));
    let line = line.with_context(|| format!("promise `{id}` is not in the document"))?;
    let cell = line.split('|').nth(3).map(str::trim).unwrap_or_default();
    let value = cell.strip_prefix(promise.sign()).map(str::trim);
    let value = value.and_then(|value| value.parse().ok());
    value.with_context(|| {
        format!(
            "promise `{id}` says {cell}, not {} and a number",
            promise.sign()
        )
    })
}

/// Compares what was measured in `groups` with the document: a line for each promise, and whether all hold.
pub(crate) fn check(
    results: &Results,
    groups: &[Group],
    path: &Path,
) -> Result<(Vec<String>, bool)> {
    let document =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let [_, table, _] = parts(&document).with_context(|| path.display().to_string())?;
    let (mut lines, mut all) = (Vec::new(), true);
    for promise in PROMISES
        .iter()
        .filter(|promise| groups.contains(&promise.group))
    {
        let promised = limit(table, promise)?;
        let measured = promise.measured(results);
        let holds = measured.is_some_and(|measured| promise.holds(measured, promised));
        all &= holds;
        lines.push(format!(
            "{} {:<15} measured {:>8}, promised {} {:<8} {}",
            if holds { "holds " } else { "BROKEN" },
            promise.id,
            measured.map_or_else(|| "nothing".to_owned(), number),
            promise.sign(),
            number(promised),
            promise.text,
        ));
    }
    ensure!(
        !lines.is_empty(),
        "nothing is promised about what was measured"
    );
    Ok((lines, all))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::figures::Runs;
    use crate::peers::OVS;
    use crate::subject::OURS;

    fn results(ours: f64, ovs: f64, cycles: f64) -> Results {
        let mut results = Results::default();
        for (contender, mpps) in [(OURS, ours), (OVS, ovs)] {
            let mut runs = Runs::default();
            runs.add(Ok(vec![("mpps", mpps), ("cycles", cycles)]));
            results.rows.push(runs.row("sizes", "64 B", contender));
        }
        results
    }

    fn document(results: &Results) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("SPECIFICATION.md");
        std::fs::write(
            &path,
            format!("Before.\n{}\n{}\nAfter.\n", MARKERS[0], MARKERS[1]),
        )
        .unwrap();
        write(results, &path).unwrap();
        (dir, path)
    }

    /// The lines about the two promises that the results are about.
    fn checked(results: &Results, path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        let [_, table, _] = parts(&text).unwrap();
        let mut lines = Vec::new();
        for promise in PROMISES
            .iter()
            .filter(|promise| ["ovs-64", "cycles-64"].contains(&promise.id))
        {
            let holds = promise.holds(
                promise.measured(results).unwrap(),
                limit(table, promise).unwrap(),
            );
            lines.push(format!("{} {holds}", promise.id));
        }
        lines
    }

    #[test]
    fn what_was_written_holds_and_what_is_worse_does_not() {
        let measured = results(8.0, 4.0, 300.0);
        let (_dir, path) = document(&measured);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("| ≥ 1.7 | 2 |") && text.contains("| ≤ 390 | 300 |"),
            "{text}"
        );
        assert!(text.starts_with("Before.\n") && text.ends_with("\nAfter.\n"));
        assert_eq!(checked(&measured, &path), ["ovs-64 true", "cycles-64 true"]);
        assert_eq!(
            checked(&results(6.0, 4.0, 400.0), &path),
            ["ovs-64 false", "cycles-64 false"]
        );
    }

    #[test]
    fn a_promise_without_a_figure_is_broken_and_one_without_a_number_is_an_error() {
        let measured = results(8.0, 4.0, 300.0);
        let (_dir, path) = document(&measured);
        assert!(check(&measured, &[Group::Sizes], &path).is_err());
        let mut text = std::fs::read_to_string(&path).unwrap();
        let rest = PROMISES
            .iter()
            .filter(|promise| promise.group == Group::Sizes);
        let lines: String = rest
            .map(|promise| format!("| `{}` | | {} 1 | 1 | |\n", promise.id, promise.sign()))
            .collect();
        text = text.replace(MARKERS[1], &format!("{lines}{}", MARKERS[1]));
        std::fs::write(&path, text).unwrap();
        let (lines, all) = check(&measured, &[Group::Sizes], &path).unwrap();
        assert!(!all);
        assert!(
            lines[0].starts_with("holds ") && lines[1].starts_with("BROKEN"),
            "{lines:?}"
        );
    }

    #[test]
    fn lines_that_were_not_measured_again_stay() {
        let (_dir, path) = document(&results(8.0, 4.0, 300.0));
        write(&Results::default(), &path).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("`ovs-64`"));
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown = [0.0, 1234.6, 2.0, 1.756, 0.01234].map(number);
        assert_eq!(shown, ["0", "1235", "2", "1.76", "0.0123"]);
    }
}

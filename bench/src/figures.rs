//! Results: rows of figures, by group, case and contender.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::stats::Stat;

/// One contender in one case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) group: String,
    pub(crate) case: String,
    pub(crate) contender: String,
    /// By the names of [`crate::table::COLUMNS`].
    pub(crate) figures: BTreeMap<String, Stat>,
    /// What went wrong, or what limits the figures.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) note: String,
}

/// Everything that was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    /// By group: the machine and its settings when the group ran.
    pub(crate) machine: BTreeMap<String, BTreeMap<String, String>>,
    /// Peers that could not take part, and why.
    pub(crate) missing: Vec<String>,
    pub(crate) rows: Vec<Row>,
    /// By group: text that comes with its table.
    #[serde(default)]
    pub(crate) remarks: BTreeMap<String, Vec<String>>,
}

impl Results {
    /// The rows of a group, in the order they were measured.
    pub(crate) fn group<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.group == group)
    }

    /// One figure.
    pub(crate) fn figure(&self, at: [&str; 4]) -> Option<Stat> {
        let [group, case, contender, figure] = at;
        let mut rows = self.group(group);
        let row = rows.find(|row| row.case == case && row.contender == contender)?;
        row.figures.get(figure).cloned()
    }

    /// Takes the groups that `newer` has from it, and keeps the others.
    pub(crate) fn update(&mut self, newer: Results) {
        self.rows
            .retain(|row| !newer.machine.contains_key(&row.group));
        self.rows.extend(newer.rows);
        self.remarks
            .retain(|group, _| !newer.machine.contains_key(group));
        self.remarks.extend(newer.remarks);
        self.machine.extend(newer.machine);
        self.missing = newer.missing;
    }

    /// Reads what [`Results::write`] wrote.
    pub(crate) fn read(path: &Path) -> Result<Results> {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not of this program", path.display()))
    }

    /// Writes them as JSON.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}

/// Runs of one row, until their medians are taken.
#[derive(Default)]
pub(crate) struct Runs {
    values: BTreeMap<String, Vec<f64>>,
    errors: Vec<String>,
}

impl Runs {
    /// Adds the figures of a run, or why it failed.
    pub(crate) fn add(&mut self, run: Result<Vec<(&'static str, f64)>>) {
        match run {
            Ok(figures) => {
                for (name, value) in figures {
                    self.values.entry(name.to_owned()).or_default().push(value);
                }
            }
            Err(error) => self.errors.push(format!("{error:#}")),
        }
    }

    /// The row. A failed run is said, whatever the others gave.
    pub(crate) fn row(self, group: &str, case: &str, contender: &str) -> Row {
        let failed = self.errors.len();
        Row {
            group: group.to_owned(),
            case: case.to_owned(),
            contender: contender.to_owned(),
            figures: self
                .values
                .into_iter()
                .filter_map(|(name, values)| Some((name, Stat::of(values)?)))
                .collect(),
            note: match self.errors.into_iter().next() {
                Some(first) => format!("{failed} failed: {first}"),
                None => String::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn results(group: &str, mpps: f64) -> Results {
        let mut runs = Runs::default();
        runs.add(Ok(vec![("mpps", mpps)]));
        Results {
            machine: BTreeMap::from([(group.to_owned(), BTreeMap::new())]),
            rows: vec![runs.row(group, "64 B", "vswitch")],
            ..Results::default()
        }
    }

    #[test]
    fn an_update_replaces_groups_and_survives_json() {
        let mut all = results("a", 1.0);
        all.update(results("b", 2.0));
        all.update(results("a", 3.0));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.json");
        all.write(&path).unwrap();
        let all = Results::read(&path).unwrap();
        let mpps = |group| {
            all.figure([group, "64 B", "vswitch", "mpps"])
                .unwrap()
                .median
        };
        assert_eq!((mpps("a"), mpps("b"), all.rows.len()), (3.0, 2.0, 2));
        assert_eq!(all.figure(["a", "64 B", "nobody", "mpps"]), None);
    }

    #[test]
    fn a_failed_run_is_not_silent() {
        let mut runs = Runs::default();
        runs.add(Ok(vec![("mpps", 1.0)]));
        runs.add(Err(anyhow::anyhow!("no frame arrived")));
        let row = runs.row("a", "64 B", "OVS-DPDK");
        assert_eq!(row.note, "1 failed: no frame arrived");
        assert_eq!(row.figures.get("mpps").unwrap().runs.len(), 1);
    }
}

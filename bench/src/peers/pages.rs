//! Huge pages for peers that need them.

use std::fs;

use anyhow::{Context, Result, ensure};

const COUNT: &str = "/proc/sys/vm/nr_hugepages";

/// Reserved 2 MiB pages, given back when dropped.
pub(crate) struct HugePages {
    before: u64,
}

fn count() -> Result<u64> {
    let text = fs::read_to_string(COUNT).with_context(|| format!("reading {COUNT}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("{COUNT} says {text}"))
}

impl HugePages {
    /// Reserves `more` pages.
    pub(crate) fn reserve(more: u64) -> Result<HugePages> {
        let before = count()?;
        let pages = HugePages { before };
        let wanted = before + more;
        fs::write(COUNT, wanted.to_string()).with_context(|| format!("writing {COUNT}"))?;
        let got = count()?;
        ensure!(
            got >= wanted,
            "{wanted} huge pages are needed, {got} can be had"
        );
        Ok(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(error) = fs::write(COUNT, self.before.to_string()) {
            crate::say!("huge pages stay reserved: {COUNT}: {error}");
        }
    }
}

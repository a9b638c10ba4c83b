//! Huge pages for peers that need them.

use std::fs;

use anyhow::{Context, Result, ensure};

const COUNT: &str = "/proc/sys/vm/nr_hugepages";

/// Reserved 2 MiB pages, given back when dropped.
pub(crate) struct HugePages {
    count: u64,
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
        let wanted = count()? + more;
        fs::write(COUNT, wanted.to_string()).with_context(|| format!("writing {COUNT}"))?;
        // What was had of them goes back if they are not enough.
        let pages = HugePages { count: more };
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
        let left = count().map(|count| count.saturating_sub(self.count));
        let given = left.and_then(|left| Ok(fs::write(COUNT, left.to_string())?));
        if let Err(error) = given {
            crate::say!("huge pages stay reserved: {error:#}");
        }
    }
}

//! The machine and its settings, as far as they matter for speed.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Pins the calling thread.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    if core < CpuSet::MAX_CPU {
        cores.set(core);
    }
    sched_setaffinity(None, &cores).with_context(|| format!("cannot run on core {core}"))
}

/// Runs `work` on a thread that is pinned to `core`.
pub(crate) fn on_core<T: Send>(core: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let pinned = scope.spawn(|| {
            pin(core)?;
            work()
        });
        pinned
            .join()
            .map_err(|_| anyhow!("a measurement panicked"))?
    })
}

/// Ticks of [`guestmem::cycles`] in a second, measured once.
pub(crate) fn hertz() -> f64 {
    static HERTZ: OnceLock<f64> = OnceLock::new();
    *HERTZ.get_or_init(|| {
        let (start, from) = (Instant::now(), guestmem::cycles());
        while start.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        (guestmem::cycles() - from) as f64 / start.elapsed().as_secs_f64()
    })
}

/// Nanoseconds from one core to another and back: a cache line that both write in turn.
pub(crate) fn round_trip(cores: [usize; 2]) -> f64 {
    const ROUNDS: u64 = 2_000;
    let line = AtomicU64::new(0);
    let pass = |mine: u64, core: usize| {
        let _ = pin(core);
        let start = Instant::now();
        for round in 0..ROUNDS {
            while line.load(Ordering::Acquire) != 2 * round + mine {
                std::hint::spin_loop();
            }
            line.store(2 * round + mine + 1, Ordering::Release);
        }
        start.elapsed()
    };
    let [here, there] = cores;
    let took = std::thread::scope(|scope| {
        let first = scope.spawn(|| pass(0, here));
        scope.spawn(|| pass(1, there));
        first.join().unwrap_or_default()
    });
    took.as_nanos() as f64 / ROUNDS as f64
}

/// What `program` says first, or that it is missing.
pub(crate) fn first_line(program: &str, args: &[&str]) -> String {
    let said = Command::new(program).args(args).output();
    let text = said
        .ok()
        .map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    let line = text.as_deref().and_then(|text| text.lines().next());
    line.map_or_else(|| "not installed".to_owned(), |line| line.trim().to_owned())
}

fn file(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The word in brackets, or all of it.
fn chosen(text: &str) -> &str {
    let word = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    word.map_or(text, |(word, _)| word)
}

/// What the kernel's command line says of mitigations, which make system calls dearer.
fn mitigations() -> String {
    let line = file("/proc/cmdline").unwrap_or_default();
    let mut words = line.split_whitespace();
    let said = words.find_map(|word| word.strip_prefix("mitigations="));
    said.unwrap_or("as the kernel chooses").to_owned()
}

/// Name and value of everything worth knowing.
pub(crate) fn describe(switch_core: usize, driver_core: usize) -> BTreeMap<String, String> {
    let cpuinfo = file("/proc/cpuinfo").unwrap_or_default();
    let cpu = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or_else(
            || "unknown".to_owned(),
            |(_, value)| value.trim().to_owned(),
        )
    };
    let cores = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let memory = file("/proc/meminfo").and_then(|text| text.lines().next().map(str::to_owned));
    let pages = |what: &str| {
        let text = file(&format!("/sys/kernel/mm/transparent_hugepage/{what}"));
        text.map_or_else(|| "unknown".to_owned(), |text| chosen(&text).to_owned())
    };
    let hypervisor = if cpuinfo.contains(" hypervisor") {
        ", in a virtual machine"
    } else {
        ""
    };
    let wide = ["avx512vbmi2", "avx2"]
        .into_iter()
        .find(|flag| cpuinfo.contains(flag));
    BTreeMap::from([
        (
            "processor".into(),
            format!("{}, {cores} cores{hypervisor}", cpu("model name")),
        ),
        ("copies by".into(), wide.unwrap_or("sse2").into()),
        (
            "time-stamp counter".into(),
            format!("{:.0} MHz", hertz() / 1e6),
        ),
        (
            "memory".into(),
            memory
                .unwrap_or_default()
                .replace("MemTotal:", "")
                .trim()
                .into(),
        ),
        (
            "kernel".into(),
            file("/proc/sys/kernel/osrelease").unwrap_or_default(),
        ),
        ("mitigations".into(), mitigations()),
        (
            "transparent huge pages".into(),
            format!("{}; of memfds {}", pages("enabled"), pages("shmem_enabled")),
        ),
        (
            "cores".into(),
            format!("switch {switch_core}, driver {driver_core}"),
        ),
        (
            "cache line, core to core and back".into(),
            format!("{:.0} ns", round_trip([switch_core, driver_core])),
        ),
        ("compiler".into(), first_line("rustc", &["--version"])),
        (
            "version".into(),
            first_line("git", &["describe", "--always", "--dirty"]),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_setting_is_read() {
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(chosen("2"), "2");
    }

    #[test]
    fn the_counter_has_a_plausible_rate() {
        assert!((5e8..1e10).contains(&hertz()), "{}", hertz());
    }
}

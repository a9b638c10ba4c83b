//! Benchmark of the whole path: one worker of the real switch on one core, a polling virtio driver on the other.
//!
//! The driver plays two guests. It sends prepared frames on one and takes them off the other, touching descriptors and
//! indices only: no byte of a frame is written or read. Where its ring was full in most polls, the switch was the
//! limit, and the result tells how fast the switch is; where it rarely was, the driver was.

mod drive;
mod peer;
mod report;

use anyhow::{Result, bail};
use clap::Parser;
use vswitch::ports::vhost::feature;

/// Frames of 64 to 9014 bytes, one way, from one vhost-user guest to another.
#[derive(Parser)]
struct Options {
    /// Bytes of a frame, without FCS: 60 to 9014. What is called 64 bytes on the wire is 60 and FCS.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256, 512, 1518, 9014])]
    sizes: Vec<u32>,
    /// Seconds to measure each size.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Runs of each size; the median is shown.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Core of the switch.
    #[arg(long, default_value_t = 0)]
    switch_core: usize,
    /// Core of the driver.
    #[arg(long, default_value_t = 1)]
    driver_core: usize,
    /// Packed rings.
    #[arg(long)]
    packed: bool,
    /// Descriptors of a ring, a power of two.
    #[arg(long, default_value_t = 1024)]
    queue_size: u16,
    /// Buffers are used in order.
    #[arg(long)]
    in_order: bool,
    /// Measure another switch: the vhost-user sockets of the sending and the receiving port, where it listens.
    #[arg(long, num_args = 2, value_names = ["SENDER", "RECEIVER"])]
    sockets: Vec<std::path::PathBuf>,
    /// One JSON object for all sizes instead of a table.
    #[arg(long)]
    json: bool,
}

impl Options {
    fn features(&self) -> u64 {
        let base = feature::VERSION_1 | feature::MRG_RXBUF | feature::PROTOCOL_FEATURES;
        let packed = if self.packed { feature::RING_PACKED } else { 0 };
        let in_order = if self.in_order { feature::IN_ORDER } else { 0 };
        base | packed | in_order
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(size) = options
        .sizes
        .iter()
        .find(|size| !(60..=9014).contains(*size))
    {
        bail!("frame size {size} is not 60 to 9014 bytes");
    }
    if !(0.01..=3600.0).contains(&options.seconds) || options.runs == 0 {
        bail!(
            "--seconds {} --runs {}: 0.01 to 3600 seconds and at least one run",
            options.seconds,
            options.runs
        );
    }
    let mut results = Vec::new();
    for &size in &options.sizes {
        let mut runs = Vec::new();
        for _ in 0..options.runs {
            runs.push(drive::measure(&options, size)?);
        }
        results.push(report::median(runs));
    }
    report::show(&results, options.json)
}

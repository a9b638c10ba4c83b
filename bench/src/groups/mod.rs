//! What is measured, in groups.

mod drivers;
mod footprint;
mod guests;
mod kernel;
mod legacy;
mod ports;
mod rings;
mod stages;
mod stock;
mod tcp;
mod workers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::case::Case;
use crate::figures::{Results, Row, Runs};
use crate::machine;
use crate::peers;
use crate::say;
use crate::subject::{Contender, CopyOnly, Ours};

/// Figures of one run, by name.
pub(crate) type Figures = Vec<(&'static str, f64)>;

/// A group of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Group {
    /// Throughput by frame size, between two vhost-user guests that keep their rings full
    Sizes,
    /// The same by addresses, directions, ring formats and sizes, and payload
    Variants,
    /// Latency at 100,000 and 1 million frames a second
    Latency,
    /// RFC 2544: throughput without loss, and frame loss by offered rate
    Rfc2544,
    /// RFC 2889: address learning, forwarding and broadcast with three ports
    Rfc2889,
    /// Two workers beside one: cycles of a frame
    Workers,
    /// Throughput between every two kinds of port
    Ports,
    /// TCP and ping between network namespaces
    Tcp,
    /// Throughput with stock testpmd as the guest
    Stock,
    /// Throughput between two legacy adapters, by a driver that polls
    Legacy,
    /// Frames and TCP between guests of our own monitor that drive synthetic adapters at full speed
    Guests,
    /// Exits of guests with Linux's own drivers of legacy and synthetic adapters
    Drivers,
    /// Idle processor time, memory of a port and of a network
    Footprint,
    /// Where the time of a frame goes: criterion and sampling
    Stages,
}

impl Group {
    /// Its name in results and on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What it is, in words.
    pub(crate) fn about(self) -> String {
        let value = self.to_possible_value();
        value
            .and_then(|value| value.get_help().map(ToString::to_string))
            .unwrap_or_default()
    }
}

/// How it is measured.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Fewer cases, shorter runs.
    pub(crate) quick: bool,
    /// With other switches.
    pub(crate) peers: bool,
    /// Runs of each case and contender.
    pub(crate) runs: usize,
    /// Length of a run.
    pub(crate) time: Duration,
    pub(crate) switch_core: usize,
    pub(crate) driver_core: usize,
}

/// A measurement that is under way.
pub(crate) struct Bench {
    pub(crate) settings: Settings,
    pub(crate) results: Results,
    contenders: Vec<Box<dyn Contender>>,
    interrupted: Arc<AtomicBool>,
    started: Instant,
}

impl Bench {
    /// Starts the peers that take part in `groups`.
    pub(crate) fn new(settings: Settings, groups: &[Group], interrupted: Arc<AtomicBool>) -> Bench {
        let (switch, mut results) = (settings.switch_core, Results::default());
        let mut contenders: Vec<Box<dyn Contender>> = vec![
            Box::new(Ours {
                cores: vec![switch],
            }),
            Box::new(CopyOnly { core: switch }),
        ];
        let between_rings = [
            Group::Sizes,
            Group::Variants,
            Group::Latency,
            Group::Rfc2544,
            Group::Rfc2889,
            Group::Stock,
        ];
        if settings.peers && groups.iter().any(|group| between_rings.contains(group)) {
            say!("starting other switches");
            let (started, missing) = peers::start(switch);
            contenders.extend(started);
            results.missing = missing;
        }
        for missing in &results.missing {
            say!("MISSING: {missing}");
        }
        Bench {
            settings,
            results,
            contenders,
            interrupted,
            started: Instant::now(),
        }
    }

    /// Runs a group.
    pub(crate) fn run(&mut self, group: Group) -> Result<()> {
        self.may_go_on()?;
        let name = group.name();
        say!("\n{name}: {}", group.about());
        let machine = machine::describe(self.settings.switch_core, self.settings.driver_core);
        self.results.machine.insert(name.clone(), machine);
        match group {
            Group::Sizes => rings::sizes(self),
            Group::Variants => rings::variants(self),
            Group::Latency => rings::latency(self),
            Group::Rfc2544 => rings::rfc2544(self),
            Group::Rfc2889 => rings::rfc2889(self),
            Group::Workers => workers::run(self),
            Group::Ports => ports::run(self),
            Group::Tcp => tcp::run(self),
            Group::Stock => stock::run(self),
            Group::Legacy => legacy::run(self),
            Group::Guests => guests::run(self),
            Group::Drivers => drivers::run(self),
            Group::Footprint => footprint::run(self),
            Group::Stages => stages::run(self),
        }?;
        let rows: Vec<&Row> = self.results.group(&name).collect();
        say!("\n{}", crate::table::terminal(&rows));
        Ok(())
    }

    /// Stops the peers. What was measured, unless somebody has interrupted it.
    pub(crate) fn end(self) -> Result<Results> {
        self.may_go_on()?;
        Ok(self.results)
    }

    /// Ends the measurement where somebody has asked for it.
    fn may_go_on(&self) -> Result<()> {
        ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }

    /// Adds a finished row, and says so.
    fn add(&mut self, row: Row, main: &str) {
        let figure = row.figures.get(main);
        let shown = figure.map_or_else(|| row.note.clone(), |stat| format!("{:.3}", stat.median));
        let seconds = self.started.elapsed().as_secs();
        say!(
            "{seconds:>5} s  {:<34} {:<12} {shown}",
            row.case,
            row.contender
        );
        self.results.rows.push(row);
    }

    /// Measures each case `runs` times with every contender that can do it, in turn: A B A B. `main` is the figure that
    /// is shown meanwhile.
    fn compare(
        &mut self,
        (group, main): (Group, &str),
        (case, label, guests): (&Case, &str, usize),
        measure: impl Fn(&mut dyn Contender, &Case) -> Result<Figures> + Sync,
    ) -> Result<()> {
        let mut contenders = std::mem::take(&mut self.contenders);
        let mut taking_part: Vec<_> = contenders
            .iter_mut()
            .filter(|contender| contender.can(case, guests))
            .map(|contender| (contender, Runs::default()))
            .collect();
        let core = self.settings.driver_core;
        let mut going = Ok(());
        'rounds: for _ in 0..self.settings.runs {
            for (contender, runs) in &mut taking_part {
                going = self.may_go_on();
                if going.is_err() {
                    break 'rounds;
                }
                runs.add(machine::on_core(core, || measure(contender.as_mut(), case)));
            }
        }
        for (contender, runs) in taking_part {
            self.add(runs.row(&group.name(), label, contender.name()), main);
        }
        self.contenders = contenders;
        going
    }
}

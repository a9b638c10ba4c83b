//! The workers' threads: started, pinned to their cores, told what to do.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::SteppedWorker;
use crate::worker::{Command, Reply, Worker, WorkerShared};

/// Why the switch does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No core was given.
    #[error("no core was given for the workers; at least one is needed")]
    NoCores,
    /// A core does not exist, or this process may not run on it.
    #[error("cannot pin a worker to core {core}; allowed for this process: {}", listed(&allowed_cores()))]
    Pin {
        /// The core asked for.
        core: usize,
        /// What the kernel said.
        #[source]
        source: rustix::io::Errno,
    },
    /// The thread cannot be made.
    #[error("cannot start the worker thread of core {core}")]
    Thread {
        /// The core asked for.
        core: usize,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

pub(super) struct WorkerHandle {
    pub(super) shared: Arc<WorkerShared>,
    pub(super) commands: Mutex<Sender<Command>>,
    /// The worker itself, if it has no thread.
    pub(super) by_hand: Option<SteppedWorker>,
}

impl WorkerHandle {
    /// Sends a command and waits until it holds.
    pub(super) fn call(&self, command: impl FnOnce(Sender<Reply>) -> Command) -> Reply {
        let (to, reply) = channel();
        let sent = self
            .commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(command(to));
        if sent.is_err() {
            return Reply::default();
        }
        match &self.by_hand {
            Some(worker) => worker.lock().unwrap_or_else(PoisonError::into_inner).obey(),
            None => self.shared.ring(),
        }
        // A worker that has ended has let go of everything.
        reply.recv().unwrap_or_default()
    }
}

pub(super) fn stop_all(workers: &[WorkerHandle]) {
    for worker in workers {
        let _ = worker
            .commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(Command::Stop);
        worker.shared.ring();
    }
}

pub(super) fn start_worker(
    core: usize,
    started: Instant,
) -> Result<(WorkerHandle, JoinHandle<()>), StartError> {
    let shared =
        WorkerShared::new(Some(core)).map_err(|source| StartError::Pin { core, source })?;
    let shared = Arc::new(shared);
    let (commands, mailbox) = channel();
    let (pinned, is_pinned) = channel();
    let worker_shared = shared.clone();
    let thread = std::thread::Builder::new()
        .name(format!("worker-{core}"))
        .spawn(move || {
            let result = pin(core);
            let ok = result.is_ok();
            let _ = pinned.send(result);
            if ok {
                Worker::new(worker_shared, mailbox, started).run();
            }
        })
        .map_err(|source| StartError::Thread { core, source })?;
    match is_pinned.recv() {
        Ok(Err(source)) => Err(StartError::Pin { core, source }),
        _ => Ok((
            WorkerHandle {
                shared,
                commands: Mutex::new(commands),
                by_hand: None,
            },
            thread,
        )),
    }
}

/// The cores that this process may run on, in order; none where the kernel does not tell.
pub fn allowed_cores() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU)
        .filter(|&core| set.is_set(core))
        .collect()
}

/// Cores as users write them: `0,2-5`.
fn listed(cores: &[usize]) -> String {
    let ranges = cores.chunk_by(|before, after| before + 1 == *after);
    let range = |range: &[usize]| match range {
        [first, .., last] => format!("{first}-{last}"),
        range => range.iter().map(usize::to_string).collect(),
    };
    ranges.map(range).collect::<Vec<_>>().join(",")
}

fn pin(core: usize) -> rustix::io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(rustix::io::Errno::INVAL);
    }
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_listed_as_users_write_them() {
        for (cores, text) in [
            (&[][..], ""),
            (&[3], "3"),
            (&[0, 1], "0-1"),
            (&[0, 2, 3, 4, 9], "0,2-4,9"),
        ] {
            assert_eq!(listed(cores), text);
        }
    }
}

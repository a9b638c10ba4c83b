//! A switch without threads, for simulations: its user takes the workers' turns.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::{Core, Switch, WorkerHandle};
use crate::worker::{Worker, WorkerShared};

/// A worker that is polled by hand. Not to be held locked while the switch is changed.
pub type SteppedWorker = Arc<Mutex<Worker>>;

impl Switch {
    /// A switch with `count` workers and no threads. A change holds as soon as it was asked for; frames move when
    /// the caller polls the workers, by whatever clock it has.
    ///
    /// # Errors
    /// No more file descriptors.
    pub fn stepped(count: usize) -> rustix::io::Result<(Switch, Vec<SteppedWorker>)> {
        let started = Instant::now();
        let mut handles = Vec::new();
        let mut workers = Vec::new();
        for _ in 0..count {
            let shared = Arc::new(WorkerShared::new(None)?);
            let (commands, mailbox) = channel();
            let worker = Arc::new(Mutex::new(Worker::new(shared.clone(), mailbox, started)));
            workers.push(worker.clone());
            handles.push(WorkerHandle {
                shared,
                commands: Mutex::new(commands),
                by_hand: Some(worker),
            });
        }
        let core = Core {
            workers: handles,
            networks: Mutex::default(),
            next_id: 1.into(),
            started,
        };
        let switch = Switch {
            core: Arc::new(core),
            threads: Vec::new(),
        };
        Ok((switch, workers))
    }
}

//! A worker's sleep under every order of reads and writes that the memory model allows: no wake-up is lost. A lost one
//! leaves the worker asleep for ever, which loom reports as a model that does not end.

#![allow(dead_code, reason = "the worker uses more of it")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod atomic {
    pub(super) use loom::sync::atomic::{AtomicBool, Ordering, fence};
}
#[path = "../src/wakeup.rs"]
mod wakeup;

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

use wakeup::{Armed, Bell, Event};

/// What epoll waits for: the eventfds of the bell and of a port.
#[derive(Default)]
struct Epoll {
    set: Mutex<[bool; 2]>,
}

impl Epoll {
    fn wait(&self) {
        while *self.set.lock().unwrap() == [false; 2] {
            thread::yield_now();
        }
    }
}

struct EventFd(Arc<Epoll>, usize);

impl Event for EventFd {
    fn set(&self) {
        self.0.set.lock().unwrap()[self.1] = true;
    }

    fn clear(&self) {
        self.0.set.lock().unwrap()[self.1] = false;
    }
}

/// What a worker shares with the control side and with what feeds its port.
struct Shared {
    epoll: Arc<Epoll>,
    bell: Bell<EventFd>,
    commands: AtomicUsize,
    armed: Armed,
    port: EventFd,
    frames: AtomicUsize,
}

impl Shared {
    fn new() -> Arc<Shared> {
        let epoll = Arc::new(Epoll::default());
        Arc::new(Shared {
            bell: Bell::new(EventFd(epoll.clone(), 0)),
            commands: AtomicUsize::new(0),
            armed: Armed::default(),
            port: EventFd(epoll.clone(), 1),
            frames: AtomicUsize::new(0),
            epoll,
        })
    }

    fn command(&self) {
        self.commands.fetch_add(1, Ordering::Release);
        self.bell.ring();
    }

    fn send(&self) {
        self.frames.fetch_add(1, Ordering::Release);
        if self.armed.fire() {
            self.port.set();
        }
    }

    /// The worker's loop without patience: until it has seen to as many commands and frames.
    fn work(&self, mut commands: usize, mut frames: usize) {
        loop {
            if self.bell.answer() {
                commands -= self.commands.swap(0, Ordering::Acquire);
            }
            frames -= self.frames.swap(0, Ordering::Acquire);
            if commands == 0 && frames == 0 {
                return;
            }
            self.armed.arm();
            let came_in = self.frames.load(Ordering::Acquire) > 0;
            if !came_in && !self.bell.rings() {
                self.epoll.wait();
            }
            self.bell.hush();
            self.armed.disarm();
            self.port.clear();
        }
    }
}

fn all_is_seen_to(commands: usize, frames: usize) {
    let mut model = loom::model::Builder::new();
    // Enough for each side to be interrupted by the other between any two of its steps.
    model.preemption_bound = Some(3);
    model.check(move || {
        let shared = Shared::new();
        let feed = |count: usize, one: fn(&Shared)| {
            let theirs = shared.clone();
            (count > 0).then(|| thread::spawn(move || (0..count).for_each(|_| one(&theirs))))
        };
        let wakers = [feed(commands, Shared::command), feed(frames, Shared::send)];
        shared.work(commands, frames);
        for waker in wakers.into_iter().flatten() {
            waker.join().unwrap();
        }
    });
}

#[test]
fn no_command_is_slept_over() {
    all_is_seen_to(2, 0);
}

#[test]
fn no_frame_is_slept_over() {
    all_is_seen_to(0, 2);
}

#[test]
fn a_command_and_a_frame_at_once_are_both_seen_to() {
    all_is_seen_to(1, 1);
}

//! The thread beside the processors: timers, ended interrupts, and what the guest asks of the machine as a whole.

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::irq;
use crate::shared::{Shared, lock};

/// Serves until the machine ends.
pub(crate) fn run(shared: &Shared) {
    let Ok(resample) = shared.board().resample().try_clone() else {
        return;
    };
    while !lock(&shared.control).ending {
        let until = shared.board().until_timer();
        let timeout = until.and_then(|until| Timespec::try_from(until).ok());
        let mut waiting = [
            PollFd::new(&shared.service, PollFlags::IN),
            PollFd::new(&resample, PollFlags::IN),
        ];
        // An interrupted wait looks at everything, as one that has ended does.
        let _ = poll(&mut waiting, timeout.as_ref());
        irq::drain(&shared.service);
        irq::drain(&resample);
        let mut board = shared.board();
        board.ended_interrupts();
        board.run_timers();
        let request = board.take_request();
        drop(board);
        if let Some(request) = request {
            shared.request(request);
        }
        loop {
            let request = lock(&shared.requests).pop_front();
            let Some(request) = request else { break };
            shared.serve(request);
        }
    }
}

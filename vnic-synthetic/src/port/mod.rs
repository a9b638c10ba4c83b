//! The adapter as a port of the switch: the rings of its channels, its buffers, and what its driver negotiated.
//!
//! * [`Adapter`] is what the control side has: it shares memory, opens and closes channels and sets the link, each at
//!   once, while workers run.
//! * Its two sides are handles. What frames come from (`transmit`) is one worker's; what frames go to (`receive`) any
//!   worker's. Each has a lock of its own, held for one call, so that both directions run at the same time.
//! * The driver's control messages are dealt with where they are found, by the worker: they are pure functions.

mod adapter;
mod large;
mod receive;
mod scatter;
mod sections;
mod signal;
mod transmit;

pub use adapter::{Adapter, Config, MAX_CHANNELS, OpenError};
pub use signal::{EventFlag, Signal};
pub use transmit::State;

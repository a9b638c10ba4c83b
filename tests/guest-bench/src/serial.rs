//! What is said on the first serial line.

use core::fmt::{self, Write};

use crate::cpu;

const COM1: u16 = 0x3f8;

/// The serial line. Its transmitter always has room.
pub struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| cpu::write_port(COM1, byte));
        Ok(())
    }
}

/// Prints a line.
macro_rules! say {
    ($($what:tt)*) => {{
        use core::fmt::Write as _;
        // The serial line does not fail.
        let _ = writeln!($crate::serial::Serial, $($what)*);
    }};
}
pub(crate) use say;

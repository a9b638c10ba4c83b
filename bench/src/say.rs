//! Speaking to the terminal.

/// Prints a line at once. Who reads it may have gone; the measurement then goes on.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, $($argument)*);
        let _ = out.flush();
    }};
}
pub(crate) use say;

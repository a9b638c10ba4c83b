//! Telling the user how it goes.

/// Prints a line on standard output at once, and goes on where nobody reads it any more.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, $($argument)*);
        let _ = out.flush();
    }};
}
pub(crate) use say;

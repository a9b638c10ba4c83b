//! Running test programs and counting their results.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use crate::say::say;

/// How many passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Tally {
    pub(crate) const FAILED: Self = Self {
        passed: 0,
        failed: 1,
    };

    pub(crate) fn one(passed: bool) -> Self {
        if passed {
            Self {
                passed: 1,
                failed: 0,
            }
        } else {
            Self::FAILED
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// What a line of libtest adds: `test result: ok. 3 passed; 0 failed; …`. An ignored test is one that
    /// somebody switched off; it counts as failed, for nothing is skipped silently.
    fn of_line(line: &str) -> Self {
        let Some(result) = line.strip_prefix("test result: ") else {
            return Self::default();
        };
        let count = |what: &str| -> u64 {
            let part = result
                .split(['.', ';'])
                .find_map(|part| part.trim().strip_suffix(what));
            part.and_then(|number| number.trim().parse().ok())
                .unwrap_or(0)
        };
        Self {
            passed: count("passed"),
            failed: count("failed") + count("ignored"),
        }
    }
}

/// Runs a libtest program or `cargo test`, shows what it prints, and adds up its results. A run that failed
/// without a failed test (it did not build, or was killed) counts as one failure.
pub(crate) fn tests(command: &mut Command) -> Tally {
    let mut child = match command.stdout(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) => {
            say!("cannot start {command:?}: {error}");
            return Tally::FAILED;
        }
    };
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        tally = sum(BufReader::new(stdout), |line| say!("{line}"));
    }
    if !child.wait().is_ok_and(|status| status.success()) && tally.failed == 0 {
        say!("{command:?} failed without a failed test");
        tally.failed = 1;
    }
    tally
}

/// Adds up the results in what tests print, and shows what is worth it.
fn sum(printed: impl BufRead, mut show: impl FnMut(&str)) -> Tally {
    let mut tally = Tally::default();
    for line in printed.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        tally.add(Tally::of_line(&line));
        let nothing =
            line.starts_with("running 0 tests") || line.contains(" 0 passed; 0 failed; 0 ignored");
        if !line.is_empty() && !nothing {
            show(&line);
        }
    }
    tally
}

/// Runs a command that passes by its exit status.
pub(crate) fn passes(command: &mut Command) -> bool {
    match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            say!("cannot start {command:?}: {error}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_libtest_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.21s";
        assert_eq!(
            Tally::of_line(line),
            Tally {
                passed: 12,
                failed: 3
            }
        );
        assert_eq!(
            Tally::of_line("test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured").failed,
            1
        );
        assert_eq!(Tally::of_line("test passed; 3 passed"), Tally::default());
    }

    #[test]
    fn a_program_that_dies_counts_as_one_failure() {
        assert_eq!(
            tests(Command::new("sh").args(["-c", "exit 101"])),
            Tally::FAILED
        );
        assert_eq!(
            tests(&mut Command::new("/nonexistent/program")),
            Tally::FAILED
        );
    }

    #[test]
    fn results_of_several_programs_add_up() {
        // Not run through `tests`: what that prints would be counted by whoever runs this test.
        let printed = "running 2 tests\ntest result: ok. 2 passed; 0 failed;\n\ntest result: ok. 3 passed; 1 failed;\n";
        assert_eq!(
            sum(printed.as_bytes(), |_| ()),
            Tally {
                passed: 5,
                failed: 1
            }
        );
    }
}

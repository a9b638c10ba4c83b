//! Format, lints, documentation, and the rules of dependency.

use vswitch_tests::{paths, vm::image::static_programs};

use crate::{
    cargo::cargo,
    deps,
    run::{self, Tally},
    say::say,
    setup,
};

/// Runs each check, and counts it as one.
pub(crate) fn run() -> Tally {
    let mut tally = Tally::default();
    let mut count = |what: &str, passed: bool| {
        say!("{} {what}", if passed { "ok  " } else { "FAIL" });
        tally.add(Tally::one(passed));
    };
    count(
        "format",
        run::passes(&mut cargo(&["fmt", "--all", "--check"])),
    );
    let mut clippy = cargo(&[
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    count("clippy", run::passes(&mut clippy));
    let of_guest = |verb: &[&str], flags: &[&str]| {
        let manifest = ["--manifest-path", setup::BENCH_GUEST];
        let mut command = cargo(&[verb, &manifest, flags].concat());
        run::passes(command.env("CARGO_TARGET_DIR", static_programs(&paths::guests())))
    };
    let formatted = of_guest(&["fmt"], &["--check"]);
    let clippy = ["--", "-D", "warnings"];
    let clean = of_guest(&["clippy", "--quiet", "--release"], &clippy);
    count("format and clippy of the bench guest", formatted && clean);
    let mut docs = cargo(&[
        "doc",
        "--quiet",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    count(
        "documentation",
        run::passes(docs.env("RUSTDOCFLAGS", "-D warnings")),
    );
    let broken = deps::broken_rules().unwrap_or_else(|error| vec![format!("{error:#}")]);
    broken.iter().for_each(|rule| say!("     {rule}"));
    count(
        "who may depend on whom, and where unsafe code may be",
        broken.is_empty(),
    );
    tally
}

//! Properties over random frames, held against `etherparse` and naive models. `PROPTEST_CASES` sets how many (256; four times that here).
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use proptest::test_runner::Config;

#[path = "properties/adapt.rs"]
mod adapt;
#[path = "properties/frame.rs"]
mod frame;
#[path = "properties/headers.rs"]
mod headers;

fn config() -> Config {
    let default = Config::default();
    Config {
        cases: default.cases.saturating_mul(4),
        failure_persistence: None,
        ..default
    }
}

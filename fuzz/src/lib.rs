//! What the fuzz targets do with their input. Each is a plain function of bytes that panics if something is wrong, so
//! that inputs that were found can be tests, and the seeds are replayed by `cargo test`.

#![forbid(unsafe_code)]

pub mod api_bodies;
pub mod attach_messages;
pub mod headers;
pub mod input;
pub mod integration_services;
pub mod legacy;
pub mod offload_request;
pub mod platform;
pub mod rings;
pub mod saved_states;
pub mod synthetic_port;
pub mod turn;
pub mod vhost_messages;
pub mod vmbus_messages;

#[cfg(test)]
mod tests {
    use std::path::Path;

    type Target = (&'static str, fn(&[u8]));

    /// Every seed passes. An input that once was found as a crash is kept among the seeds.
    #[test]
    fn seeds_pass() {
        let targets: [Target; 15] = [
            ("api_bodies", super::api_bodies::run),
            ("attach_messages", super::attach_messages::run),
            ("headers", super::headers::run),
            ("offload_request", super::offload_request::run),
            ("platform", super::platform::run),
            ("turn", super::turn::run),
            ("vhost_messages", super::vhost_messages::run),
            ("split_ring", super::rings::split),
            ("packed_ring", super::rings::packed),
            ("legacy_registers", super::legacy::registers),
            ("legacy_rings", super::legacy::rings),
            ("synthetic_port", super::synthetic_port::run),
            ("vmbus_messages", super::vmbus_messages::run),
            ("integration_services", super::integration_services::run),
            ("saved_states", super::saved_states::run),
        ];
        for (target, run) in targets {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("seeds")
                .join(target);
            let mut seeds = 0;
            for seed in std::fs::read_dir(folder).expect("seeds") {
                let path = seed.expect("seeds").path();
                println!("{}", path.display());
                run(&std::fs::read(path).expect("seed"));
                seeds += 1;
            }
            assert!(seeds > 0, "no seeds for {target}");
        }
    }
}

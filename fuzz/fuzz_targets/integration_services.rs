#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vswitch_fuzz::integration_services::run(data));

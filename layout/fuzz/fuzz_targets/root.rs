#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ashlar_layout_fuzz::root(data));

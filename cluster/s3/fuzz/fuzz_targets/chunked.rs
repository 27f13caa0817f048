#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ashlar_cluster_s3_fuzz::chunked(data));

//! The target that has to fail: a decoder that trusts a length, behind a magic number and a kind. `cargo xtask fuzz`
//! fails if this is *not* found.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((head, rest)) = data.split_first_chunk::<8>() else {
        return;
    };
    if &head[..4] == b"ASHL" && head[4] == 7 {
        let len = usize::from(head[5]);
        assert!(len <= rest.len(), "the canary is found: {len} of {}", rest.len());
    }
});

//! Every kernel that this processor has against the portable one, over all coefficients and the lengths
//! and positions where a register's edge may fall.

#![allow(clippy::unwrap_used, reason = "tests")]

use ashlar_cluster_codec::{CAUCHY_PARITY_MAX, Codec, Kernel, Method, SHARDS_MAX};
use proptest::prelude::*;

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()[7]
    };
    (0..len).map(next).collect()
}

/// Parity by `kernel`, of shards and into buffers that begin `shift` bytes into their allocation, with
/// guard bytes around each output.
fn parity(
    kernel: Kernel,
    k: usize,
    m: usize,
    len: usize,
    shift: usize,
    data: &[Vec<u8>],
) -> Vec<Vec<u8>> {
    const GUARD: u8 = 0xa5;
    let codec = Codec::with_method(k, m, Method::Cauchy(kernel)).unwrap();
    let sources: Vec<&[u8]> = data
        .iter()
        .map(|shard| &shard[shift..shift + len])
        .collect();
    let mut buffers = vec![vec![GUARD; shift + len + 130]; m];
    let mut out: Vec<&mut [u8]> = buffers
        .iter_mut()
        .map(|buffer| &mut buffer[shift..shift + len])
        .collect();
    codec.encode(&sources, &mut out).unwrap();
    for buffer in &buffers {
        let around = buffer[..shift].iter().chain(&buffer[shift + len..]);
        assert!(
            around.copied().all(|byte| byte == GUARD),
            "{} wrote outside of its output",
            kernel.name()
        );
    }
    buffers
        .iter()
        .map(|buffer| buffer[shift..shift + len].to_vec())
        .collect()
}

#[test]
fn every_length_up_to_several_registers() {
    for (k, m) in [
        (1, 1),
        (3, 2),
        (4, 3),
        (5, 4),
        (2, 5),
        (3, 6),
        (4, 7),
        (9, 8),
    ] {
        let data: Vec<Vec<u8>> = (0..k).map(|j| bytes(j as u64, 700)).collect();
        for len in 0..640 {
            let expected = parity(Kernel::portable(), k, m, len, len % 61, &data);
            for kernel in Kernel::available() {
                let got = parity(kernel, k, m, len, len % 61, &data);
                assert_eq!(got, expected, "{} {k}+{m}, {len} bytes", kernel.name());
            }
        }
    }
}

#[test]
fn every_operand_and_every_coefficient() {
    // Classes whose parity rows hold, between them, the inverse of each i ^ j below 64: 63 coefficients, each with
    // all 256 operands. `field.rs` has the tables of the other constants against the product.
    let data: Vec<Vec<u8>> = (0..56)
        .map(|j| {
            (0..=255u8)
                .map(|byte| byte.wrapping_mul(2 * j + 1))
                .collect()
        })
        .collect();
    for k in [1, 2, 7, 31, 32, 56] {
        let data: Vec<Vec<u8>> = data[..k].iter().map(|shard| shard.repeat(2)).collect();
        for m in [1, CAUCHY_PARITY_MAX] {
            let expected = parity(Kernel::portable(), k, m, 512, 0, &data);
            for kernel in Kernel::available() {
                assert_eq!(
                    parity(kernel, k, m, 512, 0, &data),
                    expected,
                    "{} {k}+{m}",
                    kernel.name()
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn kernels_agree(
        (k, m) in (1..=CAUCHY_PARITY_MAX).prop_flat_map(|m| (1..=SHARDS_MAX - m, Just(m))),
        len in prop_oneof![0usize..300, 4_000usize..20_000],
        shift in 0usize..64,
        seed: u64,
    ) {
        let data: Vec<Vec<u8>> = (0..k).map(|j| bytes(seed ^ j as u64, shift + len)).collect();
        let expected = parity(Kernel::portable(), k, m, len, shift, &data);
        for kernel in Kernel::available() {
            prop_assert!(parity(kernel, k, m, len, shift, &data) == expected, "{}", kernel.name());
        }
    }
}

//! What was lost comes back, whatever was lost: all patterns of the common classes, random ones of the
//! others, whole shards and ranges, both codes. And what cannot be done is refused.

#![allow(clippy::unwrap_used, reason = "tests")]

use ashlar_cluster_codec::{CAUCHY_PARITY_MAX, Codec, CodecError, Kernel, Method, SHARDS_MAX};
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

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

/// All k + m shards of a stripe of pseudo-random data.
fn stripe(codec: &Codec, len: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut shards: Vec<Vec<u8>> = (0..codec.k())
        .map(|j| bytes(seed ^ j as u64, len))
        .collect();
    shards.resize(codec.shards(), vec![0; len]);
    let (data, parity) = shards.split_at_mut(codec.k());
    let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    codec.encode(&data, &mut parity).unwrap();
    shards
}

/// Rebuilds the range `from..to` of `wanted` out of `present`, and compares.
fn check(
    codec: &Codec,
    shards: &[Vec<u8>],
    present: &[usize],
    wanted: &[usize],
    from: usize,
    to: usize,
) {
    let sources: Vec<(usize, &[u8])> = present.iter().map(|&i| (i, &shards[i][from..to])).collect();
    let mut buffers = vec![vec![0xee; to - from]; wanted.len()];
    let mut out: Vec<(usize, &mut [u8])> = wanted
        .iter()
        .zip(&mut buffers)
        .map(|(&i, buffer)| (i, &mut buffer[..]))
        .collect();
    codec.reconstruct(&sources, &mut out).unwrap();
    for (&i, buffer) in wanted.iter().zip(&buffers) {
        assert!(
            buffer == &shards[i][from..to],
            "{codec:?}: shard {i} from {present:?}, {from}..{to}"
        );
    }
}

fn every_pattern(k: usize, m: usize) {
    let shards = k + m;
    for kernel in Kernel::available() {
        let codec = Codec::with_method(k, m, Method::Cauchy(kernel)).unwrap();
        let stripe = stripe(&codec, 137, 7);
        let mut patterns = 0;
        for lost in (0u32..1 << shards).filter(|lost| lost.count_ones() as usize <= m) {
            let (gone, here): (Vec<usize>, Vec<usize>) =
                (0..shards).partition(|&i| lost >> i & 1 == 1);
            check(&codec, &stripe, &here, &gone, 0, 137);
            // Each of them alone, as a degraded read asks for it, and a range.
            for &one in &gone {
                check(&codec, &stripe, &here, &[one], 5, 101);
            }
            patterns += 1;
        }
        let expected = (0..=m)
            .fold((0, 1), |(sum, c), i| (sum + c, c * (shards - i) / (i + 1)))
            .0;
        assert_eq!(patterns, expected);
    }
}

#[test]
fn every_loss_of_4_and_2() {
    every_pattern(4, 2);
}

#[test]
fn every_loss_of_6_and_3() {
    every_pattern(6, 3);
}

#[test]
fn every_loss_of_8_and_4() {
    every_pattern(8, 4);
}

#[test]
fn replication_is_a_class() {
    for m in 1..=SHARDS_MAX - 1 {
        let codec = Codec::new(1, m).unwrap();
        let stripe = stripe(&codec, 66, 1);
        if m <= CAUCHY_PARITY_MAX {
            assert_eq!(
                stripe[1], stripe[0],
                "the first copy is a copy; ISA-L scales the others"
            );
        }
        let all: Vec<usize> = (0..=m).collect();
        for &one in &all {
            check(&codec, &stripe, &[one], &all, 0, 66);
        }
    }
}

#[test]
fn methods_follow_the_class() {
    for m in 1..=20 {
        let codec = Codec::new(4, m).unwrap();
        assert_eq!(codec.method() == Method::Wide, m > CAUCHY_PARITY_MAX);
        assert_eq!(
            codec.range_align(),
            if m > CAUCHY_PARITY_MAX { 64 } else { 1 }
        );
        assert_eq!((codec.k(), codec.m(), codec.shards()), (4, m, 4 + m));
    }
}

/// A class, and an order of its shards of which a first part is present.
fn case(class: impl Strategy<Value = (usize, usize)>) -> impl Strategy<Value = Case> {
    class
        .prop_flat_map(|(k, m)| {
            let shards: Vec<usize> = (0..k + m).collect();
            (
                Just((k, m)),
                Just(shards.clone()).prop_shuffle(),
                k..=k + m,
                subsequence(shards, 0..=k + m),
            )
        })
        .prop_flat_map(|(class, order, present, wanted)| {
            (
                Just(class),
                Just(order[..present].to_vec()),
                Just(wanted).prop_shuffle(),
            )
        })
}

type Case = ((usize, usize), Vec<usize>, Vec<usize>);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Wanted shards may be lost or present, data or parity, in any order; the range is any.
    #[test]
    fn cauchy_gives_back(
        ((k, m), present, wanted) in case((1usize..=20, 1..=CAUCHY_PARITY_MAX)),
        len in prop_oneof![Just(0usize), 1usize..400, Just(4096usize), 8_000usize..12_000],
        cut in any::<(Index, Index)>(),
        kernel in any::<Index>(),
        seed: u64,
    ) {
        let kernels = Kernel::available();
        let codec = Codec::with_method(k, m, Method::Cauchy(kernels[kernel.index(kernels.len())])).unwrap();
        let stripe = stripe(&codec, len, seed);
        let (a, b) = (cut.0.index(len + 1), cut.1.index(len + 1));
        check(&codec, &stripe, &present, &wanted, a.min(b), a.max(b));
        check(&codec, &stripe, &present, &wanted, 0, len);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// The same for wide classes, with ranges of whole columns; the last may end with the shard.
    #[test]
    fn wide_gives_back(
        ((k, m), present, wanted) in case((1usize..=40, CAUCHY_PARITY_MAX + 1..=24)),
        half_len in prop_oneof![Just(0usize), 1usize..200, 4_000usize..9_000, 64_000usize..70_000],
        cut in any::<(Index, Index)>(),
        seed: u64,
    ) {
        let len = 2 * half_len;
        let codec = Codec::new(k, m).unwrap();
        let stripe = stripe(&codec, len, seed);
        let column = codec.range_align();
        let (a, b) = (cut.0.index(len / column + 1) * column, cut.1.index(len / column + 1) * column);
        check(&codec, &stripe, &present, &wanted, a.min(b), a.max(b));
        check(&codec, &stripe, &present, &wanted, a, len);
        check(&codec, &stripe, &present, &wanted, 0, len);
    }
}

#[test]
fn threads_share_a_codec() {
    for codec in [Codec::new(6, 3).unwrap(), Codec::new(6, 9).unwrap()] {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let codec = codec.clone();
                scope.spawn(move || {
                    let stripe = stripe(&codec, 256, thread);
                    for lost in 0..codec.shards() {
                        let here: Vec<usize> = (0..codec.shards()).filter(|&i| i != lost).collect();
                        check(&codec, &stripe, &here[..codec.k()], &[lost], 64, 192);
                    }
                });
            }
        });
    }
}

#[test]
fn classes_that_are_none() {
    for (k, m) in [
        (0, 1),
        (1, 0),
        (0, 0),
        (57, 8),
        (60, 5),
        (32, 33),
        (1, 64),
        (usize::MAX, 1),
        (1, usize::MAX),
    ] {
        assert!(
            matches!(
                Codec::new(k, m),
                Err(CodecError::Class {
                    max: SHARDS_MAX,
                    ..
                })
            ),
            "{k}+{m}"
        );
    }
    let kernel = Method::Cauchy(Kernel::best());
    assert!(matches!(
        Codec::with_method(4, 9, kernel),
        Err(CodecError::Class { .. })
    ));
    Codec::new(56, 8).unwrap();
    Codec::new(32, 32).unwrap();
}

#[test]
fn bad_calls_are_refused() {
    for m in [2, 9] {
        let codec = Codec::new(3, m).unwrap();
        let shard = vec![1u8; 10];
        let data: Vec<&[u8]> = vec![&shard; 3];
        let mut buffers = vec![vec![9u8; 10]; m];
        let mut out: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
        assert_eq!(
            codec.encode(&data[..2], &mut out),
            Err(CodecError::ShardCount {
                what: "data",
                k: 3,
                m,
                expected: 3,
                got: 2
            })
        );
        assert_eq!(
            codec.encode(&data, &mut out[1..]),
            Err(CodecError::ShardCount {
                what: "parity",
                k: 3,
                m,
                expected: m,
                got: m - 1
            })
        );
        assert_eq!(
            codec.encode(&[&shard, &shard[1..], &shard], &mut out),
            Err(CodecError::ShardLength {
                index: 1,
                expected: 10,
                got: 9
            })
        );
        let short = &mut [0u8; 4][..];
        out[1] = short;
        assert_eq!(
            codec.encode(&data, &mut out),
            Err(CodecError::ShardLength {
                index: 4,
                expected: 10,
                got: 4
            })
        );
        let mut buffer = vec![9u8; 10];
        let mut again = |shards: &[(usize, &[u8])], index| {
            codec.reconstruct(shards, &mut [(index, &mut buffer)])
        };
        let at = |index| (index, &shard[..]);
        assert_eq!(
            again(&[at(0), at(1)], 2),
            Err(CodecError::TooFew { needed: 3, got: 2 })
        );
        assert_eq!(again(&[], 2), Err(CodecError::TooFew { needed: 3, got: 0 }));
        assert_eq!(
            again(&[at(0), at(1), at(1)], 2),
            Err(CodecError::Duplicate { index: 1 })
        );
        let shards = 3 + m;
        assert_eq!(
            again(&[at(0), at(1), at(shards)], 2),
            Err(CodecError::Index {
                index: shards,
                shards
            })
        );
        assert_eq!(
            again(&[at(0), at(1), at(3)], usize::MAX),
            Err(CodecError::Index {
                index: usize::MAX,
                shards
            })
        );
        let uneven = [at(0), at(1), (3, &shard[..8])];
        assert_eq!(
            again(&uneven, 2),
            Err(CodecError::ShardLength {
                index: 3,
                expected: 10,
                got: 8
            })
        );
        let all_short = [(0, &shard[..8]), (1, &shard[..8]), (3, &shard[..8])];
        assert_eq!(
            again(&all_short, 2),
            Err(CodecError::ShardLength {
                index: 2,
                expected: 8,
                got: 10
            })
        );
        assert_eq!(buffer, [9; 10], "a refusal writes nothing");
        let (mut a, mut b) = (vec![0u8; 10], vec![0u8; 10]);
        let twice = codec.reconstruct(&[at(0), at(1), at(3)], &mut [(2, &mut a), (2, &mut b)]);
        assert_eq!(twice, Err(CodecError::Duplicate { index: 2 }));
        assert_eq!(codec.reconstruct(&[at(0), at(1), at(3)], &mut []), Ok(()));
    }
}

#[test]
fn wide_lengths_are_even() {
    let codec = Codec::new(2, 9).unwrap();
    let shard = [0u8; 7];
    let mut buffers = vec![vec![0u8; 7]; 9];
    let mut out: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
    assert_eq!(
        codec.encode(&[&shard, &shard], &mut out),
        Err(CodecError::OddLength { len: 7 })
    );
    let wanted = &mut [(1, &mut [0u8; 7][..])];
    assert_eq!(
        codec.reconstruct(&[(0, &shard), (2, &shard)], wanted),
        Err(CodecError::OddLength { len: 7 })
    );
}

//! The Cauchy code against others: ISA-L's own output, and `rusty_erasure` over every class. And the wide
//! code against what it gave when its bytes first went to disk.

#![allow(clippy::unwrap_used, reason = "tests")]

use ashlar_cluster_codec::{CAUCHY_PARITY_MAX, Codec, Kernel, Method, SHARDS_MAX};

/// The golden file's data; see its head.
fn golden_data(k: usize, len: usize) -> Vec<Vec<u8>> {
    (0..k)
        .map(|j| {
            (0..len)
                .map(|i| (7 * i + 131 * j + i * j * j + i * i / 3).to_le_bytes()[0])
                .collect()
        })
        .collect()
}

fn encode(codec: &Codec, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    // What the outputs held before must not shine through.
    let mut parity = vec![vec![0xee; data[0].len()]; codec.m()];
    let mut out: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    codec.encode(&data, &mut out).unwrap();
    parity
}

#[test]
fn the_bytes_are_isal() {
    let mut lines = 0;
    for line in include_str!("golden/isal-cauchy.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let fields: Vec<&str> = line.split(' ').collect();
        let [k, m, len, index] = [0, 1, 2, 3].map(|i| fields[i].parse::<usize>().unwrap());
        let hex = fields[4];
        let expected: Vec<u8> = (0..len)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
            .collect();
        assert_eq!(hex.len(), 2 * len);
        for kernel in Kernel::available() {
            let codec = Codec::with_method(k, m, Method::Cauchy(kernel)).unwrap();
            let parity = encode(&codec, &golden_data(k, len));
            assert_eq!(parity[index], expected, "{codec:?}, parity {index}");
        }
        lines += 1;
    }
    assert_eq!(lines, 62, "the golden file is whole");
}

#[test]
fn every_class_agrees_with_rusty_erasure() {
    for m in 1..=CAUCHY_PARITY_MAX {
        for k in 1..=SHARDS_MAX - m {
            let len = 1 + (k * 37 + m * 101) % 300;
            let data = golden_data(k, len);
            let coder = rusty_erasure::coder(rusty_erasure::Matrix::cauchy(k, m).unwrap()).unwrap();
            let sources: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            let mut expected = vec![vec![0; len]; m];
            let mut out: Vec<&mut [u8]> = expected.iter_mut().map(Vec::as_mut_slice).collect();
            coder.encode(&sources, &mut out).unwrap();
            assert_eq!(
                encode(&Codec::new(k, m).unwrap(), &data),
                expected,
                "{k}+{m}, {len} bytes"
            );
        }
    }
}

#[test]
fn the_wide_bytes_do_not_change() {
    // CRC-32 of the parity shards one after the other, by reed-solomon-simd 3.1.0 on 2026-11-22.
    for (k, m, len, crc) in WIDE {
        let parity = encode(&Codec::new(k, m).unwrap(), &golden_data(k, len));
        let got = crc32fast::hash(&parity.concat());
        assert_eq!(got, crc, "{k}+{m}, {len} bytes: {got:#010x}");
        let whole = reed_solomon_simd::encode(k, m, golden_data(k, len)).unwrap();
        assert_eq!(parity, whole, "{k}+{m}, {len} bytes: strips are the whole");
    }
}

const WIDE: [(usize, usize, usize, u32); 6] = [
    (1, 9, 64, 0xdcbb_8f6d),
    (9, 9, 2, 0xd2e5_1d34),
    (10, 12, 130, 0x0d98_dfa0),
    (16, 12, 4096, 0x4bbe_4f4a),
    (20, 16, 40_000, 0x584c_5604),
    (48, 16, 16_384, 0x3438_55df),
];

//! Both codes over class and size, beside `rusty_erasure` (ISA-L's algorithm in Rust), and the checksum.
//!
//! Rates are of the stripe's data bytes, on one core: `cargo bench -p ashlar-bench --bench codec`. The decision page in
//! `cluster/codec/` quotes them.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(clippy::unwrap_used, reason = "a bench that fails should stop")]

use std::hint::black_box;
use std::time::Duration;

use ashlar_cluster_codec::{Codec, Kernel, Method};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use criterion::{criterion_group, criterion_main};

const CLASSES: [(usize, usize); 3] = [(4, 2), (8, 4), (16, 4)];
const SIZES: [usize; 4] = [4 << 10, 64 << 10, 1 << 20, 8 << 20];

/// A stripe of pseudo-random data in one page-aligned piece, as the buffer pool would hold it.
struct Stripe {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    k: usize,
}

impl Stripe {
    fn new(k: usize, m: usize, size: usize) -> Self {
        let len = (size / k).next_multiple_of(64);
        // Each shard begins on a page of its own, after a header block.
        let pitch = len.next_multiple_of(4096) + 4096;
        let mut bytes = vec![0u8; pitch * (k + m) + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for byte in &mut bytes {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = state.to_le_bytes()[7];
        }
        Self {
            bytes,
            start,
            len,
            k,
        }
    }

    fn split(&mut self) -> (Vec<&[u8]>, Vec<&mut [u8]>) {
        let pitch = self.len.next_multiple_of(4096) + 4096;
        let (k, len) = (self.k, self.len);
        let (data, parity) = self.bytes[self.start..].split_at_mut(pitch * k);
        let data = data
            .chunks_exact(pitch)
            .map(|shard| &shard[..len])
            .collect();
        (
            data,
            parity
                .chunks_exact_mut(pitch)
                .map(|shard| &mut shard[..len])
                .collect(),
        )
    }
}

fn methods() -> Vec<Method> {
    let kernels = Kernel::available().into_iter().map(Method::Cauchy);
    kernels.chain([Method::Wide]).collect()
}

fn isal_tables(k: usize, rows: &[u8]) -> Vec<u8> {
    let mut tables = vec![0; rows.len() * 32];
    rusty_erasure::isal::ec_init_tables(k, rows.len() / k, rows, &mut tables).unwrap();
    tables
}

fn name(k: usize, m: usize, size: usize) -> String {
    let size = if size < 1 << 20 {
        format!("{}KiB", size >> 10)
    } else {
        format!("{}MiB", size >> 20)
    };
    format!("{k}+{m}/{size}")
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    for (k, m) in CLASSES {
        for size in SIZES {
            let mut stripe = Stripe::new(k, m, size);
            group.throughput(Throughput::Bytes((stripe.len * k) as u64));
            let (data, mut parity) = stripe.split();
            for method in methods() {
                let codec = Codec::with_method(k, m, method).unwrap();
                group.bench_function(BenchmarkId::new(method.name(), name(k, m, size)), |b| {
                    b.iter(|| {
                        codec
                            .encode(black_box(&data), black_box(&mut parity))
                            .unwrap()
                    });
                });
            }
            let matrix = rusty_erasure::Matrix::cauchy(k, m).unwrap();
            for rival in rivals() {
                let coder = rusty_erasure::Coder::with_kernels(matrix.clone(), rival).unwrap();
                let id = BenchmarkId::new(
                    format!("rusty_erasure-{}", rival.name.replace('/', "-")),
                    name(k, m, size),
                );
                group.bench_function(id, |b| {
                    b.iter(|| {
                        coder
                            .encode(black_box(&data), black_box(&mut parity))
                            .unwrap()
                    });
                });
            }
        }
    }
    group.finish();
}

/// The rival's kernels: its best, and its AVX2 ones for machines without GFNI.
fn rivals() -> Vec<rusty_erasure::kernel::Kernels> {
    ["avx2", "gfni"]
        .into_iter()
        .filter_map(rusty_erasure::kernels_named)
        .collect()
}

fn reconstruct(c: &mut Criterion) {
    let mut group = c.benchmark_group("reconstruct");
    for (k, m) in CLASSES {
        for size in SIZES {
            for lost in [1, m] {
                reconstruct_lost(&mut group, k, m, size, lost);
            }
        }
    }
    group.finish();
}

fn reconstruct_lost(
    group: &mut BenchmarkGroup<'_, WallTime>,
    k: usize,
    m: usize,
    size: usize,
    lost: usize,
) {
    let mut stripe = Stripe::new(k, m, size);
    group.throughput(Throughput::Bytes((stripe.len * k) as u64));
    let len = stripe.len;
    let name = format!("{}/lost-{lost}", name(k, m, size));
    let (data, mut parity) = stripe.split();
    for method in methods() {
        let codec = Codec::with_method(k, m, method).unwrap();
        codec.encode(&data, &mut parity).unwrap();
        let shards: Vec<(usize, &[u8])> = (lost..k)
            .map(|i| (i, data[i]))
            .chain((0..lost).map(|i| (k + i, &*parity[i])))
            .collect();
        let mut out = vec![vec![0u8; len]; lost];
        let mut wanted: Vec<(usize, &mut [u8])> = out
            .iter_mut()
            .enumerate()
            .map(|(i, out)| (i, &mut out[..]))
            .collect();
        codec.reconstruct(&shards, &mut wanted).unwrap();
        assert!(
            wanted.iter().all(|(i, out)| *out == data[*i]),
            "{name} comes back"
        );
        group.bench_function(BenchmarkId::new(method.name(), &name), |b| {
            b.iter(|| {
                codec
                    .reconstruct(black_box(&shards), black_box(&mut wanted))
                    .unwrap()
            });
        });
    }
    // The rival has no cache of its own: its inverse and tables are made beforehand.
    let matrix = rusty_erasure::Matrix::cauchy(k, m).unwrap();
    let chosen: Vec<usize> = (lost..k).chain(k..k + lost).collect();
    let inverse = matrix.select_rows(&chosen).unwrap().invert().unwrap();
    let rows: Vec<u8> = inverse.as_bytes()[..lost * k].to_vec();
    let tables = isal_tables(k, &rows);
    let sources: Vec<&[u8]> = data[lost..]
        .iter()
        .copied()
        .chain(parity[..lost].iter().map(|p| &**p))
        .collect();
    let mut out = vec![vec![0u8; len]; lost];
    let mut wanted: Vec<&mut [u8]> = out.iter_mut().map(|out| &mut out[..]).collect();
    for rival in rivals() {
        let tables = if rival.table_bytes == 32 {
            tables.clone()
        } else {
            (rival.init)(&rows)
        };
        let id = BenchmarkId::new(
            format!("rusty_erasure-{}", rival.name.replace('/', "-")),
            &name,
        );
        group.bench_function(id, |b| {
            b.iter(|| {
                (rival.encode)(
                    black_box(&tables),
                    black_box(&sources),
                    black_box(&mut wanted),
                )
            });
        });
    }
}

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for size in [512, 4 << 10, 1 << 20] {
        let stripe = Stripe::new(1, 0, size);
        let bytes = &stripe.bytes[stripe.start..stripe.start + size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("crc32fast", size), |b| {
            b.iter(|| crc32fast::hash(black_box(bytes)));
        });
    }
    group.finish();
}

fn quick() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
        .without_plots()
        .configure_from_args()
}

criterion_group! { name = benches; config = quick(); targets = encode, reconstruct, checksum }
criterion_main!(benches);

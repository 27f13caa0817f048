//! The kernel for AVX2: a product is two shuffles of 16-byte tables, one per nibble.
//!
//! Loads and stores go through slices and `bytemuck`, so that nothing here is unsafe; the decision
//! page has what that costs.

use std::arch::x86_64::*;

use crate::kernel::Block;
use crate::kernel_portable;

/// Rows that one pass computes: two registers each, and the nibbles and tables in the other eight.
pub(crate) const ROWS_MAX: usize = 4;

/// Bytes of a register.
const WIDTH: usize = 32;

/// The matrix of `block` times `sources` into `out`, for the bytes `from..to`.
#[target_feature(enable = "avx2")]
pub(crate) fn apply(
    block: &Block<'_>,
    sources: &[&[u8]],
    out: &mut [&mut [u8]],
    from: usize,
    to: usize,
) {
    if to - from < WIDTH {
        return kernel_portable::apply(block.coefficients, sources, out, from, to);
    }
    match out.len() {
        1 => rows::<1, 4>(block.nibbles, sources, out, from, to),
        2 => rows::<2, 2>(block.nibbles, sources, out, from, to),
        3 => rows::<3, 2>(block.nibbles, sources, out, from, to),
        4 => rows::<4, 2>(block.nibbles, sources, out, from, to),
        _ => kernel_portable::apply(block.coefficients, sources, out, from, to),
    }
}

#[target_feature(enable = "avx2")]
fn rows<const R: usize, const U: usize>(
    tables: &[[u8; 32]],
    sources: &[&[u8]],
    out: &mut [&mut [u8]],
    from: usize,
    to: usize,
) {
    let (tables, _) = tables.as_chunks::<R>();
    let Ok(out) = <&mut [&mut [u8]; R]>::try_from(out) else {
        return;
    };
    let mut at = from;
    while at + U * WIDTH <= to {
        step::<R, U>(tables, sources, out, at);
        at += U * WIDTH;
    }
    while at + WIDTH <= to {
        step::<R, 1>(tables, sources, out, at);
        at += WIDTH;
    }
    if at < to {
        // The last register overlaps bytes already done: it computes the same for them again.
        step::<R, 1>(tables, sources, out, to - WIDTH);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn step<const R: usize, const U: usize>(
    tables: &[[[u8; 32]; R]],
    sources: &[&[u8]],
    out: &mut [&mut [u8]; R],
    at: usize,
) {
    let low_bits = _mm256_set1_epi8(0x0f);
    let mut sums = [[_mm256_setzero_si256(); U]; R];
    for (tables, source) in tables.iter().zip(sources) {
        let (words, _) = source[at..at + U * WIDTH].as_chunks::<WIDTH>();
        let mut low = [low_bits; U];
        let mut high = [low_bits; U];
        for u in 0..U {
            let word: __m256i = bytemuck::pod_read_unaligned(&words[u]);
            low[u] = _mm256_and_si256(word, low_bits);
            high[u] = _mm256_and_si256(_mm256_srli_epi64::<4>(word), low_bits);
        }
        for (sum, table) in sums.iter_mut().zip(tables) {
            let (halves, _) = table.as_chunks::<16>();
            let of_low = _mm256_broadcastsi128_si256(bytemuck::pod_read_unaligned(&halves[0]));
            let of_high = _mm256_broadcastsi128_si256(bytemuck::pod_read_unaligned(&halves[1]));
            for u in 0..U {
                let product = _mm256_xor_si256(
                    _mm256_shuffle_epi8(of_low, low[u]),
                    _mm256_shuffle_epi8(of_high, high[u]),
                );
                sum[u] = _mm256_xor_si256(sum[u], product);
            }
        }
    }
    for (out, sum) in out.iter_mut().zip(&sums) {
        out[at..at + U * WIDTH].copy_from_slice(bytemuck::cast_slice(sum));
    }
}

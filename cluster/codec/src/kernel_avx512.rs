//! The kernel for AVX-512 with GFNI: a product with a constant is one instruction, the affine map.
//!
//! Loads and stores go through slices and `bytemuck`, so that nothing here is unsafe; the decision
//! page has what that costs.

use std::arch::x86_64::*;

use crate::kernel::Block;
use crate::kernel_portable;

/// Rows that one pass computes: all that a class has.
pub(crate) const ROWS_MAX: usize = 8;

/// Bytes of a register.
const WIDTH: usize = 64;

/// The matrix of `block` times `sources` into `out`, for the bytes `from..to`.
#[target_feature(enable = "avx512f,gfni")]
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
    // Up to four rows leave registers for four columns of bytes at once, more rows for two.
    match out.len() {
        1 => rows::<1, 4>(block.affine, sources, out, from, to),
        2 => rows::<2, 4>(block.affine, sources, out, from, to),
        3 => rows::<3, 4>(block.affine, sources, out, from, to),
        4 => rows::<4, 4>(block.affine, sources, out, from, to),
        5 => rows::<5, 2>(block.affine, sources, out, from, to),
        6 => rows::<6, 2>(block.affine, sources, out, from, to),
        7 => rows::<7, 2>(block.affine, sources, out, from, to),
        8 => rows::<8, 2>(block.affine, sources, out, from, to),
        _ => kernel_portable::apply(block.coefficients, sources, out, from, to),
    }
}

#[target_feature(enable = "avx512f,gfni")]
fn rows<const R: usize, const U: usize>(
    tables: &[u64],
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

#[target_feature(enable = "avx512f,gfni")]
#[inline]
fn step<const R: usize, const U: usize>(
    tables: &[[u64; R]],
    sources: &[&[u8]],
    out: &mut [&mut [u8]; R],
    at: usize,
) {
    let mut sums = [[_mm512_setzero_si512(); U]; R];
    for (tables, source) in tables.iter().zip(sources) {
        let (words, _) = source[at..at + U * WIDTH].as_chunks::<WIDTH>();
        let mut operand = [_mm512_setzero_si512(); U];
        for u in 0..U {
            operand[u] = bytemuck::pod_read_unaligned(&words[u]);
        }
        for (sum, table) in sums.iter_mut().zip(tables) {
            let matrix = _mm512_set1_epi64(table.cast_signed());
            for u in 0..U {
                sum[u] = _mm512_xor_si512(
                    sum[u],
                    _mm512_gf2p8affine_epi64_epi8::<0>(operand[u], matrix),
                );
            }
        }
    }
    for (out, sum) in out.iter_mut().zip(&sums) {
        out[at..at + U * WIDTH].copy_from_slice(bytemuck::cast_slice(sum));
    }
}

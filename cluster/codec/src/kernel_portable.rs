//! The kernel for any processor: many bytes at once, multiplied bit by bit without tables.
//!
//! A product with a constant is the XOR of the operand's doublings at the constant's set bits. The
//! doublings are made once per source for all rows. Written over arrays of bytes and without branches,
//! since compilers turn that into the target's vectors: with SSE2 it is some four times a table lookup.

use crate::field::double;

/// Rows that one pass computes.
pub(crate) const ROWS_MAX: usize = 4;

/// Bytes worked on at once.
const WIDTH: usize = 64;

/// The matrix of `coefficients` (column after column) times `sources` into `out`, for the bytes `from..to`.
pub(crate) fn apply(
    coefficients: &[u8],
    sources: &[&[u8]],
    out: &mut [&mut [u8]],
    from: usize,
    to: usize,
) {
    match out.len() {
        1 => rows::<1>(coefficients, sources, out, from, to),
        2 => rows::<2>(coefficients, sources, out, from, to),
        3 => rows::<3>(coefficients, sources, out, from, to),
        4 => rows::<4>(coefficients, sources, out, from, to),
        // A few bytes, from a kernel with more registers for rows.
        more => {
            for (row, out) in out.chunks_mut(1).enumerate() {
                let own: Vec<u8> = coefficients
                    .iter()
                    .skip(row)
                    .step_by(more)
                    .copied()
                    .collect();
                rows::<1>(&own, sources, out, from, to);
            }
        }
    }
}

fn rows<const R: usize>(
    coefficients: &[u8],
    sources: &[&[u8]],
    out: &mut [&mut [u8]],
    from: usize,
    to: usize,
) {
    let (columns, _) = coefficients.as_chunks::<R>();
    let whole = from + (to - from) / WIDTH * WIDTH;
    for at in (from..whole).step_by(WIDTH) {
        let mut sums = [[0; WIDTH]; R];
        for (column, source) in columns.iter().zip(sources) {
            add(
                &mut sums,
                column,
                bytemuck::pod_read_unaligned(&source[at..at + WIDTH]),
            );
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            out[at..at + WIDTH].copy_from_slice(sum);
        }
    }
    if whole < to {
        let mut sums = [[0; WIDTH]; R];
        for (column, source) in columns.iter().zip(sources) {
            let mut padded = [0; WIDTH];
            padded[..to - whole].copy_from_slice(&source[whole..to]);
            add(&mut sums, column, padded);
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            out[whole..to].copy_from_slice(&sum[..to - whole]);
        }
    }
}

/// Adds the product of each coefficient of `column` with `operand` to its row's sum.
#[inline]
fn add<const R: usize>(sums: &mut [[u8; WIDTH]; R], column: &[u8; R], mut operand: [u8; WIDTH]) {
    for bit in 0..8 {
        for (sum, &c) in sums.iter_mut().zip(column) {
            let mask = 0u8.wrapping_sub(c >> bit & 1);
            for (sum, &byte) in sum.iter_mut().zip(&operand) {
                *sum ^= byte & mask;
            }
        }
        operand = operand.map(double);
    }
}

//! The Cauchy code's matrices: what the parity rows are, and how a lost shard follows from k others.
//!
//! Shard `i` of a stripe is row `i` of the generator applied to the data: the unit row for `i < k`,
//! and `1 / (i ^ j)` in column `j` for parity. Every square part of the parity rows is invertible
//! (the `i` and the `j` are all distinct), so any k shards determine the others.

use crate::error::CodecError;
use crate::field::{inverse, mul};

/// Most parity shards of a class: the side of the largest system that decoding solves.
pub(crate) const PARITY_MAX: usize = 8;

/// Column `column` of the parity row that makes shard `shard` (`shard >= k > column`).
pub(crate) fn cauchy(shard: usize, column: usize) -> u8 {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "both are below SHARDS_MAX, which is below 256"
    )]
    inverse((shard ^ column) as u8)
}

/// The generator's row for shard `shard` of a class with `k` data shards, into `row` (k bytes).
fn generator_row(k: usize, shard: usize, row: &mut [u8]) {
    for (column, entry) in row.iter_mut().enumerate() {
        *entry = if shard < k {
            u8::from(shard == column)
        } else {
            cauchy(shard, column)
        };
    }
}

/// The m parity rows of class `k+m`, one after the other.
pub(crate) fn encode_rows(k: usize, m: usize) -> Vec<u8> {
    let mut rows = vec![0; k * m];
    for (parity, row) in rows.chunks_exact_mut(k).enumerate() {
        generator_row(k, k + parity, row);
    }
    rows
}

/// Coefficients that make each shard of `wanted` out of the `k` shards of `present` (bit sets; rows and
/// columns ascend by shard index).
///
/// Data shards that are present stand for themselves; only the lost ones, at most m of them, are
/// unknowns, so the system to solve has at most [`PARITY_MAX`] rows however large k is.
pub(crate) fn decode_rows(k: usize, present: u64, wanted: u64) -> Result<Vec<u8>, CodecError> {
    let damaged = CodecError::Singular { present };
    let sources: Vec<usize> = bits(present).collect();
    let data = sources.iter().filter(|&&shard| shard < k).count();
    let parity = &sources[data..];
    let lost: Vec<usize> = (0..k).filter(|&shard| present >> shard & 1 == 0).collect();
    if sources.len() != k || lost.len() != parity.len() || lost.len() > PARITY_MAX {
        return Err(damaged);
    }
    // parity = A * lost + B * data, hence lost = A^-1 * parity + (A^-1 * B) * data.
    let mut system = [[0u8; PARITY_MAX]; PARITY_MAX];
    for (row, &shard) in system.iter_mut().zip(parity) {
        for (entry, &column) in row.iter_mut().zip(&lost) {
            *entry = cauchy(shard, column);
        }
    }
    let inverted = invert(system, lost.len()).ok_or(damaged)?;
    let mut rebuilt = vec![0u8; lost.len() * k];
    for (row, inverse_row) in rebuilt.chunks_exact_mut(k).zip(&inverted) {
        let (of_data, of_parity) = row.split_at_mut(data);
        for (entry, &column) in of_data.iter_mut().zip(&sources) {
            *entry = sum(inverse_row
                .iter()
                .zip(parity)
                .map(|(&a, &shard)| mul(a, cauchy(shard, column))));
        }
        of_parity.copy_from_slice(&inverse_row[..parity.len()]);
    }
    // How data shard `shard` follows from the sources, column by column.
    let source_of = |shard: usize, column: usize| match lost.iter().position(|&l| l == shard) {
        Some(at) => rebuilt[at * k + column],
        None => u8::from(sources[column] == shard),
    };
    let mut generator = vec![0u8; k];
    let mut rows = Vec::with_capacity(k * wanted.count_ones() as usize);
    for shard in bits(wanted) {
        generator_row(k, shard, &mut generator);
        rows.extend((0..k).map(|column| {
            if shard < k {
                source_of(shard, column)
            } else {
                sum(generator
                    .iter()
                    .enumerate()
                    .map(|(j, &g)| mul(g, source_of(j, column))))
            }
        }));
    }
    Ok(rows)
}

/// The set bits of `set`, ascending.
pub(crate) fn bits(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = set;
        set &= set.wrapping_sub(1);
        (lowest != 0).then(|| lowest.trailing_zeros() as usize)
    })
}

/// Addition in the field.
fn sum(terms: impl Iterator<Item = u8>) -> u8 {
    terms.fold(0, |sum, term| sum ^ term)
}

/// The inverse of the leading `side` x `side` part of `a`, by Gauss and Jordan.
fn invert(
    mut a: [[u8; PARITY_MAX]; PARITY_MAX],
    side: usize,
) -> Option<[[u8; PARITY_MAX]; PARITY_MAX]> {
    let mut b = [[0u8; PARITY_MAX]; PARITY_MAX];
    for (i, row) in b.iter_mut().enumerate() {
        row[i] = 1;
    }
    for column in 0..side {
        let pivot = (column..side).find(|&row| a[row][column] != 0)?;
        a.swap(pivot, column);
        b.swap(pivot, column);
        let scale = inverse(a[column][column]);
        for entry in a[column].iter_mut().chain(&mut b[column]) {
            *entry = mul(*entry, scale);
        }
        let (pivot_a, pivot_b) = (a[column], b[column]);
        for row in (0..side).filter(|&row| row != column) {
            let factor = a[row][column];
            for (entry, &p) in a[row].iter_mut().zip(&pivot_a) {
                *entry ^= mul(factor, p);
            }
            for (entry, &p) in b[row].iter_mut().zip(&pivot_b) {
                *entry ^= mul(factor, p);
            }
        }
    }
    Some(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_rows_undo_the_generator() {
        // For every loss pattern: the wanted rows times the generator's present rows is the
        // generator's wanted rows.
        for (k, m) in [(1, 1), (1, 3), (2, 2), (4, 2), (5, 8), (6, 3)] {
            let shards = k + m;
            let row = |shard: usize| {
                let mut row = vec![0; k];
                generator_row(k, shard, &mut row);
                row
            };
            for present in (0..1u64 << shards).filter(|p| p.count_ones() as usize == k) {
                let all = (1 << shards) - 1;
                let rows = decode_rows(k, present, all).unwrap();
                let sources: Vec<Vec<u8>> = bits(present).map(row).collect();
                for (shard, coefficients) in rows.chunks_exact(k).enumerate() {
                    let made: Vec<u8> = (0..k)
                        .map(|j| {
                            sum(coefficients
                                .iter()
                                .zip(&sources)
                                .map(|(&c, s)| mul(c, s[j])))
                        })
                        .collect();
                    assert_eq!(
                        made,
                        row(shard),
                        "{k}+{m}, present {present:b}, shard {shard}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_singular_system_is_told() {
        assert_eq!(invert([[7; PARITY_MAX]; PARITY_MAX], 2), None);
        assert!(matches!(
            decode_rows(4, 0b111, 0b1000),
            Err(CodecError::Singular { present: 0b111 })
        ));
    }
}

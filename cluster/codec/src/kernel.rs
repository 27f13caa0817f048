//! Which instructions do the work, and the only door to them.
//!
//! Invariants:
//! - A [`Kernel`] that is not portable exists only on a processor that has its instructions: the
//!   single constructor, [`Kernel::available`], asks the processor. The `unsafe` calls below rest on it.
//! - [`Tables`] were made for the kernel that they carry, and hold one entry per coefficient in the
//!   order in which that kernel reads them: block of rows, column, row within the block.
//! - The kernels themselves are safe code: they slice, so a wrong length is a panic, never a stray access.

use std::sync::OnceLock;

use crate::field::{affine, nibbles};
use crate::kernel_portable;
#[cfg(target_arch = "x86_64")]
use crate::{kernel_avx2, kernel_avx512};

/// Bytes of each shard that all rows pass over before the next bytes are taken, when there are more rows
/// than registers: k sources of this length stay in the second-level cache.
const STRIP: usize = 4096;

/// A set of instructions that multiply and add in GF(2^8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Kernel {
    /// The kernels that this processor can run, slowest first. The portable one is always there.
    pub fn available() -> Vec<Self> {
        #[cfg_attr(
            not(target_arch = "x86_64"),
            allow(unused_mut, reason = "pushed to on x86-64")
        )]
        let mut kernels = vec![Self::portable()];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                kernels.push(Self(Kind::Avx2));
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("gfni") {
                kernels.push(Self(Kind::Avx512));
            }
        }
        kernels
    }

    /// The fastest kernel that this processor can run.
    pub fn best() -> Self {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().pop().unwrap_or_else(Self::portable))
    }

    /// The kernel that needs no particular instructions.
    pub fn portable() -> Self {
        Self(Kind::Portable)
    }

    /// Its name, for reports: `portable`, `avx2` or `avx512-gfni`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512-gfni",
        }
    }

    /// Rows that it computes in one pass over the sources.
    fn rows_max(self) -> usize {
        match self.0 {
            Kind::Portable => kernel_portable::ROWS_MAX,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => kernel_avx2::ROWS_MAX,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => kernel_avx512::ROWS_MAX,
        }
    }
}

/// A matrix of constants, ready for a kernel to apply.
#[derive(Debug)]
pub(crate) struct Tables {
    kernel: Kernel,
    rows: usize,
    columns: usize,
    /// The coefficients in the kernel's order.
    coefficients: Vec<u8>,
    /// Their form for shuffles, if the kernel shuffles.
    nibbles: Vec<[u8; 32]>,
    /// Their form for the affine instruction, if the kernel has it.
    affine: Vec<u64>,
}

/// The part of [`Tables`] that one call of a kernel applies: the entries of a block of rows.
pub(crate) struct Block<'a> {
    /// The bare coefficients, for lengths below a register's.
    pub(crate) coefficients: &'a [u8],
    /// See [`nibbles`]; empty unless the kernel shuffles.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "read on x86-64")
    )]
    pub(crate) nibbles: &'a [[u8; 32]],
    /// See [`affine`]; empty unless the kernel has the instruction.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "read on x86-64")
    )]
    pub(crate) affine: &'a [u64],
}

impl Tables {
    /// The matrix `matrix` (row after row, `columns` each) for `kernel`.
    pub(crate) fn new(kernel: Kernel, columns: usize, matrix: &[u8]) -> Self {
        let rows = matrix.len() / columns.max(1);
        // As many rows in each block as can be: 5 rows of at most 4 go as 3 + 2, not 4 + 1.
        let block = Self::block(kernel, rows);
        let mut coefficients = Vec::with_capacity(matrix.len());
        for rows in matrix.chunks(block * columns.max(1)) {
            for column in 0..columns {
                coefficients.extend(rows.iter().skip(column).step_by(columns));
            }
        }
        let (nibbles, affine) = match kernel.0 {
            Kind::Portable => (Vec::new(), Vec::new()),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => (
                coefficients.iter().map(|&c| nibbles(c)).collect(),
                Vec::new(),
            ),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => (
                Vec::new(),
                coefficients.iter().map(|&c| affine(c)).collect(),
            ),
        };
        Self {
            kernel,
            rows,
            columns,
            coefficients,
            nibbles,
            affine,
        }
    }

    fn block(kernel: Kernel, rows: usize) -> usize {
        rows.div_ceil(rows.div_ceil(kernel.rows_max()).max(1))
            .max(1)
    }

    /// Sources that the matrix takes.
    #[cfg(test)]
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Rows of the matrix.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Row `i` of the matrix times `sources` into `out[i]`: `columns` sources and `rows` outputs, all of
    /// the same length (the callers have checked).
    pub(crate) fn apply(&self, sources: &[&[u8]], out: &mut [&mut [u8]]) {
        debug_assert_eq!((sources.len(), out.len()), (self.columns, self.rows));
        let Some(len) = out.first().map(|first| first.len()) else {
            return;
        };
        let block = Self::block(self.kernel, self.rows);
        if out.len() <= block {
            self.apply_block(0, sources, out, 0, len);
            return;
        }
        let mut from = 0;
        while from < len {
            let to = (from + STRIP).min(len);
            for (index, rows) in out.chunks_mut(block).enumerate() {
                self.apply_block(index * block, sources, rows, from, to);
            }
            from = to;
        }
    }

    /// The rows from `first_row` on, for the bytes `from..to`.
    fn apply_block(
        &self,
        first_row: usize,
        sources: &[&[u8]],
        out: &mut [&mut [u8]],
        from: usize,
        to: usize,
    ) {
        let entries = first_row * self.columns..(first_row + out.len()) * self.columns;
        let part = Block {
            coefficients: &self.coefficients[entries.clone()],
            nibbles: self.nibbles.get(entries.clone()).unwrap_or_default(),
            affine: self.affine.get(entries).unwrap_or_default(),
        };
        match self.kernel.0 {
            Kind::Portable => kernel_portable::apply(part.coefficients, sources, out, from, to),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => {
                #[allow(
                    unsafe_code,
                    reason = "a call into code compiled for instructions that were asked for at run time"
                )]
                // SAFETY: the function is safe but for its target features. `Kind::Avx2` is made in one place,
                // `Kernel::available`, after `is_x86_feature_detected!` said that the processor has them.
                // Held by `tests/kernels.rs`, which runs every available kernel.
                unsafe {
                    kernel_avx2::apply(&part, sources, out, from, to);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => {
                #[allow(
                    unsafe_code,
                    reason = "a call into code compiled for instructions that were asked for at run time"
                )]
                // SAFETY: as above, with `Kind::Avx512` and the features avx512f and gfni.
                unsafe {
                    kernel_avx512::apply(&part, sources, out, from, to);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detection_agrees_with_the_choice() {
        let kernels = Kernel::available();
        assert_eq!(kernels[0], Kernel::portable());
        assert_eq!(kernels.last(), Some(&Kernel::best()));
        let names: Vec<_> = kernels.iter().map(|kernel| kernel.name()).collect();
        #[cfg(target_arch = "x86_64")]
        {
            assert_eq!(names.contains(&"avx2"), is_x86_feature_detected!("avx2"));
            let gfni = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("gfni");
            assert_eq!(names.contains(&"avx512-gfni"), gfni);
        }
        assert!(names.contains(&"portable"));
    }

    #[test]
    fn blocks_are_even() {
        for kernel in Kernel::available() {
            for rows in 1..=64 {
                let block = Tables::block(kernel, rows);
                assert!(block <= kernel.rows_max());
                assert_eq!(rows.div_ceil(block), rows.div_ceil(kernel.rows_max()));
            }
        }
    }
}

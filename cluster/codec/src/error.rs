//! Why a codec refuses. Every case is the caller's to mend; none of them is a panic.

use thiserror::Error;

/// Why a call to a [`crate::Codec`] was refused. Nothing was written to the outputs, unless noted.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum CodecError {
    /// The class cannot be coded.
    #[error(
        "class {k}+{m}: needs at least one data and one parity shard, and at most {max} shards in all"
    )]
    Class {
        /// Data shards asked for.
        k: usize,
        /// Parity shards asked for.
        m: usize,
        /// Most shards (k + m) that a class may have.
        max: usize,
    },
    /// Wrong number of slices.
    #[error("{what} of class {k}+{m}: expected {expected} shards, got {got}")]
    ShardCount {
        /// Which argument: `"data"` or `"parity"`.
        what: &'static str,
        /// Data shards of the class.
        k: usize,
        /// Parity shards of the class.
        m: usize,
        /// Slices that the class needs there.
        expected: usize,
        /// Slices that were given.
        got: usize,
    },
    /// A shard differs in length from the first one.
    #[error("shard {index}: expected {expected} bytes as in the other shards, got {got}")]
    ShardLength {
        /// The shard's index in the stripe (data first, then parity).
        index: usize,
        /// Length of the first shard given.
        expected: usize,
        /// Length of this one.
        got: usize,
    },
    /// A shard index beyond the class.
    #[error("shard index {index} is outside of the class's {shards} shards")]
    Index {
        /// The index given.
        index: usize,
        /// Shards (k + m) of the class.
        shards: usize,
    },
    /// The same shard was named twice among the present, or twice among the wanted.
    #[error("shard {index} was named twice")]
    Duplicate {
        /// The index given twice.
        index: usize,
    },
    /// Fewer than k shards: nothing can be rebuilt from these.
    #[error("{got} shards present, {needed} needed to rebuild the others")]
    TooFew {
        /// k of the class.
        needed: usize,
        /// Distinct shards given.
        got: usize,
    },
    /// A wide class codes pairs of bytes.
    #[error("shards of a wide class have an even length, got {len} bytes")]
    OddLength {
        /// The length given.
        len: usize,
    },
    /// The decode matrix has no inverse. A Cauchy matrix always has one: memory is damaged.
    #[error(
        "decode matrix for shards {present:#x} has no inverse: memory of this process is damaged"
    )]
    Singular {
        /// The shards used, as a bit set.
        present: u64,
    },
    /// The wide codec refused. The outputs may be partly written.
    #[error("wide codec: {0}")]
    Wide(#[from] reed_solomon_simd::Error),
}

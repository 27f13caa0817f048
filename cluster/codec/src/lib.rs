//! Erasure coding: k data shards and m parity shards, any k of which give back all the others.
//!
//! Two codes stand behind one type, [`Codec`], and the class `k+m` alone says which:
//!
//! - `m <= 8`: a systematic Cauchy code over GF(2^8), byte for byte what ISA-L makes of
//!   `gf_gen_cauchy1_matrix`, with kernels of our own ([`Kernel`]). Any byte range of a shard is
//!   rebuilt from the same range of k others, so a degraded read touches what it returns.
//! - `m > 8`: `reed-solomon-simd`, whose FFT wins on wide classes. It works on columns of 64 bytes.
//!
//! What is stored was written by the code that the class names, so this choice is part of the
//! on-disk format: golden vectors in `tests/` hold both.
//!
//! Nothing here does I/O, reads a clock or starts a thread.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cache;
mod cauchy;
mod codec;
mod error;
mod field;
mod kernel;
#[cfg(target_arch = "x86_64")]
mod kernel_avx2;
#[cfg(target_arch = "x86_64")]
mod kernel_avx512;
mod kernel_portable;
mod matrix;
mod wide;

pub use ashlar_layout::limits::SHARDS_MAX;
pub use codec::{CAUCHY_PARITY_MAX, Codec, Method, WIDE_COLUMN};
pub use error::CodecError;
pub use kernel::Kernel;

//! The GF(2^8) code of a class: tables for its parity rows, and decode tables by loss pattern.

use ashlar_layout::limits::SHARDS_MAX;

use crate::cache::{DecodeCache, Pattern};
use crate::codec::Request;
use crate::error::CodecError;
use crate::kernel::{Kernel, Tables};
use crate::matrix::{bits, decode_rows, encode_rows};

/// The code of one class.
#[derive(Debug)]
pub(crate) struct Cauchy {
    k: usize,
    kernel: Kernel,
    encode: Tables,
    decode: DecodeCache,
}

impl Cauchy {
    /// Class `k+m` (checked by the caller) on `kernel`.
    pub(crate) fn new(k: usize, m: usize, kernel: Kernel) -> Self {
        Self {
            k,
            kernel,
            encode: Tables::new(kernel, k, &encode_rows(k, m)),
            decode: DecodeCache::new(),
        }
    }

    /// The kernel at work.
    pub(crate) fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Parity of `data`; counts and lengths are checked by the caller.
    pub(crate) fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        self.encode.apply(data, parity);
    }

    /// Rebuilds what `request` wants.
    pub(crate) fn reconstruct(
        &self,
        request: &Request<'_>,
        wanted: &mut [(usize, &mut [u8])],
    ) -> Result<(), CodecError> {
        // Clearing room for the largest class costs as much as rebuilding a kilobyte of a small one.
        if self.k + self.encode.rows() <= 16 {
            self.reconstruct_within::<16>(request, wanted)
        } else {
            self.reconstruct_within::<SHARDS_MAX>(request, wanted)
        }
    }

    /// The same for classes of at most `N` shards.
    fn reconstruct_within<const N: usize>(
        &self,
        request: &Request<'_>,
        wanted: &mut [(usize, &mut [u8])],
    ) -> Result<(), CodecError> {
        let k = self.k;
        // The lowest k: data shards first, since those stand for themselves in the matrix.
        let mut sources = [&[][..]; N];
        let mut present = 0;
        for (source, shard) in sources.iter_mut().zip(bits(request.present).take(k)) {
            *source = request.shard(shard);
            present |= 1 << shard;
        }
        let pattern = Pattern {
            present,
            wanted: request.wanted,
        };
        let tables = self.decode.get(pattern, || {
            Ok(Tables::new(
                self.kernel,
                k,
                &decode_rows(k, pattern.present, pattern.wanted)?,
            ))
        })?;
        // The rows ascend by shard index, whatever the caller's order.
        let mut out: [&mut [u8]; N] = std::array::from_fn(|_| Default::default());
        for (shard, buffer) in wanted {
            let below = request.wanted & ((1 << *shard) - 1);
            out[below.count_ones() as usize] = buffer;
        }
        tables.apply(&sources[..k], &mut out[..tables.rows()]);
        Ok(())
    }
}

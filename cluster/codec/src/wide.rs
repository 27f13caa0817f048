//! Wide classes: `reed-solomon-simd` behind the same calls.
//!
//! Invariants:
//! - The code treats each column of 64 bytes by itself (the last, shorter one too, given that it ends the
//!   shard), so a shard is coded in strips that begin at multiples of [`WIDE_COLUMN`]: the work space
//!   stays in the cache, and its size does not depend on the shard's.
//! - Work space is lent from a pool and comes back after the call; the pool keeps a bounded number.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use reed_solomon_simd::{DecoderResult, Error, ReedSolomonDecoder, ReedSolomonEncoder};

use crate::codec::{Request, WIDE_COLUMN};
use crate::error::CodecError;
use crate::matrix::bits;

/// Bytes of each shard that are encoded at once.
const ENCODE_STRIP: usize = 8 * 1024;
/// Bytes of each shard that are decoded at once: longer, since every decode costs 0.2 ms whatever its size.
const DECODE_STRIP: usize = 128 * 1024;
/// Work spaces of each kind that are kept.
const KEPT: usize = 2;

const _: () =
    assert!(ENCODE_STRIP.is_multiple_of(WIDE_COLUMN) && DECODE_STRIP.is_multiple_of(WIDE_COLUMN));

/// The code of one wide class.
pub(crate) struct Wide {
    k: usize,
    m: usize,
    encoders: Pool<ReedSolomonEncoder>,
    decoders: Pool<ReedSolomonDecoder>,
}

/// Work spaces that nobody uses at the moment.
struct Pool<T>(Mutex<Vec<T>>);

impl<T> Pool<T> {
    fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn give(&self, item: T) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(item);
        }
    }
}

impl Wide {
    /// Class `k+m` (checked by the caller). Makes the process's tables now rather than in the first
    /// request: 15 to 60 ms, once.
    pub(crate) fn new(k: usize, m: usize) -> Result<Self, CodecError> {
        let code = Self {
            k,
            m,
            encoders: Pool::new(),
            decoders: Pool::new(),
        };
        // Encoding and decoding nothing but zeros visits every table.
        let zeros = [0u8; WIDE_COLUMN];
        let mut decoder = code.decoder(WIDE_COLUMN)?;
        for shard in 1..k {
            decoder.add_original_shard(shard, zeros)?;
        }
        decoder.add_recovery_shard(0, zeros)?;
        drop(decoder.decode()?);
        code.decoders.give(decoder);
        let mut encoder = code.encoder(WIDE_COLUMN)?;
        code.encode_strips(&mut encoder, WIDE_COLUMN, |_| Ok(&zeros), |_, _, _| ())?;
        code.encoders.give(encoder);
        Ok(code)
    }

    /// Parity of `data`; counts and lengths are checked by the caller, evenness here.
    pub(crate) fn encode(
        &self,
        data: &[&[u8]],
        parity: &mut [&mut [u8]],
    ) -> Result<(), CodecError> {
        let len = data.first().map_or(0, |shard| shard.len());
        even(len)?;
        let mut encoder = self.encoder(len)?;
        self.encode_strips(
            &mut encoder,
            len,
            |shard| Ok(data[shard]),
            |index, range, made| parity[index][range].copy_from_slice(made),
        )?;
        self.encoders.give(encoder);
        Ok(())
    }

    /// Rebuilds what `request` wants; the request is checked by the caller, evenness here.
    pub(crate) fn reconstruct(
        &self,
        request: &Request<'_>,
        wanted: &mut [(usize, &mut [u8])],
    ) -> Result<(), CodecError> {
        even(request.len)?;
        for (shard, out) in wanted
            .iter_mut()
            .filter(|(shard, _)| has(request.present, *shard))
        {
            out.copy_from_slice(request.shard(*shard));
        }
        let missing = request.wanted & !request.present;
        let data = (1u64 << self.k) - 1;
        let data_missing = data & !request.present;
        // Missing parity is encoded anew, which takes all of the data.
        let encode = missing & !data != 0;
        let decode = missing != 0 && data_missing != 0;
        let mut encoder = if encode {
            Some(self.encoder(request.len)?)
        } else {
            None
        };
        let mut decoder = if decode {
            Some(self.decoder(request.len)?)
        } else {
            None
        };
        for strip in strips(request.len, DECODE_STRIP).filter(|_| missing != 0) {
            let restored = match &mut decoder {
                Some(decoder) => {
                    Some(self.decode_strip(decoder, request, data_missing, strip.clone())?)
                }
                None => None,
            };
            let original = |shard: usize| match &restored {
                Some(restored) if has(data_missing, shard) => {
                    let got = request.present.count_ones() as usize;
                    restored.restored_original(shard).ok_or(CodecError::TooFew {
                        needed: self.k,
                        got,
                    })
                }
                _ => Ok(&request.shard(shard)[strip.clone()]),
            };
            for (shard, out) in wanted
                .iter_mut()
                .filter(|(shard, _)| has(missing & data, *shard))
            {
                out[strip.clone()].copy_from_slice(original(*shard)?);
            }
            if let Some(encoder) = &mut encoder {
                self.encode_strips(encoder, strip.len(), original, |index, range, made| {
                    let range = strip.start + range.start..strip.start + range.end;
                    let lost = wanted.iter_mut().filter(|(shard, _)| has(missing, *shard));
                    for (_, out) in lost.filter(|(shard, _)| *shard == self.k + index) {
                        out[range.clone()].copy_from_slice(made);
                    }
                })?;
            }
        }
        encoder
            .into_iter()
            .for_each(|encoder| self.encoders.give(encoder));
        decoder
            .into_iter()
            .for_each(|decoder| self.decoders.give(decoder));
        Ok(())
    }

    /// Restores the lost data shards of one strip.
    fn decode_strip<'d>(
        &self,
        decoder: &'d mut ReedSolomonDecoder,
        request: &Request<'_>,
        data_missing: u64,
        strip: Range<usize>,
    ) -> Result<DecoderResult<'d>, CodecError> {
        decoder.reset(self.k, self.m, strip.len())?;
        let (data, parity): (Vec<usize>, Vec<usize>) =
            bits(request.present).partition(|&shard| shard < self.k);
        for shard in data {
            decoder.add_original_shard(shard, &request.shard(shard)[strip.clone()])?;
        }
        for shard in parity.into_iter().take(data_missing.count_ones() as usize) {
            decoder.add_recovery_shard(shard - self.k, &request.shard(shard)[strip.clone()])?;
        }
        Ok(decoder.decode()?)
    }

    /// Encodes `len` bytes of every data shard, strip by strip, and hands out each parity shard's strips.
    fn encode_strips<'a>(
        &self,
        encoder: &mut ReedSolomonEncoder,
        len: usize,
        original: impl Fn(usize) -> Result<&'a [u8], CodecError>,
        mut out: impl FnMut(usize, Range<usize>, &[u8]),
    ) -> Result<(), CodecError> {
        for strip in strips(len, ENCODE_STRIP) {
            encoder.reset(self.k, self.m, strip.len())?;
            for shard in 0..self.k {
                encoder.add_original_shard(&original(shard)?[strip.clone()])?;
            }
            for (index, made) in encoder.encode()?.recovery_iter().enumerate() {
                out(index, strip.clone(), made);
            }
        }
        Ok(())
    }

    fn encoder(&self, len: usize) -> Result<ReedSolomonEncoder, Error> {
        let bytes = len.clamp(2, ENCODE_STRIP);
        self.encoders
            .take()
            .map_or_else(|| ReedSolomonEncoder::new(self.k, self.m, bytes), Ok)
    }

    fn decoder(&self, len: usize) -> Result<ReedSolomonDecoder, Error> {
        let bytes = len.clamp(2, DECODE_STRIP);
        self.decoders
            .take()
            .map_or_else(|| ReedSolomonDecoder::new(self.k, self.m, bytes), Ok)
    }
}

/// Whether `set` holds `shard`.
fn has(set: u64, shard: usize) -> bool {
    set >> shard & 1 == 1
}

/// The code works on pairs of bytes.
fn even(len: usize) -> Result<(), CodecError> {
    if len.is_multiple_of(2) {
        Ok(())
    } else {
        Err(CodecError::OddLength { len })
    }
}

/// `0..len` in pieces of `strip`.
fn strips(len: usize, strip: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len)
        .step_by(strip)
        .map(move |from| from..(from + strip).min(len))
}

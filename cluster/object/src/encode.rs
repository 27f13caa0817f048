//! From a stripe's bytes to its shards, and from shards to what is missing.
//!
//! Invariants:
//! - what goes out as a shard has the CRC that the manifest gets: it is computed here, once, over
//!   the very bytes that are sent;
//! - data shards are slices of the stripe's buffer; only one that the data's end falls into, in a
//!   buffer without room behind it, is copied.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ashlar_cluster_codec::{Codec, CodecError};
use ashlar_cluster_map::Class;
use ashlar_layout::crc::{crc32, crc32_combine};
use ashlar_layout::limits::{SHARD_ALIGN, SHARDS_MAX};
use ashlar_layout::manifest::shard_len;
use bytes::Bytes;

use crate::pool::BufferPool;

/// Zeros to leave behind a stripe's data, so that no class has to copy: each of up to 64 shards
/// may be rounded up by up to [`SHARD_ALIGN`] bytes.
pub const STRIPE_SLACK: usize = SHARDS_MAX * SHARD_ALIGN as usize;

/// The bytes of one stripe.
#[derive(Clone, Debug)]
pub struct StripeBuf {
    bytes: Bytes,
    data_len: u32,
}

impl StripeBuf {
    /// A stripe of the first `data_len` bytes of `bytes`. What is behind them must be zeros, best
    /// [`STRIPE_SLACK`] of them; without them the last shard is copied.
    pub fn padded(bytes: Bytes, data_len: u32) -> StripeBuf {
        debug_assert!(bytes.iter().skip(data_len as usize).all(|b| *b == 0));
        let data_len = data_len.min(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        StripeBuf { bytes, data_len }
    }

    /// A stripe of all of `bytes`.
    pub fn exact(bytes: Bytes) -> StripeBuf {
        let data_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        StripeBuf { bytes, data_len }
    }

    /// The bytes of the object in it.
    pub(crate) fn data(&self) -> &[u8] {
        &self.bytes[..self.data_len as usize]
    }

    /// How many these are.
    pub fn data_len(&self) -> u32 {
        self.data_len
    }
}

/// A stripe's shards, ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    /// k data and m parity shards, all of one length.
    pub(crate) shards: Vec<Bytes>,
    /// The CRC-32 of each.
    pub(crate) crcs: Vec<u32>,
    /// CRC-32 of the data without padding.
    pub(crate) data_crc: u32,
}

/// A codec per class, made when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Codecs {
    by_class: Mutex<HashMap<(u8, u8), Codec>>,
}

impl Codecs {
    pub(crate) fn get(&self, k: u8, m: u8) -> Result<Codec, CodecError> {
        let mut codecs = self.by_class.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(codec) = codecs.get(&(k, m)) {
            return Ok(codec.clone());
        }
        let codec = Codec::new(usize::from(k), usize::from(m))?;
        codecs.insert((k, m), codec.clone());
        Ok(codec)
    }
}

/// Cuts `stripe` into the shards of `class` and computes the parity.
pub(crate) fn encode(
    codecs: &Codecs,
    pool: &BufferPool,
    class: Class,
    stripe: &StripeBuf,
) -> Result<Encoded, CodecError> {
    let codec = codecs.get(class.k, class.m)?;
    let len = shard_len(stripe.data_len, class.k) as usize;
    let data_len = stripe.data_len as usize;
    let mut shards = Vec::with_capacity(class.shards());
    let mut crcs = Vec::with_capacity(class.shards());
    let mut data_crc = 0;
    for i in 0..usize::from(class.k) {
        let start = (i * len).min(data_len);
        let held = len.min(data_len - start);
        let shard = if start + len <= stripe.bytes.len() {
            stripe.bytes.slice(start..start + len)
        } else {
            let mut copy = pool.take(len);
            copy[..held].copy_from_slice(&stripe.bytes[start..start + held]);
            copy[held..].fill(0);
            copy.freeze()
        };
        let held_crc = crc32(&shard[..held]);
        data_crc = crc32_combine(data_crc, held_crc, held as u64);
        let padding = &shard[held..];
        crcs.push(if padding.is_empty() {
            held_crc
        } else {
            crc32_combine(held_crc, crc32(padding), padding.len() as u64)
        });
        shards.push(shard);
    }
    let mut parity: Vec<_> = (0..class.m).map(|_| pool.take(len)).collect();
    {
        let data: Vec<&[u8]> = shards.iter().map(|s| &s[..]).collect();
        let mut out: Vec<&mut [u8]> = parity.iter_mut().map(|p| &mut p[..]).collect();
        codec.encode(&data, &mut out)?;
    }
    for shard in parity {
        crcs.push(crc32(&shard));
        shards.push(shard.freeze());
    }
    Ok(Encoded {
        shards,
        crcs,
        data_crc,
    })
}

/// Rebuilds one run of columns of the shards `wanted` from the same columns of `have`.
pub(crate) fn rebuild(
    codecs: &Codecs,
    pool: &BufferPool,
    class: Class,
    have: &[(usize, &[u8])],
    wanted: &[usize],
) -> Result<Vec<Bytes>, CodecError> {
    let codec = codecs.get(class.k, class.m)?;
    let len = have.first().map_or(0, |(_, bytes)| bytes.len());
    let mut rebuilt: Vec<_> = wanted.iter().map(|_| pool.take(len)).collect();
    {
        let mut out: Vec<(usize, &mut [u8])> = wanted
            .iter()
            .copied()
            .zip(rebuilt.iter_mut().map(|r| &mut r[..]))
            .collect();
        codec.reconstruct(have, &mut out)?;
    }
    Ok(rebuilt.into_iter().map(|r| r.freeze()).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn padded_or_exact_the_shards_are_the_same(
            data in prop::collection::vec(any::<u8>(), 1..5000),
            k in 1u8..12,
            m in 1u8..5,
        ) {
            let codecs = Codecs::default();
            let pool = BufferPool::new(1 << 20);
            let class = Class { k, m };
            let mut padded = data.clone();
            padded.resize(data.len() + STRIPE_SLACK, 0);
            let len = data.len() as u32;
            let a = encode(&codecs, &pool, class, &StripeBuf::padded(padded.into(), len)).unwrap();
            let b = encode(&codecs, &pool, class, &StripeBuf::exact(data.clone().into())).unwrap();
            prop_assert_eq!(&a.shards, &b.shards);
            prop_assert_eq!(&a.crcs, &b.crcs);
            prop_assert_eq!(a.data_crc, crc32(&data));
            prop_assert_eq!(b.data_crc, crc32(&data));
            let mut joined: Vec<u8> = Vec::new();
            for (shard, crc) in a.shards.iter().zip(&a.crcs) {
                prop_assert_eq!(crc32(shard), *crc);
                prop_assert_eq!(shard.len(), shard_len(len, k) as usize);
                joined.extend_from_slice(shard);
            }
            prop_assert_eq!(&joined[..data.len()], &data[..]);
            // The first m shards are lost: all comes back from the last k.
            let lost: Vec<usize> = (0..usize::from(m)).collect();
            let have: Vec<(usize, &[u8])> =
                a.shards.iter().enumerate().skip(usize::from(m)).map(|(i, s)| (i, &s[..])).collect();
            let rebuilt = rebuild(&codecs, &pool, class, &have, &lost).unwrap();
            for (i, shard) in rebuilt.iter().enumerate() {
                prop_assert_eq!(shard, &a.shards[i]);
            }
        }
    }
}

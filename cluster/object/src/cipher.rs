//! What stands on devices of an object that is encrypted: its stripes, each under a key of its own.
//!
//! Each stripe's data is encrypted by AES-256 in counter mode from the counter 0 on, with a key that
//! HMAC-SHA256 makes of the object's data key and the stripe's id. So it keeps its length, any part of it can be read
//! by itself, and whoever audits, repairs or moves shards needs no key: their CRCs are those of what stands there.
//!
//! Invariants:
//! - no two plaintexts meet the same key stream: a stripe's id is never used again, not by another attempt to store
//!   the same bytes either ([`crate::StripeWrite`]), and each of them is encrypted from the plaintext;
//! - a stripe that is moved gets another id, and keeps its key and what stands there: the key goes by the id that it
//!   was encrypted under, which its later ones tell ([`StripeId::origin`]);
//! - what cannot be encrypted is not stored;
//! - lists of stripes are no data, and are never encrypted;
//! - a key is not shown by `Debug`, and is wiped when it is dropped.
//!
//! It hides bytes from who reads a device. It is no proof against who writes to one: the CRCs are not keyed.

use std::fmt;

use aes::Aes256;
use ashlar_layout::ids::StripeId;
use bytes::Bytes;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::encode::{STRIPE_SLACK, StripeBuf};
use crate::error::ObjectError;
use crate::pool::BufferPool;

/// Bytes of a key.
pub const DATA_KEY_LEN: usize = 32;
/// What the keys of stripes are made with, and nothing else.
const STRIPE_LABEL: &[u8] = b"ashlar stripe key 1\0";

/// The key of an object's bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey(Zeroizing<[u8; DATA_KEY_LEN]>);

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(…)")
    }
}

fn failed(stripe: StripeId, error: &dyn fmt::Display) -> ObjectError {
    ObjectError::BadRequest {
        detail: format!("stripe {stripe} cannot be encrypted or decrypted: {error}"),
    }
}

impl DataKey {
    /// Of these bytes: random ones, that no other object has.
    pub fn new(bytes: &[u8; DATA_KEY_LEN]) -> DataKey {
        DataKey(Zeroizing::new(*bytes))
    }

    /// The key of one stripe.
    fn of_stripe(&self, stripe: StripeId) -> Result<Zeroizing<[u8; DATA_KEY_LEN]>, ObjectError> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.0[..]);
        let mut mac = mac.map_err(|error| failed(stripe, &error))?;
        mac.update(STRIPE_LABEL);
        // What is moved is not encrypted anew.
        let stripe = stripe.origin();
        mac.update(&stripe.writer.to_le_bytes());
        mac.update(&stripe.attempt.to_le_bytes());
        Ok(Zeroizing::new(mac.finalize().into_bytes().into()))
    }

    /// Encrypts, or decrypts, what stands at `at` in a stripe.
    fn apply(
        &self,
        stripe: StripeId,
        at: u64,
        from: &[u8],
        to: &mut [u8],
    ) -> Result<(), ObjectError> {
        let key = self.of_stripe(stripe)?;
        let mut stream = Ctr128BE::<Aes256>::new((&*key).into(), &[0; 16].into());
        let done = stream.try_seek(at);
        let done = done.and_then(|()| stream.try_apply_keystream_b2b(from, to));
        done.map_err(|error| failed(stripe, &error))
    }

    /// A stripe's bytes as they are stored.
    pub(crate) fn encrypt(
        &self,
        pool: &BufferPool,
        stripe: StripeId,
        data: &StripeBuf,
    ) -> Result<StripeBuf, ObjectError> {
        let plain = data.data();
        let mut buf = pool.take(plain.len() + STRIPE_SLACK);
        self.apply(stripe, 0, plain, &mut buf[..plain.len()])?;
        buf[plain.len()..].fill(0);
        Ok(StripeBuf::padded(buf.freeze(), data.data_len()))
    }
}

/// Bytes of an object that were read, and where they stood.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) bytes: Bytes,
    /// The stripe, and where in it; none, if they came with the journal.
    pub(crate) at: Option<(StripeId, u64)>,
}

impl Chunk {
    /// The object's bytes: decrypted, if there is a key.
    pub(crate) fn open(
        self,
        key: Option<&DataKey>,
        pool: &BufferPool,
    ) -> Result<Bytes, ObjectError> {
        let (Some(key), Some((stripe, at))) = (key, self.at) else {
            return Ok(self.bytes);
        };
        let mut buf = pool.take(self.bytes.len());
        key.apply(stripe, at, &self.bytes, &mut buf)?;
        Ok(buf.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRIPE: StripeId = StripeId {
        writer: 0x0123_4567_89ab_cdef,
        attempt: 42,
    };

    fn key() -> DataKey {
        let mut bytes = [0; DATA_KEY_LEN];
        for (i, byte) in (0u8..).zip(&mut bytes) {
            *byte = i;
        }
        DataKey::new(&bytes)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// As Python's hmac and OpenSSL's aes-256-ctr have it.
    #[test]
    fn by_others_it_is_the_same() {
        let of_stripe = "c7a16baf3e9476397e6e26829d4e0e2b3aa45720be08f735a2382dfe1e0f1156";
        assert_eq!(hex(&key().of_stripe(STRIPE).unwrap()[..]), of_stripe);
        let plain = b"The quick brown fox jumps over the lazy dog, twice.";
        let data = StripeBuf::exact(Bytes::from_static(plain));
        let stored = key().encrypt(&BufferPool::new(0), STRIPE, &data).unwrap();
        let expected = concat!(
            "e910f25a08fac9ce9548fc48212c83043e0f9f970f353a3d4abb56e327d61fcc",
            "0179cba2c4991be14e983536f038dc7981b526"
        );
        assert_eq!(hex(stored.data()), expected);
    }

    #[test]
    fn any_part_is_what_the_whole_has_there() {
        let (key, pool) = (key(), BufferPool::new(1 << 20));
        let plain: Vec<u8> = (0u32..70_000).map(|i| (i * 31 % 251) as u8).collect();
        let data = StripeBuf::exact(plain.clone().into());
        let stored = key.encrypt(&pool, STRIPE, &data).unwrap();
        assert_eq!(stored.data_len(), data.data_len());
        for (start, end) in [
            (0, 1),
            (1, 17),
            (15, 16),
            (16, 33),
            (4095, 4099),
            (1, 70_000),
        ] {
            let chunk = Chunk {
                bytes: Bytes::copy_from_slice(&stored.data()[start..end]),
                at: Some((STRIPE, start as u64)),
            };
            assert_ne!(&chunk.bytes[..], &plain[start..end]);
            let opened = chunk.open(Some(&key), &pool).unwrap();
            assert_eq!(&opened[..], &plain[start..end], "{start}..{end}");
        }
    }

    #[test]
    fn another_attempt_is_another_key_stream() {
        let (key, pool) = (key(), BufferPool::new(0));
        let zeros = StripeBuf::exact(vec![0; 64].into());
        let mut streams = std::collections::HashSet::new();
        for (writer, attempt) in [(1, 1), (1, 2), (2, 1), (1, 256), (256, 1), (0, 1 << 63)] {
            let stripe = StripeId { writer, attempt };
            let stored = key.encrypt(&pool, stripe, &zeros).unwrap();
            assert!(streams.insert(stored.data().to_vec()), "{stripe}");
        }
        let other = DataKey::new(&[7; DATA_KEY_LEN]);
        let stripe = StripeId {
            writer: 1,
            attempt: 1,
        };
        let stored = other.encrypt(&pool, stripe, &zeros).unwrap();
        assert!(streams.insert(stored.data().to_vec()));
    }

    #[test]
    fn what_is_not_encrypted_is_given_as_it_is() {
        let bytes = Bytes::from_static(b"plain");
        let at = bytes.as_ptr();
        for place in [None, Some((STRIPE, 7))] {
            let chunk = Chunk {
                bytes: bytes.clone(),
                at: place,
            };
            let opened = chunk.open(None, &BufferPool::new(0)).unwrap();
            assert_eq!((opened.as_ptr(), &opened[..]), (at, &b"plain"[..]));
        }
    }

    #[test]
    fn a_key_is_not_shown() {
        assert_eq!(format!("{:?}", key()), "DataKey(…)");
    }
}

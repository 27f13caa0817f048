//! How control parts, journal operations and trees of stripes are encoded: wincode, in the bincode
//! format (fixed-width integers, 64-bit lengths, 32-bit variants).
//!
//! Invariants:
//! - what is decoded takes up exactly the bytes given;
//! - no sequence is allocated that could not have come from [`FRAME_CONTROL_MAX`] bytes, whatever its
//!   length field says.

use wincode::config::{Configuration, PREALLOCATION_SIZE_LIMIT_DISABLED};
use wincode::{SchemaRead, SchemaWrite};

use crate::limits::{FRAME_CONTROL_MAX, SHARD_SIZE_MAX};
use crate::manifest::Stripe;

/// Most bytes that one sequence of a control part may take in memory. The leanest element takes
/// eight bytes on the wire and 24 in memory (an empty string), so this refuses nothing that fits.
const CONTROL_PREALLOC: usize = 4 * FRAME_CONTROL_MAX as usize;
/// The same for a tree's list of stripes, which is the payload of a stripe.
const STRIPES_PREALLOC: usize = 2 * SHARD_SIZE_MAX as usize;

/// How control parts are read.
pub type ReadConfig = Configuration<true, CONTROL_PREALLOC>;
/// How anything is written: nothing is refused.
pub type WriteConfig = Configuration<true, PREALLOCATION_SIZE_LIMIT_DISABLED>;
type StripesConfig = Configuration<true, STRIPES_PREALLOC>;

/// The bytes are no such control part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// There are more bytes than are allowed.
    #[error("a control part of {got} bytes; at most {expected} are allowed")]
    TooLong {
        /// Bytes allowed.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// The bytes do not decode, or do not end where the value ends.
    #[error("a control part of {len} bytes that is none: {reason}")]
    Undecodable {
        /// Bytes given.
        len: usize,
        /// What the decoder says.
        reason: String,
    },
}

/// A control part's bytes. That they are not too many is checked when they are put into a frame.
pub fn encode<T>(value: &T) -> Vec<u8>
where
    T: SchemaWrite<WriteConfig, Src = T> + ?Sized,
{
    wincode::config::serialize(value, WriteConfig::new())
        .expect("writing to memory is not refused: no limit is set on what is written")
}

/// The value whose bytes these are, all of them.
pub fn decode<'a, T>(bytes: &'a [u8]) -> Result<T, ControlError>
where
    T: SchemaRead<'a, ReadConfig, Dst = T>,
{
    if bytes.len() > FRAME_CONTROL_MAX as usize {
        let (expected, got) = (FRAME_CONTROL_MAX as usize, bytes.len());
        return Err(ControlError::TooLong { expected, got });
    }
    wincode::config::deserialize_exact(bytes, ReadConfig::new())
        .map_err(|error| undecodable(bytes, &error))
}

/// The bytes of a list of stripes, as a tree has them for its leaves.
pub fn encode_stripes(stripes: &Vec<Stripe>) -> Vec<u8> {
    encode(stripes)
}

/// The list of stripes whose bytes these are, all of them.
pub fn decode_stripes(bytes: &[u8]) -> Result<Vec<Stripe>, ControlError> {
    if bytes.len() > SHARD_SIZE_MAX as usize {
        let (expected, got) = (SHARD_SIZE_MAX as usize, bytes.len());
        return Err(ControlError::TooLong { expected, got });
    }
    wincode::config::deserialize_exact(bytes, StripesConfig::new())
        .map_err(|error| undecodable(bytes, &error))
}

fn undecodable(bytes: &[u8], error: &wincode::ReadError) -> ControlError {
    ControlError::Undecodable {
        len: bytes.len(),
        reason: error.to_string(),
    }
}

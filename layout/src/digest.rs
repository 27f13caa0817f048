//! What the replicas of a partition tell of their indexes, to be compared with each other.
//!
//! A digest is of what the map says, and of nothing else: in the order of the map each entry that stands at the entry
//! of the journal that was asked for, with its key, the number of the entry that wrote it, its kind, and its value
//! without what is each replica's own (where the payload is, and the payload itself, whose length and CRC it has).
//! Runs, tables, tombstones and versions that nobody sees any more are no part of it: they differ between replicas that
//! are whole.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::ids::Seq;

/// How digests are made: what of an entry is hashed, how, and [`DIGEST_BYTES`]. Whoever makes them otherwise is asked
/// in vain: two that differ in this would differ in everything.
pub const DIGEST_SCHEME: u32 = 1;
/// Entries of one digest at the most.
pub const DIGEST_ENTRIES_MAX: u32 = 4096;
/// Bytes of one digest's entries at the most, as they are hashed; but one entry at the least.
pub const DIGEST_BYTES: usize = 512 << 10;

/// The digest of a stretch of an index.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct Digest {
    /// SHA-256 of the entries, one after the other.
    pub sum: [u8; 32],
    /// How many they are.
    pub entries: u32,
    /// The first one; none if there are none.
    pub first: Option<DigestEntry>,
    /// The last one's key in the order of the map: the next stretch is behind it. Empty if there are none.
    pub last: Vec<u8>,
    /// Whether there are more behind that.
    pub more: bool,
}

/// An entry of the map, as it is told to a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct DigestEntry {
    /// Its key in the order of the map.
    pub at: Vec<u8>,
    /// The bucket,
    pub bucket: String,
    /// the key; empty: it is the bucket's own record,
    pub key: String,
    /// and, if it is a version beside the current object, which.
    pub id: Option<Seq>,
    /// The entry of the journal that wrote it.
    pub version: Seq,
    /// When it was made, milliseconds since 1970.
    pub modified_ms: u64,
    /// The object's bytes,
    pub size: u64,
    /// and their CRC-32.
    pub crc: u32,
}

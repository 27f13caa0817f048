//! What an object is made of: the manifest, its stripes, and the changes that the journal records.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::ids::{PgId, Seq, StripeId};

/// One stripe of an object, as its manifest names it. The placement group says on which devices
/// its shards are: shard `i` is on the group's `i`-th device.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Stripe {
    /// The stripe's name: unique per attempt.
    pub id: StripeId,
    /// Where its shards are. The group also gives k and m.
    pub pg: PgId,
    /// Data shards.
    pub k: u8,
    /// Parity shards.
    pub m: u8,
    /// Bytes of the object in this stripe; the last data shards are padded with zeros.
    pub data_len: u32,
    /// CRC-32 of each shard's whole payload, k + m of them: what a shard must match, whatever
    /// its own header says.
    pub shard_crcs: Vec<u32>,
}

impl Stripe {
    /// Bytes of each shard: `data_len / k` rounded up to [`crate::limits::SHARD_ALIGN`].
    pub fn shard_len(&self) -> u32 {
        shard_len(self.data_len, self.k)
    }
}

/// Bytes of each shard of a stripe that holds `data_len` bytes over `k` data shards.
pub fn shard_len(data_len: u32, k: u8) -> u32 {
    data_len.div_ceil(u32::from(k.max(1))).next_multiple_of(crate::limits::SHARD_ALIGN)
}

/// Where an object's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub enum Body {
    /// In the journal entry itself.
    Inline,
    /// In these stripes, in order; each but the last has the same `data_len`.
    Stripes(Vec<Stripe>),
    /// In the stripes that *these* stripes list: each, read and decoded, is a wincode `Vec<Stripe>`.
    Tree(Vec<Stripe>),
}

/// An object, whole.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct Manifest {
    /// Bytes of the object.
    pub size: u64,
    /// CRC-32 of the whole object.
    pub crc: u32,
    /// Where the bytes are.
    pub body: Body,
}

/// A change of metadata: what a journal entry records.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub enum Op {
    /// A head's own record: what it inherited is committed when this is.
    TermStart,
    /// Makes a bucket.
    CreateBucket {
        /// Its name.
        bucket: String,
    },
    /// Removes an empty bucket.
    DeleteBucket {
        /// Its name.
        bucket: String,
    },
    /// Makes or replaces an object. With [`Body::Inline`] the entry's payload is the object.
    Put {
        /// The bucket's name.
        bucket: String,
        /// The object's key.
        key: String,
        /// What it is made of.
        manifest: Manifest,
    },
    /// Removes an object; removing what is not there is no error, as in S3.
    Delete {
        /// The bucket's name.
        bucket: String,
        /// The object's key.
        key: String,
    },
}

/// What must hold for a change to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// There is no such object (`If-None-Match: *`).
    Absent,
    /// There is such an object (`If-Match: *`).
    Present,
    /// The object is at just this version (`If-Match: etag`).
    Version(Seq),
}

//! What an object is made of: the manifest, its stripes, and the changes that the journal records.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::ids::{DeviceNo, PartitionId, PgId, Seq, StripeId};
use crate::limits::{
    ATTRIBUTES_MAX, INLINE_MAX, MANIFEST_STRIPES_MAX, SHARD_ALIGN, SHARD_SIZE_MAX, SHARDS_MAX,
};
use crate::lock::Lock;

/// One stripe of an object, as its manifest names it. The placement group says on which devices
/// its shards are: shard `i` is on the group's `i`-th device.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
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
    /// Bytes of each shard: `data_len / k` rounded up to [`SHARD_ALIGN`].
    pub fn shard_len(&self) -> u32 {
        shard_len(self.data_len, self.k)
    }

    /// Checks what was received: the numbers fit each other and the limits.
    pub fn check(&self) -> Result<(), ManifestError> {
        let shards = usize::from(self.k) + usize::from(self.m);
        if self.k == 0 || shards > SHARDS_MAX {
            return Err(ManifestError::Class {
                k: self.k,
                m: self.m,
            });
        }
        if self.shard_crcs.len() != shards {
            let got = self.shard_crcs.len();
            return Err(ManifestError::Checksums {
                expected: shards,
                got,
            });
        }
        if self.data_len == 0 || self.shard_len() > SHARD_SIZE_MAX {
            return Err(ManifestError::StripeLength { got: self.data_len });
        }
        Ok(())
    }
}

/// Why a manifest makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// No data shards, or too many shards.
    #[error("a stripe of {k}+{m} shards; it takes a data shard, and at most {SHARDS_MAX} in all")]
    Class {
        /// Data shards.
        k: u8,
        /// Parity shards.
        m: u8,
    },
    /// Not one checksum per shard.
    #[error("a stripe of {expected} shards with {got} checksums")]
    Checksums {
        /// Shards.
        expected: usize,
        /// Checksums.
        got: usize,
    },
    /// A stripe with nothing in it, or with more than its shards may hold.
    #[error("a stripe of {got} bytes; shards of 1 to {SHARD_SIZE_MAX} bytes are allowed")]
    StripeLength {
        /// Its bytes.
        got: u32,
    },
    /// No stripes, or more than a manifest's root may name.
    #[error("{got} stripes in a manifest; 1 to {MANIFEST_STRIPES_MAX} are allowed")]
    StripeCount {
        /// Stripes.
        got: usize,
    },
    /// A tree that does not say of each node how much of the object it is about.
    #[error("a tree of {expected} nodes that says of {got} how many bytes they are about")]
    NodeCount {
        /// Nodes.
        expected: usize,
        /// Lengths.
        got: usize,
    },
    /// A node that is about nothing.
    #[error("node {node} of a tree is about no bytes")]
    NodeEmpty {
        /// Which one.
        node: usize,
    },
    /// The stripes, or the inline payload, are not as long as the object.
    #[error("an object of {expected} bytes, whose parts have {got}")]
    Size {
        /// The object's bytes.
        expected: u64,
        /// The parts' bytes.
        got: u64,
    },
    /// More is to be remembered of the object than a manifest takes.
    #[error("attributes of {got} bytes; at most {ATTRIBUTES_MAX} are allowed")]
    Attributes {
        /// Their bytes.
        got: usize,
    },
    /// Too long to be inline.
    #[error("an inline object of {got} bytes; at most {INLINE_MAX} are allowed")]
    InlineLength {
        /// The object's bytes.
        got: u64,
    },
}

/// Checks each stripe, and how many there are.
fn check_each(stripes: &[Stripe]) -> Result<(), ManifestError> {
    if stripes.is_empty() || stripes.len() > MANIFEST_STRIPES_MAX {
        return Err(ManifestError::StripeCount { got: stripes.len() });
    }
    stripes.iter().try_for_each(Stripe::check)
}

/// Checks what a tree says of its nodes; gives the length that they make.
fn check_nodes(nodes: &[Stripe], bytes: &[u64]) -> Result<u64, ManifestError> {
    check_each(nodes)?;
    let (expected, got) = (nodes.len(), bytes.len());
    if expected != got {
        return Err(ManifestError::NodeCount { expected, got });
    }
    match bytes.iter().position(|bytes| *bytes == 0) {
        Some(node) => Err(ManifestError::NodeEmpty { node }),
        None => Ok(sum(bytes.iter().copied())),
    }
}

/// So many bytes in all; what does not fit is more than any object has.
fn sum(lengths: impl Iterator<Item = u64>) -> u64 {
    lengths.fold(0, u64::saturating_add)
}

/// Bytes of each shard of a stripe that holds `data_len` bytes over `k` data shards.
pub fn shard_len(data_len: u32, k: u8) -> u32 {
    let least = data_len.div_ceil(u32::from(k.max(1)));
    least
        .checked_next_multiple_of(SHARD_ALIGN)
        .unwrap_or(u32::MAX)
}

/// Where an object's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub enum Body {
    /// In the journal entry itself.
    Inline,
    /// In these stripes, in order. Their lengths need not be equal.
    Stripes(Vec<Stripe>),
    /// In the stripes that *these* stripes list: each, read and decoded, is a wincode `Vec<Stripe>`.
    /// Their lengths need not be equal; but each stripe that they list, except for the last one, has the
    /// same `data_len`, and each list, except for the last one, as many.
    Tree(Vec<Stripe>),
    /// The same for an object that was put together of parts: nothing need be equal.
    Parts {
        /// The stripes that hold the lists.
        nodes: Vec<Stripe>,
        /// Of each of them, how many bytes of the object the stripes hold that it lists.
        bytes: Vec<u64>,
    },
}

impl Body {
    /// The stripes that it names itself; of a tree those that hold its nodes.
    pub fn stripes(&self) -> &[Stripe] {
        match self {
            Body::Inline => &[],
            Body::Stripes(stripes) | Body::Tree(stripes) => stripes,
            Body::Parts { nodes, .. } => nodes,
        }
    }

    /// What of it may be freed when `kept` stays: the stripes that `kept` does not name as well.
    /// None if all of them stay.
    #[must_use]
    pub fn without(mut self, kept: &Body) -> Option<Body> {
        let kept: BTreeSet<StripeId> = kept.stripes().iter().map(|stripe| stripe.id).collect();
        match &mut self {
            Body::Inline => return Some(self),
            Body::Stripes(stripes) | Body::Tree(stripes) => {
                stripes.retain(|stripe| !kept.contains(&stripe.id));
            }
            Body::Parts { nodes, bytes } => {
                let mut stay = nodes.iter().map(|node| !kept.contains(&node.id));
                bytes.retain(|_| stay.next().unwrap_or(true));
                nodes.retain(|node| !kept.contains(&node.id));
            }
        }
        (!self.stripes().is_empty()).then_some(self)
    }
}

/// What S3 calls an object's ETag: the MD5 of its bytes, or of the MD5s of the parts that it was
/// uploaded in. The store keeps it and does not look at it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    SchemaWrite,
    SchemaRead,
    Serialize,
    Deserialize,
)]
pub struct Etag {
    /// The digest; all zeros if nobody made one.
    pub md5: [u8; 16],
    /// How many parts; 0 if it was not uploaded in parts.
    pub parts: u16,
}

impl Etag {
    /// Of an object that came from a client which makes none.
    pub const NONE: Etag = Etag {
        md5: [0; 16],
        parts: 0,
    };

    /// Whether nobody made one. No MD5 that anyone could find is all zeros.
    pub fn is_none(&self) -> bool {
        *self == Etag::NONE
    }
}

impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.md5 {
            write!(f, "{byte:02x}")?;
        }
        match self.parts {
            0 => Ok(()),
            parts => write!(f, "-{parts}"),
        }
    }
}

/// An object, whole.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct Manifest {
    /// Bytes of the object.
    pub size: u64,
    /// CRC-32 of the whole object.
    pub crc: u32,
    /// Its ETag.
    pub etag: Etag,
    /// Where the bytes are.
    pub body: Body,
    /// What else is to be remembered of it, at most [`ATTRIBUTES_MAX`] bytes: the store does not look
    /// into them. A manifest that was displaced comes without.
    pub attributes: Vec<u8>,
}

impl Manifest {
    /// An object of which nothing else is known.
    pub fn plain(size: u64, crc: u32, body: Body) -> Manifest {
        Manifest {
            size,
            crc,
            etag: Etag::NONE,
            body,
            attributes: Vec::new(),
        }
    }

    /// Checks what was received: the numbers fit each other and the limits. What a tree's stripes
    /// list cannot be seen from here.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.attributes.len() > ATTRIBUTES_MAX {
            let got = self.attributes.len();
            return Err(ManifestError::Attributes { got });
        }
        let got = match &self.body {
            Body::Inline if self.size > u64::from(INLINE_MAX) => {
                return Err(ManifestError::InlineLength { got: self.size });
            }
            Body::Inline => self.size,
            Body::Stripes(stripes) => {
                check_each(stripes)?;
                sum(stripes.iter().map(|stripe| u64::from(stripe.data_len)))
            }
            Body::Tree(nodes) => {
                check_each(nodes)?;
                // They are lists, whose lengths say nothing of the object's.
                self.size
            }
            Body::Parts { nodes, bytes } => check_nodes(nodes, bytes)?,
        };
        if got != self.size {
            let expected = self.size;
            return Err(ManifestError::Size { expected, got });
        }
        Ok(())
    }
}

/// What a version of an object is, in a bucket that keeps versions.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    SchemaWrite,
    SchemaRead,
    Serialize,
    Deserialize,
)]
pub struct VersionTag {
    /// Its name: the number of the entry that made it. In an [`Op`], 0: the entry's own number.
    pub id: Seq,
    /// S3 calls it `null`: it was made when the bucket kept no versions.
    pub null: bool,
    /// It says that there is no object. It has nothing in it.
    pub marker: bool,
    /// What keeps it from being removed: nothing ever keeps a marker.
    pub lock: Lock,
}

/// Where the `null` version of an object stands among its versions, whenever it was made: there is one at most.
pub const NULL_VERSION: Seq = Seq(u64::MAX);

impl VersionTag {
    /// Where it stands among the versions of its object.
    pub fn slot(self) -> Seq {
        if self.null { NULL_VERSION } else { self.id }
    }

    /// The version of an object that is none, and was put by entry `id`: the `null` one, which nothing keeps.
    pub fn of_plain(id: Seq) -> VersionTag {
        VersionTag {
            id,
            null: true,
            ..VersionTag::default()
        }
    }
}

/// What the current object is once one of its versions is gone.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub enum Then {
    /// What it was: another version is gone.
    Same,
    /// There is none, and no version either.
    Nothing,
    /// The newest of the versions that are left.
    Version {
        /// Which one,
        tag: VersionTag,
        /// and the entry that wrote it last, as the proposer found it: it must be that still.
        seen: Seq,
        /// When it was made, in milliseconds since 1970.
        modified_ms: u64,
        /// What it is made of. With [`Body::Inline`] the entry's payload is the object.
        manifest: Manifest,
    },
}

/// A change of metadata: what a journal entry records.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
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
    /// The head's own record: the chain's composition from here on. It counts from the moment that it
    /// is in a replica's log, committed or not, and one member at most is new or gone in it.
    Chain {
        /// Counts up with each change. Odd: settled, witnesses speak. Even: on the way from one to the
        /// next.
        config: u64,
        /// The members.
        members: Vec<DeviceNo>,
    },
    /// The head's own record: what is at this place of the (bucket, key) order and behind it is another
    /// partition's from here on. That one begins with what this one has here.
    Split {
        /// The partition that comes into being.
        child: PartitionId,
        /// Its first bucket,
        bucket: String,
        /// and its first key in that; empty: the bucket's record.
        key: String,
    },
    /// The head's own record: nothing is changed any more; what there is becomes a part of another partition.
    Close {
        /// Which one.
        into: PartitionId,
    },
    /// Makes a version of an object, or writes one anew that is there. With [`Body::Inline`] the entry's payload
    /// is the object.
    PutVersion {
        /// The bucket's name.
        bucket: String,
        /// The object's key.
        key: String,
        /// Which version. One that is there is written anew; a new one has no name yet. There is one `null` version at
        /// most: a new one takes the place of the one before.
        tag: VersionTag,
        /// Whether it is the current one: a new one always is.
        current: bool,
        /// When it was made, in milliseconds since 1970; 0: when the entry was.
        modified_ms: u64,
        /// What it is made of.
        manifest: Manifest,
    },
    /// Removes a version of an object.
    DropVersion {
        /// The bucket's name.
        bucket: String,
        /// The object's key.
        key: String,
        /// Which version, as [`VersionTag::slot`] has it.
        id: Seq,
        /// What the current object is then.
        then: Then,
        /// Whether a retention in governance mode keeps it no more: whoever asks may do that.
        bypass: bool,
    },
    /// Writes a version of an object anew, with another lock, or something else that is remembered of it: its bytes
    /// are where they were. One that is no version yet is made one by that. With [`Body::Inline`] the entry's payload
    /// is the object.
    LockVersion {
        /// The bucket's name.
        bucket: String,
        /// The object's key.
        key: String,
        /// Which version, with the lock that it is to have.
        tag: VersionTag,
        /// The entry that wrote it last, as the proposer found it: it must be that still.
        seen: Seq,
        /// Whether it is the current one.
        current: bool,
        /// When it was made, in milliseconds since 1970.
        modified_ms: u64,
        /// What it is made of.
        manifest: Manifest,
        /// Whether a retention in governance mode may be made less by it: whoever asks may do that.
        bypass: bool,
    },
    /// Gives an object another key of its bucket and partition, in the place of what is there: it is put under the
    /// one and removed under the other. With [`Body::Inline`] the entry's payload is the object.
    Rename {
        /// The bucket's name.
        bucket: String,
        /// The key that it gets.
        key: String,
        /// The key that it had.
        source: String,
        /// The entry that wrote it there, as the proposer found it: it must be that still.
        seen: Seq,
        /// When it was made, in milliseconds since 1970.
        modified_ms: u64,
        /// What it is made of: the same bytes, in the same place, unless they are inline.
        manifest: Manifest,
    },
    /// Says of an object, or of a version of one, that stripes of it are elsewhere now, and nothing else of it changes;
    /// or, of an object that is no version, that something else is remembered of it, and its bytes are where they were.
    /// It is as old as before. With [`Body::Inline`] the entry's payload is the object.
    Relocate {
        /// The bucket's name.
        bucket: String,
        /// The object's key.
        key: String,
        /// Which version; none: what is current, and is none.
        tag: Option<VersionTag>,
        /// The entry that wrote it last, as the proposer found it: it must be that still.
        seen: Seq,
        /// Whether it is the current one.
        current: bool,
        /// When it was made, in milliseconds since 1970.
        modified_ms: u64,
        /// What it is made of: the same bytes.
        manifest: Manifest,
    },
}

/// What must hold for a change to be made.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize,
)]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// There is no such object (`If-None-Match: *`), though there may be a marker that says so.
    Absent,
    /// There is such an object (`If-Match: *`).
    Present,
    /// The object is at just this version (`If-Match: etag`).
    Version(Seq),
}

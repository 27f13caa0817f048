//! What a caller can choose, and what it gets back.

use std::time::Duration;

use ashlar_cluster_object::{ByteRange, DataKey, Making};
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Etag, Manifest, Precondition, VersionTag};
use bytes::Bytes;

/// Most operations that a client has under way at once. A partition's head remembers the last 512
/// requests of each client, so a request that waits is not overtaken by so many others that it
/// would be refused.
pub const OPERATIONS_MAX: usize = 128;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// How long an unavailable partition, or too few devices, are waited for.
    pub unavailable_wait: Duration,
    /// Operations under way at once, their tails included; more wait. [`OPERATIONS_MAX`] at most.
    pub operations_max: usize,
    /// How long an operation waits to be one of them; then it is refused as [`crate::Code::Busy`], and
    /// nothing was done. For ever, if `None`.
    pub admit_wait: Option<Duration>,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// A connection on which requests wait and nothing came for so long is given up.
    pub silence_max: Duration,
    /// For auditors: devices that hold back what is asked of them while others use them are not taken for slow.
    pub patient: bool,
    /// Stripes of one put that may be on their way and not yet acknowledged.
    pub put_stripes: usize,
    /// Stripes of one get that are read ahead.
    pub get_stripes: usize,
    /// Bytes of buffers kept for the next operation.
    pub buffers_kept: usize,
    /// Whether metadata is kept, and a read of what is kept validated by witnesses while its shards are
    /// on their way. Without, each read asks the partition's head.
    pub cache: bool,
    /// Objects kept at most.
    pub cache_entries: usize,
    /// Bytes that they may take, small objects themselves included.
    pub cache_bytes: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            unavailable_wait: Duration::from_secs(5),
            operations_max: OPERATIONS_MAX,
            admit_wait: None,
            connect_timeout: Duration::from_secs(1),
            silence_max: Duration::from_secs(10),
            patient: false,
            put_stripes: 4,
            get_stripes: 3,
            buffers_kept: 64 * 1024 * 1024,
            cache: true,
            cache_entries: 64 * 1024,
            cache_bytes: 64 * 1024 * 1024,
        }
    }
}

/// How to put.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    /// What must hold for the object to be made.
    pub precondition: Precondition,
    /// About how many bytes will come, if known: saves memory, promises nothing.
    pub size_hint: Option<u64>,
    /// Exactly how many bytes must come; another number fails the put and leaves nothing visible.
    pub size_exact: Option<u64>,
    /// What is to be remembered of the object, if it is known beforehand.
    pub seal: Seal,
    /// It is to have stripes however small it is (unless it is empty), so that
    /// [`crate::Client::compose`] can take them over.
    pub striped: bool,
    /// Whether it takes the place of the object before, or is a version among others.
    pub making: Making,
    /// With this key it is encrypted, and comes in stripes. Whoever reads it has to know that and
    /// [`crate::GetStream::decipher`] it.
    pub cipher: Option<DataKey>,
}

/// What is to be remembered of an object beside its bytes: kept with it, and not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    /// Its ETag.
    pub etag: Etag,
    /// What else, at most [`ashlar_layout::limits::ATTRIBUTES_MAX`] bytes.
    pub attributes: Bytes,
}

/// What is settled of a put when all its bytes are there, and nothing of it is visible yet.
#[derive(Clone, Debug, Default)]
pub struct Sealed {
    /// What is to be remembered of it.
    pub seal: Seal,
    /// Whether it takes the place of the object before, or is a version among others.
    pub making: Making,
}

/// A put that is durable and visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutOutcome {
    /// The object's version.
    pub version: Seq,
    /// Its bytes.
    pub size: u64,
    /// CRC-32 of all of it.
    pub crc: u32,
    /// Stripes that were made for it, those of a manifest tree included; 0 if it rides in the journal.
    pub stripes: u64,
    /// Shards that are known not to have been stored: the object is readable, with less margin.
    pub degraded_shards: u64,
    /// Stripes stored in a smaller class, because devices were away.
    pub reduced_stripes: u64,
}

impl PutOutcome {
    /// Of an object that is written anew, with the bytes that it has.
    pub(crate) fn again(version: Seq, manifest: &Manifest) -> PutOutcome {
        PutOutcome {
            version,
            size: manifest.size,
            crc: manifest.crc,
            stripes: 0,
            degraded_shards: 0,
            reduced_stripes: 0,
        }
    }
}

/// How to give an object another key.
#[derive(Clone, Debug, Default)]
pub struct RenameOptions {
    /// What must hold of the object in whose place it comes.
    pub precondition: Precondition,
    /// What is to be remembered of it from now on.
    pub seal: Seal,
}

/// How to get.
#[derive(Clone, Copy, Debug, Default)]
pub struct GetOptions {
    /// Which part; all of it if `None`.
    pub range: Option<ByteRange>,
    /// Which version, as [`ashlar_layout::manifest::VersionTag::slot`] has it; the current one if `None`.
    pub version: Option<Seq>,
}

/// How to delete.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeleteOptions {
    /// What must hold for the object to be removed.
    pub precondition: Precondition,
    /// Its stripes are to stay, because [`crate::Client::compose`] has made them another object's.
    pub taken: bool,
}

/// A delete that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteOutcome {
    /// The journal entry that recorded it.
    pub version: Seq,
    /// Whether it is known that there was an object.
    pub existed: bool,
}

/// A version that was removed, or was not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionDropped {
    /// What it was, if there was one.
    pub tag: Option<VersionTag>,
}

/// Which versions to list.
#[derive(Clone, Debug, Default)]
pub struct VersionsOptions {
    /// As in any listing: with `after` alone, behind all versions of that key.
    pub list: ListOptions,
    /// With this, behind this version of that key: the second half of the last page's `next`.
    pub after_id: Option<Seq>,
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Only keys that start with this.
    pub prefix: String,
    /// Keys are rolled up after the first of these behind the prefix; empty: none.
    pub delimiter: String,
    /// Only keys or common prefixes after this: the last page's `next`.
    pub after: String,
    /// At most so many keys and common prefixes; 0 for as many as a page holds.
    pub max: u32,
}

/// What [`crate::Client::drain`] found when it returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Tails (late shards, shards to be freed) that were still under way when the time was up.
    pub unfinished: usize,
    /// Since the client was made: late shards that did not become durable after all.
    pub shards_late_lost: u64,
    /// Since the client was made: shards that should have been freed and may still be there. The
    /// auditor collects them.
    pub shards_unfreed: u64,
}

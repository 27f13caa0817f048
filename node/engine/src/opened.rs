//! What is asked of an opening, and what it gives.
//!
//! Invariants:
//! - What is given of a device is what is durable on it.

use ashlar_layout::ids::{ClusterId, DeviceId, PartitionId, Seq};

use crate::api::Memory;
use crate::engine::Engine;
use crate::error::FindingKind;

/// What is to be opened, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct OpenParams {
    /// The cluster of this node.
    pub cluster: ClusterId,
    /// The device that is expected here, if any in particular.
    pub device: Option<DeviceId>,
    /// Its size in bytes, as the kernel tells it.
    pub device_size: u64,
    /// Its logical block size.
    pub logical_block: u32,
    /// Whether completed writes may be lost until the next flush.
    pub volatile_cache: bool,
}

/// A device that is open.
pub struct Opened<M: Memory> {
    /// The engine.
    pub engine: Engine<M>,
    /// The journal records on it, in the order in which they were appended.
    pub journal: Vec<JournalRecord>,
    /// Where journal records were, or may have been, that cannot be used.
    pub damaged: Vec<DamagedJournal>,
    /// Of each partition that has one the newest root of its index that is whole, in the order of partitions.
    pub roots: Vec<IndexRoot>,
    /// Where newer roots were, or may have been, that had been durable and cannot be used.
    pub damaged_roots: Vec<DamagedRoot>,
    /// What was found.
    pub report: RecoveryReport,
}

/// A journal record on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalRecord {
    /// Whose journal.
    pub partition: PartitionId,
    /// Byte offset on the device of the first entry.
    pub at: u64,
    /// Bytes of entries.
    pub len: u32,
    /// The first entry's number.
    pub first: Seq,
    /// The last entry's number.
    pub last: Seq,
    /// The record's own sequence number.
    pub sequence: u64,
}

/// Part of a journal extent that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedJournal {
    /// First byte of it.
    pub offset: u64,
    /// Bytes of it.
    pub len: u64,
    /// What was there, where that is known. A record torn by a crash was never acknowledged;
    /// one that rotted was. They look alike.
    pub entries: Option<(PartitionId, Seq, Seq)>,
}

/// A root of an index, whole when it was read. (Its bytes are read by `ReadIndex`.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexRoot {
    /// Whose index.
    pub partition: PartitionId,
    /// The root's own number.
    pub generation: u64,
    /// Byte offset on the device of its first byte.
    pub at: u64,
    /// Bytes of it.
    pub len: u32,
    /// Its record's sequence number.
    pub sequence: u64,
    /// It is the newest that was ever durable, or all that was freed because of a newer one is still there.
    /// Otherwise the partition's state may be more than this root and the journal on the device tell:
    /// see [`Opened::damaged_roots`].
    pub newest: bool,
}

/// A root that cannot be used, and that had been durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedRoot {
    /// First byte of what is damaged.
    pub offset: u64,
    /// Bytes of it.
    pub len: u64,
    /// Whose it was, and its own number. If that is not known, it may have been the newest of any partition that
    /// has no root with a higher sequence number than `before`.
    pub root: Option<(PartitionId, u64)>,
    /// Its record's sequence number was below this.
    pub before: u64,
}

/// What recovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The device was closed in order, and its checkpoint is good.
    pub clean: bool,
    /// Extents that were searched block by block.
    pub extents_scanned: u32,
    /// Footers that were read.
    pub footers_read: u32,
    /// Live shards.
    pub shards: u64,
    /// Records of shards that are deleted.
    pub shards_dead: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Journal records.
    pub journal_records: u64,
    /// Chunks of indexes.
    pub chunks: u64,
    /// Roots of indexes, whole or not, those that are outdated included.
    pub roots: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written again, since they were in doubt after a failure.
    pub bytes_rewritten: u64,
    /// Findings, by [`FindingKind::number`].
    pub findings: [u64; FindingKind::ALL.len()],
}

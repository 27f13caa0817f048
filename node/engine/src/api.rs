//! The seam between the engine and its driver: events in, actions out.
//!
//! Both [`crate::opening::Opening`] and [`crate::engine::Engine`] speak it. Invariants that a
//! driver keeps:
//! - Every `Write`, `Read` and `Flush` is answered by exactly one `IoDone` of the same number, with
//!   its buffer. A short transfer is a failure.
//! - The numbers of an engine's I/O go on where those of its opening ended.
//! - A flush covers the writes that were reported done before it was handed out.

use std::ops::{DerefMut, Range};

use ashlar_layout::ids::{PartitionId, Seq, ShardId};
use bytes::Bytes;

use crate::audit::{Audited, Step};
use crate::census::{Ask, Counted};
use crate::error::{EngineError, Finding};

/// Where the engine gets its buffers from.
pub trait Memory {
    /// An owned buffer, aligned as the device wants it.
    type Buf: DerefMut<Target = [u8]>;

    /// A buffer of at least `len` bytes, of any content; `None` when there is no room for it now.
    fn alloc(&mut self, len: usize) -> Option<Self::Buf>;
}

/// Why the device did not carry out an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("errno {errno}")]
pub struct IoFailure {
    /// The kernel's error number; a short transfer is `EIO` (5).
    pub errno: i32,
}

/// What the driver tells the engine.
#[derive(Debug)]
pub enum Event<B> {
    /// Store a shard. `buf` holds, from its start, room for the record header
    /// (`ashlar_layout::record::header_len(payload_len, block_size)` bytes), the payload, and zeros
    /// up to a whole block. The engine fills in the header, having checked `payload_crc`.
    WriteShard {
        /// The caller's number for this.
        op: u64,
        /// The shard's name, never used for other bytes, nor again after a delete.
        shard: ShardId,
        /// Header room, payload, padding.
        buf: B,
        /// Bytes of payload.
        payload_len: u32,
        /// CRC-32 of the payload.
        payload_crc: u32,
    },
    /// Append whole entries of one partition, as `ashlar_layout::journal` encodes them.
    AppendJournal {
        /// The caller's number for this.
        op: u64,
        /// Whose journal.
        partition: PartitionId,
        /// Sequence number of the first entry.
        first: Seq,
        /// Sequence number of the last entry.
        last: Seq,
        /// The entries, back to back.
        entries: Bytes,
    },
    /// Read a shard, or a range of it.
    ReadShard {
        /// The caller's number for this.
        op: u64,
        /// Which shard.
        shard: ShardId,
        /// First byte of the payload.
        offset: u32,
        /// Bytes from there; `u32::MAX` is "to the end".
        len: u32,
    },
    /// Read bytes of a journal record as they stand on the device; the caller checks the entry's CRC.
    ReadJournal {
        /// The caller's number for this.
        op: u64,
        /// Byte offset on the device.
        at: u64,
        /// Bytes from there.
        len: u32,
    },
    /// Write a chunk of a partition's index: [`Output::Index`] tells where its first byte stands. It is *not*
    /// durable before a [`Event::SyncIndex`] that comes after its completion has ended. The partition
    /// holds it once.
    WriteIndex {
        /// The caller's number for this.
        op: u64,
        /// Whose index.
        partition: PartitionId,
        /// Whole pages: a multiple of 4096 bytes, at most [`crate::engine::Engine::chunk_max`].
        bytes: Bytes,
    },
    /// Read bytes of an extent of the index as they stand on the device; the caller checks the page's CRC.
    ReadIndex {
        /// The caller's number for this.
        op: u64,
        /// Byte offset on the device.
        at: u64,
        /// Bytes from there.
        len: u32,
    },
    /// Make durable every chunk whose completion was reported before.
    SyncIndex {
        /// The caller's number for this.
        op: u64,
    },
    /// Write a root of a partition's index, durably. When that is done, the partition's former root is of no
    /// use any more. What the root names must be durable.
    WriteRoot {
        /// The caller's number for this.
        op: u64,
        /// Whose index.
        partition: PartitionId,
        /// The root's own number.
        generation: u64,
        /// The root, at most [`crate::engine::Engine::root_max`] bytes.
        bytes: Bytes,
    },
    /// A partition holds each of these chunks once more.
    HoldIndex {
        /// Which partition.
        partition: PartitionId,
        /// Addresses of chunks, as [`Output::Index`] told them.
        ats: Vec<u64>,
    },
    /// A partition holds each of these chunks once less. What nobody holds may be written over at once.
    FreeIndex {
        /// Which partition.
        partition: PartitionId,
        /// Addresses of chunks.
        ats: Vec<u64>,
    },
    /// What a partition holds of the chunks that were there when the device was opened: an address is held as
    /// often as it is named. Said once, before any other event about the partition's index; nothing of any index
    /// is freed before every partition that had a root has said it ([`crate::engine::Engine::awaited`]).
    KeepIndex {
        /// Which partition.
        partition: PartitionId,
        /// Addresses of chunks.
        ats: Vec<u64>,
    },
    /// What a partition needs of its journal from now on; it takes the place of what it said before. Nothing of any
    /// journal is freed before every partition that had a root or a journal record when the device was
    /// opened has said it. (A partition that is about to use what another one pins says so before that one
    /// stops.)
    TrimJournal {
        /// Which partition.
        partition: PartitionId,
        /// Not needed are records whose last entry is at most this one,
        through: Seq,
        /// and whose own sequence number ([`Output::Journal`]) is at most this;
        position: u64,
        /// but of these extents everything is: numbers, as address / extent size.
        pins: Vec<u32>,
    },
    /// A partition is gone from this device: nothing is needed of its journal and its index, and what of it still
    /// waits is refused. Nothing on the device tells of this: after an opening it is to be said again.
    ForgetPartition {
        /// Which partition.
        partition: PartitionId,
    },
    /// Forget a shard. Of an unknown one there is nothing to forget: done.
    DeleteShard {
        /// The caller's number for this.
        op: u64,
        /// Which shard.
        shard: ShardId,
    },
    /// Look whether a part of the device is as it should be. Nothing is changed by it; what is wrong is told as
    /// [`Action::Finding`], and mended where the ordinary ways do that ([`crate::audit`]). One at a time.
    Audit {
        /// The caller's number for this.
        op: u64,
        /// Which part: the first one, or what [`Audited::next`] said.
        step: Step,
    },
    /// Something of a census ([`crate::census`]): which shards nobody asked for since it began. Nothing is changed by
    /// it.
    Census {
        /// The caller's number for this.
        op: u64,
        /// What.
        ask: Ask,
    },
    /// A device I/O has ended.
    IoDone {
        /// The number that its action carried.
        io: u64,
        /// How it went.
        result: Result<(), IoFailure>,
        /// Its buffer; `None` for a flush.
        buf: Option<B>,
    },
    /// Finish what was accepted, write a checkpoint, and refuse everything afterwards.
    Shutdown {
        /// The caller's number for this.
        op: u64,
    },
}

/// What the engine wants done.
#[derive(Debug)]
pub enum Action<B> {
    /// Write the first `len` bytes of `buf` at `offset`.
    Write {
        /// Number of this I/O.
        io: u64,
        /// Byte offset on the device.
        offset: u64,
        /// What to write.
        buf: B,
        /// How much of it.
        len: usize,
        /// Must be durable when reported done (`RWF_DSYNC`).
        durable: bool,
    },
    /// Read `len` bytes at `offset` into the front of `buf`.
    Read {
        /// Number of this I/O.
        io: u64,
        /// Byte offset on the device.
        offset: u64,
        /// Where to.
        buf: B,
        /// How much.
        len: usize,
    },
    /// Make every write that was reported done durable.
    Flush {
        /// Number of this I/O.
        io: u64,
    },
    /// An operation has ended.
    Done {
        /// The number that its event carried.
        op: u64,
        /// How it went.
        result: Result<Output<B>, EngineError>,
    },
    /// Something is wrong on the device: for the log, the metrics, and the repairer.
    Finding(Finding),
    /// The engine has stopped for good: a write or a flush failed, so what is durable is no longer
    /// known. Reopen the device through [`crate::opening::Opening`].
    Fenced {
        /// What happened.
        error: EngineError,
    },
}

/// What an operation gives.
#[derive(Debug)]
pub enum Output<B> {
    /// The shard, its deletion, the chunks or the root are durable.
    Durable,
    /// The journal entries are durable.
    Journal {
        /// Byte offset on the device of the first of them; the others follow without a gap.
        at: u64,
        /// Sequence number of their record: of two records of this device the later one has the higher.
        sequence: u64,
    },
    /// The chunk is written, but not durable.
    Index {
        /// Byte offset on the device of its first byte: a multiple of 4096.
        at: u64,
    },
    /// A shard's bytes, checked.
    Shard {
        /// Holds them.
        buf: B,
        /// Where in `buf`.
        range: Range<usize>,
        /// Bytes of the whole shard's payload.
        shard_len: u32,
        /// CRC-32 of the whole shard's payload.
        shard_crc: u32,
    },
    /// Bytes of the journal or the index, as they stand on the device.
    Bytes {
        /// Holds them.
        buf: B,
        /// Where in `buf`.
        range: Range<usize>,
    },
    /// A part of the device was looked at.
    Audited(Audited),
    /// Something of a census.
    Counted(Counted),
    /// Everything accepted is durable and a checkpoint is written.
    ShutDown,
}

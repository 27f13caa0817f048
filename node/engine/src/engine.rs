//! The running engine of one device.
//!
//! This file holds its state and takes events apart; `accept` queues, `append` writes, `read` reads
//! and verifies, `clean` makes room, `chunks` tends the index and the journal's extents, `checkpoint`
//! keeps the superblock, `audit` looks whether device and memory still tell the same.
//!
//! Invariants:
//! - Every operation is answered exactly once. It waits in one place only: writes of shards in
//!   `writing`, deletes in `deleting`, appends of the journal and of the index in their streams, syncs in
//!   `syncs`, reads of shards in `reads`, a step of an audit in `audit`, and all else with its I/O.
//! - An append is answered when it is durable, and when all that was appended before it in its stream
//!   is; only then does the index know it.
//! - Once fenced, the engine writes nothing and answers everything with that error.
//! - Everything is bounded: queued appends by [`QUEUE_MAX`], buffers by the driver's memory.

use std::collections::{HashMap, HashSet};

use ashlar_layout::extent::{ExtentKind, Geometry};
use ashlar_layout::ids::{DeviceId, ExtentNo, Incarnation, OwnerEpoch, PartitionId, ShardId};
use ashlar_layout::record::{header_len, record_len};
use ashlar_layout::superblock::Superblock;
use ashlar_layout::time::Instant;

use crate::api::{Action, Event, IoFailure, Memory};
use crate::append::{Item, Seal, Stream};
use crate::audit::Audit;
use crate::census::{Marks, Naming};
use crate::checkpoint::Keeping;
use crate::clean::{CleanIo, Cleaned, Cleaner};
use crate::error::{Blind, EngineError, Finding, FindingKind};
use crate::extents::ExtentTable;
use crate::holdings::Holdings;
use crate::index::Index;
use crate::mutants::mutant;
use crate::read::Read;
use crate::superblocks::Superblocks;

/// Most appends that wait in one stream.
pub const QUEUE_MAX: usize = 4096;
/// Most journal appends that wait: more than a replica has under way, whose append must not be refused.
pub const JOURNAL_QUEUE_MAX: usize = 4 * QUEUE_MAX;
/// Most chunks and roots that wait.
pub const INDEX_QUEUE_MAX: usize = 1024;

/// What an engine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It serves.
    Serving,
    /// It finishes what it accepted.
    ShuttingDown,
    /// It has finished.
    ShutDown,
    /// A write or a flush failed.
    Fenced,
}

/// Figures of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// What it is doing.
    pub status: Status,
    /// Bytes of all extents.
    pub bytes_total: u64,
    /// Bytes of the extents that are not free.
    pub bytes_used: u64,
    /// Extents on the device.
    pub extents_total: u32,
    /// Extents that are free.
    pub extents_free: u32,
    /// Free extents that shards may not take.
    pub extents_reserved: u32,
    /// Those of them that the journal may not take either: the index could not be written any more, and the
    /// journal never trimmed.
    pub extents_reserved_from_journal: u32,
    /// Extents in use for shards,
    pub extents_data: u32,
    /// for the journal,
    pub extents_journal: u32,
    /// for the index,
    pub extents_index: u32,
    /// and for checkpoints.
    pub extents_checkpoint: u32,
    /// Bytes of the chunks that a partition holds.
    pub chunk_bytes_live: u64,
    /// Partitions that have yet to say what they keep or need: until then nothing of the journal, or of the
    /// index, is freed.
    pub partitions_awaited: u32,
    /// Shards that can be read.
    pub shards_live: u64,
    /// Bytes of memory that the index takes.
    pub index_bytes: u64,
    /// Findings since the device was opened, by [`FindingKind::number`].
    pub findings: [u64; FindingKind::ALL.len()],
    /// Records appended since it was opened.
    pub records: u64,
    /// Batches that they went out in.
    pub batches: u64,
    /// Writes of those batches.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// What the cleaner did.
    pub cleaned: Cleaned,
}

/// Which of the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamNo {
    Journal = 0,
    Data = 1,
    Index = 2,
}

/// What an I/O under way is for.
pub(crate) enum Purpose {
    /// A write of a batch.
    Write { stream: StreamNo, batch: u64 },
    /// The flush of a batch.
    Flush { stream: StreamNo, batch: u64 },
    /// An extent's footer.
    Footer(ExtentNo),
    /// Part of a read.
    Read { read: u64, span: usize },
    /// A read of bytes as they stand.
    Bytes { op: u64, at: u64, len: u32 },
    /// The flush that these wait for.
    Sync { ops: Vec<u64> },
    /// The flush before the footer of an extent of chunks.
    Settle(ExtentNo),
    /// A checkpoint.
    Checkpoint,
    /// Something of the cleaner's.
    Clean(CleanIo),
    /// One of the reads of an audit's step.
    Audit { job: u64, read: usize },
    /// The head of a record that nobody asks for.
    Name(Naming),
}

/// A shard that is being written.
pub(crate) struct Writing {
    pub payload_len: u32,
    pub payload_crc: u32,
    pub ops: Vec<u64>,
    /// Deletes that came meanwhile: they begin when the write has ended.
    pub deletes: Vec<u64>,
}

/// The extents that are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// How many.
    pub free: u32,
    /// So many of them are not for shards,
    pub reserved: u32,
    /// and so many not for the journal.
    pub reserved_from_journal: u32,
}

/// Numbers that are reserved in the superblock before they are used.
pub(crate) struct Numbers {
    pub incarnation: u64,
    pub incarnation_ceiling: u64,
    pub record: u64,
    pub record_ceiling: u64,
}

/// The engine of one device.
pub struct Engine<M: Memory> {
    pub(crate) device: DeviceId,
    pub(crate) geometry: Geometry,
    pub(crate) owner_epoch: OwnerEpoch,
    pub(crate) volatile_cache: bool,
    pub(crate) status: Status,
    pub(crate) fence: Option<EngineError>,
    pub(crate) numbers: Numbers,
    pub(crate) extents: ExtentTable,
    pub(crate) index: Index,
    pub(crate) superblocks: Superblocks<M::Buf>,
    pub(crate) keeping: Keeping,
    pub(crate) streams: [Stream<M::Buf>; 3],
    pub(crate) seals: Vec<Seal>,
    pub(crate) seals_since_checkpoint: u32,
    /// Who needs what of the journal and the index.
    pub(crate) holdings: Holdings,
    /// Syncs of the index that wait for the flush under way to end, and for the next one.
    pub(crate) syncs: Vec<u64>,
    pub(crate) syncing: bool,
    pub(crate) writing: HashMap<ShardId, Writing>,
    pub(crate) deleting: HashMap<ShardId, Vec<u64>>,
    /// Deleted shards of which a record may be there that could not be read, or that the index still
    /// points to: they are known to be gone.
    pub(crate) shadows: HashSet<ShardId>,
    /// The first part of the device that could not be read when it was opened. A shard that is not in
    /// the index may be there: it is not called absent, and deleting it takes a tombstone all the same.
    pub(crate) blind: Option<Blind>,
    pub(crate) reads: HashMap<u64, Read<M::Buf>>,
    pub(crate) ios: HashMap<u64, Purpose>,
    pub(crate) next_io: u64,
    pub(crate) next_id: u64,
    pub(crate) shutdown: Option<u64>,
    pub(crate) cleaner: Cleaner,
    pub(crate) audit: Audit<M::Buf>,
    pub(crate) marks: Option<Marks>,
    pub(crate) findings: [u64; FindingKind::ALL.len()],
    pub(crate) records: u64,
    pub(crate) batches: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
}

/// What recovery hands over.
pub(crate) struct Recovered<B> {
    pub superblocks: Superblocks<B>,
    pub numbers: Numbers,
    pub volatile_cache: bool,
    pub extents: ExtentTable,
    pub index: Index,
    pub holdings: Holdings,
    pub streams: [Stream<B>; 3],
    pub seals: Vec<Seal>,
    pub blind: Option<Blind>,
    pub shadows: HashSet<ShardId>,
    pub next_io: u64,
    pub findings: [u64; FindingKind::ALL.len()],
}

impl<M: Memory> Engine<M> {
    pub(crate) fn new(recovered: Recovered<M::Buf>) -> Engine<M> {
        let superblock = recovered.superblocks.current();
        Engine {
            device: superblock.device,
            geometry: superblock.geometry(),
            owner_epoch: superblock.owner_epoch,
            volatile_cache: recovered.volatile_cache,
            status: Status::Serving,
            fence: None,
            numbers: recovered.numbers,
            extents: recovered.extents,
            index: recovered.index,
            superblocks: recovered.superblocks,
            keeping: Keeping::Idle,
            streams: recovered.streams,
            seals: recovered.seals,
            seals_since_checkpoint: 0,
            holdings: recovered.holdings,
            syncs: Vec::new(),
            syncing: false,
            writing: HashMap::new(),
            deleting: HashMap::new(),
            shadows: recovered.shadows,
            blind: recovered.blind,
            reads: HashMap::new(),
            ios: HashMap::new(),
            next_io: recovered.next_io,
            next_id: 0,
            shutdown: None,
            cleaner: Cleaner::default(),
            audit: Audit::default(),
            marks: None,
            findings: recovered.findings,
            records: 0,
            batches: 0,
            writes: 0,
            flushes: 0,
        }
    }

    /// The device's name.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// How the device is cut up.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The present owner's number: of a chain's head, the term.
    pub fn owner_epoch(&self) -> OwnerEpoch {
        self.owner_epoch
    }

    /// The superblock as it is on the device.
    pub fn superblock(&self) -> &Superblock {
        self.superblocks.current()
    }

    /// Room that a buffer for [`Event::WriteShard`] has in front of a payload of this many bytes.
    pub fn header_len(&self, payload_len: u32) -> u32 {
        header_len(payload_len, self.geometry.block_size)
    }

    /// Bytes that a buffer for [`Event::WriteShard`] has in all.
    pub fn record_len(&self, payload_len: u32) -> u64 {
        record_len(payload_len, self.geometry.block_size)
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        let size = self.geometry.extent_size;
        let (total, free) = (self.extents.count(), self.extents.free_count());
        let used = |kind| self.extents.used(kind);
        Stats {
            status: self.status,
            bytes_total: u64::from(total) * size,
            bytes_used: u64::from(total - free) * size,
            extents_total: total,
            extents_free: free,
            extents_reserved: self.extents.reserve(),
            extents_reserved_from_journal: self.extents.journal_reserve(),
            extents_data: used(ExtentKind::Data),
            extents_journal: used(ExtentKind::Journal),
            extents_index: used(ExtentKind::Index),
            extents_checkpoint: used(ExtentKind::Checkpoint),
            chunk_bytes_live: self.holdings.live_bytes(),
            partitions_awaited: self.holdings.awaited().count() as u32,
            shards_live: self.index.shards(),
            index_bytes: self.index.memory_bytes(),
            findings: self.findings,
            records: self.records,
            batches: self.batches,
            writes: self.writes,
            flushes: self.flushes,
            cleaned: self.cleaner.figures,
        }
    }

    /// Extents that are free, and how many of them are kept from shards and from the journal: [`Engine::stats`] says so
    /// as well, and costs a walk over the index's segments, which is too much for what is asked in every round.
    pub fn room(&self) -> Room {
        Room {
            free: self.extents.free_count(),
            reserved: self.extents.reserve(),
            reserved_from_journal: self.extents.journal_reserve(),
        }
    }

    /// Partitions that were there when the device was opened, and of which not all was said that is needed: by
    /// `KeepIndex` (those that had a root) and `TrimJournal`, or by `ForgetPartition`. Until this is
    /// empty, nothing of the journal, or of the index, is freed.
    pub fn awaited(&self) -> Vec<PartitionId> {
        let mut awaited: Vec<PartitionId> = self.holdings.awaited().collect();
        awaited.sort_unstable();
        awaited
    }

    /// The engine sets no timers: what it waits for are I/Os.
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// Takes an event. Appends wait until [`Engine::kick`]; reads start at once.
    pub fn on_event(
        &mut self,
        _now: Instant,
        event: Event<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        match event {
            Event::IoDone { io, result, buf } => self.io_done(io, result, buf, mem, out),
            Event::WriteShard {
                op,
                shard,
                buf,
                payload_len,
                payload_crc,
            } => {
                let result = self.write_shard(op, shard, buf, payload_len, payload_crc, mem, out);
                self.answer_error(op, result, out);
            }
            Event::AppendJournal {
                op,
                partition,
                first,
                last,
                entries,
            } => {
                let item = Item::Journal {
                    op,
                    partition,
                    first,
                    last,
                    entries,
                };
                let result = self.append_journal(item);
                self.answer_error(op, result, out);
            }
            Event::ReadShard {
                op,
                shard,
                offset,
                len,
            } => {
                let result = self.read_shard(op, shard, offset, len, mem, out);
                self.answer_error(op, result, out);
            }
            Event::ReadJournal { op, at, len } => {
                let result = self.read_bytes(ExtentKind::Journal, op, at, len, mem, out);
                self.answer_error(op, result, out);
            }
            Event::WriteIndex {
                op,
                partition,
                bytes,
            } => {
                let result = self.append_index(Item::Chunk {
                    op,
                    partition,
                    bytes,
                });
                self.answer_error(op, result, out);
            }
            Event::ReadIndex { op, at, len } => {
                let result = self.read_bytes(ExtentKind::Index, op, at, len, mem, out);
                self.answer_error(op, result, out);
            }
            Event::SyncIndex { op } => {
                let result = self.take_sync(op);
                self.answer_error(op, result, out);
            }
            Event::WriteRoot {
                op,
                partition,
                generation,
                bytes,
            } => {
                let result = self.append_index(Item::Root {
                    op,
                    partition,
                    generation,
                    bytes,
                });
                self.answer_error(op, result, out);
            }
            Event::HoldIndex { partition, ats } => self.hold_index(partition, ats),
            Event::FreeIndex { partition, ats } => self.free_index(partition, &ats),
            Event::KeepIndex { partition, ats } => self.keep_index(partition, ats, out),
            Event::TrimJournal {
                partition,
                through,
                position,
                pins,
            } => self.trim_journal(partition, through, position, pins),
            Event::ForgetPartition { partition } => self.forget_partition(partition, out),
            Event::DeleteShard { op, shard } => {
                let result = self
                    .accepting()
                    .map(|()| self.delete_shard(op, shard, mem, out));
                self.answer_error(op, result, out);
            }
            Event::Audit { op, step } => {
                let result = self.begin_audit(op, step, mem, out);
                self.answer_error(op, result, out);
            }
            Event::Census { op, ask } => {
                let result = self.take_census(op, ask, mem, out);
                self.answer_error(op, result, out);
            }
            Event::Shutdown { op } => {
                let result = self.accepting();
                if result.is_ok() {
                    self.status = Status::ShuttingDown;
                    self.shutdown = Some(op);
                }
                self.answer_error(op, result, out);
            }
        }
    }

    /// Sends off what has come in: call it once after each run of events, so that what came
    /// together goes out together.
    pub fn kick(&mut self, _now: Instant, mem: &mut M, out: &mut Vec<Action<M::Buf>>) {
        if self.fence.is_some() || self.status == Status::ShutDown {
            return;
        }
        self.keep_numbers(mem, out);
        self.send_sync(out);
        self.clean(mem, out);
        for stream in [StreamNo::Journal, StreamNo::Data, StreamNo::Index] {
            self.send_batches(stream, mem, out);
        }
        self.write_footers(mem, out);
        self.keep_checkpoint(mem, out);
    }

    /// Refuses what comes once the engine is fenced.
    pub(crate) fn unfenced(&self) -> Result<(), EngineError> {
        self.fence.clone().map_or(Ok(()), Err)
    }

    /// Refuses what comes once the engine is fenced or shutting down.
    pub(crate) fn accepting(&self) -> Result<(), EngineError> {
        self.unfenced()?;
        match self.status {
            Status::Serving => Ok(()),
            _ => Err(EngineError::ShuttingDown {
                device: self.device,
            }),
        }
    }

    fn answer_error(
        &self,
        op: u64,
        result: Result<(), EngineError>,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        if let Err(error) = result {
            out.push(Action::Done {
                op,
                result: Err(error),
            });
        }
    }

    fn io_done(
        &mut self,
        io: u64,
        result: Result<(), IoFailure>,
        buf: Option<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        if self.fence.is_some() {
            self.ios.remove(&io);
            return;
        }
        let Some(purpose) = self.ios.remove(&io) else {
            self.superblock_done(io, result, out);
            return;
        };
        match purpose {
            Purpose::Read { read, span } => self.read_done(read, span, result, buf, mem, out),
            Purpose::Bytes { op, at, len } => self.bytes_read(op, at, len, result, buf, out),
            Purpose::Sync { ops } => self.synced(ops, result, out),
            Purpose::Settle(no) => self.settled(no, result, out),
            Purpose::Write { stream, batch } => {
                self.write_done(stream, batch, result, mem, out);
            }
            Purpose::Flush { stream, batch } => {
                self.flush_done(stream, batch, result, mem, out);
            }
            Purpose::Footer(no) => self.footer_done(no, result, out),
            Purpose::Checkpoint => self.checkpoint_written(result, mem, out),
            Purpose::Clean(what) => self.clean_done(what, result, buf, mem, out),
            Purpose::Audit { job, read } => self.audit_read(job, read, result, buf, mem, out),
            Purpose::Name(naming) => self.name_read(naming, result, buf, out),
        }
    }

    /// Hands out the number of the next I/O.
    pub(crate) fn io(&mut self, purpose: Purpose) -> u64 {
        let io = self.next_io;
        self.next_io += 1;
        self.ios.insert(io, purpose);
        io
    }

    /// A number that this device never gave before, for a life or a record, and never will again. `None` if
    /// those that are reserved have run out: ask again once the superblock has been turned.
    pub fn take_life(&mut self) -> Option<u64> {
        let numbers = &mut self.numbers;
        if numbers.record >= numbers.record_ceiling {
            return None;
        }
        numbers.record += 1;
        Some(numbers.record - 1)
    }

    /// The next incarnation, unless the reserved ones have run out.
    pub(crate) fn take_incarnation(&mut self) -> Option<Incarnation> {
        let numbers = &mut self.numbers;
        if numbers.incarnation >= numbers.incarnation_ceiling {
            return None;
        }
        if mutant!(ReuseIncarnation) {
            return Some(Incarnation(numbers.incarnation));
        }
        numbers.incarnation += 1;
        Some(Incarnation(numbers.incarnation - 1))
    }

    /// Reports something that is wrong on the device.
    pub(crate) fn find(&mut self, finding: Finding, out: &mut Vec<Action<M::Buf>>) {
        self.findings[finding.kind.number()] += 1;
        out.push(Action::Finding(finding));
    }

    /// A write or a flush failed: nothing is known to be durable any more.
    pub(crate) fn fence(
        &mut self,
        operation: &'static str,
        offset: u64,
        failure: IoFailure,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let error = EngineError::Fenced {
            device: self.device,
            operation,
            offset,
            failure,
        };
        self.status = Status::Fenced;
        self.fence = Some(error.clone());
        let mut ops = Vec::new();
        for (_, writing) in self.writing.drain() {
            ops.extend(writing.ops);
            ops.extend(writing.deletes);
        }
        ops.extend(self.deleting.drain().flat_map(|(_, ops)| ops));
        ops.extend(self.reads.drain().filter_map(|(_, read)| read.op()));
        for purpose in self.ios.values() {
            match purpose {
                Purpose::Bytes { op, .. } | Purpose::Name(Naming { op, .. }) => ops.push(*op),
                Purpose::Sync { ops: synced } => ops.extend(synced),
                _ => {}
            }
        }
        ops.append(&mut self.syncs);
        ops.extend(self.audit.drain());
        for stream in &mut self.streams {
            ops.extend(stream.drain_ops());
        }
        ops.extend(self.shutdown.take());
        ops.sort_unstable();
        for op in ops {
            out.push(Action::Done {
                op,
                result: Err(error.clone()),
            });
        }
        out.push(Action::Fenced { error });
    }
}

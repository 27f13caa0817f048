//! The running engine of one device.
//!
//! This file holds its state and takes events apart; `append` writes, `read` reads
//! and verifies, `checkpoint` keeps the superblock.
//!
//! Invariants:
//! - Every operation is answered exactly once. It waits in one place only: writes of shards in
//!   `writing`, deletes in `deleting`, journal appends in their stream, reads in `reads`.
//! - An append is answered when it is durable, and when all that was appended before it in its stream
//!   is; only then does the index know it.
//! - Once fenced, the engine writes nothing and answers everything with that error.
//! - Everything is bounded: queued appends by [`QUEUE_MAX`], buffers by the driver's memory.

use std::collections::{HashMap, HashSet};

use ashlar_layout::extent::Geometry;
use ashlar_layout::ids::{DeviceId, ExtentNo, Incarnation, OwnerEpoch, ShardId};
use ashlar_layout::record::{header_len, piece_count, piece_crcs, record_len};
use ashlar_layout::superblock::Superblock;
use ashlar_layout::time::Instant;

use crate::api::{Action, Event, IoFailure, Memory, Output};
use crate::append::{Item, Seal, Stream};
use crate::checkpoint::Keeping;
use crate::error::{EngineError, Finding, FindingKind};
use crate::extents::ExtentTable;
use crate::index::Index;
use crate::read::Read;
use crate::superblocks::Superblocks;

/// Most appends that wait in one stream.
pub const QUEUE_MAX: usize = 4096;
/// Most journal appends that wait: more than a replica has under way, whose append must not be refused.
pub const JOURNAL_QUEUE_MAX: usize = 4 * QUEUE_MAX;

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
}

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamNo {
    Journal = 0,
    Data = 1,
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
    /// A read of the journal.
    Journal { op: u64, at: u64, len: u32 },
    /// A checkpoint.
    Checkpoint,
}

/// A shard that is being written.
pub(crate) struct Writing {
    pub payload_len: u32,
    pub payload_crc: u32,
    pub ops: Vec<u64>,
    /// Deletes that came meanwhile: they begin when the write has ended.
    pub deletes: Vec<u64>,
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
    pub(crate) streams: [Stream<M::Buf>; 2],
    pub(crate) seals: Vec<Seal>,
    pub(crate) seals_since_checkpoint: u32,
    pub(crate) writing: HashMap<ShardId, Writing>,
    pub(crate) deleting: HashMap<ShardId, Vec<u64>>,
    /// Deleted shards of which a record may be there that could not be read, or that the index still
    /// points to: they are known to be gone.
    pub(crate) shadows: HashSet<ShardId>,
    /// The first part of the device that could not be read when it was opened. A shard that is not in
    /// the index may be there: it is not called absent, and deleting it takes a tombstone all the same.
    pub(crate) blind: Option<(u64, u64)>,
    pub(crate) reads: HashMap<u64, Read<M::Buf>>,
    pub(crate) ios: HashMap<u64, Purpose>,
    pub(crate) next_io: u64,
    pub(crate) next_id: u64,
    pub(crate) shutdown: Option<u64>,
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
    pub streams: [Stream<B>; 2],
    pub seals: Vec<Seal>,
    pub blind: Option<(u64, u64)>,
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
            writing: HashMap::new(),
            deleting: HashMap::new(),
            shadows: recovered.shadows,
            blind: recovered.blind,
            reads: HashMap::new(),
            ios: HashMap::new(),
            next_io: recovered.next_io,
            next_id: 0,
            shutdown: None,
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
        Stats {
            status: self.status,
            bytes_total: u64::from(total) * size,
            bytes_used: u64::from(total - free) * size,
            extents_total: total,
            extents_free: free,
            extents_reserved: self.extents.reserve(),
            shards_live: self.index.len(),
            index_bytes: self.index.memory_bytes(),
            findings: self.findings,
            records: self.records,
            batches: self.batches,
            writes: self.writes,
            flushes: self.flushes,
        }
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
                let result = self.read_journal(op, at, len, mem, out);
                self.answer_error(op, result, out);
            }
            Event::DeleteShard { op, shard } => {
                let result = self
                    .accepting()
                    .map(|()| self.delete_shard(op, shard, mem, out));
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
        for stream in [StreamNo::Journal, StreamNo::Data] {
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

    /// Checks a shard that is to be written, and queues it unless it may be there already.
    #[expect(clippy::too_many_arguments, reason = "the fields of one event")]
    fn write_shard(
        &mut self,
        op: u64,
        shard: ShardId,
        mut buf: M::Buf,
        payload_len: u32,
        payload_crc: u32,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<(), EngineError> {
        self.accepting()?;
        let device = self.device;
        let bad = |what, expected, got| EngineError::BadPayload {
            device,
            what,
            expected,
            got,
        };
        let most = self.payload_max();
        if payload_len > most {
            return Err(bad("length", u64::from(most), u64::from(payload_len)));
        }
        let len = self.record_len(payload_len);
        if (buf.len() as u64) < len {
            return Err(bad("buffer", len, buf.len() as u64));
        }
        let from = self.header_len(payload_len) as usize;
        let to = from + payload_len as usize;
        let mut pieces = Vec::with_capacity(piece_count(payload_len) as usize);
        let crc = piece_crcs(&buf[from..to], |_, crc| pieces.push(crc));
        if crc != payload_crc {
            return Err(bad("CRC", u64::from(payload_crc), u64::from(crc)));
        }
        buf[to..len as usize].fill(0);
        if self.shadows.contains(&shard) || self.deleting.contains_key(&shard) {
            return Err(EngineError::Deleted { device, shard });
        }
        if let Some(writing) = self.writing.get_mut(&shard) {
            if writing.payload_crc != payload_crc || writing.payload_len != payload_len {
                let stored = writing.payload_crc;
                return Err(EngineError::Exists {
                    device,
                    shard,
                    stored,
                    got: payload_crc,
                });
            }
            writing.ops.push(op);
            return Ok(());
        }
        let stream = &self.streams[StreamNo::Data as usize];
        if stream.queue.len() >= QUEUE_MAX {
            return Err(EngineError::Busy {
                device,
                what: "too many appends wait",
            });
        }
        let item = Item::Shard {
            shard,
            buf,
            payload_len,
            payload_crc,
            pieces,
        };
        let hash = self.index.hash(&shard);
        if self.index.candidates(hash).next().is_some() {
            self.check_stored(shard, item, mem, out)?;
        } else {
            self.streams[StreamNo::Data as usize].queue.push_back(item);
        }
        let writing = Writing {
            payload_len,
            payload_crc,
            ops: vec![op],
            deletes: Vec::new(),
        };
        self.writing.insert(shard, writing);
        Ok(())
    }

    /// Most bytes of payload that fit into an extent of this device.
    pub(crate) fn payload_max(&self) -> u32 {
        use ashlar_layout::limits::{SHARD_SIZE_MAX, SUPERBLOCK_ZONE};
        let block = u64::from(self.geometry.block_size);
        // Zone, extent header, footer of one entry, and the record's own header.
        let around = SUPERBLOCK_ZONE
            + block
            + ashlar_layout::footer::footer_len(1, self.geometry.block_size)
            + u64::from(header_len(SHARD_SIZE_MAX, self.geometry.block_size));
        let room = self.geometry.extent_size.saturating_sub(around);
        u32::try_from(room).unwrap_or(u32::MAX).min(SHARD_SIZE_MAX)
    }

    fn append_journal(&mut self, item: Item<M::Buf>) -> Result<(), EngineError> {
        self.accepting()?;
        let device = self.device;
        let bad = |what, expected, got| EngineError::BadPayload {
            device,
            what,
            expected,
            got,
        };
        if let Item::Journal {
            first,
            last,
            entries,
            ..
        } = &item
        {
            let most = self.journal_max();
            if entries.is_empty() || entries.len() as u64 > u64::from(most) {
                return Err(bad("length", u64::from(most), entries.len() as u64));
            }
            if first > last {
                return Err(bad("first sequence number", last.0, first.0));
            }
        }
        let stream = &mut self.streams[StreamNo::Journal as usize];
        if stream.queue.len() >= JOURNAL_QUEUE_MAX {
            return Err(EngineError::Busy {
                device,
                what: "too many appends wait",
            });
        }
        stream.queue.push_back(item);
        Ok(())
    }

    /// Begins a delete: the shard's record is looked at first, since the index only says where it
    /// may be.
    pub(crate) fn delete_shard(
        &mut self,
        op: u64,
        shard: ShardId,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        if let Some(writing) = self.writing.get_mut(&shard) {
            writing.deletes.push(op);
            return;
        }
        if let Some(ops) = self.deleting.get_mut(&shard) {
            ops.push(op);
            return;
        }
        if self.shadows.contains(&shard) {
            out.push(Action::Done {
                op,
                result: Ok(Output::Durable),
            });
            return;
        }
        let hash = self.index.hash(&shard);
        let known = self.index.candidates(hash).next().is_some();
        if !known && self.blind.is_none() {
            out.push(Action::Done {
                op,
                result: Ok(Output::Durable),
            });
            return;
        }
        let stream = &mut self.streams[StreamNo::Data as usize];
        if stream.queue.len() >= QUEUE_MAX {
            let what = "too many appends wait";
            let error = EngineError::Busy {
                device: self.device,
                what,
            };
            out.push(Action::Done {
                op,
                result: Err(error),
            });
            return;
        }
        if !known {
            let item = Item::Tombstone {
                shard,
                targets: Vec::new(),
                hold: true,
                shadow: false,
            };
            stream.queue.push_back(item);
        } else if let Err(error) = self.check_doomed(shard, mem, out) {
            out.push(Action::Done {
                op,
                result: Err(error),
            });
            return;
        }
        self.deleting.insert(shard, vec![op]);
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
            Purpose::Journal { op, at, len } => self.journal_read(op, at, len, result, buf, out),
            Purpose::Write { stream, batch } => {
                self.write_done(stream, batch, result, mem, out);
            }
            Purpose::Flush { stream, batch } => {
                self.flush_done(stream, batch, result, mem, out);
            }
            Purpose::Footer(no) => self.footer_done(no, result, out),
            Purpose::Checkpoint => self.checkpoint_written(result, mem, out),
        }
    }

    /// Hands out the number of the next I/O.
    pub(crate) fn io(&mut self, purpose: Purpose) -> u64 {
        let io = self.next_io;
        self.next_io += 1;
        self.ios.insert(io, purpose);
        io
    }

    /// The next incarnation, unless the reserved ones have run out.
    pub(crate) fn take_incarnation(&mut self) -> Option<Incarnation> {
        let numbers = &mut self.numbers;
        if numbers.incarnation >= numbers.incarnation_ceiling {
            return None;
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
        ops.extend(self.ios.values().filter_map(|purpose| match purpose {
            Purpose::Journal { op, .. } => Some(*op),
            _ => None,
        }));
        for stream in &mut self.streams {
            ops.extend(stream.drain_journal_ops());
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

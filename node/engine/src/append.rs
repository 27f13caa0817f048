//! Appending: what waits becomes a batch, and a batch becomes few writes. [`crate::acknowledge`] takes
//! it from there.
//!
//! Three streams (journal, data, index), each with one open extent.
//!
//! Invariants:
//! - A batch lies in one extent. It is durable by one durable write; or, of several writes, by a
//!   flush that is handed out after all of them are done; or, where the device has no volatile cache,
//!   by its writes alone. At most [`IN_FLIGHT`] gathered batches of a stream are under way ([`Stream`] by
//!   stream), and [`ALONE_IN_FLIGHT`] of one large shard each: gathering those would save no write, and waiting
//!   for a flush together would leave the device idle meanwhile. All are acknowledged strictly in order.
//! - Of a partition at most *one* journal record is under way: one batch of the journal at a time, and
//!   in it one record of each partition. So what a power cut takes from a partition's journal is
//!   always its tail, never a record before one that stays: nobody could fill such a hole.
//! - Joining appends makes no record longer than one that would be accepted as a single append, and
//!   no record gets a place before it was checked to fit there.
//! - A new extent's header goes out in the first batch of the extent, so nothing in an extent is
//!   acknowledged before its header is durable.
//! - A chunk or root of the index is a batch of its own; [`INDEX_IN_FLIGHT`] are under way at most. A root's write is
//!   durable, a chunk's is *not*: it is acknowledged when it is written.
//! - No header of an extent is written while a root is under way ([`crate::chunks`] says why), and no second root sent
//!   while a header waits for the first: many partitions' roots do not keep an extent from being opened.
//! - A record never reaches into the room that the footer of its extent will take.
//! - Nothing has room before [`crate::room`] allows it.
//! - A batch that cannot get its buffers leaves everything as it was: position, numbers, queue.

use ashlar_layout::extent::{ExtentHeader, ExtentKind};
use ashlar_layout::footer::{FooterEntry, footer_len};
use ashlar_layout::ids::{PartitionId, ShardId};
use ashlar_layout::limits::JOURNAL_BATCH_MAX;
use ashlar_layout::record::{
    RecordHeader, Subject, header_len, index_record_at, piece_crcs, record_len,
};

use crate::api::{Action, Memory};
use crate::engine::{Engine, Purpose, StreamNo};
use crate::error::EngineError;
use crate::index::{Candidate, UNIT};
use crate::mutants::mutant;
pub(crate) use crate::queue::{
    Appended, Batch, Item, OpenExtent, Planned, Seal, Stream, Target, What,
};
use crate::room::Wait;

/// Gathered batches that are under way at most: of the journal, and of data.
pub const IN_FLIGHT: [usize; 2] = [1, 2];
/// Batches in all that are under way at most, when the next one is of one large shard alone. Their buffers
/// are held anyway, waiting or not.
pub const ALONE_IN_FLIGHT: usize = 16;
/// Chunks and roots that are under way at most: each takes a buffer of its own.
pub const INDEX_IN_FLIGHT: usize = 8;
/// Records from this many bytes on are a batch of their own: one durable write. (Below that a flush for
/// many is cheaper than many durable writes, where the device's flushes are slow.)
const ALONE_MIN: u64 = 256 * 1024;
/// Records up to this many bytes are copied together into one write.
const COALESCE_MAX: u64 = 64 * 1024;
/// Bytes of such a write at most, unless one record alone is longer.
const STAGING_MAX: u64 = 512 * 1024;
/// Bytes of a batch at most, unless one record alone is longer.
const BATCH_MAX: u64 = 4 * 1024 * 1024;
/// Free extents that nothing but tombstones may take: they need a place to go.
pub(crate) const TOMBSTONE_RESERVE: u32 = 1;
/// Bytes of a footer at most; it is written from one buffer, and read into one.
pub(crate) const FOOTER_MAX: u64 = 4 * 1024 * 1024;

impl<M: Memory> Engine<M> {
    /// Sends off what waits in a stream, as long as there is room for another batch.
    pub(crate) fn send_batches(
        &mut self,
        stream: StreamNo,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        loop {
            if !self.may_send(stream) {
                return;
            }
            let Some(plan) = self.plan(stream, mem, out) else {
                return;
            };
            if plan.is_empty() {
                continue;
            }
            if !self.send(stream, plan, mem, out) {
                self.starved(stream, mem, out);
                return;
            }
        }
    }

    /// Whether something waits, and may go out now.
    fn may_send(&self, stream: StreamNo) -> bool {
        let Stream { queue, flying, .. } = &self.streams[stream as usize];
        let Some(first) = queue.front() else {
            return false;
        };
        if stream == StreamNo::Index {
            return flying.len() < INDEX_IN_FLIGHT;
        }
        let len = record_len(first.payload_len(), self.geometry.block_size);
        if matches!(first, Item::Shard { .. }) && len >= ALONE_MIN {
            return flying.len() < ALONE_IN_FLIGHT;
        }
        let gathered = flying.iter().filter(|batch| !batch.alone).count();
        gathered < IN_FLIGHT[stream as usize]
    }

    /// There was no buffer. As long as anything is under way one will come back; otherwise the
    /// caller is told to try later, rather than left waiting. A journal's appends wait all the same:
    /// if one were refused, those behind it would become durable before it. The driver keeps
    /// buffers free for them, and kicks.
    fn starved(&mut self, stream: StreamNo, mem: &mut M, out: &mut Vec<Action<M::Buf>>) {
        if stream != StreamNo::Journal
            && self.ios.is_empty()
            && !self.superblocks.turning()
            && let Some(what) = self.streams[stream as usize].next_record(&[], 0)
        {
            let error = EngineError::Busy {
                device: self.device,
                what: "no buffer",
            };
            self.refuse(what, &error, mem, out);
        }
    }

    /// Gives the records at the front of the queue their places. Empty if the first one was refused;
    /// `None` if nothing can go out now.
    fn plan(
        &mut self,
        stream: StreamNo,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Option<Vec<Planned<M::Buf>>> {
        let block_size = self.geometry.block_size;
        let mut plan: Vec<Planned<M::Buf>> = Vec::new();
        let mut bytes = 0;
        let mut records = 0;
        let mut pos = None;
        let most = self.journal_max() as usize;
        let mut partitions: Vec<PartitionId> = Vec::new();
        loop {
            if self.numbers.record + records >= self.numbers.record_ceiling {
                // The superblock is being turned to reserve more.
                break;
            }
            let Some(what) = self.streams[stream as usize].next_record(&partitions, most) else {
                break;
            };
            if matches!(what, What::Item(Item::Root { .. })) && !self.may_send_root() {
                self.streams[stream as usize].put_back(what);
                break;
            }
            let len = record_len(what.payload_len(), block_size);
            match self.may_take_room(&what, (pos, records, len)) {
                Wait::No => {}
                Wait::Later => {
                    self.streams[stream as usize].put_back(what);
                    break;
                }
                Wait::Refuse(_) if !plan.is_empty() => {
                    self.streams[stream as usize].put_back(what);
                    break;
                }
                Wait::Refuse(error) => {
                    self.refuse(what, &error, mem, out);
                    return Some(plan);
                }
            }
            let alone = stream == StreamNo::Index || (what.has_buffer() && len >= ALONE_MIN);
            if !plan.is_empty() && (alone || bytes + len > BATCH_MAX) {
                self.streams[stream as usize].put_back(what);
                break;
            }
            let fits = self.fits(stream, pos, (records, len), (0, 0));
            if !fits && !plan.is_empty() {
                self.streams[stream as usize].put_back(what);
                break;
            }
            if !fits && let Err(error) = self.next_extent(stream, &what) {
                let Some(error) = error else {
                    self.streams[stream as usize].put_back(what);
                    return None;
                };
                self.refuse(what, &error, mem, out);
                return Some(plan);
            }
            if !fits && !self.fits(stream, pos, (records, len), (0, 0)) {
                // Longer than an extent: what is accepted is not, but nothing may reach into the next.
                let error = EngineError::BadPayload {
                    device: self.device,
                    what: "length",
                    expected: u64::from(self.payload_max()),
                    got: u64::from(what.payload_len()),
                };
                self.refuse(what, &error, mem, out);
                return Some(plan);
            }
            let Some(open) = &self.streams[stream as usize].open else {
                self.streams[stream as usize].put_back(what);
                return None;
            };
            let mut at = pos.unwrap_or(open.pos);
            if at == self.geometry.extent_start(open.no) {
                if !self.may_open() {
                    // It does not take long.
                    self.streams[stream as usize].put_back(what);
                    break;
                }
                let len = u64::from(block_size);
                plan.push(Planned {
                    at,
                    len,
                    what: What::Header,
                });
                at += len;
                if alone {
                    // By itself, without waiting for it: the record's own write follows at once.
                    self.streams[stream as usize].put_back(what);
                    break;
                }
            }
            if stream == StreamNo::Index {
                at = index_record_at(at, block_size);
            }
            if let What::Entries { partition, .. } = &what {
                partitions.push(*partition);
            }
            plan.push(Planned { at, len, what });
            pos = Some(at + len);
            bytes += len;
            records += 1;
            if alone {
                break;
            }
        }
        (!plan.is_empty()).then_some(plan)
    }

    /// Whether a record of this many bytes has room in the open extent, behind `records` others that
    /// end at `pos`, and behind it still so many bytes of so many records.
    pub(crate) fn fits(
        &self,
        stream: StreamNo,
        pos: Option<u64>,
        (records, len): (u64, u64),
        more: (u64, u64),
    ) -> bool {
        let open = self.streams[stream as usize].open.as_ref();
        open.is_some_and(|open| {
            let start = self.geometry.records_start(open.no);
            let mut at = pos.unwrap_or(open.pos).max(start);
            if stream == StreamNo::Index {
                at = index_record_at(at, self.geometry.block_size);
            }
            let count = open.entries.len() + (records + more.1) as usize + 1;
            let footer = footer_len(count, self.geometry.block_size);
            let end = self.geometry.extent_end(open.no);
            footer <= FOOTER_MAX && at + len + more.0 + footer <= end
        })
    }

    /// Most bytes of a journal record's payload.
    pub(crate) fn journal_max(&self) -> u32 {
        JOURNAL_BATCH_MAX.min(self.payload_max())
    }

    /// Opens another extent for a stream, and lets the present one be sealed. An error of `None`
    /// means that it must wait; otherwise the device is full, and the present extent stays open for
    /// smaller records.
    fn next_extent(
        &mut self,
        stream: StreamNo,
        what: &What<M::Buf>,
    ) -> Result<(), Option<EngineError>> {
        let reserve = match what {
            What::Item(Item::Shard { copy: None, .. }) => self.extents.reserve(),
            // Whether a tombstone may take the last one was asked before.
            What::Item(Item::Shard { .. } | Item::Tombstone { .. }) => 0,
            What::Item(Item::Chunk { .. }) => self.extents.chunk_reserve(),
            What::Item(Item::Root { .. }) => TOMBSTONE_RESERVE,
            _ => self.extents.journal_reserve(),
        };
        let free = self.extents.free_count();
        if free <= reserve {
            return Err(Some(self.full(reserve)));
        }
        let incarnation = self.take_incarnation().ok_or(None)?;
        let kind = self.streams[stream as usize].kind;
        let no = self.extents.open(kind, incarnation, reserve).ok_or(None)?;
        let pos = self.geometry.extent_start(no);
        let open = OpenExtent {
            no,
            incarnation,
            pos,
            entries: Vec::new(),
            spare: free <= self.extents.reserve(),
        };
        if let Some(full) = self.streams[stream as usize].open.replace(open) {
            self.seals.push(Seal {
                extent: full,
                writing: false,
                settled: kind != ExtentKind::Index,
                leaves_out: false,
            });
        }
        Ok(())
    }

    pub(crate) fn full(&self, reserve: u32) -> EngineError {
        EngineError::DeviceFull {
            device: self.device,
            free: u64::from(self.extents.free_count()),
            reserve: u64::from(reserve),
        }
    }

    /// Makes writes of a plan. False if there is no buffer for the first of them; all is as it was then.
    fn send(
        &mut self,
        stream: StreamNo,
        mut plan: Vec<Planned<M::Buf>>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> bool {
        let only_header = |plan: &[Planned<M::Buf>]| {
            plan.iter()
                .all(|planned| matches!(planned.what, What::Header))
        };
        let ahead = only_header(&plan);
        let mut runs: Vec<(usize, Option<M::Buf>)> = Vec::new();
        let mut from = 0;
        while from < plan.len() {
            let mut to = from;
            let mut bytes = 0;
            while to < plan.len() {
                let planned = &plan[to];
                let small = planned.len <= COALESCE_MAX || !planned.what.has_buffer();
                if to > from && (!small || bytes + planned.len > STAGING_MAX) {
                    break;
                }
                bytes += planned.len;
                to += 1;
                if !small {
                    break;
                }
            }
            let direct = to - from == 1 && plan[from].what.has_buffer();
            let buf = if direct {
                None
            } else {
                mem.alloc(bytes as usize)
            };
            if !direct && buf.is_none() {
                if plan[from].what.has_buffer() {
                    // Not gathered, then: each in its own buffer.
                    to = from + 1;
                } else {
                    break;
                }
            }
            runs.push((to, buf));
            from = to;
        }
        // A header alone, before a record that found no buffer, would be no use; unless it was to go ahead.
        for planned in plan.drain(from..).rev() {
            self.streams[stream as usize].put_back(planned.what);
        }
        if plan.is_empty() || (only_header(&plan) && !ahead) {
            return false;
        }
        self.write_runs(stream, plan, runs, out);
        true
    }

    fn write_runs(
        &mut self,
        stream: StreamNo,
        plan: Vec<Planned<M::Buf>>,
        runs: Vec<(usize, Option<M::Buf>)>,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let Some(mut open) = self.streams[stream as usize].open.take() else {
            return;
        };
        let id = self.next_id;
        self.next_id += 1;
        let mut batch = Batch {
            id,
            extent: open.no,
            opens: matches!(
                plan.first().map(|planned| &planned.what),
                Some(What::Header)
            ),
            offset: plan.first().map_or(0, |planned| planned.at),
            writes_left: runs.len(),
            flush: self.volatile_cache && runs.len() > 1,
            alone: plan.len() == 1
                && plan.iter().all(|planned| match planned.what {
                    What::Header | What::Item(Item::Chunk { .. } | Item::Root { .. }) => true,
                    _ => planned.len >= ALONE_MIN && planned.what.has_buffer(),
                }),
            root: plan
                .iter()
                .any(|planned| matches!(planned.what, What::Item(Item::Root { .. }))),
            durable: false,
            records: Vec::with_capacity(plan.len()),
        };
        // A chunk's write: a sync comes later.
        let plain = plan
            .iter()
            .any(|planned| matches!(planned.what, What::Item(Item::Chunk { .. })));
        let mut planned = plan.into_iter();
        let mut done = 0;
        for (to, staging) in runs {
            let mut staging = staging;
            let mut bytes = 0usize;
            let mut offset = None;
            for Planned { at, len, what } in planned.by_ref().take(to - done) {
                offset.get_or_insert(at);
                let from = bytes;
                bytes += len as usize;
                open.pos = at + len;
                let room = staging.as_mut().map(|buf| &mut buf[from..bytes]);
                if let Some(buf) = self.put(&mut open, at, what, room, &mut batch) {
                    staging = Some(buf);
                }
            }
            done = to;
            if let (Some(buf), Some(offset)) = (staging, offset) {
                let io = self.io(Purpose::Write { stream, batch: id });
                let durable = !batch.flush && !plain && !mutant!(WriteNotDurable);
                out.push(Action::Write {
                    io,
                    offset,
                    buf,
                    len: bytes,
                    durable,
                });
                self.writes += 1;
            }
        }
        self.batches += 1;
        self.records += batch.records.len() as u64;
        let stream = &mut self.streams[stream as usize];
        stream.open = Some(open);
        stream.flying.push_back(batch);
    }

    /// Puts a record into the room it has in a shared buffer; or, if there is none, gives back the
    /// record's own buffer, made ready.
    fn put(
        &mut self,
        open: &mut OpenExtent,
        at: u64,
        what: What<M::Buf>,
        room: Option<&mut [u8]>,
        batch: &mut Batch,
    ) -> Option<M::Buf> {
        let block_size = self.geometry.block_size;
        let mut header = RecordHeader {
            device: self.device,
            extent: open.no,
            incarnation: open.incarnation,
            owner_epoch: self.owner_epoch,
            address: at,
            sequence: self.numbers.record,
            subject: Subject::Tombstone(ShardId::default()),
            payload_len: what.payload_len(),
            payload_crc: 0,
            table_crc: 0,
        };
        let head = header_len(header.payload_len, block_size) as usize;
        let mut own = None;
        match what {
            What::Header => {
                if let Some(room) = room {
                    room.fill(0);
                    let bytes = self.extent_header(open, at).encode();
                    room[..bytes.len()].copy_from_slice(&bytes);
                }
                return None;
            }
            What::Item(Item::Shard {
                shard,
                mut buf,
                payload_len,
                payload_crc,
                pieces,
                copy,
            }) => {
                header.subject = Subject::Shard(shard);
                header.payload_crc = payload_crc;
                encode_head(&mut header, &pieces, &mut buf[..head], block_size);
                let len = record_len(payload_len, block_size);
                match room {
                    Some(room) => room.copy_from_slice(&buf[..len as usize]),
                    None => own = Some(buf),
                }
                let block = at / u64::from(block_size);
                let candidate = Candidate {
                    block,
                    units: len.div_ceil(UNIT) as u16,
                };
                if mutant!(TurnIndexEarly) && copy.is_some() {
                    self.turn_early(shard, candidate);
                }
                if copy.is_none() {
                    self.cleaner.appended(len);
                }
                batch.records.push(Appended::Shard {
                    shard,
                    candidate,
                    len,
                    copy,
                });
            }
            What::Item(Item::Tombstone {
                shard,
                targets,
                hold,
                shadow,
                carried,
            }) => {
                if !carried {
                    self.cleaner.appended(u64::from(block_size));
                }
                header.subject = Subject::Tombstone(shard);
                if let Some(room) = room {
                    encode_head(&mut header, &[], room, block_size);
                }
                batch.records.push(Appended::Tombstone {
                    shard,
                    targets,
                    hold,
                    shadow,
                    carried,
                });
            }
            // Journal items always come gathered.
            What::Item(Item::Journal { .. }) => return None,
            What::Item(Item::Chunk {
                op,
                partition,
                bytes,
            }) => {
                header.subject = Subject::IndexChunk { partition };
                fill(&mut header, &[&bytes], room, block_size);
                batch.records.push(Appended::Chunk {
                    op,
                    partition,
                    sequence: header.sequence,
                    at: at + head as u64,
                    len: header.payload_len,
                });
            }
            What::Item(Item::Root {
                op,
                partition,
                generation,
                bytes,
            }) => {
                header.subject = Subject::IndexRoot {
                    partition,
                    generation,
                };
                fill(&mut header, &[&bytes], room, block_size);
                batch.records.push(Appended::Root {
                    op,
                    partition,
                    sequence: header.sequence,
                });
            }
            What::Entries {
                partition,
                first,
                last,
                parts,
                ..
            } => {
                header.subject = Subject::Journal {
                    partition,
                    first,
                    last,
                };
                let mut to = (at + head as u64, Vec::with_capacity(parts.len()));
                let mut entries = Vec::with_capacity(parts.len());
                for (op, _, _, part) in &parts {
                    to.1.push((*op, to.0));
                    to.0 += part.len() as u64;
                    entries.push(&part[..]);
                }
                fill(&mut header, &entries, room, block_size);
                batch.records.push(Appended::Journal {
                    partition,
                    last,
                    sequence: header.sequence,
                    ops: to.1,
                });
            }
        }
        self.numbers.record += 1;
        let tombstone = matches!(header.subject, Subject::Tombstone(_));
        self.extents
            .wrote(open.no, header.record_len(block_size), tombstone);
        let base = u64::from(open.no.0) * self.geometry.extent_size;
        open.entries
            .push(FooterEntry::of(&header, base, block_size));
        own
    }

    /// The header of an extent that is being opened.
    pub(crate) fn extent_header(&self, open: &OpenExtent, address: u64) -> ExtentHeader {
        ExtentHeader {
            device: self.device,
            extent: open.no,
            incarnation: open.incarnation,
            owner_epoch: self.owner_epoch,
            kind: self.extents.get(open.no).kind.unwrap_or(ExtentKind::Data),
            address,
            block_size: self.geometry.block_size,
            extent_size: self.geometry.extent_size,
            first_sequence: self.numbers.record,
        }
    }
}

/// A whole record, into its room: the payload, put together of these parts, and what goes before it.
fn fill(header: &mut RecordHeader, parts: &[&[u8]], room: Option<&mut [u8]>, block_size: u32) {
    let Some(room) = room else {
        return;
    };
    let (head, body) = room.split_at_mut(header_len(header.payload_len, block_size) as usize);
    let mut to = 0;
    for part in parts {
        body[to..to + part.len()].copy_from_slice(part);
        to += part.len();
    }
    body[to..].fill(0);
    let mut pieces = Vec::new();
    header.payload_crc = piece_crcs(&body[..to], |_, crc| pieces.push(crc));
    encode_head(header, &pieces, head, block_size);
}

/// Head and table, into room of the right length.
fn encode_head(header: &mut RecordHeader, pieces: &[u32], room: &mut [u8], block_size: u32) {
    let encoded = header.encode_into(pieces, room, block_size);
    // Lengths were checked when the append was accepted.
    debug_assert!(encoded.is_ok(), "{encoded:?}");
}

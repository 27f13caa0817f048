//! Reading: one device read in the common case, and nothing that does not match its checksum.
//!
//! The index gives candidates. Each is read, and its header says whether it is the shard asked for.
//! The same is done before a shard is deleted, and when one is written that may be there already.
//!
//! Invariants:
//! - Bytes go out only if the record's head and table match their CRCs, the head names this shard,
//!   this device, extent, incarnation and address, and every piece that the bytes lie in matches its CRC.
//! - A whole shard is one device read. A range near the front is one read; one further back is two
//!   reads at the same time (header, covering pieces).
//! - What does not match is a finding, unless the index has let go of the place meanwhile: then the
//!   shard was deleted, and its extent perhaps used again, while the read was under way.
//! - A record that cannot be read is not absent: it is answered as unreadable, and never as
//!   [`EngineError::NotFound`]; and so is a shard of which a record may stand where recovery could not
//!   read, unless it is known to be deleted.

use ashlar_layout::extent::ExtentKind;
use ashlar_layout::ids::ShardId;
use ashlar_layout::limits::{JOURNAL_BATCH_MAX, PIECE_SIZE, SHARD_SIZE_MAX};
use ashlar_layout::record::{RecordHeader, Subject, cover, header_len};
use ashlar_layout::stamp::{HEAD_LEN, Place};

use crate::api::{Action, IoFailure, Memory, Output};
use crate::append::Item;
use crate::engine::{Engine, Purpose, StreamNo};
use crate::error::{EngineError, Finding, FindingKind};
use crate::extents::State;
use crate::index::{Candidate, ShardHash, UNIT};

/// Header and pieces are read as one if no more than this lies between them.
const GAP_MAX: u64 = 128 * 1024;

/// What a shard's record is read for.
enum Goal<B> {
    /// A client wants this range.
    Range { op: u64, offset: u32, len: u32 },
    /// The same shard is being written: is it there, whole?
    Stored { item: Item<B> },
    /// It is to be deleted: which of the candidates are it?
    Doomed { targets: Vec<u64>, unverified: bool },
}

/// A shard's record being read.
pub(crate) struct Read<B> {
    goal: Goal<B>,
    shard: ShardId,
    hash: ShardHash,
    current: Candidate,
    rest: Vec<Candidate>,
    spans: Vec<Span<B>>,
    error: Option<EngineError>,
}

/// Part of a record: where in it, and what came of reading it.
struct Span<B> {
    from: u64,
    len: u64,
    state: SpanState<B>,
}

enum SpanState<B> {
    Pending,
    Got(B),
    Failed(IoFailure),
}

/// What reading a candidate came to.
enum Verdict<B> {
    /// It is the shard, and these bytes of it match. `start` is where the range begins in `buf`.
    Good {
        header: RecordHeader,
        buf: B,
        start: usize,
        len: usize,
    },
    /// It is the shard; only its head was asked for.
    Named,
    /// It is another shard, or the place was let go.
    Other,
    /// It is the shard, and there is no such range.
    NoRange(EngineError),
    /// It does not match, or cannot be read.
    Bad(Finding, EngineError),
    /// These bytes of the record are needed too.
    More { from: u64, len: u64 },
}

impl<B> Read<B> {
    /// The operation that waits for nothing but this read.
    pub fn op(&self) -> Option<u64> {
        match self.goal {
            Goal::Range { op, .. } => Some(op),
            // These wait in `writing` and `deleting`.
            Goal::Stored { .. } | Goal::Doomed { .. } => None,
        }
    }
}

impl<M: Memory> Engine<M> {
    pub(crate) fn read_shard(
        &mut self,
        op: u64,
        shard: ShardId,
        offset: u32,
        len: u32,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<(), EngineError> {
        self.accepting()?;
        if self.shadows.contains(&shard) {
            return Err(self.absent(shard));
        }
        self.start_read(Goal::Range { op, offset, len }, shard, mem, out)
    }

    /// A shard is to be written that the index may know already.
    pub(crate) fn check_stored(
        &mut self,
        shard: ShardId,
        item: Item<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<(), EngineError> {
        self.start_read(Goal::Stored { item }, shard, mem, out)
    }

    /// A shard is to be deleted.
    pub(crate) fn check_doomed(
        &mut self,
        shard: ShardId,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<(), EngineError> {
        let goal = Goal::Doomed {
            targets: Vec::new(),
            unverified: false,
        };
        self.start_read(goal, shard, mem, out)
    }

    fn start_read(
        &mut self,
        goal: Goal<M::Buf>,
        shard: ShardId,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<(), EngineError> {
        let hash = self.index.hash(&shard);
        let mut rest: Vec<Candidate> = self.index.candidates(hash).collect();
        let Some(current) = rest.pop() else {
            return Err(self.absent(shard));
        };
        let read = Read {
            goal,
            shard,
            hash,
            current,
            rest,
            spans: Vec::new(),
            error: None,
        };
        let id = self.next_id;
        self.next_id += 1;
        match self.read_candidate(id, read, mem, out) {
            None => Ok(()),
            Some(_) => Err(self.no_buffer()),
        }
    }

    /// Bytes from a candidate's address that may be its record's: not beyond its extent.
    fn reach(&self, candidate: Candidate) -> (u64, u64) {
        let address = candidate.block * u64::from(self.geometry.block_size);
        let len = u64::from(candidate.units) * UNIT;
        let end = self
            .geometry
            .extent_of(address)
            .map_or(address, |no| self.geometry.extent_end(no));
        (address, len.min(end - address))
    }

    /// Starts to read `read.current`. Without a buffer, the read is handed back.
    fn read_candidate(
        &mut self,
        id: u64,
        mut read: Read<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Option<Read<M::Buf>> {
        let (_, reach) = self.reach(read.current);
        let block_size = self.geometry.block_size;
        let block = u64::from(block_size);
        // The record's length is known up to a unit, so its header's is known up to a block.
        let most = header_len(reach.min(u64::from(SHARD_SIZE_MAX)) as u32, block_size);
        let head = u64::from(most).min(reach);
        let spans = match &read.goal {
            Goal::Doomed { .. } => vec![(0, block.max(HEAD_LEN as u64).min(reach))],
            Goal::Stored { .. } => vec![(0, reach)],
            Goal::Range {
                offset: 0,
                len: u32::MAX,
                ..
            } => vec![(0, reach)],
            Goal::Range { len: 0, .. } => vec![(0, head)],
            Goal::Range { offset, len, .. } => {
                let piece = u64::from(PIECE_SIZE);
                let (from, to) = (u64::from(*offset), u64::from(*offset) + u64::from(*len));
                let least = reach.saturating_sub(UNIT).saturating_sub(head);
                let least = u64::from(header_len(least as u32, block_size));
                let from = (least + from / piece * piece).min(reach);
                let to = (head + to.next_multiple_of(piece)).min(reach);
                if from <= head + GAP_MAX {
                    vec![(0, to.max(head))]
                } else if from >= to {
                    vec![(0, head)]
                } else {
                    vec![(0, head), (from, to - from)]
                }
            }
        };
        let mut buffers = Vec::with_capacity(spans.len());
        for (_, len) in &spans {
            let Some(buf) = mem.alloc(*len as usize) else {
                return Some(read);
            };
            buffers.push(buf);
        }
        read.spans.clear();
        for ((from, len), buf) in spans.into_iter().zip(buffers) {
            self.read_span(id, &mut read, from, len, buf, out);
        }
        self.reads.insert(id, read);
        None
    }

    /// Why a shard that the index does not know cannot be had.
    fn absent(&self, shard: ShardId) -> EngineError {
        let device = self.device;
        match self.blind {
            Some((offset, len)) if !self.shadows.contains(&shard) => EngineError::Unreadable {
                device,
                offset,
                len,
                failure: IoFailure { errno: 5 },
            },
            _ => EngineError::NotFound { device, shard },
        }
    }

    fn no_buffer(&self) -> EngineError {
        EngineError::Busy {
            device: self.device,
            what: "no buffer",
        }
    }

    fn read_span(
        &mut self,
        id: u64,
        read: &mut Read<M::Buf>,
        from: u64,
        len: u64,
        buf: M::Buf,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let (address, _) = self.reach(read.current);
        let io = self.io(Purpose::Read {
            read: id,
            span: read.spans.len(),
        });
        read.spans.push(Span {
            from,
            len,
            state: SpanState::Pending,
        });
        out.push(Action::Read {
            io,
            offset: address + from,
            buf,
            len: len as usize,
        });
    }

    pub(crate) fn read_done(
        &mut self,
        id: u64,
        span: usize,
        result: Result<(), IoFailure>,
        buf: Option<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let Some(mut read) = self.reads.remove(&id) else {
            return;
        };
        if let Some(span) = read.spans.get_mut(span) {
            span.state = match (result, buf) {
                (Ok(()), Some(buf)) => SpanState::Got(buf),
                (Ok(()), None) => SpanState::Failed(IoFailure { errno: 5 }),
                (Err(failure), _) => SpanState::Failed(failure),
            };
        }
        if read
            .spans
            .iter()
            .any(|span| matches!(span.state, SpanState::Pending))
        {
            self.reads.insert(id, read);
            return;
        }
        let verdict = self.judge(&mut read);
        self.conclude(id, read, verdict, mem, out);
    }

    fn conclude(
        &mut self,
        id: u64,
        mut read: Read<M::Buf>,
        verdict: Verdict<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        match verdict {
            Verdict::Good {
                header,
                buf,
                start,
                len,
            } => match read.goal {
                Goal::Range { op, .. } => {
                    let range = start..start + len;
                    let (shard_len, shard_crc) = (header.payload_len, header.payload_crc);
                    let output = Output::Shard {
                        buf,
                        range,
                        shard_len,
                        shard_crc,
                    };
                    out.push(Action::Done {
                        op,
                        result: Ok(output),
                    });
                    return;
                }
                Goal::Stored { .. } => return self.found_stored(read, &header, mem, out),
                Goal::Doomed { .. } => {}
            },
            Verdict::Named => {
                if let Goal::Doomed { targets, .. } = &mut read.goal {
                    targets.push(read.current.block);
                }
            }
            Verdict::Other => {}
            Verdict::NoRange(error) => {
                read.rest.clear();
                read.error = Some(error);
            }
            Verdict::Bad(finding, error) => {
                self.find(finding, out);
                read.error = Some(error);
                if let Goal::Doomed { unverified, .. } = &mut read.goal {
                    *unverified = true;
                }
            }
            Verdict::More { from, len } => match mem.alloc(len as usize) {
                Some(buf) => {
                    self.read_span(id, &mut read, from, len, buf, out);
                    self.reads.insert(id, read);
                    return;
                }
                None => {
                    read.rest.clear();
                    read.error = Some(self.no_buffer());
                }
            },
        }
        if let Some(next) = read.rest.pop() {
            read.current = next;
            if let Some(mut read) = self.read_candidate(id, read, mem, out) {
                read.error = Some(self.no_buffer());
                self.give_up(read, out);
            }
            return;
        }
        self.give_up(read, out);
    }

    /// No candidate is left.
    fn give_up(&mut self, read: Read<M::Buf>, out: &mut Vec<Action<M::Buf>>) {
        let shard = read.shard;
        match read.goal {
            Goal::Range { op, .. } => {
                let error = read.error.unwrap_or_else(|| self.absent(shard));
                out.push(Action::Done {
                    op,
                    result: Err(error),
                });
            }
            // Not there, or not whole: it is written, be it for the second time.
            Goal::Stored { item, .. } => {
                self.streams[StreamNo::Data as usize].queue.push_back(item);
            }
            Goal::Doomed {
                targets,
                unverified,
            } => {
                if let Some(error @ EngineError::Busy { .. }) = read.error {
                    for op in self.deleting.remove(&shard).unwrap_or_default() {
                        out.push(Action::Done {
                            op,
                            result: Err(error.clone()),
                        });
                    }
                } else if targets.is_empty() && !unverified && self.blind.is_none() {
                    for op in self.deleting.remove(&shard).unwrap_or_default() {
                        out.push(Action::Done {
                            op,
                            result: Ok(Output::Durable),
                        });
                    }
                } else {
                    let hold = unverified || (targets.is_empty() && self.blind.is_some());
                    let item = Item::Tombstone {
                        shard,
                        targets,
                        hold,
                        shadow: unverified,
                    };
                    self.streams[StreamNo::Data as usize].queue.push_back(item);
                }
            }
        }
    }

    /// A shard that is being written is there already, whole.
    fn found_stored(
        &mut self,
        read: Read<M::Buf>,
        header: &RecordHeader,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let Goal::Stored {
            item:
                Item::Shard {
                    payload_len,
                    payload_crc,
                    ..
                },
        } = read.goal
        else {
            return;
        };
        let (device, shard) = (self.device, read.shard);
        if header.payload_crc == payload_crc && header.payload_len == payload_len {
            return self.written(shard, mem, out);
        }
        let Some(writing) = self.writing.remove(&shard) else {
            return;
        };
        let stored = header.payload_crc;
        for op in writing.ops {
            let error = EngineError::Exists {
                device,
                shard,
                stored,
                got: payload_crc,
            };
            out.push(Action::Done {
                op,
                result: Err(error),
            });
        }
        for op in writing.deletes {
            self.delete_shard(op, shard, mem, out);
        }
    }

    /// Looks at what was read of a candidate.
    fn judge(&self, read: &mut Read<M::Buf>) -> Verdict<M::Buf> {
        let device = self.device;
        let (address, reach) = self.reach(read.current);
        let shard = Some(read.shard);
        let finding = |kind, offset, len| Finding {
            kind,
            device,
            offset,
            len,
            shard,
            journal: None,
        };
        let gone = !self.index.contains(read.hash, read.current.block);
        for span in &read.spans {
            if let SpanState::Failed(failure) = span.state {
                if gone {
                    return Verdict::Other;
                }
                let (offset, len) = (address + span.from, span.len);
                let error = EngineError::Unreadable {
                    device,
                    offset,
                    len,
                    failure,
                };
                return Verdict::Bad(finding(FindingKind::Unreadable, offset, len), error);
            }
        }
        let corrupt = |kind, offset, len| {
            if gone {
                return Verdict::Other;
            }
            let finding = finding(kind, offset, len);
            Verdict::Bad(finding.clone(), EngineError::Corrupt { finding })
        };
        let Some(no) = self.geometry.extent_of(address) else {
            return Verdict::Other;
        };
        let incarnation = Some(self.extents.get(no).incarnation);
        let place = Place {
            device,
            extent: no,
            incarnation,
            address,
        };
        let Some(Span {
            state: SpanState::Got(head),
            len: head_len,
            ..
        }) = read.spans.first()
        else {
            return Verdict::Other;
        };
        let head = &head[..*head_len as usize];
        let block = u64::from(self.geometry.block_size);
        let header = match RecordHeader::decode(head, &place) {
            Ok(header) => header,
            Err(_) => return corrupt(FindingKind::RecordHeader, address, block),
        };
        if header.subject != Subject::Shard(read.shard) {
            // Another shard of the same tag. (The index holds nothing but shards.)
            return Verdict::Other;
        }
        let (offset, len) = match read.goal {
            Goal::Doomed { .. } => return Verdict::Named,
            Goal::Stored { .. } => (0, header.payload_len),
            Goal::Range {
                offset,
                len: u32::MAX,
                ..
            } => (offset, header.payload_len.saturating_sub(offset)),
            Goal::Range { offset, len, .. } => (offset, len),
        };
        let Some(pieces_range) = cover(header.payload_len, offset, len) else {
            let limit = u64::from(header.payload_len);
            let (offset, len) = (u64::from(offset), u64::from(len));
            return Verdict::NoRange(EngineError::BadRange {
                device,
                offset,
                len,
                limit,
            });
        };
        let room = u64::from(header_len(header.payload_len, self.geometry.block_size));
        let Ok(pieces) = header.pieces(head) else {
            return corrupt(FindingKind::RecordHeader, address, room);
        };
        let (from, to) = match len {
            0 => (0, 0),
            _ => (
                room + u64::from(pieces_range.start),
                room + u64::from(pieces_range.end),
            ),
        };
        let holder = read
            .spans
            .iter()
            .position(|span| span.from <= from && to <= span.from + span.len);
        let Some(holder) = holder else {
            let to = to.next_multiple_of(block);
            if to > reach || read.spans.len() > 2 {
                return corrupt(FindingKind::RecordHeader, address, block);
            }
            return Verdict::More {
                from,
                len: to - from,
            };
        };
        let span = &read.spans[holder];
        let SpanState::Got(buf) = &span.state else {
            return Verdict::Other;
        };
        let bytes = &buf[(from - span.from) as usize..(to - span.from) as usize];
        if pieces.verify(pieces_range.start, bytes).is_err() {
            return corrupt(FindingKind::RecordPayload, address + from, to - from);
        }
        let start = if len == 0 {
            0
        } else {
            (room + u64::from(offset) - span.from) as usize
        };
        let SpanState::Got(buf) = read.spans.swap_remove(holder).state else {
            return Verdict::Other;
        };
        Verdict::Good {
            header,
            buf,
            start,
            len: len as usize,
        }
    }

    pub(crate) fn read_journal(
        &mut self,
        op: u64,
        at: u64,
        len: u32,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<(), EngineError> {
        self.accepting()?;
        let device = self.device;
        let block = u64::from(self.geometry.block_size);
        let extent = self.geometry.extent_of(at).filter(|no| {
            let extent = self.extents.get(*no);
            extent.kind == Some(ExtentKind::Journal) && extent.state != State::Free
        });
        let limit = extent.map_or(0, |no| self.geometry.extent_end(no));
        let end = at.saturating_add(u64::from(len));
        if end > limit || len > JOURNAL_BATCH_MAX {
            let len = u64::from(len);
            return Err(EngineError::BadRange {
                device,
                offset: at,
                len,
                limit,
            });
        }
        let from = at - at % block;
        let bytes = (end.next_multiple_of(block) - from).max(block) as usize;
        let Some(buf) = mem.alloc(bytes) else {
            return Err(self.no_buffer());
        };
        let io = self.io(Purpose::Journal { op, at, len });
        out.push(Action::Read {
            io,
            offset: from,
            buf,
            len: bytes,
        });
        Ok(())
    }

    pub(crate) fn journal_read(
        &mut self,
        op: u64,
        at: u64,
        len: u32,
        result: Result<(), IoFailure>,
        buf: Option<M::Buf>,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let device = self.device;
        let failure = match (result, buf) {
            (Ok(()), Some(buf)) => {
                let from = (at % u64::from(self.geometry.block_size)) as usize;
                let range = from..from + len as usize;
                out.push(Action::Done {
                    op,
                    result: Ok(Output::Bytes { buf, range }),
                });
                return;
            }
            (Ok(()), None) => IoFailure { errno: 5 },
            (Err(failure), _) => failure,
        };
        let (offset, len) = (at, u64::from(len));
        let kind = FindingKind::Unreadable;
        self.find(
            Finding {
                kind,
                device,
                offset,
                len,
                shard: None,
                journal: None,
            },
            out,
        );
        let error = EngineError::Unreadable {
            device,
            offset,
            len,
            failure,
        };
        out.push(Action::Done {
            op,
            result: Err(error),
        });
    }
}

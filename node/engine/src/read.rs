//! Reading: one device read in the common case, and nothing that does not match its checksum.
//!
//! The index gives candidates. Each is read, and its header says whether it is the shard asked for
//! ([`crate::verdict`]). The same is done before a shard is deleted, and when one is written that may be
//! there already.
//!
//! Invariants:
//! - A whole shard is one device read. A range near the front is one read; one further back is two
//!   reads at the same time (header, covering pieces).
//! - A record that cannot be read is not absent: it is answered as unreadable, and never as
//!   [`EngineError::NotFound`]; and so is a shard of which a record may stand where recovery could not
//!   read, unless it is known to be deleted.

use ashlar_layout::ids::{Incarnation, ShardId};
use ashlar_layout::limits::{PIECE_SIZE, SHARD_SIZE_MAX};
use ashlar_layout::record::header_len;
use ashlar_layout::stamp::HEAD_LEN;

use crate::api::{Action, IoFailure, Memory};
use crate::append::{Item, Target};
use crate::engine::{Engine, Purpose, StreamNo};
use crate::error::{Blind, EngineError, Finding, FindingKind};
use crate::index::{Candidate, ShardHash, UNIT};

/// Header and pieces are read as one if no more than this lies between them.
const GAP_MAX: u64 = 128 * 1024;

/// What a shard's record is read for.
pub(crate) enum Goal<B> {
    /// A client wants this range.
    Range { op: u64, offset: u32, len: u32 },
    /// The same shard is being written: is it there, whole?
    Stored { item: Item<B> },
    /// It is to be deleted: which of the candidates are it?
    Doomed {
        targets: Vec<Target>,
        unverified: bool,
    },
}

/// A shard's record being read.
pub(crate) struct Read<B> {
    pub goal: Goal<B>,
    pub shard: ShardId,
    pub hash: ShardHash,
    pub current: Candidate,
    pub rest: Vec<Candidate>,
    /// The life of the extent of `current` when its reading began.
    pub life: Option<Incarnation>,
    /// The index let go of a candidate while it was read.
    pub moved: bool,
    pub spans: Vec<Span<B>>,
    pub error: Option<EngineError>,
}

/// Part of a record: where in it, and what came of reading it.
pub(crate) struct Span<B> {
    pub from: u64,
    pub len: u64,
    pub state: SpanState<B>,
}

pub(crate) enum SpanState<B> {
    Pending,
    Got(B),
    Failed(IoFailure),
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
        self.mark(&shard);
        if self.shadows.contains(&shard) {
            return Err(self.absent(shard));
        }
        self.start_read(Goal::Range { op, offset, len }, shard, mem, out)
    }

    /// A shard is to be written; what the index may know already of it is looked at before.
    pub(crate) fn check_stored(
        &mut self,
        shard: ShardId,
        item: Item<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<(), EngineError> {
        let hash = self.index.hash(&shard);
        if self.index.candidates(hash).next().is_none() {
            self.streams[StreamNo::Data as usize].queue.push_back(item);
            return Ok(());
        }
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
            life: None,
            moved: false,
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
    pub(crate) fn reach(&self, candidate: Candidate) -> (u64, u64) {
        let address = candidate.block * u64::from(self.geometry.block_size);
        let len = u64::from(candidate.units) * UNIT;
        let end = self
            .geometry
            .extent_of(address)
            .map_or(address, |no| self.geometry.extent_end(no));
        (address, len.min(end - address))
    }

    /// Starts to read `read.current`. Without a buffer, the read is handed back.
    pub(crate) fn read_candidate(
        &mut self,
        id: u64,
        mut read: Read<M::Buf>,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Option<Read<M::Buf>> {
        let (address, reach) = self.reach(read.current);
        let life = |no| self.extents.get(no).incarnation;
        read.life = self.geometry.extent_of(address).map(life);
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
    pub(crate) fn absent(&self, shard: ShardId) -> EngineError {
        let device = self.device;
        let blind = self.blind.filter(|_| !self.shadows.contains(&shard));
        match blind {
            None => EngineError::NotFound { device, shard },
            Some(Blind {
                offset,
                len,
                kind: FindingKind::Unreadable,
            }) => {
                let failure = IoFailure { errno: 5 };
                EngineError::Unreadable {
                    device,
                    offset,
                    len,
                    failure,
                }
            }
            Some(Blind { offset, len, kind }) => {
                let finding = Finding {
                    kind,
                    device,
                    offset,
                    len,
                    shard: Some(shard),
                    journal: None,
                };
                EngineError::Corrupt { finding }
            }
        }
    }

    pub(crate) fn no_buffer(&self) -> EngineError {
        EngineError::Busy {
            device: self.device,
            what: "no buffer",
        }
    }

    pub(crate) fn read_span(
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
}

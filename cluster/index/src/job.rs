//! Flushes and merges: entries from a table or from runs into a new run.
//!
//! Invariants:
//! - of each key the newest version is kept, and of the older ones those that a snapshot saw when the
//!   job began. Snapshots made later see at least the newest. Of one version the value of the newest input
//!   is kept, and that one only;
//! - a tombstone goes only where nothing older of its key can be left: in a job that reaches down to
//!   the oldest run, and behind the last version that it keeps;
//! - a job's memory is bounded: a few spans of each input and a few chunks of output.

use std::ops::Range;
use std::sync::Arc;

use ashlar_layout::ids::Seq;
use ashlar_layout::page::EntryKind;
use ashlar_layout::root::Chunk;
use bytes::Bytes;

use crate::api::IndexError;
use crate::builder::{AttachmentBuilder, Builder, Chunks};
use crate::cache::RunName;
use crate::memtable::Memtable;
use crate::span::{Front, Span};

/// What a job reads.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// The oldest table that waits.
    Table {
        table: Arc<Memtable>,
        covered: Seq,
        after: Option<Vec<u8>>,
    },
    /// Runs that follow each other, newest first.
    Runs { spans: Vec<Span> },
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// It reads and writes.
    Running,
    /// All entries are in chunks, which are being written.
    Draining,
    /// All chunks are written; its root is next.
    Ready,
    /// Given up: it waits for what is under way.
    Abandoned,
}

/// A flush or merge.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) source: Source,
    /// The runs that it replaces.
    pub(crate) inputs: Vec<RunName>,
    pub(crate) builder: Builder,
    pub(crate) attachment: Option<AttachmentBuilder>,
    pub(crate) phase: Phase,
    /// Writes under way.
    pub(crate) writes: usize,
    /// Reads under way.
    pub(crate) reads: usize,
    pub(crate) bytes: u64,
    keep: Keep,
    group: Group,
}

/// Which versions are kept.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Keep {
    /// The snapshots, oldest first.
    pub(crate) snapshots: Vec<u64>,
    /// Whether nothing older is left below.
    pub(crate) bottom: bool,
}

impl Keep {
    /// Whether a snapshot sees a version that was superseded by `next`.
    fn seen(&self, version: u64, next: u64) -> bool {
        let from = self.snapshots.partition_point(|s| *s < version);
        self.snapshots.get(from).is_some_and(|s| *s < next)
    }
}

/// All versions of one key, newest first.
#[derive(Clone, Debug, Default)]
struct Group {
    key: Vec<u8>,
    versions: Vec<(u64, EntryKind, Range<usize>)>,
    values: Vec<u8>,
}

impl Group {
    fn begin(&mut self, key: &[u8]) {
        self.key.clear();
        self.key.extend_from_slice(key);
        self.versions.clear();
        self.values.clear();
    }

    fn push(&mut self, seq: u64, kind: EntryKind, value: &[u8]) {
        let from = self.values.len();
        self.values.extend_from_slice(value);
        self.versions.push((seq, kind, from..self.values.len()));
    }

    /// Versions stand newest first, and of one version the newest value first: no snapshot lies between it and
    /// the others, so that they go.
    fn emit(&mut self, keep: &Keep, builder: &mut Builder) {
        let mut next = None;
        self.versions.retain(|(seq, _, _)| {
            let kept = next.is_none_or(|next| keep.seen(*seq, next));
            next = Some(*seq);
            kept
        });
        let dead = |(_, kind, _): &(u64, EntryKind, Range<usize>)| *kind == EntryKind::Tombstone;
        while keep.bottom && self.versions.last().is_some_and(dead) {
            self.versions.pop();
        }
        for (seq, kind, value) in self.versions.drain(..) {
            builder.push(&self.key, seq, kind, &self.values[value]);
        }
    }
}

impl Job {
    pub(crate) fn new(source: Source, inputs: Vec<RunName>, builder: Builder, keep: Keep) -> Self {
        Self {
            source,
            inputs,
            builder,
            attachment: None,
            phase: Phase::Running,
            writes: 0,
            reads: 0,
            bytes: 0,
            keep,
            group: Group::default(),
        }
    }

    /// Works through at most `budget` entries, as far as input and output allow; whether it could go on.
    pub(crate) fn step(&mut self, budget: usize) -> bool {
        if self.phase != Phase::Running {
            return false;
        }
        let more = match &mut self.source {
            Source::Table { table, after, .. } => step_table(
                table,
                after,
                &self.keep,
                &mut self.group,
                &mut self.builder,
                budget,
            ),
            Source::Runs { spans } => step_runs(
                spans,
                &self.keep,
                &mut self.group,
                &mut self.builder,
                budget,
            ),
        };
        match more {
            Stepped::More => true,
            Stepped::Waiting => false,
            Stepped::End => {
                self.builder.finish();
                self.phase = Phase::Draining;
                false
            }
        }
    }

    /// What decides what it keeps, and how many versions it has in its hands of which key.
    pub(crate) fn kept(&self) -> (&Keep, &[u8], usize) {
        (&self.keep, &self.group.key, self.group.versions.len())
    }

    /// What it writes: the run, and what the owner gave along.
    pub(crate) fn files(&mut self) -> impl Iterator<Item = (usize, &mut Chunks)> {
        let attachment = self.attachment.iter_mut().map(|it| &mut it.chunks);
        let files = std::iter::once(&mut self.builder.chunks).chain(attachment);
        files.enumerate()
    }

    /// The next chunk to be written, if not too many are under way: file, number, bytes.
    pub(crate) fn next_write(&mut self, max: usize) -> Option<(usize, usize, Bytes)> {
        if self.writes >= max || self.phase == Phase::Abandoned {
            return None;
        }
        let next = |(file, chunks): (usize, &mut Chunks)| {
            let (chunk, bytes) = chunks.full.pop_front()?;
            Some((file, chunk, bytes))
        };
        let (file, chunk, bytes) = self.files().find_map(next)?;
        self.writes += 1;
        self.bytes += bytes.len() as u64;
        Some((file, chunk, bytes))
    }

    /// A chunk was written.
    pub(crate) fn written(&mut self, file: usize, chunk: usize, at: u64) {
        if let Some((_, chunks)) = self.files().nth(file) {
            chunks.written(chunk, at);
        }
        let settled = self.files().all(|(_, chunks)| chunks.settled());
        if self.phase == Phase::Draining && settled {
            self.phase = Phase::Ready;
        }
    }

    /// Draining may have nothing to wait for.
    pub(crate) fn settle(&mut self) {
        let settled = self.files().all(|(_, chunks)| chunks.settled());
        if self.phase == Phase::Draining && settled && self.writes == 0 {
            self.phase = Phase::Ready;
        }
    }

    /// The chunks that it wrote, when it is given up.
    pub(crate) fn leavings(&self) -> Vec<Chunk> {
        let mut chunks = self.builder.written();
        chunks.extend(self.attachment.iter().flat_map(AttachmentBuilder::written));
        chunks
    }

    /// The inputs that wait to be read: their places and what they want.
    pub(crate) fn spans(&mut self) -> &mut [Span] {
        match &mut self.source {
            Source::Table { .. } => &mut [],
            Source::Runs { spans } => spans,
        }
    }

    /// Takes what was read of an input.
    pub(crate) fn arrived(&mut self, token: u64, bytes: Option<Bytes>) -> Result<(), IndexError> {
        self.reads -= 1;
        match self.spans().iter_mut().find(|span| span.awaits(token)) {
            Some(span) => span.arrived(bytes),
            None => Ok(()),
        }
    }
}

enum Stepped {
    More,
    Waiting,
    End,
}

fn backlog(builder: &Builder) -> bool {
    !builder.chunks.full.is_empty()
}

fn step_table(
    table: &Memtable,
    after: &mut Option<Vec<u8>>,
    keep: &Keep,
    group: &mut Group,
    builder: &mut Builder,
    budget: usize,
) -> Stepped {
    let from = after.take();
    let mut worked = 0;
    for (key, versions) in table.all_after(from.as_deref()) {
        group.begin(key);
        for version in versions {
            group.push(version.seq, version.kind, &version.value);
            worked += 1;
        }
        group.emit(keep, builder);
        if worked >= budget || backlog(builder) {
            *after = Some(key.to_vec());
            return if backlog(builder) {
                Stepped::Waiting
            } else {
                Stepped::More
            };
        }
    }
    Stepped::End
}

fn step_runs(
    spans: &mut [Span],
    keep: &Keep,
    group: &mut Group,
    builder: &mut Builder,
    budget: usize,
) -> Stepped {
    for _ in 0..budget {
        if backlog(builder) || spans.iter().any(|s| s.front() == Front::Waiting) {
            return Stepped::Waiting;
        }
        let mut least: Option<usize> = None;
        for (at, span) in spans.iter().enumerate() {
            let Some((spot, _)) = span.entry() else {
                continue;
            };
            let before = least
                .and_then(|least| spans[least].entry())
                .is_none_or(|(other, _)| spot.order(&other.key, other.seq).is_lt());
            if before {
                least = Some(at);
            }
        }
        let Some(span) = least.map(|least| &mut spans[least]) else {
            group.emit(keep, builder);
            return Stepped::End;
        };
        if let Some((spot, value)) = span.entry() {
            if group.versions.is_empty() || group.key != spot.key {
                group.emit(keep, builder);
                group.begin(&spot.key);
            }
            group.push(spot.seq, spot.kind, value);
        }
        span.advance();
    }
    Stepped::More
}

/// What decides whether a run is merged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) level: u8,
    pub(crate) entries: u64,
    pub(crate) tombstones: u64,
    /// Bytes of the journal that it points to.
    pub(crate) placed: u64,
    pub(crate) last: u64,
    /// It is being merged already, or is damaged.
    pub(crate) busy: bool,
}

/// Which runs are to be merged next: a range of them, newest first, and the level of what they become.
pub(crate) fn pick(
    runs: &[Candidate],
    fanout: usize,
    waste_bytes: Option<u64>,
    oldest_snapshot: u64,
) -> Option<(Range<usize>, u8)> {
    // Everything, if much of the journal may be kept for nothing: whatever newer runs say may be of keys that
    // the oldest one has. Each byte of that one is merged again only when as much has come.
    let level = runs.iter().map(|run| run.level).max()?;
    let idle = runs.iter().all(|run| !run.busy);
    if let Some((bottom, newer)) = runs.split_last() {
        let newer: u64 = newer.iter().map(|run| run.placed).sum();
        let much = waste_bytes.is_none_or(|waste| newer > bottom.placed.max(waste));
        if much && runs.len() > 1 {
            // What is being merged ends first, and nothing else begins.
            return idle.then_some((0..runs.len(), level));
        }
    }
    // A level that is full, the lowest first.
    let mut from = 0;
    while from < runs.len() {
        let level = runs[from].level;
        let len = runs[from..].iter().take_while(|r| r.level == level).count();
        let range = from..from + len;
        if len >= fanout.max(2) && runs[range.clone()].iter().all(|run| !run.busy) {
            return Some((range, level.saturating_add(1)));
        }
        from += len;
    }
    // Or everything, if about half of it is dead: tombstones that nobody needs any more, and what they
    // hide. So a delete costs the writing of four entries at most.
    let entries: u64 = runs.iter().map(|run| run.entries).sum();
    let gone = runs.iter().filter(|run| run.last <= oldest_snapshot);
    let tombstones: u64 = gone.map(|run| run.tombstones).sum();
    let waste = tombstones > 0 && tombstones.saturating_mul(4) >= entries;
    (waste && idle).then_some((0..runs.len(), level))
}

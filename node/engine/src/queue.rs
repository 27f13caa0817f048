//! What waits to be appended, and what is under way: the types of [`crate::append`].
//!
//! Invariants:
//! - The appends of one partition leave the queue in the order in which they came, joined to one
//!   record as far as they continue each other and the record stays below the limit that is given.
//! - What is put back stands before everything of its kind that is still there.

use std::collections::VecDeque;

use ashlar_layout::extent::ExtentKind;
use ashlar_layout::footer::FooterEntry;
use ashlar_layout::ids::{ExtentNo, Incarnation, PartitionId, Seq, ShardId};
use bytes::Bytes;

use crate::clean::CopyOf;
use crate::index::Candidate;

/// An append that waits.
pub(crate) enum Item<B> {
    Shard {
        shard: ShardId,
        buf: B,
        payload_len: u32,
        payload_crc: u32,
        pieces: Vec<u32>,
        /// It is a copy that the cleaner makes.
        copy: Option<CopyOf>,
    },
    Tombstone {
        shard: ShardId,
        /// The records that it kills.
        targets: Vec<Target>,
        /// It may kill more than it knows of: keep its extent.
        hold: bool,
        /// The index goes on pointing to a record of the shard that could not be read.
        shadow: bool,
        /// The cleaner writes it again.
        carried: bool,
    },
    Journal {
        op: u64,
        partition: PartitionId,
        first: Seq,
        last: Seq,
        entries: Bytes,
    },
    Chunk {
        op: u64,
        partition: PartitionId,
        bytes: Bytes,
    },
    Root {
        op: u64,
        partition: PartitionId,
        generation: u64,
        bytes: Bytes,
    },
}

/// A record that is to be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its block number on the device.
    pub block: u64,
    /// Its bytes.
    pub len: u64,
}

/// One of the streams.
pub(crate) struct Stream<B> {
    pub kind: ExtentKind,
    pub queue: VecDeque<Item<B>>,
    pub open: Option<OpenExtent>,
    pub flying: VecDeque<Batch>,
}

/// The extent that a stream appends to.
pub(crate) struct OpenExtent {
    pub no: ExtentNo,
    pub incarnation: Incarnation,
    /// Where the next record goes; the extent's start if its header has not gone out.
    pub pos: u64,
    pub entries: Vec<FooterEntry>,
    /// It was opened of what is kept from shards: they may use it when there is more again.
    pub spare: bool,
}

/// An extent to which no more is appended, and whose footer is still to be written.
pub(crate) struct Seal {
    pub extent: OpenExtent,
    /// The footer is on its way, or the flush before it.
    pub writing: bool,
    /// All that it names is durable. (Chunks are not when they are acknowledged.)
    pub settled: bool,
    /// It leaves out a root that a crash has torn: as long as it is not durable, no extent is opened.
    pub leaves_out: bool,
}

/// A batch under way.
pub(crate) struct Batch {
    pub id: u64,
    pub extent: ExtentNo,
    /// It carries the extent's header.
    pub opens: bool,
    pub offset: u64,
    pub writes_left: usize,
    pub flush: bool,
    /// Of one large shard, or one record of the index, or of the header that goes before one.
    pub alone: bool,
    /// It holds a root.
    pub root: bool,
    pub durable: bool,
    pub records: Vec<Appended>,
}

/// A record of a batch under way: what to do when it is durable.
pub(crate) enum Appended {
    Shard {
        shard: ShardId,
        candidate: Candidate,
        len: u64,
        copy: Option<CopyOf>,
    },
    Tombstone {
        shard: ShardId,
        targets: Vec<Target>,
        hold: bool,
        shadow: bool,
        carried: bool,
    },
    Journal {
        partition: PartitionId,
        last: Seq,
        sequence: u64,
        ops: Vec<(u64, u64)>,
    },
    Chunk {
        op: u64,
        partition: PartitionId,
        sequence: u64,
        at: u64,
        len: u32,
    },
    Root {
        op: u64,
        partition: PartitionId,
        sequence: u64,
    },
}

/// A record that has a place in the batch being built.
pub(crate) struct Planned<B> {
    pub at: u64,
    pub len: u64,
    pub what: What<B>,
}

pub(crate) enum What<B> {
    Header,
    Item(Item<B>),
    Entries {
        partition: PartitionId,
        first: Seq,
        last: Seq,
        len: u32,
        parts: Vec<(u64, Seq, Seq, Bytes)>,
    },
}

impl<B> Item<B> {
    pub fn payload_len(&self) -> u32 {
        match self {
            Item::Shard { payload_len, .. } => *payload_len,
            Item::Tombstone { .. } => 0,
            Item::Journal { entries, .. } => entries.len() as u32,
            Item::Chunk { bytes, .. } | Item::Root { bytes, .. } => bytes.len() as u32,
        }
    }

    /// The partition that it is of, and the operation, if it is of the journal or the index.
    pub fn of_partition(&self) -> Option<(PartitionId, u64)> {
        match self {
            Item::Shard { .. } | Item::Tombstone { .. } => None,
            Item::Journal { partition, op, .. }
            | Item::Chunk { partition, op, .. }
            | Item::Root { partition, op, .. } => Some((*partition, *op)),
        }
    }
}

impl<B> Stream<B> {
    pub fn new(kind: ExtentKind) -> Stream<B> {
        Stream {
            kind,
            queue: VecDeque::new(),
            open: None,
            flying: VecDeque::new(),
        }
    }

    pub fn idle(&self) -> bool {
        self.queue.is_empty() && self.flying.is_empty()
    }

    /// Takes out the operations of the journal and the index that wait or are under way.
    pub fn drain_ops(&mut self) -> Vec<u64> {
        let waiting = self.queue.drain(..);
        let mut ops: Vec<u64> = waiting
            .filter_map(|item| item.of_partition().map(|(_, op)| op))
            .collect();
        for record in self.flying.drain(..).flat_map(|batch| batch.records) {
            match record {
                Appended::Journal { ops: done, .. } => {
                    ops.extend(done.into_iter().map(|(op, _)| op));
                }
                Appended::Chunk { op, .. } | Appended::Root { op, .. } => ops.push(op),
                Appended::Shard { .. } | Appended::Tombstone { .. } => {}
            }
        }
        ops
    }

    /// Takes out the operations of a partition that wait.
    pub fn drain_partition(&mut self, partition: PartitionId) -> Vec<u64> {
        let mut ops = Vec::new();
        self.queue.retain(|item| match item.of_partition() {
            Some((other, op)) if other == partition => {
                ops.push(op);
                false
            }
            _ => true,
        });
        ops
    }

    /// The next record: the first item that is not of one of the partitions `but`, and if that is of
    /// the journal, all that wait for the same partition and continue it, up to `most` bytes.
    pub fn next_record(&mut self, but: &[PartitionId], most: usize) -> Option<What<B>> {
        let free = |item: &Item<B>| match item {
            Item::Journal { partition, .. } => !but.contains(partition),
            _ => true,
        };
        let at = self.queue.iter().position(free)?;
        let item = self.queue.remove(at)?;
        let Item::Journal {
            op,
            partition,
            first,
            last,
            entries,
        } = item
        else {
            return Some(What::Item(item));
        };
        let mut len = entries.len();
        let mut end = last;
        let mut parts = vec![(op, first, last, entries)];
        let mut at = at;
        while let Some(Item::Journal {
            partition: other,
            first,
            last,
            entries,
            ..
        }) = self.queue.get(at)
        {
            if *other != partition {
                at += 1;
                continue;
            }
            if first.0 != end.0 + 1 || len + entries.len() > most {
                break;
            }
            len += entries.len();
            end = *last;
            if let Some(Item::Journal {
                op,
                first,
                last,
                entries,
                ..
            }) = self.queue.remove(at)
            {
                parts.push((op, first, last, entries));
            }
        }
        Some(What::Entries {
            partition,
            first,
            last: end,
            len: len as u32,
            parts,
        })
    }

    /// Puts back what [`Stream::next_record`] took.
    pub fn put_back(&mut self, what: What<B>) {
        match what {
            What::Header => {}
            What::Item(item) => self.queue.push_front(item),
            What::Entries {
                partition, parts, ..
            } => {
                for (op, first, last, entries) in parts.into_iter().rev() {
                    self.queue.push_front(Item::Journal {
                        op,
                        partition,
                        first,
                        last,
                        entries,
                    });
                }
            }
        }
    }
}

impl<B> What<B> {
    pub fn payload_len(&self) -> u32 {
        match self {
            What::Header => 0,
            What::Item(item) => item.payload_len(),
            What::Entries { len, .. } => *len,
        }
    }

    /// Whether its bytes are in a buffer that can be written as it is.
    pub fn has_buffer(&self) -> bool {
        matches!(self, What::Item(Item::Shard { .. }))
    }
}

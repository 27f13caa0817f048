//! A simulated device, and the randomness that all of the simulation draws from.
//!
//! A device makes writes durable in the order given, and completes them some time later.

use std::collections::VecDeque;

use ashlar_layout::ids::Seq;
use bytes::Bytes;

use crate::sim_index::IndexDevice;

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) at: u64,
    pub(crate) bytes: Bytes,
    pub(crate) hint: Option<(Seq, Seq)>,
    /// The last entry in it; 0: a promise.
    pub(crate) last: Seq,
    /// Its number on the device.
    pub(crate) position: u64,
    /// Cannot be read (any more).
    pub(crate) rotten: bool,
}

/// One replica's device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Device {
    pub(crate) records: Vec<Record>,
    pub(crate) inflight: VecDeque<(u64, Record)>,
    pub(crate) end: u64,
    pub(crate) busy_until: u64,
    pub(crate) index: IndexDevice,
    pub(crate) positions: u64,
    /// What of the journal is not needed, as far as the present process said.
    pub(crate) trimmed: Option<(Seq, u64, Vec<u32>)>,
}

/// Bytes of an extent of the journal.
pub(crate) const EXTENT: u64 = 8192;

impl Device {
    /// A place for a record of so many bytes, within one extent.
    pub(crate) fn place(&mut self, gap: u64, len: u64) -> u64 {
        let mut at = self.end + gap;
        if at / EXTENT != (at + len.max(1) - 1) / EXTENT {
            at = at.next_multiple_of(EXTENT);
        }
        self.end = at + len;
        at
    }

    /// Frees what is not needed: what is durable, as far as extents go that no run points into.
    pub(crate) fn trim(&mut self, through: Seq, position: u64, pins: Vec<u32>) {
        let pinned = |at: u64| pins.binary_search(&((at / EXTENT) as u32)).is_ok();
        self.records.retain(|record| {
            record.last > through || record.position > position || pinned(record.at)
        });
        self.trimmed = Some((through, position, pins));
    }

    /// Bytes of one or more records that stand without a gap; `None` if not all can be read.
    pub(crate) fn read(&self, at: u64, len: u32) -> Option<Bytes> {
        read_records(&self.records, |record| record, at, len)
    }
}

/// The same, of records in a list of whatever they are in.
pub(crate) fn read_records<T>(
    records: &[T],
    record: impl Fn(&T) -> &Record,
    at: u64,
    len: u32,
) -> Option<Bytes> {
    let before = records.partition_point(|it| record(it).at <= at);
    let nth = before.checked_sub(1)?;
    let mut out = Vec::new();
    let (mut at, mut left) = (at, len as usize);
    for record in records[nth..].iter().map(record) {
        let from = at.checked_sub(record.at)? as usize;
        let part = record.bytes.get(from..)?;
        let part = &part[..part.len().min(left)];
        if record.rotten || (part.is_empty() && left > 0) {
            return None;
        }
        out.extend_from_slice(part);
        left -= part.len();
        at += part.len() as u64;
        if left == 0 {
            return Some(Bytes::from(out));
        }
    }
    None
}

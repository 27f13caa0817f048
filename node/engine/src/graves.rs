//! What recovery knows of the dead and the lost: tombstones, and gaps between journal records.
//!
//! Invariants:
//! - Of several tombstones of a shard the one with the highest sequence number counts, and it kills
//!   records of a lower number only: of two records about one shard, the higher one holds.

use std::collections::HashMap;

use ashlar_layout::extent::Geometry;
use ashlar_layout::footer::FooterEntry;
use ashlar_layout::ids::{ExtentNo, ShardId};
use ashlar_layout::record::record_len;

use crate::opening::DamagedJournal;

/// The tombstone of a shard.
struct Grave {
    /// In which extent.
    by: ExtentNo,
    sequence: u64,
    /// A record was found that is younger.
    outlived: bool,
}

/// The tombstones of a device.
#[derive(Default)]
pub(crate) struct Graves(HashMap<ShardId, Grave>);

impl Graves {
    /// A tombstone was found.
    pub fn dig(&mut self, shard: ShardId, by: ExtentNo, sequence: u64) {
        let known = self.0.get(&shard);
        if known.is_none_or(|known| known.sequence < sequence) {
            let grave = Grave {
                by,
                sequence,
                outlived: false,
            };
            self.0.insert(shard, grave);
        }
    }

    /// A record was found: the extent of the tombstone that kills it, if one does.
    pub fn claim(&mut self, shard: &ShardId, sequence: u64) -> Option<ExtentNo> {
        let grave = self.0.get_mut(shard)?;
        if sequence < grave.sequence {
            return Some(grave.by);
        }
        grave.outlived = true;
        None
    }

    /// Extents of the tombstones that count.
    pub fn all(&self) -> impl Iterator<Item = ExtentNo> {
        self.0.values().map(|grave| grave.by)
    }

    /// Shards that are known to be dead.
    pub fn closed(&self) -> impl Iterator<Item = ShardId> {
        let closed = self.0.iter().filter(|(_, grave)| !grave.outlived);
        closed.map(|(shard, _)| *shard)
    }
}

/// The records of a journal extent follow each other: what lies between them, or behind the last of
/// them and before `tail`, was a record.
pub(crate) fn gaps(
    geometry: &Geometry,
    no: ExtentNo,
    entries: &[FooterEntry],
    tail: u64,
) -> Vec<DamagedJournal> {
    let base = u64::from(no.0) * geometry.extent_size;
    let places = entries.iter().map(|entry| {
        let at = base + u64::from(entry.offset_blocks) * u64::from(geometry.block_size);
        (at, at + record_len(entry.payload_len, geometry.block_size))
    });
    let mut gaps = Vec::new();
    let mut expected = geometry.records_start(no);
    for (at, end) in places.chain([(tail, tail)]) {
        if at > expected {
            gaps.push(DamagedJournal {
                offset: expected,
                len: at - expected,
                entries: None,
            });
        }
        expected = expected.max(end);
    }
    gaps
}

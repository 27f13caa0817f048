//! What recovery finds of indexes: of each partition the newest root that is whole.
//!
//! Chunks are not looked at: pages verify themselves, and which chunks count only a root tells. A chunk that is torn or
//! rotten stops nothing, and is told when a partition keeps it.
//!
//! Invariants:
//! - Of two roots of a partition the one with the higher sequence number is the newer. The newest is read, and given if
//!   its payload matches what its extent's table says; otherwise that is told, and the one before is read.
//! - A root that a crash has torn is as if it had never been. One that had been durable is not: it is told at
//!   every opening, until a newer one of its partition is durable. [`crate::chunks`] says how the two are told apart.
//! - A record of an extent of kind index whose head is rotten or cannot be read may have been any partition's root.
//!   The extent then gets no footer, so that every opening finds it again.

use std::collections::BTreeMap;

use ashlar_layout::extent::ExtentKind;
use ashlar_layout::footer::{FooterEntry, footer_len};
use ashlar_layout::ids::{ExtentNo, Incarnation, PartitionId};
use ashlar_layout::record::{Subject, header_len, index_record_at, record_len};

use crate::error::{Finding, FindingKind, extent_finding};
use crate::opening::{DamagedRoot, IndexRoot};
use crate::recovery::{Queue, Want, Work};
use crate::scan::Scan;

/// A root, as its extent's table tells of it.
struct Named {
    no: ExtentNo,
    address: u64,
    generation: u64,
    entry: FooterEntry,
}

/// Something that may have been a root.
struct Lost {
    no: ExtentNo,
    offset: u64,
    len: u64,
    /// What stands behind it in its extent has this sequence number.
    before: Option<u64>,
}

/// The roots of a device.
#[derive(Default)]
pub(crate) struct Roots {
    /// The highest first sequence number of any extent's header.
    opened: u64,
    /// Of each partition those that were not looked at yet, oldest first.
    named: BTreeMap<PartitionId, Vec<Named>>,
    given: Vec<(ExtentNo, IndexRoot)>,
    damaged: Vec<(ExtentNo, DamagedRoot)>,
    lost: Vec<Lost>,
}

impl Roots {
    /// An extent's header tells which sequence number was the next one when it was opened.
    pub fn opened_at(&mut self, first_sequence: u64) {
        self.opened = self.opened.max(first_sequence);
    }

    /// A table names a root.
    pub fn found(&mut self, no: ExtentNo, address: u64, entry: &FooterEntry) {
        let Subject::IndexRoot {
            partition,
            generation,
        } = entry.subject
        else {
            return;
        };
        let named = self.named.entry(partition).or_default();
        named.push(Named {
            no,
            address,
            generation,
            entry: *entry,
        });
    }
}

impl Work {
    /// Whether a root with this sequence number, of which a trace is there, had been durable.
    pub fn was_durable(&self, sequence: u64) -> bool {
        self.clean || self.roots.opened > sequence
    }

    /// An extent of kind index was searched: what in it may have been a root? Records follow each other, and
    /// none is acknowledged before those in front of it: where one was lost that had been, the first block behind
    /// the record before is rotten or cannot be read.
    pub fn lost_roots(&mut self, no: ExtentNo, scan: &Scan) {
        let (block_size, block) = (self.geometry.block_size, self.block());
        let lost = |at: u64| {
            let unreadable = scan.unreadable.iter();
            scan.bad_heads.contains(&at)
                || unreadable
                    .into_iter()
                    .any(|(from, len)| (*from..from + len).contains(&at))
        };
        // So much was kept free for the footer.
        let room = footer_len(scan.found.len() + 1, block_size);
        let limit = self.geometry.extent_end(no).saturating_sub(room);
        let header = self.seen[no.0 as usize].header;
        let mut after = header.map_or(0, |header| header.first_sequence);
        let mut free = self.geometry.records_start(no);
        let behind = scan.found.iter().map(|scanned| Some(scanned.header));
        for next in behind.chain([None]) {
            let at = index_record_at(free, block_size);
            let end = next.map_or(limit, |next| next.address);
            if at + block <= end && lost(at) && self.was_durable(after) {
                self.seen[no.0 as usize].no_footer = true;
                self.roots.lost.push(Lost {
                    no,
                    offset: at,
                    len: block,
                    before: next.map(|next| next.sequence),
                });
            }
            if let Some(next) = next {
                after = next.sequence.saturating_add(1);
                free = next.address + next.record_len(block_size);
            }
        }
    }

    /// Asks for the newest roots that were not looked at yet; false if there are none.
    pub fn ask_roots(&mut self, queue: &mut Queue) -> bool {
        let block_size = self.geometry.block_size;
        let Work { roots, .. } = self;
        roots.named.retain(|partition, named| {
            named.sort_by_key(|named| named.entry.sequence);
            // Told to be damaged already, when their extent was searched.
            while let Some(damaged) = named.pop_if(|named| named.entry.damaged) {
                roots.damaged.push(damaged.told(*partition, block_size));
            }
            let Some(newest) = named.last() else {
                return false;
            };
            let len = newest.entry.payload_len;
            let at = newest.address + u64::from(header_len(len, block_size));
            let len = len.next_multiple_of(block_size).max(block_size);
            queue.push((Want::Root(*partition), at, len as usize));
            true
        });
        !queue.is_empty()
    }

    /// The newest root of a partition was read.
    pub fn take_root(
        &mut self,
        partition: PartitionId,
        bytes: Option<&[u8]>,
        findings: &mut Vec<Finding>,
    ) {
        let block_size = self.geometry.block_size;
        let Work { roots, device, .. } = self;
        let Some(named) = roots.named.get_mut(&partition) else {
            return;
        };
        let Some(newest) = named.pop() else {
            return;
        };
        let entry = &newest.entry;
        let payload = bytes.and_then(|bytes| bytes.get(..entry.payload_len as usize));
        if payload.is_some_and(|payload| crc32fast::hash(payload) == entry.payload_crc) {
            let root = IndexRoot {
                partition,
                generation: newest.generation,
                at: newest.address + u64::from(header_len(entry.payload_len, block_size)),
                len: entry.payload_len,
                sequence: entry.sequence,
                newest: true,
            };
            roots.given.push((newest.no, root));
            // What is older is of no use.
            roots.named.remove(&partition);
            return;
        }
        let kind = match payload {
            Some(_) => FindingKind::RecordPayload,
            None => FindingKind::Unreadable,
        };
        let told = newest.told(partition, block_size);
        findings.push(extent_finding(kind, *device, told.1.offset, told.1.len));
        roots.damaged.push(told);
    }

    /// The lowest sequence number that is certainly above all in this extent: `next` if no other of its kind was
    /// opened since.
    pub fn sequence_above(&self, no: ExtentNo, kind: ExtentKind, next: u64) -> u64 {
        let life = |no: ExtentNo| -> Incarnation { self.seen[no.0 as usize].incarnation };
        let headers = self.all().filter(|other| life(*other) > life(no));
        headers
            .filter_map(|other| self.seen[other.0 as usize].header)
            .filter(|header| header.kind == kind)
            .map(|header| header.first_sequence)
            .min()
            .unwrap_or(next)
    }

    /// All was read: what is given, and what is held for it. Numbers below `next` may be in use.
    pub fn settle_roots(&mut self, next: u64) -> (Vec<IndexRoot>, Vec<DamagedRoot>) {
        let Roots {
            mut given,
            damaged,
            lost,
            ..
        } = std::mem::take(&mut self.roots);
        for (no, root) in &given {
            self.holdings.found_root(root.partition, *no);
        }
        let mut told = Vec::new();
        for (no, damaged) in damaged {
            if let Some((partition, _)) = damaged.root {
                self.holdings.found_damaged_root(partition, no);
                for (_, root) in given.iter_mut().filter(|(_, r)| r.partition == partition) {
                    root.newest = false;
                }
            }
            told.push(damaged);
        }
        for Lost {
            no,
            offset,
            len,
            before,
        } in lost
        {
            let before = before.unwrap_or_else(|| self.sequence_above(no, ExtentKind::Index, next));
            let mut concerned: Vec<PartitionId> = self.holdings.known().collect();
            for (_, root) in &mut given {
                if root.sequence < before {
                    root.newest = false;
                } else {
                    concerned.retain(|partition| *partition != root.partition);
                }
            }
            for partition in concerned {
                self.holdings.found_damaged_root(partition, no);
            }
            told.push(DamagedRoot {
                offset,
                len,
                root: None,
                before,
            });
        }
        told.sort_by_key(|damaged| damaged.offset);
        given.sort_by_key(|(_, root)| root.partition);
        (given.into_iter().map(|(_, root)| root).collect(), told)
    }
}

impl Named {
    /// That it is damaged.
    fn told(&self, partition: PartitionId, block_size: u32) -> (ExtentNo, DamagedRoot) {
        let damaged = DamagedRoot {
            offset: self.address,
            len: record_len(self.entry.payload_len, block_size),
            root: Some((partition, self.generation)),
            before: self.entry.sequence.saturating_add(1),
        };
        (self.no, damaged)
    }
}

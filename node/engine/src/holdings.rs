//! Who needs what of the extents that hold no shards: chunks and roots of indexes, records of journals.
//!
//! All of it is in memory only. After an opening it is unknown, until the partitions have said it anew.
//!
//! Invariants:
//! - An extent of kind index is needed as long as a chunk in it is held by a partition, or a root in it is the
//!   newest of one; and all are, as long as a partition that had a root at the opening has not said which
//!   chunks it keeps.
//! - A partition's root is held until a newer one of it is *durable*. If the newest one found at the opening is
//!   damaged, its extent is held as long, so that the damage is told again if it comes to that; and so is
//!   the extent of the root that was given in its stead.
//! - A journal extent is needed as long as a partition has a record in it that it has not trimmed, or pins it;
//!   and all are, as long as a partition that had a root or a journal record at the opening has not trimmed.
//!   Records that cannot be told whose they were may be anybody's: they are needed until the position of
//!   *every* partition that was there at the opening has passed them.
//! - What a partition says replaces what it said before ([`Holdings::trim`]), but a record that was trimmed once stays
//!   so: its extent may be gone. What a partition writes while it is being forgotten counts for nothing.
//! - What is looked at when something changes are the extents that it concerns, not all: there may be many that are
//!   pinned for long.
//! - A record counts from the moment it is acknowledged, and its extent is not sealed before that: a
//!   sealed extent is never freed with a record on its way.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use ashlar_layout::extent::Geometry;
use ashlar_layout::ids::{ExtentNo, PartitionId, Seq};

/// A chunk of a run.
#[derive(Default)]
struct Chunk {
    /// Bytes of it; 0 if no record of it was found.
    bytes: u32,
    /// Its record was damaged when the device was opened.
    damaged: bool,
    /// Who holds it, each as often as it does.
    holders: Vec<PartitionId>,
}

/// What a partition has in a journal extent: the highest of all its records there.
struct Tail {
    partition: PartitionId,
    last: Seq,
    sequence: u64,
}

/// What is in a journal extent.
#[derive(Default)]
struct Tails {
    /// Of each partition that has records in it that were not trimmed.
    tails: Vec<Tail>,
    /// Records were in it that cannot be told whose; all have sequence numbers below this.
    unknown: Option<u64>,
}

/// What a partition has said of its journal.
struct Trim {
    position: u64,
    pins: Vec<u32>,
}

/// What is to be told of an address that a partition keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// A chunk stands there.
    Whole,
    /// One stood there, and did not match.
    Damaged(u32),
    /// None is known there.
    Unknown,
}

/// Who needs what.
pub(crate) struct Holdings {
    geometry: Geometry,
    /// By the address of their first byte.
    chunks: HashMap<u64, Chunk>,
    live_bytes: u64,
    /// How much is held of each extent of kind index: chunks, and roots.
    index: HashMap<ExtentNo, u32>,
    /// The extents that hold the root of a partition (if that one is damaged, more than one).
    roots: HashMap<PartitionId, Vec<ExtentNo>>,
    journal: BTreeMap<ExtentNo, Tails>,
    /// In which extents a partition has records that were not trimmed.
    logs: HashMap<PartitionId, BTreeSet<ExtentNo>>,
    /// Extents in which records were that cannot be told whose.
    unknown: BTreeSet<ExtentNo>,
    trims: HashMap<PartitionId, Trim>,
    /// How many partitions pin an extent.
    pinned: HashMap<u32, u32>,
    /// Records of a partition with lower sequence numbers are of no use: it was forgotten.
    forgotten: HashMap<PartitionId, u64>,
    /// Partitions that were there at the opening, and were not forgotten.
    known: HashSet<PartitionId>,
    /// Those of them that have not said what they keep of the index,
    unkept: HashSet<PartitionId>,
    /// or need of the journal.
    untrimmed: HashSet<PartitionId>,
    /// Those that have said what they keep.
    kept: HashSet<PartitionId>,
}

impl Holdings {
    /// Nothing is held.
    pub fn new(geometry: Geometry) -> Holdings {
        Holdings {
            geometry,
            chunks: HashMap::new(),
            live_bytes: 0,
            index: HashMap::new(),
            roots: HashMap::new(),
            journal: BTreeMap::new(),
            logs: HashMap::new(),
            unknown: BTreeSet::new(),
            trims: HashMap::new(),
            pinned: HashMap::new(),
            forgotten: HashMap::new(),
            known: HashSet::new(),
            unkept: HashSet::new(),
            untrimmed: HashSet::new(),
            kept: HashSet::new(),
        }
    }

    /// Bytes of the chunks that are held.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Partitions that have yet to say what they keep, or need.
    pub fn awaited(&self) -> impl Iterator<Item = PartitionId> {
        self.unkept.union(&self.untrimmed).copied()
    }

    // What recovery found.

    /// A chunk, and whether it is damaged.
    pub fn found_chunk(&mut self, at: u64, bytes: u32, damaged: bool) {
        let holders = Vec::new();
        self.chunks.insert(
            at,
            Chunk {
                bytes,
                damaged,
                holders,
            },
        );
    }

    /// The root of a partition.
    pub fn found_root(&mut self, partition: PartitionId, no: ExtentNo) {
        self.unkept.insert(partition);
        self.found_damaged_root(partition, no);
    }

    /// What was, or may have been, the root of a partition. (What such a one would keep nobody knows.)
    pub fn found_damaged_root(&mut self, partition: PartitionId, no: ExtentNo) {
        self.known.insert(partition);
        self.untrimmed.insert(partition);
        let roots = self.roots.entry(partition).or_default();
        if !roots.contains(&no) {
            roots.push(no);
            *self.index.entry(no).or_default() += 1;
        }
    }

    /// A journal extent, whatever is in it.
    pub fn found_journal(&mut self, no: ExtentNo) {
        self.journal.entry(no).or_default();
    }

    /// Journal records of a partition, whole or damaged: the highest of all.
    pub fn found_record(&mut self, no: ExtentNo, partition: PartitionId, last: Seq, sequence: u64) {
        self.known.insert(partition);
        self.untrimmed.insert(partition);
        self.appended(no, partition, last, sequence);
    }

    /// Journal records may have been there; if so, their sequence numbers are below this.
    pub fn found_damage(&mut self, no: ExtentNo, before: u64) {
        let unknown = &mut self.journal.entry(no).or_default().unknown;
        *unknown = (*unknown).max(Some(before));
        self.unknown.insert(no);
    }

    /// Partitions that were there at the opening.
    pub fn known(&self) -> impl Iterator<Item = PartitionId> + '_ {
        self.known.iter().copied()
    }

    // What happens.

    /// Whether a record with this sequence number is of a life of the partition that is over.
    fn is_over(&self, partition: PartitionId, sequence: u64) -> bool {
        let over = self.forgotten.get(&partition);
        over.is_some_and(|over| sequence < *over)
    }

    /// A chunk was written.
    pub fn wrote_chunk(&mut self, partition: PartitionId, at: u64, bytes: u32, sequence: u64) {
        if self.is_over(partition, sequence) {
            return;
        }
        // Nobody holds this place, as it was free.
        let chunk = self.chunks.entry(at).or_default();
        if chunk.holders.is_empty() {
            chunk.bytes = bytes;
        }
        self.take(partition, at);
    }

    fn take(&mut self, partition: PartitionId, at: u64) {
        let chunk = self.chunks.entry(at).or_default();
        if chunk.holders.is_empty() {
            self.live_bytes += u64::from(chunk.bytes);
            if let Some(no) = self.geometry.extent_of(at) {
                *self.index.entry(no).or_default() += 1;
            }
        }
        chunk.holders.push(partition);
    }

    /// A partition holds these once more.
    pub fn hold(&mut self, partition: PartitionId, ats: impl IntoIterator<Item = u64>) {
        for at in ats {
            self.take(partition, at);
        }
    }

    /// A partition holds these once less. Gives the extents that may be of no use now.
    pub fn let_go(&mut self, partition: PartitionId, ats: &[u64]) -> Vec<ExtentNo> {
        let mut touched = Vec::new();
        for at in ats {
            self.give(partition, *at, &mut touched);
        }
        touched
    }

    fn give(&mut self, partition: PartitionId, at: u64, touched: &mut Vec<ExtentNo>) {
        let Some(chunk) = self.chunks.get_mut(&at) else {
            return;
        };
        let Some(holder) = chunk.holders.iter().position(|p| *p == partition) else {
            return;
        };
        chunk.holders.swap_remove(holder);
        if !chunk.holders.is_empty() {
            return;
        }
        self.live_bytes -= u64::from(chunk.bytes);
        if self.unkept.is_empty() {
            self.chunks.remove(&at);
        }
        if let Some(no) = self.geometry.extent_of(at) {
            self.drop_one(no);
            touched.push(no);
        }
    }

    fn drop_one(&mut self, no: ExtentNo) {
        if let Some(count) = self.index.get_mut(&no) {
            *count -= 1;
            if *count == 0 {
                self.index.remove(&no);
            }
        }
    }

    /// A partition says what it keeps; `each` is told what is known of each address. True if it was the
    /// last to say so: what nobody holds is forgotten then.
    pub fn keep(
        &mut self,
        partition: PartitionId,
        ats: impl IntoIterator<Item = u64>,
        mut each: impl FnMut(u64, Kept),
    ) -> bool {
        if !self.kept.insert(partition) {
            return false;
        }
        for at in ats {
            let chunk = self.chunks.get(&at);
            each(
                at,
                match chunk {
                    Some(chunk) if chunk.damaged => Kept::Damaged(chunk.bytes),
                    Some(_) => Kept::Whole,
                    None => Kept::Unknown,
                },
            );
            self.take(partition, at);
        }
        self.unkept.remove(&partition) && self.swept()
    }

    /// If all have said what they keep: what nobody holds is forgotten.
    fn swept(&mut self) -> bool {
        let all = self.unkept.is_empty();
        if all {
            self.chunks.retain(|_, chunk| !chunk.holders.is_empty());
        }
        all
    }

    /// A root is durable. Gives the extents of what it outdates.
    pub fn wrote_root(
        &mut self,
        partition: PartitionId,
        no: ExtentNo,
        sequence: u64,
    ) -> Vec<ExtentNo> {
        if self.is_over(partition, sequence) {
            return Vec::new();
        }
        *self.index.entry(no).or_default() += 1;
        let former = self.roots.insert(partition, vec![no]).unwrap_or_default();
        for no in &former {
            self.drop_one(*no);
        }
        former
    }

    /// A journal record is durable.
    pub fn appended(&mut self, no: ExtentNo, partition: PartitionId, last: Seq, sequence: u64) {
        let over = self.is_over(partition, sequence);
        let tails = &mut self.journal.entry(no).or_default().tails;
        if over {
            return;
        }
        match tails.iter_mut().find(|tail| tail.partition == partition) {
            Some(tail) => {
                tail.last = tail.last.max(last);
                tail.sequence = tail.sequence.max(sequence);
            }
            None => {
                tails.push(Tail {
                    partition,
                    last,
                    sequence,
                });
                self.logs.entry(partition).or_default().insert(no);
            }
        }
    }

    /// A partition says what it does not need of its journal. Gives the extents that may be of no use now.
    pub fn trim(
        &mut self,
        partition: PartitionId,
        through: Seq,
        position: u64,
        mut pins: Vec<u32>,
    ) -> Vec<ExtentNo> {
        pins.sort_unstable();
        pins.dedup();
        for no in &pins {
            *self.pinned.entry(*no).or_default() += 1;
        }
        let trim = Trim { position, pins };
        let former = self.trims.insert(partition, trim);
        let mut touched = self.unpin(former);
        let trimmed = |tail: &Tail| {
            tail.partition == partition && tail.last <= through && tail.sequence <= position
        };
        let journal = &mut self.journal;
        if let Some(log) = self.logs.get_mut(&partition) {
            log.retain(|no| {
                let tails = journal.get_mut(no).map(|tails| &mut tails.tails);
                let gone =
                    tails.is_none_or(|tails| tails.extract_if(.., |t| trimmed(t)).count() > 0);
                if gone {
                    touched.push(*no);
                }
                !gone
            });
        }
        self.trimmed_by(partition, touched)
    }

    /// A partition has trimmed, or is forgotten. What was touched by that, and by its being the last.
    fn trimmed_by(&mut self, partition: PartitionId, mut touched: Vec<ExtentNo>) -> Vec<ExtentNo> {
        if self.untrimmed.remove(&partition) && self.untrimmed.is_empty() {
            return self.journal.keys().copied().collect();
        }
        touched.extend(&self.unknown);
        touched
    }

    /// Takes back pins. Gives the extents that nobody pins any more.
    fn unpin(&mut self, former: Option<Trim>) -> Vec<ExtentNo> {
        let mut free = Vec::new();
        for no in former.map_or(vec![], |trim| trim.pins) {
            if let Some(count) = self.pinned.get_mut(&no) {
                *count -= 1;
                if *count == 0 {
                    self.pinned.remove(&no);
                    free.push(ExtentNo(no));
                }
            }
        }
        free
    }

    /// Nothing of a partition is needed, nor anything that it has under way: all of that has sequence numbers
    /// below `next`. Gives the extents that may be of no use now.
    pub fn forget(&mut self, partition: PartitionId, next: u64) -> Vec<ExtentNo> {
        self.forgotten.insert(partition, next);
        self.known.remove(&partition);
        let former = self.trims.remove(&partition);
        let mut touched = self.unpin(former);
        for no in self.logs.remove(&partition).unwrap_or_default() {
            if let Some(Tails { tails, .. }) = self.journal.get_mut(&no) {
                tails.retain(|tail| tail.partition != partition);
            }
            touched.push(no);
        }
        let mut touched = self.trimmed_by(partition, touched);
        for no in self.roots.remove(&partition).unwrap_or_default() {
            self.drop_one(no);
            touched.push(no);
        }
        let held = |(at, chunk): (&u64, &Chunk)| {
            let times = chunk.holders.iter().filter(|p| **p == partition).count();
            std::iter::repeat_n(*at, times)
        };
        let mut held: Vec<u64> = self.chunks.iter().flat_map(held).collect();
        held.sort_unstable();
        for at in held {
            self.give(partition, at, &mut touched);
        }
        if self.unkept.remove(&partition) && self.swept() {
            // Now that nobody is waited for, it may be any.
            touched = self.all();
        }
        touched
    }

    /// All extents.
    pub fn all(&self) -> Vec<ExtentNo> {
        (0..self.geometry.extent_count()).map(ExtentNo).collect()
    }

    // What follows.

    /// Whether something is needed of an extent of kind index.
    pub fn needs_index(&self, no: ExtentNo) -> bool {
        !self.unkept.is_empty() || self.index.contains_key(&no)
    }

    /// Whether something is needed of a journal extent.
    pub fn needs_journal(&self, no: ExtentNo) -> bool {
        if !self.untrimmed.is_empty() || self.pinned.contains_key(&no.0) {
            return true;
        }
        let Some(Tails { tails, unknown }) = self.journal.get(&no) else {
            return false;
        };
        let passed = |before: u64| {
            self.known.iter().all(|partition| {
                let trim = self.trims.get(partition);
                trim.is_some_and(|trim| trim.position.saturating_add(1) >= before)
            })
        };
        !tails.is_empty() || unknown.is_some_and(|before| !passed(before))
    }

    /// An extent was freed: nothing in it counts any more.
    pub fn gone(&mut self, no: ExtentNo) {
        self.journal.remove(&no);
        self.unknown.remove(&no);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MIB: u64 = 1024 * 1024;
    const P: PartitionId = PartitionId(1);
    const Q: PartitionId = PartitionId(2);

    fn holdings() -> Holdings {
        Holdings::new(Geometry {
            block_size: 4096,
            extent_size: MIB,
            device_size: 64 * MIB,
        })
    }

    #[test]
    fn a_chunk_is_needed_by_whoever_holds_it_as_often_as_they_do() {
        let mut held = holdings();
        let (at, no) = (3 * MIB + 8192, ExtentNo(3));
        held.wrote_chunk(P, at, 4096, 1);
        held.hold(Q, [at, at]);
        assert_eq!(held.live_bytes(), 4096, "its bytes count once");
        assert_eq!(held.let_go(P, &[at, at]), [], "it had it once");
        assert_eq!(held.let_go(Q, &[at]), []);
        assert!(held.needs_index(no));
        assert_eq!(held.let_go(Q, &[at]), [no]);
        assert!(!held.needs_index(no));
        assert_eq!(held.live_bytes(), 0);
    }

    #[test]
    fn nothing_is_freed_before_all_have_said_what_they_keep() {
        let mut held = holdings();
        let (a, b) = (3 * MIB + 8192, 4 * MIB + 8192);
        held.found_chunk(a, 4096, false);
        held.found_chunk(b, 8192, true);
        held.found_chunk(60 * MIB, 4096, false);
        held.found_root(P, ExtentNo(5));
        held.found_root(Q, ExtentNo(6));
        let mut told = Vec::new();
        assert!(!held.keep(P, [a, 7 * MIB], |at, kept| told.push((at, kept))));
        assert_eq!(told, [(a, Kept::Whole), (7 * MIB, Kept::Unknown)]);
        assert_eq!(
            held.let_go(P, &[a]).len(),
            1,
            "but Q may come and say that it keeps it"
        );
        assert!(held.needs_index(ExtentNo(3)) && held.needs_index(ExtentNo(60)));
        told.clear();
        assert!(held.keep(Q, [a, b], |at, kept| told.push((at, kept))));
        assert_eq!(told, [(a, Kept::Whole), (b, Kept::Damaged(8192))]);
        assert_eq!(held.live_bytes(), 4096 + 8192);
        assert!((3..8).all(|no| held.needs_index(ExtentNo(no))));
        assert!(!held.needs_index(ExtentNo(60)));
        assert_eq!(held.chunks.len(), 3, "what nobody keeps is forgotten");
        assert!(!held.keep(Q, [b], |_, _| panic!("it was said before")));
        held.forget(Q, 100);
        assert_eq!(held.live_bytes(), 0);
        assert!(!held.needs_index(ExtentNo(6)) && held.needs_index(ExtentNo(5)));
    }

    #[test]
    fn a_root_is_needed_until_a_newer_one_is_durable() {
        let mut held = holdings();
        held.found_root(P, ExtentNo(5));
        held.found_root(P, ExtentNo(6));
        assert!(held.keep(P, [], |_, _| {}));
        assert_eq!(
            held.wrote_root(P, ExtentNo(7), 50),
            [ExtentNo(5), ExtentNo(6)]
        );
        assert!(!held.needs_index(ExtentNo(5)) && held.needs_index(ExtentNo(7)));
        assert_eq!(held.forget(P, 60), [ExtentNo(7)]);
        // What was under way then is nobody's.
        assert_eq!(held.wrote_root(P, ExtentNo(8), 59), []);
        held.wrote_chunk(P, 9 * MIB + 4096, 4096, 59);
        assert!(!held.needs_index(ExtentNo(8)) && !held.needs_index(ExtentNo(9)));
        // It may come again.
        held.wrote_chunk(P, 9 * MIB + 4096, 4096, 60);
        assert!(held.needs_index(ExtentNo(9)));
    }

    #[test]
    fn a_journal_extent_is_needed_by_records_and_pins() {
        let mut held = holdings();
        let no = ExtentNo(2);
        held.appended(no, P, Seq(10), 100);
        held.appended(no, P, Seq(0), 101);
        held.appended(no, Q, Seq(5), 102);
        held.appended(ExtentNo(3), P, Seq(11), 103);
        held.trim(Q, Seq(5), 102, vec![2, 2, 9]);
        assert_eq!(held.trim(P, Seq(10), 100, vec![7]), []);
        assert_eq!(held.trim(P, Seq(9), 101, vec![7]), []);
        assert_eq!(held.trim(Q, Seq(5), 102, vec![9]), [no]);
        assert!(held.needs_journal(no), "entry 10, and the promise at 101");
        assert_eq!(held.trim(P, Seq(10), 101, vec![2]), [ExtentNo(7), no]);
        assert!(held.needs_journal(no), "P pins it");
        assert_eq!(held.trim(P, Seq(10), 101, vec![]), [no]);
        assert!(!held.needs_journal(no) && held.needs_journal(ExtentNo(3)));
        assert!(held.needs_journal(ExtentNo(9)), "pinned, whatever is in it");
        assert_eq!(held.forget(Q, 200), [ExtentNo(9)]);
        assert!(!held.needs_journal(ExtentNo(9)));
        // Another life of Q does not answer for the former one.
        held.appended(no, Q, Seq(99), 150);
        assert!(!held.needs_journal(no));
        held.appended(no, Q, Seq(1), 201);
        assert!(held.needs_journal(no));
        held.trim(Q, Seq(1), 201, vec![]);
        assert!(!held.needs_journal(no));
    }

    #[test]
    fn damage_that_may_be_anybodys_is_needed_until_all_are_past_it() {
        let mut held = holdings();
        let (no, other) = (ExtentNo(2), ExtentNo(4));
        held.found_record(no, P, Seq(10), 100);
        held.found_damage(no, 120);
        held.found_root(Q, ExtentNo(9));
        held.found_record(other, P, Seq(11), 130);
        held.trim(P, Seq(11), 130, vec![]);
        assert!(held.needs_journal(other), "Q has said nothing");
        held.trim(Q, Seq(3), 118, vec![]);
        assert!(!held.needs_journal(other));
        assert!(held.needs_journal(no), "it may be Q's 119");
        assert_eq!(held.trim(Q, Seq(3), 119, vec![]), [no]);
        assert!(!held.needs_journal(no));
        held.trim(Q, Seq(3), 118, vec![]);
        assert!(held.forget(Q, 500).contains(&no));
        assert!(!held.needs_journal(no));
        held.gone(no);
        assert_eq!(held.trim(P, Seq(11), 131, vec![]), []);
    }
}

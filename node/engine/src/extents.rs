//! The extents of a device: what each is for, and when it may be used again.
//!
//! Invariants:
//! - An extent is free, open (one per stream), sealed, or quarantined; only a free one is opened, and
//!   opening gives it an incarnation that no extent of the device ever had.
//! - *A tombstone outlives what it kills.* A deleted record can be found on the device until its
//!   extent's header has durably got a new incarnation. Until then the extent that holds the
//!   tombstone is *pinned* by it: `pins` counts, over the tombstones of an extent, the dead records in
//!   *other* extents that are still of the same life. (Record and tombstone in one extent vanish in
//!   the same instant and need no pin.)
//! - A sealed data extent is freed when no live record and no pin is left in it. Freeing changes
//!   nothing on the device: after a crash the same extent is found dead again, by the same tombstones.
//!   (Not so one that is cleaned: see [`crate::clean`]. As long as it is, nothing else frees it.)
//! - Pins point from an extent to one that was opened no later (a tombstone is written after its
//!   record, and one data extent is open at a time), so they form no circle: of all dead extents, the
//!   one opened first can always be freed.
//! - The lowest free number is opened first. Numbers above the highest that was ever opened are
//!   therefore untouched, and recovery needs to look at no more than their headers.
//! - Other extents than those of data are not freed for want of live records: their owners free them.
//!   ([`crate::holdings`] and [`crate::chunks`] say why those of the journal and the index may be.) Such a one holds no
//!   tombstones and is killed by none: no pin comes of its life as such.
//! - Who may open an extent, when few are left, in this order: shards, the journal, chunks, roots, tombstones, the
//!   cleaner. Without chunks and roots the journal could not be trimmed, and without tombstones nothing be deleted.
//!   The last ones are the cleaner's, as long as there is anything to clean: what it takes it gives back, and if it
//!   could take none nobody would ever get one again. ([`crate::room`] says how.)
//! - `live_bytes` of `bytes` are those of live records, `tombstone_bytes` those of tombstones; the rest is dead, and
//!   the tombstones are, too, if nothing is pinned.
//! - `changes` grows with all that may change the answer of `emptiest`, but for what its caller knows of shards.

use std::collections::BTreeSet;

use ashlar_layout::extent::ExtentKind;
use ashlar_layout::ids::{ExtentNo, Incarnation, ShardId};

use crate::append::TOMBSTONE_RESERVE;
use crate::mutants::mutant;
use crate::queue::Target;

/// What is being done with an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing in it is needed.
    Free,
    /// Records are being appended.
    Open,
    /// No more are; the footer is written, or will be at leisure.
    Sealed,
    /// Not understood (parts cannot be read): never written in this session, so that what it may
    /// hold is still there for the next one.
    Quarantined,
}

/// Why an extent is not cleaned: until that has changed there is no use in trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// With so many live records and pins too little is won, or its table does not tell of all of them.
    Counts(u32, u32),
    /// The record in this block does not match.
    Damaged { block: u64 },
    /// A tombstone in it is of this shard, and something of that is there again.
    Tombstone(ShardId),
    /// With so many live records and pins the open extent has no room for what has to be written again, and no other
    /// one is free.
    NoRoom(u32, u32),
}

#[derive(Clone, Debug)]
pub(crate) struct Extent {
    pub state: State,
    /// `None` for an extent that was never opened.
    pub kind: Option<ExtentKind>,
    /// Its present life; 0 if it never had one.
    pub incarnation: Incarnation,
    /// The latest life of which the header is known to be durable.
    pub durable: Incarnation,
    /// Live records.
    pub live: u32,
    /// Bytes of them,
    pub live_bytes: u64,
    /// of its tombstones,
    pub tombstone_bytes: u64,
    /// and of all records, the dead and the tombstones too.
    pub bytes: u64,
    /// Dead records elsewhere that the tombstones in here keep dead.
    pub pins: u32,
    /// Keep it for this session whatever the counts say.
    pub held: bool,
    /// Sealed, and without a footer all the same: its records are known from a search.
    pub bare: bool,
    /// It is being cleaned.
    pub cleaning: bool,
    /// Why it could not be cleaned.
    pub passed: Option<Passed>,
    /// Which extents hold tombstones for records in this one, and how many.
    killers: Vec<(ExtentNo, u32)>,
}

impl Extent {
    /// Whether records in it are dead because of tombstones in other extents.
    pub fn is_killed_elsewhere(&self) -> bool {
        !self.killers.is_empty()
    }

    /// Extents in which tombstones stand that keep records of this one dead.
    pub fn killers(&self) -> impl Iterator<Item = ExtentNo> + '_ {
        self.killers.iter().map(|(killer, _)| *killer)
    }

    /// Bytes that have to be written again when it is cleaned.
    pub fn cost(&self) -> u64 {
        let tombstones = if self.pins > 0 {
            self.tombstone_bytes
        } else {
            0
        };
        self.live_bytes + tombstones
    }
}

/// All extents of a device.
pub(crate) struct ExtentTable {
    extents: Vec<Extent>,
    free: BTreeSet<u32>,
    /// How many of each kind are not free.
    used: [u32; 5],
    /// Grows with all that may have made an extent worth cleaning: by the bytes that died, or an extent's.
    pub stirred: u64,
    /// Grows with each of these changes.
    pub changes: u64,
    extent_size: u64,
}

impl ExtentTable {
    /// `count` extents of so many bytes, all free and never used.
    pub fn new(count: u32, extent_size: u64) -> ExtentTable {
        let extent = Extent {
            state: State::Free,
            kind: None,
            incarnation: Incarnation(0),
            durable: Incarnation(0),
            live: 0,
            live_bytes: 0,
            tombstone_bytes: 0,
            bytes: 0,
            pins: 0,
            held: false,
            bare: false,
            cleaning: false,
            passed: None,
            killers: Vec::new(),
        };
        ExtentTable {
            extents: vec![extent; count as usize],
            free: (0..count).collect(),
            used: [0; 5],
            stirred: 0,
            changes: 0,
            extent_size,
        }
    }

    pub fn count(&self) -> u32 {
        self.extents.len() as u32
    }

    pub fn free_count(&self) -> u32 {
        self.free.len() as u32
    }

    /// Extents of this kind that are not free.
    pub fn used(&self, kind: ExtentKind) -> u32 {
        self.used[kind as usize]
    }

    /// Free extents that data may not take: the journal, the index and the tombstones need room on a
    /// device that is full of shards.
    pub fn reserve(&self) -> u32 {
        (self.count() / 16).max(2) + self.index_share()
    }

    /// Free extents that the journal may not take.
    pub fn journal_reserve(&self) -> u32 {
        TOMBSTONE_RESERVE + self.index_share()
    }

    /// Free extents that chunks may not take: a root has to follow them.
    pub fn chunk_reserve(&self) -> u32 {
        TOMBSTONE_RESERVE + self.index_share().min(1)
    }

    /// Free extents at which the cleaner goes to work: it has to be ahead of the shards that come.
    pub fn cleaning_mark(&self) -> u32 {
        self.reserve() + (self.count() / 32).max(2)
    }

    /// What is kept for the index: room to write a table out, and to merge a little. On a device of few extents
    /// there is not that much to keep.
    fn index_share(&self) -> u32 {
        (self.count() / 16).max(4).min(self.count() / 8)
    }

    pub fn get(&self, no: ExtentNo) -> &Extent {
        &self.extents[no.0 as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = (ExtentNo, &Extent)> {
        (0u32..).map(ExtentNo).zip(&self.extents)
    }

    /// Opens the lowest free extent, if more than `reserve` are free.
    pub fn open(
        &mut self,
        kind: ExtentKind,
        incarnation: Incarnation,
        reserve: u32,
    ) -> Option<ExtentNo> {
        if self.free_count() <= reserve {
            return None;
        }
        let no = self.free.pop_first()?;
        let extent = &mut self.extents[no as usize];
        debug_assert!(extent.live == 0 && extent.pins == 0 && !extent.held);
        extent.state = State::Open;
        extent.kind = Some(kind);
        extent.incarnation = incarnation;
        (extent.live_bytes, extent.bytes, extent.passed) = (0, 0, None);
        (extent.tombstone_bytes, extent.bare) = (0, false);
        self.changes += 1;
        self.used[kind as usize] += 1;
        Some(ExtentNo(no))
    }

    /// Recovery found it in this state.
    pub fn adopt(
        &mut self,
        no: ExtentNo,
        state: State,
        kind: Option<ExtentKind>,
        incarnation: Incarnation,
    ) {
        let extent = &mut self.extents[no.0 as usize];
        let before = extent.kind.filter(|_| extent.state != State::Free);
        extent.state = state;
        extent.kind = kind;
        extent.incarnation = incarnation;
        extent.durable = incarnation;
        if let Some(kind) = before {
            self.used[kind as usize] -= 1;
        }
        if let Some(kind) = kind.filter(|_| state != State::Free) {
            self.used[kind as usize] += 1;
        }
        if state == State::Free {
            self.free.insert(no.0);
        } else {
            self.free.remove(&no.0);
        }
    }

    /// Recovery found it sealed, or takes it for that, and it has no footer nor gets one.
    pub fn has_no_footer(&mut self, no: ExtentNo) {
        self.extents[no.0 as usize].bare = true;
    }

    /// Recovery found records of its present life, but no header of it. The latest header that may be
    /// relied on is of this life, or a later one.
    pub fn header_missing(&mut self, no: ExtentNo, durable: Incarnation) {
        self.extents[no.0 as usize].durable = durable;
    }

    /// The header of its present life is durable: nothing of an earlier life can be found in it any
    /// more, and the tombstones for that are of no more use.
    pub fn header_durable(&mut self, no: ExtentNo) {
        let extent = &mut self.extents[no.0 as usize];
        extent.durable = extent.incarnation;
        let killers = std::mem::take(&mut extent.killers);
        for (killer, count) in killers {
            let extent = &mut self.extents[killer.0 as usize];
            debug_assert!(extent.pins >= count);
            extent.pins -= count;
            self.stirred += self.extent_size;
            self.changes += 1;
            self.free_if_dead(killer);
        }
    }

    /// A record of so many bytes was appended to it: a tombstone, or another one.
    pub fn wrote(&mut self, no: ExtentNo, len: u64, tombstone: bool) {
        let extent = &mut self.extents[no.0 as usize];
        extent.bytes += len;
        if tombstone {
            extent.tombstone_bytes += len;
        }
    }

    /// A record in it is live.
    pub fn born(&mut self, no: ExtentNo, len: u64) {
        let extent = &mut self.extents[no.0 as usize];
        extent.live += 1;
        extent.live_bytes += len;
    }

    /// A live record in `target` was killed by a durable tombstone in `by`.
    pub fn killed(&mut self, target: ExtentNo, record: Target, by: ExtentNo) {
        let Target { block, len } = record;
        let extent = &mut self.extents[target.0 as usize];
        extent
            .passed
            .take_if(|passed| *passed == Passed::Damaged { block });
        debug_assert!(extent.live > 0 && extent.live_bytes >= len);
        extent.live -= 1;
        extent.live_bytes = extent.live_bytes.saturating_sub(len);
        self.stirred += len;
        self.changes += 1;
        self.pin(target, by);
        self.free_if_dead(target);
    }

    /// A record in `target` is dead because of the tombstone in `by`.
    pub fn pin(&mut self, target: ExtentNo, by: ExtentNo) {
        if target == by {
            return;
        }
        self.extents[by.0 as usize].pins += 1;
        let killers = &mut self.extents[target.0 as usize].killers;
        match killers.iter_mut().rev().find(|(killer, _)| *killer == by) {
            Some((_, count)) => *count += 1,
            None => killers.push((by, 1)),
        }
    }

    /// Whatever the counts say, keep it in this session.
    pub fn hold(&mut self, no: ExtentNo) {
        self.extents[no.0 as usize].held = true;
        self.changes += 1;
    }

    /// No more records will be appended to it.
    pub fn seal(&mut self, no: ExtentNo) {
        self.extents[no.0 as usize].state = State::Sealed;
        self.stirred += self.extent_size;
        self.changes += 1;
    }

    /// The sealed data extent that is best cleaned: that with the least to write again, if not more than `most` times
    /// as much is written as is won. `is_gone` tells whether nothing of a shard is there.
    pub fn emptiest(&self, most: u64, is_gone: impl Fn(&ShardId) -> bool) -> Option<ExtentNo> {
        let none_free = self.free.is_empty();
        let worth = |extent: &Extent| {
            let counts = (extent.live, extent.pins);
            let passed = match &extent.passed {
                Some(Passed::Counts(live, pins)) => (*live, *pins) == counts,
                Some(Passed::NoRoom(live, pins)) => none_free && (*live, *pins) == counts,
                Some(Passed::Tombstone(shard)) => !is_gone(shard),
                Some(Passed::Damaged { .. }) => true,
                None => false,
            };
            let cost = extent.cost();
            extent.state == State::Sealed
                && extent.kind == Some(ExtentKind::Data)
                && !extent.held
                && !passed
                && extent.bytes > cost
                && cost <= (extent.bytes - cost).saturating_mul(most)
        };
        let among = self.iter().filter(|(_, extent)| worth(extent));
        let least = among.min_by_key(|(no, extent)| (extent.cost(), no.0));
        least.map(|(no, _)| no)
    }

    /// The cleaner begins with it.
    pub fn clean(&mut self, no: ExtentNo) {
        self.extents[no.0 as usize].cleaning = true;
    }

    /// The cleaner leaves it as it is.
    pub fn leave(&mut self, no: ExtentNo, passed: Option<Passed>) {
        let extent = &mut self.extents[no.0 as usize];
        extent.cleaning = false;
        extent.passed = passed;
        self.changes += 1;
        self.free_if_dead(no);
    }

    /// What made the cleaner pass it over may have been mended.
    pub fn try_again(&mut self, no: ExtentNo) {
        if self.extents[no.0 as usize].passed.take().is_some() {
            self.changes += 1;
            self.stirred += self.extent_size;
        }
    }

    /// Tombstones of `from` are in `to` again: `to` keeps dead what `from` does. (All targets: which tombstone is for
    /// which is not known.)
    pub fn carry(&mut self, from: ExtentNo, to: ExtentNo) {
        for target in (0..self.count()).map(ExtentNo) {
            let killers = &self.extents[target.0 as usize].killers;
            if killers.iter().any(|(killer, _)| *killer == from) {
                self.pin(target, to);
            }
        }
    }

    /// It has durably got a new header: nothing that was in it can be found any more. It is not free yet.
    pub fn erased(&mut self, no: ExtentNo, incarnation: Incarnation) {
        let extent = &mut self.extents[no.0 as usize];
        extent.incarnation = incarnation;
        (extent.live, extent.live_bytes, extent.bytes, extent.pins) = (0, 0, 0, 0);
        (extent.tombstone_bytes, extent.bare) = (0, false);
        for extent in &mut self.extents {
            extent.killers.retain(|(killer, _)| *killer != no);
        }
        self.header_durable(no);
    }

    /// It was cleaned, and is free.
    pub fn cleaned(&mut self, no: ExtentNo) {
        self.extents[no.0 as usize].cleaning = false;
        self.release(no);
    }

    /// Frees it if it is a sealed data extent of which nothing is needed any more.
    pub fn free_if_dead(&mut self, no: ExtentNo) -> bool {
        let extent = &self.extents[no.0 as usize];
        let dead = extent.state == State::Sealed
            && extent.kind == Some(ExtentKind::Data)
            && extent.live == 0
            && (extent.pins == 0 || mutant!(FreeTombstones))
            && !extent.held
            && !extent.cleaning;
        if dead {
            self.release(no);
        }
        dead
    }

    /// Frees it: its owner needs nothing of it any more.
    pub fn release(&mut self, no: ExtentNo) {
        let extent = &mut self.extents[no.0 as usize];
        extent.state = State::Free;
        self.changes += 1;
        if let Some(kind) = extent.kind
            && self.free.insert(no.0)
        {
            self.used[kind as usize] -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const RECORD: Target = Target {
        block: 9,
        len: 8192,
    };

    fn sealed(table: &mut ExtentTable, incarnation: u64) -> ExtentNo {
        let no = table
            .open(ExtentKind::Data, Incarnation(incarnation), 0)
            .unwrap();
        table.header_durable(no);
        table.seal(no);
        no
    }

    #[test]
    fn a_tombstone_outlives_what_it_kills() {
        let mut table = ExtentTable::new(4, 1 << 20);
        let old = sealed(&mut table, 1);
        table.born(old, 8192);
        let killer = sealed(&mut table, 2);
        table.killed(old, RECORD, killer);
        assert_eq!(
            table.get(old).state,
            State::Free,
            "dead, and nothing of it is needed"
        );
        assert!(
            !table.free_if_dead(killer),
            "the record can still be found on the device"
        );
        let again = table.open(ExtentKind::Data, Incarnation(3), 0).unwrap();
        assert_eq!(again, old, "the lowest number goes first");
        assert_eq!(
            table.get(killer).state,
            State::Sealed,
            "a header in flight is not durable"
        );
        table.header_durable(again);
        assert_eq!(table.get(killer).state, State::Free);
    }

    #[test]
    fn record_and_tombstone_in_one_extent_need_no_pin() {
        let mut table = ExtentTable::new(4, 1 << 20);
        let no = sealed(&mut table, 1);
        table.born(no, 8192);
        table.killed(no, RECORD, no);
        assert_eq!(table.get(no).state, State::Free);
    }

    #[test]
    fn the_reserve_is_kept_from_data() {
        let mut table = ExtentTable::new(4, 1 << 20);
        assert_eq!(table.reserve(), 2);
        assert!(
            table
                .open(ExtentKind::Data, Incarnation(1), table.reserve())
                .is_some()
        );
        assert!(
            table
                .open(ExtentKind::Data, Incarnation(2), table.reserve())
                .is_some()
        );
        assert!(
            table
                .open(ExtentKind::Data, Incarnation(3), table.reserve())
                .is_none()
        );
        assert!(table.open(ExtentKind::Journal, Incarnation(3), 0).is_some());
    }

    #[test]
    fn held_and_open_extents_stay() {
        let mut table = ExtentTable::new(4, 1 << 20);
        let held = table.open(ExtentKind::Data, Incarnation(1), 0).unwrap();
        table.hold(held);
        table.seal(held);
        assert!(!table.free_if_dead(held));
        let open = table.open(ExtentKind::Data, Incarnation(2), 0).unwrap();
        assert!(!table.free_if_dead(open));
        let journal = table.open(ExtentKind::Journal, Incarnation(3), 0).unwrap();
        table.seal(journal);
        assert!(!table.free_if_dead(journal));
    }
}

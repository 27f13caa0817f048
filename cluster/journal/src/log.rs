//! The log as this replica holds it: where each entry is on the device, of which term it is, and
//! the most recent entries' bytes.
//!
//! Invariants:
//! - entries up to `base` are committed, applied, durable in the index and forgotten here; of the last
//!   of them the term is kept, so that what follows can be seen to join on. Whoever has them agrees;
//! - slots are numbered from `base + 1` without gaps; the last one is never a hole; terms never fall,
//!   holes left aside;
//! - a hole is an entry that was here and cannot be read: it is *not* known to be absent. Only a
//!   peer's copy fills it, and only a decision that it was never committed removes it;
//! - `durable` is the end of the contiguous durable prefix, and falls only when entries are removed;
//! - an entry that is not durable yet is in memory. Of the others at most `memory_bytes` are, the
//!   newest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ashlar_layout::ids::{Seq, Term};
use bytes::Bytes;

use crate::chain::Chain;
use crate::entry::{Mark, Piece};

/// How an entry is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Held {
    /// Not: it cannot be read.
    Hole,
    /// In memory, on its way to the device.
    Writing,
    /// On the device.
    Durable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    pub(crate) term: Term,
    pub(crate) at: u64,
    pub(crate) len: u32,
    pub(crate) held: Held,
}

impl Slot {
    pub(crate) const HOLE: Slot = Slot {
        term: Term(0),
        at: 0,
        len: 0,
        held: Held::Hole,
    };
}

/// Bytes of the device that hold a run of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Run {
    pub(crate) first: Seq,
    pub(crate) last: Seq,
    pub(crate) at: u64,
    pub(crate) len: u32,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Log {
    memory_bytes: usize,
    pub(crate) base: Seq,
    base_term: Term,
    pub(crate) slots: VecDeque<Slot>,
    /// Bytes of all entries that it has.
    pub(crate) bytes: u64,
    pub(crate) durable: Seq,
    pub(crate) holes: BTreeSet<Seq>,
    /// Each `TermStart`, with the term of the entry before it.
    pub(crate) starts: BTreeMap<Seq, Term>,
    /// The chain's composition at the base, and the entry that made it so (0: the founders'),
    base_chain: (Seq, Chain),
    /// and each later entry that changes it.
    pub(crate) chains: BTreeMap<Seq, Chain>,
    recent: BTreeMap<Seq, Bytes>,
    pub(crate) recent_bytes: usize,
    writing_bytes: usize,
    /// A damaged record came after everything that is held: of which term the last entry was then.
    pub(crate) tail_damaged: Option<Term>,
    /// The entry of a later reign that ends this doubt, once it is durable.
    pub(crate) healed_by: Option<Seq>,
    /// The first entry that damaged records may have held.
    pub(crate) damaged_from: Option<Seq>,
    /// The last entry that records may have held that were reported before anything was replayed:
    /// whether they stood there, or were only reported there, is not known.
    pub(crate) unplaced_to: Seq,
}

impl Log {
    /// A log whose entries up to `base`, which is of this term, are somewhere else. `chain`: the
    /// composition there, and the entry that made it so.
    pub(crate) fn new(
        memory_bytes: usize,
        (base, base_term): (Seq, Term),
        chain: (Seq, Chain),
    ) -> Self {
        Self {
            base,
            base_term,
            base_chain: chain,
            chains: BTreeMap::new(),
            memory_bytes,
            slots: VecDeque::new(),
            bytes: 0,
            durable: base,
            holes: BTreeSet::new(),
            starts: BTreeMap::new(),
            recent: BTreeMap::new(),
            recent_bytes: 0,
            writing_bytes: 0,
            tail_damaged: None,
            healed_by: None,
            damaged_from: None,
            unplaced_to: Seq(0),
        }
    }

    /// The last entry that is forgotten; 0 if none is.
    pub(crate) fn base(&self) -> Seq {
        self.base
    }

    /// Its term.
    pub(crate) fn base_term(&self) -> Term {
        self.base_term
    }

    /// Bytes of the entries that it has.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The last entry; 0 if there is none.
    pub(crate) fn last(&self) -> Seq {
        Seq(self.base.0 + self.slots.len() as u64)
    }

    /// The last entry's term.
    pub(crate) fn last_term(&self) -> Term {
        self.slots.back().map_or(self.base_term, |slot| slot.term)
    }

    /// The chain's composition by the newest entry that says so, committed or not.
    pub(crate) fn chain(&self) -> &Chain {
        let newest = self.chains.last_key_value();
        newest.map_or(&self.base_chain.1, |(_, chain)| chain)
    }

    /// The chain's composition by what is known to be committed up to this entry.
    pub(crate) fn chain_at(&self, committed: Seq) -> &Chain {
        let newest = self.chains.range(..=committed).next_back();
        newest.map_or(&self.base_chain.1, |(_, chain)| chain)
    }

    /// Which entry the newest one is; 0: none.
    pub(crate) fn chain_seq(&self) -> Seq {
        let newest = self.chains.last_key_value();
        newest.map_or(self.base_chain.0, |(seq, _)| *seq)
    }

    /// The composition at an entry that is not before the base, and the entry that made it so.
    pub(crate) fn chain_of(&self, at: Seq) -> (Seq, Chain) {
        let newest = self.chains.range(..=at).next_back();
        newest.map_or_else(
            || self.base_chain.clone(),
            |(seq, chain)| (*seq, chain.clone()),
        )
    }

    /// All that was committed when damage may have taken some of it is held again.
    pub(crate) fn tail_is_whole(&mut self) {
        self.tail_damaged = None;
        self.healed_by = None;
    }

    /// What damage took behind the end may have been of reigns up to this one; None: it took nothing.
    pub(crate) fn doubt_of_tail(&self) -> Option<Term> {
        self.tail_damaged
    }

    /// The same, as it was kept.
    pub(crate) fn doubt_tail(&mut self, doubt: Option<Term>) {
        self.tail_damaged = self.tail_damaged.max(doubt);
        self.healed_by = self.healed_by.filter(|_| doubt.is_none());
    }

    /// Whether nothing can be missing of what was durable here once.
    pub(crate) fn is_whole(&self) -> bool {
        self.holes.is_empty() && self.tail_damaged.is_none()
    }

    /// The end of the contiguous durable prefix.
    pub(crate) fn durable(&self) -> Seq {
        self.durable
    }

    /// Bytes on their way to the device.
    pub(crate) fn writing_bytes(&self) -> usize {
        self.writing_bytes
    }

    /// What is known of entry `seq`; `None` if it is a hole or beyond the end.
    pub(crate) fn slot(&self, seq: Seq) -> Option<&Slot> {
        self.raw(seq).filter(|slot| slot.held != Held::Hole)
    }

    /// The term of entry `seq`: `None` for a hole, beyond the end, or before the base.
    pub(crate) fn term(&self, seq: Seq) -> Option<Term> {
        if seq == self.base {
            Some(self.base_term)
        } else {
            self.slot(seq).map(|slot| slot.term)
        }
    }

    /// Of which term the entry in front of `seq`, which is held, must be.
    pub(crate) fn term_before(&self, seq: Seq) -> Option<Term> {
        self.starts.get(&seq).copied().or_else(|| self.term(seq))
    }

    /// The entry's bytes, if they are in memory.
    pub(crate) fn recent(&self, seq: Seq) -> Option<&Bytes> {
        self.recent.get(&seq)
    }

    /// Whether damage may have taken entries behind the last one.
    pub(crate) fn tail_damaged(&self) -> bool {
        self.tail_damaged.is_some()
    }

    /// Holes as ranges; those beyond `max` ranges are lumped together with what is between them.
    pub(crate) fn holes(&self, max: usize) -> Vec<(Seq, Seq)> {
        let mut ranges: Vec<(Seq, Seq)> = Vec::new();
        for &hole in &self.holes {
            let full = ranges.len() >= max;
            match ranges.last_mut() {
                Some(range) if range.1.0 + 1 == hole.0 || full => range.1 = hole,
                _ => ranges.push((hole, hole)),
            }
        }
        ranges
    }

    /// The first hole, and the first entry behind it that is held.
    pub(crate) fn first_hole(&self) -> Option<(Seq, Seq)> {
        let first = *self.holes.first()?;
        let mut behind = first.0 + 1;
        while self.holes.contains(&Seq(behind)) {
            behind += 1;
        }
        Some((first, Seq(behind)))
    }

    /// The last entry at or before `seq` that is held, or the base; `seq` itself if that is before it.
    pub(crate) fn held_at_or_before(&self, seq: Seq) -> Seq {
        let mut seq = seq.min(self.last());
        while seq > self.base && self.slot(seq).is_none() {
            seq.0 -= 1;
        }
        seq
    }

    /// The last entry at or before `seq` that is held and whose term is at most `term`, or the base;
    /// `seq` itself if that is before it.
    pub(crate) fn at_most(&self, seq: Seq, term: Term) -> Seq {
        let mut seq = self.held_at_or_before(seq);
        while seq > self.base && self.term(seq).is_some_and(|t| t > term) {
            seq = self.held_at_or_before(Seq(seq.0 - 1));
        }
        seq
    }

    /// The last entry that is durable, and its term; and which ones below are not.
    pub(crate) fn durable_tail(&self, max: usize) -> (Seq, Term, Vec<(Seq, Seq)>) {
        let last = self
            .slots
            .iter()
            .rposition(|slot| slot.held == Held::Durable);
        let Some(last) = last else {
            return (self.base, self.base_term, Vec::new());
        };
        let term = self.slots[last].term;
        let last = Seq(self.base.0 + last as u64 + 1);
        let mut holes = self.holes(max);
        holes.retain(|(first, _)| *first < last);
        (last, term, holes)
    }

    /// Whether an entry with this name may be put at its place: appended, filled into a hole.
    fn fits(&self, piece: &Piece) -> bool {
        piece.seq > self.base && (piece.seq > self.last() || self.slot(piece.seq).is_none())
    }

    /// Takes a new entry, that goes to the device now: behind the last one (what is skipped becomes
    /// holes), or into a hole.
    pub(crate) fn write(&mut self, piece: &Piece) {
        debug_assert!(self.fits(piece), "entry {} is held already", piece.seq);
        let len = piece.bytes.len();
        self.writing_bytes += len;
        self.put(
            piece,
            Slot {
                term: piece.term,
                at: 0,
                len: len as u32,
                held: Held::Writing,
            },
        );
    }

    /// Entry `seq` of this term is durable at `at`: the first copy, or another.
    pub(crate) fn written(&mut self, seq: Seq, term: Term, at: u64) {
        let Some(slot) = self.raw_mut(seq).filter(|slot| slot.term == term) else {
            return;
        };
        slot.at = at;
        if slot.held == Held::Writing {
            slot.held = Held::Durable;
            self.writing_bytes -= slot.len as usize;
            self.advance();
            self.trim();
        }
    }

    /// Removes entry `from`, which is not forgotten, and everything behind it.
    pub(crate) fn truncate(&mut self, from: Seq) {
        debug_assert!(from > self.base, "entry {from} is forgotten");
        let mut left = from.0.saturating_sub(self.base.0 + 1);
        left = left.min(self.slots.len() as u64);
        // What the log ends with is never a hole.
        while left > 0 && self.slots[left as usize - 1].held == Held::Hole {
            left -= 1;
        }
        for slot in self.slots.drain(left as usize..) {
            self.bytes -= u64::from(slot.len);
            if slot.held == Held::Writing {
                self.writing_bytes -= slot.len as usize;
            }
        }
        let last = self.base.0 + left;
        self.holes.split_off(&Seq(last + 1));
        self.starts.split_off(&Seq(last + 1));
        self.chains.split_off(&Seq(last + 1));
        for bytes in self.recent.split_off(&Seq(last + 1)).into_values() {
            self.recent_bytes -= bytes.len();
        }
        self.durable = self.durable.min(Seq(last));
        self.healed_by = self.healed_by.filter(|seq| seq.0 <= last);
        self.advance();
    }

    /// Forgets all entries up to `to`, which is of this term and committed: held here and durable, or
    /// known from a snapshot that is. What is behind it stays.
    pub(crate) fn forget_to(&mut self, to: Seq, term: Term, chain: (Seq, Chain)) {
        if to <= self.base {
            return;
        }
        let gone = ((to.0 - self.base.0) as usize).min(self.slots.len());
        for slot in self.slots.drain(..gone) {
            self.bytes -= u64::from(slot.len);
            if slot.held == Held::Writing {
                self.writing_bytes -= slot.len as usize;
            }
        }
        self.base = to;
        self.base_term = term;
        self.base_chain = chain;
        let behind = Seq(to.0 + 1);
        self.holes = self.holes.split_off(&behind);
        self.starts = self.starts.split_off(&behind);
        self.chains = self.chains.split_off(&behind);
        let kept = self.recent.split_off(&behind);
        for bytes in std::mem::replace(&mut self.recent, kept).into_values() {
            self.recent_bytes -= bytes.len();
        }
        self.durable = self.durable.max(to);
        self.advance();
    }

    /// The entry up to which may be forgotten, at most `most`, if at least so many bytes are to be kept.
    pub(crate) fn dispensable(&self, most: Seq, keep: u64) -> Seq {
        let mut left = self.bytes;
        let mut to = self.base;
        for slot in &self.slots {
            left -= u64::from(slot.len);
            if to >= most || left < keep {
                break;
            }
            to.0 += 1;
        }
        to
    }

    /// Keeps an entry's bytes in memory (again).
    pub(crate) fn remember(&mut self, seq: Seq, bytes: Bytes) {
        self.recent_bytes += bytes.len();
        if let Some(old) = self.recent.insert(seq, bytes) {
            self.recent_bytes -= old.len();
        }
        self.trim();
    }

    /// Entries from `first` to at most `last` that stand on the device without a gap, of at most
    /// `max_bytes` unless the first is longer. `None` if the first is not on the device.
    pub(crate) fn run(&self, first: Seq, last: Seq, max_bytes: usize) -> Option<Run> {
        let slot = self.slot(first).filter(|slot| slot.held == Held::Durable)?;
        let mut run = Run {
            first,
            last: first,
            at: slot.at,
            len: slot.len,
        };
        while run.last < last {
            let next = Seq(run.last.0 + 1);
            match self.slot(next) {
                Some(slot)
                    if slot.held == Held::Durable
                        && slot.at == run.at + u64::from(run.len)
                        && (run.len + slot.len) as usize <= max_bytes =>
                {
                    run.last = next;
                    run.len += slot.len;
                }
                _ => break,
            }
        }
        Some(run)
    }

    /// Entries in memory from `first` to at most `last`, without a gap, of at most `max_bytes`
    /// unless the first is longer.
    pub(crate) fn recent_run(&self, first: Seq, last: Seq, max_bytes: usize) -> Vec<Bytes> {
        let mut parts = Vec::new();
        let mut total = 0;
        let mut expected = first;
        for (&seq, bytes) in self.recent.range(first..) {
            let over = total > 0 && total + bytes.len() > max_bytes;
            if seq != expected || seq > last || over {
                break;
            }
            total += bytes.len();
            parts.push(bytes.clone());
            expected.0 += 1;
        }
        parts
    }

    pub(crate) fn raw(&self, seq: Seq) -> Option<&Slot> {
        self.slots.get(self.place(seq)?)
    }

    pub(crate) fn raw_mut(&mut self, seq: Seq) -> Option<&mut Slot> {
        let place = self.place(seq)?;
        self.slots.get_mut(place)
    }

    fn place(&self, seq: Seq) -> Option<usize> {
        usize::try_from(seq.0.checked_sub(self.base.0 + 1)?).ok()
    }

    /// Puts an entry at its place, behind the end or into a hole.
    pub(crate) fn put(&mut self, piece: &Piece, slot: Slot) {
        while self.last().0 + 1 < piece.seq.0 {
            self.slots.push_back(Slot::HOLE);
            self.holes.insert(self.last());
        }
        if self.last() < piece.seq {
            if piece.term > self.tail_damaged.unwrap_or(Term(u64::MAX)) {
                self.healed_by.get_or_insert(piece.seq);
            }
            self.slots.push_back(slot);
            self.bytes += u64::from(slot.len);
        } else if let Some(old) = self.raw_mut(piece.seq) {
            let before = std::mem::replace(old, slot);
            self.bytes += u64::from(slot.len);
            self.bytes -= u64::from(before.len);
            self.holes.remove(&piece.seq);
        }
        if let Some(prev_term) = piece.prev_term {
            self.starts.insert(piece.seq, prev_term);
        }
        if let Mark::Chain(chain) = &piece.mark {
            self.chains.insert(piece.seq, chain.clone());
        }
        self.recent_bytes += piece.bytes.len();
        if let Some(old) = self.recent.insert(piece.seq, piece.bytes.clone()) {
            self.recent_bytes -= old.len();
        }
        self.advance();
        self.trim();
    }

    fn advance(&mut self) {
        while self
            .raw(Seq(self.durable.0 + 1))
            .is_some_and(|slot| slot.held == Held::Durable)
        {
            self.durable.0 += 1;
        }
        let healed = |seq: Seq| self.raw(seq).is_none_or(|slot| slot.held == Held::Durable);
        if self.healed_by.is_some_and(healed) {
            self.tail_is_whole();
        }
    }

    /// Drops the oldest durable entries from memory, over the bound.
    fn trim(&mut self) {
        while self.recent_bytes > self.memory_bytes {
            let durable = |seq: &&Seq| {
                self.slot(**seq)
                    .is_none_or(|slot| slot.held == Held::Durable)
            };
            let Some(oldest) = self.recent.keys().find(durable).copied() else {
                return;
            };
            self.forget(oldest);
        }
    }

    pub(crate) fn forget(&mut self, seq: Seq) {
        if let Some(bytes) = self.recent.remove(&seq) {
            self.recent_bytes -= bytes.len();
        }
    }
}

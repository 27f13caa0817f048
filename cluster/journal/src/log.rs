//! The log as this replica holds it: where each entry is on the device, of which term it is, and
//! the most recent entries' bytes.
//!
//! Invariants:
//! - slots are numbered from 1 without gaps; the last one is never a hole; terms never fall, holes
//!   left aside;
//! - a hole is an entry that was here and cannot be read: it is *not* known to be absent. Only a
//!   peer's copy fills it, and only a decision that it was never committed removes it;
//! - `durable` is the end of the contiguous durable prefix, and falls only when entries are removed;
//! - an entry that is not durable yet is in memory. Of the others at most `memory_bytes` are, the
//!   newest.
//!
//! Replay follows the device's append order, which is the order in which the replica wrote: an entry
//! removes what is at or above it of other terms, lower or (when a later head took that back) higher
//! ones; one that is held already just moves; one for a hole fills it. A `TermStart` that damage has
//! swallowed would leave stale entries of lower terms in front of its term's entries; since each
//! `TermStart` names the term before it, that is noticed, and what may be stale becomes holes.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_layout::ids::{DeviceNo, Seq, Term};
use bytes::Bytes;

use crate::chain::Chain;
use crate::entry::{Mark, Piece};

/// Entries that may be missing between two that replay finds; more than that is no journal.
const GAP_MAX: u64 = 1 << 24;

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
    const HOLE: Slot = Slot {
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
    slots: Vec<Slot>,
    durable: Seq,
    holes: BTreeSet<Seq>,
    /// Each `TermStart`, with the term of the entry before it.
    starts: BTreeMap<Seq, Term>,
    /// The chain's composition before any entry changed it,
    founders: Chain,
    /// and each entry that does.
    chains: BTreeMap<Seq, Chain>,
    recent: BTreeMap<Seq, Bytes>,
    recent_bytes: usize,
    writing_bytes: usize,
    /// A damaged record came after everything that is held: of which term the last entry was then.
    tail_damaged: Option<Term>,
    /// The first entry that damaged records may have held.
    damaged_from: Option<Seq>,
    /// The last entry that records may have held that were reported before anything was replayed:
    /// whether they stood there, or were only reported there, is not known.
    unplaced_to: Seq,
}

impl Log {
    pub(crate) fn new(memory_bytes: usize, founders: &[DeviceNo]) -> Self {
        Self {
            founders: Chain {
                config: 1,
                members: founders.to_vec(),
            },
            chains: BTreeMap::new(),
            memory_bytes,
            slots: Vec::new(),
            durable: Seq(0),
            holes: BTreeSet::new(),
            starts: BTreeMap::new(),
            recent: BTreeMap::new(),
            recent_bytes: 0,
            writing_bytes: 0,
            tail_damaged: None,
            damaged_from: None,
            unplaced_to: Seq(0),
        }
    }

    /// The last entry; 0 if there is none.
    pub(crate) fn last(&self) -> Seq {
        Seq(self.slots.len() as u64)
    }

    /// The last entry's term.
    pub(crate) fn last_term(&self) -> Term {
        self.slots.last().map_or(Term(0), |slot| slot.term)
    }

    /// The chain's composition by the newest entry that says so, committed or not.
    pub(crate) fn chain(&self) -> &Chain {
        self.chains
            .last_key_value()
            .map_or(&self.founders, |(_, chain)| chain)
    }

    /// The chain's composition by what is known to be committed up to this entry.
    pub(crate) fn chain_at(&self, committed: Seq) -> &Chain {
        let newest = self.chains.range(..=committed).next_back();
        newest.map_or(&self.founders, |(_, chain)| chain)
    }

    /// Which entry that is; 0: none.
    pub(crate) fn chain_seq(&self) -> Seq {
        self.chains.last_key_value().map_or(Seq(0), |(seq, _)| *seq)
    }

    /// All that was committed when damage may have taken some of it is held again.
    pub(crate) fn tail_is_whole(&mut self) {
        self.tail_damaged = None;
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

    /// The term of entry `seq`: 0 for entry 0, `None` for a hole or beyond the end.
    pub(crate) fn term(&self, seq: Seq) -> Option<Term> {
        if seq.0 == 0 {
            Some(Term(0))
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

    /// The last entry at or before `seq` that is held; 0 if there is none.
    pub(crate) fn held_at_or_before(&self, seq: Seq) -> Seq {
        let mut seq = seq.min(self.last());
        while seq.0 > 0 && self.slot(seq).is_none() {
            seq.0 -= 1;
        }
        seq
    }

    /// The last entry at or before `seq` that is held and whose term is at most `term`; 0 if none.
    pub(crate) fn at_most(&self, seq: Seq, term: Term) -> Seq {
        let mut seq = self.held_at_or_before(seq);
        while self.term(seq).is_some_and(|t| t > term) {
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
            return (Seq(0), Term(0), Vec::new());
        };
        let term = self.slots[last].term;
        let last = Seq(last as u64 + 1);
        let mut holes = self.holes(max);
        holes.retain(|(first, _)| *first < last);
        (last, term, holes)
    }

    /// Whether an entry with this name may be put at its place: appended, filled into a hole.
    fn fits(&self, piece: &Piece) -> bool {
        piece.seq.0 > 0 && (piece.seq > self.last() || self.slot(piece.seq).is_none())
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

    /// Removes entry `from` and everything behind it.
    pub(crate) fn truncate(&mut self, from: Seq) {
        let mut last = from.0.saturating_sub(1).min(self.slots.len() as u64);
        // What the log ends with is never a hole.
        while last > 0 && self.slots[last as usize - 1].held == Held::Hole {
            last -= 1;
        }
        for slot in self.slots.drain(last as usize..) {
            if slot.held == Held::Writing {
                self.writing_bytes -= slot.len as usize;
            }
        }
        self.holes.split_off(&Seq(last + 1));
        self.starts.split_off(&Seq(last + 1));
        self.chains.split_off(&Seq(last + 1));
        for bytes in self.recent.split_off(&Seq(last + 1)).into_values() {
            self.recent_bytes -= bytes.len();
        }
        self.durable = self.durable.min(Seq(last));
        self.advance();
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

    /// Whether so many bytes more would push something out of memory.
    pub(crate) fn crowded(&self, more: usize) -> bool {
        self.recent_bytes + more > self.memory_bytes
    }

    fn raw(&self, seq: Seq) -> Option<&Slot> {
        self.slots.get(usize::try_from(seq.0.checked_sub(1)?).ok()?)
    }

    fn raw_mut(&mut self, seq: Seq) -> Option<&mut Slot> {
        self.slots
            .get_mut(usize::try_from(seq.0.checked_sub(1)?).ok()?)
    }

    /// Puts an entry at its place, behind the end or into a hole.
    fn put(&mut self, piece: &Piece, slot: Slot) {
        while self.last().0 + 1 < piece.seq.0 {
            self.slots.push(Slot::HOLE);
            self.holes.insert(self.last());
        }
        if self.last() < piece.seq {
            if piece.term > self.tail_damaged.unwrap_or(Term(u64::MAX)) {
                self.tail_damaged = None;
            }
            self.slots.push(slot);
        } else if let Some(old) = self.raw_mut(piece.seq) {
            *old = slot;
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

    fn forget(&mut self, seq: Seq) {
        if let Some(bytes) = self.recent.remove(&seq) {
            self.recent_bytes -= bytes.len();
        }
    }
}

/// Replay: what the device gives, in append order.
impl Log {
    /// A record that cannot be read stands here; `hint`: the first and last entry that it held, if
    /// known.
    pub(crate) fn replay_damaged(&mut self, hint: Option<(Seq, Seq)>, promised: Term) {
        let (first, last) = hint.unwrap_or((Seq(1), Seq(u64::MAX)));
        if self.slots.is_empty() {
            self.unplaced_to = self.unplaced_to.max(last);
        }
        self.tail_damaged
            .get_or_insert(self.last_term().max(promised));
        self.damaged_from = Some(self.damaged_from.map_or(first, |from| from.min(first)));
    }

    /// What damage took behind the end may have been of reigns up to this one.
    pub(crate) fn lost_up_to(&mut self, promised: Term) {
        self.tail_damaged = self.tail_damaged.map(|term| term.max(promised));
    }

    /// Replay is over.
    pub(crate) fn replay_ends(&mut self, promised: Term) {
        if self.unplaced_to > self.last() {
            self.tail_damaged
                .get_or_insert(self.last_term().max(promised));
        }
    }

    /// An entry. Gives the lowest entry that was removed or is doubted now, if any was.
    pub(crate) fn replay(&mut self, piece: &Piece, at: u64) -> Option<Seq> {
        let Piece { seq, term, .. } = *piece;
        if seq.0 == 0 {
            return None;
        }
        let new = Slot {
            term,
            at,
            len: piece.bytes.len() as u32,
            held: Held::Durable,
        };
        let mut lowest = None;
        let mut between = false;
        if seq <= self.last() {
            match self.slot(seq).map(|slot| slot.term) {
                Some(held) if held == term => {
                    if let Some(slot) = self.raw_mut(seq) {
                        slot.at = at;
                    }
                    return None;
                }
                Some(_) => {}
                None => between = self.may_fill(seq, term),
            }
            if !between {
                self.truncate(seq);
                lowest = Some(seq);
            }
        } else if seq.0 - self.last().0 > GAP_MAX {
            return None;
        } else if seq.0 > self.last().0 + 1 {
            // The damage is in front of this entry, not behind the end.
            self.tail_damaged = None;
        }
        self.put(piece, new);
        if !between {
            let expected = piece.prev_term.unwrap_or(term);
            let doubted = self.doubt(Seq(seq.0 - 1), expected);
            lowest = doubted.into_iter().chain(lowest).min();
        }
        lowest
    }

    /// Whether an entry of this term belongs into the hole: its neighbours, where they are held, do
    /// not say otherwise.
    fn may_fill(&self, seq: Seq, term: Term) -> bool {
        let below = self.term(self.held_at_or_before(Seq(seq.0 - 1)));
        let mut behind = Seq(seq.0 + 1);
        while behind <= self.last() && self.slot(behind).is_none() {
            behind.0 += 1;
        }
        let above = self.term_before(behind);
        let next = behind.0 == seq.0 + 1;
        let fits = above.is_some_and(|above| if next { above == term } else { above >= term });
        fits && below.is_none_or(|below| below <= term)
    }

    /// Makes an entry a hole.
    fn dig(&mut self, seq: Seq) {
        if let Some(slot) = self.raw_mut(seq) {
            *slot = Slot::HOLE;
            self.holes.insert(seq);
            self.starts.remove(&seq);
            self.chains.remove(&seq);
            self.forget(seq);
            self.durable = self.durable.min(Seq(seq.0 - 1));
        }
    }

    /// The entry at `seq` should be of term `expected`. If it is of another (or unreadable, with one
    /// of another in front), entries of that other term may have been superseded by some that
    /// damage took: they become holes.
    fn doubt(&mut self, seq: Seq, expected: Term) -> Option<Seq> {
        let below = self.held_at_or_before(seq);
        if self.term(below) == Some(expected) || below.0 == 0 {
            return None;
        }
        let floor = self.damaged_from.unwrap_or(Seq(1));
        let mut lowest = None;
        let mut doubted = below;
        while doubted.0 > 0 && doubted >= floor && self.term(doubted) != Some(expected) {
            self.dig(doubted);
            lowest = Some(doubted);
            doubted.0 -= 1;
        }
        lowest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(seq: u64, term: u64, prev_term: Option<u64>) -> Piece {
        let prev_term = prev_term.map(Term);
        Piece {
            seq: Seq(seq),
            term: Term(term),
            prev_term,
            mark: Mark::Nothing,
            bytes: Bytes::from_static(&[7; 100]),
        }
    }

    /// Entries `(seq, term)`, an entry whose term differs from the one replayed before it being a
    /// `TermStart` behind `prev_term`.
    fn replayed(entries: &[(u64, u64, Option<u64>)]) -> Log {
        let mut log = Log::new(1 << 20, &[DeviceNo(1)]);
        for (nth, (seq, term, prev_term)) in entries.iter().enumerate() {
            log.replay(&piece(*seq, *term, *prev_term), nth as u64 * 100);
        }
        log
    }

    fn terms(log: &Log) -> Vec<Option<u64>> {
        (1..=log.last().0)
            .map(|seq| log.term(Seq(seq)).map(|term| term.0))
            .collect()
    }

    #[test]
    fn a_higher_term_removes_what_it_supersedes() {
        let log = replayed(&[(1, 1, Some(0)), (2, 1, None), (3, 1, None), (2, 2, Some(1))]);
        assert_eq!(terms(&log), [Some(1), Some(2)]);
        assert_eq!(log.durable(), Seq(2));
        // A later head took back what an earlier one had begun.
        let log = replayed(&[
            (1, 1, Some(0)),
            (2, 2, Some(1)),
            (2, 1, None),
            (3, 3, Some(1)),
        ]);
        assert_eq!(terms(&log), [Some(1), Some(1), Some(3)]);
        assert!(log.is_whole());
        // The first of what it gave instead is lost: the other reign's entries are no part of it.
        let log = replayed(&[(1, 1, Some(0)), (2, 2, Some(1)), (3, 2, None), (3, 1, None)]);
        assert_eq!(terms(&log), [Some(1), None, Some(1)]);
    }

    #[test]
    fn a_copy_moves_an_entry() {
        let log = replayed(&[(1, 1, Some(0)), (2, 1, None), (1, 1, Some(0))]);
        assert_eq!(terms(&log), [Some(1), Some(1)]);
        assert_eq!(log.slot(Seq(1)).map(|slot| slot.at), Some(200));
    }

    #[test]
    fn a_gap_is_a_hole_until_it_is_filled() {
        let mut log = replayed(&[(1, 1, Some(0)), (4, 1, None)]);
        assert_eq!(terms(&log), [Some(1), None, None, Some(1)]);
        assert_eq!(log.holes(8), [(Seq(2), Seq(3))]);
        assert_eq!(
            (log.first_hole(), log.durable()),
            (Some((Seq(2), Seq(4))), Seq(1))
        );
        log.replay(&piece(3, 1, None), 900);
        log.replay(&piece(2, 1, None), 1000);
        assert_eq!((log.first_hole(), log.durable()), (None, Seq(4)));
    }

    #[test]
    fn what_a_lost_start_of_a_term_may_have_superseded_is_doubted() {
        // Term 2 began at 3 and went on to 4; its record of 3 and 4 is lost, 5 is there.
        let log = replayed(&[
            (1, 1, Some(0)),
            (2, 1, None),
            (3, 1, None),
            (4, 1, None),
            (5, 2, None),
        ]);
        assert_eq!(terms(&log), [None, None, None, None, Some(2)]);
        // All of term 2 is lost; term 3 says that it was there.
        let log = replayed(&[(1, 1, Some(0)), (2, 1, None), (3, 1, None), (3, 3, Some(2))]);
        assert_eq!(terms(&log), [None, None, Some(3)]);
        assert_eq!(log.durable(), Seq(0));
        // A hint says what was lost: what is before it cannot have been superseded.
        let mut log = replayed(&[(1, 1, Some(0)), (2, 1, None), (3, 1, None)]);
        log.replay_damaged(Some((Seq(2), Seq(3))), Term(0));
        log.replay(&piece(4, 2, None), 900);
        assert_eq!(terms(&log), [Some(1), None, None, Some(2)]);
    }

    #[test]
    fn damage_behind_everything_is_remembered_until_a_new_term() {
        let mut log = replayed(&[(1, 1, Some(0)), (2, 1, None)]);
        log.replay_damaged(None, Term(0));
        log.replay(&piece(3, 1, None), 900);
        assert!(
            log.tail_damaged(),
            "the entry may have been there before, with others"
        );
        log.replay(&piece(4, 2, Some(1)), 1000);
        assert!(!log.tail_damaged());
    }

    #[test]
    fn memory_is_bounded_but_for_what_is_on_its_way() {
        let mut log = Log::new(250, &[DeviceNo(1)]);
        for seq in 1..=5 {
            log.write(&piece(seq, 1, None));
        }
        assert_eq!((log.recent_bytes, log.writing_bytes()), (500, 500));
        for seq in 1..=5 {
            log.written(Seq(seq), Term(1), seq * 100);
        }
        assert_eq!((log.recent_bytes, log.writing_bytes()), (200, 0));
        assert!(log.recent(Seq(3)).is_none() && log.recent(Seq(4)).is_some());
        let run = log
            .run(Seq(1), Seq(5), 300)
            .map(|run| (run.last, run.at, run.len));
        assert_eq!(run, Some((Seq(3), 100, 300)));
        log.truncate(Seq(3));
        assert_eq!(
            (log.last(), log.durable(), log.recent_bytes),
            (Seq(2), Seq(2), 0)
        );
    }
}

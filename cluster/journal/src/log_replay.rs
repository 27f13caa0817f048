//! Replay: what the device gives, in append order.
//!
//! That is the order in which the replica wrote: an entry removes what is at or above it of other terms,
//! lower or (when a later head took that back) higher ones; one that is held already just moves; one for a
//! hole fills it. A `TermStart` that damage has swallowed would leave stale entries of lower terms in front
//! of its term's entries; since each `TermStart` names the term before it, that is noticed, and what may
//! be stale becomes holes.
//!
//! Invariants: those of [`crate::log`], which hold after each entry; what is forgotten stays so.

use ashlar_layout::ids::{Seq, Term};

use crate::entry::Piece;
use crate::log::{Held, Log, Slot};

/// Entries that may be missing between two that replay finds; more than that is no journal.
const GAP_MAX: u64 = 1 << 24;

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
        self.healed_by = None;
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
        // What is of an older reign than the last entry that is forgotten was superseded by that one, or by
        // others that are forgotten too, and do not remove it any more.
        if seq <= self.base || term < self.base_term() {
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
            // Where so much is missing, nothing can be said of the end either.
            self.replay_damaged(None, term);
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
            let before = std::mem::replace(slot, Slot::HOLE);
            self.bytes -= u64::from(before.len);
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
        // What is forgotten was committed: it was not superseded.
        if self.term(below) == Some(expected) || below <= self.base {
            return None;
        }
        let floor = self.damaged_from.unwrap_or(Seq(1));
        let mut lowest = None;
        let mut doubted = below;
        while doubted > self.base && doubted >= floor && self.term(doubted) != Some(expected) {
            self.dig(doubted);
            lowest = Some(doubted);
            doubted.0 -= 1;
        }
        lowest
    }
}

#[cfg(test)]
mod tests {
    use ashlar_layout::ids::DeviceNo;
    use bytes::Bytes;

    use crate::chain::Chain;
    use crate::entry::Mark;

    use super::*;

    fn chain() -> (Seq, Chain) {
        let chain = Chain {
            config: 1,
            members: vec![DeviceNo(1)],
        };
        (Seq(0), chain)
    }

    fn empty(memory_bytes: usize) -> Log {
        Log::new(memory_bytes, (Seq(0), Term(0)), chain())
    }

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
        let mut log = empty(1 << 20);
        for (nth, (seq, term, prev_term)) in entries.iter().enumerate() {
            log.replay(&piece(*seq, *term, *prev_term), nth as u64 * 100);
        }
        log
    }

    fn terms(log: &Log) -> Vec<Option<u64>> {
        (log.base().0 + 1..=log.last().0)
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
        let mut log = empty(250);
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
    #[test]
    fn what_is_forgotten_leaves_its_end_behind() {
        let mut log = replayed(&[
            (1, 1, Some(0)),
            (2, 1, None),
            (3, 2, Some(1)),
            (4, 2, None),
            (6, 2, None),
        ]);
        assert_eq!(log.dispensable(Seq(4), 0), Seq(4));
        assert_eq!(log.dispensable(Seq(4), 250), Seq(2));
        assert_eq!(log.dispensable(Seq(4), 10_000), Seq(0));
        log.forget_to(Seq(3), Term(2), chain());
        assert_eq!((log.base(), log.bytes()), (Seq(3), 200));
        assert_eq!(terms(&log), [Some(2), None, Some(2)]);
        assert_eq!((log.term(Seq(3)), log.term(Seq(2))), (Some(Term(2)), None));
        assert_eq!(
            (log.at_most(Seq(6), Term(1)), log.at_most(Seq(1), Term(9))),
            (Seq(3), Seq(1))
        );
        // What was known before is not doubted, nor taken again.
        assert_eq!(log.replay(&piece(3, 5, Some(1)), 0), None);
        assert_eq!(log.replay(&piece(4, 3, Some(2)), 900), Some(Seq(4)));
        assert_eq!((log.last(), log.durable()), (Seq(4), Seq(4)));
        // A snapshot reaches beyond the end.
        log.forget_to(Seq(9), Term(4), chain());
        assert_eq!(
            (log.last(), log.last_term(), log.durable()),
            (Seq(9), Term(4), Seq(9))
        );
        assert_eq!((log.bytes(), log.recent_bytes), (0, 0));
        log.replay(&piece(10, 4, None), 0);
        assert_eq!(log.durable(), Seq(10));
    }
}

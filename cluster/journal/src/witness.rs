//! The highest entry received for each key slot.
//!
//! Invariants:
//! - a slot is raised before the entry is acknowledged, indeed before it is given to the device, and
//!   by replay too; it is never lowered. So for every entry that this replica ever acknowledged, or
//!   that its device gave back, the slot of its key is at least there;
//! - an entry that changes two keys raises the slots of both;
//! - it may be higher than that: entries that were removed from the log since, other keys, or, after a
//!   restart, the last entry that the index covers: for what is in there, nothing else is known.
//!
//! Why a replica that has replayed a whole log may speak at once: what is committed was acknowledged
//! by n − f members, so it is durable on each of those. One that restarts finds it by replay, unless
//! its device lost it: then there is a hole, or its end is in doubt, and it does not speak until a head
//! has given it what it lacks. Behind a doubtful end that is so once an entry of a later reign has joined
//! on to its log: that reign's head had all that was committed, and the log agrees with it.

use std::collections::BTreeMap;

use ashlar_layout::ids::Seq;

use crate::entry::{Mark, Piece};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Witness {
    highest: BTreeMap<u32, Seq>,
    /// The highest entry of which it is not known which key it changes.
    any: Seq,
}

impl Witness {
    /// Of entries up to this one it is not known which keys they change.
    pub(crate) fn behind(covered: Seq) -> Self {
        Self {
            highest: BTreeMap::new(),
            any: covered,
        }
    }

    /// Entries up to this one came without being told one by one.
    pub(crate) fn learned(&mut self, at: Seq) {
        self.any = self.any.max(at);
    }

    pub(crate) fn raise(&mut self, piece: &Piece) {
        match piece.mark {
            Mark::Slot(slot) => self.raise_slot(slot, piece.seq),
            Mark::Slots(slots) => {
                for slot in slots {
                    self.raise_slot(slot, piece.seq);
                }
            }
            Mark::Any => self.any = self.any.max(piece.seq),
            Mark::Nothing | Mark::Chain(_) => {}
        }
    }

    fn raise_slot(&mut self, slot: u32, seq: Seq) {
        let held = self.highest.entry(slot).or_default();
        *held = seq.max(*held);
    }

    /// The highest entry received for any key of the slot.
    pub(crate) fn highest(&self, slot: u32) -> Seq {
        let held = self.highest.get(&slot).copied().unwrap_or_default();
        held.max(self.any)
    }
}

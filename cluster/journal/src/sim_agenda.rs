//! What will happen in a simulation, and when: of two things at one time, what was planned first comes first.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BinaryHeap};

/// See the module.
#[derive(Debug)]
pub(crate) struct Agenda<H> {
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, H>,
    order: u64,
}

impl<H> Default for Agenda<H> {
    fn default() -> Self {
        Agenda {
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            order: 0,
        }
    }
}

impl<H> Agenda<H> {
    /// Plans something for this time.
    pub(crate) fn put(&mut self, time: u64, what: H) {
        self.order += 1;
        self.queue.push(Reverse((time, self.order)));
        self.happenings.insert(self.order, what);
    }

    /// What comes next, if that is not after `end`; and when.
    pub(crate) fn next(&mut self, end: u64) -> Option<(u64, H)> {
        let next = self.queue.peek_mut();
        let next = next.filter(|next| next.0.0 <= end)?;
        let Reverse((time, order)) = PeekMut::pop(next);
        Some((time, self.happenings.remove(&order)?))
    }

    /// All that is planned, in the order in which that was done.
    pub(crate) fn all(&self) -> impl Iterator<Item = &H> {
        self.happenings.values()
    }
}

//! The head's lease: for how long it may serve without hearing from the others.
//!
//! Invariants:
//! - it counts from the time at which the head *sent* what enough followers answered, by its own
//!   clock, and holds for half of what the followers grant from the time at which they *received* it.
//!   So it ends before any of them promises another reign, as long as no clock runs twice as fast as
//!   another;
//! - so many followers that with the head they make a quorum: every later head needs the promise of
//!   one of them;
//! - reads, and refusals, which tell of the state as well, are given under the lease only.

use ashlar_layout::time::Instant;

use crate::api::Action;
use crate::mutants::mutant;
use crate::replica::{Replica, Role};

impl Replica {
    /// How many others make a quorum with this head: one more if it is about to leave the chain.
    pub(crate) fn others_needed(&self) -> usize {
        let chain = self.log.chain();
        chain.quorum() - usize::from(chain.contains(self.config.me))
    }

    /// When what enough followers answered was sent. None: not enough of them did.
    fn heard_since(&self) -> Option<Instant> {
        let needed = self.others_needed().checked_sub(1)?;
        // Asked in every round of the loop: nothing is gathered, and a chain is short.
        let stamps = || {
            let members = self.log.chain().members.iter();
            let others = members.filter(|member| **member != self.config.me);
            others.filter_map(|member| self.progress(*member)?.stamp)
        };
        let newer = |than: Instant| stamps().filter(|stamp| *stamp > than).count();
        let enough = stamps().count() > needed;
        let so_new = stamps().filter(|stamp| newer(*stamp) <= needed);
        so_new.min().filter(|_| enough)
    }

    /// Whether no other head can have been chosen.
    pub(crate) fn lease_holds(&self, now: Instant) -> bool {
        if self.others_needed() == 0 {
            return true;
        }
        let lease = self.config.limits.lease;
        let lease = if mutant!(self, LeaseTooLong) {
            lease * 4
        } else {
            lease / 2
        };
        self.heard_since().is_some_and(|since| now < since + lease)
    }

    /// When a head that hears too little gives up: the others may hear it all the same, and would wait
    /// for it for ever.
    pub(crate) fn fence_deadline(&self) -> Option<Instant> {
        if self.role != Role::Head || self.head.stuck || self.others_needed() == 0 {
            return None;
        }
        let since = self.heard_since().unwrap_or_default();
        Some(since.max(self.head.since) + self.config.limits.lease * 2)
    }

    pub(crate) fn on_deadline_fence(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.fence_deadline().is_some_and(|at| at <= now) {
            let away = self.away();
            let why = format!("too few replicas answer the head; away: {away}");
            self.step_down(now, &why, out);
        }
    }
}

//! An index that is made beside another one of the same partition, to take its place.
//!
//! Invariants:
//! - until it has everything, it writes no root: the other one's stands, and a crash leaves that;
//! - its first root has a higher generation than the other's last, which is known by then;
//! - its runs have names that no run of the other one, nor of any that was made before, has.

use ashlar_layout::ids::Seq;

use crate::api::Config;
use crate::index::Index;

/// Runs of one life that an index made beside another may name.
const NAMES: u32 = 1 << 24;

/// Whether runs are published by roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Standing {
    /// They are.
    Rooted,
    /// Not before one that covers this entry, if it is known.
    Beside(Option<Seq>),
    /// Not any more.
    Over,
}

impl Standing {
    pub(crate) fn publishes(self, covered: Seq) -> bool {
        match self {
            Standing::Rooted => true,
            Standing::Beside(at) => at.is_some_and(|at| covered >= at),
            Standing::Over => false,
        }
    }

    pub(crate) fn after_root(self) -> Self {
        match self {
            Standing::Over => Standing::Over,
            _ => Standing::Rooted,
        }
    }
}

impl Index {
    /// An index to be filled by [`Index::ingest`], the `nth` of this life, from 1. None if there were too many.
    pub fn learning(config: Config, nth: u32) -> Option<Self> {
        Self::new(config).beside(nth).ok()
    }

    /// This one, made of other indexes, as the `nth` of its life: to take another's place as if it had been filled.
    /// It comes back as it was if there were too many.
    pub fn beside(mut self, nth: u32) -> Result<Self, Box<Self>> {
        match nth.checked_mul(NAMES).filter(|_| nth > 0) {
            Some(next_run) => {
                self.next_run = next_run;
                self.standing = Standing::Beside(None);
                Ok(self)
            }
            None => Err(Box::new(self)),
        }
    }

    /// All of a snapshot at this entry was ingested. The next table that is frozen is published by a root, the
    /// first one, with a higher generation than this.
    pub fn learned(&mut self, at: Seq, generation: u64) {
        self.ingested(at);
        self.generation = self.generation.max(generation);
        self.standing = Standing::Beside(Some(at));
    }

    /// Writes no more; false as long as its last root may still be on its way. It goes on to answer.
    pub fn retire_from_writing(&mut self) -> bool {
        self.standing = Standing::Over;
        self.publishing.is_none()
    }

    /// Writes again: nothing came of what was to take its place.
    pub fn write_again(&mut self) {
        if self.standing == Standing::Over {
            self.standing = Standing::Rooted;
            self.runnable = true;
        }
    }

    /// The number of its newest root.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether it takes another change now.
    pub fn has_room(&self) -> bool {
        self.active.bytes() < 2 * self.config.limits.table_bytes && self.stopped.is_none()
    }
}

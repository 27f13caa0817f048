//! What was worked out already: how a replica is after an event, and how it looks at some time.
//!
//! The same few thousand states of single replicas come up in millions of states of the whole. Invariants:
//! - what is looked up is what working it out would give: the key holds all that it depends on;
//! - it is bounded: what is full is emptied, and worked out again.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasherDefault;
use std::sync::{Arc, Mutex, PoisonError};

use crate::hash::{self, Fold};
use crate::local::{Cause, Face, Local, Step};
use crate::plan::Plan;

type Map<T> = HashMap<u64, Arc<T>, BuildHasherDefault<Fold>>;

/// Parts, so that threads seldom wait for each other.
const PARTS: usize = 64;
/// Entries of one part, at most.
const PART_MAX: usize = 8_000;

struct Table<T>(Vec<Mutex<Map<T>>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self((0..PARTS).map(|_| Mutex::default()).collect())
    }
}

impl<T> Table<T> {
    fn get(&self, key: u64, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        let part = &self.0[(key >> 58) as usize % PARTS];
        let held = |part: &Mutex<Map<T>>| {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            part.get(&key).cloned()
        };
        if let Some(held) = held(part) {
            return held;
        }
        // Not under the lock: it takes a while.
        let made = make();
        let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
        if part.len() >= PART_MAX {
            part.clear();
        }
        part.entry(key).or_insert(made).clone()
    }
}

/// See the module.
#[derive(Default)]
pub struct Memo {
    steps: Table<Step>,
    locals: Table<Local>,
    faces: Table<Face>,
}

impl fmt::Debug for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memo")
    }
}

impl Plan {
    /// What becomes of a replica.
    pub fn step(&self, at: usize, local: &Arc<Local>, now: u64, cause: &Cause) -> Arc<Step> {
        let what = match cause {
            Cause::Start => (0, 0, 0),
            Cause::Crash { keep, rot } => (1, *keep as u64, u64::from(*rot)),
            Cause::Up(peer) => (2, *peer as u64, 0),
            Cause::Down(peer) => (3, *peer as u64, 0),
            Cause::Letter(letter) => (4, letter.hash(), 0),
            Cause::Flush => (5, 0, 0),
            Cause::Deadline => (6, 0, 0),
            Cause::Propose(client, attempt) => (7, *client as u64, hash::of(attempt)),
            Cause::Desired(version) => (8, u64::from(*version), 0),
            Cause::Index => (9, 0, 0),
            Cause::Other(_) => return Arc::new(local.step(self, at, now, cause)),
        };
        let key = hash::of(&(at, local.hash, now, what));
        self.memo.steps.get(key, || {
            let Step {
                after,
                face,
                effects,
            } = local.step(self, at, now, cause);
            // What differs in nothing takes its memory once.
            let after = self.memo.locals.get(after.hash, || after.clone());
            let key = hash::of(&(at, after.hash, now));
            let face = self.memo.faces.get(key, || face.clone());
            Arc::new(Step {
                after,
                face,
                effects,
            })
        })
    }

    /// How a replica looks.
    pub fn face(&self, at: usize, local: &Local, now: u64) -> Arc<Face> {
        let key = hash::of(&(at, local.hash, now));
        let make = || Arc::new(local.face(self, at, now));
        self.memo.faces.get(key, make)
    }
}

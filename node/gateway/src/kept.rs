//! Documents that are kept, and how long they stand without being asked for.
//!
//! Invariants:
//! - a document stands for [`LEASE`] from when the store was asked for it, by a clock that nobody sets. No longer,
//!   whatever was asked since and is not answered;
//! - whoever changed a document, or took it away, waits for [`SETTLE`] from when the store has done it, before
//!   anybody is told that it is done. That is longer than a lease: whoever asks for something after they were told is
//!   judged, at every gateway, by what the store was asked for after the change;
//! - of what is not there nothing is kept: no lease says that there is none.
//!
//! Both count how long something took, on two machines, and compare no clocks: Gray and Cheriton, "Leases: an efficient
//! fault-tolerant mechanism for distributed file cache consistency" (1989), with all holders waited for, as if none of
//! them could be reached.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ashlar_layout::ids::Seq;

/// How long a document stands.
pub(crate) const LEASE: Duration = Duration::from_millis(45);
/// After so much of that it is asked for again beside the requests that it serves: who comes often never waits.
const RENEW: Duration = Duration::from_millis(15);
/// How long is waited for leases to end. Clocks that count a tenth too slow are borne.
const SETTLE: Duration = Duration::from_millis(50);
/// Documents of one kind that are kept, with what was made of them.
const KEPT: usize = 4096;

/// A document, and when the store was asked for it: it was so then, or later.
pub(crate) type Since<T> = (T, Instant);

/// Waits until nobody goes by what was there before a change.
pub(crate) async fn settle() {
    tokio::time::sleep(SETTLE).await;
}

/// What was made of documents, by name.
#[derive(Debug)]
pub(crate) struct Kept<T>(Mutex<HashMap<String, Entry<T>>>);

#[derive(Debug)]
struct Entry<T> {
    version: Seq,
    open: Arc<T>,
    asked: Instant,
    /// Somebody asks for it again.
    renewed: bool,
}

/// Whether something that is kept may be gone by.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stands<T> {
    Yes(T),
    /// It may, and whoever is told this asks for it again meanwhile.
    Renew(T),
    No,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept(Mutex::default())
    }
}

impl<T> Kept<T> {
    fn with<R>(&self, look: impl FnOnce(&mut HashMap<String, Entry<T>>) -> R) -> R {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A document, if it stands.
    pub(crate) fn stands(&self, name: &str, now: Instant) -> Stands<Since<Arc<T>>> {
        self.with(|kept| {
            let Some(entry) = kept.get_mut(name) else {
                return Stands::No;
            };
            let age = now.saturating_duration_since(entry.asked);
            let found = (entry.open.clone(), entry.asked);
            match age {
                _ if age >= LEASE => Stands::No,
                _ if age >= RENEW && !entry.renewed => {
                    entry.renewed = true;
                    Stands::Renew(found)
                }
                _ => Stands::Yes(found),
            }
        })
    }

    /// What was made of this version of it.
    pub(crate) fn version(&self, name: &str, version: Seq) -> Option<Arc<T>> {
        self.with(|kept| {
            let entry = kept.get(name)?;
            (entry.version == version).then(|| entry.open.clone())
        })
    }

    /// What is kept of it, whether it stands or not.
    pub(crate) fn last(&self, name: &str) -> Option<Since<Arc<T>>> {
        self.with(|kept| {
            kept.get(name)
                .map(|entry| (entry.open.clone(), entry.asked))
        })
    }

    /// Of what is gone nothing is kept: nothing is read ahead for whoever comes by it.
    pub(crate) fn forget(&self, name: &str) {
        self.with(|kept| kept.remove(name));
    }

    /// Keeps what the store had when it was asked then, unless it was asked since, too.
    pub(crate) fn keep(&self, name: &str, version: Seq, open: &Arc<T>, asked: Instant) {
        self.with(|kept| {
            if kept.get(name).is_some_and(|entry| entry.asked > asked) {
                return;
            }
            if kept.len() >= KEPT && !kept.contains_key(name) {
                // Whatever was used lately is soon here again.
                kept.clear();
            }
            let entry = Entry {
                version,
                open: open.clone(),
                asked,
                renewed: false,
            };
            kept.insert(name.to_owned(), entry);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn whoever_changes_something_waits_for_longer_than_it_stands() {
        assert!(SETTLE >= LEASE + LEASE / 10 && RENEW < LEASE / 2);
    }

    #[test]
    fn a_document_stands_from_when_it_was_asked_for() {
        let (kept, start) = (Kept::default(), Instant::now());
        assert_eq!(kept.stands("a", start), Stands::No);
        kept.keep("a", Seq(1), &Arc::new(7), start);
        let found = (Arc::new(7), start);
        for millis in [0, 14] {
            assert_eq!(
                kept.stands("a", after(start, millis)),
                Stands::Yes(found.clone())
            );
        }
        // One of those who come asks again; what it says does not count before it is said.
        let renew = Stands::Renew(found.clone());
        assert_eq!(kept.stands("a", after(start, 15)), renew);
        assert_eq!(kept.stands("a", after(start, 44)), Stands::Yes(found));
        assert_eq!(kept.stands("a", after(start, 45)), Stands::No);
        assert_eq!(kept.last("a"), Some((Arc::new(7), start)));
        // From when it was asked for, not from when that was answered.
        kept.keep("a", Seq(1), &Arc::new(7), after(start, 16));
        assert_eq!(kept.stands("a", after(start, 61)), Stands::No);
        kept.keep("a", Seq(1), &Arc::new(7), after(start, 40));
        let renew = Stands::Renew((Arc::new(7), after(start, 40)));
        assert_eq!(kept.stands("a", after(start, 61)), renew);
        kept.forget("a");
        assert_eq!(kept.stands("a", after(start, 61)), Stands::No);
    }

    #[test]
    fn answers_that_come_late() {
        let (kept, start) = (Kept::default(), Instant::now());
        kept.keep("a", Seq(2), &Arc::new(2), after(start, 10));
        kept.keep("a", Seq(1), &Arc::new(1), start);
        assert_eq!(kept.last("a"), Some((Arc::new(2), after(start, 10))));
        assert_eq!(kept.version("a", Seq(1)), None);
        assert_eq!(kept.version("a", Seq(2)), Some(Arc::new(2)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (kept, start) = (Kept::default(), Instant::now());
        for i in 0..=KEPT {
            kept.keep(&i.to_string(), Seq(1), &Arc::new(i), start);
        }
        assert_eq!(kept.with(|kept| kept.len()), 1);
    }
}

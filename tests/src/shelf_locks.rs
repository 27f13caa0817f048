//! Whether what was locked is there for as long as it is locked.
//!
//! This looks at no order of deeds: from when a lock was acknowledged until somebody may have made it less, the version
//! is there, and nobody is told that it was removed.

use std::collections::BTreeMap;

use ashlar_layout::lock::Lock;

use crate::history::{Key, NEVER};
use crate::shelf::{Deed, Id, Making, Said, Slot, Tag, What, may_become};

/// A lock that was acknowledged.
struct Locked<'a> {
    deed: &'a Deed,
    id: Id,
    lock: Lock,
    /// From then on it may be another one.
    until: u64,
}

/// The locks of each key's versions that have names of their own.
fn locked(deeds: &[Deed]) -> BTreeMap<Key, Vec<Locked<'_>>> {
    let mut all: BTreeMap<Key, Vec<Locked<'_>>> = BTreeMap::new();
    for deed in deeds {
        let Said::Done(entry) = deed.said else {
            continue;
        };
        let (id, lock) = match &deed.what {
            What::Put {
                making: Making::Version { null: false, lock },
                ..
            } => (entry, *lock),
            What::Rewrite(it) if it.tag == Tag::Own => (it.found.id, it.lock),
            _ => continue,
        };
        if !lock.keeps(deed.clock.1, true) && !lock.keeps(deed.clock.1, false) {
            continue;
        }
        let less = |other: &Deed| match &other.what {
            What::Rewrite(it) if it.found.id == id && other.key == deed.key => {
                let held = lock.hold == Some(true) && it.lock.hold != Some(true);
                held || !may_become(&lock, &it.lock, 0, false)
            }
            _ => false,
        };
        let refused = |it: &Deed| matches!(it.said, Said::Refused(_));
        let others = deeds
            .iter()
            .filter(|it| !deed.is_behind(it) && !refused(it) && less(it));
        let until = others.map(|it| it.invoke).min().unwrap_or(NEVER);
        all.entry(deed.key).or_default().push(Locked {
            deed,
            id,
            lock,
            until,
        });
    }
    all
}

/// What is wrong: versions that are gone, or said to be, though a lock keeps them.
pub fn check(deeds: &[Deed]) -> Vec<String> {
    let all = locked(deeds);
    let mut wrong = Vec::new();
    for deed in deeds {
        for it in all.get(&deed.key).into_iter().flatten() {
            if !deed.is_behind(it.deed) || deed.end() >= it.until {
                continue;
            }
            let slot = Slot::Own(it.id);
            let late = deed.clock.1;
            let missing = match (&deed.what, &deed.said) {
                (
                    What::Drop {
                        slot: at, bypass, ..
                    },
                    Said::Done(_),
                ) => *at == slot && it.lock.keeps(late, *bypass),
                // Somebody else may have been let pass by governance.
                (What::Look(Some(at)), Said::Nothing) => *at == slot && it.lock.keeps(late, true),
                (
                    What::List {
                        below: None,
                        bottom: true,
                    },
                    Said::Page(page),
                ) => page.iter().all(|view| view.slot() != slot) && it.lock.keeps(late, true),
                _ => false,
            };
            if missing {
                wrong.push(format!(
                    "key {}: version {} is locked, and gone:\n    {:?}\n    {deed:?}",
                    deed.key, it.id, it.deed
                ));
            }
        }
    }
    wrong
}

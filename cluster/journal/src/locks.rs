//! Locks of versions: what they refuse.
//!
//! Invariants:
//! - the bytes of a version whose lock lasts are freed by nothing, and are not changed: neither by its removal, nor by
//!   one that would take its place, nor by its being written anew;
//! - a lock is made less by nobody but who may: what it refuses, it refuses in the same decision that gives a change
//!   its place in the log. So of a lock and a removal that come together one is first, and the other one is told so;
//! - time is that of the proposal, by the head's clock.

use ashlar_layout::lock::{Lock, RetentionMode};
use ashlar_layout::manifest::{Manifest, Op};
use ashlar_layout::message::ErrorCode;

use crate::pending::Held;

/// Whether a lock may become another one. A hold may be set and taken back by whoever may do that at all; a retention
/// may always be made longer.
pub(crate) fn may_become(old: &Lock, new: &Lock, now_ms: u64, bypass: bool) -> bool {
    let Some(was) = old.retention.filter(|retention| retention.lasts(now_ms)) else {
        return true;
    };
    if bypass && was.mode == RetentionMode::Governance {
        return true;
    }
    // Compliance in the place of governance could not be taken back by who may take governance back.
    new.retention
        .is_some_and(|is| is.mode == was.mode && is.until_ms >= was.until_ms)
}

fn lock_of(held: Option<&Held>) -> Lock {
    held.map_or(Lock::NONE, |held| held.named().lock)
}

fn keeps(held: Option<&Held>, now_ms: u64) -> bool {
    lock_of(held).keeps(now_ms, false)
}

/// Whether a version that is kept would have other bytes.
fn is_changed(held: Option<&Held>, manifest: &Manifest, now_ms: u64) -> bool {
    let same = |held: &Held| {
        let was = &held.manifest;
        was.size == manifest.size && was.crc == manifest.crc && was.body == manifest.body
    };
    keeps(held, now_ms) && !held.is_some_and(same)
}

/// Whether locks let a change be made that may be made else: by the current object, and the version that it is about
/// or takes the place of.
pub(crate) fn judge(
    op: &Op,
    current: Option<&Held>,
    first: Option<&Held>,
    now_ms: u64,
) -> Result<(), (ErrorCode, &'static str)> {
    let locked = |what| Err((ErrorCode::Locked, what));
    match op {
        Op::PutVersion { tag, .. } if tag.id.0 == 0 && tag.null && keeps(first, now_ms) => {
            locked("the null version is locked, and a new one would take its place")
        }
        Op::PutVersion { tag, .. } if tag.id.0 == 0 => Ok(()),
        Op::PutVersion {
            tag, current: true, ..
        } if tag.null && current.is_some_and(|it| it.tag.is_none()) && keeps(first, now_ms) => {
            locked("the null version is locked, and what is current would take its place")
        }
        Op::PutVersion {
            current: is_current,
            manifest,
            ..
        } => {
            let held = if *is_current { current } else { first };
            match is_changed(held, manifest, now_ms) {
                true => locked("that version is locked: it cannot have other bytes"),
                false => Ok(()),
            }
        }
        Op::DropVersion { bypass, .. } if lock_of(first).keeps(now_ms, *bypass) => locked(
            "that version is locked: it cannot be removed before its retention is over and nobody holds it",
        ),
        Op::LockVersion {
            tag,
            current: is_current,
            bypass,
            ..
        } => {
            let held = if *is_current { current } else { first };
            match may_become(&lock_of(held), &tag.lock, now_ms, *bypass) {
                true => Ok(()),
                false => locked("the retention of that version cannot be made less"),
            }
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use ashlar_layout::lock::Retention;

    use super::*;

    fn until(mode: RetentionMode, until_ms: u64) -> Lock {
        Lock {
            retention: Some(Retention { mode, until_ms }),
            hold: None,
        }
    }

    #[test]
    fn what_a_lock_may_become() {
        use RetentionMode::{Compliance, Governance};
        let (none, now) = (Lock::NONE, 50);
        let may = |old: Lock, new: Lock, bypass| may_become(&old, &new, now, bypass);
        for mode in [Governance, Compliance] {
            for bypass in [false, true] {
                assert!(may(none, until(mode, 60), bypass), "there was none");
                assert!(may(until(mode, 60), until(mode, 60), bypass), "the same");
                assert!(may(until(mode, 60), until(mode, 61), bypass), "longer");
                for new in [none, until(mode, 10), until(Governance, 51)] {
                    assert!(may(until(mode, 50), new, bypass), "it is over");
                }
            }
        }
        for new in [
            none,
            until(Governance, 59),
            until(Compliance, 59),
            until(Compliance, 70),
        ] {
            assert!(!may(until(Governance, 60), new, false), "{new:?}");
            assert!(may(until(Governance, 60), new, true), "{new:?}");
        }
        for new in [
            none,
            until(Compliance, 59),
            until(Governance, 60),
            until(Governance, 70),
        ] {
            for bypass in [false, true] {
                assert!(!may(until(Compliance, 60), new, bypass), "{new:?}");
            }
        }
    }

    #[test]
    fn a_hold_comes_and_goes_beside_a_retention() {
        let kept = until(RetentionMode::Compliance, 60);
        let held = Lock {
            hold: Some(true),
            ..kept
        };
        assert!(may_become(&kept, &held, 50, false));
        assert!(may_become(&held, &kept, 50, false));
        let alone = Lock {
            hold: Some(true),
            ..Lock::NONE
        };
        assert!(!may_become(&held, &alone, 50, true));
        assert!(may_become(&alone, &Lock::NONE, 50, false));
    }
}

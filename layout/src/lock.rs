//! What keeps a version of an object from being removed: S3 calls it object lock.
//!
//! Invariant: a lock is part of what its version is, and stands wherever the version's name does. Who names a version
//! and means another lock than it has does not name it.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

/// Who may shorten a retention, and remove what it keeps before its time.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, SchemaWrite, SchemaRead, Serialize, Deserialize,
)]
pub enum RetentionMode {
    /// Whoever is allowed to, and says so.
    Governance,
    /// Nobody.
    Compliance,
}

/// A version is kept until then.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, SchemaWrite, SchemaRead, Serialize, Deserialize,
)]
pub struct Retention {
    /// Who may end it before that.
    pub mode: RetentionMode,
    /// Milliseconds since 1970: at that moment it is over.
    pub until_ms: u64,
}

impl Retention {
    /// Whether it still counts.
    pub fn lasts(&self, now_ms: u64) -> bool {
        self.until_ms > now_ms
    }
}

/// What keeps a version of an object from being removed.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    SchemaWrite,
    SchemaRead,
    Serialize,
    Deserialize,
)]
pub struct Lock {
    /// A time that has to pass.
    pub retention: Option<Retention>,
    /// Whether somebody holds it, for as long as that says so; none if nobody ever said anything of it.
    pub hold: Option<bool>,
}

impl Lock {
    /// Nothing does.
    pub const NONE: Lock = Lock {
        retention: None,
        hold: None,
    };

    /// Whether nobody ever said anything of a lock.
    pub fn is_none(&self) -> bool {
        *self == Lock::NONE
    }

    /// Whether the version has to stay. `bypass`: whoever asks may do what governance forbids.
    pub fn keeps(&self, now_ms: u64, bypass: bool) -> bool {
        let retained =
            |it: &Retention| it.lasts(now_ms) && !(bypass && it.mode == RetentionMode::Governance);
        self.hold == Some(true) || self.retention.as_ref().is_some_and(retained)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until(mode: RetentionMode, until_ms: u64) -> Lock {
        Lock {
            retention: Some(Retention { mode, until_ms }),
            hold: None,
        }
    }

    #[test]
    fn a_retention_keeps_until_its_time() {
        use RetentionMode::{Compliance, Governance};
        for mode in [Governance, Compliance] {
            let lock = until(mode, 100);
            assert!(lock.keeps(0, false) && lock.keeps(99, false));
            assert!(!lock.keeps(100, false) && !lock.keeps(101, false));
        }
        assert!(!until(Governance, 100).keeps(99, true));
        assert!(until(Compliance, 100).keeps(99, true));
        assert!(!until(Compliance, 100).keeps(100, true));
    }

    #[test]
    fn a_hold_keeps_whatever_the_time() {
        let held = Lock {
            hold: Some(true),
            ..Lock::NONE
        };
        assert!(held.keeps(u64::MAX, true) && held.keeps(0, false));
        for hold in [None, Some(false)] {
            assert!(!Lock { hold, ..Lock::NONE }.keeps(0, false));
        }
        let over = Lock {
            hold: Some(true),
            ..until(RetentionMode::Governance, 5)
        };
        assert!(over.keeps(9, true));
    }

    #[test]
    fn nothing_said_and_something_taken_back() {
        assert!(Lock::default().is_none());
        let off = Lock {
            hold: Some(false),
            ..Lock::NONE
        };
        assert!(!off.is_none());
    }
}

//! What is kept of shards that no object names, as a document of each device.
//!
//! ```text
//! audit/orphans/DEVICE         those that stand on it, and how many were found on which day
//! ```
//!
//! Invariants:
//! - a shard is in it once, and is counted on the day that it came into it: what stands and what was counted are
//!   written together, so that nobody counts it again, whoever is killed when;
//! - it is bounded: what has no room is not in it, nor counted, and it says that there is more.

use std::collections::BTreeMap;

use ashlar_layout::ids::{DeviceNo, StripeId};
use serde::{Deserialize, Serialize};

use crate::record::Document;
use crate::tally::Kind;

/// What the keys of these documents begin with.
pub const ORPHANS: &str = "audit/orphans/";
/// Most shards that it has,
pub const ORPHANS_MAX: usize = 8192;
/// and most days.
const DAYS_MAX: usize = 4096;

/// Where the document of a device stands.
pub fn orphans_key(device: DeviceNo) -> String {
    format!("{ORPHANS}{device:010}")
}

/// A shard that no object names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orphan {
    /// The stripe that it is of,
    pub stripe: StripeId,
    /// and the how many-th of its shards.
    pub index: u16,
    /// Its bytes.
    pub bytes: u64,
    /// When it was found.
    pub found_ms: u64,
}

/// The shards of a device that no object names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orphans {
    /// Which device.
    pub device: DeviceNo,
    /// When its last census ended.
    pub at_ms: u64,
    /// How many did.
    pub censuses: u64,
    /// Those that stand, by their places in the device's index.
    pub shards: BTreeMap<u64, Orphan>,
    /// There are more than these.
    #[serde(default)]
    pub more: bool,
    /// How many were found, by days since 1970.
    pub found: BTreeMap<u64, u64>,
    /// How many of those stand no more, or are asked for again.
    pub cleared: u64,
}

impl Orphans {
    /// Bytes of those that stand.
    pub fn bytes(&self) -> u64 {
        self.shards.values().map(|shard| shard.bytes).sum()
    }

    /// How many were found, as far as days are kept.
    pub fn counted(&self) -> u64 {
        self.found.values().sum()
    }

    /// Takes one in; false if it has no room for it.
    pub(crate) fn take(&mut self, place: u64, orphan: Orphan, day: u64) -> bool {
        if self.shards.len() >= ORPHANS_MAX {
            self.more = true;
            return false;
        }
        if self.shards.insert(place, orphan).is_none() {
            *self.found.entry(day).or_default() += 1;
        }
        while self.found.len() > DAYS_MAX {
            self.found.pop_first();
        }
        true
    }
}

impl Document for Orphans {
    fn kinds(&self) -> impl Iterator<Item = Kind> {
        std::iter::once(Kind::Orphan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{decode, encode};

    fn full() -> Orphans {
        let mut all = Orphans {
            device: DeviceNo(u32::MAX),
            at_ms: u64::MAX,
            ..Orphans::default()
        };
        let orphan = Orphan {
            stripe: StripeId {
                writer: u64::MAX,
                attempt: u64::MAX,
            },
            index: u16::MAX,
            bytes: u64::from(u32::MAX),
            found_ms: u64::MAX,
        };
        let mut day = 0;
        while all.take((1 << 47) - 1 - day, orphan.clone(), day) {
            day += 1;
        }
        all
    }

    #[test]
    fn a_full_one_is_written_and_read() {
        let all = full();
        assert_eq!((all.shards.len(), all.more), (ORPHANS_MAX, true));
        assert_eq!(all.found.len(), DAYS_MAX);
        assert_eq!(all.bytes(), ORPHANS_MAX as u64 * u64::from(u32::MAX));
        let bytes = encode(&all).unwrap();
        assert!(bytes.starts_with(b"ashlar-audit 2 "));
        assert_eq!(decode(&bytes), Ok(all));
    }

    #[test]
    fn each_is_counted_once() {
        let mut some = Orphans::default();
        assert!(some.take(7, Orphan::default(), 3));
        assert!(some.take(7, Orphan::default(), 4));
        assert!(some.take(8, Orphan::default(), 4));
        assert_eq!(some.found, BTreeMap::from([(3, 1), (4, 1)]));
    }

    #[test]
    fn keys_are_of_devices() {
        assert_eq!(orphans_key(DeviceNo(7)), "audit/orphans/0000000007");
        assert!(orphans_key(DeviceNo(9)) < orphans_key(DeviceNo(10)));
    }
}

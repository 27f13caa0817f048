//! What is counted of audits: sums that can be added to each other, and nothing else.

use std::collections::BTreeMap;

use ashlar_layout::message::FindingKind;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What was wrong with a shard, or with a replica of a partition.
///
/// A document may have been written by a later program, which knows more of them: those are [`Kind::Other`] here, so
/// that none is left out of a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A shard that should be there and is not.
    Missing,
    /// Bytes that do not match their checksum.
    Rot,
    /// A whole record, but not the one that is meant.
    WrongRecord,
    /// A block that the device would not read.
    Unreadable,
    /// A record of which the front was written, and the rest was not.
    Torn,
    /// What was there before, or nothing: the write never came.
    LostWrite,
    /// A record of another place, or of another device.
    Misdirected,
    /// A record of an earlier life of the extent: the write never came.
    StaleIncarnation,
    /// No shard: a replica of a partition whose index does not say what those of others say.
    DivergentReplica,
    /// A shard that no object names.
    Orphan,
    /// Of a kind that this program does not know.
    Other,
}

impl Kind {
    /// All of them, in their order.
    pub const ALL: [Kind; 11] = [
        Kind::Missing,
        Kind::Rot,
        Kind::WrongRecord,
        Kind::Unreadable,
        Kind::Torn,
        Kind::LostWrite,
        Kind::Misdirected,
        Kind::StaleIncarnation,
        Kind::DivergentReplica,
        Kind::Orphan,
        Kind::Other,
    ];

    /// As it is told, and written.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Missing => "missing",
            Kind::Rot => "rot",
            Kind::WrongRecord => "wrong-record",
            Kind::Unreadable => "unreadable",
            Kind::Torn => "torn",
            Kind::LostWrite => "lost-write",
            Kind::Misdirected => "misdirected",
            Kind::StaleIncarnation => "stale-incarnation",
            Kind::DivergentReplica => "divergent-replica",
            Kind::Orphan => "orphan",
            Kind::Other => "other",
        }
    }

    /// Whether it is said of shards that some object needs.
    pub fn is_of_shards(self) -> bool {
        !matches!(self, Kind::DivergentReplica | Kind::Orphan)
    }

    /// Whether documents of version 1 have it.
    pub(crate) fn is_plain(self) -> bool {
        matches!(
            self,
            Kind::Missing | Kind::Rot | Kind::WrongRecord | Kind::Unreadable
        )
    }
}

impl From<FindingKind> for Kind {
    fn from(kind: FindingKind) -> Kind {
        match kind {
            FindingKind::Missing => Kind::Missing,
            FindingKind::Rot => Kind::Rot,
            FindingKind::WrongRecord => Kind::WrongRecord,
            FindingKind::Unreadable => Kind::Unreadable,
            FindingKind::Torn => Kind::Torn,
            FindingKind::LostWrite => Kind::LostWrite,
            FindingKind::Misdirected => Kind::Misdirected,
            FindingKind::StaleIncarnation => Kind::StaleIncarnation,
            // Of a device's opening: no shard is so.
            FindingKind::Skipped => Kind::Other,
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Kind, D::Error> {
        let name = String::deserialize(from)?;
        let known = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        Ok(known.unwrap_or(Kind::Other))
    }
}

/// Counts by kind; those of several kinds that are not known are one sum.
fn by_kind<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<Kind, u64>, D::Error> {
    let mut sums = BTreeMap::new();
    for (name, count) in BTreeMap::<String, u64>::deserialize(from)? {
        let known = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        let sum: &mut u64 = sums.entry(known.unwrap_or(Kind::Other)).or_default();
        *sum = sum.saturating_add(count);
    }
    Ok(sums)
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tally {
    /// Objects that were looked at whole, versions among them,
    pub objects: u64,
    /// and their bytes.
    pub bytes: u64,
    /// Those of them that ride in the journal, whose replicas nobody has looked at.
    pub inline: u64,
    /// Stripes that were looked at, lists of stripes among them,
    pub stripes: u64,
    /// their shards,
    pub shards: u64,
    /// and the bytes of those that answered.
    pub shard_bytes: u64,
    /// Seconds that objects had been there for, since they were looked at before or made: what losses are compared to.
    pub object_s: u64,
    /// The same of shards.
    pub shard_s: u64,
    /// Bad shards, each counted once until it is mended, by what was wrong; replicas that differ from others, each
    /// counted on each day that it was found; and shards that no object names, each counted once.
    #[serde(deserialize_with = "by_kind")]
    pub found: BTreeMap<Kind, u64>,
    /// Milliseconds that the bad ones can have been bad for at the most when they were found.
    pub lag_ms: u64,
    /// The longest of those.
    pub lag_longest_ms: u64,
    /// Bad shards that were made again and read back.
    pub repaired: u64,
    /// Bad shards that nothing has to name any more: their object was removed or replaced before they were mended.
    pub moot: u64,
    /// Milliseconds from finding to having mended them, summed,
    pub repair_ms: u64,
    /// and the longest.
    pub repair_longest_ms: u64,
    /// Milliseconds that stripes are known to have stood at a margin that is less than they had when they were made:
    /// by how many more shards they could lose, from finding on.
    pub margin_ms: BTreeMap<i32, u64>,
    /// Shards of devices that did not answer, however often they were asked for.
    pub away: u64,
    /// Objects that changed while they were looked at.
    pub changed: u64,
    /// Objects that could not be looked at.
    pub unread: u64,
    /// Bad shards that were not counted because the queue was full: a later pass finds them again, and counts them.
    pub unqueued: u64,
    /// Passes that came to their end.
    pub passes: u64,
    /// Shards of devices that are gone, whose stripes were put elsewhere and read back there.
    #[serde(skip_serializing_if = "is_none")]
    pub moved: u64,
    /// Bytes that devices read of what they are themselves: superblocks, checkpoints, headers and tables of extents,
    #[serde(skip_serializing_if = "is_none")]
    pub device_bytes: u64,
    /// and how often one came to the end of that.
    #[serde(skip_serializing_if = "is_none")]
    pub device_passes: u64,
    /// Steps of that in which nothing could be seen.
    #[serde(skip_serializing_if = "is_none")]
    pub device_left_out: u64,
    /// What was wrong with them, each time that it was come upon, by the engine's names: no shards, and so in no sum of
    /// those.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub device_found: BTreeMap<String, u64>,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: &Tally) {
        let Tally {
            objects,
            bytes,
            inline,
            stripes,
            shards,
            shard_bytes,
            object_s,
            shard_s,
            found,
            lag_ms,
            lag_longest_ms,
            repaired,
            moot,
            repair_ms,
            repair_longest_ms,
            margin_ms,
            away,
            changed,
            unread,
            unqueued,
            passes,
            moved,
            device_bytes,
            device_passes,
            device_left_out,
            device_found,
        } = other;
        for (mine, more) in [
            (&mut self.objects, objects),
            (&mut self.bytes, bytes),
            (&mut self.inline, inline),
            (&mut self.stripes, stripes),
            (&mut self.shards, shards),
            (&mut self.shard_bytes, shard_bytes),
            (&mut self.object_s, object_s),
            (&mut self.shard_s, shard_s),
            (&mut self.lag_ms, lag_ms),
            (&mut self.moved, moved),
            (&mut self.device_bytes, device_bytes),
            (&mut self.device_passes, device_passes),
            (&mut self.device_left_out, device_left_out),
            (&mut self.repaired, repaired),
            (&mut self.moot, moot),
            (&mut self.repair_ms, repair_ms),
            (&mut self.away, away),
            (&mut self.changed, changed),
            (&mut self.unread, unread),
            (&mut self.unqueued, unqueued),
            (&mut self.passes, passes),
        ] {
            *mine = mine.saturating_add(*more);
        }
        self.lag_longest_ms = self.lag_longest_ms.max(*lag_longest_ms);
        self.repair_longest_ms = self.repair_longest_ms.max(*repair_longest_ms);
        for (kind, count) in found {
            *self.found.entry(*kind).or_default() += count;
        }
        for (margin, ms) in margin_ms {
            *self.margin_ms.entry(*margin).or_default() += ms;
        }
        for (name, count) in device_found {
            let sum = self.device_found.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
    }

    /// Whether anything is said of what devices are themselves.
    pub fn tells_of_devices(&self) -> bool {
        self.device_bytes > 0
            || self.device_passes > 0
            || self.device_left_out > 0
            || !self.device_found.is_empty()
    }

    /// Bad shards of all kinds.
    pub fn bad(&self) -> u64 {
        let shards = self.found.iter().filter(|(kind, _)| kind.is_of_shards());
        shards.map(|(_, count)| count).sum()
    }

    /// Replicas of partitions that were found to differ from others.
    pub fn divergent(&self) -> u64 {
        let found = self.found.get(&Kind::DivergentReplica);
        found.copied().unwrap_or_default()
    }

    /// Shards that were found, and that no object names.
    pub fn orphans(&self) -> u64 {
        let found = self.found.get(&Kind::Orphan);
        found.copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_as_it_was_written() {
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(serde_json::from_str::<Kind>(&json).unwrap(), kind, "{at}");
            assert_eq!(kind as usize, at);
        }
        for told in FindingKind::ALL {
            let kind = Kind::from(told);
            assert!(
                kind == Kind::Other || kind.name() == told.name(),
                "{told:?}"
            );
            let json = format!("\"{}\"", told.name());
            assert_eq!(serde_json::to_string(&told).unwrap(), json);
        }
    }

    #[test]
    fn kinds_of_later_programs_are_counted() {
        let json = r#"{"found":{"rot":2,"melted":3,"other":4,"burnt":5}}"#;
        let tally: Tally = serde_json::from_str(json).unwrap();
        assert_eq!(
            tally.found,
            BTreeMap::from([(Kind::Rot, 2), (Kind::Other, 12)])
        );
        assert_eq!(tally.bad(), 14);
    }

    #[test]
    fn a_replica_that_differs_is_no_bad_shard() {
        let found = BTreeMap::from([(Kind::Rot, 2), (Kind::DivergentReplica, 3)]);
        let tally = Tally {
            found,
            ..Tally::default()
        };
        assert_eq!((tally.bad(), tally.divergent()), (2, 3));
        let json = serde_json::to_string(&tally).unwrap();
        assert!(json.contains(r#""divergent-replica":3"#), "{json}");
    }

    #[test]
    fn sums() {
        let one = Tally {
            objects: 1,
            lag_longest_ms: 5,
            repair_longest_ms: 2,
            found: BTreeMap::from([(Kind::Rot, 2)]),
            margin_ms: BTreeMap::from([(-1, 7), (1, 1)]),
            passes: 1,
            device_bytes: 4096,
            device_found: BTreeMap::from([("footer".to_owned(), 2)]),
            ..Tally::default()
        };
        let other = Tally {
            lag_longest_ms: 3,
            repair_longest_ms: 9,
            found: BTreeMap::from([(Kind::Rot, 1), (Kind::Missing, 4)]),
            margin_ms: BTreeMap::from([(1, 2)]),
            ..one.clone()
        };
        let (mut sum, mut turned) = (one.clone(), other.clone());
        sum.add(&other);
        turned.add(&one);
        assert_eq!(sum, turned);
        assert_eq!((sum.objects, sum.passes, sum.bad()), (2, 2, 7));
        assert_eq!((sum.lag_longest_ms, sum.repair_longest_ms), (5, 9));
        assert_eq!(sum.margin_ms, BTreeMap::from([(-1, 7), (1, 3)]));
        assert_eq!((sum.device_bytes, sum.device_found["footer"]), (8192, 4));
        let json = serde_json::to_string(&sum).unwrap();
        assert!(json.contains("\"missing\":4"), "{json}");
        assert_eq!(serde_json::from_str::<Tally>(&json).unwrap(), sum);
    }
}

//! What is kept of audits, as documents of the reserved bucket.
//!
//! ```text
//! audit/now/PARTITION          where the pass is, what waits to be mended, what was counted today
//! audit/days/DAY/PARTITION     what was counted on a day, once it is over: never changed again
//! audit/days/DAY/RUN           the same of a pass that somebody asked for
//! audit/days/DAY/device-NO     the same of a device that looked at itself
//! audit/lost/STRIPE            a stripe whose bytes are gone, and whose they were: never changed again
//! audit/orphans/DEVICE         shards that no object names ([`crate::orphans`])
//! ```
//!
//! Invariants:
//! - a document says how long it is and has a checksum of its own, beside that of the object that it is: it can be
//!   checked wherever it was copied to;
//! - the first one is written only if it is what its writer has read: of two that write it, one knows then that it is
//!   not alone. Where the pass is and what was counted are written together, so nothing is counted twice or left out;
//! - a day is closed in the first document before its own is made, and stays there until that is seen to be there: so
//!   whoever makes it makes the same one;
//! - all of them are bounded.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{DeviceNo, NodeId, PartitionId, StripeId};
use ashlar_layout::names::{SYSTEM_BUCKET, SYSTEM_PARTS};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::queue::Finding;
use crate::tally::{Kind, Tally};

/// Version of documents that tell of devices which looked at themselves: programs that know no such thing refuse them.
pub const VERSION: u32 = 4;
/// Version of those that tell of devices which are away, and of what was moved from them, and of nothing that came
/// later.
pub const VERSION_MOVES: u32 = 3;
/// Version of those that name kinds of findings which came after the first, and nothing that came later.
pub const VERSION_KINDS: u32 = 2;
/// Version of all others: older programs read them.
pub const VERSION_PLAIN: u32 = 1;
/// Largest document, in bytes: a full queue of the largest keys, escaped.
pub const RECORD_MAX: usize = 4 << 20;
/// What the keys of all documents begin with.
pub const AUDIT: &str = "audit/";
/// What those of partitions begin with,
pub const NOW: &str = "audit/now/";
/// those of days,
pub const DAYS: &str = "audit/days/";
/// and those of losses.
pub const LOST: &str = "audit/lost/";

/// Milliseconds of a day.
pub const DAY_MS: u64 = 86_400_000;
/// Longest text in a document.
const TEXT_MAX: usize = 300;
/// Most keys of objects that could not be looked at.
const UNREAD_MAX: usize = 16;

/// Where a partition's record stands.
pub fn now_key(partition: PartitionId) -> String {
    format!("{NOW}{partition:010}")
}

/// Where the count of a day stands; `of`: of which partition or run.
pub fn day_key(day: u64, of: &str) -> String {
    format!("{DAYS}{day:08}/{of}")
}

/// The day that a key of a day's count is about.
pub fn day_of(key: &str) -> Option<u64> {
    key.strip_prefix(DAYS)?.split('/').next()?.parse().ok()
}

/// What a partition's day is called.
pub fn partition_day(day: u64, partition: PartitionId) -> String {
    day_key(day, &format!("{partition:010}"))
}

/// What a day of a device is called.
pub fn device_day(day: u64, device: DeviceNo) -> String {
    day_key(day, &format!("device-{device:010}"))
}

/// Where the loss of a stripe stands.
pub fn lost_key(stripe: StripeId) -> String {
    format!("{LOST}{:016x}{:016x}", stripe.writer, stripe.attempt)
}

/// Why a document cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// It is not as it was written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It is of another form.
    #[error("it is not a document that this program knows: {0}")]
    Unknown(String),
    /// It would be too large.
    #[error("it would take {got} bytes; at most {RECORD_MAX} are allowed")]
    TooLarge {
        /// How large.
        got: usize,
    },
}

/// Something that is kept as a document.
pub trait Document: Serialize + DeserializeOwned {
    /// The kinds of findings that it names.
    fn kinds(&self) -> impl Iterator<Item = Kind>;
    /// Whether it tells of devices that are away, or of what was moved from them.
    fn tells_of_moves(&self) -> bool {
        false
    }
    /// Whether it tells of devices that looked at themselves.
    fn tells_of_devices(&self) -> bool {
        false
    }
}

impl Document for Record {
    fn kinds(&self) -> impl Iterator<Item = Kind> {
        let open = self.open.iter().flat_map(|finding| finding.bad.values());
        let days = std::iter::once(&self.today).chain(&self.closed);
        let counted = days.flat_map(Closed::kinds);
        open.map(|(kind, _)| *kind).chain(counted)
    }

    fn tells_of_moves(&self) -> bool {
        let away = !self.absent.is_empty() || self.hunt.is_some() || self.held.is_some();
        let mut days = std::iter::once(&self.today).chain(&self.closed);
        away || days.any(Closed::tells_of_moves)
    }

    fn tells_of_devices(&self) -> bool {
        let mut days = std::iter::once(&self.today).chain(&self.closed);
        days.any(Closed::tells_of_devices)
    }
}

impl Document for Closed {
    fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.tally.found.keys().copied()
    }

    fn tells_of_moves(&self) -> bool {
        self.tally.moved > 0
    }

    fn tells_of_devices(&self) -> bool {
        self.tally.tells_of_devices()
    }
}

impl Document for Loss {
    fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.bad.values().map(|(kind, _)| *kind)
    }
}

/// As bytes: a line with version, checksum and length, and JSON.
pub fn encode<T: Document>(document: &T) -> Result<Vec<u8>, BadRecord> {
    let version = match (
        document.tells_of_moves(),
        document.kinds().all(Kind::is_plain),
    ) {
        _ if document.tells_of_devices() => VERSION,
        (true, _) => VERSION_MOVES,
        (false, false) => VERSION_KINDS,
        (false, true) => VERSION_PLAIN,
    };
    let json = serde_json::to_vec(document).map_err(|e| BadRecord::Unknown(e.to_string()))?;
    if json.len() > RECORD_MAX {
        return Err(BadRecord::TooLarge { got: json.len() });
    }
    let head = format!(
        "ashlar-audit {version} {:08x} {}\n",
        crc32(&json),
        json.len()
    );
    Ok([head.as_bytes(), &json].concat())
}

/// From its bytes.
pub fn decode<T: Document>(bytes: &[u8]) -> Result<T, BadRecord> {
    let line = bytes.iter().take(64).position(|b| *b == b'\n');
    let line = line.ok_or(BadRecord::Damaged("it has no first line"))?;
    let head = std::str::from_utf8(&bytes[..line]);
    let head = head.map_err(|_| BadRecord::Damaged("its first line is no text"))?;
    let fields: Vec<&str> = head.split(' ').collect();
    let ["ashlar-audit", version, crc, len] = fields[..] else {
        return Err(BadRecord::Damaged("its first line is another"));
    };
    let json = &bytes[line + 1..];
    if len.parse() != Ok(json.len()) {
        return Err(BadRecord::Damaged("it is not as long as it says"));
    }
    if crc != format!("{:08x}", crc32(json)) {
        return Err(BadRecord::Damaged("its checksum does not match"));
    }
    let known = VERSION_PLAIN..=VERSION;
    if !version
        .parse()
        .is_ok_and(|version| known.contains(&version))
    {
        let what = format!("version {version}, and this program knows those up to {VERSION}");
        return Err(BadRecord::Unknown(what));
    }
    serde_json::from_slice(json).map_err(|e| BadRecord::Unknown(e.to_string()))
}

/// A text, cut to what a document may hold of one.
pub fn cut(text: &str) -> String {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// An object, or a version of one, that is to be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Its bucket,
    pub bucket: String,
    /// its key,
    pub key: String,
    /// and, if it is a version, which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u64>,
    /// Its place among the versions of its key.
    pub id: u64,
    /// The journal entry that wrote it.
    pub version: u64,
    /// When it was made.
    pub modified_ms: u64,
    /// Its bytes.
    pub size: u64,
}

impl Item {
    /// Whether its stripes may be put elsewhere. Those of a part of an upload may be an object's as well, which names
    /// them where they are.
    pub fn may_move(&self) -> bool {
        self.bucket != SYSTEM_BUCKET || !self.key.starts_with(SYSTEM_PARTS)
    }

    /// Whether it is the same object, or a version of it.
    pub fn is_of(&self, other: &Item) -> bool {
        (&self.bucket, &self.key) == (&other.bucket, &other.key)
    }

    /// The place behind it.
    pub fn behind(&self) -> Place {
        Place {
            bucket: self.bucket.clone(),
            key: self.key.clone(),
            id: Some(self.id),
        }
    }
}

/// A place in the order of all objects: behind this one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// A bucket,
    pub bucket: String,
    /// a key; empty: before all of the bucket,
    pub key: String,
    /// and a version: behind it, before older ones. None: behind all of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
}

/// A pass through a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pass {
    /// When it was begun.
    pub begun_ms: u64,
    /// Behind what it goes on; none at the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Place>,
    /// Of the next object, which stripes were looked at: of this version, so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<(u64, u64)>,
    /// How often somebody has begun to go on from here and not come further.
    #[serde(default)]
    pub starts: u32,
    /// How often somebody has begun since anyone came far: the more, the more often is recorded.
    #[serde(default)]
    pub broken: u32,
    /// What it came to so far. Of what is counted by days, days have it.
    #[serde(default)]
    pub objects: u64,
    /// Bytes of shards that were read,
    #[serde(default)]
    pub shard_bytes: u64,
    /// and stripes by the margin that they had, or have since they were mended.
    #[serde(default)]
    pub margins: BTreeMap<i32, u64>,
    /// Devices that were away, and how many shards of what was looked at are theirs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub away: BTreeMap<DeviceNo, u64>,
    /// Some of the objects that could not be looked at, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
    /// The next one is to begin as soon as this one has ended: something has come back meanwhile.
    #[serde(default)]
    pub again: bool,
}

impl Pass {
    /// Something could not be looked at.
    pub fn note_unread(&mut self, what: &str) {
        if self.unread.len() < UNREAD_MAX {
            self.unread.push(cut(what));
        }
    }
}

/// A pass that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// When it had.
    pub ended_ms: u64,
    /// What it was.
    pub pass: Pass,
}

/// What was counted on a day that is over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closed {
    /// The day, since 1970.
    pub day: u64,
    /// What was counted.
    pub tally: Tally,
}

/// A device that is away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Absent {
    /// Since when, by the clock of who saw that first.
    pub since_ms: u64,
    /// All objects were gone through for what is on it: that was put elsewhere, or waits.
    #[serde(default)]
    pub hunted: bool,
    /// Shards of it that were made again elsewhere.
    #[serde(default)]
    pub moved: u64,
    /// Stripes of parts of uploads that are on it: they wait for the upload's end.
    #[serde(default)]
    pub parts: u64,
}

/// All objects are gone through for what is on devices that are gone. No shard is read for that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hunt {
    /// Which devices.
    pub gone: BTreeSet<DeviceNo>,
    /// Behind what it goes on; none at the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Place>,
}

/// What is kept of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Which.
    pub partition: PartitionId,
    /// The node that wrote this,
    pub by: NodeId,
    /// and when.
    pub at_ms: u64,
    /// The pass that is under way, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass: Option<Pass>,
    /// The last one that came to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// What waits to be mended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<Finding>,
    /// What was counted on the day,
    pub today: Closed,
    /// and on one that is over, and has no document of its own yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<Closed>,
    /// Devices that are away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub absent: BTreeMap<DeviceNo, Absent>,
    /// Whether what is on them is being looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hunt: Option<Hunt>,
    /// Why devices that are away are not marked out, so that nothing is moved from them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
}

impl Record {
    /// That of a partition that has none yet, and was made of others; none if they have none. `gone`: whether nobody
    /// serves that one any more, so that what waits there would wait for ever.
    ///
    /// How long objects had been there was counted up to where those passes began: it is not counted again.
    pub fn of_parents<'a>(parents: impl Iterator<Item = (&'a Record, bool)>) -> Option<Record> {
        let (mut begun_ms, mut open) = (0, Vec::new());
        for (record, gone) in parents {
            let ended = record.ended.iter().map(|ended| &ended.pass);
            let begun = record.pass.iter().chain(ended).map(|pass| pass.begun_ms);
            begun_ms = begun.fold(begun_ms, u64::max);
            if gone {
                open.extend(record.open.iter().cloned());
            }
        }
        open.truncate(crate::queue::OPEN_MAX);
        let pass = Pass {
            begun_ms,
            again: true,
            ..Pass::default()
        };
        let ended = Some(Ended { ended_ms: 0, pass });
        (begun_ms > 0).then_some(Record {
            ended,
            open,
            ..Record::default()
        })
    }
}

/// A stripe whose bytes are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    /// The object that it is of.
    pub item: Item,
    /// The stripe,
    pub stripe: StripeId,
    /// and the how many-th of the object.
    pub nth: u64,
    /// When it was found.
    pub found_ms: u64,
    /// Shards that were whole, of those that it takes.
    pub whole: u32,
    /// How many it takes.
    pub needed: u32,
    /// The bad ones that were not counted as findings before, and where they were.
    pub bad: BTreeMap<u16, (Kind, DeviceNo)>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> Record {
        Record {
            partition: PartitionId(7),
            pass: Some(Pass {
                after: Some(Place::default()),
                within: Some((3, 4)),
                margins: BTreeMap::from([(-1, 2), (2, 5)]),
                away: BTreeMap::from([(DeviceNo(3), 9)]),
                ..Pass::default()
            }),
            ended: Some(Ended::default()),
            closed: Some(Closed::default()),
            ..Record::default()
        }
    }

    #[test]
    fn keys_stand_in_order_and_are_told_apart() {
        assert!(now_key(PartitionId(9)) < now_key(PartitionId(10)));
        assert!(day_key(9, "x") < day_key(10, "a"));
        assert_eq!(day_of(&partition_day(20_000, PartitionId(1))), Some(20_000));
        assert_eq!(day_of("audit/now/1"), None);
        let stripe = |writer, attempt| lost_key(StripeId { writer, attempt });
        assert_ne!(stripe(1, 0x11), stripe(0x11, 1));
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = encode(&record()).unwrap();
        assert_eq!(decode::<Record>(&bytes), Ok(record()));
        let loss = Loss {
            bad: BTreeMap::from([(2, (Kind::Missing, DeviceNo(1)))]),
            ..Loss::default()
        };
        assert_eq!(decode::<Loss>(&encode(&loss).unwrap()), Ok(loss));
        assert!(matches!(decode::<Loss>(&bytes), Err(BadRecord::Unknown(_))));
    }

    /// As programs wrote it that knew four kinds of findings.
    const PLAIN: &str = concat!(
        "ashlar-audit 1 CRC LEN\n",
        r#"{"partition":7,"by":3,"at_ms":1790000000000,"pass":{"begun_ms":5,"starts":1,"broken":0,"#,
        r#""objects":2,"shard_bytes":99,"margins":{"-1":2,"2":5},"again":false},"#,
        r#""open":[{"item":{"bucket":"b","key":"k","id":4,"version":4,"modified_ms":6,"size":7},"#,
        r#""stripe":{"writer":8,"attempt":9},"nth":0,"bad":{"3":["wrong-record",2]},"margin":1,"#,
        r#""found_ms":10,"since_ms":10,"due_ms":10,"tries":0}],"today":{"day":20717,"#,
        r#""tally":{"objects":1,"bytes":2,"inline":0,"stripes":3,"shards":4,"shard_bytes":5,"#,
        r#""object_s":6,"shard_s":7,"found":{"missing":1,"rot":2,"wrong-record":3,"unreadable":4},"#,
        r#""lag_ms":8,"lag_longest_ms":8,"repaired":9,"moot":0,"repair_ms":10,"#,
        r#""repair_longest_ms":10,"margin_ms":{"1":11},"away":0,"changed":0,"unread":0,"#,
        r#""unqueued":0,"passes":1}}}"#,
    );

    fn plain() -> Vec<u8> {
        let (_, json) = PLAIN.split_once('\n').unwrap();
        let crc = format!("{:08x}", crc32(json.as_bytes()));
        let head = PLAIN.replace("CRC", &crc);
        head.replace("LEN", &json.len().to_string()).into_bytes()
    }

    #[test]
    fn what_older_programs_wrote_is_read_and_written_for_them() {
        let read: Record = decode(&plain()).unwrap();
        assert_eq!(read.today.tally.bad(), 10);
        assert_eq!(read.open[0].bad[&3], (Kind::WrongRecord, DeviceNo(2)));
        assert_eq!(
            encode(&read).unwrap(),
            plain(),
            "they can read what is written"
        );
        let head = |record: &Record| encode(record).unwrap()[..15].to_vec();
        for kind in Kind::ALL {
            let version = if kind.is_plain() { 1 } else { 2 };
            let expected = format!("ashlar-audit {version} ").into_bytes();
            let mut found = read.clone();
            found.open[0].bad.insert(4, (kind, DeviceNo(1)));
            assert_eq!(head(&found), expected, "{kind:?}");
            let mut counted = read.clone();
            counted.closed = Some(Closed::default());
            counted.closed.as_mut().unwrap().tally.found.insert(kind, 1);
            assert_eq!(head(&counted), expected, "{kind:?}");
            assert_eq!(decode::<Record>(&encode(&counted).unwrap()), Ok(counted));
        }
        let mut looked = read.clone();
        looked.today.tally.device_passes = 1;
        assert_eq!(head(&looked), b"ashlar-audit 4 ".to_vec());
        assert_eq!(decode::<Record>(&encode(&looked).unwrap()), Ok(looked));
        let later = String::from_utf8(plain())
            .unwrap()
            .replacen(" 1 ", " 5 ", 1);
        let unknown = decode::<Record>(later.as_bytes());
        assert!(matches!(unknown, Err(BadRecord::Unknown(_))), "{unknown:?}");
    }

    #[test]
    fn who_is_made_of_others_counts_no_time_again() {
        let pass = |begun_ms| Pass {
            begun_ms,
            ..Pass::default()
        };
        let one = Record {
            pass: Some(pass(70)),
            ended: Some(Ended {
                ended_ms: 60,
                pass: pass(50),
            }),
            ..Record::default()
        };
        let other = Record {
            pass: Some(pass(65)),
            ..Record::default()
        };
        let made = Record::of_parents([(&one, false), (&other, true)].into_iter()).unwrap();
        let ended = made.ended.unwrap();
        assert_eq!((ended.pass.begun_ms, ended.pass.again), (70, true));
        assert_eq!(
            Record::of_parents([(&Record::default(), true)].into_iter()),
            None
        );
        assert_eq!(Record::of_parents(std::iter::empty()), None);
    }

    #[test]
    fn no_larger_than_allowed() {
        let mut large = Loss::default();
        large.item.key = "x".repeat(RECORD_MAX);
        assert!(matches!(encode(&large), Err(BadRecord::TooLarge { got }) if got > RECORD_MAX));
        let key = "\u{1}".repeat(ashlar_layout::limits::KEY_MAX);
        let item = Item {
            key,
            ..Item::default()
        };
        let kinds = (0..64).map(|i| (i, (Kind::StaleIncarnation, DeviceNo(u32::MAX))));
        let finding = Finding {
            item,
            stripe: StripeId::default(),
            nth: u64::MAX,
            bad: kinds.collect(),
            away: vec![DeviceNo(u32::MAX); 64],
            margin: i32::MIN,
            found_ms: u64::MAX,
            since_ms: u64::MAX,
            due_ms: u64::MAX,
            tries: u32::MAX,
            why: "\u{1}".repeat(200),
        };
        let full = Record {
            open: vec![finding; crate::queue::OPEN_MAX],
            ..record()
        };
        assert!(
            encode(&full).is_ok(),
            "a full queue of the largest keys fits"
        );
    }

    proptest! {
        /// Whatever happens to a document, it is not taken for another one.
        #[test]
        fn damage_is_noticed(at in 0usize..400, to: u8, cut_off in 0usize..400) {
            let good = encode(&record()).unwrap();
            let mut bad = good.clone();
            let at = at % bad.len();
            bad[at] = to;
            prop_assert!(bad == good || decode::<Record>(&bad).is_err());
            let shorter = &good[..good.len() - 1 - cut_off % good.len()];
            prop_assert!(decode::<Record>(shorter).is_err());
        }
    }
}

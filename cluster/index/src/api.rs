//! What goes into an index and what comes out of it.
//!
//! A driver carries out [`Action`]s and reports by [`Event`]s. What it promises:
//! - `Read`, `Write`, `Sync` and `WriteRoot` get exactly one completion each, in any order, unless the
//!   process ends;
//! - `Synced { ok: true }` means: every chunk whose `Written` was reported before the `Sync` was given
//!   is durable. `RootWritten { ok: true }` means: the root is durable, and is found by the next
//!   opening unless one of a higher generation is. A root is there wholly or not at all;
//! - space of a chunk that was written is not used for anything else until `Free` names it, or an
//!   opening does not ([`crate::Opened::live`]);
//! - it calls with [`Event::Turn`] soon, as long as [`crate::Index::wants_turn`].

use ashlar_layout::digest::Digest;
use ashlar_layout::ids::{DeviceId, PartitionId, Seq};
use ashlar_layout::manifest::VersionTag;
use ashlar_layout::message::{BucketMeta, ListPage, ObjectMeta, VersionPage};
use ashlar_layout::page::{CHUNK_MAX, EntryKind, GRAIN, PAGE_MAX, PageFault, RunId};
use ashlar_layout::root::{Chunk, InlinePlace, ObjectValue, RootError};
use bytes::Bytes;

use crate::key;

/// What an index is told when it is opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// The device that it is on.
    pub device: DeviceId,
    /// Its partition.
    pub partition: PartitionId,
    /// A number that the device never gave out before: runs are named by it, and no name may ever
    /// be used twice. (The engine's record numbers are such.)
    pub life: u64,
    /// Bytes of an extent of the device: what journal space is pinned by.
    pub extent_size: u64,
    /// Bounds.
    pub limits: Limits,
}

/// Every queue, buffer and step of an index.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Bytes of a table in memory that is to be written out; at twice as many nothing more is taken.
    pub table_bytes: usize,
    /// Tables that wait to be written out.
    pub tables: usize,
    /// Runs of a level that are merged into one of the next.
    pub fanout: usize,
    /// Runs in all: beyond it nothing is written out until some are merged.
    pub runs: usize,
    /// Merges under way at a time, of different levels.
    pub merges: usize,
    /// Questions that wait for pages.
    pub questions: usize,
    /// Reads of pages under way.
    pub reads: usize,
    /// Leaves of a run that a walk has read ahead of itself.
    pub ahead: usize,
    /// Bytes of journal entries that newer runs point to before they are merged with the oldest one for
    /// their sake, if that one does not point to more: what is superseded keeps no more journal space than that.
    pub waste_bytes: u64,
    /// Snapshots that are held.
    pub snapshots: usize,
    /// Bits of a run's filter for each of its entries.
    pub filter_bits: u32,
    /// Entries that one call works through at most.
    pub step: usize,
    /// Bytes that a merge reads of a run at a time.
    pub span_bytes: u32,
    /// Chunks that one flush or merge has under way.
    pub chunks: usize,
    /// Bytes of a chunk at most: from [`ashlar_layout::page::PAGE_MAX`] to
    /// [`ashlar_layout::page::CHUNK_MAX`]. How many fit into an extent without a rest is the engine's to tell.
    pub chunk_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            table_bytes: 8 << 20,
            tables: 2,
            fanout: 4,
            runs: 48,
            merges: 3,
            questions: 1024,
            reads: 64,
            ahead: 7,
            waste_bytes: 64 << 20,
            snapshots: 64,
            filter_bits: 10,
            step: 512,
            span_bytes: 128 << 10,
            chunks: 2,
            chunk_bytes: CHUNK_MAX,
        }
    }
}

impl Limits {
    /// Grains of a chunk at most.
    pub(crate) fn chunk_grains(&self) -> u32 {
        (self.chunk_bytes.clamp(PAGE_MAX, CHUNK_MAX) / GRAIN) as u32
    }
}

/// A state of the index that stays readable until it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Snapshot(pub(crate) Seq);

impl Snapshot {
    /// The last entry that it sees.
    pub fn seq(self) -> Seq {
        self.0
    }
}

/// A stretch of the order of (bucket, key); a bucket's own record counts as (bucket, "").
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Range {
    /// Its first place; none: from the beginning.
    pub from: Option<(String, String)>,
    /// The first place behind it; none: to the end.
    pub to: Option<(String, String)>,
}

impl Range {
    /// Whether an object is in it; with an empty key, the bucket's record.
    pub fn contains(&self, bucket: &str, key: &str) -> bool {
        let place =
            |spot: &(String, String)| (bucket, key).cmp(&(spot.0.as_str(), spot.1.as_str()));
        self.from.as_ref().is_none_or(|from| place(from).is_ge())
            && self.to.as_ref().is_none_or(|to| place(to).is_lt())
    }
}

/// What an entry of the journal does to the map. That it may be done was decided when it was ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// There is such a bucket.
    PutBucket {
        /// Its name.
        bucket: String,
        /// When it was made, milliseconds since 1970.
        created_ms: u64,
    },
    /// There is no such bucket, and nothing in it.
    DropBucket {
        /// Its name.
        bucket: String,
    },
    /// There is such an object.
    Put {
        /// The bucket's name.
        bucket: String,
        /// The object's key.
        key: String,
        /// The object.
        object: Object,
    },
    /// There is no such object.
    Delete {
        /// The bucket's name.
        bucket: String,
        /// The object's key.
        key: String,
    },
    /// There is such a version of an object.
    PutVersion {
        /// The bucket's name.
        bucket: String,
        /// The object's key.
        key: String,
        /// Which version.
        id: Seq,
        /// The version.
        object: Object,
    },
    /// There is no such version of an object.
    DropVersion {
        /// The bucket's name.
        bucket: String,
        /// The object's key.
        key: String,
        /// Which version.
        id: Seq,
    },
    /// All of these, by one entry: none of them names what another one does.
    All(Vec<Change>),
    /// Nothing: the entry is of no concern to the map.
    Nothing,
}

/// An object as it stands in the map, without its version: that is the entry's number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// When it was made, milliseconds since 1970.
    pub modified_ms: u64,
    /// What it is made of.
    pub manifest: ashlar_layout::manifest::Manifest,
    /// Which version of the object it is, if it is one of a bucket that keeps them.
    pub tag: Option<VersionTag>,
    /// Where its journal entry is on this device, if it is inline and not embedded. An object without
    /// bytes needs neither.
    pub place: Option<InlinePlace>,
    /// Its bytes, if it is inline and embedded: at most [`ashlar_layout::limits::INLINE_MAX`]; else empty.
    pub payload: Bytes,
}

/// An object that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub meta: ObjectMeta,
    /// Where its journal entry is on this device, if it is inline and not embedded.
    pub place: Option<InlinePlace>,
    /// Its bytes, if they are embedded.
    pub payload: Bytes,
}

/// Which page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct List {
    /// The bucket.
    pub bucket: String,
    /// Only keys that start with this.
    pub prefix: String,
    /// Keys are rolled up after the first of these behind the prefix; empty: none.
    pub delimiter: String,
    /// Only keys or common prefixes after this; inside of a common prefix: after all of it.
    pub after: String,
    /// At most so many; at most `LIST_PAGE_MAX` whatever it says.
    pub max: u32,
}

/// An object, or a version of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// Which version; none: the current object.
    pub id: Option<Seq>,
}

/// Which page of a listing of versions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Versions {
    /// As in any listing: `after` alone means behind all versions of that key.
    pub list: List,
    /// With this, it means the versions of that key that are older.
    pub after_id: Option<Seq>,
}

/// What one wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Objects, and versions of objects, by their names: each as it is, all at the same moment.
    Named(Vec<Name>),
    /// A page of a listing of versions.
    Versions(Versions),
    /// A bucket.
    Bucket(String),
    /// Whether nothing is in a bucket, versions of objects included.
    Empty(String),
    /// A page of a listing.
    List(List),
    /// Buckets after a name, at most so many.
    Buckets {
        /// Only names after this.
        after: String,
        /// At most so many; at most `LIST_PAGE_MAX` whatever it says.
        max: u32,
    },
    /// Entries as they stand, for another replica: behind this key of an [`Item`] (empty: all), until
    /// they are so many bytes.
    Items {
        /// The last one's key, as it was given.
        after: Vec<u8>,
        /// At most so many bytes, but one entry at the least.
        max_bytes: usize,
    },
    /// The digest of a stretch, to be compared with another replica's.
    Digest(Stretch),
}

/// A stretch of the map that a digest is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stretch {
    /// Only what is in this range,
    pub range: Range,
    /// and the records of these buckets.
    pub carry: Vec<String>,
    /// Behind this key of [`Digest::last`]; empty: from the beginning.
    pub after: Vec<u8>,
    /// At most so many entries, but one at the least; and no more than
    /// [`ashlar_layout::digest::DIGEST_BYTES`].
    pub max: u32,
}

/// An entry of the map, for another replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its key, in the order of the map.
    pub key: Vec<u8>,
    /// Its version.
    pub version: Seq,
    /// What it is,
    pub kind: EntryKind,
    /// and its value; an object's place is this device's.
    pub value: Bytes,
}

impl Item {
    /// The change that makes it.
    pub fn change(&self) -> Result<Change, IndexError> {
        let bad = |reason: String| IndexError::BadEntry {
            key: String::from_utf8_lossy(&self.key).into_owned(),
            reason,
        };
        if let (EntryKind::Bucket, Some(bucket)) = (self.kind, key::bucket_name(&self.key)) {
            let created = <[u8; 8]>::try_from(&*self.value);
            let created = created.map_err(|_| bad("it is no bucket".to_owned()))?;
            return Ok(Change::PutBucket {
                bucket: bucket.to_owned(),
                created_ms: u64::from_le_bytes(created),
            });
        }
        if self.kind != EntryKind::Object {
            return Err(bad("it is neither bucket nor object".to_owned()));
        }
        let value = ObjectValue::decode(&self.value).map_err(|e| bad(e.to_string()))?;
        let object = Object {
            modified_ms: value.modified_ms,
            manifest: value.manifest,
            tag: value.tag,
            place: value.place,
            payload: value.payload.into(),
        };
        if let Some((bucket, key)) = key::object_name(&self.key) {
            let (bucket, key) = (bucket.to_owned(), key.to_owned());
            return Ok(Change::Put {
                bucket,
                key,
                object,
            });
        }
        match key::version_name(&self.key) {
            Some((bucket, key, id)) => Ok(Change::PutVersion {
                bucket,
                key,
                id,
                object,
            }),
            None => Err(bad("it has no name of an object".to_owned())),
        }
    }
}

/// What there is to be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To `Named`, in the order of the question.
    Objects(Vec<Option<Found>>),
    /// To `Bucket`.
    Bucket(Option<BucketMeta>),
    /// To `Empty`.
    Empty(bool),
    /// To `List`; none if there is no such bucket.
    List(Option<ListPage>),
    /// To `Versions`; none if there is no such bucket.
    Versions(Option<VersionPage>),
    /// To `Buckets`.
    Buckets {
        /// The buckets.
        buckets: Vec<BucketMeta>,
        /// Whether there are more.
        more: bool,
    },
    /// To `Items`; the last ones if there are none behind them.
    Items {
        /// The entries.
        items: Vec<Item>,
        /// Whether there are more.
        more: bool,
    },
    /// To `Digest`.
    Digest(Digest),
}

/// An answer, at once or later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// At once.
    Ready(Result<Output, IndexError>),
    /// It needs pages that are being read: [`Action::Done`] will have this number.
    Pending(u64),
    /// Too many wait already: ask again later.
    Busy,
}

/// What happens to an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes were read, or could not be.
    Read {
        /// Of [`Action::Read`].
        token: u64,
        /// As many as were asked for; `None`: unreadable.
        bytes: Option<Bytes>,
    },
    /// A chunk was written, or was not.
    Written {
        /// Of [`Action::Write`].
        token: u64,
        /// The address of its first byte.
        result: Result<u64, WriteFailure>,
    },
    /// Chunks are durable, or it is not known whether they are.
    Synced {
        /// Of [`Action::Sync`].
        token: u64,
        /// Whether they are.
        ok: bool,
    },
    /// A root is durable, or it is not known whether it is.
    RootWritten {
        /// Of [`Action::WriteRoot`].
        token: u64,
        /// Whether it is.
        ok: bool,
    },
    /// There is time to go on.
    Turn,
    /// The device has room again.
    Room,
}

/// Why a chunk was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFailure {
    /// There is no room for it: nothing was written.
    Full,
    /// The device failed.
    Failed,
}

/// What an index wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read bytes of one chunk.
    Read {
        /// For the answer.
        token: u64,
        /// Address of the first byte.
        at: u64,
        /// So many.
        len: u32,
    },
    /// Write a chunk, wherever there is room; it need not be durable yet.
    Write {
        /// For the answer.
        token: u64,
        /// Whole grains, at most [`Limits::chunk_bytes`].
        bytes: Bytes,
    },
    /// Make durable what was written.
    Sync {
        /// For the answer.
        token: u64,
    },
    /// Make this the partition's root, durably.
    WriteRoot {
        /// For the answer.
        token: u64,
        /// Its generation.
        generation: u64,
        /// The root.
        bytes: Bytes,
    },
    /// Nothing of this index needs these chunks any more.
    Free {
        /// Which.
        chunks: Vec<Chunk>,
    },
    /// A root is durable: [`crate::Index::covered`] and [`crate::Index::pins`] are what it says. It comes
    /// before any `Free` that the root allows.
    Rooted,
    /// A question is answered.
    Done {
        /// Of [`Answer::Pending`].
        question: u64,
        /// The answer.
        result: Result<Output, IndexError>,
    },
    /// A page is damaged: the replica has to learn the map anew from another one.
    Damaged(IndexError),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// A page is not what it should be. What it would say of any key is not known.
    #[error("index run {run}, page {grain} (byte {address} of the device): {fault}")]
    Corrupt {
        /// The run.
        run: RunId,
        /// The page: its first grain.
        grain: u32,
        /// Where it is.
        address: u64,
        /// What is wrong with it.
        fault: PageFault,
    },
    /// A page cannot be read.
    #[error("index run {run}, page {grain} (byte {address} of the device): unreadable")]
    Unreadable {
        /// The run.
        run: RunId,
        /// The page: its first grain.
        grain: u32,
        /// Where it is.
        address: u64,
    },
    /// A page is whole, but an entry in it is none.
    #[error("index entry {key}: {reason}")]
    BadEntry {
        /// Its key.
        key: String,
        /// Why.
        reason: String,
    },
    /// A page lies where its run has none.
    #[error("index run {run}: it has no page {grain}")]
    NoPage {
        /// The run.
        run: RunId,
        /// The page: its first grain.
        grain: u32,
    },
    /// The list of extents that a run points into is none.
    #[error("index run {run}: its list of extents is none")]
    BadPins {
        /// The run.
        run: RunId,
    },
    /// There is no such snapshot, or not any more.
    #[error("there is no snapshot at entry {}", seq.0)]
    NoSnapshot {
        /// The last entry that it would see.
        seq: Seq,
    },
    /// Two indexes have two runs in different orders: they are not of one family.
    #[error("index run {run} stands before another one here, and behind it there")]
    Crossed {
        /// One of the runs.
        run: RunId,
    },
    /// The index was cleared: there is nothing to be asked.
    #[error("the index was cleared")]
    Cleared,
    /// The root makes no sense.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The attachment is not as long as the root says.
    #[error("index attachment {run} of {got} bytes; {expected} are expected")]
    Attachment {
        /// Its name.
        run: RunId,
        /// Bytes named by the root.
        expected: u64,
        /// Bytes found.
        got: u64,
    },
    /// A write failed: what is durable is not known. The index is to be opened anew.
    #[error("the index stopped: {what} failed")]
    Stopped {
        /// What.
        what: &'static str,
    },
}

/// A change cannot be taken now: too much waits to be written out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the index takes no change: {waiting} bytes wait to be written out")]
pub struct Full {
    /// Bytes that wait.
    pub waiting: usize,
}

/// What an index has and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Runs.
    pub runs: usize,
    /// Levels of them.
    pub levels: usize,
    /// Entries in runs, tombstones and older versions included.
    pub run_entries: u64,
    /// Bytes of runs on the device.
    pub run_bytes: u64,
    /// Bytes of objects that are embedded in runs, older versions included.
    pub embedded: u64,
    /// Bytes of journal entries that runs point to, those of older versions included.
    pub placed: u64,
    /// How many objects there are, about, and rather too high: each version in runs and tables is counted,
    /// also where a newer one or a tombstone stands elsewhere and no merge has brought the two together
    /// yet; of a run that is visible in part, the part that its fences say.
    pub objects: u64,
    /// Entries in tables.
    pub table_entries: u64,
    /// Bytes of tables in memory.
    pub table_bytes: usize,
    /// Bytes of filters, fences and chunk lists in memory.
    pub run_memory: usize,
    /// Bytes of keys and values that came in.
    pub bytes_in: u64,
    /// Bytes that flushes wrote,
    pub bytes_flushed: u64,
    /// and those that merges wrote.
    pub bytes_merged: u64,
    /// Pages that were read for questions.
    pub pages_read: u64,
    /// Questions that wait.
    pub questions: usize,
}

//! The control parts of frames: requests, replies, and what the replicas of a chain say to each other.
//!
//! Encoded with wincode in the bincode format. Payloads (shard bytes, inline objects, journal
//! entries) ride behind the control part, never in it.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::digest::Digest;
use crate::ids::{
    ClientId, ClusterId, DeviceId, DeviceNo, Epoch, NodeId, PartitionId, RequestNo, Seq, ShardId,
    Term,
};
use crate::manifest::{Etag, Manifest, Op, Precondition, VersionTag};
use crate::pace::DevicePace;

/// What a client asks of a core. The frame's payload is named where there is one.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub enum Request {
    /// First on every connection: who is calling, of which cluster.
    Hello {
        /// The caller's cluster.
        cluster: ClusterId,
        /// The caller's node, 0 for a client,
        node: NodeId,
        /// and which of its cores calls.
        core: u32,
    },
    /// The cluster map, as JSON in the reply's payload.
    GetMap,
    /// Store a shard. Payload: its bytes. Answered when durable.
    ShardWrite {
        /// On which device.
        device: DeviceNo,
        /// Its name.
        shard: ShardId,
    },
    /// Read a shard, whole (`len` = `u32::MAX`) or part. Reply payload: the bytes.
    ShardRead {
        /// From which device.
        device: DeviceNo,
        /// Its name.
        shard: ShardId,
        /// From this byte.
        offset: u32,
        /// So many bytes.
        len: u32,
    },
    /// Forget a shard. Answered when durable; forgetting an unknown shard succeeds.
    ShardDelete {
        /// On which device.
        device: DeviceNo,
        /// Its name.
        shard: ShardId,
    },
    /// Change metadata, once. Payload: the object, if inline. Only to the head.
    Propose {
        /// Which partition.
        partition: PartitionId,
        /// The reign that it is meant for, as [`Request::Chain`] told: another one refuses it with
        /// [`ErrorCode::NotHead`] and does nothing. So an attempt that lies in a socket somewhere can
        /// never be carried out in a later reign, behind the back of its own retry.
        term: Term,
        /// Who asks,
        client: ClientId,
        /// and which of its requests this is; a retry has the same number.
        request: RequestNo,
        /// None if this request certainly did not reach the partition before. On a retry: the last
        /// entry of this partition that the caller had been told of when it asked first (0: of
        /// none). What it may have done is behind that one; a head that has forgotten who did what
        /// up to there refuses with [`ErrorCode::OutcomeUnknown`] rather than do it twice.
        retry: Option<Seq>,
        /// What must hold.
        precondition: Precondition,
        /// The change.
        op: Op,
    },
    /// An object's manifest. Only to the head. Reply payload: the object, if inline and `payload`.
    Lookup {
        /// Which partition.
        partition: PartitionId,
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// Which version, as [`VersionTag::slot`] has it; none: the current one.
        id: Option<Seq>,
        /// Whether the inline payload is wanted.
        payload: bool,
    },
    /// A page of a listing. Only to the head.
    List {
        /// Which partition.
        partition: PartitionId,
        /// The bucket.
        bucket: String,
        /// Only keys that start with this.
        prefix: String,
        /// Keys are rolled up after the first of these behind the prefix; empty: none.
        delimiter: String,
        /// Only keys or common prefixes after this.
        after: String,
        /// At most so many keys and common prefixes; at most [`crate::limits::LIST_PAGE_MAX`].
        max: u32,
    },
    /// Who is the head of a partition's chain, and how far it is. Any replica answers.
    Chain {
        /// Which partition.
        partition: PartitionId,
    },
    /// The highest entry that a replica has received for a key slot. Any replica answers, from memory.
    Witness {
        /// Which partition.
        partition: PartitionId,
        /// The key's slot: [`crate::slot::slot_of`].
        slot: u32,
    },
    /// The buckets whose record this partition holds.
    ListBuckets {
        /// Which partition.
        partition: PartitionId,
        /// Only names after this.
        after: String,
        /// At most so many.
        max: u32,
    },
    /// How the node is doing.
    Status,
    /// A shard came back wrong: the node is told, so that its findings show it.
    ReportShard {
        /// On which device.
        device: DeviceNo,
        /// Its name.
        shard: ShardId,
        /// Which fault.
        fault: FindingKind,
    },
    /// A page of a listing of all versions. Only to the head.
    ListVersions {
        /// Which partition.
        partition: PartitionId,
        /// The bucket.
        bucket: String,
        /// Only keys that start with this.
        prefix: String,
        /// Keys are rolled up after the first of these behind the prefix; empty: none.
        delimiter: String,
        /// Only keys or common prefixes after this,
        after: String,
        /// and the versions of that key that are older than this one.
        after_id: Option<Seq>,
        /// At most so many versions and common prefixes; at most [`crate::limits::LIST_PAGE_MAX`].
        max: u32,
    },
    /// The digest of a stretch of a replica's index, as it was behind an entry. Any replica answers.
    Digest {
        /// Which partition,
        partition: PartitionId,
        /// and which replica: a core may hold two.
        device: DeviceNo,
        /// [`crate::digest::DIGEST_SCHEME`] of who asks.
        scheme: u32,
        /// All entries up to this one, and none behind it.
        at: Seq,
        /// Behind this key in the order of the map; empty: from the beginning.
        after: Vec<u8>,
        /// At most so many entries of the map; at most [`crate::digest::DIGEST_ENTRIES_MAX`].
        entries: u32,
    },
    /// How fast the devices of the core may be read for audits and repairs now.
    Paces,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub enum Reply {
    /// To `Hello`.
    Hello {
        /// Who answers.
        node: NodeId,
        /// The map epoch it works with.
        epoch: Epoch,
    },
    /// To `GetMap`; the map is the payload.
    Map,
    /// To `ShardWrite` and `ShardDelete`, durable; and to `ReportShard`.
    Done,
    /// To `ShardRead`; the bytes are the payload, verified against the record's checksums.
    Shard {
        /// Length of the whole shard.
        shard_len: u32,
        /// CRC-32 of the whole shard, from the record's header: to be compared with the manifest's.
        shard_crc: u32,
    },
    /// To `Propose`: committed.
    Committed {
        /// The entry's number: the object's version.
        seq: Seq,
        /// What it displaced, for the caller to free, without its attributes: none on a retry.
        displaced: Option<Manifest>,
    },
    /// To `Lookup`; the inline object, if asked for, is the payload.
    Found {
        /// What is known of it.
        meta: ObjectMeta,
        /// The last entry that was committed and applied when this was looked up: what is said holds
        /// for as long as no entry behind this one touches the key.
        as_of: Seq,
        /// The chain's composition then: witnesses of another one say nothing about this.
        config: u64,
    },
    /// To `Chain`.
    Chain(ChainView),
    /// To `Witness`.
    Witness {
        /// The chain's composition that the replica works with; None while it changes, or while the
        /// replica does not know what it received before: then it says nothing.
        config: Option<u64>,
        /// The highest entry received (durable or not, committed or not) for any key of the slot: never
        /// less than the truth, at times more.
        highest: Seq,
    },
    /// To `List`.
    Page(ListPage),
    /// To `ListBuckets`.
    Buckets {
        /// Name and creation time.
        buckets: Vec<BucketMeta>,
        /// Whether there are more after the last one.
        more: bool,
    },
    /// To `Status`.
    Status(NodeStatus),
    /// Refused or failed.
    Error(WireError),
    /// To `ListVersions`.
    Versions(VersionPage),
    /// To `Digest`.
    Digest {
        /// The last entry that the replica has applied.
        applied: Seq,
        /// None: it has not come to the entry that was asked for, or is past it and has not kept that state.
        digest: Option<Box<Digest>>,
    },
    /// To `Paces`: of each device of the core that answers.
    Paces(Vec<DevicePace>),
}

/// A partition's chain, as one of its replicas sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct ChainView {
    /// The newest reign that it knows; [`Term::head`] is its head. Term 0: it knows of none.
    pub term: Term,
    /// Whether it is itself that head, and in office.
    pub serving: bool,
    /// The last entry known to be committed: what a client that is new here has been told of.
    pub committed: Seq,
    /// The chain's composition: counts up with each change.
    pub config: u64,
    /// Its members.
    pub members: Vec<DeviceNo>,
}

/// An object as the index knows it.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct ObjectMeta {
    /// Its version: the number of the entry that made it.
    pub version: Seq,
    /// When, in milliseconds since 1970.
    pub modified_ms: u64,
    /// What it is made of.
    pub manifest: Manifest,
    /// Which version of the object it is, if it is one of a bucket that keeps them.
    pub tag: Option<VersionTag>,
}

impl ObjectMeta {
    /// The entry that made it first: it stays the same when it becomes a version, and when it is current again.
    pub fn id(&self) -> Seq {
        self.tag.map_or(self.version, |tag| tag.id)
    }
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct BucketMeta {
    /// Its name.
    pub name: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
}

/// A page of a listing, in UTF-8 byte order.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct ListPage {
    /// Objects.
    pub objects: Vec<ListEntry>,
    /// Common prefixes.
    pub prefixes: Vec<String>,
    /// Where to go on (as `after`), if there is more.
    pub next: Option<String>,
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct ListEntry {
    /// Its key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// CRC-32 of the object.
    pub crc: u32,
    /// Its ETag.
    pub etag: Etag,
    /// Its version.
    pub version: Seq,
    /// When it was made, in milliseconds since 1970.
    pub modified_ms: u64,
    /// Which version of the object it is, if it is one of a bucket that keeps them.
    pub tag: Option<VersionTag>,
}

impl ListEntry {
    /// See [`ObjectMeta::id`].
    pub fn id(&self) -> Seq {
        self.tag.map_or(self.version, |tag| tag.id)
    }
}

/// A page of a listing of versions, by key in UTF-8 byte order, and of one key the newest first: that one is
/// the current one.
#[derive(Clone, Debug, Default, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct VersionPage {
    /// Versions, markers among them. One without a tag is an object of a bucket that kept none.
    pub versions: Vec<ListEntry>,
    /// Common prefixes.
    pub prefixes: Vec<String>,
    /// Where to go on (as `after` and `after_id`), if there is more.
    pub next: Option<(String, Option<Seq>)>,
}

/// What was refused or failed. A caller branches on the code; the text is for a person.
#[derive(
    Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize, thiserror::Error,
)]
#[error("{detail}")]
pub struct WireError {
    /// What it was.
    pub code: ErrorCode,
    /// What happened, to what, and what to do.
    pub detail: String,
}

/// What was refused or failed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, SchemaWrite, SchemaRead, Serialize, Deserialize,
)]
pub enum ErrorCode {
    /// The frame cannot be understood; the connection ends.
    BadFrame,
    /// The request makes no sense: a length, name or range that is not allowed.
    BadRequest,
    /// The caller belongs to another cluster.
    WrongCluster,
    /// The caller's map is older than the node's, or newer: fetch the map again.
    StaleEpoch,
    /// The device or partition is not here.
    NotHere,
    /// No such bucket.
    NoSuchBucket,
    /// No such object, or no such shard: known to be absent, not merely unreadable.
    NotFound,
    /// The bucket exists already.
    BucketExists,
    /// The bucket still holds objects.
    BucketNotEmpty,
    /// The precondition does not hold.
    PreconditionFailed,
    /// The shard exists already with other bytes.
    Exists,
    /// What is on the device does not match its checksum.
    Corrupt,
    /// The device could not read or write.
    DeviceError,
    /// The device has no room for this write; reads go on.
    DeviceFull,
    /// The partition cannot serve now: its head, or too many of its replicas, are away. A change
    /// may have been made all the same.
    PartitionUnavailable,
    /// A queue is full: come back later.
    Busy,
    /// The node is draining or starting, or the partition cannot take this now; nothing was done.
    NotServing,
    /// The range is outside of the object.
    RangeNotSatisfiable,
    /// A broken invariant, reported instead of hidden.
    Internal,
    /// Whether this request was done before is not remembered any more; it was not done now.
    OutcomeUnknown,
    /// This replica is not the head in office of the reign that was asked for; nothing was done. Ask
    /// [`Request::Chain`] who is.
    NotHead,
    /// The partition does not hold that place of the (bucket, key) order any more; nothing was done. A newer
    /// map says which one does.
    Moved,
    /// The bucket reaches into another partition: it cannot be made or removed before its parts are one.
    BucketSpans,
    /// The current object is none of the versions that are kept: it has to be made one first.
    NotKept,
    /// A lock keeps the version, or may not be made less.
    Locked,
    /// The two keys that a change is about are in different partitions; nothing was done.
    Apart,
    /// What is on the device is not what was written, and this is known of it beside that (rot is
    /// [`ErrorCode::Corrupt`]).
    Damaged(FindingKind),
    /// The change takes an entry that not all nodes can read yet; nothing was done.
    NotYet,
}

/// A fault that was found on a device.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, SchemaWrite, SchemaRead, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// Bytes that do not match their checksum.
    Rot,
    /// A whole record, but not the one that is meant.
    WrongRecord,
    /// A block that the device would not read.
    Unreadable,
    /// A shard that should be there and is not.
    Missing,
    /// Blocks skipped by recovery because no record could be read there.
    Skipped,
    /// A record of which the front was written, and the rest was not.
    Torn,
    /// What was there before the record was written, or nothing: its write never came.
    LostWrite,
    /// A record that was written for another place, or for another device.
    Misdirected,
    /// A record of an earlier life of the extent: the write of the one that should be there never came.
    StaleIncarnation,
}

impl FindingKind {
    /// All of them, in their order.
    pub const ALL: [FindingKind; 9] = [
        FindingKind::Rot,
        FindingKind::WrongRecord,
        FindingKind::Unreadable,
        FindingKind::Missing,
        FindingKind::Skipped,
        FindingKind::Torn,
        FindingKind::LostWrite,
        FindingKind::Misdirected,
        FindingKind::StaleIncarnation,
    ];

    /// As it is told, and written.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::Rot => "rot",
            FindingKind::WrongRecord => "wrong-record",
            FindingKind::Unreadable => "unreadable",
            FindingKind::Missing => "missing",
            FindingKind::Skipped => "skipped",
            FindingKind::Torn => "torn",
            FindingKind::LostWrite => "lost-write",
            FindingKind::Misdirected => "misdirected",
            FindingKind::StaleIncarnation => "stale-incarnation",
        }
    }
}

/// How a node is doing.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Which node.
    pub node: NodeId,
    /// Its map epoch.
    pub epoch: Epoch,
    /// Milliseconds since it started to serve.
    pub uptime_ms: u64,
    /// Its devices on the core that answered.
    pub devices: Vec<DeviceStatus>,
    /// Its replicas on the core that answered.
    pub replicas: Vec<ReplicaStatus>,
}

/// How a device is doing.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its number in the map.
    pub device: DeviceNo,
    /// Its own name.
    pub id: DeviceId,
    /// `serving`, `recovering`, `fenced` or `full`.
    pub state: String,
    /// Bytes in all.
    pub bytes_total: u64,
    /// Bytes in extents that hold something.
    pub bytes_used: u64,
    /// Live shards.
    pub shards: u64,
    /// Findings since it was opened, by kind, in the order of [`FindingKind`].
    pub findings: Vec<FindingCount>,
}

impl DeviceStatus {
    /// Whether what is on it can be had.
    pub fn serves(&self) -> bool {
        matches!(self.state.as_str(), "serving" | "full")
    }
}

/// So many findings of a kind.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct FindingCount {
    /// Which kind.
    pub kind: FindingKind,
    /// How many.
    pub count: u64,
}

/// How a replica of a partition is doing.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Which partition.
    pub partition: PartitionId,
    /// `head` or `follower`.
    pub role: String,
    /// `serving`, `sealing`, `waiting` …
    pub state: String,
    /// Its term.
    pub term: Term,
    /// Last entry in its log.
    pub last: Seq,
    /// Last entry known to be committed.
    pub committed: Seq,
    /// Objects in its index.
    pub objects: u64,
}

/// What the replicas of a chain say to each other; one way, no replies by request id.
/// The frame's payload is named where there is one: whole encoded journal entries.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub struct ChainMessage {
    /// Which partition.
    pub partition: PartitionId,
    /// The sender's device,
    pub from: DeviceNo,
    /// and the device that is meant: a core may hold two replicas while one takes the other's place.
    pub to: DeviceNo,
    /// The reign that this belongs to; [`Term::head`] is its head, or who wants to be.
    pub term: Term,
    /// What it says.
    pub body: ChainBody,
}

/// What a [`ChainMessage`] says.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead, Serialize, Deserialize)]
pub enum ChainBody {
    /// Whoever wants to be the head (or is, and finds a replica again) to all: promise to refuse all
    /// older reigns from now on.
    Seal,
    /// To the sender of `Seal`: promised, durably, and this is the log that the sender holds durably.
    Sealed {
        /// Its last entry's number,
        last: Seq,
        /// and that entry's term.
        last_term: Term,
        /// Ranges (first, last) below `last` that it cannot read.
        holes: Vec<(Seq, Seq)>,
        /// The last entry that its log has forgotten: committed, and part of its index,
        base: Seq,
        /// and that entry's term.
        base_term: Term,
    },
    /// To whoever said something in an older reign, or asked for a promise that cannot be given (yet).
    Refused {
        /// The newest reign that the sender promised itself to.
        promised: Term,
        /// How long its lease for that reign's head still runs, in microseconds; 0: not at all.
        lease_us: u64,
        /// The newest composition of the chain in its log,
        config: u64,
        /// and the members of that.
        members: Vec<DeviceNo>,
    },
    /// Ask for entries `first..=last`, durable or not.
    Fetch {
        /// First one wanted.
        first: Seq,
        /// Last one wanted.
        last: Seq,
    },
    /// Payload: entries from `first` on, contiguous; none if the sender does not have `first`.
    Entries {
        /// The first one's number.
        first: Seq,
        /// How many.
        count: u32,
    },
    /// Down the chain. Payload: entries from `prev + 1` on; they may be none.
    Append {
        /// The entry before the first one here,
        prev: Seq,
        /// and its term: a receiver that holds another refuses.
        prev_term: Term,
        /// How many entries the payload holds.
        count: u32,
        /// Committed so far.
        committed: Seq,
        /// The head's clock when it sent this, in nanoseconds: given back by `Ack`, for its lease.
        stamp: u64,
    },
    /// To the head: durable up to here, contiguously.
    Ack {
        /// The last durable entry.
        durable: Seq,
        /// The latest stamp received from this head in this reign: the sender gives no promise to
        /// anyone else until its lease, counted from when it received that, is over.
        stamp: u64,
    },
    /// To the head: what came does not join on; go on from `last + 1` whose term is `last_term`.
    Mismatch {
        /// The sender's last entry that may match,
        last: Seq,
        /// and its term.
        last_term: Term,
    },
    /// To the head: the sender's index is damaged, or it lacks an entry that others have forgotten.
    Teach,
    /// From the head, to a replica that lacks what the head's log has forgotten: a part of a snapshot.
    Lesson {
        /// The entry at which the snapshot was taken.
        at: Seq,
        /// Tells this lesson from others of the reign.
        lesson: u64,
        /// Which part, from 0; the same part may come again.
        part: u64,
        /// What the payload is.
        content: LessonContent,
        /// Whether it is the last part.
        end: bool,
        /// As in `Append`.
        stamp: u64,
    },
    /// To the head: so many parts are taken in; with the last one, all is durable.
    Learned {
        /// Of which lesson.
        lesson: u64,
        /// How many parts.
        parts: u64,
        /// As in `Ack`.
        stamp: u64,
    },
    /// The sender cannot read the payload of an inline object: give it.
    Recall {
        /// The object's bucket,
        bucket: String,
        /// its key,
        key: String,
        /// which version of it (none: the current one),
        id: Option<Seq>,
        /// and the entry that wrote that.
        version: Seq,
    },
    /// To `Recall`. Payload: the object, if `found`.
    Recalled {
        /// The object's bucket,
        bucket: String,
        /// its key,
        key: String,
        /// which version of it (none: the current one),
        id: Option<Seq>,
        /// and the entry that was meant.
        version: Seq,
        /// Whether the sender can give it. If not, it may have another version, or none (yet).
        found: bool,
    },
    /// From a head that has given its reign up of its own accord: whoever promised to wait for it need not.
    Over,
}

/// What the payload of a [`ChainBody::Lesson`] is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, SchemaWrite, SchemaRead, Serialize, Deserialize,
)]
pub enum LessonContent {
    /// The next bytes of a [`crate::replica_state::ReplicaState`], which comes before all items.
    State,
    /// [`crate::replica_state::Items`].
    Items,
    /// Nothing: the head shows that it is there while it collects the next part, which has this number.
    Nothing,
}

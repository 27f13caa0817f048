//! What goes into a replica and what comes out of it.
//!
//! A driver turns what happens (messages, completions, time) into [`Event`]s and carries out the
//! [`Action`]s, in their order. What it promises:
//! - `Persist` actions of one partition become durable in the order in which they were given: after
//!   a crash, what is missing of them is a tail. (A later one that survives an earlier one looks
//!   like damage, and is treated as such.) Completions may come in any order.
//! - Each `Persist`, `ReadLog` gets exactly one completion, unless the process ends.
//! - [`Action::Index`] is carried out as `ashlar_cluster_index::Event` and `Action` say, each completion
//!   given back with the lane that its action had. A [`Event::Turn`] comes soon, as long as
//!   [`crate::Replica::wants_turn`].
//! - What [`Action::Trim`] leaves may be read again at any later start; what it gives up need not.
//! - Messages to one peer arrive in order or not at all; what was under way on a connection is gone
//!   once `PeerDown` was reported, and never arrives after the next `PeerUp`. Nothing that a process
//!   sent is delivered to, or on behalf of, its successor after a restart.
//! - `Send` is best effort: one whose queue is full may be dropped by the driver; the replica
//!   notices and sends again.

use std::time::Duration;

use ashlar_cluster_index::{self as index, Name};
use ashlar_layout::digest::Digest;
use ashlar_layout::ids::{ClientId, DeviceId, DeviceNo, PartitionId, RequestNo, Seq, Term};
use ashlar_layout::limits::EXTENT_SIZE;
use ashlar_layout::manifest::{Op, Precondition};
use ashlar_layout::message::{
    BucketMeta, ChainMessage, ListPage, ObjectMeta, Reply, VersionPage, WireError,
};
use ashlar_layout::version::ENTRY_VERSION;
use bytes::Bytes;

use crate::bounds::Newborn;

/// What a replica is told when it is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Its partition.
    pub partition: PartitionId,
    /// Its own device.
    pub me: DeviceNo,
    /// The index's own: where it is, its names, its bounds.
    pub index: index::Config,
    /// The first members of the chain: configuration 1, the same for every replica of the partition
    /// for ever. Later configurations stand in the log. The first one named takes the first reign.
    pub founders: Vec<DeviceNo>,
    /// It is made of other partitions: with nothing of them on its device it stands for nothing, and the founders are
    /// those that the map names.
    pub heir: bool,
    /// The newest version of entries that it reads: all that the program knows, but where a test wants an older one.
    pub reads: u16,
    /// Bounds and times.
    pub limits: Limits,
    /// Where its jitter comes from.
    pub seed: u64,
    /// What it does wrong, for tests of the tests.
    #[cfg(feature = "mutants")]
    pub mutant: Option<crate::mutants::Mutant>,
}

impl Config {
    /// With the default limits.
    pub fn new(partition: PartitionId, me: DeviceNo, founders: Vec<DeviceNo>) -> Self {
        Self {
            partition,
            me,
            index: index::Config {
                device: DeviceId::default(),
                partition,
                life: 0,
                extent_size: EXTENT_SIZE,
                limits: index::Limits::default(),
            },
            founders,
            heir: false,
            reads: ENTRY_VERSION,
            limits: Limits::default(),
            seed: u64::from(me.0),
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}

/// Every queue, cache and wait of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Proposals that are not committed yet, at most; more are answered `Busy`.
    pub pending: usize,
    /// Bytes of entries that are not committed yet, at most; more are answered `Busy`.
    pub pending_bytes: usize,
    /// Bytes of entries kept in memory; beyond it those on the device are read from there.
    pub memory_bytes: usize,
    /// Bytes of entries received but not durable yet, at most; what comes beyond is not taken.
    pub unpersisted_bytes: usize,
    /// Bytes sent to a follower and not acknowledged by it, at most.
    pub window_bytes: usize,
    /// Entries sent to a follower and not acknowledged by it, at most.
    pub window_entries: u64,
    /// Bytes of entries in one message or one read of the log (or one entry, if that is larger).
    pub batch_bytes: usize,
    /// Clients whose requests are remembered. An uncertain retry of one that was forgotten is refused
    /// with `OutcomeUnknown`.
    pub clients: usize,
    /// Requests remembered of each client; far more than a client has under way at once.
    pub requests: usize,
    /// Refusals that a head remembers, so that a retry under way is refused as well.
    pub refusals: usize,
    /// Payloads of inline objects up to so many bytes are put into the index; longer ones stay where
    /// their journal entries are.
    pub embed: usize,
    /// Bytes of entries that are applied and not written out yet, beyond which the index is written out
    /// even if its table is small: what a start has to read again.
    pub tail_bytes: u64,
    /// The same while the device is full, and room can only come from what is deleted.
    pub pressed_bytes: u64,
    /// Bytes of entries kept behind what the index covers, for replicas that were away for a while.
    pub keep_bytes: u64,
    /// The same while a replica learns a snapshot, and wants the entries behind it afterwards.
    pub keep_bytes_max: u64,
    /// Replicas that are taught a snapshot at once.
    pub lessons: usize,
    /// Payloads that are asked of other replicas at once, and payloads that are looked up for them.
    pub recalls: usize,
    /// Questions of readers that wait for pages of the index.
    pub asks: usize,
    /// Questions for digests that wait, for their entry or for pages of the index.
    pub digests: usize,
    /// How long a question for a digest waits for its entry,
    pub digest_wait: Duration,
    /// how long a state that digests are made of is kept when nobody asks any more,
    pub digest_keep: Duration,
    /// and how long at the most, whoever asks: what is superseded meanwhile keeps its space.
    pub digest_most: Duration,
    /// Entries under repair (lost on the device, fetched from a peer) at once.
    pub repairs: usize,
    /// How long a starting head waits for replicas that it can do without.
    pub grace: Duration,
    /// How long until a message that had no effect is sent again.
    pub resend: Duration,
    /// Shortest and longest time that a follower fed by its predecessor may be silent.
    pub silent_min: Duration,
    /// See `silent_min`.
    pub silent_max: Duration,
    /// How long until a follower that was bypassed is fed through the chain again; twice as long
    /// each time that this fails, up to 32 times.
    pub rechain: Duration,
    /// The head feeds every follower itself: a star instead of a chain, to compare the two.
    pub star: bool,
    /// How long an idle head waits until it tells followers what is committed,
    pub announce: Duration,
    /// and how long until it says so again, and asks for its lease to go on.
    pub heartbeat: Duration,
    /// How long a follower that heard its head promises nobody else. The head serves for half of that
    /// since it said what enough followers answered. What counts is that no clock runs twice as fast as another.
    pub lease: Duration,
    /// How much later each next one in the chain suspects a silent head.
    pub stagger: Duration,
    /// How long the others may hold durably what a head's own device has not written, before it lets another
    /// one reign.
    pub hang: Duration,
    /// How long founders other than the first one wait until they take the first reign.
    pub first_reign: Duration,
    /// How many entries a spare may be behind what is committed when it becomes a member.
    pub learned_lag: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pending: 4096,
            pending_bytes: 16 << 20,
            memory_bytes: 16 << 20,
            unpersisted_bytes: 32 << 20,
            window_bytes: 4 << 20,
            window_entries: 4096,
            batch_bytes: 256 << 10,
            clients: 4096,
            requests: 512,
            refusals: 1024,
            embed: 512,
            tail_bytes: 64 << 20,
            pressed_bytes: 256 << 10,
            keep_bytes: 32 << 20,
            keep_bytes_max: 1 << 30,
            lessons: 2,
            recalls: 256,
            asks: 1024,
            digests: 4,
            digest_wait: Duration::from_millis(500),
            digest_keep: Duration::from_secs(10),
            digest_most: Duration::from_secs(60),
            repairs: 256,
            grace: Duration::from_millis(40),
            resend: Duration::from_millis(200),
            silent_min: Duration::from_millis(2),
            silent_max: Duration::from_millis(50),
            rechain: Duration::from_millis(100),
            star: false,
            announce: Duration::from_millis(5),
            heartbeat: Duration::from_millis(10),
            lease: Duration::from_millis(60),
            stagger: Duration::from_millis(20),
            hang: Duration::from_millis(500),
            first_reign: Duration::from_secs(1),
            learned_lag: 64,
        }
    }
}

/// What happens to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Replay is over.
    Start {},
    /// A client asks for a change. Answered by [`Action::Reply`].
    Propose {
        /// The driver's name for the answer.
        reply_to: u64,
        /// The reign that it is meant for.
        term: Term,
        /// Who asks,
        client: ClientId,
        /// and which of its requests this is.
        request: RequestNo,
        /// On a retry: the last entry that the client had been told of when it asked first.
        retry: Option<Seq>,
        /// What must hold.
        precondition: Precondition,
        /// The change.
        op: Op,
        /// The object, if inline.
        inline: Bytes,
        /// The wall clock, in milliseconds since 1970: the object's time.
        wall_ms: u64,
    },
    /// Another replica says something.
    Message {
        /// What.
        message: ChainMessage,
        /// The frame's payload.
        payload: Bytes,
    },
    /// Entries are durable.
    Persisted {
        /// Of [`Action::Persist`].
        token: u64,
        /// Device byte address of the first entry.
        at: u64,
        /// The record's number on the device: each is higher than those of all earlier records.
        position: u64,
    },
    /// Entries could not be made durable: the replica stops. The driver makes another, from the
    /// device's log, when the device is well again. A head that serves, and whose device merely has
    /// no room, goes on to answer reads until then, and refuses every change with `DeviceFull`.
    PersistFailed {
        /// Of [`Action::Persist`].
        token: u64,
        /// Because there is no room.
        full: bool,
    },
    /// A read of the log is finished.
    LogRead {
        /// Of [`Action::ReadLog`].
        token: u64,
        /// What the device gave; `None`: unreadable, or known to be damaged.
        bytes: Option<Bytes>,
    },
    /// The connection with this replica works (again).
    PeerUp {
        /// Which.
        peer: DeviceNo,
    },
    /// The connection with this replica broke or cannot be made.
    PeerDown {
        /// Which.
        peer: DeviceNo,
    },
    /// The members that the cluster map wants. All replicas of the partition are told, spares too, at
    /// their start and at each change; the head acts on it.
    Desired {
        /// The members.
        members: Vec<DeviceNo>,
    },
    /// What the cluster map says of the partition's place among others. All replicas are told, at their start and
    /// at each change; the head acts on it.
    Bounds {
        /// See there.
        wanted: Wanted,
    },
    /// The newest version of entries that the cluster map allows to be written. All replicas are told, before they are
    /// started and at each change; before that it is what they read.
    Level {
        /// It.
        entries: u16,
    },
    /// To [`Action::Bear`]: the child is durable on this device, or it has what it needs without that.
    ChildDurable {
        /// The child.
        child: PartitionId,
    },
    /// To a replica that [`crate::Replica::expects_birth`]: what it begins with. Answered by [`Action::Born`], also if
    /// it has learned meanwhile.
    Born {
        /// What was made of its parents' indexes, on this device. The chunks that it shares are held for this
        /// partition by now.
        newborn: Box<Newborn>,
    },
    /// A reader asks. Answered by [`Action::Answer`]: at the head in office, within its lease; a question for a digest
    /// at any replica.
    Ask {
        /// The driver's name for the answer.
        reply_to: u64,
        /// What.
        ask: Ask,
    },
    /// The payload of an object cannot be read on this device: it is asked of the other replicas, and put
    /// into the index. Answered by [`Action::Restored`].
    InlineLost {
        /// The object, or the version of one,
        name: Name,
        /// and the entry that wrote it.
        version: Seq,
    },
    /// What the index wanted done has happened.
    Index {
        /// Of [`Action::Index`].
        lane: u32,
        /// What.
        event: index::Event,
    },
    /// There is time for the index to go on.
    Turn,
    /// Its process is about to end: a head lets what it has begun be committed, takes nothing more, and hands
    /// over; from then on it wants no reign.
    Leave,
    /// The device is (nearly) full, or has room again: while it is full, proposals that add to it
    /// are refused with `DeviceFull`; deletes go on.
    Full {
        /// Whether it is.
        full: bool,
    },
    /// The time of [`crate::Replica::next_deadline`] has come.
    Deadline,
}

/// What a replica wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make entries durable; answer with `Persisted` or `PersistFailed`. A promise, which is no part of
    /// the log, is one entry of number 0; it keeps its place in the order all the same.
    Persist {
        /// For the answer.
        token: u64,
        /// The first entry's number,
        first: Seq,
        /// and the last one's: they are contiguous.
        last: Seq,
        /// The entries, encoded.
        entries: Bytes,
    },
    /// Say something to another replica.
    Send {
        /// Its device.
        to: DeviceNo,
        /// What.
        message: ChainMessage,
        /// The frame's payload.
        payload: Bytes,
    },
    /// Answer a proposal.
    Reply {
        /// Of [`Event::Propose`].
        reply_to: u64,
        /// `Committed` or `Error`.
        reply: Reply,
    },
    /// Read bytes of the log; answer with `LogRead`. They may span records' payloads only where
    /// these were persisted by one action.
    ReadLog {
        /// For the answer.
        token: u64,
        /// Device byte address of an entry.
        at: u64,
        /// So many bytes.
        len: u32,
    },
    /// A child is to be made of its index as it is, before any other event comes: by [`crate::Replica::bear`], if the
    /// child's replica on this device (which is made if it is not there) expects it. Then, or when that replica
    /// has said [`Action::Born`], it is to be told [`Event::ChildDurable`].
    Bear {
        /// The child.
        child: PartitionId,
        /// Its founders, which are the members of this chain, from the head on.
        members: Vec<DeviceNo>,
    },
    /// It is closed, and all that it ever will have is in its index: when its neighbour is closed as well, the two are
    /// made one ([`Newborn::of_two`]).
    Closed {
        /// The partition that they become a part of.
        into: PartitionId,
        /// The members of this chain, from the head on: the founders, if this is the left one.
        members: Vec<DeviceNo>,
    },
    /// What it was born with is durable.
    Born,
    /// It is no member of the chain any more, and that is committed: the driver may drop it. It makes
    /// it again, from its device's log, when another replica speaks to it: one that had begun to take
    /// it in again cannot go on without it. (It may be said more than once.)
    Retired,
    /// To `InlineLost`: the payload is there again (look the object up again), or is not.
    Restored {
        /// The object, or the version of one,
        name: Name,
        /// and the entry that was meant.
        version: Seq,
        /// Why not.
        result: Result<(), WireError>,
    },
    /// To `Ask`.
    Answer {
        /// Of [`Event::Ask`].
        reply_to: u64,
        /// The answer, or why there is none.
        result: Result<Answer, WireError>,
    },
    /// The index wants this done.
    Index {
        /// For the completions. Those of a lane that is over are taken all the same.
        lane: u32,
        /// What: never `Done` or `Rooted`. `Damaged` is to be told to a person, and counted, and no more.
        action: index::Action,
    },
    /// Journal records of the partition whose last entry is at most `through`, and whose number on the device
    /// is at most `position`, are not needed any more, but for the extents in `pins`: inline objects
    /// are read from there. Said at the start and whenever it changes; the last one counts.
    Trim {
        /// The last entry that is not needed.
        through: Seq,
        /// The last record to which that applies.
        position: u64,
        /// Extents, in order.
        pins: Vec<u32>,
    },
}

/// What the cluster map wants of a partition's bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// Where the next partition begins, by the map.
    pub end: Option<(String, String)>,
    /// Partitions that are to be made of what this one holds.
    pub children: Vec<Border>,
    /// The partition that this one is to become a part of.
    pub into: Option<PartitionId>,
}

/// Where a partition that is to be made of another one begins.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Border {
    /// It.
    pub child: PartitionId,
    /// Its first bucket and key.
    pub from: (String, String),
}

/// What a reader wants to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    /// An object.
    Lookup {
        /// Its bucket,
        bucket: String,
        /// its key,
        key: String,
        /// and which version; none: the current one.
        id: Option<Seq>,
    },
    /// A page of a listing.
    List(ListParams),
    /// A page of a listing of versions: with a name, of the key that it is behind only those that are older.
    Versions(ListParams, Option<Seq>),
    /// Buckets after a name, at most so many.
    Buckets {
        /// Only names after this.
        after: String,
        /// At most so many.
        max: u32,
    },
    /// The digest of a stretch of its bounds as the index was at an entry.
    Digest {
        /// The entry.
        at: Seq,
        /// Behind this key in the order of the map; empty: from the beginning.
        after: Vec<u8>,
        /// At most so many entries of the map.
        max: u32,
    },
}

/// What a reader is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An object, where its payload is if it is inline, and what a cache needs to have it confirmed by
    /// witnesses.
    Found {
        /// What is known of it.
        meta: ObjectMeta,
        /// Its payload, if the index has it,
        payload: Bytes,
        /// or where its entry is, if the payload is there.
        place: Option<InlineRef>,
        /// The last entry that was applied then,
        as_of: Seq,
        /// and the chain's composition.
        config: u64,
    },
    /// A page.
    Page(ListPage),
    /// A page of versions.
    Versions(VersionPage),
    /// Buckets, and whether there are more.
    Buckets {
        /// Name and creation time.
        buckets: Vec<BucketMeta>,
        /// Whether there are more after the last one.
        more: bool,
    },
    /// A digest.
    Digest {
        /// The last entry that was applied when this was said.
        applied: Seq,
        /// None: the entry that was asked for is not that far, or it is past it and did not keep that state.
        digest: Option<Digest>,
    },
}

/// Where an inline object's entry is on this replica's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InlineRef {
    /// The entry's number: to be checked against what is read.
    pub seq: Seq,
    /// The entry's term: to be checked as well.
    pub term: Term,
    /// Device byte address of the entry.
    pub at: u64,
    /// Length of the entry, header and all.
    pub len: u32,
}

/// Which page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListParams {
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

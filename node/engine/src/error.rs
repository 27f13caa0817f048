//! What can go wrong, typed by what a caller does about it, and what was found wrong on a device.

use std::fmt;

use ashlar_layout::ids::{ClusterId, DeviceId, PartitionId, Seq, ShardId};
use ashlar_layout::message;

use crate::api::IoFailure;

/// Why an operation was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// There is no such shard on this device.
    #[error("device {device}: no shard {shard}")]
    NotFound {
        /// This device.
        device: DeviceId,
        /// The shard asked for.
        shard: ShardId,
    },
    /// The shard exists with other bytes.
    #[error(
        "device {device}: shard {shard} exists with other bytes (CRC {stored:08x}, not {got:08x})"
    )]
    Exists {
        /// This device.
        device: DeviceId,
        /// The shard.
        shard: ShardId,
        /// CRC of the stored payload.
        stored: u32,
        /// CRC of the payload that was refused.
        got: u32,
    },
    /// The shard is deleted, or about to be: its name is not used again.
    #[error("device {device}: shard {shard} was deleted")]
    Deleted {
        /// This device.
        device: DeviceId,
        /// The shard.
        shard: ShardId,
    },
    /// The bytes on the device do not match their checksum or their name.
    #[error("device {device}: {finding}", device = finding.device)]
    Corrupt {
        /// What does not match.
        finding: Finding,
    },
    /// The device could not read the bytes.
    #[error("device {device}: read of {len} bytes at {offset}: {failure}")]
    Unreadable {
        /// This device.
        device: DeviceId,
        /// Byte offset on it.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// What the kernel said.
        failure: IoFailure,
    },
    /// The range is not inside the shard, the journal or the index.
    #[error("device {device}: range {offset}+{len} is outside of 0..{limit}")]
    BadRange {
        /// This device.
        device: DeviceId,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// First byte that does not exist.
        limit: u64,
    },
    /// The payload handed in is not what its CRC says, or the event contradicts itself.
    #[error("device {device}: payload of {what}: expected {expected}, got {got}")]
    BadPayload {
        /// This device.
        device: DeviceId,
        /// What is wrong.
        what: &'static str,
        /// What it should have been.
        expected: u64,
        /// What it is.
        got: u64,
    },
    /// No extent is left for this kind of append. Reads and deletes go on.
    #[error("device {device} is full: {free} free extents, {reserve} of them reserved")]
    DeviceFull {
        /// This device.
        device: DeviceId,
        /// Extents that are free.
        free: u64,
        /// Extents that this kind of append may not take.
        reserve: u64,
    },
    /// No buffer, or too many operations under way: try again later.
    #[error("device {device} is busy: {what}")]
    Busy {
        /// This device.
        device: DeviceId,
        /// What there is not enough of.
        what: &'static str,
    },
    /// A write or a flush failed: nothing is known to be durable until the device is reopened.
    #[error("device {device} is fenced: {operation} at {offset}: {failure}")]
    Fenced {
        /// This device.
        device: DeviceId,
        /// What failed.
        operation: &'static str,
        /// Where on the device.
        offset: u64,
        /// What the kernel said.
        failure: IoFailure,
    },
    /// The partition was forgotten while this waited.
    #[error("device {device}: partition {partition} was forgotten")]
    Forgotten {
        /// This device.
        device: DeviceId,
        /// The partition.
        partition: PartitionId,
    },
    /// The engine was told to stop.
    #[error("device {device} is shutting down")]
    ShuttingDown {
        /// This device.
        device: DeviceId,
    },
}

/// Something wrong on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// Which device.
    pub device: DeviceId,
    /// First byte of it.
    pub offset: u64,
    /// Bytes of it.
    pub len: u64,
    /// The shard that is hit, where that is known.
    pub shard: Option<ShardId>,
    /// The journal records that are hit, where that is known.
    pub journal: Option<(PartitionId, Seq, Seq)>,
}

/// The kinds of findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FindingKind {
    /// The device reports an error when it reads there.
    Unreadable,
    /// A record's header does not match its checksum.
    RecordHeader,
    /// A record's payload does not match its checksum.
    RecordPayload,
    /// In an unsealed extent: a record whose payload is not whole. Torn by a crash, or rotten.
    RecordTorn,
    /// A valid record at an address that is not its own, or on a device that is not.
    Misdirected,
    /// An extent's header is damaged; its records were found one by one.
    ExtentHeader,
    /// A sealed extent's footer is damaged; its records were found one by one.
    Footer,
    /// The checkpoint is damaged; nothing was taken from it.
    Checkpoint,
    /// A copy of the superblock is damaged.
    Superblock,
    /// A record that was durable, and of which only the front is there.
    Torn,
    /// Where a record should be there is what was there before it, or nothing.
    LostWrite,
    /// Where a record should be there is one of an earlier life of the extent.
    StaleIncarnation,
    /// A whole record that is not the one that the index expects.
    WrongRecord,
    /// An extent's table names a shard's record that nothing has deleted, and that the index does not know.
    Unindexed,
    /// The index points to where no record of it can be, or to what is not in its extent's table.
    Astray,
}

/// A place that could not be recovered: what stood there may have been any shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blind {
    /// First byte of it.
    pub offset: u64,
    /// Bytes of it.
    pub len: u64,
    /// What is wrong there.
    pub kind: FindingKind,
}

impl FindingKind {
    /// All kinds, in the order of [`FindingKind::number`].
    pub const ALL: [FindingKind; 15] = [
        FindingKind::Unreadable,
        FindingKind::RecordHeader,
        FindingKind::RecordPayload,
        FindingKind::RecordTorn,
        FindingKind::Misdirected,
        FindingKind::ExtentHeader,
        FindingKind::Footer,
        FindingKind::Checkpoint,
        FindingKind::Superblock,
        FindingKind::Torn,
        FindingKind::LostWrite,
        FindingKind::StaleIncarnation,
        FindingKind::WrongRecord,
        FindingKind::Unindexed,
        FindingKind::Astray,
    ];

    /// Its place in [`FindingKind::ALL`].
    pub fn number(self) -> usize {
        self as usize
    }

    /// Its name, for metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::Unreadable => "unreadable",
            FindingKind::RecordHeader => "record-header",
            FindingKind::RecordPayload => "record-payload",
            FindingKind::RecordTorn => "record-torn",
            FindingKind::Misdirected => "misdirected",
            FindingKind::ExtentHeader => "extent-header",
            FindingKind::Footer => "footer",
            FindingKind::Checkpoint => "checkpoint",
            FindingKind::Superblock => "superblock",
            FindingKind::Torn => "torn",
            FindingKind::LostWrite => "lost-write",
            FindingKind::StaleIncarnation => "stale-incarnation",
            FindingKind::WrongRecord => "wrong-record",
            FindingKind::Unindexed => "unindexed",
            FindingKind::Astray => "astray",
        }
    }

    /// What others are told of it.
    pub fn told(self) -> message::FindingKind {
        use message::FindingKind as Told;
        match self {
            FindingKind::Unreadable => Told::Unreadable,
            FindingKind::RecordHeader
            | FindingKind::RecordPayload
            | FindingKind::ExtentHeader
            | FindingKind::Footer
            | FindingKind::Checkpoint
            | FindingKind::Superblock => Told::Rot,
            // What was under way when the power went.
            FindingKind::RecordTorn => Told::Skipped,
            FindingKind::Misdirected => Told::Misdirected,
            FindingKind::Torn => Told::Torn,
            FindingKind::LostWrite => Told::LostWrite,
            FindingKind::StaleIncarnation => Told::StaleIncarnation,
            FindingKind::WrongRecord => Told::WrongRecord,
            // Whoever asks for such a shard does not get it.
            FindingKind::Unindexed | FindingKind::Astray => Told::Missing,
        }
    }

    /// What was diagnosed; `rot`: which part of the record that would be of.
    pub(crate) fn diagnosed(kind: message::FindingKind, rot: FindingKind) -> FindingKind {
        use message::FindingKind as Told;
        match kind {
            Told::Rot | Told::Missing | Told::Skipped => rot,
            Told::WrongRecord => FindingKind::WrongRecord,
            Told::Unreadable => FindingKind::Unreadable,
            Told::Torn => FindingKind::Torn,
            Told::LostWrite => FindingKind::LostWrite,
            Told::Misdirected => FindingKind::Misdirected,
            Told::StaleIncarnation => FindingKind::StaleIncarnation,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}+{}", self.kind.name(), self.offset, self.len)?;
        if let Some(shard) = self.shard {
            write!(f, " (shard {shard})")?;
        }
        if let Some((partition, first, last)) = self.journal {
            write!(f, " (journal of partition {partition}, {first} to {last})")?;
        }
        Ok(())
    }
}

/// Why a device could not be opened. Nothing was written to it, unless a write failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The device holds no superblock of ours.
    #[error("not an ashlar device: {what}")]
    NotFormatted {
        /// What was found instead.
        what: String,
    },
    /// It was formatted by a newer version.
    #[error("the device has format version {got}, this program reads up to {expected}")]
    NewerVersion {
        /// Newest version that is understood.
        expected: u16,
        /// The version on the device.
        got: u16,
    },
    /// Too few valid copies of the superblock agree.
    #[error("too few copies of the superblock agree: {what}")]
    NoQuorum {
        /// What each copy holds.
        what: String,
    },
    /// The device belongs to another cluster.
    #[error("the device belongs to cluster {got}, not {expected}")]
    WrongCluster {
        /// The cluster of this node.
        expected: ClusterId,
        /// The cluster of the device.
        got: ClusterId,
    },
    /// It is another device than the one expected here.
    #[error("this is device {got}, not {expected}")]
    WrongDevice {
        /// The device expected.
        expected: DeviceId,
        /// The device found.
        got: DeviceId,
    },
    /// The device is too small to hold a store.
    #[error("the device has {got} bytes, it takes at least {expected}")]
    TooSmall {
        /// Least size.
        expected: u64,
        /// Its size.
        got: u64,
    },
    /// The device is smaller than when it was formatted.
    #[error("the device was formatted with {expected} bytes and has {got} now")]
    Truncated {
        /// Size when it was formatted.
        expected: u64,
        /// Size now.
        got: u64,
    },
    /// The device cannot address the blocks that it was formatted with.
    #[error("the device was formatted with blocks of {expected} bytes, its own are {got}")]
    BlockSize {
        /// Block size of the format.
        expected: u32,
        /// Logical block size of the device.
        got: u32,
    },
    /// A write or a flush failed while the device was opened.
    #[error("device {device}: {operation} at {offset}: {failure}")]
    Write {
        /// Which device.
        device: DeviceId,
        /// What failed.
        operation: &'static str,
        /// Where on the device.
        offset: u64,
        /// What the kernel said.
        failure: IoFailure,
    },
    /// After a failure, what was read could not be read a second time, to be written again, or was not
    /// the same.
    #[error(
        "device {device}: {len} bytes at {offset} are in doubt and are not read as before: {what}"
    )]
    Doubtful {
        /// Which device.
        device: DeviceId,
        /// First of them.
        offset: u64,
        /// How many.
        len: u64,
        /// What came of the second reading.
        what: &'static str,
    },
    /// Not enough memory for the reads of recovery.
    #[error("no buffer of {len} bytes to read the device with")]
    NoMemory {
        /// Bytes asked for.
        len: usize,
    },
    /// The numbers of this device are used up.
    #[error("device {device}: its reserved numbers have run out ({what})")]
    NumbersExhausted {
        /// Which device.
        device: DeviceId,
        /// Which numbers.
        what: &'static str,
    },
}

/// How much of the device does not fit.
pub(crate) fn extent_finding(
    kind: FindingKind,
    device: DeviceId,
    offset: u64,
    len: u64,
) -> Finding {
    Finding {
        kind,
        device,
        offset,
        len,
        shard: None,
        journal: None,
    }
}

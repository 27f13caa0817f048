//! What can go wrong with an operation on objects, typed where a caller branches on it.

use std::fmt;

use ashlar_cluster_map::Class;
use ashlar_layout::ids::{DeviceNo, NodeId, PartitionId, StripeId};
use ashlar_layout::message::{ErrorCode, FindingKind, ObjectMeta, Reply};

use crate::call::Answer;
use crate::range::ByteRange;

/// What a caller branches on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// No such object.
    NotFound,
    /// No such bucket.
    NoSuchBucket,
    /// The bucket exists already.
    BucketExists,
    /// The bucket still holds objects.
    BucketNotEmpty,
    /// The precondition does not hold.
    PreconditionFailed,
    /// The current object is to be made a version first.
    NotKept,
    /// A lock keeps the version, or may not be made less.
    Locked,
    /// The two keys are in different partitions.
    Apart,
    /// Not before all nodes of the cluster are of a newer version.
    NotYet,
    /// The range is outside of the object.
    RangeNotSatisfiable,
    /// A name, length or option that is not allowed.
    BadRequest,
    /// The partition cannot serve now.
    PartitionUnavailable,
    /// The change may or may not have been made.
    OutcomeUnknown,
    /// A queue is full: come back later.
    Busy,
    /// No room: devices that a new stripe needs are full.
    DeviceFull,
    /// Too few devices answer to store anything.
    DevicesAway,
    /// Fewer shards than it takes can be read now. The object is *not* absent.
    Unreadable,
    /// What came does not match its checksum, and nothing is left to rebuild it from.
    Corrupt,
    /// The object was replaced or removed while it was read.
    ObjectChanged,
    /// The caller belongs to another cluster.
    WrongCluster,
    /// The object is larger than any manifest can name.
    TooLarge,
    /// The source or the local machine failed.
    Io,
    /// The operation was given up by its caller.
    Aborted,
    /// The other side, or this one, broke a rule.
    Internal,
}

/// Whether a head in office says this of its state, behind its table of requests: what it refuses so it has not done
/// before.
pub(crate) fn is_judged(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::NoSuchBucket
            | ErrorCode::NotFound
            | ErrorCode::BucketExists
            | ErrorCode::BucketNotEmpty
            | ErrorCode::PreconditionFailed
            | ErrorCode::NotKept
            | ErrorCode::Locked
            | ErrorCode::NotYet
    )
}

/// Why a shard could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The node says that there is no such shard.
    Missing,
    /// What is on the device is not the shard: of which kind that is, and what is known of it.
    Bad(FindingKind, String),
    /// The device does not serve at the moment: it failed, and is opened again.
    Device(String),
    /// The device has no room.
    Full(String),
    /// The node did not answer in time.
    Late,
    /// The node cannot be reached, or does not serve now.
    Away(String),
    /// The node's queue is full.
    Busy(String),
    /// The node refuses, for another reason.
    Refused(String),
}

impl Fault {
    /// What an answer other than the one that was hoped for means for the shard.
    pub(crate) fn of(answer: Answer) -> Fault {
        let error = match answer {
            Answer::NotSent { detail } | Answer::Lost { detail } => return Fault::Away(detail),
            Answer::Reply {
                reply: Reply::Error(error),
                ..
            } => error,
            Answer::Reply { .. } => {
                return Fault::Refused("the reply is of another kind than the request".to_owned());
            }
        };
        let detail = error.detail;
        match error.code {
            ErrorCode::NotFound => Fault::Missing,
            ErrorCode::Corrupt => Fault::Bad(FindingKind::Rot, detail),
            ErrorCode::Damaged(kind) => Fault::Bad(kind, detail),
            ErrorCode::DeviceError => Fault::Device(detail),
            ErrorCode::DeviceFull => Fault::Full(detail),
            ErrorCode::Busy | ErrorCode::StaleEpoch => Fault::Busy(detail),
            ErrorCode::NotServing | ErrorCode::PartitionUnavailable => Fault::Away(detail),
            code => Fault::Refused(format!("{code:?}: {detail}")),
        }
    }

    /// What the shard counts as: none if it is not known to be bad, for its device did not say what it has.
    pub fn kind(&self) -> Option<FindingKind> {
        match self {
            Fault::Missing => Some(FindingKind::Missing),
            Fault::Bad(kind, _) => Some(*kind),
            _ => None,
        }
    }

    /// Whether asking again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Fault::Late | Fault::Away(_) | Fault::Busy(_))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Missing => f.write_str("no such shard there"),
            Fault::Bad(kind, why) => write!(f, "{}: {why}", kind.name()),
            Fault::Device(why) => write!(f, "device error: {why}"),
            Fault::Full(why) => write!(f, "full: {why}"),
            Fault::Late => f.write_str("no answer in time"),
            Fault::Away(why) => write!(f, "away: {why}"),
            Fault::Busy(why) => write!(f, "busy: {why}"),
            Fault::Refused(why) => write!(f, "refused: {why}"),
        }
    }
}

/// A shard that could not be read or written: which, where, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardFault {
    /// Its index in the stripe.
    pub index: u16,
    /// The device.
    pub device: DeviceNo,
    /// The device's node.
    pub node: NodeId,
    /// Why.
    pub fault: Fault,
}

impl fmt::Display for ShardFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ShardFault {
            index,
            device,
            node,
            fault,
        } = self;
        write!(
            f,
            "shard {index} on device {device} of node {node}: {fault}"
        )
    }
}

/// A device that new stripes cannot use now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Away {
    /// The device.
    pub device: DeviceNo,
    /// Its node.
    pub node: NodeId,
    /// Whether it answers, and only has no room.
    pub full: bool,
    /// What is known of why.
    pub cause: String,
}

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "device {} of node {}: {}",
            self.device, self.node, self.cause
        )
    }
}

/// A list, as words.
struct Listed<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, item) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            fmt::Display::fmt(item, f)?;
        }
        Ok(())
    }
}

/// What went wrong with an operation on objects or buckets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// No such object.
    #[error("there is no object '{key}' in bucket '{bucket}'")]
    NotFound {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
    },
    /// No such object: a marker says so.
    #[error(
        "there is no object '{key}' in bucket '{bucket}': it was removed, and its versions are kept"
    )]
    Marker {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// The marker.
        meta: Box<ObjectMeta>,
    },
    /// No such bucket.
    #[error("there is no bucket '{bucket}'")]
    NoSuchBucket {
        /// The bucket.
        bucket: String,
    },
    /// The bucket exists already.
    #[error("the bucket '{bucket}' exists already")]
    BucketExists {
        /// The bucket.
        bucket: String,
    },
    /// The bucket still holds objects.
    #[error("the bucket '{bucket}' still holds objects")]
    BucketNotEmpty {
        /// The bucket.
        bucket: String,
    },
    /// The precondition does not hold; nothing was changed.
    #[error("the precondition does not hold for '{key}' in bucket '{bucket}': {detail}")]
    PreconditionFailed {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// What the head said.
        detail: String,
    },
    /// The range is outside of the object.
    #[error("the range {range} is outside of the object, which has {size} bytes")]
    RangeNotSatisfiable {
        /// What was asked for.
        range: ByteRange,
        /// Bytes of the object.
        size: u64,
    },
    /// A name, length or option that is not allowed.
    #[error("{detail}")]
    BadRequest {
        /// What is not allowed.
        detail: String,
    },
    /// The partition cannot serve now. `uncertain`: a change may have been made all the same.
    #[error(
        "partition {partition} is unavailable: {detail}{}",
        if *uncertain { " (it is not known whether the change was made)" } else { "" }
    )]
    PartitionUnavailable {
        /// Which.
        partition: PartitionId,
        /// Why.
        detail: String,
        /// Whether the change that was asked for may have been made.
        uncertain: bool,
    },
    /// The change may or may not have been made; what it would need was left in place.
    #[error("it is not known whether the change was made: {detail}")]
    OutcomeUnknown {
        /// Why.
        detail: String,
    },
    /// A queue is full: come back later.
    #[error("busy: {detail}")]
    Busy {
        /// Which queue.
        detail: String,
    },
    /// No placement group is wholly usable.
    #[error("no placement group has all of its devices: {}", Listed(away))]
    NoGroup {
        /// The class that was wanted.
        class: Class,
        /// The devices that are away or full.
        away: Vec<Away>,
    },
    /// A stripe could not be stored on any group that was tried.
    #[error(
        "a stripe could not be stored in {attempts} attempts; in the last one {durable} shards were durable where {quorum} are needed: {}",
        Listed(faults)
    )]
    StripeFailed {
        /// How often it was tried.
        attempts: u32,
        /// Shards that had to be durable,
        quorum: u32,
        /// and those that were.
        durable: u32,
        /// What happened to the others.
        faults: Vec<ShardFault>,
    },
    /// Fewer shards than it takes can be read now. The object is not absent.
    #[error(
        "stripe {stripe} cannot be read now: {readable} of its shards can be, {needed} are needed: {}",
        Listed(missing)
    )]
    Unreadable {
        /// Which stripe.
        stripe: StripeId,
        /// Shards needed.
        needed: u32,
        /// Shards that can be read.
        readable: u32,
        /// The others, and why not.
        missing: Vec<ShardFault>,
    },
    /// What came does not match its checksum.
    #[error("{what} does not match its checksum: expected {expected:08x}, got {got:08x}")]
    Corrupt {
        /// What.
        what: String,
        /// The checksum that it should have,
        expected: u32,
        /// and has.
        got: u32,
    },
    /// A manifest that makes no sense.
    #[error("the manifest of '{key}' in bucket '{bucket}' makes no sense: {detail}")]
    BadManifest {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The object was replaced or removed while it was read.
    #[error(
        "'{key}' in bucket '{bucket}' was replaced or removed while it was read, after {given} bytes"
    )]
    ObjectChanged {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// Bytes that had been given out.
        given: u64,
    },
    /// The object is larger than any manifest can name.
    #[error("an object of more than {max} bytes cannot be stored with this stripe size")]
    TooLarge {
        /// The most that can be.
        max: u64,
    },
    /// The operation was given up by its caller.
    #[error("the operation was given up")]
    Aborted,
    /// Refused for a reason that has no variant of its own.
    #[error("refused ({code:?}): {detail}")]
    Refused {
        /// The code on the wire.
        code: ErrorCode,
        /// The text on the wire.
        detail: String,
    },
    /// A reply of the wrong kind.
    #[error("broken protocol: {detail}")]
    Protocol {
        /// What came where what was expected.
        detail: String,
    },
}

impl ObjectError {
    /// What a caller branches on.
    pub fn code(&self) -> Code {
        match self {
            ObjectError::NotFound { .. } | ObjectError::Marker { .. } => Code::NotFound,
            ObjectError::NoSuchBucket { .. } => Code::NoSuchBucket,
            ObjectError::BucketExists { .. } => Code::BucketExists,
            ObjectError::BucketNotEmpty { .. } => Code::BucketNotEmpty,
            ObjectError::PreconditionFailed { .. } => Code::PreconditionFailed,
            ObjectError::RangeNotSatisfiable { .. } => Code::RangeNotSatisfiable,
            ObjectError::BadRequest { .. } => Code::BadRequest,
            ObjectError::PartitionUnavailable { .. } => Code::PartitionUnavailable,
            ObjectError::OutcomeUnknown { .. } => Code::OutcomeUnknown,
            ObjectError::Busy { .. } => Code::Busy,
            ObjectError::NoGroup { away, .. } if away.iter().any(|a| a.full) => Code::DeviceFull,
            ObjectError::StripeFailed { faults, .. }
                if faults.iter().any(|f| matches!(f.fault, Fault::Full(_))) =>
            {
                Code::DeviceFull
            }
            ObjectError::NoGroup { .. } | ObjectError::StripeFailed { .. } => Code::DevicesAway,
            ObjectError::Unreadable { .. } => Code::Unreadable,
            ObjectError::Corrupt { .. } | ObjectError::BadManifest { .. } => Code::Corrupt,
            ObjectError::ObjectChanged { .. } => Code::ObjectChanged,
            ObjectError::TooLarge { .. } => Code::TooLarge,
            ObjectError::Aborted => Code::Aborted,
            ObjectError::Refused { code, .. } => match code {
                ErrorCode::WrongCluster => Code::WrongCluster,
                ErrorCode::NotKept => Code::NotKept,
                ErrorCode::Locked => Code::Locked,
                ErrorCode::Apart => Code::Apart,
                ErrorCode::NotYet => Code::NotYet,
                ErrorCode::DeviceFull => Code::DeviceFull,
                ErrorCode::Corrupt | ErrorCode::Damaged(_) => Code::Corrupt,
                ErrorCode::BadRequest => Code::BadRequest,
                ErrorCode::DeviceError => Code::Unreadable,
                _ => Code::Internal,
            },
            ObjectError::Protocol { .. } => Code::Internal,
        }
    }

    /// Whether the change that was asked for may have been made although this is an error.
    pub fn is_uncertain(&self) -> bool {
        matches!(
            self,
            ObjectError::OutcomeUnknown { .. }
                | ObjectError::PartitionUnavailable {
                    uncertain: true,
                    ..
                }
        )
    }
}

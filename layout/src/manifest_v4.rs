//! How operations were encoded in journal entries of versions 2 to 4, from before versions of objects had locks. Of
//! these, entries of version 4 are read, and never written; in those of versions 2 and 3 nothing is another.

use wincode::{SchemaRead, SchemaWrite};

use crate::ids::{DeviceNo, PartitionId, Seq};
use crate::lock::Lock;
use crate::manifest::{Manifest, Op, Then, VersionTag};

/// What a version was called. So it is in the values of the index as well.
#[derive(Clone, Copy, SchemaWrite, SchemaRead)]
pub(crate) struct TagV4 {
    id: Seq,
    null: bool,
    marker: bool,
}

impl TagV4 {
    pub(crate) fn of(tag: &VersionTag) -> TagV4 {
        TagV4 {
            id: tag.id,
            null: tag.null,
            marker: tag.marker,
        }
    }

    pub(crate) fn with(self, lock: Lock) -> VersionTag {
        VersionTag {
            id: self.id,
            null: self.null,
            marker: self.marker,
            lock,
        }
    }
}

#[derive(SchemaWrite, SchemaRead)]
pub(crate) enum ThenV4 {
    Same,
    Nothing,
    Version {
        tag: TagV4,
        seen: Seq,
        modified_ms: u64,
        manifest: Manifest,
    },
}

/// An operation as entries of version 4 hold it.
#[derive(SchemaWrite, SchemaRead)]
pub(crate) enum OpV4 {
    TermStart,
    CreateBucket {
        bucket: String,
    },
    DeleteBucket {
        bucket: String,
    },
    Put {
        bucket: String,
        key: String,
        manifest: Manifest,
    },
    Delete {
        bucket: String,
        key: String,
    },
    Chain {
        config: u64,
        members: Vec<DeviceNo>,
    },
    Split {
        child: PartitionId,
        bucket: String,
        key: String,
    },
    Close {
        into: PartitionId,
    },
    PutVersion {
        bucket: String,
        key: String,
        tag: TagV4,
        current: bool,
        modified_ms: u64,
        manifest: Manifest,
    },
    DropVersion {
        bucket: String,
        key: String,
        id: Seq,
        then: ThenV4,
    },
}

impl From<ThenV4> for Then {
    fn from(old: ThenV4) -> Then {
        match old {
            ThenV4::Same => Then::Same,
            ThenV4::Nothing => Then::Nothing,
            ThenV4::Version {
                tag,
                seen,
                modified_ms,
                manifest,
            } => Then::Version {
                tag: tag.with(Lock::NONE),
                seen,
                modified_ms,
                manifest,
            },
        }
    }
}

impl From<OpV4> for Op {
    fn from(old: OpV4) -> Op {
        match old {
            OpV4::TermStart => Op::TermStart,
            OpV4::CreateBucket { bucket } => Op::CreateBucket { bucket },
            OpV4::DeleteBucket { bucket } => Op::DeleteBucket { bucket },
            OpV4::Put {
                bucket,
                key,
                manifest,
            } => Op::Put {
                bucket,
                key,
                manifest,
            },
            OpV4::Delete { bucket, key } => Op::Delete { bucket, key },
            OpV4::Chain { config, members } => Op::Chain { config, members },
            OpV4::Split { child, bucket, key } => Op::Split { child, bucket, key },
            OpV4::Close { into } => Op::Close { into },
            OpV4::PutVersion {
                bucket,
                key,
                tag,
                current,
                modified_ms,
                manifest,
            } => Op::PutVersion {
                bucket,
                key,
                tag: tag.with(Lock::NONE),
                current,
                modified_ms,
                manifest,
            },
            OpV4::DropVersion {
                bucket,
                key,
                id,
                then,
            } => Op::DropVersion {
                bucket,
                key,
                id,
                then: then.into(),
                bypass: false,
            },
        }
    }
}

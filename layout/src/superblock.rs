//! The superblock: who a device is, how it is cut up, who owns it, and which numbers are reserved.
//!
//! Invariants:
//! - four copies, at least 16 MiB apart; one is believed only if another agrees with it;
//! - each turn of the superblock has a new sequence number, higher than any seen on any copy, and
//!   carries the body CRC of its predecessor;
//! - the owner epoch and the ceilings only ever rise; a number is used only below its durable ceiling;
//! - every byte is covered by the copy's CRC; the body CRC, which the copies agree on, covers all
//!   that does not differ between them.
//!
//! The bytes are described in FORMAT.md, "Superblock".

use std::fmt;
use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc::{crc32, crc32_around};
pub use crate::election::{ElectError, elect, newest_sequence};
use crate::extent::{Geometry, GeometryError};
use crate::ids::{ClusterId, DeviceId, DeviceNo, ExtentNo, Incarnation, NodeId, OwnerEpoch};
use crate::limits::{SUPERBLOCK_COPIES, SUPERBLOCK_STRIDE_MIN, SUPERBLOCK_ZONE};
use crate::version::{FORMAT_MAJOR, FORMAT_MINOR};

/// Bytes of a copy, whatever the block size.
pub const SUPERBLOCK_LEN: usize = 4096;
/// Longest fault-domain label, in bytes of UTF-8.
pub const LABEL_MAX: usize = 63;

const MAGIC: [u8; 8] = *b"ASHLSUPR";
const CRC_AT: usize = offset_of!(RawSuperblock, crc);
/// From here on the copies are the same.
const BODY_AT: usize = 64;
/// Above this no counter is believed: whoever adds to one that was read need not fear an overflow.
pub const COUNTER_MAX: u64 = 1 << 62;
const FLAG_CLEAN: u32 = 1;
const FLAG_CHECKPOINT: u32 = 2;

const _: () = assert!(SUPERBLOCK_LEN as u64 <= SUPERBLOCK_ZONE);

/// Where the newest checkpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointRef {
    /// In which extent,
    pub extent: ExtentNo,
    /// and in which life of it.
    pub incarnation: Incarnation,
    /// Byte offset on the device.
    pub offset: u64,
    /// Bytes: head and table, without the padding to whole blocks.
    pub len: u32,
    /// CRC-32 of those bytes.
    pub crc: u32,
}

/// A short text: up to [`LABEL_MAX`] bytes of UTF-8.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Label(RawLabel);

impl Label {
    /// The text as a label, if it is short enough.
    pub fn new(text: &str) -> Result<Label, SuperblockError> {
        let got = text.len();
        let mut raw = RawLabel {
            len: 0,
            text: [0; LABEL_MAX],
        };
        match (u8::try_from(got), raw.text.get_mut(..got)) {
            (Ok(len), Some(room)) => {
                room.copy_from_slice(text.as_bytes());
                raw.len = len;
                Ok(Label(raw))
            }
            _ => Err(SuperblockError::BadLabel { got }),
        }
    }

    /// The label as a text.
    pub fn as_str(&self) -> &str {
        // Both ways to make a label check that this holds.
        self.0.text().unwrap_or_default()
    }
}

impl Default for Label {
    fn default() -> Self {
        Label(RawLabel {
            len: 0,
            text: [0; LABEL_MAX],
        })
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Labels of the fault domains that a device stands in, widest first. For a person who finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Region.
    pub region: Label,
    /// Zone.
    pub zone: Label,
    /// Rack.
    pub rack: Label,
    /// Host.
    pub host: Label,
}

/// A superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The cluster that the device belongs to.
    pub cluster: ClusterId,
    /// The device's own name.
    pub device: DeviceId,
    /// How often it has been turned.
    pub sequence: u64,
    /// Body CRC of the superblock that this one follows; 0 for the first.
    pub parent_crc: u32,
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// Bytes of the device when it was formatted.
    pub device_size: u64,
    /// How often it has been opened: the present owner's number.
    pub owner_epoch: OwnerEpoch,
    /// Incarnations below this may have been used.
    pub incarnation_ceiling: u64,
    /// Record sequence numbers below this may have been used.
    pub record_ceiling: u64,
    /// The newest checkpoint.
    pub checkpoint: Option<CheckpointRef>,
    /// The node that it was formatted for.
    pub node: NodeId,
    /// Its number in the cluster map.
    pub device_no: DeviceNo,
    /// Its fault domains.
    pub labels: Labels,
    /// Closed in order: the checkpoint holds everything.
    pub clean: bool,
    /// Which copy this is, 0 to 3.
    pub copy: u8,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSuperblock {
    magic: [u8; 8],
    crc: U32,
    major: U16,
    minor: U16,
    body_crc: U32,
    copy: u8,
    reserved_a: [u8; 43],
    cluster: [u8; 16],
    device: [u8; 16],
    sequence: U64,
    parent_crc: U32,
    flags: U32,
    block_size: U32,
    node: U32,
    extent_size: U64,
    device_size: U64,
    owner_epoch: U64,
    incarnation_ceiling: U64,
    record_ceiling: U64,
    device_no: U32,
    checkpoint_extent: U32,
    checkpoint_incarnation: U64,
    checkpoint_offset: U64,
    checkpoint_len: U32,
    checkpoint_crc: U32,
    reserved_b: [u8; 64],
    labels: [RawLabel; 4],
    reserved_c: [u8; 3584],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, PartialEq, Eq)]
#[repr(C)]
struct RawLabel {
    len: u8,
    text: [u8; LABEL_MAX],
}

const _: () = assert!(size_of::<RawSuperblock>() == SUPERBLOCK_LEN);
const _: () = assert!(offset_of!(RawSuperblock, crc) == 8);
const _: () = assert!(offset_of!(RawSuperblock, major) == 12);
const _: () = assert!(offset_of!(RawSuperblock, minor) == 14);
const _: () = assert!(offset_of!(RawSuperblock, body_crc) == 16);
const _: () = assert!(offset_of!(RawSuperblock, copy) == 20);
const _: () = assert!(offset_of!(RawSuperblock, cluster) == BODY_AT);
const _: () = assert!(offset_of!(RawSuperblock, device) == 80);
const _: () = assert!(offset_of!(RawSuperblock, sequence) == 96);
const _: () = assert!(offset_of!(RawSuperblock, parent_crc) == 104);
const _: () = assert!(offset_of!(RawSuperblock, flags) == 108);
const _: () = assert!(offset_of!(RawSuperblock, block_size) == 112);
const _: () = assert!(offset_of!(RawSuperblock, node) == 116);
const _: () = assert!(offset_of!(RawSuperblock, extent_size) == 120);
const _: () = assert!(offset_of!(RawSuperblock, device_size) == 128);
const _: () = assert!(offset_of!(RawSuperblock, owner_epoch) == 136);
const _: () = assert!(offset_of!(RawSuperblock, incarnation_ceiling) == 144);
const _: () = assert!(offset_of!(RawSuperblock, record_ceiling) == 152);
const _: () = assert!(offset_of!(RawSuperblock, device_no) == 160);
const _: () = assert!(offset_of!(RawSuperblock, checkpoint_extent) == 164);
const _: () = assert!(offset_of!(RawSuperblock, checkpoint_incarnation) == 168);
const _: () = assert!(offset_of!(RawSuperblock, checkpoint_offset) == 176);
const _: () = assert!(offset_of!(RawSuperblock, checkpoint_len) == 184);
const _: () = assert!(offset_of!(RawSuperblock, checkpoint_crc) == 188);
const _: () = assert!(offset_of!(RawSuperblock, labels) == 256);
const _: () = assert!(offset_of!(RawSuperblock, reserved_c) == 512);

/// Why a copy of the superblock is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Fewer bytes than a copy has.
    #[error("superblock: {got} bytes given, {expected} needed")]
    Short {
        /// Bytes needed.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// Nothing but zeros: the device was never formatted, or was wiped.
    #[error("no superblock: nothing but zeros")]
    Blank,
    /// Something, but not a superblock of ours.
    #[error("no superblock of Ashlar: it begins with {got:02x?}")]
    Foreign {
        /// How it begins.
        got: [u8; 8],
    },
    /// Torn or rotten.
    #[error("superblock: CRC is {got:#010x}, the bytes give {expected:#010x}")]
    BadCrc {
        /// What the bytes give.
        expected: u32,
        /// What it says.
        got: u32,
    },
    /// Formatted by a newer program.
    #[error(
        "the device has format version {got_major}.{got_minor}; this program knows versions up to \
         {expected}.x: use a newer one"
    )]
    NewerVersion {
        /// The newest major version known.
        expected: u16,
        /// The device's major version,
        got_major: u16,
        /// and its minor.
        got_minor: u16,
    },
    /// Whole, but no copy has this number.
    #[error("superblock: copy number {got}, there are {SUPERBLOCK_COPIES}")]
    BadCopy {
        /// The number.
        got: u8,
    },
    /// Whole, but the device cannot be cut up as it says.
    #[error("superblock: {0}")]
    BadGeometry(#[from] GeometryError),
    /// Whole, but a counter is so high that it cannot have been counted, and might overflow.
    #[error("superblock: the {field} is {got}, which nothing has counted up to")]
    BadCounter {
        /// Which one.
        field: &'static str,
        /// What it holds.
        got: u64,
    },
    /// Whole, but the checkpoint that it names is not within the extent that it names.
    #[error(
        "superblock: a checkpoint of {len} bytes at byte {offset} is not within extent {extent}"
    )]
    BadCheckpoint {
        /// The extent named.
        extent: ExtentNo,
        /// The checkpoint's address.
        offset: u64,
        /// The checkpoint's length.
        len: u32,
    },
    /// Whole, but a label is too long, or not UTF-8.
    #[error("a label of {got} bytes is no text of up to {LABEL_MAX} bytes")]
    BadLabel {
        /// Its length.
        got: usize,
    },
}

/// Where a copy stands, as a byte offset on the device.
pub fn offset(copy: u8, extent_size: u64) -> u64 {
    u64::from(copy) * extent_size.max(SUPERBLOCK_STRIDE_MIN)
}

impl Superblock {
    /// Its bytes as copy number `copy`, which is below [`SUPERBLOCK_COPIES`].
    pub fn encode(&self, copy: u8) -> [u8; SUPERBLOCK_LEN] {
        debug_assert!(
            usize::from(copy) < SUPERBLOCK_COPIES,
            "there is no copy {copy}"
        );
        let mut raw = self.raw();
        raw.body_crc = crc32(&raw.as_bytes()[BODY_AT..]).into();
        raw.copy = copy;
        raw.crc = crc32_around(raw.as_bytes(), CRC_AT).into();
        zerocopy::transmute!(raw)
    }

    /// CRC of what the copies have in common: two copies agree if it is the same, and the next
    /// superblock has it as its [`Superblock::parent_crc`].
    pub fn body_crc(&self) -> u32 {
        crc32(&self.raw().as_bytes()[BODY_AT..])
    }

    /// The next one, to be changed and written: its sequence number is above `newest`, the highest
    /// that was seen on any copy, believed or not.
    pub fn succeed(&self, newest: u64) -> Superblock {
        Superblock {
            sequence: self.sequence.max(newest) + 1,
            parent_crc: self.body_crc(),
            ..*self
        }
    }

    /// How the device is cut up.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            block_size: self.block_size,
            extent_size: self.extent_size,
            device_size: self.device_size,
        }
    }

    fn raw(&self) -> RawSuperblock {
        let checkpoint = self.checkpoint.unwrap_or(CheckpointRef {
            extent: ExtentNo(0),
            incarnation: Incarnation(0),
            offset: 0,
            len: 0,
            crc: 0,
        });
        let clean = if self.clean { FLAG_CLEAN } else { 0 };
        let has_checkpoint = if self.checkpoint.is_some() {
            FLAG_CHECKPOINT
        } else {
            0
        };
        let labels = &self.labels;
        RawSuperblock {
            magic: MAGIC,
            crc: U32::ZERO,
            major: FORMAT_MAJOR.into(),
            minor: FORMAT_MINOR.into(),
            body_crc: U32::ZERO,
            copy: 0,
            reserved_a: [0; 43],
            cluster: self.cluster.0,
            device: self.device.0,
            sequence: self.sequence.into(),
            parent_crc: self.parent_crc.into(),
            flags: (clean | has_checkpoint).into(),
            block_size: self.block_size.into(),
            node: self.node.0.into(),
            extent_size: self.extent_size.into(),
            device_size: self.device_size.into(),
            owner_epoch: self.owner_epoch.0.into(),
            incarnation_ceiling: self.incarnation_ceiling.into(),
            record_ceiling: self.record_ceiling.into(),
            device_no: self.device_no.0.into(),
            checkpoint_extent: checkpoint.extent.0.into(),
            checkpoint_incarnation: checkpoint.incarnation.0.into(),
            checkpoint_offset: checkpoint.offset.into(),
            checkpoint_len: checkpoint.len.into(),
            checkpoint_crc: checkpoint.crc.into(),
            reserved_b: [0; 64],
            labels: [labels.region.0, labels.zone.0, labels.rack.0, labels.host.0],
            reserved_c: [0; 3584],
        }
    }

    /// Reads a copy.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, SuperblockError> {
        let Ok((raw, _)) = RawSuperblock::ref_from_prefix(bytes) else {
            let got = bytes.len();
            return Err(SuperblockError::Short {
                expected: SUPERBLOCK_LEN,
                got,
            });
        };
        if raw.magic != MAGIC {
            let blank = raw.as_bytes().iter().all(|byte| *byte == 0);
            return Err(if blank {
                SuperblockError::Blank
            } else {
                SuperblockError::Foreign { got: raw.magic }
            });
        }
        let expected = crc32_around(raw.as_bytes(), CRC_AT);
        if raw.crc.get() != expected {
            return Err(SuperblockError::BadCrc {
                expected,
                got: raw.crc.get(),
            });
        }
        if raw.major.get() > FORMAT_MAJOR {
            return Err(SuperblockError::NewerVersion {
                expected: FORMAT_MAJOR,
                got_major: raw.major.get(),
                got_minor: raw.minor.get(),
            });
        }
        let expected = crc32(&raw.as_bytes()[BODY_AT..]);
        if raw.body_crc.get() != expected {
            return Err(SuperblockError::BadCrc {
                expected,
                got: raw.body_crc.get(),
            });
        }
        if usize::from(raw.copy) >= SUPERBLOCK_COPIES {
            return Err(SuperblockError::BadCopy { got: raw.copy });
        }
        let superblock = raw.superblock()?;
        for (field, got) in [
            ("sequence number", superblock.sequence),
            ("owner epoch", superblock.owner_epoch.0),
            ("incarnation ceiling", superblock.incarnation_ceiling),
            ("record ceiling", superblock.record_ceiling),
        ] {
            if got > COUNTER_MAX {
                return Err(SuperblockError::BadCounter { field, got });
            }
        }
        let geometry = superblock.geometry();
        geometry.check()?;
        if let Some(CheckpointRef {
            extent,
            offset,
            len,
            ..
        }) = superblock.checkpoint
        {
            let within = extent.0 < geometry.extent_count()
                && offset >= geometry.records_start(extent)
                && offset.is_multiple_of(u64::from(geometry.block_size))
                && offset
                    .checked_add(u64::from(len))
                    .is_some_and(|end| end <= geometry.extent_end(extent));
            if !within {
                return Err(SuperblockError::BadCheckpoint {
                    extent,
                    offset,
                    len,
                });
            }
        }
        Ok(superblock)
    }
}

impl RawSuperblock {
    fn superblock(&self) -> Result<Superblock, SuperblockError> {
        let flags = self.flags.get();
        let checkpoint = CheckpointRef {
            extent: ExtentNo(self.checkpoint_extent.get()),
            incarnation: Incarnation(self.checkpoint_incarnation.get()),
            offset: self.checkpoint_offset.get(),
            len: self.checkpoint_len.get(),
            crc: self.checkpoint_crc.get(),
        };
        let [region, zone, rack, host] = &self.labels;
        Ok(Superblock {
            cluster: ClusterId(self.cluster),
            device: DeviceId(self.device),
            sequence: self.sequence.get(),
            parent_crc: self.parent_crc.get(),
            block_size: self.block_size.get(),
            extent_size: self.extent_size.get(),
            device_size: self.device_size.get(),
            owner_epoch: OwnerEpoch(self.owner_epoch.get()),
            incarnation_ceiling: self.incarnation_ceiling.get(),
            record_ceiling: self.record_ceiling.get(),
            checkpoint: (flags & FLAG_CHECKPOINT != 0).then_some(checkpoint),
            node: NodeId(self.node.get()),
            device_no: DeviceNo(self.device_no.get()),
            labels: Labels {
                region: region.label()?,
                zone: zone.label()?,
                rack: rack.label()?,
                host: host.label()?,
            },
            clean: flags & FLAG_CLEAN != 0,
            copy: self.copy,
        })
    }
}

impl RawLabel {
    fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.text.get(..usize::from(self.len))?).ok()
    }

    fn label(&self) -> Result<Label, SuperblockError> {
        match self.text() {
            Some(text) => Label::new(text),
            None => Err(SuperblockError::BadLabel {
                got: usize::from(self.len),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short() {
        assert_eq!(Label::new("räck").unwrap().to_string(), "räck");
        assert_eq!(Label::new(&"x".repeat(63)).unwrap().as_str().len(), 63);
        assert_eq!(
            Label::new(&"x".repeat(64)),
            Err(SuperblockError::BadLabel { got: 64 })
        );
        assert_eq!(Label::default().as_str(), "");
    }
}

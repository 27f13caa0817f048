//! The checkpoint: what each extent of the device was when it was written. Recovery begins here.
//!
//! Invariants:
//! - it is believed only if the superblock names it, and every byte of it has the CRC named there;
//! - it has an entry for each extent of the device, in order: an extent is never implied;
//! - it tells where to look, never what is there: footers and records do that.
//!
//! The bytes are described in FORMAT.md, "Checkpoint".

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc::crc32;
use crate::extent::ExtentKind;
use crate::ids::{DeviceId, ExtentNo, Incarnation, OwnerEpoch};
use crate::stamp::{HEAD_LEN, HeadError, HeadFault, HeadType, Place, STAMP_LEN, Stamp};
use crate::superblock::CheckpointRef;

/// Bytes of an entry of the table.
pub const CHECKPOINT_ENTRY_LEN: usize = 32;

const HEADER: HeadType = HeadType {
    what: "checkpoint",
    magic: *b"ASHLCKPT",
};

/// What an extent is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExtentState {
    /// Holds nothing; may be opened for anything.
    #[default]
    Free = 0,
    /// Records are being appended.
    Open = 1,
    /// Full, and has a footer.
    Sealed = 2,
    /// Not written any more because the device failed there; what can be read of it still counts.
    Retired = 3,
}

impl ExtentState {
    fn from_number(number: u8) -> Option<ExtentState> {
        Some(match number {
            0 => ExtentState::Free,
            1 => ExtentState::Open,
            2 => ExtentState::Sealed,
            3 => ExtentState::Retired,
            _ => return None,
        })
    }
}

/// An extent, as the checkpoint tells of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtentEntry {
    /// What it is doing.
    pub state: ExtentState,
    /// What it is for; `None` if free.
    pub kind: Option<ExtentKind>,
    /// Its present life, or if free its last one; 0 if it never had one.
    pub incarnation: Incarnation,
    /// Records in it.
    pub records: u32,
    /// Blocks from its first byte (its number times its size) to behind its last record.
    pub used_blocks: u32,
    /// Bytes of it that are live, as far as was known.
    pub live_bytes: u64,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The device's name.
    pub device: DeviceId,
    /// The extent that it stands in,
    pub extent: ExtentNo,
    /// and which life of that.
    pub incarnation: Incarnation,
    /// The owner that wrote it.
    pub owner_epoch: OwnerEpoch,
    /// Byte offset of the checkpoint on the device.
    pub address: u64,
    /// Records with a sequence number of at least this are newer than it.
    pub record_sequence: u64,
    /// Each extent, in order.
    pub extents: Vec<ExtentEntry>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawCheckpoint {
    record_sequence: U64,
    count: U32,
    entry_len: U32,
    reserved: [u8; 48],
}

const _: () = assert!(size_of::<RawCheckpoint>() == HEAD_LEN - STAMP_LEN);
const _: () = assert!(STAMP_LEN + offset_of!(RawCheckpoint, record_sequence) == 64);
const _: () = assert!(STAMP_LEN + offset_of!(RawCheckpoint, count) == 72);
const _: () = assert!(STAMP_LEN + offset_of!(RawCheckpoint, entry_len) == 76);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    state: u8,
    kind: u8,
    reserved: [u8; 6],
    incarnation: U64,
    records: U32,
    used_blocks: U32,
    live_bytes: U64,
}

const _: () = assert!(size_of::<RawEntry>() == CHECKPOINT_ENTRY_LEN);
const _: () = assert!(offset_of!(RawEntry, state) == 0);
const _: () = assert!(offset_of!(RawEntry, kind) == 1);
const _: () = assert!(offset_of!(RawEntry, incarnation) == 8);
const _: () = assert!(offset_of!(RawEntry, records) == 16);
const _: () = assert!(offset_of!(RawEntry, used_blocks) == 20);
const _: () = assert!(offset_of!(RawEntry, live_bytes) == 24);

/// What is wrong with a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// There is none, or its head is damaged.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// Fewer bytes were given than the superblock says that it has.
    #[error("checkpoint at byte {address}: {got} bytes given, {expected} needed")]
    Short {
        /// The checkpoint's address.
        address: u64,
        /// Bytes needed.
        expected: u64,
        /// Bytes given.
        got: u64,
    },
    /// It is not the one that the superblock names, or it is damaged.
    #[error("checkpoint at byte {address}: CRC should be {expected:#010x}, is {got:#010x}")]
    BadCrc {
        /// The checkpoint's address.
        address: u64,
        /// What the superblock or the head says.
        expected: u32,
        /// What the bytes give.
        got: u32,
    },
    /// An entry of the table, though whole, makes no sense.
    #[error(
        "checkpoint at byte {address}: state {state} with kind {kind} of extent {extent} is unknown"
    )]
    BadEntry {
        /// The checkpoint's address.
        address: u64,
        /// Which extent.
        extent: usize,
        /// The state's number.
        state: u8,
        /// The kind's number.
        kind: u8,
    },
}

/// Bytes of a checkpoint of `extents` extents, without padding to whole blocks.
pub fn checkpoint_len(extents: u32) -> u64 {
    HEAD_LEN as u64 + u64::from(extents) * CHECKPOINT_ENTRY_LEN as u64
}

/// The most extents of which a checkpoint fits into `room` bytes.
pub(crate) fn extents_max(room: u64) -> u64 {
    room.saturating_sub(HEAD_LEN as u64) / CHECKPOINT_ENTRY_LEN as u64
}

impl Checkpoint {
    /// Its bytes, padded with zeros to whole blocks, and what the superblock has to say of them.
    pub fn encode(&self, block_size: u32) -> (Vec<u8>, CheckpointRef) {
        let len = HEAD_LEN + self.extents.len() * CHECKPOINT_ENTRY_LEN;
        let mut bytes = vec![0; len.next_multiple_of(block_size.max(1) as usize)];
        let slots = bytes[HEAD_LEN..len].chunks_exact_mut(CHECKPOINT_ENTRY_LEN);
        for (slot, entry) in slots.zip(&self.extents) {
            slot.copy_from_slice(RawEntry::new(entry).as_bytes());
        }
        let stamp = Stamp {
            device: self.device,
            extent: self.extent,
            incarnation: self.incarnation,
            owner_epoch: self.owner_epoch,
            address: self.address,
            kind: 0,
            table_crc: crc32(&bytes[HEAD_LEN..len]),
        };
        let head = RawCheckpoint {
            record_sequence: self.record_sequence.into(),
            count: (self.extents.len() as u32).into(),
            entry_len: (CHECKPOINT_ENTRY_LEN as u32).into(),
            reserved: [0; 48],
        };
        bytes[..HEAD_LEN].copy_from_slice(&HEADER.encode(&stamp, &zerocopy::transmute!(head)));
        let reference = CheckpointRef {
            extent: self.extent,
            incarnation: self.incarnation,
            offset: self.address,
            len: len as u32,
            crc: crc32(&bytes[..len]),
        };
        (bytes, reference)
    }

    /// Reads the checkpoint that a superblock names. `bytes` begin where it begins; what follows
    /// behind its length is not looked at.
    pub fn decode(
        bytes: &[u8],
        device: DeviceId,
        named: &CheckpointRef,
    ) -> Result<Checkpoint, CheckpointError> {
        let address = named.offset;
        let Some(bytes) = bytes.get(..named.len as usize) else {
            let (expected, got) = (u64::from(named.len), bytes.len() as u64);
            return Err(CheckpointError::Short {
                address,
                expected,
                got,
            });
        };
        let place = Place {
            device,
            extent: named.extent,
            incarnation: Some(named.incarnation),
            address,
        };
        let (stamp, head) = HEADER.decode::<RawCheckpoint>(bytes, &place)?;
        let got = crc32(bytes);
        if got != named.crc {
            return Err(CheckpointError::BadCrc {
                address,
                expected: named.crc,
                got,
            });
        }
        let table = &bytes[HEAD_LEN..];
        let fault = |field, expected: usize, got: u32| {
            let (expected, got) = (expected as u64, u64::from(got));
            HEADER.error(
                &place,
                HeadFault::OutOfRange {
                    field,
                    expected,
                    got,
                },
            )
        };
        if head.entry_len.get() as usize != CHECKPOINT_ENTRY_LEN {
            let error = fault("entry length", CHECKPOINT_ENTRY_LEN, head.entry_len.get());
            return Err(error.into());
        }
        let raw = match <[RawEntry]>::ref_from_bytes(table) {
            Ok(raw) if raw.len() == head.count.get() as usize => raw,
            _ => {
                let most = table.len() / CHECKPOINT_ENTRY_LEN;
                return Err(fault("entry count", most, head.count.get()).into());
            }
        };
        let got = crc32(table);
        if got != stamp.table_crc {
            return Err(CheckpointError::BadCrc {
                address,
                expected: stamp.table_crc,
                got,
            });
        }
        let mut extents = Vec::with_capacity(raw.len());
        for (extent, raw) in raw.iter().enumerate() {
            let (state, kind) = (raw.state, raw.kind);
            let entry = raw.entry();
            extents.push(entry.ok_or(CheckpointError::BadEntry {
                address,
                extent,
                state,
                kind,
            })?);
        }
        Ok(Checkpoint {
            device: stamp.device,
            extent: stamp.extent,
            incarnation: stamp.incarnation,
            owner_epoch: stamp.owner_epoch,
            address: stamp.address,
            record_sequence: head.record_sequence.get(),
            extents,
        })
    }
}

impl RawEntry {
    fn new(entry: &ExtentEntry) -> RawEntry {
        RawEntry {
            state: entry.state as u8,
            kind: entry.kind.map_or(0, |kind| kind as u8),
            reserved: [0; 6],
            incarnation: entry.incarnation.0.into(),
            records: entry.records.into(),
            used_blocks: entry.used_blocks.into(),
            live_bytes: entry.live_bytes.into(),
        }
    }

    fn entry(&self) -> Option<ExtentEntry> {
        let kind = match self.kind {
            0 => None,
            number => Some(ExtentKind::from_number(u16::from(number))?),
        };
        Some(ExtentEntry {
            state: ExtentState::from_number(self.state)?,
            kind,
            incarnation: Incarnation(self.incarnation.get()),
            records: self.records.get(),
            used_blocks: self.used_blocks.get(),
            live_bytes: self.live_bytes.get(),
        })
    }
}

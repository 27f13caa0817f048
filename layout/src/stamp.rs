//! The stamp: the first 64 bytes of everything that stands in an extent, and the checks they share.
//!
//! Invariants:
//! - no field is believed, and no length used, before the CRC over the 128-byte head has matched;
//! - the head says what it is, of which device, extent and incarnation, and at which address it
//!   was meant to stand, so that a lost, stale or misdirected write is recognised;
//! - what follows a head (its table) has its own CRC in the head.
//!
//! The bytes are described in FORMAT.md, "The stamp".

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc::crc32_around;
use crate::ids::{DeviceId, ExtentNo, Incarnation, OwnerEpoch};
use crate::version::FORMAT_MAJOR;

/// Bytes of the head of an extent, record, footer, trailer or checkpoint.
pub const HEAD_LEN: usize = 128;
/// Bytes of the stamp, the part of the head that all of them share.
pub(crate) const STAMP_LEN: usize = 64;
/// Where the head's CRC stands in it.
const CRC_AT: usize = offset_of!(RawStamp, crc);

/// The stamp as it stands on disk.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawStamp {
    pub magic: [u8; 8],
    pub crc: U32,
    pub table_crc: U32,
    pub version: U16,
    pub kind: U16,
    pub extent: U32,
    pub device: [u8; 16],
    pub incarnation: U64,
    pub owner_epoch: U64,
    pub address: U64,
}

const _: () = assert!(size_of::<RawStamp>() == STAMP_LEN);
const _: () = assert!(offset_of!(RawStamp, crc) == 8);
const _: () = assert!(offset_of!(RawStamp, table_crc) == 12);
const _: () = assert!(offset_of!(RawStamp, version) == 16);
const _: () = assert!(offset_of!(RawStamp, kind) == 18);
const _: () = assert!(offset_of!(RawStamp, extent) == 20);
const _: () = assert!(offset_of!(RawStamp, device) == 24);
const _: () = assert!(offset_of!(RawStamp, incarnation) == 40);
const _: () = assert!(offset_of!(RawStamp, owner_epoch) == 48);
const _: () = assert!(offset_of!(RawStamp, address) == 56);

/// Where something is being read: what its stamp has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The device's name.
    pub device: DeviceId,
    /// The extent.
    pub extent: ExtentNo,
    /// The extent's incarnation; `None` where the reader does not know it yet.
    pub incarnation: Option<Incarnation>,
    /// Byte offset on the device.
    pub address: u64,
}

/// What stands at an address is not what should stand there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {address} of the device: {fault}")]
pub struct HeadError {
    /// What was looked for.
    pub what: &'static str,
    /// Byte offset on the device where it was looked for.
    pub address: u64,
    /// What is wrong with it.
    pub fault: HeadFault,
}

/// What is wrong with a head. The first fault that applies, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadFault {
    /// Fewer bytes were given than it takes.
    #[error("{got} bytes given, {expected} needed")]
    Short {
        /// Bytes needed.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// No such thing: the magic number is another. Free space, a payload, or a damaged head.
    #[error("the magic number is {got:02x?}, not {expected:02x?}")]
    Absent {
        /// The magic number looked for.
        expected: [u8; 8],
        /// What stands there.
        got: [u8; 8],
    },
    /// Torn or rotten.
    #[error("CRC is {got:#010x}, the bytes give {expected:#010x}")]
    BadCrc {
        /// What the bytes give.
        expected: u32,
        /// What the head says.
        got: u32,
    },
    /// Written by a newer version of the format.
    #[error("format version {got}; this program knows versions up to {expected}")]
    NewerVersion {
        /// The newest known.
        expected: u16,
        /// The head's.
        got: u16,
    },
    /// Whole, but of another device.
    #[error("it belongs to device {got}, not {expected}")]
    OtherDevice {
        /// The device being read.
        expected: DeviceId,
        /// The head's.
        got: DeviceId,
    },
    /// Whole, but written for another address: a misdirected write, or a copy.
    #[error("it was written for extent {got_extent}, byte {got}")]
    Misdirected {
        /// The extent it was meant for.
        got_extent: ExtentNo,
        /// The address it was meant for.
        got: u64,
    },
    /// Whole, but of an earlier life of the extent: the ordinary end of what was written since.
    #[error("it is of incarnation {got}, the extent is at {expected}")]
    Stale {
        /// The extent's incarnation.
        expected: Incarnation,
        /// The head's.
        got: Incarnation,
    },
    /// Whole, but of a later life of the extent than its header says: the header's write was lost.
    #[error("it is of incarnation {got}, ahead of the extent's {expected}")]
    FromFuture {
        /// The extent's incarnation.
        expected: Incarnation,
        /// The head's.
        got: Incarnation,
    },
    /// Whole, but of a kind that this version does not know.
    #[error("unknown kind {got}")]
    UnknownKind {
        /// The kind.
        got: u16,
    },
    /// Whole, but a field holds what it never may.
    #[error("{field} is {got}, at most {expected} is allowed")]
    OutOfRange {
        /// Which field.
        field: &'static str,
        /// The most allowed.
        expected: u64,
        /// What it holds.
        got: u64,
    },
}

/// The identity that a head is given when it is written, and that it had when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub device: DeviceId,
    pub extent: ExtentNo,
    pub incarnation: Incarnation,
    pub owner_epoch: OwnerEpoch,
    pub address: u64,
    pub kind: u16,
    pub table_crc: u32,
}

/// A kind of head: its name in errors, and its magic number.
#[derive(Clone, Copy)]
pub(crate) struct HeadType {
    pub what: &'static str,
    pub magic: [u8; 8],
}

impl HeadType {
    pub fn error(self, place: &Place, fault: HeadFault) -> HeadError {
        HeadError {
            what: self.what,
            address: place.address,
            fault,
        }
    }

    /// Puts the head together: the stamp, then `rest`, sealed by the CRC over both.
    pub fn encode(self, stamp: &Stamp, rest: &[u8; HEAD_LEN - STAMP_LEN]) -> [u8; HEAD_LEN] {
        let raw = RawStamp {
            magic: self.magic,
            crc: U32::ZERO,
            table_crc: stamp.table_crc.into(),
            version: FORMAT_MAJOR.into(),
            kind: stamp.kind.into(),
            extent: stamp.extent.0.into(),
            device: stamp.device.0,
            incarnation: stamp.incarnation.0.into(),
            owner_epoch: stamp.owner_epoch.0.into(),
            address: stamp.address.into(),
        };
        let mut head = [0; HEAD_LEN];
        head[..STAMP_LEN].copy_from_slice(raw.as_bytes());
        head[STAMP_LEN..].copy_from_slice(rest);
        let crc = crc32_around(&head, CRC_AT);
        head[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        head
    }

    /// Takes the head apart, once everything in it has been checked against `place`.
    pub fn decode<'a, R>(self, bytes: &'a [u8], place: &Place) -> Result<(Stamp, &'a R), HeadError>
    where
        R: FromBytes + Immutable + KnownLayout + Unaligned,
    {
        let short = HeadFault::Short {
            expected: HEAD_LEN,
            got: bytes.len(),
        };
        let (Some(head), Ok((raw, rest))) =
            (bytes.get(..HEAD_LEN), RawStamp::ref_from_prefix(bytes))
        else {
            return Err(self.error(place, short));
        };
        let Ok((rest, _)) = R::ref_from_prefix(rest) else {
            return Err(self.error(place, short));
        };
        match raw.check(self.magic, head, place) {
            None => Ok((raw.stamp(), rest)),
            Some(fault) => Err(self.error(place, fault)),
        }
    }
}

impl RawStamp {
    /// The first thing that is wrong with the head, if there is one.
    fn check(&self, magic: [u8; 8], head: &[u8], place: &Place) -> Option<HeadFault> {
        if self.magic != magic {
            return Some(HeadFault::Absent {
                expected: magic,
                got: self.magic,
            });
        }
        let crc = crc32_around(head, CRC_AT);
        if self.crc.get() != crc {
            return Some(HeadFault::BadCrc {
                expected: crc,
                got: self.crc.get(),
            });
        }
        if self.version.get() > FORMAT_MAJOR {
            let got = self.version.get();
            return Some(HeadFault::NewerVersion {
                expected: FORMAT_MAJOR,
                got,
            });
        }
        let got = self.stamp();
        if got.device != place.device {
            return Some(HeadFault::OtherDevice {
                expected: place.device,
                got: got.device,
            });
        }
        if got.extent != place.extent || got.address != place.address {
            return Some(HeadFault::Misdirected {
                got_extent: got.extent,
                got: got.address,
            });
        }
        let expected = place.incarnation.unwrap_or(got.incarnation);
        let got = got.incarnation;
        match got.cmp(&expected) {
            std::cmp::Ordering::Less => Some(HeadFault::Stale { expected, got }),
            std::cmp::Ordering::Greater => Some(HeadFault::FromFuture { expected, got }),
            std::cmp::Ordering::Equal => None,
        }
    }

    fn stamp(&self) -> Stamp {
        Stamp {
            device: DeviceId(self.device),
            extent: ExtentNo(self.extent.get()),
            incarnation: Incarnation(self.incarnation.get()),
            owner_epoch: OwnerEpoch(self.owner_epoch.get()),
            address: self.address.get(),
            kind: self.kind.get(),
            table_crc: self.table_crc.get(),
        }
    }
}

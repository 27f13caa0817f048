//! The extent's header, and how extents tile a device.
//!
//! Invariants:
//! - extents tile the device from byte 0; what is left behind the last whole one is not used;
//! - a superblock copy stands only at the start of an extent, in a zone that nothing else uses;
//! - an extent's header says which life it is in: whatever has another incarnation is not of it.
//!
//! The bytes are described in FORMAT.md, "Extent".

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checkpoint;
use crate::ids::{DeviceId, ExtentNo, Incarnation, OwnerEpoch};
use crate::limits::{
    BLOCK_SIZE, BLOCK_SIZE_MIN, DEVICE_SIZE_MIN, EXTENT_SIZE, EXTENT_SIZE_MAX, EXTENT_SIZE_MIN,
    SUPERBLOCK_COPIES, SUPERBLOCK_ZONE,
};
use crate::stamp::{HEAD_LEN, HeadError, HeadFault, HeadType, Place, STAMP_LEN, Stamp};
use crate::superblock;

/// Largest block size that a device may be formatted with, in bytes.
pub const BLOCK_SIZE_MAX: u32 = BLOCK_SIZE;

const HEADER: HeadType = HeadType {
    what: "extent header",
    magic: *b"ASHLEXTN",
};

/// What an extent is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ExtentKind {
    /// Shards and tombstones.
    Data = 1,
    /// Journal batches.
    Journal = 2,
    /// Pages and roots of indexes.
    Index = 3,
    /// Checkpoints.
    Checkpoint = 4,
}

impl ExtentKind {
    /// The kind of this number.
    pub fn from_number(number: u16) -> Option<ExtentKind> {
        Some(match number {
            1 => ExtentKind::Data,
            2 => ExtentKind::Journal,
            3 => ExtentKind::Index,
            4 => ExtentKind::Checkpoint,
            _ => return None,
        })
    }
}

/// The first block of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentHeader {
    /// The device's name.
    pub device: DeviceId,
    /// Which extent.
    pub extent: ExtentNo,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// The owner that opened it.
    pub owner_epoch: OwnerEpoch,
    /// What it is for.
    pub kind: ExtentKind,
    /// Byte offset on the device of this header.
    pub address: u64,
    /// Block size of the device, in bytes.
    pub block_size: u32,
    /// Bytes of an extent of the device.
    pub extent_size: u64,
    /// Every record of this life has a sequence number of at least this.
    pub first_sequence: u64,
}

/// What follows the stamp.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawExtent {
    block_size: U32,
    reserved_a: [u8; 4],
    extent_size: U64,
    first_sequence: U64,
    reserved_b: [u8; 40],
}

const _: () = assert!(size_of::<RawExtent>() == HEAD_LEN - STAMP_LEN);
const _: () = assert!(STAMP_LEN + offset_of!(RawExtent, block_size) == 64);
const _: () = assert!(STAMP_LEN + offset_of!(RawExtent, extent_size) == 72);
const _: () = assert!(STAMP_LEN + offset_of!(RawExtent, first_sequence) == 80);

impl ExtentHeader {
    /// Its bytes. The rest of the block behind them is zeros.
    pub fn encode(&self) -> [u8; HEAD_LEN] {
        let stamp = Stamp {
            device: self.device,
            extent: self.extent,
            incarnation: self.incarnation,
            owner_epoch: self.owner_epoch,
            address: self.address,
            kind: self.kind as u16,
            table_crc: 0,
        };
        let rest = RawExtent {
            block_size: self.block_size.into(),
            reserved_a: [0; 4],
            extent_size: self.extent_size.into(),
            first_sequence: self.first_sequence.into(),
            reserved_b: [0; 40],
        };
        HEADER.encode(&stamp, &zerocopy::transmute!(rest))
    }

    /// Reads one, at `place`. The incarnation there may be `None`: this is where it is learnt.
    pub fn decode(bytes: &[u8], place: &Place) -> Result<ExtentHeader, HeadError> {
        let (stamp, rest) = HEADER.decode::<RawExtent>(bytes, place)?;
        let kind = ExtentKind::from_number(stamp.kind)
            .ok_or_else(|| HEADER.error(place, HeadFault::UnknownKind { got: stamp.kind }))?;
        Ok(ExtentHeader {
            device: stamp.device,
            extent: stamp.extent,
            incarnation: stamp.incarnation,
            owner_epoch: stamp.owner_epoch,
            kind,
            address: stamp.address,
            block_size: rest.block_size.get(),
            extent_size: rest.extent_size.get(),
            first_sequence: rest.first_sequence.get(),
        })
    }
}

/// How a device is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// Bytes of the device.
    pub device_size: u64,
}

/// Why a device cannot be cut up like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Not a power of two between [`BLOCK_SIZE_MIN`] and [`BLOCK_SIZE_MAX`].
    #[error(
        "block size {got} is not a power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX} bytes"
    )]
    BlockSize {
        /// The block size.
        got: u32,
    },
    /// Not a power of two between [`EXTENT_SIZE_MIN`] and [`EXTENT_SIZE_MAX`].
    #[error(
        "extent size {got} is not a power of two from {EXTENT_SIZE_MIN} to {EXTENT_SIZE_MAX} bytes"
    )]
    ExtentSize {
        /// The extent size.
        got: u64,
    },
    /// Too small to hold the superblock copies.
    #[error("the device has {got} bytes; it takes at least {expected}")]
    TooSmall {
        /// Bytes needed with this extent size.
        expected: u64,
        /// Bytes it has.
        got: u64,
    },
    /// The device's size is no multiple of its block size.
    #[error("the device has {got} bytes, which is no multiple of its block size {block_size}")]
    NotAligned {
        /// The block size.
        block_size: u32,
        /// Bytes it has.
        got: u64,
    },
    /// A checkpoint of so many extents would not fit into one of them.
    #[error(
        "{got} extents of {extent_size} bytes are too many, {expected} can be; use larger ones"
    )]
    TooManyExtents {
        /// The extent size.
        extent_size: u64,
        /// Extents that can be.
        expected: u64,
        /// Extents that there would be.
        got: u64,
    },
}

impl Geometry {
    /// Checks it. The other functions give sense only for a geometry that has passed.
    pub fn check(&self) -> Result<(), GeometryError> {
        let Geometry {
            block_size,
            extent_size,
            device_size,
        } = *self;
        if !block_size.is_power_of_two() || !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block_size)
        {
            return Err(GeometryError::BlockSize { got: block_size });
        }
        if !extent_size.is_power_of_two()
            || !(EXTENT_SIZE_MIN..=EXTENT_SIZE_MAX).contains(&extent_size)
        {
            return Err(GeometryError::ExtentSize { got: extent_size });
        }
        if !device_size.is_multiple_of(u64::from(block_size)) {
            return Err(GeometryError::NotAligned {
                block_size,
                got: device_size,
            });
        }
        // The last copy's extent must be there as a whole.
        let last = superblock::offset(SUPERBLOCK_COPIES as u8 - 1, extent_size);
        let expected = DEVICE_SIZE_MIN.max(last + extent_size);
        if device_size < expected {
            return Err(GeometryError::TooSmall {
                expected,
                got: device_size,
            });
        }
        let got = device_size / extent_size;
        let room = extent_size - SUPERBLOCK_ZONE - u64::from(block_size);
        let expected = checkpoint::extents_max(room).min(u64::from(u32::MAX));
        if got > expected {
            return Err(GeometryError::TooManyExtents {
                extent_size,
                expected,
                got,
            });
        }
        Ok(())
    }

    /// The extent size for a device of this size where nobody has asked for another: the default,
    /// or on a very large device the smallest one that keeps a checkpoint within an extent.
    pub fn extent_size_for(block_size: u32, device_size: u64) -> u64 {
        let mut extent_size = EXTENT_SIZE;
        while extent_size < EXTENT_SIZE_MAX
            && matches!(
                Geometry {
                    block_size,
                    extent_size,
                    device_size
                }
                .check(),
                Err(GeometryError::TooManyExtents { .. })
            )
        {
            extent_size *= 2;
        }
        extent_size
    }

    /// How many extents there are.
    pub fn extent_count(&self) -> u32 {
        let count = self.device_size.checked_div(self.extent_size).unwrap_or(0);
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// First byte of an extent that may be used: where its header stands. A superblock's zone,
    /// if the extent begins with one, is left out.
    pub fn extent_start(&self, extent: ExtentNo) -> u64 {
        let base = u64::from(extent.0) * self.extent_size;
        if self.superblock_copy(extent).is_some() {
            base + SUPERBLOCK_ZONE
        } else {
            base
        }
    }

    /// Where an extent's first record may stand: the block behind its header.
    pub fn records_start(&self, extent: ExtentNo) -> u64 {
        self.extent_start(extent) + u64::from(self.block_size)
    }

    /// First byte behind an extent.
    pub fn extent_end(&self, extent: ExtentNo) -> u64 {
        (u64::from(extent.0) + 1) * self.extent_size
    }

    /// The extent that a byte of the device is in; `None` behind the last one.
    pub fn extent_of(&self, address: u64) -> Option<ExtentNo> {
        let extent = u32::try_from(address.checked_div(self.extent_size)?).ok()?;
        (extent < self.extent_count()).then_some(ExtentNo(extent))
    }

    /// The superblock copy that an extent begins with, if it does.
    pub fn superblock_copy(&self, extent: ExtentNo) -> Option<u8> {
        let base = u64::from(extent.0) * self.extent_size;
        (0..SUPERBLOCK_COPIES as u8)
            .find(|copy| superblock::offset(*copy, self.extent_size) == base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn geometry(extent_size: u64, device_size: u64) -> Geometry {
        Geometry {
            block_size: 4096,
            extent_size,
            device_size,
        }
    }

    #[test]
    fn extents_tile_the_device_around_the_superblocks() {
        for extent_size in [MIB, 4 * MIB, 16 * MIB, 64 * MIB] {
            let geometry = geometry(extent_size, 600 * MIB + 4096);
            geometry.check().unwrap();
            let count = geometry.extent_count();
            assert_eq!(u64::from(count), 600 * MIB / extent_size);
            let mut copies = Vec::new();
            let mut end = 0;
            for extent in (0..count).map(ExtentNo) {
                let (start, next) = (geometry.extent_start(extent), geometry.extent_end(extent));
                if let Some(copy) = geometry.superblock_copy(extent) {
                    assert_eq!(superblock::offset(copy, extent_size), end);
                    assert_eq!(start, end + SUPERBLOCK_ZONE);
                    copies.push(copy);
                } else {
                    assert_eq!(start, end, "no gap, no overlap");
                }
                assert_eq!(geometry.records_start(extent), start + 4096);
                assert_eq!(geometry.extent_of(start), Some(extent));
                assert_eq!(geometry.extent_of(next - 1), Some(extent));
                end = next;
            }
            assert_eq!(copies, [0, 1, 2, 3]);
            assert_eq!(end, 600 * MIB / extent_size * extent_size);
            assert_eq!(geometry.extent_of(end), None);
            assert_eq!(geometry.extent_of(u64::MAX), None);
        }
    }

    #[test]
    fn geometries_that_are_refused() {
        let check = |block_size, extent_size, device_size| {
            Geometry {
                block_size,
                extent_size,
                device_size,
            }
            .check()
        };
        let size = 64 * MIB;
        assert_eq!(check(512, 16 * MIB, size), Ok(()));
        for got in [0, 1, 256, 513, 8192, u32::MAX] {
            assert_eq!(
                check(got, 16 * MIB, size),
                Err(GeometryError::BlockSize { got })
            );
        }
        for got in [0, MIB / 2, 3 * MIB, 2048 * MIB, u64::MAX] {
            assert_eq!(
                check(4096, got, size),
                Err(GeometryError::ExtentSize { got })
            );
        }
        let odd = GeometryError::NotAligned {
            block_size: 4096,
            got: size + 512,
        };
        assert_eq!(check(4096, 16 * MIB, size + 512), Err(odd));
        for (extent_size, expected) in
            [(MIB, 64 * MIB), (16 * MIB, 64 * MIB), (64 * MIB, 256 * MIB)]
        {
            let got = expected - 4096;
            let small = GeometryError::TooSmall { expected, got };
            assert_eq!(check(4096, extent_size, got), Err(small));
            assert_eq!(check(4096, extent_size, expected), Ok(()));
        }
    }

    #[test]
    fn a_checkpoint_fits_into_an_extent() {
        let tib = 1 << 40;
        for device_size in [1u64 << 30, tib, 7 * tib, 9 * tib, 40 * tib, 1000 * tib] {
            let extent_size = Geometry::extent_size_for(4096, device_size);
            let geometry = geometry(extent_size, device_size);
            geometry.check().unwrap();
            let len = checkpoint::checkpoint_len(geometry.extent_count());
            let extent = ExtentNo(0);
            assert!(geometry.records_start(extent) + len <= geometry.extent_end(extent));
        }
        assert_eq!(Geometry::extent_size_for(4096, 7 * tib), EXTENT_SIZE);
        assert_eq!(Geometry::extent_size_for(4096, 9 * tib), 2 * EXTENT_SIZE);
        assert!(matches!(
            geometry(EXTENT_SIZE, 9 * tib).check(),
            Err(GeometryError::TooManyExtents { .. })
        ));
    }
}

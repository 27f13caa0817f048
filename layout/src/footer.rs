//! The footer: the table of an extent's records, written when the extent is sealed.
//!
//! Invariants:
//! - a footer ends where its extent ends, and its last bytes are a trailer that says where it begins;
//! - it is believed only if head, table and trailer are whole and of this life of the extent;
//! - a record that it does not name is not in the extent; the records themselves prove each entry.
//!
//! The bytes are described in FORMAT.md, "Footer".

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc::crc32;
use crate::ids::{DeviceId, ExtentNo, Incarnation, OwnerEpoch};
use crate::limits::EXTENT_SIZE_MAX;
use crate::record::{RECORD_PAYLOAD_MAX, RecordHeader, RecordKind, Subject};
use crate::stamp::{HEAD_LEN, HeadError, HeadFault, HeadType, Place, STAMP_LEN, Stamp};

/// Bytes of an entry of the table.
pub const FOOTER_ENTRY_LEN: usize = 48;
/// Bytes of the trailer, the last ones of the extent.
pub const TRAILER_LEN: usize = HEAD_LEN;

const HEADER: HeadType = HeadType {
    what: "footer",
    magic: *b"ASHLFOOT",
};
const TRAILER: HeadType = HeadType {
    what: "footer trailer",
    magic: *b"ASHLTRLR",
};

/// The table of an extent's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The device's name.
    pub device: DeviceId,
    /// Which extent,
    pub extent: ExtentNo,
    /// and which life of it.
    pub incarnation: Incarnation,
    /// The owner that sealed it.
    pub owner_epoch: OwnerEpoch,
    /// Byte offset on the device behind the last record.
    pub records_end: u64,
    /// The records, in the order in which they stand.
    pub entries: Vec<FooterEntry>,
}

/// A record, as the footer tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FooterEntry {
    /// What it is about.
    pub subject: Subject,
    /// Its sequence number.
    pub sequence: u64,
    /// Where it begins, in blocks from the extent's first byte (its number times its size).
    pub offset_blocks: u32,
    /// Bytes of its payload.
    pub payload_len: u32,
    /// CRC-32 of its payload.
    pub payload_crc: u32,
    /// Its payload did not match when the extent was searched: torn by a crash, or rotten. Such records
    /// of the journal and of the index are kept, so that the damage is not forgotten.
    pub damaged: bool,
}

impl FooterEntry {
    /// The entry for a record of an extent that begins at byte `base` of the device.
    pub fn of(record: &RecordHeader, base: u64, block_size: u32) -> FooterEntry {
        let blocks = record.address.saturating_sub(base) / u64::from(block_size.max(1));
        FooterEntry {
            subject: record.subject,
            sequence: record.sequence,
            offset_blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
            payload_len: record.payload_len,
            payload_crc: record.payload_crc,
            damaged: false,
        }
    }
}

/// Where a footer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Byte offset on the device where the footer begins.
    pub footer: u64,
    /// Bytes of it, this trailer included.
    pub len: u32,
    /// Entries in it.
    pub count: u32,
    /// The life of the extent that it closes.
    pub incarnation: Incarnation,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawFooter {
    records_end: U64,
    count: U32,
    entry_len: U32,
    reserved: [u8; 48],
}

const _: () = assert!(size_of::<RawFooter>() == HEAD_LEN - STAMP_LEN);
const _: () = assert!(STAMP_LEN + offset_of!(RawFooter, records_end) == 64);
const _: () = assert!(STAMP_LEN + offset_of!(RawFooter, count) == 72);
const _: () = assert!(STAMP_LEN + offset_of!(RawFooter, entry_len) == 76);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTrailer {
    footer: U64,
    len: U32,
    count: U32,
    reserved: [u8; 48],
}

const _: () = assert!(size_of::<RawTrailer>() == HEAD_LEN - STAMP_LEN);
const _: () = assert!(STAMP_LEN + offset_of!(RawTrailer, footer) == 64);
const _: () = assert!(STAMP_LEN + offset_of!(RawTrailer, len) == 72);
const _: () = assert!(STAMP_LEN + offset_of!(RawTrailer, count) == 76);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    subject_a: U64,
    subject_b: U64,
    sequence: U64,
    offset_blocks: U32,
    payload_len: U32,
    payload_crc: U32,
    subject_c: U32,
    kind: U16,
    damaged: u8,
    reserved: [u8; 5],
}

const _: () = assert!(size_of::<RawEntry>() == FOOTER_ENTRY_LEN);
const _: () = assert!(offset_of!(RawEntry, subject_a) == 0);
const _: () = assert!(offset_of!(RawEntry, subject_b) == 8);
const _: () = assert!(offset_of!(RawEntry, sequence) == 16);
const _: () = assert!(offset_of!(RawEntry, offset_blocks) == 24);
const _: () = assert!(offset_of!(RawEntry, payload_len) == 28);
const _: () = assert!(offset_of!(RawEntry, payload_crc) == 32);
const _: () = assert!(offset_of!(RawEntry, subject_c) == 36);
const _: () = assert!(offset_of!(RawEntry, kind) == 40);
const _: () = assert!(offset_of!(RawEntry, damaged) == 42);

/// What is wrong with a footer. The extent's records are then found by scanning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// There is no footer or trailer there, or its head is damaged.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The table is damaged.
    #[error("footer at byte {address}: the table's CRC should be {expected:#010x}, is {got:#010x}")]
    BadTable {
        /// The footer's address.
        address: u64,
        /// What the head says.
        expected: u32,
        /// What the bytes give.
        got: u32,
    },
    /// An entry of the table, though whole, makes no sense.
    #[error("footer at byte {address}, entry {entry}: {fault}")]
    BadEntry {
        /// The footer's address.
        address: u64,
        /// Which entry.
        entry: usize,
        /// What is wrong with it.
        fault: HeadFault,
    },
}

/// Bytes of a footer of `count` entries, trailer included, in whole blocks: what must be left of an
/// extent so that it can be sealed.
pub fn footer_len(count: usize, block_size: u32) -> u64 {
    let bytes = HEAD_LEN as u64 + count as u64 * FOOTER_ENTRY_LEN as u64 + TRAILER_LEN as u64;
    bytes.next_multiple_of(u64::from(block_size.max(1)))
}

/// Where the trailer of an extent that ends at `extent_end` stands.
pub fn trailer_at(extent_end: u64) -> u64 {
    extent_end.saturating_sub(TRAILER_LEN as u64)
}

impl Footer {
    /// Its bytes, [`footer_len`] of them, to be written so that they end at `extent_end`.
    pub fn encode(&self, extent_end: u64, block_size: u32) -> Vec<u8> {
        let len = footer_len(self.entries.len(), block_size);
        let address = extent_end.saturating_sub(len);
        let count = self.entries.len() as u32;
        let mut bytes = vec![0; len as usize];
        let table_end = HEAD_LEN + self.entries.len() * FOOTER_ENTRY_LEN;
        let slots = bytes[HEAD_LEN..table_end].chunks_exact_mut(FOOTER_ENTRY_LEN);
        for (slot, entry) in slots.zip(&self.entries) {
            slot.copy_from_slice(RawEntry::new(entry).as_bytes());
        }
        let mut stamp = Stamp {
            device: self.device,
            extent: self.extent,
            incarnation: self.incarnation,
            owner_epoch: self.owner_epoch,
            address,
            kind: 0,
            table_crc: crc32(&bytes[HEAD_LEN..table_end]),
        };
        let head = RawFooter {
            records_end: self.records_end.into(),
            count: count.into(),
            entry_len: (FOOTER_ENTRY_LEN as u32).into(),
            reserved: [0; 48],
        };
        bytes[..HEAD_LEN].copy_from_slice(&HEADER.encode(&stamp, &zerocopy::transmute!(head)));
        stamp.address = trailer_at(extent_end);
        let trailer = RawTrailer {
            footer: address.into(),
            len: (len as u32).into(),
            count: count.into(),
            reserved: [0; 48],
        };
        let at = bytes.len() - TRAILER_LEN;
        bytes[at..].copy_from_slice(&TRAILER.encode(&stamp, &zerocopy::transmute!(trailer)));
        bytes
    }

    /// Reads a footer: the bytes from where the trailer says that it begins to the extent's end.
    pub fn decode(bytes: &[u8], place: &Place) -> Result<Footer, FooterError> {
        let address = place.address;
        let (stamp, head) = HEADER.decode::<RawFooter>(bytes, place)?;
        let table = &bytes[HEAD_LEN..];
        if head.entry_len.get() as usize != FOOTER_ENTRY_LEN {
            let (expected, got) = (FOOTER_ENTRY_LEN as u64, u64::from(head.entry_len.get()));
            let fault = HeadFault::OutOfRange {
                field: "entry length",
                expected,
                got,
            };
            return Err(HEADER.error(place, fault).into());
        }
        let count = head.count.get() as usize;
        let most = table.len() / FOOTER_ENTRY_LEN;
        if count > most {
            let (expected, got) = (most as u64, count as u64);
            let fault = HeadFault::OutOfRange {
                field: "entry count",
                expected,
                got,
            };
            return Err(HEADER.error(place, fault).into());
        }
        let table = &table[..count * FOOTER_ENTRY_LEN];
        let got = crc32(table);
        let raw = match <[RawEntry]>::ref_from_bytes(table) {
            Ok(raw) if got == stamp.table_crc => raw,
            _ => {
                return Err(FooterError::BadTable {
                    address,
                    expected: stamp.table_crc,
                    got,
                });
            }
        };
        let mut entries = Vec::with_capacity(raw.len());
        for (entry, raw) in raw.iter().enumerate() {
            let entry = raw.entry().map_err(|fault| FooterError::BadEntry {
                address,
                entry,
                fault,
            });
            entries.push(entry?);
        }
        Ok(Footer {
            device: stamp.device,
            extent: stamp.extent,
            incarnation: stamp.incarnation,
            owner_epoch: stamp.owner_epoch,
            records_end: head.records_end.get(),
            entries,
        })
    }
}

impl Trailer {
    /// Reads a trailer: `bytes` are the last [`TRAILER_LEN`] of the extent, `place.address` is
    /// [`trailer_at`]. The incarnation there may be `None`.
    pub fn decode(bytes: &[u8], place: &Place) -> Result<Trailer, FooterError> {
        let (stamp, raw) = TRAILER.decode::<RawTrailer>(bytes, place)?;
        let trailer = Trailer {
            footer: raw.footer.get(),
            len: raw.len.get(),
            count: raw.count.get(),
            incarnation: stamp.incarnation,
        };
        let error = |field, expected, got| {
            FooterError::Head(TRAILER.error(
                place,
                HeadFault::OutOfRange {
                    field,
                    expected,
                    got,
                },
            ))
        };
        let Some(extent_end) = place.address.checked_add(TRAILER_LEN as u64) else {
            return Err(error("address", trailer_at(u64::MAX), place.address));
        };
        let len = u64::from(trailer.len);
        if len > EXTENT_SIZE_MAX.min(extent_end) {
            return Err(error("footer length", EXTENT_SIZE_MAX.min(extent_end), len));
        }
        if trailer.footer != extent_end - len {
            return Err(error("footer address", extent_end - len, trailer.footer));
        }
        let least = footer_len(trailer.count as usize, 1);
        if least > len {
            return Err(error("entry count", len, u64::from(trailer.count)));
        }
        Ok(trailer)
    }
}

impl RawEntry {
    fn new(entry: &FooterEntry) -> RawEntry {
        let (a, b, c) = entry.subject.numbers();
        RawEntry {
            subject_a: a.into(),
            subject_b: b.into(),
            sequence: entry.sequence.into(),
            offset_blocks: entry.offset_blocks.into(),
            payload_len: entry.payload_len.into(),
            payload_crc: entry.payload_crc.into(),
            subject_c: c.into(),
            kind: (entry.subject.kind() as u16).into(),
            damaged: u8::from(entry.damaged),
            reserved: [0; 5],
        }
    }

    fn entry(&self) -> Result<FooterEntry, HeadFault> {
        let kind = RecordKind::from_number(self.kind.get()).ok_or(HeadFault::UnknownKind {
            got: self.kind.get(),
        })?;
        let numbers = (
            self.subject_a.get(),
            self.subject_b.get(),
            self.subject_c.get(),
        );
        let (expected, got) = (
            u64::from(RECORD_PAYLOAD_MAX),
            u64::from(self.payload_len.get()),
        );
        if got > expected {
            return Err(HeadFault::OutOfRange {
                field: "payload length",
                expected,
                got,
            });
        }
        Ok(FooterEntry {
            subject: Subject::from_numbers(kind, numbers)?,
            sequence: self.sequence.get(),
            offset_blocks: self.offset_blocks.get(),
            payload_len: self.payload_len.get(),
            payload_crc: self.payload_crc.get(),
            damaged: self.damaged != 0,
        })
    }
}

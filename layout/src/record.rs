//! Records: what an extent holds. A head, a table of piece CRCs, and a payload.
//!
//! Invariants:
//! - nothing in a head is used before its CRC has matched, and no length leads outside of what was given;
//! - a record says where it stands and of which life of which extent it is;
//! - the payload's CRC is the combination of its piece CRCs, so that one pass gives both;
//! - head and table take whole blocks, and so does the payload: a record begins and ends on a block.
//!
//! The bytes are described in FORMAT.md, "Record".

use std::mem::{offset_of, size_of};
use std::ops::Range;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc::{crc32, crc32_combine};
use crate::ids::{
    DeviceId, ExtentNo, Incarnation, OwnerEpoch, PartitionId, Seq, ShardId, StripeId,
};
use crate::limits::{BLOCK_SIZE_MIN, JOURNAL_BATCH_MAX, PIECE_SIZE, SHARD_SIZE_MAX};
use crate::page::{CHUNK_MAX, GRAIN};
use crate::root::ROOT_MAX;
use crate::stamp::{HEAD_LEN, HeadError, HeadFault, HeadType, Place, RawStamp, STAMP_LEN, Stamp};

/// Largest payload of any record, in bytes.
pub const RECORD_PAYLOAD_MAX: u32 = if SHARD_SIZE_MAX > JOURNAL_BATCH_MAX {
    SHARD_SIZE_MAX
} else {
    JOURNAL_BATCH_MAX
};

const HEADER: HeadType = HeadType {
    what: "record",
    magic: *b"ASHLRECD",
};
/// Bytes of one CRC in the table.
const CRC_LEN: usize = 4;
/// The largest payload in an extent of kind index.
const INDEX_PAYLOAD_MAX: usize = if CHUNK_MAX > ROOT_MAX {
    CHUNK_MAX
} else {
    ROOT_MAX
};

const _: () = assert!(INDEX_PAYLOAD_MAX <= RECORD_PAYLOAD_MAX as usize);
const _: () = assert!(
    HEAD_LEN + INDEX_PAYLOAD_MAX.div_ceil(PIECE_SIZE as usize) * CRC_LEN <= BLOCK_SIZE_MIN as usize,
    "head and table of a record of the index are one block"
);

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum RecordKind {
    /// A shard's bytes.
    Shard = 1,
    /// A shard was deleted. No payload.
    Tombstone = 2,
    /// Journal entries.
    JournalBatch = 3,
    /// Pages of a run of an index.
    IndexChunk = 4,
    /// The root of an index.
    IndexRoot = 5,
}

impl RecordKind {
    /// The kind of this number.
    pub fn from_number(number: u16) -> Option<RecordKind> {
        Some(match number {
            1 => RecordKind::Shard,
            2 => RecordKind::Tombstone,
            3 => RecordKind::JournalBatch,
            4 => RecordKind::IndexChunk,
            5 => RecordKind::IndexRoot,
            _ => return None,
        })
    }
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// This shard's bytes are the payload.
    Shard(ShardId),
    /// This shard was deleted.
    Tombstone(ShardId),
    /// The payload is these entries of this partition.
    Journal {
        /// Which partition.
        partition: PartitionId,
        /// The first entry's number.
        first: Seq,
        /// The last entry's number.
        last: Seq,
    },
    /// The payload is pages of a run, written for this partition. (Others may come to use them, too.)
    IndexChunk {
        /// Which partition.
        partition: PartitionId,
    },
    /// The payload is a root of the index of this partition.
    IndexRoot {
        /// Which partition.
        partition: PartitionId,
        /// The root's own number.
        generation: u64,
    },
}

impl Subject {
    /// What kind of record that makes.
    pub fn kind(&self) -> RecordKind {
        match self {
            Subject::Shard(_) => RecordKind::Shard,
            Subject::Tombstone(_) => RecordKind::Tombstone,
            Subject::Journal { .. } => RecordKind::JournalBatch,
            Subject::IndexChunk { .. } => RecordKind::IndexChunk,
            Subject::IndexRoot { .. } => RecordKind::IndexRoot,
        }
    }

    /// The shard that it stores or deletes.
    pub fn shard(&self) -> Option<ShardId> {
        match self {
            Subject::Shard(shard) | Subject::Tombstone(shard) => Some(*shard),
            Subject::Journal { .. } | Subject::IndexChunk { .. } | Subject::IndexRoot { .. } => {
                None
            }
        }
    }

    /// As three numbers: (a, b, c) of FORMAT.md.
    pub(crate) fn numbers(&self) -> (u64, u64, u32) {
        match *self {
            Subject::Shard(ShardId { stripe, index })
            | Subject::Tombstone(ShardId { stripe, index }) => {
                (stripe.writer, stripe.attempt, u32::from(index))
            }
            Subject::Journal {
                partition,
                first,
                last,
            } => (first.0, last.0, partition.0),
            Subject::IndexChunk { partition } => (0, 0, partition.0),
            Subject::IndexRoot {
                partition,
                generation,
            } => (generation, 0, partition.0),
        }
    }

    /// From three numbers; the field that is out of range, if one is.
    pub(crate) fn from_numbers(
        kind: RecordKind,
        (a, b, c): (u64, u64, u32),
    ) -> Result<Subject, HeadFault> {
        let shard = || match u16::try_from(c) {
            Ok(index) => Ok(ShardId {
                stripe: StripeId {
                    writer: a,
                    attempt: b,
                },
                index,
            }),
            Err(_) => Err(HeadFault::OutOfRange {
                field: "shard index",
                expected: u64::from(u16::MAX),
                got: u64::from(c),
            }),
        };
        Ok(match kind {
            RecordKind::Shard => Subject::Shard(shard()?),
            RecordKind::Tombstone => Subject::Tombstone(shard()?),
            RecordKind::JournalBatch if a > b => {
                return Err(HeadFault::OutOfRange {
                    field: "first entry",
                    expected: b,
                    got: a,
                });
            }
            RecordKind::JournalBatch => Subject::Journal {
                partition: PartitionId(c),
                first: Seq(a),
                last: Seq(b),
            },
            RecordKind::IndexChunk => Subject::IndexChunk {
                partition: PartitionId(c),
            },
            RecordKind::IndexRoot => Subject::IndexRoot {
                partition: PartitionId(c),
                generation: a,
            },
        })
    }
}

/// The head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// The device's name.
    pub device: DeviceId,
    /// Which extent,
    pub extent: ExtentNo,
    /// and which life of it.
    pub incarnation: Incarnation,
    /// The owner that wrote it.
    pub owner_epoch: OwnerEpoch,
    /// Byte offset of the record on the device.
    pub address: u64,
    /// Counts up over all records of the device: of two about one shard, the higher one holds.
    pub sequence: u64,
    /// What it is about.
    pub subject: Subject,
    /// Bytes of payload.
    pub payload_len: u32,
    /// CRC-32 of the whole payload.
    pub payload_crc: u32,
    /// CRC-32 of the table of piece CRCs. [`RecordHeader::seal`] sets it.
    pub table_crc: u32,
}

/// What follows the stamp.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRecord {
    sequence: U64,
    subject_a: U64,
    subject_b: U64,
    subject_c: U32,
    payload_len: U32,
    payload_crc: U32,
    reserved: [u8; 28],
}

const _: () = assert!(size_of::<RawRecord>() == HEAD_LEN - STAMP_LEN);
const _: () = assert!(STAMP_LEN + offset_of!(RawRecord, sequence) == 64);
const _: () = assert!(STAMP_LEN + offset_of!(RawRecord, subject_a) == 72);
const _: () = assert!(STAMP_LEN + offset_of!(RawRecord, subject_b) == 80);
const _: () = assert!(STAMP_LEN + offset_of!(RawRecord, subject_c) == 88);
const _: () = assert!(STAMP_LEN + offset_of!(RawRecord, payload_len) == 92);
const _: () = assert!(STAMP_LEN + offset_of!(RawRecord, payload_crc) == 96);

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// There is no such record there, or its head is damaged.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The head is whole, but the table of piece CRCs behind it is damaged.
    #[error(
        "record at byte {address}: the piece table's CRC should be {expected:#010x}, is {got:#010x}"
    )]
    BadTable {
        /// The record's address.
        address: u64,
        /// What the head says.
        expected: u32,
        /// What the bytes give.
        got: u32,
    },
    /// A piece of the payload is damaged.
    #[error(
        "record at byte {address}, piece {piece}: CRC should be {expected:#010x}, is {got:#010x}"
    )]
    BadPiece {
        /// The record's address.
        address: u64,
        /// Which piece.
        piece: u32,
        /// What the table says.
        expected: u32,
        /// What the bytes give.
        got: u32,
    },
    /// The payload as a whole is not what the head says.
    #[error(
        "record at byte {address}: the payload's CRC should be {expected:#010x}, is {got:#010x}"
    )]
    BadPayload {
        /// The record's address.
        address: u64,
        /// What the head says.
        expected: u32,
        /// What the bytes give.
        got: u32,
    },
    /// The bytes given are too few, or too many, for what was asked.
    #[error("record at byte {address}: {got} bytes given, {expected} needed")]
    BadLength {
        /// The record's address.
        address: u64,
        /// Bytes needed.
        expected: u64,
        /// Bytes given.
        got: u64,
    },
    /// The bytes given do not begin at a piece, or end neither at one nor at the payload's end.
    #[error("record at byte {address}: payload bytes {start}..{end} are no whole pieces")]
    NotPieces {
        /// The record's address.
        address: u64,
        /// First byte of the payload that was given,
        start: u64,
        /// and the one behind the last.
        end: u64,
    },
}

/// How many pieces a payload has.
pub fn piece_count(payload_len: u32) -> u32 {
    payload_len.div_ceil(PIECE_SIZE)
}

/// Bytes of head and table.
pub fn table_end(payload_len: u32) -> u32 {
    HEAD_LEN as u32 + piece_count(payload_len) * CRC_LEN as u32
}

/// Bytes of head and table, in whole blocks: the room in front of a payload.
pub fn header_len(payload_len: u32, block_size: u32) -> u32 {
    table_end(payload_len).next_multiple_of(block_size.max(1))
}

/// Bytes of a whole record, in whole blocks.
pub fn record_len(payload_len: u32, block_size: u32) -> u64 {
    let payload = u64::from(payload_len).next_multiple_of(u64::from(block_size.max(1)));
    u64::from(header_len(payload_len, block_size)) + payload
}

/// Where the next record of an extent of kind index stands, if the space from `free` on is not used: its
/// payload begins on a grain, whatever the block size.
pub fn index_record_at(free: u64, block_size: u32) -> u64 {
    let block = u64::from(block_size);
    (free + block).next_multiple_of(GRAIN as u64) - block
}

/// Bytes of the payload that must be read, so that `offset..offset + len` of it can be verified:
/// whole pieces. `None` if that range is not within the payload.
pub fn cover(payload_len: u32, offset: u32, len: u32) -> Option<Range<u32>> {
    let end = offset.checked_add(len).filter(|end| *end <= payload_len)?;
    if len == 0 {
        return Some(offset..offset);
    }
    let start = offset - offset % PIECE_SIZE;
    let end = u64::from(end)
        .next_multiple_of(u64::from(PIECE_SIZE))
        .min(u64::from(payload_len));
    Some(start..end as u32)
}

/// CRCs of the payload's pieces, in order, handed to `each`; gives the CRC of the whole.
/// Each byte is read once.
pub fn piece_crcs(payload: &[u8], mut each: impl FnMut(usize, u32)) -> u32 {
    let mut whole = 0;
    for (i, piece) in payload.chunks(PIECE_SIZE as usize).enumerate() {
        let crc = crc32(piece);
        each(i, crc);
        whole = if i == 0 {
            crc
        } else {
            crc32_combine(whole, crc, piece.len() as u64)
        };
    }
    whole
}

/// The table of piece CRCs of a record, verified.
#[derive(Clone, Copy, Debug)]
pub struct Pieces<'a> {
    header: RecordHeader,
    crcs: &'a [U32],
}

impl Pieces<'_> {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.crcs.len()
    }

    /// CRC of a piece; `None` behind the last one.
    pub fn crc(&self, piece: u32) -> Option<u32> {
        self.crcs.get(piece as usize).map(|crc| crc.get())
    }

    /// Checks `bytes`, which are the payload's from byte `start` on: whole pieces, as [`cover`] tells.
    pub fn verify(&self, start: u32, bytes: &[u8]) -> Result<(), RecordError> {
        let address = self.header.address;
        let end = u64::from(start) + bytes.len() as u64;
        let payload_len = u64::from(self.header.payload_len);
        let whole = start.is_multiple_of(PIECE_SIZE)
            && (end.is_multiple_of(u64::from(PIECE_SIZE)) || end == payload_len)
            && end <= payload_len;
        if !whole && !bytes.is_empty() {
            return Err(RecordError::NotPieces {
                address,
                start: u64::from(start),
                end,
            });
        }
        for (piece, bytes) in (start / PIECE_SIZE..).zip(bytes.chunks(PIECE_SIZE as usize)) {
            self.verify_piece(piece, bytes)?;
        }
        Ok(())
    }

    /// Checks one piece, whole.
    pub fn verify_piece(&self, piece: u32, bytes: &[u8]) -> Result<(), RecordError> {
        let address = self.header.address;
        let start = u64::from(piece) * u64::from(PIECE_SIZE);
        let Some(expected) = self.crc(piece) else {
            let end = start + bytes.len() as u64;
            return Err(RecordError::NotPieces {
                address,
                start,
                end,
            });
        };
        let got = crc32(bytes);
        if got == expected {
            Ok(())
        } else {
            Err(RecordError::BadPiece {
                address,
                piece,
                expected,
                got,
            })
        }
    }
}

impl RecordHeader {
    /// Bytes of the whole record on the device.
    pub fn record_len(&self, block_size: u32) -> u64 {
        record_len(self.payload_len, block_size)
    }

    /// Makes `record` ready to be written as it is: room of [`header_len`] bytes, then the
    /// payload, then room up to the end of its last block. Fills in head and table, zeros what is
    /// not used, and refuses a payload that does not have `payload_crc`.
    pub fn seal(&mut self, record: &mut [u8], block_size: u32) -> Result<(), RecordError> {
        let address = self.address;
        self.check_payload_len()?;
        let (expected, got) = (self.record_len(block_size), record.len() as u64);
        if got != expected {
            return Err(RecordError::BadLength {
                address,
                expected,
                got,
            });
        }
        let room = header_len(self.payload_len, block_size) as usize;
        let (header, body) = record.split_at_mut(room);
        let (payload, padding) = body.split_at_mut(self.payload_len as usize);
        padding.fill(0);
        let (head, rest) = header.split_at_mut(HEAD_LEN);
        let (table, unused) = rest.split_at_mut(piece_count(self.payload_len) as usize * CRC_LEN);
        unused.fill(0);
        let got = piece_crcs(payload, |i, crc| {
            table[i * CRC_LEN..][..CRC_LEN].copy_from_slice(&crc.to_le_bytes());
        });
        if got != self.payload_crc {
            return Err(RecordError::BadPayload {
                address,
                expected: self.payload_crc,
                got,
            });
        }
        self.table_crc = crc32(table);
        head.copy_from_slice(&self.encode_head());
        Ok(())
    }

    /// Head and table of a record whose piece CRCs are known, into room of [`header_len`] bytes.
    /// What is not used of the room is zeroed.
    pub fn encode_into(
        &mut self,
        pieces: &[u32],
        room: &mut [u8],
        block_size: u32,
    ) -> Result<(), RecordError> {
        let address = self.address;
        self.check_payload_len()?;
        let needed = u64::from(header_len(self.payload_len, block_size));
        for (expected, got) in [
            (needed, room.len() as u64),
            (
                u64::from(piece_count(self.payload_len)),
                pieces.len() as u64,
            ),
        ] {
            if got != expected {
                return Err(RecordError::BadLength {
                    address,
                    expected,
                    got,
                });
            }
        }
        let (head, rest) = room.split_at_mut(HEAD_LEN);
        let (table, unused) = rest.split_at_mut(pieces.len() * CRC_LEN);
        unused.fill(0);
        for (slot, crc) in table.chunks_exact_mut(CRC_LEN).zip(pieces) {
            slot.copy_from_slice(&crc.to_le_bytes());
        }
        self.table_crc = crc32(table);
        head.copy_from_slice(&self.encode_head());
        Ok(())
    }

    fn encode_head(&self) -> [u8; HEAD_LEN] {
        let stamp = Stamp {
            device: self.device,
            extent: self.extent,
            incarnation: self.incarnation,
            owner_epoch: self.owner_epoch,
            address: self.address,
            kind: self.subject.kind() as u16,
            table_crc: self.table_crc,
        };
        let (a, b, c) = self.subject.numbers();
        let rest = RawRecord {
            sequence: self.sequence.into(),
            subject_a: a.into(),
            subject_b: b.into(),
            subject_c: c.into(),
            payload_len: self.payload_len.into(),
            payload_crc: self.payload_crc.into(),
            reserved: [0; 28],
        };
        HEADER.encode(&stamp, &zerocopy::transmute!(rest))
    }

    /// Whether bytes that are no whole head were one of a record of this device: the magic number is
    /// there, and most of the device's name. (The magic number alone can be in anybody's payload.)
    pub fn resembles(bytes: &[u8], device: &DeviceId) -> bool {
        let Ok((raw, _)) = RawStamp::ref_from_prefix(bytes) else {
            return false;
        };
        let same = raw.device.iter().zip(&device.0).filter(|(a, b)| a == b);
        raw.magic == HEADER.magic && same.count() >= device.0.len() / 2
    }

    /// Reads a record's head from its first block; the table may not all be in `bytes` yet.
    pub fn decode(bytes: &[u8], place: &Place) -> Result<RecordHeader, HeadError> {
        let (stamp, rest) = HEADER.decode::<RawRecord>(bytes, place)?;
        let kind = RecordKind::from_number(stamp.kind)
            .ok_or_else(|| HEADER.error(place, HeadFault::UnknownKind { got: stamp.kind }))?;
        let numbers = (
            rest.subject_a.get(),
            rest.subject_b.get(),
            rest.subject_c.get(),
        );
        let subject =
            Subject::from_numbers(kind, numbers).map_err(|fault| HEADER.error(place, fault))?;
        let header = RecordHeader {
            device: stamp.device,
            extent: stamp.extent,
            incarnation: stamp.incarnation,
            owner_epoch: stamp.owner_epoch,
            address: stamp.address,
            sequence: rest.sequence.get(),
            subject,
            payload_len: rest.payload_len.get(),
            payload_crc: rest.payload_crc.get(),
            table_crc: stamp.table_crc,
        };
        header.check_payload_len()?;
        Ok(header)
    }

    /// The table of piece CRCs. `bytes` begin where the record begins, and hold at least head and
    /// table: [`header_len`] bytes are enough.
    pub fn pieces<'a>(&self, bytes: &'a [u8]) -> Result<Pieces<'a>, RecordError> {
        let address = self.address;
        let end = table_end(self.payload_len) as usize;
        let Some(table) = bytes.get(HEAD_LEN..end) else {
            let (expected, got) = (end as u64, bytes.len() as u64);
            return Err(RecordError::BadLength {
                address,
                expected,
                got,
            });
        };
        let got = crc32(table);
        match <[U32]>::ref_from_bytes(table) {
            Ok(crcs) if got == self.table_crc => Ok(Pieces {
                header: *self,
                crcs,
            }),
            _ => Err(RecordError::BadTable {
                address,
                expected: self.table_crc,
                got,
            }),
        }
    }

    /// Checks the whole payload, without the padding.
    pub fn verify_payload(&self, payload: &[u8]) -> Result<(), RecordError> {
        let address = self.address;
        let (expected, got) = (u64::from(self.payload_len), payload.len() as u64);
        if got != expected {
            return Err(RecordError::BadLength {
                address,
                expected,
                got,
            });
        }
        let got = crc32(payload);
        if got != self.payload_crc {
            return Err(RecordError::BadPayload {
                address,
                expected: self.payload_crc,
                got,
            });
        }
        Ok(())
    }

    fn check_payload_len(&self) -> Result<(), HeadError> {
        let most = match self.subject {
            Subject::Shard(_) => SHARD_SIZE_MAX,
            Subject::Tombstone(_) => 0,
            Subject::Journal { .. } => JOURNAL_BATCH_MAX,
            Subject::IndexChunk { .. } => CHUNK_MAX as u32,
            Subject::IndexRoot { .. } => ROOT_MAX as u32,
        };
        if self.payload_len <= most {
            return Ok(());
        }
        let (expected, got) = (u64::from(most), u64::from(self.payload_len));
        let fault = HeadFault::OutOfRange {
            field: "payload length",
            expected,
            got,
        };
        Err(HeadError {
            what: HEADER.what,
            address: self.address,
            fault,
        })
    }
}

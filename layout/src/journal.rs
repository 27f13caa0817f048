//! Journal entries: the same bytes on the wire and on disk.
//!
//! Invariants:
//! - every byte of an entry is covered by its CRC, but the CRC itself;
//! - its lengths are bounded by the limits and by what was given before they are used;
//! - entries follow each other without a gap, and an entry's length is in its own header: what
//!   follows a damaged one is not looked for here, since an object's bytes may look like entries.
//!
//! The bytes are described in FORMAT.md, "Journal entry".

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::control::{self, ControlError};
use crate::crc::crc32_around;
use crate::ids::{ClientId, RequestNo, Seq, Term};
use crate::limits::{FRAME_CONTROL_MAX, INLINE_MAX, JOURNAL_BATCH_MAX};
use crate::manifest::Op;
use crate::manifest_v1::OpV1;
use crate::manifest_v4::OpV4;
use crate::version::{
    ENTRY_VERSION, ENTRY_VERSION_BOUNDS, ENTRY_VERSION_LOCKS, ENTRY_VERSION_PLAIN,
    ENTRY_VERSION_RELOCATE, ENTRY_VERSION_RENAME,
};

/// Bytes of an entry's header.
pub const ENTRY_HEADER_LEN: usize = 64;
/// Largest operation of an entry, in bytes: it comes as a part of a frame's control part.
pub const OP_MAX: u32 = FRAME_CONTROL_MAX;
/// Largest entry, in bytes.
pub const ENTRY_MAX: u32 = ENTRY_HEADER_LEN as u32 + OP_MAX + INLINE_MAX;

const _: () = assert!(ENTRY_MAX <= JOURNAL_BATCH_MAX);

const MAGIC: [u8; 4] = *b"ASHJ";
const CRC_AT: usize = offset_of!(RawEntry, crc);

/// The header of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// Its place in the partition.
    pub seq: Seq,
    /// The reign in which it was made.
    pub term: Term,
    /// Who asked for it,
    pub client: ClientId,
    /// and which of that client's requests it was.
    pub request: RequestNo,
    /// When, in milliseconds since 1970, by the head's clock.
    pub time_ms: u64,
    /// Bytes of the operation.
    pub op_len: u32,
    /// Bytes of the inline payload.
    pub inline_len: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    magic: [u8; 4],
    crc: U32,
    seq: U64,
    term: U64,
    client: U64,
    request: U64,
    time_ms: U64,
    op_len: U32,
    inline_len: U32,
    version: U16,
    reserved: [u8; 6],
}

const _: () = assert!(size_of::<RawEntry>() == ENTRY_HEADER_LEN);
const _: () = assert!(offset_of!(RawEntry, crc) == 4);
const _: () = assert!(offset_of!(RawEntry, seq) == 8);
const _: () = assert!(offset_of!(RawEntry, term) == 16);
const _: () = assert!(offset_of!(RawEntry, client) == 24);
const _: () = assert!(offset_of!(RawEntry, request) == 32);
const _: () = assert!(offset_of!(RawEntry, time_ms) == 40);
const _: () = assert!(offset_of!(RawEntry, op_len) == 48);
const _: () = assert!(offset_of!(RawEntry, inline_len) == 52);
const _: () = assert!(offset_of!(RawEntry, version) == 56);

/// What is wrong with an entry. `at` is the offset of the entry in the bytes that were given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The bytes end before the entry does.
    #[error("journal entry at {at}: {got} bytes given, {expected} needed")]
    Short {
        /// Where the entry begins.
        at: usize,
        /// Bytes needed.
        expected: usize,
        /// Bytes there are.
        got: usize,
    },
    /// No entry begins there.
    #[error("no journal entry at {at}: it begins with {got:02x?}, not {MAGIC:02x?}")]
    NotAnEntry {
        /// Where an entry should begin.
        at: usize,
        /// What stands there.
        got: [u8; 4],
    },
    /// A length is beyond its limit. The CRC could not be checked: damage, or a newer version.
    #[error("journal entry at {at}: {field} is {got}, at most {expected} is allowed")]
    TooLong {
        /// Where the entry begins.
        at: usize,
        /// Which length.
        field: &'static str,
        /// The most allowed.
        expected: u32,
        /// What it says.
        got: u32,
    },
    /// Torn or rotten.
    #[error("journal entry at {at}: CRC is {got:#010x}, the bytes give {expected:#010x}")]
    BadCrc {
        /// Where the entry begins.
        at: usize,
        /// What the bytes give.
        expected: u32,
        /// What it says.
        got: u32,
    },
    /// Written by a newer version.
    #[error("journal entry at {at}: version {got}; this program knows versions up to {expected}")]
    NewerVersion {
        /// Where the entry begins.
        at: usize,
        /// The newest known.
        expected: u16,
        /// The entry's.
        got: u16,
    },
    /// The entry is whole, but its operation cannot be understood.
    #[error("operation of journal entry {seq}: {error}")]
    BadOp {
        /// The entry.
        seq: Seq,
        /// Why.
        error: ControlError,
    },
}

/// A whole entry, its CRC checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its header.
    pub header: EntryHeader,
    /// The version of its format: it says how the operation is encoded.
    pub version: u16,
    /// The operation's bytes.
    pub op_bytes: &'a [u8],
    /// The inline payload.
    pub inline: &'a [u8],
    /// All of its bytes.
    pub bytes: &'a [u8],
}

/// The version of an entry that holds this operation: the oldest that has it. Who reads older ones alone cannot take
/// it.
pub fn entry_version(op: &Op) -> u16 {
    match op {
        Op::Relocate { .. } => ENTRY_VERSION_RELOCATE,
        Op::Rename { .. } => ENTRY_VERSION_RENAME,
        Op::PutVersion { .. } | Op::DropVersion { .. } | Op::LockVersion { .. } => {
            ENTRY_VERSION_LOCKS
        }
        Op::Split { .. } | Op::Close { .. } => ENTRY_VERSION_BOUNDS,
        Op::TermStart
        | Op::Chain { .. }
        | Op::CreateBucket { .. }
        | Op::DeleteBucket { .. }
        | Op::Put { .. }
        | Op::Delete { .. } => ENTRY_VERSION_PLAIN,
    }
}

/// Appends an entry to `out`. Nothing is appended if a part is too long.
#[expect(
    clippy::too_many_arguments,
    reason = "they are the fields of the entry, in their order"
)]
pub fn encode_entry(
    out: &mut Vec<u8>,
    seq: Seq,
    term: Term,
    client: ClientId,
    request: RequestNo,
    time_ms: u64,
    op: &Op,
    inline: &[u8],
) -> Result<(), EntryError> {
    let at = out.len();
    let version = entry_version(op);
    let op = control::encode(op);
    let op_len = bounded(at, "operation length", op.len(), OP_MAX)?;
    let inline_len = bounded(at, "inline length", inline.len(), INLINE_MAX)?;
    let raw = RawEntry {
        magic: MAGIC,
        crc: U32::ZERO,
        seq: seq.0.into(),
        term: term.0.into(),
        client: client.0.into(),
        request: request.0.into(),
        time_ms: time_ms.into(),
        op_len: op_len.into(),
        inline_len: inline_len.into(),
        version: version.into(),
        reserved: [0; 6],
    };
    out.reserve(ENTRY_HEADER_LEN + op.len() + inline.len());
    out.extend_from_slice(raw.as_bytes());
    out.extend_from_slice(&op);
    out.extend_from_slice(inline);
    let entry = &mut out[at..];
    let crc = crc32_around(entry, CRC_AT);
    entry[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

fn bounded(at: usize, field: &'static str, got: usize, most: u32) -> Result<u32, EntryError> {
    let got = u32::try_from(got).unwrap_or(u32::MAX);
    if got <= most {
        Ok(got)
    } else {
        Err(EntryError::TooLong {
            at,
            field,
            expected: most,
            got,
        })
    }
}

impl<'a> Entry<'a> {
    /// Reads the entry that `bytes` begin with; more may follow.
    pub fn decode(bytes: &'a [u8]) -> Result<Entry<'a>, EntryError> {
        decode_at(bytes, 0)
    }

    /// The operation.
    pub fn op(&self) -> Result<Op, EntryError> {
        let op = match self.version {
            ..2 => control::decode::<OpV1>(self.op_bytes).map(Op::from),
            2..5 => control::decode::<OpV4>(self.op_bytes).map(Op::from),
            _ => control::decode(self.op_bytes),
        };
        op.map_err(|error| EntryError::BadOp {
            seq: self.header.seq,
            error,
        })
    }

    /// Bytes of the entry.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: an entry has a header at least.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Where the inline payload begins, from the entry's first byte.
    pub fn inline_offset(&self) -> usize {
        ENTRY_HEADER_LEN + self.op_bytes.len()
    }
}

fn decode_at(all: &[u8], at: usize) -> Result<Entry<'_>, EntryError> {
    let bytes = all.get(at..).unwrap_or_default();
    let Ok((raw, rest)) = RawEntry::ref_from_prefix(bytes) else {
        return Err(EntryError::Short {
            at,
            expected: ENTRY_HEADER_LEN,
            got: bytes.len(),
        });
    };
    if raw.magic != MAGIC {
        return Err(EntryError::NotAnEntry { at, got: raw.magic });
    }
    let op_len = raw.op_len.get();
    let inline_len = raw.inline_len.get();
    for (field, got, expected) in [
        ("operation length", op_len, OP_MAX),
        ("inline length", inline_len, INLINE_MAX),
    ] {
        if got > expected {
            return Err(EntryError::TooLong {
                at,
                field,
                expected,
                got,
            });
        }
    }
    let len = ENTRY_HEADER_LEN + op_len as usize + inline_len as usize;
    let (Some(entry), Some(parts)) = (bytes.get(..len), rest.get(..len - ENTRY_HEADER_LEN)) else {
        return Err(EntryError::Short {
            at,
            expected: len,
            got: bytes.len(),
        });
    };
    let expected = crc32_around(entry, CRC_AT);
    if raw.crc.get() != expected {
        return Err(EntryError::BadCrc {
            at,
            expected,
            got: raw.crc.get(),
        });
    }
    if raw.version.get() > ENTRY_VERSION {
        let got = raw.version.get();
        return Err(EntryError::NewerVersion {
            at,
            expected: ENTRY_VERSION,
            got,
        });
    }
    let (op_bytes, inline) = parts.split_at(op_len as usize);
    let header = EntryHeader {
        seq: Seq(raw.seq.get()),
        term: Term(raw.term.get()),
        client: ClientId(raw.client.get()),
        request: RequestNo(raw.request.get()),
        time_ms: raw.time_ms.get(),
        op_len,
        inline_len,
    };
    Ok(Entry {
        header,
        version: raw.version.get(),
        op_bytes,
        inline,
        bytes: entry,
    })
}

/// The entries of a run of them. After an error there are no more.
pub fn entries(bytes: &[u8]) -> Entries<'_> {
    Entries { bytes, at: 0 }
}

/// See [`entries`].
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Entries<'_> {
    /// Where the next entry begins, from the first byte of the run.
    pub fn offset(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, EntryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let entry = decode_at(self.bytes, self.at);
        self.at = match &entry {
            Ok(entry) => self.at + entry.len(),
            Err(_) => self.bytes.len(),
        };
        Some(entry)
    }
}

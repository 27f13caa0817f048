//! The root of an index: which runs it has, and up to which entry of the journal they reach. And what
//! the values of its entries are.
//!
//! Invariants:
//! - the root with the highest generation that is whole is the index; what it does not name, no run
//!   of any life, is not part of it;
//! - a root is written only once all that it names is durable;
//! - runs stand newest first: of a key's newest version, the first run that has it tells the value;
//! - a run stands once in a root, whatever parts of it are visible.
//!
//! The bytes are described in FORMAT.md, "Index runs".

use std::collections::BTreeSet;
use std::mem::{offset_of, size_of};

use wincode::config::Configuration;
use wincode::{SchemaRead, SchemaWrite};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::control::{ControlError, ReadConfig, WriteConfig};
use crate::crc::crc32_around;
use crate::ids::{DeviceId, PartitionId, Seq, Term};
use crate::lock::Lock;
use crate::manifest::{Body, Etag, Manifest, VersionTag};
use crate::manifest_v4::TagV4;
use crate::page::{
    CHUNK_MAX, Child, GRAIN, INDEX_KEY_MAX, INDEX_VALUE_MAX, RunId, number, put_number,
};
use crate::version::{ROOT_VERSION, ROOT_VERSION_PLAIN};

/// Bytes of the largest root.
pub const ROOT_MAX: usize = 1 << 20;
/// Bytes of a root's head.
pub const ROOT_HEAD_LEN: usize = 64;
/// Most bytes in memory of one list of a root: a chunk takes 10 bytes there and 16 in memory.
const ROOT_PREALLOC: usize = 2 * ROOT_MAX;

const MAGIC: [u8; 8] = *b"ASHLROOT";
const CRC_AT: usize = offset_of!(RawRoot, crc);
type RootConfig = Configuration<true, ROOT_PREALLOC>;

/// Where an inline object's journal entry is on this device: in one extent, head and all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, SchemaWrite, SchemaRead)]
pub struct InlinePlace {
    /// Its term.
    pub term: Term,
    /// Its address.
    pub at: u64,
    /// Its length.
    pub len: u32,
}

/// What an index entry of kind object holds; its version is the entry's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectValue {
    /// When it was made, milliseconds since 1970.
    pub modified_ms: u64,
    /// What it is made of.
    pub manifest: Manifest,
    /// Which version of the object it is, if it is one of a bucket that keeps them.
    pub tag: Option<VersionTag>,
    /// Where its journal entry is on this device, if it is inline and stands there only.
    pub place: Option<InlinePlace>,
    /// The object itself, if it is inline and embedded here.
    pub payload: Vec<u8>,
}

/// As much of an object's value as a listing tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectBrief {
    /// When it was made, milliseconds since 1970.
    pub modified_ms: u64,
    /// Bytes of the object.
    pub size: u64,
    /// CRC-32 of the object.
    pub crc: u32,
    /// Its ETag.
    pub etag: Etag,
    /// Which version of the object it is, if it is one of a bucket that keeps them.
    pub tag: Option<VersionTag>,
}

/// What a value begins with. Then come tag, lock and place, if it has them, the manifest's body and attributes, and up
/// to its end the payload.
#[derive(Clone, Copy, SchemaWrite, SchemaRead)]
struct ValueHead {
    modified_ms: u64,
    size: u64,
    crc: u32,
    etag: Etag,
    /// [`HAS_PLACE`], [`HAS_TAG`] and [`HAS_LOCK`]. Values without are what they were before there were any.
    has: u8,
}

/// A value has a place.
const HAS_PLACE: u8 = 1;
/// A value has a tag.
const HAS_TAG: u8 = 2;
/// A value with a tag has a lock.
const HAS_LOCK: u8 = 4;

/// The head of a value, with tag and place.
struct ValueStart {
    head: ValueHead,
    tag: Option<VersionTag>,
    place: Option<InlinePlace>,
}

impl ValueStart {
    fn read(rest: &mut &[u8]) -> Result<ValueStart, String> {
        let bad = |error: wincode::ReadError| error.to_string();
        let head = <ValueHead as SchemaRead<'_, ReadConfig>>::get(&mut *rest).map_err(bad)?;
        let tags = head.has & (HAS_TAG | HAS_LOCK);
        if head.has > HAS_PLACE | HAS_TAG | HAS_LOCK || tags == HAS_LOCK {
            return Err(format!("a value that has {:#04x}", head.has));
        }
        let tag = match head.has & HAS_TAG {
            0 => None,
            _ => Some(<TagV4 as SchemaRead<'_, ReadConfig>>::get(&mut *rest).map_err(bad)?),
        };
        let lock = match head.has & HAS_LOCK {
            0 => Lock::NONE,
            _ => <Lock as SchemaRead<'_, ReadConfig>>::get(&mut *rest).map_err(bad)?,
        };
        let tag = tag.map(|tag| tag.with(lock));
        let place = match head.has & HAS_PLACE {
            0 => None,
            _ => Some(<InlinePlace as SchemaRead<'_, ReadConfig>>::get(&mut *rest).map_err(bad)?),
        };
        Ok(ValueStart { head, tag, place })
    }
}

impl ObjectValue {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut has = 0;
        if self.place.is_some() {
            has |= HAS_PLACE;
        }
        if self.tag.is_some() {
            has |= HAS_TAG;
        }
        let lock = self.tag.map(|tag| tag.lock).filter(|lock| !lock.is_none());
        if lock.is_some() {
            has |= HAS_LOCK;
        }
        let head = ValueHead {
            modified_ms: self.modified_ms,
            size: self.manifest.size,
            crc: self.manifest.crc,
            etag: self.manifest.etag,
            has,
        };
        let mut out = Vec::with_capacity(80 + self.payload.len());
        let config = WriteConfig::new;
        let write = wincode::config::serialize_into(&mut out, &head, config());
        write
            .and_then(|()| match &self.tag {
                Some(tag) => wincode::config::serialize_into(&mut out, &TagV4::of(tag), config()),
                None => Ok(()),
            })
            .and_then(|()| match &lock {
                Some(lock) => wincode::config::serialize_into(&mut out, lock, config()),
                None => Ok(()),
            })
            .and_then(|()| match &self.place {
                Some(place) => wincode::config::serialize_into(&mut out, place, config()),
                None => Ok(()),
            })
            .and_then(|()| {
                let body = &self.manifest.body;
                wincode::config::serialize_into(&mut out, body, config())
            })
            .and_then(|()| {
                let attributes = &self.manifest.attributes;
                wincode::config::serialize_into(&mut out, attributes, config())
            })
            .expect("writing to memory is not refused: no limit is set on what is written");
        out.extend_from_slice(&self.payload);
        out
    }

    /// From all of its bytes.
    pub fn decode(bytes: &[u8]) -> Result<ObjectValue, ControlError> {
        let len = bytes.len();
        if len > INDEX_VALUE_MAX {
            let (expected, got) = (INDEX_VALUE_MAX, len);
            return Err(ControlError::TooLong { expected, got });
        }
        let none = |reason: String| ControlError::Undecodable { len, reason };
        let undecodable = |error: wincode::ReadError| none(error.to_string());
        let mut rest = bytes;
        let ValueStart { head, tag, place } = ValueStart::read(&mut rest).map_err(none)?;
        let body = <Body as SchemaRead<'_, ReadConfig>>::get(&mut rest).map_err(undecodable)?;
        let attributes =
            <Vec<u8> as SchemaRead<'_, ReadConfig>>::get(&mut rest).map_err(undecodable)?;
        Ok(ObjectValue {
            modified_ms: head.modified_ms,
            manifest: Manifest {
                size: head.size,
                crc: head.crc,
                etag: head.etag,
                body,
                attributes,
            },
            tag,
            place,
            payload: rest.to_vec(),
        })
    }

    /// Only what a listing tells.
    pub fn brief(bytes: &[u8]) -> Option<ObjectBrief> {
        let mut rest = bytes;
        let ValueStart { head, tag, .. } = ValueStart::read(&mut rest).ok()?;
        Some(ObjectBrief {
            modified_ms: head.modified_ms,
            size: head.size,
            crc: head.crc,
            etag: head.etag,
            tag,
        })
    }

    /// Only the place, and how many bytes are embedded.
    pub fn inline(bytes: &[u8]) -> Option<(Option<InlinePlace>, usize)> {
        let mut rest = bytes;
        let start = ValueStart::read(&mut rest).ok()?;
        // Of the body's variants, the first one has nothing behind its tag. Then come the attributes.
        let embedded = match rest.split_first_chunk()? {
            ([0, 0, 0, 0], rest) => {
                let (attributes, rest) = rest.split_first_chunk()?;
                let attributes = usize::try_from(u64::from_le_bytes(*attributes)).ok()?;
                rest.len().checked_sub(attributes)?
            }
            _ => 0,
        };
        Some((start.place, embedded))
    }
}

/// The bytes of a list of extents: each as what it is more than the one before, seven bits a byte.
pub fn encode_pins(extents: &BTreeSet<u32>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut before = 0;
    for extent in extents {
        put_number(&mut out, u64::from(extent - before));
        before = *extent;
    }
    out
}

/// The list of extents whose bytes these are, ascending; `None` if they are none.
pub fn decode_pins(mut bytes: &[u8]) -> Option<Vec<u32>> {
    let mut out: Vec<u32> = Vec::new();
    while !bytes.is_empty() {
        let more = u32::try_from(number(&mut bytes)?).ok()?;
        let next = match out.last() {
            Some(_) if more == 0 => return None,
            Some(last) => last.checked_add(more)?,
            None => more,
        };
        out.push(next);
    }
    Some(out)
}

/// A chunk of a run: where it is, and how much of it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, SchemaWrite, SchemaRead)]
pub struct Chunk {
    /// Address of its first byte.
    pub at: u64,
    /// Grains that are written.
    pub grains: u16,
}

/// Pages of one kind that follow each other in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, SchemaWrite, SchemaRead)]
pub struct Section {
    /// The first page's first grain.
    pub grain: u32,
    /// How many pages; none if there is no such section.
    pub pages: u32,
}

/// A stretch of keys, in the order of the map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaWrite, SchemaRead)]
pub struct Window {
    /// Its first key.
    pub from: Vec<u8>,
    /// The first key behind it; empty: it has no end.
    pub to: Vec<u8>,
}

/// A run, as the root tells of it. All but the clip is the same for ever, whichever partition's root
/// names it.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct RunRecord {
    /// Its name,
    pub id: RunId,
    /// and the partition that wrote it: the pages say both.
    pub origin: PartitionId,
    /// How often its entries were merged.
    pub level: u8,
    /// Entries in it, tombstones and versions for snapshots included,
    pub entries: u64,
    /// how many of them are tombstones,
    pub tombstones: u64,
    /// and how many are objects.
    pub objects: u64,
    /// Bytes of objects that are embedded in their entries.
    pub embedded: u64,
    /// Bytes of journal entries that its entries point to.
    pub placed: u64,
    /// Its oldest entry,
    pub first: Seq,
    /// and its newest.
    pub last: Seq,
    /// Its least key,
    pub lowest: Vec<u8>,
    /// and its greatest.
    pub highest: Vec<u8>,
    /// What is visible of it; what is outside of all windows counts for nothing. Without any, all is
    /// visible.
    pub clip: Vec<Window>,
    /// Where it is.
    pub chunks: Vec<Chunk>,
    /// The last grain of the section of leaves and fences, excluded.
    pub leaves_end: u32,
    /// Its top pages.
    pub top: Section,
    /// Its filter.
    pub filter: Section,
    /// The extents that its entries' places are in: see [`decode_pins`].
    pub pins: Section,
}

/// What the index keeps for its owner, in chunks of its own.
#[derive(Clone, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct AttachmentRecord {
    /// Its name, from the same numbers as the runs'.
    pub id: RunId,
    /// Bytes of it.
    pub len: u64,
    /// Where it is.
    pub chunks: Vec<Chunk>,
    /// Its pages.
    pub pages: Section,
}

/// An index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The device's name.
    pub device: DeviceId,
    /// The partition that it is of.
    pub partition: PartitionId,
    /// Counts up with each root of the partition on this device.
    pub generation: u64,
    /// All entries up to this one are in the runs.
    pub covered: Seq,
    /// What the owner gave along with it.
    pub attachment: Option<AttachmentRecord>,
    /// The runs, newest first.
    pub runs: Vec<RunRecord>,
    /// There are, or were, versions of objects in it. Once said, it is said of all roots that come of this one.
    pub versions: bool,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRoot {
    magic: [u8; 8],
    crc: U32,
    version: U16,
    reserved_a: [u8; 2],
    device: [u8; 16],
    generation: U64,
    covered: U64,
    partition: U32,
    body_len: U32,
    reserved_b: [u8; 8],
}

const _: () = assert!(size_of::<RawRoot>() == ROOT_HEAD_LEN);
const _: () = assert!(offset_of!(RawRoot, device) == 16);
const _: () = assert!(offset_of!(RawRoot, generation) == 32);
const _: () = assert!(offset_of!(RawRoot, partition) == 48);

#[derive(SchemaWrite, SchemaRead)]
struct RootBody {
    attachment: Option<AttachmentRecord>,
    runs: Vec<RunRecord>,
}

/// What is wrong with a root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Too few bytes, or too many.
    #[error(
        "an index root of {got} bytes; at least {ROOT_HEAD_LEN}, at most {ROOT_MAX} are expected"
    )]
    Length {
        /// Bytes given, or needed.
        got: usize,
    },
    /// No root: the magic number is another.
    #[error("no index root: the magic number is {got:02x?}")]
    Absent {
        /// What stands there.
        got: [u8; 8],
    },
    /// Torn or rotten.
    #[error("index root: CRC is {got:#010x}, the bytes give {expected:#010x}")]
    BadCrc {
        /// What the bytes give.
        expected: u32,
        /// What the head says.
        got: u32,
    },
    /// Written by a newer version of the format.
    #[error("index root of format version {got}; this program knows versions up to {expected}")]
    NewerVersion {
        /// The newest known.
        expected: u16,
        /// The root's.
        got: u16,
    },
    /// Of another device or partition.
    #[error(
        "index root of partition {got_partition} on {got}, not {expected_partition} on {expected}"
    )]
    Other {
        /// The device being read,
        expected: DeviceId,
        /// and the partition.
        expected_partition: PartitionId,
        /// The root's device,
        got: DeviceId,
        /// and partition.
        got_partition: PartitionId,
    },
    /// Whole, but its contents make no sense.
    #[error("index root: {reason}")]
    Malformed {
        /// Why.
        reason: String,
    },
}

impl Root {
    /// Its bytes.
    pub fn encode(&self) -> Result<Vec<u8>, RootError> {
        let body = RootBody {
            attachment: self.attachment.clone(),
            runs: self.runs.clone(),
        };
        let body = wincode::config::serialize(&body, WriteConfig::new())
            .map_err(|error| malformed(error.to_string()))?;
        let got = ROOT_HEAD_LEN + body.len();
        if got > ROOT_MAX {
            return Err(RootError::Length { got });
        }
        let raw = RawRoot {
            magic: MAGIC,
            crc: U32::ZERO,
            version: match self.versions {
                true => ROOT_VERSION.into(),
                false => ROOT_VERSION_PLAIN.into(),
            },
            reserved_a: [0; 2],
            device: self.device.0,
            generation: self.generation.into(),
            covered: self.covered.0.into(),
            partition: self.partition.0.into(),
            body_len: (body.len() as u32).into(),
            reserved_b: [0; 8],
        };
        let mut bytes = Vec::with_capacity(got);
        bytes.extend_from_slice(raw.as_bytes());
        bytes.extend_from_slice(&body);
        let crc = crc32_around(&bytes, CRC_AT);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        Ok(bytes)
    }

    /// Reads a root; zeros may follow it.
    pub fn decode(
        bytes: &[u8],
        device: DeviceId,
        partition: PartitionId,
    ) -> Result<Root, RootError> {
        let got = bytes.len();
        let (raw, _) = RawRoot::ref_from_prefix(bytes).map_err(|_| RootError::Length { got })?;
        if raw.magic != MAGIC {
            return Err(RootError::Absent { got: raw.magic });
        }
        let got = (raw.body_len.get() as usize).saturating_add(ROOT_HEAD_LEN);
        let Some(all) = bytes.get(..got).filter(|_| got <= ROOT_MAX) else {
            return Err(RootError::Length { got });
        };
        let (expected, got) = (crc32_around(all, CRC_AT), raw.crc.get());
        if expected != got {
            return Err(RootError::BadCrc { expected, got });
        }
        let (expected, got) = (ROOT_VERSION, raw.version.get());
        if got > expected {
            return Err(RootError::NewerVersion { expected, got });
        }
        let (got, got_partition) = (DeviceId(raw.device), PartitionId(raw.partition.get()));
        if (got, got_partition) != (device, partition) {
            return Err(RootError::Other {
                expected: device,
                expected_partition: partition,
                got,
                got_partition,
            });
        }
        let body: RootBody =
            wincode::config::deserialize_exact(&all[ROOT_HEAD_LEN..], RootConfig::new())
                .map_err(|error| malformed(error.to_string()))?;
        let root = Root {
            device,
            partition,
            generation: raw.generation.get(),
            covered: Seq(raw.covered.get()),
            attachment: body.attachment,
            runs: body.runs,
            versions: raw.version.get() > ROOT_VERSION_PLAIN,
        };
        root.check()?;
        Ok(root)
    }

    fn check(&self) -> Result<(), RootError> {
        let mut names = BTreeSet::new();
        for run in &self.runs {
            check_chunks(run.id, &run.chunks, &[run.top, run.filter, run.pins])?;
            let grains = (run.chunks.len() * CHUNK_MAX / GRAIN) as u64;
            let ordered = run.first <= run.last && run.lowest <= run.highest;
            if !ordered || !check_clip(&run.clip) || u64::from(run.leaves_end) > grains {
                return Err(malformed(format!("run {} contradicts itself", run.id)));
            }
            if !names.insert((run.origin, run.id)) {
                return Err(malformed(format!("run {} is named twice", run.id)));
            }
        }
        if let Some(attachment) = &self.attachment {
            check_chunks(attachment.id, &attachment.chunks, &[attachment.pages])?;
        }
        Ok(())
    }

    /// All chunks that it names.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        let runs = self.runs.iter().flat_map(|run| &run.chunks);
        runs.chain(self.attachment.iter().flat_map(|it| &it.chunks))
    }
}

fn check_chunks(id: RunId, chunks: &[Chunk], sections: &[Section]) -> Result<(), RootError> {
    let most = CHUNK_MAX / GRAIN;
    let fits = |chunk: &Chunk| chunk.grains >= 1 && usize::from(chunk.grains) <= most;
    let total = (chunks.len() * most) as u64;
    let within = |section: &Section| {
        section.pages == 0 || u64::from(section.grain) + u64::from(section.pages) <= total
    };
    if !chunks.iter().all(fits) || !sections.iter().all(within) {
        return Err(malformed(format!("run {id} reaches beyond its chunks")));
    }
    Ok(())
}

/// Windows ascend, none is empty, and none touches the next.
fn check_clip(clip: &[Window]) -> bool {
    let fits = |key: &[u8]| key.len() <= INDEX_KEY_MAX + 1;
    let sound = |window: &Window| {
        let some = window.to.is_empty() || window.from < window.to;
        some && fits(&window.from) && fits(&window.to)
    };
    let apart = |pair: &[Window]| !pair[0].to.is_empty() && pair[0].to < pair[1].from;
    clip.iter().all(sound) && clip.windows(2).all(apart)
}

fn malformed(reason: String) -> RootError {
    RootError::Malformed { reason }
}

/// Where bytes of a page are: its chunk's address and its offset there; `None` if the run has no such
/// page.
pub fn place(chunks: &[Chunk], child: Child) -> Option<u64> {
    let per_chunk = (CHUNK_MAX / GRAIN) as u32;
    let chunk = chunks.get((child.grain / per_chunk) as usize)?;
    let first = child.grain % per_chunk;
    if first + u32::from(child.grains) > u32::from(chunk.grains) {
        return None;
    }
    chunk.at.checked_add(u64::from(first) * GRAIN as u64)
}

//! Pages of an index run: sorted entries, prefix-compressed, under one CRC; or raw bytes.
//!
//! Invariants:
//! - no field is believed, and no length used, before the CRC over the whole page has matched;
//! - a page says of which device, partition and run it is, and where in the run it stands, so that
//!   a lost, stale or misdirected write is recognised; a run's name is never used twice;
//! - entries ascend strictly: by key, and of one key the newest first;
//! - what was decoded was walked through once: no later step on it can leave its bytes.
//!
//! The bytes are described in FORMAT.md, "Index runs".

use std::cmp::Ordering;
use std::fmt;
use std::mem::{offset_of, size_of};
use std::ops::Range;

use wincode::{SchemaRead, SchemaWrite};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc::crc32_around;
use crate::ids::{DeviceId, PartitionId};
use crate::limits::{BUCKET_MAX, FRAME_CONTROL_MAX, INLINE_MAX, KEY_MAX};
use crate::version::FORMAT_MAJOR;

/// Pages are whole grains: the unit of addresses within a run, in bytes.
pub const GRAIN: usize = 4096;
/// Bytes of a page's head.
pub const PAGE_HEAD_LEN: usize = 64;
/// Bytes of a page, unless one entry alone is larger.
pub const PAGE_TARGET: usize = 2 * GRAIN;
/// Bytes of the largest page.
pub const PAGE_MAX: usize = 128 * GRAIN;
/// Bytes of the largest chunk: what a run is written in. A page is within one chunk.
pub const CHUNK_MAX: usize = 256 * GRAIN;
/// Longest key of an entry, in bytes.
pub const INDEX_KEY_MAX: usize = 2 + BUCKET_MAX + KEY_MAX + 9;
/// Largest value of an entry, in bytes: a manifest, or an embedded payload, and what stands before them.
pub const INDEX_VALUE_MAX: usize = FRAME_CONTROL_MAX as usize + INLINE_MAX as usize + 256;
/// Every so many entries one is written with its whole key, for a binary search.
const RESTART_EVERY: usize = 16;
/// Bytes of an entry apart from its key and value, at most.
const ENTRY_HEAD_MAX: usize = 3 * 4 + 10;

const MAGIC: [u8; 8] = *b"ASHLPAGE";
const CRC_AT: usize = offset_of!(RawPage, crc);

const _: () = assert!(
    PAGE_HEAD_LEN + ENTRY_HEAD_MAX + INDEX_KEY_MAX + INDEX_VALUE_MAX + 4 <= PAGE_MAX,
    "any entry fits into a page of its own"
);
const _: () = assert!(PAGE_MAX <= CHUNK_MAX);

/// A run's name in its partition on its device: never used twice.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaWrite, SchemaRead,
)]
pub struct RunId {
    /// The life of the index that wrote it: a number that the device gives out once.
    pub life: u64,
    /// Counts up in that life.
    pub no: u32,
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.life, self.no)
    }
}

/// What is in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum PageKind {
    /// Entries of the map.
    Leaf = 1,
    /// Where leaves begin.
    Fence = 2,
    /// Where fence pages begin.
    Top = 3,
    /// Part of the run's filter.
    Filter = 4,
    /// Part of what the index keeps for its owner.
    Attachment = 5,
    /// Part of the list of extents that the run's entries point into.
    Pins = 6,
}

impl PageKind {
    fn from_number(number: u16) -> Option<PageKind> {
        Some(match number {
            1 => PageKind::Leaf,
            2 => PageKind::Fence,
            3 => PageKind::Top,
            4 => PageKind::Filter,
            5 => PageKind::Attachment,
            6 => PageKind::Pins,
            _ => return None,
        })
    }

    fn has_entries(self) -> bool {
        matches!(self, PageKind::Leaf | PageKind::Fence | PageKind::Top)
    }
}

/// What an entry says of its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// From this version on there is nothing.
    #[default]
    Tombstone = 0,
    /// An object: see [`crate::root::ObjectValue`].
    Object = 1,
    /// A bucket: the value is the time that it was made, milliseconds since 1970.
    Bucket = 2,
    /// In fence and top pages: a page. See [`Child`].
    Child = 3,
}

impl EntryKind {
    /// The kind of this number, if an entry of an index may be of it.
    pub fn from_number(number: u8) -> Option<EntryKind> {
        (number < 3).then(|| EntryKind::from_bits(u64::from(number)))
    }

    fn from_bits(bits: u64) -> EntryKind {
        match bits & 3 {
            0 => EntryKind::Tombstone,
            1 => EntryKind::Object,
            2 => EntryKind::Bucket,
            _ => EntryKind::Child,
        }
    }
}

/// Where a page stands in its run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Child {
    /// Its first grain, counted through all chunks as if each were full.
    pub grain: u32,
    /// How many grains it has.
    pub grains: u16,
}

impl Child {
    /// Its six bytes, as they stand in an entry.
    pub fn encode(self) -> [u8; 6] {
        let mut bytes = [0; 6];
        bytes[..4].copy_from_slice(&self.grain.to_le_bytes());
        bytes[4..].copy_from_slice(&self.grains.to_le_bytes());
        bytes
    }

    /// From its six bytes; `None` if that cannot be a page.
    pub fn decode(bytes: &[u8]) -> Option<Child> {
        let (grain, grains) = bytes.split_first_chunk::<4>()?;
        let child = Child {
            grain: u32::from_le_bytes(*grain),
            grains: u16::from_le_bytes(grains.try_into().ok()?),
        };
        let chunk = (CHUNK_MAX / GRAIN) as u32;
        let (first, grains) = (child.grain % chunk, u32::from(child.grains));
        let fits = grains >= 1 && grains as usize <= PAGE_MAX / GRAIN && first + grains <= chunk;
        fits.then_some(child)
    }

    /// Bytes of the page.
    pub fn len(self) -> usize {
        usize::from(self.grains) * GRAIN
    }

    /// Whether it has none.
    pub fn is_empty(self) -> bool {
        self.grains == 0
    }
}

/// What a page is expected to say of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageName {
    /// The device's name.
    pub device: DeviceId,
    /// The partition that wrote the run.
    pub partition: PartitionId,
    /// The run.
    pub run: RunId,
    /// The page's first grain in it.
    pub grain: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPage {
    magic: [u8; 8],
    crc: U32,
    version: U16,
    kind: U16,
    device: [u8; 16],
    life: U64,
    no: U32,
    partition: U32,
    grain: U32,
    grains: U16,
    restarts: U16,
    body_len: U32,
    reserved: [u8; 4],
}

const _: () = assert!(size_of::<RawPage>() == PAGE_HEAD_LEN);
const _: () = assert!(offset_of!(RawPage, version) == 12);
const _: () = assert!(offset_of!(RawPage, device) == 16);
const _: () = assert!(offset_of!(RawPage, life) == 32);
const _: () = assert!(offset_of!(RawPage, no) == 40);
const _: () = assert!(offset_of!(RawPage, grain) == 48);
const _: () = assert!(offset_of!(RawPage, restarts) == 54);
const _: () = assert!(offset_of!(RawPage, body_len) == 56);

/// What is wrong with a page. The first fault that applies, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageFault {
    /// Not as many bytes as a page has.
    #[error(
        "{got} bytes given; whole grains of {GRAIN} bytes are expected, {PAGE_MAX} bytes at most"
    )]
    Length {
        /// Bytes given.
        got: usize,
    },
    /// No page: the magic number is another.
    #[error("the magic number is {got:02x?}: no page was written there")]
    Absent {
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
        /// The page's.
        got: u16,
    },
    /// Whole, but another page: stale, lost or misdirected.
    #[error("it is page {} of run {} of partition {} on {}", got.grain, got.run, got.partition.0, got.device)]
    Other {
        /// Which one it is.
        got: PageName,
    },
    /// Whole, but of another kind than its place says, or of none that is known.
    #[error("it is of kind {got}")]
    OtherKind {
        /// Its kind's number.
        got: u16,
    },
    /// Whole, but its contents make no sense.
    #[error("its contents, at byte {at}, are no entries in order")]
    Malformed {
        /// Where in the page.
        at: usize,
    },
}

/// A page that was read and checked.
#[derive(Clone, Debug)]
pub struct Page<B> {
    bytes: B,
    kind: PageKind,
    /// Where the entries end and the table of restarts begins; of raw bytes, their end.
    end: usize,
    restarts: usize,
}

/// An entry of a page, found by one of the page's steps.
#[derive(Clone, Debug, Default)]
pub struct Spot {
    next: usize,
    /// Its key.
    pub key: Vec<u8>,
    /// Its version.
    pub seq: u64,
    /// What it says.
    pub kind: EntryKind,
    value: Range<usize>,
}

impl Spot {
    /// How it stands to a key and version, in the order of the entries.
    pub fn order(&self, key: &[u8], seq: u64) -> Ordering {
        self.key.as_slice().cmp(key).then(seq.cmp(&self.seq))
    }
}

impl<B: AsRef<[u8]>> Page<B> {
    /// Reads and checks a page, all of its bytes given.
    pub fn decode(bytes: B, name: &PageName, kind: PageKind) -> Result<Page<B>, PageFault> {
        let page = Page::decode_any(bytes, name)?;
        if page.kind == kind {
            return Ok(page);
        }
        let got = page.kind as u16;
        Err(PageFault::OtherKind { got })
    }

    /// The same, of whatever kind it is.
    pub fn decode_any(bytes: B, name: &PageName) -> Result<Page<B>, PageFault> {
        let all = bytes.as_ref();
        let got = all.len();
        let raw = match RawPage::ref_from_prefix(all) {
            Ok((raw, _)) if got.is_multiple_of(GRAIN) && got <= PAGE_MAX => raw,
            _ => return Err(PageFault::Length { got }),
        };
        if raw.magic != MAGIC {
            return Err(PageFault::Absent { got: raw.magic });
        }
        let (expected, got) = (crc32_around(all, CRC_AT), raw.crc.get());
        if expected != got {
            return Err(PageFault::BadCrc { expected, got });
        }
        let (expected, got) = (FORMAT_MAJOR, raw.version.get());
        if got > expected {
            return Err(PageFault::NewerVersion { expected, got });
        }
        let got = raw.name();
        if got != *name {
            return Err(PageFault::Other { got });
        }
        let got = raw.kind.get();
        let kind = PageKind::from_number(got).ok_or(PageFault::OtherKind { got })?;
        let restarts = usize::from(raw.restarts.get());
        let body = raw.body_len.get() as usize;
        let room = all.len() - PAGE_HEAD_LEN;
        let table = restarts * 4;
        if usize::from(raw.grains.get()) * GRAIN != all.len() || body > room || table > body {
            return Err(PageFault::Malformed { at: 48 });
        }
        let end = PAGE_HEAD_LEN + body - table;
        let page = Page {
            bytes,
            kind,
            end,
            restarts,
        };
        if kind.has_entries() {
            page.check()?;
        } else if restarts != 0 {
            return Err(PageFault::Malformed { at: 54 });
        }
        Ok(page)
    }

    /// Walks through all entries once.
    fn check(&self) -> Result<(), PageFault> {
        let mut spot = Spot::default();
        let (mut at, mut count) = (PAGE_HEAD_LEN, 0);
        let mut before: Option<(Vec<u8>, u64)> = None;
        while at < self.end {
            let fault = PageFault::Malformed { at };
            if count % RESTART_EVERY == 0 {
                spot.key.clear();
                if self.restart(count / RESTART_EVERY) != Some(at) {
                    return Err(fault);
                }
            }
            self.entry_at(at, &mut spot).ok_or(fault)?;
            let child = Child::decode(self.value(&spot)).is_some();
            let fits = match self.kind {
                PageKind::Leaf => spot.kind != EntryKind::Child,
                _ => spot.kind == EntryKind::Child && child,
            };
            let ascends = before
                .as_ref()
                .is_none_or(|(key, seq)| spot.order(key, *seq) == Ordering::Greater);
            if !fits || !ascends {
                return Err(fault);
            }
            let (key, seq) = before.get_or_insert_default();
            key.clone_from(&spot.key);
            *seq = spot.seq;
            (at, count) = (spot.next, count + 1);
        }
        let empty = count == 0;
        if empty || self.restarts != count.div_ceil(RESTART_EVERY) {
            return Err(PageFault::Malformed { at: self.end });
        }
        Ok(())
    }

    /// What is in it.
    pub fn kind(&self) -> PageKind {
        self.kind
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// What a filter, attachment or pins page holds.
    pub fn raw(&self) -> &[u8] {
        &self.bytes.as_ref()[PAGE_HEAD_LEN..self.end]
    }

    /// The value of an entry of this page.
    pub fn value(&self, spot: &Spot) -> &[u8] {
        self.bytes
            .as_ref()
            .get(spot.value.clone())
            .unwrap_or_default()
    }

    /// The page that an entry of a fence or top page names.
    pub fn child(&self, spot: &Spot) -> Option<Child> {
        Child::decode(self.value(spot))
    }

    /// Goes to the first entry; false if it is a page of raw bytes, which has none.
    pub fn first(&self, spot: &mut Spot) -> bool {
        if !self.kind.has_entries() {
            return false;
        }
        spot.key.clear();
        spot.next = PAGE_HEAD_LEN;
        self.next(spot)
    }

    /// Goes to the next entry; false, and the spot as it was, if there is none.
    pub fn next(&self, spot: &mut Spot) -> bool {
        let at = spot.next;
        self.entry_at(at, spot).is_some()
    }

    /// Goes to the first entry that is not before this key and version; false if there is none.
    pub fn seek(&self, key: &[u8], seq: u64, spot: &mut Spot) -> bool {
        if !self.to_restart(key, seq, spot) {
            return false;
        }
        while spot.order(key, seq) == Ordering::Less {
            if !self.next(spot) {
                return false;
            }
        }
        true
    }

    /// Goes to the last entry that is not behind this key and version; false, and the spot on the
    /// first entry, if there is none.
    pub fn seek_last(&self, key: &[u8], seq: u64, spot: &mut Spot) -> bool {
        if !self.to_restart(key, seq, spot) || spot.order(key, seq) == Ordering::Greater {
            return false;
        }
        let mut ahead = spot.clone();
        while self.next(&mut ahead) && ahead.order(key, seq) != Ordering::Greater {
            spot.clone_from(&ahead);
        }
        true
    }

    /// Goes to the last restart that is not behind this key and version, or to the first entry.
    fn to_restart(&self, key: &[u8], seq: u64, spot: &mut Spot) -> bool {
        let (mut low, mut high) = (0, self.restarts);
        while high - low > 1 {
            let middle = low.midpoint(high);
            let behind = match self.whole_at(middle) {
                Some((at, at_seq)) => at.cmp(key).then(seq.cmp(&at_seq)) == Ordering::Greater,
                None => true,
            };
            if behind {
                high = middle;
            } else {
                low = middle;
            }
        }
        let Some(at) = self.restart(low) else {
            return false;
        };
        spot.key.clear();
        self.entry_at(at, spot).is_some()
    }

    fn restart(&self, no: usize) -> Option<usize> {
        if no >= self.restarts {
            return None;
        }
        let at = self.end + no * 4;
        let offset = self.bytes.as_ref().get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*offset) as usize)
    }

    /// Key and version of the entry at a restart, without a copy.
    fn whole_at(&self, no: usize) -> Option<(&[u8], u64)> {
        let mut rest = self.bytes.as_ref().get(self.restart(no)?..self.end)?;
        number(&mut rest)?;
        let suffix = number(&mut rest)? as usize;
        number(&mut rest)?;
        let seq = number(&mut rest)?;
        Some((rest.get(..suffix)?, seq))
    }

    /// Reads the entry at a byte; the key before it is in `spot`, which stays as it is on failure.
    fn entry_at(&self, at: usize, spot: &mut Spot) -> Option<()> {
        let mut rest = self.bytes.as_ref().get(at..self.end)?;
        if rest.is_empty() {
            return None;
        }
        let shared = usize::try_from(number(&mut rest)?).ok()?;
        let suffix = usize::try_from(number(&mut rest)?).ok()?;
        let what = number(&mut rest)?;
        let seq = number(&mut rest)?;
        let value_len = usize::try_from(what >> 2).ok()?;
        let key = rest.get(..suffix)?;
        let fits = shared <= spot.key.len() && shared + suffix <= INDEX_KEY_MAX;
        if !fits || value_len > rest.len() - suffix {
            return None;
        }
        let from = self.end - rest.len() + suffix;
        spot.key.truncate(shared);
        spot.key.extend_from_slice(key);
        spot.seq = seq;
        spot.kind = EntryKind::from_bits(what);
        spot.value = from..from + value_len;
        spot.next = from + value_len;
        Some(())
    }
}

impl RawPage {
    fn name(&self) -> PageName {
        PageName {
            device: DeviceId(self.device),
            partition: PartitionId(self.partition.get()),
            run: RunId {
                life: self.life.get(),
                no: self.no.get(),
            },
            grain: self.grain.get(),
        }
    }
}

/// How many grains the page that begins with these bytes says that it has. Nothing has vouched for
/// them yet: it is only how much to read before the CRC can be looked at.
pub fn claimed_grains(bytes: &[u8]) -> Option<u16> {
    let (raw, _) = RawPage::ref_from_prefix(bytes).ok()?;
    let grains = raw.grains.get();
    let fits = grains >= 1 && usize::from(grains) <= PAGE_MAX / GRAIN;
    (raw.magic == MAGIC && fits).then_some(grains)
}

/// Puts pages together.
#[derive(Clone, Debug, Default)]
pub struct PageBuilder {
    body: Vec<u8>,
    restarts: Vec<u32>,
    count: usize,
    last: Vec<u8>,
}

impl PageBuilder {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// Whether another entry goes in without making the page larger than pages usually are. The first
    /// one always does.
    pub fn fits(&self, key: &[u8], value_len: usize) -> bool {
        let table = 4 * (self.restarts.len() + 1);
        let more = ENTRY_HEAD_MAX + key.len() + value_len;
        let full = PAGE_HEAD_LEN + self.body.len() + table + more > PAGE_TARGET;
        self.is_empty() || !full
    }

    /// Adds an entry, which comes behind those that are in it; key and value are within
    /// [`INDEX_KEY_MAX`] and [`INDEX_VALUE_MAX`].
    pub fn push(&mut self, key: &[u8], seq: u64, kind: EntryKind, value: &[u8]) {
        let mut shared = 0;
        if self.count.is_multiple_of(RESTART_EVERY) {
            self.restarts.push((PAGE_HEAD_LEN + self.body.len()) as u32);
        } else {
            let pairs = self.last.iter().zip(key);
            shared = pairs.take_while(|(a, b)| a == b).count();
        }
        put_number(&mut self.body, shared as u64);
        put_number(&mut self.body, (key.len() - shared) as u64);
        put_number(&mut self.body, (value.len() as u64) << 2 | kind as u64);
        put_number(&mut self.body, seq);
        self.body.extend_from_slice(&key[shared..]);
        self.body.extend_from_slice(value);
        self.last.clear();
        self.last.extend_from_slice(key);
        self.count += 1;
    }

    /// Grains of the page as it is now.
    pub fn grains(&self) -> u16 {
        grains_of(self.body.len() + 4 * self.restarts.len())
    }

    /// Appends the page to `out`, and begins anew.
    pub fn finish(&mut self, name: &PageName, kind: PageKind, out: &mut Vec<u8>) {
        for restart in &self.restarts {
            self.body.extend_from_slice(&restart.to_le_bytes());
        }
        seal(name, kind, self.restarts.len() as u16, &self.body, out);
        self.body.clear();
        self.restarts.clear();
        self.last.clear();
        self.count = 0;
    }
}

/// Grains of a page that holds so many bytes.
pub fn grains_of(body_len: usize) -> u16 {
    (PAGE_HEAD_LEN + body_len).div_ceil(GRAIN) as u16
}

/// Appends a page of raw bytes to `out`; they are fewer than [`PAGE_MAX`] by the head at least.
pub fn seal_raw(name: &PageName, kind: PageKind, bytes: &[u8], out: &mut Vec<u8>) {
    seal(name, kind, 0, bytes, out);
}

fn seal(name: &PageName, kind: PageKind, restarts: u16, body: &[u8], out: &mut Vec<u8>) {
    let from = out.len();
    let grains = grains_of(body.len());
    let raw = RawPage {
        magic: MAGIC,
        crc: U32::ZERO,
        version: FORMAT_MAJOR.into(),
        kind: (kind as u16).into(),
        device: name.device.0,
        life: name.run.life.into(),
        no: name.run.no.into(),
        partition: name.partition.0.into(),
        grain: name.grain.into(),
        grains: grains.into(),
        restarts: restarts.into(),
        body_len: (body.len() as u32).into(),
        reserved: [0; 4],
    };
    out.extend_from_slice(raw.as_bytes());
    out.extend_from_slice(body);
    out.resize(from + usize::from(grains) * GRAIN, 0);
    let crc = crc32_around(&out[from..], CRC_AT);
    out[from + CRC_AT..][..4].copy_from_slice(&crc.to_le_bytes());
}

/// Seven bits a byte, the lowest first; the high bit says that more follow.
pub(crate) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(crate) fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

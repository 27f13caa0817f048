//! Writing a run: entries in, chunks of pages out.
//!
//! Invariants:
//! - a page is within one chunk, and a chunk is given out once nothing more goes into it;
//! - a fence is the shortest key that parts its page from the one before;
//! - a fence page stands right behind the leaves that it names: what is between two of them is read and
//!   merged for itself;
//! - memory is two chunks, the filter and the top fences, however many entries there are.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use ashlar_layout::ids::Seq;
use ashlar_layout::page::{
    CHUNK_MAX, Child, EntryKind, GRAIN, PageBuilder, PageKind, RunId, grains_of, seal_raw,
};
use ashlar_layout::root::{AttachmentRecord, Chunk, ObjectValue, RunRecord, Section, encode_pins};
use bytes::Bytes;

use crate::api::Config;
use crate::filter::{self, Filter};
use crate::key;
use crate::run::{Fence, Home, Run};

/// Grains of a full chunk.
pub(crate) const CHUNK_GRAINS: u32 = (CHUNK_MAX / GRAIN) as u32;
/// Bytes of a page of a filter, attachment or pins: whole blocks of the filter.
const RAW_PAGE: usize = 16 * GRAIN - ashlar_layout::page::PAGE_HEAD_LEN;

/// The address of a chunk that is not written yet.
const UNKNOWN: u64 = u64::MAX;

const _: () = assert!(RAW_PAGE.is_multiple_of(filter::BLOCK));

/// Chunks that are being filled and written.
#[derive(Clone, Debug)]
pub(crate) struct Chunks {
    home: Home,
    id: RunId,
    buf: Vec<u8>,
    /// Grains of a chunk at most.
    max: u32,
    /// Full ones, to be written.
    pub(crate) full: VecDeque<(usize, Bytes)>,
    /// All that were given out; the address is [`UNKNOWN`] until it was reported.
    chunks: Vec<Chunk>,
    known: usize,
}

impl Chunks {
    fn new(home: Home, id: RunId, max: u32) -> Self {
        Self {
            home,
            id,
            max,
            buf: Vec::new(),
            full: VecDeque::new(),
            chunks: Vec::new(),
            known: 0,
        }
    }

    /// The grain at which a page of so many grains will stand.
    fn next(&mut self, grains: u16) -> Child {
        if self.used() + u32::from(grains) > self.max {
            self.cut();
        }
        let grain = self.chunks.len() as u32 * CHUNK_GRAINS + self.used();
        Child { grain, grains }
    }

    fn used(&self) -> u32 {
        (self.buf.len() / GRAIN) as u32
    }

    /// No more goes into the present chunk.
    fn cut(&mut self) {
        if self.buf.is_empty() {
            return;
        }
        let grains = self.used() as u16;
        let bytes = Bytes::from(std::mem::take(&mut self.buf));
        self.full.push_back((self.chunks.len(), bytes));
        self.chunks.push(Chunk {
            at: UNKNOWN,
            grains,
        });
    }

    fn page(&mut self, builder: &mut PageBuilder, kind: PageKind) -> Child {
        let child = self.next(builder.grains());
        let name = self.home.name(self.id, child.grain);
        if self.buf.capacity() == 0 {
            self.buf.reserve_exact(self.max as usize * GRAIN);
        }
        builder.finish(&name, kind, &mut self.buf);
        child
    }

    fn raw_pages(&mut self, kind: PageKind, bytes: &[u8]) -> Section {
        let mut section = Section::default();
        for part in bytes.chunks(RAW_PAGE) {
            let child = self.next(grains_of(part.len()));
            let name = self.home.name(self.id, child.grain);
            seal_raw(&name, kind, part, &mut self.buf);
            section.count(child);
        }
        section
    }

    /// A chunk was written.
    pub(crate) fn written(&mut self, chunk: usize, at: u64) {
        if let Some(chunk) = self.chunks.get_mut(chunk) {
            chunk.at = at;
            self.known += 1;
        }
    }

    /// How far it is: its name, bytes in hand, chunks to be written, given out and written.
    pub(crate) fn progress(&self) -> impl std::hash::Hash + use<> {
        let counts = (self.full.len(), self.chunks.len(), self.known);
        (self.id, self.buf.len(), counts)
    }

    /// Whether all that was given out is written.
    pub(crate) fn settled(&self) -> bool {
        self.full.is_empty() && self.known == self.chunks.len()
    }
}

trait Count {
    fn count(&mut self, child: Child);
}

impl Count for Section {
    fn count(&mut self, child: Child) {
        if self.pages == 0 {
            self.grain = child.grain;
        }
        self.pages += 1;
    }
}

/// A run in the making.
#[derive(Clone, Debug)]
pub(crate) struct Builder {
    pub(crate) chunks: Chunks,
    level: u8,
    leaf: PageBuilder,
    leaf_fence: (Vec<u8>, u64),
    fence: PageBuilder,
    fence_fence: (Vec<u8>, u64),
    top: Vec<Fence>,
    filter: Filter,
    filter_bits: u32,
    last: Vec<u8>,
    entries: u64,
    tombstones: u64,
    objects: u64,
    embedded: u64,
    placed: u64,
    range: Option<(u64, u64)>,
    lowest: Vec<u8>,
    extent_size: u64,
    pins: BTreeSet<u32>,
    pins_bytes: Bytes,
    leaves_end: u32,
    /// Top, filter, pins.
    sections: [Section; 3],
}

impl Builder {
    /// For at most so many entries.
    pub(crate) fn new(home: Home, id: RunId, level: u8, entries: u64, config: &Config) -> Self {
        let bits = config.limits.filter_bits;
        Self {
            chunks: Chunks::new(home, id, config.limits.chunk_grains()),
            level,
            leaf: PageBuilder::default(),
            leaf_fence: (Vec::new(), u64::MAX),
            fence: PageBuilder::default(),
            fence_fence: (Vec::new(), u64::MAX),
            top: Vec::new(),
            filter: Filter::for_keys(entries, bits),
            filter_bits: bits,
            last: Vec::new(),
            entries: 0,
            tombstones: 0,
            objects: 0,
            embedded: 0,
            placed: 0,
            range: None,
            lowest: Vec::new(),
            extent_size: config.extent_size.max(1),
            pins: BTreeSet::new(),
            pins_bytes: Bytes::new(),
            leaves_end: 0,
            sections: Default::default(),
        }
    }

    /// Adds an entry, which comes behind those that are in it.
    pub(crate) fn push(&mut self, key: &[u8], seq: u64, kind: EntryKind, value: &[u8]) {
        if !self.leaf.fits(key, value.len()) {
            self.end_leaf();
            self.leaf_fence = parting(&self.last, key, seq);
        }
        self.leaf.push(key, seq, kind, value);
        if self.entries == 0 {
            self.lowest.extend_from_slice(key);
        }
        if self.entries == 0 || self.last != key {
            self.filter.add(filter::hash(key));
            self.last.clear();
            self.last.extend_from_slice(key);
        }
        self.entries += 1;
        self.tombstones += u64::from(kind == EntryKind::Tombstone);
        if kind == EntryKind::Object {
            self.objects += u64::from(key::is_object(key));
            if let Some((place, embedded)) = ObjectValue::inline(value) {
                self.embedded += embedded as u64;
                self.placed += place.map_or(0, |place| u64::from(place.len));
                let extent = place.map(|place| place.at / self.extent_size);
                self.pins.extend(extent.map(|extent| extent as u32));
            }
        }
        let (first, last) = self.range.unwrap_or((seq, seq));
        self.range = Some((first.min(seq), last.max(seq)));
    }

    fn end_leaf(&mut self) {
        let (key, seq) = std::mem::take(&mut self.leaf_fence);
        if !self.fence.fits(&key, Child::default().encode().len()) {
            self.end_fence();
        }
        let child = self.chunks.page(&mut self.leaf, PageKind::Leaf);
        let value = child.encode();
        if self.fence.is_empty() {
            self.fence_fence = (key.clone(), seq);
        }
        self.fence.push(&key, seq, EntryKind::Child, &value);
    }

    fn end_fence(&mut self) {
        let child = self.chunks.page(&mut self.fence, PageKind::Fence);
        let (key, seq) = std::mem::take(&mut self.fence_fence);
        let key = key.into_boxed_slice();
        self.top.push(Fence { key, seq, child });
    }

    /// No more entries come.
    pub(crate) fn finish(&mut self) {
        if self.entries == 0 {
            return;
        }
        self.end_leaf();
        self.end_fence();
        self.leaves_end = self.chunks.next(0).grain;
        let mut page = PageBuilder::default();
        let mut top = Section::default();
        for fence in &self.top {
            let value = fence.child.encode();
            if !page.fits(&fence.key, value.len()) {
                top.count(self.chunks.page(&mut page, PageKind::Top));
            }
            page.push(&fence.key, fence.seq, EntryKind::Child, &value);
        }
        top.count(self.chunks.page(&mut page, PageKind::Top));
        self.filter.fit(self.entries, self.filter_bits);
        let filter = self.filter.to_bytes();
        let filter = self.chunks.raw_pages(PageKind::Filter, &filter);
        self.pins_bytes = encode_pins(&self.pins).into();
        let pins = self.chunks.raw_pages(PageKind::Pins, &self.pins_bytes);
        self.chunks.cut();
        self.sections = [top, filter, pins];
    }

    /// The run, once all is written; none if it has no entries.
    pub(crate) fn run(&self) -> Option<Run> {
        let (first, last) = self.range?;
        let [top, filter, pins] = self.sections;
        Some(Run {
            record: RunRecord {
                id: self.chunks.id,
                origin: self.chunks.home.partition,
                level: self.level,
                entries: self.entries,
                tombstones: self.tombstones,
                objects: self.objects,
                embedded: self.embedded,
                placed: self.placed,
                first: Seq(first),
                last: Seq(last),
                lowest: self.lowest.clone(),
                highest: self.last.clone(),
                clip: Vec::new(),
                chunks: self.chunks.chunks.clone(),
                leaves_end: self.leaves_end,
                top,
                filter,
                pins,
            },
            top: Arc::new(self.top.clone()),
            filter: Some(Arc::new(self.filter.clone())),
            pins: self.pins_bytes.clone(),
        })
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> impl std::hash::Hash + use<> {
        (self.entries, self.chunks.progress())
    }

    /// The chunks that are written already, for giving up.
    pub(crate) fn written(&self) -> Vec<Chunk> {
        written(&self.chunks)
    }
}

/// What the owner gave along, in the making.
#[derive(Clone, Debug)]
pub(crate) struct AttachmentBuilder {
    pub(crate) chunks: Chunks,
    len: u64,
    pages: Section,
}

impl AttachmentBuilder {
    pub(crate) fn new(home: Home, id: RunId, bytes: &[u8], config: &Config) -> Self {
        let mut chunks = Chunks::new(home, id, config.limits.chunk_grains());
        let pages = chunks.raw_pages(PageKind::Attachment, bytes);
        chunks.cut();
        Self {
            chunks,
            len: bytes.len() as u64,
            pages,
        }
    }

    pub(crate) fn record(&self) -> AttachmentRecord {
        AttachmentRecord {
            id: self.chunks.id,
            len: self.len,
            chunks: self.chunks.chunks.clone(),
            pages: self.pages,
        }
    }

    pub(crate) fn written(&self) -> Vec<Chunk> {
        written(&self.chunks)
    }
}

fn written(chunks: &Chunks) -> Vec<Chunk> {
    let known = |chunk: &&Chunk| chunk.at != UNKNOWN;
    chunks.chunks.iter().filter(known).copied().collect()
}

/// The shortest key, with a version, that is behind all of `last` and not behind `first`.
fn parting(last: &[u8], first: &[u8], seq: u64) -> (Vec<u8>, u64) {
    let shared = last.iter().zip(first).take_while(|(a, b)| a == b).count();
    match first.get(..=shared) {
        Some(short) => (short.to_vec(), u64::MAX),
        // The same key: its versions go on in the next page.
        None => (first.to_vec(), seq),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_part() {
        assert_eq!(parting(b"abc", b"abd", 7), (b"abd".to_vec(), u64::MAX));
        assert_eq!(parting(b"abc", b"b", 7), (b"b".to_vec(), u64::MAX));
        assert_eq!(parting(b"ab", b"abcdef", 7), (b"abc".to_vec(), u64::MAX));
        assert_eq!(parting(b"ab", b"ab", 7), (b"ab".to_vec(), 7));
    }
}

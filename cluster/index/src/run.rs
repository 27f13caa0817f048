//! A run as memory knows it: where its pages are, and which keys are certainly not in it.
//!
//! Three levels lead to an entry: the *top* fences, in memory, name fence pages; a fence page names
//! leaves. So what memory holds of a run is its filter, its list of chunks and one fence for some
//! ten thousand keys, however long the keys are.
//!
//! Only a part of a run may be visible, its *clip*: what a split left of it, or a union put together.
//!
//! Invariants:
//! - a fence stands at or before the first entry of its page, and behind the last one of the page before;
//! - a run never changes, but for what is visible of it;
//! - a cursor never rests on what is not visible.

use std::cmp::Ordering;
use std::sync::Arc;

use ashlar_layout::ids::{DeviceId, PartitionId};
use ashlar_layout::page::{Child, Page, PageKind, PageName, RunId, Spot};
use ashlar_layout::root::{Chunk, RunRecord, Window, decode_pins, place};
use bytes::Bytes;

use crate::api::IndexError;
use crate::cache::{Cache, PageKey, RunName, Shared};
use crate::clip::{self, Ahead};
use crate::filter::Filter;

/// Of which device runs are, and of which partition: the one that wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Home {
    pub(crate) device: DeviceId,
    pub(crate) partition: PartitionId,
}

impl Home {
    pub(crate) fn name(&self, run: RunId, grain: u32) -> PageName {
        PageName {
            device: self.device,
            partition: self.partition,
            run,
            grain,
        }
    }
}

/// Where a fence page begins.
#[derive(Clone, Debug)]
pub(crate) struct Fence {
    pub(crate) key: Box<[u8]>,
    pub(crate) seq: u64,
    pub(crate) child: Child,
}

/// A run. What is large of it is shared by those that show different parts.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) record: RunRecord,
    pub(crate) top: Arc<Vec<Fence>>,
    /// None if it is damaged: then every key may be in the run.
    pub(crate) filter: Option<Arc<Filter>>,
    /// The extents that its entries' places are in, as the run has them.
    pub(crate) pins: Bytes,
}

impl Run {
    pub(crate) fn name(&self) -> RunName {
        name_of(&self.record)
    }

    /// Whether a key may be in it, and visible.
    pub(crate) fn may_have(&self, key: &[u8], hash: u64) -> bool {
        let record = &self.record;
        let between = *record.lowest <= *key && *key <= *record.highest;
        let filter = |f: &Arc<Filter>| f.may_have(hash);
        between && clip::sees(&record.clip, key) && self.filter.as_ref().is_none_or(filter)
    }

    /// How many of its objects are visible, about.
    pub(crate) fn objects(&self) -> u64 {
        let (clip, pages) = (&self.record.clip, self.top.len());
        if clip.is_empty() || pages == 0 {
            return self.record.objects;
        }
        let seen = self
            .spans()
            .filter(|(from, to)| clip::touches(clip, from, to));
        let share = u128::from(self.record.objects) * seen.count() as u128;
        (share / pages as u128) as u64
    }

    /// Between which keys each of its fence pages is.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let from = |at: usize| match at {
            0 => &*self.record.lowest,
            at => self.top.get(at).map_or(&*self.record.highest, |f| &*f.key),
        };
        (0..self.top.len()).map(move |at| (from(at), from(at + 1)))
    }

    /// The extents that its entries' places are in.
    pub(crate) fn pins(&self) -> Vec<u32> {
        decode_pins(&self.pins).expect("they were encoded here, or decoded when it was opened")
    }

    /// The same run, of which no more is visible than these windows show; none if that is nothing.
    pub(crate) fn clipped(&self, windows: &[Window]) -> Option<Run> {
        let record = &self.record;
        let clip = clip::meet(&record.clip, windows)?;
        if !clip::touches(&clip, &record.lowest, &record.highest) {
            return None;
        }
        let record = RunRecord {
            clip,
            ..record.clone()
        };
        Some(Run {
            record,
            ..self.clone()
        })
    }

    /// Where in its section of leaves that is which is visible: from and to a grain, ascending. What else is
    /// there belongs to the same fence pages.
    pub(crate) fn stretches(&self) -> Vec<(u32, u32)> {
        if self.record.clip.is_empty() {
            return vec![(0, self.record.leaves_end)];
        }
        let end = |fence: &Fence| fence.child.grain + u32::from(fence.child.grains);
        let mut out: Vec<(u32, u32)> = Vec::new();
        for window in &self.record.clip {
            let first = self.under(&window.from, u64::MAX);
            let last = match &*window.to {
                [] => self.top.len().saturating_sub(1),
                to => self.under(to, u64::MAX),
            };
            let from = first.checked_sub(1).map_or(0, |at| end(&self.top[at]));
            let to = self.top.get(last).map_or(0, end);
            match out.last_mut() {
                Some((_, before)) if from <= *before => *before = to,
                _ => out.push((from, to)),
            }
        }
        out
    }

    pub(crate) fn bytes(&self) -> u64 {
        bytes_of(&self.record.chunks)
    }

    pub(crate) fn memory(&self) -> usize {
        let fences = self.top.iter().map(|f| f.key.len() + size_of::<Fence>());
        let filter = self.filter.as_ref().map_or(0, |filter| filter.memory());
        fences.sum::<usize>()
            + filter
            + self.pins.len()
            + self.record.chunks.len() * size_of::<Chunk>()
            + size_of::<Run>()
    }

    pub(crate) fn page_key(&self, child: Child) -> PageKey {
        PageKey {
            run: self.name(),
            grain: child.grain,
        }
    }

    /// The top fence under which this key and version are.
    fn under(&self, key: &[u8], seq: u64) -> usize {
        let behind =
            |fence: &Fence| (*fence.key).cmp(key).then(seq.cmp(&fence.seq)) != Ordering::Greater;
        self.top.partition_point(behind).saturating_sub(1)
    }
}

pub(crate) fn name_of(record: &RunRecord) -> RunName {
    RunName {
        origin: record.origin,
        id: record.id,
    }
}

pub(crate) fn bytes_of(chunks: &[Chunk]) -> u64 {
    let grain = ashlar_layout::page::GRAIN as u64;
    chunks.iter().map(|c| u64::from(c.grains) * grain).sum()
}

/// A page that somebody needs.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) key: PageKey,
    pub(crate) child: Child,
    pub(crate) kind: PageKind,
    pub(crate) address: u64,
}

/// Gives pages that are in memory, and notes those that are not.
pub(crate) struct Pages<'a> {
    pub(crate) cache: &'a mut Cache,
    /// What the question holds already.
    pub(crate) held: &'a [(PageKey, Shared)],
    pub(crate) missing: Vec<Wanted>,
    pub(crate) error: Option<IndexError>,
    /// How many leaves more a walk wants that misses one in its course, so that it need not wait for each.
    pub(crate) ahead: usize,
    /// Whether it did.
    pub(crate) in_course: bool,
}

impl Pages<'_> {
    fn have(&mut self, key: &PageKey) -> Option<Shared> {
        let held = self.held.iter().find(|(held, _)| held == key);
        held.map(|(_, page)| page.clone())
            .or_else(|| self.cache.get(key))
    }

    /// The leaves that follow one that is missing, as far as one fence page names them.
    fn get_ahead(&mut self, run: &Run, fence: &Shared, from: &Spot) {
        self.in_course = true;
        let mut spot = from.clone();
        for _ in 0..self.ahead {
            let visible = |spot: &Spot| clip::sees(&run.record.clip, &spot.key);
            if !fence.next(&mut spot) || !visible(&spot) {
                return;
            }
            if let Some(child) = fence.child(&spot) {
                self.get(run, child, PageKind::Leaf);
            }
        }
    }

    pub(crate) fn get(&mut self, run: &Run, child: Child, kind: PageKind) -> Option<Shared> {
        let key = run.page_key(child);
        let page = self.have(&key);
        if page.is_some() {
            return page;
        }
        match place(&run.record.chunks, child) {
            Some(address) => self.missing.push(Wanted {
                key,
                child,
                kind,
                address,
            }),
            None => {
                let (run, grain) = (run.record.id, child.grain);
                self.error = Some(IndexError::NoPage { run, grain });
            }
        }
        None
    }
}

/// What a cursor points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// An entry.
    At,
    /// Nothing more is in the run.
    End,
    /// A page that is not in memory.
    Missing,
}

/// A place in a run.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    run: Arc<Run>,
    top: usize,
    fence: Option<(Child, Shared)>,
    fence_spot: Spot,
    leaf: Option<(Child, Shared)>,
    pub(crate) spot: Spot,
    pub(crate) state: State,
}

impl Cursor {
    pub(crate) fn new(run: &Arc<Run>) -> Self {
        Self {
            run: run.clone(),
            top: 0,
            fence: None,
            fence_spot: Spot::default(),
            leaf: None,
            spot: Spot::default(),
            state: State::End,
        }
    }

    /// To the first entry that is visible and not before this key and version.
    pub(crate) fn seek(&mut self, key: &[u8], seq: u64, pages: &mut Pages<'_>) {
        match clip::ahead(&self.run.record.clip, key) {
            Ahead::Here => self.seek_any(key, seq, pages),
            Ahead::From(window) => self.seek_window(window, pages),
            Ahead::Nothing => self.state = State::End,
        }
        self.skip_hidden(pages);
    }

    fn seek_window(&mut self, window: usize, pages: &mut Pages<'_>) {
        let from = self.run.record.clip[window].from.clone();
        if *from > *self.run.record.highest {
            // A range has a window of each kind of key, and not every run has a key of each.
            self.state = State::End;
            return;
        }
        self.seek_any(&from, u64::MAX, pages);
    }

    fn seek_any(&mut self, key: &[u8], seq: u64, pages: &mut Pages<'_>) {
        self.top = self.run.under(key, seq);
        let Some(fence) = self.load_fence(pages) else {
            return;
        };
        fence.seek_last(key, seq, &mut self.fence_spot);
        let Some(leaf) = self.load_leaf(pages) else {
            return;
        };
        if leaf.seek(key, seq, &mut self.spot) {
            self.state = State::At;
        } else {
            self.next_leaf(pages);
        }
    }

    /// From an entry that is not visible to the next one that is.
    fn skip_hidden(&mut self, pages: &mut Pages<'_>) {
        while self.state == State::At {
            match clip::ahead(&self.run.record.clip, &self.spot.key) {
                Ahead::Here => return,
                Ahead::From(window) => self.seek_window(window, pages),
                Ahead::Nothing => self.state = State::End,
            }
        }
    }

    /// To this key and version, which may be visible, or the next one; no further than where that key can be: one
    /// page of each kind, as a rule.
    pub(crate) fn seek_exact(&mut self, key: &[u8], seq: u64, pages: &mut Pages<'_>) {
        self.top = self.run.under(key, seq);
        let Some(fence) = self.load_fence(pages) else {
            return;
        };
        fence.seek_last(key, seq, &mut self.fence_spot);
        let Some(leaf) = self.load_leaf(pages) else {
            return;
        };
        if leaf.seek(key, seq, &mut self.spot) {
            self.state = State::At;
            return;
        }
        // The key's older versions begin the next leaf, if its fence says so.
        let mut ahead = self.fence_spot.clone();
        let goes_on = if fence.next(&mut ahead) {
            ahead.key == key
        } else {
            let next = self.run.top.get(self.top + 1);
            next.is_some_and(|fence| *fence.key == *key)
        };
        if goes_on {
            self.next_leaf(pages);
        } else {
            self.state = State::End;
        }
    }

    /// Forward to the first entry that is not before this key and version.
    pub(crate) fn forward(&mut self, key: &[u8], seq: u64, pages: &mut Pages<'_>) {
        if self.state == State::End
            || self.state == State::At && self.spot.order(key, seq) != Ordering::Less
        {
            return;
        }
        if let (State::At, Some((_, leaf))) = (self.state, &self.leaf)
            && leaf.seek(key, seq, &mut self.spot)
        {
            return self.skip_hidden(pages);
        }
        self.seek(key, seq, pages);
    }

    pub(crate) fn next(&mut self, pages: &mut Pages<'_>) {
        let more = match &self.leaf {
            Some((_, leaf)) => leaf.next(&mut self.spot),
            None => false,
        };
        if !more {
            self.next_leaf(pages);
        }
        self.skip_hidden(pages);
    }

    /// The value of the entry that it points to.
    pub(crate) fn value(&self) -> &[u8] {
        let value = self.leaf.as_ref().map(|(_, leaf)| leaf.value(&self.spot));
        value.unwrap_or_default()
    }

    /// The pages that it has.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (PageKey, Shared)> {
        let pages = self.fence.iter().chain(&self.leaf);
        pages.map(|(child, page)| (self.run.page_key(*child), page.clone()))
    }

    fn next_leaf(&mut self, pages: &mut Pages<'_>) {
        let more = match &self.fence {
            Some((_, fence)) => fence.next(&mut self.fence_spot),
            None => false,
        };
        let fence = if more {
            &*self.fence_spot.key
        } else {
            self.top += 1;
            match self.run.top.get(self.top) {
                Some(fence) => &*fence.key,
                None => {
                    self.state = State::End;
                    return;
                }
            }
        };
        // A page of which nothing is visible is not even read.
        match clip::ahead(&self.run.record.clip, fence) {
            Ahead::Here => {}
            Ahead::From(window) => return self.seek_window(window, pages),
            Ahead::Nothing => {
                self.state = State::End;
                return;
            }
        }
        if !more {
            let Some(fence) = self.load_fence(pages) else {
                return;
            };
            fence.first(&mut self.fence_spot);
        }
        if let Some(leaf) = self.load_leaf(pages) {
            leaf.first(&mut self.spot);
            self.state = State::At;
        } else if let Some((_, fence)) = &self.fence {
            pages.get_ahead(&self.run, fence, &self.fence_spot);
        }
    }

    /// Whether a page is one that it has not come to yet.
    pub(crate) fn is_before(&self, page: &PageKey) -> bool {
        let leaf = self.leaf.as_ref().map_or(0, |(child, _)| child.grain);
        self.run.name() == page.run && leaf < page.grain
    }

    fn load_fence(&mut self, pages: &mut Pages<'_>) -> Option<Shared> {
        let Some(fence) = self.run.top.get(self.top) else {
            self.state = State::End;
            return None;
        };
        load(
            &mut self.fence,
            &self.run,
            fence.child,
            PageKind::Fence,
            pages,
        )
        .or_else(|| self.miss())
    }

    fn load_leaf(&mut self, pages: &mut Pages<'_>) -> Option<Shared> {
        let (_, fence) = self.fence.as_ref()?;
        let child = fence
            .child(&self.fence_spot)
            .expect("a fence page's entries were checked when it was read");
        load(&mut self.leaf, &self.run, child, PageKind::Leaf, pages).or_else(|| self.miss())
    }

    fn miss(&mut self) -> Option<Shared> {
        self.state = State::Missing;
        None
    }
}

fn load(
    slot: &mut Option<(Child, Shared)>,
    run: &Run,
    child: Child,
    kind: PageKind,
    pages: &mut Pages<'_>,
) -> Option<Shared> {
    if let Some((at, page)) = slot
        && *at == child
    {
        return Some(page.clone());
    }
    let page = pages.get(run, child, kind)?;
    *slot = Some((child, page.clone()));
    Some(page)
}

/// Checks the bytes of a page that was read.
pub(crate) fn decode(
    device: DeviceId,
    wanted: &Wanted,
    bytes: Option<Bytes>,
) -> Result<Shared, IndexError> {
    let RunName { origin, id: run } = wanted.key.run;
    let home = Home {
        device,
        partition: origin,
    };
    let (grain, address) = (wanted.child.grain, wanted.address);
    let Some(bytes) = bytes.filter(|bytes| bytes.len() == wanted.child.len()) else {
        return Err(IndexError::Unreadable {
            run,
            grain,
            address,
        });
    };
    let page = Page::decode(bytes, &home.name(run, grain), wanted.kind);
    page.map(Arc::new).map_err(|fault| IndexError::Corrupt {
        run,
        grain,
        address,
        fault,
    })
}

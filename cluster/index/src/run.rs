//! A run as memory knows it: where its pages are, and which keys are certainly not in it.
//!
//! Three levels lead to an entry: the *top* fences, in memory, name fence pages; a fence page names
//! leaves. So what memory holds of a run is its filter, its list of chunks and one fence for some
//! ten thousand keys, however long the keys are.
//!
//! Invariants:
//! - a fence stands at or before the first entry of its page, and behind the last one of the page before;
//! - a run never changes.

use std::cmp::Ordering;
use std::sync::Arc;

use ashlar_layout::ids::{DeviceId, PartitionId};
use ashlar_layout::page::{Child, Page, PageKind, PageName, RunId, Spot};
use ashlar_layout::root::{Chunk, RunRecord, place};
use bytes::Bytes;

use crate::api::IndexError;
use crate::cache::{Cache, PageKey, Shared};
use crate::filter::Filter;

/// Of which device and partition runs are.
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

/// A run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) record: RunRecord,
    pub(crate) top: Vec<Fence>,
    /// None if it is damaged: then every key may be in the run.
    pub(crate) filter: Option<Filter>,
}

impl Run {
    pub(crate) fn id(&self) -> RunId {
        self.record.id
    }

    pub(crate) fn may_have(&self, hash: u64) -> bool {
        self.filter.as_ref().is_none_or(|f| f.may_have(hash))
    }

    pub(crate) fn bytes(&self) -> u64 {
        bytes_of(&self.record.chunks)
    }

    pub(crate) fn memory(&self) -> usize {
        let fences = self.top.iter().map(|f| f.key.len() + size_of::<Fence>());
        let filter = self.filter.as_ref().map_or(0, Filter::memory);
        fences.sum::<usize>()
            + filter
            + self.record.chunks.len() * size_of::<Chunk>()
            + size_of::<Run>()
    }

    /// The top fence under which this key and version are.
    fn under(&self, key: &[u8], seq: u64) -> usize {
        let behind =
            |fence: &Fence| (*fence.key).cmp(key).then(seq.cmp(&fence.seq)) != Ordering::Greater;
        self.top.partition_point(behind).saturating_sub(1)
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
    pub(crate) home: Home,
    pub(crate) cache: &'a mut Cache,
    /// What the question holds already.
    pub(crate) held: &'a [(PageKey, Shared)],
    pub(crate) missing: Vec<Wanted>,
    pub(crate) error: Option<IndexError>,
}

impl Pages<'_> {
    pub(crate) fn get(&mut self, run: &Run, child: Child, kind: PageKind) -> Option<Shared> {
        let key = PageKey {
            partition: self.home.partition,
            run: run.id(),
            grain: child.grain,
        };
        if let Some((_, page)) = self.held.iter().find(|(held, _)| *held == key) {
            return Some(page.clone());
        }
        if let Some(page) = self.cache.get(&key) {
            return Some(page);
        }
        match place(&run.record.chunks, child) {
            Some(address) => self.missing.push(Wanted {
                key,
                child,
                kind,
                address,
            }),
            None => {
                let (run, grain) = (run.id(), child.grain);
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

    /// To the first entry that is not before this key and version.
    pub(crate) fn seek(&mut self, key: &[u8], seq: u64, pages: &mut Pages<'_>) {
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

    /// The same, and no further than where that key can be: one page of each kind, as a rule.
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
            return;
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
    }

    /// The value of the entry that it points to.
    pub(crate) fn value(&self) -> &[u8] {
        let value = self.leaf.as_ref().map(|(_, leaf)| leaf.value(&self.spot));
        value.unwrap_or_default()
    }

    /// The pages that it has.
    pub(crate) fn pages(&self, home: Home) -> impl Iterator<Item = (PageKey, Shared)> {
        let run = self.run.id();
        let pages = self.fence.iter().chain(&self.leaf);
        pages.map(move |(child, page)| {
            let key = PageKey {
                partition: home.partition,
                run,
                grain: child.grain,
            };
            (key, page.clone())
        })
    }

    fn next_leaf(&mut self, pages: &mut Pages<'_>) {
        let more = match &self.fence {
            Some((_, fence)) => fence.next(&mut self.fence_spot),
            None => false,
        };
        if !more {
            self.top += 1;
            if self.top >= self.run.top.len() {
                self.state = State::End;
                return;
            }
            let Some(fence) = self.load_fence(pages) else {
                return;
            };
            fence.first(&mut self.fence_spot);
        }
        if let Some(leaf) = self.load_leaf(pages) {
            leaf.first(&mut self.spot);
            self.state = State::At;
        }
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
    home: Home,
    run: RunId,
    wanted: &Wanted,
    bytes: Option<Bytes>,
) -> Result<Shared, IndexError> {
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

//! Reading a section of a run from its beginning to its end, many pages at a time.
//!
//! Invariants:
//! - one read is under way at most, and at most one span and a few pages are in memory;
//! - every page is checked, those that are passed over too; one that is damaged ends it with an error.

use std::collections::VecDeque;
use std::sync::Arc;

use ashlar_layout::page::{
    GRAIN, Page, PageFault, PageKind, PageName, RunId, Spot, claimed_grains,
};
use ashlar_layout::root::{Chunk, Section};
use bytes::Bytes;

use crate::api::IndexError;
use crate::builder::CHUNK_GRAINS;
use crate::cache::Shared;
use crate::run::Home;

/// A section that is being read.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    home: Home,
    pub(crate) run: RunId,
    chunks: Vec<Chunk>,
    kind: PageKind,
    /// The next grain to be read.
    at: u32,
    /// Where it ends: at this grain,
    end: u32,
    /// or after so many pages.
    left: u32,
    /// Grains that the next page needs at the least.
    need: u32,
    grains: u32,
    under_way: Option<(u64, u32)>,
    pages: VecDeque<Shared>,
    spot: Spot,
}

/// What a span has to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// An entry.
    Entry,
    /// The next one is being read.
    Waiting,
    /// Nothing more follows.
    End,
}

impl Span {
    /// All leaves of a run.
    pub(crate) fn leaves(
        home: Home,
        run: RunId,
        chunks: &[Chunk],
        leaves_end: u32,
        span_bytes: u32,
    ) -> Self {
        let mut span = Self::section(home, run, chunks, Section::default(), PageKind::Leaf);
        span.end = leaves_end;
        span.left = u32::MAX;
        span.grains = (span_bytes / GRAIN as u32).clamp(1, CHUNK_GRAINS);
        span
    }

    /// All pages of a section.
    pub(crate) fn section(
        home: Home,
        run: RunId,
        chunks: &[Chunk],
        section: Section,
        kind: PageKind,
    ) -> Self {
        Self {
            home,
            run,
            chunks: chunks.to_vec(),
            kind,
            at: section.grain,
            end: u32::MAX,
            left: section.pages,
            need: 1,
            grains: CHUNK_GRAINS,
            under_way: None,
            pages: VecDeque::new(),
            spot: Spot::default(),
        }
    }

    fn ended(&self) -> bool {
        self.left == 0 || self.at >= self.end
    }

    /// What is to be read next, if anything: address and length. `token` will be its answer's.
    pub(crate) fn request(&mut self, token: u64) -> Result<Option<(u64, u32)>, IndexError> {
        if self.under_way.is_some() || self.ended() || self.pages.len() > 4 {
            return Ok(None);
        }
        let first = self.at % CHUNK_GRAINS;
        let chunk = self.chunks.get((self.at / CHUNK_GRAINS) as usize);
        let Some(chunk) = chunk.filter(|chunk| u32::from(chunk.grains) > first) else {
            let (run, grain) = (self.run, self.at);
            return Err(IndexError::NoPage { run, grain });
        };
        let grains = self
            .grains
            .max(self.need)
            .min(u32::from(chunk.grains) - first);
        self.under_way = Some((token, grains));
        let address = chunk.at + u64::from(first) * GRAIN as u64;
        Ok(Some((address, grains * GRAIN as u32)))
    }

    /// Whether this is the answer that it waits for.
    pub(crate) fn awaits(&self, token: u64) -> bool {
        self.under_way.is_some_and(|(own, _)| own == token)
    }

    /// Takes what was read.
    pub(crate) fn arrived(&mut self, bytes: Option<Bytes>) -> Result<(), IndexError> {
        let Some((_, grains)) = self.under_way.take() else {
            return Ok(());
        };
        let len = grains as usize * GRAIN;
        let Some(bytes) = bytes.filter(|bytes| bytes.len() == len) else {
            return Err(IndexError::Unreadable {
                run: self.run,
                grain: self.at,
                address: self.address(),
            });
        };
        let mut offset = 0;
        while offset < len && !self.ended() {
            let rest = &bytes[offset..];
            let Some(grains) = claimed_grains(rest) else {
                let name = self.home.name(self.run, self.at);
                let fault = match Page::decode_any(&rest[..GRAIN], &name) {
                    Err(fault) => fault,
                    Ok(_) => PageFault::Malformed { at: 52 },
                };
                return Err(self.corrupt(fault));
            };
            let page_len = usize::from(grains) * GRAIN;
            if page_len > rest.len() {
                // Asked for once more, whole; if the chunk ends before it, its head is rotten.
                let chunk = self.chunks.get((self.at / CHUNK_GRAINS) as usize);
                let first = self.at % CHUNK_GRAINS;
                let room = chunk.map_or(0, |c| u32::from(c.grains).saturating_sub(first));
                if u32::from(grains) > room || u32::from(grains) <= self.need {
                    let fault = PageFault::Length { got: rest.len() };
                    return Err(self.corrupt(fault));
                }
                self.need = grains.into();
                return Ok(());
            }
            let name: PageName = self.home.name(self.run, self.at);
            let page = Page::decode_any(bytes.slice(offset..offset + page_len), &name)
                .map_err(|fault| self.corrupt(fault))?;
            if page.kind() == self.kind {
                self.left -= 1;
                self.pages.push_back(Arc::new(page));
                self.begin_page();
            } else if self.kind != PageKind::Leaf || page.kind() != PageKind::Fence {
                let got = page.kind() as u16;
                return Err(self.corrupt(PageFault::OtherKind { got }));
            }
            offset += page_len;
            self.need = 1;
            self.step(grains);
        }
        Ok(())
    }

    fn step(&mut self, grains: u16) {
        self.at += u32::from(grains);
        let chunk = (self.at - 1) / CHUNK_GRAINS;
        let used = self.chunks.get(chunk as usize);
        if used.is_some_and(|used| self.at == chunk * CHUNK_GRAINS + u32::from(used.grains)) {
            self.at = (chunk + 1) * CHUNK_GRAINS;
        }
    }

    fn begin_page(&mut self) {
        if self.pages.len() == 1 && self.kind == PageKind::Leaf {
            self.pages[0].first(&mut self.spot);
        }
    }

    fn address(&self) -> u64 {
        let chunk = self.chunks.get((self.at / CHUNK_GRAINS) as usize);
        let first = u64::from(self.at % CHUNK_GRAINS) * GRAIN as u64;
        chunk.map_or(0, |chunk| chunk.at + first)
    }

    fn corrupt(&self, fault: PageFault) -> IndexError {
        IndexError::Corrupt {
            run: self.run,
            grain: self.at,
            address: self.address(),
            fault,
        }
    }

    /// What stands in front.
    pub(crate) fn front(&self) -> Front {
        match (self.pages.front(), self.ended()) {
            (Some(_), _) => Front::Entry,
            (None, false) => Front::Waiting,
            (None, true) => Front::End,
        }
    }

    /// The entry in front, and its value.
    pub(crate) fn entry(&self) -> Option<(&Spot, &[u8])> {
        let page = self.pages.front()?;
        Some((&self.spot, page.value(&self.spot)))
    }

    /// To the next entry.
    pub(crate) fn advance(&mut self) {
        let Some(page) = self.pages.front() else {
            return;
        };
        if !page.next(&mut self.spot) {
            self.pages.pop_front();
            if let Some(page) = self.pages.front() {
                page.first(&mut self.spot);
            }
        }
    }

    /// The next whole page.
    pub(crate) fn take_page(&mut self) -> Option<Shared> {
        self.pages.pop_front()
    }
}

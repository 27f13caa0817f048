//! Reading a section of a run from its beginning to its end, many pages at a time.
//!
//! Invariants:
//! - one read is under way at most, and at most one span and a few pages are in memory;
//! - every page is checked, those that are passed over too; one that is damaged ends it with an error;
//! - of leaves only what is visible of the run is shown, and as a rule only that is read.

use std::collections::VecDeque;
use std::sync::Arc;

use ashlar_layout::ids::DeviceId;
use ashlar_layout::page::{GRAIN, Page, PageFault, PageKind, PageName, Spot, claimed_grains};
use ashlar_layout::root::{Chunk, Section, Window};
use bytes::Bytes;

use crate::api::IndexError;
use crate::builder::CHUNK_GRAINS;
use crate::cache::{RunName, Shared};
use crate::clip;
use crate::run::{Home, Run};

/// A section that is being read.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    home: Home,
    pub(crate) run: RunName,
    chunks: Vec<Chunk>,
    kind: PageKind,
    /// What is visible.
    clip: Vec<Window>,
    /// The next grain to be read.
    at: u32,
    /// Where it ends: at this grain,
    end: u32,
    /// or after so many pages.
    left: u32,
    /// What is to be read after that: from and to a grain.
    stretches: VecDeque<(u32, u32)>,
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
    /// All leaves of a run of which something is visible.
    pub(crate) fn leaves(device: DeviceId, run: &Run, span_bytes: u32) -> Self {
        let (section, kind) = (Section::default(), PageKind::Leaf);
        let mut span = Self::section(device, run.name(), &run.record.chunks, section, kind);
        span.clip.clone_from(&run.record.clip);
        span.stretches = run.stretches().into();
        span.end = 0;
        span.left = u32::MAX;
        span.grains = (span_bytes / GRAIN as u32).clamp(1, CHUNK_GRAINS);
        span.next_stretch();
        span
    }

    /// All pages of a section.
    pub(crate) fn section(
        device: DeviceId,
        run: RunName,
        chunks: &[Chunk],
        section: Section,
        kind: PageKind,
    ) -> Self {
        Self {
            home: Home {
                device,
                partition: run.origin,
            },
            run,
            chunks: chunks.to_vec(),
            kind,
            clip: Vec::new(),
            stretches: VecDeque::new(),
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

    /// How far it is: the next grain, what it needs of it, what is under way, pages here, and the entry in front.
    pub(crate) fn progress(&self) -> impl std::hash::Hash {
        let spot = (self.spot.key.clone(), self.spot.seq);
        let ahead = (self.at, self.need, self.under_way);
        (self.run, ahead, self.pages.len(), spot)
    }

    fn ended(&self) -> bool {
        self.left == 0 || self.at >= self.end
    }

    /// What is to be read next, if anything: address and length, all of it in one chunk and one stretch.
    /// `token` will be its answer's.
    pub(crate) fn request(&mut self, token: u64) -> Result<Option<(u64, u32)>, IndexError> {
        if self.under_way.is_some() || self.ended() || self.pages.len() > 4 {
            return Ok(None);
        }
        let first = self.at % CHUNK_GRAINS;
        let chunk = self.chunks.get((self.at / CHUNK_GRAINS) as usize);
        let Some(chunk) = chunk.filter(|chunk| u32::from(chunk.grains) > first) else {
            let (run, grain) = (self.run.id, self.at);
            return Err(IndexError::NoPage { run, grain });
        };
        let grains = self
            .grains
            .max(self.need)
            .min(u32::from(chunk.grains) - first)
            .min(self.end - self.at);
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
                run: self.run.id,
                grain: self.at,
                address: self.address(),
            });
        };
        let mut offset = 0;
        while offset < len && !self.ended() {
            let rest = &bytes[offset..];
            let Some(grains) = claimed_grains(rest) else {
                let name = self.home.name(self.run.id, self.at);
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
            let name: PageName = self.home.name(self.run.id, self.at);
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
            self.at += u32::from(grains);
            if self.at >= self.end {
                self.next_stretch();
            } else {
                self.skip_gap();
            }
        }
        Ok(())
    }

    fn next_stretch(&mut self) {
        if let Some((from, to)) = self.stretches.pop_front() {
            (self.at, self.end) = (from, to);
            self.skip_gap();
        }
    }

    /// Behind the last page of a chunk comes the first one of the next.
    fn skip_gap(&mut self) {
        let Some(before) = self.at.checked_sub(1) else {
            return;
        };
        let chunk = before / CHUNK_GRAINS;
        let used = self.chunks.get(chunk as usize);
        if used.is_some_and(|used| self.at == chunk * CHUNK_GRAINS + u32::from(used.grains)) {
            self.at = (chunk + 1) * CHUNK_GRAINS;
        }
    }

    fn begin_page(&mut self) {
        if self.pages.len() == 1 && self.kind == PageKind::Leaf {
            self.pages[0].first(&mut self.spot);
            self.skip_hidden();
        }
    }

    /// From an entry that is not visible to the next one that is, as far as pages are here.
    fn skip_hidden(&mut self) {
        while !self.pages.is_empty() && !clip::sees(&self.clip, &self.spot.key) {
            self.step();
        }
    }

    fn address(&self) -> u64 {
        let chunk = self.chunks.get((self.at / CHUNK_GRAINS) as usize);
        let first = u64::from(self.at % CHUNK_GRAINS) * GRAIN as u64;
        chunk.map_or(0, |chunk| chunk.at + first)
    }

    fn corrupt(&self, fault: PageFault) -> IndexError {
        IndexError::Corrupt {
            run: self.run.id,
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
        self.step();
        self.skip_hidden();
    }

    fn step(&mut self) {
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

#[cfg(test)]
mod tests {
    use ashlar_layout::ids::{PartitionId, Seq};
    use ashlar_layout::page::{Child, RunId};
    use ashlar_layout::root::RunRecord;

    use super::*;
    use crate::run::Fence;

    const MIB: u64 = 1 << 20;

    /// Three fence pages of two leaves each: the first one ends a chunk that is not full.
    fn run(windows: &[(&str, &str)]) -> Run {
        let fence = |key: &str, grain| Fence {
            key: key.as_bytes().into(),
            seq: u64::MAX,
            child: Child { grain, grains: 2 },
        };
        let window = |(from, to): &(&str, &str)| Window {
            from: from.as_bytes().to_vec(),
            to: to.as_bytes().to_vec(),
        };
        let chunk = |no, grains| Chunk {
            at: no * MIB,
            grains,
        };
        Run {
            record: RunRecord {
                placed: 0,
                id: RunId { life: 1, no: 1 },
                origin: PartitionId(1),
                level: 0,
                entries: 60,
                tombstones: 0,
                objects: 60,
                embedded: 0,
                first: Seq(1),
                last: Seq(60),
                lowest: b"a".to_vec(),
                highest: b"z".to_vec(),
                clip: windows.iter().map(window).collect(),
                chunks: vec![chunk(7, 6), chunk(9, 20)],
                leaves_end: CHUNK_GRAINS + 12,
                top: Section::default(),
                filter: Section::default(),
                pins: Section::default(),
            },
            top: Arc::new(vec![
                fence("", 4),
                fence("h", CHUNK_GRAINS + 4),
                fence("p", CHUNK_GRAINS + 10),
            ]),
            filter: None,
            pins: Bytes::new(),
        }
    }

    /// What is read first, and in which stretches all of it is.
    fn reads(windows: &[(&str, &str)]) -> ((u64, u32), Vec<(u32, u32)>) {
        let run = run(windows);
        let device = DeviceId::default();
        let mut span = Span::leaves(device, &run, 1 << 20);
        let first = span.request(1).unwrap().unwrap();
        (first, run.stretches())
    }

    #[test]
    fn only_what_may_be_visible_is_read() {
        const GRAINS: u32 = GRAIN as u32;
        let (end, second) = (CHUNK_GRAINS + 12, 9 * MIB);
        assert_eq!(reads(&[]), ((7 * MIB, 6 * GRAINS), vec![(0, end)]));
        // From the second fence page's leaves on: they begin the next chunk.
        let (from, to) = (6, CHUNK_GRAINS + 6);
        assert_eq!(
            reads(&[("h", "p")]).1,
            [(from, end)],
            "it may have what is before p"
        );
        assert_eq!(
            reads(&[("h", "o")]),
            ((second, 6 * GRAINS), vec![(from, to)])
        );
        assert_eq!(reads(&[("p", "")]).1, [(to, end)]);
        assert_eq!(
            reads(&[("p", "")]).0,
            (second + 6 * GRAIN as u64, 6 * GRAINS)
        );
        // Two windows apart, and two that touch the same fence page.
        assert_eq!(reads(&[("b", "c"), ("q", "")]).1, [(0, 6), (to, end)]);
        assert_eq!(reads(&[("b", "c"), ("d", "i")]).1, [(0, to)]);
    }
}

//! Opening an index: from its root to the [`Index`], by reading filters and top fences.
//!
//! Invariants:
//! - the entries themselves are not read: the time grows with the filters, a byte and a quarter for each;
//! - a damaged filter costs reads and nothing else; damaged fences, pins or a damaged attachment end it with an
//!   error, for nothing could be said of any key, or of the extents that are needed;
//! - what the root does not name is not looked at: its space is free.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ashlar_layout::ids::Seq;
use ashlar_layout::page::{PageKind, Spot};
use ashlar_layout::root::{Chunk, Root, decode_pins};
use bytes::{Bytes, BytesMut};

use crate::api::{Action, Config, Event, IndexError};
use crate::cache::RunName;
use crate::filter::Filter;
use crate::index::Index;
use crate::run::{Fence, Run, name_of};
use crate::span::Span;

/// An index that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The index: everything up to [`Index::covered`] is in it.
    pub index: Index,
    /// What its owner had given along when it froze what the newest root says, whether that covers anything or not.
    pub attachment: Bytes,
    /// The chunks that are in use: all others of the partition are free.
    pub live: Vec<Chunk>,
    /// What was found damaged, and could be done without.
    pub findings: Vec<IndexError>,
}

#[derive(Debug)]
enum Part {
    Top(usize),
    Filter(usize),
    Pins(usize),
    Attachment,
}

#[derive(Debug)]
struct Loading {
    part: Part,
    span: Span,
    fences: Vec<Fence>,
    bytes: BytesMut,
}

/// An index that is being opened.
#[derive(Debug)]
pub struct Opening {
    pub(crate) config: Config,
    pub(crate) root: Option<Root>,
    waiting: VecDeque<Loading>,
    under_way: BTreeMap<u64, Loading>,
    pub(crate) next: u64,
    tops: BTreeMap<usize, Vec<Fence>>,
    filters: BTreeMap<usize, Filter>,
    pub(crate) pins: BTreeMap<usize, Bytes>,
    attachment: Bytes,
    findings: Vec<IndexError>,
}

impl Opening {
    /// From the partition's newest root; none if it never had one.
    pub fn new(config: Config, root: Option<&[u8]>) -> Result<Self, IndexError> {
        let root = root
            .map(|bytes| Root::decode(bytes, config.device, config.partition))
            .transpose()?;
        // A learner's that did not come to its end covers nothing: only what the owner gave along counts.
        let root = root.map(|root| match root.covered {
            Seq(0) => Root {
                runs: Vec::new(),
                ..root
            },
            _ => root,
        });
        let device = config.device;
        let mut waiting = VecDeque::new();
        let mut load = |part, span| {
            waiting.push_back(Loading {
                part,
                span,
                fences: Vec::new(),
                bytes: BytesMut::new(),
            });
        };
        for (at, run) in root.iter().flat_map(|root| root.runs.iter().enumerate()) {
            let name = name_of(run);
            let span = |section, kind| Span::section(device, name, &run.chunks, section, kind);
            load(Part::Top(at), span(run.top, PageKind::Top));
            load(Part::Filter(at), span(run.filter, PageKind::Filter));
            load(Part::Pins(at), span(run.pins, PageKind::Pins));
        }
        if let Some(it) = root.as_ref().and_then(|root| root.attachment.as_ref()) {
            let name = RunName {
                origin: config.partition,
                id: it.id,
            };
            let span = Span::section(device, name, &it.chunks, it.pages, PageKind::Attachment);
            load(Part::Attachment, span);
        }
        Ok(Self {
            config,
            root,
            waiting,
            under_way: BTreeMap::new(),
            next: 0,
            tops: BTreeMap::new(),
            filters: BTreeMap::new(),
            pins: BTreeMap::new(),
            attachment: Bytes::new(),
            findings: Vec::new(),
        })
    }

    /// Begins: the index at once, if there is nothing to be read.
    pub fn start(&mut self, out: &mut Vec<Action>) -> Option<Result<Opened, IndexError>> {
        self.go_on(out)
    }

    /// Takes in what was read: the index, once all is there.
    pub fn on_event(
        &mut self,
        event: Event,
        out: &mut Vec<Action>,
    ) -> Option<Result<Opened, IndexError>> {
        let Event::Read { token, bytes } = event else {
            return None;
        };
        let mut loading = self.under_way.remove(&token)?;
        let taken = loading.span.arrived(bytes).map(|()| loading.take());
        match (taken, &loading.part) {
            (Ok(()), _) => self.waiting.push_front(loading),
            (Err(error), Part::Filter(_)) => self.findings.push(error),
            (Err(error), _) => return Some(Err(error)),
        }
        self.go_on(out)
    }

    fn go_on(&mut self, out: &mut Vec<Action>) -> Option<Result<Opened, IndexError>> {
        while self.under_way.len() < self.config.limits.reads.max(1) {
            let Some(mut loading) = self.waiting.pop_front() else {
                break;
            };
            self.next += 1;
            let token = self.next;
            match (loading.span.request(token), &loading.part) {
                (Ok(Some((at, len))), _) => {
                    self.under_way.insert(token, loading);
                    out.push(Action::Read { token, at, len });
                }
                (Ok(None), _) => {
                    if let Err(error) = self.loaded(loading) {
                        return Some(Err(error));
                    }
                }
                (Err(error), Part::Filter(_)) => self.findings.push(error),
                (Err(error), _) => return Some(Err(error)),
            }
        }
        (self.under_way.is_empty() && self.waiting.is_empty()).then(|| Ok(self.opened()))
    }

    fn loaded(&mut self, loading: Loading) -> Result<(), IndexError> {
        match loading.part {
            Part::Top(run) => {
                self.tops.insert(run, loading.fences);
            }
            Part::Filter(run) => {
                if let Some(filter) = Filter::from_bytes(&loading.bytes) {
                    self.filters.insert(run, filter);
                }
            }
            Part::Pins(at) => {
                let bytes = loading.bytes.freeze();
                if decode_pins(&bytes).is_none() {
                    let run = self.root.as_ref().and_then(|root| root.runs.get(at));
                    let run = run.map_or_else(Default::default, |run| run.id);
                    return Err(IndexError::BadPins { run });
                }
                self.pins.insert(at, bytes);
            }
            Part::Attachment => {
                let named = self.root.as_ref().and_then(|r| r.attachment.as_ref());
                let (run, expected) = named.map_or_else(Default::default, |it| (it.id, it.len));
                let got = loading.bytes.len() as u64;
                if expected != got {
                    return Err(IndexError::Attachment { run, expected, got });
                }
                self.attachment = loading.bytes.freeze();
            }
        }
        Ok(())
    }

    fn opened(&mut self) -> Opened {
        let mut index = Index::new(self.config.clone());
        index.next = self.next;
        let mut live = Vec::new();
        if let Some(root) = self.root.take() {
            live = root.chunks().copied().collect();
            index.found_at(root.covered);
            index.generation = root.generation;
            index.versions = root.versions;
            index.attachment = root.attachment;
            let runs = root.runs.into_iter().enumerate().map(|(at, record)| {
                Arc::new(Run {
                    record,
                    top: Arc::new(self.tops.remove(&at).unwrap_or_default()),
                    filter: self.filters.remove(&at).map(Arc::new),
                    pins: self.pins.remove(&at).unwrap_or_default(),
                })
            });
            index.runs = runs.collect();
            index.runnable = true;
        }
        Opened {
            index,
            attachment: std::mem::take(&mut self.attachment),
            live,
            findings: std::mem::take(&mut self.findings),
        }
    }
}

impl Loading {
    fn take(&mut self) {
        while let Some(page) = self.span.take_page() {
            if page.kind() != PageKind::Top {
                self.bytes.extend_from_slice(page.raw());
                continue;
            }
            let mut spot = Spot::default();
            let mut more = page.first(&mut spot);
            while more {
                if let Some(child) = page.child(&spot) {
                    let key = spot.key.as_slice().into();
                    let seq = spot.seq;
                    self.fences.push(Fence { key, seq, child });
                }
                more = page.next(&mut spot);
            }
        }
    }
}

//! The index's part of a simulated device: chunks that a crash may lose, roots, and space that is used again.
//!
//! Fault model: what was not made durable by a sync that began after it was written is lost or kept by a crash,
//! chunk by chunk; a root that is under way is there afterwards or not; a page may rot on the victim's device. What
//! is freed is overwritten at once, so that whoever still reads it reads nonsense.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_cluster_index::{
    Action as IndexAction, Answer as IndexAnswer, Cache, Change, Config, Event as IndexEvent,
    Index, Item, Opened, Opening, Output, Question,
};
use bytes::Bytes;

use crate::api::{Action, Answer, Ask, Event};
use crate::sim::{Happening, MICRO, MILLI, World};
use crate::sim_device::Rng;

/// Where the first chunk stands: far from the journal.
const BASE: u64 = 1 << 40;
const CHUNK: u64 = 1 << 20;

#[derive(Clone, Debug)]
struct Chunk {
    bytes: Bytes,
    /// Its write is known to have ended.
    written: bool,
    durable: bool,
}

/// Opens an index from its newest root. None if what cannot be done without is damaged.
pub(crate) fn opened(
    config: &Config,
    root: Option<&[u8]>,
    read: impl Fn(u64, u32) -> Option<Bytes>,
) -> Option<Opened> {
    let mut opening = Opening::new(config.clone(), root).expect("a root is whole");
    let mut out = Vec::new();
    let mut opened = opening.start(&mut out);
    while opened.is_none() {
        let IndexAction::Read { token, at, len } = out.remove(0) else {
            panic!("an opening only reads")
        };
        let bytes = read(at, len);
        opened = opening.on_event(IndexEvent::Read { token, bytes }, &mut out);
    }
    opened?.ok()
}

/// All entries of an index, which goes on with what was being read for it already.
pub(crate) fn items_of(
    mut index: Index,
    under_way: impl Iterator<Item = IndexEvent>,
    read: impl Fn(u64, u32) -> Option<Bytes>,
) -> Vec<Item> {
    let mut cache = Cache::new(1 << 20);
    let mut out = Vec::new();
    for event in under_way {
        index.on_event(event, &mut cache, &mut out);
    }
    let question = Question::Items {
        after: Vec::new(),
        max_bytes: usize::MAX,
    };
    let answer = index.ask(question, None, &mut cache, &mut out);
    let result = loop {
        match &answer {
            IndexAnswer::Ready(result) => break result.clone(),
            IndexAnswer::Busy => panic!("too many questions"),
            IndexAnswer::Pending(_) => {}
        }
        let mut events = vec![IndexEvent::Turn];
        let mut done = None;
        for action in std::mem::take(&mut out) {
            match action {
                IndexAction::Done { question, result }
                    if answer == IndexAnswer::Pending(question) =>
                {
                    done = Some(result);
                }
                IndexAction::Read { token, at, len } => {
                    let bytes = read(at, len);
                    events.push(IndexEvent::Read { token, bytes });
                }
                _ => {}
            }
        }
        if let Some(result) = done {
            break result;
        }
        for event in events {
            index.on_event(event, &mut cache, &mut out);
        }
    };
    let Ok(Output::Items { items, .. }) = result else {
        panic!("{result:?}")
    };
    items
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct IndexDevice {
    chunks: BTreeMap<u64, Chunk>,
    next: u64,
    root: Option<(u64, Bytes)>,
    /// Roots that are under way.
    roots: Vec<(u64, Bytes)>,
    syncs: BTreeMap<(u32, u64), BTreeSet<u64>>,
    /// Writes that are under way, and where to.
    writes: BTreeMap<(u32, u64), u64>,
}

impl IndexDevice {
    pub(crate) fn read(&self, at: u64, len: u32) -> Option<Bytes> {
        let (start, chunk) = self.chunks.range(..=at).next_back()?;
        let from = (at - start) as usize;
        (from + len as usize <= chunk.bytes.len())
            .then(|| chunk.bytes.slice(from..from + len as usize))
    }

    /// The process ends: what becomes of what was not durable.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        self.syncs.clear();
        self.writes.clear();
        for chunk in self.chunks.values_mut().filter(|chunk| !chunk.durable) {
            if rng.one_in(2) {
                chunk.bytes = Bytes::from(vec![0xee; chunk.bytes.len()]);
            }
        }
        for root in std::mem::take(&mut self.roots) {
            if rng.one_in(2) {
                self.become_root(root);
            }
        }
    }

    fn become_root(&mut self, root: (u64, Bytes)) {
        if self
            .root
            .as_ref()
            .is_none_or(|(generation, _)| *generation < root.0)
        {
            self.root = Some(root);
        }
    }

    /// A byte of some chunk changes.
    pub(crate) fn rot(&mut self, rng: &mut Rng) {
        let nth = rng.below(self.chunks.len() as u64) as usize;
        if let Some(chunk) = self.chunks.values_mut().nth(nth) {
            let mut bytes = chunk.bytes.to_vec();
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 0x40;
            chunk.bytes = Bytes::from(bytes);
        }
    }

    /// Opens the newest root; what it does not name is free. None if what cannot be done without is damaged.
    pub(crate) fn open(&mut self, config: &Config) -> Option<(Index, Bytes)> {
        let root = self.root.as_ref().map(|(_, root)| &root[..]);
        let Opened {
            index,
            attachment,
            live,
            ..
        } = opened(config, root, |at, len| self.read(at, len))?;
        let live: BTreeSet<u64> = live.iter().map(|chunk| chunk.at).collect();
        self.chunks.retain(|at, _| live.contains(at));
        Some((index, attachment))
    }

    /// Forgets all: another device takes its place.
    pub(crate) fn clear(&mut self) {
        let next = self.next;
        *self = Self::default();
        self.next = next;
    }

    fn free(&mut self, at: u64) {
        assert!(self.chunks.remove(&at).is_some(), "freed twice: {at}");
    }
}

impl World {
    /// Carries out what an index wants.
    pub(crate) fn index_wants(&mut self, node: u8, lane: u32, action: IndexAction) {
        let process = self.nodes[usize::from(node)].process;
        let mut delay = 20 * MICRO + self.rng.below(300 * MICRO);
        if self.plan.jitter && self.rng.one_in(100) {
            delay += self.rng.below(20 * MILLI);
        }
        let device = &mut self.nodes[usize::from(node)].device.index;
        match &action {
            IndexAction::Write { token, bytes } => {
                let at = BASE + device.next * CHUNK;
                device.next += 1;
                let chunk = Chunk {
                    bytes: bytes.clone(),
                    written: false,
                    durable: false,
                };
                device.chunks.insert(at, chunk);
                device.writes.insert((lane, *token), at);
            }
            IndexAction::Sync { token } => {
                let written = device.chunks.iter().filter(|(_, chunk)| chunk.written);
                let written = written.map(|(at, _)| *at).collect();
                device.syncs.insert((lane, *token), written);
            }
            IndexAction::WriteRoot {
                generation, bytes, ..
            } => device.roots.push((*generation, bytes.clone())),
            IndexAction::Free { chunks } => {
                for chunk in chunks {
                    device.free(chunk.at);
                }
                return;
            }
            IndexAction::Read { .. } => {}
            IndexAction::Damaged(_) => return self.count("damaged pages"),
            other => panic!("not for the device: {other:?}"),
        }
        self.at(
            delay,
            Happening::Index {
                node,
                process,
                lane,
                action: action.into(),
            },
        );
    }

    /// The device has done what the index wanted.
    pub(crate) fn index_done(&mut self, node: u8, process: u64, lane: u32, action: IndexAction) {
        let held = &self.nodes[usize::from(node)];
        if held.process != process {
            return;
        }
        if self.hold_roots == Some(node) && matches!(action, IndexAction::WriteRoot { .. }) {
            let action = action.into();
            return self.at(
                MILLI,
                Happening::Index {
                    node,
                    process,
                    lane,
                    action,
                },
            );
        }
        let device = &mut self.nodes[usize::from(node)].device.index;
        let token = token_of(&action);
        let event = match action {
            IndexAction::Read { at, len, .. } => IndexEvent::Read {
                token,
                bytes: device.read(at, len),
            },
            IndexAction::Write { .. } => {
                let at = device.writes.remove(&(lane, token));
                let at = at.expect("it is under way");
                if let Some(chunk) = device.chunks.get_mut(&at) {
                    chunk.written = true;
                }
                let result = Ok(at);
                IndexEvent::Written { token, result }
            }
            IndexAction::Sync { .. } => {
                for at in device.syncs.remove(&(lane, token)).unwrap_or_default() {
                    if let Some(chunk) = device.chunks.get_mut(&at) {
                        chunk.durable = true;
                    }
                }
                IndexEvent::Synced { token, ok: true }
            }
            IndexAction::WriteRoot { generation, .. } => {
                let at = device.roots.iter().position(|(g, _)| *g == generation);
                let root = device.roots.remove(at.expect("it is under way"));
                device.become_root(root);
                IndexEvent::RootWritten { token, ok: true }
            }
            other => panic!("nothing to be done: {other:?}"),
        };
        self.count("index");
        self.tell(node, Event::Index { lane, event });
    }

    /// What is being read for a replica's indexes, as it will be told.
    fn reads_under_way(&self, node: u8) -> Vec<Event> {
        let held = &self.nodes[usize::from(node)];
        let under_way = self.under_way().filter_map(|what| match what {
            Happening::Index {
                node: of,
                process,
                lane,
                action,
            } if *of == node && *process == held.process => match **action {
                IndexAction::Read { token, at, len } => {
                    let bytes = held.device.index.read(at, len);
                    let event = IndexEvent::Read { token, bytes };
                    Some(Event::Index { lane: *lane, event })
                }
                _ => None,
            },
            _ => None,
        });
        let told = held.inbox.iter().filter(|event| {
            matches!(
                event,
                Event::Index {
                    event: IndexEvent::Read { .. },
                    ..
                }
            )
        });
        told.cloned().chain(under_way).collect()
    }

    /// What a replica would answer, without its noticing: all pages that it needs are at hand.
    pub(crate) fn peek(
        &self,
        node: u8,
        ask: Ask,
    ) -> Result<Answer, ashlar_layout::message::WireError> {
        const MINE: u64 = u64::MAX;
        let held = &self.nodes[usize::from(node)];
        let mut replica = self.replica(node).clone();
        let mut cache = Cache::new(1 << 20);
        let mut out = Vec::new();
        let now = held.clock(self.now);
        for event in self.reads_under_way(node) {
            replica.on_event(now, event, &mut cache, &mut out);
        }
        let event = Event::Ask {
            reply_to: MINE,
            ask,
        };
        replica.on_event(now, event, &mut cache, &mut out);
        loop {
            let mut reads = Vec::new();
            for action in out.drain(..) {
                match action {
                    Action::Answer { reply_to, result } if reply_to == MINE => return result,
                    Action::Index {
                        lane,
                        action: IndexAction::Read { token, at, len },
                    } => {
                        let bytes = held.device.index.read(at, len);
                        let event = IndexEvent::Read { token, bytes };
                        reads.push(Event::Index { lane, event });
                    }
                    _ => {}
                }
            }
            if reads.is_empty() {
                reads.push(Event::Turn);
            }
            for event in reads {
                replica.on_event(now, event, &mut cache, &mut out);
            }
        }
    }

    /// All that an index says, places and payloads left aside.
    pub(crate) fn contents(&self, node: u8) -> Vec<(Vec<u8>, u64, String)> {
        let device = &self.nodes[usize::from(node)].device.index;
        let replica = self.replica(node);
        let under_way = self.reads_under_way(node).into_iter();
        let under_way = under_way.filter_map(|event| match event {
            Event::Index { lane, event } if lane == replica.lane => Some(event),
            _ => None,
        });
        let items = items_of(replica.index.clone(), under_way, |at, len| {
            device.read(at, len)
        });
        let item = |item: Item| {
            let what = match item.change() {
                Ok(Change::Put { object, .. } | Change::PutVersion { object, .. }) => {
                    let (ms, manifest) = (object.modified_ms, object.manifest);
                    format!("{ms} {:?} {manifest:?}", object.tag)
                }
                other => format!("{other:?}"),
            };
            (item.key, item.version.0, what)
        };
        items.into_iter().map(item).collect()
    }
}

fn token_of(action: &IndexAction) -> u64 {
    match action {
        IndexAction::Read { token, .. }
        | IndexAction::Write { token, .. }
        | IndexAction::Sync { token }
        | IndexAction::WriteRoot { token, .. } => *token,
        other => panic!("it has no token: {other:?}"),
    }
}

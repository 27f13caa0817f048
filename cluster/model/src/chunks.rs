//! The index's part of a replica's device: chunks, and the newest root.
//!
//! Invariants:
//! - what the index wants done is done in the order given; a crash leaves of that what was done. A chunk that no
//!   sync followed is lost by it;
//! - what is freed is used again by the next write: whoever still reads it reads something else.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};

use ashlar_cluster_index::{Action, Config, Event, Index, Opened, Opening};
use bytes::Bytes;

use crate::hash;

/// Where the first chunk stands: far from the journal.
const FIRST: u64 = 1 << 40;
/// Far more than a chunk takes.
const APART: u64 = 1 << 30;

/// Bytes and a hash of them.
#[derive(Clone, Debug)]
struct Sealed {
    bytes: Bytes,
    hash: u64,
}

impl Sealed {
    fn new(bytes: Bytes) -> Self {
        let hash = hash::of(&bytes[..]);
        Self { bytes, hash }
    }
}

impl Hash for Sealed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// What an index waits for.
#[derive(Clone, Debug, Hash)]
enum Work {
    Write(Sealed),
    Sync,
    Root(u64, Sealed),
}

/// See the module.
#[derive(Clone, Debug, Default, Hash)]
pub struct Chunks {
    /// By address; and whether a crash leaves it.
    chunks: BTreeMap<u64, (Sealed, bool)>,
    root: Option<(u64, Sealed)>,
    /// On its way, with lane and token.
    under_way: VecDeque<(u32, u64, Work)>,
}

impl Chunks {
    /// Whether an index waits for something.
    pub fn waits(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Takes what an index wants; what comes of it at once, if it need not wait.
    pub fn take(&mut self, lane: u32, action: Action) -> Result<Option<Event>, String> {
        let (token, work) = match action {
            Action::Read { token, at, len } => {
                let bytes = self.read(at, len);
                return Ok(Some(Event::Read { token, bytes }));
            }
            Action::Write { token, bytes } => (token, Work::Write(Sealed::new(bytes))),
            Action::Sync { token } => (token, Work::Sync),
            Action::WriteRoot {
                token,
                generation,
                bytes,
            } => (token, Work::Root(generation, Sealed::new(bytes))),
            Action::Free { chunks } => {
                for chunk in chunks {
                    if self.chunks.remove(&chunk.at).is_none() {
                        return Err(format!("freed twice: {chunk:?}"));
                    }
                }
                return Ok(None);
            }
            other => return Err(format!("not for the device, or damage: {other:?}")),
        };
        self.under_way.push_back((lane, token, work));
        Ok(None)
    }

    /// The oldest thing under way is done: whose it was, and what is told of it.
    pub fn complete(&mut self) -> Option<(u32, Event)> {
        let (lane, token, work) = self.under_way.pop_front()?;
        let event = match work {
            Work::Write(bytes) => {
                let mut places = (0..).map(|nth| FIRST + nth * APART);
                let at = places.find(|at| !self.chunks.contains_key(at))?;
                self.chunks.insert(at, (bytes, false));
                let result = Ok(at);
                Event::Written { token, result }
            }
            Work::Sync => {
                self.chunks.values_mut().for_each(|chunk| chunk.1 = true);
                Event::Synced { token, ok: true }
            }
            Work::Root(generation, bytes) => {
                if self.root.as_ref().is_none_or(|root| root.0 < generation) {
                    self.root = Some((generation, bytes));
                }
                Event::RootWritten { token, ok: true }
            }
        };
        Some((lane, event))
    }

    /// Power is lost.
    pub fn crash(&mut self) {
        self.under_way.clear();
        self.chunks.retain(|_, chunk| chunk.1);
    }

    /// All is lost.
    pub fn lose(&mut self) {
        *self = Self::default();
    }

    fn read(&self, at: u64, len: u32) -> Option<Bytes> {
        let (start, (chunk, _)) = self.chunks.range(..=at).next_back()?;
        let from = usize::try_from(at - start).ok()?;
        let to = from.checked_add(len as usize)?;
        (to <= chunk.bytes.len()).then(|| chunk.bytes.slice(from..to))
    }

    /// Opens the newest root, if there is one: the index, and what was kept beside it. What the root does not name is
    /// free.
    pub fn open(&mut self, config: &Config) -> Result<(Index, Bytes), String> {
        let root = self.root.as_ref().map(|(_, root)| &root.bytes[..]);
        let mut opening = Opening::new(config.clone(), root).map_err(|error| error.to_string())?;
        let mut out = Vec::new();
        let mut opened = opening.start(&mut out);
        let mut reads = VecDeque::from(std::mem::take(&mut out));
        while opened.is_none() {
            let Some(Action::Read { token, at, len }) = reads.pop_front() else {
                return Err("an opening only reads".to_owned());
            };
            let bytes = self.read(at, len);
            opened = opening.on_event(Event::Read { token, bytes }, &mut out);
            reads.extend(out.drain(..));
        }
        let opened = opened.ok_or("it is not open")?;
        let Opened {
            index,
            attachment,
            live,
            ..
        } = opened.map_err(|error| error.to_string())?;
        self.chunks
            .retain(|at, _| live.iter().any(|chunk| chunk.at == *at));
        Ok((index, attachment))
    }
}

//! A simulated device: writes that a crash loses or tears, space that is used again at once, bytes that
//! rot. What a read gives is what stands there when it *ends*, which is the worst moment for a reader
//! of something that was freed.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_cluster_index::{Action, Event, WriteFailure};
use ashlar_layout::page::{CHUNK_MAX, GRAIN};
use ashlar_layout::root::Chunk;
use bytes::Bytes;

/// A small generator: the same seed gives the same run.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound.max(1)
    }

    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// A slot of one chunk.
const SLOT: u64 = CHUNK_MAX as u64;
/// Where the first one stands: an address of 0 would hide mistakes.
const BASE: u64 = 3 * SLOT;

#[derive(Clone, Debug)]
struct Slot {
    bytes: Vec<u8>,
    /// What stood there before, until what was written is durable.
    before: Option<Vec<u8>>,
}

#[derive(Debug)]
enum Io {
    Read {
        token: u64,
        at: u64,
        len: u32,
    },
    Write {
        token: u64,
        slot: u64,
    },
    Sync {
        token: u64,
        slots: Vec<u64>,
    },
    Root {
        token: u64,
        generation: u64,
        bytes: Bytes,
    },
}

/// The device, and what is under way on it.
#[derive(Debug)]
pub struct Device {
    slots: BTreeMap<u64, Slot>,
    used: BTreeSet<u64>,
    io: Vec<Io>,
    pub root: Option<(u64, Bytes)>,
    pub slots_max: u64,
    pub dice: Dice,
    pub reads: u64,
    pub writes: u64,
}

impl Device {
    pub fn new(seed: u64) -> Self {
        Self {
            slots: BTreeMap::new(),
            used: BTreeSet::new(),
            io: Vec::new(),
            root: None,
            slots_max: u64::MAX,
            dice: Dice::new(seed),
            reads: 0,
            writes: 0,
        }
    }

    /// Carries out actions; refuses a write at once if there is no room.
    pub fn submit(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Read { token, at, len } => {
                self.reads += 1;
                self.io.push(Io::Read { token, at, len });
            }
            Action::Write { token, bytes } => {
                assert!(bytes.len() <= CHUNK_MAX && bytes.len().is_multiple_of(GRAIN));
                let free = (0..).find(|slot| !self.used.contains(slot)).unwrap();
                if free >= self.slots_max {
                    let result = Err(WriteFailure::Full);
                    return Some(Event::Written { token, result });
                }
                self.writes += 1;
                self.used.insert(free);
                let before = self.slots.remove(&free).map(|slot| slot.bytes);
                let slot = Slot {
                    bytes: bytes.to_vec(),
                    before: Some(before.unwrap_or_default()),
                };
                self.slots.insert(free, slot);
                self.io.push(Io::Write { token, slot: free });
            }
            Action::Sync { token } => {
                let writing: BTreeSet<u64> = self.writing().collect();
                let slots = self.slots.keys().filter(|slot| !writing.contains(slot));
                let slots = slots.copied().collect();
                self.io.push(Io::Sync { token, slots });
            }
            Action::WriteRoot {
                token,
                generation,
                bytes,
            } => self.io.push(Io::Root {
                token,
                generation,
                bytes,
            }),
            Action::Free { chunks } => {
                for chunk in chunks {
                    let slot = slot_of(chunk.at);
                    assert!(self.used.remove(&slot), "freed twice: {chunk:?}");
                }
            }
            Action::Done { .. } | Action::Damaged(_) => unreachable!("not for the device"),
        }
        None
    }

    fn writing(&self) -> impl Iterator<Item = u64> + '_ {
        self.io.iter().filter_map(|io| match io {
            Io::Write { slot, .. } => Some(*slot),
            _ => None,
        })
    }

    /// Ends something that is under way, whichever chance takes.
    pub fn complete(&mut self) -> Option<Event> {
        if self.io.is_empty() {
            return None;
        }
        let which = self.dice.below(self.io.len() as u64) as usize;
        Some(match self.io.swap_remove(which) {
            Io::Read { token, at, len } => Event::Read {
                token,
                bytes: self.read(at, len),
            },
            Io::Write { token, slot } => Event::Written {
                token,
                result: Ok(BASE + slot * SLOT),
            },
            Io::Sync { token, slots } => {
                for slot in slots {
                    if let Some(slot) = self.slots.get_mut(&slot) {
                        slot.before = None;
                    }
                }
                Event::Synced { token, ok: true }
            }
            Io::Root {
                token,
                generation,
                bytes,
            } => {
                assert!(self.root.as_ref().is_none_or(|(g, _)| *g < generation));
                self.root = Some((generation, bytes));
                Event::RootWritten { token, ok: true }
            }
        })
    }

    pub fn idle(&self) -> bool {
        self.io.is_empty()
    }

    fn read(&self, at: u64, len: u32) -> Option<Bytes> {
        let slot = self.slots.get(&slot_of(at))?;
        let from = ((at - BASE) % SLOT) as usize;
        let bytes = slot.bytes.get(from..from + len as usize)?;
        Some(Bytes::copy_from_slice(bytes))
    }

    /// The power goes: what was not synced is lost, torn or there; a root under way is there or not.
    pub fn crash(&mut self) {
        for io in std::mem::take(&mut self.io) {
            if let Io::Root {
                generation, bytes, ..
            } = io
                && self.dice.once_in(2)
            {
                self.root = Some((generation, bytes));
            }
        }
        let dice = &mut self.dice;
        for slot in self.slots.values_mut() {
            let Some(mut before) = slot.before.take() else {
                continue;
            };
            before.resize(slot.bytes.len().max(before.len()), 0xee);
            match dice.below(3) {
                0 => {}
                1 => slot.bytes = before,
                _ => {
                    let grains = slot.bytes.chunks_mut(512).zip(before.chunks(512));
                    for (now, before) in grains {
                        if dice.once_in(2) {
                            now.copy_from_slice(&before[..now.len()]);
                        }
                    }
                }
            }
        }
    }

    /// After a crash: only what is named is in use. Gives how many slots that frees.
    pub fn keep_only(&mut self, live: &[Chunk]) -> usize {
        let live: BTreeSet<u64> = live.iter().map(|chunk| slot_of(chunk.at)).collect();
        assert!(live.is_subset(&self.used), "in use, but freed before");
        let orphans = self.used.len() - live.len();
        self.used = live;
        orphans
    }

    /// What is in use must be just this.
    pub fn check_use(&self, live: &[Chunk]) {
        let live: BTreeSet<u64> = live.iter().map(|chunk| slot_of(chunk.at)).collect();
        assert_eq!(self.used, live, "in use on the device, and in the index");
    }

    pub fn used(&self) -> usize {
        self.used.len()
    }

    /// Changes one bit of a chunk that is in use.
    pub fn rot(&mut self, chunk: &Chunk, byte: usize) {
        let slot = self.slots.get_mut(&slot_of(chunk.at)).unwrap();
        slot.bytes[byte] ^= 1 << (byte % 8);
    }
}

fn slot_of(at: u64) -> u64 {
    (at - BASE) / SLOT
}

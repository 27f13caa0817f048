//! A simulated device: writes that a crash loses or tears, space that is used again at once, bytes that
//! rot. What a read gives is what stands there when it *ends*, which is the worst moment for a reader
//! of something that was freed.

use std::collections::{BTreeMap, BTreeSet};

use ashlar_cluster_index::{Action, Event, WriteFailure};
use ashlar_layout::page::{CHUNK_MAX, GRAIN};
use ashlar_layout::root::{Chunk, Root};
use bytes::Bytes;

use crate::rig::DEVICE;

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

/// A partition on the device.
pub type Who = u32;

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
    /// Who has each slot that is in use.
    used: BTreeMap<u64, BTreeSet<Who>>,
    io: Vec<(Who, Io)>,
    /// The newest root of each partition: generation and bytes,
    pub roots: BTreeMap<Who, (u64, Bytes)>,
    /// and the slots that it names.
    named: BTreeMap<Who, BTreeSet<u64>>,
    pub slots_max: u64,
    pub chunk_max: usize,
    pub dice: Dice,
    pub reads: u64,
    pub bytes_read: u64,
    pub writes: u64,
}

impl Device {
    pub fn new(seed: u64) -> Self {
        Self {
            slots: BTreeMap::new(),
            used: BTreeMap::new(),
            io: Vec::new(),
            roots: BTreeMap::new(),
            named: BTreeMap::new(),
            slots_max: u64::MAX,
            chunk_max: CHUNK_MAX,
            dice: Dice::new(seed),
            reads: 0,
            bytes_read: 0,
            writes: 0,
        }
    }

    /// Carries out a partition's actions; refuses a write at once if there is no room.
    pub fn submit(&mut self, who: Who, action: Action) -> Option<Event> {
        match action {
            Action::Read { token, at, len } => {
                self.reads += 1;
                self.bytes_read += u64::from(len);
                self.io.push((who, Io::Read { token, at, len }));
            }
            Action::Write { token, bytes } => {
                assert!(bytes.len() <= self.chunk_max && bytes.len().is_multiple_of(GRAIN));
                let free = (0..).find(|slot| !self.used.contains_key(slot)).unwrap();
                if free >= self.slots_max {
                    let result = Err(WriteFailure::Full);
                    return Some(Event::Written { token, result });
                }
                self.writes += 1;
                self.used.insert(free, BTreeSet::from([who]));
                let before = self.slots.remove(&free).map(|slot| slot.bytes);
                let slot = Slot {
                    bytes: bytes.to_vec(),
                    before: Some(before.unwrap_or_default()),
                };
                self.slots.insert(free, slot);
                self.io.push((who, Io::Write { token, slot: free }));
            }
            Action::Sync { token } => {
                let writing: BTreeSet<u64> = self.writing().collect();
                let slots = self.slots.keys().filter(|slot| !writing.contains(slot));
                let slots = slots.copied().collect();
                self.io.push((who, Io::Sync { token, slots }));
            }
            Action::WriteRoot {
                token,
                generation,
                bytes,
            } => {
                let root = |(of, io): &(Who, Io)| *of == who && matches!(io, Io::Root { .. });
                assert!(!self.io.iter().any(root), "two roots under way");
                let io = Io::Root {
                    token,
                    generation,
                    bytes,
                };
                self.io.push((who, io));
            }
            Action::Free { chunks } => self.free(who, &chunks),
            Action::Done { .. } | Action::Damaged(_) | Action::Rooted => {
                unreachable!("not for the device")
            }
        }
        None
    }

    /// One partition needs chunks no more.
    fn free(&mut self, who: Who, chunks: &[Chunk]) {
        for chunk in chunks {
            let slot = slot_of(chunk.at);
            let named = self.named.get(&who).is_some_and(|it| it.contains(&slot));
            assert!(!named, "freed, and the durable root names it: {chunk:?}");
            let holders = self.used.get_mut(&slot).expect("freed, but not in use");
            assert!(holders.remove(&who), "freed twice: {chunk:?}");
            if holders.is_empty() {
                self.used.remove(&slot);
            }
        }
    }

    /// A partition has chunks of another one, too.
    pub fn hold(&mut self, who: Who, chunks: &[Chunk]) {
        for chunk in chunks {
            let holders = self.used.get_mut(&slot_of(chunk.at));
            let new = holders.expect("held, but not in use").insert(who);
            assert!(new, "held twice: {chunk:?}");
        }
    }

    /// A partition is gone: its chunks, its root, and what is under way for it.
    pub fn forget(&mut self, who: Who) {
        self.roots.remove(&who);
        self.named.remove(&who);
        self.used.retain(|_, holders| {
            holders.remove(&who);
            !holders.is_empty()
        });
        self.io.retain(|(of, _)| *of != who);
    }

    fn writing(&self) -> impl Iterator<Item = u64> + '_ {
        self.io.iter().filter_map(|(_, io)| match io {
            Io::Write { slot, .. } => Some(*slot),
            _ => None,
        })
    }

    /// Ends something that is under way, whichever chance takes.
    pub fn complete(&mut self) -> Option<(Who, Event)> {
        if self.io.is_empty() {
            return None;
        }
        let which = self.dice.below(self.io.len() as u64) as usize;
        let (who, io) = self.io.swap_remove(which);
        let event = match io {
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
                self.root_durable(who, generation, bytes);
                Event::RootWritten { token, ok: true }
            }
        };
        Some((who, event))
    }

    /// The same, but of what is not this read of a partition.
    pub fn complete_but(&mut self, read: u64) -> Option<(Who, Event)> {
        let kept = |io: &Io| matches!(io, Io::Read { token, .. } if *token == read);
        let (held, rest) = std::mem::take(&mut self.io)
            .into_iter()
            .partition(|(_, io)| kept(io));
        self.io = rest;
        let event = self.complete();
        self.io.extend::<Vec<_>>(held);
        event
    }

    fn root_durable(&mut self, who: Who, generation: u64, bytes: Bytes) {
        let newer = self.roots.get(&who).is_none_or(|(g, _)| *g < generation);
        assert!(newer, "a root of generation {generation} is not the newest");
        let partition = ashlar_layout::ids::PartitionId(who);
        let root = Root::decode(&bytes, DEVICE, partition).unwrap();
        let slots: Vec<u64> = root.chunks().map(|chunk| slot_of(chunk.at)).collect();
        let named: BTreeSet<u64> = slots.iter().copied().collect();
        assert_eq!(named.len(), slots.len(), "a chunk is named once");
        for slot in &named {
            let held = self.used.get(slot).is_some_and(|it| it.contains(&who));
            let durable = self.slots[slot].before.is_none();
            assert!(held && durable, "a root names what is not there");
        }
        self.named.insert(who, named);
        self.roots.insert(who, (generation, bytes));
    }

    /// How much is under way.
    pub fn under_way(&self) -> usize {
        self.io.len()
    }

    pub fn idle(&self) -> bool {
        self.io.is_empty()
    }

    /// What is being read for a partition, and what it will be.
    pub fn reading(&self, who: Who) -> Vec<(u64, Option<Bytes>)> {
        let of = self.io.iter().filter(|(of, _)| *of == who);
        of.filter_map(|(_, io)| match io {
            Io::Read { token, at, len } => Some((*token, self.read(*at, *len))),
            _ => None,
        })
        .collect()
    }

    /// What stands there.
    pub fn read(&self, at: u64, len: u32) -> Option<Bytes> {
        let slot = self.slots.get(&slot_of(at))?;
        let from = ((at - BASE) % SLOT) as usize;
        let bytes = slot.bytes.get(from..from + len as usize)?;
        Some(Bytes::copy_from_slice(bytes))
    }

    /// The power goes: what was not synced is lost, torn or there; a root under way is there or not.
    pub fn crash(&mut self) {
        for (who, io) in std::mem::take(&mut self.io) {
            if let Io::Root {
                generation, bytes, ..
            } = io
                && self.dice.once_in(2)
            {
                self.root_durable(who, generation, bytes);
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

    /// After a crash: only what is named is in use by a partition.
    pub fn keep_only(&mut self, who: Who, live: &[Chunk]) {
        let live: BTreeSet<u64> = live.iter().map(|chunk| slot_of(chunk.at)).collect();
        let used = |slot: &u64| self.used.get(slot).is_some_and(|it| it.contains(&who));
        assert!(live.iter().all(used), "in use, but freed before");
        self.used.retain(|slot, holders| {
            if !live.contains(slot) {
                holders.remove(&who);
            }
            !holders.is_empty()
        });
    }

    /// What is in use by a partition must be just this.
    pub fn check_use(&self, who: Who, live: &[Chunk]) {
        let live: BTreeSet<u64> = live.iter().map(|chunk| slot_of(chunk.at)).collect();
        let used = self
            .used
            .iter()
            .filter(|(_, holders)| holders.contains(&who));
        let used: BTreeSet<u64> = used.map(|(slot, _)| *slot).collect();
        assert_eq!(used, live, "in use on the device, and in the index");
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

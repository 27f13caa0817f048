//! Which shards nobody asks for: marks of those that were read or written since a moment, and a walk over the others.
//!
//! The marks are a Bloom filter over what the index keeps of shards' names. Who decides what follows from a shard that
//! has no mark is the auditor; here is nothing but that.
//!
//! Invariants:
//! - a shard that was asked for, or became known to the index, since the marks began has its mark; one that has none
//!   was neither. Some that were neither have one all the same: others under another salt;
//! - marks are of one life of the engine: whoever asks for those of another one is told that they are forgotten. So are
//!   those of more shards than they were made for, which hide too many: the next ones are larger;
//! - marking allocates nothing; what is gone through in one event is [`SLOTS_MAX`] slots, or somewhat more;
//! - nothing is changed on the device, and a read that fails fences nothing.
//!
//! [`SLOTS_MAX`]: crate::audit::SLOTS_MAX

use std::collections::BTreeSet;

use ashlar_layout::ids::{Incarnation, ShardId};
use ashlar_layout::record::{RecordHeader, Subject};
use ashlar_layout::stamp::{HEAD_LEN, Place};

use crate::api::{Action, IoFailure, Memory, Output};
use crate::engine::{Engine, Purpose};
use crate::error::EngineError;
use crate::index::{SLOT_LEN, ShardHash, WALK_END};

/// Bits of the filter for each shard,
const BITS: u64 = 10;
/// and how many of them are set for one: 1 in 60 that have no mark seem to have one.
const SET: u32 = 7;
/// Bits of a block of the filter, all of a shard's in one of them: a line of the processor's cache.
const BLOCK_BITS: u32 = 512;
const BLOCK_WORDS: usize = BLOCK_BITS as usize / 64;
/// Blocks at the least,
const BLOCKS_MIN: u64 = 64;
/// and at the most: 128 MiB, for 107 million shards, those among them that are written while it goes on.
const BLOCKS_MAX: u64 = 1 << 21;
/// Up to so many hundredths of what it was made for a filter is believed: 1 in 20 seem to have a mark then.
const FULL: u64 = 150;

/// What is asked of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Forget all marks, and mark from now on under this salt, which is to be a random one.
    Begin {
        /// Names these marks.
        salt: u64,
    },
    /// Say which shards have no mark, from this place in the order of the index on; 0 is the beginning.
    Unmarked {
        /// Of which marks.
        salt: u64,
        /// Where to go on.
        from: u64,
    },
    /// Say which shard stands at a place.
    Name {
        /// As [`Counted::Walked`] told it.
        place: u64,
    },
}

/// What it came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counted {
    /// It marks.
    Begun,
    /// There are no such marks: it was opened since.
    Forgotten,
    /// A part of the index was gone through.
    Walked {
        /// Places of shards that have no mark, in their order. They are the same whenever the device is opened.
        unmarked: Vec<u64>,
        /// Where to go on; none at the end.
        next: Option<u64>,
        /// Bytes of memory that were gone through.
        memory: u64,
    },
    /// The shard of a place.
    Named {
        /// Which.
        shard: ShardId,
        /// Bytes of its payload.
        bytes: u32,
    },
    /// There is none, or none any more, or its head does not say it.
    Unnamed,
}

/// Marks of shards.
pub(crate) struct Marks {
    salt: u64,
    /// Shards that were marked, but for those that seemed to be.
    set: u64,
    blocks: Box<[[u64; BLOCK_WORDS]]>,
}

fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 31)).wrapping_mul(0x7fb5_d329_728e_a185);
    let word = (word ^ (word >> 27)).wrapping_mul(0x81da_def4_bc2d_d44d);
    word ^ (word >> 33)
}

impl Marks {
    fn new(salt: u64, shards: u64) -> Marks {
        let blocks = shards.saturating_mul(BITS).div_ceil(u64::from(BLOCK_BITS));
        let blocks = blocks.clamp(BLOCKS_MIN, BLOCKS_MAX) as usize;
        Marks {
            salt,
            set: 0,
            blocks: vec![[0; BLOCK_WORDS]; blocks].into_boxed_slice(),
        }
    }

    /// The block of a place, and the bits of it in there.
    fn spot(&self, place: u64) -> (usize, [u64; BLOCK_WORDS]) {
        let one = mix(place ^ self.salt);
        let block = (u128::from(one) * self.blocks.len() as u128) >> 64;
        let (mut other, mut bits) = (mix(one ^ 0x9e37_79b9_7f4a_7c15), [0; BLOCK_WORDS]);
        for _ in 0..SET {
            let bit = other % u64::from(BLOCK_BITS);
            bits[(bit / 64) as usize] |= 1 << (bit % 64);
            other /= u64::from(BLOCK_BITS);
        }
        (block as usize, bits)
    }

    fn mark(&mut self, place: u64) {
        let (block, bits) = self.spot(place);
        let mut was_there = true;
        for (word, bits) in self.blocks[block].iter_mut().zip(bits) {
            was_there &= *word & bits == bits;
            *word |= bits;
        }
        self.set += u64::from(!was_there);
    }

    /// Whether more were marked than it was made for.
    fn is_full(&self) -> bool {
        let most = self.blocks.len() as u64 * u64::from(BLOCK_BITS) / BITS;
        self.set > most * FULL / 100
    }

    /// For how many the next one is to be made, if there are so many now: as many may be marked again.
    fn next_size(&self, shards: u64) -> u64 {
        match self.is_full() {
            true => shards.max(self.set * 2),
            false => shards.max(self.set),
        }
    }

    fn has(&self, place: u64) -> bool {
        let (block, bits) = self.spot(place);
        let mut words = self.blocks[block].iter().zip(bits);
        words.all(|(word, bits)| word & bits == bits)
    }
}

/// A record whose head is read because nobody knows its name.
#[derive(Clone, Copy)]
pub(crate) struct Naming {
    pub op: u64,
    place: u64,
    block: u64,
    life: Incarnation,
}

impl<M: Memory> Engine<M> {
    /// A shard is asked for, or is there now.
    pub(crate) fn mark(&mut self, shard: &ShardId) {
        if let Some(marks) = &mut self.marks {
            marks.mark(self.index.hash(shard).place());
        }
    }

    pub(crate) fn take_census(
        &mut self,
        op: u64,
        ask: Ask,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<(), EngineError> {
        self.accepting()?;
        let counted = match ask {
            Ask::Begin { salt } => {
                let shards = self.index.len();
                let shards = self.marks.take().map_or(shards, |it| it.next_size(shards));
                self.marks = Some(Marks::new(salt, shards));
                Counted::Begun
            }
            Ask::Unmarked { salt, from } => self.unmarked(salt, from),
            Ask::Name { place } => match self.name(op, place, mem, out)? {
                true => return Ok(()),
                false => Counted::Unnamed,
            },
        };
        let result = Ok(Output::Counted(counted));
        out.push(Action::Done { op, result });
        Ok(())
    }

    fn unmarked(&self, salt: u64, from: u64) -> Counted {
        let believed = |marks: &&Marks| marks.salt == salt && !marks.is_full();
        let Some(marks) = self.marks.as_ref().filter(believed) else {
            return Counted::Forgotten;
        };
        let to = self.index.walk_to(from, self.audit.most.1);
        let (mut slots, mut unmarked) = (0, BTreeSet::new());
        for (hash, _) in self.index.walk(from, to) {
            slots += 1;
            // A shard and its copy are one.
            if !marks.has(hash.place()) {
                unmarked.insert(hash.place());
            }
        }
        Counted::Walked {
            unmarked: unmarked.into_iter().collect(),
            next: (to < WALK_END).then_some(to),
            memory: slots * SLOT_LEN as u64,
        }
    }

    /// Reads the head of what stands at a place; false if nothing does.
    fn name(
        &mut self,
        op: u64,
        place: u64,
        mem: &mut M,
        out: &mut Vec<Action<M::Buf>>,
    ) -> Result<bool, EngineError> {
        let hash = ShardHash::of_place(place.min(WALK_END - 1));
        let Some(candidate) = self.index.candidates(hash).next() else {
            return Ok(false);
        };
        let (address, reach) = self.reach(candidate);
        let Some(no) = self.geometry.extent_of(address) else {
            return Ok(false);
        };
        let block = u64::from(self.geometry.block_size);
        let len = block.max(HEAD_LEN as u64).min(reach) as usize;
        let Some(buf) = mem.alloc(len) else {
            return Err(self.no_buffer());
        };
        let io = self.io(Purpose::Name(Naming {
            op,
            place: hash.place(),
            block: candidate.block,
            life: self.extents.get(no).incarnation,
        }));
        out.push(Action::Read {
            io,
            offset: address,
            buf,
            len,
        });
        Ok(true)
    }

    /// The head of a record was read.
    pub(crate) fn name_read(
        &mut self,
        naming: Naming,
        result: Result<(), IoFailure>,
        buf: Option<M::Buf>,
        out: &mut Vec<Action<M::Buf>>,
    ) {
        let bytes = result.ok().and(buf);
        let named = bytes.and_then(|bytes| self.named(naming, &bytes));
        let result = Ok(Output::Counted(named.unwrap_or(Counted::Unnamed)));
        let op = naming.op;
        out.push(Action::Done { op, result });
    }

    fn named(&self, naming: Naming, bytes: &[u8]) -> Option<Counted> {
        let Naming {
            place, block, life, ..
        } = naming;
        let address = block * u64::from(self.geometry.block_size);
        let stamp = Place {
            device: self.device,
            extent: self.geometry.extent_of(address)?,
            incarnation: Some(life),
            address,
        };
        let header = RecordHeader::decode(bytes, &stamp).ok()?;
        let Subject::Shard(shard) = header.subject else {
            return None;
        };
        let hash = self.index.hash(&shard);
        // It may have been copied or deleted meanwhile, or its deletion be known by its name only.
        let stands = hash.place() == place
            && self.index.contains(hash, block)
            && !self.shadows.contains(&shard)
            && !self.deleting.contains_key(&shard);
        let bytes = header.payload_len;
        stands.then_some(Counted::Named { shard, bytes })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a set that is exact: what was marked is, and of what was not few seem to be.
        #[test]
        fn what_was_marked_has_its_mark(
            salt: u64,
            places in prop::collection::hash_set(0..WALK_END, 1..3000),
            others in prop::collection::vec(0..WALK_END, 1000),
        ) {
            let mut marks = Marks::new(salt, places.len() as u64);
            prop_assert!(!places.iter().any(|place| marks.has(*place)));
            for place in &places {
                marks.mark(*place);
            }
            prop_assert!(places.iter().all(|place| marks.has(*place)));
            let seem = others.iter().filter(|place| !places.contains(place) && marks.has(**place));
            prop_assert!(seem.count() < 100);
        }
    }

    #[test]
    fn another_salt_hides_others() {
        let hidden = |salt| -> BTreeSet<u64> {
            let mut marks = Marks::new(salt, 100_000);
            let place = |number: u64| mix(number) % WALK_END;
            (0..100_000).for_each(|number| marks.mark(place(number)));
            let others = (200_000..210_000).map(place);
            others.filter(|place| marks.has(*place)).collect()
        };
        let (one, other) = (hidden(1), hidden(2));
        assert!((20..400).contains(&one.len()), "{}", one.len());
        assert!((20..400).contains(&other.len()), "{}", other.len());
        assert!(one.intersection(&other).count() < 20);
    }

    /// What is written while it goes on is marked as well.
    #[test]
    fn one_that_is_too_full_is_not_believed_and_the_next_one_is_larger() {
        let mut marks = Marks::new(1, 100_000);
        let mark = |marks: &mut Marks, numbers: std::ops::Range<u64>| {
            numbers.for_each(|number| marks.mark(mix(number) % WALK_END));
        };
        mark(&mut marks, 0..140_000);
        mark(&mut marks, 0..140_000);
        assert!(!marks.is_full(), "{}", marks.set);
        assert!((130_000..=140_000).contains(&marks.next_size(100_000)));
        mark(&mut marks, 140_000..700_000);
        assert!(marks.is_full());
        let larger = Marks::new(2, marks.next_size(100_000));
        assert!(larger.blocks.len() > marks.blocks.len() * 3);
        assert_eq!(Marks::new(3, 0).next_size(7), 7);
    }

    #[test]
    fn as_large_as_it_may_be() {
        let blocks = |shards| Marks::new(0, shards).blocks.len() as u64;
        assert_eq!(blocks(0), BLOCKS_MIN);
        assert_eq!(blocks(1_000_000), 19_532);
        assert_eq!(blocks(u64::MAX), BLOCKS_MAX);
    }
}

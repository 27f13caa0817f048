//! Where each shard is: at most 16 bytes of memory a shard, slack of the table included.
//!
//! A slot is 11 bytes: the record's block address (40 bits), its length in units of 4 KiB, rounded
//! up (11 bits), and a tag (37 bits of the shard's hash). Ten further bits of the hash choose one
//! of 1024 segments; each is a table of its own with linear probing, so that growing one copies a
//! thousandth of the index. A shard's name is not kept: what a slot points to is a *candidate*,
//! which the record's header on the device confirms.
//!
//! Invariants:
//! - slots of one hash are counted: those behind the first are doubles (a shard's old record and its copy, or a
//!   collision);
//! - every shard that was inserted and not removed is among the candidates of its hash; so may be
//!   a few others (a 47-bit collision), and the same shard twice;
//! - a slot's home is computed from its tag alone, so a table grows without a look at the device;
//! - there is no gap between a slot's home and its place (removal shifts back), so a probe ends at
//!   the first gap;
//! - a table is filled between 69 % and 90 % once it holds more than a few slots: 12.3 to 15.9 bytes.

use ashlar_layout::ids::{DeviceId, ShardId};

const SEGMENT_BITS: u32 = 10;
const SEGMENTS: usize = 1 << SEGMENT_BITS;
/// Bytes of a slot.
pub(crate) const SLOT_LEN: usize = 11;
const ADDRESS_BITS: u32 = 40;
const UNIT_BITS: u32 = 11;
const TAG_BITS: u32 = 37;
/// Hashes that a segment is for, and all of them together, as a walk counts them: by what is kept of each.
pub(crate) const WALK_SEGMENT: u64 = 1 << TAG_BITS;
pub(crate) const WALK_END: u64 = WALK_SEGMENT << SEGMENT_BITS;
/// A table this small is not shrunk.
const SLOTS_MIN: u32 = 8;

/// Bytes of the unit that a record's length is kept in.
pub const UNIT: u64 = 4096;

const _: () = assert!(ADDRESS_BITS + UNIT_BITS + TAG_BITS == SLOT_LEN as u32 * 8);
const _: () = assert!(SEGMENT_BITS + TAG_BITS <= 64);
const _: () = assert!(
    (ashlar_layout::limits::SHARD_SIZE_MAX as u64 + 16 * UNIT) / UNIT < 1 << UNIT_BITS,
    "the largest record's length fits into a slot"
);

/// Where a shard may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Block number of the record on the device.
    pub block: u64,
    /// The record's length in [`UNIT`]s, rounded up; never 0.
    pub units: u16,
}

/// Hash of a shard's name under this index' seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShardHash(u64);

impl ShardHash {
    fn segment(self) -> usize {
        (self.0 >> (64 - SEGMENT_BITS)) as usize
    }

    fn tag(self) -> u64 {
        (self.0 >> (64 - SEGMENT_BITS - TAG_BITS)) & ((1 << TAG_BITS) - 1)
    }

    /// What is kept of it: its place in a walk.
    pub(crate) fn place(self) -> u64 {
        self.0 >> (64 - SEGMENT_BITS - TAG_BITS)
    }

    /// As far as it is kept, the hash of this place.
    pub(crate) fn of_place(place: u64) -> ShardHash {
        ShardHash(place << (64 - SEGMENT_BITS - TAG_BITS))
    }
}

/// The index of one device.
pub struct Index {
    segments: Vec<Segment>,
    seeds: [u64; 2],
    len: u64,
    /// Slots whose hash another one has, too, but for one of each hash.
    doubles: u64,
}

#[derive(Default)]
struct Segment {
    slots: Box<[u8]>,
    len: u32,
}

#[derive(Clone, Copy)]
struct Slot {
    tag: u64,
    candidate: Candidate,
}

impl Index {
    /// An empty one. The device's name, which is random, is the seed, so that nobody outside can
    /// choose names that collide.
    pub fn new(device: DeviceId) -> Index {
        let (a, b) = device.0.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().fold(0u64, |w, b| w << 8 | u64::from(*b));
        let segments = (0..SEGMENTS).map(|_| Segment::default()).collect();
        Index {
            segments,
            seeds: [word(a), word(b)],
            len: 0,
            doubles: 0,
        }
    }

    /// The hash of a shard's name.
    pub fn hash(&self, shard: &ShardId) -> ShardHash {
        let a = fold(
            shard.stripe.writer ^ self.seeds[0],
            0x9e37_79b9_7f4a_7c15 ^ self.seeds[1],
        );
        let b = fold(
            shard.stripe.attempt ^ a,
            0xd6e8_feb8_6659_fd93 ^ self.seeds[0],
        );
        ShardHash(fold(
            b ^ u64::from(shard.index),
            0xff51_afd7_ed55_8ccd ^ self.seeds[1],
        ))
    }

    /// Slots in use.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Slots in use, those of one hash counted once: how many shards there are, but for collisions.
    pub fn shards(&self) -> u64 {
        self.len - self.doubles
    }

    /// Whether no slot is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that the tables take.
    pub fn memory_bytes(&self) -> u64 {
        let tables: usize = self
            .segments
            .iter()
            .map(|segment| segment.slots.len())
            .sum();
        (tables + SEGMENTS * size_of::<Segment>() + size_of::<Index>()) as u64
    }

    /// Makes room for `count` slots in all, so that filling an empty index copies nothing.
    pub fn reserve(&mut self, count: u64) {
        let each = count / SEGMENTS as u64;
        // 5 standard deviations more than the mean: segments fill unevenly.
        let each = each + 5 * each.isqrt();
        let capacity = u32::try_from(each * 10 / 9 + 1).unwrap_or(u32::MAX);
        for segment in &mut self.segments {
            if segment.capacity() < capacity {
                segment.resize(capacity.max(SLOTS_MIN));
            }
        }
    }

    /// Gives back what [`Index::reserve`] took too much of.
    pub fn trim(&mut self) {
        for segment in &mut self.segments {
            segment.shrink();
        }
    }

    /// Adds a place. `units` is not 0, and `block` fits into 40 bits: see [`Index::fits`].
    pub fn insert(&mut self, hash: ShardHash, candidate: Candidate) {
        debug_assert!(Index::fits(candidate));
        let double = self.segments[hash.segment()].insert(Slot {
            tag: hash.tag(),
            candidate,
        });
        self.len += 1;
        self.doubles += u64::from(double);
    }

    /// Whether a slot can hold it: true for all records of all geometries.
    pub fn fits(candidate: Candidate) -> bool {
        candidate.units != 0
            && u32::from(candidate.units) < 1 << UNIT_BITS
            && candidate.block < 1 << ADDRESS_BITS
    }

    /// Where the shard may be.
    pub fn candidates(&self, hash: ShardHash) -> impl Iterator<Item = Candidate> + '_ {
        let tag = hash.tag();
        self.segments[hash.segment()]
            .probe(tag)
            .filter(move |(_, slot)| slot.tag == tag)
            .map(|(_, slot)| slot.candidate)
    }

    /// Up to where to go from here, so that it is about so many slots. Places are hashes, so that they mean the same
    /// whatever becomes of the tables.
    pub(crate) fn walk_to(&self, from: u64, slots: u64) -> u64 {
        let (mut to, mut left) = (from, slots.max(1));
        while to < WALK_END && left > 0 {
            let len = self.table_of(to).map_or(0, |table| u64::from(table.len));
            let rest = WALK_SEGMENT - to % WALK_SEGMENT;
            // Hashes are even in their segment.
            let slots = (u128::from(len) * u128::from(rest)).div_ceil(u128::from(WALK_SEGMENT));
            if slots <= u128::from(left) {
                to += rest;
                left -= slots as u64;
            } else {
                let part = u128::from(WALK_SEGMENT) * u128::from(left) / u128::from(len);
                to += (part as u64).clamp(1, rest);
                left = 0;
            }
        }
        to
    }

    fn table_of(&self, place: u64) -> Option<&Segment> {
        self.segments.get((place / WALK_SEGMENT) as usize)
    }

    /// The slots whose hashes are in this part of a walk, with what [`Index::hash`] gives for their shards, as far as
    /// that is kept. Each is in one part only.
    pub(crate) fn walk(
        &self,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = (ShardHash, Candidate)> + '_ {
        let to = to.min(WALK_END);
        let segments = from / WALK_SEGMENT..to.div_ceil(WALK_SEGMENT);
        segments.flat_map(move |segment| {
            let start = segment * WALK_SEGMENT;
            let tags = from.max(start) - start..(to - start).min(WALK_SEGMENT);
            let table = self.table_of(start);
            let slots = table
                .into_iter()
                .flat_map(move |table| table.between(tags.clone()));
            slots.map(move |slot| (ShardHash::of_place(start | slot.tag), slot.candidate))
        })
    }

    /// Whether this very place is still there.
    pub fn contains(&self, hash: ShardHash, block: u64) -> bool {
        self.candidates(hash)
            .any(|candidate| candidate.block == block)
    }

    /// Takes a place out; false if it is not there.
    pub fn remove(&mut self, hash: ShardHash, block: u64) -> bool {
        let double = self.candidates(hash).nth(1).is_some();
        let removed = self.segments[hash.segment()].remove(hash.tag(), block);
        self.len -= u64::from(removed);
        self.doubles -= u64::from(removed && double);
        removed
    }
}

/// Both halves of a product, folded: mixes every bit of `a` into every bit of the result.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0x2545_f491_4f6c_dd1d) * u128::from(b | 1);
    let mixed = (product as u64) ^ ((product >> 64) as u64);
    // One product leaves the low bits of small inputs poor; a second one does not.
    let product = u128::from(mixed ^ (mixed >> 29)) * u128::from(0x9fb2_1c65_1e98_df25_u64);
    (product as u64) ^ ((product >> 64) as u64)
}

impl Segment {
    fn capacity(&self) -> u32 {
        (self.slots.len() / SLOT_LEN) as u32
    }

    /// The home of a tag: monotone in it, so that growing copies from front to back.
    fn home(&self, tag: u64) -> u32 {
        ((u128::from(tag) * u128::from(self.capacity())) >> TAG_BITS) as u32
    }

    fn next(&self, at: u32) -> u32 {
        if at + 1 == self.capacity() { 0 } else { at + 1 }
    }

    fn get(&self, at: u32) -> Option<Slot> {
        let start = at as usize * SLOT_LEN;
        let mut bytes = [0u8; 16];
        bytes[..SLOT_LEN].copy_from_slice(&self.slots[start..start + SLOT_LEN]);
        let word = u128::from_le_bytes(bytes);
        let units = ((word >> ADDRESS_BITS) & ((1 << UNIT_BITS) - 1)) as u16;
        (units != 0).then_some(Slot {
            tag: (word >> (ADDRESS_BITS + UNIT_BITS)) as u64,
            candidate: Candidate {
                block: (word & ((1 << ADDRESS_BITS) - 1)) as u64,
                units,
            },
        })
    }

    fn put(&mut self, at: u32, slot: Option<Slot>) {
        let word = slot.map_or(0, |slot| {
            u128::from(slot.candidate.block)
                | u128::from(slot.candidate.units) << ADDRESS_BITS
                | u128::from(slot.tag) << (ADDRESS_BITS + UNIT_BITS)
        });
        let start = at as usize * SLOT_LEN;
        self.slots[start..start + SLOT_LEN].copy_from_slice(&word.to_le_bytes()[..SLOT_LEN]);
    }

    /// The slots from the tag's home to the first gap.
    fn probe(&self, tag: u64) -> impl Iterator<Item = (u32, Slot)> + '_ {
        let mut at = if self.slots.is_empty() {
            None
        } else {
            Some(self.home(tag))
        };
        let mut left = self.capacity();
        std::iter::from_fn(move || {
            let here = at?;
            if left == 0 {
                return None;
            }
            left -= 1;
            at = Some(self.next(here));
            self.get(here).map(|slot| (here, slot))
        })
    }

    /// The slots of these tags: they stand between the first one's home and the first gap behind the last one's.
    fn between(&self, tags: std::ops::Range<u64>) -> impl Iterator<Item = Slot> + '_ {
        let capacity = self.capacity();
        let some = capacity > 0 && !tags.is_empty();
        let (first, last) = match some {
            true => (self.home(tags.start), self.home(tags.end - 1)),
            false => (0, 0),
        };
        let surely = last - first;
        let mut at = first;
        let places = if some { capacity } else { 0 };
        let all = (0..places).map_while(move |nth| {
            let here = self.get(at);
            at = self.next(at);
            // Behind the last one's home it is over with a gap.
            (here.is_some() || nth < surely).then_some(here)
        });
        all.flatten().filter(move |slot| tags.contains(&slot.tag))
    }

    /// Whether the tag was there already.
    fn insert(&mut self, slot: Slot) -> bool {
        let capacity = self.capacity();
        if (u64::from(self.len) + 1) * 10 > u64::from(capacity) * 9 {
            self.resize((capacity + capacity / 4).max(capacity + 1).max(SLOTS_MIN));
        }
        self.len += 1;
        self.place(slot)
    }

    /// All slots of its tag stand between the tag's home and the first gap.
    fn place(&mut self, slot: Slot) -> bool {
        let mut at = self.home(slot.tag);
        let mut known = false;
        while let Some(there) = self.get(at) {
            known |= there.tag == slot.tag;
            at = self.next(at);
        }
        self.put(at, Some(slot));
        known
    }

    fn remove(&mut self, tag: u64, block: u64) -> bool {
        let found = self
            .probe(tag)
            .find(|(_, slot)| slot.tag == tag && slot.candidate.block == block);
        let Some((mut gap, _)) = found else {
            return false;
        };
        // Move each later slot of the run into the gap, unless that is before its home.
        let mut at = gap;
        loop {
            at = self.next(at);
            let Some(slot) = self.get(at).filter(|_| at != gap) else {
                break;
            };
            let home = self.home(slot.tag);
            let from_home = |place: u32| (place + self.capacity() - home) % self.capacity();
            if from_home(gap) <= from_home(at) {
                self.put(gap, Some(slot));
                gap = at;
            }
        }
        self.put(gap, None);
        self.len -= 1;
        self.shrink();
        true
    }

    fn shrink(&mut self) {
        let capacity = self.capacity();
        if capacity > SLOTS_MIN && u64::from(self.len) * 100 < u64::from(capacity) * 69 {
            let smaller = (self.len + self.len / 4 + 1).max(SLOTS_MIN);
            if smaller < capacity {
                self.resize(smaller);
            }
        }
    }

    fn resize(&mut self, capacity: u32) {
        let room = vec![0; capacity as usize * SLOT_LEN].into_boxed_slice();
        let old = std::mem::replace(&mut self.slots, room);
        let old = Segment {
            slots: old,
            len: self.len,
        };
        for at in 0..old.capacity() {
            if let Some(slot) = old.get(at) {
                self.place(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use ashlar_layout::ids::StripeId;
    use proptest::prelude::*;

    use super::*;

    fn shard(number: u64) -> ShardId {
        ShardId {
            stripe: StripeId {
                writer: number / 1000,
                attempt: number / 6,
            },
            index: (number % 6) as u16,
        }
    }

    #[test]
    fn at_most_16_bytes_a_shard_from_one_million_on_growing_and_shrinking() {
        let mut index = Index::new(DeviceId([7; 16]));
        let at = |number: u64| Candidate {
            block: number * 2,
            units: 2,
        };
        let mut worst = 0.0f64;
        for number in 0..1_700_000 {
            index.insert(index.hash(&shard(number)), at(number));
            if number > 1_000_000 && number % 10_007 == 0 {
                worst = worst.max(index.memory_bytes() as f64 / index.len() as f64);
            }
        }
        assert!(worst <= 16.0, "{worst} bytes a shard while growing");
        for number in 0..600_000 {
            assert!(index.remove(index.hash(&shard(number)), number * 2));
            if number % 10_007 == 0 {
                worst = worst.max(index.memory_bytes() as f64 / index.len() as f64);
            }
        }
        assert!(worst <= 16.0, "{worst} bytes a shard while shrinking");
        assert!(
            worst > 11.0,
            "a slot alone takes 11 bytes: nothing was measured"
        );
        for number in 0..1_700_000 {
            let there = index.contains(index.hash(&shard(number)), number * 2);
            assert_eq!(there, number >= 600_000, "shard {number}");
        }
    }

    #[test]
    fn a_reserved_index_is_within_the_bound_once_trimmed() {
        let mut index = Index::new(DeviceId([9; 16]));
        index.reserve(1_000_000);
        let empty = index.memory_bytes();
        for number in 0..1_000_000 {
            index.insert(
                index.hash(&shard(number)),
                Candidate {
                    block: number,
                    units: 1,
                },
            );
        }
        assert_eq!(index.memory_bytes(), empty, "reserving spared all growth");
        index.trim();
        assert!(index.memory_bytes() <= 16 * index.len());
    }

    #[test]
    fn names_that_count_up_spread_evenly() {
        let index = Index::new(DeviceId([0; 16]));
        let mut counts = vec![0u32; SEGMENTS];
        let mut tags = std::collections::HashSet::new();
        for number in 0..200_000 {
            let hash = index.hash(&shard(number));
            counts[hash.segment()] += 1;
            tags.insert((hash.segment(), hash.tag()));
        }
        assert_eq!(tags.len(), 200_000, "47 bits do not collide among so few");
        assert!(
            counts.iter().all(|count| (110..290).contains(count)),
            "195 in each on average"
        );
    }

    /// Whatever grows or shrinks between its parts, a walk comes by all that was there all the time.
    #[test]
    fn a_walk_of_even_parts_that_a_change_does_not_break() {
        let mut index = Index::new(DeviceId([5; 16]));
        let at = |block| Candidate { block, units: 1 };
        for number in 0..400_000 {
            index.insert(index.hash(&shard(number)), at(number));
        }
        let (mut from, mut parts, mut seen) = (0, 0, vec![0u8; 400_000]);
        while from < WALK_END {
            let to = index.walk_to(from, 100);
            let mut slots = 0;
            for (_, candidate) in index.walk(from, to) {
                slots += 1;
                if let Some(seen) = seen.get_mut(candidate.block as usize) {
                    *seen += 1;
                }
            }
            assert!(slots < 200, "{slots} in one part");
            (from, parts) = (to, parts + 1);
            // Tables grow to the middle of it, and shrink from there on.
            if parts < 2000 {
                for number in (0..200).map(|n| 400_000 + parts * 200 + n) {
                    index.insert(index.hash(&shard(number)), at(number));
                }
            } else {
                for number in (0..300).map(|n| 400_000 + (parts - 2000) * 300 + n) {
                    index.remove(index.hash(&shard(number)), number);
                }
            }
        }
        assert!(parts > 4000, "{parts}");
        assert!(seen.iter().all(|times| *times == 1));
    }

    proptest! {
        /// Against a map, with tags so few that they collide all the time.
        #[test]
        fn like_a_map_of_sets(steps in prop::collection::vec((0u64..40, 0u64..6, any::<bool>()), 0..400)) {
            let mut index = Index::new(DeviceId([3; 16]));
            let mut model: HashMap<u64, Vec<u64>> = HashMap::new();
            for (number, block, add) in steps {
                // All in one segment, and the tags at its very ends: runs wrap round.
                let last = (1 << TAG_BITS) - 1;
                let tag = if number % 2 == 0 { number } else { last - number };
                let hash = ShardHash(tag << (64 - SEGMENT_BITS - TAG_BITS));
                let blocks = model.entry(hash.tag()).or_default();
                if add && !blocks.contains(&block) {
                    index.insert(hash, Candidate { block, units: 1 + (block as u16) });
                    blocks.push(block);
                } else if !add {
                    let found = blocks.iter().position(|b| *b == block);
                    let had = found.map(|at| blocks.swap_remove(at)).is_some();
                    prop_assert_eq!(index.remove(hash, block), had);
                }
                let mut got: Vec<u64> = index.candidates(hash).map(|c| c.block).collect();
                got.sort_unstable();
                blocks.sort_unstable();
                prop_assert_eq!(&got, &*blocks);
            }
            // A walk comes by each slot once, however it is cut up.
            let all: u64 = model.values().map(|b| b.len() as u64).sum();
            for slots in [1, 3, 50, 1000] {
                let (mut from, mut seen) = (0, Vec::new());
                while from < WALK_END {
                    let to = index.walk_to(from, slots);
                    prop_assert!(to > from);
                    seen.extend(index.walk(from, to).map(|(hash, it)| (hash.tag(), it.block)));
                    from = to;
                }
                prop_assert_eq!(seen.len() as u64, all);
                prop_assert!(seen.iter().all(|(tag, block)| model[tag].contains(block)));
                seen.sort_unstable();
                seen.dedup();
                prop_assert_eq!(seen.len() as u64, all);
            }
            let hashes = model.values().filter(|blocks| !blocks.is_empty()).count();
            prop_assert_eq!(index.shards(), hashes as u64);
            prop_assert_eq!(index.len(), model.values().map(|b| b.len() as u64).sum::<u64>());
        }
    }
}

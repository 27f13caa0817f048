//! Who may have the room that is left, when there is little.
//!
//! Invariants:
//! - A shard is refused while no more extents are free than are kept from shards, even if it fitted into one that was
//!   opened of these, for a tombstone or a copy.
//! - *The cleaner does not lack the room to end what it has begun.* What it writes again was in one extent and fits
//!   into one. The last [`CLEANER_SHARE`] that are free are opened for a tombstone that somebody asked for only if
//!   there is nothing to clean; and when fewer are free, it takes room in the open one only if enough is left for what
//!   is being cleaned, or, if there is nothing to clean, one at a time: what it kills may be worth cleaning, and then
//!   goes first, and fits, as a tombstone is no longer than what it kills.
//! - There are two in that share because a crash costs the room of what was on its way. What was copied before stands
//!   where it stands, and need not be again; so the second one has to take no more than what was lost of the first.
//! - It is refused for the time being only (busy), and only while something is being cleaned or about to be; so
//!   there is room for it when that has ended. If there is nothing to clean, and no room, the device is full of what
//!   is live.
//! - Copies and tombstones of an extent that is no longer being cleaned are not written.

use crate::api::Memory;
use crate::append::{Item, What};
use crate::clean::{Entry, Stage};
use crate::engine::{Engine, StreamNo};
use crate::error::EngineError;
use crate::mutants::mutant;

/// Free extents that are the cleaner's, as long as there is something to clean.
pub(crate) const CLEANER_SHARE: u32 = 2;

/// Whether something that waits may have room.
pub(crate) enum Wait {
    /// It may.
    No,
    /// Not before what is under way has ended.
    Later,
    /// It may not.
    Refuse(EngineError),
}

impl<M: Memory> Engine<M> {
    /// Whether what waits may have the room that is left in the open extent, or another extent: its place would be
    /// behind `records` others that end at `pos`.
    pub(crate) fn may_take_room(
        &mut self,
        what: &What<M::Buf>,
        (pos, records, len): (Option<u64>, u64, u64),
    ) -> Wait {
        match what {
            What::Item(Item::Shard { copy: None, .. }) => {
                let open = self.streams[StreamNo::Data as usize].open.as_ref();
                let reserve = self.extents.reserve();
                let only_reserve = open.is_some_and(|open| open.spare);
                if only_reserve && self.extents.free_count() <= reserve {
                    Wait::Refuse(self.full(reserve))
                } else {
                    Wait::No
                }
            }
            What::Item(Item::Shard {
                copy: Some(copy), ..
            }) if !self.cleaner.has(copy.victim) => Wait::Refuse(self.given_up()),
            What::Item(Item::Tombstone {
                shard,
                carried: true,
                ..
            }) if !self.cleaner.carries(shard) => Wait::Refuse(self.given_up()),
            What::Item(Item::Tombstone { carried: false, .. }) => {
                self.may_bury(pos, (records, len))
            }
            _ => Wait::No,
        }
    }

    /// Whether a tombstone that somebody asked for may take room now.
    fn may_bury(&mut self, pos: Option<u64>, (records, len): (u64, u64)) -> Wait {
        let free = self.extents.free_count();
        let fits = |more| self.fits(StreamNo::Data, pos, (records, len), more);
        if free > CLEANER_SHARE || (free == CLEANER_SHARE && fits((0, 0))) || mutant!(TakeTheLast) {
            return Wait::No;
        }
        let what = "the cleaner needs what room there is";
        let device = self.device;
        let busy = Wait::Refuse(EngineError::Busy { device, what });
        if self.cleaner.victim.is_some() {
            // What it still has to write goes first.
            return match self.left_to_write() {
                Some(left) if fits(left) => Wait::No,
                _ => busy,
            };
        }
        if self.find_victim().is_some() {
            return busy;
        }
        // Nothing to clean; but what is under way may change that, and so may this one: one at a time.
        let alone = records == 0 && self.streams[StreamNo::Data as usize].flying.is_empty();
        if alone { Wait::No } else { Wait::Later }
    }

    fn given_up(&self) -> EngineError {
        EngineError::Busy {
            device: self.device,
            what: "an extent is no longer being cleaned",
        }
    }

    /// What of the victim has still to be written again, and is not known to be durable: bytes, and records. `None` as
    /// long as that is not known.
    fn left_to_write(&self) -> Option<(u64, u64)> {
        let victim = self.cleaner.victim.as_ref()?;
        match victim.stage {
            Stage::Table | Stage::Footer(..) => None,
            Stage::Copied | Stage::Erasing(_) | Stage::Closing => Some((0, 0)),
            Stage::Copying => {
                let left = victim.entries.iter().filter(|entry| {
                    let hash = self.index.hash(&entry.shard);
                    entry.covered.is_none() && self.index.contains(hash, entry.block)
                });
                let (mut bytes, mut count) = (0, 0);
                for entry in left {
                    bytes += entry.len;
                    count += 1;
                }
                if self.extents.get(victim.no).pins > 0 {
                    let tombstones = (victim.tombstones.len() + victim.carrying.len()) as u64;
                    bytes += tombstones * u64::from(self.geometry.block_size);
                    count += tombstones;
                }
                Some((bytes, count))
            }
        }
    }

    /// Whether the open extent has room for what is to be written again. Of a shard that stands elsewhere, too, nothing
    /// is, unless it proves damaged.
    pub(crate) fn has_room(&self, entries: &[Entry], tombstones: usize) -> bool {
        let alone = entries.iter().filter(|entry| {
            let mut others = self.index.candidates(self.index.hash(&entry.shard));
            !others.any(|other| self.is_outside(other.block))
        });
        let block = u64::from(self.geometry.block_size);
        let (mut bytes, mut count) = (tombstones as u64 * block, tombstones as u64);
        for entry in alone {
            bytes += entry.len;
            count += 1;
        }
        count == 0 || self.fits(StreamNo::Data, None, (0, 0), (bytes, count))
    }
}

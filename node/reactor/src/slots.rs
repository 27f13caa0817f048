//! A table whose entries are named by slot and generation.
//!
//! Invariants:
//! - A generation is used once per slot, so that a name that has been removed finds nothing for
//!   ever (for 2^32 lives of one slot).
//! - An entry whose memory or descriptor the kernel still uses is not removed; that is up to the
//!   owners, who count their operations. The kernel's completions therefore may name a slot alone.

/// The table.
pub(crate) struct Slots<T> {
    entries: Vec<Entry<T>>,
    vacant: Vec<u32>,
    limit: u32,
}

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    pub(crate) fn new(limit: u32) -> Slots<T> {
        Slots {
            entries: Vec::new(),
            vacant: Vec::new(),
            limit,
        }
    }

    /// Where the next entry will be; `None` when the table is full.
    pub(crate) fn vacancy(&self) -> Option<(u32, u32)> {
        if let Some(&slot) = self.vacant.last() {
            return Some((slot, self.entries[slot as usize].generation));
        }
        let slot = u32::try_from(self.entries.len()).ok()?;
        (slot < self.limit).then_some((slot, 0))
    }

    /// Puts `value` where [`Slots::vacancy`] said.
    pub(crate) fn insert(&mut self, value: T) -> Option<(u32, u32)> {
        let (slot, generation) = self.vacancy()?;
        if self.vacant.pop().is_some() {
            self.entries[slot as usize].value = Some(value);
        } else {
            self.entries.push(Entry {
                generation,
                value: Some(value),
            });
        }
        Some((slot, generation))
    }

    pub(crate) fn get(&self, slot: u32, generation: u32) -> Option<&T> {
        let entry = self.entries.get(slot as usize)?;
        entry
            .value
            .as_ref()
            .filter(|_| entry.generation == generation)
    }

    pub(crate) fn get_mut(&mut self, slot: u32, generation: u32) -> Option<&mut T> {
        let entry = self.entries.get_mut(slot as usize)?;
        entry
            .value
            .as_mut()
            .filter(|_| entry.generation == generation)
    }

    /// Whatever is in the slot now.
    pub(crate) fn at(&mut self, slot: u32) -> Option<&mut T> {
        self.entries.get_mut(slot as usize)?.value.as_mut()
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        let entry = self.entries.get_mut(slot as usize)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.vacant.push(slot);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_name_finds_nothing_for_ever() {
        let mut slots = Slots::new(2);
        let first = slots.insert("a").unwrap();
        let second = slots.insert("b").unwrap();
        assert!(slots.vacancy().is_none() && slots.insert("c").is_none());
        assert_eq!(slots.remove(first.0), Some("a"));
        assert_eq!(slots.remove(first.0), None);
        let third = slots.insert("d").unwrap();
        assert_eq!(third.0, first.0);
        assert!(slots.get(first.0, first.1).is_none());
        assert_eq!(slots.get(third.0, third.1), Some(&"d"));
        assert_eq!(slots.get_mut(second.0, second.1), Some(&mut "b"));
        assert!(slots.at(7).is_none() && slots.get(7, 0).is_none());
    }
}

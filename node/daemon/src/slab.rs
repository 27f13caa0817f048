//! What is under way, by token. A token carries a generation, so that one that came back late finds
//! nothing instead of its successor.

/// Values under tokens.
pub struct Slab<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    /// Keeps a value; its token.
    pub fn insert(&mut self, value: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.0 = slot.0.wrapping_add(1);
        slot.1 = Some(value);
        (u64::from(slot.0) << 32) | u64::from(index)
    }

    /// Gives a value up, if the token is still good.
    pub fn remove(&mut self, token: u64) -> Option<T> {
        let index = (token & 0xffff_ffff) as usize;
        let slot = self.slots.get_mut(index)?;
        if slot.0 != (token >> 32) as u32 {
            return None;
        }
        let value = slot.1.take()?;
        self.free.push(index as u32);
        Some(value)
    }

    /// All values, given up.
    pub fn into_values(self) -> impl Iterator<Item = T> {
        self.slots.into_iter().filter_map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::Slab;

    #[test]
    fn a_late_token_finds_nothing() {
        let mut slab = Slab::default();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(
            slab.remove(first),
            None,
            "the slot is reused, the token is not"
        );
        assert_eq!(slab.remove(second), Some("second"));
        slab.insert("third");
        assert_eq!(slab.into_values().collect::<Vec<_>>(), ["third"]);
    }
}

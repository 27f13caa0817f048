//! A fast hasher that gives the same on every run: what a state's parts are told apart by.
//!
//! Each word is folded by a 64 × 64 → 128 bit multiplication. Two states that differ are taken for
//! one with a chance of about 2⁻⁶⁴ a pair; the checker's own fingerprints are no wider.

use std::hash::{Hash, Hasher};

const SEED: u64 = 0x243f_6a88_85a3_08d3;
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// See the module.
#[derive(Clone, Debug)]
pub struct Fold(u64);

impl Default for Fold {
    fn default() -> Self {
        Self(SEED)
    }
}

impl Fold {
    fn fold(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word) * u128::from(MULTIPLIER);
        self.0 = (wide as u64) ^ ((wide >> 64) as u64).rotate_left(23) ^ word.rotate_left(47);
    }
}

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        let mut last = self.clone();
        last.fold(SEED);
        last.fold(SEED);
        last.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.fold(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.fold(u64::from_le_bytes(last) ^ (rest.len() as u64) << 56);
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.fold(u64::from(n));
    }

    fn write_u16(&mut self, n: u16) {
        self.fold(u64::from(n));
    }

    fn write_u32(&mut self, n: u32) {
        self.fold(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.fold(n);
    }

    fn write_usize(&mut self, n: usize) {
        self.fold(n as u64);
    }
}

/// The hash of anything.
pub fn of<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = Fold::default();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_hashes_differently() {
        let mut seen = std::collections::BTreeSet::new();
        for a in 0..300u64 {
            for b in 0..300u64 {
                seen.insert(of(&(a, b)));
            }
        }
        assert_eq!(seen.len(), 90_000);
        assert_ne!(of("ab"), of("ba"));
        assert_ne!(of(&[0u8, 0][..]), of(&[0u8, 0, 0][..]));
    }
}

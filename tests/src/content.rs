//! Bytes that can be told apart: each content is named by a seed and a length, and made again from them.

use std::fmt;

/// What an object holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Content {
    /// Tells it from every other one.
    pub seed: u64,
    /// Bytes.
    pub len: usize,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}x{}", self.seed, self.len)
    }
}

impl Content {
    /// The bytes.
    pub fn bytes(self) -> Vec<u8> {
        let mut random = Random::new(self.seed);
        let mut bytes = Vec::with_capacity(self.len + 8);
        while bytes.len() < self.len {
            bytes.extend_from_slice(&random.draw().to_le_bytes());
        }
        bytes.truncate(self.len);
        bytes
    }

    /// The first place where `bytes` are not this content, or where one of them ends.
    pub fn difference(self, bytes: &[u8]) -> Option<usize> {
        let wanted = self.bytes();
        if wanted == bytes {
            return None;
        }
        let common = wanted.iter().zip(bytes).take_while(|(a, b)| a == b).count();
        Some(common)
    }
}

/// A small generator of our own (splitmix64), so that a printed seed means the same for ever.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

/// The seed of a test: `ASHLAR_SEED` to repeat a run, else the time. Printed, always.
pub fn seed(test: &str) -> u64 {
    let given = std::env::var("ASHLAR_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |d| d.as_nanos() as u64 >> 10)
    });
    eprintln!("{test}: seed {seed} (repeat with ASHLAR_SEED={seed})");
    seed
}

/// A number from the environment, or its default. Printed where it is not the default.
pub fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else {
        return default;
    };
    let value = text
        .parse()
        .unwrap_or_else(|_| panic!("{name}={text}: not a number"));
    eprintln!("{name}={value} (default {default})");
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_differ_and_repeat() {
        let a = Content { seed: 1, len: 1001 };
        assert_eq!(a.bytes().len(), 1001);
        assert_eq!(a.bytes(), a.bytes());
        assert_eq!(a.difference(&a.bytes()), None);
        let mut other = a.bytes();
        other[700] ^= 1;
        assert_eq!(a.difference(&other), Some(700));
        assert_eq!(a.difference(&a.bytes()[..500]), Some(500));
        assert_ne!(a.bytes(), Content { seed: 2, len: 1001 }.bytes());
    }
}

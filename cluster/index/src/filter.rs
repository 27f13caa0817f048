//! A run's filter: which keys are certainly not in it.
//!
//! A Bloom filter in blocks of 32 bytes: a key's eight bits are within one block, so a question costs
//! one cache line. At ten bits a key about one absent key in a hundred passes.
//!
//! Invariants:
//! - a key that was added always passes, whatever the number of keys;
//! - the hash is part of the format: what one version wrote the next one reads.

/// Bytes of a block.
pub(crate) const BLOCK: usize = 32;

const SALTS: [u32; 8] = [
    0x47b6_137b,
    0x4497_4d91,
    0x8824_ad5b,
    0xa2b7_289d,
    0x7054_95c7,
    0x2df1_424b,
    0x9efc_4947,
    0x5c6b_fb31,
];

/// A filter's bits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    words: Vec<u32>,
}

impl Filter {
    /// For so many keys at so many bits each.
    pub(crate) fn for_keys(keys: u64, bits_per_key: u32) -> Self {
        let bytes = keys.saturating_mul(u64::from(bits_per_key)) / 8;
        let blocks = (bytes as usize).div_ceil(BLOCK).max(1);
        let halves = if blocks > 64 { 16 } else { 1 };
        Self {
            words: vec![0; blocks.next_multiple_of(halves) * BLOCK / 4],
        }
    }

    /// Fewer keys came than it was made for: it is folded, as long as these still have their bits. Two
    /// neighbours become one block, which is where their keys look in a filter of half the size.
    pub(crate) fn fit(&mut self, keys: u64, bits_per_key: u32) {
        let bytes = keys.saturating_mul(u64::from(bits_per_key)) / 8;
        while self.words.len().is_multiple_of(16) && 2 * bytes <= self.memory() as u64 {
            let (pairs, _) = self.words.as_chunks::<16>();
            let fold =
                |pair: &[u32; 16]| std::array::from_fn::<u32, 8, _>(|i| pair[i] | pair[i + 8]);
            self.words = pairs.iter().flat_map(fold).collect();
        }
    }

    /// From its bytes, a number of whole blocks; `None` if they are not.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(BLOCK) {
            return None;
        }
        let (words, _) = bytes.as_chunks::<4>();
        let words = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        Some(Self { words })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    pub(crate) fn add(&mut self, hash: u64) {
        let from = self.block(hash);
        for (word, salt) in self.words[from..from + 8].iter_mut().zip(SALTS) {
            *word |= bit(hash, salt);
        }
    }

    pub(crate) fn may_have(&self, hash: u64) -> bool {
        let from = self.block(hash);
        let words = self.words[from..from + 8].iter();
        words
            .zip(SALTS)
            .all(|(word, salt)| word & bit(hash, salt) != 0)
    }

    /// Bytes in memory.
    pub(crate) fn memory(&self) -> usize {
        self.words.len() * 4
    }

    fn block(&self, hash: u64) -> usize {
        let blocks = (self.words.len() / 8) as u64;
        ((((hash >> 32) * blocks) >> 32) * 8) as usize
    }
}

fn bit(hash: u64, salt: u32) -> u32 {
    1 << ((hash as u32).wrapping_mul(salt) >> 27)
}

/// The hash of a key: multiply and fold, eight bytes at a time.
pub(crate) fn hash(key: &[u8]) -> u64 {
    const A: u64 = 0x9e37_79b9_7f4a_7c15;
    const B: u64 = 0xd6e8_feb8_6659_fd93;
    let fold = |a: u64, b: u64| {
        let wide = u128::from(a) * u128::from(b);
        wide as u64 ^ (wide >> 64) as u64
    };
    let (words, rest) = key.as_chunks::<8>();
    let mut state = A ^ key.len() as u64;
    for word in words {
        state = fold(state ^ u64::from_le_bytes(*word), B).wrapping_add(A);
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    state = fold(state ^ u64::from_le_bytes(last), B);
    fold(state ^ A, A)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_was_added_passes_and_little_else() {
        let keys = 50_000u64;
        let name = |i: u64| format!("bucket/some/object-{i:08}").into_bytes();
        let mut filter = Filter::for_keys(keys, 10);
        (0..keys).for_each(|i| filter.add(hash(&name(i))));
        let filter = Filter::from_bytes(&filter.to_bytes()).unwrap();
        assert!((0..keys).all(|i| filter.may_have(hash(&name(i)))));
        let wrong = (keys..3 * keys)
            .filter(|i| filter.may_have(hash(&name(*i))))
            .count() as f64;
        let rate = wrong / (2 * keys) as f64;
        assert!(rate < 0.015, "{rate}");
        assert!(filter.memory() as f64 <= keys as f64 * 1.26);
    }

    #[test]
    fn folded_it_is_the_filter_that_it_should_have_been() {
        let name = |i: u64| hash(format!("key {i}").as_bytes());
        let (mut large, mut small) = (Filter::for_keys(80_000, 10), Filter::for_keys(10_000, 10));
        for i in 0..10_000 {
            large.add(name(i));
            small.add(name(i));
        }
        assert!(large.memory() > 7 * small.memory());
        large.fit(10_000, 10);
        assert!(large.memory() < 2 * small.memory());
        assert!((0..10_000).all(|i| large.may_have(name(i))));
        let wrong = (10_000..30_000)
            .filter(|i| large.may_have(name(*i)))
            .count();
        assert!(wrong < 300, "{wrong}");
    }

    #[test]
    fn the_hash_is_part_of_the_format() {
        assert_eq!(
            [hash(b""), hash(b"a"), hash(b"eight888"), hash(b"eight888!")],
            HASHES
        );
    }

    #[test]
    fn the_hash_spreads() {
        let mut counts = [0u32; 16];
        for n in 0..16_000u32 {
            counts[(hash(format!("{n}").as_bytes()) >> 60) as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (850..1150).contains(count)),
            "{counts:?}"
        );
    }

    const HASHES: [u64; 4] = [
        1_768_113_585_157_108_913,
        2_002_162_843_653_844_930,
        2_254_717_729_050_667_683,
        1_942_285_847_611_077_372,
    ];
}

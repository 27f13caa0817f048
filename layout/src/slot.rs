//! Which witness slot a key falls in.

/// Witness slots of a partition.
pub const SLOTS: u32 = 1 << 16;

/// The slot of a key; of a bucket itself, with an empty key. Keys may share one: that costs a
/// look-up that was not needed, never a stale read.
pub fn slot_of(bucket: &str, key: &str) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(bucket.as_bytes());
    // No bucket's name holds a zero byte, so no two pairs are the same bytes.
    hash.update(&[0]);
    hash.update(key.as_bytes());
    hash.finalize() % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_spread_and_fixed() {
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..10_000 {
            let slot = slot_of("bucket", &format!("key-{n}"));
            assert!(slot < SLOTS);
            seen.insert(slot);
        }
        assert!(seen.len() > 8_000, "{} slots for 10,000 keys", seen.len());
        assert_ne!(slot_of("ab", "c"), slot_of("a", "bc"));
    }
}

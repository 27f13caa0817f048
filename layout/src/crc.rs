//! CRC-32 (IEEE), as zip and Ethernet have it: one polynomial for everything on disk and on the wire.

use crc32fast::Hasher;

/// Bytes that a CRC takes in a structure.
pub(crate) const CRC_LEN: usize = 4;

/// CRC-32 of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// CRC-32 of two runs of bytes put together: `a` is the first's, `b` the second's, which is
/// `b_len` bytes long.
pub fn crc32_combine(a: u32, b: u32, b_len: u64) -> u32 {
    let mut whole = Hasher::new_with_initial_len(a, 0);
    whole.combine(&Hasher::new_with_initial_len(b, b_len));
    whole.finalize()
}

/// CRC-32 of `bytes`, with the four at `at` (where the CRC itself stands) counted as zeros.
pub(crate) fn crc32_around(bytes: &[u8], at: usize) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&bytes[..at]);
    hasher.update(&[0; CRC_LEN]);
    hasher.update(&bytes[at + CRC_LEN..]);
    hasher.finalize()
}

/// What each byte does to a CRC that it is shifted out of.
const TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut byte = 0;
    while byte < table.len() {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// Whether one flipped bit makes so many bytes, whose CRC should be `expected`, have `got`. It takes eight steps a
/// byte: not for what is read each time.
pub(crate) fn is_one_bit(expected: u32, got: u32, len: usize) -> bool {
    let difference = expected ^ got;
    // What a bit of the last byte does to the CRC; and then of the byte before it, and so on.
    let mut effects: [u32; 8] = std::array::from_fn(|bit| crc32(&[1 << bit]) ^ crc32(&[0]));
    for _ in 0..len {
        if effects.contains(&difference) {
            return true;
        }
        for effect in &mut effects {
            *effect = *effect >> 8 ^ TABLE[(*effect & 0xff) as usize];
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_the_polynomial() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn combined_is_the_whole() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| ((i * 7919) >> 5) as u8).collect();
        for cut in [0, 1, 4095, 16384, 99_999, 100_000] {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(
                crc32_combine(crc32(a), crc32(b), b.len() as u64),
                crc32(&bytes)
            );
        }
    }

    #[test]
    fn one_bit_is_told_from_more() {
        let mut bytes: Vec<u8> = (0..5000u32).map(|i| ((i * 7919) >> 5) as u8).collect();
        let expected = crc32(&bytes);
        for bit in [0, 1, 4097, 20_003, 39_998, 39_999] {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(is_one_bit(expected, crc32(&bytes), bytes.len()), "{bit}");
            // It stands in a byte, not in front of them all.
            let behind = 5000 - bit / 8;
            assert!(!is_one_bit(expected, crc32(&bytes), behind - 1), "{bit}");
            bytes[(bit / 8 + 13) % 5000] ^= 1;
            assert!(!is_one_bit(expected, crc32(&bytes), bytes.len()), "{bit}");
            bytes[(bit / 8 + 13) % 5000] ^= 1;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(
            !is_one_bit(expected, expected, bytes.len()),
            "nothing differs"
        );
    }

    #[test]
    fn around_counts_zeros() {
        let mut bytes = [7u8; 40];
        let got = crc32_around(&bytes, 8);
        bytes[8..12].fill(0);
        assert_eq!(got, crc32(&bytes));
    }
}

//! The CRC of two texts one behind the other, from their CRCs and the second one's length: what makes a
//! checksum of a whole object out of those of its parts, and reads nothing again.
//!
//! The CRCs here are reflected, begin with ones and end inverted, as CRC-32, CRC-32C and CRC-64/NVME do.
//! Appending n bytes multiplies the first CRC by x^8n in GF(2)[x] modulo the polynomial (as zlib does it).

/// A CRC's width and its polynomial, reflected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Polynomial {
    width: u32,
    bits: u64,
}

pub(crate) const CRC32: Polynomial = Polynomial {
    width: 32,
    bits: 0xedb8_8320,
};
pub(crate) const CRC32C: Polynomial = Polynomial {
    width: 32,
    bits: 0x82f6_3b78,
};
pub(crate) const CRC64_NVME: Polynomial = Polynomial {
    width: 64,
    bits: 0x9a6c_9329_ac4b_c9b5,
};

impl Polynomial {
    /// x^0: the highest bit, since all is reflected.
    fn one(self) -> u64 {
        1 << (self.width - 1)
    }

    fn times(self, a: u64, mut b: u64) -> u64 {
        let mut product = 0;
        let mut bit = self.one();
        while bit != 0 {
            if a & bit != 0 {
                product ^= b;
            }
            b = if b & 1 == 1 {
                b >> 1 ^ self.bits
            } else {
                b >> 1
            };
            bit >>= 1;
        }
        product
    }

    /// x^8n.
    fn bytes(self, mut n: u64) -> u64 {
        let mut power = self.one();
        // x^8, then squared again and again.
        let mut square = self.one() >> 8;
        while n > 0 {
            if n & 1 == 1 {
                power = self.times(square, power);
            }
            square = self.times(square, square);
            n >>= 1;
        }
        power
    }

    /// The CRC of both, the second one of `len` bytes.
    pub(crate) fn combine(self, first: u64, second: u64, len: u64) -> u64 {
        self.times(self.bytes(len), first) ^ second
    }
}

#[cfg(test)]
mod tests {
    use crc_fast::CrcAlgorithm::{Crc32Iscsi, Crc32IsoHdlc, Crc64Nvme};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_if_it_were_one_text(a: Vec<u8>, b: Vec<u8>) {
            let all = [a.clone(), b.clone()].concat();
            for (polynomial, name) in [(CRC32, Crc32IsoHdlc), (CRC32C, Crc32Iscsi), (CRC64_NVME, Crc64Nvme)] {
                let crc = |bytes: &[u8]| crc_fast::checksum(name, bytes);
                let combined = polynomial.combine(crc(&a), crc(&b), b.len() as u64);
                prop_assert_eq!(combined, crc(&all));
            }
        }

        #[test]
        fn long_ones_as_crc_fast_has_them(a: u64, b: u64, len in 0u64..1 << 45) {
            for (polynomial, name) in [(CRC32, Crc32IsoHdlc), (CRC32C, Crc32Iscsi), (CRC64_NVME, Crc64Nvme)] {
                let mask = u64::MAX >> (64 - polynomial.width);
                let (a, b) = (a & mask, b & mask);
                let expected = crc_fast::checksum_combine(name, a, b, len);
                prop_assert_eq!(polynomial.combine(a, b, len), expected);
            }
        }
    }
}

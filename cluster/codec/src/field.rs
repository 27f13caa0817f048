//! The field GF(2^8) with polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11d), and the forms that a constant
//! factor takes in the kernels. All of it is plain arithmetic; the speed is in the kernels.

/// The polynomial's low eight bits: what is left of x^8.
const POLYNOMIAL: u8 = 0x1d;

/// `a` times x. Without a branch, so that loops over bytes become vector instructions.
pub(crate) const fn double(a: u8) -> u8 {
    // The sign, spread over the byte, says whether x^8 came up.
    let carried = (a.cast_signed() >> 7).cast_unsigned();
    (a << 1) ^ (carried & POLYNOMIAL)
}

/// The product of `a` and `b`.
pub(crate) const fn mul(a: u8, b: u8) -> u8 {
    let (mut product, mut shifted, mut bit) = (0, a, 0);
    while bit < 8 {
        if (b >> bit) & 1 == 1 {
            product ^= shifted;
        }
        shifted = double(shifted);
        bit += 1;
    }
    product
}

/// Inverses of all elements; that of 0, which has none, is 0.
static INVERSE: [u8; 256] = {
    let mut table = [0; 256];
    let mut a = 1;
    while a < 256 {
        // a^254 = a^-1, since a^255 = 1.
        #[allow(clippy::cast_possible_truncation, reason = "a < 256")]
        let (mut power, mut square, mut bit) = (1, a as u8, 0);
        while bit < 8 {
            if (254 >> bit) & 1 == 1 {
                power = mul(power, square);
            }
            square = mul(square, square);
            bit += 1;
        }
        table[a] = power;
        a += 1;
    }
    table
};

/// The inverse of `a`, or 0 for 0.
pub(crate) fn inverse(a: u8) -> u8 {
    INVERSE[usize::from(a)]
}

/// Products of `c` with every low nibble, then with every high nibble: the product with a byte is
/// the XOR of one entry of each half.
pub(crate) fn nibbles(c: u8) -> [u8; 32] {
    let mut table = [0; 32];
    let (low, high) = table.split_at_mut(16);
    for (nibble, (low, high)) in (0..16u8).zip(low.iter_mut().zip(high)) {
        *low = mul(c, nibble);
        *high = mul(c, nibble << 4);
    }
    table
}

/// The product with `c` as a matrix over GF(2), as `vgf2p8affineqb` wants it: byte `7 - i` holds
/// the bits of the operand whose parity is bit `i` of the product.
pub(crate) fn affine(c: u8) -> u64 {
    let mut rows = [0u8; 8];
    for bit in 0..8u8 {
        let column = mul(c, 1 << bit);
        for (i, row) in rows.iter_mut().rev().enumerate() {
            *row |= ((column >> i) & 1) << bit;
        }
    }
    u64::from_le_bytes(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_field() {
        for a in 0..=255u8 {
            assert_eq!(mul(a, 1), a);
            assert_eq!(mul(a, 2), double(a));
            if a != 0 {
                assert_eq!(mul(a, inverse(a)), 1, "{a}");
            }
            for b in 0..=255u8 {
                assert_eq!(mul(a, b), mul(b, a));
                assert_eq!(mul(a, b ^ 0x5a), mul(a, b) ^ mul(a, 0x5a));
                assert_eq!(mul(a, mul(b, 0xa7)), mul(mul(a, b), 0xa7));
            }
        }
        // x is a generator: 0x11d is primitive.
        let mut power = 1;
        for exponent in 1..=255 {
            power = double(power);
            assert_eq!(power == 1, exponent == 255);
        }
        assert_eq!(inverse(0), 0);
    }

    #[test]
    fn tables_are_the_product() {
        for c in 0..=255u8 {
            let (nibbles, affine) = (nibbles(c), affine(c).to_le_bytes());
            for x in 0..=255u8 {
                let by_nibbles = nibbles[usize::from(x & 15)] ^ nibbles[16 + usize::from(x >> 4)];
                assert_eq!(by_nibbles, mul(c, x));
                let by_matrix = (0..8)
                    .map(|i| u8::from((affine[7 - i] & x).count_ones() % 2 == 1) << i)
                    .fold(0, |sum, bit| sum | bit);
                assert_eq!(by_matrix, mul(c, x));
            }
        }
    }
}

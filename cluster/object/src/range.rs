//! Byte ranges with the meaning that S3 gives them.

use std::fmt;
use std::ops::Range;

/// Part of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// From the first number to the second, both included; clipped at the object's end.
    FromTo(u64, u64),
    /// From here to the end.
    From(u64),
    /// The last so many bytes; all of the object if it is shorter.
    Suffix(u64),
}

impl ByteRange {
    /// The bytes of an object of `size` bytes; `None` if the range is outside of it, or turned
    /// round. An empty object satisfies no range.
    pub fn resolve(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            ByteRange::FromTo(first, last) if first <= last => {
                first..last.saturating_add(1).min(size)
            }
            ByteRange::FromTo(..) => return None,
            ByteRange::From(first) => first..size,
            ByteRange::Suffix(count) => size.saturating_sub(count)..size,
        };
        (range.start < range.end).then_some(range)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ByteRange::FromTo(first, last) => write!(f, "bytes={first}-{last}"),
            ByteRange::From(first) => write!(f, "bytes={first}-"),
            ByteRange::Suffix(count) => write!(f, "bytes=-{count}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_what_s3_means() {
        assert_eq!(ByteRange::FromTo(0, 0).resolve(10), Some(0..1));
        assert_eq!(ByteRange::FromTo(3, 5).resolve(10), Some(3..6));
        assert_eq!(ByteRange::FromTo(3, u64::MAX).resolve(10), Some(3..10));
        assert_eq!(ByteRange::FromTo(9, 9).resolve(10), Some(9..10));
        assert_eq!(ByteRange::FromTo(10, 12).resolve(10), None);
        assert_eq!(ByteRange::FromTo(5, 4).resolve(10), None);
        assert_eq!(ByteRange::From(9).resolve(10), Some(9..10));
        assert_eq!(ByteRange::From(10).resolve(10), None);
        assert_eq!(ByteRange::Suffix(4).resolve(10), Some(6..10));
        assert_eq!(ByteRange::Suffix(40).resolve(10), Some(0..10));
        assert_eq!(ByteRange::Suffix(0).resolve(10), None);
        for range in [
            ByteRange::FromTo(0, 0),
            ByteRange::From(0),
            ByteRange::Suffix(1),
        ] {
            assert_eq!(range.resolve(0), None);
        }
    }
}

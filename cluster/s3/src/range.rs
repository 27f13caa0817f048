//! Which part of an object is wanted: `Range`, and the ranges of copies.

use core::ops::Range;

use crate::refusal::{Refusal, refuse};

/// A part that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// From this byte to that one, both included.
    FromTo(u64, u64),
    /// From this byte on.
    From(u64),
    /// So many bytes at the end.
    Last(u64),
}

/// The part that a `Range` header names. None if it names none, or several: then, as HTTP has it, all
/// is wanted.
pub fn parse(header: &str) -> Option<Wanted> {
    let set = header.trim().strip_prefix("bytes=")?;
    let (first, last) = set.split_once('-')?;
    let number = |text: &str| -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // What is beyond all numbers is beyond all objects.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (first.trim(), last.trim()) {
        ("", last) => number(last).map(Wanted::Last),
        (first, "") => number(first).map(Wanted::From),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Wanted::FromTo(first, last))
        }
    }
}

/// The part that the header of a copy names: `bytes=first-last`, and nothing else.
pub fn parse_copy(header: &str) -> Result<Wanted, Refusal> {
    match parse(header) {
        Some(wanted @ Wanted::FromTo(..)) => Ok(wanted),
        _ => refuse!(
            InvalidArgument,
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and \
             last are the zero-based offsets of the first and last bytes to copy"
        ),
    }
}

impl Wanted {
    /// The bytes of an object of `size` bytes; an error if there is not one.
    pub fn resolve(self, size: u64) -> Result<Range<u64>, Refusal> {
        let range = match self {
            Wanted::FromTo(first, last) => first..last.saturating_add(1).min(size),
            Wanted::From(first) => first..size,
            Wanted::Last(count) => size.saturating_sub(count)..size,
        };
        if range.start < range.end {
            Ok(range)
        } else {
            refuse!(InvalidRange, "The requested range is not satisfiable")
        }
    }
}

/// As a reply tells it.
pub fn content_range(range: &Range<u64>, size: u64) -> String {
    format!(
        "bytes {}-{}/{size}",
        range.start,
        range.end.saturating_sub(1)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Code;

    #[test]
    fn every_form() {
        for (header, size, expected) in [
            ("bytes=0-0", 10, Some(0..1)),
            ("bytes=2-5", 10, Some(2..6)),
            ("bytes=2-50", 10, Some(2..10)),
            ("bytes=2-", 10, Some(2..10)),
            ("bytes=-3", 10, Some(7..10)),
            ("bytes=-30", 10, Some(0..10)),
            ("bytes=0-18446744073709551615", 10, Some(0..10)),
            ("bytes=0-99999999999999999999999", 10, Some(0..10)),
            ("bytes=10-", 10, None),
            ("bytes=10-12", 10, None),
            ("bytes=-0", 10, None),
            ("bytes=0-", 0, None),
            ("bytes=-5", 0, None),
        ] {
            let got = parse(header).unwrap().resolve(size);
            match expected {
                Some(range) => assert_eq!(got, Ok(range), "{header}"),
                None => assert_eq!(got.unwrap_err().code, Code::InvalidRange, "{header}"),
            }
        }
    }

    #[test]
    fn what_names_no_part_names_all() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5-2",
            "bytes=a-b",
            "bytes=1-2,4-5",
            "items=0-1",
            "bytes=+1-2",
            "bytes=0x1-2",
            "bytes=1--2",
        ] {
            assert_eq!(parse(header), None, "{header}");
        }
    }

    #[test]
    fn copies_are_strict() {
        assert_eq!(parse_copy("bytes=1-2"), Ok(Wanted::FromTo(1, 2)));
        for header in ["bytes=1-", "bytes=-2", "1-2", "bytes=2-1", ""] {
            assert_eq!(parse_copy(header).unwrap_err().code, Code::InvalidArgument);
        }
        assert_eq!(content_range(&(2..6), 10), "bytes 2-5/10");
    }
}

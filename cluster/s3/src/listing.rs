//! Listings: where they go on, how long they are, how keys are written in them.
//!
//! Invariant: a token is taken back only if it is one that was given; what it says is where to go on, and
//! nothing that a caller could not have asked for anyway.

use crate::refusal::{Refusal, refuse};
use crate::text::{from_base64, to_base64, url_encode};

/// Most keys and common prefixes of a page.
pub const PAGE_MAX: u32 = 1000;
const TOKEN_VERSION: u8 = 1;

/// How keys are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// As they are.
    #[default]
    Plain,
    /// As in a URL.
    Url,
}

impl Encoding {
    /// From the query.
    pub fn parse(value: Option<&str>) -> Result<Encoding, Refusal> {
        match value {
            None | Some("") => Ok(Encoding::Plain),
            Some(url) if url.eq_ignore_ascii_case("url") => Ok(Encoding::Url),
            Some(_) => refuse!(
                InvalidArgument,
                "Invalid Encoding Method specified in Request"
            ),
        }
    }

    /// As it is written.
    pub fn write(self, text: &str) -> String {
        match self {
            Encoding::Plain => text.to_owned(),
            Encoding::Url => url_encode(text),
        }
    }
}

/// How many a page is to have: what was asked for, and [`PAGE_MAX`] at most.
pub fn page_size(asked: Option<i32>, name: &str) -> Result<u32, Refusal> {
    match asked {
        None => Ok(PAGE_MAX),
        Some(asked) => match u32::try_from(asked) {
            Ok(asked) => Ok(asked.min(PAGE_MAX)),
            Err(_) => refuse!(
                InvalidArgument,
                "Argument {name} must be an integer between 0 and 2147483647"
            ),
        },
    }
}

/// A token that says where to go on.
pub fn token(after: &str) -> String {
    let mut bytes = vec![TOKEN_VERSION];
    bytes.extend_from_slice(after.as_bytes());
    to_base64(&bytes)
}

/// Where a token says to go on.
pub fn parse_token(token: &str) -> Result<String, Refusal> {
    let after = match from_base64(token).as_deref() {
        Some([TOKEN_VERSION, after @ ..]) => String::from_utf8(after.to_vec()).ok(),
        _ => None,
    };
    match after {
        Some(after) => Ok(after),
        None => refuse!(
            InvalidArgument,
            "The continuation token provided is incorrect"
        ),
    }
}

/// The least text behind everything that begins with `prefix`, as a mark to go on after it. None if
/// nothing can be behind it.
pub fn behind(prefix: &str) -> Option<String> {
    let mut mark = prefix.to_owned();
    while let Some(last) = mark.pop() {
        let next = match last {
            '\u{d7ff}' => Some('\u{e000}'),
            other => char::from_u32(u32::from(other) + 1),
        };
        if let Some(next) = next {
            mark.push(next);
            return Some(mark);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::refusal::Code;

    #[test]
    fn what_is_asked_for() {
        assert_eq!(page_size(None, "max-keys"), Ok(1000));
        assert_eq!(page_size(Some(0), "max-keys"), Ok(0));
        assert_eq!(page_size(Some(i32::MAX), "max-keys"), Ok(1000));
        assert_eq!(
            page_size(Some(-1), "max-keys").unwrap_err().code,
            Code::InvalidArgument
        );
        assert_eq!(Encoding::parse(None), Ok(Encoding::Plain));
        assert_eq!(Encoding::parse(Some("URL")), Ok(Encoding::Url));
        assert!(Encoding::parse(Some("base64")).is_err());
        assert_eq!(Encoding::Url.write("a b/ä"), "a%20b/%C3%A4");
        assert_eq!(Encoding::Plain.write("a b/ä"), "a b/ä");
    }

    #[test]
    fn tokens() {
        for bad in ["", "x", "AA==", "AmE=", "Af8="] {
            assert!(parse_token(bad).is_err(), "{bad}");
        }
        assert_eq!(behind("a/"), Some("a0".to_owned()));
        assert_eq!(behind("a\u{10ffff}"), Some("b".to_owned()));
        assert_eq!(behind("\u{10ffff}"), None);
        assert_eq!(behind(""), None);
    }

    proptest! {
        #[test]
        fn a_token_says_what_it_was_given(after: String) {
            prop_assert_eq!(parse_token(&token(&after)), Ok(after));
        }
    }
}

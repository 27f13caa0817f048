//! Names of versions, as S3's clients see them: opaque text.

use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{NULL_VERSION, VersionTag};

use crate::refusal::{Refusal, refuse};

/// What the version is called that was made when its bucket kept none.
const NULL: &str = "null";
/// Characters of any other name.
const LEN: usize = 16;

/// A version's name; of an object that is no version, too.
pub fn write(tag: Option<VersionTag>) -> String {
    match tag {
        Some(tag) if !tag.null => format!("{:016x}", tag.id.0),
        _ => NULL.to_owned(),
    }
}

/// Where a version of this name stands among those of its object.
pub fn parse(text: &str) -> Result<Seq, Refusal> {
    if text == NULL {
        return Ok(NULL_VERSION);
    }
    if text.is_empty() {
        return refuse!(InvalidArgument, "Version id cannot be the empty string");
    }
    let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let id = match text.len() == LEN && text.bytes().all(digits) {
        true => u64::from_str_radix(text, 16).ok(),
        false => None,
    };
    match id.map(Seq) {
        Some(id) if id != Seq(0) && id != NULL_VERSION => Ok(id),
        _ => refuse!(InvalidArgument, "Invalid version id specified"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Code;

    #[test]
    fn there_and_back() {
        for id in [1, 9, 0xfedc_ba98, u64::MAX - 1].map(Seq) {
            let text = write(Some(VersionTag {
                id,
                marker: true,
                ..VersionTag::default()
            }));
            assert_eq!(parse(&text), Ok(id));
            let null = VersionTag {
                null: true,
                ..VersionTag::default()
            };
            assert_eq!(write(Some(null)), write(None));
        }
        assert_eq!(parse(&write(None)), Ok(NULL_VERSION));
    }

    #[test]
    fn what_is_no_name() {
        for text in [
            "",
            "0",
            "NULL",
            "0000000000000000",
            "ffffffffffffffff",
            "000000000000000A",
            "00000000000000001",
            "+000000000000001",
            "é00000000000000",
        ] {
            assert_eq!(
                parse(text).unwrap_err().code,
                Code::InvalidArgument,
                "{text:?}"
            );
        }
    }
}

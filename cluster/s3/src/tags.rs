//! Tags of objects and buckets: names with values, few and short.

use crate::refusal::{Refusal, refuse};
use crate::text::percent_decode;

/// Most tags of an object.
pub const OBJECT_TAGS_MAX: usize = 10;
/// Most tags of a bucket.
pub const BUCKET_TAGS_MAX: usize = 50;
/// Longest name, in characters.
const NAME_MAX: usize = 128;
/// Longest value, in characters.
const VALUE_MAX: usize = 256;

/// Tags, in the order in which they were given.
pub type Tags = Vec<(String, String)>;

/// Checks tags, of which there may be so many.
pub fn check(tags: &[(String, String)], most: usize) -> Result<(), Refusal> {
    if tags.len() > most {
        return match most {
            OBJECT_TAGS_MAX => refuse!(InvalidTag, "Object tags cannot be greater than {most}"),
            _ => refuse!(InvalidTag, "Bucket tag count cannot be greater than {most}"),
        };
    }
    for (i, (name, value)) in tags.iter().enumerate() {
        let length = name.chars().count();
        if length == 0 || length > NAME_MAX || !name.chars().all(is_allowed) {
            return refuse!(InvalidTag, "The TagKey you have provided is invalid");
        }
        if value.chars().count() > VALUE_MAX || !value.chars().all(is_allowed) {
            return refuse!(InvalidTag, "The TagValue you have provided is invalid");
        }
        if name.to_ascii_lowercase().starts_with("aws:") {
            return refuse!(
                InvalidTag,
                "System tags cannot be added/updated by requester"
            );
        }
        if tags[..i].iter().any(|(other, _)| other == name) {
            return refuse!(InvalidTag, "Cannot provide multiple Tags with the same key");
        }
    }
    Ok(())
}

/// As S3 has it: letters, digits and spaces of any script, and `+ - = . _ : / @`.
fn is_allowed(c: char) -> bool {
    c.is_alphanumeric() || c.is_whitespace() && !c.is_control() || "+-=._:/@".contains(c)
}

/// The tags that a header names: `a=b&c=d`, as in a URL's query.
pub fn parse_header(value: &str) -> Result<Tags, Refusal> {
    let mut tags = Tags::new();
    for pair in value.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decoded = |text: &str| percent_decode(&text.replace('+', " "));
        match (decoded(name), decoded(value)) {
            (Some(name), Some(value)) => tags.push((name, value)),
            _ => {
                return refuse!(
                    InvalidArgument,
                    "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query \
                     parameters without tag name duplicates."
                );
            }
        }
    }
    check(&tags, OBJECT_TAGS_MAX)?;
    Ok(tags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Code;

    fn tags(pairs: &[(&str, &str)]) -> Tags {
        let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn headers() {
        assert_eq!(parse_header("").unwrap(), []);
        let parsed = parse_header("a=b&c+d=e%2Ff&g&%C3%A4=").unwrap();
        assert_eq!(
            parsed,
            tags(&[("a", "b"), ("c d", "e/f"), ("g", ""), ("ä", "")])
        );
        for (header, code) in [
            ("a=%", Code::InvalidArgument),
            ("a=1&a=2", Code::InvalidTag),
            ("=1", Code::InvalidTag),
            ("a=%3C", Code::InvalidTag),
            ("aws:a=1", Code::InvalidTag),
        ] {
            assert_eq!(parse_header(header).unwrap_err().code, code, "{header}");
        }
    }

    #[test]
    fn bounds() {
        let most: Tags = (0..10)
            .map(|i| (format!("k{i}"), "v".repeat(256)))
            .collect();
        check(&most, OBJECT_TAGS_MAX).unwrap();
        let mut more = most.clone();
        more.push(("k".into(), "v".into()));
        check(&more, OBJECT_TAGS_MAX).unwrap_err();
        check(&more, BUCKET_TAGS_MAX).unwrap();
        check(&tags(&[(&"ä".repeat(128), "")]), 10).unwrap();
        check(&tags(&[(&"a".repeat(129), "")]), 10).unwrap_err();
        check(&tags(&[("a", &"v".repeat(257))]), 10).unwrap_err();
        check(&tags(&[("a\n", "")]), 10).unwrap_err();
    }
}

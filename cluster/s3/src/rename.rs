//! What a request says that gives an object another key: which object, under which conditions, and by which token it is
//! known again.
//!
//! Invariants:
//! - conditions are judged on what is found; what a rename is proposed with holds exactly while what was decided here
//!   does;
//! - a token is of one caller, and of one request: what else the request says is kept with it.

use ashlar_layout::manifest::Precondition;

use crate::checksum::{Algorithm, digest};
use crate::conditional::{Current, Etags, ReadIf};
use crate::refusal::{Code, Refusal, refuse};
use crate::text::percent_decode;

/// Most characters of a token.
const TOKEN_MAX: usize = 64;
/// The headers that a request with a token must repeat.
const TOLD: [&str; 9] = [
    "x-amz-rename-source",
    "x-amz-rename-source-if-match",
    "x-amz-rename-source-if-none-match",
    "x-amz-rename-source-if-modified-since",
    "x-amz-rename-source-if-unmodified-since",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
];

/// By what a request is known when it comes again, as it is kept with the object that it gave a key: a half that tells
/// whose token it is and which, and a half that tells what else the request said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub [u8; 32]);

impl Token {
    /// Whether the request that gave an object its key is this one. Another request with the same token is refused.
    pub fn is(self, renamed: Option<[u8; 32]>) -> Result<bool, Refusal> {
        let Some(renamed) = renamed else {
            return Ok(false);
        };
        if renamed[..16] != self.0[..16] {
            return Ok(false);
        }
        if renamed == self.0 {
            return Ok(true);
        }
        refuse!(
            IdempotencyParameterMismatch,
            "A request with the same client token did something else: its parameters were others."
        )
    }
}

/// A request that gives an object another key of its bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename {
    /// The key that it has.
    pub source: String,
    /// By what the request is known again.
    pub token: Option<Token>,
    of_source: ReadIf,
    of_place: ReadIf,
}

impl Rename {
    /// From a request's headers; `account` is the caller's, `bucket` and `key` what its path names.
    pub fn parse<'a>(
        header: impl Fn(&str) -> Option<&'a str>,
        account: &str,
        (bucket, key): (&str, &str),
    ) -> Result<Rename, Refusal> {
        let [
            source,
            s_match,
            s_none,
            s_modified,
            s_unmodified,
            matches,
            none,
            modified,
            unmodified,
        ] = TOLD.map(&header);
        let source = match source.filter(|text| !text.is_empty()) {
            Some(source) => source_key(source, bucket)?,
            None => {
                return refuse!(InvalidRequest, "The x-amz-rename-source header is missing");
            }
        };
        if source == key {
            return refuse!(
                InvalidRequest,
                "This rename request is illegal because the source and the destination are the same object."
            );
        }
        let of_place = ReadIf::parse(matches, none, modified, unmodified);
        if !matches!(of_place.none_matches, None | Some(Etags::Any)) {
            return refuse!(
                NotImplemented,
                "The If-None-Match of a rename is of what it would replace, and takes the value * only"
            );
        }
        let token = match header("x-amz-client-token") {
            None => None,
            Some(text) => {
                let printable = text.bytes().all(|byte| (33..=126).contains(&byte));
                if text.is_empty() || text.len() > TOKEN_MAX || !printable {
                    return refuse!(
                        InvalidArgument,
                        "A client token has 1 to {TOKEN_MAX} characters of ASCII, from 33 to 126"
                    );
                }
                let mut said = vec![Some(bucket), Some(key)];
                said.extend(TOLD.map(&header));
                let mut token = [0; 32];
                token[..16].copy_from_slice(&half(&[Some(account), Some(text)]));
                token[16..].copy_from_slice(&half(&said));
                Some(Token(token))
            }
        };
        Ok(Rename {
            source,
            token,
            of_source: ReadIf::parse(s_match, s_none, s_modified, s_unmodified),
            of_place,
        })
    }

    /// Whether the object is one that is to get another key.
    pub fn check_source(&self, etag: &str, modified_ms: u64) -> Result<(), Refusal> {
        let checked = self.of_source.check(etag, modified_ms);
        checked.map_err(|_| unmet("x-amz-rename-source-if"))
    }

    /// What it is to be proposed with, by what stands where it is to be, and when that was made.
    pub fn decide(&self, current: Option<(&Current, u64)>) -> Result<Precondition, Refusal> {
        let place = &self.of_place;
        let unconditional = *place == ReadIf::default();
        match current {
            _ if unconditional => Ok(Precondition::None),
            Some((current, modified_ms)) => match place.check(&current.etag, modified_ms) {
                Ok(()) => Ok(Precondition::Version(current.version)),
                Err(_) => Err(unmet(
                    "If-Match, If-None-Match, If-Modified-Since or If-Unmodified-Since",
                )),
            },
            // What is not there has no ETag, and was not modified.
            None if place.matches.is_some() || place.modified_since.is_some() => {
                Err(unmet("there is no object under the new key"))
            }
            None => Ok(Precondition::Absent),
        }
    }
}

fn unmet(what: &str) -> Refusal {
    let message = format!("At least one of the pre-conditions you specified did not hold ({what})");
    Refusal::new(Code::PreconditionFailed, message)
}

/// Half a digest of texts, some of which may not be there.
fn half(texts: &[Option<&str>]) -> [u8; 16] {
    let mut all = Vec::new();
    for text in texts {
        let len = text.map_or(u64::MAX, |text| text.len() as u64);
        all.extend_from_slice(&len.to_le_bytes());
        all.extend_from_slice(text.unwrap_or_default().as_bytes());
    }
    let mut half = [0; 16];
    let whole = digest(Algorithm::Sha256, &all);
    half.copy_from_slice(&whole[..16]);
    half
}

/// The key that the header names: as `/bucket/key`, or as the key alone. One that begins with a slash of its own is
/// told by the percents that it comes in.
fn source_key(header: &str, bucket: &str) -> Result<String, Refusal> {
    // As in the header that names what is to be copied: a plus that is meant is in percents.
    let Some(decoded) = percent_decode(&header.replace('+', " ")) else {
        return refuse!(
            InvalidArgument,
            "The x-amz-rename-source header is not URL-encoded"
        );
    };
    let key = match header.starts_with('/') {
        false => decoded.as_str(),
        true => match decoded[1..].split_once('/') {
            Some((named, key)) if named == bucket => key,
            _ => {
                return refuse!(
                    InvalidRequest,
                    "An object is renamed within its bucket: the x-amz-rename-source header is a key, or /{bucket}/ \
                     and a key"
                );
            }
        },
    };
    if key.is_empty() {
        return refuse!(
            InvalidArgument,
            "The x-amz-rename-source header names no key"
        );
    }
    if key.len() > ashlar_layout::limits::KEY_MAX {
        return refuse!(KeyTooLongError, "Your key is too long");
    }
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests {
    use ashlar_layout::ids::Seq;

    use super::*;
    use crate::calendar::http_date;

    const TIME: u64 = 1_700_000_000_999;

    fn parse(headers: &[(&str, &str)]) -> Result<Rename, Code> {
        let header = |name: &str| {
            let found = headers.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| *value)
        };
        Rename::parse(header, "account", ("bucket", "new")).map_err(|refusal| refusal.code)
    }

    fn with(headers: &[(&str, &str)]) -> Rename {
        let source = [("x-amz-rename-source", "old")];
        parse(&[&source[..], headers].concat()).unwrap()
    }

    #[test]
    fn which_object() {
        let source = |text| parse(&[("x-amz-rename-source", text)]).map(|it| it.source);
        for (text, key) in [
            ("old", "old"),
            ("a/b", "a/b"),
            ("/bucket/a/b", "a/b"),
            ("/bucket//a", "/a"),
            ("%2Fbucket/a", "/bucket/a"),
            ("bucket/a", "bucket/a"),
            ("a%20b%2Bc+d", "a b+c d"),
            ("%C3%A4", "ä"),
        ] {
            assert_eq!(source(text).as_deref(), Ok(key), "{text}");
        }
        for (text, code) in [
            ("", Code::InvalidRequest),
            ("new", Code::InvalidRequest),
            ("/bucket/new", Code::InvalidRequest),
            ("/other/a", Code::InvalidRequest),
            ("/old", Code::InvalidRequest),
            ("/bucket/", Code::InvalidArgument),
            ("%zz", Code::InvalidArgument),
            ("%ff", Code::InvalidArgument),
        ] {
            assert_eq!(source(text), Err(code), "{text}");
        }
        assert_eq!(parse(&[]), Err(Code::InvalidRequest));
        assert_eq!(source(&"k".repeat(1025)), Err(Code::KeyTooLongError));
    }

    #[test]
    fn conditions_of_the_source() {
        let check = |headers: &[(&str, &str)]| {
            let checked = with(headers).check_source("e", TIME);
            checked.map_err(|refusal| refusal.code)
        };
        let failed = Err(Code::PreconditionFailed);
        let (at, before) = (http_date(TIME), http_date(TIME - 1000));
        for (name, value, expected) in [
            ("if-match", "\"e\"", Ok(())),
            ("if-match", "\"f\"", failed),
            ("if-none-match", "\"f\"", Ok(())),
            ("if-none-match", "\"e\"", failed),
            ("if-none-match", "*", failed),
            ("if-modified-since", before.as_str(), Ok(())),
            ("if-modified-since", at.as_str(), failed),
            ("if-unmodified-since", at.as_str(), Ok(())),
            ("if-unmodified-since", before.as_str(), failed),
        ] {
            let name = format!("x-amz-rename-source-{name}");
            assert_eq!(check(&[(&name, value)]), expected, "{name}: {value}");
        }
        assert_eq!(check(&[("if-match", "\"f\"")]), Ok(()), "of the other one");
    }

    #[test]
    fn conditions_of_what_is_replaced() {
        let there = Current {
            etag: "e".into(),
            version: Seq(7),
        };
        let decide = |headers: &[(&str, &str)], there: Option<&Current>| {
            let decided = with(headers).decide(there.map(|it| (it, TIME)));
            decided.map_err(|refusal| refusal.code)
        };
        let failed = Err(Code::PreconditionFailed);
        let (same, absent) = (Ok(Precondition::Version(Seq(7))), Ok(Precondition::Absent));
        let (at, before) = (http_date(TIME), http_date(TIME - 1000));
        for (name, value, if_there, if_absent) in [
            ("if-match", "\"e\"", same, failed),
            ("if-match", "*", same, failed),
            ("if-match", "\"f\"", failed, failed),
            ("if-none-match", "*", failed, absent),
            ("if-modified-since", before.as_str(), same, failed),
            ("if-modified-since", at.as_str(), failed, failed),
            ("if-unmodified-since", at.as_str(), same, absent),
            ("if-unmodified-since", before.as_str(), failed, absent),
        ] {
            let decided = |there| decide(&[(name, value)], there).map_err(|code: Code| code);
            assert_eq!(decided(Some(&there)), if_there, "{name}: {value}");
            assert_eq!(decided(None), if_absent, "{name}: {value}");
        }
        assert_eq!(decide(&[], Some(&there)), Ok(Precondition::None));
        assert_eq!(decide(&[], None), Ok(Precondition::None));
        let source = ("x-amz-rename-source", "old");
        assert_eq!(
            parse(&[source, ("if-none-match", "\"e\"")]),
            Err(Code::NotImplemented)
        );
    }

    #[test]
    fn a_request_is_known_again() {
        let source = ("x-amz-rename-source", "old");
        let token = |text, more: &[(&str, &str)]| {
            let headers = [&[source, ("x-amz-client-token", text)][..], more].concat();
            parse(&headers).map(|it| it.token.unwrap())
        };
        assert_eq!(parse(&[source]).unwrap().token, None);
        let first = token("abc", &[]).unwrap();
        assert_eq!(token("abc", &[]), Ok(first));
        assert_eq!(first.is(Some(first.0)), Ok(true));
        assert_eq!(first.is(None), Ok(false));
        let other = token("abd", &[]).unwrap();
        assert_eq!(other.is(Some(first.0)), Ok(false));
        let more = token("abc", &[("if-match", "\"e\"")]).unwrap();
        let mismatch = more.is(Some(first.0)).unwrap_err();
        assert_eq!(mismatch.code, Code::IdempotencyParameterMismatch);
        let header = |name: &str| {
            [source, ("x-amz-client-token", "abc")]
                .iter()
                .find(|it| it.0 == name)
                .map(|it| it.1)
        };
        let another = Rename::parse(header, "another", ("bucket", "new")).unwrap();
        assert_eq!(another.token.unwrap().is(Some(first.0)), Ok(false));
        let (long, longer) = ("x".repeat(64), "x".repeat(65));
        for bad in ["", "a b", "ä", &longer] {
            assert_eq!(token(bad, &[]), Err(Code::InvalidArgument), "{bad}");
        }
        token(&long, &[]).unwrap();
    }
}

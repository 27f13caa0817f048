//! ETags, and requests that depend on them or on times.
//!
//! Invariants:
//! - of two conditions that are about the same, the one on the ETag decides;
//! - what a conditional write is proposed with holds exactly while what was decided here does: the
//!   journal refuses it if the object has changed since.

use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Manifest, Precondition};

use crate::calendar::parse_http_date;
use crate::refusal::{Code, Refusal, refuse};

/// An object's ETag, without quotes. One whose writer made none has one by its version.
pub fn etag(manifest: &Manifest, version: Seq) -> String {
    if manifest.etag.is_none() {
        etag_of(manifest.size, manifest.crc, version)
    } else {
        manifest.etag.to_string()
    }
}

/// The ETag of an object whose writer made none.
pub fn etag_of(size: u64, crc: u32, version: Seq) -> String {
    format!("{crc:08x}{:08x}{:016x}", size as u32, version.0)
}

/// The ETags that a header names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Etags {
    /// Any: is there an object at all?
    Any,
    /// One of these.
    These(Vec<String>),
}

impl Etags {
    /// From a header: `*`, or tags, with or without quotes, commas between.
    pub fn parse(header: &str) -> Etags {
        if header.trim() == "*" {
            return Etags::Any;
        }
        let one = |tag: &str| {
            let tag = tag.trim();
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            let inner = tag.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
            inner.unwrap_or(tag).to_owned()
        };
        Etags::These(header.split(',').map(one).collect())
    }

    /// Whether an ETag is one of them.
    pub fn name(&self, etag: &str) -> bool {
        match self {
            Etags::Any => true,
            Etags::These(tags) => tags.iter().any(|tag| tag == etag),
        }
    }
}

/// The conditions of a read, or of a copy's source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadIf {
    /// `If-Match`
    pub matches: Option<Etags>,
    /// `If-None-Match`
    pub none_matches: Option<Etags>,
    /// `If-Modified-Since`, in milliseconds since 1970
    pub modified_since: Option<u64>,
    /// `If-Unmodified-Since`
    pub unmodified_since: Option<u64>,
}

impl ReadIf {
    /// From headers' values. A date that is none is as if it were not there, as HTTP has it.
    pub fn parse(
        matches: Option<&str>,
        none_matches: Option<&str>,
        modified_since: Option<&str>,
        unmodified_since: Option<&str>,
    ) -> ReadIf {
        ReadIf {
            matches: matches.map(Etags::parse),
            none_matches: none_matches.map(Etags::parse),
            modified_since: modified_since.and_then(parse_http_date),
            unmodified_since: unmodified_since.and_then(parse_http_date),
        }
    }

    /// Whether an object is to be read: else it is `NotModified` or `PreconditionFailed`.
    pub fn check(&self, etag: &str, modified_ms: u64) -> Result<(), Refusal> {
        // HTTP's dates have seconds.
        let modified = modified_ms / 1000 * 1000;
        match (&self.matches, self.unmodified_since) {
            (Some(tags), _) if !tags.name(etag) => return failed("If-Match"),
            (None, Some(since)) if modified > since => return failed("If-Unmodified-Since"),
            _ => {}
        }
        match (&self.none_matches, self.modified_since) {
            (Some(tags), _) if tags.name(etag) => not_modified(),
            (None, Some(since)) if modified <= since => not_modified(),
            _ => Ok(()),
        }
    }

    /// Whether an object is to be copied: it is never `NotModified`.
    pub fn check_copy(&self, etag: &str, modified_ms: u64) -> Result<(), Refusal> {
        match self.check(etag, modified_ms) {
            Err(refusal) if refusal.code == Code::NotModified => failed("x-amz-copy-source-If"),
            other => other,
        }
    }
}

fn failed(condition: &str) -> Result<(), Refusal> {
    refuse!(
        PreconditionFailed,
        "At least one of the pre-conditions you specified did not hold: {condition}"
    )
}

fn not_modified() -> Result<(), Refusal> {
    refuse!(NotModified, "Not Modified")
}

/// Whether a part is wanted that `If-Range` names: if the object is another one, all is wanted.
pub fn range_stands(if_range: &str, etag: &str, modified_ms: u64) -> bool {
    match parse_http_date(if_range) {
        Some(date) => modified_ms / 1000 * 1000 == date,
        None => !if_range.trim().starts_with("W/") && Etags::parse(if_range).name(etag),
    }
}

/// The condition of a write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WriteIf {
    /// None.
    #[default]
    Always,
    /// `If-None-Match: *`
    Absent,
    /// `If-Match`
    Matches(Etags),
}

/// What stands where something is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    /// Its ETag.
    pub etag: String,
    /// Its version.
    pub version: Seq,
}

impl WriteIf {
    /// From headers' values. What is none of S3's conditions is refused.
    pub fn parse(matches: Option<&str>, none_matches: Option<&str>) -> Result<WriteIf, Refusal> {
        match (matches, none_matches) {
            (None, None) => Ok(WriteIf::Always),
            (Some(tags), None) => Ok(WriteIf::Matches(Etags::parse(tags))),
            (None, Some(star)) if star.trim() == "*" => Ok(WriteIf::Absent),
            _ => refuse!(
                NotImplemented,
                "A write takes If-Match, or If-None-Match with the value *, and not both"
            ),
        }
    }

    /// What the write is to be proposed with, if it is to be done at all.
    pub fn decide(&self, current: Option<&Current>) -> Result<Precondition, Refusal> {
        match (self, current) {
            (WriteIf::Always, _) => Ok(Precondition::None),
            (WriteIf::Absent, None) => Ok(Precondition::Absent),
            (WriteIf::Absent, Some(_)) => Err(precondition_failed("If-None-Match")),
            (WriteIf::Matches(_), None) => {
                refuse!(NoSuchKey, "The specified key does not exist.")
            }
            (WriteIf::Matches(tags), Some(current)) if tags.name(&current.etag) => {
                Ok(Precondition::Version(current.version))
            }
            (WriteIf::Matches(_), Some(_)) => Err(precondition_failed("If-Match")),
        }
    }

    /// What a write that the journal refused is answered with, when this stands there now; or what it
    /// is to be proposed with again, if the condition holds all the same.
    pub fn decide_again(&self, current: Option<&Current>) -> Result<Precondition, Refusal> {
        match (self, current) {
            // It was there, and is gone: whoever is asked would be wrong.
            (WriteIf::Matches(_), None) => refuse!(
                ConditionalRequestConflict,
                "The conditional request cannot succeed due to a conflicting operation against this \
                 resource."
            ),
            // Somebody was faster.
            (WriteIf::Absent, _) => Err(precondition_failed("If-None-Match")),
            _ => self.decide(current),
        }
    }
}

fn precondition_failed(condition: &str) -> Refusal {
    let message =
        format!("At least one of the pre-conditions you specified did not hold: {condition}");
    Refusal::new(Code::PreconditionFailed, message)
}

#[cfg(test)]
mod tests {
    use ashlar_layout::manifest::{Body, Etag};

    use super::*;
    use crate::calendar::http_date;

    const TIME: u64 = 1_700_000_000_999;

    fn read(conditions: [Option<&str>; 4]) -> Option<Code> {
        let [matches, none, modified, unmodified] = conditions;
        let conditions = ReadIf::parse(matches, none, modified, unmodified);
        conditions.check("e", TIME).err().map(|r| r.code)
    }

    #[test]
    fn reads() {
        let (failed, same) = (Some(Code::PreconditionFailed), Some(Code::NotModified));
        let at = http_date(TIME);
        let before = http_date(TIME - 1000);
        let after = http_date(TIME + 1000);
        let (at, before, after) = (
            Some(at.as_str()),
            Some(before.as_str()),
            Some(after.as_str()),
        );
        let (yes, no, any) = (Some("\"e\""), Some("\"f\""), Some("*"));
        for (conditions, expected) in [
            ([None; 4], None),
            ([yes, None, None, None], None),
            ([Some("x, W/\"e\""), None, None, None], None),
            ([Some("e"), None, None, None], None),
            ([any, None, None, None], None),
            ([no, None, None, None], failed),
            ([None, yes, None, None], same),
            ([None, any, None, None], same),
            ([None, no, None, None], None),
            ([None, None, at, None], same),
            ([None, None, after, None], same),
            ([None, None, before, None], None),
            ([None, None, None, at], None),
            ([None, None, None, before], failed),
            ([None, None, Some("x"), Some("x")], None),
            // The ETag decides.
            ([yes, None, None, before], None),
            ([no, None, None, after], failed),
            ([None, no, after, None], None),
            ([None, yes, before, None], same),
            ([no, yes, None, None], failed),
            ([yes, yes, None, None], same),
        ] {
            assert_eq!(read(conditions), expected, "{conditions:?}");
        }
        let copy = ReadIf::parse(None, yes, None, None);
        assert_eq!(
            copy.check_copy("e", TIME).unwrap_err().code,
            Code::PreconditionFailed
        );
        copy.check_copy("f", TIME).unwrap();
    }

    #[test]
    fn if_range() {
        assert!(range_stands("\"e\"", "e", TIME) && range_stands(&http_date(TIME), "e", TIME));
        assert!(!range_stands("\"f\"", "e", TIME) && !range_stands("W/\"e\"", "e", TIME));
        assert!(!range_stands(&http_date(TIME + 1000), "e", TIME));
    }

    #[test]
    fn writes() {
        let current = Current {
            etag: "e".into(),
            version: Seq(7),
        };
        let now = Some(&current);
        let write = |matches, none| WriteIf::parse(matches, none).unwrap();
        let code = |decided: Result<Precondition, Refusal>| decided.map_err(|r| r.code);
        let (always, absent) = (write(None, None), write(None, Some("*")));
        let (same, other) = (write(Some("\"e\""), None), write(Some("\"f\""), None));
        assert_eq!(code(always.decide(now)), Ok(Precondition::None));
        assert_eq!(code(absent.decide(None)), Ok(Precondition::Absent));
        assert_eq!(code(absent.decide(now)), Err(Code::PreconditionFailed));
        assert_eq!(code(same.decide(now)), Ok(Precondition::Version(Seq(7))));
        assert_eq!(
            code(write(Some("*"), None).decide(now)),
            Ok(Precondition::Version(Seq(7)))
        );
        assert_eq!(code(same.decide(None)), Err(Code::NoSuchKey));
        assert_eq!(code(other.decide(now)), Err(Code::PreconditionFailed));
        // The race was lost, or only seems to be.
        assert_eq!(
            code(same.decide_again(now)),
            Ok(Precondition::Version(Seq(7)))
        );
        assert_eq!(
            code(same.decide_again(None)),
            Err(Code::ConditionalRequestConflict)
        );
        assert_eq!(code(other.decide_again(now)), Err(Code::PreconditionFailed));
        assert_eq!(
            code(absent.decide_again(None)),
            Err(Code::PreconditionFailed)
        );
        for (matches, none) in [(None, Some("\"e\"")), (Some("\"e\""), Some("*"))] {
            let error = WriteIf::parse(matches, none).unwrap_err();
            assert_eq!(error.code, Code::NotImplemented);
        }
    }

    #[test]
    fn etags_of_objects_that_have_none() {
        let mut manifest = Manifest::plain(300, 0xabc, Body::Inline);
        let made = etag(&manifest, Seq(5));
        assert_eq!(made, "00000abc0000012c0000000000000005");
        assert_ne!(made, etag(&manifest, Seq(6)));
        manifest.etag = Etag {
            md5: [1; 16],
            parts: 2,
        };
        assert_eq!(etag(&manifest, Seq(5)), format!("{}-2", "01".repeat(16)));
    }
}

//! Rules of what becomes of objects and uploads as they grow old.
//!
//! Invariants:
//! - a rule is only kept if all of it is understood;
//! - what is decided of an object is a function of the rules, the object and the time; the earliest rule
//!   that says something decides, and nothing is done before its time.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::calendar::DAY_MS;
use crate::refusal::{Refusal, refuse};
use crate::tags::Tags;

/// Most rules of a bucket.
pub const RULES_MAX: usize = 1000;

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum When {
    /// So many days after it was made.
    Days(u32),
    /// On a day: milliseconds since 1970, midnight.
    Date(u64),
}

/// What a rule is about. All that is said must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Keys begin with this.
    pub prefix: String,
    /// Objects have these tags.
    pub tags: Tags,
    /// Objects are larger than this,
    pub larger_than: Option<u64>,
    /// and smaller than this.
    pub smaller_than: Option<u64>,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LifecycleRule {
    /// Its name.
    pub id: String,
    /// Whether it counts.
    pub enabled: bool,
    /// What it is about.
    pub filter: Filter,
    /// It was said as rules were before there were filters: as a prefix alone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bare_prefix: bool,
    /// Objects end then.
    pub expiration: Option<When>,
    /// Delete markers that nothing is under any more end.
    pub expired_markers: bool,
    /// Versions end so many days after another took their place,
    pub noncurrent_days: Option<u32>,
    /// but so many of the newest stay.
    pub noncurrent_kept: u32,
    /// Uploads end so many days after they began.
    pub abort_days: Option<u32>,
}

/// An object that a rule may be about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its key.
    pub key: &'a str,
    /// Its bytes.
    pub size: u64,
    /// Its tags.
    pub tags: &'a [(String, String)],
    /// When it was made, milliseconds since 1970.
    pub modified_ms: u64,
}

impl Filter {
    /// Whether it takes this object.
    pub fn takes(&self, subject: &Subject<'_>) -> bool {
        subject.key.starts_with(&self.prefix)
            && self.tags.iter().all(|tag| subject.tags.contains(tag))
            && self.larger_than.is_none_or(|size| subject.size > size)
            && self.smaller_than.is_none_or(|size| subject.size < size)
    }

    /// Whether it asks for something that only objects have.
    pub(crate) fn is_of_objects(&self) -> bool {
        !self.tags.is_empty() || self.larger_than.is_some() || self.smaller_than.is_some()
    }
}

/// Midnight after `days` days have gone by, as S3 counts.
fn days_after(from_ms: u64, days: u32) -> u64 {
    let at = from_ms.saturating_add(u64::from(days).saturating_mul(DAY_MS));
    at.div_ceil(DAY_MS).saturating_mul(DAY_MS)
}

impl When {
    /// Of an object that was made then.
    pub(crate) fn of(self, modified_ms: u64) -> u64 {
        match self {
            When::Days(days) => days_after(modified_ms, days),
            When::Date(at) => at.max(modified_ms),
        }
    }
}

/// When an object ends, and by which rule. It has come if that is not after now.
pub fn expires<'a>(rules: &'a [LifecycleRule], subject: &Subject<'_>) -> Option<(u64, &'a str)> {
    rules
        .iter()
        .filter(|rule| rule.enabled && rule.filter.takes(subject))
        .filter_map(|rule| Some((rule.expiration?.of(subject.modified_ms), rule.id.as_str())))
        .min_by_key(|(at, _)| *at)
}

/// Whether an object may have ended by now, whatever tags it has: what a listing tells of it is enough to ask.
pub fn may_have_ended(
    rules: &[LifecycleRule],
    key: &str,
    size: u64,
    modified_ms: u64,
    now_ms: u64,
) -> bool {
    rules.iter().any(|rule| {
        let subject = Subject {
            key,
            size,
            tags: &rule.filter.tags,
            modified_ms,
        };
        let ended = |when: When| when.of(modified_ms) <= now_ms;
        rule.enabled && rule.filter.takes(&subject) && rule.expiration.is_some_and(ended)
    })
}

/// When a version ends that was displaced at `displaced_ms`, if `newer` noncurrent ones are newer.
pub fn noncurrent_expires(
    rules: &[LifecycleRule],
    subject: &Subject<'_>,
    displaced_ms: u64,
    newer: u32,
) -> Option<u64> {
    rules
        .iter()
        .filter(|rule| rule.enabled && rule.filter.takes(subject) && newer >= rule.noncurrent_kept)
        .filter_map(|rule| Some(days_after(displaced_ms, rule.noncurrent_days?)))
        .min()
}

/// When an upload ends that began at `begun_ms`, and by which rule.
pub fn upload_expires<'a>(
    rules: &'a [LifecycleRule],
    key: &str,
    begun_ms: u64,
) -> Option<(u64, &'a str)> {
    rules
        .iter()
        .filter(|rule| rule.enabled && key.starts_with(&rule.filter.prefix))
        .filter_map(|rule| Some((days_after(begun_ms, rule.abort_days?), rule.id.as_str())))
        .min_by_key(|(at, _)| *at)
}

/// Checks rules that are to be kept.
pub fn check(rules: &[LifecycleRule]) -> Result<(), Refusal> {
    if rules.is_empty() || rules.len() > RULES_MAX {
        return refuse!(
            MalformedXML,
            "A lifecycle configuration has 1 to {RULES_MAX} rules"
        );
    }
    let mut ids = BTreeSet::new();
    for rule in rules {
        if rule.id.chars().count() > 255 {
            return refuse!(
                InvalidArgument,
                "ID length should not exceed allowed limit of 255"
            );
        }
        if !ids.insert(&rule.id) {
            return refuse!(
                InvalidArgument,
                "Rule ID must be unique. Found same ID for more than one rule"
            );
        }
        crate::tags::check(&rule.filter.tags, crate::tags::OBJECT_TAGS_MAX)?;
        let days = [rule.noncurrent_days, rule.abort_days];
        let days = days.into_iter().flatten().chain(match rule.expiration {
            Some(When::Days(days)) => Some(days),
            _ => None,
        });
        if days.into_iter().any(|days| days == 0) {
            return refuse!(
                InvalidArgument,
                "'Days' for Expiration action must be a positive integer"
            );
        }
        if let Some(When::Date(at)) = rule.expiration
            && !at.is_multiple_of(DAY_MS)
        {
            return refuse!(InvalidArgument, "'Date' must be at midnight GMT");
        }
        if rule.noncurrent_kept > 100 {
            return refuse!(
                InvalidArgument,
                "'NewerNoncurrentVersions' must be 1 to 100"
            );
        }
        let nothing = rule.expiration.is_none()
            && !rule.expired_markers
            && rule.noncurrent_days.is_none()
            && rule.abort_days.is_none();
        if nothing {
            return refuse!(
                InvalidRequest,
                "At least one action needs to be specified in a rule"
            );
        }
        if rule.expired_markers && rule.expiration.is_some() {
            return refuse!(
                MalformedXML,
                "ExpiredObjectDeleteMarker goes with neither Days nor Date"
            );
        }
        if rule.filter.is_of_objects() && (rule.abort_days.is_some() || rule.expired_markers) {
            return refuse!(
                InvalidRequest,
                "AbortIncompleteMultipartUpload and ExpiredObjectDeleteMarker take no filter but a prefix"
            );
        }
        if let (Some(more), Some(less)) = (rule.filter.larger_than, rule.filter.smaller_than)
            && more >= less
        {
            return refuse!(
                InvalidRequest,
                "'ObjectSizeGreaterThan' has to be a value smaller than 'ObjectSizeLessThan'"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Code;

    const DAY: u64 = DAY_MS;

    fn rule(id: &str, change: impl Fn(&mut LifecycleRule)) -> LifecycleRule {
        let mut rule = LifecycleRule {
            id: id.to_owned(),
            enabled: true,
            expiration: Some(When::Days(3)),
            ..LifecycleRule::default()
        };
        change(&mut rule);
        rule
    }

    fn subject<'a>(key: &'a str, tags: &'a [(String, String)]) -> Subject<'a> {
        Subject {
            key,
            size: 100,
            tags,
            modified_ms: 10 * DAY + 5,
        }
    }

    #[test]
    fn the_earliest_rule_decides() {
        let rules = [
            rule("off", |r| {
                (r.enabled, r.expiration) = (false, Some(When::Days(1)))
            }),
            rule("all", |_| {}),
            rule("logs", |r| {
                r.filter.prefix = "logs/".into();
                r.expiration = Some(When::Days(1));
            }),
            rule("date", |r| {
                r.filter.prefix = "once/".into();
                r.expiration = Some(When::Date(11 * DAY));
            }),
        ];
        check(&rules).unwrap();
        // Midnight after three whole days.
        assert_eq!(expires(&rules, &subject("x", &[])), Some((14 * DAY, "all")));
        assert_eq!(
            expires(&rules, &subject("logs/x", &[])),
            Some((12 * DAY, "logs"))
        );
        assert_eq!(
            expires(&rules, &subject("once/x", &[])),
            Some((11 * DAY, "date"))
        );
        assert_eq!(expires(&rules[..1], &subject("x", &[])), None);
        let mut exact = subject("x", &[]);
        exact.modified_ms = 10 * DAY;
        assert_eq!(expires(&rules, &exact), Some((13 * DAY, "all")));
    }

    #[test]
    fn what_a_listing_tells_is_enough_to_ask() {
        let rules = [rule("x", |r| {
            r.filter.prefix = "a".into();
            r.filter.tags = vec![("a".into(), "b".into())];
            r.filter.larger_than = Some(5);
        })];
        let may = |key, size, now| may_have_ended(&rules, key, size, 10 * DAY, now);
        assert!(may("ab", 6, 13 * DAY));
        assert!(!may("ab", 6, 13 * DAY - 1) && !may("ab", 5, 13 * DAY) && !may("b", 6, 13 * DAY));
    }

    #[test]
    fn filters() {
        let tags = [
            ("a".to_owned(), "b".to_owned()),
            ("c".to_owned(), "d".to_owned()),
        ];
        let takes = |change: fn(&mut Filter), tags: &[(String, String)]| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter.takes(&subject("k/x", tags))
        };
        assert!(takes(|_| {}, &[]));
        assert!(takes(|f| f.prefix = "k/".into(), &[]) && !takes(|f| f.prefix = "k/y".into(), &[]));
        let tagged = |f: &mut Filter| f.tags = vec![("a".into(), "b".into())];
        assert!(takes(tagged, &tags) && !takes(tagged, &tags[1..]));
        assert!(
            takes(|f| f.larger_than = Some(99), &[]) && !takes(|f| f.larger_than = Some(100), &[])
        );
        assert!(
            takes(|f| f.smaller_than = Some(101), &[])
                && !takes(|f| f.smaller_than = Some(100), &[])
        );
    }

    #[test]
    fn versions_and_uploads() {
        let rules = [rule("v", |r| {
            (r.expiration, r.noncurrent_days, r.noncurrent_kept) = (None, Some(2), 1);
            r.abort_days = Some(7);
            r.filter.prefix = "k".into();
        })];
        check(&rules).unwrap();
        let version = |newer| noncurrent_expires(&rules, &subject("k", &[]), 20 * DAY, newer);
        assert_eq!((version(0), version(1)), (None, Some(22 * DAY)));
        assert_eq!(
            upload_expires(&rules, "k/x", 30 * DAY + 1),
            Some((38 * DAY, "v"))
        );
        assert_eq!(upload_expires(&rules, "x", 30 * DAY), None);
    }

    #[test]
    fn rules_that_are_refused() {
        let code = |change: fn(&mut LifecycleRule)| check(&[rule("x", change)]).unwrap_err().code;
        assert_eq!(check(&[]).unwrap_err().code, Code::MalformedXML);
        assert_eq!(code(|r| r.expiration = None), Code::InvalidRequest);
        assert_eq!(
            code(|r| r.expiration = Some(When::Days(0))),
            Code::InvalidArgument
        );
        assert_eq!(
            code(|r| r.expiration = Some(When::Date(5))),
            Code::InvalidArgument
        );
        assert_eq!(code(|r| r.abort_days = Some(0)), Code::InvalidArgument);
        assert_eq!(code(|r| r.noncurrent_kept = 101), Code::InvalidArgument);
        assert_eq!(code(|r| r.id = "x".repeat(256)), Code::InvalidArgument);
        assert_eq!(code(|r| r.expired_markers = true), Code::MalformedXML);
        let tagged = |r: &mut LifecycleRule| {
            r.filter.tags = vec![("a".into(), "b".into())];
            r.abort_days = Some(1);
        };
        assert_eq!(code(tagged), Code::InvalidRequest);
        let sizes = |r: &mut LifecycleRule| {
            (r.filter.larger_than, r.filter.smaller_than) = (Some(5), Some(5));
        };
        assert_eq!(code(sizes), Code::InvalidRequest);
        let twice = [rule("x", |_| {}), rule("x", |_| {})];
        assert_eq!(check(&twice).unwrap_err().code, Code::InvalidArgument);
    }
}

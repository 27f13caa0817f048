//! When a bucket's lifecycle rules are to be gone through, by whom, and what is recorded of that.
//!
//! Invariants:
//! - one gateway at a time goes through a bucket, as long as the clocks agree: it has the bucket for a while,
//!   and says again that it has. Two that take it at once do no harm: what they remove they remove conditionally;
//! - a bucket is gone through once after each midnight (nothing ends at another time), when its rules have
//!   changed, and again a while after something of it could not be removed;
//! - what was gone through is not gone through again because a gateway died: where it was is recorded.

use serde::{Deserialize, Serialize};

use crate::bucket::{BadDocument, BucketConfig, from_json, to_json};
use crate::calendar::DAY_MS;
use crate::checksum::{Algorithm, digest};
use crate::lifecycle::LifecycleRule;
use crate::refusal::Refusal;

/// Version of the document.
pub const VERSION: u32 = 1;
/// Largest document, in bytes: the largest key, escaped, and numbers.
const RECORD_MAX: usize = 16 * 1024;
/// For how long a gateway has a bucket, unless it says so again.
pub const LEASE_MS: u64 = 120_000;
/// After how long a gateway says so again.
pub const RENEW_MS: u64 = LEASE_MS / 4;
/// After how long what failed is tried again.
const RETRY_MS: u64 = 60 * 60 * 1000;

/// What the keys of all records begin with.
pub const SWEEPS: &str = "lifecycle/";

/// The key of the record of a bucket.
pub fn sweep_key(bucket: &str) -> String {
    format!("{SWEEPS}{bucket}")
}

/// What tells a bucket's rules from others, and from those of an earlier bucket of its name.
pub fn fingerprint(config: &BucketConfig) -> u64 {
    let about = (config.made_by, &config.owner, &config.lifecycle);
    // What was read from JSON can be written as such.
    let text = serde_json::to_vec(&about).unwrap_or_default();
    let digest = digest(Algorithm::Sha256, &text);
    digest
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// What came of going through a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tally {
    /// Objects and uploads that were looked at.
    pub seen: u64,
    /// Objects that were removed.
    pub removed: u64,
    /// Uploads that were given up.
    pub aborted: u64,
    /// Those of them that could not be.
    pub failed: u64,
}

/// A bucket that is being gone through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Going {
    /// The gateway's number.
    pub by: u64,
    /// Until when it has the bucket.
    pub until_ms: u64,
    /// When it was begun, by whomever.
    pub begun_ms: u64,
    /// Which rules: their [`fingerprint`].
    pub rules: u64,
    /// Behind which object it goes on; none when all were looked at.
    pub after: Option<String>,
    /// What came of it so far.
    pub tally: Tally,
}

/// A bucket that was gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gone {
    /// When it was begun,
    pub begun_ms: u64,
    /// and when it had ended.
    pub ended_ms: u64,
    /// Which rules: their [`fingerprint`].
    pub rules: u64,
    /// What came of it.
    pub tally: Tally,
}

/// What is recorded of a bucket's lifecycle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepRecord {
    /// Of the document.
    pub version: u32,
    /// Who goes through it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub going: Option<Going>,
    /// The last time that it was gone through to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<Gone>,
}

impl SweepRecord {
    /// As bytes.
    pub fn encode(&self) -> Result<Vec<u8>, Refusal> {
        let record = SweepRecord {
            version: VERSION,
            ..self.clone()
        };
        to_json(&record, RECORD_MAX)
    }

    /// From its bytes.
    pub fn decode(bytes: &[u8]) -> Result<SweepRecord, BadDocument> {
        from_json(bytes, VERSION)
    }

    /// Whether the bucket, whose rules are these, is to be gone through.
    fn is_due(&self, rules: u64, now_ms: u64) -> bool {
        let midnight = now_ms - now_ms % DAY_MS;
        match &self.gone {
            None => true,
            Some(gone) => {
                gone.rules != rules
                    || gone.begun_ms < midnight
                    // By a clock that was wrong.
                    || gone.begun_ms > now_ms.saturating_add(RETRY_MS)
                    || gone.tally.failed > 0 && now_ms >= gone.ended_ms.saturating_add(RETRY_MS)
            }
        }
    }

    /// The record with which gateway `by` takes the bucket to go through it; none if that is not due, or
    /// somebody else has it. What somebody left unfinished, of the same rules and the same day, is gone on with.
    pub fn take(&self, by: u64, rules: u64, now_ms: u64) -> Option<SweepRecord> {
        if !self.is_due(rules, now_ms) {
            return None;
        }
        let midnight = now_ms - now_ms % DAY_MS;
        let unfinished = match &self.going {
            // A lease that ends later than any that is given now was given by a clock that is wrong.
            Some(going)
                if going.by != by
                    && going.rules == rules
                    && (now_ms..=now_ms.saturating_add(2 * LEASE_MS)).contains(&going.until_ms) =>
            {
                return None;
            }
            Some(going)
                if going.rules == rules && (midnight..=now_ms).contains(&going.begun_ms) =>
            {
                Some(going.clone())
            }
            _ => None,
        };
        let going = unfinished.unwrap_or(Going {
            by,
            until_ms: 0,
            begun_ms: now_ms,
            rules,
            after: Some(String::new()),
            tally: Tally::default(),
        });
        Some(SweepRecord {
            version: VERSION,
            going: Some(Going {
                by,
                until_ms: now_ms.saturating_add(LEASE_MS),
                ..going
            }),
            gone: self.gone,
        })
    }

    /// The record of who has the bucket and goes on: where it is, and what came of it.
    pub fn go_on(&mut self, after: Option<String>, tally: Tally, now_ms: u64) {
        if let Some(going) = &mut self.going {
            going.until_ms = now_ms.saturating_add(LEASE_MS);
            (going.after, going.tally) = (after, tally);
        }
    }

    /// The record of who has gone through all of the bucket.
    pub fn end(&mut self, tally: Tally, now_ms: u64) {
        if let Some(going) = self.going.take() {
            self.gone = Some(Gone {
                begun_ms: going.begun_ms,
                ended_ms: now_ms,
                rules: going.rules,
                tally,
            });
        }
    }
}

/// What the keys of all objects begin with that these rules can end, or versions of which; none if they end none.
pub fn common_prefix(rules: &[LifecycleRule]) -> Option<&str> {
    let mut prefixes = rules
        .iter()
        .filter(|rule| {
            let versions = rule.noncurrent_days.is_some() || rule.expired_markers;
            rule.enabled && (rule.expiration.is_some() || versions)
        })
        .map(|rule| rule.filter.prefix.as_str());
    let first = prefixes.next()?;
    Some(prefixes.fold(first, |common, prefix| {
        let same = common
            .char_indices()
            .zip(prefix.chars())
            .find(|((_, a), b)| a != b);
        let end = match same {
            Some(((at, _), _)) => at,
            None => common.len().min(prefix.len()),
        };
        &common[..end]
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::{Filter, When};

    const NOON: u64 = 100 * DAY_MS + DAY_MS / 2;

    fn rule(prefix: &str) -> LifecycleRule {
        LifecycleRule {
            enabled: true,
            filter: Filter {
                prefix: prefix.to_owned(),
                ..Filter::default()
            },
            expiration: Some(When::Days(1)),
            ..LifecycleRule::default()
        }
    }

    #[test]
    fn prefixes() {
        let common = |prefixes: &[&str]| {
            let rules: Vec<LifecycleRule> = prefixes.iter().map(|p| rule(p)).collect();
            common_prefix(&rules).map(str::to_owned)
        };
        assert_eq!(common(&[]), None);
        assert_eq!(common(&["logs/a"]).as_deref(), Some("logs/a"));
        assert_eq!(common(&["logs/a", "logs/b"]).as_deref(), Some("logs/"));
        assert_eq!(common(&["logs/", "logs"]).as_deref(), Some("logs"));
        assert_eq!(common(&["ä1", "ö1"]).as_deref(), Some(""));
        assert_eq!(common(&["ab", ""]).as_deref(), Some(""));
        let mut off = rule("x");
        off.enabled = false;
        assert_eq!(common_prefix(&[off]), None);
    }

    #[test]
    fn rules_are_told_apart() {
        let config = |made_by, prefix: &str| BucketConfig {
            lifecycle: vec![rule(prefix)],
            ..BucketConfig::new("111111111111", made_by)
        };
        let one = fingerprint(&config(1, "a"));
        let mut tagged = config(1, "a");
        tagged.tags.push(("a".to_owned(), "b".to_owned()));
        assert_eq!(one, fingerprint(&tagged));
        assert!(one != fingerprint(&config(1, "b")) && one != fingerprint(&config(2, "a")));
    }

    #[test]
    fn once_a_day_and_when_rules_change() {
        let mut record = SweepRecord::default().take(1, 5, NOON).unwrap();
        record.end(Tally::default(), NOON + 1000);
        assert!(record.going.is_none());
        assert_eq!(record.take(1, 5, NOON + DAY_MS / 4), None);
        assert!(record.take(1, 6, NOON + 2000).is_some());
        assert!(record.take(1, 5, 101 * DAY_MS).is_some());
        // Begun before midnight, and ended behind it: what ended at midnight may have been passed by.
        let mut late = SweepRecord::default().take(1, 5, 101 * DAY_MS - 1).unwrap();
        late.end(Tally::default(), 101 * DAY_MS + 9);
        assert!(late.take(1, 5, 101 * DAY_MS + 10).is_some());
        // A clock that was wrong does not keep the rules from being carried out.
        let mut ahead = SweepRecord::default()
            .take(1, 5, NOON + 30 * DAY_MS)
            .unwrap();
        ahead.end(Tally::default(), NOON + 30 * DAY_MS);
        assert!(ahead.take(1, 5, NOON).is_some());
        let mut failed = SweepRecord::default().take(1, 5, NOON).unwrap();
        let tally = Tally {
            failed: 1,
            ..Tally::default()
        };
        failed.end(tally, NOON);
        assert_eq!(failed.take(1, 5, NOON + RETRY_MS - 1), None);
        assert!(failed.take(1, 5, NOON + RETRY_MS).is_some());
    }

    #[test]
    fn one_at_a_time() {
        let mut record = SweepRecord::default().take(1, 5, NOON).unwrap();
        let tally = Tally {
            removed: 3,
            ..Tally::default()
        };
        record.go_on(Some("k".to_owned()), tally, NOON + 1);
        let until = NOON + 1 + LEASE_MS;
        assert_eq!(record.take(2, 5, until), None);
        // It died: another one goes on where it was.
        let taken = record.take(2, 5, until + 1).unwrap().going.unwrap();
        assert_eq!(
            (taken.by, taken.begun_ms, taken.tally.removed),
            (2, NOON, 3)
        );
        assert_eq!(taken.after.as_deref(), Some("k"));
        // Itself may go on at once, and of other rules it is begun anew by anybody.
        assert!(record.take(1, 5, NOON + 2).is_some());
        let anew = record.take(2, 6, NOON + 2).unwrap().going.unwrap();
        assert_eq!((anew.after.as_deref(), anew.begun_ms), (Some(""), NOON + 2));
        // The next day it is, too.
        let next = record.take(2, 5, 101 * DAY_MS + LEASE_MS).unwrap();
        assert_eq!(next.going.unwrap().after.as_deref(), Some(""));
        // A clock that was wrong does not keep a bucket for ever.
        record.go_on(None, tally, NOON + 9 * DAY_MS);
        assert!(record.take(2, 5, NOON).is_some());
    }

    #[test]
    fn records_there_and_back() {
        let mut record = SweepRecord::default().take(1, 5, NOON).unwrap();
        for _ in 0..2 {
            let bytes = record.encode().unwrap();
            assert_eq!(SweepRecord::decode(&bytes).unwrap(), record);
            record.end(Tally::default(), NOON);
        }
        record = record.take(1, 6, NOON).unwrap();
        record.go_on(Some("\u{1}".repeat(1024)), Tally::default(), NOON);
        record.encode().unwrap();
        assert!(SweepRecord::decode(b"{\"version\":2}").is_err());
    }
}

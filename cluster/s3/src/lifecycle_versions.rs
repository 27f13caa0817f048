//! What becomes of versions as they grow old: which of a key's end, looked at from the newest to the oldest.
//!
//! Invariants:
//! - what is current never ends here: a marker takes its place first;
//! - a version grows old from the moment that another one took its place, and not before;
//! - a marker ends by itself only if there is nothing under it.

use crate::lifecycle::{LifecycleRule, Subject, noncurrent_expires};

/// Whether it matters which tags a version has.
pub fn looks_at_tags(rules: &[LifecycleRule]) -> bool {
    let looks = |rule: &LifecycleRule| !rule.filter.tags.is_empty();
    rules.iter().any(|rule| rule.enabled && looks(rule))
}

/// When a marker ends that was made at `modified_ms`, if there is nothing under it: at once where rules are about such
/// markers, and as an object would where they are about those.
pub fn marker_expires(rules: &[LifecycleRule], key: &str, modified_ms: u64) -> Option<u64> {
    let subject = Subject {
        key,
        size: 0,
        tags: &[],
        modified_ms,
    };
    let about = |rule: &&LifecycleRule| {
        // Who asks for tags, or for a size, means objects.
        rule.enabled && !rule.filter.is_of_objects() && rule.filter.takes(&subject)
    };
    let ends = |rule: &LifecycleRule| match rule.expiration {
        _ if rule.expired_markers => Some(modified_ms),
        when => when.map(|when| when.of(modified_ms)),
    };
    rules.iter().filter(about).filter_map(ends).min()
}

/// The versions of a key so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// When the last one was made that was looked at.
    newer_ms: Option<u64>,
    /// How many stay of those that are not current.
    stay: u32,
}

impl Behind {
    /// Looks at the next older version, which has these tags; if they are not known, those that a rule wants. Whether
    /// it has ended by now: then it does not stay, unless [`Behind::stays`] says so. The first one is current.
    pub fn look(
        &mut self,
        rules: &[LifecycleRule],
        version: &Subject<'_>,
        tags_known: bool,
        now_ms: u64,
    ) -> bool {
        // Clocks jump: nothing was displaced before it was made, nor before what is older than it was.
        let Some(newer_ms) = self.newer_ms.replace(version.modified_ms) else {
            return false;
        };
        let displaced_ms = newer_ms.max(version.modified_ms);
        let ended = self.has_ended(rules, version, tags_known, displaced_ms, now_ms);
        if !ended {
            self.stays();
        }
        ended
    }

    /// The version that was looked at last stays, though its time has come.
    pub fn stays(&mut self) {
        self.stay = self.stay.saturating_add(1);
    }

    /// How many stay, behind the one that is current.
    pub fn staying(&self) -> u32 {
        self.stay
    }

    fn has_ended(
        &self,
        rules: &[LifecycleRule],
        version: &Subject<'_>,
        tags_known: bool,
        displaced_ms: u64,
        now_ms: u64,
    ) -> bool {
        rules.iter().any(|rule| {
            let subject = match tags_known {
                true => *version,
                false => Subject {
                    tags: &rule.filter.tags,
                    ..*version
                },
            };
            let one = std::slice::from_ref(rule);
            let at = noncurrent_expires(one, &subject, displaced_ms, self.stay);
            at.is_some_and(|at| at <= now_ms)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::DAY_MS as DAY;
    use crate::lifecycle::When;

    fn rule(change: impl Fn(&mut LifecycleRule)) -> LifecycleRule {
        let mut rule = LifecycleRule {
            id: "r".to_owned(),
            enabled: true,
            ..LifecycleRule::default()
        };
        change(&mut rule);
        rule
    }

    fn subject<'a>(modified_ms: u64, tags: &'a [(String, String)]) -> Subject<'a> {
        Subject {
            key: "k",
            size: 9,
            tags,
            modified_ms,
        }
    }

    /// Which versions end at this time, made at these, the newest first.
    fn ending(rules: &[LifecycleRule], made: &[u64], now: u64) -> Vec<usize> {
        let mut behind = Behind::default();
        let look = |at: &usize| behind.look(rules, &subject(made[*at], &[]), true, now);
        (0..made.len()).filter(look).collect()
    }

    #[test]
    fn a_version_grows_old_when_another_one_takes_its_place() {
        let rules = [rule(|r| r.noncurrent_days = Some(2))];
        // The oldest one was displaced on day 3, the one in the middle on day 10.
        let made = [10 * DAY, 3 * DAY, DAY];
        assert_eq!(ending(&rules, &made, 5 * DAY - 1), [0; 0]);
        assert_eq!(ending(&rules, &made, 5 * DAY), [2]);
        assert_eq!(ending(&rules, &made, 12 * DAY), [1, 2]);
        // The clock of whoever made the newer one was behind: the older one was not displaced before it was made.
        let made = [DAY, 10 * DAY];
        assert_eq!(ending(&rules, &made, 12 * DAY - 1), [0; 0]);
        assert_eq!(ending(&rules, &made, 12 * DAY), [1]);
        // What is current ends never, however old it is.
        assert_eq!(ending(&rules, &[DAY], 99 * DAY), [0; 0]);
        let off = [rule(|r| (r.enabled, r.noncurrent_days) = (false, Some(1)))];
        assert_eq!(ending(&off, &made, 99 * DAY), [0; 0]);
    }

    #[test]
    fn so_many_stay() {
        let rules = [rule(|r| {
            (r.noncurrent_days, r.noncurrent_kept) = (Some(1), 2)
        })];
        let made = [9, 8, 7, 6, 5].map(|day| day * DAY);
        assert_eq!(ending(&rules, &made, 99 * DAY), [3, 4]);
        // One that is too young is among those that stay.
        assert_eq!(ending(&rules, &made, 9 * DAY), [3, 4]);
        let mut behind = Behind::default();
        for (nth, made) in made.into_iter().enumerate() {
            // Somebody holds the fourth one: it stays beside those.
            if behind.look(&rules, &subject(made, &[]), true, 99 * DAY) && nth == 3 {
                behind.stays();
            }
        }
        assert_eq!(behind.staying(), 3);
    }

    #[test]
    fn tags_that_are_not_known_may_be_any() {
        let tags = vec![("a".to_owned(), "b".to_owned())];
        let rules = [rule(|r| {
            r.noncurrent_days = Some(1);
            r.filter.tags = tags.clone();
        })];
        assert!(looks_at_tags(&rules) && !looks_at_tags(&[rule(|_| {})]));
        let ended = |tags, known| {
            let mut behind = Behind::default();
            assert!(!behind.look(&rules, &subject(DAY, tags), known, 9 * DAY));
            behind.look(&rules, &subject(DAY, tags), known, 9 * DAY)
        };
        assert!(ended(&[], false) && ended(&tags, true) && !ended(&[], true));
    }

    #[test]
    fn markers_with_nothing_under_them() {
        let ends = |rule: LifecycleRule| marker_expires(&[rule], "k", 5 * DAY + 1);
        assert_eq!(ends(rule(|r| r.expired_markers = true)), Some(5 * DAY + 1));
        assert_eq!(
            ends(rule(|r| r.expiration = Some(When::Days(2)))),
            Some(8 * DAY)
        );
        let date = |at| rule(move |r| r.expiration = Some(When::Date(at)));
        assert_eq!(
            (ends(date(9 * DAY)), ends(date(DAY))),
            (Some(9 * DAY), Some(5 * DAY + 1))
        );
        assert_eq!(ends(rule(|r| r.noncurrent_days = Some(1))), None);
        for change in [
            |r: &mut LifecycleRule| r.enabled = false,
            |r: &mut LifecycleRule| r.filter.prefix = "x".into(),
            |r: &mut LifecycleRule| r.filter.smaller_than = Some(5),
            |r: &mut LifecycleRule| r.filter.tags = vec![("a".into(), "b".into())],
        ] {
            let rule = rule(|r| {
                r.expiration = Some(When::Days(1));
                change(r);
            });
            assert_eq!(ends(rule), None);
        }
    }
}

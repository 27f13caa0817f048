//! Versions that grow old: those behind what is current, and markers with nothing under them.
//!
//! Invariants:
//! - what is removed was not current, and is not: the removal is made only if what is current is still what it was
//!   before the versions of the key were looked at. So whoever puts something meanwhile loses nothing by it: the key
//!   is looked at again;
//! - nothing that a lock keeps is removed: it is passed over, and the journal refuses it if that has changed.

use ashlar_cluster_s3::lifecycle::{LifecycleRule, Subject, may_have_ended};
use ashlar_cluster_s3::lifecycle_versions::{Behind, looks_at_tags, marker_expires};
use ashlar_cluster_s3::refusal::Refusal;
use ashlar_layout::manifest::VersionTag;
use ashlar_layout::message::ListEntry;
use ashlar_node_client::{ClientError, Code as Store, ListOptions, VersionsOptions};
use tokio::time::Interval;

use crate::directory::OpenBucket;
use crate::faults::{is_absent, refusal};
use crate::gateway::{Gateway, attributes};
use crate::lifecycle::{End, Lease};
use crate::versions::standing;

/// Versions of one key that are looked at at once.
const PAGE: u32 = 250;
/// So often a key is looked at again where others put something meanwhile.
const TRIES: usize = 4;

/// The versions of a key as a listing of all tells of them.
#[derive(Debug, Default)]
struct Listed {
    key: String,
    behind: Behind,
    /// The newest one,
    newest: Option<ListEntry>,
    /// and whether it is the only one.
    more: bool,
    /// Whether one that is not current may have ended, whatever tags it has.
    ended: bool,
}

/// What is to be done about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// What is current may have ended.
    Object,
    /// What is behind it may have, or a marker with nothing under it.
    Versions,
}

fn is_marker(entry: &ListEntry) -> bool {
    entry.tag.is_some_and(|tag| tag.marker)
}

fn subject(entry: &ListEntry) -> Subject<'_> {
    Subject {
        key: &entry.key,
        size: entry.size,
        tags: &[],
        modified_ms: entry.modified_ms,
    }
}

impl Listed {
    fn of(key: &str) -> Listed {
        Listed {
            key: key.to_owned(),
            ..Listed::default()
        }
    }

    fn push(&mut self, rules: &[LifecycleRule], entry: ListEntry, now_ms: u64) {
        self.ended |= self.behind.look(rules, &subject(&entry), false, now_ms);
        self.more |= self.newest.is_some();
        self.newest.get_or_insert(entry);
    }

    fn due(&self, rules: &[LifecycleRule], now_ms: u64) -> Vec<Due> {
        let Some(newest) = &self.newest else {
            return Vec::new();
        };
        let mut due = Vec::new();
        let ListEntry {
            key,
            size,
            modified_ms,
            ..
        } = newest;
        let marker = is_marker(newest);
        if !marker && may_have_ended(rules, key, *size, *modified_ms, now_ms) {
            due.push(Due::Object);
        }
        let alone = marker && !self.more;
        let ended = |at: Option<u64>| at.is_some_and(|at| at <= now_ms);
        if self.ended || alone && ended(marker_expires(rules, key, *modified_ms)) {
            due.push(Due::Versions);
        }
        due
    }
}

impl Gateway {
    /// Goes through all versions of a bucket, behind the key where the lease says that it is.
    pub(crate) async fn end_versions(
        &self,
        bucket: &str,
        open: &OpenBucket,
        now_ms: u64,
        lease: &mut Lease,
        (prefix, pace): (&str, &mut Interval),
    ) -> Result<End, Refusal> {
        let rules = &open.config.lifecycle;
        let Some(after) = lease.after() else {
            return Ok(End::Whole);
        };
        let (mut next, mut listed) = ((after, None), Listed::default());
        loop {
            if self.still_asks(bucket, open).await?.is_none() {
                return Ok(End::Lost);
            }
            let list = ListOptions {
                prefix: prefix.to_owned(),
                after: next.0,
                ..ListOptions::default()
            };
            let after_id = next.1;
            let options = VersionsOptions { list, after_id };
            let page = match self.store.list_versions(bucket, options).await {
                Ok(page) => page,
                Err(error) if error.code() == Store::NoSuchBucket => return Ok(End::Lost),
                Err(error) => return Err(refusal(&error)),
            };
            for entry in page.versions {
                lease.tally.seen += 1;
                if entry.key != listed.key {
                    let of_key = std::mem::replace(&mut listed, Listed::of(&entry.key));
                    if self
                        .end_listed(bucket, of_key, open, now_ms, lease, pace)
                        .await?
                        == End::Lost
                    {
                        return Ok(End::Lost);
                    }
                }
                listed.push(rules, entry, now_ms);
            }
            match page.next {
                Some(behind) => next = behind,
                None => {
                    return self
                        .end_listed(bucket, listed, open, now_ms, lease, pace)
                        .await;
                }
            }
        }
    }

    /// Does what is due of a key, all of whose versions were listed.
    async fn end_listed(
        &self,
        bucket: &str,
        listed: Listed,
        open: &OpenBucket,
        now_ms: u64,
        lease: &mut Lease,
        pace: &mut Interval,
    ) -> Result<End, Refusal> {
        let key = &listed.key;
        for due in listed.due(&open.config.lifecycle, now_ms) {
            pace.tick().await;
            let ended = match due {
                Due::Object => self
                    .end_object(bucket, key, open, now_ms)
                    .await
                    .map(u64::from),
                Due::Versions => self.end_behind(bucket, key, open, now_ms, pace).await,
            };
            lease.tally.removed += self.unless_failed(bucket, ended, lease);
        }
        let goes_on = key.is_empty() || lease.go_on(&self.store, Some(key)).await?;
        Ok(if goes_on { End::Whole } else { End::Lost })
    }

    /// Removes the versions of a key whose time has come, and then a marker with nothing under it. How many that were.
    async fn end_behind(
        &self,
        bucket: &str,
        key: &str,
        open: &OpenBucket,
        now_ms: u64,
        pace: &mut Interval,
    ) -> Result<u64, Refusal> {
        let mut removed = 0;
        for _ in 0..TRIES {
            let (more, whole) = self.end_once(bucket, key, open, now_ms, pace).await?;
            removed += more;
            if whole {
                break;
            }
        }
        Ok(removed)
    }

    /// The same, unless somebody puts something: then it is false that all of them were looked at.
    async fn end_once(
        &self,
        bucket: &str,
        key: &str,
        open: &OpenBucket,
        now_ms: u64,
        pace: &mut Interval,
    ) -> Result<(u64, bool), Refusal> {
        let rules = &open.config.lifecycle;
        // Asked first: what is listed afterwards is behind this, or the removals are refused.
        let Some(current) = standing(self.store.head(bucket, key).await)? else {
            // With nothing current, when these were displaced is not known.
            return Ok((0, true));
        };
        let current = current.version;
        let (mut removed, mut behind) = (0, Behind::default());
        let mut marker: Option<(VersionTag, u64)> = None;
        let (mut next, mut first) = ((String::new(), None), true);
        loop {
            let list = ListOptions {
                prefix: key.to_owned(),
                after: next.0,
                max: PAGE,
                ..ListOptions::default()
            };
            let after_id = next.1;
            let page = self
                .store
                .list_versions(bucket, VersionsOptions { list, after_id });
            let page = page.await.map_err(|error| refusal(&error))?;
            for entry in page.versions.into_iter().filter(|entry| entry.key == key) {
                let tags = match entry.tag {
                    Some(tag) if !first && !tag.marker && looks_at_tags(rules) => {
                        match self.store.head_version(bucket, key, tag.slot()).await {
                            Ok(meta) => attributes(&meta)?.tags,
                            Err(error) if is_absent(&error) => continue,
                            Err(error) => return Err(refusal(&error)),
                        }
                    }
                    _ => Vec::new(),
                };
                let subject = Subject {
                    tags: &tags,
                    ..subject(&entry)
                };
                let ended = behind.look(rules, &subject, true, now_ms);
                if std::mem::take(&mut first) {
                    let tag = entry.tag.filter(|tag| tag.marker);
                    marker = tag.map(|tag| (tag, entry.modified_ms));
                }
                let Some(tag) = entry.tag.filter(|_| ended) else {
                    continue;
                };
                if tag.lock.keeps(now_ms, false) {
                    behind.stays();
                    continue;
                }
                pace.tick().await;
                if self.still_asks(bucket, open).await?.is_none() {
                    return Ok((removed, true));
                }
                match self
                    .store
                    .end_version(bucket, key, current, tag.slot(), false)
                    .await
                {
                    Ok(_) => removed += 1,
                    Err(error) if error.code() == Store::Locked => behind.stays(),
                    Err(error) if has_changed(&error) => return Ok((removed, false)),
                    Err(error) => return Err(refusal(&error)),
                }
            }
            match page.next {
                Some(more) if more.0 == key => next = more,
                _ => break,
            }
        }
        let ended = |made_ms| marker_expires(rules, key, made_ms).is_some_and(|at| at <= now_ms);
        let marker = marker.filter(|(_, made_ms)| behind.staying() == 0 && ended(*made_ms));
        let Some((tag, _)) = marker else {
            return Ok((removed, true));
        };
        if self.still_asks(bucket, open).await?.is_none() {
            return Ok((removed, true));
        }
        match self
            .store
            .end_version(bucket, key, current, tag.slot(), true)
            .await
        {
            Ok(_) => Ok((removed + 1, true)),
            Err(error) if has_changed(&error) => Ok((removed, false)),
            Err(error) => Err(refusal(&error)),
        }
    }
}

/// Whether somebody else was there first.
fn has_changed(error: &ClientError) -> bool {
    matches!(
        error.code(),
        Store::PreconditionFailed | Store::NotFound | Store::NotKept | Store::Locked
    )
}

#[cfg(test)]
mod tests {
    use ashlar_cluster_s3::calendar::DAY_MS as DAY;
    use ashlar_cluster_s3::lifecycle::When;
    use ashlar_layout::ids::Seq;
    use ashlar_layout::manifest::Etag;

    use super::*;

    fn rules(change: impl Fn(&mut LifecycleRule)) -> Vec<LifecycleRule> {
        let mut rule = LifecycleRule {
            enabled: true,
            ..LifecycleRule::default()
        };
        change(&mut rule);
        vec![rule]
    }

    /// What is due of a key with versions of these days, the newest first; a marker on top of them or not.
    fn due(rules: &[LifecycleRule], days: &[u64], marker: bool, now: u64) -> Vec<Due> {
        let mut listed = Listed::of("k");
        for (nth, day) in days.iter().enumerate() {
            let tag = VersionTag {
                id: Seq(*day),
                marker: marker && nth == 0,
                ..VersionTag::default()
            };
            let entry = ListEntry {
                key: "k".to_owned(),
                size: 5,
                crc: 0,
                etag: Etag::NONE,
                version: Seq(*day),
                modified_ms: day * DAY,
                tag: Some(tag),
            };
            listed.push(rules, entry, now * DAY);
        }
        listed.due(rules, now * DAY)
    }

    #[test]
    fn what_is_due_of_a_key() {
        let noncurrent = rules(|rule| rule.noncurrent_days = Some(2));
        assert_eq!(due(&noncurrent, &[9, 4, 1], false, 5), []);
        assert_eq!(due(&noncurrent, &[9, 4, 1], false, 6), [Due::Versions]);
        assert_eq!(due(&noncurrent, &[1], false, 99), []);
        assert_eq!(due(&noncurrent, &[4, 1], true, 6), [Due::Versions]);
        assert_eq!(due(&noncurrent, &[4], true, 99), []);
        let objects = rules(|rule| rule.expiration = Some(When::Days(2)));
        assert_eq!(due(&objects, &[4, 1], false, 6), [Due::Object]);
        // One that is hidden by a marker is none, and the marker is not alone.
        assert_eq!(due(&objects, &[4, 1], true, 99), []);
        assert_eq!(due(&objects, &[4], true, 5), []);
        assert_eq!(due(&objects, &[4], true, 6), [Due::Versions]);
        let markers = rules(|rule| rule.expired_markers = true);
        assert_eq!(due(&markers, &[4], true, 4), [Due::Versions]);
        assert_eq!(due(&markers, &[4, 1], true, 99), []);
        assert_eq!(due(&markers, &[4], false, 99), []);
        let both = rules(|rule| {
            rule.noncurrent_days = Some(1);
            rule.expiration = Some(When::Days(1));
        });
        assert_eq!(due(&both, &[4, 1], false, 9), [Due::Object, Due::Versions]);
        assert_eq!(Listed::default().due(&both, 9), []);
    }
}

//! Parts that come late: when nobody waits for them any more.
//!
//! Invariants:
//! - a part that was made, or may have been, is asked for whether it counts, though whoever sent it goes away;
//! - of uploads that are no more parts are freed when they are a day old. None of those is an object's: an upload's
//!   record goes after the names of all parts that were taken over, and is there before any part is;
//! - it takes a bounded share of the store, as all that nobody asked for: see [`pace`].

use std::collections::BTreeSet;
use std::sync::Arc;

use ashlar_cluster_s3::calendar::DAY_MS;
use ashlar_cluster_s3::refusal::Refusal;
use ashlar_cluster_s3::system::{
    APPENDS, UPLOADS, UploadId, UploadState, parts_prefix, upload_of_part, upload_of_record,
};
use ashlar_layout::manifest::Precondition;
use ashlar_layout::names::SYSTEM_PARTS;
use tokio::time::Interval;

use crate::directory::reserved;
use crate::faults::internal;
use crate::gateway::{Gateway, to_the_end};
use crate::lifecycle::pace;
use crate::uploads::{Upload, remove};

/// Uploads whose records are looked for at once.
const AT_ONCE: usize = 10_000;

/// What becomes of a part that was made, if this is how its upload stands by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late {
    /// It counts.
    Part,
    /// An object may have taken it over: it is not touched. Who completes the upload takes its name away.
    Left,
    /// It is nobody's, and nobody else may come by to free it.
    Freed,
}

impl Late {
    fn of(state: Option<UploadState>) -> Late {
        match state {
            Some(UploadState::Open) => Late::Part,
            Some(UploadState::Completing { .. } | UploadState::Made) => Late::Left,
            Some(UploadState::Aborting) | None => Late::Freed,
        }
    }
}

/// A part on its way, of an upload, under this key. A client that goes away drops its request, wherever that is: then
/// whether the part counts is asked all the same.
pub(crate) struct OnItsWay(Option<(Arc<Gateway>, Upload, String)>);

impl OnItsWay {
    pub(crate) fn new(gateway: &Arc<Gateway>, upload: &Upload, key: &str) -> OnItsWay {
        OnItsWay(Some((gateway.clone(), upload.clone(), key.to_owned())))
    }

    /// It is there: says what becomes of it.
    pub(crate) async fn came(mut self) -> Result<Late, Refusal> {
        match self.0.take() {
            Some((gateway, upload, key)) => {
                to_the_end(async move { gateway.settle_part(&upload, &key).await }).await
            }
            // Nobody asks twice.
            None => Err(internal("a part that came before")),
        }
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        let Some((gateway, upload, key)) = self.0.take() else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(refusal) = gateway.settle_part(&upload, &key).await {
                    gateway.tell_of(&upload.record.bucket, &refusal);
                }
            });
        }
    }
}

/// Whether something of this time is old enough to be nobody's.
fn is_old(since_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_sub(since_ms) > DAY_MS
}

impl Gateway {
    /// Asks whether a part counts that was made, or may have been; one that is nobody's is freed.
    async fn settle_part(&self, upload: &Upload, key: &str) -> Result<Late, Refusal> {
        let record = &upload.record;
        let now = self.upload(&record.bucket, &record.key, upload.id).await?;
        let late = Late::of(now.map(|now| now.record.state));
        if late == Late::Freed {
            remove(&self.store, key, Precondition::None, false).await?;
        }
        Ok(late)
    }

    /// Frees old parts of uploads that are no more: of those that came behind the removal of all, and whose makers were
    /// gone by then. Of so many uploads at once: `from` is where to go on. Says how many parts that was.
    pub(crate) async fn end_parts(&self, now_ms: u64, from: &mut String) -> Result<u64, Refusal> {
        let mut pace = pace();
        let mut left = self.with_old_parts(now_ms, from, &mut pace).await?;
        // Asked behind the parts: where there is a part and no record by then, there will be none.
        for records in [UPLOADS, APPENDS] {
            let mut after = String::new();
            while !left.is_empty() {
                pace.tick().await;
                let page = reserved(&self.store, records, after).await?;
                for entry in page.objects {
                    // One that cannot be told may be the record of any of them.
                    let Some(id) = upload_of_record(&entry.key) else {
                        let message = format!("a record that is no upload's: {:?}", entry.key);
                        return Err(internal(message));
                    };
                    left.remove(&id);
                }
                match page.next {
                    Some(next) => after = next,
                    None => break,
                }
            }
        }
        let mut ended = 0;
        for id in left {
            ended += self.end_parts_of(id, now_ms, &mut pace).await?;
        }
        Ok(ended)
    }

    /// The uploads that have old parts, behind `from`, whether there is a record of them or not. They stand in the
    /// order in which they began.
    async fn with_old_parts(
        &self,
        now_ms: u64,
        from: &mut String,
        pace: &mut Interval,
    ) -> Result<BTreeSet<UploadId>, Refusal> {
        let mut ids = BTreeSet::new();
        let mut after = std::mem::take(from);
        loop {
            pace.tick().await;
            let page = reserved(&self.store, SYSTEM_PARTS, after).await?;
            for entry in page.objects {
                let Some(id) = upload_of_part(&entry.key) else {
                    continue;
                };
                if !is_old(id.begun_ms(), now_ms) {
                    return Ok(ids);
                }
                if ids.contains(&id) || !is_old(entry.modified_ms, now_ms) {
                    continue;
                }
                if ids.len() >= AT_ONCE {
                    *from = parts_prefix(id);
                    return Ok(ids);
                }
                ids.insert(id);
            }
            match page.next {
                Some(next) => after = next,
                None => return Ok(ids),
            }
        }
    }

    async fn end_parts_of(
        &self,
        id: UploadId,
        now_ms: u64,
        pace: &mut Interval,
    ) -> Result<u64, Refusal> {
        let (mut after, mut ended) = (String::new(), 0);
        loop {
            let page = reserved(&self.store, parts_prefix(id), after).await?;
            let old = |modified_ms| is_old(modified_ms, now_ms);
            for entry in page.objects.iter().filter(|it| old(it.modified_ms)) {
                pace.tick().await;
                let only = Precondition::Version(entry.version);
                match remove(&self.store, &entry.key, only, false).await {
                    Ok(()) => ended += 1,
                    // One that cannot be freed keeps no other from that.
                    Err(refusal) => self.tell_of(&entry.key, &refusal),
                }
            }
            match page.next {
                Some(next) => after = next,
                None => return Ok(ended),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_come_late() {
        let completing = UploadState::Completing { since_ms: 1 };
        for (state, late) in [
            (Some(UploadState::Open), Late::Part),
            // Its stripes may be an object's.
            (Some(completing), Late::Left),
            (Some(UploadState::Made), Late::Left),
            (Some(UploadState::Aborting), Late::Freed),
            (None, Late::Freed),
        ] {
            assert_eq!(Late::of(state), late, "{state:?}");
        }
    }

    #[test]
    fn what_is_old() {
        let now = 1_700_000_000_000;
        assert!(is_old(now - DAY_MS - 1, now));
        // Clocks may be set back.
        for since in [now - DAY_MS, now, now + 5 * DAY_MS] {
            assert!(!is_old(since, now), "{since}");
        }
    }
}

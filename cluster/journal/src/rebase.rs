//! Time made relative: for a model checker, to which states that differ in nothing but the time are one.

use std::time::Duration;

use ashlar_layout::time::Instant;

use crate::replica::Replica;

fn earlier(at: Instant, by: Duration) -> Instant {
    at - by
}

/// What is so long ago that the new time cannot name it is as good as never.
fn option(at: &mut Option<Instant>, by: Duration) {
    let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
    *at = at.and_then(|at| at.0.checked_sub(nanos)).map(Instant);
}

impl Replica {
    /// Makes all its times earlier. To be called for all replicas alike, and with the stamps of what is
    /// under way between them; and by no more than is left of the present time when a few times
    /// [`crate::Limits::lease`] are taken from it, so that what still counts is not cut off.
    pub fn rebase(&mut self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        option(&mut self.promise.lease_until, by);
        self.follower.stamp = self.follower.stamp.saturating_sub(nanos);
        self.election.rebase(by);
        self.starting.rebase(by);
        self.head.since = earlier(self.head.since, by);
        self.head.behind_since = self.head.behind_since.map(|at| earlier(at, by));
        // A deadline that has passed stays one.
        self.head.announce_at = self.head.announce_at.map(|at| earlier(at, by));
        for progress in self.head.progress.values_mut() {
            progress.waiting_since = progress.waiting_since.map(|at| earlier(at, by));
            progress.rechain_at = progress.rechain_at.map(|at| earlier(at, by));
            progress.sample = progress.sample.map(|(seq, at)| (seq, earlier(at, by)));
            option(&mut progress.stamp, by);
        }
        for repair in self.repairs.values_mut() {
            repair.rebase(by);
        }
        for recall in self.recalls.values_mut() {
            recall.rebase(by);
        }
        for teaching in self.head.teaching.values_mut() {
            teaching.tried_at = earlier(teaching.tried_at, by);
            teaching.down_since = teaching.down_since.map(|at| earlier(at, by));
        }
        if let Some(learning) = &mut self.learning {
            learning.rebase(by);
        }
        if let Some(marked) = &mut self.marked {
            marked.rebase(by);
        }
        self.teach_at = earlier(self.teach_at, by);
    }
}

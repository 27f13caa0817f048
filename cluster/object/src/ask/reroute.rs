//! Partitions are split and merged while they are asked.
//!
//! Invariant: what is asked of another partition is the same request, and says what this client knew of the first
//! one's log.

use ashlar_layout::ids::Term;
use ashlar_layout::message::{ErrorCode, Request};
use ashlar_layout::time::Instant;

use super::{Ask, PAUSE_MIN};
use crate::error::ObjectError;

impl Ask {
    /// What is asked about an object or a bucket is asked of whom the map says that it belongs to. (What is asked
    /// about a partition stays with that.) Called while no attempt counts.
    ///
    /// A partition that others are made of orders nothing of what it gave away behind the entry that says so, and they
    /// know all requests up to there. So whoever is in office in one of them has the last word on an earlier attempt.
    pub(super) fn reroute(&mut self) {
        let keyed = self.is_keyed();
        if !keyed && self.common.map().partition_by_id(self.partition).is_none() {
            let code = ErrorCode::Moved;
            let detail = format!("partition {} is not in the map any more", self.partition);
            return self.end(Err(ObjectError::Refused { code, detail }));
        }
        let partition = self.common.partition_of(&self.bucket, &self.key);
        let Some(holder) = partition
            .ok()
            .filter(|holder| keyed && *holder != self.partition)
        else {
            return;
        };
        // Its log may be shorter than the one that it was told of; what is behind the end of that tells nothing.
        let known = self.common.heads().told(holder);
        self.told = self.told.map(|told| told.min(known));
        self.partition = holder;
        if let Request::Propose { partition, .. } | Request::Lookup { partition, .. } =
            &mut self.request
        {
            *partition = holder;
        }
        self.doubt = self.doubt.map(|_| Term(0));
        self.polls.clear();
        self.heard.clear();
        self.pause = PAUSE_MIN;
        self.wait_until = Instant(0);
    }
}

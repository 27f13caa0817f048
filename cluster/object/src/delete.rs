//! Removes an object: metadata first, then the shards behind the acknowledgement.
//!
//! Invariants:
//! - no shard is touched before the removal is committed;
//! - if another object has taken the stripes over, only what listed them is freed.

use std::sync::Arc;

use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Body, Manifest, Op, Precondition, Then, VersionTag};
use ashlar_layout::message::Reply;
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::ask::Ask;
use crate::call::{Action, Event, Leftover, Machine};
use crate::change::{ASK_LANE, Change, FREE_LANE};
use crate::common::Common;
use crate::error::ObjectError;
use crate::free::Free;

/// A removal that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// The journal entry that recorded it.
    pub version: Seq,
    /// Whether it is known that there was an object: a retry does not tell.
    pub existed: bool,
}

/// The state machine that removes an object.
#[derive(Debug)]
pub struct Delete {
    common: Arc<Common>,
    bucket: String,
    key: String,
    /// Its stripes are another object's now.
    taken: bool,
    change: Change,
    outcome: Option<Result<Deleted, ObjectError>>,
}

impl Delete {
    /// Removes `key` from `bucket` if `precondition` holds.
    pub fn new(
        common: Arc<Common>,
        bucket: &str,
        key: &str,
        precondition: Precondition,
    ) -> Result<Delete, ObjectError> {
        let op = Op::Delete {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        };
        Delete::by(common, (bucket, key), precondition, op, Bytes::new())
    }

    /// Puts a marker that there is no object, as a new version: a `null` one takes the place of the one before that is
    /// called so.
    pub fn mark(
        common: Arc<Common>,
        bucket: &str,
        key: &str,
        precondition: Precondition,
        null: bool,
    ) -> Result<Delete, ObjectError> {
        let op = Op::PutVersion {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            tag: VersionTag {
                null,
                marker: true,
                ..VersionTag::default()
            },
            current: true,
            modified_ms: 0,
            manifest: Manifest::plain(0, 0, Body::Inline),
        };
        Delete::by(common, (bucket, key), precondition, op, Bytes::new())
    }

    /// Removes a version of an object; `payload` is what is current then, if that is inline. `bypass`: who asks may do
    /// what governance forbids.
    pub fn version(
        common: Arc<Common>,
        (bucket, key): (&str, &str),
        precondition: Precondition,
        (id, then, bypass): (Seq, Then, bool),
        payload: Bytes,
    ) -> Result<Delete, ObjectError> {
        let op = Op::DropVersion {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            id,
            then,
            bypass,
        };
        Delete::by(common, (bucket, key), precondition, op, payload)
    }

    fn by(
        common: Arc<Common>,
        (bucket, key): (&str, &str),
        precondition: Precondition,
        op: Op,
        payload: Bytes,
    ) -> Result<Delete, ObjectError> {
        let partition = common.partition_of(bucket, key)?;
        let request = common.proposal(partition, precondition, op);
        let names = (bucket, key);
        let ask = Ask::new(common.clone(), ASK_LANE, names, partition, request, payload);
        Ok(Delete {
            common,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            taken: false,
            change: Change::new(ask),
            outcome: None,
        })
    }

    /// Its stripes are to stay, because [`crate::Compose`] has made them another object's.
    #[must_use]
    pub fn of_taken(mut self) -> Delete {
        self.taken = true;
        self
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Result<Deleted, ObjectError>> {
        self.outcome.as_ref()
    }

    fn advance(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.outcome.is_some() {
            return;
        }
        let Some(told) = self.change.ask().outcome().cloned() else {
            return;
        };
        self.common.forget(&self.bucket, &self.key);
        self.outcome = Some(match told {
            Ok(told) => match told.reply {
                Reply::Committed { seq, displaced } => {
                    let existed = displaced.is_some();
                    let frees = if self.taken { Free::lists } else { Free::body };
                    let free = displaced.map(|it| frees(self.common.clone(), FREE_LANE, it.body));
                    self.change.free(now, free, out);
                    Ok(Deleted {
                        version: seq,
                        existed,
                    })
                }
                other => Err(crate::common::unexpected("Committed", &other)),
            },
            Err(untold) => Err(untold.error),
        });
    }
}

impl Machine for Delete {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        self.change.on_event(now, event, out);
        self.advance(now, out);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.change.next_deadline()
    }

    fn is_answered(&self) -> bool {
        self.outcome.is_some()
    }

    fn leftover(&self) -> Leftover {
        self.change.leftover()
    }

    fn is_settled(&self) -> bool {
        self.outcome.is_some() && self.change.is_freed()
    }
}

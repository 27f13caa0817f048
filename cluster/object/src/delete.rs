//! Removes an object: metadata first, then the shards behind the acknowledgement.
//!
//! Invariants:
//! - no shard is touched before the removal is committed;
//! - if another object has taken the stripes over, only what listed them is freed.

use std::sync::Arc;

use ashlar_layout::ids::{Seq, Term};
use ashlar_layout::manifest::{Body, Manifest, Op, Precondition, Then, VersionTag};
use ashlar_layout::message::{Reply, Request};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::ask::Ask;
use crate::call::{Action, Event, Leftover, Machine, sooner};
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
    ask: Ask,
    free: Option<Free>,
    outcome: Option<Result<Deleted, ObjectError>>,
}

const ASK_LANE: u32 = 0;
const FREE_LANE: u32 = 1;

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
        let request = Request::Propose {
            partition,
            term: Term(0),
            client: common.client(),
            request: common.next_request(),
            retry: None,
            precondition,
            op,
        };
        let names = (bucket, key);
        let ask = Ask::new(common.clone(), ASK_LANE, names, partition, request, payload);
        Ok(Delete {
            common,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            taken: false,
            ask,
            free: None,
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
        let Some(told) = self.ask.outcome() else {
            return;
        };
        self.common.forget(&self.bucket, &self.key);
        self.outcome = Some(match told {
            Ok(told) => match &told.reply {
                Reply::Committed { seq, displaced } => {
                    if let Some(manifest) = displaced {
                        let (common, body) = (self.common.clone(), manifest.body.clone());
                        let mut free = match body {
                            Body::Inline | Body::Stripes(_) if self.taken => {
                                Free::new(common, FREE_LANE, [], Vec::new())
                            }
                            Body::Tree(nodes) | Body::Parts { nodes, .. } if self.taken => {
                                Free::new(common, FREE_LANE, nodes, Vec::new())
                            }
                            body => Free::body(common, FREE_LANE, body),
                        };
                        free.on_event(now, Event::Start, out);
                        self.free = Some(free);
                    }
                    Ok(Deleted {
                        version: *seq,
                        existed: displaced.is_some(),
                    })
                }
                other => Err(crate::common::unexpected("Committed", other)),
            },
            Err(untold) => Err(untold.error.clone()),
        });
    }
}

impl Machine for Delete {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        let of_ask = match &event {
            Event::Answer { call, .. } => call.lane == ASK_LANE,
            // The head was asked: there is no way back, and what it displaced is to be freed.
            Event::Abort => return,
            _ => true,
        };
        if of_ask {
            self.ask.on_event(now, event.clone(), out);
        }
        if let Some(free) = &mut self.free
            && (!of_ask || matches!(event, Event::Deadline))
        {
            free.on_event(now, event, out);
        }
        self.advance(now, out);
    }

    fn next_deadline(&self) -> Option<Instant> {
        sooner(
            self.ask.next_deadline(),
            self.free.as_ref().and_then(Free::next_deadline),
        )
    }

    fn is_answered(&self) -> bool {
        self.outcome.is_some()
    }

    fn leftover(&self) -> Leftover {
        self.free
            .as_ref()
            .map_or(Leftover::default(), Machine::leftover)
    }

    fn is_settled(&self) -> bool {
        self.outcome.is_some() && self.free.as_ref().is_none_or(Free::is_settled)
    }
}

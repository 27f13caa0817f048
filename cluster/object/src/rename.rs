//! Gives an object another key of its bucket, or remembers something else of it, without moving a byte.
//!
//! Invariants:
//! - what was found under the key that it has is proposed under the one that it is to get, by one change, which
//!   the journal takes only if it still is what stands there: at any time it is seen under one of the two, and not
//!   under both;
//! - its stripes are freed by nothing here, whatever comes of it: they are the object's, under one key or the other;
//! - what stood under the key that it gets is freed after the commit, never before, and no stripe of its own with it.

use std::sync::Arc;

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::Seq;
use ashlar_layout::manifest::{Body, Etag, Manifest, Op, Precondition};
use ashlar_layout::message::{ObjectMeta, Reply};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::ask::Ask;
use crate::call::{Action, Event, Leftover, Machine};
use crate::change::{ASK_LANE, Change, FREE_LANE};
use crate::common::{Common, unexpected};
use crate::error::ObjectError;
use crate::free::Free;

/// The state machine that gives an object another key.
#[derive(Debug)]
pub struct Rename {
    common: Arc<Common>,
    bucket: String,
    source: String,
    key: String,
    change: Change,
    outcome: Option<Result<Seq, ObjectError>>,
}

impl Rename {
    /// Gives what was `found` under `source` the name `key`, in the place of what is there, if `precondition` holds for
    /// that. With it comes all of it, if it rides in the journal. What else is to be remembered of it, `seal`, may be
    /// something else than before.
    pub fn new(
        common: Arc<Common>,
        bucket: &str,
        (source, key): (&str, &str),
        precondition: Precondition,
        found: (ObjectMeta, Bytes),
        seal: (Etag, Vec<u8>),
    ) -> Result<Rename, ObjectError> {
        if source == key {
            let detail = "an object that is to get the key that it has".to_owned();
            return Err(ObjectError::BadRequest { detail });
        }
        Rename::of(common, bucket, (source, key), precondition, found, seal)
    }

    /// Remembers something else of what was `found`, which is the same object otherwise, and as old.
    pub fn again(
        common: Arc<Common>,
        bucket: &str,
        key: &str,
        found: (ObjectMeta, Bytes),
        seal: (Etag, Vec<u8>),
    ) -> Result<Rename, ObjectError> {
        Rename::of(common, bucket, (key, key), Precondition::None, found, seal)
    }

    fn of(
        common: Arc<Common>,
        bucket: &str,
        (source, key): (&str, &str),
        precondition: Precondition,
        (found, payload): (ObjectMeta, Bytes),
        (etag, attributes): (Etag, Vec<u8>),
    ) -> Result<Rename, ObjectError> {
        let refused = |detail: &str| {
            let detail = detail.to_owned();
            Err(ObjectError::BadRequest { detail })
        };
        if found.tag.is_some() {
            return refused(
                "a version of an object gets no other key, and is written anew in another way",
            );
        }
        let old = found.manifest;
        let expected = match old.body {
            Body::Inline => (old.size, old.crc),
            _ => (0, 0),
        };
        if (payload.len() as u64, crc32(&payload)) != expected {
            return refused("the payload is not that of the object");
        }
        let manifest = Manifest {
            etag,
            attributes,
            ..old
        };
        let (seen, modified_ms) = (found.version, found.modified_ms);
        let op = match source == key {
            true => Op::Relocate {
                bucket: bucket.to_owned(),
                key: key.to_owned(),
                tag: None,
                seen,
                current: true,
                modified_ms,
                manifest,
            },
            false => Op::Rename {
                bucket: bucket.to_owned(),
                key: key.to_owned(),
                source: source.to_owned(),
                seen,
                modified_ms,
                manifest,
            },
        };
        // Where the other key is, the head of that one's partition says: whatever map this is, it knows.
        let partition = common.partition_of(bucket, key)?;
        let request = common.proposal(partition, precondition, op);
        let names = (bucket, key);
        let ask = Ask::new(common.clone(), ASK_LANE, names, partition, request, payload);
        Ok(Rename {
            common,
            bucket: bucket.to_owned(),
            source: source.to_owned(),
            key: key.to_owned(),
            change: Change::new(ask.with_crc(expected.1)),
            outcome: None,
        })
    }

    /// How it ended, once it has: the entry that recorded it, which is the object's version then.
    pub fn outcome(&self) -> Option<&Result<Seq, ObjectError>> {
        self.outcome.as_ref()
    }

    fn advance(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.outcome.is_some() {
            return;
        }
        let Some(told) = self.change.ask().outcome().cloned() else {
            return;
        };
        for key in [&self.source, &self.key] {
            self.common.forget(&self.bucket, key);
        }
        self.outcome = Some(match told {
            Ok(told) => match told.reply {
                Reply::Committed { seq, displaced } => {
                    let (common, kept) = (self.common.clone(), self.change.ask().body());
                    let free = Free::displaced(common, FREE_LANE, displaced, kept);
                    self.change.free(now, free, out);
                    Ok(seq)
                }
                other => Err(unexpected("Committed", &other)),
            },
            Err(untold) => Err(untold.error),
        });
    }
}

impl Machine for Rename {
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

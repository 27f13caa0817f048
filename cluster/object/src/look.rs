//! An object's metadata: from the cache, if witnesses say that it still holds, or else from the head.
//!
//! Invariants:
//! - what it ends with was either validated by witnesses that were asked after it began, or said by the
//!   head after it began: it is what the object was at some moment of the look;
//! - what it guesses before is a guess, and says nothing to a caller;
//! - the head is asked at most once.

use std::sync::Arc;

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{PartitionId, Seq};
use ashlar_layout::manifest::Body;
use ashlar_layout::message::{ObjectMeta, Reply, Request};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::ask::{Ask, Told, Untold};
use crate::cache::Cached;
use crate::call::{Action, Event, Machine, sooner};
use crate::common::{Common, unexpected};
use crate::error::{Code, ObjectError};
use crate::witness::{Verdict, Witnesses};

/// Lanes that a look uses, from its own on.
pub(crate) const LANES: u32 = 2;

/// What is known of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its metadata.
    pub meta: ObjectMeta,
    /// The object, if it is inline and was asked for,
    pub payload: Bytes,
    /// and the CRC-32 of that.
    pub payload_crc: u32,
    /// Whether witnesses said so, not the head.
    pub from_cache: bool,
}

/// The state machine that finds out what an object is.
#[derive(Debug)]
pub struct Look {
    common: Arc<Common>,
    bucket: String,
    key: String,
    partition: PartitionId,
    id: Option<Seq>,
    payload: bool,
    lane: u32,
    cached: Option<Arc<Cached>>,
    witnesses: Option<Witnesses>,
    ask: Option<Ask>,
    outcome: Option<Result<Found, ObjectError>>,
}

impl Look {
    /// Finds out what `key` of `bucket` is, with its bytes if it is inline and `payload`.
    pub fn new(
        common: Arc<Common>,
        bucket: &str,
        key: &str,
        payload: bool,
    ) -> Result<Look, ObjectError> {
        let partition = common.partition_of(bucket, key)?;
        Ok(Look {
            common,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            partition,
            id: None,
            payload,
            lane: 0,
            cached: None,
            witnesses: None,
            ask: None,
            outcome: None,
        })
    }

    /// The same, of a version of the object; of the current one if there is none.
    #[must_use]
    pub fn of_version(mut self, id: Option<Seq>) -> Look {
        self.id = id;
        self
    }

    /// The same, with calls of this number and the next one.
    pub(crate) fn with_lane(mut self, lane: u32) -> Look {
        self.lane = lane;
        self
    }

    pub(crate) fn has_lane(&self, lane: u32) -> bool {
        (self.lane..self.lane + LANES).contains(&lane)
    }

    /// What it may well be: to be read ahead, and thrown away if it is not.
    pub(crate) fn guess(&self) -> Option<Found> {
        self.cached.as_deref().map(kept)
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Result<Found, ObjectError>> {
        self.outcome.as_ref()
    }

    /// How it ended, for good.
    pub fn into_outcome(self) -> Option<Result<Found, ObjectError>> {
        self.outcome
    }

    fn start(&mut self, now: Instant, out: &mut Vec<Action>) {
        let serves = |cached: &Arc<Cached>| {
            let inline = cached.meta.manifest.body == Body::Inline;
            !self.payload || !inline || cached.payload.is_some()
        };
        let names = (self.bucket.as_str(), self.key.as_str());
        // Witnesses know of keys, and not of their versions.
        let cached = self.common.cached(names.0, names.1);
        let cached = cached.filter(|it| self.id.is_none() && serves(it));
        if let Some(cached) = cached {
            let common = self.common.clone();
            self.witnesses = Witnesses::new(common, self.lane + 1, names, self.partition, &cached);
            if let Some(witnesses) = &mut self.witnesses {
                witnesses.on_event(now, Event::Start, out);
                self.cached = Some(cached);
            }
        }
        if self.witnesses.is_none() {
            self.ask(now, out);
        }
    }

    fn ask(&mut self, now: Instant, out: &mut Vec<Action>) {
        let (bucket, key) = (self.bucket.clone(), self.key.clone());
        let request = Request::Lookup {
            partition: self.partition,
            bucket,
            key,
            id: self.id,
            payload: self.payload,
        };
        let names = (self.bucket.as_str(), self.key.as_str());
        let (common, payload) = (self.common.clone(), Bytes::new());
        let mut ask = Ask::new(common, self.lane, names, self.partition, request, payload);
        ask.on_event(now, Event::Start, out);
        self.ask = Some(ask);
    }

    fn advance(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.outcome.is_some() {
            return;
        }
        match self.witnesses.as_ref().and_then(Witnesses::verdict) {
            Some(Verdict::Current) => {
                self.outcome = self.cached.as_deref().map(|cached| Ok(kept(cached)));
                (self.witnesses, self.ask) = (None, None);
                return;
            }
            Some(Verdict::Unproven) => {
                self.witnesses = None;
                if self.ask.is_none() {
                    self.ask(now, out);
                }
            }
            None if self.ask.is_none()
                && self.witnesses.as_ref().is_some_and(Witnesses::is_late) =>
            {
                // Whoever answers first.
                self.ask(now, out);
            }
            None => {}
        }
        if self.ask.as_ref().is_none_or(|ask| !ask.is_answered()) {
            return;
        }
        let told = self.ask.take().and_then(Ask::into_outcome);
        self.outcome = told.map(|told| match told {
            Ok(Told {
                reply:
                    Reply::Found {
                        meta,
                        as_of,
                        config,
                    },
                payload,
                payload_crc,
            }) => {
                if meta.tag.is_some_and(|tag| tag.marker) {
                    if self.id.is_none() {
                        self.common.forget(&self.bucket, &self.key);
                    }
                    return Err(marker(&self.bucket, &self.key, meta));
                }
                let fits =
                    payload.len() as u64 == meta.manifest.size && payload_crc == meta.manifest.crc;
                let inline = self.payload && meta.manifest.body == Body::Inline && fits;
                let cached = Cached {
                    meta: meta.clone(),
                    as_of,
                    config,
                    // A copy: what came may be a small part of a large buffer.
                    payload: inline.then(|| Bytes::copy_from_slice(&payload)),
                };
                if self.id.is_none() {
                    self.common.keep(&self.bucket, &self.key, cached);
                }
                Ok(Found {
                    meta,
                    payload,
                    payload_crc,
                    from_cache: false,
                })
            }
            Ok(told) => Err(unexpected("Found", &told.reply)),
            Err(untold) => {
                let gone = matches!(untold.error.code(), Code::NotFound | Code::NoSuchBucket);
                if gone && self.id.is_none() {
                    self.common.forget(&self.bucket, &self.key);
                }
                Err(untold.error)
            }
        });
    }
}

/// What a look ends with that finds a marker.
pub(crate) fn marker(bucket: &str, key: &str, meta: ObjectMeta) -> ObjectError {
    ObjectError::Marker {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        meta: Box::new(meta),
    }
}

/// What the head says that an object is: its payload too, if it is inline, with the CRC of that.
pub(crate) type Looked = Result<(ObjectMeta, Bytes, u32), ObjectError>;

/// What a look-up was told.
pub(crate) fn found((bucket, key): (&str, &str), told: Result<Told, Untold>) -> Looked {
    match told {
        Ok(Told {
            reply: Reply::Found { meta, .. },
            payload,
            payload_crc,
        }) => match meta.tag.is_some_and(|tag| tag.marker) {
            true => Err(marker(bucket, key, meta)),
            false => Ok((meta, payload, payload_crc)),
        },
        Ok(told) => Err(unexpected("Found", &told.reply)),
        Err(Untold { error, .. }) => Err(error),
    }
}

/// Whether the object that was looked up is certainly not what it was.
pub(crate) fn gone(error: &ObjectError) -> bool {
    matches!(error.code(), Code::NotFound | Code::NoSuchBucket)
}

fn kept(cached: &Cached) -> Found {
    let payload = cached.payload.clone().unwrap_or_default();
    Found {
        meta: cached.meta.clone(),
        payload_crc: crc32(&payload),
        payload,
        from_cache: true,
    }
}

impl Machine for Look {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Start => self.start(now, out),
            Event::Answer { call, answer } => {
                let of_ask = call.lane == self.lane;
                let event = Event::Answer { call, answer };
                if of_ask {
                    if let Some(ask) = &mut self.ask {
                        ask.on_event(now, event, out);
                    }
                } else if let Some(witnesses) = &mut self.witnesses {
                    witnesses.on_event(now, event, out);
                }
            }
            Event::Deadline => {
                if let Some(witnesses) = &mut self.witnesses {
                    witnesses.on_event(now, Event::Deadline, out);
                }
                if let Some(ask) = &mut self.ask {
                    ask.on_event(now, Event::Deadline, out);
                }
            }
            Event::Abort if self.outcome.is_none() => {
                self.outcome = Some(Err(ObjectError::Aborted));
            }
            Event::Abort | Event::Inline(_) | Event::Stripe(_) | Event::End => return,
        }
        self.advance(now, out);
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.outcome.is_some() {
            return None;
        }
        let witnesses = self.witnesses.as_ref().and_then(Witnesses::next_deadline);
        let ask = self.ask.as_ref().and_then(Ask::next_deadline);
        sooner(witnesses, ask)
    }

    fn is_answered(&self) -> bool {
        self.outcome.is_some()
    }

    fn is_settled(&self) -> bool {
        self.outcome.is_some()
    }
}

//! One question to the head of a partition: a change, a look-up, a page of a list.
//!
//! Invariants:
//! - all attempts carry the same request, and so the same request number: a change is made once;
//!   an attempt says that it is a retry if, and only if, an earlier one may have been received;
//! - an attempt that was sent and not answered makes the outcome uncertain, and it stays uncertain
//!   whatever a later attempt that fails says; only a commit settles it;
//! - it ends: at the latest [`Tuning::unavailable_wait`](crate::Tuning) after it began.

use std::sync::Arc;
use std::time::Duration;

use ashlar_layout::ids::{PartitionId, Seq};
use ashlar_layout::manifest::{Body, Op};
use ashlar_layout::message::{ErrorCode, Reply, Request, WireError};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::call::{Action, Answer, CallId, Calls, Event, Machine, sooner};
use crate::common::{Common, unexpected};
use crate::error::ObjectError;
use crate::latency::Kind;

/// The pause before the first repetition; doubles.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Its bound.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// An attempt is repeated after this time at the soonest: a commit may wait for a slow device.
const PATIENCE_MIN: Duration = Duration::from_millis(500);

/// What the head said.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The reply; never an error.
    pub reply: Reply,
    /// The frame's payload,
    pub payload: Bytes,
    /// and its CRC-32.
    pub payload_crc: u32,
}

/// Why it did not say more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untold {
    /// For the caller.
    pub error: ObjectError,
    /// Whether the change may have been made, or may yet be made.
    pub uncertain: bool,
}

/// The state machine that asks the head of a partition.
#[derive(Debug)]
pub struct Ask {
    common: Arc<Common>,
    calls: Calls,
    partition: PartitionId,
    request: Request,
    payload: Bytes,
    payload_crc: Option<u32>,
    bucket: String,
    key: String,
    started: Instant,
    /// Calls under way, each with the time that it was sent.
    open: Vec<(CallId, Instant)>,
    /// When to ask (again).
    ask_at: Option<Instant>,
    pause: Duration,
    uncertain: bool,
    /// The last entry of the partition that this client knew of when it began to ask.
    told: Seq,
    last: Option<(ErrorCode, String)>,
    outcome: Option<Result<Told, Untold>>,
}

impl Ask {
    /// Asks the head of the partition that holds (bucket, key), with calls of the number `lane`.
    pub fn new(
        common: Arc<Common>,
        lane: u32,
        (bucket, key): (&str, &str),
        partition: PartitionId,
        request: Request,
        payload: Bytes,
    ) -> Ask {
        Ask {
            common,
            calls: Calls::new(lane),
            partition,
            request,
            payload,
            payload_crc: None,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            started: Instant(0),
            open: Vec::new(),
            ask_at: None,
            pause: PAUSE_MIN,
            uncertain: false,
            told: Seq(0),
            last: None,
            outcome: None,
        }
    }

    /// The same, with the payload's CRC-32 known.
    pub fn with_crc(mut self, crc: u32) -> Ask {
        self.payload_crc = Some(crc);
        self
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Result<Told, Untold>> {
        self.outcome.as_ref()
    }

    /// How it ended, for good.
    pub fn into_outcome(self) -> Option<Result<Told, Untold>> {
        self.outcome
    }

    /// Whether a change may have been asked for, so that it must be taken to be possible.
    pub fn may_be_made(&self) -> bool {
        self.is_change() && (self.uncertain || !self.open.is_empty())
    }

    /// What the object is to be made of, if it is to be made.
    pub(crate) fn body(&self) -> Option<&Body> {
        match &self.request {
            Request::Propose {
                op: Op::Put { manifest, .. },
                ..
            } => Some(&manifest.body),
            _ => None,
        }
    }

    fn is_change(&self) -> bool {
        matches!(self.request, Request::Propose { .. })
    }

    fn send(&mut self, now: Instant, out: &mut Vec<Action>) {
        let map = self.common.map();
        let partition = map.partitions.iter().find(|p| p.id == self.partition);
        let Some(head) = partition.and_then(|p| p.chain.devices.first()).copied() else {
            let detail = format!("map {} has no head for it", map.epoch);
            self.end(Err(self.unavailable(detail)));
            return;
        };
        if let Request::Propose { retry, .. } = &mut self.request {
            *retry = (self.uncertain || !self.open.is_empty()).then_some(self.told);
        }
        let call = self.calls.next();
        out.push(Action::Send {
            call,
            to: head,
            request: self.request.clone(),
            payload: self.payload.clone(),
            payload_crc: self.payload_crc,
        });
        self.open.push((call, now));
        let bytes = self.payload.len() as u32;
        let patience = self
            .common
            .health()
            .deadline(Kind::Head, bytes)
            .max(PATIENCE_MIN);
        self.ask_at = Some(now + patience);
    }

    fn over_at(&self) -> Instant {
        self.started + self.common.tuning().unavailable_wait
    }

    fn end(&mut self, outcome: Result<Told, ObjectError>) {
        let uncertain = self.may_be_made();
        self.outcome = Some(outcome.map_err(|error| {
            let error = match error {
                // An earlier attempt is not accounted for: what a later one was refused for may
                // not hold for it.
                error if uncertain && !error.is_uncertain() => {
                    let detail = format!("an attempt was not answered, a later one was: {error}");
                    ObjectError::OutcomeUnknown { detail }
                }
                error => error,
            };
            Untold { error, uncertain }
        }));
        self.open.clear();
        self.ask_at = None;
        self.payload = Bytes::new();
    }

    fn again(&mut self, now: Instant, code: ErrorCode, detail: String) {
        self.last = Some((code, detail));
        // Another attempt that is still under way does not hold this one up.
        self.ask_at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn on_answer(&mut self, now: Instant, call: CallId, answer: Answer) {
        let Some(at) = self.open.iter().position(|(c, _)| *c == call) else {
            return;
        };
        let (_, sent) = self.open.swap_remove(at);
        match answer {
            Answer::Reply {
                reply: Reply::Error(error),
                ..
            } => self.on_error(now, error),
            Answer::Reply { reply, .. }
                if self.is_change() && !matches!(reply, Reply::Committed { .. }) =>
            {
                self.uncertain = true;
                self.end(Err(unexpected("Committed", &reply)));
            }
            Answer::Reply {
                reply,
                payload,
                payload_crc,
            } => {
                match &reply {
                    Reply::Committed { seq, .. } => self.common.tell(self.partition, *seq),
                    Reply::Found { meta } => self.common.tell(self.partition, meta.version),
                    _ => {}
                }
                let bytes = self.payload.len() as u32;
                if let Some(head) = self.head() {
                    self.common
                        .health()
                        .worked(head, Kind::Head, bytes, now.since(sent));
                }
                self.end(Ok(Told {
                    reply,
                    payload,
                    payload_crc,
                }));
            }
            Answer::NotSent { detail } => {
                let detail = self.silent(&detail);
                self.again(now, ErrorCode::PartitionUnavailable, detail);
            }
            Answer::Lost { detail } => {
                self.uncertain = true;
                let detail = self.silent(&detail);
                self.again(now, ErrorCode::PartitionUnavailable, detail);
            }
        }
    }

    fn on_error(&mut self, now: Instant, error: WireError) {
        let WireError { code, detail } = error;
        let (bucket, key) = (self.bucket.clone(), self.key.clone());
        let error = match code {
            ErrorCode::PartitionUnavailable => {
                // The head may have written it down before it lost the others.
                self.uncertain = true;
                return self.again(now, code, detail);
            }
            ErrorCode::Busy
            | ErrorCode::NotServing
            | ErrorCode::StaleEpoch
            | ErrorCode::NotHere => {
                return self.again(now, code, detail);
            }
            ErrorCode::DeviceError | ErrorCode::Corrupt | ErrorCode::Internal => {
                // Whatever broke may have broken after the others had it.
                self.uncertain = true;
                ObjectError::Refused { code, detail }
            }
            ErrorCode::NoSuchBucket => ObjectError::NoSuchBucket { bucket },
            ErrorCode::NotFound => ObjectError::NotFound { bucket, key },
            ErrorCode::BucketExists => ObjectError::BucketExists { bucket },
            ErrorCode::BucketNotEmpty => ObjectError::BucketNotEmpty { bucket },
            ErrorCode::PreconditionFailed => ObjectError::PreconditionFailed {
                bucket,
                key,
                detail,
            },
            ErrorCode::BadRequest => ObjectError::BadRequest { detail },
            ErrorCode::OutcomeUnknown => {
                self.uncertain = true;
                ObjectError::OutcomeUnknown { detail }
            }
            code => ObjectError::Refused { code, detail },
        };
        self.end(Err(error));
    }

    fn on_deadline(&mut self, now: Instant, out: &mut Vec<Action>) {
        if now >= self.over_at() {
            self.give_up();
        } else if self.ask_at.is_some_and(|at| at <= now) {
            self.send(now, out);
        }
    }

    fn give_up(&mut self) {
        let waited = self.common.tuning().unavailable_wait.as_millis();
        let (code, detail) = self.last.take().unwrap_or_else(|| {
            let detail = self.silent(&format!("no answer in {waited} ms"));
            (ErrorCode::PartitionUnavailable, detail)
        });
        let error = match code {
            ErrorCode::Busy => ObjectError::Busy { detail },
            ErrorCode::PartitionUnavailable | ErrorCode::NotServing => self.unavailable(detail),
            code => ObjectError::Refused { code, detail },
        };
        self.end(Err(error));
    }

    fn unavailable(&self, detail: String) -> ObjectError {
        let uncertain = self.may_be_made();
        ObjectError::PartitionUnavailable {
            partition: self.partition,
            detail,
            uncertain,
        }
    }

    fn head(&self) -> Option<ashlar_layout::ids::DeviceNo> {
        let map = self.common.map();
        let partition = map.partitions.iter().find(|p| p.id == self.partition)?;
        partition.chain.devices.first().copied()
    }

    /// The text for a head that says nothing.
    fn silent(&self, why: &str) -> String {
        let map = self.common.map();
        let head = self.head().and_then(|no| map.device(no));
        let node = head.map_or(0, |d| d.node.0);
        let address = head
            .and_then(|d| map.address(d.no))
            .unwrap_or("no known address");
        format!(
            "the head of partition {} is node {node} at {address}, which does not answer: {why}",
            self.partition
        )
    }
}

impl Machine for Ask {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        if self.outcome.is_some() {
            return;
        }
        match event {
            Event::Start => {
                self.started = now;
                self.told = self.common.told(self.partition);
                self.send(now, out);
            }
            Event::Answer { call, answer } => self.on_answer(now, call, answer),
            Event::Deadline => self.on_deadline(now, out),
            Event::Abort => self.end(Err(ObjectError::Aborted)),
            Event::Inline(_) | Event::Stripe(_) | Event::End => {}
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.outcome.is_some() {
            return None;
        }
        sooner(self.ask_at, Some(self.over_at()))
    }

    fn is_answered(&self) -> bool {
        self.outcome.is_some()
    }

    fn is_settled(&self) -> bool {
        self.outcome.is_some()
    }
}

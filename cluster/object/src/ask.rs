//! One question to the head of a partition: a change, a look-up, a page of a list.
//!
//! Who the head is, [`Heads`](crate::heads::Heads) believes; while nobody is believed to serve, and when
//! the head is silent for longer than usual, the chain's members are asked.
//!
//! Invariants:
//! - all attempts carry the same request, and so the same request number: a change is made once;
//! - one attempt counts at a time. It names its reign, and another is only sent once it was answered or given up; what
//!   comes of an attempt that was given up is only heard if it says "committed", which is true whoever hears it;
//! - an attempt that was given up, or was answered with "perhaps", is a *doubt*, and every later attempt
//!   says that it is a retry, and what this client had been told of before the first one;
//! - it ends: at the latest [`Tuning::unavailable_wait`](crate::Tuning) after it began.
//!
//! **When a refusal is final.** An attempt that was refused has done nothing. Those before it are the
//! question: a doubt is of the newest reign, T, in which an attempt is not accounted for.
//!
//! - A later reign, U > T, refuses (the precondition does not hold, there is no such bucket …). The head of
//!   U judged in office: the record of its own reign was committed, and so all of its log before that. What
//!   reigns up to T can still commit is in that part: n−f replicas had promised U before the head chose its
//!   log, none of them takes an entry of an older reign any more, and the rest are too few. If an attempt of
//!   T or before was among those entries, the head has applied it, and its table of requests answers
//!   "committed", before anything is judged, or "not remembered". It did neither; so none of them is in the
//!   log, none will be, and an attempt that still lies in a socket is refused for its reign. Final.
//! - The same reign, T, refuses. The attempt in doubt may reach that head later still, over a connection
//!   that this client has lost, and be judged anew if the refusal was among too many to be remembered (a
//!   head remembers a bounded number of them). Not final: the outcome is unknown.

use std::sync::Arc;
use std::time::Duration;

use ashlar_layout::ids::{DeviceNo, Epoch, PartitionId, Seq, Term};
use ashlar_layout::manifest::{Body, Op};
use ashlar_layout::message::{ErrorCode, Reply, Request, WireError};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::call::{Action, Answer, CallId, Calls, Event, Machine, sooner};
use crate::common::{Common, unexpected};
use crate::error::{ObjectError, is_judged};
use crate::heads::{POLL_MIN, Reign};
use crate::latency::Kind;

mod reroute;

/// The pause before a head is asked again that was busy; doubles.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Its bound.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// While somebody else polls the chain: how often to see what came of it.
const GLANCE: Duration = Duration::from_millis(2);
/// A head that serves is asked again after this time at the soonest: a commit may wait for a slow device.
const PATIENCE_MIN: Duration = Duration::from_millis(500);
/// Bounds of the silence after which the chain is asked who its head is.
const SILENCE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// The same while nothing is known of how long a head takes.
const SILENCE_UNKNOWN: Duration = Duration::from_millis(50);
/// Polls, and attempts that were given up, whose answers are still listened to.
const KEPT: usize = 16;

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

/// The attempt that counts.
#[derive(Debug)]
struct Attempt {
    call: CallId,
    reign: Reign,
    epoch: Epoch,
    sent: Instant,
    /// So long a silence is not unusual; grows while the head says that it serves.
    silence: Duration,
    /// When to look whether the head is still one.
    look_at: Instant,
    /// When to ask again all the same.
    again_at: Instant,
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
    current: Option<Attempt>,
    given_up: Vec<CallId>,
    /// The newest reign in which an attempt is not accounted for.
    doubt: Option<Term>,
    /// The last entry of the partition that this client knew of when it first asked for the change.
    told: Option<Seq>,
    polls: Vec<(CallId, DeviceNo)>,
    /// Devices that members named as heads or members: the map may know of a change before the chain has made it, and
    /// this client's map may be older than the chain.
    named: Vec<DeviceNo>,
    /// What the members said last, other than that they serve.
    heard: Vec<(DeviceNo, String)>,
    /// Members that say that this client is of another cluster.
    strangers: usize,
    /// Before this nothing is sent.
    wait_until: Instant,
    wake_at: Option<Instant>,
    pause: Duration,
    last: Option<(ErrorCode, String)>,
    outcome: Option<Result<Told, Untold>>,
}

impl Ask {
    /// Asks the head of the partition that holds (bucket, key), with calls of the number `lane`. The
    /// reign in a proposal is put in here.
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
            current: None,
            given_up: Vec::new(),
            doubt: None,
            told: None,
            polls: Vec::new(),
            named: Vec::new(),
            heard: Vec::new(),
            strangers: 0,
            wait_until: Instant(0),
            wake_at: None,
            pause: PAUSE_MIN,
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
        self.is_change() && (self.doubt.is_some() || self.current.is_some())
    }

    /// What the object is to be made of, if it is to be made, or to get another key.
    pub(crate) fn body(&self) -> Option<&Body> {
        match &self.request {
            Request::Propose {
                op:
                    Op::Put { manifest, .. }
                    | Op::PutVersion { manifest, .. }
                    | Op::LockVersion { manifest, .. }
                    | Op::Rename { manifest, .. }
                    | Op::Relocate { manifest, .. },
                ..
            } => Some(&manifest.body),
            _ => None,
        }
    }

    #[cfg(test)]
    pub(crate) fn common(&self) -> Arc<Common> {
        self.common.clone()
    }

    fn is_change(&self) -> bool {
        matches!(self.request, Request::Propose { .. })
    }

    /// Whether it is about one object or bucket, whose partition may be another one by now.
    fn is_keyed(&self) -> bool {
        self.is_change() || matches!(self.request, Request::Lookup { .. })
    }

    fn over_at(&self) -> Instant {
        self.started + self.common.tuning().unavailable_wait
    }

    /// Does what is to be done now.
    fn advance(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.outcome.is_some() {
            return;
        }
        if now >= self.over_at() {
            return self.give_up();
        }
        if self.current.is_none() {
            self.reroute();
            if self.outcome.is_some() {
                return;
            }
        }
        let (reign, confirmed) = {
            let heads = self.common.heads();
            (heads.reign(self.partition), heads.confirmed(self.partition))
        };
        if let Some(attempt) = &mut self.current {
            if reign.is_none() && attempt.again_at <= now {
                // There is nobody to ask again.
                attempt.again_at = now + POLL_MIN;
            }
            match reign {
                Some(reign) if reign != attempt.reign => self.abandon(),
                Some(_) if attempt.again_at <= now => {
                    let detail = format!("nothing in {} ms", now.since(attempt.sent).as_millis());
                    let head = attempt.reign.head;
                    self.last = Some((ErrorCode::PartitionUnavailable, self.silent(head, &detail)));
                    self.abandon();
                }
                _ if attempt.look_at > now => return,
                _ => {
                    let quiet = attempt.silence;
                    match confirmed.filter(|at| reign.is_some() && *at + quiet > now) {
                        // It serves, and is just slow.
                        Some(at) => {
                            attempt.look_at = at + quiet;
                            attempt.silence = (quiet * 2).min(SILENCE.1);
                        }
                        None => {
                            attempt.look_at = now + POLL_MIN;
                            self.poll(now, out);
                        }
                    }
                    return;
                }
            }
        }
        if self.wait_until > now {
            self.wake_at = Some(self.wait_until);
            return;
        }
        match reign {
            Some(reign) => self.send(now, reign, out),
            None => self.poll(now, out),
        }
    }

    /// Asks the members who is their head, if it is this operation's turn to.
    fn poll(&mut self, now: Instant, out: &mut Vec<Action>) {
        let map = self.common.map();
        let mut members: Vec<DeviceNo> = Vec::new();
        {
            let mut heads = self.common.heads();
            match heads.turn(now, self.partition) {
                Ok(()) => members.extend(heads.last_members(self.partition)),
                Err(at) => {
                    self.wake_at = Some(at.min(now + GLANCE));
                    return;
                }
            }
        }
        self.wake_at = Some(now + GLANCE);
        let partition = map.partitions.iter().find(|p| p.id == self.partition);
        let named = partition.map(|p| p.chain.devices.iter().chain(&p.founders));
        for device in named.into_iter().flatten().chain(&self.named) {
            if !members.contains(device) {
                members.push(*device);
            }
        }
        if members.is_empty() {
            let detail = format!("map {} names no replica of it", map.epoch);
            return self.end(Err(self.unavailable(detail)));
        }
        self.heard.retain(|(device, _)| members.contains(device));
        for device in members {
            self.ask_member(device, out);
        }
    }

    fn ask_member(&mut self, to: DeviceNo, out: &mut Vec<Action>) {
        let call = self.calls.next();
        out.push(Action::Send {
            call,
            to,
            request: Request::Chain {
                partition: self.partition,
            },
            payload: Bytes::new(),
            payload_crc: Some(0),
        });
        if self.polls.len() >= KEPT {
            self.polls.remove(0);
        }
        self.polls.push((call, to));
    }

    fn send(&mut self, now: Instant, to: Reign, out: &mut Vec<Action>) {
        let wants_members = {
            let mut heads = self.common.heads();
            let told = heads.told(self.partition);
            self.told.get_or_insert(told);
            heads.wants_members(self.partition) && heads.turn(now, self.partition).is_ok()
        };
        let doubted = self.doubt.is_some();
        if let Request::Propose { retry, term, .. } = &mut self.request {
            *term = to.term;
            *retry = self.told.filter(|_| doubted);
        }
        let call = self.calls.next();
        out.push(Action::Send {
            call,
            to: to.head,
            request: self.request.clone(),
            payload: self.payload.clone(),
            payload_crc: self.payload_crc,
        });
        let bytes = self.payload.len() as u32;
        let (usual, patience) = {
            let health = self.common.health();
            (
                health.latencies().p95(Kind::Head, bytes),
                health.deadline(Kind::Head, bytes).max(PATIENCE_MIN),
            )
        };
        let silence = usual.map_or(SILENCE_UNKNOWN, |p95| (p95 * 4).clamp(SILENCE.0, SILENCE.1));
        self.current = Some(Attempt {
            call,
            reign: to,
            epoch: self.common.map().epoch,
            sent: now,
            silence,
            look_at: now + silence,
            again_at: now + patience,
        });
        self.wake_at = None;
        if wants_members {
            // The composition has changed: whose word validates what is cached, the head knows.
            let (partition, device) = (self.partition, to.head);
            out.push(Action::View { partition, device });
        }
    }

    /// The attempt's answer does not count any more.
    fn abandon(&mut self) {
        let Some(attempt) = self.current.take() else {
            return;
        };
        if self.is_change() {
            self.doubt = self.doubt.max(Some(attempt.reign.term));
        }
        if self.given_up.len() >= KEPT {
            self.given_up.remove(0);
        }
        self.given_up.push(attempt.call);
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
        self.current = None;
        self.polls.clear();
        self.wake_at = None;
        self.payload = Bytes::new();
    }

    fn on_answer(&mut self, now: Instant, call: CallId, answer: Answer) {
        if self.current.as_ref().is_some_and(|a| a.call == call) {
            if let Some(attempt) = self.current.take() {
                self.on_told(now, &attempt, answer);
            }
        } else if let Some(at) = self.polls.iter().position(|(c, _)| *c == call) {
            let (_, from) = self.polls.swap_remove(at);
            self.on_view(now, from, answer);
        } else if self.given_up.contains(&call)
            && let Answer::Reply {
                reply: Reply::Committed { .. },
                ..
            } = &answer
        {
            self.accept(answer);
        }
    }

    /// What a member says of its chain.
    fn on_view(&mut self, now: Instant, from: DeviceNo, answer: Answer) {
        let said = match answer {
            Answer::Reply {
                reply: Reply::Chain(view),
                ..
            } => {
                self.common.heads().heard(now, self.partition, from, &view);
                let head = (view.term.0 > 0).then(|| view.term.head());
                for device in head.iter().chain(&view.members) {
                    if !self.named.contains(device) {
                        self.named.truncate(KEPT - 1);
                        self.named.insert(0, *device);
                    }
                }
                match (view.serving, view.term.0) {
                    (true, _) => "it serves".to_owned(),
                    (_, 0) => "it knows of no head".to_owned(),
                    _ if view.term.head() == from => {
                        "it is to be the head, and does not serve yet".to_owned()
                    }
                    _ => format!("it follows device {}", view.term.head()),
                }
            }
            Answer::Reply {
                reply: Reply::Error(error),
                ..
            } => {
                self.strangers += usize::from(error.code == ErrorCode::WrongCluster);
                error.detail
            }
            Answer::Reply { .. } => "it does not say who its head is".to_owned(),
            Answer::NotSent { detail } | Answer::Lost { detail } => {
                format!("it does not answer: {detail}")
            }
        };
        if self.strangers > KEPT / 2 && self.last.is_none() {
            let code = ErrorCode::WrongCluster;
            return self.end(Err(ObjectError::Refused { code, detail: said }));
        }
        self.heard.retain(|(device, _)| *device != from);
        self.heard.push((from, said));
    }

    fn on_told(&mut self, now: Instant, attempt: &Attempt, answer: Answer) {
        let Reign { term, head } = attempt.reign;
        match answer {
            Answer::Reply {
                reply: Reply::Error(error),
                ..
            } => self.on_error(now, attempt, error),
            Answer::Reply { reply, .. }
                if self.is_change() && !matches!(reply, Reply::Committed { .. }) =>
            {
                self.doubt = self.doubt.max(Some(term));
                self.end(Err(unexpected("Committed", &reply)));
            }
            Answer::Reply { .. } => {
                let (bytes, took) = (self.payload.len() as u32, now.since(attempt.sent));
                self.common.health().worked(head, Kind::Head, bytes, took);
                self.accept(answer);
            }
            Answer::NotSent { detail } => {
                let detail = self.silent(head, &detail);
                self.doubt_head(now, term, ErrorCode::PartitionUnavailable, detail);
            }
            Answer::Lost { detail } => {
                self.note_doubt(term);
                let detail = self.silent(head, &detail);
                self.doubt_head(now, term, ErrorCode::PartitionUnavailable, detail);
            }
        }
    }

    /// The answer that was asked for.
    fn accept(&mut self, answer: Answer) {
        let Answer::Reply {
            reply,
            payload,
            payload_crc,
        } = answer
        else {
            return;
        };
        match &reply {
            Reply::Committed { seq, .. } => self.common.heads().tell(self.partition, *seq),
            Reply::Found { as_of, config, .. } => {
                let mut heads = self.common.heads();
                heads.tell(self.partition, *as_of);
                heads.works_with(self.partition, *config);
            }
            _ => {}
        }
        self.end(Ok(Told {
            reply,
            payload,
            payload_crc,
        }));
    }

    fn note_doubt(&mut self, term: Term) {
        if self.is_change() {
            self.doubt = self.doubt.max(Some(term));
        }
    }

    /// The head of this reign does not serve, it seems: the members are asked.
    fn doubt_head(&mut self, now: Instant, term: Term, code: ErrorCode, detail: String) {
        self.last = Some((code, detail));
        self.common.heads().doubt(now, self.partition, term);
    }

    fn pause(&mut self, now: Instant, code: ErrorCode, detail: String) {
        self.last = Some((code, detail));
        self.wait_until = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn on_error(&mut self, now: Instant, attempt: &Attempt, error: WireError) {
        let WireError { code, detail } = error;
        let term = attempt.reign.term;
        let (bucket, key) = (self.bucket.clone(), self.key.clone());
        let error = match code {
            ErrorCode::PartitionUnavailable => {
                // The head may have written it down before it lost the others.
                self.note_doubt(term);
                return self.doubt_head(now, term, code, detail);
            }
            ErrorCode::NotServing | ErrorCode::NotHead | ErrorCode::NotHere => {
                return self.doubt_head(now, term, code, detail);
            }
            // The newer map came with the answer, as a rule.
            ErrorCode::StaleEpoch if self.common.map().epoch > attempt.epoch => {
                self.last = Some((code, detail));
                return;
            }
            ErrorCode::Moved if self.is_keyed() => return self.pause(now, code, detail),
            ErrorCode::Busy | ErrorCode::StaleEpoch | ErrorCode::BucketSpans => {
                return self.pause(now, code, detail);
            }
            ErrorCode::DeviceError | ErrorCode::Corrupt | ErrorCode::Internal => {
                // Whatever broke may have broken after the others had it.
                self.note_doubt(term);
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
                self.note_doubt(term);
                ObjectError::OutcomeUnknown { detail }
            }
            code => ObjectError::Refused { code, detail },
        };
        // Judged by the head in office, behind its table of requests: see the module's head.
        if is_judged(code) && self.doubt.is_some_and(|doubt| doubt < term) {
            self.doubt = None;
        }
        self.end(Err(error));
    }

    fn give_up(&mut self) {
        let waited = self.common.tuning().unavailable_wait.as_millis();
        let head = self.current.as_ref().map(|a| a.reign.head);
        let (code, detail) = match (head, self.last.take()) {
            (_, Some(last)) => last,
            (Some(head), None) => {
                let detail = self.silent(head, &format!("no answer in {waited} ms"));
                (ErrorCode::PartitionUnavailable, detail)
            }
            (None, None) => (ErrorCode::NotHead, "no head was found".to_owned()),
        };
        let error = match code {
            ErrorCode::Busy | ErrorCode::BucketSpans => ObjectError::Busy { detail },
            ErrorCode::PartitionUnavailable
            | ErrorCode::NotServing
            | ErrorCode::NotHead
            | ErrorCode::NotHere
            | ErrorCode::Moved => self.unavailable(self.named(&detail)),
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

    fn place(&self, device: DeviceNo) -> String {
        let map = self.common.map();
        let node = map.device(device).map_or(0, |d| d.node.0);
        let address = map.address(device).unwrap_or("no known address");
        format!("device {device} of node {node} at {address}")
    }

    /// The text for a head that says nothing.
    fn silent(&self, head: DeviceNo, why: &str) -> String {
        let place = self.place(head);
        format!("its head, {place}, does not answer: {why}")
    }

    /// A text, with what the members said.
    fn named(&self, detail: &str) -> String {
        let mut heard = self.heard.clone();
        for (_, device) in &self.polls {
            if heard.iter().all(|(known, _)| known != device) {
                heard.push((*device, "it does not answer".to_owned()));
            }
        }
        heard.sort_unstable();
        let mut text = detail.to_owned();
        for (device, said) in heard {
            text += &format!("; {}: {said}", self.place(device));
        }
        text
    }
}

impl Machine for Ask {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        if self.outcome.is_some() {
            return;
        }
        match event {
            Event::Start => self.started = now,
            Event::Answer { call, answer } => self.on_answer(now, call, answer),
            Event::Deadline => {}
            Event::Abort => self.end(Err(ObjectError::Aborted)),
            Event::Inline(_) | Event::Stripe(_) | Event::End => return,
        }
        self.advance(now, out);
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.outcome.is_some() {
            return None;
        }
        let due = match &self.current {
            Some(attempt) => Some(attempt.look_at.min(attempt.again_at)),
            None => self.wake_at,
        };
        sooner(due, Some(self.over_at()))
    }

    fn is_answered(&self) -> bool {
        self.outcome.is_some()
    }

    fn is_settled(&self) -> bool {
        self.outcome.is_some()
    }
}

//! One stripe on its way to k+m devices.
//!
//! Invariants:
//! - the stripe is durable once k+m−s shards *of one attempt* are, s = min(1, m−1): so that what is
//!   acknowledged always survives the loss of one more shard, and with m = 1 all of them are waited
//!   for; shards of two attempts are never counted together, and never have the same stripe id;
//! - a shard that is late still counts if it comes; it does not keep the attempt alive;
//! - what an abandoned attempt may have stored is deleted, but only after the write's own answer or
//!   its time: a delete that overtakes its write frees nothing;
//! - after the outcome is known, nothing changes it.

use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_map::PlacementGroup;
use ashlar_layout::ids::{DeviceNo, ShardId, StripeId};
use ashlar_layout::manifest::Stripe;
use ashlar_layout::message::{Reply, Request};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::call::{Action, Answer, CallId, Calls, Event, Leftover, Machine, sooner};
use crate::cipher::DataKey;
use crate::common::{Common, forget};
use crate::encode::{Encoded, StripeBuf, encode};
use crate::error::{Fault, ObjectError, ShardFault};
use crate::latency::Kind;

/// Shards of a stripe with `m` parity shards that need not be durable when it is acknowledged: one,
/// but never the last one that makes up for a loss.
pub(crate) fn slack(m: u8) -> usize {
    usize::from(m).saturating_sub(1).min(1)
}

/// Between looks for a usable group.
const GROUP_PAUSE: Duration = Duration::from_millis(50);
/// The pause before a busy node is asked again; doubles.
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// So often a busy node is asked again.
const BUSY_TRIES: u32 = 8;

/// A stripe that is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// As the manifest names it.
    pub stripe: Stripe,
    /// CRC-32 of its data without padding.
    pub data_crc: u32,
    /// Shards that are known to be missing.
    pub failed: u32,
}

#[derive(Debug)]
enum Slot {
    /// Sent; too late after `late_at`.
    Sent {
        call: CallId,
        sent: Instant,
        late_at: Instant,
        tries: u32,
    },
    /// Too late; taken for lost at `until`.
    Late {
        call: CallId,
        sent: Instant,
        until: Instant,
    },
    /// The node was busy.
    Again { at: Instant, tries: u32 },
    /// Stored.
    Durable,
    /// Not stored, as far as is known. `stray`: it may be there all the same.
    Failed { fault: Fault, stray: bool },
}

#[derive(Debug)]
struct Attempt {
    stripe: Stripe,
    data_crc: u32,
    devices: Vec<DeviceNo>,
    shards: Vec<Bytes>,
    slots: Vec<Slot>,
}

impl Attempt {
    fn quorum(&self) -> usize {
        self.slots.len() - slack(self.stripe.m)
    }

    fn durable(&self) -> usize {
        self.slots
            .iter()
            .filter(|s| matches!(s, Slot::Durable))
            .count()
    }
}

/// A shard of an abandoned attempt.
#[derive(Debug)]
struct Stray {
    stripe: StripeId,
    index: usize,
    device: DeviceNo,
    call: CallId,
    until: Instant,
    deleting: bool,
}

/// The state machine that stores one stripe.
#[derive(Debug)]
pub struct StripeWrite {
    common: Arc<Common>,
    calls: Calls,
    data: StripeBuf,
    /// With it `data` is encrypted, by each attempt anew.
    cipher: Option<DataKey>,
    /// The stripe whose bytes `data` are, as they are stored, if they are to be moved.
    from: Option<StripeId>,
    attempt: Option<Attempt>,
    attempts: u32,
    strays: Vec<Stray>,
    started: Instant,
    look_at: Option<Instant>,
    outcome: Option<Result<Written, ObjectError>>,
    last_failure: Option<ObjectError>,
    leftover: Leftover,
}

impl StripeWrite {
    /// A stripe of `data`, whose calls have the number `lane`.
    pub fn new(common: Arc<Common>, lane: u32, data: StripeBuf) -> StripeWrite {
        StripeWrite {
            common,
            calls: Calls::new(lane),
            data,
            cipher: None,
            from: None,
            attempt: None,
            attempts: 0,
            strays: Vec::new(),
            started: Instant(0),
            look_at: None,
            outcome: None,
            last_failure: None,
            leftover: Leftover::default(),
        }
    }

    /// With this key, if there is one: what is stored is encrypted.
    #[must_use]
    pub(crate) fn with_cipher(mut self, cipher: Option<DataKey>) -> StripeWrite {
        self.cipher = cipher;
        self
    }

    /// Of what is stored as this stripe: each attempt is another id of the same bytes.
    #[must_use]
    pub(crate) fn moving(mut self, from: StripeId) -> StripeWrite {
        self.from = Some(from);
        self
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Result<Written, ObjectError>> {
        self.outcome.as_ref()
    }

    /// Gives the stripe up, durable or not: its shards are freed.
    pub fn abandon(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.outcome.is_none() {
            self.outcome = Some(Err(ObjectError::Aborted));
        }
        self.look_at = None;
        self.drop_attempt(now, out);
        self.data = StripeBuf::exact(Bytes::new());
    }

    /// Looks at where the stripe stands, and does what is next.
    fn advance(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.outcome.is_some() {
            return;
        }
        let (mut quorum, mut likely, mut possible) = (1, 0, 0);
        if let Some(attempt) = &self.attempt {
            let durable = attempt.durable();
            quorum = attempt.quorum();
            if durable >= quorum {
                self.succeed();
                return;
            }
            let count = |f: fn(&Slot) -> bool| attempt.slots.iter().filter(|s| f(s)).count();
            likely = durable + count(|s| matches!(s, Slot::Sent { .. } | Slot::Again { .. }));
            possible = likely + count(|s| matches!(s, Slot::Late { .. }));
        }
        if likely >= quorum {
            return;
        }
        if self.attempts >= self.common.tuning().stripe_attempts {
            if possible < quorum {
                let failure = self.failure(quorum);
                self.fail(now, failure, out);
            }
            return;
        }
        if self.look_at.is_some_and(|at| now < at) {
            return;
        }
        self.look_at = None;
        self.common.probe(now, out);
        match self.common.choose() {
            Ok(group) => {
                if let Some(attempt) = &self.attempt {
                    let quorum = attempt.quorum();
                    self.last_failure = Some(self.failure(quorum));
                }
                self.drop_attempt(now, out);
                self.send_all(now, &group, out);
            }
            Err(refused) => {
                let full = {
                    let map = self.common.map();
                    self.common.health().is_full(&map)
                };
                let over = now >= self.started + self.common.tuning().unavailable_wait;
                if possible >= quorum {
                    // The late ones may come yet.
                    self.look_at = (!over).then(|| now + GROUP_PAUSE);
                } else if full || over {
                    self.fail(now, refused, out);
                } else {
                    self.drop_attempt(now, out);
                    self.look_at = Some(now + GROUP_PAUSE);
                }
            }
        }
    }

    /// The shards that are stored as the stripe of this id, which no other attempt has.
    fn encode(&self, id: StripeId, group: &PlacementGroup) -> Result<Encoded, ObjectError> {
        let (common, class) = (&self.common, group.class);
        let encrypted = match &self.cipher {
            None => None,
            Some(key) => Some(key.encrypt(common.pool(), id, &self.data)?),
        };
        let data = encrypted.as_ref().unwrap_or(&self.data);
        encode(&common.codecs, common.pool(), class, data).map_err(|error| {
            let detail = error.to_string();
            ObjectError::BadRequest { detail }
        })
    }

    fn send_all(&mut self, now: Instant, group: &PlacementGroup, out: &mut Vec<Action>) {
        self.attempts += 1;
        let common = self.common.clone();
        let id = match self.from {
            Some(from) => Ok(common.next_of(from)),
            None => common.next_stripe(),
        };
        let encoded = id.and_then(|id| Ok((id, self.encode(id, group)?)));
        let (id, encoded) = match encoded {
            Ok(encoded) => encoded,
            Err(error) => {
                self.fail(now, error, out);
                return;
            }
        };
        let stripe = Stripe {
            id,
            pg: group.id,
            k: group.class.k,
            m: group.class.m,
            data_len: self.data.data_len(),
            shard_crcs: encoded.crcs,
        };
        let mut attempt = Attempt {
            stripe,
            data_crc: encoded.data_crc,
            devices: group.devices.clone(),
            shards: encoded.shards,
            slots: Vec::with_capacity(group.devices.len()),
        };
        for index in 0..attempt.shards.len() {
            let slot = send(&common, &mut self.calls, now, &attempt, index, 0, out);
            attempt.slots.push(slot);
        }
        self.attempt = Some(attempt);
    }

    fn succeed(&mut self) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        let failed = attempt
            .slots
            .iter()
            .filter(|s| matches!(s, Slot::Failed { .. }))
            .count();
        let written = Written {
            stripe: attempt.stripe.clone(),
            data_crc: attempt.data_crc,
            failed: failed as u32,
        };
        // Only what may have to be sent again stays in memory.
        for (shard, slot) in attempt.shards.iter_mut().zip(&attempt.slots) {
            if !matches!(slot, Slot::Sent { .. } | Slot::Again { .. }) {
                *shard = Bytes::new();
            }
        }
        self.data = StripeBuf::exact(Bytes::new());
        self.look_at = None;
        self.outcome = Some(Ok(written));
    }

    /// What can be said of the attempt that failed.
    fn failure(&self, quorum: usize) -> ObjectError {
        let Some(attempt) = &self.attempt else {
            return self.last_failure.clone().unwrap_or(ObjectError::Aborted);
        };
        let faults: Vec<ShardFault> = attempt
            .slots
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| match slot {
                Slot::Failed { fault, .. } => Some((index, fault.clone())),
                Slot::Late { .. } => Some((index, Fault::Late)),
                _ => None,
            })
            .map(|(index, fault)| {
                self.common
                    .shard_fault(index, attempt.devices[index], fault)
            })
            .collect();
        ObjectError::StripeFailed {
            attempts: self.attempts,
            quorum: quorum as u32,
            durable: attempt.durable() as u32,
            faults,
        }
    }

    fn fail(&mut self, now: Instant, error: ObjectError, out: &mut Vec<Action>) {
        self.look_at = None;
        self.outcome = Some(Err(error));
        self.drop_attempt(now, out);
        self.data = StripeBuf::exact(Bytes::new());
    }

    /// Abandons the attempt: what it may have stored is to be deleted.
    fn drop_attempt(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Some(attempt) = self.attempt.take() else {
            return;
        };
        let give_up = self.common.tuning().give_up;
        let stripe = attempt.stripe.id;
        for (index, (slot, device)) in attempt.slots.into_iter().zip(attempt.devices).enumerate() {
            match slot {
                Slot::Sent { call, sent, .. } => {
                    let until = sent + give_up;
                    self.strays.push(Stray {
                        stripe,
                        index,
                        device,
                        call,
                        until,
                        deleting: false,
                    });
                }
                Slot::Late { call, until, .. } => {
                    self.strays.push(Stray {
                        stripe,
                        index,
                        device,
                        call,
                        until,
                        deleting: false,
                    });
                }
                Slot::Durable | Slot::Failed { stray: true, .. } => {
                    self.delete(now, stripe, index, device, out);
                }
                Slot::Again { .. } | Slot::Failed { .. } => {}
            }
        }
    }

    fn delete(
        &mut self,
        now: Instant,
        stripe: StripeId,
        index: usize,
        device: DeviceNo,
        out: &mut Vec<Action>,
    ) {
        let call = self.calls.next();
        let request = forget(device, stripe, index);
        out.push(Action::Send {
            call,
            to: device,
            request,
            payload: Bytes::new(),
            payload_crc: None,
        });
        let until = now + self.common.tuning().give_up;
        self.strays.push(Stray {
            stripe,
            index,
            device,
            call,
            until,
            deleting: true,
        });
    }

    fn on_answer(&mut self, now: Instant, call: CallId, answer: Answer, out: &mut Vec<Action>) {
        if let Some(at) = self.strays.iter().position(|s| s.call == call) {
            let stray = self.strays.swap_remove(at);
            self.on_stray(now, stray, answer, out);
            return;
        }
        let answered = self.outcome.is_some();
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        let Some(index) = attempt.slots.iter().position(|slot| match slot {
            Slot::Sent { call: c, .. } | Slot::Late { call: c, .. } => *c == call,
            _ => false,
        }) else {
            return;
        };
        let (sent, tries) = match &attempt.slots[index] {
            Slot::Sent { sent, tries, .. } => (*sent, *tries),
            Slot::Late { sent, .. } => (*sent, BUSY_TRIES),
            _ => return,
        };
        let device = attempt.devices[index];
        let len = attempt.stripe.shard_len();
        let slot = match answer {
            Answer::Reply {
                reply: Reply::Done, ..
            } => {
                self.common
                    .health()
                    .worked(device, Kind::Write, len, now.since(sent));
                Slot::Durable
            }
            answer => {
                let stray = matches!(answer, Answer::Lost { .. });
                let fault = Fault::of(answer);
                if matches!(fault, Fault::Busy(_)) && tries < BUSY_TRIES {
                    Slot::Again {
                        at: now + BUSY_PAUSE * (1 << tries),
                        tries: tries + 1,
                    }
                } else {
                    self.common.health().failed(now, device, &fault);
                    Slot::Failed { fault, stray }
                }
            }
        };
        if answered && matches!(slot, Slot::Failed { .. }) {
            self.leftover.late_lost += 1;
        }
        if matches!(slot, Slot::Durable | Slot::Failed { .. }) {
            attempt.shards[index] = Bytes::new();
        }
        attempt.slots[index] = slot;
    }

    fn on_stray(&mut self, now: Instant, stray: Stray, answer: Answer, out: &mut Vec<Action>) {
        let done = matches!(
            answer,
            Answer::Reply {
                reply: Reply::Done,
                ..
            }
        );
        if stray.deleting {
            if !done {
                self.leftover.unfreed += 1;
            }
        } else if done || matches!(answer, Answer::Lost { .. }) {
            self.delete(now, stray.stripe, stray.index, stray.device, out);
        }
    }

    fn on_deadline(&mut self, now: Instant, out: &mut Vec<Action>) {
        let overdue: Vec<Stray> = self.strays.extract_if(.., |s| s.until <= now).collect();
        for stray in overdue {
            if stray.deleting {
                self.leftover.unfreed += 1;
            } else {
                self.delete(now, stray.stripe, stray.index, stray.device, out);
            }
        }
        let answered = self.outcome.is_some();
        let common = self.common.clone();
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        for index in 0..attempt.slots.len() {
            let device = attempt.devices[index];
            match attempt.slots[index] {
                Slot::Sent {
                    call,
                    sent,
                    late_at,
                    ..
                } if late_at <= now => {
                    common.health().failed(now, device, &Fault::Late);
                    let until = (sent + common.tuning().give_up).max(now);
                    attempt.slots[index] = Slot::Late { call, sent, until };
                }
                Slot::Late { until, .. } if until <= now => {
                    attempt.slots[index] = Slot::Failed {
                        fault: Fault::Late,
                        stray: true,
                    };
                    attempt.shards[index] = Bytes::new();
                    if answered {
                        self.leftover.late_lost += 1;
                    }
                }
                Slot::Again { at, tries } if at <= now => {
                    let slot = send(&common, &mut self.calls, now, attempt, index, tries, out);
                    attempt.slots[index] = slot;
                }
                _ => {}
            }
        }
    }
}

/// Sends shard `index` of an attempt.
fn send(
    common: &Common,
    calls: &mut Calls,
    now: Instant,
    attempt: &Attempt,
    index: usize,
    tries: u32,
    out: &mut Vec<Action>,
) -> Slot {
    let call = calls.next();
    let device = attempt.devices[index];
    let shard = ShardId {
        stripe: attempt.stripe.id,
        index: index as u16,
    };
    out.push(Action::Send {
        call,
        to: device,
        request: Request::ShardWrite { device, shard },
        payload: attempt.shards[index].clone(),
        payload_crc: Some(attempt.stripe.shard_crcs[index]),
    });
    let patience = common
        .health()
        .deadline(Kind::Write, attempt.stripe.shard_len())
        + common.tuning().held;
    Slot::Sent {
        call,
        sent: now,
        late_at: now + patience,
        tries,
    }
}

impl Machine for StripeWrite {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Start => self.started = now,
            Event::Answer { call, answer } => self.on_answer(now, call, answer, out),
            Event::Deadline => self.on_deadline(now, out),
            Event::Abort => self.abandon(now, out),
            Event::Inline(_) | Event::Stripe(_) | Event::End => return,
        }
        self.advance(now, out);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let strays = self.strays.iter().map(|s| s.until).min();
        let slots = self.attempt.iter().flat_map(|a| &a.slots);
        let slots = slots.filter_map(|slot| match slot {
            Slot::Sent { late_at, .. } => Some(*late_at),
            Slot::Late { until, .. } => Some(*until),
            Slot::Again { at, .. } => Some(*at),
            Slot::Durable | Slot::Failed { .. } => None,
        });
        sooner(self.look_at, sooner(strays, slots.min()))
    }

    fn is_answered(&self) -> bool {
        self.outcome.is_some()
    }

    fn leftover(&self) -> Leftover {
        self.leftover
    }

    fn is_settled(&self) -> bool {
        let waiting = |a: &Attempt| {
            a.slots
                .iter()
                .any(|s| !matches!(s, Slot::Durable | Slot::Failed { .. }))
        };
        self.outcome.is_some()
            && self.strays.is_empty()
            && !self.attempt.as_ref().is_some_and(waiting)
    }
}

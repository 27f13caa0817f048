//! One stripe, or a part of it, on its way from its devices.
//!
//! Reads only the data shards that the range touches. A shard that fails, or is later than others
//! of its size usually are, is rebuilt from the same columns of k other shards.
//!
//! Invariants:
//! - nothing counts as read that does not match the manifest: a whole shard by the CRC of what
//!   came, a part by the shard's CRC and length in the record's header (the node verified the
//!   pieces, the frame's CRC the way);
//! - a rebuilt whole shard is checked against the manifest before it is given out;
//! - what is given out is complete, in order, and given once;
//! - "fewer than k can be read now" is an error that names each shard; it is never "absent".

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ashlar_cluster_map::Class;
use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{DeviceNo, ShardId, StripeId};
use ashlar_layout::manifest::Stripe;
use ashlar_layout::message::{FindingKind, Reply, Request};
use ashlar_layout::time::Instant;
use bytes::{Bytes, BytesMut};

use crate::call::{Action, Answer, CallId, Calls, Event, Machine, sooner};
use crate::common::Common;
use crate::encode::rebuild;
use crate::error::{Fault, ObjectError, ShardFault};
use crate::latency::Kind;

/// The pause before shards that failed for a passing reason are asked for again; doubles.
const AGAIN_MIN: Duration = Duration::from_millis(20);
/// Its bound.
const AGAIN_MAX: Duration = Duration::from_millis(500);

#[derive(Debug)]
struct Asked {
    call: CallId,
    cols: Range<u32>,
    sent: Instant,
    hedge_at: Instant,
    suspect_at: Instant,
    until: Instant,
    late: bool,
    suspected: bool,
}

#[derive(Debug, Default)]
struct Slot {
    /// Columns that the caller's range has in this data shard.
    need: Option<Range<u32>>,
    asked: Option<Asked>,
    got: Option<(Range<u32>, Bytes)>,
    fault: Option<Fault>,
}

impl Slot {
    fn covers(&self, cols: &Range<u32>) -> bool {
        self.got.as_ref().is_some_and(|(got, _)| within(cols, got))
    }

    fn has_need(&self) -> bool {
        self.need.as_ref().is_none_or(|need| self.covers(need))
    }

    /// Whether these columns are on their way, and not late.
    fn coming(&self, cols: &Range<u32>) -> bool {
        self.asked
            .as_ref()
            .is_some_and(|a| !a.late && within(cols, &a.cols))
    }

    fn late(&self) -> bool {
        self.asked.as_ref().is_some_and(|a| a.late)
    }
}

fn within(inner: &Range<u32>, outer: &Range<u32>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// A part of a stripe as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The bytes, in order, without padding.
    pub chunks: Vec<Bytes>,
    /// The CRC-32 of each chunk, where the manifest gives it: that of a whole shard.
    pub crcs: Vec<Option<u32>>,
    /// Data shards that had to be rebuilt for it.
    pub rebuilt: u32,
}

impl Part {
    /// How many bytes.
    pub(crate) fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    /// The bytes in one piece: copied, if they are not in one.
    pub(crate) fn joined(&self) -> Bytes {
        match self.chunks.as_slice() {
            [one] => one.clone(),
            chunks => {
                let mut bytes = BytesMut::with_capacity(self.len());
                for chunk in chunks {
                    bytes.extend_from_slice(chunk);
                }
                bytes.freeze()
            }
        }
    }
}

/// The state machine that reads one stripe.
#[derive(Debug)]
pub struct StripeRead {
    common: Arc<Common>,
    calls: Calls,
    stripe: Stripe,
    devices: Vec<DeviceNo>,
    want: Range<u32>,
    slots: Vec<Slot>,
    started: Instant,
    again_at: Option<Instant>,
    again_pause: Duration,
    missing: Vec<usize>,
    /// All that is left is to wait for devices that are late or away.
    stuck: bool,
    outcome: Option<Result<Part, ObjectError>>,
}

impl StripeRead {
    /// Reads the bytes `want` of `stripe`, with calls of the number `lane`. The error says why the
    /// stripe makes no sense.
    pub fn new(
        common: Arc<Common>,
        lane: u32,
        stripe: Stripe,
        want: Range<u32>,
    ) -> Result<StripeRead, String> {
        let devices = common.devices_of(&stripe)?;
        let len = stripe.shard_len();
        if want.start >= want.end || want.end > stripe.data_len {
            return Err(format!(
                "bytes {}..{} of stripe {}, which has {}",
                want.start, want.end, stripe.id, stripe.data_len
            ));
        }
        let mut slots: Vec<Slot> = devices.iter().map(|_| Slot::default()).collect();
        for (i, slot) in slots.iter_mut().take(usize::from(stripe.k)).enumerate() {
            // A stripe has at most 64 shards of at most 4 MiB: no overflow in u64, and the
            // columns fit u32 again.
            let base = i as u64 * u64::from(len);
            let start = u64::from(want.start).max(base);
            let end = u64::from(want.end).min(base + u64::from(len));
            if start < end {
                slot.need = Some((start - base) as u32..(end - base) as u32);
            }
        }
        Ok(StripeRead {
            common,
            calls: Calls::new(lane),
            stripe,
            devices,
            want,
            slots,
            started: Instant(0),
            again_at: None,
            again_pause: AGAIN_MIN,
            missing: Vec::new(),
            stuck: false,
            outcome: None,
        })
    }

    /// How many shards are not on their devices, where only devices that are late or away could still help: that
    /// is how a stripe looks that was freed while one of its devices says nothing. Zero if it is not so.
    pub fn missed(&self) -> usize {
        match self.stuck && self.outcome.is_none() {
            true => self.missing.len(),
            false => 0,
        }
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Result<Part, ObjectError>> {
        self.outcome.as_ref()
    }

    /// How it ended, for good.
    pub fn into_outcome(self) -> Option<Result<Part, ObjectError>> {
        self.outcome
    }

    /// Which stripe it reads.
    pub(crate) fn stripe(&self) -> StripeId {
        self.stripe.id
    }

    /// The bytes that it reads, within the stripe.
    pub fn want(&self) -> Range<u32> {
        self.want.clone()
    }

    /// What to tell the nodes of shards that they said they do not have: only true as long as the
    /// object was not removed meanwhile, which the caller has to find out.
    pub fn missing(&self) -> impl Iterator<Item = Action> + '_ {
        self.missing
            .iter()
            .map(|index| self.report(*index, FindingKind::Missing))
    }

    fn report(&self, index: usize, fault: FindingKind) -> Action {
        let device = self.devices[index];
        let shard = ShardId {
            stripe: self.stripe.id,
            index: index as u16,
        };
        Action::Tell {
            to: device,
            request: Request::ReportShard {
                device,
                shard,
                fault,
            },
        }
    }

    fn k(&self) -> usize {
        usize::from(self.stripe.k)
    }

    fn advance(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.outcome.is_some() || self.again_at.is_some_and(|at| now < at) {
            return;
        }
        self.again_at = None;
        self.stuck = false;
        self.common.probe(now, out);
        let readable: Vec<bool> = {
            let health = self.common.health();
            self.devices
                .iter()
                .map(|d| health.is_readable(*d))
                .collect()
        };
        // Ask for what is needed and expected to come.
        for (index, readable) in readable.iter().enumerate().take(self.k()) {
            let slot = &self.slots[index];
            let Some(need) = slot.need.clone() else {
                continue;
            };
            if slot.got.is_none() && slot.asked.is_none() && slot.fault.is_none() && *readable {
                self.ask(now, index, need, out);
            }
        }
        // What is needed, and neither here nor on its way in time, is to be rebuilt.
        let lost: Vec<usize> = (0..self.k())
            .filter(|i| {
                let slot = &self.slots[*i];
                let expected = slot.need.as_ref().is_some_and(|need| slot.coming(need));
                !slot.has_need() && !expected
            })
            .collect();
        if lost.is_empty() {
            if self.slots.iter().all(Slot::has_need) {
                self.finish(now, &[]);
            }
            return;
        }
        let cols = self.columns(&lost);
        if self.slots.iter().filter(|s| s.covers(&cols)).count() >= self.k() {
            let waiting = (0..self.k()).any(|i| !self.slots[i].has_need() && !lost.contains(&i));
            if !waiting {
                self.finish_rebuilt(now, &lost, cols);
            }
            return;
        }
        self.ask_others(now, &cols, &readable, out);
    }

    /// The columns that the lost shards have to be rebuilt in.
    fn columns(&self, lost: &[usize]) -> Range<u32> {
        let needs = || lost.iter().filter_map(|i| self.slots[*i].need.as_ref());
        let start = needs().map(|n| n.start).min().unwrap_or(0);
        let end = needs().map(|n| n.end).max().unwrap_or(0);
        let codec = self.common.codecs.get(self.stripe.k, self.stripe.m);
        let align = codec.map_or(1, |codec| codec.range_align()) as u32;
        let len = self.stripe.shard_len();
        start / align * align..end.next_multiple_of(align).min(len)
    }

    /// Asks for these columns of as many other shards as it takes.
    fn ask_others(
        &mut self,
        now: Instant,
        cols: &Range<u32>,
        readable: &[bool],
        out: &mut Vec<Action>,
    ) {
        let counts = |s: &Slot| s.covers(cols) || s.coming(cols);
        let mut promised = self.slots.iter().filter(|s| counts(s)).count();
        // First those that should answer, then those that are not expected to.
        for hopeful in [true, false] {
            for (index, readable) in readable.iter().enumerate() {
                if promised >= self.k() {
                    return;
                }
                let slot = &self.slots[index];
                if counts(slot) || slot.late() || slot.fault.is_some() || *readable != hopeful {
                    continue;
                }
                // Its own part too, or the answer would push that out.
                let wider = slot.need.as_ref().map_or(cols.clone(), |need| {
                    need.start.min(cols.start)..need.end.max(cols.end)
                });
                // A narrower request that is under way is left to itself: its answer is dropped.
                self.ask(now, index, wider, out);
                promised += 1;
            }
        }
        let late = self
            .slots
            .iter()
            .filter(|s| s.late() && !s.covers(cols))
            .count();
        if promised >= self.k() {
            return;
        }
        if promised + late >= self.k() {
            self.stuck = true;
            return;
        }
        self.ask_again_or_fail(now, cols);
    }

    /// Too few are left. What failed for a passing reason is asked for again after a pause, for as
    /// long as the caller waits.
    fn ask_again_or_fail(&mut self, now: Instant, cols: &Range<u32>) {
        let passing = |s: &&mut Slot| s.fault.as_ref().is_some_and(Fault::is_transient);
        let over = now >= self.started + self.common.tuning().unavailable_wait;
        let hope = self.slots.iter_mut().filter(passing).count()
            + self.slots.iter().filter(|s| s.fault.is_none()).count();
        if !over && hope >= self.k() {
            for slot in self.slots.iter_mut().filter(|s| passing(s)) {
                slot.fault = None;
            }
            self.stuck = true;
            self.again_at = Some(now + self.again_pause);
            self.again_pause = (self.again_pause * 2).min(AGAIN_MAX);
            return;
        }
        if self.slots.iter().any(|s| s.asked.is_some() && !s.late()) {
            // There is no hope, but what is on its way belongs into the report.
            return;
        }
        let readable = self.slots.iter().filter(|s| s.covers(cols)).count();
        let missing: Vec<ShardFault> = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, s)| !s.covers(cols))
            .filter_map(|(i, s)| match (&s.fault, s.late()) {
                (Some(fault), _) => Some((i, fault.clone())),
                (None, true) => Some((i, Fault::Late)),
                (None, false) => None,
            })
            .map(|(i, fault)| self.common.shard_fault(i, self.devices[i], fault))
            .collect();
        self.outcome = Some(Err(ObjectError::Unreadable {
            stripe: self.stripe.id,
            needed: u32::from(self.stripe.k),
            readable: readable as u32,
            missing,
        }));
        self.forget_shards(now);
    }

    fn ask(&mut self, now: Instant, index: usize, cols: Range<u32>, out: &mut Vec<Action>) {
        let call = self.calls.next();
        let device = self.devices[index];
        let bytes = cols.end - cols.start;
        let whole = bytes == self.stripe.shard_len();
        let (hedge, patience) = {
            let health = self.common.health();
            let held = self.common.tuning().held;
            let patience = health.deadline(Kind::Read, bytes);
            (health.hedge(bytes) + held, patience + held)
        };
        out.push(Action::Send {
            call,
            to: device,
            request: Request::ShardRead {
                device,
                shard: ShardId {
                    stripe: self.stripe.id,
                    index: index as u16,
                },
                offset: cols.start,
                len: if whole { u32::MAX } else { bytes },
            },
            payload: Bytes::new(),
            payload_crc: None,
        });
        self.slots[index].asked = Some(Asked {
            call,
            cols,
            sent: now,
            hedge_at: now + hedge,
            suspect_at: now + patience.max(hedge),
            until: now + self.common.tuning().give_up,
            late: false,
            suspected: false,
        });
    }

    fn on_answer(&mut self, now: Instant, call: CallId, answer: Answer, out: &mut Vec<Action>) {
        let asked_by = |s: &Slot| s.asked.as_ref().is_some_and(|a| a.call == call);
        let Some(index) = self.slots.iter().position(asked_by) else {
            return;
        };
        let Some(asked) = self.slots[index].asked.take() else {
            return;
        };
        if self.outcome.is_some() {
            return;
        }
        let device = self.devices[index];
        let bytes = asked.cols.end - asked.cols.start;
        match check_shard(&self.stripe, index, bytes, answer) {
            Ok(bytes) => {
                let took = now.since(asked.sent);
                self.common
                    .health()
                    .worked(device, Kind::Read, bytes.len() as u32, took);
                let slot = &mut self.slots[index];
                slot.fault = None;
                // A wider piece that is here already is kept.
                if !slot.covers(&asked.cols) {
                    slot.got = Some((asked.cols, bytes));
                }
            }
            Err((fault, finding)) => {
                self.common.health().failed(now, device, &fault);
                if fault == Fault::Missing && !self.missing.contains(&index) {
                    self.missing.push(index);
                }
                if let Some(finding) = finding {
                    out.push(self.report(index, finding));
                }
                self.slots[index].fault = Some(fault);
            }
        }
    }

    fn on_deadline(&mut self, now: Instant) {
        for (slot, device) in self.slots.iter_mut().zip(&self.devices) {
            let Some(asked) = &mut slot.asked else {
                continue;
            };
            asked.late |= asked.hedge_at <= now;
            if asked.suspect_at <= now && !asked.suspected {
                asked.suspected = true;
                self.common.health().failed(now, *device, &Fault::Late);
            }
            if asked.until <= now {
                slot.asked = None;
                slot.fault = Some(Fault::Late);
            }
        }
    }

    fn finish_rebuilt(&mut self, now: Instant, lost: &[usize], cols: Range<u32>) {
        let class = Class {
            k: self.stripe.k,
            m: self.stripe.m,
        };
        let have: Vec<(usize, &[u8])> = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.covers(&cols))
            .filter_map(|(i, slot)| {
                let (got, bytes) = slot.got.as_ref()?;
                let start = (cols.start - got.start) as usize;
                Some((i, &bytes[start..start + (cols.end - cols.start) as usize]))
            })
            .take(self.k())
            .collect();
        let common = self.common.clone();
        let rebuilt = match rebuild(&common.codecs, common.pool(), class, &have, lost) {
            Ok(rebuilt) => rebuilt,
            Err(error) => {
                let detail = error.to_string();
                self.outcome = Some(Err(ObjectError::BadRequest { detail }));
                self.forget_shards(now);
                return;
            }
        };
        drop(have);
        for (index, bytes) in lost.iter().zip(rebuilt) {
            if cols == (0..self.stripe.shard_len()) {
                let (expected, got) = (self.stripe.shard_crcs[*index], crc32(&bytes));
                if expected != got {
                    let what = format!("rebuilt shard {index} of stripe {}", self.stripe.id);
                    self.outcome = Some(Err(ObjectError::Corrupt {
                        what,
                        expected,
                        got,
                    }));
                    self.forget_shards(now);
                    return;
                }
            }
            self.slots[*index].got = Some((cols.clone(), bytes));
        }
        self.finish(now, lost);
    }

    fn finish(&mut self, now: Instant, rebuilt: &[usize]) {
        let len = self.stripe.shard_len();
        let (chunks, crcs) = self
            .slots
            .iter()
            .zip(&self.stripe.shard_crcs)
            .filter_map(|(slot, crc)| {
                let (need, (got, bytes)) = (slot.need.as_ref()?, slot.got.as_ref()?);
                let start = (need.start - got.start) as usize;
                let chunk = bytes.slice(start..start + (need.end - need.start) as usize);
                // A whole shard was checked against the manifest, rebuilt or not.
                Some((chunk, (*need == (0..len)).then_some(*crc)))
            })
            .unzip();
        self.outcome = Some(Ok(Part {
            chunks,
            crcs,
            rebuilt: rebuilt.len() as u32,
        }));
        self.forget_shards(now);
    }

    fn forget_shards(&mut self, now: Instant) {
        self.again_at = None;
        for slot in &mut self.slots {
            // What was not waited for took at least so long. Without this only the fast ones would
            // be remembered, and hedging would feed itself.
            if let Some(asked) = slot.asked.take().filter(|a| a.late) {
                let bytes = asked.cols.end - asked.cols.start;
                self.common
                    .health()
                    .seen(Kind::Read, bytes, now.since(asked.sent));
            }
            slot.got = None;
        }
    }
}

/// What came of so many bytes of a shard that were asked for, if it is what the manifest means; else the fault, and
/// what to tell the node of it, if that cannot know.
pub(crate) fn check_shard(
    stripe: &Stripe,
    index: usize,
    asked: u32,
    answer: Answer,
) -> Result<Bytes, (Fault, Option<FindingKind>)> {
    let (len, crc, bytes, bytes_crc) = match answer {
        Answer::Reply {
            reply:
                Reply::Shard {
                    shard_len,
                    shard_crc,
                },
            payload,
            payload_crc,
        } => (shard_len, shard_crc, payload, payload_crc),
        answer => return Err((Fault::of(answer), None)),
    };
    let expected_len = stripe.shard_len();
    let expected_crc = stripe.shard_crcs[index];
    if len != expected_len || crc != expected_crc {
        let why = format!(
            "the manifest names {expected_len} bytes of CRC {expected_crc:08x}, the record has {len} of {crc:08x}"
        );
        let kind = FindingKind::WrongRecord;
        return Err((Fault::Bad(kind, why), Some(kind)));
    }
    if bytes.len() != asked as usize {
        let why = format!("{asked} bytes were asked for, {} came", bytes.len());
        return Err((Fault::Refused(why), None));
    }
    if asked == expected_len && bytes_crc != expected_crc {
        let why = format!("expected CRC {expected_crc:08x}, got {bytes_crc:08x}");
        return Err((Fault::Bad(FindingKind::Rot, why), Some(FindingKind::Rot)));
    }
    Ok(bytes)
}

impl Machine for StripeRead {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Start => self.started = now,
            Event::Answer { call, answer } => self.on_answer(now, call, answer, out),
            Event::Deadline => self.on_deadline(now),
            Event::Abort => {
                self.outcome.get_or_insert(Err(ObjectError::Aborted));
                self.forget_shards(now);
            }
            Event::Inline(_) | Event::Stripe(_) | Event::End => return,
        }
        self.advance(now, out);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let slots = self.slots.iter().filter_map(|slot| {
            let asked = slot.asked.as_ref()?;
            let next = match (asked.late, asked.suspected) {
                (false, _) => asked.hedge_at,
                (true, false) => asked.suspect_at,
                (true, true) => asked.until,
            };
            Some(next.min(asked.until))
        });
        sooner(self.again_at, slots.min())
    }

    fn is_answered(&self) -> bool {
        self.outcome.is_some()
    }

    fn is_settled(&self) -> bool {
        self.outcome.is_some()
    }
}

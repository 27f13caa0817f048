//! Puts one stripe of an object elsewhere: its devices are gone, and it can lose less than it should.
//!
//! What is stored is read, written to a healthy group under another id, and read back whole; where a list names the
//! stripe, that is written anew, too. Then the journal is told, on the condition that the object still is what was
//! found; and then what nothing names any more is freed.
//!
//! Invariants:
//! - what is proposed names stripes of which every shard was read back, of the bytes that the old ones are read as;
//! - nothing of the object changes but where its stripes are;
//! - the old stripes are freed after the commit, and never before; the new ones only if they certainly are not named:
//!   if that is not known, nothing is freed;
//! - a stripe that is moved gets another id (the same as of an earlier move: 2^-24), so that no delete, however late it
//!   comes, hits one that is needed;
//! - one stripe and one list of stripes are in memory at most.

use std::sync::Arc;
use std::time::Duration;

use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{PartitionId, Seq};
use ashlar_layout::manifest::{Body, Manifest, Op, Precondition, Stripe};
use ashlar_layout::message::{ObjectMeta, Reply};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::ask::Ask;
use crate::call::{Action, Event, Leftover, Machine, sooner};
use crate::common::{Common, unexpected};
use crate::encode::StripeBuf;
use crate::error::ObjectError;
use crate::free::Free;
use crate::mend::{Mend, Mends};
use crate::stripe_read::{Part, StripeRead};
use crate::stripe_write::StripeWrite;
use crate::tree::{decode_node, encode_node};

const ASK_LANE: u32 = 0;
const FIRST_LANE: u32 = 1;
const FREE_LANE: u32 = 1 << 31;
/// So often a stripe is written that is not whole when it is read back: by then it is known which device failed.
const TRIES: u32 = 3;
/// So often what was written is read back, if devices are busy or late,
const LOOKS: u32 = 5;
/// with such a pause before the second time; it doubles.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Which stripe of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The stripe: of the object's bytes, or a list of stripes.
    pub stripe: Stripe,
    /// The list that names it; none: the manifest itself does.
    pub list: Option<Stripe>,
}

/// A stripe that is elsewhere now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relocated {
    /// The journal entry that recorded it, which is the object's version then.
    pub version: Seq,
    /// The stripe,
    pub stripe: Stripe,
    /// and the list that names it, if one does.
    pub list: Option<Stripe>,
}

/// What is under way. A number is that of its calls.
#[derive(Debug)]
enum Phase {
    /// The stripe, or the list, is read.
    Reading(u32, StripeRead),
    /// What was read, or made of it, is written.
    Writing(u32, StripeWrite),
    /// What was written is read back.
    Checking(u32, Mend),
    /// Some of it could not be read just then: it is read once more.
    Waiting(Instant),
    /// The journal is asked.
    Asking(Box<Ask>),
    Over,
}

/// The state machine that puts a stripe elsewhere.
#[derive(Debug)]
pub struct Relocate {
    common: Arc<Common>,
    bucket: String,
    key: String,
    partition: PartitionId,
    meta: ObjectMeta,
    current: bool,
    spot: Spot,
    phase: Phase,
    next_lane: u32,
    /// The bytes that are being stored.
    data: Bytes,
    tries: u32,
    looks: u32,
    /// The stripes that are to be named instead of the old ones: the stripe's, then its list's.
    made: Vec<Stripe>,
    /// Writes that are given up, and stripes that are freed.
    ending: Vec<(u32, StripeWrite)>,
    frees: Vec<(u32, Free)>,
    outcome: Option<Result<Relocated, ObjectError>>,
    leftover: Leftover,
}

fn refused<T>(detail: impl Into<String>) -> Result<T, ObjectError> {
    let detail = detail.into();
    Err(ObjectError::BadRequest { detail })
}

impl Relocate {
    /// Of what was found under `key` in `bucket`: the current object, or a version that is not. The error says why it
    /// makes no sense; [`ObjectError::ObjectChanged`] that what was found does not name the stripe.
    pub fn new(
        common: Arc<Common>,
        bucket: &str,
        key: &str,
        (meta, current): (ObjectMeta, bool),
        spot: Spot,
    ) -> Result<Relocate, ObjectError> {
        let partition = common.partition_of(bucket, key)?;
        let lists = match &meta.manifest.body {
            Body::Inline => return refused("an object in the journal has no stripes"),
            Body::Stripes(_) => false,
            Body::Tree(_) | Body::Parts { .. } => true,
        };
        if !lists && spot.list.is_some() {
            return refused("a list of stripes of an object that has none");
        }
        let named = spot.list.as_ref().unwrap_or(&spot.stripe);
        if !meta.manifest.body.stripes().contains(named) {
            return Err(changed(bucket, key));
        }
        Ok(Relocate {
            common,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            partition,
            meta,
            current,
            spot,
            phase: Phase::Over,
            next_lane: FIRST_LANE,
            data: Bytes::new(),
            tries: 0,
            looks: 0,
            made: Vec::new(),
            ending: Vec::new(),
            frees: Vec::new(),
            outcome: None,
            leftover: Leftover::default(),
        })
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Result<Relocated, ObjectError>> {
        self.outcome.as_ref()
    }

    fn lane(&mut self) -> u32 {
        self.next_lane += 1;
        self.next_lane - 1
    }

    /// The old stripe that the next one takes the place of.
    fn old(&self) -> Option<&Stripe> {
        match self.made.len() {
            0 => Some(&self.spot.stripe),
            1 => self.spot.list.as_ref(),
            _ => None,
        }
    }

    /// Reads the next old stripe, or proposes what was made.
    fn next(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.data = Bytes::new();
        self.tries = 0;
        let Some(old) = self.old().cloned() else {
            return self.propose(now, out);
        };
        let (lane, want) = (self.lane(), 0..old.data_len);
        match StripeRead::new(self.common.clone(), lane, old, want) {
            Ok(mut read) => {
                read.on_event(now, Event::Start, out);
                self.phase = Phase::Reading(lane, read);
            }
            Err(detail) => self.fail(now, ObjectError::BadRequest { detail }, out),
        }
    }

    /// The bytes that are to be stored, by those that were read.
    fn bytes_of(&self, part: &Part) -> Result<Bytes, ObjectError> {
        let Some(new) = self.made.first() else {
            return Ok(part.joined());
        };
        let mut listed = match decode_node(part) {
            Ok(listed) => listed,
            Err(detail) => return refused(detail),
        };
        let at = listed.iter().position(|it| *it == self.spot.stripe);
        let Some(at) = at else {
            return Err(changed(&self.bucket, &self.key));
        };
        listed[at] = new.clone();
        let bytes = encode_node(&listed);
        // Of a wider class it has more checksums.
        let most = self.common.map().stripe_data as usize;
        match bytes.len() > most.max(part.len()) {
            true => refused("the list that names it would be longer than a stripe"),
            false => Ok(bytes),
        }
    }

    fn write(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.tries += 1;
        let lane = self.lane();
        let data = StripeBuf::exact(self.data.clone());
        let mut write = StripeWrite::new(self.common.clone(), lane, data);
        // A list is another one than before.
        if self.made.is_empty() {
            write = write.moving(self.spot.stripe.id);
        }
        write.on_event(now, Event::Start, out);
        self.phase = Phase::Writing(lane, write);
    }

    /// Reads back what was written last.
    fn check(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.looks += 1;
        let lane = self.lane();
        let Some(stripe) = self.made.last().cloned() else {
            return;
        };
        match Mend::new(self.common.clone(), stripe, Mends::None) {
            Ok(mend) => {
                let mut mend = mend.with_lane(lane);
                mend.on_event(now, Event::Start, out);
                self.phase = Phase::Checking(lane, mend);
            }
            Err(detail) => self.fail(now, ObjectError::BadRequest { detail }, out),
        }
    }

    fn propose(&mut self, now: Instant, out: &mut Vec<Action>) {
        let old = self.spot.list.as_ref().unwrap_or(&self.spot.stripe);
        let mut manifest: Manifest = self.meta.manifest.clone();
        let named = match &mut manifest.body {
            Body::Inline => &mut [][..],
            Body::Stripes(stripes) | Body::Tree(stripes) => stripes,
            Body::Parts { nodes, .. } => nodes,
        };
        let at = named.iter_mut().find(|it| *it == old);
        let (Some(at), Some(new)) = (at, self.made.last()) else {
            let error = changed(&self.bucket, &self.key);
            return self.fail(now, error, out);
        };
        *at = new.clone();
        if let Err(error) = manifest.check() {
            let detail = error.to_string();
            return self.fail(now, ObjectError::BadRequest { detail }, out);
        }
        let request = self.common.proposal(
            self.partition,
            Precondition::None,
            Op::Relocate {
                bucket: self.bucket.clone(),
                key: self.key.clone(),
                tag: self.meta.tag,
                seen: self.meta.version,
                current: self.current,
                modified_ms: self.meta.modified_ms,
                manifest,
            },
        );
        let (common, names) = (self.common.clone(), (&self.bucket[..], &self.key[..]));
        let ask = Ask::new(
            common,
            ASK_LANE,
            names,
            self.partition,
            request,
            Bytes::new(),
        );
        let mut ask = ask.with_crc(0);
        ask.on_event(now, Event::Start, out);
        self.phase = Phase::Asking(Box::new(ask));
    }

    fn free(&mut self, now: Instant, stripes: Vec<Stripe>, out: &mut Vec<Action>) {
        let lane = FREE_LANE + 2 * u32::try_from(self.frees.len()).unwrap_or(0);
        let mut free = Free::new(self.common.clone(), lane, stripes, Vec::new());
        free.on_event(now, Event::Start, out);
        self.frees.push((lane, free));
    }

    /// The object certainly names nothing that was made: that is freed.
    fn fail(&mut self, now: Instant, error: ObjectError, out: &mut Vec<Action>) {
        self.outcome = Some(Err(error));
        self.data = Bytes::new();
        let phase = std::mem::replace(&mut self.phase, Phase::Over);
        if let Phase::Writing(lane, mut write) = phase {
            write.abandon(now, out);
            self.ending.push((lane, write));
        }
        let made = std::mem::take(&mut self.made);
        if !made.is_empty() {
            self.free(now, made, out);
        }
    }

    /// Takes what has ended and does what is next; false if something has to happen first.
    fn go_on(&mut self, now: Instant, out: &mut Vec<Action>) -> bool {
        match &self.phase {
            Phase::Reading(_, read) => match read.outcome().cloned() {
                None => return false,
                Some(Err(error)) => self.fail(now, error, out),
                Some(Ok(part)) => match self.bytes_of(&part) {
                    Ok(data) => {
                        self.data = data;
                        self.write(now, out);
                    }
                    Err(error) => self.fail(now, error, out),
                },
            },
            // What is late counts when it is read back: all of it has come, or will not.
            Phase::Writing(_, write) if !write.is_settled() => return false,
            Phase::Writing(_, write) => match write.outcome().cloned() {
                None => return false,
                Some(Err(error)) => self.fail(now, error, out),
                Some(Ok(written)) => {
                    let (old, new) = (self.old().cloned(), written.stripe);
                    self.leftover.add(write.leftover());
                    let expected = crc32(&self.data);
                    // The same bytes in the same class are the same shards, but those of a list.
                    let alike = |old: Stripe| {
                        !self.made.is_empty()
                            || (old.k, old.m) != (new.k, new.m)
                            || old.shard_crcs == new.shard_crcs
                    };
                    if written.data_crc != expected || !old.is_some_and(alike) {
                        let what = format!("stripe {}, that was to be moved", new.id);
                        let got = written.data_crc;
                        self.free(now, vec![new], out);
                        let error = ObjectError::Corrupt {
                            what,
                            expected,
                            got,
                        };
                        self.fail(now, error, out);
                    } else {
                        self.made.push(new);
                        self.looks = 0;
                        self.check(now, out);
                    }
                }
            },
            Phase::Checking(_, mend) => match mend.outcome().cloned() {
                None => return false,
                Some(Err(error)) => self.fail(now, error, out),
                Some(Ok(found)) if found.bad.is_empty() && found.away.is_empty() => {
                    self.next(now, out);
                }
                Some(Ok(found)) => {
                    if found.bad.is_empty() && self.looks < LOOKS {
                        let pause = LOOK_PAUSE * (1 << self.looks);
                        self.phase = Phase::Waiting(now + pause);
                    } else if self.tries < TRIES {
                        let bad = self.made.pop().into_iter().collect();
                        self.free(now, bad, out);
                        self.write(now, out);
                    } else {
                        let first = found.bad.first().or(found.away.first());
                        let why = first.map_or(String::new(), ToString::to_string);
                        let detail = format!("what was written is not whole: {why}");
                        self.fail(now, ObjectError::BadRequest { detail }, out);
                    }
                }
            },
            Phase::Waiting(at) if *at <= now => self.check(now, out),
            Phase::Waiting(_) => return false,
            Phase::Asking(ask) => {
                let Some(told) = ask.outcome().cloned() else {
                    return false;
                };
                self.told(now, told, out);
            }
            Phase::Over => return false,
        }
        true
    }

    fn told(
        &mut self,
        now: Instant,
        told: Result<crate::ask::Told, crate::ask::Untold>,
        out: &mut Vec<Action>,
    ) {
        self.common.forget(&self.bucket, &self.key);
        match told {
            Ok(told) => match told.reply {
                Reply::Committed { seq, .. } => {
                    self.phase = Phase::Over;
                    let mut made = std::mem::take(&mut self.made).into_iter();
                    let Some(stripe) = made.next() else {
                        return;
                    };
                    self.outcome = Some(Ok(Relocated {
                        version: seq,
                        stripe,
                        list: made.next(),
                    }));
                    // These, and not what the answer says: of a tree that names lists, whose stripes stay.
                    let old = std::iter::once(&self.spot.stripe).chain(&self.spot.list);
                    let old = old.cloned().collect();
                    self.free(now, old, out);
                }
                other => self.end(unexpected("Committed", &other)),
            },
            Err(untold) if untold.uncertain => self.end(untold.error),
            Err(untold) => self.fail(now, untold.error, out),
        }
    }

    /// Whether the object names what was made is not known.
    fn end(&mut self, error: ObjectError) {
        (self.phase, self.outcome) = (Phase::Over, Some(Err(error)));
        self.made.clear();
    }

    fn hand_on(&mut self, now: Instant, event: &Event, out: &mut Vec<Action>) {
        let lane = match event {
            Event::Answer { call, .. } => Some(call.lane),
            _ => None,
        };
        let is_for = |of: u32| lane.is_none_or(|lane| lane == of);
        match &mut self.phase {
            Phase::Reading(of, read) if is_for(*of) => read.on_event(now, event.clone(), out),
            Phase::Writing(of, write) if is_for(*of) => write.on_event(now, event.clone(), out),
            Phase::Checking(of, mend) if is_for(*of) => mend.on_event(now, event.clone(), out),
            Phase::Asking(ask) if is_for(ASK_LANE) => ask.on_event(now, event.clone(), out),
            _ => {}
        }
        for (of, write) in &mut self.ending {
            if is_for(*of) {
                write.on_event(now, event.clone(), out);
            }
        }
        for (of, free) in &mut self.frees {
            if is_for(*of) {
                free.on_event(now, event.clone(), out);
            }
        }
    }
}

fn changed(bucket: &str, key: &str) -> ObjectError {
    let (bucket, key) = (bucket.to_owned(), key.to_owned());
    ObjectError::ObjectChanged {
        bucket,
        key,
        given: 0,
    }
}

impl Machine for Relocate {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Start => self.next(now, out),
            Event::Abort => {
                // Once the head was asked there is no way back: the question is seen through.
                if self.outcome.is_none() && !matches!(self.phase, Phase::Asking(_)) {
                    self.fail(now, ObjectError::Aborted, out);
                }
            }
            Event::Answer { .. } | Event::Deadline => self.hand_on(now, &event, out),
            Event::Inline(_) | Event::Stripe(_) | Event::End => return,
        }
        while self.outcome.is_none() && self.go_on(now, out) {}
        let leftover = &mut self.leftover;
        self.ending.retain(|(_, write)| {
            let keep = !write.is_settled();
            if !keep {
                leftover.add(write.leftover());
            }
            keep
        });
    }

    fn next_deadline(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Reading(_, read) => read.next_deadline(),
            Phase::Writing(_, write) => write.next_deadline(),
            Phase::Checking(_, mend) => mend.next_deadline(),
            Phase::Waiting(at) => Some(*at),
            Phase::Asking(ask) => ask.next_deadline(),
            Phase::Over => None,
        };
        let ending = self.ending.iter().filter_map(|(_, it)| it.next_deadline());
        let frees = self.frees.iter().filter_map(|(_, it)| it.next_deadline());
        sooner(phase, ending.chain(frees).min())
    }

    fn is_answered(&self) -> bool {
        self.outcome.is_some()
    }

    fn leftover(&self) -> Leftover {
        let mut all = self.leftover;
        for (_, free) in &self.frees {
            all.add(free.leftover());
        }
        all
    }

    fn is_settled(&self) -> bool {
        let freed = self.frees.iter().all(|(_, free)| free.is_settled());
        self.outcome.is_some() && self.ending.is_empty() && freed
    }
}

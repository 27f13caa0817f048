//! One stripe, looked at whole: which of its shards are there, and those that are not made again.
//!
//! Every shard is read, with its checksums. What is missing, rotten or another record than the manifest means is
//! rebuilt from k that are right, written to the device where it belongs, read back, and only then counted as mended.
//!
//! Invariants:
//! - nothing is removed: a device takes a shard again that it does not have whole, and refuses it otherwise;
//! - a shard that is written has the manifest's checksum, and is made of shards that have theirs;
//! - a device that is late or away is left alone: what it has is not known;
//! - each shard is asked for once, written once and read back once: it ends.

use std::collections::BTreeSet;
use std::sync::Arc;

use ashlar_cluster_map::Class;
use ashlar_layout::crc::crc32;
use ashlar_layout::ids::{DeviceNo, ShardId};
use ashlar_layout::manifest::Stripe;
use ashlar_layout::message::{FindingKind, Reply, Request};
use ashlar_layout::time::Instant;
use bytes::Bytes;

use crate::call::{Action, Answer, CallId, Calls, Event, Machine};
use crate::common::Common;
use crate::encode::rebuild;
use crate::error::{Fault, ObjectError, ShardFault};
use crate::stripe_read::check_shard;

/// Which bad shards are to be made again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mends {
    /// None: it only looks.
    #[default]
    None,
    /// All.
    All,
    /// These, if they are bad, and no others: whoever counts what is bad may want to do so before it is made good.
    Only(BTreeSet<u16>),
}

impl Mends {
    fn has(&self, index: u16) -> bool {
        match self {
            Mends::None => false,
            Mends::All => true,
            Mends::Only(these) => these.contains(&index),
        }
    }
}

impl From<bool> for Mends {
    fn from(all: bool) -> Mends {
        if all { Mends::All } else { Mends::None }
    }
}

/// What was found of a stripe, and done about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Shards that were there, whole.
    pub whole: u32,
    /// Shards that were not, on devices that answered.
    pub bad: Vec<ShardFault>,
    /// Shards of devices that did not answer: nothing is known of them.
    pub away: Vec<ShardFault>,
    /// How many of the bad ones were made again,
    pub mended: u32,
    /// and which.
    pub made: Vec<u16>,
    /// Those that could not be.
    pub failed: Vec<ShardFault>,
    /// Shards that it takes to read the stripe.
    pub needed: u32,
}

impl Mended {
    /// Whether its bytes are gone for good, as far as it is known: not even the devices that are away could help.
    pub fn is_lost(&self) -> bool {
        self.whole + (self.away.len() as u32) < self.needed
    }

    /// Shards that may be lost yet, now.
    pub fn margin(&self) -> i64 {
        i64::from(self.whole + self.mended) - i64::from(self.needed)
    }
}

#[derive(Debug)]
enum Slot {
    Asked { call: CallId, until: Instant },
    Whole(Bytes),
    Bad(Fault),
    Away(Fault),
    Written { call: CallId, until: Instant },
    ReadBack { call: CallId, until: Instant },
    Mended,
    Failed(Fault),
}

impl Slot {
    fn open(&self) -> Option<(CallId, Instant)> {
        match self {
            Slot::Asked { call, until }
            | Slot::Written { call, until }
            | Slot::ReadBack { call, until } => Some((*call, *until)),
            _ => None,
        }
    }
}

/// The state machine that looks at one stripe, and mends it if it is told to.
#[derive(Debug)]
pub struct Mend {
    common: Arc<Common>,
    calls: Calls,
    stripe: Stripe,
    devices: Vec<DeviceNo>,
    mends: Mends,
    slots: Vec<Slot>,
    found: Mended,
    assessed: bool,
    outcome: Option<Result<Mended, ObjectError>>,
}

impl Mend {
    /// Looks at `stripe`, and mends what it is told to: only for who knows that an object has it. The error says why it
    /// makes no sense.
    pub fn new(
        common: Arc<Common>,
        stripe: Stripe,
        mends: impl Into<Mends>,
    ) -> Result<Mend, String> {
        let devices = common.devices_of(&stripe)?;
        let needed = u32::from(stripe.k);
        Ok(Mend {
            common,
            calls: Calls::new(0),
            stripe,
            devices,
            mends: mends.into(),
            slots: Vec::new(),
            found: Mended {
                needed,
                ..Mended::default()
            },
            assessed: false,
            outcome: None,
        })
    }

    /// The same, with calls of this number.
    pub(crate) fn with_lane(mut self, lane: u32) -> Mend {
        self.calls = Calls::new(lane);
        self
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Result<Mended, ObjectError>> {
        self.outcome.as_ref()
    }

    fn shard(&self, index: usize) -> ShardId {
        ShardId {
            stripe: self.stripe.id,
            index: index as u16,
        }
    }

    fn read(&mut self, now: Instant, index: usize, out: &mut Vec<Action>) -> (CallId, Instant) {
        let (call, device) = (self.calls.next(), self.devices[index]);
        out.push(Action::Send {
            call,
            to: device,
            request: Request::ShardRead {
                device,
                shard: self.shard(index),
                offset: 0,
                len: u32::MAX,
            },
            payload: Bytes::new(),
            payload_crc: None,
        });
        (call, now + self.common.tuning().give_up)
    }

    /// What was read of a whole shard, if it is what the manifest means.
    fn check(&self, index: usize, answer: Answer) -> Result<Bytes, Fault> {
        let whole = self.stripe.shard_len();
        check_shard(&self.stripe, index, whole, answer).map_err(|(fault, _)| fault)
    }

    fn fault(&self, index: usize, fault: Fault) -> ShardFault {
        self.common.shard_fault(index, self.devices[index], fault)
    }

    /// All devices have answered, or will not.
    fn assess(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.assessed = true;
        let faults = |of: fn(&Slot) -> Option<&Fault>| {
            let slots = self.slots.iter().enumerate();
            let slots = slots.filter_map(|(i, slot)| Some((i, of(slot)?.clone())));
            slots
                .map(|(i, fault)| self.fault(i, fault))
                .collect::<Vec<_>>()
        };
        let bad = faults(|slot| match slot {
            Slot::Bad(fault) => Some(fault),
            _ => None,
        });
        let away = faults(|slot| match slot {
            Slot::Away(fault) => Some(fault),
            _ => None,
        });
        let have: Vec<(usize, Bytes)> = self
            .slots
            .iter_mut()
            .enumerate()
            .filter_map(|(i, slot)| match slot {
                // No more than it takes is kept.
                Slot::Whole(bytes) => Some((i, std::mem::take(bytes))),
                _ => None,
            })
            .collect();
        self.found.whole = have.len() as u32;
        (self.found.bad, self.found.away) = (bad, away);
        let bad = self.found.bad.iter().map(|fault| fault.index);
        let mends: Vec<usize> = bad
            .filter(|index| self.mends.has(*index))
            .map(usize::from)
            .collect();
        if !mends.is_empty() && self.found.whole >= self.found.needed {
            self.mend(now, &have, mends, out);
        }
    }

    fn mend(
        &mut self,
        now: Instant,
        have: &[(usize, Bytes)],
        bad: Vec<usize>,
        out: &mut Vec<Action>,
    ) {
        let class = Class {
            k: self.stripe.k,
            m: self.stripe.m,
        };
        let have = have.iter().take(usize::from(self.stripe.k));
        let have: Vec<(usize, &[u8])> = have.map(|(i, bytes)| (*i, &bytes[..])).collect();
        let common = self.common.clone();
        let rebuilt = match rebuild(&common.codecs, common.pool(), class, &have, &bad) {
            Ok(rebuilt) => rebuilt,
            Err(error) => {
                let detail = error.to_string();
                self.outcome = Some(Err(ObjectError::BadRequest { detail }));
                return;
            }
        };
        for (index, bytes) in bad.iter().zip(&rebuilt) {
            let (expected, got) = (self.stripe.shard_crcs[*index], crc32(bytes));
            if expected != got {
                let what = format!("rebuilt shard {index} of stripe {}", self.stripe.id);
                self.outcome = Some(Err(ObjectError::Corrupt {
                    what,
                    expected,
                    got,
                }));
                return;
            }
        }
        for (index, bytes) in bad.into_iter().zip(rebuilt) {
            let (call, device) = (self.calls.next(), self.devices[index]);
            let shard = self.shard(index);
            if matches!(self.slots[index], Slot::Bad(Fault::Missing)) {
                let fault = FindingKind::Missing;
                // Others its node has found itself.
                out.push(Action::Tell {
                    to: device,
                    request: Request::ReportShard {
                        device,
                        shard,
                        fault,
                    },
                });
            }
            out.push(Action::Send {
                call,
                to: device,
                request: Request::ShardWrite { device, shard },
                payload: bytes,
                payload_crc: Some(self.stripe.shard_crcs[index]),
            });
            let until = now + self.common.tuning().give_up;
            self.slots[index] = Slot::Written { call, until };
        }
    }

    fn on_answer(&mut self, now: Instant, call: CallId, answer: Answer, out: &mut Vec<Action>) {
        let is_it = |slot: &Slot| slot.open().is_some_and(|(open, _)| open == call);
        let Some(index) = self.slots.iter().position(is_it) else {
            return;
        };
        self.slots[index] = match self.slots[index] {
            Slot::Asked { .. } => match self.check(index, answer) {
                Ok(bytes) => Slot::Whole(bytes),
                Err(fault) if fault.kind().is_some() => Slot::Bad(fault),
                Err(fault) => Slot::Away(fault),
            },
            Slot::Written { .. } => match answer {
                Answer::Reply {
                    reply: Reply::Done, ..
                } => {
                    let (call, until) = self.read(now, index, out);
                    Slot::ReadBack { call, until }
                }
                answer => Slot::Failed(Fault::of(answer)),
            },
            _ => match self.check(index, answer) {
                Ok(_) => Slot::Mended,
                Err(fault) => Slot::Failed(fault),
            },
        };
    }

    fn on_deadline(&mut self, now: Instant) {
        for slot in &mut self.slots {
            if slot.open().is_some_and(|(_, until)| until <= now) {
                *slot = match slot {
                    Slot::Asked { .. } => Slot::Away(Fault::Late),
                    _ => Slot::Failed(Fault::Late),
                };
            }
        }
    }

    fn advance(&mut self, now: Instant, out: &mut Vec<Action>) {
        let waits = |slots: &[Slot]| slots.iter().any(|slot| slot.open().is_some());
        if self.outcome.is_some() || waits(&self.slots) {
            return;
        }
        if !self.assessed {
            self.assess(now, out);
        }
        if self.outcome.is_some() || waits(&self.slots) {
            return;
        }
        let mut found = std::mem::take(&mut self.found);
        for (index, slot) in self.slots.iter().enumerate() {
            match slot {
                Slot::Mended => {
                    found.mended += 1;
                    found.made.push(index as u16);
                }
                Slot::Failed(fault) => found.failed.push(self.fault(index, fault.clone())),
                _ => {}
            }
        }
        self.outcome = Some(Ok(found));
    }
}

impl Machine for Mend {
    fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        if self.outcome.is_some() {
            return;
        }
        match event {
            Event::Start => {
                for index in 0..self.devices.len() {
                    let (call, until) = self.read(now, index, out);
                    self.slots.push(Slot::Asked { call, until });
                }
            }
            Event::Answer { call, answer } => self.on_answer(now, call, answer, out),
            Event::Deadline => self.on_deadline(now),
            Event::Abort => self.outcome = Some(Err(ObjectError::Aborted)),
            Event::Inline(_) | Event::Stripe(_) | Event::End => return,
        }
        self.advance(now, out);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let open = self.slots.iter().filter_map(Slot::open);
        let next = open.map(|(_, until)| until).min();
        next.filter(|_| self.outcome.is_none())
    }

    fn is_answered(&self) -> bool {
        self.outcome.is_some()
    }

    fn is_settled(&self) -> bool {
        self.outcome.is_some()
    }
}

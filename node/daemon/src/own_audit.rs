//! Devices that look at themselves, and are counted: from the auditor's thread to the core that has the device, and
//! back.
//!
//! Invariants:
//! - only devices are asked that a core of this process has; of each one step is asked for at a time, and what nobody
//!   waits for any more is taken out by whoever waited;
//! - a core looks here once a round, at a number; it takes a lock only if something was asked for since it last did.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ashlar_layout::ids::DeviceNo;
use ashlar_layout::time::Instant;
use ashlar_node_audit::census;
use ashlar_node_audit::device::{Answer, Devices, Seen};
use ashlar_node_engine::api::{self, Output};
use ashlar_node_engine::audit::{Audited, Step};
use ashlar_node_engine::census as engine;
use ashlar_node_engine::error::EngineError;
use ashlar_node_reactor::Buf;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::core::{Core, Pending};
use crate::holding::Meter;
use crate::shared::Shared;

/// How long an answer is waited for: after that the device counts as away.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// What it came to.
#[derive(Debug)]
pub(crate) enum Told {
    Audited(Audited),
    Counted(engine::Counted),
}

/// Where the answer goes.
pub(crate) type Reply = oneshot::Sender<Result<Told, EngineError>>;

/// What a device is asked for.
#[derive(Clone, Copy)]
enum What {
    Step(Step),
    Census(engine::Ask),
}

/// Something that a device is asked for.
struct Ask {
    device: DeviceNo,
    what: What,
    reply: Reply,
}

/// What is asked for.
#[derive(Default)]
pub(crate) struct Asks {
    /// How often something was asked for.
    pushed: AtomicU64,
    waiting: Mutex<VecDeque<Ask>>,
    /// Devices that cores of this process have.
    here: Mutex<BTreeSet<DeviceNo>>,
}

/// Takes out what was asked for, unless a core has it, when nobody waits for it any more.
struct Waits<'a> {
    asks: &'a Asks,
    device: DeviceNo,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut waiting = self.asks.waiting();
        waiting.retain(|ask| ask.device != self.device || !ask.reply.is_closed());
    }
}

impl Asks {
    /// A core has these devices.
    pub(crate) fn are_here(&self, devices: impl Iterator<Item = DeviceNo>) {
        let here = self.here.lock();
        here.unwrap_or_else(PoisonError::into_inner).extend(devices);
    }

    fn is_here(&self, device: DeviceNo) -> bool {
        let here = self.here.lock();
        here.unwrap_or_else(PoisonError::into_inner)
            .contains(&device)
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Ask>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a step. What is given back is to be kept until the answer is there, or is not waited for any more;
    /// the answer's end has to be dropped before.
    fn push(&self, ask: Ask) -> Waits<'_> {
        let device = ask.device;
        let mut waiting = self.waiting();
        waiting.retain(|other| other.device != device);
        waiting.push_back(ask);
        // Whoever sees the number finds the lock taken, or what was pushed.
        self.pushed.fetch_add(1, Ordering::Release);
        drop(waiting);
        let asks = self;
        Waits { asks, device }
    }

    /// Takes out those that are for one of these devices; `seen` is how often something had been asked for when the
    /// same core last looked.
    fn take(&self, seen: &mut u64, is_ours: impl Fn(DeviceNo) -> bool) -> Vec<Ask> {
        let pushed = self.pushed.load(Ordering::Acquire);
        if std::mem::replace(seen, pushed) == pushed {
            return Vec::new();
        }
        let mut waiting = self.waiting();
        let (ours, others) = std::mem::take(&mut *waiting)
            .into_iter()
            .partition(|ask| is_ours(ask.device));
        *waiting = others;
        Vec::from(ours)
    }
}

impl Core {
    /// Takes what devices of this core are asked for.
    pub(crate) fn take_audits(&mut self, now: Instant) {
        let devices = &self.devices;
        let asks = self.shared.audits.take(&mut self.audits_seen, |no| {
            devices.iter().any(|device| device.no == no)
        });
        for Ask {
            device,
            what,
            reply,
        } in asks
        {
            let found = self.devices.iter().position(|slot| slot.no == device);
            // One that does not serve is away: the reply is dropped.
            if let Some(device) = found
                && self.devices[device].is_serving()
            {
                let op = self.ops.insert(Pending::Audit(reply, device));
                let event = match what {
                    What::Step(step) => api::Event::Audit { op, step },
                    What::Census(ask) => api::Event::Census { op, ask },
                };
                let meter = Meter::Background { device, bytes: 0 };
                self.metered(device, meter, event, now);
            }
        }
    }
}

/// It was done, or was not.
pub(crate) fn answer(reply: Reply, result: Result<Output<Buf>, EngineError>) {
    let told = match result {
        Ok(Output::Audited(audited)) => Ok(Told::Audited(audited)),
        Ok(Output::Counted(counted)) => Ok(Told::Counted(counted)),
        Err(error) => Err(error),
        // Nothing else is an answer to that.
        Ok(_) => return,
    };
    // Whoever asked may be gone.
    let _ = reply.send(told);
}

/// The devices of this node, for the auditor.
pub(crate) struct OwnDevices(pub(crate) Arc<Shared>);

impl OwnDevices {
    /// Asks a device for something; none if it does not serve.
    async fn ask(&self, device: DeviceNo, what: What) -> Option<Result<Told, EngineError>> {
        if self.0.stopping.load(Ordering::Relaxed) {
            return None;
        }
        let (reply, answer) = oneshot::channel();
        let ask = Ask {
            device,
            what,
            reply,
        };
        let _waits = self.0.audits.push(ask);
        self.0.wake();
        // The end that waits is dropped with this, and so before what takes the ask out.
        let answered = timeout(ANSWER_MAX, answer).await;
        answered.ok()?.ok()
    }
}

impl Devices for OwnDevices {
    type Step = Step;

    fn all(&self) -> Vec<DeviceNo> {
        let newest = self.0.newest();
        let ours = newest.map.devices.iter();
        let ours = ours.filter(|device| device.node == self.0.node);
        let ours = ours.map(|device| device.no);
        ours.filter(|no| self.0.audits.is_here(*no)).collect()
    }

    fn first(&self) -> Step {
        Step::Superblocks
    }

    fn behind(&self, step: Step) -> Option<Step> {
        step.behind()
    }

    async fn look(&self, device: DeviceNo, step: Step) -> Answer<Step> {
        match self.ask(device, What::Step(step)).await {
            Some(Ok(Told::Audited(audited))) => {
                let Audited {
                    next,
                    bytes,
                    memory,
                    found,
                    untold,
                    left_out,
                } = audited;
                Answer::Seen(Seen {
                    next,
                    bytes,
                    memory,
                    found: found.into_iter().map(|kind| kind.name()).collect(),
                    untold,
                    left_out,
                })
            }
            Some(Err(EngineError::Busy { .. })) => Answer::Busy,
            _ => Answer::Away,
        }
    }

    async fn count(&self, device: DeviceNo, ask: census::Ask) -> Option<census::Counted> {
        let ask = match ask {
            census::Ask::Begin(salt) => engine::Ask::Begin { salt },
            census::Ask::Unmarked(salt, from) => engine::Ask::Unmarked { salt, from },
            census::Ask::Name(place) => engine::Ask::Name { place },
        };
        let Ok(Told::Counted(counted)) = self.ask(device, What::Census(ask)).await? else {
            return None;
        };
        Some(match counted {
            engine::Counted::Begun => census::Counted::Begun,
            engine::Counted::Forgotten => census::Counted::Forgotten,
            engine::Counted::Walked {
                unmarked,
                next,
                memory,
            } => census::Counted::Unmarked {
                places: unmarked,
                next,
                memory,
            },
            engine::Counted::Named { shard, bytes } => {
                census::Counted::Named(Some((shard, u64::from(bytes))))
            }
            engine::Counted::Unnamed => census::Counted::Named(None),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(device: u32) -> (Ask, oneshot::Receiver<Result<Told, EngineError>>) {
        let (reply, answer) = oneshot::channel();
        let ask = Ask {
            device: DeviceNo(device),
            what: What::Step(Step::Superblocks),
            reply,
        };
        (ask, answer)
    }

    #[test]
    fn each_core_takes_what_its_devices_are_asked_for() {
        let asks = Asks::default();
        let mut seen = [0; 3];
        assert!(asks.take(&mut seen[0], |_| true).is_empty());
        let (one, _hears) = ask(1);
        let (two, _too) = ask(2);
        let _waits = (asks.push(one), asks.push(two));
        let mut taken = |core: usize, no| {
            let ours = move |device| device == DeviceNo(no);
            asks.take(&mut seen[core], ours).len()
        };
        assert_eq!((taken(0, 3), taken(1, 2), taken(2, 1)), (0, 1, 1));
        assert!(asks.waiting().is_empty());
    }

    /// One of a device that no core has: each core looks once, and not in each round.
    #[test]
    fn a_lock_is_taken_once_for_what_was_asked() {
        let asks = Asks::default();
        let (one, _hears) = ask(1);
        let _waits = asks.push(one);
        let mut seen = 0;
        let looked = std::cell::Cell::new(0);
        for _ in 0..10 {
            let never = |_| {
                looked.set(looked.get() + 1);
                false
            };
            assert!(asks.take(&mut seen, never).is_empty());
        }
        assert_eq!((looked.get(), asks.waiting().len()), (1, 1));
    }

    #[test]
    fn what_nobody_waits_for_is_taken_out() {
        let asks = Asks::default();
        for no in 0..100 {
            let (one, gone) = ask(no);
            let waits = asks.push(one);
            assert_eq!(asks.waiting().len(), 1);
            drop(gone);
            drop(waits);
            assert!(asks.waiting().is_empty());
        }
        // Another one of the same device, that somebody waits for, stays.
        let (one, gone) = ask(9);
        let waits = asks.push(one);
        let (two, _hears) = ask(9);
        let _too = asks.push(two);
        drop(gone);
        drop(waits);
        assert_eq!(asks.take(&mut 0, |_| true).len(), 1);
    }

    #[test]
    fn devices_of_cores_are_here_and_others_are_not() {
        let asks = Asks::default();
        asks.are_here([DeviceNo(3), DeviceNo(5)].into_iter());
        assert_eq!(
            [3, 4, 5].map(|no| asks.is_here(DeviceNo(no))),
            [true, false, true]
        );
    }
}
